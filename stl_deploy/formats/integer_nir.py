"""The integer network as a NIR graph and back; NIR files read as untrusted data.

Units in the file (dt = 1e-4): ``weight`` int8; ``v_threshold`` int32 = vth behind NIR's strict >;
``v_leak`` = ``v_reset`` = 0; ``tau`` = dt*4096/dv and ``r`` = (4096/dv)*2^exp, so that NIR's equation
gives v = v*(4096-dv)/4096 + 2^exp * I; ``bias`` = (mant << bias_exp) / 2^(6+exp). An OR pool is
SumPool2d -> Threshold(0). What NIR cannot say stands in one JSON string (``IntegerMeta``). The loader
rebuilds the integers from both and refuses what is not an integer or contradicts.

Neurons that remember a current (du not 4095) are a CubaLIF: ``tau_syn`` = dt*4096/(du+1) and ``w_in`` =
4096/(du+1), so that NIR's equation gives I = I*(4096-(du+1))/4096 + S and the rest is as above. The bias
goes to v past the current, so it is ``v_leak`` = (mant << bias_exp)/2^6 * 4096/dv; the weights' own is 0.
Neurons that neither leak (dv 0) nor remember a current are an IF: ``r`` = 2^exp/dt. Recurrent neurons
have edges to a Linear node of int8 and back from it. The reset by subtraction stands in the
JSON alone, and so does how many inputs a layer was calibrated on (``precision``). With any of these it is
version 2, which older readers refuse.

Weights of a precision other than "8" (``slices.py``) are int16, and their layer's ``weight_precision``
says what they may be. With one of them it is version 3.

NIR knows no single connections, which a folded convolution becomes. They stand in the ``metadata`` of
its Conv2d node: ``row`` (neuron) and ``column`` (input) int32 [n], both in C order, ``weight`` int8
[n], and ``bias_mant`` int32, one a neuron. The nodes themselves say the same before rounding: a Conv2d
of float64 and a Scale behind it, which brings each neuron's inputs to its own unit.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import nir
import numpy as np
import numpy.typing as npt
from numpy.typing import NDArray

from stl_deploy.chips import facts as chips
from stl_deploy.errors import InputError, LoweringError, Problem
from stl_deploy.formats import integer_placement
from stl_deploy.formats.integer_meta import (
    RESETS,
    IntegerMeta,
    LayerMeta,
    PrecisionMeta,
    RoundingMeta,
    Version,
    read_meta,
)
from stl_deploy.formats.nir_io import read
from stl_deploy.ir import chain as chain_view
from stl_deploy.ir import kinds, single, slices
from stl_deploy.ir import nir_graph as G
from stl_deploy.ir.chain import Layer, LifLayer, OrPool
from stl_deploy.ir.network import IntegerNetwork, Readout
from stl_deploy.ir.notes import Diagnostic, Precision, Rounding
from stl_deploy.ir.slices import Weights
from stl_deploy.ir.synapses import Conv, Dense, Kernel, Sparse, Synapses
from stl_deploy.ir.units import DECAY_ONE, FORGETS, FRACTION_BITS, UNIT


def to_nir(network: IntegerNetwork) -> nir.NIRGraph:
    """The NIR graph that carries ``network``. Raises LoweringError naming what NIR cannot."""
    problems: list[Problem] = []
    for layer in network.layers:
        problems += kinds.layer_unsupported(layer, POPULATIONS, SYNAPSES, WHO) or _unwritable(layer)
    if problems:
        raise LoweringError(problems)
    nodes: dict[str, nir.ir.NIRNode] = {}
    metas: list[LayerMeta] = []
    for layer in network.layers:
        form = POPULATIONS[layer.kind]
        nodes |= form.nodes(layer)
        metas.append(form.meta(layer, network))
    version: Version = max(meta.version for meta in metas)
    meta = IntegerMeta(
        version=version,
        reset=RESETS[version],
        chip=network.chip,
        chip_facts=None if network.chip_facts is None else json.loads(network.chip_facts),
        timesteps=network.timesteps,
        input_levels=network.input_levels,
        classes=network.readout.classes,
        population=network.readout.population,
        lowering=network.lowering,
        lowering_reason=network.lowering_reason,
        layers=metas,
        placement=None
        if network.placement is None
        else integer_placement.to_meta(network.placement),
        diagnostics=[(d.where, d.what, d.remedy) for d in network.diagnostics],
    )
    recurrent: G.Recurrent = {
        layer.name: (layer.recurrent_name, nir.Linear(weight=layer.recurrent.weight))
        for layer in network.lif_layers
        if layer.recurrent is not None
    }
    shapes = network.input_shape, network.layers[-1].shape
    return G.chain_graph(nodes, *shapes, meta.model_dump_json(), recurrent)


def _unwritable(layer: Layer) -> Iterator[Problem]:
    """What no node of NIR can express."""
    if layer.dv == 0 and layer.has_current:
        yield Problem(
            layer.name,
            "dv 0: NIR's neurons with a current leak",
            f"use a dv from 1 to {FORGETS}",
        )
    if layer.has_current and layer.synapses.kind == "sparse":
        yield Problem(
            layer.name,
            f"a folded convolution into neurons with a current (du {layer.du})",
            "use --thresholds native",
        )
    if layer.recurrent is not None and len(layer.shape) != 1:
        yield Problem(
            layer.name,
            f"is recurrent and has shape {layer.shape}; only a flat population can be recurrent",
            "flatten the population",
        )


def _pool_nodes(pool: OrPool) -> dict[str, nir.ir.NIRNode]:
    return {
        pool.synapse_name: G.sum_pool(pool.kernel, pool.input_shape),
        pool.name: nir.Threshold(threshold=np.zeros(pool.shape, np.int32)),
    }


def _lif_nodes(layer: LifLayer) -> dict[str, nir.ir.NIRNode]:
    weights = SYNAPSES[layer.synapses.kind](layer, layer.synapses)
    return weights | {layer.name: _neurons(layer)}


def _bias(layer: LifLayer) -> NDArray[np.float64]:
    """The bias of the weights' node, one for each channel; that of a CubaLIF is its own."""
    bias: NDArray[np.float64] = layer.bias.reshape(-1) / 2.0 ** (FRACTION_BITS + layer.exp)
    return np.zeros_like(bias) if layer.has_current else bias


