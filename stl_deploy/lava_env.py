"""An environment of its own for Lava, made on first use.

lava-nc 0.10.0 wants Python 3.10 and numpy < 2 and is archived upstream, so it must not constrain the
user's environment. It goes into the user's cache folder, under a name that depends on
``lava/requirements.txt``, installed by uv with hashes. The folder is built aside, under a lock, and
renamed when it is complete: what has that name can be used.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import resources
from pathlib import Path

import filelock
import platformdirs

from stl_deploy.errors import BackendError, Problem

VERSION = "3.10"
WHERE = "Lava environment"
MARKER = "complete"  # written last; without it a folder is not used
WAIT_S = 1800.0  # for another process that is building
STEP_S = 1500.0  # for one call of uv
HASHED = ("--no-deps", "--require-hashes", "--only-binary", ":all:", "-r")
Say = Callable[[str], None]


def cache() -> Path:
    """The folder that holds the environment and, where uv fetched one, its Python."""
    return platformdirs.user_cache_path("stl-deploy", appauthor=False) / "lava"


def folder() -> Path:
    """The environment for the requirements of this version; it may not exist yet."""
    key = hashlib.sha256(VERSION.encode() + _requirements().encode()).hexdigest()
    return cache() / key[:16]


def python(say: Say | None = None) -> Path:
    """The Python that has Lava; the environment is made if there is none.

    ``say`` gets a line when that takes a while, by default on stderr.

    Raises:
        BackendError: it cannot be made, with the reason and the remedy.
    """
    say = say or _on_stderr
    if _usable(folder()):
        return _python_of(folder())
    try:
        cache().mkdir(parents=True, exist_ok=True)
        with _locked(say):
            if not _usable(folder()):
                _build(say)
    except OSError as error:
        raise BackendError(
            Problem(
                WHERE,
                f"cannot be written to {cache()}: {error.strerror or error}",
                "make the folder writable, or name another cache folder with XDG_CACHE_HOME",
            )
        ) from None
    return _python_of(folder())


def _requirements() -> str:
    return (resources.files("stl_deploy") / "lava" / "requirements.txt").read_text("utf-8")


def _python_of(environment: Path) -> Path:
    return environment / "bin" / "python"


def _usable(environment: Path) -> bool:
    """Complete, and the Python that it points to still there."""
    return (environment / MARKER).is_file() and _python_of(environment).exists()


@contextmanager
def _locked(say: Say) -> Iterator[None]:
    """Hold the lock of ``folder()``: one process builds, the others wait for it."""
    lock = filelock.FileLock(folder().with_suffix(".lock"))
    try:
        lock.acquire(timeout=0)
    except filelock.Timeout:
        say("Waiting for another process that sets up Lava")
        try:
            lock.acquire(timeout=WAIT_S)
        except filelock.Timeout:
            raise BackendError(
                Problem(
                    WHERE,
                    f"another process has been building it for {WAIT_S:.0f} s ({lock.lock_file})",
                    "end that process and try again",
                )
            ) from None
    try:
        yield
    finally:
        lock.release()


def _build(say: Say) -> None:
    """Make ``folder()``; the lock is held."""
    target = folder()
    aside = target.with_suffix(".building")
    shutil.rmtree(aside, ignore_errors=True)
    uv, base = _find_uv(), _find_python()
    what = base if base != VERSION else f"Python {VERSION}, which uv finds or fetches"
    say(f"Setting up Lava in {target} with {what} (once, about 400 MB)")
    try:
        _call(
            [uv, "venv", "--python", base, str(aside)],
            f"name a Python {VERSION} with STL_LAVA_PYTHON, or let uv fetch one "
            "(UV_PYTHON_DOWNLOADS=automatic, and a network)",
        )
        listed = aside / "requirements.txt"
        listed.write_text(_requirements(), "utf-8")
        _call(
            [uv, "pip", "install", *HASHED, str(listed), "--python", str(_python_of(aside))],
            "check the network; a mirror is named with UV_DEFAULT_INDEX (uv does not read pip's "
            "configuration)",
        )
        (aside / MARKER).write_text("")
        shutil.rmtree(target, ignore_errors=True)  # of a Python that has gone
        aside.replace(target)
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    say("Lava is ready")


def _find_uv() -> str:
    """Our own dependency, or the one on PATH."""
    try:
        import uv

        return uv.find_uv_bin()
    except (ImportError, FileNotFoundError):
        found = shutil.which("uv")
    if found is None:
        raise BackendError(Problem(WHERE, "uv is not installed", "pip install uv"))
    return found


def _find_python() -> str:
    """STL_LAVA_PYTHON, ``python3.10`` on PATH, pyenv's newest; else a version for uv to find."""
    if named := os.environ.get("STL_LAVA_PYTHON"):
        if not _is_right(named):
            raise BackendError(
                Problem(
                    f"STL_LAVA_PYTHON={named}",
                    f"is not a Python {VERSION} that runs",
                    f"name the python3.10 of a Python {VERSION}, or unset the variable",
                )
            )
        return named
    return next(filter(_is_right, _candidates()), VERSION)


def _candidates() -> Iterator[str]:
    name = f"python{VERSION}"
    if found := shutil.which(name):
        yield found
    root = Path(os.environ.get("PYENV_ROOT") or Path.home() / ".pyenv")
    versions = root.glob(f"versions/{VERSION}.*/bin/{name}")
    yield from map(str, sorted(versions, key=_patch_release, reverse=True))


def _patch_release(path: Path) -> int:
    patch = path.parts[-3].split(".")[-1]
    return int(patch) if patch.isdigit() else -1


def _is_right(interpreter: str) -> bool:
    """Whether it runs and is 3.10: pyenv's shim is on PATH without being a Python."""
    script = "import sys; print('%d.%d' % sys.version_info[:2])"
    try:
        done = subprocess.run(
            [interpreter, "-I", "-c", script], capture_output=True, text=True, timeout=60
        )
    except (OSError, subprocess.TimeoutExpired):
        return False
    return done.stdout.strip() == VERSION


def _call(command: list[str], remedy: str) -> None:
    """Run uv in the cache folder, where no project's configuration is found."""
    foreign = ("VIRTUAL_ENV", "PYTHONHOME", "PYTHONPATH")
    environment = {name: value for name, value in os.environ.items() if name not in foreign}
    # A Python that uv fetches goes away with our folder.
    environment.setdefault("UV_PYTHON_INSTALL_DIR", str(cache() / "python"))
    what = "uv " + " ".join(command[1 : 2 if command[1] == "venv" else 3])
    try:
        done = subprocess.run(
            [*command, "--quiet", "--no-progress", "--color", "never"],
            cwd=cache(),
            env=environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=STEP_S,
        )
    except subprocess.TimeoutExpired:
        raise BackendError(
            Problem(WHERE, f"{what} took longer than {STEP_S:.0f} s", remedy)
        ) from None
    if done.returncode:
        # uv draws a tree of causes; what it draws with is not ASCII.
        lines = done.stderr.encode("ascii", "ignore").decode().splitlines()
        said = [line.strip() for line in lines if line.strip()]
        reason = "; ".join(said[:8]) or f"exit code {done.returncode}"
        raise BackendError(Problem(WHERE, f"{what} failed: {reason}", remedy))


def _on_stderr(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
