"""Networks whose populations hear what is given for others, instead of what those send.

A network that is cut has an input for every population that is given, and every connection out of that
population, also one back to itself, leads out of the input. So each population runs on its own, on the spikes
of the float model say, and no error is passed on: a *forced* run (docs/parity.md).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from numpy.typing import NDArray

Array = NDArray[Any]


def given(population: str) -> str:
    """The name of the input that stands for what ``population`` sends."""
    return f"{population} (given)"


def sources(populations: Iterable[str]) -> dict[str, str]:
    """The inputs of a cut network by the population that each stands for."""
    return {name: given(name) for name in populations}


def rasters(
    inputs: Iterable[str], raster: Array | Mapping[str, Array], spikes: Mapping[str, Array]
) -> dict[str, Array]:
    """What a cut network reads: ``raster`` of the whole one's ``inputs``, ``spikes`` of populations."""
    by_name = raster if isinstance(raster, Mapping) else dict.fromkeys(inputs, raster)
    return {**by_name, **{given(name): sent for name, sent in spikes.items()}}
