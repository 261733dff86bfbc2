"""Counts, energy and NeuroBench's metrics of rules of neurons and of readouts beyond votes."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from stl_deploy.chips import facts as chips
from stl_deploy.chips import placement
from stl_deploy.commands.hw_sim import _print_energies, to_json
from stl_deploy.formats.raster import Raster
from stl_deploy.hw_sim import engine, reference
from stl_deploy.hw_sim.account import neurobench
from stl_deploy.hw_sim.simulate import Batches, Recorder, summarize
from stl_deploy.ir.neurons import Graded
from stl_deploy.ir.readouts import Readout
from stl_deploy.report.sections import render
from tests.build import random_graphs
from tests.build.loads import ByHand, dealt
from tests.build.nets import taken
from tests.build.networks import chain, dense_lif
from tests.build.wires import weights
from tests.hw_sim.test_account_graphs import recorded
from tests.hw_sim.test_energy import compare, compare_counts
from tests.hw_sim.test_work import compare_traffic

ON_LOIHI2 = replace(random_graphs.TABLE, chips=("loihi2",))
MODEL = "loihi2-pilotnet"


@pytest.mark.parametrize("seed", range(200, 206))
def test_random_graphs_over_the_table_by_hand(seed):
    network, rasters = random_graphs.draw(seed, ON_LOIHI2)
    network = dealt(network, np.random.default_rng(seed), "loihi2")
    done = recorded(network, rasters, MODEL, 3)
    compare_counts(network, rasters, done.counts)
    hand = ByHand(network, rasters, "loihi2")
    compare_traffic(network, hand, done.energies[MODEL].traffic)
    compare(network, done.energies[MODEL], hand, MODEL, "loihi2")


# The host


def two_layers(chip="loihi2", readout=None, last=None, steps=3):
    """Input 1, three neurons that always fire, four that are read out in two classes."""
    network = chain(
        dense_lif([[5], [5], [5]], vth=0, name="lif1"),
        dense_lif(np.full((4, 3), 2), vth=3, name="lif2"),
        chip=chip,
        steps=steps,
        readout=readout or Readout(2, 2),
    )
    end = network.populations[-1]
    return network.changed(replace(end, neurons=replace(end.neurons, **(last or {}))))


def ones(network, samples=2):
    return np.ones((samples, network.timesteps, 1), np.uint8)


@pytest.mark.parametrize(
    ("rule", "spikes", "reads"),
    [("votes", 1, 0), ("first", 1, 1), ("last", 0, 1), ("mean", 0, 3), ("max", 0, 3)],
)
def test_what_the_host_takes(rule, spikes, reads):
    """Four neurons that fire in all three steps, two samples; what is read is not sent as well."""
    network = two_layers(readout=Readout(2, 2, rule=rule))
    done = recorded(network, {"input": ones(network)}, MODEL, 1)
    energy = done.energies[MODEL]
    assert (done.counts.layers[1].spikes == 4).all()
    assert energy.traffic.out_to_host == spikes * 4 * 3 * 2
    assert energy.traffic.host_reads == reads * 4 * 2
    assert energy.by_layer_event_j["lif2"]["packet out"] == pytest.approx(
        spikes * 4 * 3 * 82.08e-12, rel=1e-12
    )
    out_axons = placement.place(network, chips.load("loihi1")).layers["lif2"].total["out_axons"]
    assert out_axons == spikes * 4
    said = [f"{reads * 4} reads of v of lif2 by the host"] if reads else []
    shown = to_json(network, done.counts, done.energies, None)
    assert shown["profiles"][MODEL]["left_out"] == said
    assert shown["profiles"][MODEL]["energy_j"]["io"] is None
    assert shown["traffic"]["loihi2"]["host_reads"] == reads * 4 * 2


def activity(network):
    raster = Raster(ones(network))
    done = recorded(network, {"input": raster.spikes}, None, 1)
    return summarize(network, done, raster)


RULES = {"fires": False}


def test_rules_that_a_chip_lacks_are_priced_under_their_names():
    network = two_layers(readout=Readout(2, 2, rule="last"), last=RULES)
    act = activity(network)
    shown = to_json(network, act.counts, act.energies, None)["profiles"]
    cannot = "lif2: no threshold: neurons of Intel Loihi (first generation) cannot do that"
    for name in ("loihi1-spice", "loihi1-nahuku"):
        assert shown[name]["unable"] == [cannot]
        assert shown[name]["assumed"] == []
    assert shown[MODEL]["unable"] == []
    assert shown[MODEL]["assumed"] == ["lif2: no threshold"]
    page = render("net", network, activity=act)
    assert "Intel Loihi (first generation) cannot run this network" in page
    assert "Intel Loihi 2 needs a neuron program for lif2: no threshold" in page
    assert "of assumed neuron programs; I/O not included" in page
    assert "4 reads of v of lif2 by the host" in page


def test_networks_that_a_chip_runs_are_priced_without_a_word():
    network = two_layers("loihi1")
    act = activity(network)
    for energy in act.energies.values():
        assert energy.unpriced.in_a_word == ""
        assert energy.unpriced.left_out == ()
    page = render("net", network, activity=act)
    assert "cannot run this network" not in page
    assert "Not priced" not in page
    assert "neuron program" not in page


def test_graded_inputs_and_soft_resets_are_not_those_of_loihi_1():
    network = two_layers(last={"reset": "subtract"})
    network = replace(network, inputs={"input": replace(network.inputs["input"], levels=3)})
    said = activity(network).energies["loihi1-spice"].unpriced.unable
    assert [line.split(":")[0] for line in said] == ["input", "lif2"]
    assert "binary spikes only" in said[0]
    assert "sets v to zero" in said[1]


# NeuroBench


@pytest.mark.parametrize("seed", range(300, 306))
def test_neurobench_over_the_table_by_brute_force(seed):
    """What is sent is multiplied where it can be more than -1, 0 and 1; integrators have no activation."""
    network, rasters = random_graphs.draw(seed, ON_LOIHI2)
    trace = reference.run(network, rasters)
    sent = network.rasters(rasters) | {name: did.spikes for name, did in trace.layers.items()}
    done = recorded(network, rasters, MODEL, 3).counts
    got, samples = neurobench.metrics(network, done), done.samples
    found = {"acs": 0, "macs": 0}
    for c in network.connections:
        one = c.synapses.kind == "one_to_one" and c.source == c.target
        if network.by_name[c.target].kind == "or" or one:
            continue
        events = np.count_nonzero(sent[c.source], axis=(0, 1)).reshape(network.shape(c.source))
        lowest, most = network.span(c.source)
        found["macs" if max(-lowest, most) > 1 else "acs"] += sum(
            int(events[before]) * taken(weight, c.precision)
            for before, _, weight in weights(network, c)
        )
    assert got.effective_acs == pytest.approx(found["acs"] / samples)
    assert got.effective_macs == pytest.approx(found["macs"] / samples)
    own = [p for p in network.populations if p.kind == "lif"]
    firing = [sent[p.name] != 0 for p in own if p.neurons.fires]
    values = np.concatenate([x.reshape(-1) for x in firing]) if firing else np.ones(1)
    assert got.activation_sparsity == pytest.approx(1 - values.mean())


def footprint(**last):
    network = two_layers(last=last)
    counts = recorded(network, {"input": ones(network)}, MODEL, 2).counts
    return neurobench.metrics(network, counts).footprint_bytes


def test_parameters_of_rules_are_memory():
    """Four bytes for each of four neurons where they differ; two for a gain, in each of three steps."""
    each, plain = np.arange(4, dtype=np.int32), footprint()
    for fields, more in (
        ({"v0": each}, 16),
        ({"v0": 3}, 0),
        ({"floor": -each}, 16),
        ({"du2": each}, 16),
        ({"adapt": each}, 16),
        ({"adapt": each, "dq": each}, 32),
        ({"dq": each}, 0),
        ({"reset": "constant", "v_reset": -each}, 16),
        ({"v_reset": -each}, 0),
        ({"gain": np.full((3, 4), 4096, np.int16)}, 24),
        ({"fires": False}, -16),
        ({"fires": False, "adapt": each, "reset": "constant", "v_reset": each}, -16),
    ):
        assert footprint(**fields) == plain + more, fields


def test_integrators_have_no_activations():
    """Three neurons fire in every step; four that never can say nothing of sparsity."""
    for last in (RULES, RULES | {"graded": Graded(0, 9)}):
        network = two_layers(readout=Readout(2, 2, rule="last"), last=last)
        got = recorded(network, {"input": ones(network)}, MODEL, 2)
        assert neurobench.metrics(network, got.counts).activation_sparsity == 0
    alone = chain(dense_lif([[5], [5]]), chip="loihi2", steps=3, readout=Readout(2, 1, rule="last"))
    (p,) = alone.populations
    alone = alone.changed(replace(p, neurons=replace(p.neurons, fires=False)))
    got = recorded(alone, {"input": ones(alone)}, MODEL, 2)
    assert neurobench.metrics(alone, got.counts).activation_sparsity == 0


def test_a_matrix_is_a_layer_on_the_host():
    """Once per inference: its weights that are not zero, for the neurons that have a vote left."""
    matrix = np.array([[1, 0, 2, 0], [3, 4, 5, 0]], np.int64)
    steps = (1, -1, 2)
    network = two_layers(readout=Readout(2, 2, steps=steps, matrix=matrix, offset=np.ones(2)))
    plain = two_layers()
    trace = reference.run(network, ones(network))
    trace.layers["lif2"].spikes[:] = 0
    trace.layers["lif2"].spikes[0, 2, [0, 3]] = 1  # one and no weights
    trace.layers["lif2"].spikes[0, :2, 2] = 1  # the two votes cancel
    trace.layers["lif2"].spikes[1, 0, 1] = 1
    recorder = Recorder(network, MODEL)
    shown = reference.run(network, ones(network), cores=recorder.cores)
    shown.layers["lif2"].spikes[:] = trace.layers["lif2"].spikes
    recorder.add(ones(network), shown)
    counts = recorder.done().counts
    assert counts.readout_macs.tolist() == [2, 1]
    of = neurobench.of_readout(network, counts)
    assert (of.effective_acs, of.effective_macs, of.dense) == (0, 1.5, 8)
    without = recorded(plain, {"input": ones(plain)}, MODEL, 2)
    base, got = neurobench.metrics(plain, without.counts), neurobench.metrics(network, counts)
    assert got.effective_macs == 1.5
    assert got.dense == base.dense + 8
    assert got.connection_sparsity == pytest.approx(1 - (15 + 5) / (15 + 8))
    assert got.footprint_bytes == base.footprint_bytes + 8 * (8 + 2 + 3)
    at_45nm = neurobench.convention_45nm(network, got)
    assert at_45nm.ann_j == pytest.approx(4.6e-12 * (15 + 8))
    (energy,) = recorder.done().energies.values()
    assert energy.unpriced.left_out == ("8 multiplications of the readout's matrix on the host",)
    assert neurobench.of_readout(plain, without.counts) is None


def test_workers_count_what_the_matrix_multiplies():
    matrix = np.ones((2, 4), np.int64)
    network = two_layers(readout=Readout(2, 2, matrix=matrix))
    job = Batches(network, MODEL, states=False, keep=False).prepare()
    recorder = Recorder(network, MODEL)
    recorder.take(*job(ones(network)))
    here = recorded(network, {"input": ones(network)}, MODEL, 2).counts
    assert recorder.done().counts.readout_macs.tolist() == here.readout_macs.tolist() == [8, 8]


# Memory


@pytest.mark.parametrize("states", [False, True])
@pytest.mark.parametrize("seed", range(400, 404))
def test_batches_with_rules_fit_into_the_memory(seed, states, monkeypatch):
    """One sample more would not fit: spikes or values, all states, and the voltages that are scored."""
    network, rasters = random_graphs.draw(seed, random_graphs.TABLE)
    given = {name: x[:1] for name, x in rasters.items()}
    trace = engine.run(network, given, states)
    took = sum(
        network.size(name)
        * (1 if port.held else network.timesteps)
        * (2 if port.signed or port.levels > 255 else 1)
        for name, port in network.inputs.items()
    )
    for did in trace.layers.values():
        kept = (did.spikes, did.u, did.v, *did.more.values())
        took += sum(values.nbytes for values in kept if values is not None)
    if network.readout.rule != "votes":
        took += network.size(network.readout.source) * network.timesteps * 8
    for memory, fit in ((5 * took, 5), (5 * took - 1, 4), (1, 1)):
        monkeypatch.setattr(engine, "MEMORY", memory)
        assert engine.batch_size(network, states) == fit


def test_the_table_of_energies_says_what_its_figures_are_worth(capsys):
    network = two_layers(readout=Readout(2, 2, rule="mean"), last=RULES)
    done = recorded(network, {"input": ones(network)}, None, 2)
    _print_energies(done.energies, network.chip)
    said = " ".join(capsys.readouterr().out.split())
    assert "not on this chip" in said
    assert "Priced, although loihi1 cannot run it: lif2: no threshold: neurons of" in said
    assert said.count("cannot run it") == 1  # for both energy models of the chip
    assert "Assumed: loihi2 needs a neuron program for lif2: no threshold." in said
    assert "Not priced, in energy or time: 12 reads of v of lif2 by the host" in said
    plain = two_layers("loihi1")
    _print_energies(recorded(plain, {"input": ones(plain)}, None, 2).energies, plain.chip)
    said = capsys.readouterr().out
    assert "rules of this network" not in said
    assert "priced" not in said.lower()
