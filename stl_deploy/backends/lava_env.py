"""An environment of its own for Lava, made on first use (see ``tool_env``).

lava-nc 0.10.0 wants Python 3.10 and numpy < 2 and is archived upstream, so it must not constrain the
user's environment. ``lava/requirements.txt`` says what it holds.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
from collections.abc import Iterator
from importlib import resources
from pathlib import Path

from stl_deploy.backends import tool_env
from stl_deploy.errors import BackendError, Problem

VERSION = "3.10"
WAIT_S = 1800.0  # for another process that is building
HASHED = ("--no-deps", "--require-hashes", "--only-binary", ":all:", "-r")


def cache() -> Path:
    """The folder that holds the environment and, where uv fetched one, its Python."""
    return tool_env.cache("lava")


def folder() -> Path:
    """The environment for the requirements of this version; it may not exist yet."""
    key = hashlib.sha256(VERSION.encode() + _requirements().encode()).hexdigest()
    return cache() / key[:16]


def python(say: tool_env.Say | None = None) -> Path:
    """The Python that has Lava; the environment is made if there is none.

    ``say`` gets a line when that takes a while, by default on stderr.

    Raises:
        BackendError: it cannot be made, with the reason and the remedy.
    """
    return tool_env.ensure(
        tool_env.Environment(
            subject="Lava",
            size="about 400 MB",
            cache=cache(),
            folder=folder(),
            requirements=_requirements,
            options=HASHED,
            find_python=_find_python,
            python_remedy=f"name a Python {VERSION} with STL_LAVA_PYTHON, or let uv fetch one "
            "(UV_PYTHON_DOWNLOADS=automatic, and a network)",
            wait_s=WAIT_S,
        ),
        say,
    )


def _requirements() -> str:
    return (resources.files("stl_deploy.backends") / "lava.txt").read_text("utf-8")


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
