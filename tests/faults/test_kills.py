"""A chain of two stages and three students, killed and with a failing disk: it always ends as if nothing had happened.

The few kills of every day; MINIDISTILL_KILLS=100 makes it that many of each kind, and `python tests/faults/chain.py` or
`launcher.py` any number by a seed of one's own.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

KILLS = int(os.environ.get("MINIDISTILL_KILLS", "0"))
FAULTS = Path(__file__).parent
SEED = "1"
pytestmark = pytest.mark.slow


def campaign(script, folder, *arguments, capsys):
    """Runs a driver of this folder. Returns the counts that it prints, which are shown."""
    done = subprocess.run(
        [sys.executable, str(FAULTS / script), str(folder), *arguments, "--seed", SEED],
        capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(FAULTS.parents[1])},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-4000:]
    with capsys.disabled():
        print(f"\n{done.stdout.strip()}")
    counts = [json.loads(line) for line in done.stdout.splitlines()]
    assert all(count["lost"] == count["differing"] == 0 for count in counts), done.stderr[-4000:]
    return counts


def test_a_chain_whose_process_or_disk_fails_at_any_call(tmp_path, capsys):
    number = KILLS or 2
    kill, full, _ = campaign(
        "chain.py", tmp_path, "--mode", "kill", "full", "glitch", "--count", str(number), capsys=capsys
    )
    assert kill["disturbed"] >= number and full["disturbed"] == number


@pytest.mark.parametrize("nproc", ["2", pytest.param("1", marks=pytest.mark.skipif(not KILLS, reason="takes long"))])
def test_the_launchers_processes_killed_at_any_moment(tmp_path, capsys, nproc):
    number = KILLS or 3
    (counts,) = campaign("launcher.py", tmp_path, "--nproc", nproc, "--count", str(number), capsys=capsys)
    assert counts["kills"] >= number
    assert counts["messages"] == counts["children"], "a lost process is told in one line that names it"
