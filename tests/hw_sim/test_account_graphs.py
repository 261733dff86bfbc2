"""Counts, energy and time of networks that branch, against every event counted by hand."""

from dataclasses import replace

import numpy as np
import pytest
import snntorch as snn
import torch
from torch import nn

import stl_deploy
from stl_deploy.chips import facts as chips
from stl_deploy.errors import LoweringError
from stl_deploy.hw_sim import reference
from stl_deploy.hw_sim.account import neurobench
from stl_deploy.hw_sim.account.energy import Assessment, Meter, unscheduled
from stl_deploy.hw_sim.account.traffic import OnChip
from stl_deploy.hw_sim.account.work import Work
from stl_deploy.hw_sim.simulate import Recorder
from stl_deploy.ir.network import Connection, Input, IntegerNetwork, Population
from stl_deploy.ir.neurons import Lif, Or
from stl_deploy.ir.notes import LayerPlacement, Placement
from stl_deploy.ir.readouts import Readout
from stl_deploy.ir.synapses import Dense, OneToOne
from tests.build import random_graphs
from tests.build.loads import ByHand, dealt
from tests.hw_sim.test_energy import CHIP_OF, close, compare, compare_counts
from tests.hw_sim.test_work import compare_traffic

GRAPHS = range(24)
SCHEDULED = random_graphs.Features(chips=("loihi1", "loihi2"))


def parts(rasters, size):
    """Rasters by input, ``size`` samples at a time."""
    count = len(next(iter(rasters.values())))
    for at in range(0, count, size):
        yield {name: x[at : at + size] for name, x in rasters.items()}


def recorded(network, rasters, model, size):
    recorder = Recorder(network, model)
    for part in parts(rasters, size):
        recorder.add(part, reference.run(network, part, cores=recorder.cores))
    return recorder.done()


@pytest.mark.parametrize("seed", GRAPHS)
def test_random_graphs_by_hand(seed):
    """Cores of any size, numbered in any order, batches of fewer steps than the network has hops."""
    network, rasters = random_graphs.draw(seed, SCHEDULED)
    model = list(CHIP_OF)[seed % len(CHIP_OF)]
    network = dealt(network, np.random.default_rng(seed), CHIP_OF[model])
    hand = ByHand(network, rasters, CHIP_OF[model])
    for size in (1, 3):
        done = recorded(network, rasters, model, size)
        compare_counts(network, rasters, done.counts)
        assert done.counts.hops == network.hops
        for did, by_hand in zip(done.counts.connections, hand.by_connection, strict=True):
            at = np.ndindex(did.synops.shape)
            assert did.synops.reshape(-1).tolist() == [by_hand[where] for where in at]
        (energy,) = done.energies.values()
        compare_traffic(network, hand, energy.traffic)
        compare(network, energy, hand, model, CHIP_OF[model])


@pytest.mark.parametrize("seed", range(6))
def test_links_of_random_graphs_can_bind(seed):
    """With slow links the busiest of all populations' packets in a step tells how long it takes."""
    network, rasters = random_graphs.draw(seed, SCHEDULED)
    network = dealt(network, np.random.default_rng(seed))
    chip, profile = chips.profiles()["loihi1-spice"]
    on = OnChip(network, chip)
    meter = Meter(network, on, profile.model_copy(update={"link_ns": 1e6}))
    work = Work(network, [(on.placed, on.mesh)])
    for part in parts(rasters, 1):
        (done,) = work.count(part, reference.run(network, part, cores=work.cores))
        meter.add(on.take(done))
    got = meter.energy(network.timesteps)
    _, times, _, _ = ByHand(network, rasters, "loihi1").price("loihi1", "loihi1-spice", link_ns=1e6)
    assert got.series_s == close(times)
    assert got.bounds[0].part == "network"


@pytest.mark.parametrize("seed", GRAPHS)
def test_packets_are_the_axons_of_placement(seed):
    """If every neuron spikes once, cores send and receive a packet over each axon that they hold."""
    network, _ = random_graphs.draw(seed, SCHEDULED)
    network = replace(network, timesteps=1)
    on = OnChip(network, chips.load(network.chip))
    ones = {name: np.ones((1, 1, *port.shape), np.uint8) for name, port in network.inputs.items()}
    work = Work(network, [(on.placed, on.mesh)])
    trace = reference.run(network, ones, cores=work.cores)
    for did in trace.layers.values():
        did.spikes[:] = 1
    (done,) = work.count(ones, trace)
    for name, layer in on.placed.layers.items():
        assert done.layers[name].packets_out.sum() == layer.total["out_axons"], name
        received = sum(int(a.packets.sum()) for a in done.arrivals if a.target == name)
        assert received == layer.total["in_axons"], name


