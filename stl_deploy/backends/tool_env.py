"""An environment of its own for a tool that must not constrain the user's, made on first use.

It goes into the user's cache folder, under a name that depends on what it holds, installed by uv with
hashes. The folder is built aside, under a lock, and renamed when it is complete: what has that name
can be used.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import filelock
import platformdirs

from stl_deploy.errors import BackendError, Problem

MARKER = "complete"  # written last; without it a folder is not used
STEP_S = 1500.0  # for one call of uv
Say = Callable[[str], None]


@dataclass(frozen=True)
class Environment:
    """What to make, and where.

    Attributes:
        subject: what it holds, as messages name it; ``size`` that of it.
        cache: the folder of all its versions; ``folder`` this one's, within.
        requirements: the text of a requirements file with hashes.
        options: what ``uv pip install`` gets besides; it ends in "-r".
        find_python: gives a Python, or a version for uv to find; ``python_remedy`` is said when
            there is none.
        wait_s: seconds to wait for another process that is building.
    """

    subject: str
    size: str
    cache: Path
    folder: Path
    requirements: Callable[[], str]
    options: tuple[str, ...]
    find_python: Callable[[], str]
    python_remedy: str
    wait_s: float

    @property
    def where(self) -> str:
        """The place that problems name."""
        return f"{self.subject} environment"

    @property
    def python(self) -> Path:
        """Its Python, which may not be there yet."""
        return self.folder / "bin" / "python"


def cache(name: str) -> Path:
    """The folder for environments of this name and, where uv fetched one, their Python."""
    return platformdirs.user_cache_path("stl-deploy", appauthor=False) / name


def ensure(env: Environment, say: Say | None = None) -> Path:
    """The Python of ``env``, which is made if it is not there.

    ``say`` gets a line when that takes a while, by default on stderr.

    Raises:
        BackendError: it cannot be made, with the reason and the remedy.
    """
    say = say or _on_stderr
    if usable(env):
        return env.python
    try:
        env.cache.mkdir(parents=True, exist_ok=True)
        with _locked(env, say):
            if not usable(env):
                _build(env, say)
    except OSError as error:
        raise BackendError(
            Problem(
                env.where,
                f"cannot be written to {env.cache}: {error.strerror or error}",
                "make the folder writable, or name another cache folder with XDG_CACHE_HOME",
            )
        ) from None
    return env.python


def usable(env: Environment) -> bool:
    """Complete, and the Python that it points to still there."""
    return (env.folder / MARKER).is_file() and env.python.exists()


@contextmanager
def _locked(env: Environment, say: Say) -> Iterator[None]:
    """Hold the lock of the folder: one process builds, the others wait for it."""
    lock = filelock.FileLock(env.folder.with_suffix(".lock"))
    try:
        lock.acquire(timeout=0)
    except filelock.Timeout:
        say(f"Waiting for another process that sets up {env.subject}")
        try:
            lock.acquire(timeout=env.wait_s)
        except filelock.Timeout:
            raise BackendError(
                Problem(
                    env.where,
                    f"another process has been building it for {env.wait_s:.0f} s "
                    f"({lock.lock_file})",
                    "end that process and try again",
                )
            ) from None
    try:
        yield
    finally:
        lock.release()


def _build(env: Environment, say: Say) -> None:
    """Make the folder; the lock is held."""
    aside = env.folder.with_suffix(".building")
    shutil.rmtree(aside, ignore_errors=True)
    uv, base = find_uv(env.where), env.find_python()
    what = base if os.sep in base else f"Python {base}, which uv finds or fetches"
    say(f"Setting up {env.subject} in {env.folder} with {what} (once, {env.size})")
    try:
        _call(env, [uv, "venv", "--python", base, str(aside)], env.python_remedy)
        listed = aside / "requirements.txt"
        listed.write_text(env.requirements(), "utf-8")
        python = str(aside / "bin" / "python")
        _call(
            env,
            [uv, "pip", "install", *env.options, str(listed), "--python", python],
            "check the network; a mirror is named with UV_DEFAULT_INDEX (uv does not read pip's "
            "configuration)",
        )
        (aside / MARKER).write_text("")
        shutil.rmtree(env.folder, ignore_errors=True)  # of a Python that has gone
        aside.replace(env.folder)
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    say(f"{env.subject} is ready")


def find_uv(where: str) -> str:
    """Our own dependency, or the one on PATH."""
    try:
        import uv

        return uv.find_uv_bin()
    except (ImportError, FileNotFoundError):
        found = shutil.which("uv")
    if found is None:
        raise BackendError(Problem(where, "uv is not installed", "pip install uv"))
    return found


def _call(env: Environment, command: list[str], remedy: str) -> None:
    """Run uv in the cache folder, where no project's configuration is found."""
    foreign = ("VIRTUAL_ENV", "PYTHONHOME", "PYTHONPATH")
    environment = {name: value for name, value in os.environ.items() if name not in foreign}
    # A Python that uv fetches goes away with our folder.
    environment.setdefault("UV_PYTHON_INSTALL_DIR", str(env.cache / "python"))
    what = "uv " + " ".join(command[1 : 2 if command[1] == "venv" else 3])
    try:
        done = subprocess.run(
            [*command, "--quiet", "--no-progress", "--color", "never"],
            cwd=env.cache,
            env=environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=STEP_S,
        )
    except subprocess.TimeoutExpired:
        raise BackendError(
            Problem(env.where, f"{what} took longer than {STEP_S:.0f} s", remedy)
        ) from None
    if done.returncode:
        # uv draws a tree of causes; what it draws with is not ASCII.
        lines = done.stderr.encode("ascii", "ignore").decode().splitlines()
        said = [line.strip() for line in lines if line.strip()]
        reason = "; ".join(said[:8]) or f"exit code {done.returncode}"
        raise BackendError(Problem(env.where, f"{what} failed: {reason}", remedy))


def _on_stderr(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
