"""What the integers of ONNX cannot carry: sums in int32, states in int64, files of 2 GiB."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from stl_deploy.chips import bounds
from stl_deploy.chips import facts as chips
from stl_deploy.errors import Problem
from stl_deploy.exporters import onnx_graph, onnx_step, onnx_sums
from stl_deploy.ir import kinds
from stl_deploy.ir.chain import Layer
from stl_deploy.ir.network import IntegerNetwork
from stl_deploy.ir.synapses import Synapses
from stl_deploy.ir.units import DECAY_ONE, FORGETS

INT32_SUM_LIMIT = 1 << 31
# |x| * 4096 has to fit int64 in a decay.
STATE_LIMIT = 1 << 50
INPUT_LEVELS_MAX = 255


def problems(network: IntegerNetwork) -> list[Problem]:
    """What ONNX's integers cannot carry, the whole network at once."""
    found: list[Problem] = []
    if network.input_levels > INPUT_LEVELS_MAX:
        what = f"input levels {network.input_levels}; the input is uint8, 0..{INPUT_LEVELS_MAX}"
        found.append(Problem("input", what, "record the input with fewer levels"))
    last = network.layers[-1]
    readout = network.readout
    if readout.classes * readout.population != last.neurons:
        what = f"{last.neurons} neurons for {readout.classes} classes of {readout.population}"
        found.append(Problem(last.name, what, "correct the readout"))
    for layer in network.layers:
        unknown = kinds.layer_unsupported(
            layer, onnx_step.POPULATIONS, onnx_sums.SYNAPSES, onnx_sums.WHO
        )
        found += unknown or _layer_problems(layer, network)
    if not found and (size := sum(map(_bytes, network.layers))) > onnx_graph.FILE_BYTES_MAX:
        what = onnx_graph.too_large(size)
        found.append(Problem("onnx", what, "use --target nir, which has no such limit"))
    return found


def _layer_problems(layer: Layer, network: IntegerNetwork) -> Iterator[Problem]:
    name = layer.name
    if layer.reset not in ("zero", "subtract"):
        yield Problem(name, f"reset {layer.reset!r} is not zero or subtract", "use one of these")
    outside = [
        Problem(name, f"{what} {value} is outside {low}..{high}", "quantize again")
        for what, value, low, high in (
            ("current decay du", layer.du, -1, FORGETS),
            ("voltage decay dv", layer.dv, 0, DECAY_ONE),
            ("weight exponent", layer.exp, 0, 7),
            ("bias exponent", layer.bias_exp, 0, 7),
        )
        if not low <= value <= high
    ]
    if outside:
        yield from outside
        return
    levels, fewer = network.input_limit(layer), "quantize again with fewer --weight-bits"
    worst = _largest_part(layer.synapses, levels)
    if layer.recurrent is not None:
        worst = max(worst, _largest_part(layer.recurrent, 1))
    if worst >= INT32_SUM_LIMIT:
        yield Problem(name, f"a sum can reach {worst}; ONNX adds products in 32 bits", fewer)
    elif (top := _largest_state(layer, levels, network)) >= STATE_LIMIT:
        what = f"u or v can reach {top}; the decay is exact below {STATE_LIMIT}"
        yield Problem(name, what, "quantize for chip loihi2")


def _largest_part(synapses: Synapses, levels: int) -> int:
    """Largest |sum| of a slice, for inputs 0..``levels``."""
    parts = (abs(part.astype(np.int64)) for part, _ in onnx_sums.slices(synapses.weight, levels))
    return levels * max(int(synapses.row_sums(part).max()) for part in parts)


def _largest_state(layer: Layer, levels: int, network: IntegerNetwork) -> int:
    """Largest |u| or |v| within the network's time, 0 where registers bound them."""
    if chips.of(network).state_limit is not None:
        return 0
    return bounds.layer_largest_state(layer, levels, network.timesteps)


def _bytes(layer: Layer) -> int:
    """Upper bound of what a file takes for the layer."""
    return kinds.entry(onnx_step.POPULATIONS, layer.kind, layer.name, onnx_sums.WHO).size(layer)