def test_the_graphs_have_what_may_go_wrong():
    found = set()
    for seed in GRAPHS:
        network, _ = random_graphs.draw(seed, SCHEDULED)
        for c in network.connections:
            found |= {("delay", c.delay > 0), ("waits", network.waits(c) > 0), c.synapses.kind}
            found |= {("own", c.source == c.target), c.precision}
        for population in network.populations:
            into = network.into(population.name)
            depths = {network.depth[c.source] for c in into}
            found |= {("depths", len(depths)), ("kinds", len({c.synapses.kind for c in into}))}
            found |= {("targets", len({c.target for c in network.out_of(population.name)}))}
        for port in network.inputs.values():
            found |= {("held", port.held), ("signed", port.signed), ("graded", port.levels > 1)}
        found |= {("inputs", len(network.inputs))}
    assert found >= {
        *(("delay", True), ("waits", True), ("own", True), ("held", True), ("signed", True)),
        *(("graded", True), ("inputs", 2), ("depths", 2), ("kinds", 2), ("targets", 2)),
        *("conv", "dense", "sparse", "one_to_one", "8", "split", "2x8"),
    }


# Small networks


def line(*spikes):
    """A raster of one sample, one value a step and input."""
    return np.array(spikes, np.int16).reshape(1, -1, 1)


def neuron(name, size=1, vth=0, bias=0):
    shape = (size,)
    lif = Lif(np.full(shape, vth, np.int32), np.full(shape, bias, np.int32), np.ones(shape))
    return Population(name, shape, lif)


def ways(*each):
    """Connections of one synapse: (name, source, target, weight, delay)."""
    return tuple(
        Connection(name, source, target, Dense(np.array([[weight]], np.int8)), delay=delay)
        for name, source, target, weight, delay in each
    )


def small(populations, connections, inputs=None, chip="loihi1", steps=3):
    return IntegerNetwork(
        chip,
        steps,
        inputs or {"input": Input((1,))},
        tuple(populations),
        connections,
        Readout(1, populations[-1].size, populations[-1].name),
    )


def one_core_each(network):
    layers = {
        name: LayerPlacement(core, (population.size,), None, {}, {})
        for core, (name, population) in enumerate(network.by_name.items())
    }
    return replace(network, placement=Placement("loihi1", layers, len(layers), 1, 1))


def test_two_connections_from_one_neuron_share_a_packet():
    """One axon leads to the core, whatever delays its synapses have; each synapse is a synop."""
    both = ways(("now", "a", "b", 1, 0), ("later", "a", "b", 1, 2), ("in", "input", "a", 1, 0))
    network = one_core_each(small([neuron("a"), neuron("b")], both))
    done = recorded(network, {"input": line(1, 0, 0)}, "loihi1-nahuku", 1)
    assert [c.synops.tolist() for c in done.counts.connections] == [[[1, 0, 0]]] * 3
    assert done.counts.layers[1].inputs.tolist() == [[1, 0, 0]]
    assert done.counts.layers[1].synops.tolist() == [[2, 0, 0]]
    assert done.counts.layers[1].spikes.tolist() == [[1, 0, 1]]
    traffic = done.energies["loihi1-nahuku"].traffic
    assert traffic.packets_out.tolist() == [1, 2]  # from b to the host
    assert traffic.packets_in.tolist() == [1, 1]
    assert traffic.synops.tolist() == [1, 2]


def test_a_delayed_synop_is_paid_when_its_packet_arrives():
    """With pencil and paper: the host sends in step 0, and again in step 1; the weight waits two steps."""
    network = one_core_each(small([neuron("a")], ways(("in", "input", "a", 1, 2))))
    (connection,) = network.connections
    assert (network.depth, network.waits(connection)) == ({"input": 0, "a": 1}, 2)
    done = recorded(network, {"input": line(1, 1, 0)}, "loihi1-nahuku", 1)
    energy = done.energies["loihi1-nahuku"]
    receive, idle, busy = 16.0 + 3.8, 6.0, 6.0 + 3.7 + 30.0 + 5.1
    assert done.counts.layers[0].spikes.tolist() == [[0, 0, 1]]
    assert energy.series_s == close([1e-9 * (600 + ns) for ns in (receive, receive, idle, busy)])
    received, updated, fired = 35.5, 51.2, 21.6 + 69.3 + 111.0
    expected = (received + updated, received + updated, updated, updated + fired)
    assert energy.series_j == close([1e-12 * pj for pj in expected])


