"""Independent jobs side by side, in processes or in threads. The first that fails ends the others."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Sequence
from typing import Any, TypeVar

Job = TypeVar("Job")
Result = TypeVar("Result")


def in_processes(
    work: Callable[[Job], Result], jobs: Sequence[Job], workers: int
) -> Generator[tuple[Job, Result], None, None]:
    """Every job with its result, as they come; in this process and in order with one worker or one job.

    Processes are spawned: a fork would copy locks that our threads hold. Jobs not begun are dropped when one fails and
    when the generator is closed.
    """
    if workers < 2 or len(jobs) < 2:
        yield from ((job, work(job)) for job in jobs)
        return
    from concurrent.futures import ProcessPoolExecutor, as_completed  # most processes need no others
    from multiprocessing import get_context

    with ProcessPoolExecutor(min(workers, len(jobs)), get_context("spawn")) as pool:
        futures = {pool.submit(work, job): job for job in jobs}
        try:
            for future in as_completed(futures):
                yield futures[future], future.result()
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


def in_threads(work: Callable[[Job], Any], jobs: Iterable[Job], threads: int) -> None:
    """Do every job; in this thread and in order with one thread."""
    if threads == 1:
        for job in jobs:
            work(job)
        return
    from concurrent.futures import ThreadPoolExecutor

    with ThreadPoolExecutor(threads) as pool:
        for _ in pool.map(work, jobs):
            pass
