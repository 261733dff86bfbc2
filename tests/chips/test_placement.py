"""Placement: what cores need by brute force, every limit kept, and carried by model.nir."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import replace
from itertools import pairwise

import h5py
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import stl_deploy
from stl_deploy.chips import facts as chips
from stl_deploy.chips import placement
from stl_deploy.chips.demand import packed_bytes
from stl_deploy.chips.facts import Chip, Count
from stl_deploy.errors import InputError, LoweringError
from stl_deploy.formats import integer_nir as nir_file
from stl_deploy.formats import nir_io, raster
from stl_deploy.hw_sim import simulate
from stl_deploy.ir.synapses import Conv, Dense
from tests.build.cores import KINDS, TIGHT, axon_bytes, by_brute_force, check, chip_with, core_of
from tests.build.files import change_meta
from tests.build.nets import ZOO, ZOO_RASTER, random_net
from tests.build.networks import chain, lif, pool, recurrent, weights
from tests.build.random_networks import single


def drawn(name, synapses, input_shape, shape, rng):
    """A layer with thresholds and the width of its weights at random."""
    vth = rng.integers(1, 9, shape)
    return lif(name, synapses, input_shape, shape, vth, weight_bits=int(rng.integers(2, 9)))


def some(rng, *shape):
    """Random weights, a third of them zero, which are not stored."""
    return weights(rng, *shape, low=1, high=4, zeros=0.33)


def random_network(seed, folded=False):
    """Convolution of any geometry, pool, convolution in groups, two dense layers.

    Convolutions that are ``folded`` have a weight for every synapse.
    """
    rng = np.random.default_rng(seed)
    layers, shape = [], (int(rng.integers(1, 4)), int(rng.integers(5, 9)), int(rng.integers(5, 9)))
    for name in ("lif1", "lif2"):
        groups = int(rng.choice([g for g in (1, 2, 3) if shape[0] % g == 0]))
        out = groups * int(rng.integers(1, 4))
        kernel = rng.integers(1, 4, 2)
        stride, dilation = rng.integers(1, 3, 2), rng.integers(1, 3, 2)
        reach = dilation * (kernel - 1) + 1
        padding = np.maximum(rng.integers(0, 4, 2), (reach - shape[1:] + 1) // 2)  # not empty
        size = (np.array(shape[1:]) + 2 * padding - reach) // stride + 1
        conv = Conv(
            some(rng, out, shape[0] // groups, *kernel),
            *(tuple(map(int, pair)) for pair in (stride, padding, dilation)),
            groups,
        )
        layer = drawn(name, conv, shape, (out, *map(int, size)), rng)
        layers.append(single(np.random.default_rng(seed), layer) if folded else layer)
        shape = layer.shape
        if name == "lif1":
            kernel = (int(rng.integers(1, 3)), int(rng.integers(1, 3)))
            after = (shape[0], shape[1] // kernel[0], shape[2] // kernel[1])
            cut = (shape[0], after[1] * kernel[0], after[2] * kernel[1])
            if cut == shape:
                layers.append(pool(shape, kernel))
                shape = after
    for name, n in (("lif3", int(rng.integers(2, 12))), ("lif4", 4)):
        layers.append(drawn(name, Dense(some(rng, n, math.prod(shape))), shape, (n,), rng))
        shape = (n,)
    return chain(*layers, chip="loihi1", steps=2)


@settings(max_examples=40)
@given(
    seed=st.integers(0, 10**6),
    limits=st.fixed_dictionaries(
        {
            "compartments": st.integers(1, 60),
            "synapse_bytes": st.integers(1, 4000),
            "in_axons": st.integers(1, 400),
            "out_axons": st.integers(1, 400),
        }
    ),
    folded=st.booleans(),
    stretch=st.none() | st.integers(1, 6),
    own=st.booleans(),
)
def test_blocks_cover_every_neuron_once_keep_every_limit_and_need_what_they_say(
    seed, limits, folded, stretch, own
):
    network, chip = random_network(seed, folded), chip_with(**limits)
    if own:
        network = recurrent(network, np.random.default_rng(seed), 1, 4)
    over = None if stretch is None else {p.name: stretch for p in network.weighted}
    placed = placement.place(network, chip, over)
    assert placed == placement.place(network, chip, over)
    check(network, placed, chip)
    if not placed.beyond:
        again = {name: (on.blocks, on.order) for name, on in placed.layers.items()}
        assert placement.rebuild(network, chip, again) == placed


@pytest.mark.parametrize("seed", range(4))
def test_a_pool_may_be_laid_onto_cores_in_any_order(seed):
    rng = np.random.default_rng(seed)
    made = map(random_network, range(100 * seed, 100 * seed + 100))
    network = next(n for n in made if "pool1" in n.by_name)
    chip, blocks = chip_with(compartments=500), {}
    for p in network.populations:
        first = int(rng.integers(1, p.size))
        blocks[p.name] = (first, p.size - first), rng.permutation(p.size)
    check(network, placement.rebuild(network, chip, blocks), chip)


def ring(neurons, reach):
    """A layer in which every neuron hears ``reach`` others, and has one input."""
    rng = np.random.default_rng(0)
    own = np.zeros((neurons, neurons), np.int8)
    for k in range(1, reach + 1):
        own[np.arange(neurons), (np.arange(neurons) + k) % neurons] = 1
    layer = drawn("lif", Dense(np.ones((neurons, 1), np.int8)), (1,), (neurons,), rng)
    layer = replace(layer, recurrent=Dense(own), recurrent_name="rec")
    return chain(layer, chip="loihi1", steps=2)


def test_axons_and_memory_of_a_layer_that_hears_itself_by_hand():
    """12 neurons in blocks of 4 that hear the next 2: each core hears the first 2 of the next one."""
    network = ring(12, 2)
    on = placement.place(network, chip_with(compartments=4)).layers["lif"]
    assert on.blocks == (4, 4, 4)
    # The input, 4 of its own but the first of all, which only the core before hears, and 2.
    assert on.fullest["in_axons"] == 1 + 3 + 2
    # To the host, to the own core but for the first, and the first 2 to the core before.
    assert on.fullest["out_axons"] == 4 + 3 + 2
    (connection, _) = network.into("lif")
    chip = chips.load("loihi1")
    # The axon of the input has 4 synapses; those of 5 neurons 1, 2, 2, 2, 1.
    each = [axon_bytes(chip, connection.bits, n) for n in (4, 1, 2, 2, 2, 1)]
    assert on.fullest["synapse_bytes"] == sum(each)


def test_a_layer_is_cut_again_where_its_own_cores_need_more_axons():
    """Everybody hears everybody: k cores of n / k neurons need n / k (1 + k) axons out, k is many."""
    network = ring(60, 60)
    assert placement.place(network, chip_with(out_axons=120)).layers["lif"].blocks == (60,)
    on = placement.place(network, chip_with(out_axons=119)).layers["lif"]
    assert len(on.blocks) > 1
    assert on.fullest["out_axons"] == max(on.blocks) * (1 + len(on.blocks)) <= 119
    again = placement.rebuild(network, chip_with(out_axons=119), {"lif": (on.blocks, None)})
    assert again.layers["lif"] == on
    with pytest.raises(ValueError, match="out-axons"):
        placement.rebuild(network, chip_with(out_axons=60), {"lif": (on.blocks, None)})
    # One neuron alone hears the input and 60 others.
    placed = placement.place(network, chip_with(in_axons=61))
    assert not placed.beyond
    (problem,) = placement.place(network, chip_with(in_axons=60)).beyond
    assert "neuron 0 alone needs 61 in-axons" in problem.what
    # 61 cores of one neuron: no core reaches so many.
    (problem,) = placement.place(network, chip_with(out_axons=10)).beyond
    assert "out-axons" in problem.what


@settings(max_examples=25)
@given(seed=st.integers(0, 10**6))
def test_no_block_could_be_longer(seed):
    """One neuron more on any core but a layer's last breaks a limit, and bound_by is such a limit."""
    network, chip = random_network(seed), chip_with(**TIGHT)
    placed = placement.place(network, chip)
    for name, on in placed.layers.items():
        reasons = Counter()
        for k in range(on.cores - 1):
            one_more = list(on.blocks)
            one_more[k] += 1
            one_more[k + 1] -= 1
            changed = [n for n in one_more if n]
            blocks = {other: at.blocks for other, at in placed.layers.items()}
            trial = replace(on, blocks=tuple(changed))
            assert sum(changed) == sum(on.blocks)
            layers = placed.layers | {name: trial}
            # Later cores may be renumbered; each population's own needs do not change by that.
            numbered = renumbered(layers)
            core = numbered[name].first_core + k
            needs = by_brute_force(network, replace(placed, layers=numbered), chip)[core]
            broken = [kind for kind in KINDS if needs[kind] > TIGHT[kind]]
            assert broken or placed.beyond, (name, k, blocks)
            reasons.update(broken)
        if reasons and not placed.beyond:
            assert reasons[on.bound_by] == max(reasons.values())
        if on.cores == 1:
            assert on.bound_by is None


