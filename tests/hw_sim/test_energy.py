"""Counts, energy and time of a run, recomputed in plain Python; and that every chip fact has a source."""

import math
from collections import Counter
from functools import partial

import numpy as np
import pytest
from pydantic import ValidationError

from stl_deploy.chips import facts as chips
from stl_deploy.errors import InputError
from stl_deploy.hw_sim import reference
from stl_deploy.hw_sim.account.energy import EVENTS, Assessment, Meter
from stl_deploy.hw_sim.account.traffic import OnChip
from stl_deploy.hw_sim.account.work import Work
from stl_deploy.hw_sim.simulate import Recorder
from stl_deploy.ir.network import fan_out
from stl_deploy.ir.synapses import Conv, Dense
from tests.build.loads import ByHand, barrier_us, drawn, facts, hears, large, tiny
from tests.build.networks import chain, lif, pool, raster
from tests.build.wires import wires

CHIPS = ("ideal", "loihi1", "loihi2")
close = partial(pytest.approx, rel=1e-12, abs=0)  # joules and seconds are far below approx's 1e-12
CHIP_OF = {"loihi1-spice": "loihi1", "loihi1-nahuku": "loihi1", "loihi2-pilotnet": "loihi2"}


def counted(network, inputs, batch=2):
    recorder = Recorder(network)
    for at in range(0, len(inputs), batch):
        part = inputs[at : at + batch]
        recorder.add(part, reference.run(network, part, cores=recorder.cores))
    return recorder.done().counts


# Synapses and synops


@pytest.mark.parametrize("network", [tiny(), large()], ids=["tiny", "large"])
def test_synapses_that_leave_a_neuron(network):
    for c in network.connections:
        expected = np.zeros(network.shape(c.source), np.int64)
        for source, _ in wires(network, c):
            expected[source] += 1
        got = fan_out(network, c)
        assert got.dtype == np.int64
        assert (got == expected).all(), c.name