def _conv_nodes(layer: LifLayer, conv: Conv) -> dict[str, nir.ir.NIRNode]:
    stride, padding, dilation, groups = conv.geometry
    geometry = stride, padding, groups, dilation
    node = G.conv2d(conv.weight, _bias(layer), layer.input_shape, *geometry)
    return {layer.synapse_name: node}


def _dense_nodes(layer: LifLayer, dense: Dense) -> dict[str, nir.ir.NIRNode]:
    out: dict[str, nir.ir.NIRNode] = {}
    if len(layer.input_shape) > 1:
        out[f"{layer.synapse_name}_flatten"] = G.flatten(layer.input_shape)
    bias = _bias(layer)
    out[layer.synapse_name] = (
        nir.Affine(weight=dense.weight, bias=bias)
        if bias.any()
        else nir.Linear(weight=dense.weight)
    )
    return out


def _neurons(layer: LifLayer) -> G.Neurons:
    if layer.dv == 0 and not layer.has_current:
        return G.integrate_and_fire(layer.vth, 2.0**layer.exp)
    tau, r = _membrane(layer.dv, layer.exp)
    if not layer.has_current:
        return G.lif(layer.vth, tau=tau, r=r)
    tau_syn, w_in = _current(layer.du)
    leak = _leak(layer.bias, layer.dv)
    return G.cuba_lif(layer.vth, tau_syn=tau_syn, tau_mem=tau, r=r, w_in=w_in, v_leak=leak)


def _membrane(dv: int, exp: int) -> tuple[float, float]:
    """(tau or tau_mem, r) of a LIF or CubaLIF node."""
    gain = DECAY_ONE / dv
    return G.DT * gain, gain * 2.0**exp


def _current(du: int) -> tuple[float, float]:
    """(tau_syn, w_in) of a CubaLIF node."""
    gain = DECAY_ONE / (du + 1)
    return G.DT * gain, gain


def _leak(bias: NDArray[Any], dv: int) -> NDArray[np.float64]:
    """v_leak of a CubaLIF node, whose step adds ``bias`` to v."""
    leak: NDArray[np.float64] = bias / UNIT * (DECAY_ONE / dv)
    return leak


