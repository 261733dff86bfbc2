"""The network as lava-dl's netx reads it: ``network.net``, an HDF5 file.

Layout as in lava-dl 0.6.0, lava/lib/dl/netx/hdf5.py: groups ``layer/0``, ``layer/1``, ... of type
input, conv, flatten or dense; kernels in PyTorch's order, which netx flips itself; thresholds as
arrays (W, H, C) or (N,), which Lava's LIF takes although it declares one. Its layers are a strict chain,
which ``netx_layers.py`` makes of a graph. netx knows one input, one group of synapses a layer, no weight
exponent, no delay, no loop and no reset but that to zero, fixes the bias exponent at 6, and finds sign mode
and exponent of a dense matrix itself.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from stl_deploy.chips import facts as chips
from stl_deploy.errors import LoweringError, Problem
from stl_deploy.exporters import loihi_layers
from stl_deploy.exporters.loihi_layers import PROCESS_GRAPH
from stl_deploy.exporters.netx_layers import (
    FORMS,
    MOST_COPIES,
    Layer,
    Unfit,
    copies,
    has_copies,
    layers,
    narrowed,
)
from stl_deploy.files import write as write_file
from stl_deploy.ir import kinds
from stl_deploy.ir.network import Connection, IntegerNetwork, Population
from stl_deploy.ir.neurons import by_channel, shared
from stl_deploy.ir.notes import Diagnostic
from stl_deploy.ir.synapses import IntArray, Shape
from stl_deploy.ir.units import FRACTION_BITS
from stl_deploy.lower import relays

WHERE = "network.net (netx)"
BIAS_EXP = FRACTION_BITS
# Fields that netx has, or that are said by their reset or by "adapt".
NAMED_OTHERWISE = kinds.FIELDS | kinds.RESETS | {"v_reset", "dq"}
ONE_GROUP = "where netx has one group of 8 bits a layer"


@dataclass(frozen=True)
class Refusal:
    """What netx cannot carry; ``structural`` where another form of the same numbers would do."""

    name: str
    what: str
    remedy: str
    structural: bool = False


def write(network: IntegerNetwork, folder: Path) -> None:
    """Write network.net. Raises LoweringError with all problems."""
    if found := [*loihi_layers.problems(network), *problems(network)]:
        raise LoweringError(found)
    memory = io.BytesIO()  # HDF5 crashes when it writes to a full disk
    with h5py.File(memory, "w") as file:
        groups = file.create_group("layer")
        for i, fields in enumerate(_groups(network)):
            group = groups.create_group(str(i))
            for name, value in fields.items():
                # Without times, so that equal networks make equal bytes.
                group.create_dataset(name, data=value, track_times=False)
    write_file(folder / "network.net", memory.getvalue())


def notes(network: IntegerNetwork) -> tuple[Diagnostic, ...]:
    """Why the file is not written, where that follows from what the network is."""
    names: dict[tuple[str, str], list[str]] = {}
    for refusal in _refusals(network):
        if refusal.structural:
            names.setdefault((refusal.what, refusal.remedy), []).append(refusal.name)
    return tuple(
        Diagnostic(WHERE, f"not written: {', '.join(named)}: {what}", remedy)
        for (what, remedy), named in names.items()
    )


def problems(network: IntegerNetwork) -> list[Problem]:
    """What netx alone cannot carry, the whole network at once."""
    return [
        Problem(f"{WHERE}, {refusal.name}", refusal.what, refusal.remedy)
        for refusal in _refusals(network)
    ]


def parts(network: IntegerNetwork, values: dict[str, IntArray]) -> dict[str, IntArray]:
    """Those of the populations, by kind and name, in ``values`` of the layers, by kind and number."""
    found: dict[str, IntArray] = {}
    for i, layer in enumerate(layers(_chain(network))):
        for block in layer.blocks:
            for kind in ("spikes", "u", "v"):
                if f"{kind}/{i}" in values:
                    own = layer.part(block, values[f"{kind}/{i}"])
                    found[f"{kind}/{block.population.name}"] = own
    return found


def _chain(network: IntegerNetwork) -> IntegerNetwork:
    """``network`` with relays in place of skips, as many as the weights behind them need."""
    return narrowed(relays.relayed(network, chips.of(network), "relay"))


def _refusals(network: IntegerNetwork) -> list[Refusal]:
    ours = loihi_layers.POPULATIONS, loihi_layers.SYNAPSES
    known = kinds.TABLE
    if any(kinds.unsupported(network, p, *ours, "netx", known) for p in network.populations):
        return []  # those of loihi_layers.problems
    if unknown := [c for c in network.connections if c.synapses.kind not in FORMS]:
        each = (
            kinds.missing(FORMS, c.synapses.kind, loihi_layers.where(c), "netx") for c in unknown
        )
        return [Refusal(p.where, p.what, p.remedy) for p in each]
    found = [Refusal(*why, structural=True) for why in _structure(network)]
    for p in network.populations:
        n = p.neurons
        if n.bias_exp != BIAS_EXP and n.bias_mant.any():
            what = f"bias exponent {n.bias_exp}; netx fixes {BIAS_EXP}"
            found.append(Refusal(p.name, what, f"quantize with bias exponent {BIAS_EXP}"))
    if any(refusal.structural for refusal in found):
        return found
    try:
        made = layers(_chain(network))
    except LoweringError as error:
        return [*found, *(Refusal(p.where, p.what, PROCESS_GRAPH, True) for p in error.problems)]
    except Unfit as error:
        return [*found, Refusal(", ".join(error.names), str(error), error.remedy, structural=True)]
    ((_, given),) = network.inputs.items()
    for i, layer in enumerate(made):
        levels = given.levels if i == 0 else 1
        found += [Refusal(", ".join(layer.names), *why) for why in _layer_refusals(layer, levels)]
    return found


def _structure(network: IntegerNetwork) -> Iterator[tuple[str, str, str]]:
    """What no chain of netx's layers is."""
    if len(network.inputs) > 1:
        names = ", ".join(network.inputs)
        yield names, f"{len(network.inputs)} inputs; netx has one", PROCESS_GRAPH
    for name in kinds.features(network.readout):
        what = f"{name!r}, by which its classes are scored; netx has no readout"
        yield network.readout.source, what, PROCESS_GRAPH
    for p in network.populations:
        for what, remedy in _beyond_cuba(p):
            yield p.name, what, remedy
        into = network.into(p.name)
        # Neurons behind single connections, which are refused below, each have a bias of their own.
        if len(p.shape) == 3 and not any(FORMS[c.synapses.kind].refused for c in into):
            yield from _biases(p)
        for c in into:
            for what, remedy in _beyond_chain(network, c):
                yield loihi_layers.where(c), what, remedy