def renumbered(layers):
    first, out = 0, {}
    for name, on in layers.items():
        out[name] = replace(on, first_core=first)
        first += on.cores
    return out


# Each limit


def dense_pair(rng, inputs=40, hidden=30, outputs=20):
    return chain(
        drawn("a", Dense(np.ones((hidden, inputs), np.int8)), (inputs,), (hidden,), rng),
        drawn("b", Dense(np.ones((outputs, hidden), np.int8)), (hidden,), (outputs,), rng),
        chip="loihi1",
        steps=2,
    )


def eight_bits(network):
    return network.changed(*(replace(c, bits=8) for c in network.connections))


@pytest.mark.parametrize(
    ("limits", "bound_by", "blocks"),
    [
        ({"compartments": 8}, ("compartments", "compartments"), ((8, 8, 8, 6), (8, 8, 4))),
        # 40 axons of n synapses: ceil((18 n + 10) / 64) words; 3 synapses are one word, 6 are two.
        ({"synapse_bytes": 40 * 8}, ("synapse_bytes", "synapse_bytes"), ((3,) * 10, (3,) * 6 + (2,))),
        ({"synapse_bytes": 40 * 16}, ("synapse_bytes", "synapse_bytes"), ((6,) * 5, (6, 6, 6, 2))),
        # b on 20 cores: each neuron of a has 20 out-axons; a neuron of b has 1, to the host.
        ({"compartments": 1}, ("compartments", "compartments"), ((1,) * 30, (1,) * 20)),
        ({"out_axons": 7}, ("out_axons", "out_axons"), ((2,) * 15, (7, 7, 6))),
        ({}, (None, None), ((30,), (20,))),
    ],
)  # fmt: skip
def test_each_limit_can_bind(limits, bound_by, blocks):
    network = eight_bits(dense_pair(np.random.default_rng(0)))
    placed = placement.place(network, chip_with(**limits))
    assert tuple(on.blocks for on in placed.layers.values()) == blocks
    assert tuple(on.bound_by for on in placed.layers.values()) == bound_by
    assert placed.beyond == ()


