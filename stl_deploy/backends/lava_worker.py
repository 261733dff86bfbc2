"""Workers of the backends lava and netx: a process with Lava, and what it found.

The worker is a standalone script (exporters/templates) that runs in the environment of
``lava_env``. Lava hangs where it should fail, so a worker that shows no progress for a while is
ended, with everything that it started; whatever happens to it is one error here. A worker whose
starter is killed ends as well.
"""

from __future__ import annotations

import os
import signal
import subprocess
import tempfile
import threading
import time
import zipfile
import zlib
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stl_deploy.backends import STALL_S, Steps, lava_env
from stl_deploy.errors import BackendError, Problem
from stl_deploy.files import atomic
from stl_deploy.ir.network import IntegerNetwork, Raster

Stage = Callable[[IntegerNetwork, Path], list[str]]
Arrays = dict[str, NDArray[Any]]
Unpack = Callable[[IntegerNetwork, Arrays], Arrays]
# A worker's Lava processes are many; threads of BLAS on top only get in each other's way.
ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
# The shell becomes the command that it is given. Before, it leaves a guard in the worker's group, which
# reads from a pipe that we hold: its end means that we are gone, even if killed. The group is then asked
# to end, which lets Python's keeper of shared memory tidy up, and killed if it has not.
GUARDED = """
exec 3<&0
{ read -r _; trap '' TERM; kill -TERM 0; kill -CONT 0; sleep 3; kill -KILL 0; } \\
  <&3 3<&- >/dev/null 2>&1 &
exec "$@" 3<&- </dev/null
"""


@dataclass(frozen=True)
class Session:
    """A network on a tool of Lava (a ``backends.Session``).

    ``stage`` writes what the worker needs into an empty folder of its own, and gives the worker's script
    and arguments, and ``unpack`` finds the populations in what it wrote. ``stall_s``: seconds without any
    progress after which the worker is ended.
    """

    tool: str
    network: IntegerNetwork
    stage: Stage
    unpack: Unpack
    stall_s: float = STALL_S

    def run(self, raster: Raster, on_step: Steps | None = None, *, states: bool = True) -> Arrays:
        """Run a raster [N, T, *shape], or one for each input by name, all samples back to back.

        Args:
            raster: whole numbers within what the inputs take.
            on_step: called with the number of steps done.
            states: give all states too.

        Returns:
            ``spikes/<population>`` uint8, int16 where neurons send values, and with ``states``
            ``u/<population>``, ``v/<population>`` and the others of ``Lif.states`` int32, all [N, T, *shape];
            ``prediction`` int64 [N] where the tool scores classes.

        Raises:
            BackendError: the environment cannot be made, or the worker failed, hung or was killed.
        """
        python = lava_env.python()
        with tempfile.TemporaryDirectory(
            prefix="stl-lava-", dir=_short_folder(), ignore_cleanup_errors=True
        ) as name:
            folder = Path(name)
            # A folder of its own: Lava's compiler executes all Python files next to a process.
            home = folder / self.tool
            home.mkdir()
            script = self.stage(self.network, home)
            with atomic(folder / "in.npz") as temporary:
                np.savez(temporary, **staged(self.network, raster))
            out = folder / "out.npz"
            command = [str(python), *script, "--input", str(folder / "in.npz"), "--out", str(out)]
            command += ["--progress", *["--states"] * states]
            work(self.tool, command, folder, self.stall_s, on_step)
            return self._read(out, len(next(iter(self.network.rasters(raster).values()))), states)

    def _read(self, path: Path, samples: int, states: bool) -> Arrays:
        """The worker's trace, complete and in shape."""
        try:
            with np.load(path, allow_pickle=False) as file:
                found = self.unpack(self.network, {key: file[key] for key in file.files})
            trace = {}
            if "prediction" in found:
                trace["prediction"] = found["prediction"]
                if trace["prediction"].shape != (samples,):
                    raise ValueError(f"prediction is {trace['prediction'].shape}, not {samples}")
            for population in self.network.populations:
                more = ("u", "v", *population.neurons.states) if states else ()
                for kind in ("spikes", *more):
                    key = f"{kind}/{population.name}"
                    trace[key] = found[key]
                    size = (samples, self.network.timesteps, *population.shape)
                    if trace[key].shape != size:
                        raise ValueError(f"{key} is {trace[key].shape}, not {size}")
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error) as error:
            what = f"the worker's result cannot be read: {error}"
            raise BackendError(Problem(self.tool, what, "see docs/loihi.md")) from None
        return trace


def staged(network: IntegerNetwork, raster: Raster) -> dict[str, Any]:
    """The members of the file of inputs: one for each input, ``spikes`` alone where there is one."""
    by_name = raster if isinstance(raster, Mapping) else dict.fromkeys(network.inputs, raster)
    if len(by_name) == 1:
        return {"spikes": next(iter(by_name.values()))}
    return {f"spikes/{name}": values for name, values in by_name.items()}


