"""Parts of the process graph alone: rules that Lava has processes for, and the host's readouts."""

from __future__ import annotations

import json
import shutil
import subprocess
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from stl_deploy.backends import lava_worker
from stl_deploy.exporters import lava
from stl_deploy.hw_sim import reference
from stl_deploy.ir.network import Connection, Input, IntegerNetwork, Population
from stl_deploy.ir.neurons import Lif
from stl_deploy.ir.readouts import Readout
from stl_deploy.ir.synapses import Dense
from tests.build import ties
from tests.build.nets import ROOT

NEURONS, INPUTS = 12, 9
HALF = {"du": 2047, "dv": 2048}  # of u and v each step leaves half
DECAYS = {"du": 1500, "dv": 300}


def drawn(seed: int, steps: int) -> tuple[NDArray[Any], NDArray[Any]]:
    """Spikes [T, inputs] and even weights, which Lava keeps where their signs are mixed."""
    rng = np.random.default_rng(seed)
    weight = 2 * rng.integers(-20, 60, (NEURONS, INPUTS))
    return (rng.random((steps, INPUTS)) < 0.5).astype(np.int32), weight


def ours(
    spikes: NDArray[Any], weight: NDArray[Any], delay: Any, vth: int, **fields: Any
) -> reference.LayerTrace:
    """What the reference computes, with a connection for each delay."""
    none = np.zeros(NEURONS, np.int32)
    neurons = Lif(np.full(NEURONS, vth, np.int32), none, np.ones(NEURONS), **fields)
    late = np.broadcast_to(delay, weight.shape)
    connections = tuple(
        Connection(
            f"w{d}",
            "input",
            "lif",
            Dense(np.where(late == d, weight, 0).astype(np.int8)),
            delay=int(d),
        )
        for d in np.unique(late)
    )
    network = IntegerNetwork(
        "loihi2",
        len(spikes),
        {"input": Input((INPUTS,))},
        (Population("lif", (NEURONS,), neurons),),
        connections,
        Readout(NEURONS, 1, "lif"),
    )
    return reference.run(network, spikes[None].astype(np.uint8), states=True).layers["lif"]


def case(
    spikes: NDArray[Any],
    weight: NDArray[Any],
    delay: Any,
    tag: str,
    process: str,
    **parameters: Any,
) -> dict[str, Any]:
    how = json.dumps({"tag": tag, "process": process, "parameters": parameters})
    return {"spikes": spikes, "weight": weight, "delay": np.array(delay), "how": np.array(how)}


@pytest.fixture(scope="module")
def theirs(python, tmp_path_factory):
    """What Lava's processes do in each case: ``NAME/spikes``, ``NAME/u``, ``NAME/v`` [T, neurons]."""
    folder = tmp_path_factory.mktemp("lava")
    cases = {}
    for hold in (1, 2):
        spikes, weight = drawn(hold, 6)
        period = {"du": 0.5, "dv": 0.5, "vth": 64.0 * 100, "refractory_period": hold}
        cases[f"hold{hold}"] = case(
            spikes, 64.0 * weight, 0, "floating_pt", "LIFRefractory", **period
        )
    spikes, weight = drawn(3, 20)
    cases["integrator"] = case(spikes, weight, 0, "fixed_pt", "LIF", **DECAYS, vth=131_071)
    spikes, weight = drawn(4, 20)
    late = np.random.default_rng(4).integers(0, 5, weight.shape)
    cases["delays"] = case(spikes, weight, late, "fixed_pt", "LIF", **DECAYS, vth=300)
    arrays = {f"{name}/{key}": v for name, given in cases.items() for key, v in given.items()}
    np.savez(folder / "in.npz", **arrays)
    # A folder of its own: Lava's compiler executes all Python files next to a process.
    (folder / "script").mkdir()
    script = shutil.copy(ROOT / "tests/build/lava_processes.py", folder / "script")
    command = [str(python), str(script), str(folder / "in.npz"), str(folder / "out.npz")]
    lava_worker.work("lava", command, Path(folder))
    return cases, dict(np.load(folder / "out.npz"))


def same(
    found: dict[str, NDArray[Any]], name: str, trace: reference.LayerTrace, *kinds: str
) -> None:
    """Every one of these ``kinds`` is that of Lava."""
    for kind in kinds:
        np.testing.assert_array_equal(found[f"{name}/{kind}"], getattr(trace, kind)[0])


@pytest.mark.parametrize("hold", [1, 2])
def test_hold_is_lavas_refractory_period(theirs, hold):
    """Lava has it in float only: over six steps that halve, integers in units of 64 are exact."""
    cases, found = theirs
    given = cases[f"hold{hold}"]
    weight = (given["weight"] / 64).astype(np.int64)
    trace = ours(given["spikes"], weight, 0, 100, **HALF, hold=hold)
    same(found, f"hold{hold}", trace, "spikes", "u", "v")
    assert trace.spikes.sum(axis=1).max() > 1
    without = ours(given["spikes"], weight, 0, 100, **HALF)
    assert (without.spikes != trace.spikes).any()


def test_an_integrator_is_lavas_neuron_below_its_threshold(theirs):
    cases, found = theirs
    given = cases["integrator"]
    trace = ours(given["spikes"], given["weight"], 0, 5, **DECAYS, fires=False)
    same(found, "integrator", trace, "u", "v")
    assert not found["integrator/spikes"].any()
    assert np.abs(trace.v).max() > 64 * 1000


def test_delays_are_those_of_lavas_delayed_synapses(theirs):
    cases, found = theirs
    given = cases["delays"]
    trace = ours(given["spikes"], given["weight"], given["delay"], 300, **DECAYS)
    same(found, "delays", trace, "spikes", "u", "v")
    assert trace.spikes.any()


def test_predictions_are_the_same_where_classes_tie(python, tmp_path):
    """Few values of v and few spikes, so that classes have the same score in many samples."""
    rng, size = np.random.default_rng(9), (400, ties.STEPS, ties.NEURONS)
    found = {}
    sent = rng.integers(-1, 2, size).astype(np.int16) * (rng.random((400, 1, 1)) < 0.8)
    v = rng.integers(-2, 3, size).astype(np.int32)
    for name in ties.VARIETIES:
        network = ties.network("spikes", name, "loihi2")
        (tmp_path / name).mkdir()
        lava.write(network, tmp_path / name)
        np.savez(tmp_path / name / "trace.npz", **{"spikes/p": sent, "v/p": v})
        found[name], tied = ties.decided(network.readout, sent, v)
        assert tied > 0, name
        assert network.readout.predict(sent, v).tolist() == found[name], name
    (tmp_path / "driver").mkdir()
    (tmp_path / "script").mkdir()
    driver = shutil.copy(ROOT / "tests/build/lava_readouts.py", tmp_path / "driver")
    template = resources.files("stl_deploy.exporters") / "templates" / "lava_network.py"
    (tmp_path / "script" / "lava_network.py").write_bytes(template.read_bytes())
    command = [python, driver, tmp_path / "script", *(tmp_path / name for name in found)]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    lines = map(json.loads, done.stdout.splitlines())
    assert dict(zip(found, lines, strict=True)) == found