def _folded_nodes(layer: LifLayer, synapses: Sparse) -> dict[str, nir.ir.NIRNode]:
    """The convolution before rounding, its Scale, and the single connections as its metadata."""
    kernel = synapses.kernel
    node = G.conv2d(
        kernel.weight,
        kernel.bias,
        layer.input_shape,
        kernel.stride,
        kernel.padding,
        kernel.groups,
        kernel.dilation,
    )
    node.metadata = {
        "row": synapses.row,
        "column": synapses.column,
        "weight": synapses.weight,
        "bias_mant": layer.bias_mant,
    }
    # The kernel counts the float model's units, a step of the neuron's grid is scale * 2^exp.
    factor = 1 / (layer.scale.reshape(layer.shape) * 2.0**layer.exp)
    return {layer.synapse_name: node, _scale_name(layer.synapse_name): nir.Scale(scale=factor)}


def _scale_name(weights: str) -> str:
    return f"{weights}_fold"


def _pool_meta(pool: OrPool, _network: IntegerNetwork) -> LayerMeta:
    return LayerMeta(name=pool.name, kind="or_pool", weights=pool.synapse_name)


def _lif_meta(layer: LifLayer, network: IntegerNetwork) -> LayerMeta:
    precision = network.precision.get(layer.name)
    rounding = network.rounding.get(layer.name)
    return LayerMeta(
        name=layer.name,
        kind="lif",
        weights=layer.synapse_name,
        du=layer.du,
        dv=layer.dv,
        exp=layer.exp,
        bias_exp=layer.bias_exp,
        weight_bits=layer.weight_bits,
        scale=layer.scale.tolist(),
        precision=None if precision is None else PrecisionMeta(**vars(precision)),
        rounding=None if rounding is None else RoundingMeta(**vars(rounding)),
        folded=layer.synapses.kind == "sparse",
        recurrent=None if layer.recurrent is None else layer.recurrent_name,
        reset=layer.reset,
        weight_precision=layer.weight_precision,
    )


def _chip(meta: IntegerMeta, where: str) -> chips.Chip:
    """The chip of the file. Raises InputError where it is not known, or its facts are not right."""
    if meta.chip_facts is not None:
        chip = chips.check(meta.chip_facts, f"{where}: chip_facts")
        if chip.name != meta.chip:
            what = f"are those of {chip.name!r}, and the network is for {meta.chip!r}"
            raise InputError(Problem(f"{where}: chip_facts", what))
        return chip
    if meta.chip not in chips.names():
        raise InputError(
            Problem(f"{where}: chip", f"{meta.chip!r} is not one of {', '.join(chips.names())}")
        )
    return chips.load(meta.chip)


def from_nir(graph: nir.NIRGraph, where: str = "graph") -> IntegerNetwork:
    """Rebuild the integer network. Raises InputError naming everything that is off."""
    meta = read_meta(graph, where)
    chip = _chip(meta, where)
    problems: list[Problem] = []
    layers: list[Layer] = []
    try:
        G.verify(graph)
        chain, recurrent = G.inner(graph), G.recurrent(graph)
    except LoweringError as error:
        raise InputError([Problem(f"{where}: {p.where}", p.what) for p in error.problems]) from None
    except (ValueError, TypeError, AttributeError, IndexError, OverflowError) as error:
        # What shapes and types from a broken file can do to arithmetic on them.
        raise InputError(Problem(where, f"contains an invalid node: {error}")) from None
    shape = G.in_shape(graph)
    used: set[str] = set()
    for entry in meta.layers:
        node, neurons = chain.get(entry.weights), chain.get(entry.name)
        between = [f"{entry.weights}_flatten", *([_scale_name(entry.weights)] * entry.folded)]
        used |= {entry.weights, entry.name, *between}
        try:
            if entry.folded:
                factor = chain.get(_scale_name(entry.weights))
                layer: Layer = _folded_layer(entry, node, factor, neurons, shape, chip)
            else:
                layer = POPULATIONS[entry.kind].read(entry, node, neurons, shape, chip)
            layer = _with_recurrent(entry, layer, recurrent.get(entry.name))
        except (ValueError, TypeError, AttributeError, IndexError, OverflowError) as error:
            problems.append(Problem(f"{where}: {entry.name}", str(error)))
            continue
        layers.append(layer)
        shape = layer.shape
    for name in chain:
        if name not in used:
            problems.append(Problem(f"{where}: {name}", "is not described in the metadata"))
    expected = [
        name
        for e in meta.layers
        for name in (e.weights, *([_scale_name(e.weights)] * e.folded), e.name)
    ]
    if [n for n in chain if not isinstance(chain[n], nir.Flatten)] != expected and not problems:
        problems.append(Problem(where, "the order of its edges contradicts the metadata's layers"))
    if not problems and math.prod(shape) != meta.classes * meta.population:
        problems.append(
            Problem(
                where, f"{math.prod(shape)} outputs for {meta.classes} classes of {meta.population}"
            )
        )
    if problems:
        raise InputError(problems)
    network = chain_view.of(
        chip=chip.name,
        chip_facts=chips.carried(chip),
        timesteps=meta.timesteps,
        input_shape=G.in_shape(graph),
        input_levels=meta.input_levels,
        layers=tuple(layers),
        readout=Readout(meta.classes, meta.population),
        lowering=meta.lowering,
        lowering_reason=meta.lowering_reason,
        rounding={e.name: Rounding(**e.rounding.model_dump()) for e in meta.layers if e.rounding},
        precision={
            e.name: Precision(**e.precision.model_dump()) for e in meta.layers if e.precision
        },
        diagnostics=tuple(Diagnostic(*d) for d in meta.diagnostics),
    )
    if meta.placement is None:
        return network
    try:
        return replace(
            network, placement=integer_placement.from_meta(meta.placement, network, chip)
        )
    except ValueError as error:
        raise InputError(
            Problem(
                f"{where}: placement", str(error), "was the file changed by hand? export it again"
            )
        ) from None