def _beyond_cuba(population: Population) -> Iterator[tuple[str, str]]:
    """What the neurons do that netx's CUBA neurons cannot."""
    neurons = population.neurons
    if neurons.reset != "zero":
        yield f"reset {neurons.reset!r}; netx's neurons reset to zero", PROCESS_GRAPH
    if population.kind == "lif" and (rules := kinds.unknown_fields(neurons, NAMED_OTHERWISE)):
        yield (
            f"{', '.join(map(repr, rules))} of its neurons, which netx's do not have",
            PROCESS_GRAPH,
        )
    if None in (shared(neurons.du), shared(neurons.dv)):
        yield "decays of each neuron; netx has one a layer", PROCESS_GRAPH


def _biases(population: Population) -> Iterator[tuple[str, str, str]]:
    try:
        by_channel(population.neurons.bias_mant, population.shape)
    except ValueError:
        what = "biases that differ within a channel; netx has one a channel"
        yield population.name, what, PROCESS_GRAPH


def _beyond_chain(network: IntegerNetwork, connection: Connection) -> Iterator[tuple[str, str]]:
    """What a connection does that netx's layers cannot."""
    if refused := FORMS[connection.synapses.kind].refused:
        yield refused
    if connection.exp:
        what = f"weight exponent {connection.exp}; netx knows 0 only"
        yield what, "quantize with --weight-exp 0"
    if connection.precision != "8" and not _of_relays(network, connection):
        what = f"weight precision {connection.precision}, {ONE_GROUP}"
        yield what, f"quantize with --weight-precision 8, or {PROCESS_GRAPH}"
    if connection.source == connection.target:
        yield "recurrent weights, for which netx has no field", PROCESS_GRAPH
    elif connection.delay:
        what = f"a delay of {connection.delay}; in netx spikes go to the next layer in their step"
        yield what, PROCESS_GRAPH


