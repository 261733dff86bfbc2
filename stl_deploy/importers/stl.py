"""Importer of STL-SNN checkpoints: our ``model.pt`` and the official code's bare state_dict."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import nir
import numpy as np
import torch
from numpy.typing import NDArray

from stl_deploy.errors import InputError, Problem
from stl_deploy.formats.checkpoint import FORMAT, read_tensors
from stl_deploy.formats.state import arrays, unwrapped
from stl_deploy.importers import stl_integers, stl_neurons
from stl_deploy.importers.given import Checkpoint, File, Given, Model, Params
from stl_deploy.ir import arch as A
from stl_deploy.ir import arch_neurons
from stl_deploy.ir import nir_graph as G
from stl_deploy.ir.notes import Diagnostic
from stl_deploy.ir.read_as import Origin, Property
from stl_deploy.lower.graph import lower


def read(
    path: Path,
    tau: float | None = None,
    timesteps: int | None = None,
    classes: int | None = None,
    raster: Path | None = None,
) -> Checkpoint:
    """Read ``path``. Raises InputError naming every problem of the file at once.

    ``tau``, ``timesteps`` and ``classes`` complete an official state_dict, which stores none of
    them (defaults 0.5, that of ``raster`` or 4, and 10); our own checkpoints hold them, and a contradiction
    is an error.
    """
    if tau is not None and not 0 <= tau < 1:
        raise InputError(Problem("--tau", f"{tau} is not in 0 <= tau < 1"))
    data = read_tensors(path)
    origin: dict[Property, Origin] = {}
    notes: tuple[Diagnostic, ...] = ()
    if "format" in data or "arch" in data:
        if data.get("format") != FORMAT:
            raise InputError(
                Problem(
                    str(path),
                    f"has format {data.get('format')!r}; this version reads {FORMAT!r}",
                    "install the stl-deploy version that wrote it",
                )
            )
        architecture = A.Architecture.from_dict(data.get("arch"), f"{path}: arch")
        integers = architecture.quantized is not None
        params = arrays(path, data.get("state_dict"), integers)
        _refuse_contradictions(path, architecture, tau, timesteps, classes)
    else:
        given = Given(timesteps=timesteps, raster=raster)
        origin = {
            "tau": "assumed" if tau is None else "option",
            "timesteps": given.steps_from,
        }
        state = unwrapped(path, data)
        notes = state.notes(str(path))
        params = arrays(path, state.tensors)
        architecture = infer_architecture(
            path, params, 0.5 if tau is None else tau, given.steps or 4, classes or 10
        )
    _check_params(path, architecture, params)
    stl_integers.check(path, architecture, params)
    return Checkpoint(architecture, params, origin, notes)


def read_model(file: File) -> Model:
    """The checkpoint and its lowered graph. Raises InputError and LoweringError with every problem."""
    given = file.given
    checkpoint = read(file.path, given.tau, given.timesteps, given.classes, given.raster)
    graph = to_graph(checkpoint.arch, checkpoint.params, checkpoint.origin)
    return Model(lower(graph), checkpoint, notes=checkpoint.notes)


def params_of(model: torch.nn.Module) -> Params:
    """Parameters and running statistics of a model as arrays. Raises InputError for NaN and the like."""
    if not hasattr(model, "arch"):
        raise InputError(
            Problem(
                type(model).__name__,
                "is not an STLNet (stl_deploy.models.net)",
                "give from_torch a sample of its input too, if its neurons are snnTorch's; or save its "
                "state_dict and load that, if its layers are named as the official code's",
            )
        )
    return arrays(Path(type(model).__name__), dict(model.state_dict()))


def to_graph(
    architecture: A.Architecture, params: Params, origin: Mapping[Property, Origin] | None = None
) -> nir.NIRGraph:
    """The float graph of a network, before it is lowered. Values keep the checkpoint's precision.

    Integers become what they stand for, multiples of their unit, in float64. ``origin`` says who stated
    what a checkpoint may leave open.
    """
    trained = None
    if architecture.quantized is not None:
        trained, params = stl_integers.in_units(architecture, params)
    nodes, edges = _nodes(architecture, params, trained is None)
    read = None if architecture.readout == "votes" else G.Read(rule=architecture.readout)
    origin = origin or {}
    meta = G.FloatMeta(
        timesteps=architecture.timesteps,
        input_levels=architecture.input.levels,
        classes=architecture.classes,
        population=architecture.population,
        version=G.NEWEST,
        trained=trained,
        readout=read,
        read_as=tuple(
            stl_neurons.read_as(
                layer.name, layer, nodes[layer.name], architecture.timesteps, origin
            )
            for layer in architecture.layers
            if layer.kind == "lif"
        ),
    )
    return nir.NIRGraph(nodes, edges, metadata={G.KEY: meta.text()}, type_check=False)


def _nodes(
    architecture: A.Architecture, params: Params, scaled: bool
) -> tuple[dict[str, nir.ir.NIRNode], list[tuple[str, str]]]:
    """Nodes and edges from input to output. ``scaled``: graded inputs are read as x / levels."""
    shape, levels = architecture.input.shape, architecture.input.levels
    nodes: dict[str, nir.ir.NIRNode] = {"input": nir.Input(input_type={"input": np.array(shape)})}
    edges: list[tuple[str, str]] = []
    shapes, given = {A.INPUT: shape} | architecture.shapes, architecture.given
    reads, split = architecture.reads, architecture.split
    leaving = {name: [name] for name in shapes} | {
        A.INPUT: ["input"]
    }  # the nodes of a layer's values
    if scaled and levels > 1:
        leaving[A.INPUT] = ["input_scale"]
        nodes["input_scale"] = G.InputScale(shape, shape, levels)
        edges.append(("input", "input_scale"))
    for layer in architecture.layers:
        name, arrives = layer.name, given[layer.name]
        sources = [node for read in reads[name] for node in leaving[read]]
        if layer.joins:
            parts = [shapes[read] for read in reads[name]]
            sources = _parts(nodes, edges, layer, sources, parts, shapes[name])
        if f"{name}.one" in params:  # spikes that are added to currents in a network of integers
            more, ways, sources = stl_integers.weighed(architecture, name, sources, params)
            nodes |= more
            edges += ways
        if layer.kind == "linear" and len(arrives) > 1:
            flat = f"{name}_flatten"
            nodes[flat] = G.flatten(arrives)
            edges += [(source, flat) for source in sources]
            sources, arrives = [flat], (math.prod(arrives),)
        made = {name: NODES[layer.kind](layer, arrives, shapes[name], params)}
        if name in split:
            made = stl_neurons.two_currents(name, made[name])
        leaving[name] = list(made)
        nodes |= made
        edges += [(source, node) for node in made for source in sources]
        if layer.kind == "lif":
            back, ways = stl_neurons.ways_back(name, layer, shapes[name], of_layer(params, name))
            nodes |= back
            edges += ways
    nodes["output"] = nir.Output(output_type={"output": np.array(shapes[name])})
    return nodes, [*edges, (name, "output")]


def _parts(
    nodes: dict[str, nir.ir.NIRNode],
    edges: list[tuple[str, str]],
    layer: A.Layer,
    sources: list[str],
    shapes: list[A.Shape],
    out: A.Shape,
) -> list[str]:
    """The nodes that a layer adds up, made where the sources are not: parts of a concatenation among
    zeros, and what is added up again, since an edge counts once. Layers have no dots in their names."""
    first = 0
    parts = []
    for i, (source, shape) in enumerate(zip(sources, shapes, strict=True)):
        node: nir.ir.NIRNode | None = None
        if layer.kind == "concat":
            node = G.Place(shape, out, first)
        elif source in sources[:i]:
            node = G.Dropout(shape, shape)
        if node is not None:
            part = f"{layer.name}.part{i}"
            nodes[part] = node
            edges.append((source, part))
            source = part
        parts.append(source)
        first += shape[0]
    return parts


def of_layer(params: Params, name: str) -> Params:
    """The parameters of layer ``name``, by their names within it."""
    prefix = f"{name}."
    return {k.removeprefix(prefix): v for k, v in params.items() if k.startswith(prefix)}


def _conv(layer: A.Conv, shape: A.Shape, _out: A.Shape, params: Params) -> nir.ir.NIRNode:
    bias = params.get(f"{layer.name}.bias", np.zeros(layer.channels, np.float32))
    weight = params[f"{layer.name}.weight"]
    return G.conv2d(weight, bias, shape, layer.stride, layer.padding, layer.groups)


def _linear(layer: A.Linear, _shape: A.Shape, _out: A.Shape, params: Params) -> nir.ir.NIRNode:
    # NIR knows no groups here. What lies between them are zeros, which no chip stores.
    weight = ungrouped(params[f"{layer.name}.weight"], layer.groups)
    if layer.inhibitory:
        weight = stl_neurons.signed(weight, layer.inhibitory)
    if layer.bias:
        return nir.Affine(weight=weight, bias=params[f"{layer.name}.bias"])
    return nir.Linear(weight=weight)


def _batchnorm(layer: A.BatchNorm, shape: A.Shape, out: A.Shape, params: Params) -> nir.ir.NIRNode:
    gamma, beta, mean, var = (params[f"{layer.name}.{key}"] for key in STATISTICS)
    return G.BatchNorm(shape, out, gamma, beta, mean, var, layer.eps)


def _lif(layer: A.Lif, _shape: A.Shape, out: A.Shape, params: Params) -> nir.ir.NIRNode:
    return stl_neurons.node(layer, out, of_layer(params, layer.name))


def _max_pool(layer: A.MaxPool, shape: A.Shape, out: A.Shape, _params: Params) -> nir.ir.NIRNode:
    return G.MaxPool2d(shape, out, layer.kernel)


def _avg_pool(layer: A.AvgPool, _shape: A.Shape, _out: A.Shape, _params: Params) -> nir.ir.NIRNode:
    kernel = np.array(layer.kernel)
    return nir.AvgPool2d(kernel_size=kernel, stride=kernel, padding=np.array((0, 0)))


def _sum(
    _layer: A.Add | A.Concat, _shape: A.Shape, out: A.Shape, _params: Params
) -> nir.ir.NIRNode:
    return G.Dropout(out, out)  # several in-edges add up


def _dropout(_layer: A.Dropout, shape: A.Shape, out: A.Shape, _params: Params) -> nir.ir.NIRNode:
    return G.Dropout(shape, out)


WEIGHTED = ("conv", "linear")
STATISTICS = ("weight", "bias", "running_mean", "running_var")  # of a BatchNorm
# The node of a layer, by its kind: of the layer, its input and output shape, and all parameters.
NODES: dict[str, Callable[[Any, A.Shape, A.Shape, Params], nir.ir.NIRNode]] = {
    "conv": _conv,
    "linear": _linear,
    "batchnorm": _batchnorm,
    "lif": _lif,
    "maxpool": _max_pool,
    "dropout": _dropout,
    "avgpool": _avg_pool,
    "add": _sum,
    "concat": _sum,
}
# The parameters of a layer that has some, by its kind: of the layer, its input and output shape, and the
# time steps.
SHAPES: dict[str, Callable[[Any, A.Shape, A.Shape, int], dict[str, A.Shape]]] = {
    "conv": lambda layer, shape, out, _steps: {
        "weight": (layer.channels, shape[0] // layer.groups, *layer.kernel),
        **({"bias": out[:1]} if layer.bias else {}),
    },
    "linear": lambda layer, shape, out, _steps: {
        "weight": (layer.features, math.prod(shape) // layer.groups),
        **({"bias": out[:1]} if layer.bias else {}),
    },
    "batchnorm": lambda _layer, shape, _out, _steps: dict.fromkeys(STATISTICS, shape[:1]),
    "lif": lambda layer, _shape, out, steps: arch_neurons.parameters(layer, out, steps),
}


def ungrouped(weight: NDArray[Any], groups: int) -> NDArray[Any]:
    """The weight [O, I, ...] without groups of one [O, I/groups, ...] with them: zeros between."""
    if groups == 1:
        return weight
    blocks = np.split(weight, groups)
    rows, columns = blocks[0].shape[:2]
    full = np.zeros((groups * rows, groups * columns, *weight.shape[2:]), weight.dtype)
    for g, block in enumerate(blocks):
        full[g * rows : (g + 1) * rows, g * columns : (g + 1) * columns] = block
    return full


def grouped(weight: NDArray[Any], groups: int) -> NDArray[Any]:
    """What lies on the diagonal of ``weight`` [O, I, ...]: [O, I/groups, ...]. Undoes ``ungrouped``."""
    rows = np.split(weight, groups)
    return np.concatenate([np.split(row, groups, axis=1)[g] for g, row in enumerate(rows)])


def expected_shapes(architecture: A.Architecture) -> dict[str, A.Shape]:
    """Name and shape of every parameter that a network of this description needs."""
    given, shapes = architecture.given, architecture.shapes
    passed = architecture.passed if architecture.quantized is not None else ()
    expected: dict[str, A.Shape] = {}
    for layer in architecture.layers:
        arrives, out = given[layer.name], shapes[layer.name]
        if layer.parameters:
            own = SHAPES[layer.kind](layer, arrives, out, architecture.timesteps)
            expected |= {f"{layer.name}.{key}": value for key, value in own.items()}
        if layer.kind == "lif" and architecture.quantized is not None:
            expected[f"{layer.name}.scale"] = out[:1]
        if layer.name in passed:
            expected[f"{layer.name}.one"] = out[:1]
    return expected


def infer_architecture(
    path: Path, params: Params, tau: float, timesteps: int, classes: int
) -> A.Architecture:
    """The architecture behind an official state_dict, from names and shapes alone.

    Layers are conv<i> (same padding) - bn<i> - lif<i> - pool, then fc<j> - lif; a pool's size
    follows from the shape of the next layer's thresholds or weights.
    """
    convs, fcs = (_count(params, prefix) for prefix in ("conv", "fc"))
    if fcs == 0:
        raise InputError(
            Problem(
                str(path),
                "is neither a stl-deploy checkpoint nor an official STL-SNN state_dict: no "
                f"fc1.weight among {', '.join(sorted(params)[:6])}",
                "name the class that the file belongs to: --model-class MODULE:NAME, with --sample-shape; "
                "docs/official.md lists the files that need none",
            )
        )
    needed = (
        [f"conv{i}.weight" for i in range(1, convs + 1)]
        + [f"fc{i}.weight" for i in range(1, fcs + 1)]
        + [f"lif{i}.thresh" for i in range(1, convs + fcs + 1)]
    )
    problems = [Problem(f"{path}: {key}", "is missing") for key in needed if key not in params]
    wrong = [
        Problem(f"{path}: {name}{i}.weight", f"has shape {params[key].shape}, not rank {rank}")
        for name, n, rank in (("conv", convs, 4), ("fc", fcs, 2))
        for i in range(1, n + 1)
        if (key := f"{name}{i}.weight") in params and params[key].ndim != rank
    ]
    wrong += [
        Problem(
            f"{path}: lif{i}.thresh",
            f"has shape {thresholds.shape}, not (C, H, W), a threshold for each neuron",
            f"save lif{i}.thresh.expand(C, H, W) with the plane that conv{i} gives",
        )
        for i in range(1, convs + 1)
        if (thresholds := params.get(f"lif{i}.thresh")) is not None and thresholds.ndim != 3
    ]
    wrong += [
        Problem(
            f"{path}: lif{convs + j}.thresh",
            f"has shape {thresholds.shape}, not {(rows,)}, a threshold for each neuron",
            f"save lif{convs + j}.thresh.expand({rows})",
        )
        for j in range(1, fcs + 1)
        if (thresholds := params.get(f"lif{convs + j}.thresh")) is not None
        and (weights := params.get(f"fc{j}.weight")) is not None
        and thresholds.shape != (rows := len(weights),)
    ]
    if problems or wrong:
        raise InputError(problems + wrong)
    layers: list[dict[str, Any]] = []
    for i in range(1, convs + 1):
        layers += _conv_block(path, params, i, convs, tau)
    for j in range(1, fcs + 1):
        features = params[f"fc{j}.weight"].shape[0]
        bias = f"fc{j}.bias" in params
        layers += [
            {"kind": "linear", "name": f"fc{j}", "features": features, "bias": bias},
            {"kind": "lif", "name": f"lif{convs + j}", "tau": tau},
        ]
    out = params[f"fc{fcs}.weight"].shape[0]
    if out % classes:
        raise InputError(
            Problem(
                f"{path}: fc{fcs}.weight",
                f"has {out} rows, which do not divide into {classes} classes",
                "give the number of classes with --classes",
            )
        )
    first = params["conv1.weight"] if convs else params["fc1.weight"]
    shape = (first.shape[1], *params["lif1.thresh"].shape[1:]) if convs else (first.shape[1],)
    return A.Architecture.from_dict(
        {
            "input": {"shape": shape},
            "layers": layers,
            "population": out // classes,
            "timesteps": timesteps,
        },
        f"{path}: inferred architecture",
    )


def _conv_block(path: Path, params: Params, i: int, convs: int, tau: float) -> list[dict[str, Any]]:
    channels, _, kh, kw = params[f"conv{i}.weight"].shape
    if kh % 2 == 0 or kw % 2 == 0:
        raise InputError(
            Problem(
                f"{path}: conv{i}.weight",
                f"has a {kh}x{kw} kernel; official networks use odd ones with same padding",
                "save the model with stl_deploy.save_checkpoint, which stores the padding",
            )
        )
    block: list[dict[str, Any]] = [
        {
            "kind": "conv",
            "name": f"conv{i}",
            "channels": channels,
            "kernel": (kh, kw),
            "padding": (kh // 2, kw // 2),
            "bias": f"conv{i}.bias" in params,
        }
    ]
    if _has_batchnorm(params):
        block.append({"kind": "batchnorm", "name": f"bn{i}"})
    block.append({"kind": "lif", "name": f"lif{i}", "tau": tau})
    here = params[f"lif{i}.thresh"].shape[1:]
    if i < convs:
        after: tuple[int, ...] = params[f"lif{i + 1}.thresh"].shape[1:]
        if 0 in after or here[0] % after[0] or here[1] % after[1]:
            raise InputError(
                Problem(
                    f"{path}: lif{i + 1}.thresh",
                    f"has a plane {after}; no pooling of the {here} before it gives that",
                )
            )
        kernel = (here[0] // after[0], here[1] // after[1])
    else:
        pixels = params["fc1.weight"].shape[1] / channels
        k = max(1, round(math.sqrt(here[0] * here[1] / max(pixels, 1e-9))))
        kernel = (k, k)
        after = (here[0] // k, here[1] // k)
        if math.prod(after) != pixels:
            raise InputError(
                Problem(
                    f"{path}: fc1.weight",
                    f"has {params['fc1.weight'].shape[1]} columns; no square pooling of lif{i} "
                    f"{(channels, *here)} gives that many",
                    f"the plane is read from lif{i}.thresh; if that is one per channel, save "
                    f"lif{i}.thresh.expand({channels}, H, W)",
                )
            )
    if kernel != (1, 1):
        block.append({"kind": "maxpool", "name": f"pool{i}", "kernel": kernel})
    return block


def _has_batchnorm(params: Params) -> bool:
    return any(key.startswith("bn") for key in params)


def _count(params: Params, prefix: str) -> int:
    """The largest number behind ``prefix`` among the weights."""
    found = (re.fullmatch(rf"{prefix}(\d{{1,2}})\.weight", key) for key in params)
    return max((int(m[1]) for m in found if m), default=0)


def _refuse_contradictions(
    path: Path,
    architecture: A.Architecture,
    tau: float | None,
    timesteps: int | None,
    classes: int | None,
) -> None:
    """Our checkpoints store what these options say of others."""
    taus = {layer.tau for layer in architecture.layers if layer.kind == "lif"}
    problems = [
        Problem(
            option,
            f"{given}, but {path} says {', '.join(map(str, sorted(stored)))}",
            "omit the option: the checkpoint stores it",
        )
        for option, given, stored in (
            ("--tau", tau, taus),
            ("--timesteps", timesteps, {architecture.timesteps}),
            ("--classes", classes, {architecture.classes}),
        )
        if given is not None and stored != {given}
    ]
    if problems:
        raise InputError(problems)


def _check_params(path: Path, architecture: A.Architecture, params: Params) -> None:
    expected = expected_shapes(architecture)
    problems = [
        Problem(f"{path}: {key}", f"is missing; expected shape {shape}")
        for key, shape in expected.items()
        if key not in params
    ]
    for key, value in params.items():
        if key not in expected:
            problems.append(
                Problem(f"{path}: {key}", f"of shape {value.shape} belongs to no layer")
            )
        elif value.shape != expected[key]:
            problems.append(
                Problem(f"{path}: {key}", f"has shape {value.shape}, expected {expected[key]}")
            )
    if problems:
        raise InputError(problems)
