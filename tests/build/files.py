"""Files of images, images that a small net can learn, and changes to a NIR file."""

from __future__ import annotations

import gzip
import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import torch
from numpy.typing import NDArray

from stl_deploy.ir.nir_graph import KEY


def write_idx(path: Path, array: NDArray[np.generic], compress: bool = True) -> None:
    """An array of bytes as MNIST's IDX files have it."""
    head = b"\0\0\x08" + bytes([array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape)
    data = head + array.astype(np.uint8).tobytes()
    path.write_bytes(gzip.compress(data) if compress else data)


def bars(n: int = 60) -> tuple[torch.Tensor, torch.Tensor]:
    """Images [n, 1, 6, 6] of ten classes, a bright bar in one of ten places, and their labels."""
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 10, n)
    images = rng.integers(0, 40, (n, 1, 6, 6)).astype(np.uint8)
    images.reshape(n, -1)[np.arange(n)[:, None], labels[:, None] * 3 + np.arange(3)] = 255
    return torch.from_numpy(images), torch.from_numpy(labels)


def write_images(folder: Path, images: torch.Tensor, labels: torch.Tensor) -> None:
    """The images of one channel as what stl-train takes for --data."""
    write_idx(folder / "train-images-idx3-ubyte.gz", images[:, 0].numpy())
    write_idx(folder / "train-labels-idx1-ubyte.gz", labels.numpy())


def change_meta(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """A NIR file with ``change`` done to the JSON that this project keeps in it."""
    with h5py.File(path, "r+") as file:
        at = f"node/metadata/{KEY}"
        meta = json.loads(file[at][()])
        change(meta)
        del file[at]
        file[at] = json.dumps(meta)
