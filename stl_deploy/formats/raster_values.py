"""Spikes and labels of any kind as arrays of whole numbers: numpy, torch on any device, lists.

Other types are read where nothing is lost: whole numbers of float32, bool, int64. Whatever is refused is
named by its place, with what to do about it.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from stl_deploy.errors import InputError, Problem
from stl_deploy.ir.synapses import IntArray

PAGE = "docs/rasters.md"
KINDS: tuple[np.dtype[Any], ...] = tuple(map(np.dtype, (np.uint8, np.int8, np.int16)))
MOST_CLASSES = 1 << 31


def array_of(values: ArrayLike, where: str) -> NDArray[Any]:
    """An array of what is one, a torch tensor of any device, or a list of these.

    Raises InputError for lists that are no array, such as samples of different lengths.
    """
    if isinstance(values, np.ndarray):
        return values
    try:
        return np.asarray(_plain(values))
    except (ValueError, TypeError, RuntimeError):
        what = "is not an array: its samples have different shapes, or are not numbers"
        remedy = f"give one array in which all samples have as many steps ({PAGE})"
        raise InputError(Problem(where, what, remedy)) from None


def _plain(values: Any) -> Any:
    """``values``, with arrays instead of tensors of torch, which is not imported here for that."""
    if isinstance(values, list | tuple):
        return [_plain(value) for value in values]
    if not hasattr(values, "detach"):
        return values
    tensor = values.detach().cpu()
    if tensor.is_sparse:
        tensor = tensor.to_dense()
    # Types that numpy lacks, such as bfloat16, are exact in float32.
    return (
        tensor.float() if tensor.is_floating_point() and tensor.itemsize < 4 else tensor
    ).numpy()


def whole(values: NDArray[Any], where: str) -> IntArray:
    """Whole numbers in the first of uint8, int8 and int16 that holds them all; those as they are.

    Raises InputError for what none of them holds.
    """
    if values.dtype in KINDS:
        return values
    _check_whole(
        values, where, "spikes are counts: encode values as spikes, or round them to levels"
    )
    low, high = int(values.min(initial=0)), int(values.max(initial=0))
    for kind in KINDS:
        if np.iinfo(kind).min <= low and high <= np.iinfo(kind).max:
            found: IntArray = values.astype(kind)
            return found
    span = np.iinfo(np.int16)
    wide = values.astype(np.float64)  # holds the ends of int16, as float16 does not
    beyond = (wide < span.min) | (wide > span.max)
    what = f"holds values {low}..{high}, beyond int16; {first(where, values, beyond)}"
    raise InputError(Problem(where, what, "scale them to at most 255, or with a sign 32767"))


def labels_of(values: ArrayLike, where: str) -> NDArray[np.int64]:
    """Labels as int64. Raises InputError for values that are not whole, or too large for a class."""
    labels = array_of(values, where)
    if labels.ndim > 1:
        what = f"has shape {labels.shape}; one label per sample is needed, [N]"
        remedy = "give labels.argmax(1) of one-hot labels, else labels.reshape(-1)"
        raise InputError(Problem(where, what, remedy))
    _check_whole(labels, where, "give the number of each sample's class")
    beyond = labels.astype(np.float64) >= MOST_CLASSES
    if beyond.any():
        what = f"has {first(where, labels, beyond)}, which is not the number of a class"
        raise InputError(Problem(where, what, "give the number of each sample's class, from 0"))
    return labels.astype(np.int64)


def _check_whole(values: NDArray[Any], where: str, remedy: str) -> None:
    """Raise InputError unless the values are whole, whatever their type."""
    if values.dtype.kind not in "uifb":
        what = f"has type {values.dtype}, not whole numbers"
        raise InputError(Problem(where, what, f"use uint8 ({PAGE})"))
    if values.dtype.kind != "f":
        return
    odd = ~(np.isfinite(values) & (values == np.rint(values)))
    if odd.any():
        what = (
            f"holds {values.dtype} values that are not whole numbers; {first(where, values, odd)}"
        )
        raise InputError(Problem(where, what, f"{remedy} ({PAGE})"))


def first(where: str, values: NDArray[Any], found: NDArray[np.bool_], start: int = 0) -> str:
    """The first value that was ``found``, with its place; the values begin at sample ``start``."""
    at = tuple(int(i) for i in np.unravel_index(int(found.argmax()), found.shape))
    name = where.rpartition(": ")[2]
    inside = ", ".join(str(i + start * (axis == 0)) for axis, i in enumerate(at))
    return f"{name}[{inside}] is {values[at]}"
