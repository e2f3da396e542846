"""Shards over Ray: the same function on the machines of a cluster (extra `ray`).

The package, and a segmenter's folder under the same path, must be there on every machine; text and output are read and
written by the machine that started the run.
"""

import importlib.util
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from distill.corpus.segment import is_neural
from distill.corpus.shards import Shard, ShardSetup, ShardTokens, tokenize_shard
from distill.errors import InputError, first_line

RETRIES = 20  # of a shard whose worker or machine died


def check_ray(address: str | None) -> None:
    """Raises InputError if Ray is asked for and not installed."""
    if address and importlib.util.find_spec("ray") is None:
        raise InputError("ray: the package ray is not installed; `pip install minidistill[ray]`")


@contextmanager
def join_cluster(address: str) -> Iterator[Any]:
    """The module ray, with this process joined to a cluster; one that was joined before stays so.

    Raises:
        InputError: ray is not installed, or there is no cluster at the address.
    """
    check_ray(address)
    import ray

    started_here = not ray.is_initialized()
    try:
        ray.init(address=address, log_to_driver=False, logging_level=logging.WARNING, ignore_reinit_error=True)
    except (ConnectionError, ValueError, RuntimeError) as error:  # none there, no address, another version
        said = first_line(error, 200)
        raise InputError(
            f"ray: no cluster at {address!r} ({said}); `ray start --head` starts one, `auto` finds it"
        ) from error
    try:
        yield ray
    finally:
        if started_here:
            ray.shutdown()


@contextmanager
def open_ray(address: str, setup: ShardSetup) -> Iterator[tuple[Callable[[Shard], Callable[[], ShardTokens]], int]]:
    """What starts work on a shard in the cluster, and how many shards should be under way.

    Raises:
        InputError: ray is not installed, or there is no cluster at the address.
    """
    with join_cluster(address) as ray:
        resources = ray.cluster_resources()
        on_gpu = bool(setup.segmenter and is_neural(setup.segmenter) and resources.get("GPU"))
        num_workers = int(resources.get("GPU" if on_gpu else "CPU", 1))
        remote = ray.remote(num_cpus=1, num_gpus=int(on_gpu), max_retries=RETRIES)(tokenize_shard)
        shared_setup = ray.put(setup)

        def submit(shard: Shard) -> Callable[[], ShardTokens]:
            reference = remote.remote(shard, shared_setup)

            def wait() -> ShardTokens:
                try:
                    return ray.get(reference)
                except ray.exceptions.RayTaskError as error:
                    if isinstance(error.cause, InputError):
                        raise error.cause from None
                    raise
                except (ray.exceptions.WorkerCrashedError, ray.exceptions.RayError) as error:
                    said = first_line(error, None)
                    raise ChildProcessError(f"ray: {said}") from error

            return wait

        yield submit, 2 * num_workers + 1