def test_the_host_sends_a_held_frame_in_every_step():
    inputs = {"held": Input((1,), 9, held=True), "steps": Input((1,), 9, signed=True)}
    both = ways(("a", "held", "p", 1, 0), ("b", "steps", "p", 1, 0))
    network = one_core_each(small([neuron("p")], both, inputs))
    rasters = {"held": line(7), "steps": line(0, -3, 5)}
    done = recorded(network, rasters, "loihi1-spice", 1)
    held, steps = done.counts.connections
    assert held.synops.tolist() == [[1, 1, 1]]
    assert steps.synops.tolist() == [[0, 1, 1]]
    assert done.counts.layers[0].inputs.tolist() == [[1, 2, 2]]
    assert done.energies["loihi1-spice"].traffic.in_from_host == 5


def test_a_population_that_nothing_reaches_and_one_that_reaches_nothing():
    silent = ways(("in", "input", "a", 3, 0), ("none", "a", "b", 0, 0), ("bias", "one", "b", 2, 0))
    populations = [neuron("one", bias=1), neuron("a"), neuron("b", vth=1)]
    network = one_core_each(small(populations, silent))
    raster = {"input": line(1, 1, 1)}
    energy = recorded(network, raster, "loihi1-spice", 1).energies["loihi1-spice"]
    compare(network, energy, ByHand(network, raster, "loihi1"), "loihi1-spice", "loihi1")
    assert energy.traffic.packets_out.tolist() == [3, 0, 3]


# Loops that no chip can run in step


def loop(delay):
    populations = [neuron("a"), neuron("b"), neuron("out")]
    connections = ways(
        ("in", "input", "a", 1, 0),
        ("on", "a", "b", 1, 0),
        ("back", "b", "a", 1, delay),
        ("out", "b", "out", 1, 0),
    )
    return small(populations, connections, chip="ideal")


def test_a_loop_of_fewer_steps_than_hops_has_counts_alone():
    network, raster = loop(1), {"input": line(1, 0, 0)}
    assert network.depth is None
    done = recorded(network, raster, None, 1)
    assert (done.energies, done.counts.hops, done.counts.physical_steps) == ({}, 0, 3)
    compare_counts(network, raster, done.counts)
    assert [int(c.synops.sum()) for c in done.counts.connections] == [1, 3, 3, 3]
    assert str(unscheduled(network)) == (
        "a, b: a loop of connections has fewer steps of delay than hops, so that no chip can run it in "
        "step; its energy and time are not estimated -> give its connections longer delays"
    )
    with pytest.raises(LoweringError, match="a, b: a loop of connections"):
        Assessment(network, "loihi2-pilotnet")
    with pytest.raises(ValueError, match="no chip can run"):
        OnChip(network, chips.load("loihi1"), one_core_each(network).placement)


def test_a_loop_of_as_many_steps_as_hops_has_energy():
    network = loop(2)
    assert unscheduled(network) is None
    done = recorded(one_core_each(network), {"input": line(1, 0, 0)}, "loihi1-spice", 1)
    assert set(done.energies) == {"loihi1-spice"}


# NeuroBench


def bench(network, rasters):
    done = recorded(one_core_each(network), rasters, "loihi1-spice", 1)
    return neurobench.metrics(network, done.counts)


def test_a_late_reset_is_no_connection_layer():
    """One-to-one from a population to itself: no operations, its weights are memory of the neurons."""
    own = Connection(
        "reset", "a", "a", OneToOne(np.array([-5], np.int16)), precision="2x8", delay=1
    )
    without = small([neuron("a")], ways(("in", "input", "a", 1, 0)))
    network = small([neuron("a")], (*without.connections, own))
    raster = {"input": line(1, 1, 0)}
    with_reset, plain = bench(network, raster), bench(without, raster)
    assert with_reset.dense == plain.dense == 3
    assert with_reset.footprint_bytes == plain.footprint_bytes + 2
    assert with_reset.connection_sparsity == plain.connection_sparsity == 0
    assert with_reset.effective_acs == plain.effective_acs == 2
    done = recorded(one_core_each(network), raster, "loihi1-spice", 1).counts
    assert int(done.connections[1].synops.sum()) == 1
    assert neurobench.operations(network, done)[1] is None


