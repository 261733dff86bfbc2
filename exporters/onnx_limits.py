"""What the integers of ONNX cannot carry: sums in int32, states in int64, files of 2 GiB."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from stl_deploy.chips import bounds
from stl_deploy.chips import facts as chips
from stl_deploy.errors import Problem
from stl_deploy.exporters import onnx_graph, onnx_inputs, onnx_step, onnx_sums
from stl_deploy.ir import kinds
from stl_deploy.ir.network import IntegerNetwork, Population
from stl_deploy.ir.synapses import Synapses
from stl_deploy.ir.units import DECAY_ONE, FORGETS

INT32_SUM_LIMIT = 1 << 31
# |x| * 4096 has to fit int64 in a decay.
STATE_LIMIT = 1 << 50


def problems(network: IntegerNetwork) -> list[Problem]:
    """What ONNX's integers cannot carry, the whole network at once."""
    found = [
        Problem(
            name,
            f"input levels {port.levels}; ONNX reads it as {'int16' if port.signed else 'uint8'}, up to "
            f"{onnx_inputs.levels_max(port)}",
            "record the input with fewer levels",
        )
        for name, port in network.inputs.items()
        if port.levels > onnx_inputs.levels_max(port)
    ]
    readout = network.readout
    counted = network.size(readout.source)
    if readout.classes * readout.population != counted:
        what = f"{counted} neurons for {readout.classes} classes of {readout.population}"
        found.append(Problem(readout.source, what, "correct the readout"))
    for population in network.populations:
        form = onnx_step.POPULATIONS.get(population.kind)
        unknown = kinds.unsupported(
            network,
            population,
            onnx_step.POPULATIONS,
            onnx_sums.SYNAPSES,
            onnx_sums.WHO,
            kinds.FIELDS if form is None else form.fields,
        )
        found += unknown or _problems(network, population)
    if not found:
        size = sum(_bytes(network, population) for population in network.populations)
        if size > onnx_graph.FILE_BYTES_MAX:
            what = onnx_graph.too_large(size)
            found.append(Problem("onnx", what, "use --target nir, which has no such limit"))
    return found


def _problems(network: IntegerNetwork, population: Population) -> Iterator[Problem]:
    name, neurons = population.name, population.neurons
    if neurons.reset not in ("zero", "subtract"):
        yield Problem(name, f"reset {neurons.reset!r} is not zero or subtract", "use one of these")
    spans = [
        (name, "current decay du", neurons.du, -1, FORGETS),
        (name, "voltage decay dv", neurons.dv, 0, DECAY_ONE),
        (name, "bias exponent", neurons.bias_exp, 0, 7),
        *((c.name, "weight exponent", c.exp, 0, 7) for c in network.into(name)),
    ]
    outside = [
        Problem(where, f"{what} {_ends(values)} is outside {low}..{high}", "quantize again")
        for where, what, values, low, high in spans
        if np.min(values) < low or np.max(values) > high
    ]
    if outside:
        yield from outside
        return
    too_far = False
    for c in network.into(name):
        worst = _largest_part(c.synapses, min(network.levels(c.source), onnx_inputs.BYTE - 1))
        if worst >= INT32_SUM_LIMIT:
            too_far = True
            what = f"a sum can reach {worst}; ONNX adds products in 32 bits"
            yield Problem(c.name, what, "quantize again with fewer --weight-bits")
    if not too_far and (top := _largest_state(network, population)) >= STATE_LIMIT:
        what = f"u or v can reach {top}; the decay is exact below {STATE_LIMIT}"
        yield Problem(name, what, "quantize for chip loihi2")


def _ends(values: Any) -> str:
    low, high = int(np.min(values)), int(np.max(values))
    return str(low) if low == high else f"{low}..{high}"


def _largest_part(synapses: Synapses, levels: int) -> int:
    """Largest |sum| of a slice, for inputs 0..``levels``."""
    parts = (abs(part.astype(np.int64)) for part, _ in onnx_sums.slices(synapses.weight, levels))
    return levels * max(int(synapses.row_sums(part).max()) for part in parts)


def _largest_state(network: IntegerNetwork, population: Population) -> int:
    """Largest |u| or |v| within the network's time, 0 where registers bound them."""
    if chips.of(network).state_limit is not None:
        return 0
    return bounds.largest_state(network, population, network.timesteps)


def _bytes(network: IntegerNetwork, population: Population) -> int:
    """Upper bound of what a file takes for a population and what leads into it."""
    size = 40 * population.size if onnx_step.POPULATIONS[population.kind].remembers else 0
    for c in network.into(population.name):
        form = kinds.entry(onnx_sums.SYNAPSES, c.synapses.kind, c.name, onnx_sums.WHO)
        slices_at_most = c.synapses.weight.dtype.itemsize + 1
        planes = 4 if c.source in network.inputs and network.inputs[c.source].signed else 1
        size += planes * slices_at_most * form.numbers(c.synapses, population.shape)
    return size
