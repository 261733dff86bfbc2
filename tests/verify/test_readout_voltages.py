"""Parity of readouts by voltage: how far v lies from the model, in the report, its JSON and its HTML."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from stl_deploy.commands.common import print_parity
from stl_deploy.formats.raster import Raster
from stl_deploy.hw_sim import reference
from stl_deploy.ir import execute
from stl_deploy.report.sections import render
from stl_deploy.verify.against_float import Voltages, compare
from tests.build import rule_runs


def errors(ran: rule_runs.Ran) -> tuple[np.ndarray, np.ndarray]:
    """|v of the integers - v of the model|, and the latter, of the network as it runs."""
    v = execute.trace(ran.floats, ran.raster).v
    whole = reference.run(ran.network, ran.raster).layers["out"].v
    return np.abs(whole * ran.network.by_name["out"].neurons.scale / 64 - v), v


@pytest.mark.parametrize("read", ["last", "mean", "max", "first"])
def test_voltages_that_the_readout_reads_are_compared(read):
    ran = rule_runs.of("current", read)
    report = compare(None, ran.graph, ran.network, Raster(ran.raster), batch=5)
    apart, v = errors(ran)
    assert report.voltages is not None
    assert report.voltages.population == "out"
    assert report.voltages.largest_error == pytest.approx(apart.max())
    assert report.voltages.mean_error == pytest.approx(apart.mean())
    assert report.voltages.largest == pytest.approx(np.abs(v).max())
    assert 0 < report.voltages.mean_error < 0.1 * report.voltages.largest
    assert report.to_json()["readout_voltages"] == vars(report.voltages)


def test_a_readout_of_votes_has_none():
    ran = rule_runs.of("zero")
    report = compare(None, ran.graph, ran.network, Raster(ran.raster))
    assert report.voltages is None
    assert report.to_json()["readout_voltages"] is None


def test_a_network_that_is_off_has_larger_errors():
    ran = rule_runs.of("current", "last")
    out = ran.network.by_name["out"]
    broken = ran.network.changed(replace(out, neurons=replace(out.neurons, dv=2048)))
    right, wrong = (
        compare(None, ran.graph, network, Raster(ran.raster)) for network in (ran.network, broken)
    )
    assert wrong.voltages.mean_error > 3 * right.voltages.mean_error
    assert right.layers[-1].mismatch == wrong.layers[-1].mismatch == 0  # it never spikes


def test_reports_print_them(capsys):
    ran = rule_runs.of("current", "last")
    report = compare(None, ran.graph, ran.network, Raster(ran.raster))
    found = replace(report, voltages=Voltages("out", 0.1234567, 0.01, 9.8765))
    print_parity(found)
    words = (
        "voltages of out, which the readout reads: largest error 0.1235, mean 0.01; "
        "the largest float voltage is 9.877"
    )
    assert words in " ".join(capsys.readouterr().out.split())
    page = " ".join(render("model", ran.network, parity=found).split())
    assert (
        "The readout reads the voltages of out. From the float model\u2019s they differ by 0.123 at most "
        "and by 0.0100 in the mean, over all samples, steps and neurons of the integer network as it "
        "runs. The largest float voltage is 9.88." in page
    )
    assert "voltages of" not in render("model", ran.network, parity=replace(found, voltages=None))


def test_the_mismatch_of_values_is_whether_there_is_one():
    """Values compare in whole numbers; what rounds to another one is no mismatch, what is missing is."""
    ran = rule_runs.of("graded spikes")
    report = compare(None, ran.graph, ran.network, Raster(ran.raster))
    layers = {layer.name: layer for layer in report.layers}
    want = execute.run(ran.floats, ran.raster)
    got = reference.run(ran.network, ran.raster).layers
    for name in ("a", "b"):
        cascaded = ((got[name].spikes != 0) != (want[name] != 0)).mean()
        assert layers[name].mismatch == pytest.approx(cascaded, abs=1e-3)
        assert 0 < layers[name].mismatch_forced < 0.02