def _pool_layer(
    entry: LayerMeta, node: Any, neurons: Any, shape: tuple[int, ...], _chip: chips.Chip
) -> OrPool:
    """An OR pool from its two nodes. Raises ValueError saying what contradicts."""
    if not isinstance(node, nir.SumPool2d) or not isinstance(neurons, nir.Threshold):
        raise ValueError("an OR pool is SumPool2d -> Threshold")
    kernel = G.pair(node.kernel_size)
    if G.pair(node.stride) != kernel or G.pair(node.padding) != (0, 0):
        raise ValueError(f"its windows {kernel} do not tile the plane")
    if np.any(neurons.threshold != 0):
        raise ValueError("the threshold of an OR pool is 0")
    if entry.version > 1:
        raise ValueError(
            "an OR pool has no current, is not recurrent, resets to zero and has no weights "
            "to calibrate or to store in another precision"
        )
    return OrPool(entry.name, entry.weights, shape, neurons.threshold.shape, kernel)


def _lif_of_nodes(
    entry: LayerMeta, node: Any, neurons: Any, shape: tuple[int, ...], chip: chips.Chip
) -> LifLayer:
    """Synapses and neurons from their two nodes. Raises ValueError saying what contradicts."""
    if not isinstance(node, nir.Conv2d | nir.Affine | nir.Linear):
        raise ValueError(
            f"{entry.weights} is a {type(node).__name__}, not a Conv2d, Affine or Linear"
        )
    weight = _weights(node.weight, f"{entry.weights}.weight", entry)
    bias = np.asarray(getattr(node, "bias", np.zeros(len(weight))), np.float64)
    mant = bias * 2.0 ** (FRACTION_BITS + entry.exp - entry.bias_exp)
    if isinstance(neurons, nir.CubaLIF):
        if bias.any():
            raise ValueError(f"{entry.weights} has a bias; that of a CubaLIF is its v_leak")
        mant = _leaked(neurons, len(weight), entry)
    synapses: Synapses = (
        Conv(weight, *G.conv_geometry(node), int(node.groups))
        if isinstance(node, nir.Conv2d)
        else Dense(weight)
    )
    return _lif_layer(entry, synapses, mant, len(weight), neurons, shape, chip)


def _weights(values: NDArray[Any], what: str, entry: LayerMeta) -> Weights:
    """Weights as the layer's precision holds them. Raises ValueError where it cannot."""
    span = slices.span(entry.weight_precision, entry.weight_bits)
    return _integers(values, what, *span).astype(slices.kind(entry.weight_precision))


def _leaked(neurons: nir.CubaLIF, channels: int, entry: LayerMeta) -> NDArray[np.float64]:
    """The bias mantissa of each channel, from v_leak. Raises ValueError where they differ within one."""
    leak = np.asarray(neurons.v_leak, np.float64)
    if entry.dv == 0 or leak.size % channels:
        raise ValueError(f"dv {entry.dv}, {leak.size} neurons for {channels} channels")
    unit = 2.0 ** (entry.bias_exp - FRACTION_BITS) * (DECAY_ONE / entry.dv)
    mant = np.rint(leak.reshape(channels, -1)[:, 0] / unit)
    bias = mant.reshape(-1, *[1] * (leak.ndim - 1)) * 2.0**entry.bias_exp
    if not np.isfinite(leak).all() or (leak != _leak(bias, entry.dv)).any():
        raise ValueError("v_leak is not a bias, one for each channel")
    return mant


