"""Chips that do not come with the package: their files, and networks that carry their facts."""

from __future__ import annotations

import ast
import json
import os
import pickle
from importlib import resources
from pathlib import Path

import h5py
import numpy as np
import pytest

import stl_deploy
from stl_deploy.chips import facts as chips
from stl_deploy.errors import InputError
from stl_deploy.formats import integer_nir, nir_io
from stl_deploy.formats.raster import Raster
from stl_deploy.hw_sim.simulate import Simulator
from tests.build import room_rules
from tests.build.nets import random_spikes

LOIHI2 = (resources.files("stl_deploy.chips") / "loihi2.toml").read_text("utf-8")
MINE = LOIHI2.replace('name = "loihi2"', 'name = "mychip"')
SHIPPED = ["loihi1-spice", "loihi1-nahuku", "loihi2-pilotnet"]


@pytest.fixture
def mychip(tmp_path: Path) -> Path:
    path = tmp_path / "mychip.toml"
    path.write_text(MINE)
    return path


@pytest.fixture
def network(mychip: Path, net):
    found = stl_deploy.quantize(stl_deploy.from_torch(net), chip=mychip)
    mychip.unlink()
    return found


def problems(path: Path) -> list[str]:
    with pytest.raises(InputError) as caught:
        chips.find(path)
    return [str(problem) for problem in caught.value.problems]


def test_a_chip_is_found_by_name_or_path(mychip, monkeypatch):
    mine = chips.find(mychip)
    assert (mine.name, mine.registers) == ("mychip", chips.load("loihi2").registers)
    monkeypatch.chdir(mychip.parent)
    assert chips.find("mychip.toml") == chips.find("./mychip.toml") == mine
    assert chips.find("loihi2") is chips.load("loihi2")
    Path("loihi2").write_text(MINE)  # a name goes before a file
    assert chips.find("loihi2") is chips.load("loihi2")
    assert chips.find(Path("loihi2")) == mine


def test_a_copy_of_a_chip_of_ours_is_that_chip(tmp_path, net):
    path = tmp_path / "copy.toml"
    path.write_text(LOIHI2)
    network = stl_deploy.quantize(stl_deploy.from_torch(net), chip=path)
    assert (network.chip, network.chip_facts) == ("loihi2", None)
    path.write_text(LOIHI2.replace("value = 8192", "value = 4096"))
    (line,) = problems(path)
    assert line == (
        f"{path}: name: 'loihi2' is a chip of stl-deploy, and its facts are others -> give your chip a "
        "name of its own"
    )


@pytest.mark.parametrize("name", ["loihi3", "", "mychip"])
def test_an_unknown_name_lists_the_chips_and_says_that_a_path_may_be_given(name):
    with pytest.raises(InputError) as caught:
        chips.find(name)
    assert str(caught.value) == (
        f"chip: {name!r} is not one of ideal, loihi1, loihi2 -> name one of them, or the path of a chip "
        "file (docs/chips.md)"
    )


