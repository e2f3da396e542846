"""File systems and rights of a forked process alone: what a test of a full or read-only disk needs."""

import ctypes
import os
import subprocess
from pathlib import Path

CLONE_NEWNS = 0x00020000
CAPABILITY_VERSION = 0x20080522
CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH = 1, 2
libc = ctypes.CDLL(None, use_errno=True)


def take_own_mounts() -> bool:
    """Lets what this process mounts be seen by it and its children alone; False if it has no right to mount."""
    if libc.unshare(CLONE_NEWNS):
        return False
    return subprocess.run(["mount", "--make-rprivate", "/"], capture_output=True).returncode == 0


def mount(*arguments: str) -> None:
    subprocess.run(["mount", *arguments], check=True)


def mount_small(folder: Path, kilobytes: int) -> None:
    """A file system of this size, in memory."""
    folder.mkdir(exist_ok=True)
    mount("-t", "tmpfs", "-o", f"size={kilobytes}k", "none", str(folder))


def resize(folder: Path, kilobytes: int) -> None:
    mount("-o", f"remount,size={kilobytes}k", str(folder))


def make_read_only(folder: Path) -> None:
    mount("--bind", str(folder), str(folder))
    mount("-o", "remount,bind,ro", str(folder))


def obey_permissions() -> None:
    """Takes from root the right to pass over the permissions of files."""
    if os.geteuid() != 0:
        return
    header = (ctypes.c_uint32 * 2)(CAPABILITY_VERSION, 0)
    sets = (ctypes.c_uint32 * 6)()  # effective, permitted, inheritable; then the same for the higher numbers
    assert libc.capget(header, sets) == 0
    for place in (0, 1):
        sets[place] &= ~(1 << CAP_DAC_OVERRIDE | 1 << CAP_DAC_READ_SEARCH)
    assert libc.capset(header, sets) == 0
