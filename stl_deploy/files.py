"""Files written whole or not at all, and read within bounds.

Every file of ours is written through ``atomic`` or ``write``, so that a full disk, a quota or a limit on
the size of files is one error that names the file. Libraries of other languages (HDF5, PyTorch's zip
writer) never get the name of an output: when the disk is full they crash, or raise something other than an
OSError. They write into memory, and ``write`` takes the bytes.
"""

from __future__ import annotations

import errno
import hashlib
import os
import secrets
import shutil
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from stl_deploy.errors import InputError, Problem, StlError

FREE = "free some space on that disk, or write to another one"
REMEDIES = {
    errno.ENOSPC: FREE,
    errno.EDQUOT: FREE,
    errno.EFBIG: "raise the limit on the size of files (ulimit -f), or write to another disk",
}


def sha256(path: Path) -> str:
    """Hex digest of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextmanager
def refusals(path: Path) -> Iterator[None]:
    """Turn every OSError of the block, which writes ``path`` and reads nothing, into an InputError."""
    try:
        yield
    except OSError as error:
        remedy = REMEDIES.get(error.errno or 0, "write to another folder")
        what = f"cannot be written: {error.strerror or error}"
        raise InputError(Problem(str(path), what, remedy)) from error


def _hidden(path: Path) -> Path:
    """A new name next to ``path``, with its suffix."""
    return path.with_name(f".{path.name}.{secrets.token_hex(4)}{path.suffix}")


def _temporary(path: Path) -> Path:
    """An empty file next to ``path``. Raises InputError when ``path`` could not be written."""
    if not path.parent.is_dir():
        raise InputError(
            Problem(str(path), f"the folder {path.parent} does not exist", "create it first")
        )
    if path.is_dir():
        raise InputError(Problem(str(path), "is a folder", "name a file"))
    temporary = _hidden(path)
    with refusals(path):
        temporary.touch(exist_ok=False)
    return temporary


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
def atomic(path: Path, *, replace: bool = True) -> Iterator[Path]:
    """A temporary path next to ``path`` that takes its place when the block ends well, else vanishes.

    The block only writes. Raises InputError naming ``path`` when that fails, and without ``replace`` when
    the file exists by then.
    """
    temporary = _temporary(path)
    with refusals(path):
        try:
            yield temporary
            if replace:
                temporary.replace(path)
            else:
                _place(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)


def _place(temporary: Path, path: Path) -> None:
    """Give a file its name. Raises InputError where another has it: of two runs at once, one fails."""
    try:
        os.link(temporary, path)
    except FileExistsError:
        refuse_existing(path, replace=False)
        raise
    except OSError:  # a file system without hard links
        refuse_existing(path, replace=False)
        temporary.replace(path)


def refuse_existing(path: Path, *, replace: bool) -> None:
    """Raise InputError where ``path`` exists and may not be replaced."""
    if path.exists() and not replace:
        raise InputError(Problem(str(path), "exists already", "give --force to replace it"))


def write(path: Path, data: bytes, *, replace: bool = True) -> None:
    """Write ``data`` whole or not at all. Raises InputError as ``atomic`` does."""
    with atomic(path, replace=replace) as temporary:
        temporary.write_bytes(data)


@contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """A temporary folder next to ``path``, deleted at the end of the block unless renamed by then.

    Errors of the block name the places that files would have had in ``path``. Raises InputError when
    something cannot be written.
    """
    temporary = _hidden(path)
    try:
        with refusals(temporary):
            temporary.mkdir()
            yield temporary
    except StlError as error:
        raise type(error)(
            replace(p, where=p.where.replace(str(temporary), str(path))) for p in error.problems
        ) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def is_zip(path: Path) -> bool:
    """``zipfile.is_zipfile``, which raises for archives that claim to span several disks."""
    try:
        return zipfile.is_zipfile(path)
    except zipfile.BadZipFile:
        return False


def check_readable(path: Path, limit: int) -> None:
    """Raise InputError unless ``path`` is a file of 1 to ``limit`` bytes."""
    if not path.is_file():
        raise InputError(Problem(str(path), "is not a file" if path.exists() else "does not exist"))
    size = path.stat().st_size
    if not size:
        raise InputError(Problem(str(path), "is empty", "write or download it again"))
    if size > limit:
        raise InputError(Problem(str(path), f"has {size:,} bytes; the limit is {limit:,}"))
