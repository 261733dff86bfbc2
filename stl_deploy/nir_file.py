"""The integer network as a NIR graph and back; NIR files read as untrusted data.

Units in the file (dt = 1e-4): ``weight`` int8; ``v_threshold`` int32 = vth behind NIR's strict >;
``v_leak`` = ``v_reset`` = 0; ``tau`` = dt*4096/dv and ``r`` = (4096/dv)*2^exp, so that NIR's equation
gives v = v*(4096-dv)/4096 + 2^exp * I; ``bias`` = (mant << bias_exp) / 2^(6+exp). An OR pool is
SumPool2d -> Threshold(0). What NIR cannot say stands in one JSON string (``IntegerMeta``). The loader
rebuilds the integers from both and refuses what is not an integer or contradicts.
"""

from __future__ import annotations

import json
import math
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import h5py
import nir
import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from stl_deploy import chip as chips
from stl_deploy import graph as G
from stl_deploy import placement as place
from stl_deploy.errors import InputError, LoweringError, Problem
from stl_deploy.files import atomic, check_readable
from stl_deploy.network import (
    Conv,
    Dense,
    Diagnostic,
    IntegerNetwork,
    Layer,
    LayerPlacement,
    LifLayer,
    Limit,
    OrPool,
    Placement,
    Precision,
    Readout,
)

MAX_BYTES = 4 << 30
MAX_OBJECTS = 20_000
FORMAT = "stl-deploy/integer"


class _Meta(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class PrecisionMeta(_Meta):
    """See ``network.Precision``."""

    mode: Literal["proven", "checked"]
    effective_bits: float
    worst_sum: int
    limit: int | None


class LayerMeta(_Meta):
    """What NIR cannot say of a layer; ``weights`` names its weight (or SumPool2d) node."""

    name: str
    kind: Literal["lif", "or_pool"]
    weights: str
    du: int = Field(default=4095, ge=0, le=4095)
    dv: int = Field(default=4095, ge=0, le=4095)
    exp: int = Field(default=0, ge=0, le=7)
    bias_exp: int = Field(default=6, ge=0, le=7)
    weight_bits: int = Field(default=8, ge=2, le=8)
    scale: list[float] = Field(default_factory=list)
    precision: PrecisionMeta | None = None


class LayerPlacementMeta(_Meta):
    """See ``network.LayerPlacement``."""

    name: str
    first_core: int
    blocks: list[int] = Field(min_length=1)
    bound_by: Limit | None
    fullest: dict[Limit, int]
    total: dict[Limit, int]


class PlacementMeta(_Meta):
    """See ``network.Placement``; its chip is the network's."""

    cores: int
    tiles: int
    chips: int
    layers: list[LayerPlacementMeta]


class IntegerMeta(_Meta):
    """The JSON string of ``model.nir``."""

    format: Literal["stl-deploy/integer"] = "stl-deploy/integer"
    version: Literal[1] = 1
    chip: str
    timesteps: int = Field(ge=1, le=4096)
    reset: Literal["same-step, to zero"] = "same-step, to zero"
    compare: Literal[">"] = ">"
    input_levels: int = Field(ge=1, le=255)
    classes: int = Field(ge=1)
    population: int = Field(ge=1)
    readout: Literal["mean over population and time"] = "mean over population and time"
    lowering: Literal["native"] = "native"
    layers: list[LayerMeta]
    placement: PlacementMeta | None = None
    diagnostics: list[tuple[str, str, str]] = Field(default_factory=list)


def to_nir(network: IntegerNetwork) -> nir.NIRGraph:
    """The NIR graph that carries ``network``."""
    nodes: dict[str, nir.ir.NIRNode] = {}
    metas: list[LayerMeta] = []
    for layer in network.layers:
        nodes |= _nodes(layer)
        metas.append(_layer_meta(layer, network.precision.get(layer.name)))
    meta = IntegerMeta(
        chip=network.chip,
        timesteps=network.timesteps,
        input_levels=network.input_levels,
        classes=network.readout.classes,
        population=network.readout.population,
        lowering=network.lowering,
        layers=metas,
        placement=None if network.placement is None else _placement_meta(network.placement),
        diagnostics=[(d.where, d.what, d.remedy) for d in network.diagnostics],
    )
    return G.chain_graph(
        nodes, network.input_shape, network.layers[-1].shape, meta.model_dump_json()
    )


def _nodes(layer: Layer) -> dict[str, nir.ir.NIRNode]:
    if isinstance(layer, OrPool):
        return {
            layer.synapse_name: G.sum_pool(layer.kernel, layer.input_shape),
            layer.name: nir.Threshold(threshold=np.zeros(layer.shape, np.int32)),
        }
    out: dict[str, nir.ir.NIRNode] = {}
    bias = layer.bias.reshape(-1) / 2.0 ** (6 + layer.exp)
    synapses = layer.synapses
    if isinstance(synapses, Conv):
        out[layer.synapse_name] = G.conv2d(
            synapses.weight,
            bias,
            layer.input_shape,
            synapses.stride,
            synapses.padding,
            synapses.groups,
            synapses.dilation,
        )
    else:
        if len(layer.input_shape) > 1:
            out[f"{layer.synapse_name}_flatten"] = G.flatten(layer.input_shape)
        out[layer.synapse_name] = (
            nir.Affine(weight=synapses.weight, bias=bias)
            if layer.bias_mant.any()
            else nir.Linear(weight=synapses.weight)
        )
    gain = 4096 / layer.dv
    out[layer.name] = G.lif(layer.vth, tau=G.DT * gain, r=gain * 2.0**layer.exp)
    return out


def _layer_meta(layer: Layer, precision: Precision | None) -> LayerMeta:
    if isinstance(layer, OrPool):
        return LayerMeta(name=layer.name, kind="or_pool", weights=layer.synapse_name)
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
    )


