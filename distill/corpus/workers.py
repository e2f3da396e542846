"""Shards -> their tokens, in the order of the shards: in this process, in a pool of processes, or over Ray.

Only a few shards a worker are under way at any time, so memory does not grow with the text. A shard that is in the
store is taken from there, a new one is put there as soon as its turn has come.
"""

import contextlib
import gc
import itertools
import multiprocessing
import os
import queue
import signal
import sys
from collections import deque
from collections.abc import Callable, Generator, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path

from distill.corpus.ray_workers import open_ray
from distill.corpus.segment import is_neural
from distill.corpus.shard_store import ShardStore
from distill.corpus.shards import Shard, ShardSetup, ShardTokens, load_models, tokenize_shard
from distill.corpus.source import NEURAL_SHARD_CHARS, Source, iter_shards

Submit = Callable[[Shard], Callable[[], ShardTokens]]
"""Starts work on a shard and returns what waits for its result."""


def tokenize_sources(
    sources: Sequence[Source], setup: ShardSetup, *, processes: int, keep: Path | None, ray: str | None
) -> Generator[tuple[Shard, ShardTokens]]:
    """All shards of the sources with their tokens, in order. Neural LTP runs in one process: torch's threads or the GPU
    are its parallelism.

    Args:
        keep: a folder that keeps finished shards, so that an interrupted run can go on.
    Raises: see `tokenize_in_order`.
    """
    neural = setup.segmenter is not None and is_neural(setup.segmenter)
    shards = iter_shards(sources, shard_chars=NEURAL_SHARD_CHARS if neural else None)
    store = ShardStore(keep, setup) if keep else None
    return tokenize_in_order(shards, setup, processes=1 if neural else processes, store=store, ray=ray)


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
    """Workers with a pipe each; a thread a worker waits for its answers.

    A loader, started anew because a process with threads must not be forked, loads the models once and forks the
    workers, which share its memory: an LTP perceptron of 28 MB takes 660 MB and 3 s. Without fork, each loads its own.
    """
    spawn = multiprocessing.get_context("spawn")
    pipes = [spawn.Pipe() for _ in range(processes)]
    ends = [theirs for _, theirs in pipes]
    groups = [ends] if sys.platform == "linux" else [[end] for end in ends]
    free: queue.SimpleQueue[Connection] = queue.SimpleQueue()
    threads = ThreadPoolExecutor(processes)
    loaders = [spawn.Process(target=_load_and_serve, args=(setup, group), daemon=True) for group in groups]
    on_exit.callback(_close, threads, loaders, [ours for ours, _ in pipes])
    for loader in loaders:
        loader.start()
    for ours, theirs in pipes:
        theirs.close()  # so that the end of a worker is the end of its pipe
        free.put(ours)
    return lambda shard: threads.submit(_ask, free, shard).result


def _ask(free: "queue.SimpleQueue[Connection]", shard: Shard) -> ShardTokens:
    """Has the next free worker do the shard."""
    worker = free.get()
    try:
        worker.send(shard)
        answer = worker.recv()
    except (EOFError, OSError) as error:
        raise ChildProcessError("a worker process died, perhaps for want of memory; start again with fewer processes "
                                "to go on after the last finished part") from error  # fmt: skip
    finally:
        free.put(worker)
    if isinstance(answer, Exception):
        raise answer
    return answer


def _close(threads: ThreadPoolExecutor, loaders: Sequence[BaseProcess], pipes: Sequence[Connection]) -> None:
    """Workers end when their pipe does, after the shard they are at."""
    threads.shutdown(wait=True, cancel_futures=True)
    for pipe in pipes:
        pipe.close()
    for loader in loaders:
        if loader.pid is not None:
            loader.join()


def _load_and_serve(setup: ShardSetup, pipes: Sequence[Connection]) -> None:
    """Loads the models and serves every pipe in a forked process, the first in this one."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    os.environ["RAYON_NUM_THREADS"] = "1"
    problem = None
    try:
        load_models(setup)
    except Exception as error:
        problem = error
    gc.freeze()  # the collector would write into the pages that the processes share
    mine = pipes[0]
    children: list[int] = []
    for pipe in pipes[1:]:
        child = os.fork()
        if not child:
            mine, children = pipe, []
            break
        children.append(child)
    for pipe in pipes:
        if pipe is not mine:
            pipe.close()
    with contextlib.suppress(EOFError, OSError):  # the parent has closed its end, or is gone
        while True:
            shard = mine.recv()
            try:
                answer: ShardTokens | Exception = problem or tokenize_shard(shard, setup)
            except Exception as error:
                answer = error
            mine.send(answer)
    for child in children:
        os.waitpid(child, 0)
    os._exit(0)