@pytest.mark.parametrize(
    ("old", "new", "line"),
    [
        ('"mychip"', '"my chip"', "name: String should match pattern '^[A-Za-z0-9]"),
        ('"mychip"', '"../chip"', "name: String should match pattern '^[A-Za-z0-9]"),
        ('"Intel Loihi 2"', '"a\\u001b[2Jb"', "title: String should match pattern"),
        ("value = 24", "value = 99", "registers: state_bits 99 is not in 2..31"),
        (
            "value = 24",
            'value = "24"',
            "registers.state_bits.value: Input should be a valid integer",
        ),
        (
            "value = 24",
            "value = true",
            "registers.state_bits.value: Input should be a valid integer",
        ),
        (
            "value = 24",
            f"value = {10**4000}",
            "registers.state_bits.value: Input should be less than",
        ),
        ("value = 8,", "value = 9,", "registers: weight_bits 9 is not in 2..8"),
        ("value = 13,", "value = 25,", "registers: bias_mant_bits 25 is not in 1..24"),
        (
            "accumulator_bits = { value = 17",
            "accumulator_bits = { value = 26",
            "accumulator_bits 26",
        ),
        ("accumulator_bits", "#", "arithmetic 'loihi' needs accumulator_bits and bias_mant_bits"),
        ("cores_per_chip", "core_per_chip", "limits.core_per_chip: Extra inputs are not permitted"),
        ("value = 128,", "value = 0,", "limits: cores_per_chip 0 is not in 1..2147483647"),
        (
            "word_bits = { value = 64",
            "word_bits = { value = 0",
            "packing: word_bits 0 is not in 1..65536",
        ),
        ("columns = { value = 8", "columns = { value = 0", "mesh: columns 0 is not in 1..1024"),
        (
            "delay_bits = { value = 6",
            "delay_bits = { value = 5",
            "delays: steps_max 62 needs more bits",
        ),
        ("steps_max = { value = 62", "steps_max = { value = 64", "needs more bits than packing"),
        (
            "steps_max = { value = 62",
            "steps_max = { value = -1",
            "delays: steps_max -1 is not in 0",
        ),
        (
            "[delays]",
            '[delays]\nslots_per_core = { value = 63, source = "a data sheet" }',
            "delays: slots_per_core 63 is too few for steps_max 62",
        ),
        ("steps_max", "step_max", "delays.steps_max: Field required"),
        ("[mesh]", "[[mesh]]", "mesh: Input should be"),
        ("[mesh]", "[other]", "other: Extra inputs are not permitted"),
        (
            "always = 37.86",
            "always = nan",
            "update_pj.always: Input should be a finite number, not nan",
        ),
        (
            "always = 37.86",
            "always = -1",
            "always: Input should be greater than or equal to 0, not -1",
        ),
        ("always = 37.86", "always = 1e300", "always: Input should be less than or equal to"),
        (
            "value = 0.23",
            "value = inf",
            "static.chip_watt_low.value: Input should be a finite number",
        ),
        ("us = [0.6647, ", "us = [", "barrier: 4 numbers of tiles for 3 durations"),
        ("tiles = [1, 2", "tiles = [2, 2", "barrier: tiles [2, 2, 4, 29] do not increase"),
        ("[profiles.loihi2-pilotnet]", "[profiles.'a b']", "profiles.a b"),
        ("state_bits = {", "state_bits = [", "is not a TOML file: "),
        (
            "value = 24",
            "value = " + 2000 * "[" + 2000 * "]",
            "is not a TOML file: maximum recursion",
        ),
        ("value = 24", "value = " + 5000 * "9", "is not a TOML file: Exceeds the limit"),
        (MINE, "\xff", "is not a TOML file: "),
        (MINE, "", "is empty"),
        (MINE, MINE + 65536 * "#", "bytes; the limit is 65,536"),
        (MINE, 'name = "x"\n', "registers: Field required"),
    ],
)
def test_a_broken_file_is_refused_with_its_name_the_key_and_the_value(tmp_path, old, new, line):
    path = tmp_path / "broken.toml"
    assert old in MINE
    path.write_text(MINE.replace(old, new, 1), "latin-1")
    found = problems(path)
    assert all(text.startswith(str(path)) for text in found)
    assert any(line in text for text in found), found
    assert all(len(text) < 400 for text in found)


def test_all_problems_of_a_file_are_told_at_once(tmp_path):
    path = tmp_path / "broken.toml"
    path.write_text(MINE.replace("value = 8,", "value = 9,", 1).replace("[mesh]", "[mash]"))
    assert len(problems(path)) == 2


def test_a_file_that_says_nothing_of_delays_has_none(tmp_path):
    path = tmp_path / "older.toml"
    start, end = MINE.index("[delays]"), MINE.index("[packing]")
    path.write_text(
        MINE[:start] + MINE[end:].replace("delay_bits = { value = 6", "delay_bits = { value = 0")
    )
    assert chips.find(path).delay_max == 0
    path.write_text(MINE)
    assert chips.find(path).delay_max == 62
    path.write_text(
        MINE.replace(
            "[delays]", '[delays]\nslots_per_core = { value = 64, source = "a data sheet" }'
        )
    )
    assert chips.find(path).waiting_neurons(62) == 1


