"""Parity of networks that branch: nothing differs where nothing is rounded, and planted faults are named."""

from __future__ import annotations

import itertools
from dataclasses import replace

import nir
import numpy as np
import pytest

import stl_deploy
from stl_deploy.chips import facts as chips
from stl_deploy.errors import InputError
from stl_deploy.formats.raster import Raster
from stl_deploy.hw_sim import reference
from stl_deploy.hw_sim.engine import Engine
from stl_deploy.ir import execute
from stl_deploy.ir import nir_graph as G
from stl_deploy.ir.floats import decode
from stl_deploy.ir.network import Connection, IntegerNetwork
from stl_deploy.ir.readouts import Readout
from stl_deploy.lower.quantize import quantize
from stl_deploy.lower.relays import relayed
from stl_deploy.verify import against_reference, certificates, faults
from stl_deploy.verify.against_float import compare
from stl_deploy.verify.divergence import CertificateError
from tests.build import random_graphs
from tests.build.float_networks import near
from tests.build.floats import lif
from tests.build.forced import as_cut
from tests.build.random_graphs import Features

GRID = 64  # units of the exact network's scale
SHAPE, STEPS = (2, 4, 4), 4


def eighths(rng, *size, low=-4, high=6):
    """Weights that three halvings bring to single units of the grid."""
    return rng.integers(low, high, size) / 8


def theta(rng, *size):
    return rng.integers(20, 60, size) / 32


def residual() -> nir.NIRGraph:
    """A residual block that pulls itself down a step late, and behind it a loop of two populations."""
    rng = np.random.default_rng(3)
    lif2 = lif(theta(rng, *SHAPE))
    nodes = {
        "input": nir.Input({"input": np.array(SHAPE)}),
        "conv1": G.conv2d(eighths(rng, 2, 2, 3, 3), np.zeros(2), SHAPE, (1, 1), (1, 1)),
        "lif1": lif(theta(rng, *SHAPE)),
        "conv2": G.conv2d(eighths(rng, 2, 2, 3, 3), np.zeros(2), SHAPE, (1, 1), (1, 1)),
        "proj": G.conv2d(eighths(rng, 2, 2, 3, 3), np.zeros(2), SHAPE, (1, 1), (1, 1)),
        "skip": nir.Scale(np.ones(SHAPE)),
        "own": nir.Scale(-eighths(rng, *SHAPE, low=1, high=4)),
        "lif2": lif2,
        "flat": G.flatten(SHAPE),
        "fc1": nir.Linear(eighths(rng, 12, 32)),
        "lif3": lif(theta(rng, 12)),
        "fc2": nir.Linear(eighths(rng, 10, 12, low=-2, high=8)),
        "lif4": lif(theta(rng, 10)),
        "late": nir.Delay(np.full(10, 2 * G.DT)),
        "back": nir.Linear(eighths(rng, 12, 10)),
        "output": nir.Output({"output": np.array([10])}),
    }
    ways = (
        *("input conv1 lif1", "lif1 conv2 lif2", "input proj lif2", "lif1 skip lif2"),
        *("lif2 own lif2", "lif2 flat fc1 lif3 fc2 lif4 output", "lif4 late back lif3"),
    )
    edges = [edge for way in ways for edge in itertools.pairwise(way.split())]
    meta = G.FloatMeta(timesteps=STEPS, classes=10, population=1)
    return nir.NIRGraph(nodes, edges, metadata={G.KEY: meta.text()})


@pytest.fixture(scope="module")
def exact():
    """(graph, network, raster) without any rounding."""
    graph = residual()
    floats = decode(graph)
    network = replace(quantize(graph, "loihi2"), placement=None)
    for p in network.populations:
        vth = (floats.by_name[p.name].neurons.theta * GRID).astype(np.int32) - 1
        neurons = replace(p.neurons, vth=vth, scale=np.full((), 1 / GRID))
        network = network.changed(replace(p, neurons=neurons))
    whole = []
    for c, known in (
        (c, k) for c in network.connections for k in floats.connections if k.key == c.key
    ):
        weight = (known.way.weight * GRID).astype(np.int8).reshape(c.synapses.weight.shape)
        synapses = c.synapses.with_weights(weight)
        whole.append(replace(c, synapses=synapses, exp=0, bits=8, precision="8"))
    assert len(whole) == len(network.connections) == 8
    network = replace(network, connections=tuple(whole))
    rng = np.random.default_rng(1)
    spikes = (rng.random((60, STEPS, *SHAPE)) < 0.4).astype(np.uint8)
    return graph, network, Raster(spikes)


def named(network: IntegerNetwork, name: str) -> Connection:
    return next(c for c in network.connections if c.name == name)


