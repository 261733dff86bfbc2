"""The network as lava-dl's netx reads it: ``network.net``, an HDF5 file.

Layout as in lava-dl 0.6.0, lava/lib/dl/netx/hdf5.py: groups ``layer/0``, ``layer/1``, ... of type
input, conv, flatten or dense; kernels in PyTorch's order, which netx flips itself; thresholds as
arrays (W, H, C) or (N,), which Lava's LIF takes although it declares one. netx knows one group of
synapses a layer, no weight exponent, no recurrent weights and no reset but that to zero, fixes the bias
exponent at 6, and finds sign mode and exponent of a dense matrix itself.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from stl_deploy.chips import bounds
from stl_deploy.errors import LoweringError, Problem
from stl_deploy.exporters import loihi_layers
from stl_deploy.files import write as write_file
from stl_deploy.ir import kinds
from stl_deploy.ir.chain import LifLayer
from stl_deploy.ir.network import IntegerNetwork
from stl_deploy.ir.notes import Diagnostic
from stl_deploy.ir.synapses import Shape
from stl_deploy.ir.units import FRACTION_BITS

WHERE = "network.net (netx)"
BIAS_EXP = FRACTION_BITS
ONE_GROUP = "where netx has one group of 8 bits a layer"


def write(network: IntegerNetwork, folder: Path) -> None:
    """Write network.net. Raises LoweringError with all problems."""
    if found := [*loihi_layers.problems(network), *problems(network)]:
        raise LoweringError(found)
    memory = io.BytesIO()  # HDF5 crashes when it writes to a full disk
    with h5py.File(memory, "w") as file:
        groups = file.create_group("layer")
        for i, fields in enumerate(_layers(network)):
            group = groups.create_group(str(i))
            for name, value in fields.items():
                # Without times, so that equal networks make equal bytes.
                group.create_dataset(name, data=value, track_times=False)
    write_file(folder / "network.net", memory.getvalue())


def notes(network: IntegerNetwork) -> tuple[Diagnostic, ...]:
    """Why the file is not written, where that follows from what the user asked for."""
    scaled = [layer.name for layer in network.lif_layers if layer.exp]
    wide = [layer.name for layer in network.lif_layers if layer.weight_precision != "8"]
    single = [layer.name for layer in network.lif_layers if layer.synapses.kind == "sparse"]
    found = []
    for layer in network.lif_layers:
        found += [(f"{layer.name}: {what}", remedy) for what, remedy in _beyond_cuba(layer)]
    if scaled:
        what = f"{', '.join(scaled)} have a weight exponent, which netx does not know"
        found.append((what, "export with --weight-exp 0 for netx"))
    if wide:
        what = f"{', '.join(wide)} have weight precision {network.weight_precision}, {ONE_GROUP}"
        found.append((what, "export with --weight-precision 8 for netx"))
    if single:
        what = f"{', '.join(single)} are folded convolutions, whose connections netx does not know"
        found.append((what, "export with --thresholds native for netx"))
    return tuple(Diagnostic(WHERE, f"not written: {what}", remedy) for what, remedy in found)


def problems(network: IntegerNetwork) -> list[Problem]:
    """What netx alone cannot carry, the whole network at once."""
    found: list[Problem] = []
    for layer in network.layers:
        if kinds.layer_unsupported(layer, loihi_layers.POPULATIONS, loihi_layers.SYNAPSES, "netx"):
            continue  # one of loihi_layers.problems
        lif, levels = loihi_layers.lif_form(layer), network.input_limit(layer)
        if lif.synapses.kind in FORMS:
            found += (Problem(f"{WHERE}, {lif.name}", *why) for why in _refusals(lif, levels))
        else:
            found.append(kinds.missing(FORMS, lif.synapses.kind, f"{WHERE}, {lif.name}", "netx"))
    return found


def _beyond_cuba(layer: LifLayer) -> Iterator[tuple[str, str]]:
    """What the neurons do that netx's CUBA neurons cannot."""
    remedy = "use the process graph, lava_network.py"
    if layer.recurrent is not None:
        yield f"recurrent weights {layer.recurrent_name}, for which netx has no field", remedy
    if layer.reset != "zero":
        yield f"reset {layer.reset!r}; netx's neurons reset to zero", remedy


