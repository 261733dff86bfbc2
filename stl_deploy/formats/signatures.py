"""What kind of file it is, by its first bytes: users name files as they like, and mistake them."""

from __future__ import annotations

import zipfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

HDF5 = b"\x89HDF\r\n\x1a\n"
LOOKED_AT = 2048  # bytes
SAVE = "in the program that made it, torch.save(model.state_dict(), PATH)"
READ = "stl-export reads NIR files, and PyTorch checkpoints with tensors alone (a state_dict)"


TEXT = bytes(range(32, 127)) + b"\t\r\n"
FIELDS_OF_ONNX = {b"\x12", b"\x1a", b"\x22", b"\x28", b"\x32", b"\x3a", b"\x42"}


class Kind(NamedTuple):
    """A kind of file that is not read as a model, and what to do about it."""

    what: str
    recognises: Callable[[bytes], bool]
    remedy: str


def _starts(*marks: bytes) -> Callable[[bytes], bool]:
    return lambda head: head.startswith(marks)


KINDS = (
    Kind(
        "is a checkpoint of PyTorch before 1.6, which can run any code when it is read",
        _starts(b"\x80\x02\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19"),
        "save it again with a newer PyTorch: torch.save(torch.load(PATH, weights_only=True), PATH)",
    ),
    Kind(
        "is a safetensors file",
        lambda head: head[8:10] == b'{"' and int.from_bytes(head[:8], "little") < 1 << 27,
        "convert it: torch.save(safetensors.torch.load_file(PATH), 'model.pt')",
    ),
    Kind("is a GGUF file, of language models", _starts(b"GGUF"), READ),
    Kind("is a numpy array", _starts(b"\x93NUMPY"), READ),
    Kind("is a TensorFlow Lite model", lambda head: head[4:8] == b"TFL3", READ),
    Kind(
        "is a compressed archive",
        _starts(b"\x1f\x8b", b"BZh", b"\xfd7zXZ", b"7z\xbc\xaf"),
        "unpack it",
    ),
    Kind("is a tar archive", lambda head: head[257:262] == b"ustar", "unpack it"),
    Kind(
        "is a pointer of Git LFS, not the file itself",
        _starts(b"version https://git-lfs"),
        "fetch it: git lfs pull",
    ),
    Kind(
        "is a web page, not the file that was to be downloaded",
        lambda head: head.lstrip()[:9].lower().startswith((b"<!doctype", b"<html")),
        "download the file itself",
    ),
    Kind("is a Python pickle", _starts(*(bytes([0x80, n]) for n in range(2, 6))), SAVE),
    Kind(
        "is an ONNX model",
        # Its version of IR, below 32, and then one of a model's other fields.
        lambda head: head[:1] == b"\x08" and head[1:2] < b" " and head[2:3] in FIELDS_OF_ONNX,
        f"export the PyTorch model that it was made from: {SAVE}",
    ),
    Kind("is a text file", lambda head: not head.translate(None, TEXT), READ),
)


def is_nir(path: Path) -> bool:
    """Whether to read it as a NIR file: HDF5, or a file that only its name says something of."""
    head = _head(path)
    return head.startswith(HDF5) or (path.suffix.lower() == ".nir" and not head.startswith(b"PK"))


def is_hdf5(path: Path) -> bool:
    """Whether it is an HDF5 file, as NIR files are."""
    return _head(path).startswith(HDF5)


def other(path: Path) -> tuple[str, str] | None:
    """What a file is that is neither NIR nor a checkpoint, and the remedy; None where it is not known."""
    if path.is_dir():
        inside = next((p for p in (path / "model.nir", path / "model.pt") if p.is_file()), None)
        return "is a folder", f"name {inside}" if inside else "name the file in it"
    head = _head(path)
    if head.startswith(b"PK"):
        return _archive(path)
    found = next((kind for kind in KINDS if head and kind.recognises(head)), None)
    return None if found is None else (found.what, found.remedy)


def _archive(path: Path) -> tuple[str, str] | None:
    """What a zip archive is that has no data.pkl, or has code."""
    with suppress(Exception), zipfile.ZipFile(path) as archive:  # whatever a broken one raises
        names = archive.namelist()
        if any(name.endswith("/constants.pkl") for name in names):
            return "is a TorchScript archive, which contains code", SAVE
        if any(name.endswith(".npy") for name in names):
            return "contains numpy arrays, as rasters do, not a model", READ
        if "model.weights.h5" in names:
            return "is a Keras model", READ
    return None


def _head(path: Path) -> bytes:
    with suppress(OSError), path.open("rb") as file:
        return file.read(LOOKED_AT)
    return b""
