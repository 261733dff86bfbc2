"""hw_sim on networks that branch: several inputs, connections in the JSON, loops that no chip can run."""

import json
from dataclasses import replace

import numpy as np
import pytest

from stl_deploy.formats import nir_io
from stl_deploy.formats import raster as rasters
from stl_deploy.formats.integer_nir import to_nir
from stl_deploy.hw_sim import reference
from stl_deploy.hw_sim.simulate import Recorder, Simulator
from stl_deploy.report import rows
from tests.build import random_graphs
from tests.hw_sim.test_account_graphs import SCHEDULED, line, loop

# Single synapses of a file are a convolution's, rounded, which random ones are not.
FILES = replace(SCHEDULED, sparse=False)
SEEDS = (2, 5, 12)


def saved(tmp_path, network, given):
    """The network and its raster as files."""
    model, data = tmp_path / "model.nir", tmp_path / "raster.npz"
    nir_io.write(to_nir(network), model)
    held = frozenset(name for name, port in network.inputs.items() if port.held)
    arrays = random_graphs.named(network, given)
    if len(network.inputs) == 1:
        held = frozenset({rasters.ONLY} if held else ())
    rasters.save(data, rasters.Raster(arrays, None, held), {"made": "for a test"})
    return model, data


@pytest.mark.parametrize("seed", SEEDS)
def test_files_of_random_graphs(tmp_path, command, seed):
    network, given = random_graphs.draw(seed, FILES)
    model, data = saved(tmp_path, network, given)
    out = tmp_path / "trace.npz"
    code, text, err = command("hw_sim", model, "--input", data, "--json", "--out", out)
    assert code == 0, err
    result = json.loads(text)
    recorder = Recorder(network)
    trace = reference.run(network, given, cores=recorder.cores)
    recorder.add(given, trace)
    done = recorder.done()
    assert result["physical_steps"] == done.counts.physical_steps
    assert [(c["name"], c["source"], c["target"]) for c in result["connections"]] == [
        c.key for c in network.connections
    ]
    for row, c, did in zip(
        result["connections"], network.connections, done.counts.connections, strict=True
    ):
        assert row["synops"] == did.synops.sum()
        assert (row["delay"], row["waits"]) == (c.delay, network.waits(c))
    for name, energy in done.energies.items():
        told = result["profiles"][name]
        assert told["energy_j"]["dynamic"] == pytest.approx(energy.dynamic_j, rel=1e-12)
        assert told["time_s"]["per_inference"] == pytest.approx(energy.time_s, rel=1e-12)
    with np.load(out) as written:
        assert set(written.files) == {f"spikes/{name}" for name in network.by_name}
        for name, did in trace.layers.items():
            assert (written[f"spikes/{name}"] == did.spikes).all()


RULED = replace(random_graphs.TABLE, sparse=False)


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("states", [False, True])
def test_traces_hold_every_state_that_neurons_have(tmp_path, command, seed, states):
    network, given = random_graphs.draw(seed, RULED)
    model, data = saved(tmp_path, network, given)
    out = tmp_path / "trace.npz"
    code, text, err = command(
        "hw_sim", model, "--input", data, "--json", "--out", out, *["--states"] * states
    )
    assert code == 0, err
    want = reference.run(network, given, states=True)
    result = json.loads(text)
    assert result["predictions"] == want.predictions.tolist()
    assert [row["neuron"] for row in result["layers"]] == [
        rows.neuron_words(p) for p in network.populations
    ]
    matrix = result["readout"].pop("neurobench")
    assert (matrix is None) == (network.readout.matrix is None)
    assert result["readout"] == rows.readout_row(network.readout)
    arrays = {f"spikes/{name}": did.spikes for name, did in want.layers.items()}
    if states:
        for name, did in want.layers.items():
            kept = {"u": did.u, "v": did.v, **did.more}
            arrays |= {f"{kind}/{name}": values for kind, values in kept.items()}
    with np.load(out) as written:
        assert set(written.files) == set(arrays)
        for key, values in arrays.items():
            assert written[key].dtype == values.dtype
            np.testing.assert_array_equal(written[key], values, err_msg=key)


def test_the_graphs_above_have_every_state_and_send_values():
    drawn = [random_graphs.draw(seed, RULED)[0] for seed in range(6)]
    neurons = [p.neurons for network in drawn for p in network.populations]
    assert {state for n in neurons for state in n.states} == {"u2", "q", "rest"}
    assert any(n.graded is not None for n in neurons)
    assert any(network.readout.by_voltage for network in drawn)


def test_these_graphs_have_inputs_of_every_kind():
    ports = [random_graphs.draw(seed, FILES)[0].inputs.values() for seed in SEEDS]
    assert {len(each) for each in ports} == {1, 2}
    assert {port.held for each in ports for port in each} == {False, True}
    assert {port.signed for each in ports for port in each} == {False, True}


def test_the_simulator_takes_a_raster_for_each_input():
    network, given = random_graphs.draw(6, FILES)
    done = Simulator(network).run(rasters.Raster(given))
    want = reference.run(network, given)
    assert (done.counts.predictions == want.predictions).all()
    for did in done.counts.layers:
        assert (
            did.spikes == want.layers[did.name].spikes.reshape(*did.spikes.shape, -1).sum(2)
        ).all()


def test_a_loop_that_no_chip_can_run(tmp_path, command):
    model, data = saved(tmp_path, loop(1), {"input": line(1, 0, 0).astype(np.uint8)})
    code, text, err = command("hw_sim", model, "--input", data, "--json")
    assert code == 0, err
    result = json.loads(text)
    assert (result["profiles"], result["traffic"], result["physical_steps"]) == ({}, {}, 3)
    assert [c["synops"] for c in result["connections"]] == [1, 3, 3, 3]
    assert [c["waits"] for c in result["connections"]] == [None] * 4
    assert "a, b: a loop of connections has fewer steps of delay than hops" in " ".join(err.split())
    code, text, err = command("hw_sim", model, "--input", data)
    assert code == 0, err
    assert "population" in text
    args = ("--energy-model", "loihi2-pilotnet", "--report", tmp_path / "r.html")
    code, text, err = command("hw_sim", model, "--input", data, *args)
    assert (code, text) == (1, "")
    assert "a, b: a loop of connections" in " ".join(err.split())
    assert not (tmp_path / "r.html").exists()