def test_in_axons_bind_where_neurons_have_inputs_of_their_own():
    rng = np.random.default_rng(0)
    layer = drawn("one", Dense(np.eye(30, dtype=np.int8)), (30,), (30,), rng)
    network = chain(layer, chip="loihi1", steps=2)
    placed = placement.place(network, chip_with(in_axons=7))
    assert placed.layers["one"].blocks == (7, 7, 7, 7, 2)
    assert placed.layers["one"].bound_by == "in_axons"


@pytest.mark.parametrize(
    ("own", "neurons", "blocks", "bound_by"),
    [
        (8, 30, (4, 4, 5, 5, 5, 5, 2), "compartments"),
        (16, 28, (4, 4, 4, 4, 5, 5, 2), "in_axons"),
        (8, 20, (4, 4, 5, 5, 2), "compartments"),  # two each: the first of LIMITS
    ],
)
def test_what_ends_most_blocks_bound_the_layer(own, neurons, blocks, bound_by):
    """``own`` neurons with an input each, the others share input 0; 4 in-axons, 5 compartments."""
    rng = np.random.default_rng(0)
    weight = np.zeros((neurons, own), np.int8)
    weight[:own] = np.eye(own)
    weight[own:, 0] = 1
    layer = drawn("one", Dense(weight), (own,), (neurons,), rng)
    network = chain(layer, chip="loihi1", steps=2)
    placed = placement.place(network, chip_with(in_axons=4, compartments=5)).layers["one"]
    assert (placed.blocks, placed.bound_by) == (blocks, bound_by)