def _refusals(layer: LifLayer, levels: int) -> Iterator[tuple[str, str]]:
    yield from _beyond_cuba(layer)
    if layer.exp:
        yield (
            f"weight exponent {layer.exp}; netx knows 0 only",
            "quantize with weight exponent 0",
        )
    if layer.bias_exp != BIAS_EXP and layer.bias_mant.any():
        yield (
            f"bias exponent {layer.bias_exp}; netx fixes {BIAS_EXP}",
            f"quantize with bias exponent {BIAS_EXP}",
        )
    if layer.weight_precision != "8":
        yield (
            f"weight precision {layer.weight_precision}, {ONE_GROUP}",
            "quantize with --weight-precision 8, or use the process graph, lava_network.py",
        )
    yield from FORMS[layer.synapses.kind].refusals(layer, levels)


def _no_refusals(_layer: LifLayer, _levels: int) -> Iterator[tuple[str, str]]:
    yield from ()


def _sparse_refusals(_layer: LifLayer, _levels: int) -> Iterator[tuple[str, str]]:
    yield (
        "a folded convolution; netx knows no single connections",
        "quantize with --thresholds native",
    )


def _dense_refusals(layer: LifLayer, levels: int) -> Iterator[tuple[str, str]]:
    """What lava/lib/dl/netx/utils.py, optimize_weight_bits, does not survive.

    It scales the matrix up by a power of two, to at most 256. A matrix without positive weights
    is then clipped at -255, so that one whose smallest is -2^k changes.
    """
    weight = layer.synapses.weight
    low, high = int(weight.min()), int(weight.max())
    retrain = "prune or retrain the layer: nothing in it excites a neuron"
    if low == high == 0:
        yield "all weights are 0; netx cannot scale such a matrix", retrain
        return
    if high <= 0 and (-low).bit_count() == 1:
        yield f"no weight is positive and the smallest is {low}; netx clips it", retrain
    scaled = bounds.layer_largest_sum(layer, levels) * (256 // max(-low, high))
    if levels > 1 and scaled >= loihi_layers.DENSE_SUM_LIMIT:
        yield f"a scaled sum can reach {scaled}; netx adds in 32 bits", loihi_layers.FEWER_BITS


def _layers(network: IntegerNetwork) -> Iterator[dict[str, Any]]:
    """The fields of each group. netx counts neurons, not groups, for its reset."""
    yield {"type": _text("input"), "shape": np.array(network.input_shape)}
    before: Shape = network.input_shape
    for layer in map(loihi_layers.lif_form, network.layers):
        form = FORMS[layer.synapses.kind]
        if form.flat and len(before) > 1:
            yield {"type": _text("flatten")}
        yield {
            "type": _text(layer.synapses.kind),
            "shape": np.array(layer.shape),
            "weight": layer.synapses.weight,
            **form.fields(layer),
            **_neuron(layer),
        }
        before = layer.shape


def _kernel(layer: LifLayer) -> dict[str, Any]:
    conv: Any = layer.synapses
    pairs = {key: np.array(getattr(conv, key)) for key in ("stride", "padding", "dilation")}
    return {**pairs, "groups": conv.groups}


def _no_fields(_layer: LifLayer) -> dict[str, Any]:
    return {}


@dataclass(frozen=True)
class Form:
    """How netx has one kind of synapses.

    ``refusals`` gives what it cannot carry of a layer with inputs 0..levels, each with a remedy; ``fields``
    those of the layer's group besides weights and neurons; ``flat`` says that its input is.
    """

    refusals: Callable[[LifLayer, int], Iterator[tuple[str, str]]]
    fields: Callable[[LifLayer], dict[str, Any]] = _no_fields
    flat: bool = False


FORMS: dict[str, Form] = {
    "conv": Form(_no_refusals, _kernel),
    "dense": Form(_dense_refusals, flat=True),
    "sparse": Form(_sparse_refusals),
}


def _neuron(layer: LifLayer) -> dict[str, Any]:
    uniform = int(layer.vth.flat[0]) if (layer.vth == layer.vth.flat[0]).all() else None
    fields = {
        "neuron/type": _text("CUBA"),
        # netx subtracts 1 from iDecay: du + 1 must not wrap, nor 0 become unsigned.
        "neuron/iDecay": np.int64(layer.du + 1),
        "neuron/vDecay": np.int64(layer.dv),
        "neuron/vThMant": layer.vth.astype(np.int32).T if uniform is None else np.int64(uniform),
        "neuron/refDelay": np.int64(1),
        "neuron/gradedSpike": False,
    }
    return fields | ({"bias": layer.bias_mant.astype(np.int32)} if layer.bias_mant.any() else {})


def _text(word: str) -> NDArray[np.bytes_]:
    return np.array([word.encode()])
