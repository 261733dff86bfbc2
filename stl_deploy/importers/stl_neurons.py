"""The neurons of a checkpoint as nodes of a float graph, and the ways on which their spikes come back."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import nir
import numpy as np
from numpy.typing import NDArray

from stl_deploy.importers.records import record
from stl_deploy.ir import arch_neurons
from stl_deploy.ir import nir_graph as G
from stl_deploy.ir import nir_words as words
from stl_deploy.ir.arch_neurons import NeuronRules
from stl_deploy.ir.float_neurons import FloatNeurons, FloatReset, decode
from stl_deploy.ir.read_as import Origin, Property, ReadAs
from stl_deploy.ir.synapses import Shape

Params = Mapping[str, NDArray[Any]]


def node(rules: NeuronRules, shape: Shape, params: Params) -> nir.ir.NIRNode:
    """The node of neurons of ``shape`` with these ``params``, by the names of ``parameters``.

    A threshold is put one float64 lower, as NIR's compare is strict and that of training is not.
    """
    threshold = np.zeros(shape)
    if rules.fires:
        threshold = np.nextafter(params["thresh"].astype(np.float64), -np.inf)
    if rules.plain and rules.tau < 1:
        gain = 1 / (1 - rules.tau)
        return G.lif(threshold, tau=G.DT * gain, r=gain)
    amplify = None
    if rules.gain:
        amplify = params["gain"].astype(np.float64).reshape(-1, *[1] * len(shape))
    reset: FloatReset = "zero" if rules.reset == "constant" else rules.reset
    one = np.ones(shape)
    return FloatNeurons(
        kind="lif" if rules.current is None else "cuba",
        step=one * (1 - rules.tau),
        gain=one,
        leak=0 * one,
        threshold=threshold,
        v_reset=one * rules.v_reset,
        current=one if rules.current is None else one * (1 - rules.current),
        drive=one,
        reset=reset,
        fires=rules.fires,
        reset_current=rules.reset_current,
        hold=rules.hold,
        floor=_all(rules.floor),
        v0=_all(rules.v0 or None),
        adapt=_all(rules.adapt),
        adapt_step=_rest(rules.adapt_keep),
        current2=_rest(rules.current2),
        drive2=_all(None if rules.current2 is None else 1.0),
        amplify=amplify,
    ).node()


def read_as(
    name: str,
    rules: NeuronRules,
    node: nir.ir.NIRNode,
    timesteps: int,
    origin: Mapping[Property, Origin],
) -> ReadAs:
    """How neurons ``name`` with these rules were read, which became ``node``."""
    return record(
        name,
        decode(node),
        f"{'' if rules.current is None else 'Cuba'}{'LIF' if rules.fires else 'LI'}",
        timesteps,
        origin,
        v_reset=rules.v_reset,
        tau=rules.tau if "tau" in origin else None,
    )


def ways_back(
    name: str, rules: NeuronRules, shape: Shape, params: Params
) -> tuple[dict[str, nir.ir.NIRNode], list[tuple[str, str]]]:
    """Nodes and edges by which the spikes of neurons ``name`` come back to them; none without a way.

    Layers have no dots in their names, so that these are nobody else's.
    """
    own = rules.recurrent
    if own is None:
        return {}, []
    weights = {"recurrent": params["recurrent"]}
    if own.inhibitory:
        weight = signed(weights["recurrent"], own.inhibitory)
        split = rules.current2 is not None
        weights = {"recurrent": np.maximum(weight, 0) if split else weight}
        if split:
            weights["inhibition"] = np.minimum(weight, 0)
    nodes: dict[str, nir.ir.NIRNode] = {}
    source = name
    edges = []
    if own.delay > 1:  # what neurons send themselves arrives a step later without a Delay
        source = f"{name}.late"
        nodes[source] = nir.Delay(delay=np.full(shape, own.delay * G.DT))
        edges.append((name, source))
    for port, (what, weight) in enumerate(weights.items()):
        way = f"{name}.{what}"
        nodes[way] = nir.Linear(weight=weight)
        words.say(nodes[way], port=port)
        edges += [(source, way), (way, name)]
    return nodes, edges


def signed(weight: NDArray[Any], inhibitory: int) -> NDArray[Any]:
    """``weight`` [O, I] with the signs of Dale's law: of its inputs the last ``inhibitory`` inhibit."""
    signs = arch_neurons.signs(weight.shape[1], inhibitory)
    return np.asarray(np.abs(weight) * signs, weight.dtype)


def two_currents(name: str, node: nir.Linear | nir.Affine) -> dict[str, nir.ir.NIRNode]:
    """The nodes of signed weights ``name``: what excites, with the bias, and what inhibits."""
    inhibits = nir.Linear(weight=np.minimum(node.weight, 0))
    words.say(inhibits, port=1)
    return {
        name: replace(node, weight=np.maximum(node.weight, 0)),
        f"{name}.inhibition": inhibits,
    }


def _all(value: float | None) -> NDArray[np.float64] | None:
    return None if value is None else np.full(1, value)


def _rest(share: float | None) -> NDArray[np.float64] | None:
    """What a step takes where it leaves ``share``."""
    return None if share is None else np.full(1, 1 - share)
