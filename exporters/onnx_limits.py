"""What the integers of ONNX cannot carry: sums in int32, states in int64, files of 2 GiB."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from stl_deploy.chips import bounds
from stl_deploy.chips import facts as chips
from stl_deploy.errors import Problem
from stl_deploy.exporters import onnx_graph, onnx_inputs, onnx_neurons, onnx_sums
from stl_deploy.ir import kinds
from stl_deploy.ir.network import IntegerNetwork, Population
from stl_deploy.ir.neurons import Neurons
from stl_deploy.ir.synapses import Synapses
from stl_deploy.ir.units import DECAY_BITS, DECAY_ONE, FORGETS, FRACTION_BITS

INT32_SUM_LIMIT = 1 << 31
INT64_LIMIT = 1 << 63
# |x| * 4096 has to fit int64 in a decay.
STATE_LIMIT = 1 << 50
MATRIX_ENTRY_BYTES = 32  # as a constant and as a text in metadata_props


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
    for population in network.populations:
        form = onnx_neurons.POPULATIONS.get(population.kind)
        unknown = kinds.unsupported(
            network,
            population,
            onnx_neurons.POPULATIONS,
            onnx_sums.SYNAPSES,
            onnx_sums.WHO,
            kinds.FIELDS if form is None else form.fields,
        )
        found += unknown or _problems(network, population)
        if not unknown and population.name == network.readout.source:
            found += _readout_problems(network)
    if not found:
        size = sum(_bytes(network, population) for population in network.populations)
        if size > onnx_graph.FILE_BYTES_MAX:
            what = onnx_graph.too_large(size)
            found.append(Problem("onnx", what, "use --target nir, which has no such limit"))
    return found


def _problems(network: IntegerNetwork, population: Population) -> Iterator[Problem]:
    name, neurons = population.name, population.neurons
    spans: list[tuple[str, str, Any, int, int]] = [
        (name, "current decay du", neurons.du, -1, FORGETS),
        (name, "voltage decay dv", neurons.dv, 0, DECAY_ONE),
        (name, "bias exponent", neurons.bias_exp, 0, 7),
        *((c.name, "weight exponent", c.exp, 0, 7) for c in network.into(name)),
    ]
    if (limit := chips.of(network).state_limit) is not None:
        spans += [
            (name, what, _given(values), 1 - limit, limit - 1)
            for what, values in _voltages(neurons).items()
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
    if too_far:
        return
    if (top := _largest_state(network, population)) >= STATE_LIMIT:
        what = f"u or v can reach {top}; the decay is exact below {STATE_LIMIT}"
        yield Problem(name, what, "quantize for chip loihi2")
    # Elsewhere a sum beyond 64 bits would wrap as the registers do.
    arriving = max(_largest_sum(network, population, port) for port in (0, 1)) + _most(neurons.bias)
    if (neurons.gain is not None or neurons.graded is not None) and arriving >= INT64_LIMIT:
        what = f"what arrives can reach {arriving}; ONNX carries less than {INT64_LIMIT}"
        yield Problem(name, what, "quantize again with fewer --weight-bits")


def _readout_problems(network: IntegerNetwork) -> Iterator[Problem]:
    if (top := largest_score(network)) >= INT64_LIMIT:
        what = f"a score can reach {top}; ONNX carries less than {INT64_LIMIT}"
        yield Problem(network.readout.source, what, "use smaller factors")


def largest_score(network: IntegerNetwork) -> int:
    """A bound of the magnitude of scores, and of the sums that they are made of."""
    readout = network.readout
    name = readout.source
    if readout.rule == "first":
        return network.size(name)
    steps = (1,) * network.timesteps if readout.steps is None else readout.steps
    if readout.by_voltage:
        each = _largest_voltage(network, network.by_name[name])
        each *= network.timesteps if readout.rule == "mean" else 1
        each *= 1 if readout.factors is None else max(1, _most(readout.factors))
    else:
        each = network.levels(name) * sum(abs(int(weight)) for weight in steps)
    if readout.matrix is None:
        return each * readout.population
    top: int = each * max(1, *np.abs(readout.matrix.astype(object)).sum(axis=1))
    if readout.offset is not None:
        top += _most(readout.offset) * sum(abs(int(weight)) for weight in steps)
    return top


def _largest_voltage(network: IntegerNetwork, population: Population) -> int:
    """Largest |v| that a step of a population leaves."""
    limit = chips.of(network).state_limit
    return _largest_state(network, population) if limit is None else limit


def _voltages(neurons: Neurons) -> dict[str, Any]:
    """The fields that v may take as they stand."""
    return {
        "v0, where v begins,": neurons.v0,
        "v_reset": neurons.v_reset,
        "the floor of v": neurons.floor,
    }


def _given(values: Any) -> Any:
    """A field of neurons, 0 where it is None."""
    return 0 if values is None else values


def _most(values: Any) -> int:
    """The largest magnitude of whole numbers."""
    return max(abs(int(np.min(values))), abs(int(np.max(values))))


def _ends(values: Any) -> str:
    low, high = int(np.min(values)), int(np.max(values))
    return str(low) if low == high else f"{low}..{high}"


def _largest_part(synapses: Synapses, levels: int) -> int:
    """Largest |sum| of a slice, for inputs 0..``levels``."""
    parts = (abs(part.astype(np.int64)) for part, _ in onnx_sums.slices(synapses.weight, levels))
    return levels * max(int(synapses.row_sums(part).max()) for part in parts)


def _largest_sum(network: IntegerNetwork, population: Population, port: int) -> int:
    """Largest |a << 6| of a current."""
    return sum(
        bounds.largest_sum(network, c) << (c.exp + FRACTION_BITS)
        for c in network.into(population.name)
        if c.port == port
    )


def _largest_state(network: IntegerNetwork, population: Population) -> int:
    """A bound of |u|, |v| and |q| within the network's time, 0 where registers bound them.

    In Python's integers, which cannot overflow themselves.
    """
    if chips.of(network).state_limit is not None:
        return 0
    n = population.neurons
    gain = DECAY_ONE if n.gain is None else _most(n.gain)
    bias = _most(n.bias)
    within = 0 if n.gain is None else bias  # what a gain multiplies, too
    a, a2 = (
        (_largest_sum(network, population, port) + more) * gain >> DECAY_BITS
        for port, more in ((0, within), (1, 0))
    )
    kept_u, kept_u2 = (FORGETS - int(np.min(du)) for du in (n.du, 0 if n.du2 is None else n.du2))
    kept_v, kept_q = (DECAY_ONE - int(np.min(decay)) for decay in (n.dv, n.dq))
    # To subtract a threshold below zero adds to v; below one that q lowered, v may come down to q.
    added = max(0, -int(np.min(n.vth))) << FRACTION_BITS if n.reset == "subtract" else 0
    u = u2 = q = 0
    v = max(_most(_given(x)) for x in _voltages(n).values())
    top = v
    for _ in range(network.timesteps):
        u = (u * kept_u >> DECAY_BITS) + a
        u2 = (u2 * kept_u2 >> DECAY_BITS) + a2
        driven = (v * kept_v >> DECAY_BITS) + u + u2 + bias - within + added
        v = max(v, driven, q)
        q = (q * kept_q >> DECAY_BITS) + _most(n.adapt)
        top = max(top, u, u2, v, q)
    return top


def _bytes(network: IntegerNetwork, population: Population) -> int:
    """Upper bound of what a file takes for a population and what leads into it."""
    neurons = population.neurons
    size = 40 * population.size if onnx_neurons.POPULATIONS[population.kind].remembers else 0
    fields = (neurons.v_reset, neurons.floor, neurons.adapt, neurons.dq, neurons.du2, neurons.v0)
    size += 8 * sum(np.size(_given(values)) for values in fields)
    size += 2 * np.size(_given(neurons.gain))
    if population.name == network.readout.source and network.readout.matrix is not None:
        size += MATRIX_ENTRY_BYTES * network.readout.matrix.size
    for c in network.into(population.name):
        form = kinds.entry(onnx_sums.SYNAPSES, c.synapses.kind, c.name, onnx_sums.WHO)
        slices_at_most = c.synapses.weight.dtype.itemsize + 1
        planes = 1 if onnx_inputs.sent_type(network, c.source) is np.uint8 else 4
        size += planes * slices_at_most * form.numbers(c.synapses, population.shape)
    return size