def changed(network: IntegerNetwork, name: str, **fields) -> IntegerNetwork:
    """The network with another connection in the place of one."""
    return replace(
        network,
        connections=tuple(
            replace(c, **fields) if c.name == name else c for c in network.connections
        ),
    )


def weighing(network: IntegerNetwork, name: str, weight: np.ndarray) -> IntegerNetwork:
    synapses = named(network, name).synapses.with_weights(weight.astype(np.int8))
    return changed(network, name, synapses=synapses)


def neurons(network: IntegerNetwork, name: str, **fields) -> IntegerNetwork:
    population = network.by_name[name]
    return network.changed(replace(population, neurons=replace(population.neurons, **fields)))


def first(exact, network):
    graph, _, data = exact
    return compare(None, graph, network, data, batch=7).first_divergence


def brute(exact, network):
    """The first entry that differs, looked for one by one."""
    graph, _, data = exact
    expected = execute.run(graph, data.spikes)
    got = reference.run(network, data.spikes).layers
    for sample, step in np.ndindex(data.spikes.shape[:2]):
        for name in network.by_name:
            off = np.argwhere(expected[name][sample, step] != got[name].spikes[sample, step])
            if len(off):
                return sample, step, name, tuple(map(int, off[0]))
    return None


def test_a_graph_that_rounds_nothing_is_certified_whole(exact):
    graph, network, data = exact
    report = compare(None, graph, network, data)
    assert report.first_divergence is None
    assert report.not_certified == {}
    assert [layer.name for layer in report.layers] == ["lif1", "lif2", "lif3", "lif4"]
    for layer in report.layers:
        assert (layer.mismatch, layer.mismatch_forced) == (0, 0)
        assert (layer.certified, layer.certified_spiking) == (1, 1)
    rates = [reference.run(network, data.spikes).layers[n].spikes.mean() for n in network.by_name]
    assert all(0.02 < rate < 0.6 for rate in rates)


@pytest.mark.parametrize("name", ["conv1", "conv2", "proj", "skip", "own", "fc1", "fc2", "back"])
@pytest.mark.parametrize("by", [3, -3])
def test_a_weight_that_is_off_is_found_in_its_connection(exact, name, by):
    _, network, _ = exact
    held, target = named(network, name).synapses.weight, named(network, name).target
    for flat in np.random.default_rng(1).permutation(held.size):
        index = tuple(map(int, np.unravel_index(flat, held.shape)))
        weight = held.astype(np.int64)
        weight[index] += by
        broken = weighing(network, name, weight)
        found = first(exact, broken)
        if found is not None:
            break
    place = found.place
    assert (place.sample, place.step, place.layer, place.neuron) == brute(exact, broken)
    assert place.layer == target
    (fault,) = found.faults
    assert (fault.layer, fault.kind, fault.count) == (target, "weight", 1)
    assert f"of {name} are not what the float model rounds to" in fault.text
    assert f"{held[index] + by}, not {held[index]} (3 too" in fault.text
    (synapse,) = found.synapses
    assert (synapse.connection, synapse.source) == (name, named(network, name).source)
    assert (synapse.held, synapse.exact) == (held[index] + by, held[index])
    assert found.voltages.contributions["weight"] == pytest.approx(synapse.error)
    assert found.voltages.error == pytest.approx(synapse.error)


@pytest.mark.parametrize(
    ("name", "delay", "words"),
    [
        ("conv2", 1, "from lif1 has a delay of 1, not 0 (one too much)"),
        ("skip", 1, "from lif1 has a delay of 1, not 0 (one too much)"),
        ("own", 2, "from lif2 has a delay of 2, not 1 (one too much)"),
        ("back", 1, "from lif4 has a delay of 1, not 2 (one too little)"),
        ("back", 3, "from lif4 has a delay of 3, not 2 (one too much)"),
    ],
)
def test_a_delay_that_is_off(exact, name, delay, words):
    _, network, _ = exact
    broken = changed(network, name, delay=delay)
    found = first(exact, broken)
    place = found.place
    assert (place.sample, place.step, place.layer, place.neuron) == brute(exact, broken)
    target = named(network, name).target
    assert place.layer == target
    (fault,) = found.faults
    assert (fault.layer, fault.kind, fault.text) == (target, "delay", f"connection {name} {words}")
    assert fault.text in found.text
    if found.voltages is not None:
        parts = found.voltages.contributions
        assert sum(parts.values()) == pytest.approx(found.voltages.error)


