"""Placement of networks that branch: axons of several targets, delays, loops, decays of each neuron."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stl_deploy.chips import facts as chips
from stl_deploy.chips import placement
from stl_deploy.chips.tables import Count, Delays
from stl_deploy.ir.network import Connection, Input, IntegerNetwork, Population
from stl_deploy.ir.neurons import Lif, Or
from stl_deploy.ir.readouts import Readout
from stl_deploy.ir.synapses import Conv, Dense, OneToOne
from stl_deploy.lower import grouped
from tests.build import random_graphs
from tests.build.cores import KINDS, TIGHT, axon_bytes, by_brute_force, check, chip_with

SEEDS = 36
LOIHI1 = chips.load("loihi1")


@cache
def graph(seed: int) -> IntegerNetwork:
    """A random graph; of three, one with two connections between the same two, and one with hasty loops."""
    made, rng = random_graphs.draw(seed)[0], np.random.default_rng(seed)
    if seed % 3 == 0:
        first = made.connections[rng.integers(len(made.connections))]
        weight = np.where(rng.random(first.synapses.weight.shape) < 0.5, first.synapses.weight, 0)
        other = first.synapses.with_weights(weight.astype(first.synapses.weight.dtype))
        second = replace(first, name="second", synapses=other, delay=first.delay + 2)
        made = replace(made, connections=(*made.connections, second))
    if seed % 3 == 1:
        place = list(made.by_name)
        back = [c for c in made.connections if c.source in place]
        back = [c for c in back if place.index(c.source) > place.index(c.target)]
        made = made.changed(*(replace(c, delay=1) for c in back))
    return made


def test_the_graphs_have_what_placement_is_about():
    made = [graph(seed) for seed in range(SEEDS)]
    ways = [[(c.source, c.target) for c in n.connections] for n in made]
    assert sum(len(set(each)) < len(each) for each in ways) >= 8
    assert sum(n.depth is None for n in made) >= 2
    assert sum(any(len(part) > 1 for part in n.parts) and n.depth is not None for n in made) >= 2
    assert sum(n.depth is not None and any(map(n.waits, n.connections)) for n in made) >= 12
    kinds = {c.synapses.kind for n in made for c in n.connections}
    assert kinds == {"conv", "dense", "one_to_one", "sparse"}
    assert {c.precision for n in made for c in n.connections} == {"8", "split", "2x8"}


def tight(rng: np.random.Generator) -> dict[str, int]:
    """Limits of a core, some of them too small for a single neuron."""
    most = {
        "compartments": 60,
        "synapse_bytes": 6000,
        "in_axons": 400,
        "out_axons": 400,
        "decays": 40,
    }
    return {name: int(rng.integers(1, n)) for name, n in most.items()}


# Brute force


@settings(max_examples=40)
@given(
    seed=st.integers(0, SEEDS - 1),
    limits=st.integers(0, 10**6),
    spread=st.none() | st.integers(1, 6),
)
def test_blocks_keep_every_limit_and_need_what_they_say(seed, limits, spread):
    network, rng = graph(seed), np.random.default_rng(limits)
    chip = chip_with("loihi1", **tight(rng))
    over = None if spread is None else {p.name: spread for p in network.weighted}
    placed = placement.place(network, chip, over)
    assert placed == placement.place(network, chip, over)
    check(network, placed, chip)
    if not placed.beyond:
        blocks = {name: (on.blocks, on.order) for name, on in placed.layers.items()}
        assert placement.rebuild(network, chip, blocks) == placed


@pytest.mark.parametrize("chip", ["loihi1", "loihi2"])
@pytest.mark.parametrize("seed", range(SEEDS))
def test_graphs_on_chips_as_they_are(seed, chip):
    check(graph(seed), placement.place(graph(seed), chips.load(chip)), chips.load(chip))


@pytest.mark.parametrize("seed", [seed for seed in range(SEEDS) if seed % 3 != 1])
def test_neurons_in_any_order(seed):
    network, rng = graph(seed), np.random.default_rng(seed)
    chip, blocks = chip_with("loihi2", compartments=5000), {}
    for p in network.populations:
        first = int(rng.integers(1, p.size)) if p.size > 1 else 0
        blocks[p.name] = [n for n in (first, p.size - first) if n], rng.permutation(p.size)
    check(network, placement.rebuild(network, chip, blocks), chip)


@pytest.mark.parametrize("seed", range(SEEDS))
def test_no_block_could_be_longer(seed):
    """One neuron more on any core but a population's last breaks a limit, outside loops."""
    network, chip = graph(seed), chip_with(**TIGHT, decays=5)
    placed = placement.place(network, chip)
    looped = {p.name for part in network.parts for p in part if len(part) > 1} | {
        c.source for c in network.connections if c.source == c.target
    }
    broken_by = {(p.where, kind) for p in placed.beyond for kind in KINDS}
    for name, on in placed.layers.items():
        for k in range(on.cores - 1 if name not in looped else 0):
            sizes = list(on.blocks)
            sizes[k] += 1
            sizes[k + 1] -= 1
            layers, first = {}, 0
            for other, at in placed.layers.items():
                blocks = tuple(n for n in sizes if n) if other == name else at.blocks
                layers[other] = replace(at, first_core=first, blocks=blocks)
                first += len(blocks)
            needs = by_brute_force(network, replace(placed, layers=layers), chip)
            needs = needs[layers[name].first_core + k]
            held = placement.limits(chip)
            assert any(needs[kind] > held[kind] for kind in (*KINDS, "decays")) or any(
                where == name for where, _ in broken_by
            )