def test_snntorch_networks_that_differ_in_their_reset_cost_the_same():
    """Dense operations by PyTorch's sizes; the memory differs by the weights of the late resets."""

    def net(reset):
        torch.manual_seed(0)
        leaky = {"beta": 0.5, "init_hidden": True, "reset_mechanism": reset}
        made = nn.Sequential(
            *(nn.Conv2d(1, 4, 3), nn.AvgPool2d(2), snn.Leaky(**leaky)),
            *(nn.Flatten(), nn.Linear(4 * 5 * 5, 10), snn.Leaky(**leaky)),
        )
        with torch.no_grad():
            for layer in (made[0], made[4]):
                layer.weight *= 6
        return made

    found = {}
    for reset in ("subtract", "zero"):
        graph = stl_deploy.from_torch(net(reset), torch.ones(1, 1, 12, 12))
        network = stl_deploy.quantize(graph, chip="loihi2")
        raster = {name: np.ones((1, 4, 1, 12, 12), np.uint8) for name in network.inputs}
        found[reset] = (
            network,
            neurobench.metrics(network, recorded(network, raster, None, 1).counts),
        )
    (late, subtract), (_, zero) = found["subtract"], found["zero"]
    # Average pooling joins the kernel of 3 x 3: one of 4 x 4 in steps of two, 5 x 5 times.
    assert subtract.dense == zero.dense == 4 * (4 * 16 * 25 + 100 * 10)
    own = [c for c in late.connections if c.source == c.target]
    assert [c.synapses.kind for c in own] == ["one_to_one"] * 2
    more = sum(c.synapses.weight.nbytes for c in own)
    assert subtract.footprint_bytes == zero.footprint_bytes + more


def test_a_relay_is_no_part_of_the_model():
    plain = small(
        [neuron("a"), neuron("b")], ways(("in", "input", "a", 1, 0), ("on", "a", "b", 1, 1))
    )
    copy = Connection("relay_w", "a", "relay", OneToOne(np.ones(1, np.int8)), bits=1)
    relayed = small(
        [neuron("a"), Population("relay", (1,), Or()), neuron("b")],
        (*ways(("in", "input", "a", 1, 0), ("on", "relay", "b", 1, 1)), copy),
    )
    raster = {"input": line(1, 0, 1)}
    assert bench(relayed, raster) == bench(plain, raster)


def test_shared_weights_are_stored_once_and_used_twice():
    shared, rng = Dense(np.array([[1, 0], [3, -4]], np.int8)), np.random.default_rng(0)
    again = Dense(shared.weight.copy())
    other = Dense(np.array([[1, 0], [3, -5]], np.int8))
    inputs = {"x": Input((2,)), "y": Input((2,), 9)}
    raster = {name: rng.integers(0, port.levels + 1, (1, 3, 2)) for name, port in inputs.items()}

    def net(second):
        both = Connection("fc", "x", "a", shared), Connection("fc", "y", "a", second)
        return small([neuron("a", 2)], both, inputs)

    for second, held in ((shared, 4), (again, 4), (other, 8)):
        got = bench(net(second), raster)
        assert got.footprint_bytes == held + 2 * 4 + 2 * 4
        assert got.connection_sparsity == 1 / 4
        assert got.dense == 3 * 8
        met = [int((x != 0).reshape(-1, 2).sum(axis=0) @ [2, 1]) for x in raster.values()]
        assert [got.effective_acs, got.effective_macs] == met


def test_values_of_one_are_accumulated_whatever_their_sign():
    """NeuroBench takes -1, 0 and 1 for spikes."""
    inputs = {"signed": Input((1,), 1, signed=True), "graded": Input((1,), 2)}
    both = ways(("s", "signed", "a", 1, 0), ("g", "graded", "a", 1, 0))
    got = bench(
        small([neuron("a")], both, inputs), {"signed": line(-1, 1, 0), "graded": line(1, 0, 0)}
    )
    assert (got.effective_acs, got.effective_macs) == (2, 1)


def test_decays_of_each_neuron_are_parameters():
    a = neuron("a", 2)
    each = replace(a, neurons=replace(a.neurons, dv=np.array([1, 2], np.int32)))
    connection = Connection("in", "input", "a", Dense(np.ones((2, 1), np.int8)))
    one, many = (bench(small([p], (connection,)), {"input": line(1, 0, 0)}) for p in (a, each))
    assert many.footprint_bytes == one.footprint_bytes + 8