def _of_relays(network: IntegerNetwork, connection: Connection) -> bool:
    """Whether enough relays for wide weights can stand in the place of one."""
    waits = network.depth is not None and network.waits(connection) > 0
    return (
        connection.synapses.kind == "one_to_one"
        and copies(connection) <= MOST_COPIES
        and (waits or has_copies(network, connection.source))
    )


def _layer_refusals(layer: Layer, levels: int) -> Iterator[tuple[str, str]]:
    weight = layer.synapses.weight
    low, high = int(weight.min()), int(weight.max())
    total = np.abs(weight.astype(np.int64)).reshape(len(weight), -1).sum(axis=1)
    worst = levels * int(total.max())
    if layer.synapses.kind == "conv":
        if worst >= loihi_layers.CONV_SUM_LIMIT:
            what = f"a sum can reach {worst}; Lava's Conv wraps at {loihi_layers.CONV_SUM_LIMIT}"
            yield what, loihi_layers.FEWER_BITS
        return
    yield from _matrix_refusals(low, high, worst, levels)


def _matrix_refusals(low: int, high: int, worst: int, levels: int) -> Iterator[tuple[str, str]]:
    """What lava/lib/dl/netx/utils.py, optimize_weight_bits, does not survive.

    It scales the matrix up by a power of two, to at most 256. A matrix without positive weights
    is then clipped at -255, so that one whose smallest is -2^k changes.
    """
    retrain = "prune or retrain the layer: nothing in it excites a neuron"
    if low == high == 0:
        yield "all weights are 0; netx cannot scale such a matrix", retrain
        return
    if high <= 0 and (-low).bit_count() == 1:
        yield f"no weight is positive and the smallest is {low}; netx clips it", retrain
    scaled = worst * (256 // max(-low, high))
    if levels > 1 and scaled >= loihi_layers.DENSE_SUM_LIMIT:
        yield f"a scaled sum can reach {scaled}; netx adds in 32 bits", loihi_layers.FEWER_BITS


def _groups(network: IntegerNetwork) -> Iterator[dict[str, Any]]:
    """The fields of each group. netx counts neurons, not groups, for its reset."""
    ((_, given),) = network.inputs.items()
    yield {"type": _text("input"), "shape": np.array(given.shape)}
    before: Shape = given.shape
    for layer in layers(_chain(network)):
        if layer.synapses.kind == "dense" and len(before) > 1:
            yield {"type": _text("flatten")}
        yield {
            "type": _text(layer.synapses.kind),
            "shape": np.array(layer.shape),
            "weight": layer.synapses.weight,
            **_kernel(layer),
            **_neurons(layer),
        }
        before = layer.shape


def _kernel(layer: Layer) -> dict[str, Any]:
    geometry = layer.synapses.geometry
    if geometry is None:
        return {}
    pairs = {key: np.array(getattr(geometry, key)) for key in ("stride", "padding", "dilation")}
    return {**pairs, "groups": geometry.groups}


def _neurons(layer: Layer) -> dict[str, Any]:
    vth, bias, uniform = layer.vth, layer.bias_mant, shared(layer.vth)
    fields = {
        "neuron/type": _text("CUBA"),
        # netx subtracts 1 from iDecay: du + 1 must not wrap, nor 0 become unsigned.
        "neuron/iDecay": np.int64(layer.du + 1),
        "neuron/vDecay": np.int64(layer.dv),
        "neuron/vThMant": vth.T if uniform is None else np.int64(uniform),
        "neuron/refDelay": np.int64(1),
        "neuron/gradedSpike": False,
    }
    return fields | ({"bias": bias} if bias.any() else {})


def _text(word: str) -> NDArray[np.bytes_]:
    return np.array([word.encode()])