# By hand


def population(name, size, **fields):
    """``size`` neurons with a threshold of 1."""
    shape = size if isinstance(size, tuple) else (size,)
    return Population(name, shape, Lif(np.ones(shape, np.int32), np.zeros(1), np.ones(1), **fields))


def dense(source, target, outputs, inputs, **fields):
    """All-to-all weights of one."""
    fields = {"name": f"{source}_{target}"} | fields
    ones = Dense(np.ones((outputs, inputs), np.int8))
    return Connection(source=source, target=target, synapses=ones, **fields)


def one_to_one(source, target, size, **fields):
    fields = {"name": f"{source}_{target}"} | fields
    return Connection(
        source=source, target=target, synapses=OneToOne(np.ones(size, np.int8)), **fields
    )


def network(populations, connections, chip="loihi1", size=4, source=None):
    last = populations[-1].name if source is None else source
    shapes = {p.name: p.size for p in populations}
    return IntegerNetwork(
        chip,
        4,
        {"input": Input((size,))},
        tuple(populations),
        tuple(connections),
        Readout(shapes[last], 1, last),
    )


def residual(wait=1):
    """a -> b -> c, and a -> c, which waits."""
    return network(
        [population("a", 8), population("b", 6), population("c", 8)],
        [
            dense("input", "a", 8, 4),
            dense("a", "b", 6, 8),
            dense("b", "c", 8, 6),
            one_to_one("a", "c", 8, delay=wait - 1),
        ],
    )


def test_axons_and_memory_of_a_residual_add_by_hand():
    placed = placement.place(residual(), chip_with(compartments=4))
    a, b, c = placed.layers.values()
    assert [on.blocks for on in (a, b, c)] == [(4, 4), (4, 2), (4, 4)]
    # A neuron of a reaches both cores of b and its own one of c.
    assert (a.fullest["out_axons"], b.fullest["out_axons"], c.fullest["out_axons"]) == (12, 8, 4)
    assert (a.fullest["in_axons"], b.fullest["in_axons"], c.fullest["in_axons"]) == (4, 8, 6 + 4)
    # 6 axons of 4 synapses, and 4 of one synapse that stores its delay.
    memory = 6 * axon_bytes(LOIHI1, 8, 4) + 4 * axon_bytes(LOIHI1, 8, 1, waits=True)
    assert c.fullest["synapse_bytes"] == memory


