"""Weights in one-signed groups and in two slices: grids, sums, counts, memory, files and targets."""

from __future__ import annotations

import json
from dataclasses import replace

import h5py
import numpy as np
import pytest

import stl_deploy
from stl_deploy.chips import facts as chips
from stl_deploy.chips import placement
from stl_deploy.errors import InputError, LoweringError
from stl_deploy.exporters import lava, loihi, netx
from stl_deploy.formats import integer_nir as nir_file
from stl_deploy.formats import nir_io
from stl_deploy.formats.raster import Raster
from stl_deploy.hw_sim import engine, plans, reference
from stl_deploy.hw_sim.account import neurobench
from stl_deploy.hw_sim.account.work import synapses_by_core
from stl_deploy.hw_sim.simulate import Recorder
from stl_deploy.ir import floats as float_networks
from stl_deploy.ir import single, slices
from stl_deploy.ir.network import Input, fan_out, synapse_count
from stl_deploy.ir.synapses import Dense
from stl_deploy.lower import folding
from stl_deploy.lower import rows as rows_of
from stl_deploy.verify import faults
from stl_deploy.verify.against_float import compare
from tests.build import nets
from tests.build.files import change_meta
from tests.build.nets import random_net, random_spikes, taken
from tests.build.networks import chain, dense_lif, random_cores
from tests.build.random_networks import draw
from tests.build.traces import assert_same
from tests.build.wires import wires

WIDE = ("split", "2x8")
PRECISIONS = pytest.mark.parametrize("precision", WIDE)
DRAWN = pytest.mark.parametrize(
    "drawn",
    [{}, {"process_graph": True}, {"recurrent": True}],
    ids=["plain", "folded", "recurrent"],
)


def quantized(precision, chip="loihi2", **options):
    return nets.quantized(chip=chip, weight_precision=precision, **options)


def one_layer(weight, precision, vth=50):
    layer = dense_lif(weight, vth, kind=np.int16, weight_precision=precision)
    return chain(layer, steps=2)


# Grids and groups


@pytest.mark.parametrize("bits", range(2, 9))
def test_split_holds_every_weight_in_a_group_of_its_sign(bits):
    top = 2**bits - 1
    assert slices.span("split", bits) == (-top, top)
    w = np.arange(-top, top + 1, dtype=np.int16)
    up, down = slices.cut(w, "split")
    assert (up.min(), up.max(), down.min(), down.max()) == (0, top, -top, 0)
    assert (up + down == w).all()
    assert ((up != 0) & (down != 0)).sum() == 0


def test_two_slices_hold_every_weight_in_as_few_synapses_as_can_be():
    low, top = slices.span("2x8", 8)
    assert (low, top, slices.largest("2x8", 8)) == (-16448, 16319, 16319)
    w = np.arange(low, top + 1, dtype=np.int16)
    upper, lower = slices.cut(w, "2x8")
    assert upper.dtype == lower.dtype == np.int8
    assert (128 * upper.astype(int) + lower == w).all()
    assert slices.synapses(w, "2x8").tolist() == [taken(int(n), "2x8") for n in w]
    # One more on either side is more than two slices can be.
    assert top + 1 > 127 * 128 + 63
    assert low - 1 < -128 * 128 - 64


@PRECISIONS
@DRAWN
def test_the_groups_add_up_to_the_connection(precision, drawn):
    for seed in range(3):
        network, raster = draw(seed, **drawn, precision=precision)
        sent = {"input": raster} | {
            name: did.spikes for name, did in reference.run(network, raster).layers.items()
        }
        for connection in network.connections:
            if connection.precision == precision:
                limit = {"split": 255, "2x8": 128}[precision]
                x = sent[connection.source].reshape(-1, *network.shape(connection.source))
                levels, groups = network.levels(connection.source), list(connection.groups())
                assert all(np.abs(g.synapses.weight.astype(int)).max() <= limit for g in groups)
                a = sum(group.sums(x, levels) for group in groups)
                assert (a == connection.sums(x, levels)).all()


# The engine