def test_two_connections_whose_weights_are_exchanged(exact):
    _, network, _ = exact
    a, b = (named(network, name).synapses for name in ("conv2", "proj"))
    found = first(exact, changed(changed(network, "conv2", synapses=b), "proj", synapses=a))
    assert found.place.layer == "lif2"
    (fault,) = found.faults
    assert (fault.kind, fault.text) == ("connection", "the weights of conv2 and proj are exchanged")


def test_a_connection_from_elsewhere_or_missing(exact):
    _, network, _ = exact
    (fault,) = first(exact, changed(network, "proj", source="lif1")).faults
    assert fault.text == "connection proj comes from lif1, not from input"
    without = replace(
        network, connections=tuple(c for c in network.connections if c.name != "skip")
    )
    found = first(exact, without)
    assert found.place.layer == "lif2"
    (fault,) = found.faults
    assert fault.text == "connection skip from lif1 is not in the integer network"
    more = replace(named(network, "skip"), name="second")
    (fault,) = first(exact, replace(network, connections=(*network.connections, more))).faults
    assert fault.text == "connection second from lif1 is not in the float model"


def test_neurons_that_are_off_one_by_one(exact):
    """Thresholds, biases and decays of single neurons, in a population of a loop."""
    _, network, _ = exact
    mine = network.by_name["lif3"].neurons
    for at in range(12):
        vth = mine.vth.copy()
        vth[at] += 6
        found = first(exact, neurons(network, "lif3", vth=vth))
        if found is not None:
            break
    assert (found.place.layer, found.place.neuron, found.blame) == ("lif3", (at,), "threshold")
    (fault,) = found.faults
    assert f"{at} is {vth[at]}, not {vth[at] - 6} (6 too high)" in fault.text
    bias = np.zeros(12, np.int32)
    bias[at] = -5
    (fault,) = first(exact, neurons(network, "lif3", bias_mant=bias)).faults
    assert (fault.kind, fault.count) == ("bias", 1)
    assert f"{at} is -5, not 0 (5 too low)" in fault.text
    dv = np.full(12, 2048, np.int32)
    dv[at] = 3500
    (fault,) = first(exact, neurons(network, "lif3", dv=dv)).faults
    assert (fault.kind, fault.count) == ("decay", 1)
    assert f"at {at} dv is 3500 where a decay to 0.5 rounds to 2048" in fault.text


def test_a_reset_that_subtracts_brings_its_rounding_along(exact):
    """What fires from theta on fires above theta - 1, which is what a spike then subtracts."""
    graph, network, data = exact
    nodes = dict(graph.nodes)
    soft = replace(nodes["lif1"], metadata={"reset": "subtract"})
    graph = nir.NIRGraph(nodes | {"lif1": soft}, graph.edges, metadata=graph.metadata)
    network = neurons(network, "lif1", reset="subtract")
    found = first((graph, network, data), network)
    assert (found.place.layer, found.faults) == ("lif1", ())
    assert 0 < found.voltages.contributions["reset"] <= 1 / GRID
    assert "(the error of v is made of reset +" in found.text
    vth = network.by_name["lif1"].neurons.vth
    for by in (-9, -5, 0, 5, 9):
        found = first((graph, network, data), neurons(network, "lif1", vth=vth + by))
        assert found.blame in ("threshold", "reset")
        assert found.voltages.reset is None
        parts = found.voltages.contributions
        assert sum(parts.values()) == pytest.approx(found.voltages.error)
        assert [fault.kind for fault in found.faults] == ["threshold"] * (by != 0)


@pytest.mark.parametrize(
    ("tried", "words"),
    [
        (lambda n: changed(n, "own", delay=2), "connection own were one time step late"),
        (lambda n: changed(n, "skip", delay=1), "connection skip were one time step late"),
        (
            lambda n: changed(
                changed(n, "conv2", synapses=named(n, "proj").synapses),
                "proj",
                synapses=named(n, "conv2").synapses,
            ),
            "the weights of conv2 and proj were exchanged",
        ),
        (
            lambda n: weighing(n, "conv2", named(n, "conv2").synapses.weight.swapaxes(2, 3)),
            "the kernel of conv2 were transposed",
        ),
    ],
)
def test_a_run_that_is_not_the_networks(exact, monkeypatch, tried, words):
    graph, network, data = exact
    other = tried(network)

    def run(self, raster, states=False):
        return reference.run(as_cut(other, self.network), raster, states)

    monkeypatch.setattr(Engine, "run", run)
    with pytest.raises(CertificateError) as caught:
        compare(None, graph, network, data)
    found = caught.value.divergence
    assert (found.place.layer, found.blame) == ("lif2", "execution")
    assert f"it ran as if {words}" in found.text