@pytest.mark.parametrize("groups", [1, 2, 4])
@pytest.mark.parametrize("stride", [(1, 1), (2, 3)])
@pytest.mark.parametrize("padding", [(0, 0), (2, 1)])
@pytest.mark.parametrize("dilation", [(1, 1), (1, 2)])
def test_synapses_that_leave_a_neuron_of_a_convolution(groups, stride, padding, dilation):
    rng = np.random.default_rng(groups)
    conv = Conv(drawn(rng, 8, 4 // groups, 3, 2), stride, padding, dilation, groups)
    network = chain(lif("lif", conv, (4, 7, 6)))
    (connection,) = network.connections
    expected = np.zeros((4, 7, 6), np.int64)
    for source, _ in wires(network, connection):
        expected[source] += 1
    assert (fan_out(network, connection) == expected).all()


@pytest.mark.parametrize("network", [tiny(), hears(tiny())], ids=["tiny", "recurrent"])
def test_counts_by_brute_force(network):
    """Every spike at every synapse, one at a time; a graded input is one event whatever its value."""
    inputs = raster(network, 5)
    trace = reference.run(network, inputs, states=True)
    counts = counted(network, inputs)
    assert (counts.samples, counts.timesteps, counts.hops, counts.physical_steps) == (5, 3, 4, 19)
    assert (counts.predictions == trace.predictions).all()
    compare_counts(network, inputs, counts)
    assert all(did.spikes.sum() > 0 for did in counts.layers)
    # The bias keeps all five neurons of lif2 busy in every step.
    assert (counts.layers[2].active == 5).all()
    assert counts.overflows == {}


def compare_counts(network, inputs, counts):
    trace = reference.run(network, inputs, states=True)
    sent = network.rasters(inputs) | {n: did.spikes for n, did in trace.layers.items()}
    size = next(iter(sent.values())).shape[:2]
    assert [(c.name, c.source, c.target) for c in counts.connections] == [
        c.key for c in network.connections
    ]
    met = []
    for c, did in zip(network.connections, counts.connections, strict=True):
        each = np.zeros(network.shape(c.source), np.int64)
        for source, _ in wires(network, c):
            each[source] += 1
        met.append((c.target, [(sent[c.source][n, t] != 0) * each for n, t in np.ndindex(size)]))
        assert did.synops.reshape(-1).tolist() == [int(x.sum()) for x in met[-1][1]]
    for population, did in zip(network.populations, counts.layers, strict=True):
        name = population.name
        assert (did.name, did.neurons) == (name, math.prod(population.shape))
        sources = {c.source for c in network.connections if c.target == name} - {name}
        for k, (n, t) in enumerate(np.ndindex(size)):
            events = sum(1 for source in sources for x in sent[source][n, t].flat if x)
            assert did.inputs[n, t] == events, name
            assert did.synops[n, t] == sum(int(x[k].sum()) for to, x in met if to == name), name
            assert did.spikes[n, t] == sum(1 for x in sent[name][n, t].flat if x), name
            assert did.active[n, t] == trace.layers[name].active[n, t]
            assert did.overflow[n, t] == trace.layers[name].overflow[n, t]


def test_batches_do_not_change_counts():
    network = tiny()
    inputs = raster(network, 7)
    one, two = counted(network, inputs, 7), counted(network, inputs, 3)
    for a, b in zip(one.layers, two.layers, strict=True):
        for field in ("inputs", "synops", "active", "spikes", "overflow"):
            assert (getattr(a, field) == getattr(b, field)).all()
    for a, b in zip(one.connections, two.connections, strict=True):
        assert (a.synops == b.synops).all()
    assert (one.predictions == two.predictions).all()


def test_overflows_are_named():
    layer = lif("wide", Dense(np.full((2, 300), 127, np.int8)), (300,), (2,), vth=1)
    network = chain(layer, chip="loihi1", steps=2)
    inputs = np.ones((3, 2, 300), np.uint8)
    inputs[0] = 0
    assert counted(network, inputs).overflows == {"wide": 8}


# Energy and time


def assessed(network, inputs, batch=2):
    """Energies by profile, added up batch by batch."""
    assessment = Assessment(network)
    for at in range(0, len(inputs), batch):
        part = inputs[at : at + batch]
        assessment.add(part, reference.run(network, part, cores=assessment.cores))
    return assessment.energies()


@pytest.mark.parametrize(
    ("network", "samples", "cores"),
    [
        (tiny(), 5, (4, 4)),
        (large(), 3, (30, 19)),
        (hears(tiny()), 5, (4, 4)),
        (hears(large()), 3, (37, 25)),
    ],
    ids=["tiny", "large", "tiny, recurrent", "large, recurrent"],
)
def test_energy_and_time_by_hand(network, samples, cores):
    inputs = raster(network, samples)
    found = assessed(network, inputs)
    assert set(found) == set(CHIP_OF)
    hand = {chip: ByHand(network, inputs, chip) for chip in ("loihi1", "loihi2")}
    for profile, chip in CHIP_OF.items():
        got, by_hand = found[profile], hand[chip]
        assert got.cores == len(by_hand.neurons) == cores[chip == "loihi2"]
        compare(network, got, by_hand, profile, chip)


def compare(network, got, hand, profile, chip):
    energy, times, picojoules, bounds = hand.price(chip, profile)
    for name, events in energy.items():
        assert got.by_layer_j[name] == close(sum(events.values()))
        for event, joules in got.by_layer_event_j[name].items():
            assert joules == close(events.get(event, 0.0)), (name, event)
    for event in EVENTS:
        assert got.by_event_j[event] == close(
            sum(events.get(event, 0.0) for events in energy.values())
        )
    assert got.dynamic_j == close(sum(got.by_layer_j.values()))
    steps, samples = network.timesteps, hand.samples
    assert got.series_s == close(times)
    assert got.series_j == close([1e-12 * pj for pj in picojoules])
    assert got.series_j.sum() / samples == close(got.dynamic_j)
    assert got.time_s == close(sum(times) / samples)
    mean = sum(times) / len(times)
    assert got.latency_s == close(mean * (steps + hand.hops))
    assert len(got.per_step_s) == len(got.per_step_j) == steps
    for t in range(steps):
        of_phase = times[t::steps]
        assert got.per_step_s[t] == close(sum(of_phase) / len(of_phase))
        assert got.per_step_j[t] == close(1e-12 * sum(picojoules[t::steps]) / len(of_phase))
        first = got.step_bounds[t]
        assert (first.part, first.core) in set(bounds[t::steps])
        assert first.steps == max(Counter(bounds[t::steps]).values())
    assert {(b.part, b.core): b.steps for b in got.bounds} == Counter(bounds)
    for bound in got.bounds:
        on = bound.core is not None and hand.cores[bound.layer].values()
        assert bound.core is None or bound.core in on
    low, high = watts(facts(chip)["static"], got.cores)
    assert got.static_range_j == close((low * got.time_s, high * got.time_s))
    assert got.static_j == close((low + high) / 2 * got.time_s)
    assert got.total_j == close(got.dynamic_j + got.static_j)


def watts(static, cores):
    """Loihi 1: of every core in use; Loihi 2: of the one chip."""
    if "chip_watt_low" in static:
        return static["chip_watt_low"]["value"], static["chip_watt_high"]["value"]
    return static["core_watt_low"]["value"] * cores, static["core_watt_high"]["value"] * cores


def test_every_part_binds_some_step():
    """Each network bounds by other things, so that a part left out of the maximum shows."""
    found = [
        bound.part
        for network, samples in ((tiny(), 5), (large(), 3))
        for energy in assessed(network, raster(network, samples)).values()
        for bound in energy.bounds
    ]
    assert {"generate", "receive"} <= set(found)


def test_the_network_can_bind():
    """1,600 cheap packets leave tile 0 by one link, each for a core with one synop to do."""
    profile = chips.profiles()["loihi1-spice"][1]
    slow = profile.model_copy(update={"link_ns": 50.0})
    network = large()
    inputs = raster(network, 1)
    on = OnChip(network, chips.load("loihi1"))
    meter = Meter(network, on, slow)
    work = Work(network, [(on.placed, on.mesh)])
    (done,) = work.count(inputs, reference.run(network, inputs, cores=work.cores))
    meter.add(on.take(done))
    got = meter.energy(network.timesteps)
    hand = ByHand(network, inputs, "loihi1")
    load = Counter()
    for links in hand.links.values():
        load.update(links)
    step, busiest = max(((k[0], n) for k, n in load.items()), key=lambda x: x[1])
    longest = max(4.1 * x + 6.5 * y for ways in hand.ways.values() for s, x, y in ways if s == step)
    assert got.bounds[0].part == "network"
    assert (got.bounds[0].core, got.bounds[0].layer) == (None, None)
    barrier = barrier_us(facts("loihi1")["profiles"]["loihi1-spice"]["barrier"], 8)
    assert got.series_s[step] == close(1e-9 * (50 * busiest + longest) + 1e-6 * barrier)


@pytest.mark.parametrize("batch", [1, 2, 7])
@pytest.mark.parametrize("heard", [False, True])
def test_batches_do_not_change_energy(batch, heard):
    """Also batches of fewer steps than the network has hops."""
    network = hears(tiny(timesteps=2)) if heard else tiny(timesteps=2)
    inputs = raster(network, 7)
    whole, parts = assessed(network, inputs, 7), assessed(network, inputs, batch)
    for profile, one in whole.items():
        two = parts[profile]
        assert two.by_layer_event_j == one.by_layer_event_j
        assert (two.series_s == one.series_s).all()
        assert (two.series_j == one.series_j).all()
        assert (two.bounds, two.step_bounds) == (one.bounds, one.step_bounds)


def test_one_profile_alone():
    network = tiny()
    inputs = raster(network, 2)
    assessment = Assessment(network, "loihi1-nahuku")
    assessment.add(inputs, reference.run(network, inputs, cores=assessment.cores))
    (name, energy), *more = assessment.energies().items()
    assert (name, more) == ("loihi1-nahuku", [])
    assert energy.by_event_j == assessed(network, inputs)["loihi1-nahuku"].by_event_j


def test_a_run_without_cores_is_refused():
    network = tiny()
    inputs = raster(network, 1)
    with pytest.raises(ValueError, match="lif1: run without the cores"):
        Assessment(network).add(inputs, reference.run(network, inputs))


def test_one_neuron_with_pencil_and_paper():
    """One spike in, one out, in the first of two steps: five events of the Nahuku profile.

    Three physical steps (2 + 1 hop), one core. The first receives: a packet (16 ns) and a synop (3.8),
    more than the neuron's 6 ns. The second updates and sends; the last has the neuron's 6 ns alone.
    Each has the barrier of 600 ns.
    """
    layer = lif("one", Dense(np.array([[5]], np.int8)), (1,), (1,), vth=0)
    network = chain(layer, chip="loihi1", steps=2)
    got = assessed(network, np.array([[[1], [0]]], np.uint8))["loihi1-nahuku"]
    assert got.by_event_j == close(
        {
            "neuron update": (3 * 51.2 + 21.6) * 1e-12,
            "neuron spike": 69.3e-12,
            "synop": 35.5e-12,
            "packet out": 111e-12,
            "packet in": 0.0,
            "hop": 0.0,
        }
    )
    arrive, busy = 16.0 + 3.8, 6.0 + 3.7 + 30.0 + 5.1
    assert got.series_s == close([(600 + ns) * 1e-9 for ns in (arrive, busy, 6.0)])
    assert got.per_step_s == close((600e-9 + (arrive + 6) / 2 * 1e-9, (600 + busy) * 1e-9))
    assert got.time_s == close((3 * 600 + arrive + busy + 6) * 1e-9)
    assert [(b.part, b.steps) for b in got.bounds] == [("generate", 2), ("receive", 1)]
    assert got.latency_s == close(got.time_s)


def test_silence_costs_updates_alone():
    conv = Conv(drawn(np.random.default_rng(7), 4, 1, 3, 2), (2, 1), (1, 2), (1, 2), 2)
    network = chain(lif("lif1", conv, (2, 5, 4), vth=25), pool((4, 3, 6), (3, 2)), steps=3)
    for got in assessed(network, np.zeros((2, 3, 2, 5, 4), np.uint8)).values():
        spent = {event for event, joule in got.by_event_j.items() if joule}
        assert spent == {"neuron update"}
        assert len(set(got.per_step_s)) == 1


def test_a_chip_without_cores_has_no_energy():
    with pytest.raises(ValueError, match="ideal has no cores"):
        OnChip(tiny(), chips.load("ideal"))


# Chip files


def test_the_chips_there_are():
    assert chips.names() == CHIPS


@pytest.mark.parametrize("chip", CHIPS)
def test_every_number_has_a_source(chip):
    table = facts(chip)
    plain = {k for k, v in table.items() if not isinstance(v, dict)}
    assert plain == {"name", "title", "arithmetic"}
    assert table["name"] == chip
    for section in table.keys() - plain - {"profiles"}:
        for key, entry in table[section].items():
            assert set(entry) == {"value", "source"}, f"{section}.{key}"
            words = ("carried", "assumed", "refused") if section == "neurons" else ()
            assert isinstance(entry["value"], int | float) or entry["value"] in words
            assert len(entry["source"].split()) >= 3, f"{section}.{key}"
    for name, profile in table.get("profiles", {}).items():
        assert len(profile["source"].split()) >= 3, name
        assert all(isinstance(v, str | dict | float) for v in profile.values()), name


@pytest.mark.parametrize("chip", CHIPS)
def test_the_model_reads_what_the_file_says(chip):
    table, loaded = facts(chip), chips.load(chip)
    for section in ("registers", "limits"):
        values = getattr(loaded, section).model_dump(exclude_none=True)
        assert values == table[section]
    assert set(loaded.profiles) == set(table.get("profiles", {}))


def test_the_loihi_2_profile_is_nahuku_scaled_to_one_measurement():
    """One factor for energies and one for times; the measured load then takes what was measured."""
    nahuku = facts("loihi1")["profiles"]["loihi1-nahuku"]
    two, load = facts("loihi2")["profiles"]["loihi2-pilotnet"], facts("loihi2")["pilotnet"]
    for table in ("update", "synop", "packet", "hop"):
        for unit in ("pj", "ns"):
            ours, theirs = two[f"{table}_{unit}"], nahuku[f"{table}_{unit}"]
            assert set(ours) == set(theirs)
            factor = two["update_" + unit]["always"] / nahuku["update_" + unit]["always"]
            for key, value in ours.items():
                assert value == pytest.approx(theirs[key] * factor, rel=1e-3), (table, key)
    assert two["barrier"]["tiles"] == nahuku["barrier"]["tiles"]
    n, f, s, cores = (load[k]["value"] for k in ("updates", "spikes", "synops", "cores"))
    pj, ns = two["update_pj"], two["update_ns"]
    energy = n * (pj["always"] + pj["active"]) + f * (pj["spike"] + two["packet_pj"]["out"])
    energy += s * two["synop_pj"]["conv"]
    assert 1e-6 * energy == pytest.approx(load["dynamic_uj"]["value"], rel=1e-3)
    generate = n * (ns["always"] + ns["active"]) + f * (ns["spike"] + two["packet_ns"]["out"])
    receive = f * two["packet_ns"]["in"] + s * two["synop_ns"]["conv"]
    step = 1e-3 * max(generate, receive) / cores + barrier_us(two["barrier"], -(-cores // 4))
    assert step == pytest.approx(load["step_us"]["value"], rel=1e-3)
    assert two["extrapolation"]
    assert not nahuku.get("extrapolation")


def test_the_loihi_1_circuit_simulation_is_the_published_table():
    """Davies et al. 2018, table 2. An active update costs 81 pJ and 8.4 ns, an inactive one 52 and 5.3."""
    spice = facts("loihi1")["profiles"]["loihi1-spice"]
    assert {key: spice[key] for key in spice if key.endswith("_pj")} == {
        "update_pj": {"always": 52.0, "active": 81.0 - 52.0, "spike": 0.0},
        "synop_pj": dict.fromkeys(("dense", "conv", "sparse"), 23.6),
        "packet_pj": {"out": 0.0, "in": 1.7},
        "hop_pj": {"east_west": 3.0, "north_south": 4.0},
    }
    times = {key: spice[key] for key in spice if key.endswith("_ns") and key != "link_ns"}
    assert times == {
        "update_ns": {"always": 5.3, "active": pytest.approx(8.4 - 5.3), "spike": 0.0},
        "synop_ns": dict.fromkeys(("dense", "conv", "sparse"), 3.5),
        "packet_ns": {"out": 0.0, "in": 2.1},
        "hop_ns": {"east_west": 4.1, "north_south": 6.5},
    }
    assert spice["link_ns"] == pytest.approx(1 / 3.44, abs=5e-4)  # 3.44 Gspike/s
    assert (spice["barrier"]["tiles"], spice["barrier"]["us"]) == ([1, 32], [0.113, 0.465])


@pytest.mark.parametrize("profile", CHIP_OF)
@pytest.mark.parametrize("tiles", [1, 2, 3, 4, 28, 29, 32, 500])
def test_barrier(profile, tiles):
    table = facts(CHIP_OF[profile])["profiles"][profile]["barrier"]
    got = chips.profiles()[profile][1].barrier.seconds(tiles)
    assert got == close(1e-6 * barrier_us(table, tiles))


def test_registers():
    ideal, one, two = (chips.load(name) for name in CHIPS)
    assert (ideal.state_limit, ideal.accumulator_limit) == (None, None)
    assert ideal.threshold_range == ideal.bias_mant_range == (-(2**31), 2**31 - 1)
    assert (one.state_limit, one.accumulator_limit) == (2**23, 2**15)
    assert (two.state_limit, two.accumulator_limit) == (2**23, 2**17)
    for chip in (one, two):
        assert chip.threshold_range == (0, 131071)
        assert chip.bias_mant_range == (-4096, 4095)


def test_every_chip_names_its_arithmetic():
    assert [chips.load(name).arithmetic for name in CHIPS] == ["unbounded", "loihi", "loihi"]
    table = facts("loihi1")
    del table["arithmetic"]
    with pytest.raises(ValidationError, match=r"arithmetic\s+Field required"):
        chips.Chip.model_validate(table)
    with pytest.raises(ValidationError, match="'loihi' or 'unbounded'"):
        chips.Chip.model_validate(table | {"arithmetic": "float"})


@pytest.mark.parametrize(
    ("chip", "register", "bits", "text"),
    [
        ("loihi1", "fraction_bits", 7, "fraction_bits 7; networks are defined for 6"),
        ("ideal", "decay_bits", 11, "decay_bits 11; networks are defined for 12"),
        ("loihi2", "state_bits", 32, "state_bits 32 is not in 2..31"),
        ("loihi2", "state_bits", 1, "state_bits 1 is not in 2..31"),
        ("loihi2", "state_bits", None, "arithmetic 'loihi' with state_bits None"),
        ("ideal", "state_bits", 24, "arithmetic 'unbounded' with state_bits 24"),
    ],
)
def test_what_no_network_is_defined_for_is_no_chip(chip, register, bits, text):
    table = facts(chip)
    registers = dict(table["registers"])
    if bits is None:
        del registers[register]
    else:
        registers[register] = {"value": bits, "source": "an imagined chip"}
    with pytest.raises(ValidationError, match=text):
        chips.Chip.model_validate(table | {"registers": registers})


@pytest.mark.parametrize("section", ["registers", "limits", "static"])
def test_a_number_without_a_source_is_refused(section):
    table = facts("loihi1")
    key = next(iter(table[section]))
    for broken in ({"value": 8}, {"value": 8, "source": ""}, 8):
        changed = table | {section: table[section] | {key: broken}}
        with pytest.raises(ValidationError, match=key):
            chips.Chip.model_validate(changed)
    profile = dict(table["profiles"]["loihi1-spice"])
    del profile["source"]
    with pytest.raises(ValidationError, match="source"):
        chips.Chip.model_validate(table | {"profiles": {"x": profile}})


@pytest.mark.parametrize("name", ["loihi3", "", "../loihi1", "Loihi1"])
def test_unknown_chip(name):
    with pytest.raises(InputError, match="is not one of ideal, loihi1, loihi2") as caught:
        chips.load(name)
    assert repr(name) in str(caught.value)
    assert caught.value.exit_code == 2
