"""Events of every core and link against counts by hand; the mesh; NeuroBench's metrics."""

import dataclasses
import math
from collections import Counter
from itertools import pairwise

import numpy as np
import pytest
from scipy.sparse import csc_array, csr_array

import stl_deploy
from stl_deploy.chips import facts as chips
from stl_deploy.chips import placement
from stl_deploy.hw_sim import reference
from stl_deploy.hw_sim.account import counters, neurobench
from stl_deploy.hw_sim.account.counters import Columns, SpikeCounters, kinds_of
from stl_deploy.hw_sim.account.energy import Assessment
from stl_deploy.hw_sim.account.mesh import Mesh
from stl_deploy.hw_sim.account.work import synapses_by_core
from stl_deploy.hw_sim.simulate import Recorder
from stl_deploy.ir.synapses import Conv, Dense
from tests.build import random_graphs
from tests.build.loads import (
    ByHand,
    alone,
    core_by_neuron,
    drawn,
    hears,
    large,
    tiny,
    way,
)
from tests.build.nets import random_net, random_spikes
from tests.build.networks import chain, lif, pool, raster
from tests.build.wires import weights, wires

LOIHI1 = chips.load("loihi1")
NETWORKS = pytest.mark.parametrize(
    "network",
    [tiny(), large(), hears(tiny()), hears(large()), alone()],
    ids=["tiny", "large", "tiny, recurrent", "large, recurrent", "alone"],
)


def recorded(network, inputs):
    recorder = Recorder(network)
    recorder.add(inputs, reference.run(network, inputs, cores=recorder.cores))
    return recorder.done()


# Cores


@NETWORKS
def test_the_core_of_every_neuron(network):
    placed = placement.place(network, LOIHI1)
    for population in network.populations:
        on = placed.layers[population.name]
        expected = core_by_neuron(population, on)
        got = placement.core_of(population, on).reshape(population.shape)
        for where in np.ndindex(population.shape):
            assert got[where] + on.first_core == expected[where]


def test_the_core_of_neurons_in_another_order():
    network = stl_deploy.quantize(stl_deploy.from_torch(random_net()), chip="loihi1")
    for population in network.populations:
        on = network.placement.layers[population.name]
        dealt = sorted(np.ndindex(population.shape), key=lambda at: (*at[1:], at[0]))
        got = placement.core_of(population, on).reshape(population.shape)
        ends = np.cumsum(on.blocks)
        for place, neuron in enumerate(on.order or range(population.size)):
            assert got[dealt[neuron]] == np.searchsorted(ends, place, "right")


def counted_synapses(network, connection, cores, count):
    expected = np.zeros((count, *network.shape(connection.source)), np.int64)
    for source, target in wires(network, connection):
        expected[(cores[target], *source)] += 1
    return expected.reshape(count, -1)


@pytest.mark.parametrize("seed", range(8))
def test_synapses_into_cores_of_random_graphs(seed):
    """Neurons on cores at random: nothing hangs on contiguous blocks."""
    network, _ = random_graphs.draw(seed)
    for c in network.connections:
        cores = np.random.default_rng(seed).integers(0, 3, network.shape(c.target))
        got = synapses_by_core(network, c, cores.reshape(-1), 3)
        assert got.dtype == np.int32
        np.testing.assert_array_equal(got.toarray(), counted_synapses(network, c, cores, 3))


def test_neurobench_counts_a_fold_as_the_connections_that_it_is():
    graph = stl_deploy.from_torch(random_net())
    inputs = random_spikes(random_net(), 2)
    network = stl_deploy.quantize(graph, chip="loihi2", thresholds="fold")
    plain = stl_deploy.quantize(graph, chip="loihi2")
    of = {}
    for name, net in (("fold", network), ("native", plain)):
        of[name] = neurobench.metrics(net, recorded(net, inputs).counts)
    assert of["fold"].dense == of["native"].dense
    into = [c.synapses for p in network.weighted for c in network.into(p.name)]
    single = sum(held.weight.size for held in into if held.kind == "sparse")
    stored = sum(held.weight.nbytes for held in into)
    stored += sum(p.neurons.bias_mant.nbytes + p.neurons.vth.nbytes for p in network.weighted)
    assert of["fold"].footprint_bytes == stored + 8 * single
    assert 0 <= of["fold"].connection_sparsity < 1


