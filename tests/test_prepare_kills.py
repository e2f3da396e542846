"""Kill -9 at random moments, and a full disk: the finished folder is that of an undisturbed run, never a half one.

MINIDISTILL_KILLS=20 kills more often than the three times of every day.
"""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from faults.disturbance import descendants

KILLS = int(os.environ.get("MINIDISTILL_KILLS", "3"))
DRIVER = Path(__file__).with_name("prepare_driver.py")
WORDS = "天气 很好 我们 去 公园 玩 。 tweet 研究生 在 研究 生命 起源 ，".split()
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """(folder of texts, folder of the tokenizer)"""
    folder = tmp_path_factory.mktemp("corpus")
    for name in ("tokenizer", "texts"):
        (folder / name).mkdir()
    tokens = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *sorted(set("".join(WORDS))), "##we", "##et"]
    (folder / "tokenizer/vocab.txt").write_text("\n".join(tokens), encoding="utf-8")
    rng = random.Random(0)
    for number in range(3):
        lines = [" ".join(rng.choices(WORDS, k=rng.randrange(30))) for _ in range(600)]
        (folder / f"texts/{number}.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder / "texts", folder / "tokenizer"


def start(corpus: tuple[Path, Path], output: Path, processes: int, *before: str) -> subprocess.Popen[str]:
    command = [*before, sys.executable, str(DRIVER), str(corpus[0]), str(corpus[1]), str(output), str(processes)]
    environment = {**os.environ, "PYTHONPATH": str(DRIVER.parents[1])}
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def undisturbed(corpus: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    output = tmp_path_factory.mktemp("undisturbed")
    assert start(corpus, output, 1).wait(120) == 0
    found = contents(output)
    assert len(found) == 3 + 9  # references, info.json, two files of the tokenizer, three a split; nothing else
    return found


@pytest.mark.parametrize("processes", [1, 2])
def test_killed_runs_are_continued(
    corpus: tuple[Path, Path], undisturbed: dict[str, bytes], tmp_path: Path, processes: int
) -> None:
    rng = random.Random(processes)
    landed = 0
    for _ in range(KILLS):
        process = start(corpus, tmp_path / "out", processes)
        assert process.stdout is not None
        for _ in range(rng.randrange(0, 140)):
            if not process.stdout.readline():
                break
        time.sleep(rng.uniform(0, 0.05))
        process.send_signal(signal.SIGKILL)
        landed += process.wait() == -signal.SIGKILL
        process.communicate()
        finished = [path for path in (tmp_path / "out").glob("*/info.json") if not path.parent.name.startswith(".")]
        for path in finished:
            assert contents(path.parent) == {
                name.partition("/")[2]: content
                for name, content in undisturbed.items()
                if name.startswith(path.parent.name)
            }
        if finished:
            break
    assert landed
    process = start(corpus, tmp_path / "out", processes)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors
    assert contents(tmp_path / "out") == undisturbed


@pytest.mark.skipif(sys.platform != "linux", reason="looks for the workers in /proc")
def test_a_killed_worker_is_said_and_the_rest_goes_on_later(
    corpus: tuple[Path, Path], undisturbed: dict[str, bytes], tmp_path: Path
) -> None:
    process = start(corpus, tmp_path / "out", 2)
    assert process.stdout is not None and process.stdout.readline() == "shard\n"
    workers = descendants(process.pid)
    os.kill(workers[-1], signal.SIGKILL)  # the one that was forked last
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 1 and "a worker process died" in errors and errors.count("\n") == 1, errors
    deadline = time.monotonic() + 10
    while any(Path(f"/proc/{pid}").exists() for pid in workers):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert start(corpus, tmp_path / "out", 2).wait(120) == 0
    assert contents(tmp_path / "out") == undisturbed


def test_full_disk_leaves_no_half_file(
    corpus: tuple[Path, Path], undisturbed: dict[str, bytes], tmp_path: Path
) -> None:
    """On a real file system of 200 KB, which only root can mount."""
    output = tmp_path / "small"
    output.mkdir()
    script = f'mount -t tmpfs -o size=200k none {output} && "$@"; code=$?; find {output} -type f; exit $code'
    if subprocess.run(["unshare", "-m", "mount", "-t", "tmpfs", "none", str(output)], capture_output=True).returncode:
        pytest.skip("this user cannot mount a file system")
    process = start(corpus, output, 1, "unshare", "-m", "sh", "-c", script, "sh")
    listing, errors = process.communicate(timeout=120)
    assert process.returncode == 1 and errors.count("\n") == 1 and "No space left on device" in errors, errors
    left = [line for line in listing.splitlines() if line != "shard"]
    assert left and all(".work/shards/" in line and "/shards/." not in line for line in left), left


def test_second_run_waits_for_the_first(
    corpus: tuple[Path, Path], undisturbed: dict[str, bytes], tmp_path: Path
) -> None:
    first = start(corpus, tmp_path, 1)
    assert first.stdout is not None and first.stdout.readline() == "shard\n"
    first.send_signal(signal.SIGSTOP)  # so that it is at work for as long as the second one needs to start
    second = start(corpus, tmp_path, 1)
    assert second.stderr is not None
    said = second.stderr.readline()
    first.send_signal(signal.SIGCONT)
    errors = [process.communicate(timeout=200)[1] for process in (first, second)]
    assert [first.returncode, second.returncode] == [0, 0], errors
    assert f"waiting for process {first.pid}" in said
    assert "packed" in errors[0] and "packed" not in errors[1]
    assert contents(tmp_path) == undisturbed
