"""Relays: the same spikes, with nothing left to wait for."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest

from stl_deploy.chips import facts as chips
from stl_deploy.errors import LoweringError
from stl_deploy.hw_sim import reference
from stl_deploy.ir.network import Connection, Input, IntegerNetwork, Population
from stl_deploy.ir.neurons import Lif
from stl_deploy.ir.readouts import Readout
from stl_deploy.ir.synapses import Dense, OneToOne
from stl_deploy.lower import relays
from tests.build import random_graphs

LOIHI2 = chips.load("loihi2")
SPIKES = random_graphs.Features(graded=False, signed=False, chips=("loihi1", "loihi2"))


def same_spikes(network: IntegerNetwork, other: IntegerNetwork, rasters) -> bool:
    """Whether the populations of ``network`` fire in ``other`` as they do in it, u and v included."""
    here = reference.run(network, rasters, states=True).layers
    there = reference.run(other, rasters, states=True).layers
    return all(
        np.array_equal(getattr(did, kind), getattr(there[name], kind))
        for name, did in here.items()
        for kind in ("spikes", "u", "v")
    )


@pytest.mark.parametrize("seed", range(40))
def test_relays_change_no_spike_and_leave_nothing_to_wait_for(seed):
    network, rasters = random_graphs.draw(seed, SPIKES)
    other = relays.relayed(network, chips.of(network), "relay")
    assert {other.waits(c) for c in other.connections} == {0}
    assert same_spikes(network, other, rasters)
    assert network.depth is not None
    assert other.depth is not None
    assert {name: other.depth[name] for name in network.depth} == network.depth
    expected = sum(added(network, name) for name in [*network.inputs, *network.by_name])
    assert len(other.populations) - len(network.populations) == expected


def added(network: IntegerNetwork, source: str) -> int:
    """Relays behind ``source``: the longest wait; or its copies, one for each wait."""
    waits = {network.waits(c) for c in network.out_of(source)} - {0}
    fed = source in network.inputs or network.into(source)
    return max(waits, default=0) if fed else len(waits)


def test_random_graphs_need_relays():
    counts = []
    for seed in range(40):
        network, _ = random_graphs.draw(seed, SPIKES)
        other = relays.relayed(network, LOIHI2, "relay")
        counts.append(len(other.populations) - len(network.populations))
    assert sum(count > 0 for count in counts) >= 20
    assert max(counts) >= 3


@pytest.mark.parametrize("seed", range(10))
def test_a_chip_that_waits_a_little_is_asked_to(seed, monkeypatch):
    monkeypatch.setattr(chips.Chip, "delay_max", 1)
    network, rasters = random_graphs.draw(seed, SPIKES)
    other = relays.relayed(network, LOIHI2)
    assert max(other.waits(c) for c in other.connections) <= 1
    assert same_spikes(network, other, rasters)


@pytest.mark.parametrize("chip", ["ideal", "loihi1", "loihi2"])
def test_where_synapses_wait_no_relay_is_added(chip):
    network, _ = random_graphs.draw(3, SPIKES)
    for skips in ("auto", "delay"):
        assert relays.relayed(network, chips.load(chip), skips) is network


def neurons(n: int, bias: int = 0) -> Lif:
    return Lif(np.full(n, 9, np.int32), np.full(n, bias, np.int32), np.ones(n))


def residual(inputs: dict[str, Input] | None = None, **fields) -> IntegerNetwork:
    """input -> a -> b -> c -> d; a skips to c and to d, the input to c, and ``always`` leads to b and d."""
    chain = ["input", "a", "b", "c", "d"]
    ways = [*itertools.pairwise(chain), ("a", "c"), ("a", "d"), ("input", "c")]
    ways += [("always", "b"), ("always", "d")]
    connections = [
        Connection(f"{s}_{t}", s, t, Dense(np.full((4, 4), 5 + i, np.int8)))
        for i, (s, t) in enumerate(ways)
    ]
    every = tuple(Population(name, (4,), neurons(4)) for name in chain[1:])
    always = Population("always", (4,), neurons(4, 30))
    return IntegerNetwork(
        "loihi2",
        5,
        {"input": Input((4,))} if inputs is None else inputs,
        (always, *every),
        tuple(connections),
        Readout(4, 1, "d"),
        **fields,
    )


def test_a_chain_is_shared_and_a_source_of_spikes_is_copied():
    other = relays.relayed(residual(), LOIHI2, "relay")
    assert [p.name for p in other.populations] == [
        *("input_relay1", "input_relay2", "always", "always_relay1", "a", "a_relay1", "a_relay2"),
        *("b", "c", "d"),
    ]
    ways = {(c.source, c.target) for c in other.connections}
    assert {
        ("a", "a_relay1"),
        ("a_relay1", "a_relay2"),
        ("a_relay1", "c"),
        ("a_relay2", "d"),
    } < ways
    assert {("always", "b"), ("always_relay1", "d")} < ways
    assert not other.into("always_relay1")
    assert {c.key[0] for c in other.connections} > {c.key[0] for c in residual().connections}
    relay = next(c for c in other.connections if c.target == "a_relay1")
    assert relay.synapses.kind == "one_to_one"
    assert (relay.bits, relay.delay, relay.exp) == (1, 0, 0)


def test_names_that_are_taken_get_others():
    network = residual()
    taken = replace(network.by_name["b"], name="a_relay1")
    connections = tuple(
        replace(
            c,
            source="a_relay1" if c.source == "b" else c.source,
            target="a_relay1" if c.target == "b" else c.target,
        )
        for c in network.connections
    )
    populations = tuple(taken if p.name == "b" else p for p in network.populations)
    network = replace(network, populations=populations, connections=connections)
    other = relays.relayed(network, LOIHI2, "relay")
    assert "a_relay1_" in other.by_name
    rasters = np.random.default_rng(0).integers(0, 2, (3, 5, 4)).astype(np.uint8)
    assert same_spikes(network, other, rasters)


def test_a_delay_stays_where_it_was():
    """From a to itself, three steps later: two relays, and the last way back keeps all three."""
    own = Connection("own", "a", "a", OneToOne(np.full(4, 20, np.int8)), delay=3)
    network = residual()
    network = replace(network, connections=(*network.connections, own))
    other = relays.relayed(network, LOIHI2, "relay")
    (back,) = [c for c in other.connections if c.name == "own"]
    assert (back.source, back.target, back.delay, other.waits(back)) == ("a_relay2", "a", 3, 0)
    rasters = np.random.default_rng(0).integers(0, 2, (3, 5, 4)).astype(np.uint8)
    assert same_spikes(network, other, rasters)
    assert reference.run(network, rasters).layers["a"].spikes.any()


def refused(network, chip=LOIHI2, skips="relay") -> list[str]:
    with pytest.raises(LoweringError) as caught:
        relays.relayed(network, chip, skips)
    return [str(problem) for problem in caught.value.problems]


@pytest.mark.parametrize(
    ("given", "values"),
    [
        (Input((4,), 7), "0 to 7"),
        (Input((4,), 1, signed=True), "-1 to 1"),
        (Input((4,), 3, held=True), "0 to 3"),
    ],
)
def test_graded_values_have_no_relay(given, values):
    (line,) = refused(residual({"input": given}))
    assert line == (
        f"input_c (input to c): waits 2 steps, and a relay passes on spikes, not values {values} -> "
        "use --skips auto, or encode the input as spikes"
    )
    assert relays.relayed(residual({"input": given}), LOIHI2).by_name.keys() == {*"abcd", "always"}


def test_a_wait_beyond_the_chip_is_refused_with_delays_alone(monkeypatch):
    monkeypatch.setattr(chips.Chip, "delay_max", 1)
    assert refused(residual(), skips="delay") == [
        f"{a}_{b}: spikes from {a} to {b} wait 2 steps on loihi2; its synapses wait at most 1 step -> "
        "use --skips auto, or --chip ideal"
        for a, b in (("a", "d"), ("input", "c"), ("always", "d"))
    ]
    (line,) = refused(residual({"input": Input((4,), 7)}), skips="auto")
    assert line.endswith("-> use --chip ideal, or encode the input as spikes")


@pytest.mark.parametrize("skips", ["auto", "delay", "relay"])
def test_a_loop_with_too_few_steps_runs_on_ideal_alone(skips):
    back = Connection("back", "c", "b", Dense(np.full((4, 4), 5, np.int8)), delay=1)
    network = residual()
    network = replace(network, chip="ideal", connections=(*network.connections, back))
    (line,) = refused(network, skips=skips)
    assert line.startswith("b, c: a loop of 2 hops has 1 step of delay; a spike of loihi2 needs")
    ideal = chips.load("ideal")
    if skips == "relay":
        (line,) = refused(network, ideal)
        assert line.startswith("b, c: a loop of 2 hops has 1 step of delay, and relays are a hop")
    else:
        assert relays.relayed(network, ideal, skips) is network


def late(wait: int, chip: str) -> IntegerNetwork:
    """``residual`` whose longest way from a waits that long."""
    network = replace(residual(), chip=chip)
    (skip,) = [c for c in network.connections if c.key == ("a_d", "a", "d")]
    strong = Dense(np.full((4, 4), -90, np.int8))
    return network.changed(replace(skip, delay=wait, synapses=strong))


def test_delays_beyond_the_synapses_take_relays_and_ideal_needs_none():
    """A chip's own limit decides; what is added is said."""
    delay = 63
    network = late(delay, "loihi2")
    other = relays.relayed(network, LOIHI2)
    (note,) = other.diagnostics
    count = delay + 2 - 62
    assert note.where == "a to d"
    assert (
        f"wait up to {delay + 2} steps; synapses of loihi2 wait at most 62. {count} pop"
        in note.what
    )
    assert f"({4 * count:,} more neurons)" in note.what
    assert len(other.populations) == len(network.populations) + count
    assert max(other.waits(c) for c in other.connections) == 62
    ideal = late(delay, "ideal")
    assert relays.relayed(ideal, chips.load("ideal")) is ideal
    steps = delay + 5
    rasters = np.random.default_rng(0).integers(0, 2, (2, steps, 4)).astype(np.uint8)
    assert same_spikes(replace(network, timesteps=steps), replace(other, timesteps=steps), rasters)
    now = reference.run(replace(network, timesteps=steps), rasters).layers["d"].spikes
    cut = replace(network, connections=tuple(c for c in network.connections if c.name != "a_d"))
    without = reference.run(replace(cut, timesteps=steps), rasters).layers["d"].spikes
    assert np.array_equal(now[:, :delay], without[:, :delay])
    assert not np.array_equal(now, without)


def test_more_relays_than_anybody_wants_are_refused():
    (line,) = refused(late(62 + relays.MOST - 1, "loihi2"), skips="auto")
    assert line == (
        "a_d (a to d): spikes wait 319 steps; synapses of loihi2 wait at most 62, and 257 relays are more "
        "than 256 -> shorten the delay, or use --chip ideal with --skips auto"
    )
    assert relays.relayed(late(62 + relays.MOST - 2, "loihi2"), LOIHI2).diagnostics


def test_copies_of_what_nothing_leads_into_are_called_so(monkeypatch):
    monkeypatch.setattr(chips.Chip, "delay_max", 1)
    notes = {note.where: note.what for note in relays.relayed(residual(), LOIHI2).diagnostics}
    assert notes.keys() == {"input to c", "a to d", "always to d"}
    assert notes["always to d"].endswith(
        "a population of copies of it passes them on (4 more neurons)"
    )
    assert notes["a to d"].endswith("a population of relays passes them on (4 more neurons)")
    assert not relays.relayed(residual(), LOIHI2, "relay").diagnostics
