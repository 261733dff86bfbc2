"""Files written whole or not at all, and read within bounds."""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from stl_deploy.errors import InputError, Problem


def sha256(path: Path) -> str:
    """Hex digest of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextmanager
def atomic(path: Path) -> Iterator[Path]:
    """A temporary path beside ``path`` that replaces it when the block ends well, else vanishes."""
    if not path.parent.is_dir():
        raise InputError(
            Problem(str(path), f"the folder {path.parent} does not exist", "create it first")
        )
    if path.is_dir():
        raise InputError(Problem(str(path), "is a folder", "name a file"))
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=path.suffix, dir=path.parent)
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        temporary.chmod(0o666 & ~_umask())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def check_readable(path: Path, limit: int) -> None:
    """Raise InputError unless ``path`` is a file of 1 to ``limit`` bytes."""
    if not path.is_file():
        raise InputError(Problem(str(path), "is not a file" if path.exists() else "does not exist"))
    size = path.stat().st_size
    if not 0 < size <= limit:
        raise InputError(Problem(str(path), f"has {size} bytes; 1 to {limit} are accepted"))


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
