"""Systems whose weights are ``.npy`` files: neuronal competition groups, and sleep-based STDP."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nir
import numpy as np

from stl_deploy.errors import InputError, Problem
from stl_deploy.formats import raster as rasters
from stl_deploy.formats.weights_npy import Array, Ncg, Sleep, array, said
from stl_deploy.importers.given import File, Model
from stl_deploy.importers.nir.graph import Options, to_float
from stl_deploy.importers.official.draft import At, Draft, Rules
from stl_deploy.importers.records import record
from stl_deploy.ir.float_neurons import FloatNeurons, decode
from stl_deploy.ir.notes import Diagnostic
from stl_deploy.ir.read_as import Origin, Property, ReadAs
from stl_deploy.ir.synapses import Shape


def read_model(file: File) -> Model:
    """The lowered graph. Raises InputError naming everything that is wrong."""
    told = said(file.path)
    steps: Origin = "file"
    if file.given.timesteps is not None:
        file.agree(timesteps=told.timesteps)
    weights = array(file.path, 2)
    draft = Draft(file.path, {})
    if told.system == "ncg":
        graph, options = _ncg(draft, file, told, weights)
    else:
        graph, options = _sleep(draft, file, told, weights)
    records = tuple(_records(draft, NEURONS[told.system], told.timesteps, steps))
    return Model(to_float(graph, options, records), notes=NOTES[told.system])


NEURONS = {
    "ncg": "IF of a competition group, fires once",
    "sleep-stdp": "CubaLIF with an adaptive threshold",
}
NOTES: dict[str, tuple[Diagnostic, ...]] = {
    "ncg": (),
    "sleep-stdp": (
        Diagnostic(
            "weights",
            "every sample begins at rest, while the system never clears its state between images",
            "give images that follow each other as one sample",
        ),
    ),
}


def _records(draft: Draft, neuron: str, timesteps: int, who: Origin) -> Iterator[ReadAs]:
    origin: dict[Property, Origin] = {"timesteps": who}
    for name in draft.populations:
        yield record(name, decode(draft.nodes[name]), neuron, timesteps, origin)


def _of_each(path: Path, name: str, values: Any, size: int) -> Array:
    """One number for each of ``size`` neurons. Raises InputError for another number of them."""
    given = np.asarray(values, np.float64)
    if given.ndim and len(given) != size:
        what = f"has {len(given)} numbers for {size} neurons"
        raise InputError(Problem(f"{path.with_suffix('.json')}.{name}", what))
    return np.broadcast_to(given, size).copy()


def _ncg(draft: Draft, file: File, told: Ncg, weights: Array) -> tuple[nir.NIRGraph, Options]:
    outputs = len(weights)
    if outputs % told.neurons_per_class:
        what = f"has {outputs} rows, which do not divide into groups of {told.neurons_per_class}"
        raise InputError(Problem(str(file.path), what))
    classes = outputs // told.neurons_per_class
    file.agree(classes=classes)
    at = draft.input(_ncg_shape(file, told, weights), 1, None)
    if told.features is not None:
        kernel = array(file.path.parent / told.features.weights, 4)
        at = _features(draft, file, at, kernel, told.features.threshold, told.features.pool)
    if int(np.prod(at.shape)) != weights.shape[1]:
        what = (
            f"has {weights.shape[1]} columns, and reads {int(np.prod(at.shape))} values {at.shape}"
        )
        raise InputError(Problem(str(file.path), what, "give --input-shape C,H,W"))
    theta = _of_each(file.path, "threshold", told.threshold, outputs)
    at = draft.dense(at, "weights", weights)
    end = draft.spikes(at, "last", Rules(1.0, theta, once=True))
    options = Options(timesteps=told.timesteps, classes=classes, readout="first")
    return draft.graph(end), options


def _features(draft: Draft, file: File, at: At, kernel: Array, theta: float, pool: int) -> At:
    """A convolution without padding, neurons that fire once, and the first spike of each window."""
    at = draft.convolved(at, "features.weights", kernel, 1, (0, 0))
    at = draft.spikes(at, "features", Rules(1.0, theta, reached=True, once=True))
    if at.shape[1] % pool or at.shape[2] % pool:
        what = f"pools windows of {pool} of a plane {at.shape[1:]}, which they do not tile"
        raise InputError(Problem(f"{file.path.with_suffix('.json')}.features.pool", what))
    size = np.array((pool, pool))
    node = nir.SumPool2d(kernel_size=size, stride=size, padding=np.zeros(2, int))
    channels, height, width = at.shape
    at = At(draft.put("pools.windows", node, at), (channels, height // pool, width // pool))
    return draft.spikes(at, "pools", Rules(0.0, 0.5, once=True))


def _ncg_shape(file: File, told: Ncg, weights: Array) -> Shape:
    """The shape of the input: of an image where there are features."""
    shape = file.given.input_shape or told.input_shape
    if shape is None and told.features is None:
        return (weights.shape[1],)
    if shape is None and file.given.raster is not None:
        (found, *others) = rasters.stream(file.given.raster).shapes.values()
        shape = None if others else found[2:]
    if shape is None or len(shape) != 3:
        where = f"{file.path.with_suffix('.json')}.input_shape"
        what = (
            f"is {shape}; features read an image" if shape else "is missing; features read an image"
        )
        raise InputError(Problem(where, what, "give --input-shape C,H,W"))
    return shape


def _sleep(draft: Draft, file: File, told: Sleep, weights: Array) -> tuple[nir.NIRGraph, Options]:
    path, (size, inputs) = file.path, weights.shape
    recurrent = array(path.parent / told.recurrent, 2)
    readout = array(path.parent / told.readout, 2)
    problems = [
        Problem(str(path.parent / name), f"has shape {values.shape}, expected {shape}")
        for name, values, shape in (
            (told.recurrent, recurrent, (size, size)),
            (told.readout, readout, (len(readout), told.excitatory)),
        )
        if values.shape != shape
    ]
    if told.excitatory > size:
        what = f"is {told.excitatory} of {size} neurons"
        problems.append(Problem(f"{path.with_suffix('.json')}.excitatory", what))
    if problems:
        raise InputError(problems)
    file.agree(classes=len(readout))
    at = draft.dense(draft.input((inputs,), 1, None), "weights", weights)
    node = _sleeping(path, told, size).node()
    end = At(draft.put("neurons", node, at), (size,))
    draft.populations[end.node] = Rules(0.0, 0.0)
    draft.edges += [(end.node, "recurrent"), ("recurrent", end.node)]
    draft.nodes["recurrent"] = nir.Linear(weight=recurrent)
    rest = np.zeros((len(readout), size - told.excitatory))
    end = draft.dense(end, "readout", np.concatenate([readout, rest], axis=1))
    return draft.graph(end), Options(timesteps=told.timesteps, readout="votes")


def _sleeping(path: Path, told: Sleep, size: int) -> FloatNeurons:
    """The neurons; potentials count from that of rest."""
    tau_mem, tau_syn, theta, resistance = (
        _of_each(path, name, getattr(told, name), size)
        for name in ("tau_mem", "tau_syn", "threshold", "resistance")
    )
    one = np.ones(size)
    return FloatNeurons(
        kind="cuba",
        step=1 / tau_mem,
        gain=resistance / tau_mem,
        leak=0 * one,
        threshold=theta - told.rest,
        v_reset=one * (told.reset - told.rest),
        current=1 / tau_syn,
        drive=1 / tau_syn,
        floor=one * (told.floor - told.rest),
        adapt=one * told.adapt,
        adapt_step=one / told.tau_adapt,
    )
