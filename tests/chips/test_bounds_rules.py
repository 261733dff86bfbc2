"""Bounds of currents and voltages for every rule of neurons: no run passes them."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stl_deploy.chips import bounds, facts
from stl_deploy.hw_sim import reference
from stl_deploy.ir.network import Connection, Input, IntegerNetwork, Population
from stl_deploy.ir.neurons import ONCE, Lif
from stl_deploy.ir.readouts import Readout
from stl_deploy.ir.synapses import Dense

SIZE, STEPS, INPUTS = 3, 5, 4


def drawn(rng):
    """Neurons of any rules behind two currents' worth of synapses, on a chip without registers."""

    def each(low, high):
        size = (SIZE,) if rng.random() < 0.5 else ()
        return rng.integers(low, high, size).astype(np.int32)

    def perhaps(value, otherwise):
        return value if rng.random() < 0.4 else otherwise

    neurons = Lif(
        rng.integers(-40, 200, SIZE).astype(np.int32),
        each(-300, 300) * perhaps(1, 0),
        np.ones(SIZE),
        bias_exp=int(rng.integers(0, 7)),
        du=perhaps(each(0, 4096), 4095),
        dv=perhaps(each(0, 4096), 0),
        reset=str(rng.choice(["zero", "subtract", "constant", "none"])),
        v_reset=each(-9000, 9000),
        fires=bool(rng.random() < 0.8),
        reset_current=bool(rng.random() < 0.3),
        hold=perhaps(int(rng.choice([ONCE, 1, 2])), 0),
        floor=perhaps(each(-9000, 2000), None),
        adapt=perhaps(each(-4000, 4000), 0),
        dq=each(0, 4096),
        du2=perhaps(each(0, 4096), None),
        gain=perhaps(rng.integers(-9000, 16_000, (STEPS, SIZE)).astype(np.int16), None),
        v0=perhaps(each(-9000, 9000), 0),
    )
    weights = [rng.integers(-127, 128, (SIZE, INPUTS)).astype(np.int8) for _ in range(2)]
    into = tuple(
        Connection(f"w{i}", "input", "n", Dense(weight), port=i if neurons.du2 is not None else 0)
        for i, weight in enumerate(weights)
    )
    population = Population("n", (SIZE,), neurons)
    ports = {"input": Input((INPUTS,))}
    return IntegerNetwork("ideal", STEPS, ports, (population,), into, Readout(SIZE, 1, "n"))


def extremes(network, rng):
    """Inputs at random, none, and those that pull each neuron as far as they can."""
    chosen = [(rng.random((20, STEPS, INPUTS)) < rng.random()).astype(np.uint8)]
    for c in network.connections:
        for side in (c.synapses.weight > 0, c.synapses.weight < 0):
            chosen.append(np.repeat(side[:, None].astype(np.uint8), STEPS, axis=1))
    flips = np.concatenate(chosen)
    first = np.where(np.arange(STEPS)[:, None] < rng.integers(1, STEPS), flips, flips[::-1])
    return np.concatenate([flips, first])


def went(network, raster):
    """Currents and v before the threshold, [steps, N, neurons] each."""
    population = network.populations[0]
    neurons = reference.Neurons(population, len(raster), facts.load("ideal"))
    seen = {"u": [], "v": [], "a": []}
    after_spike = reference.after_spike

    def spy(v, *rest):
        seen["v"].append(v)
        return after_spike(v, *rest)

    add_current = reference.add_current

    def also(*arguments):
        u, over = add_current(*arguments)
        seen["u"].append(u)
        return u, over

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(reference, "after_spike", spy)
        patch.setattr(reference, "add_current", also)
        for t in range(STEPS):
            a = np.zeros((2, len(raster), SIZE), np.int64)
            for c in network.connections:
                a[c.port] += c.sums(raster[:, t], 1)
            seen["a"] += list(a)
            neurons.step(t, *a)
    return {name: np.stack(values) for name, values in seen.items()}


