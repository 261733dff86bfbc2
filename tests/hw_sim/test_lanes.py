"""The operations on lanes in both forms, LLVM and plain: the same bits, and the engine with either."""

# No ``from __future__ import annotations``: numba reads the functions as they are.
import os
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numba import njit

from stl_deploy.errors import InputError
from stl_deploy.hw_sim import compiled, plain, vectors
from stl_deploy.hw_sim.compiled import LANES
from stl_deploy.hw_sim.lanes import Lanes, Steps
from tests.build.nets import ROOT

EXAMPLES = settings(max_examples=200)
FORMS = (vectors, plain)


def callers(form):
    """The operations of a form as functions that Python can call."""
    add_runs, step = form.add_runs, form.step
    marked, lowest, how_many = form.marked, form.lowest, form.how_many

    @njit
    def call_add_runs(to, at, values, base, events, first, end, size, run, factors):
        add_runs(to, at, values, base, events, first, end, size, run, factors)

    @njit
    def call_bits(marks, at):
        bits = marked(marks, at)
        return bits, how_many(bits), lowest(bits) if bits else -1

    @njit
    def call_step(lanes, steps):
        step(lanes, steps)

    return call_add_runs, call_bits, call_step


CALLERS = [callers(form) for form in FORMS]


def of_both(name, *arguments):
    """What both forms return or, where that is None, leave in copies of their arguments."""
    found = []
    for call in CALLERS:
        own = [a.copy() if isinstance(a, np.ndarray) else a for a in arguments]
        returned = call[("add_runs", "bits").index(name)](*own)
        found.append(own[0] if returned is None else returned)
    return found


@EXAMPLES
@given(
    st.sampled_from([(np.int16, np.int8), (np.int32, np.int8), (np.int32, np.int16)]),
    st.integers(1, 11),
    st.integers(0, 6),
    st.booleans(),
    st.integers(0, 2**32 - 1),
)
def test_runs_are_added_alike(kinds, vectors_of_run, events, weighted, seed):
    """Every number of vectors in a run, any place, and sums that wrap."""
    rng = np.random.default_rng(seed)
    of_sums, of_values = (np.iinfo(kind) for kind in kinds)
    weighted = weighted and kinds[0] == np.int32  # as everywhere: factors are int32
    run, at, base, size = vectors_of_run * LANES, int(rng.integers(9)), int(rng.integers(9)), 40
    to = rng.integers(of_sums.min, of_sums.max, at + run + 7, kinds[0], endpoint=True)
    listed = rng.integers(0, 20, events + 4, np.int32)
    values = rng.integers(
        of_values.min, of_values.max, base + 20 * size + run, kinds[1], endpoint=True
    )
    factors = rng.integers(-(2**31), 2**31, len(listed)).astype(np.int32) if weighted else None
    first = int(rng.integers(4))
    llvm, loops = of_both(
        "add_runs", to, at, values, base, listed, first, first + events, size, run, factors
    )
    assert (llvm == loops).all()
    want = to.astype(np.int64)
    for e in range(first, first + events):
        start = base + listed[e] * size
        factor = 1 if factors is None else int(factors[e])
        want[at : at + run] += factor * values[start : start + run].astype(np.int64)
    assert (llvm == want.astype(kinds[0])).all()


@EXAMPLES
@given(st.lists(st.sampled_from([0, 0, 1, 2, 128, 255]), min_size=LANES, max_size=LANES + 9))
def test_marks_are_found_alike(marks):
    marks = np.array(marks, np.uint8)
    for at in range(len(marks) - LANES + 1):
        llvm, loops = of_both("bits", marks, at)
        assert llvm == loops
        some = np.flatnonzero(marks[at : at + LANES])
        assert llvm == (sum(1 << int(i) for i in some), len(some), some[0] if len(some) else -1)