def test_a_network_with_other_inputs_or_populations_is_refused(exact):
    graph, network, data = exact
    port = network.inputs["input"]
    for name, other in (("input", replace(port, levels=3)), ("input", replace(port, held=True))):
        with pytest.raises(InputError, match="compare it with the graph"):
            compare(None, graph, replace(network, inputs={name: other}), data)
    less = replace(
        network,
        populations=network.populations[:-1],
        connections=tuple(c for c in network.connections if "lif4" not in (c.source, c.target)),
        readout=Readout(
            10, 1, "lif3", matrix=np.ones((10, network.by_name["lif3"].size), np.int64)
        ),
    )
    with pytest.raises(InputError, match="are not those of the model"):
        compare(None, graph, less, data)


def test_relays_are_not_compared_and_change_nothing(exact):
    """They pass on what is certified; the report says that they are not."""
    graph, network, data = exact
    with_relays = relayed(replace(network, chip="ideal"), chips.load("ideal"), "relay")
    added = [name for name in with_relays.by_name if name not in network.by_name]
    assert added
    report = compare(None, graph, with_relays, data)
    assert report.first_divergence is None
    assert [layer.name for layer in report.layers] == list(network.by_name)
    assert all(layer.certified == 1 for layer in report.layers)
    why = "it passes spikes on, and the float graph does not have it"
    assert report.not_certified == dict.fromkeys(added, why)


# Random graphs


@pytest.mark.parametrize("seed", range(8))
def test_every_backend_is_compared_on_graphs(seed):
    network, rasters = random_graphs.draw(seed)
    found = against_reference.measure("hw_sim", network, random_graphs.named(network, rasters))
    samples = len(next(iter(rasters.values())))
    neurons_ = sum(p.size for p in network.populations)
    assert found.exact
    assert found.entries == samples * network.timesteps * neurons_


def test_a_backend_that_differs_on_a_graph_is_told(monkeypatch):
    network, rasters = random_graphs.draw(4)
    name = network.populations[-1].name
    whole = Engine.run

    def other(self, raster, states=False):
        trace = whole(self, raster, states)
        if states:
            trace.layers[name].v[1, 1, *[0] * len(network.shape(name))] += 1
        return trace

    monkeypatch.setattr(Engine, "run", other)
    found = against_reference.measure("hw_sim", network, random_graphs.named(network, rasters))
    assert (found.spike_mismatches, found.state_mismatches) == (0, 1)
    assert (found.first.layer, found.first.kind, found.first.sample) == (name, "v", 1)


@pytest.mark.parametrize("seed", range(12))
def test_what_is_rounded_is_no_fault_in_graphs(seed):
    """Weights within half a unit of the integers, decays within half a step: nothing to name."""
    network, _ = random_graphs.draw(seed, Features(currents=False))
    network, floats = near(np.random.default_rng(seed), network, 0.45)
    for population in network.populations:
        assert faults.of_network(network, population, floats) == []
        assert not isinstance(certificates.certifier(network, population, floats), str)


@pytest.mark.parametrize("seed", range(6))
def test_drawn_faults_are_found_in_graphs(seed):
    """One value of a random connection moved by two, whatever its kind and precision."""
    rng = np.random.default_rng(seed)
    network, _ = random_graphs.draw(seed, Features(currents=False))
    network, floats = near(rng, network, 0.3)
    for c in network.connections:
        if network.by_name[c.target].kind == "or":
            continue
        weight = c.synapses.weight.copy()
        at = np.unravel_index(
            np.argmin(np.where(weight == 0, 1 << 14, np.abs(weight))), weight.shape
        )
        weight[at] += 2 if weight[at] > 0 else -2
        broken = network.changed(replace(c, synapses=c.synapses.with_weights(weight)))
        target = broken.by_name[c.target]
        (fault,) = faults.of_network(broken, target, floats)
        assert fault.layer == c.target
        assert fault.kind in ("weight", "input scale", "kernel")
        assert fault.kind != "weight" or f"of {c.name} are" in fault.text


def test_simulate_and_parity_take_rasters_by_name(exact):
    graph, network, data = exact
    named_ = {"input": data.spikes}
    want = stl_deploy.simulate(network, data.spikes).predictions
    assert (stl_deploy.simulate(network, named_).predictions == want).all()
    assert stl_deploy.parity(graph, network, named_).prediction_agreement == 1.0
    two = next(
        drawn for seed in range(20) if len((drawn := random_graphs.draw(seed))[0].inputs) == 2
    )
    got = stl_deploy.simulate(*two)
    assert (got.predictions == reference.run(*two).predictions).all()
    with pytest.raises(InputError):
        stl_deploy.simulate(two[0], next(iter(two[1].values())))
