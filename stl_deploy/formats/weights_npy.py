"""Weights in ``.npy`` files, and a JSON file next to them that says what they are: docs/official.md.

``weights.npy`` goes with ``weights.json``, a dictionary whose ``system`` names the system. Further arrays
that it names lie in the same folder.
"""

from __future__ import annotations

import json
from pathlib import Path
from tokenize import TokenError
from typing import Annotated, Any, Literal

import numpy as np
from numpy.lib.format import open_memmap
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from stl_deploy.errors import InputError, Problem
from stl_deploy.files import check_readable
from stl_deploy.ir.units import MAX_STEPS

Array = NDArray[np.float64]
MAX_BYTES = 1 << 30  # of an array
MAX_TEXT = 1 << 24  # of a JSON file
MAX_VALUES = 1 << 20  # in a list of numbers
# What NumPy raises for headers that are none.
BROKEN = ValueError, OSError, EOFError, SyntaxError, TypeError, OverflowError, TokenError
HOW = "save it with numpy.save, as an array of numbers"

Finite = Annotated[float, Field(allow_inf_nan=False)]
Above = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Time = Annotated[float, Field(ge=1, allow_inf_nan=False)]
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9_][A-Za-z0-9_.-]{0,199}\.npy$")]
Count = Annotated[int, Field(ge=1, le=1 << 20)]


def _each(of: Any) -> Any:
    """A number for all neurons, or a list with one for each."""
    return of | Annotated[list[of], Field(min_length=1, max_length=MAX_VALUES)]


class _Said(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=False)
    timesteps: Annotated[int, Field(ge=1, le=MAX_STEPS)]


class Features(BaseModel):
    """The convolution [O, C, kh, kw] in front of a competition group, and the window of its pool."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=False)
    weights: Name
    threshold: Above
    pool: Annotated[int, Field(ge=1, le=1024)] = 4


class Ncg(_Said):
    """Neuronal competition groups: the weights [O, I] of the last layer, and what stands before it."""

    system: Literal["ncg"]
    threshold: _each(Above)  # type: ignore[valid-type]
    neurons_per_class: Count = 5
    features: Features | None = None
    input_shape: tuple[Count, Count, Count] | None = None


class Sleep(_Said):
    """Sleep-based STDP: the weights [E + I, inputs] of all neurons; those among them are ``recurrent``.

    Times are in steps, potentials in mV. ``readout`` [classes, E] weighs the counts of excitatory neurons.
    """

    system: Literal["sleep-stdp"]
    excitatory: Count
    recurrent: Name
    readout: Name
    tau_mem: _each(Time)  # type: ignore[valid-type]
    tau_syn: _each(Time)  # type: ignore[valid-type]
    threshold: _each(Finite)  # type: ignore[valid-type]
    resistance: _each(Above) = 1.0  # type: ignore[valid-type]
    rest: Finite = -65.0
    reset: Finite = -80.0
    floor: Finite = -100.0
    adapt: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.5
    tau_adapt: Time = 200.0


_SAID: TypeAdapter[Ncg | Sleep] = TypeAdapter(Annotated[Ncg | Sleep, Field(discriminator="system")])


def said(path: Path) -> Ncg | Sleep:
    """What the JSON file next to ``path`` says. Raises InputError naming every field that is wrong."""
    beside = path.with_suffix(".json")
    if not beside.is_file():
        what = f"holds weights alone; thresholds and the like are expected in {beside.name}"
        raise InputError(Problem(str(path), what, "write it next to it (docs/official.md)"))
    check_readable(beside, MAX_TEXT)
    try:
        return _SAID.validate_python(json.loads(beside.read_text("utf-8")))
    except ValidationError as error:
        raise InputError(
            Problem(".".join([str(beside), *map(str, e["loc"][1:])]), e["msg"])
            for e in error.errors(include_url=False)
        ) from None
    except (ValueError, RecursionError) as error:
        raise InputError(Problem(str(beside), f"is not valid JSON: {error}")) from None


def array(path: Path, ndim: int) -> Array:
    """The numbers of ``path``, float64 of ``ndim`` dimensions. Raises InputError for anything else."""
    check_readable(path, MAX_BYTES)
    try:
        found = open_memmap(path, mode="r")  # which reads no more than the file has, and no objects
    except BROKEN as error:
        what = (
            f"is not an array of numbers: {str(error).splitlines()[0] if str(error) else 'empty'}"
        )
        raise InputError(Problem(str(path), what, HOW)) from None
    if found.dtype.kind not in "fiu":
        raise InputError(Problem(str(path), "is not an array of real numbers", HOW))
    if found.ndim != ndim or not found.size:
        what = f"has shape {found.shape}; {ndim} dimensions are expected"
        raise InputError(Problem(str(path), what))
    values = np.array(found, np.float64)
    if bad := int((~np.isfinite(values)).sum()):
        raise InputError(Problem(str(path), f"{bad} of {values.size} values are NaN or infinite"))
    return values