def _short_folder() -> str:
    """The folder for temporary files, or /tmp where that has a long name.

    Python's processes talk through sockets there, and the path of a socket has at most 104 bytes.
    """
    usual = tempfile.gettempdir()
    return usual if len(os.fsencode(usual)) <= 45 else "/tmp"


def work(
    tool: str,
    command: Sequence[str],
    folder: Path,
    stall_s: float = STALL_S,
    on_step: Steps | None = None,
) -> None:
    """Run a worker to its end; its temporary files go into ``folder``.

    Raises BackendError when it fails, when nothing comes from it for ``stall_s`` seconds, or when it
    is killed. No process of it is left in any case.
    """
    (folder / "tmp").mkdir(exist_ok=True)
    with _group(command, folder) as process:
        heard = _Listener(process, on_step)
        while process.poll() is None:
            if time.monotonic() - heard.last > stall_s:
                raise BackendError(
                    Problem(
                        tool,
                        f"the worker made no progress for {stall_s:.0f} s and was ended",
                        "run fewer samples (--limit), or allow it more time (--timeout)",
                    )
                )
            time.sleep(0.02)
    heard.join()
    if process.returncode:
        raise BackendError(Problem(tool, *_reason(process.returncode, heard.lines)))


def _reason(code: int, lines: Sequence[str]) -> tuple[str, str]:
    """What happened to a worker, and what to do."""
    if code < 0:
        name = signal.Signals(-code).name
        return f"the worker was killed ({name})", "see whether memory ran out; use --limit"
    said = next((line for line in reversed(lines) if line.strip()), "it gave no reason")
    what = f"the worker failed: {said.strip().removeprefix('error: ')}"
    if said.startswith(("ModuleNotFoundError", "ImportError")):
        return what, f"delete {lava_env.folder()}, which is damaged; it is made again"
    return what, "see docs/loihi.md"


class _Listener(threading.Thread):
    """Reads the worker's stderr: when it last said something, its last lines, its steps."""

    def __init__(self, process: subprocess.Popen[str], on_step: Steps | None) -> None:
        super().__init__(daemon=True)
        self.process, self.on_step = process, on_step
        self.last = time.monotonic()
        self.lines: deque[str] = deque(maxlen=50)
        self.step = -1
        self.start()

    def run(self) -> None:
        """Until every process of the worker has closed its end."""
        for line in self.process.stderr or ():
            words = line.split()
            if words[:1] == ["step"] and len(words) == 4 and words[1].isdigit():
                if int(words[1]) > self.step:  # the same step again is no progress
                    self.step, self.last = int(words[1]), time.monotonic()
                    if self.on_step is not None:
                        self.on_step(self.step)
            else:
                self.last = time.monotonic()
                self.lines.append(line)

    def join(self, timeout: float | None = 5.0) -> None:
        """Wait for the last lines."""
        super().join(timeout)


@contextmanager
def _group(command: Sequence[str], folder: Path) -> Iterator[subprocess.Popen[str]]:
    """A process in a group of its own; when the block or this process ends, the whole group does."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith("PYTHON")}
    process = subprocess.Popen(
        ["/bin/sh", "-c", GUARDED, "sh", *command],
        cwd=folder,
        env={**environment, **ONE_THREAD, "TMPDIR": str(folder / "tmp")},
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        errors="replace",
        start_new_session=True,
    )
    try:
        yield process
    finally:
        _end(process)
        if process.stdin is not None:
            process.stdin.close()


def _end(process: subprocess.Popen[str]) -> None:
    """End every process of the group, politely first.

    Python's keeper of shared memory ignores the polite signal and, when all others are gone, removes
    what they left; killed at once, it would leave their memory behind.
    """
    for request, patience in ((signal.SIGTERM, 3.0), (signal.SIGKILL, 3.0)):
        until = time.monotonic() + patience
        while time.monotonic() < until:
            process.poll()
            if not _alive(process.pid):
                process.wait()
                return
            try:
                os.killpg(process.pid, request)
                os.killpg(process.pid, signal.SIGCONT)  # one that was stopped hears nothing else
            except ProcessLookupError:
                continue
            time.sleep(0.02)
    process.wait()


def _alive(group: int) -> bool:
    """Whether a process of the group runs; the dead that nobody has asked for do not count."""
    processes = Path("/proc")
    if not (processes / "self" / "stat").exists():
        try:
            os.killpg(group, 0)
        except ProcessLookupError:
            return False
        return True
    for stat in processes.glob("[0-9]*/stat"):
        try:
            state, _, of_group = stat.read_text("utf-8", "replace").rpartition(")")[2].split()[:3]
        except (OSError, ValueError):  # ended while we looked
            continue
        if int(of_group) == group and state not in "ZX":
            return True
    return False