def _placement_meta(placement: Placement) -> PlacementMeta:
    return PlacementMeta(
        cores=placement.cores,
        tiles=placement.tiles,
        chips=placement.chips,
        layers=[_placed_meta(name, placed) for name, placed in placement.layers.items()],
    )


def _placed_meta(name: str, placed: LayerPlacement) -> LayerPlacementMeta:
    return LayerPlacementMeta(
        name=name,
        first_core=placed.first_core,
        blocks=list(placed.blocks),
        bound_by=placed.bound_by,
        fullest=placed.fullest,
        total=placed.total,
    )


def from_nir(graph: nir.NIRGraph, where: str = "graph") -> IntegerNetwork:
    """Rebuild the integer network. Raises InputError naming everything that is off."""
    meta = _integer_meta(graph, where)
    if meta.chip not in chips.names():
        raise InputError(
            Problem(f"{where}: chip", f"{meta.chip!r} is not one of {', '.join(chips.names())}")
        )
    chip = chips.load(meta.chip)
    problems: list[Problem] = []
    layers: list[Layer] = []
    try:
        G.verify(graph)
        chain = G.inner(graph)
    except LoweringError as error:
        raise InputError([Problem(f"{where}: {p.where}", p.what) for p in error.problems]) from None
    shape = G.in_shape(graph)
    used: set[str] = set()
    for entry in meta.layers:
        node, neurons = chain.get(entry.weights), chain.get(entry.name)
        flat = chain.get(f"{entry.weights}_flatten")
        used |= {entry.weights, entry.name} | ({f"{entry.weights}_flatten"} if flat else set())
        try:
            layer = _layer(entry, node, neurons, shape, chip)
        except ValueError as error:
            problems.append(Problem(f"{where}: {entry.name}", str(error)))
            continue
        layers.append(layer)
        shape = layer.shape
    for name in chain:
        if name not in used:
            problems.append(Problem(f"{where}: {name}", "is not described in the metadata"))
    expected = [n for e in meta.layers for n in (e.weights, e.name)]
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
    network = IntegerNetwork(
        chip=meta.chip,
        timesteps=meta.timesteps,
        input_shape=G.in_shape(graph),
        input_levels=meta.input_levels,
        layers=tuple(layers),
        readout=Readout(meta.classes, meta.population),
        lowering=meta.lowering,
        precision={
            e.name: Precision(**e.precision.model_dump()) for e in meta.layers if e.precision
        },
        diagnostics=tuple(Diagnostic(*d) for d in meta.diagnostics),
    )
    if meta.placement is None:
        return network
    try:
        return replace(network, placement=_placement(meta.placement, network, chip))
    except ValueError as error:
        raise InputError(
            Problem(
                f"{where}: placement", str(error), "was the file changed by hand? export it again"
            )
        ) from None


