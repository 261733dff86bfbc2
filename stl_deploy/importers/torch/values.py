"""Where a tensor of a record is from, and what functions that move values about make of it."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
from numpy.typing import NDArray
from torch import Tensor

from stl_deploy.ir.synapses import Shape

MADE_HERE = -1  # ``at`` of a module that stands for a function, and is none of the network's


class Moved(NamedTuple):
    """A step from the sample to what is read of it: its axes in another order, or another shape.

    ``ordered`` says whether all values behind the first axis keep their order, ``before`` what shape is
    given another one.
    """

    kind: Literal["permute", "reshape"]
    sizes: tuple[int, ...]
    ordered: bool = True
    before: tuple[int, ...] = ()

    def apply(self, x: NDArray[Any]) -> NDArray[Any]:
        """``x`` after it."""
        return x.transpose(self.sizes) if self.kind == "permute" else x.reshape(self.sizes)


@dataclass(frozen=True, eq=False)
class Value:
    """Where a tensor is from.

    kind: "input" (``at`` the time step, None for the whole sample), "neuron" (output ``at`` of call
    ``call`` of ``name``), "module" or "op" (``name``, of ``args``), "record" (``args`` one a step), or
    "unknown", of which a problem has been noted. ``at`` of a record is the axis of time, None where there
    is none any more; its ``facts`` then say what was made of the steps, an entry of ``READOUTS``, or None
    where they stand along the batch, one behind the other.
    ``shape`` is that of the tensor. ``facts`` of an input are the ``Moved`` that make it of the sample.
    """

    kind: str
    shape: Shape
    name: str = ""
    args: tuple[Value, ...] = ()
    at: int | None = None
    call: int = 0
    facts: Any = None


def keeps_values(out: Tensor, before: Any) -> bool:
    """Whether a cast rounds nothing away that a float32 holds."""
    same = isinstance(before, Tensor) and before.dtype == out.dtype
    return same or out.dtype in (torch.float32, torch.float64)


def moved_to(whole: Value, shape: Shape) -> tuple[Moved, ...] | None:
    """The facts of a whole input in another shape; a reshape that this undoes is none."""
    facts = whole.facts or ()
    if facts and facts[-1].kind == "reshape" and facts[-1].before == shape:
        return facts[:-1] or None
    return (*facts, Moved("reshape", shape, before=whole.shape))


def reshaped(first: Value, shape: Shape) -> Value | None:
    """A reshape that leaves the batch alone; None for another."""
    if first.shape == shape:
        return first
    if first.kind == "input":
        # What comes in may be given in any shape of the same values.
        facts = first.facts
        if first.at is None:
            facts = moved_to(first, shape)
        return Value("input", shape, at=first.at, call=first.call, facts=facts)
    if len(shape) < 1 or not first.shape or shape[0] != first.shape[0]:
        return None
    if len(shape) == 2 and shape[1] == math.prod(first.shape[1:]):
        return Value("op", shape, "flatten", (first,), facts=("flatten", None))
    return None


def has_steps(value: Value) -> bool:
    """Whether it is a record whose axis of time is there."""
    return value.kind == "record" and value.at is not None


def along_batch(value: Value) -> bool:
    """Whether it is a record whose steps stand along the batch, one behind the other."""
    return value.kind == "record" and value.at is None and value.facts is None


def has_parts(value: Value) -> bool:
    """Whether it is a record of which each step is there."""
    return has_steps(value) or along_batch(value)


def by_steps(first: Value) -> Value:
    """The steps of a whole input, along its first axis."""
    steps = tuple(
        Value("input", first.shape[1:], at=t, call=0, facts=first.facts)
        for t in range(first.shape[0])
    )
    return Value("record", first.shape, args=steps, at=0)


def repeated(first: Value, shape: Shape) -> Value | None:
    """A value that is the same in all steps of a new axis in front; None for another repetition."""
    if first.shape == shape:
        return first
    if len(shape) == len(first.shape) + 1 and shape[1:] == first.shape:
        part, at = first, 0
    else:
        longer = [i for i, (a, b) in enumerate(zip(first.shape, shape, strict=False)) if a != b]
        if len(first.shape) != len(shape) or len(longer) != 1 or longer[0] > 1:
            return None
        at = longer[0]
        size = (*shape[:at], *shape[at + 1 :])
        if first.shape[at] != 1:
            return None
        if first.kind == "input" and first.at is None:
            part = Value("input", size, facts=moved_to(first, size))
        elif has_steps(first) and first.at == at:
            part = first.args[0]
        else:
            return None
    return Value("record", shape, args=(part,) * shape[at], at=at)


def selected(first: Value, axis: int, index: int) -> Any:
    """What stands in the brackets that take ``index`` along ``axis`` of it."""
    places = axis % len(first.shape)
    return (slice(None),) * places + (index,) if places else index


def permuted(first: Value, name: str, args: Any, kwargs: Any) -> Value | None:
    """The sample with time or batch elsewhere; None where the values of a step change their order."""
    # Which axes go where is what the function does to axes of sizes of their own.
    probe = torch.empty(tuple(range(2, 2 + len(first.shape))), device="meta")
    moved = getattr(torch.Tensor, name)(probe, *args, **kwargs)
    axes = tuple(size - 2 for size in moved.shape)
    if not _ordered(axes[2:], first.shape):
        return None
    shape = tuple(first.shape[axis] for axis in axes)
    moved_axes = Moved("permute", axes, _ordered(axes[1:], first.shape))
    return Value("input", shape, facts=(*(first.facts or ()), moved_axes))


def _ordered(axes: tuple[int, ...], shape: Shape) -> bool:
    """Whether values along ``axes`` of a tensor of ``shape`` stand as they did."""
    long = [axis for axis in axes if shape[axis] > 1]
    return long == sorted(long)


def at_a_time(first: Value, index: Any, shape: Shape) -> Value | None:
    """The input at one time step: ``x[t]`` or ``x[:, t]``."""

    def step(at: int, axis: int) -> Value:
        return Value("input", shape, at=at, call=axis, facts=first.facts)

    if isinstance(index, int):
        return step(index, 0)
    rest = isinstance(index, tuple) and len(index) >= 2 and index[0] == slice(None)
    if rest and isinstance(index[1], int) and all(i in (slice(None), ...) for i in index[2:]):
        return step(index[1], 1)
    leads = isinstance(index, tuple) and len(index) > 0 and isinstance(index[0], int)
    if leads and all(i in (slice(None), ...) for i in index[1:]):
        return step(index[0], 0)
    return None


def steps_of(first: Value, index: Any, shape: Shape) -> Value | None:
    """One step of a record, or some of its steps, as ``x[index]`` takes them along its axis of time."""
    whole = isinstance(index, tuple) and len(index) == 2 and index[0] == slice(None)
    along = index[1] if whole and first.at == 1 else index if first.at == 0 else None
    if isinstance(along, int):
        return first.args[along]
    if isinstance(along, slice):
        return Value("record", shape, args=first.args[along], at=first.at)
    return None


def by_step(other: Any, first: Value) -> list[float] | None:
    """The numbers, one for each step of a record, with which ``other`` multiplies it."""
    steps = len(first.args)
    if isinstance(other, int | float):
        return [float(other)] * steps
    if not isinstance(other, Tensor) or other.ndim > len(first.shape) or first.at is None:
        return None
    sizes = [1] * (len(first.shape) - other.ndim) + list(other.shape)
    if any(n != 1 for axis, n in enumerate(sizes) if axis != first.at):
        return None
    values = other.detach().double().flatten().tolist()
    return values * steps if len(values) == 1 else values if len(values) == steps else None


def tensors(what: Any) -> Iterator[Tensor]:
    """All tensors in nested lists, tuples and dicts, in order."""
    if isinstance(what, Tensor):
        yield what
    elif isinstance(what, list | tuple):
        for part in what:
            yield from tensors(part)
    elif isinstance(what, dict):
        yield from tensors(list(what.values()))