def test_energy_models_need_cores_and_a_mesh(tmp_path):
    path = tmp_path / "broken.toml"
    start, end = MINE.index("[mesh]"), MINE.index("[static]")
    path.write_text(MINE[:start] + MINE[end:])
    assert problems(path) == [f"{path}: energy models (profiles) need mesh"]


@pytest.mark.parametrize("name", ["none.toml", "no/where.toml", "folder.toml"])
def test_a_path_that_is_no_file_is_refused(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    Path("folder.toml").mkdir()
    (line,) = problems(Path(name))
    assert line == f"{name}: " + ("is not a file" if name == "folder.toml" else "does not exist")


@pytest.mark.skipif(os.name == "nt" or os.geteuid() == 0, reason="root reads everything")
def test_a_file_that_may_not_be_read_is_refused(mychip):
    mychip.chmod(0)
    assert problems(mychip) == [f"{mychip}: cannot be read: Permission denied"]


# Networks that carry their chip


def test_the_facts_travel_in_model_nir(network, tmp_path):
    """The chip's own file is gone by now."""
    path = tmp_path / "model.nir"
    nir_io.write(integer_nir.to_nir(network), path)
    again = integer_nir.read_network(path)
    assert (again.chip, again.chip_facts) == ("mychip", network.chip_facts)
    assert chips.of(again) == chips.of(network)
    assert chips.of(again).limits == chips.load("loihi2").limits
    assert again.placement == network.placement


def test_a_chip_that_comes_with_the_package_leaves_no_trace(net):
    network = stl_deploy.quantize(stl_deploy.from_torch(net), chip="loihi2")
    assert network.chip_facts is None
    assert "chip_facts" not in json.loads(integer_nir.to_nir(network).metadata["stl_deploy"])


def test_the_network_is_that_of_the_same_facts(network, net):
    theirs = stl_deploy.quantize(stl_deploy.from_torch(net), chip="loihi2")
    spikes = random_spikes(net, 6)
    mine = Simulator(network).run(Raster(spikes))
    other = Simulator(theirs).run(Raster(spikes))
    assert np.array_equal(mine.counts.predictions, other.counts.predictions)
    assert list(other.energies) == SHIPPED
    assert list(mine.energies) == [*SHIPPED, "mychip/loihi2-pilotnet"]
    for name in SHIPPED:
        assert mine.energies[name].total_j == other.energies[name].total_j
    own, copied = mine.energies["mychip/loihi2-pilotnet"], other.energies["loihi2-pilotnet"]
    assert own.total_j == copied.total_j
    assert own.traffic.placed.chip == "mychip"


def test_an_energy_model_with_a_name_of_its_own_keeps_it(tmp_path):
    path = tmp_path / "mine.toml"
    path.write_text(MINE.replace("profiles.loihi2-pilotnet", "profiles.lab"))
    mine = chips.find(path)
    assert chips.profiles(mine)["lab"] == (mine, mine.profiles["lab"])
    assert list(chips.profiles(mine)) == [*SHIPPED, "lab"]
    assert list(chips.profiles(chips.load("loihi2"))) == list(chips.profiles()) == SHIPPED


def test_registers_are_those_of_the_file(tmp_path, net):
    """Narrower registers: the same network lies on another grid."""
    path = tmp_path / "narrow.toml"
    path.write_text(MINE.replace("value = 24", "value = 17").replace("value = 17, ", "value = 8, "))
    network = stl_deploy.quantize(stl_deploy.from_torch(net), chip=path)
    wide = stl_deploy.quantize(stl_deploy.from_torch(net), chip="loihi2")
    assert max(p.neurons.vth.max() for p in network.weighted) < 1 << 8
    assert max(p.neurons.vth.max() for p in wide.weighted) >= 1 << 8
    trace = stl_deploy.simulate(network, random_spikes(net, 6), states=True)
    states = [did.v for did in trace.layers.values() if did.v is not None]
    assert max(abs(v).max() for v in states) < 1 << 16


def test_a_network_takes_its_chip_to_other_processes(network):
    """What a Dask cluster does with a job."""
    again = pickle.loads(pickle.dumps(network))
    assert chips.of(again) == chips.of(network)


def test_two_chips_of_one_name_do_not_meet(mychip, net, tmp_path):
    """A chip file may change between two calls: a network keeps the facts it was made for."""
    graph = stl_deploy.from_torch(net)
    before = stl_deploy.quantize(graph, chip=mychip)
    mychip.write_text(MINE.replace("value = 8192", "value = 256"))
    after = stl_deploy.quantize(graph, chip=mychip)
    limits = [chips.of(n).limits.compartments_per_core.value for n in (before, after)]
    assert limits == [8192, 256]
    assert chips.identity(chips.of(before)) != chips.identity(chips.of(after))
    assert chips.identity(chips.load("loihi2")) == "loihi2"


@pytest.mark.parametrize(
    ("change", "line"),
    [
        (lambda facts: facts["registers"]["state_bits"].update(value=99), "state_bits 99"),
        (
            lambda facts: facts["registers"].pop("weight_bits"),
            "registers.weight_bits: Field required",
        ),
        (lambda facts: facts.update(more=1), "more: Extra inputs are not permitted, not 1"),
        (
            lambda facts: facts.update(name="loihi2", title="x"),
            "name: 'loihi2' is a chip of stl-deploy",
        ),
        (
            lambda facts: facts.update(name="other"),
            "are those of 'other', and the network is for 'mychip'",
        ),
        (
            lambda facts: facts["limits"]["cores_per_chip"].update(value=-1),
            "limits: cores_per_chip -1",
        ),
        (lambda facts: facts.clear(), "name: Field required"),
    ],
)
def test_facts_in_a_file_are_untrusted(network, tmp_path, change, line):
    path = tmp_path / "model.nir"
    nir_io.write(integer_nir.to_nir(network), path)
    _change(path, lambda meta: change(meta["chip_facts"]))
    with pytest.raises(InputError) as caught:
        integer_nir.read_network(path)
    texts = [str(problem) for problem in caught.value.problems]
    assert all(text.startswith(f"{path}: chip_facts") for text in texts), texts
    assert any(line in text for text in texts), texts


@pytest.mark.parametrize("facts", ["x", 1, [], {"name": []}])
def test_facts_of_another_type_are_refused(network, tmp_path, facts):
    path = tmp_path / "model.nir"
    nir_io.write(integer_nir.to_nir(network), path)
    _change(path, lambda meta: meta.update(chip_facts=facts))
    with pytest.raises(InputError, match="chip_facts"):
        integer_nir.read_network(path)


def test_a_file_without_the_facts_is_refused(network, tmp_path):
    path = tmp_path / "model.nir"
    nir_io.write(integer_nir.to_nir(network), path)
    _change(path, lambda meta: meta.pop("chip_facts"))
    with pytest.raises(InputError, match="chip: 'mychip' is not one of ideal, loihi1, loihi2"):
        integer_nir.read_network(path)


def _change(path: Path, change) -> None:
    """Change the JSON of a written file."""
    with h5py.File(path, "r+") as file:
        found = []
        file.visititems(
            lambda name, item: (
                found.append(name)
                if isinstance(item, h5py.Dataset) and name.endswith("metadata/stl_deploy")
                else None
            )
        )
        (name,) = found
        meta = json.loads(file[name][()])
        change(meta)
        del file[name]
        file[name] = json.dumps(meta)


# Commands


def test_commands_with_a_chip_of_ones_own(command, mychip, model, raster, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    args = (model, "--chip", "mychip.toml", "--eval", raster, "-o", "o")
    code, _, err = command("stl-export", *args, "--target", "loihi", "--target", "onnx")
    assert (code, err.count("Traceback")) == (0, 0), err
    manifest = json.loads(Path("o/manifest.json").read_text())
    assert (manifest["chip"], manifest["cores"] > 0) == ("mychip", True)
    mychip.unlink()
    code, out, err = command(
        "hw_sim", "o/model.nir", "--input", raster, "--report", "r.html", "--json"
    )
    assert code == 0, err
    data = json.loads(out)
    assert list(data["profiles"]) == [*SHIPPED, "mychip/loihi2-pilotnet"]
    assert data["profiles"]["mychip/loihi2-pilotnet"]["chip"] == data["chip"] == "mychip"
    assert {"mychip", "loihi2"} <= set(data["traffic"])
    assert "mychip/loihi2-pilotnet" in Path("r.html").read_text()
    one = ("--energy-model", "mychip/loihi2-pilotnet", "--json")
    code, out, _ = command("hw_sim", "o/model.nir", "--input", raster, *one)
    assert (code, list(json.loads(out)["profiles"])) == (0, ["mychip/loihi2-pilotnet"])
    code, _, err = command(
        "stl-parity", model, "o/model.nir", "--input", raster, "--backend", "hw_sim,onnx", "--json"
    )
    assert code == 0, err
    # What was exported may be exported again, for its chip alone.
    again = ("o/model.nir", "--target", "nir", "-o", "p")
    code, _, err = command("stl-export", *again, "--chip", "loihi2")
    assert (
        code,
        "--chip loihi2 does not apply to a network for mychip" in " ".join(err.split()),
    ) == (
        2,
        True,
    )
    mychip.write_text(MINE)
    assert command("stl-export", *again, "--chip", mychip)[0] == 0


@pytest.mark.parametrize("name", ["stl-export", "stl-train"])
def test_commands_name_the_option_of_a_chip_that_is_not_known(
    command, model, raster, tmp_path, monkeypatch, name
):
    monkeypatch.chdir(tmp_path)
    args = {
        "stl-export": (model, "--target", "nir", "-o", "o"),
        "stl-train": ("--raster", raster, "--qat", "--init", model, "-o", "m.pt"),
    }[name]
    for chip, line in (
        ("loihi3", "--chip: 'loihi3' is not one of ideal, loihi1, loihi2"),
        ("none.toml", "none.toml: does not exist"),
    ):
        code, out, err = command(name, *args, "--chip", chip)
        assert (code, out) == (2, "")
        assert line in " ".join(err.split())
        assert "Traceback" not in err
        assert not Path("o").exists()


def test_training_on_integers_keeps_to_the_registers_of_the_file(
    command, model, raster, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    Path("narrow.toml").write_text(MINE.replace("value = 17", "value = 7"))
    args = ("--raster", raster, "--qat", "--init", model, "--chip", "narrow.toml", "--epochs", "1")
    code, out, err = command("stl-train", *args, "-o", "m.pt", "--json")
    assert code == 0, err
    assert json.loads(out)["settings"]["chip"].startswith("mychip sha256:")
    code, _, err = command(
        "stl-export", "m.pt", "--target", "nir", "--chip", "narrow.toml", "-o", "o"
    )
    assert code == 0, err
    network = integer_nir.read_network(Path("o/model.nir"))
    assert max(p.neurons.vth.max() for p in network.weighted) < 1 << 7


def test_nobody_looks_a_network_s_chip_up_by_its_name():
    """``chips.load(network.chip)`` finds chips of the package alone, ``chips.of(network)`` all."""
    found = [
        f"{path}:{node.lineno}"
        for path, text in room_rules.product().items()
        if path != "stl_deploy/chips/facts.py"
        for node in ast.walk(ast.parse(text))
        if isinstance(node, ast.Call)
        and ast.unparse(node.func).rpartition(".")[2] == "load"
        and any(ast.unparse(arg).endswith("network.chip") for arg in node.args)
    ]
    assert not found
