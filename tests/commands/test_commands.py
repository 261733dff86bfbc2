"""The command lines as a user meets them: exit codes, JSON, messages, and no partial output."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch

from stl_deploy.formats import nir_io
from stl_deploy.formats.checkpoint import save_checkpoint
from stl_deploy.formats.integer_nir import read_network
from stl_deploy.formats.raster import Raster
from stl_deploy.formats.raster import save as save_raster
from tests.build.nets import random_net, random_spikes


@pytest.fixture
def here(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_a_weight_precision_is_written_and_told(command, here, model, raster):
    code, out, _ = command(
        "stl-export", model, "--target", "loihi", "--weight-precision", "2x8", "-o", "o"
    )
    assert code == 0
    manifest = json.loads(Path("o/manifest.json").read_text())
    synapses = manifest["weights"]["synapses"]
    assert (
        f"weights: 2x8, weights in two slices of 8 bits, one synapse per slice: {synapses:,}" in out
    )
    assert "8.00 of 8" not in out
    assert not Path("o/loihi/network.net").exists()
    assert read_network(Path("o/model.nir")).weight_precision == "2x8"
    # Counts of the file that was written, slice by slice.
    code, out, _ = command("hw_sim", "o/model.nir", "--input", raster, "--json")
    first = json.loads(out)["layers"][0]
    network = read_network(Path("o/model.nir"))
    reach = sum(part.synapses.weight.astype(bool).sum() for part in network.connections[0].groups())
    assert reach > np.count_nonzero(network.connections[0].synapses.weight)
    assert (code, first["synops"] > 0) == (0, True)


def test_a_weight_precision_that_does_not_go_is_bad_usage(command, here, model):
    args = (
        "--target",
        "loihi",
        "--weight-precision",
        "2x8",
        "--weight-bits",
        "4",
        "--weight-exp",
        "2",
    )
    code, out, err = command("stl-export", model, *args, "-o", "o")
    assert (code, out) == (2, "")
    assert "2 problems" in err
    assert "2x8 has slices of 8 bits, not of 4" in err
    assert not Path("o").exists()


def test_export_for_loihi_writes_what_is_documented(command, here, model, raster):
    code, out, err = command(
        "stl-export", model, "--target", "loihi", "--target", "nir", "--eval", raster, "-o", "o"
    )
    assert (code, err) == (0, "")
    files = {str(p.relative_to("o")) for p in Path("o").rglob("*") if p.is_file()}
    assert files == {
        "manifest.json",
        "model.nir",
        "model.float.nir",
        "report.html",
        "loihi/network.net",
        "loihi/lava_network.py",
        "loihi/lava_params.npz",
    }
    manifest = json.loads(Path("o/manifest.json").read_text())
    assert manifest["chip"] == "loihi2"
    assert manifest["source"]["sha256"] == hashlib.sha256(model.read_bytes()).hexdigest()
    for name, digest in manifest["files"].items():
        assert hashlib.sha256(Path("o", name).read_bytes()).hexdigest() == digest
    assert set(manifest["files"]) == files - {"manifest.json"}
    assert all(layer["nir_mismatch"] == 0 for layer in manifest["parity"]["layers"])
    assert "accuracy: float" in out
    assert "report: o/report.html" in out


def test_export_json_has_the_fixed_keys_and_nothing_else_on_stdout(command, here, model):
    code, out, _ = command("stl-export", model, "--target", "nir", "-o", "o", "--json")
    assert code == 0
    data = json.loads(out)
    fixed = {"out", "chip", "timesteps", "files", "layers", "cores", "chips", "diagnostics"}
    assert fixed <= set(data)
    assert (data["chip"], data["cores"], data["chips"]) == ("ideal", None, None)
    for layer in data["layers"]:
        assert {"name", "neurons", "synapses", "weight_bits", "thresholds", "cores"} <= set(layer)
        assert set(layer["thresholds"]) == {"distinct", "min", "max", "lowering", "rounding"}
        assert (layer["cores"], layer["placement"]) == (None, None)
    first, *_, last = data["connections"]
    assert first == {
        "name": "conv1",
        "source": "input",
        "target": "lif1",
        "kind": "conv",
        "delay": 0,
        "port": 0,
        "synapses": data["layers"][0]["synapses"],
        "weight_bits": 8,
        "precision": "8",
        "exp": 0,
        "effective_bits": data["layers"][0]["precision"]["effective_bits"],
    }
    assert (last["source"], last["target"]) == ("lif3", "lif4")
    assert [c["target"] for c in data["connections"]] == [row["name"] for row in data["layers"]]
    (given,) = data["inputs"].values()
    assert (given["levels"], given["signed"], given["held"]) == (1, False, False)


def test_export_says_where_layers_lie(command, here, model):
    chip = ("--chip", "loihi1", "--thresholds", "native")
    code, out, _ = command("stl-export", model, "--target", "loihi", *chip, "-o", "o")
    assert code == 0
    assert "thresholds: native, as asked for" in out
    assert "Placement: 6 cores, 2 tiles, 1 chip; how full the fullest is" in out
    title = next(i for i, line in enumerate(out.splitlines()) if "Placement" in line)
    lines = out.splitlines()[title:]
    header = next(line for line in lines if "bound by" in line)
    assert header.split()[3:] == [*("by", "comp.", "memory", "in-ax.", "out-ax.", "vth", "decays")]
    assert all(len(line) <= 80 for line in lines[:9])
    manifest = json.loads(Path("o/manifest.json").read_text())
    assert (manifest["cores"], manifest["tiles"], manifest["chips"]) == (6, 2, 1)
    for number, layer in enumerate(manifest["layers"]):
        placed = layer["placement"]
        assert layer["cores"] == 1
        assert (placed["first_core"], placed["bound_by"]) == (number, None)
        assert placed["utilisation"]["compartments"] == layer["neurons"] / 1024
        assert placed["total"]["compartments"] == layer["neurons"]
        assert set(placed["utilisation"]) == set(placed["fullest"])


def test_hw_sim_warns_of_cores_that_hold_too_much(command, here):
    """A linear layer behind 4,800 inputs, made for Loihi 2; all profiles are of Loihi 1."""
    net = random_net("FC20-LIF-AvgPool2", shape=(1, 60, 80))
    save_checkpoint(net, Path("wide.pt"))
    save_raster(Path("wide.npz"), Raster(random_spikes(net, 1)), {"made": "for a test"})
    code, _, _ = command("stl-export", "wide.pt", "--target", "nir", "--chip", "loihi2", "-o", "o")
    assert code == 0
    code, out, err = command("hw_sim", "o/model.nir", "--input", "wide.npz", "--report", "r.html")
    assert code == 0
    assert "total" in out
    assert err.count("larger cores than there are: lif1: neuron ") == 1
    assert "a core of loihi1 holds 4,096" in " ".join(err.split())
    assert "The figures are those of larger cores than there are" in Path("r.html").read_text()
    code, _, err = command(
        "stl-export", "wide.pt", "--target", "nir", "--chip", "loihi1", "-o", "p"
    )
    assert code == 1
    assert "wide.pt: lif1: neuron " in err
    assert not Path("p").exists()


def test_hw_sim_json_has_the_fixed_keys(command, here, model, raster):
    command("stl-export", model, "--target", "loihi", "-o", "o")
    code, out, _ = command("hw_sim", "o/model.nir", "--input", raster, "--json")
    assert code == 0
    data = json.loads(out)
    assert (data["samples"], data["timesteps"]) == (12, 4)
    assert len(data["predictions"]) == 12
    assert [layer["name"] for layer in data["layers"]] == [
        "lif1",
        "pool1",
        "lif2",
        "pool2",
        "lif3",
        "lif4",
    ]
    for layer in data["layers"]:
        assert {"name", "spikes", "synops", "updates", "cores"} <= set(layer)
    assert [(c["source"], c["target"]) for c in data["connections"]] == list(
        pairwise(["input", *(layer["name"] for layer in data["layers"])])
    )
    for connection, layer in zip(data["connections"], data["layers"], strict=True):
        assert connection["synops"] == layer["synops"]
        assert (connection["delay"], connection["waits"]) == (0, 0)
        assert connection["synapses"] > 0
        assert (connection["neurobench"] is None) == layer["name"].startswith("pool")
    operations = [c["neurobench"] for c in data["connections"] if c["neurobench"]]
    for what in ("effective_acs", "effective_macs", "dense"):
        assert sum(of[what] for of in operations) == pytest.approx(data["neurobench"][what])
    assert list(data["profiles"]) == ["loihi1-spice", "loihi1-nahuku", "loihi2-pilotnet"]
    for profile in data["profiles"].values():
        energy = profile["energy_j"]
        assert {"dynamic", "static", "io", "total", "by_event"} <= set(energy)
        assert energy["io"] is None
        assert {"per_inference", "latency", "per_step"} <= set(profile["time_s"])
        assert len(profile["time_s"]["per_step"]) == len(energy["per_step"]) == 4
        assert sum(bound["steps"] for bound in profile["bounds"]) == data["physical_steps"]
        assert [set(bound) for bound in profile["step_bounds"]] == 4 * [
            {"part", "core", "layer", "steps"}
        ]
        assert len(data["traffic"][profile["chip"]]["cores"]) == profile["cores"]
    assert data["profiles"]["loihi1-nahuku"]["extrapolation"] is None
    assert "one PilotNet measurement" in data["profiles"]["loihi2-pilotnet"]["extrapolation"]
    for traffic in data["traffic"].values():
        for row in data["layers"]:
            cores = [core for core in traffic["cores"] if core["layer"] == row["name"]]
            assert sum(core["synops"] for core in cores) == row["synops"]
            assert sum(core["spikes"] for core in cores) == row["spikes"]
        assert traffic["host_packets"]["out"] == data["layers"][-1]["spikes"]
        for link in traffic["links"]:
            assert {"source", "target", "direction", "between_chips", "packets"} == set(link)
    assert data["neurobench"]["effective_acs"] > 0
    assert data["convention_45nm"]["snn_j"] < data["convention_45nm"]["ann_j"]


def test_hw_sim_prints_both_loihi_1_profiles_side_by_side(command, here, model, raster):
    command("stl-export", model, "--target", "nir", "--chip", "loihi1", "-o", "o")
    code, out, _ = command("hw_sim", "o/model.nir", "--input", raster)
    assert code == 0
    header = next(line for line in out.splitlines() if "loihi1-spice" in line)
    assert header.split() == ["loihi1-spice", "loihi1-nahuku", "loihi2-pilotnet"]
    assert "loihi2-pilotnet is an extrapolation" in out
    assert "NeuroBench: " in out
    assert "not an estimate of any chip" in out
    slowest = next(line for line in out.splitlines() if line.startswith("slowest"))
    assert slowest.count(" of ") == 3


@pytest.mark.parametrize(
    ("chip", "others"),
    [("ideal", "loihi1 and loihi2"), ("loihi1", "loihi2"), ("loihi2", "loihi1")],
)
def test_hw_sim_says_which_chip_an_energy_describes(command, here, model, raster, chip, others):
    command("stl-export", model, "--target", "nir", "--chip", chip, "-o", "o")
    _, out, _ = command("hw_sim", "o/model.nir", "--input", raster)
    row = next(line for line in out.splitlines() if line.startswith("chip "))
    assert row.split() == ["chip", "loihi1", "loihi1", "loihi2"]
    assert f"lowered to {chip}: the columns of {others} price its events on another chip" in out
    own = {"loihi1": "loihi1-nahuku", "loihi2": "loihi2-pilotnet"}.get(chip)
    if own is not None:
        _, out, _ = command("hw_sim", "o/model.nir", "--input", raster, "--energy-model", own)
        assert "another chip" not in out


def test_hw_sim_trace_equals_the_python_interface(command, here, model, raster, net):
    import stl_deploy

    command("stl-export", model, "--target", "loihi", "-o", "o")
    code, _, _ = command(
        "hw_sim",
        "o/model.nir",
        "--input",
        raster,
        "--out",
        "t.npz",
        "--states",
        "--report",
        "r.html",
    )
    assert code == 0
    assert "<html" in Path("r.html").read_text()
    trace = stl_deploy.simulate(stl_deploy.load("o/model.nir"), random_spikes(net, 12), states=True)
    with np.load("t.npz") as written:
        assert len(written.files) == 3 * len(trace.layers)
        for name, did in trace.layers.items():
            for kind in ("spikes", "u", "v"):
                np.testing.assert_array_equal(written[f"{kind}/{name}"], getattr(did, kind))


def test_python_interface_end_to_end(here, model, net):
    import stl_deploy

    loaded = stl_deploy.load(model)
    network = stl_deploy.quantize(stl_deploy.from_torch(loaded), chip="loihi2")
    stl_deploy.export(network, "loihi", "o")
    again = stl_deploy.load("o/model.nir")
    spikes = random_spikes(net, 5)
    report = stl_deploy.parity(loaded, again, spikes)
    assert [layer.nir_mismatch for layer in report.layers] == [0.0] * 6
    first, other = report.layers[0], report.layers[1:]
    assert first.mismatch == first.mismatch_forced
    assert all(layer.mismatch < 0.2 for layer in other)


def test_low_thresholds_stop_loihi_but_not_ideal(command, here, net):
    with torch.no_grad():
        net.lif1.thresh[0, 0, 0] = -0.11
        net.lif3.thresh[7] = 0.0
    save_checkpoint(net, "m.pt")
    code, _, err = command("stl-export", "m.pt", "--target", "loihi", "-o", "o")
    assert code == 1
    assert "2 problems" in err
    assert "m.pt: lif1: 1 of 256 thresholds" in err
    assert "(0, 0, 0): theta -0.11" in err
    assert "m.pt: lif3: 1 of 30 thresholds" in err
    assert "--clamp-thresholds" in err
    assert list(here.iterdir()) == [here / "m.pt"]
    assert command("stl-export", "m.pt", "--target", "nir", "-o", "ideal")[0] == 0
    code, _, err = command(
        "stl-export", "m.pt", "--target", "loihi", "-o", "o", "--clamp-thresholds"
    )
    assert code == 0
    assert err.count("were clamped") == 2


def test_force_replaces_an_export_and_nothing_else(command, here, model):
    assert command("stl-export", model, "--target", "nir", "-o", "o")[0] == 0
    code, _, err = command("stl-export", model, "--target", "nir", "-o", "o")
    assert (code, "--force" in err) == (2, True)
    assert command("stl-export", model, "--target", "nir", "-o", "o", "--force")[0] == 0
    Path("mine").mkdir()
    Path("mine/thesis.tex").write_text("precious")
    code, _, err = command("stl-export", model, "--target", "nir", "-o", "mine", "--force")
    assert code == 2
    assert "thesis.tex" in err
    assert Path("mine/thesis.tex").read_text() == "precious"


def test_nothing_is_left_when_writing_fails(command, here, model, monkeypatch):

    def fail(*_args):
        raise OSError(28, "No space left on device", "model.nir")

    monkeypatch.setattr(nir_io, "write", fail)
    before = sorted(here.iterdir())
    code, _, err = command("stl-export", model, "--target", "loihi", "-o", "o")
    assert code == 2
    assert "o: cannot be written: No space left on device" in err
    assert sorted(here.iterdir()) == before


@pytest.mark.parametrize(
    ("name", "args", "code", "what"),
    [
        ("stl-export", ["none.pt", "--target", "nir"], 2, "does not exist"),
        ("stl-export", ["none.pt"], 2, "--target"),
        ("stl-export", ["none.pt", "--target", "tpu"], 2, "tpu"),
        ("stl-export", ["none.pt", "--target", "nir", "-o", "no/where"], 2, "does not exist"),
        ("hw_sim", ["none.nir", "--input", "x.npz"], 2, "does not exist"),
        ("hw_sim", ["none.nir", "--input", "x.npz", "--states"], 2, "--out"),
        ("stl-raster", ["--data", "none", "-o", "r.npz"], 2, "apt-get install"),
        ("stl-raster", ["--data", "none", "-o", "r.npz", "--timesteps", "0"], 2, "timesteps"),
        ("stl-train", ["--data", "none", "-o", "m.pt"], 2, "apt-get install"),
        ("stl-train", ["--mode", "osmosis", "-o", "m.pt"], 2, "osmosis"),
    ],
)
def test_bad_usage_is_exit_code_2_without_a_traceback(command, here, name, args, code, what):
    got, out, err = command(name, *args)
    assert (got, out) == (code, "")
    assert what in " ".join(err.split())
    assert "Traceback" not in err
    assert list(here.iterdir()) == []


def test_an_unknown_energy_model_is_refused_with_those_there_are(command, here, model, raster):
    assert command("stl-export", model, "--target", "nir", "-o", "o")[0] == 0
    args = ("o/model.nir", "--input", raster, "--energy-model", "tpu", "--out", "trace.npz")
    code, out, err = command("hw_sim", *args)
    assert (code, out) == (2, "")
    assert "--energy-model: 'tpu' is not one of loihi1-spice, loihi1-nahuku, loihi2-pilotnet" in err
    assert not Path("trace.npz").exists()


@pytest.mark.parametrize("name", ["stl-export", "hw_sim", "stl-raster", "stl-train", "stl-check"])
def test_help_has_an_example(command, name):
    code, out, _ = command(name, "--help")
    assert code == 0
    assert "Example: " + name in " ".join(out.split())


def test_rasters_that_do_not_fit(command, here, model, net):
    command("stl-export", model, "--target", "nir", "-o", "o")
    good = random_spikes(net, 2)
    for spikes, labels, what in (
        (good[:, :, :, :4], None, "has shape (2, 4, 1, 4, 8), the network reads [N, 4, 1, 8, 8]"),
        (good[:, :3], None, "has 3 time steps"),
        (good * 2, None, "holds values 0..2"),
        (good + np.float32(0.5), None, "float32"),
        (good[:0], None, "is empty"),
        (good, np.array([1]), "labels"),
        (good, np.array([1, 10]), "for 10 classes"),
    ):
        np.savez("r.npz", spikes=spikes, **({} if labels is None else {"labels": labels}))
        code, _, err = command("hw_sim", "o/model.nir", "--input", "r.npz")
        assert (code, what in err) == (2, True), err
    np.savez("r.npz", spikes=np.array([{}], dtype=object))
    assert command("hw_sim", "o/model.nir", "--input", "r.npz")[0] == 2
    Path("r.npz").write_bytes(b"PK\x03\x04 and more")
    assert command("hw_sim", "o/model.nir", "--input", "r.npz")[0] == 2


def test_overflow_is_reported(command, here, model, raster, net):
    """A file whose biases drive v into saturation."""
    command("stl-export", model, "--target", "loihi", "-o", "o")
    with h5py.File("o/model.nir", "r+") as file:
        file["node/nodes/lif1/v_threshold"][...] = 131071
        file["node/nodes/conv1/bias"][...] = 4095
        file["node/nodes/conv1/weight"][...] = 127
        meta = json.loads(file["node/metadata/stl_deploy"][()])
        meta["placement"] = None  # that of the weights before
        del file["node/metadata/stl_deploy"]
        file["node/metadata/stl_deploy"] = json.dumps(meta)
        file["node/nodes/lif1/tau"][...] = 1e-4 * 4096
        file["node/nodes/lif1/r"][...] = 4096
    code, out, err = command("hw_sim", "o/model.nir", "--input", raster, "--json")
    assert code == 0
    assert json.loads(out)["layers"][0]["overflows"] == 0  # 4 steps of 4095 do not reach 131071
    with h5py.File("o/model.nir", "r+") as file:
        file["node/nodes/conv1/weight"][...] = 127
        meta = json.loads(file["node/metadata/stl_deploy"][()])
        meta["connections"][0]["exp"] = 7
        del file["node/metadata/stl_deploy"]
        file["node/metadata/stl_deploy"] = json.dumps(meta)
        file["node/nodes/lif1/r"][...] = 4096 * 128
        file["node/nodes/conv1/bias"][...] = 0
    code, out, err = command("hw_sim", "o/model.nir", "--input", raster)
    assert code == 0
    assert "registers overflowed (lif1 " in err


def test_debug_shows_the_traceback(here):
    script = "from stl_deploy.commands.export import main; main()"
    run = subprocess.run(
        [sys.executable, "-c", script, "none.pt", "--target", "nir", "--debug"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert "Traceback" in run.stderr


def test_force_never_takes_an_input_or_a_stranger_with_it(command, here, model, raster):
    command("stl-export", model, "--target", "nir", "-o", "o")
    inside = here / "o" / "inside.pt"
    inside.write_bytes(model.read_bytes())
    for source, what in ((inside, "contains the input"), (model, "inside.pt")):
        code, _, err = command("stl-export", source, "--target", "nir", "-o", "o", "--force")
        assert code == 2
        assert what in err
        assert inside.exists()
    inside.unlink()
    for name in ("raster.npz", "o/model.nir"):
        code, _, err = command(
            "hw_sim", "o/model.nir", "--input", raster, "--report", name, "--force"
        )
        assert (code, "another input or output" in err) == (2, True)
    code, _, err = command(
        "hw_sim", "o/model.nir", "--input", raster, "--out", "x", "--report", "x"
    )
    assert (code, "another input or output" in err) == (2, True)


def test_places_that_cannot_become_an_export(command, here, model, monkeypatch):
    (here / "real").mkdir()
    (here / "link").symlink_to("real")
    (here / "dangling").symlink_to("nowhere")
    before = sorted(here.rglob("*"))
    for out, what in (
        ("link", "symbolic link"),
        ("dangling", "symbolic link"),
        (".", "current directory"),
        ("..", "current directory"),
        (model, "is a file"),
    ):
        code, _, err = command("stl-export", model, "--target", "nir", "-o", out, "--force")
        assert (code, what in err) == (2, True), err
    assert sorted(here.rglob("*")) == before


def test_interruption_leaves_nothing_and_says_so(command, here, model, monkeypatch):

    def interrupt(*_args):
        raise KeyboardInterrupt

    monkeypatch.setattr(nir_io, "write", interrupt)
    before = sorted(here.iterdir())
    code, _, err = command("stl-export", model, "--target", "loihi", "-o", "o")
    assert (code, err) == (130, "stl-export: interrupted; nothing half-written was left behind\n")
    assert sorted(here.iterdir()) == before


def test_exports_at_once_to_one_folder_take_turns(here):
    from concurrent.futures import ThreadPoolExecutor

    from stl_deploy.exporters import folder as output

    def one(number):
        new = here / f".o.{number}"
        new.mkdir()
        (new / "manifest.json").write_text(json.dumps({"format": output.FORMAT, "files": {}}))
        output._swap(new, Path("o"), force=True)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(one, range(400)))
    assert [p.name for p in here.iterdir()] == ["o"]


def test_calibration_reads_no_labels_and_is_noted(command, here, model, net):
    """The same inputs with other labels, or none, give the same network, unlike none at all."""
    spikes = random_spikes(net, 30)
    networks = []
    for number, labels in enumerate(({}, {"labels": np.arange(30) % 10}, None)):
        given = ()
        if labels is not None:
            np.savez(f"c{number}.npz", spikes=spikes, **labels)
            given = "--calib", f"c{number}.npz"
        code, out, _ = command(
            "stl-export", model, "--target", "loihi", *given, "-o", f"o{number}", "--json"
        )
        assert code == 0
        notes = [note["what"] for note in json.loads(out)["diagnostics"]]
        fitted = "weights and thresholds are fitted to 30 unlabelled inputs"
        assert (fitted in notes) == (labels is not None)
        networks.append(read_network(here / f"o{number}" / "model.nir"))
    for a, b, plain in zip(*(network.weighted for network in networks), strict=True):
        np.testing.assert_array_equal(a.neurons.vth, b.neurons.vth)
        np.testing.assert_array_equal(a.neurons.scale, plain.neurons.scale)
    one, other, plain = ([c.synapses.weight for c in network.connections] for network in networks)
    for a, b in zip(one, other, strict=True):
        np.testing.assert_array_equal(a, b)
    assert any((a != b).any() for a, b in zip(one, plain, strict=True))
    (*fitted_ones, plain) = networks
    assert all(how.calibrated == 30 for n in fitted_ones for how in n.precision.values())
    assert all(how.calibrated == 0 for how in plain.precision.values())


def test_calibration_data_must_fit(command, here, model, net):
    good = random_spikes(net, 2)
    for spikes, what in (
        (good * 200, "holds values 0..200"),
        (good[:, :3], "has 3 time steps"),
        (good[:, :, :, :4], "has shape (2, 4, 1, 4, 8)"),
    ):
        np.savez("c.npz", spikes=spikes)
        code, _, err = command("stl-export", model, "--target", "loihi", "--calib", "c.npz")
        assert code == 2
        assert f"c.npz: {what}" in err


def test_the_python_interface_refuses_what_is_not_a_raster(net):
    import stl_deploy
    from stl_deploy.errors import InputError

    network = stl_deploy.quantize(stl_deploy.from_torch(net))
    spikes = random_spikes(net, 2)
    for bad in (spikes * 0.5, -spikes.astype(np.int8), spikes[:0], spikes[0], [spikes, 1]):
        with pytest.raises(InputError):
            stl_deploy.simulate(network, bad)
    with pytest.raises(InputError, match=r"labels \(5,\) for 2 samples"):
        stl_deploy.parity(net, network, spikes, np.zeros(5, np.int64))
    other = random_net("FC20-LIF-AvgPool2", shape=(1, 8, 8))
    with pytest.raises(InputError, match="are not those of the model"):
        stl_deploy.parity(other, network, spikes)
    for call in (
        lambda: stl_deploy.from_torch(torch.nn.Linear(2, 2)),
        lambda: stl_deploy.quantize(net),
        lambda: stl_deploy.quantize(stl_deploy.from_torch(net), overflow="x", weight_bits=4.5),
        lambda: stl_deploy.export(network, [], "o"),
    ):
        with pytest.raises(InputError):
            call()


def test_version(command):
    code, out, _ = command("hw_sim", "--version")
    assert (code, out) == (0, "hw_sim (stl-deploy) 0.1.0\n")