@pytest.mark.parametrize("groups", [1, 2, 4])
@pytest.mark.parametrize("stride", [(1, 1), (2, 3)])
@pytest.mark.parametrize("padding", [(0, 0), (2, 1)])
@pytest.mark.parametrize("dilation", [(1, 1), (1, 2)])
def test_synapses_into_cores_of_a_convolution(groups, stride, padding, dilation):
    rng = np.random.default_rng(groups)
    conv = Conv(drawn(rng, 8, 4 // groups, 3, 2), stride, padding, dilation, groups)
    network = chain(lif("lif", conv, (4, 7, 6)))
    (connection,) = network.connections
    cores = rng.integers(0, 5, network.shape("lif"))
    got = synapses_by_core(network, connection, cores.reshape(-1), 5)
    assert (got.toarray() == counted_synapses(network, connection, cores, 5)).all()


@pytest.mark.parametrize(
    "layer",
    [
        lif("lif", Dense(drawn(np.random.default_rng(1), 9, 12)), (3, 2, 2), (9,), 1),
        pool((3, 6, 4), (3, 2)),
    ],
    ids=["dense", "pool"],
)
def test_synapses_into_cores(layer):
    network = chain(layer)
    (connection,) = network.connections
    cores = np.random.default_rng(2).integers(0, 4, network.shape(layer.name))
    got = synapses_by_core(network, connection, cores.reshape(-1), 4)
    assert (got.toarray() == counted_synapses(network, connection, cores, 4)).all()


def test_active_neurons_by_core():
    """Interleaved cores, one of them without neurons."""
    network = tiny()
    inputs = raster(network, 4)
    cores = {p.name: (np.arange(p.size) * 7 % 3) * 2 for p in network.populations}
    trace = reference.run(network, inputs, states=True, cores=cores)
    for did in trace.layers.values():
        assert did.active_by_core.shape == (4, network.timesteps, 5)
        assert (did.active_by_core.sum(axis=2) == did.active).all()
        assert not did.active_by_core[..., [1, 3]].any()
    # The first step has what arrived, and lif2 its bias; a pool what fired.
    first = (trace.layers["lif1"].u[:, 0] != 0).reshape(4, -1)
    fired = trace.layers["pool1"].spikes.reshape(4, network.timesteps, -1)
    for core in range(5):
        on = cores["lif1"] == core
        assert (trace.layers["lif1"].active_by_core[:, 0, core] == first[:, on].sum(1)).all()
        on = cores["pool1"] == core
        assert (trace.layers["pool1"].active_by_core[..., core] == fired[..., on].sum(2)).all()
        assert (
            trace.layers["lif2"].active_by_core[..., core] == (cores["lif2"] == core).sum()
        ).all()
    assert reference.run(network, inputs).layers["lif1"].active_by_core is None


def test_cores_of_several_chips_at_once():
    """One number a neuron tells its core on each chip."""
    network = large()
    assessment = Assessment(network)
    for population in network.populations:
        number = assessment.cores[population.name]
        each = [
            placement.core_of(population, on.placed.layers[population.name])
            for on in assessment.chips.values()
        ]
        assert len(each) == 2
        pairs = set(zip(*each, strict=True))
        assert len(pairs) == number.max() + 1 == len(set(zip(number, *each, strict=True)))


# Mesh


def test_tiles_fill_columns():
    mesh = Mesh(LOIHI1, 103)
    assert (mesh.columns, mesh.rows, mesh.chips) == (8, 4, 1)
    assert [int(mesh.tile(core)) for core in (0, 3, 4, 127)] == [0, 0, 1, 31]
    assert [tuple(map(int, mesh.position(tile))) for tile in (0, 3, 4, 31)] == [
        (0, 0),
        (0, 3),
        (1, 0),
        (7, 3),
    ]


@pytest.mark.parametrize("cores", [128, 129, 300])
def test_every_route(cores):
    """First along the row, then along the column; through the chips where there are several."""
    mesh = Mesh(LOIHI1, cores)
    assert mesh.chips == -(-cores // 128)
    rng = np.random.default_rng(0)
    tiles = rng.integers(0, mesh.tiles, (200, 2))
    matrix = mesh.routes(tiles[:, 0], tiles[:, 1]).toarray()
    across, along = mesh.hops(tiles[:, 0], tiles[:, 1])
    for i, (source, target) in enumerate(tiles.tolist()):
        links = [mesh.link(n) for n in mesh.route(source, target)]
        visited = way(4 * source, 4 * target)
        assert [(link.source, link.target) for link in links] == list(pairwise(visited))
        assert np.flatnonzero(matrix[i]).tolist() == sorted(mesh.route(source, target))
        directions = Counter(link.direction for link in links)
        assert across[i] == directions["east"] + directions["west"]
        assert along[i] == directions["north"] + directions["south"]
        assert across[i] == mesh.east_west[mesh.route(source, target)].sum()
        for link in links:
            step = link.target - link.source
            assert {"east": 4, "west": -4, "north": 1, "south": -1}[link.direction] == step
            assert link.between_chips == (link.source // 32 != link.target // 32)


def test_no_routes_at_all():
    mesh = Mesh(LOIHI1, 4)
    here = np.zeros(3, np.int64)
    assert mesh.routes(here, here).nnz == 0


# Events


def columns_by(kind, counters, rng, largest=9):
    """Counters int32 [counters, neurons] with few entries, equal for neurons of one kind."""
    size = counters, kind.max() + 1
    examples = rng.integers(1, largest + 1, size) * (rng.random(size) < 0.1)
    return examples[:, kind].astype(np.int32)


@pytest.mark.parametrize("shape", [(3, 4, 6), (2, 3, 5), (100,), (7,)])
@pytest.mark.parametrize("few", [True, False], ids=["few kinds", "many kinds"])
@pytest.mark.parametrize("largest", [9, 1 << 20])
def test_counters_are_a_product_with_the_spikes(shape, few, largest):
    """Whatever the neurons have in common, and wherever the spikes lie in memory."""
    rng = np.random.default_rng(math.prod(shape))
    neurons = math.prod(shape)
    kind = rng.integers(0, 2, neurons) if few else np.arange(neurons)
    rows = [
        {
            ("spikes", ""): csr_array(columns_by(kind, 130, rng)),
            ("links", ""): csr_array(columns_by(kind, 40, rng)),
            ("synops", "0"): csr_array(columns_by(np.arange(neurons), 70, rng, largest)),
        }
        for _ in range(2)
    ]
    spike = SpikeCounters(shape, [{n: Columns.of(m) for n, m in own.items()} for own in rows])
    fired = (rng.random((5, 30, *shape)) < 0.3) * rng.integers(1, 255, shape)
    for given in (
        fired,
        fired != 0,
        fired.astype(np.uint8),
        np.moveaxis(np.ascontiguousarray(np.moveaxis(fired.astype(np.uint8), 2, -1)), -1, 2),
    ):
        table = np.empty((spike.counters, 150), np.int32)
        spike.count(spike.rows(given), table)
        flat = (fired != 0).reshape(150, -1).T.astype(np.int32)
        for own, got in zip(rows, spike.by_name(table), strict=True):
            assert set(got) == set(own)
            for name, matrix in own.items():
                np.testing.assert_array_equal(got[name], matrix @ flat)


def test_columns_that_miss_little():
    """Equal columns but for a few ones and twos: they are counted together, and what misses is taken off."""
    rng = np.random.default_rng(0)
    alike = 10 * (rng.random((50, 3)) < 0.6)[:, rng.integers(0, 3, 200)]
    missing = rng.choice([0, 1, 2], alike.shape, p=[0.9, 0.06, 0.04]) * (alike > 0)
    columns = csr_array((alike - missing).astype(np.int32))
    spike = SpikeCounters((200,), [{("synops", "0"): Columns.of(columns)}])
    assert spike.rest is not None
    worth = spike.rest.matrix
    assert set(worth.data) == {-1, -2}
    ones = np.unpackbits(spike.rest.planes.masks.view(np.uint8))
    assert ones.sum() < columns.nnz / 2
    fired = rng.random((2, 33, 200)) < 0.3
    table = np.empty((50, 66), np.int32)
    spike.count(spike.rows(fired), table)
    np.testing.assert_array_equal(table, columns @ fired.reshape(66, -1).T.astype(np.int32))


def test_kinds_are_equal_columns(monkeypatch):
    rng = np.random.default_rng(0)
    dense = columns_by(rng.integers(0, 5, 300), 40, rng)
    dense[:, 7] = 0
    kinds, examples = kinds_of(csc_array(dense))
    assert len(examples) == len(np.unique(dense, axis=1).T)
    assert (dense[:, examples][:, kinds] == dense).all()

    class Same:
        def integers(self, high, size, dtype):
            return np.zeros(size, dtype)

    # Numbers that tell no columns apart: every column is of its own kind then.
    monkeypatch.setattr(np.random, "default_rng", lambda seed: Same())
    kinds, examples = kinds_of(csc_array(dense))
    assert (kinds == np.arange(300)).all()
    assert (examples == kinds).all()


@NETWORKS
def test_cores_and_links_by_hand(network):
    inputs = raster(network, 4)
    energies = recorded(network, inputs).energies
    for profile, chip in (("loihi1-spice", "loihi1"), ("loihi2-pilotnet", "loihi2")):
        compare_traffic(network, ByHand(network, inputs, chip), energies[profile].traffic)


def compare_traffic(network, hand, traffic):
    for counter, kind in (
        ("active", "updates"),
        ("spikes", "spikes"),
        ("synops", "synops"),
        ("packets_in", "received"),
        ("packets_out", "out"),
    ):
        by_core = hand.total(kind)
        got = getattr(traffic, counter)
        assert got.tolist() == [by_core[(core,)] for core in range(len(got))], counter
    assert traffic.neurons.tolist() == [hand.neurons[core] for core in range(len(got))]
    assert len(traffic.neurons) == hand.placed.cores
    links = {(link.source, link.target): n for link, n in traffic.links}
    assert links == hand.total("links")
    assert list(links.values()) == sorted(links.values(), reverse=True)
    assert traffic.in_from_host == hand.from_host
    spikes = sum(hand.spikes[network.readout.source].values())
    assert traffic.out_to_host == (spikes if network.readout.by_spikes else 0)
    for population in network.populations:
        for core in set(hand.cores[population.name].values()):
            assert traffic.layer_of(core) == population.name


@NETWORKS
def test_totals_are_those_of_the_populations(network):
    done = recorded(network, raster(network, 2))
    for energy in done.energies.values():
        traffic = energy.traffic
        for counter in ("active", "spikes", "synops"):
            per_layer = sum(int(getattr(layer, counter).sum()) for layer in done.counts.layers)
            assert getattr(traffic, counter).sum() == per_layer
        on_chip = traffic.packets_out.sum() - traffic.out_to_host
        assert on_chip == traffic.packets_in.sum() - traffic.in_from_host


# NeuroBench


def test_neurobench_by_hand():
    network = tiny()
    inputs = raster(network, 3)
    trace = reference.run(network, inputs)
    got = neurobench.metrics(network, recorded(network, inputs).counts)
    sent = {"input": inputs} | {name: did.spikes for name, did in trace.layers.items()}
    acs, macs, dense, zeros, fired, outputs = (0,) * 6
    for c in network.connections:
        if c.target == "pool1":
            continue
        met = sum(
            1 for before, _ in wires(network, c)
            for step in sent[c.source].reshape(-1, *network.shape(c.source)) if step[before]
        )  # fmt: skip
        macs, acs = (macs + met, acs) if c.source == "input" else (macs, acs + met)
        dense += len(list(weights(network, c))) * network.timesteps
        zeros += np.count_nonzero(c.synapses.weight == 0)
        fired += int(sent[c.target].sum())
        outputs += sent[c.target].size
    assert got.effective_macs == pytest.approx(macs / 3)
    assert got.effective_acs == pytest.approx(acs / 3)
    assert got.dense == dense
    assert got.activation_sparsity == pytest.approx(1 - fired / outputs)
    sizes = [c.synapses.weight.size for c in network.connections if c.target != "pool1"]
    assert got.connection_sparsity == pytest.approx(zeros / sum(sizes))
    assert got.footprint_bytes == sum(sizes) + 4 * (4 + 5 + 4) + 4 * (72 + 5 + 4)
    energy = neurobench.convention_45nm(network, got)
    assert energy.snn_j == pytest.approx(1e-12 * (0.9 * acs + 4.6 * macs) / 3)
    assert energy.ann_j == pytest.approx(1e-12 * 4.6 * dense / network.timesteps)


def test_neurobench_counts_recurrent_connections():
    """Input 2 meets both weights in each of two steps; a neuron fires in both and meets one weight."""
    layer = lif("one", Dense(np.array([[9], [1]], np.int8)), (1,), (2,), vth=6)
    own = Dense(np.array([[0, 3], [-4, 0]], np.int8))
    layer = dataclasses.replace(layer, recurrent=own, recurrent_name="rec")
    network = chain(layer, chip="loihi1", steps=2, levels=2)
    got = neurobench.metrics(network, recorded(network, np.full((1, 2, 1), 2, np.uint8)).counts)
    assert (got.effective_macs, got.effective_acs) == (4, 2)
    assert got.dense == 2 * (2 + 4)
    assert got.connection_sparsity == pytest.approx(2 / 6)
    assert got.footprint_bytes == 2 + 4 + 4 * 2 + 4 * 2


def test_binary_input_has_no_multiplications():
    layer = lif("one", Dense(np.array([[5, 0]], np.int8)), (2,), (1,), vth=0)
    network = chain(layer, chip="loihi1", steps=2)
    got = neurobench.metrics(
        network, recorded(network, np.array([[[1, 1], [0, 1]]], np.uint8)).counts
    )
    assert (got.effective_acs, got.effective_macs, got.dense) == (1, 0, 4)
    assert (got.activation_sparsity, got.connection_sparsity) == (0.5, 0.5)


@pytest.mark.parametrize(
    ("rows", "neurons"), [(1, 8), (7, 32), (13, 21), (40, 64), (33, 65), (17, 95)]
)
def test_spikes_are_packed_whatever_their_number_and_value(rows, neurons):
    """Also graded ones, of which any bit may be set."""
    rng = np.random.default_rng(rows)
    values = rng.integers(0, 256, (rows, neurons)) * (rng.random((rows, neurons)) < 0.5)
    bits = counters._packed(values.astype(np.uint8))
    assert bits.shape == (-(-neurons // 32), -(-rows // 32) * 32)
    found = bits[:, None] >> np.arange(32, dtype=np.uint32)[:, None] & 1
    found = found.reshape(-1, bits.shape[1])
    assert (found[:neurons, :rows] == (values != 0).T).all()
    assert not found[neurons:].any()
    assert not found[:, rows:].any()


def test_columns_of_any_sign_and_size():
    """Every bit of an entry counts for itself, up to the largest of 31 bits."""
    rng = np.random.default_rng(3)
    entries = rng.integers(-(1 << 31) + 1, 1 << 31, (9, 70)) >> rng.integers(0, 31, (9, 70))
    entries[0, :3] = (1 << 31) - 1, 1 - (1 << 31), 0
    # One spike a step, so that no sum passes 32 bits.
    fired = np.eye(70, dtype=np.uint8)[None]
    spike = SpikeCounters(
        (70,), [{("synops", "0"): Columns.of(csr_array(entries.astype(np.int32)))}]
    )
    table = np.empty((9, 70), np.int32)
    spike.count(spike.rows(fired), table)
    np.testing.assert_array_equal(table, entries)
