"""Batches on an existing Dask cluster, with the results that this process would have given.

The job travels as one task's argument and every batch as another's, so that the scheduler can have
either done again when a worker is lost. Workers prepare a job once. Whoever runs the cluster can run any
code on its workers and here: Dask's messages are pickles.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import pickle
import threading
import time
import warnings
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import CancelledError
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from stl_deploy.errors import BackendError, InputError, Problem
from stl_deploy.spread import Job
from stl_deploy.version import __version__

if TYPE_CHECKING:
    from distributed import Client, Future

CONNECT_S = 5.0  # for a scheduler to answer
WORKERS_S = 30.0  # without any worker until it is given up
POLL_S = 2.0
KEPT = 2  # prepared jobs that a worker keeps
EXTRA = "pip install 'stl-deploy[dask]'"


@contextmanager
def connect(address: str) -> Iterator[Cluster]:
    """The cluster whose scheduler has this address.

    Raises InputError where Dask is not installed or no scheduler answers.
    """
    try:
        from distributed import Client
    except ImportError:
        raise InputError(Problem("--dask", "needs the package distributed", EXTRA)) from None
    _check(address)
    with _silence():
        try:
            kind = asyncio.run(asyncio.wait_for(_identity(address), CONNECT_S))
            if kind != "Scheduler":
                raise OSError(f"it is a {kind}")
            client = Client(address, timeout=CONNECT_S, set_as_default=False)
        except (OSError, ValueError, TypeError, ImportError) as error:
            reason = str(error).splitlines()[0] if str(error) else "it is silent"
            raise InputError(
                Problem(
                    "--dask",
                    f"no scheduler answers at {address!r} within {CONNECT_S:g} s: {reason}",
                    "start one with `dask scheduler`, or correct the address",
                )
            ) from None
        try:
            yield Cluster(client, address)
        finally:
            client.close(timeout=CONNECT_S)


async def _identity(address: str) -> str:
    """What answers at ``address``. A Client would wait for ever for what only listens there."""
    from distributed.core import rpc
    from distributed.security import Security

    secrets = Security().get_connection_args("client")
    async with rpc(address, timeout=CONNECT_S, connection_args=secrets) as remote:
        return str((await remote.identity()).get("type"))


def _check(address: str) -> None:
    """Raise InputError for what cannot be an address; Dask would begin to connect first."""
    from distributed.comm.addressing import parse_address
    from distributed.comm.registry import get_backend

    remedy = "give one as tcp://host:8786"
    if not address.strip():
        raise InputError(Problem("--dask", "names no scheduler", remedy))
    try:
        get_backend(parse_address(address)[0])
    except ValueError as error:
        raise InputError(Problem("--dask", f"{address!r}: {error}", remedy)) from None


@contextmanager
def _silence() -> Iterator[None]:
    """Keep Dask's log away from the user: what matters is raised."""
    logger = logging.getLogger("distributed")
    before = logger.level
    logger.setLevel(logging.CRITICAL + 1)
    try:
        yield
    finally:
        logger.setLevel(before)


class Cluster:
    """A Dask cluster as a ``spread.Spread``."""

    def __init__(self, client: Client, address: str) -> None:
        self.client, self.address = client, address
        self._seen = time.monotonic()  # when there last was a worker

    def run(self, job: Job, batches: Iterable[Any]) -> Generator[Any]:
        """See Spread. Raises BackendError when the cluster is lost, or what a worker raised.

        What nobody waits for any more the scheduler drops as soon as its future is.
        """
        ahead = 2 * self._threads() + 2
        data = pickle.dumps(job)
        key = hashlib.sha256(data).hexdigest()
        waiting: deque[Future[Any]] = deque()
        with warnings.catch_warnings():
            # A job is large on purpose: only what lies in a task can be sent again.
            warnings.filterwarnings("ignore", message="Sending large graph")
            shared = self.client.submit(_whole, data, pure=False)
            for batch in batches:
                packed = pickle.dumps(batch)
                waiting.append(
                    self.client.submit(_work, shared, key, __version__, packed, pure=False)
                )
                if len(waiting) >= ahead:
                    yield self._result(waiting.popleft())
            while waiting:
                yield self._result(waiting.popleft())

    def _threads(self) -> int:
        """Threads of all workers; waits for the first."""
        try:
            self.client.wait_for_workers(1, timeout=WORKERS_S)
            return sum(self._workers().values())
        except TimeoutError:
            raise InputError(
                Problem(
                    "--dask",
                    f"{self.address} has no worker after {WORKERS_S:g} s",
                    f"start some with `dask worker {self.address}`",
                )
            ) from None
        except OSError as error:
            raise self._lost(str(error)) from None

    def _workers(self) -> dict[str, int]:
        """Threads by worker. Raises TimeoutError where the scheduler does not say."""
        scheduler = self.client.scheduler
        if scheduler is None:
            return {}
        workers: dict[str, int] = self.client.sync(scheduler.ncores, callback_timeout=CONNECT_S)
        return workers

    def _result(self, future: Future[Any]) -> Any:
        """What a worker found."""
        from distributed import KilledWorker
        from distributed.comm.core import CommClosedError

        while True:
            try:
                return future.result(timeout=POLL_S)
            except TimeoutError:
                self._look()
            except CommClosedError as error:
                raise self._lost(str(error)) from None
            except CancelledError:
                raise self._lost("the scheduler no longer knows this work") from None
            except KilledWorker as error:
                raise self._lost(str(error).splitlines()[0]) from None
            except ModuleNotFoundError as error:
                raise BackendError(
                    Problem("--dask", f"a worker has {error}", f"install {_mine()} on all workers")
                ) from None

    def _look(self) -> None:
        """Raise BackendError where nobody is left to wait for."""
        try:
            if self.client.status == "running" and self._workers():
                self._seen = time.monotonic()
        except TimeoutError:
            pass  # Nobody was seen.
        except OSError as error:
            raise self._lost(str(error)) from None
        if time.monotonic() - self._seen > WORKERS_S:
            raise self._lost(f"there has been no worker for {WORKERS_S:g} s")

    def _lost(self, why: str) -> BackendError:
        return BackendError(
            Problem("--dask", f"the cluster at {self.address} was lost: {why}", "see its log")
        )


def _mine() -> str:
    return f"stl-deploy {__version__}"


# On the workers

_ready: dict[str, Callable[[Any], Any]] = {}
_preparing = threading.Lock()


def _whole(data: bytes) -> bytes:
    """The job, as a result that other tasks depend on."""
    return data


def _work(job: bytes, key: str, version: str, batch: bytes) -> Any:
    """Do one batch of a job."""
    if version != __version__:
        raise BackendError(
            Problem(
                "--dask",
                f"a worker has {_mine()}, this is version {version}",
                f"install stl-deploy {version} on all workers",
            )
        )
    with _preparing:
        if key not in _ready:
            while len(_ready) >= KEPT:
                _ready.pop(next(iter(_ready)))
            _ready[key] = pickle.loads(job).prepare()
        do = _ready[key]
    return do(pickle.loads(batch))