def test_entries_hold_64_synapses():
    """65 synapses: an entry of 64 (64*18+10 bits in 19 words) and one of 1 (one word)."""
    table = packed_bytes(chips.load("loihi1").packing, 8, 130)
    words = {0: 0, 1: 1, 3: 1, 4: 2, 64: 19, 65: 20, 128: 38, 129: 39}
    assert {n: int(table[n]) // 8 for n in words} == words
    assert [int(b) for b in table] == [axon_bytes(chips.load("loihi1"), 8, n) for n in range(131)]


def test_narrow_weights_take_less_memory():
    chip = chips.load("loihi2")
    sizes = [int(packed_bytes(chip.packing, bits, 64)[64]) for bits in range(2, 9)]
    assert sizes == sorted(sizes)
    assert sizes[0] == math.ceil((64 * 15 + 10) / 64) * 8


def test_neurons_of_one_position_lie_together():
    """[C, H, W] is dealt row by row, column by column, channel by channel."""
    rng = np.random.default_rng(0)
    conv = Conv(np.ones((3, 1, 1, 1), np.int8), (1, 1), (0, 0), (1, 1), 1)
    layer = drawn("one", conv, (1, 2, 2), (3, 2, 2), rng)
    network = chain(layer, chip="loihi1", steps=2)
    placed = placement.place(network, chip_with(compartments=3)).layers["one"]
    assert placed.blocks == (3, 3, 3, 3)
    assert placed.fullest["in_axons"] == 1  # three channels, one input
    cores = core_of(network.by_name["one"], placed)
    assert {cores[c, 1, 0] for c in range(3)} == {2}


# What does not fit


@pytest.mark.parametrize(
    ("limits", "what"),
    [
        ({"in_axons": 39}, "neuron 0 alone needs 40 in-axons; a core of loihi1 holds 39"),
        ({"synapse_bytes": 319}, "alone needs 320 bytes of synapse memory"),
        ({"out_axons": 2}, "alone needs 10 out-axons"),
    ],
)
def test_a_neuron_that_fits_no_core_is_named_with_numbers(limits, what):
    network = dense_pair(np.random.default_rng(0))
    placed = placement.place(network, chip_with(**limits))
    (problem,) = [p for p in placed.beyond if p.where == "a"]
    assert what in problem.what
    assert "too few for 30 of 30 neurons" in problem.what
    assert problem.remedy
    # The rest is placed all the same, without that limit, so that energy can be estimated.
    assert sum(placed.layers["a"].blocks) == 30
    assert placed.layers["a"].cores < 30


def test_problems_of_all_layers_are_reported_at_once():
    network = dense_pair(np.random.default_rng(0))
    placed = placement.place(network, chip_with(in_axons=10, synapse_bytes=8))
    assert Counter(p.where for p in placed.beyond) == {"a": 2, "b": 2}


def test_quantize_refuses_a_network_that_cannot_be_placed():
    """4,097 inputs to a neuron: one more than a core of Loihi 1 has axons."""
    net = random_net("FC20-LIF-AvgPool2", shape=(1, 17, 241))
    graph = stl_deploy.from_torch(net)
    graph.nodes["fc1"].weight[:] = 0.5
    with pytest.raises(LoweringError) as caught:
        stl_deploy.quantize(graph, chip="loihi1", overflow="checked")
    (problem,) = caught.value.problems
    assert problem.where == "lif1"
    assert "needs 4,097 in-axons; a core of loihi1 holds 4,096" in problem.what
    placed = stl_deploy.quantize(graph, chip="loihi2", overflow="checked").placement
    assert placed is not None
    assert placed.layers["lif1"].fullest["in_axons"] == 4097


def test_more_than_one_chip_is_said_with_numbers(monkeypatch):
    small: Chip = chips.load("loihi2")
    limits = small.limits.model_copy(
        update={"cores_per_chip": Count(value=2, source="chosen by a test")}
    )
    small = small.model_copy(update={"limits": limits})
    monkeypatch.setattr(chips, "load", lambda name: small)
    network = stl_deploy.quantize(stl_deploy.from_torch(random_net()), chip="loihi2")
    (said,) = [d for d in network.diagnostics if d.where == "placement"]
    assert network.placement is not None
    assert (network.placement.cores, network.placement.chips) == (6, 3)
    assert "needs 6 cores with 0.0 MiB of synapses, that is 3 chips; one loihi2 has 2" in said.what


def test_ideal_is_not_placed():
    network = stl_deploy.quantize(stl_deploy.from_torch(random_net()))
    assert network.placement is None
    assert placement.of(network, chips.load("ideal")) is None


# model.nir


@pytest.fixture
def path(tmp_path):
    graph = stl_deploy.from_torch(random_net())
    network = stl_deploy.quantize(graph, chip="loihi1", thresholds="native")
    nir_io.write(nir_file.to_nir(network), tmp_path / "model.nir")
    return tmp_path / "model.nir"


@pytest.mark.parametrize("thresholds", ["native", "fold", "grouped"])
@pytest.mark.parametrize("chip", ["loihi1", "loihi2"])
def test_round_trip(tmp_path, chip, thresholds):
    if (chip, thresholds) == ("loihi2", "grouped"):
        return
    graph = stl_deploy.from_torch(random_net())
    network = stl_deploy.quantize(graph, chip=chip, thresholds=thresholds)
    assert network.placement is not None
    nir_io.write(nir_file.to_nir(network), tmp_path / "m.nir")
    assert nir_file.read_network(tmp_path / "m.nir").placement == network.placement


def layer(**changes):
    return lambda meta: meta["placement"]["layers"][0].update(changes)


def whole(**changes):
    return lambda meta: meta["placement"].update(changes)


@pytest.mark.parametrize(
    ("change", "what"),
    [
        (layer(blocks=[255]), "lif1: blocks of 255 neurons for a layer of 256"),
        (layer(blocks=[257, -1]), "lif1: blocks of 256"),
        (layer(blocks=[256, 0]), "lif1: blocks of 256"),
        (layer(blocks=[]), "placement.layers.0.blocks"),
        (layer(blocks=[128, 128]), "lif1: fullest is"),
        (layer(first_core=1), "lif1: first_core is 1, its blocks make 0"),
        (layer(bound_by="out_axons"), "lif1: bound_by is out_axons, its blocks make None"),
        (layer(bound_by="luck"), "placement.layers.0.bound_by"),
        (layer(fullest={}), "lif1: fullest is {}"),
        (layer(total={"in_axons": 1}), "lif1: total is"),
        (layer(name="other"), "places other, "),
        (layer(surprise=1), "surprise"),
        (whole(layers=[]), "placement: places"),
        (whole(cores=7), "7 cores, 2 tiles, 1 chips; its blocks make 6, 2, 1"),
        (whole(tiles=1), "its blocks make"),
        (whole(chips=2), "its blocks make"),
        (lambda meta: meta.update(chip="ideal"), "ideal has no cores"),
    ],
)
def test_contradictions_are_refused(path, change, what):
    change_meta(path, change)
    with pytest.raises(InputError) as caught:
        nir_file.read_network(path)
    assert what in str(caught.value)
    assert str(path) in str(caught.value)


def test_a_core_that_holds_too_much_is_refused(tmp_path):
    """Neurons of two cores put onto one, with all the numbers that follow from it."""
    network = dense_pair(np.random.default_rng(0), inputs=4, hidden=1100, outputs=4)
    placed = placement.place(network, chips.load("loihi1"))
    roomy = placement.place(network, chip_with(compartments=2000))
    assert placed.layers["a"].blocks == (1024, 76)
    assert roomy.layers["a"].blocks == (1100,)
    path = tmp_path / "m.nir"
    nir_io.write(nir_file.to_nir(replace(network, placement=roomy)), path)
    with pytest.raises(InputError, match="a core needs 1,100 compartments and loihi1 holds 1,024"):
        nir_file.read_network(path)


def test_changed_weights_contradict_the_placement(path):
    with h5py.File(path, "r+") as file:
        file["node/nodes/fc1/weight"][0, 0] = 0
        file["node/nodes/fc1/weight"][0, 1] = 0
        file["node/nodes/fc1/weight"][:, 2] = 0
    with pytest.raises(InputError, match=r"placement: \w+: (fullest|total) is"):
        nir_file.read_network(path)


def test_a_file_without_a_placement_is_placed_where_it_is_needed(path):
    before = nir_file.read_network(path)
    change_meta(path, lambda meta: meta.pop("placement"))
    after = nir_file.read_network(path)
    assert after.placement is None
    assert placement.of(after, chips.load("loihi1")) == before.placement


def test_energy_is_that_of_the_profiles_chip():
    """A file for loihi2 is placed onto loihi1 too, whose profiles need it."""
    model, shipped = stl_deploy.load(ZOO), raster.load(ZOO_RASTER).first(2)
    network = stl_deploy.quantize(stl_deploy.from_torch(model), chip="loihi2")
    got = simulate.Simulator(network).run(shipped).energies
    assert {name: (e.cores, e.beyond) for name, e in got.items()} == {
        "loihi1-spice": (103, ()),
        "loihi1-nahuku": (103, ()),
        "loihi2-pilotnet": (89, ()),
    }


def test_energy_of_cores_that_hold_too_much_says_so():
    rng = np.random.default_rng(0)
    dense = Dense(np.ones((3, 5000), np.int8))
    network = chain(drawn("wide", dense, (5000,), (3,), rng), steps=2)
    done = simulate.Simulator(network).run(raster.Raster(np.ones((1, 2, 5000), np.uint8)))
    assert done.energies.pop("loihi2-pilotnet").beyond == ()
    for energy in done.energies.values():
        (what,) = energy.beyond
        assert "wide: neuron 0 alone needs 5,000 in-axons; a core of loihi1 holds 4,096" in what
        assert energy.cores == 1


# The shipped model


@pytest.mark.parametrize(
    ("chip", "thresholds", "cores", "bound_by"),
    [
        (
            "loihi1",
            "native",
            (19, 13, 58, 4, 8, 1),
            ("compartments", "out_axons", "synapse_bytes", "out_axons", "synapse_bytes", None),
        ),
        (
            "loihi1",
            "auto",
            (19, 30, 64, 4, 8, 2),
            (None, "out_axons", "synapse_bytes", "out_axons", None, None),
        ),
        (
            "loihi1",
            "fold",
            (19, 13, 57, 4, 8, 1),
            ("compartments", "out_axons", "synapse_bytes", "out_axons", "synapse_bytes", None),
        ),
        (
            "loihi2",
            "auto",
            (9, 2, 67, 1, 9, 1),
            ("synapse_bytes", "synapse_bytes", "synapse_bytes", None, "synapse_bytes", None),
        ),
    ],
)
def test_the_shipped_model_as_the_docs_have_it(chip, thresholds, cores, bound_by):
    graph = stl_deploy.from_torch(stl_deploy.load(ZOO))
    network = stl_deploy.quantize(graph, chip=chip, thresholds=thresholds)
    placed = network.placement
    assert placed is not None
    assert tuple(on.cores for on in placed.layers.values()) == cores
    assert tuple(on.bound_by for on in placed.layers.values()) == bound_by
    assert (placed.cores, placed.chips) == (sum(cores), 1)
    for (_, a), (_, b) in pairwise(placed.layers.items()):
        assert a.total["out_axons"] == b.total["in_axons"]  # every axon has two ends
    held = placement.limits(chips.load(chip))
    assert ("in_axons" in held) == (chip == "loihi1")
    for on in placed.layers.values():
        for name, share in placement.utilisation(on, chips.load(chip)).items():
            assert share <= 1 or (name, thresholds) == ("thresholds", "native")


def test_a_neuron_beyond_a_core_does_not_hide_other_problems():
    net = random_net("FC20-LIF-AvgPool2", shape=(5000,))
    with torch.no_grad():
        net.lif1.thresh[3] = -1.0
    with pytest.raises(LoweringError) as error:
        stl_deploy.quantize(stl_deploy.from_torch(net), chip="loihi1")
    thresholds, axons = sorted(error.value.problems, key=lambda p: "in-axons" in p.what)
    assert "1 of 20 thresholds" in thresholds.what
    assert "a core of loihi1 holds 4,096" in axons.what
