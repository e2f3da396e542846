"""Shards -> their tokens, in the order of the shards: in this process, in a pool of processes, or over Ray.

Only a few shards a worker are under way at any time, so memory does not grow with the text. A shard that is in the
store is taken from there, a new one is put there as soon as its turn has come.
"""

import itertools
import multiprocessing
import os
import signal
import threading
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from distill.corpus.ray_workers import open_ray
from distill.corpus.shard_store import ShardStore
from distill.corpus.shards import Shard, ShardSetup, ShardTokens, load_models, tokenize_shard

Submit = Callable[[Shard], Callable[[], ShardTokens]]
"""Starts work on a shard and returns what waits for its result."""


def tokenize_in_order(
    shards: Iterable[Shard], setup: ShardSetup, *, processes: int, store: ShardStore | None = None,
    ray: str | None = None,
) -> Generator[tuple[Shard, ShardTokens]]:  # fmt: skip
    """Each shard with its tokens, in order.

    One process works here, more are spawned, so that the caller's main module must be importable then.

    Args:
        ray: address of a Ray cluster, or "auto"; it replaces the processes.
    Raises:
        InputError: what is wrong with the text, its reference or the segmenter.
        ChildProcessError: a worker process died; finished shards are in the store.
    """
    with ExitStack() as on_exit:
        if ray:
            submit, capacity = on_exit.enter_context(open_ray(ray, setup))
        elif processes > 1:
            submit, capacity = _open_pool(processes, setup, on_exit), 2 * processes + 1
        else:
            submit, capacity = lambda shard: lambda: tokenize_shard(shard, setup), 1
        yield from _in_order(shards, submit, capacity, store)


def _in_order(
    shards: Iterable[Shard], submit: Submit, capacity: int, store: ShardStore | None
) -> Generator[tuple[Shard, ShardTokens]]:
    under_way: deque[tuple[Shard, Path | None, Callable[[], ShardTokens] | None]] = deque()
    waiting = iter(shards)
    while True:
        for shard in itertools.islice(waiting, capacity - len(under_way)):
            path = store.path(shard) if store else None
            under_way.append((shard, path, None if path and path.is_file() else submit(shard)))
        if not under_way:
            return
        shard, path, result = under_way.popleft()
        tokens = store.load(path) if store and path and not result else None
        if tokens is None:
            tokens = (result or submit(shard))()  # submitted now if the kept file was damaged
            if store and path:
                store.save(path, tokens)
        yield shard, tokens


def _open_pool(processes: int, setup: ShardSetup, on_exit: ExitStack) -> Submit:
    context = multiprocessing.get_context("spawn")  # forking a process with torch's or Rust's threads can hang
    pool = ProcessPoolExecutor(
        processes,
        mp_context=context,
        initializer=_start_worker,
        initargs=(setup, os.getpid(), context.Lock()),
    )
    on_exit.callback(pool.shutdown, wait=True, cancel_futures=True)

    def submit(shard: Shard) -> Callable[[], ShardTokens]:
        try:
            future = pool.submit(_tokenize_in_worker, shard)
        except BrokenProcessPool as error:
            raise _worker_died() from error

        def wait() -> ShardTokens:
            try:
                return future.result()
            except BrokenProcessPool as error:
                raise _worker_died() from error

        return wait

    return submit


def _worker_died() -> ChildProcessError:
    return ChildProcessError("a worker process died, perhaps for want of memory; start again with fewer processes to "
                             "go on after the last finished part")  # fmt: skip


_this_worker: dict[str, Any] = {}


def _start_worker(setup: ShardSetup, parent: int, loading: Any) -> None:
    """One thread a process, Ctrl-C left to the parent, and an end if the parent is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    os.environ["RAYON_NUM_THREADS"] = "1"
    _this_worker.update(setup=setup, loading=loading)

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _tokenize_in_worker(shard: Shard) -> ShardTokens:
    setup = _this_worker["setup"]
    if "loading" in _this_worker:
        # One after the other: an LTP perceptron of 28 MB takes 660 MB while it is loaded and 440 MB then.
        with _this_worker["loading"]:
            load_models(setup)
        del _this_worker["loading"]
    return tokenize_shard(shard, setup)
