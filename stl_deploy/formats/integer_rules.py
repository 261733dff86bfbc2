"""What NIR has no word for in the neurons of an integer network: arrays in the ``metadata`` of their node.

An array has the name of its field of ``Lif``. Its shape is [1] where all neurons have one value, [C, 1, ...]
where the neurons of a channel have, else that of the population; ``gain`` is [T], [T, C, 1, ...] or
[T, *shape]. A field that has its default is left out.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import nir
import numpy as np
from numpy.typing import NDArray

from stl_deploy.chips import facts as chips
from stl_deploy.chips import rules as chip_rules
from stl_deploy.errors import Problem
from stl_deploy.ir.network import IntegerNetwork, Population
from stl_deploy.ir.neurons import Each, Neurons, Reset, by_channel, of_channels
from stl_deploy.ir.synapses import Shape
from stl_deploy.ir.units import FORGETS

# By field, what stands where there is no array. Without a threshold, vth is such a field too.
DEFAULTS: dict[str, int | None] = {
    **{"vth": 0, "v_reset": 0, "floor": None, "adapt": 0},
    **{"dq": 0, "du2": None, "gain": None, "v0": 0},
}


def ranges(chip: chips.Chip) -> dict[str, tuple[int, int]]:
    """The lowest and the highest value of each field; states are int32 where a chip has no registers."""
    limit = (1 << 31) if chip.state_limit is None else chip.state_limit
    state = 1 - limit, limit - 1
    return {
        "vth": chip.threshold_range,
        **dict.fromkeys(("v_reset", "floor", "adapt", "v0"), state),
        **dict.fromkeys(("dq", "du2"), (0, FORGETS)),
        "gain": (-(1 << 15), (1 << 15) - 1),
    }


SAID = {"no threshold", chip_rules.RESETS["constant"]}  # rules that NIR has words for


def unsaid(neurons: Neurons) -> list[str]:
    """The rules of ``neurons`` that NIR's equations cannot express, in the words of ``chips/rules.py``."""
    subtracts = neurons.fires and neurons.reset == "subtract"
    found = [word for word in chip_rules.words(neurons) if word not in SAID]
    return ["reset by subtraction"] * subtracts + found


def integers(values: NDArray[Any], what: str, low: int, high: int) -> NDArray[np.int64]:
    """``values`` as integers. Raises ValueError unless all are, within low..high."""
    x = np.asarray(values, np.float64)
    if not np.isfinite(x).all() or (x != np.rint(x)).any():
        raise ValueError(f"{what} holds values that are not integers")
    if x.size and (x.min() < low or x.max() > high):
        raise ValueError(f"{what} spans {x.min():.0f}..{x.max():.0f}, outside {low}..{high}")
    return x.astype(np.int64)


def problems(network: IntegerNetwork, population: Population) -> list[Problem]:
    """The values of ``population`` that a file cannot hold."""
    found: list[Problem] = []
    span = ranges(chips.of(network))
    neurons = population.neurons
    for name in DEFAULTS.keys() - ({"vth"} if neurons.fires else set()):
        value = getattr(neurons, name)
        try:
            if value is not None:
                integers(value, name, *span[name])
        except ValueError as error:
            found.append(Problem(population.name, str(error), "give values within this range"))
    gain = neurons.gain
    if gain is not None and len(gain) != network.timesteps:
        what = f"has gains of {len(gain)} steps, and the network runs {network.timesteps}"
        found.append(Problem(population.name, what, "give one gain for each step"))
    return found


def native(fires: bool, reset: Reset) -> set[str]:
    """The fields of ``DEFAULTS`` that the words of the node say."""
    if not fires:
        return set()
    return {"vth", "v_reset"} if reset == "constant" else {"vth"}


def arrays(neurons: Neurons, shape: Shape) -> dict[str, NDArray[Any]]:
    """The arrays of the neurons' node, as small as they can be."""
    found: dict[str, NDArray[Any]] = {}
    for name, default in DEFAULTS.items():
        value = getattr(neurons, name)
        if name in native(neurons.fires, neurons.reset) or value is None:
            continue
        packed = _steps(value, shape) if name == "gain" else _packed(np.asarray(value), shape)
        if default is None or packed.any():
            found[name] = packed.astype(np.int16 if name == "gain" else np.int32)
    return found


def _packed(values: NDArray[Any], shape: Shape) -> NDArray[Any]:
    """[1] value where it is the same for all neurons, those of the channels, or all."""
    full = np.broadcast_to(values, shape)
    if (full == full.flat[0]).all():
        return full.reshape(-1)[:1].copy()
    try:
        return of_channels(by_channel(full, shape), shape)
    except ValueError:
        return full.copy()


def _steps(gain: NDArray[Any], shape: Shape) -> NDArray[Any]:
    """The same for each step; the form is that of the step that needs most."""
    packed = [_packed(step, shape) for step in gain]
    most = max((p.shape for p in packed), key=lambda size: (len(size), np.prod(size)))
    if most == (1,):
        return np.concatenate(packed)
    return np.stack([np.broadcast_to(p, most) for p in packed])


def read(
    node: nir.ir.NIRNode, shape: Shape, chip: chips.Chip, said: Collection[str], steps: int
) -> dict[str, Any]:
    """The fields of ``Lif`` in the metadata of ``node``; ``said`` are those that its own words say.

    Raises ValueError for what is not such a field, has another shape, or lies outside its range.
    """
    if strange := sorted(map(str, node.metadata.keys() - (DEFAULTS.keys() - set(said)))):
        raise ValueError(
            f"its metadata has {strange[0][:40]!r}, which is not a field of such neurons"
        )
    found: dict[str, Any] = {}
    span = ranges(chip)
    for name, array in node.metadata.items():
        if not isinstance(array, np.ndarray) or array.dtype.kind not in "iu":
            raise ValueError(f"{name} in its metadata is not an array of integers")
        channels = (shape[0], *[1] * (len(shape) - 1))
        forms = [(1,), channels, shape]
        if name == "gain":
            forms = [(steps,), (steps, *channels), (steps, *shape)]
        if array.shape not in forms:
            right = " or ".join(map(str, dict.fromkeys(forms)))
            raise ValueError(f"{name} has shape {array.shape}, not {right}")
        values = integers(array, name, *span[name])
        found[name] = values.astype(np.int16) if name == "gain" else each(values, shape)
    return found


def each(values: NDArray[np.int64], shape: Shape) -> Each:
    """One number where it is the same for all, else an array as small as broadcasts to them."""
    packed = _packed(values, shape)
    return int(packed[0]) if packed.shape == (1,) else packed.astype(np.int32)
