"""Files written whole or not at all, and read within bounds."""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from stl_deploy.errors import InputError, Problem


def sha256(path: Path) -> str:
    """Hex digest of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _temporary(path: Path) -> Path:
    """An empty file beside ``path``. Raises InputError when ``path`` could not be written."""
    if not path.parent.is_dir():
        raise InputError(
            Problem(str(path), f"the folder {path.parent} does not exist", "create it first")
        )
    if path.is_dir():
        raise InputError(Problem(str(path), "is a folder", "name a file"))
    try:
        handle, name = tempfile.mkstemp(
            prefix=f".{path.name}.", suffix=path.suffix, dir=path.parent
        )
    except OSError as error:
        raise InputError(Problem(str(path), f"cannot be written: {error.strerror}")) from None
    os.close(handle)
    return Path(name)


def check_writable(path: Path) -> None:
    """Raise InputError unless ``atomic(path)`` would work, so that long work is not done in vain."""
    _temporary(path).unlink()


def check_distinct(inputs: Sequence[Path | None], outputs: Sequence[Path | None]) -> None:
    """Raise InputError when an output would overwrite an input, or another output."""
    taken = {path.resolve(): path for path in inputs if path is not None}
    for path in outputs:
        if path is None:
            continue
        if path.resolve() in taken:
            raise InputError(
                Problem(str(path), "is another input or output of this command", "name another")
            )
        taken[path.resolve()] = path


@contextmanager
def atomic(path: Path) -> Iterator[Path]:
    """A temporary path beside ``path`` that replaces it when the block ends well, else vanishes."""
    temporary = _temporary(path)
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
