"""Small NIR files that other tools run exactly, differently or not at all, each with a raster.

``build`` writes them all. What a tool makes of each is decided by one rule, so that the tests can hold
every rule against the tool. ``python -m tests.build.nir_cases`` prints the table of docs/nir.md.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import nir
import numpy as np
from numpy.typing import NDArray

from stl_deploy import from_torch, quantize
from stl_deploy.backends import consumers
from stl_deploy.backends.consumers import file as consumer_file
from stl_deploy.formats import integer_nir as nir_file
from stl_deploy.formats import nir_io, spinnaker2_nir
from stl_deploy.formats import portable_nir as nir_portable
from stl_deploy.ir import nir_graph as G
from stl_deploy.ir.network import Connection, Input, IntegerNetwork, Population
from stl_deploy.ir.neurons import Lif
from stl_deploy.ir.readouts import Readout
from stl_deploy.ir.synapses import Conv, Dense, OneToOne
from stl_deploy.lower.graph import lower
from stl_deploy.models.net import STLNet
from tests.build.nets import random_net, random_spikes
from tests.build.networks import chain, lif, pool, values

Graph = nir.NIRGraph


@dataclass(frozen=True)
class Case:
    """``network`` is that of a file of integers, what hw_sim runs."""

    path: Path
    spikes: NDArray[np.uint8]
    network: IntegerNetwork | None = None


def dense(rng, inputs, outputs, name="lif1", vth=150, own=False, bias=False, **settings):
    weight = rng.integers(-60, 90, (outputs, inputs)).astype(np.int8)
    recurrent = Dense(rng.integers(-40, 40, (outputs, outputs)).astype(np.int8)) if own else None
    biases = rng.integers(-60, 60, outputs) * bias
    return lif(name, Dense(weight), vth=vth, bias=biases, recurrent=recurrent, **settings)


def conv(rng, channels, outputs, kernel, vth=100, groups=1, **geometry):
    stride, padding, dilation = (
        geometry.get(key, default)
        for key, default in (("stride", (1, 1)), ("padding", (0, 0)), ("dilation", (1, 1)))
    )
    weight = rng.integers(-60, 90, (outputs, channels // groups, *kernel)).astype(np.int8)
    return lif("lif1", Conv(weight, stride, padding, dilation, groups), (channels, 8, 8), vth=vth)


def network(*layers, steps=5) -> IntegerNetwork:
    return chain(*layers, steps=steps)


def uniform(net: IntegerNetwork) -> IntegerNetwork:
    """The median threshold of each population for all its neurons."""
    changed = [
        replace(
            p, neurons=replace(p.neurons, vth=np.full_like(p.neurons.vth, np.median(p.neurons.vth)))
        )
        for p in net.populations
        if p.kind == "lif"
    ]
    return replace(net.changed(*changed), placement=None)


def neurons(size: int, vth: int = 150, **fields) -> Lif:
    zeros = np.zeros(size, np.int32)
    return Lif(np.full(size, vth, np.int32), zeros, np.ones(size), **fields)


def graph(
    populations: dict[str, Lif], connections: list[Connection], inputs: int = 1, **fields
) -> IntegerNetwork:
    """Flat populations, the last of which is read out, and inputs "input", "input1" ... of 12 values."""
    last = list(populations)[-1]
    made = tuple(Population(name, n.vth.shape, n) for name, n in populations.items())
    named = [f"input{i}" if i else "input" for i in range(inputs)]
    values = {"chip": "loihi2", "timesteps": 5} | fields
    return IntegerNetwork(
        **values,
        inputs={name: Input((12,)) for name in named},
        populations=made,
        connections=tuple(connections),
        readout=Readout(made[-1].size, 1, last),
    )


def way(rng, source: str, target: str, inputs: int, outputs: int, **fields) -> Connection:
    weight = rng.integers(-60, 90, (outputs, inputs)).astype(np.int8)
    return Connection(f"{source}_{target}", source, target, Dense(weight), **fields)


def skip(rng, current: bool = False, one_to_one: bool = False) -> IntegerNetwork:
    """Three populations, of which the first leads to the last too."""
    fields = {"du": 2047} if current else {}
    last = 20 if one_to_one else 6
    over = way(rng, "a", "c", 20, last)
    if one_to_one:
        over = replace(over, synapses=OneToOne(np.full(20, 90, np.int8)))
    ways = [
        way(rng, "input", "a", 12, 20),
        way(rng, "a", "b", 20, 20),
        way(rng, "b", "c", 20, last),
    ]
    return graph(
        {name: neurons(n, **fields) for name, n in (("a", 20), ("b", 20), ("c", last))},
        [*ways, over],
    )


def late(rng) -> IntegerNetwork:
    """The input leads to the last population too, a step later."""
    ways = [way(rng, "input", "a", 12, 20), way(rng, "a", "b", 20, 6)]
    ways.append(way(rng, "input", "b", 12, 6, delay=1))
    return graph({"a": neurons(20, du=2047), "b": neurons(6, du=2047)}, ways)


def two_inputs(rng) -> IntegerNetwork:
    ways = [way(rng, "input", "a", 12, 6), way(rng, "input1", "a", 12, 6)]
    return graph({"a": neurons(6, du=2047)}, ways, inputs=2)


def alone(rng) -> IntegerNetwork:
    """Neurons that nothing leads to, which fire in every step."""
    ways = [way(rng, "input", "a", 12, 6), way(rng, "always", "a", 12, 6)]
    populations = {"always": neurons(12, vth=-1), "a": neurons(6, du=2047)}
    return graph(populations, ways, chip="ideal")


def read(rng, readout: Readout, **fields) -> IntegerNetwork:
    """Two populations with a current, the last of which may be something else."""
    ways = [way(rng, "input", "a", 12, 20), way(rng, "a", "b", 20, 6)]
    made = graph({"a": neurons(20, du=2047), "b": neurons(6, du=2047, **fields)}, ways, timesteps=3)
    return replace(made, readout=readout)


def per_neuron(rng, current: bool = False) -> IntegerNetwork:
    """Decays of 1/2 and 3/4, in three steps in which nothing is rounded."""
    dv = rng.choice([2048, 1024], 20).astype(np.int32)
    dv[:2] = 2048, 1024
    du = np.where(rng.random(20) < 0.5, 2047, 4095).astype(np.int32) if current else 4095
    ways = [way(rng, "input", "a", 12, 20)]
    return graph({"a": neurons(20, dv=dv, du=du)}, ways, timesteps=3)


IN_DOCS = {
    "spec conv one threshold": "convolutions, max pooling, one threshold a layer; `model.nir`",
    "conv one threshold": "the same, `model.portable.nir`",
    "conv": "with a threshold for every neuron, `model.portable.nir`",
    "float conv": "the same in floats, `model.float.portable.nir`",
    "float conv one threshold": "one float threshold a layer, `model.float.portable.nir`",
    "spec dense": "linear, one threshold, `model.nir`",
    "dense": "the same, `model.portable.nir`",
    "for spinnaker2": "linear and recurrent, `model.spinnaker2.nir`",
    "convolution for spinnaker2": "convolutions, max pooling, no bias, `model.spinnaker2.nir`",
    "subtracts for spinnaker2": "reset by subtraction, `model.spinnaker2.nir`",
    "bias": "linear with a bias, `model.portable.nir`",
    "bias for spinnaker2": "the same, `model.spinnaker2.nir`",
    "current": "neurons with a current (CubaLIF)",
    "current and bias": "the same with a bias",
    "hears itself": "recurrent",
    "not square": "a kernel that is not square",
    "depthwise": "a depthwise convolution, `model.portable.nir`",
    "depthwise stored": "the same with its groups, as others write it",
    "rounds": "decays that the chip's integers round",
    "skip": "a connection that skips a layer",
    "one-to-one": "a one-to-one connection that skips a layer",
    "an edge over a layer": "the same as an edge, as others write it",
    "decays per neuron": "a decay for every neuron",
    "currents per neuron": "the same with a current",
    "rules in the metadata": "an adaptive threshold, which the metadata alone say, `model.nir`",
    "integrators": "a readout of neurons without a threshold (CubaLI), `model.nir`",
    "matrix": "a matrix behind the last neurons, `model.portable.nir`",
    "spec delay": "a connection with a delay, `model.nir`",
    "spec two inputs": "two inputs, `model.nir`",
}


def table(folder: Path) -> str:
    """What the rules say of the cases of the docs, as Markdown."""
    cases = build(folder)
    tools = [consumer for consumer in consumers.CONSUMERS.values() if consumer.name != "nirtorch"]
    rows = [["", *(f"{tool.title} {tool.version}" for tool in tools)], ["---"] * (len(tools) + 1)]
    for name, words in IN_DOCS.items():
        answers = consumers.check(consumer_file.read(cases[name].path), tools)
        rows.append([words, *(VERDICTS[answer.verdict.value] for answer in answers)])
    return "\n".join(f"| {' | '.join(row)} |" for row in rows) + "\n"


VERDICTS = {"exact": "**exactly**", "differs": "differently", "unreadable": "no", "unknown": "?"}


def build(folder: Path) -> dict[str, Case]:
    """All cases by name, their files in ``folder``."""
    builder = _Builder(folder)
    _integers(builder)
    _graphs(builder, np.random.default_rng(8))
    _changed(builder)
    _for_spinnaker2(builder, np.random.default_rng(9))
    return builder.cases


class _Builder:
    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.cases: dict[str, Case] = {}
        self.rng = np.random.default_rng(7)

    def portable(self, name: str, net: IntegerNetwork, spikes=None) -> None:
        path = self.folder / f"{name}.nir"
        nir_portable.write(nir_portable.from_network(net), path)
        self.cases[name] = Case(
            path,
            values((4, net.timesteps, *net.shape("input")), seed=self.rng)
            if spikes is None
            else spikes,
            net,
        )

    def spinnaker2(self, name: str, net: IntegerNetwork, spikes=None) -> None:
        path = self.folder / f"{name}.nir"
        nir_portable.write(spinnaker2_nir.from_network(net), path)
        spikes = (
            values((4, net.timesteps, *net.shape("input")), seed=9) if spikes is None else spikes
        )
        self.cases[name] = Case(path, spikes, net)

    def floats(self, name: str, model: STLNet, spikes) -> None:
        path = self.folder / f"{name}.nir"
        nir_portable.write(nir_portable.from_float(lower(from_torch(model))), path)
        self.cases[name] = Case(path, spikes)

    def spec(self, name: str, net: IntegerNetwork, spikes=None) -> None:
        path = self.folder / f"{name}.nir"
        nir_io.write(nir_file.to_nir(net), path)
        self.cases[name] = Case(
            path,
            values((4, net.timesteps, *net.shape("input")), seed=self.rng)
            if spikes is None
            else spikes,
            net,
        )

    def changed(
        self, name: str, of: str, change: Callable[[Graph], None], drop_reset: bool = True
    ) -> None:
        """The file of another case with ``change`` done to its graph, as no file of ours."""
        graph = nir_io.read(self.cases[of].path)
        graph.metadata = {}
        change(graph)
        path = self.folder / f"{name}.nir"
        (nir_portable.write if drop_reset else nir_io.write)(graph, path)
        self.cases[name] = Case(path, self.cases[of].spikes)


def _integers(b: _Builder) -> None:
    """What stl-export writes."""
    rng = b.rng
    model = random_net()
    net, spikes = quantize(from_torch(model), chip="loihi2"), random_spikes(model, 3)
    b.portable("conv", net, spikes)
    b.portable("conv one threshold", uniform(net), spikes)
    split = quantize(from_torch(model), chip="loihi2", weight_precision="split")
    b.portable("conv of split weights", split, spikes)
    b.spec("spec conv one threshold", uniform(net), spikes)
    b.floats("float conv", model, spikes)
    alike = random_net()
    for key, value in alike.state_dict().items():
        if key.endswith("thresh"):
            value.fill_(0.55)
    b.floats("float conv one threshold", alike, spikes)
    flat = dense(rng, 12, 20)
    b.portable("dense", network(flat))
    b.spec("spec dense", network(flat))
    b.portable("bias", network(dense(rng, 12, 20, bias=True)))
    b.portable("exponent", network(dense(rng, 12, 20, exp=2, vth=600)))
    b.portable("three quarters", network(dense(rng, 12, 20, dv=1024, vth=200), steps=3))
    b.portable("current", network(dense(rng, 12, 20, du=2047)))
    b.spec("spec current", network(dense(rng, 12, 20, du=2047)))
    b.portable("current and bias", network(dense(rng, 12, 20, du=2047, bias=True)))
    b.portable("hears itself", network(dense(rng, 12, 20, own=True)))
    b.portable("hears itself a.b", network(dense(rng, 12, 20, "l.lif", own=True)))
    own = dense(rng, 12, 20, own=True, du=2047)
    b.portable("hears itself with a current", network(own))
    b.portable("convolution with a current", network(replace(conv(rng, 2, 3, (3, 3)), du=2047)))
    b.portable("not square", network(conv(rng, 2, 3, (3, 2))))
    wide = conv(rng, 2, 3, (3, 3), stride=(2, 1), padding=(1, 2), dilation=(2, 1))
    b.portable("geometry", network(wide))
    b.portable("groups", network(conv(rng, 4, 6, (3, 3), groups=2)))
    b.portable("depthwise", network(conv(rng, 4, 4, (3, 3), groups=4)))
    large = conv(rng, 2, 3, (3, 3), vth=400)
    b.portable("pool of nine", network(large, pool(large.shape, (3, 3))))
    b.portable("rounds", network(dense(rng, 12, 20, du=3000, dv=100, vth=900), steps=40))


def _graphs(b: _Builder, rng: np.random.Generator) -> None:
    """What stl-export writes of networks that are not chains."""
    b.portable("skip", skip(rng))
    b.portable("one-to-one", skip(rng, one_to_one=True))
    b.spec("spec one-to-one", skip(rng, current=True, one_to_one=True))
    ruled = way(rng, "input", "a", 12, 20)
    b.spec("rules in the metadata", graph({"a": neurons(20, du=2047, adapt=6400)}, [ruled]))
    b.spec("integrators", read(rng, Readout(6, 1, "b", "last"), fires=False))
    b.spec("scored by v", read(rng, Readout(6, 1, "b", "mean")))
    matrix = rng.integers(-50, 50, (4, 6))
    b.portable("matrix", read(rng, Readout(4, 1, "b", matrix=matrix)))
    b.spec("spec delay", late(rng))
    b.spec("spec two inputs", two_inputs(rng))
    b.spec("neurons alone", alone(rng))
    b.portable("decays per neuron", per_neuron(rng))
    b.portable("currents per neuron", per_neuron(rng, current=True))


def _for_spinnaker2(b: _Builder, rng: np.random.Generator) -> None:
    """What stl-export writes for py-spinnaker2."""
    b.spinnaker2("for spinnaker2", network(dense(rng, 12, 20, own=True)))
    image = conv(rng, 2, 3, (3, 3), padding=(1, 1), vth=200)
    flat = dense(rng, 48, 10, "lif2")
    b.spinnaker2("convolution for spinnaker2", network(image, pool(image.shape, (2, 2)), flat))
    b.spinnaker2("bias for spinnaker2", network(dense(rng, 12, 20, bias=True)))
    first, second = dense(rng, 12, 20), dense(rng, 20, 6, "lif2")
    halves = [replace(layer, reset="subtract") for layer in (first, second)]
    b.spinnaker2("subtracts for spinnaker2", network(*halves))


def _set(node: str, key: str, value) -> Callable[[Graph], None]:
    def change(graph: Graph) -> None:
        now = getattr(graph.nodes[node], key)
        new = value(now) if callable(value) else np.full(now.shape, float(value))
        setattr(graph.nodes[node], key, new)

    return change


def _changed(b: _Builder) -> None:
    """What others may write."""
    first_half = np.arange(20) < 10
    b.changed("groups stored", "groups", _in_groups(2))
    b.changed("depthwise stored", "depthwise", _in_groups(4))
    b.changed("r", "dense", _set("lif1", "r", lambda r: 2 * r))
    b.changed("v_reset", "dense", _set("lif1", "v_reset", 30))
    b.changed("v_leak", "dense", _set("lif1", "v_leak", 40))
    b.changed("v_reset of a current", "current", _set("lif1", "v_reset", 30))
    b.changed("r of a current", "current", _set("lif1", "r", lambda r: 2 * r))
    b.changed("w_in", "current", _set("lif1", "w_in", lambda w: 2 * w))
    b.changed("two taus", "dense", _set("lif1", "tau", lambda t: np.where(first_half, t, 2 * t)))
    b.changed("integer weights", "dense", _set("lif1_w", "weight", lambda w: w.astype(np.int16)))
    b.changed("affine", "dense", _affine)
    b.changed("affine with v_reset stored", "dense", _affine, drop_reset=False)
    b.changed("affine with v_leak", "affine", _set("lif1", "v_leak", 40))
    b.changed("affine and a current", "current", _affine)
    b.changed("subtracts", "dense", _subtracts)
    b.changed("tie", "dense", _tie)
    b.changed("tie below 0", "dense", _tie_below)
    b.changed("no v below 0", "tie below 0", _set("lif1_w", "weight", np.abs))
    b.portable("two layers", network(dense(b.rng, 12, 20), dense(b.rng, 20, 6, "lif2")))
    b.changed("no v so low", "two layers", _set("lif2", "v_threshold", -2000))
    b.changed("an edge back", "dense", _edge_back)
    b.changed("an edge back to a current", "current", _edge_back)
    b.changed("hears itself and a bias", "hears itself", _bias_back)
    b.changed("an edge over a layer", "one-to-one", _edge_over)
    b.changed("a second input", "dense", _second_input)
    b.changed("beyond float32", "dense", _beyond)
    b.changed("both rest elsewhere", "dense", _rests_elsewhere)
    b.changed("threshold below 0", "dense", _set("lif1", "v_threshold", -50 - 1 / 128))
    b.changed(
        "threshold below 0 of a current", "current", _set("lif1", "v_threshold", -50 - 1 / 128)
    )
    b.changed("r below 0", "dense", _set("lif1", "r", lambda r: -r))
    b.changed("unsigned weights and r below 0", "r below 0", _unsigned)
    b.changed("w_in below 0", "current", _set("lif1", "w_in", lambda w: -w))
    b.changed("tau below dt", "dense", _set("lif1", "tau", 0.8 * G.DT))
    b.changed("tau_syn below dt", "current", _set("lif1", "tau_syn", 0.8 * G.DT))
    b.changed("threshold node", "pool of nine", _threshold)
    b.changed("padded pool", "dense", _padded_pool)
    b.cases["padded pool"] = replace(
        b.cases["padded pool"], spikes=(b.rng.random((3, 4, 2, 5, 5)) < 0.5).astype(np.uint8)
    )
    b.changed("flatten of all", "conv one threshold", _flatten_all)


def _in_groups(groups: int) -> Callable[[Graph], None]:
    """The first convolution with as many groups as the zeros in it are of."""

    def change(graph: Graph) -> None:
        node = graph.nodes["lif1_w"]
        outputs, channels = node.weight.shape[:2]
        own, inputs = outputs // groups, channels // groups
        parts = [
            node.weight[g * own : (g + 1) * own, g * inputs : (g + 1) * inputs]
            for g in range(groups)
        ]
        node.weight, node.groups = np.concatenate(parts), groups

    return change


def _affine(graph: Graph) -> None:
    graph.nodes["lif1_w"] = nir.Affine(weight=graph.nodes["lif1_w"].weight, bias=np.zeros(20))


def _unsigned(graph: Graph) -> None:
    node = graph.nodes["lif1_w"]
    node.weight = np.abs(node.weight).astype(np.uint8)


def _subtracts(graph: Graph) -> None:
    graph.nodes["lif1"].metadata["reset"] = "subtract"
    meta = G.FloatMeta(timesteps=5, classes=20, population=1)
    graph.metadata = {G.KEY: meta.text()}


def _tie(graph: Graph) -> None:
    """Every third neuron reaches 50 with any spike of the first input, and no more."""
    weight = graph.nodes["lif1_w"].weight.copy()
    weight[::3] = 0
    weight[::3, 0] = 100
    graph.nodes["lif1_w"].weight = weight
    graph.nodes["lif1"].v_threshold = np.full(20, 50.0)


def _tie_below(graph: Graph) -> None:
    """Every third neuron falls to -50 with any spike of the first input, and no lower."""
    _tie(graph)
    graph.nodes["lif1_w"].weight[::3] *= -1
    graph.nodes["lif1"].v_threshold = np.full(20, -50.0)


def _beyond(graph: Graph) -> None:
    for node, key in (("lif1_w", "weight"), ("lif1", "v_threshold")):
        _set(node, key, lambda value: value.astype(float) * 1e-60)(graph)


def _edge_back(graph: Graph) -> None:
    """A spike counts as much as a weight."""
    graph.nodes["lif1_w"].weight = graph.nodes["lif1_w"].weight / 100
    graph.nodes["lif1"].v_threshold = np.full(20, 0.77)
    graph.edges.append(("lif1", "lif1"))


def _edge_over(graph: Graph) -> None:
    """A spike of a counts in c as much as a weight of 1 does, which all others are the smaller for."""
    del graph.nodes["a_c"]
    graph.edges = [edge for edge in graph.edges if "a_c" not in edge] + [("a", "c")]
    graph.nodes["b_c"].weight = graph.nodes["b_c"].weight / 100
    graph.nodes["c"].v_threshold = np.full(20, 0.7701)


def _second_input(graph: Graph) -> None:
    graph.nodes["input1"] = nir.Input({"input": np.array([12])})
    graph.nodes["second"] = nir.Linear(graph.nodes["lif1_w"].weight[:, ::-1].copy())
    graph.edges += [("input1", "second"), ("second", "lif1")]


def _bias_back(graph: Graph) -> None:
    weight = graph.nodes["lif1_r"].weight
    graph.nodes["lif1_r"] = nir.Affine(weight=weight, bias=np.full(20, 60.25))


def _rests_elsewhere(graph: Graph) -> None:
    for key in ("v_leak", "v_reset"):
        _set("lif1", key, 60)(graph)


def _threshold(graph: Graph) -> None:
    graph.nodes["pool1"] = nir.Threshold(threshold=np.full((3, 2, 2), 0.5))


def _padded_pool(graph: Graph) -> None:
    """Windows that begin one pixel before the plane, and are as many without."""
    sums = nir.SumPool2d(np.array((2, 2)), np.array((3, 3)), np.array((1, 1)))
    lif = G.lif(np.full((2, 2, 2), 0.9), 2 * G.DT, 1.0)
    made = G.chain_graph({"sum": sums, "lif1": lif}, (2, 5, 5), (2, 2, 2), "{}")
    graph.nodes, graph.edges = made.nodes, made.edges


def _flatten_all(graph: Graph) -> None:
    for node in graph.nodes.values():
        if isinstance(node, nir.Flatten):
            node.start_dim = 0


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as name:
        print(table(Path(name)), end="")