def test_a_synapse_that_waits_takes_more_memory():
    """Three synapses of 18 bits share a word with their header; with 6 bits of delay they need two."""
    made = network(
        [population("a", 3), population("b", 3)],
        [dense("input", "a", 3, 4), dense("a", "b", 3, 3, delay=2), dense("input", "b", 3, 4)],
    )
    on = placement.place(made, LOIHI1).layers["b"]
    assert [made.waits(c) for c in made.connections] == [0, 1, 0]
    assert on.fullest["synapse_bytes"] == 3 * 16 + 4 * 8


def test_two_connections_from_one_source_share_their_axons_but_not_their_entries():
    made = network(
        [population("a", 5)],
        [
            dense("input", "a", 5, 4, name="x"),
            Connection("y", "input", "a", Dense(np.eye(5, 4, dtype=np.int8)), exp=2, delay=1),
        ],
    )
    on = placement.place(made, LOIHI1).layers["a"]
    assert on.fullest["in_axons"] == 4
    assert placement.place(made, chip_with(in_axons=4)).beyond == ()
    each = axon_bytes(LOIHI1, 8, 5) + axon_bytes(LOIHI1, 8, 1, waits=True)
    assert on.fullest["synapse_bytes"] == 4 * each


@pytest.mark.parametrize("precision", ["split", "2x8"])
def test_every_connection_has_groups_of_its_own(precision):
    made = network(
        [population("a", 2)],
        [
            dense("input", "a", 2, 4, name="x"),
            replace(
                dense("input", "a", 2, 4, name="y"),
                synapses=Dense(np.full((2, 4), 129 if precision == "2x8" else -1, np.int16)),
                precision=precision,
            ),
        ],
    )
    on = placement.place(made, LOIHI1).layers["a"]
    groups = {"split": 1, "2x8": 2}[precision]
    assert on.fullest["synapse_bytes"] == 4 * (1 + groups) * axon_bytes(LOIHI1, 8, 2)
    assert on.fullest["in_axons"] == 4


@pytest.mark.parametrize(("wait", "room"), [(6, 1024), (7, 512), (14, 512), (15, 256), (62, 128)])
def test_neurons_make_room_for_what_is_on_its_way(wait, room):
    made = network(
        [population("a", 4), population("b", 1600)],
        [
            dense("input", "a", 4, 4),
            dense("a", "b", 1600, 4),
            dense("a", "b", 1600, 4, delay=wait, name="later"),
        ],
    )
    assert made.waits(made.connections[2]) == wait
    placed = placement.place(made, LOIHI1)
    on = placed.layers["b"]
    assert set(on.blocks[:-1]) == {room}
    assert on.bound_by == "compartments"
    assert placement.place(made, chips.load("loihi2")).layers["b"].blocks == (1600,)
    fuller = (room + 1, on.blocks[1] - 1, *on.blocks[2:])
    message = f"b: a core needs {room + 1:,} compartments and loihi1 holds {room:,}"
    with pytest.raises(ValueError, match=message):
        placement.rebuild(made, LOIHI1, {"a": ((4,), None), "b": (fuller, None)})