def _placement(meta: PlacementMeta, network: IntegerNetwork, chip: chips.Chip) -> Placement:
    """The placement of the file. Raises ValueError where its blocks make another one."""
    names, expected = [e.name for e in meta.layers], [layer.name for layer in network.layers]
    if names != expected:
        raise ValueError(f"places {', '.join(names)}; the layers are {', '.join(expected)}")
    rebuilt = place.rebuild(network, chip, {e.name: e.blocks for e in meta.layers})
    if rebuilt is None:
        raise ValueError(f"{chip.name} has no cores")
    right = _placement_meta(rebuilt)
    for given, entry in zip(meta.layers, right.layers, strict=True):
        for key, value in entry:
            if getattr(given, key) != value:
                raise ValueError(
                    f"{entry.name}: {key} is {getattr(given, key)}, its blocks make {value}"
                )
    if meta != right:
        raise ValueError(
            f"{meta.cores} cores, {meta.tiles} tiles, {meta.chips} chips; its blocks make "
            f"{right.cores}, {right.tiles}, {right.chips}"
        )
    return rebuilt


def _integer_meta(graph: nir.NIRGraph, where: str) -> IntegerMeta:
    text = graph.metadata.get(G.KEY)
    text = text.decode("utf-8", "replace") if isinstance(text, bytes) else text
    try:
        data = json.loads(text) if isinstance(text, str) else None
    except (ValueError, RecursionError):
        data = None
    if not isinstance(data, dict) or data.get("format") != FORMAT:
        raise InputError(
            Problem(
                where,
                "is not an integer network (no stl-deploy metadata)",
                "give the model.nir that stl-export wrote, not model.float.nir",
            )
        )
    try:
        return IntegerMeta.model_validate(data)
    except ValidationError as error:
        raise InputError(
            [
                Problem(
                    f"{where}: metadata {'.'.join(map(str, e['loc']))}",
                    e["msg"],
                    "written by another version of stl-deploy?",
                )
                for e in error.errors(include_url=False)
            ]
        ) from None


def _layer(
    entry: LayerMeta, node: Any, neurons: Any, shape: tuple[int, ...], chip: chips.Chip
) -> Layer:
    """One layer from its two nodes. Raises ValueError saying what contradicts."""
    if entry.kind == "or_pool":
        if not isinstance(node, nir.SumPool2d) or not isinstance(neurons, nir.Threshold):
            raise ValueError("an OR pool is SumPool2d -> Threshold")
        kernel = G.pair(node.kernel_size)
        if G.pair(node.stride) != kernel or G.pair(node.padding) != (0, 0):
            raise ValueError(f"its windows {kernel} do not tile the plane")
        if np.any(neurons.threshold != 0):
            raise ValueError("the threshold of an OR pool is 0")
        return OrPool(entry.name, entry.weights, shape, neurons.threshold.shape, kernel)
    if not isinstance(neurons, nir.LIF):
        raise ValueError(f"is a {type(neurons).__name__}, not a LIF")
    if not isinstance(node, nir.Conv2d | nir.Affine | nir.Linear):
        raise ValueError(
            f"{entry.weights} is a {type(node).__name__}, not a Conv2d, Affine or Linear"
        )
    if entry.dv == 0 or entry.du != 4095:
        raise ValueError(f"du {entry.du}, dv {entry.dv}: a LIF has du = 4095 and dv from 1")
    gain = 4096 / entry.dv
    for key, value in (
        ("tau", G.DT * gain),
        ("r", gain * 2.0**entry.exp),
        ("v_leak", 0.0),
        ("v_reset", 0.0),
    ):
        if np.any(np.asarray(getattr(neurons, key)) != value):
            raise ValueError(f"{key} contradicts the metadata (dv {entry.dv}, exp {entry.exp})")
    qmax = 2 ** (entry.weight_bits - 1)
    weight = _integers(node.weight, f"{entry.weights}.weight", -qmax, qmax - 1).astype(np.int8)
    bias = getattr(node, "bias", np.zeros(len(weight)))
    mant = np.asarray(bias, np.float64) * 2.0 ** (6 + entry.exp - entry.bias_exp)
    vth = _integers(neurons.v_threshold, "v_threshold", *chip.threshold_range)
    scale = np.array(entry.scale, np.float64)
    if scale.shape != (len(weight),) or not (np.isfinite(scale) & (scale > 0)).all():
        raise ValueError(f"{scale.size} scales for {len(weight)} channels, or one is not positive")
    return LifLayer(
        name=entry.name,
        synapse_name=entry.weights,
        synapses=Conv(weight, *G.conv_geometry(node), int(node.groups))
        if isinstance(node, nir.Conv2d)
        else Dense(weight),
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
    )