@EXAMPLES
@given(
    st.sampled_from([np.int16, np.int32]),
    st.integers(1, 4),
    st.integers(1, 3),
    st.sampled_from([0, 1, 1095, 2047, 2048, 2049, 4095, 4096, None]),
    st.integers(0, 12),
    st.integers(0, 3),
    st.sampled_from([None, (False, 1), (True, 1), (False, 2), (True, 5)]),
    st.sampled_from([50, 1 << 20, 1 << 30, 1 << 31]),
    st.integers(0, 2**32 - 1),
)
def test_neurons_step_alike(kind, count, phases, keep, shift, first, rules, large, seed):
    """Voltages of all 32 bits as well, where registers wrap, and every mark.

    ``rules`` are whether a spike subtracts the threshold, and after how many steps it is heard; None is for
    bare neurons.
    """
    rng = np.random.default_rng(seed)
    neurons, size = 2 * LANES + 5, 2 * LANES + 11
    neuron = int(rng.integers(neurons - LANES + 1))
    subtract, delay = rules or (True, 1)

    def draw(limit, shape):
        return rng.integers(-limit, limit, shape) * rng.integers(0, 2, shape)

    accumulators = draw(min(large, 1 << 15), (count, phases, size)).astype(kind)
    keeps = rng.integers(0, 4097, neurons) if keep is None else np.full(neurons, keep)
    before = rng.integers(-large, large, neurons).astype(np.int32)
    before[neuron : neuron + 3] = (-large, large - 1, 0)
    arrays = Lanes(
        acc=accumulators.reshape(-1),
        before=before,
        after=np.full(neurons, 7, np.int32),
        bias=rng.integers(-9, 9, neurons).astype(np.int32),
        threshold=rng.integers(-large, large, neurons).astype(np.int32),
        keep=keeps.astype(np.int32),
        own=rng.integers(-large, large, neurons).astype(np.int32),
        spikes=rng.integers(0, 2, (first + count) * neurons).astype(np.uint8),
        active=np.full(count * neurons, 9, np.uint8),
    )
    steps = Steps(
        neuron=neuron,
        steps=count,
        first=first,
        acc_at=neuron % 6,
        acc_step=phases * size,
        phases=phases,
        acc_phase=size,
        shift=shift,
        halves=int(keep == 2048),
        bare=int(rules is None),
        subtract=int(subtract),
        delay=delay,
        spikes_at=first * neurons + neuron,
        active_at=neuron,
        marks_step=neurons,
    )
    left = []
    for call in CALLERS:
        lanes = Lanes(*(array.copy() for array in arrays))
        call[2](lanes, Steps(*map(np.int64, steps)))
        left.append(lanes)
    for name, llvm, loops in zip(Lanes._fields, *left, strict=True):
        assert (llvm == loops).all(), name


@pytest.mark.parametrize("switch", ["", "0", "1"])
def test_the_switch(switch):
    """It decides which form the engine is compiled with, and results on disk are not mixed up."""
    script = (
        "from stl_deploy.hw_sim import compiled, kernels, lanes, vectors\n"
        "print(lanes.step is vectors.step, kernels.find_events.py_func.__qualname__)"
    )
    done = run_with(switch, "-c", script)
    form = "plain" if switch == "1" else "vectors"
    sources = compiled.FORM.removeprefix("plain").removeprefix("vectors")
    assert done.stdout.split() == [str(form == "vectors"), f"find_events.{form}{sources}"]


@pytest.mark.parametrize("value", ["yes", "2", " 1"])
def test_a_switch_that_says_neither(value):
    with pytest.raises(InputError, match=r"STL_PLAIN_KERNELS: is .* must be 0 or 1"):
        compiled.asks_for_plain(value)


def test_numba_without_its_private_interfaces(tmp_path):
    """The error names the switch, and with it the engine does without them."""
    broken = (
        "import sys, numba\n"
        "del numba.core.cgutils\n"
        "sys.modules['numba.core.cgutils'] = None\n"
        "from stl_deploy.errors import BackendError\n"
        "try:\n"
        "    from stl_deploy.hw_sim import engine\n"
        "    print('imported')\n"
        "except BackendError as error:\n"
        "    print(error)"
    )
    refused = run_with("0", "-c", broken).stdout
    assert "lacks a private interface" in refused
    assert "set STL_PLAIN_KERNELS=1" in refused
    assert run_with("1", "-c", broken).stdout == "imported\n"


def test_the_engine_in_the_other_form():
    """The engine against the reference, in a process of its own: kernels are compiled for one form."""
    other = "0" if compiled.PLAIN else "1"
    chosen = (
        "test_random_networks or working_networks or sums_of_a_part or single or plain_step"
        " or working_graphs or hear_themselves"
    )
    done = run_with(
        other,
        *("-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:xdist", "-x"),
        *(
            str(ROOT / "tests" / "hw_sim" / f"test_{name}.py")
            for name in ("engine", "engine_graphs")
        ),
        *("-k", chosen),
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert " passed" in done.stdout


def run_with(switch, *arguments, check=True):
    """Python with the environment variable set to ``switch``."""
    env = {**os.environ, "STL_PLAIN_KERNELS": switch}
    return subprocess.run(
        [sys.executable, *arguments], env=env, check=check, capture_output=True, text=True, cwd=ROOT
    )
