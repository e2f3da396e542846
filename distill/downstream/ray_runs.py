"""Runs of a grid over Ray (extra `ray`): the machines of a cluster, which share models, data and output folder."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from distill.corpus.ray_workers import join_cluster
from distill.downstream.grid import Run
from distill.errors import first_line

RETRIES = 3
"""Of a run whose worker or machine died."""


def runs_over_ray(runs: Sequence[Run], address: str, attempt: Callable[[Run, Path], str]) -> Iterator[tuple[Run, str]]:
    """(run, what went wrong or '') as they end; each takes a GPU where the cluster has some, else a core.

    Args:
        attempt: does a run in a working directory, which is this process's; paths may be relative to it.
    Raises:
        InputError: ray is not installed, or there is no cluster at the address.
    """
    with join_cluster(address) as ray:
        num_gpus = 1 if ray.cluster_resources().get("GPU") else 0
        remote = ray.remote(num_cpus=1, num_gpus=num_gpus, max_retries=RETRIES)(attempt)
        waiting = {remote.remote(run, Path.cwd()): run for run in runs}
        try:
            while waiting:
                (done,), _ = ray.wait(list(waiting), num_returns=1)
                run = waiting.pop(done)
                try:
                    yield run, ray.get(done)
                except ray.exceptions.RayError as error:  # its machine died too often
                    yield run, first_line(error, None)
        finally:
            for reference in waiting:
                ray.cancel(reference, force=True)