@settings(max_examples=400)
@given(st.integers(0, 2**32 - 1))
def test_bounds_are_sound_for_every_rule(seed):
    rng = np.random.default_rng(seed)
    network = drawn(rng)
    (population,) = network.populations
    found = went(network, extremes(network, rng))
    limits = {
        "a": bounds.one_sided_sums(network, population),
        "u": bounds.current_range(network, population, STEPS),
        "v": bounds.voltage_range(network, population, STEPS),
    }
    for name, (low, high) in limits.items():
        assert (found[name].min(axis=(0, 1)) >= low).all(), name
        assert (found[name].max(axis=(0, 1)) <= high).all(), name
    low, high = bounds.voltage_range(network, population, STEPS, anywhere=True)
    assert (low <= limits["v"][0]).all()
    assert (high >= limits["v"][1]).all()


def one(weight, du2=None, ports=(0,), **fields):
    """A neuron that forgets no voltage (vth 5), behind a weight for each of ``ports``."""
    parameters = {"vth": 5, "bias": 0, "dv": 0, **fields}
    vth, bias = (np.array([parameters.pop(name)], np.int32) for name in ("vth", "bias"))
    neurons = Lif(vth, bias, np.ones(1), du2=du2, **parameters)
    into = tuple(
        Connection(f"w{p}", "input", "n", Dense(np.array([[weight]], np.int8)), port=p)
        for p in ports
    )
    population = Population("n", (1,), neurons)
    return IntegerNetwork(
        "ideal", 3, {"input": Input((1,))}, (population,), into, Readout(1, 1, "n")
    )


@pytest.mark.parametrize(
    ("network", "up"),
    [
        (one(10), 2 * 5 + 5 + 10 - 10),  # what is left is at most vth
        (one(10, reset="none"), 30),
        (one(10, fires=False), 30),
        (one(10, fires=False, v0=64), 31),
        (one(10, reset="constant", v_reset=7 * 64), 17),
        (one(10, adapt=64, dq=0), 5 + 1 + 10),
        (one(10, fires=False, gain=np.array([4096, 8192, -4096], np.int16)), 30),
        (one(10, 4095, (0, 1)), 25),
        (one(-10, floor=3 * 64), 3),
        (one(10, fires=False, gain=np.full(3, 4096, np.int16), bias=1, bias_exp=6), 33),
    ],
)
def test_the_highest_voltage_by_hand(network, up):
    _, high = bounds.voltage_range(network, network.populations[0], 3)
    assert high.tolist() == [up * 64]


def test_voltages_after_a_hold_and_below_a_threshold_that_sank():
    """v rests while a negative gain would lower it; a spike at thr + q takes thr, and leaves q."""
    gain = np.array([4096, -16_384, 28_672], np.int16)
    rests = one(0, reset="none", hold=1, v0=640, bias=3, bias_exp=6, gain=gain)
    low, high = bounds.voltage_range(rests, rests.populations[0], 3)
    assert high.tolist() == [(13 + 21) * 64]
    sank = one(10, reset="subtract", adapt=-256, dq=0)
    low, _ = bounds.voltage_range(sank, sank.populations[0], 3)
    assert low.tolist() == [-256]


def test_each_current_has_an_accumulator_and_a_register_of_its_own():
    both, first = one(100, 4095, (0, 1)), one(100)
    for function in (bounds.one_sided_sums, lambda n, p: bounds.current_range(n, p, 3)):
        assert function(both, both.populations[0]) == function(first, first.populations[0])
    low, high = bounds.one_sided_sums(both, both.populations[0], 1)
    assert (low.tolist(), high.tolist()) == ([0], [100])


def test_excess_counts_what_no_reset_takes_back():
    network = one(127, fires=False)
    chip = facts.load("loihi2")
    population = network.populations[0]
    steps = (1 << 23) // (127 * 64)
    made = replace(network, timesteps=steps + 2)
    assert bounds.excess(made, population, chip, steps).max() <= 1
    assert bounds.excess(made, population, chip, steps + 2).max() > 1