def test_a_core_takes_neurons_of_31_pairs_of_decays():
    dv = np.arange(100, dtype=np.int32)
    made = network([population("a", 100, dv=dv)], [dense("input", "a", 100, 4)])
    on = placement.place(made, LOIHI1).layers["a"]
    assert (on.blocks, on.bound_by, on.fullest["decays"]) == ((31, 31, 31, 7), "decays", 31)
    assert "decays" not in on.total
    assert placement.place(made, chips.load("loihi2")).layers["a"].blocks == (100,)
    with pytest.raises(ValueError, match="a: a core needs 32 distinct decays and loihi1 holds 31"):
        placement.rebuild(made, LOIHI1, {"a": ((32, 31, 31, 6), None)})
    # The same voltage decays with two current decays are twice as many pairs.
    both = network(
        [population("a", 40, dv=dv[:40] % 20, du=dv[:40] // 20)], [dense("input", "a", 40, 4)]
    )
    assert placement.place(both, LOIHI1).layers["a"].blocks == (31, 9)
    # Those of a second current and of a threshold count too, where there is one.
    each = dv[:40] // 20
    for more, blocks in (
        ({"du2": each}, (31, 9)),
        ({"dq": each, "adapt": 1}, (31, 9)),
        ({"dq": each}, (40,)),
        ({"dq": each, "adapt": 1, "fires": False}, (40,)),
    ):
        other = network(
            [population("a", 40, dv=dv[:40] % 20, **more)], [dense("input", "a", 40, 4)]
        )
        assert placement.place(other, LOIHI1).layers["a"].blocks == blocks, more
    # By channel, dealt position by position.
    kernel = Conv(np.ones((40, 1, 1, 1), np.int8), (1, 1), (0, 0), (1, 1), 1)
    made = IntegerNetwork(
        "loihi1",
        4,
        {"input": Input((1, 2, 2))},
        (population("a", (40, 2, 2), dv=dv[:40].reshape(40, 1, 1)),),
        (Connection("w", "input", "a", kernel),),
        Readout(160, 1, "a"),
    )
    assert placement.place(made, LOIHI1).layers["a"].blocks == (31, 31, 31, 31, 31, 5)


def loop(size, delay=2):
    """a and b, each of which leads to all of the other."""
    return network(
        [population("a", size), population("b", size)],
        [
            dense("input", "a", size, 4),
            dense("a", "b", size, size),
            dense("b", "a", size, size, delay=delay),
        ],
    )


def test_populations_of_a_loop_are_cut_until_they_reach_each_other():
    """k cores of a population: each neuron of the other has k out-axons, b one more to the host."""
    made = loop(60)
    placed = placement.place(made, chip_with(out_axons=119))
    a, b = placed.layers.values()
    assert placed.beyond == ()
    assert (len(a.blocks), len(b.blocks)) > (1, 1)
    assert a.fullest["out_axons"] == max(a.blocks) * len(b.blocks) <= 119
    assert b.fullest["out_axons"] == max(b.blocks) * (1 + len(a.blocks)) <= 119
    check(made, placed, chip_with(out_axons=119))
    assert [on.cores for on in placement.place(made, LOIHI1).layers.values()] == [1, 1]


def test_neurons_without_a_source_or_a_target():
    """A bias that always fires, and a population whose spikes nobody reads."""
    made = network(
        [population("bias", 1), population("a", 3), population("unread", 5)],
        [dense("bias", "a", 3, 1), dense("input", "a", 3, 4), dense("a", "unread", 5, 3)],
        source="a",
    )
    bias, a, unread = placement.place(made, LOIHI1).layers.values()
    assert (bias.fullest["in_axons"], bias.fullest["synapse_bytes"]) == (0, 0)
    assert (bias.fullest["out_axons"], a.fullest["out_axons"]) == (1, 3 + 3)
    assert unread.fullest["out_axons"] == 0


# Delays that a chip does not have


def without_delays(name="loihi1"):
    return chips.load(name).model_copy(update={"delays": None})


def test_a_chip_without_delays_names_every_connection_that_waits():
    made = residual(wait=3)
    (problem,) = without_delays().delay_problems(made)
    assert str(problem) == (
        "a_c: spikes from a to c wait 3 steps on loihi1; it has no synaptic delays -> use --skips auto, "
        "or --chip ideal"
    )
    assert placement.place(made, without_delays()).beyond == (problem,)
    blocks = {p.name: ((p.size,), None) for p in made.populations}
    with pytest.raises(ValueError, match="a_c: spikes from a to c wait 3 steps on loihi1"):
        placement.rebuild(made, without_delays(), blocks)
    assert LOIHI1.delay_problems(made) == []
    assert placement.place(made, LOIHI1).beyond == ()
    direct = made.changed(replace(made.connections[3], delay=0))
    assert len(without_delays().delay_problems(direct)) == 1
    chain = replace(made, connections=made.connections[:3])
    assert without_delays().delay_problems(chain) == []


def test_a_wait_longer_than_a_chips_longest_is_refused():
    made = residual(wait=63)
    (problem,) = LOIHI1.delay_problems(made)
    assert "wait 63 steps on loihi1; its synapses wait at most 62 steps" in problem.what
    assert placement.place(made, LOIHI1).beyond == (problem,)
    assert LOIHI1.delay_problems(residual(wait=62)) == []
    assert chips.load("ideal").delay_problems(made) == []


def test_a_loop_of_fewer_steps_than_hops_is_for_ideal_alone():
    made = loop(6, delay=1)
    assert made.depth is None
    (problem,) = LOIHI1.delay_problems(made)
    assert str(problem) == (
        "a, b: a loop of 2 hops has 1 step of delay; a spike of loihi1 needs a step for each hop -> "
        "lengthen the delay of b_a (b to a) by 1, or use --chip ideal"
    )
    assert placement.place(made, LOIHI1).beyond == (problem,)
    assert without_delays().delay_problems(made) == [problem]
    assert chips.load("ideal").delay_problems(made) == []
    assert LOIHI1.delay_problems(loop(6)) == []


def test_what_a_chip_without_the_facts_can_do():
    assert [chips.load(name).delay_max for name in ("ideal", "loihi1", "loihi2")] == [None, 62, 62]
    assert without_delays().delay_max == 0
    unbounded = {"arithmetic": "unbounded", "delays": None}
    assert LOIHI1.model_copy(update=unbounded).delay_max == 0
    assert LOIHI1.model_copy(update=unbounded | {"packing": None}).delay_max is None
    none = Delays(steps_max=Count(value=0, source="chosen by a test"))
    assert chips.load("ideal").model_copy(update={"delays": none}).delay_max == 0


# Thresholds by core


def pooled():
    """lif -> pool -> two LIF populations, and a pool behind one of them."""
    ones = Conv(np.ones((2, 1, 2, 2), np.int8), (2, 2), (0, 0), (1, 1), 2)
    made = IntegerNetwork(
        "loihi1",
        4,
        {"input": Input((2, 8, 8))},
        (
            population("a", (2, 8, 8)),
            Population("pool", (2, 4, 4), Or()),
            population("b", (2, 4, 4)),
            Population("relay", (2, 4, 4), Or()),
            population("c", (2, 4, 4)),
            Population("last", (2, 2, 2), Or()),
        ),
        (
            one_to_one("input", "a", 128),
            Connection("pool", "a", "pool", ones, bits=1),
            one_to_one("pool", "b", 32),
            one_to_one("pool", "relay", 32),
            one_to_one("relay", "c", 32),
            one_to_one("b", "c", 32),
            Connection("last", "c", "last", ones, bits=1),
        ),
        Readout(8, 1, "last"),
    )
    return made


def test_pools_count_with_the_population_whose_spread_they_depend_on():
    placed = placement.place(pooled(), chip_with(compartments=8))
    assert [on.cores for on in placed.layers.values()] == [16, 4, 4, 4, 4, 1]
    assert grouped._cores(pooled(), placed) == {"a": 16, "b": 4 + 4, "c": 4 + 4 + 1}
    pool = Connection("pool", "input", "pool", pooled().connections[1].synapses, bits=1)
    alone = replace(
        pooled(),
        populations=pooled().populations[1:2],
        connections=(pool,),
        readout=Readout(32, 1, "pool"),
    )
    assert grouped._cores(alone, placement.place(alone, LOIHI1)) == {}


@pytest.mark.parametrize("seed", range(0, SEEDS, 3))
def test_no_core_of_a_graph_gets_more_thresholds_than_it_holds(seed):
    before = replace(graph(seed), chip="loihi1")
    chip = chip_with(thresholds=3, out_axons=200)
    before = replace(before, placement=placement.place(before, chip))
    after = grouped.pack(before, chip)
    assert after.placement.chips == before.placement.chips
    assert (after.lowering, list(after.rounding)) == ("grouped", [p.name for p in before.weighted])
    check(after, after.placement, chip)
    for a, b in zip(before.populations, after.populations, strict=True):
        assert after.placement.layers[a.name].fullest["thresholds"] <= 3
        assert set(np.unique(b.neurons.vth)) <= set(np.unique(a.neurons.vth))
    assert after.connections == before.connections
