"""Sleep-based STDP: adaptive thresholds, a floor, a constant reset, a decay for each neuron, E and I.

Nothing is composed. Potentials count from that of rest, so that thresholds lie above 0, as chips want
them. Excitatory (E) and inhibitory neurons are one population. The system also cuts potentials off at 40
mV: a potential as high as that fires and is reset as long as thresholds lie lower, which the test makes
sure of. Decays are not on a grid of powers of two, so that no neuron may come near its threshold.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest

from stl_deploy.ir.floats import FloatNetwork
from stl_deploy.ir.readouts import FloatReadout
from tests.build import seeds
from tests.build.seeds import Draft, Float, Ran, Watch, dense
from tests.build.seeds_quantized import CHIPS, same_everywhere

PIXELS, E, INHIBITORY, CLASSES = 36, 20, 8, 5
T, SAMPLES = 120, 4
REST, RESET, FLOOR, TOP, ADAPT, FORGET = -65.0, -80.0, -100.0, 40.0, 0.5, 1 / 200


@dataclass
class System:
    into: Float
    between: Float
    tm: Float
    ts: Float
    theta: Float
    r: Float
    matrix: Float


def drawn(rng: np.random.Generator) -> tuple[System, np.ndarray, Ran]:
    size = E + INHIBITORY
    strength = np.where(np.arange(size) < E, 1.0, -400.0)
    system = System(
        np.abs(seeds.weights(rng, (size, PIXELS), 150.0, 25)),
        rng.uniform(0, 3, (size, size)) * strength,
        np.where(np.arange(size) < E, rng.uniform(15, 25, size), rng.uniform(8, 12, size)),
        np.where(np.arange(size) < E, rng.uniform(4, 6, size), rng.uniform(8, 12, size)),
        rng.uniform(-58, -50, size),
        rng.uniform(0.8, 1.2, size),
        rng.normal(0, 1, (CLASSES, E)),
    )
    # Rates of 0 to 90 Hz in steps of 1 ms, several times as high so that fewer steps do.
    rates = rng.uniform(0, 0.3, (SAMPLES, 1, PIXELS))
    x = (rng.random((SAMPLES, T, PIXELS)) < rates).astype(np.uint8)
    return system, x, theirs(system, x)


def theirs(s: System, x: np.ndarray, floor: float = FLOOR) -> Ran:
    ran = Ran(watch=Watch())
    shape = len(x), E + INHIBITORY
    current, a, fired = np.zeros(shape), np.zeros(shape), np.zeros(shape)
    v = np.full(shape, REST)
    counts = np.zeros((len(x), E))
    for t in range(x.shape[1]):
        arriving = x[:, t].astype(np.float64) @ s.into.T + fired @ s.between.T
        current = (1 - 1 / s.ts) * current + arriving / s.ts
        v = v + (-(v - REST) + s.r * current) / s.tm
        v = np.clip(v, floor, TOP)
        assert (s.theta + a < TOP).all()
        fired = ran.watch.above(v, s.theta + a)
        v = np.where(fired > 0, RESET, v)
        a = (1 - FORGET) * a + ADAPT * fired
        ran.note("both", fired)
        counts += fired[:, :E]
    ran.scores = counts @ s.matrix.T
    ran.classes = ran.scores.argmax(axis=1)
    return ran


def ours(s: System) -> FloatNetwork:
    one, size = np.ones(1), E + INHIBITORY
    draft = Draft({"input": (PIXELS,)})
    made = seeds.neurons(
        (size,),
        1 - 1 / s.tm,
        s.theta - REST,
        kind="cuba",
        current=1 / s.ts,
        drive=1 / s.ts,
        gain=s.r / s.tm,
        v_reset=one * (RESET - REST),
        floor=one * (FLOOR - REST),
        adapt=one * ADAPT,
        adapt_step=one * FORGET,
    )
    draft.add("both", (size,), made)
    draft.connect("input", "both", dense(s.into))
    draft.connect("both", "both", dense(s.between), delay=1)
    matrix = np.concatenate([s.matrix, np.zeros((CLASSES, INHIBITORY))], axis=1)
    return draft.network(FloatReadout(CLASSES, 1, "both", matrix=matrix))


@pytest.mark.parametrize("seed", range(4))
def test_spikes_and_classes(seed: int) -> None:
    system, x, ran = seeds.working(seed, drawn)
    seeds.agree(ours(system), x, ran)
    without = theirs(system, x, floor=-np.inf)
    assert (without.spikes["both"] != ran.spikes["both"]).any()


def test_a_state_that_goes_on() -> None:
    """States are never cleared in the system: images that follow each other are one sample here."""
    system, x, _ = seeds.working(0, drawn)
    one = x.reshape(1, SAMPLES * T, PIXELS)
    seeds.agree(ours(system), one, theirs(system, one))


@pytest.mark.parametrize("chip", CHIPS)
def test_in_whole_numbers(chip: str) -> None:
    system, x, _ = seeds.working(0, drawn)
    same_everywhere(ours(system), x, chip)
