"""Work on many batches at once, with the results in the order of the batches.

A job is plain data that says what is to be done with every batch; whoever does it prepares it once.
Here that is this process with a thread for each core; ``cluster.py`` has the same for a Dask cluster.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Protocol

AHEAD = 2  # batches in work for each thread: what is done and not taken up yet needs memory


class Job(Protocol):
    """What is to be done, for whom."""

    def prepare(self) -> Callable[[Any], Any]:
        """What does one batch. It may be called by several threads at once."""


class Spread(Protocol):
    """Where the batches of a job are worked on."""

    def run(self, job: Job, batches: Iterable[Any]) -> Generator[Any]:
        """The result for every batch, in order; few batches are taken before they are needed.

        Whoever may leave early closes it: until then work that was begun goes on.
        """


class Threads:
    """This process, with as many threads as it may use cores."""

    def __init__(self, workers: int | None = None) -> None:
        self.workers = workers or cores()

    def run(self, job: Job, batches: Iterable[Any]) -> Generator[Any]:
        """See Spread."""
        do = job.prepare()
        if self.workers == 1:
            yield from map(do, batches)
            return
        with ThreadPoolExecutor(self.workers) as pool:
            waiting: deque[Future[Any]] = deque()
            try:
                for batch in batches:
                    waiting.append(pool.submit(do, batch))
                    if len(waiting) >= AHEAD * self.workers:
                        yield waiting.popleft().result()
                while waiting:
                    yield waiting.popleft().result()
            finally:
                for future in waiting:
                    future.cancel()


def cores() -> int:
    """Cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
