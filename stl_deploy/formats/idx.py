"""IDX files (the MNIST family's format) as numpy arrays, gzipped or plain, with bounded sizes."""

from __future__ import annotations

import math
import struct
import zlib
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from stl_deploy.errors import InputError, Problem

Split = Literal["train", "test"]
MAX_BYTES = 1 << 30  # of one decompressed file
HOW_TO_GET = (
    "point --data at a folder with the IDX files; on Debian and Ubuntu "
    "'apt-get install dataset-fashion-mnist' puts them under /usr/share/datasets/fashion-mnist"
)


def find(folder: Path, split: Split, part: Literal["images", "labels"]) -> Path:
    """Path of one IDX file in ``folder``, plain or gzipped. Raises InputError when there is none."""
    stem = (
        f"{'train' if split == 'train' else 't10k'}-{part}-idx{3 if part == 'images' else 1}-ubyte"
    )
    for name in (f"{stem}.gz", stem):
        if (folder / name).is_file():
            return folder / name
    raise InputError(Problem(str(folder), f"holds no {stem}[.gz]", HOW_TO_GET))


def read(path: Path) -> NDArray[np.uint8]:
    """The array of an IDX file of unsigned bytes. Raises InputError when it is not one."""
    try:
        raw = path.read_bytes()
        if raw[:2] == b"\x1f\x8b":
            raw = _gunzip(raw)
    except (OSError, EOFError, zlib.error) as error:
        raise InputError(Problem(str(path), f"cannot be read: {error}")) from None
    if len(raw) < 4 or raw[:3] != b"\x00\x00\x08" or not 1 <= raw[3] <= 4:
        raise InputError(Problem(str(path), "is not an IDX file of unsigned bytes", HOW_TO_GET))
    rank = raw[3]
    if len(raw) < 4 + 4 * rank:
        raise InputError(Problem(str(path), "ends inside its header", "fetch it again"))
    shape = struct.unpack(f">{rank}I", raw[4 : 4 + 4 * rank])
    body = raw[4 + 4 * rank :]
    if len(body) != math.prod(shape):
        raise InputError(
            Problem(str(path), f"{len(body)} bytes for shape {shape}", "fetch it again")
        )
    return np.frombuffer(body, np.uint8).reshape(shape)


def load(
    folder: Path, split: Split, limit: int | None = None
) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Images uint8 [N, 1, H, W] and labels int64 [N] of one split, the first ``limit`` of them."""
    image_path, label_path = find(folder, split, "images"), find(folder, split, "labels")
    images, labels = read(image_path), read(label_path)
    if images.ndim != 3:
        raise InputError(Problem(str(image_path), f"has shape {images.shape}, not (N, H, W)"))
    if labels.shape != images.shape[:1]:
        raise InputError(
            Problem(str(label_path), f"{labels.shape} labels for {images.shape[0]} images")
        )
    return images[:limit, None], labels[:limit].astype(np.int64)


def _gunzip(raw: bytes) -> bytes:
    out = zlib.decompressobj(wbits=31)
    data = out.decompress(raw, MAX_BYTES)
    if out.unconsumed_tail:
        raise OSError(f"decompresses to more than {MAX_BYTES} bytes")
    if not out.eof:
        raise EOFError("the gzip stream is truncated")
    return data