def _integers(values: NDArray[Any], what: str, low: int, high: int) -> NDArray[np.int64]:
    """``values`` as integers. Raises ValueError unless all are, within low..high."""
    x = np.asarray(values, np.float64)
    if not np.isfinite(x).all() or (x != np.rint(x)).any():
        raise ValueError(f"{what} holds values that are not integers")
    if x.size and (x.min() < low or x.max() > high):
        raise ValueError(f"{what} spans {x.min():.0f}..{x.max():.0f}, outside {low}..{high}")
    return x.astype(np.int64)


def write(graph: nir.NIRGraph, path: Path) -> None:
    """Write any NIR graph, whole or not at all."""
    with atomic(path) as temporary:
        nir.write(temporary, graph, compression="gzip", compression_opts=1)


def read(path: Path) -> nir.NIRGraph:
    """Read a NIR file as untrusted data. Raises InputError for anything that is not one."""
    check_readable(path, MAX_BYTES)
    try:
        _check_contents(path)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # numpy's, over values that are refused below
            graph = nir.read(path, type_check=False)
    except InputError:
        raise
    except Exception as error:  # whatever h5py and nir raise for broken files
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        raise InputError(
            Problem(str(path), f"is not a NIR file that nir can read ({reason})", "write it again")
        ) from None
    if not isinstance(graph, nir.NIRGraph):
        raise InputError(Problem(str(path), f"holds a {type(graph).__name__}, not a NIRGraph"))
    return graph


def read_network(path: Path) -> IntegerNetwork:
    """The integer network in ``path``. Raises InputError naming everything that is off."""
    return from_nir(read(path), str(path))


def _check_contents(path: Path) -> None:
    """Refuse links, references and sizes that a NIR file has no use for, before anything is read."""
    total = 0
    pending: list[tuple[str, Any]] = []
    with h5py.File(path, "r") as file:
        pending.append(("", file))
        seen = 0
        while pending:
            name, group = pending.pop()
            for key in group:
                seen += 1
                link = group.get(key, getlink=True)
                if not isinstance(link, h5py.HardLink) or seen > MAX_OBJECTS or len(name) > 512:
                    raise InputError(
                        Problem(f"{path}: {name}/{key}", "a link, or too many or too deep objects")
                    )
                item = group[key]
                if isinstance(item, h5py.Group):
                    pending.append((f"{name}/{key}", item))
                    continue
                if item.external or item.is_virtual:
                    raise InputError(Problem(f"{path}: {name}/{key}", "refers to other files"))
                total += item.size * item.dtype.itemsize if item.size else 0
        if total > MAX_BYTES:
            raise InputError(Problem(str(path), f"holds {total} bytes, limit {MAX_BYTES}"))