def _with_recurrent(entry: LayerMeta, layer: Layer, found: tuple[str, nir.Linear] | None) -> Layer:
    """``layer`` with its recurrent weights. Raises ValueError saying what contradicts."""
    name, node = found or (None, None)
    if name != entry.recurrent:
        raise ValueError(
            f"is recurrent through {name or 'no node'}, in the metadata through "
            f"{entry.recurrent or 'none'}"
        )
    if node is None or name is None:
        return layer
    own: Any = layer  # a LIF: no other kind has a name for such weights in its metadata
    weight = _weights(node.weight, f"{name}.weight", entry)
    return cast("Layer", replace(own, recurrent=Dense(weight), recurrent_name=name))


def _lif_layer(
    entry: LayerMeta,
    synapses: Synapses,
    mant: NDArray[Any],
    channels: int,
    neurons: Any,
    shape: tuple[int, ...],
    chip: chips.Chip,
) -> LifLayer:
    """The layer with these synapses. Raises ValueError saying what contradicts."""
    kind = nir.CubaLIF if entry.du != FORGETS else nir.LIF if entry.dv else nir.IF
    if not isinstance(neurons, kind):
        raise ValueError(f"is a {type(neurons).__name__}, with du {entry.du} not a {kind.__name__}")
    wrong = slices.contradictions(entry.weight_precision, entry.weight_bits, entry.exp)
    if wrong:
        raise ValueError(f"weight precision {'; '.join(wrong)}")
    if kind is nir.IF:
        expected = {"r": 2.0**entry.exp / G.DT, "v_reset": 0.0}
    elif entry.dv == 0:
        raise ValueError("dv 0: neurons with a current have a dv from 1")
    else:
        tau, r = _membrane(entry.dv, entry.exp)
        expected = {"tau": tau, "r": r, "v_leak": 0.0, "v_reset": 0.0}
    if kind is nir.CubaLIF:
        tau_syn, w_in = _current(entry.du)
        expected = {"tau_syn": tau_syn, "w_in": w_in, "tau_mem": tau, "r": r, "v_reset": 0.0}
    for key, value in expected.items():
        if np.any(np.asarray(getattr(neurons, key)) != value):
            raise ValueError(
                f"{key} contradicts the metadata (du {entry.du}, dv {entry.dv}, exp {entry.exp})"
            )
    if entry.reset == "subtract" and not chip.neurons.subtract_reset.value:
        raise ValueError(f"reset {entry.reset!r}: a neuron of {chip.name} resets to zero")
    vth = _integers(neurons.v_threshold, "v_threshold", *chip.threshold_range)
    scale = np.array(entry.scale, np.float64)
    if scale.shape != (channels,) or not (np.isfinite(scale) & (scale > 0)).all():
        raise ValueError(f"{scale.size} scales for {channels} channels, or one is not positive")
    return LifLayer(
        name=entry.name,
        synapse_name=entry.weights,
        synapses=synapses,
        input_shape=shape,
        shape=vth.shape,
        bias_mant=_integers(mant, "bias", *chip.bias_mant_range).astype(np.int32),
        vth=vth.astype(np.int32),
        scale=scale,
        weight_bits=entry.weight_bits,
        exp=entry.exp,
        bias_exp=entry.bias_exp,
        du=entry.du,
        dv=entry.dv,
        reset=entry.reset,
        weight_precision=entry.weight_precision,
    )