@PRECISIONS
@DRAWN
def test_the_engine_is_the_reference(precision, drawn):
    for seed in range(8):
        rng = np.random.default_rng(seed)
        network, raster = draw(seed, **drawn, precision=precision)
        network = replace(network, chip=str(rng.choice(["ideal", "loihi1", "loihi2"])))
        if network.chip == "loihi1":
            network = network.changed(
                *(replace(p, neurons=replace(p.neurons, reset="zero")) for p in network.weighted)
            )
        cores = random_cores(rng, network)
        for part in network.parts:
            if all(network.levels(c.source) == 1 for c in network.into(part[0].name)):
                assert plans.plan(network, part, network.timesteps, True, {}) is not None
        for states in (False, True):
            want = reference.run(network, raster, states, cores)
            assert_same(engine.run(network, raster, states, cores), want)


@PRECISIONS
def test_the_engine_adds_up_the_largest_weights(precision):
    """Sums beyond 16 bits, in the plain step and in the other, on a chip that holds them."""
    top = slices.largest(precision, 8)
    rng = np.random.default_rng(0)
    weight = rng.choice([-top, top], (40, 300))
    for vth in (300 * top // 4, 1 << 17):
        network = one_layer(weight, precision, vth)
        network = replace(network, chip="ideal", timesteps=3)
        raster = (rng.random((3, 3, 300)) < 0.7).astype(np.uint8)
        raster[:, 0] = weight[0] > 0
        want = reference.run(network, raster, states=True)
        assert want.layers["lif"].u.max() > 1 << 21
        assert_same(engine.run(network, raster, states=True), want)
        assert_same(engine.run(network, raster), reference.run(network, raster))


def test_sums_beyond_32_bits_are_left_to_the_reference():
    weight = np.full((40, 600), 16319)
    network = one_layer(weight, "2x8", 1 << 30)
    network = replace(network, chip="ideal", inputs={"input": Input((600,), 255)})
    raster = np.full((1, 2, 600), 255, np.uint8)
    want = reference.run(network, raster, states=True)
    assert want.layers["lif"].u.max() == 600 * 255 * 16319 << 6
    assert plans.plan(network, network.parts[0], 2, True, {}) is None
    assert_same(engine.run(network, raster, states=True), want)


# What it costs


@PRECISIONS
@DRAWN
def test_synapses_are_counted_slice_by_slice(precision, drawn):
    rng = np.random.default_rng(0)
    for seed in range(2):
        network, _ = draw(seed, **drawn, precision=precision)
        for c in network.connections:
            pairs = list(wires(network, c))
            assert synapse_count(network, c) == len(pairs)
            cores = rng.integers(0, 3, network.shape(c.target))
            expected = np.zeros((3, *network.shape(c.source)), int)
            for source, target in pairs:
                expected[(cores[target], *source)] += 1
            got = synapses_by_core(network, c, cores.reshape(-1), 3).toarray()
            assert (got == expected.reshape(3, -1)).all()
            assert (fan_out(network, c) == expected.sum(axis=0)).all()


def test_a_spike_is_a_synop_in_every_slice_that_it_meets():
    # Synapses of the columns: 1 + 2, 1 + 0, 2 + 2.
    weight = [[127, 128, 300], [-129, 0, -16319]]
    network = one_layer(weight, "2x8", 100)
    network = replace(network, placement=placement.place(network, chips.load("loihi2")))
    raster = np.zeros((1, 2, 3), np.uint8)
    raster[0, 0] = [1, 0, 1]
    raster[0, 1] = [0, 1, 1]
    recorder = Recorder(network)
    recorder.add(raster, reference.run(network, raster, cores=recorder.cores))
    run = recorder.done()
    assert run.counts.layers[0].synops.tolist() == [[3 + 4, 1 + 4]]
    (connection,) = network.connections
    assert synapse_count(network, connection) == connection.stored_weights == 8
    once = neurobench.metrics(network, run.counts)
    assert once.effective_acs == 12
    assert once.dense == 2 * 2 * 6
    assert once.connection_sparsity == 1 - 8 / 12


@pytest.mark.parametrize(
    ("precision", "groups"), [("8", (70,)), ("split", (40, 30)), ("2x8", (70, 50))]
)
def test_memory_is_that_of_entries_of_each_group(precision, groups):
    """70 synapses of one axon: per entry of at most 64 a header of 10 bits, in words of 64."""
    weight = {
        "8": np.full(70, 5),
        "split": np.repeat([200, -200], [40, 30]),
        "2x8": np.repeat([1000, 1024], [50, 20]),
    }[precision]
    if precision == "2x8":
        weight[:50] += 1  # not a multiple of 128
    network = one_layer(weight[:, None], precision)
    if precision == "8":
        (connection,) = network.connections
        narrow = connection.synapses.weight.astype(np.int8)
        network = network.changed(replace(connection, synapses=Dense(narrow)))
    placed = placement.place(network, chips.load("loihi2")).layers["lif"]
    bits = 8 + 13

    def words(n):
        return -(-(min(n, 64) * bits + 10) // 64) + (
            -(-((n - 64) * bits + 10) // 64) if n > 64 else 0
        )

    assert placed.total["synapse_bytes"] == 8 * sum(map(words, groups))
    assert placed.total["in_axons"] == 1


# Quantizing


@PRECISIONS
@pytest.mark.parametrize("bits", [8, 3])
def test_weights_are_the_nearest_on_their_grid(precision, bits):
    if precision == "2x8" and bits != 8:
        return
    network = quantized(precision, chip="ideal", weight_bits=bits)
    graph = stl_deploy.from_torch(random_net("4C3-BN-LIF-P4-FC20-LIF-AvgPool2"))
    top = {"split": 2**bits - 1, "2x8": 16319}[precision]
    for population in network.weighted:
        (connection,) = network.into(population.name)
        held, channels = connection.synapses.weight, population.shape[0]
        rows = held.reshape(channels, -1)
        assert held.dtype == np.int16
        assert (np.abs(rows).max(axis=1) == top).all()
        gain = 1  # tau 1/2 and r 2
        exact = graph.nodes[connection.name].weight * gain
        unit = population.neurons.scale.reshape(-1, 1)
        assert np.abs(rows - exact.reshape(channels, -1) / unit).max() <= 0.5 + 1e-6
        how = network.precision[population.name]
        assert how.effective_bits == pytest.approx(connection.grid_bits)


@pytest.mark.parametrize(
    ("options", "what"),
    [
        ({"weight_precision": "16"}, ["'16' is not one of 8, split, 2x8"]),
        (
            {"weight_precision": "2x8", "weight_exp": 1, "weight_bits": 7},
            ["2x8 has slices of 8 bits, not of 7", "leaves none for 1"],
        ),
        ({"weight_precision": "2x8", "overflow": "checked"}, ["the full grid overflows loihi2"]),
    ],
)
def test_what_does_not_go_together(options, what):
    graph = stl_deploy.from_torch(random_net())
    with pytest.raises(InputError) as error:
        stl_deploy.quantize(graph, "loihi2", **options)
    assert len(error.value.problems) == len(what)
    for problem, text in zip(error.value.problems, what, strict=True):
        assert (problem.where, text in problem.what) == ("weight_precision", True)


def test_what_is_proven_and_what_data_allow():
    """At 2x8 registers set the unit: by the worst case, or twice what the data reach, v included."""
    rng = np.random.default_rng(0)
    net = random_net()
    graph = stl_deploy.from_torch(net)
    calib = (rng.random((40, 4, 1, 8, 8)) < 0.4).astype(np.uint8)
    for overflow, data, mode in (
        ("auto", None, "proven"),
        ("proven", calib, "proven"),
        ("auto", calib, "checked"),
    ):
        network = stl_deploy.quantize(
            graph, "loihi2", data, weight_precision="2x8", overflow=overflow
        )
        last = network.precision["lif4"]
        assert last.mode == mode
        assert (last.worst_sum < last.limit) == (mode == "proven")
        trace = reference.run(network, calib, states=True)
        assert not any(did.overflow.any() for did in trace.layers.values())
        for name, how in network.precision.items():
            if how.mode == "checked":
                # Twice the largest sum that was seen, coming in every step, just fits into v.
                largest = np.abs(trace.layers[name].u).max()
                assert 2 * largest * (1 + 1 / 2 + 1 / 4 + 1 / 8) < 1.01 * (1 << 23)
                assert how.effective_bits > 10
                assert any(d.where == name and "checked" in d.what for d in network.diagnostics)


def test_a_fold_of_two_slices_needs_memory_for_both():
    """As many single connections as one synapse each leaves room for, and two do not."""
    chip = chips.load("loihi2")
    graph = stl_deploy.from_torch(random_net("4C3-BN-LIF-P4-FC20-LIF-AvgPool2"))
    floats = float_networks.decode(graph)
    target = rows_of.targets(floats)["lif1"]
    (rows,) = target.rows
    total = single.connections(rows.weight != 0, floats.inputs["input"], rows.geometry)
    holds = -(-total * (8 + 13) // 8)  # bytes
    facts = chip.limits
    memory = facts.synapse_bytes_per_core.model_copy(update={"value": holds})
    one = facts.cores_per_chip.model_copy(update={"value": 1})
    limits = facts.model_copy(update={"synapse_bytes_per_core": memory, "cores_per_chip": one})
    small = chip.model_copy(update={"limits": limits})
    for per_weight, refused in ((1, 0), (2, 1)):
        problems = folding.too_large([target], floats.inputs, 8, per_weight, small)
        assert len(problems) == refused


@PRECISIONS
@pytest.mark.parametrize("calibrated", [False, True])
def test_more_bits_are_nearer_to_the_float_model(precision, calibrated):
    net = random_net()
    graph = stl_deploy.from_torch(net)
    calib = random_spikes(net, 60, seed=1) if calibrated else None
    spikes = random_spikes(net, 300)
    wrong = {}
    for tried in ("8", precision):
        network = stl_deploy.quantize(graph, "loihi2", calib, weight_precision=tried)
        report = compare(net, graph, network, Raster(spikes, None))
        assert not report.first_divergence or report.first_divergence.blame != "execution"
        wrong[tried] = np.mean([row.mismatch_forced for row in report.layers])
        if calibrated:
            assert all(how.calibrated == 60 for how in network.precision.values())
    assert wrong[precision] <= {"split": 0.75, "2x8": 0.2}[precision] * wrong["8"]


@PRECISIONS
@pytest.mark.parametrize("thresholds", ["native", "fold"])
def test_a_weight_off_by_one_is_told_from_rounding(precision, thresholds):
    graph = stl_deploy.from_torch(random_net("4C3-BN-LIF-P4-FC20-LIF-AvgPool2"))
    network = quantized(precision, thresholds=thresholds)
    floats = float_networks.decode(graph)
    for population in network.weighted:
        assert faults.of_network(network, population, floats) == []
        (connection,) = network.into(population.name)
        weight = connection.synapses.weight.copy()
        at = np.unravel_index(np.abs(weight.astype(int)).argmin(), weight.shape)
        weight[at] += 3
        synapses = replace(connection.synapses, weight=weight)
        wrong = network.changed(replace(connection, synapses=synapses))
        (fault,) = faults.of_network(wrong, population, floats)
        assert (fault.kind, fault.count) == ("weight", 1)


# Files


@PRECISIONS
@pytest.mark.parametrize(
    "options",
    [{}, {"chip": "ideal"}, {"chip": "loihi1", "thresholds": "grouped"}, {"thresholds": "fold"}],
    ids=str,
)
def test_the_file_carries_it(tmp_path, precision, options):
    before = quantized(precision, **options)
    path = tmp_path / "m.nir"
    nir_io.write(nir_file.to_nir(before), path)
    after = nir_file.read_network(path)
    assert after.weight_precision == precision
    for a, b in zip(before.connections, after.connections, strict=True):
        assert b.synapses.weight.dtype == a.synapses.weight.dtype
        assert (a.synapses.weight == b.synapses.weight).all()
        assert (a.precision, a.bits) == (b.precision, b.bits)
    assert before.placement == after.placement


def changed(path, weight=None, **fields):
    """The file with other fields of its first connection, or another weight there."""

    def change(meta):
        meta["connections"][0].update(fields)

    change_meta(path, change)
    if weight is not None:
        with h5py.File(path, "r+") as file:
            file["node/nodes/conv1/weight"][0, 0, 0, 0] = weight
    with pytest.raises(InputError) as error:
        nir_file.read_network(path)
    return str(error.value)


@pytest.mark.parametrize(
    ("precision", "change", "what"),
    [
        ("split", {"weight": 256}, "outside -255..255"),
        ("split", {"weight": -256}, "outside -255..255"),
        ("split", {"bits": 7}, "outside -127..127"),
        ("split", {"precision": "8"}, "outside -128..127"),
        ("split", {"precision": "16"}, "precision"),
        ("2x8", {"weight": 16320}, "outside -16448..16319"),
        ("2x8", {"weight": -16449}, "outside -16448..16319"),
        ("2x8", {"bits": 7}, "2x8 has slices of 8 bits, not of 7"),
        ("2x8", {"exp": 1}, "leaves none for 1"),
    ],
)
def test_a_file_that_contradicts_itself_is_refused(tmp_path, precision, change, what):
    path = tmp_path / "m.nir"
    nir_io.write(nir_file.to_nir(quantized(precision)), path)
    assert what in changed(path, **change)


# Targets


@PRECISIONS
def test_netx_refuses_and_the_process_graph_carries(tmp_path, precision):
    network = quantized(precision)
    with pytest.raises(LoweringError) as error:
        netx.write(network, tmp_path)
    assert {p.where for p in error.value.problems} == {
        f"network.net (netx), {name}" for name in ("conv1 (input to lif1)", "fc1 (pool1 to lif2)")
    }
    assert all(f"weight precision {precision}" in p.what for p in error.value.problems)
    assert all("--weight-precision 8" in p.remedy for p in error.value.problems)
    (note,) = loihi.write(network, tmp_path)
    assert f"lif1), fc1 (pool1 to lif2): weight precision {precision}, where netx" in note.what
    assert sorted(p.name for p in tmp_path.iterdir()) == ["lava_network.py", "lava_params.npz"]


def test_what_lava_is_given():
    arrays = lava.params(one_layer([[3, -255], [255, 0]], "split"))
    (row,) = json.loads(str(arrays["network"]))["connections"]
    assert row["synapse_groups"] == [
        {"sign": "EXCITATORY", "weight_exp": 0},
        {"sign": "INHIBITORY", "weight_exp": 0},
    ]
    assert arrays["c0/weight/0"].tolist() == [[3, 0], [255, 0]]
    assert arrays["c0/weight/1"].tolist() == [[0, -255], [0, 0]]
    arrays = lava.params(one_layer([[3, -129]], "2x8"))
    (row,) = json.loads(str(arrays["network"]))["connections"]
    # Weights of mixed sign are doubled, and the exponent is one less for it.
    assert row["synapse_groups"] == [
        {"sign": "MIXED", "weight_exp": 6},
        {"sign": "MIXED", "weight_exp": -1},
    ]
    assert arrays["c0/weight/0"].tolist() == [[0, -2]]
    assert arrays["c0/weight/1"].tolist() == [[6, -2]]
    # A group that holds nothing is left out.
    arrays = lava.params(one_layer([[3, 9]], "2x8"))
    assert [key for key in arrays if key.startswith("c0/weight")] == ["c0/weight/0"]
    (row,) = json.loads(str(arrays["network"]))["connections"]
    assert row["synapse_groups"] == [{"sign": "MIXED", "weight_exp": -1}]


@PRECISIONS
def test_the_manifest_says_what_it_costs(tmp_path, precision):
    network = quantized(precision)
    manifest = stl_deploy.export(network, "loihi", tmp_path / "out")
    total = sum(synapse_count(network, c) for c in network.connections)
    assert manifest["weights"]["precision"] == precision
    assert manifest["weights"]["synapses"] == total
    assert manifest["weights"]["synapse_bytes"] == sum(
        placed.total["synapse_bytes"] for placed in network.placement.layers.values()
    )
    rows = {row["name"]: row for row in manifest["layers"]}
    assert [c["precision"] for c in manifest["connections"]] == [precision, "8", precision]
    assert rows["lif1"]["grid_bits"] == pytest.approx({"split": 9, "2x8": 15}[precision], abs=0.01)
    assert f"“{precision}”" in (tmp_path / "out" / "report.html").read_text("utf-8")