def _folded_layer(
    entry: LayerMeta,
    node: Any,
    factor: Any,
    neurons: Any,
    shape: tuple[int, ...],
    chip: chips.Chip,
) -> LifLayer:
    """A folded convolution. Raises ValueError unless its connections are the nodes', rounded."""
    if not isinstance(node, nir.Conv2d) or not isinstance(factor, nir.Scale):
        raise ValueError("a folded convolution is Conv2d -> Scale -> LIF")
    if entry.du != FORGETS:
        raise ValueError(f"du {entry.du}: the neurons of a folded convolution have no current")
    kernel = Kernel(
        np.asarray(node.weight, np.float64),
        np.asarray(node.bias, np.float64),
        *G.conv_geometry(node),
        int(node.groups),
    )
    if (
        single.connections(np.ones(kernel.weight.shape, np.bool_), shape, kernel.geometry)
        > single.MOST
    ):
        raise ValueError(f"more than {single.MOST:,} single connections")
    size = math.prod(factor.scale.shape), math.prod(shape)
    arrays = _triplets(node, size, entry)
    synapses = Sparse(arrays["row"], arrays["column"], arrays["weight"], size, kernel)
    layer = _lif_layer(entry, synapses, arrays["bias_mant"], size[0], neurons, shape, chip)
    scale = layer.scale.reshape(layer.shape)
    if layer.shape != factor.scale.shape or not np.allclose(
        factor.scale * scale * 2.0**layer.exp, 1, rtol=1e-9, atol=0
    ):
        raise ValueError(f"{_scale_name(entry.weights)} contradicts the scales in the metadata")
    single.check(layer, synapses)
    return layer


def _triplets(node: nir.Conv2d, size: tuple[int, int], entry: LayerMeta) -> dict[str, Any]:
    """The arrays in the metadata of a folded convolution's node, within their ranges."""
    qmax = slices.largest(entry.weight_precision, entry.weight_bits)
    ranges: dict[str, tuple[npt.DTypeLike, int, int]] = {
        "row": (np.int32, 0, size[0] - 1),
        "column": (np.int32, 0, size[1] - 1),
        "weight": (slices.kind(entry.weight_precision), -qmax, qmax),
        "bias_mant": (np.int32, -(1 << 31), (1 << 31) - 1),
    }
    found: dict[str, Any] = {}
    for key, (dtype, low, high) in ranges.items():
        array = node.metadata.get(key)
        if not isinstance(array, np.ndarray) or array.ndim != 1:
            raise ValueError(f"{entry.weights} has no array {key} of single connections")
        found[key] = _integers(array, f"{entry.weights}.{key}", low, high).astype(dtype)
    if not len(found["row"]) == len(found["column"]) == len(found["weight"]):
        raise ValueError(f"{entry.weights}: row, column and weight differ in length")
    if len(found["bias_mant"]) != size[0]:
        raise ValueError(f"{len(found['bias_mant'])} biases for {size[0]} neurons")
    place = found["row"].astype(np.int64) * size[1] + found["column"]
    if (np.diff(place) <= 0).any() or (found["weight"] == 0).any():
        raise ValueError(f"{entry.weights}: connections out of order, twice, or zero")
    return found


def _integers(values: NDArray[Any], what: str, low: int, high: int) -> NDArray[np.int64]:
    """``values`` as integers. Raises ValueError unless all are, within low..high."""
    x = np.asarray(values, np.float64)
    if not np.isfinite(x).all() or (x != np.rint(x)).any():
        raise ValueError(f"{what} holds values that are not integers")
    if x.size and (x.min() < low or x.max() > high):
        raise ValueError(f"{what} spans {x.min():.0f}..{x.max():.0f}, outside {low}..{high}")
    return x.astype(np.int64)


@dataclass(frozen=True)
class Form:
    """How one kind of population stands in the file.

    ``nodes`` and ``meta`` write a layer; ``read`` gives it back from (its entry in the metadata, the nodes
    of its weights and its neurons, the shape before it, chip), with ValueError for what contradicts.
    """

    nodes: Callable[[Any], dict[str, nir.ir.NIRNode]]
    meta: Callable[[Any, IntegerNetwork], LayerMeta]
    read: Callable[[LayerMeta, Any, Any, tuple[int, ...], chips.Chip], Layer]


WHO = "model.nir"
POPULATIONS: dict[str, Form] = {
    "lif": Form(_lif_nodes, _lif_meta, _lif_of_nodes),
    "or_pool": Form(_pool_nodes, _pool_meta, _pool_layer),
}
SYNAPSES: dict[str, Callable[[LifLayer, Any], dict[str, nir.ir.NIRNode]]] = {
    "conv": _conv_nodes,
    "dense": _dense_nodes,
    "sparse": _folded_nodes,
}


def read_network(path: Path) -> IntegerNetwork:
    """The integer network in ``path``. Raises InputError naming everything that is off."""
    return from_nir(read(path), str(path))
