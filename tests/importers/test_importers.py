"""The table of importers: what recognises a file, and which options go with it."""

from __future__ import annotations

import json
from dataclasses import fields
from pathlib import Path

import nir
import numpy as np
import pytest
import torch

import stl_deploy
from stl_deploy.errors import InputError
from stl_deploy.formats import integer_nir, nir_io
from stl_deploy.importers import IMPORTERS, READ
from stl_deploy.importers.given import File, Given
from stl_deploy.importers.read import read
from stl_deploy.ir import nir_graph as G
from tests.build import official_nets
from tests.build.nets import random_net

OFFICIAL = {
    "ltmd": official_nets.Ltmd,
    "tebn": lambda: official_nets.Tebn(side=16),
    "rate-based": official_nets.RateResNet,
}
# Files that do not say enough of their network to be read.
LACKING = {
    "time-based": ("net.0.weight", "net.0.norm_weight", "net.0.norm_bias"),
    "stork": ("con1.op.weight", "con2.op.weight"),
}


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> dict[str, Path]:
    """A file of every importer but ``--model-class``, by its name in the table."""
    folder = tmp_path_factory.mktemp("files")
    net = random_net("FC6-LIF-AvgPool2")
    graph = stl_deploy.from_torch(net)
    paths = {name: folder / f"{name}.nir" for name in ("integer", "float", "nir")}
    paths["stl"] = folder / "stl.pt"
    stl_deploy.save_checkpoint(net, paths["stl"])
    nir_io.write(integer_nir.to_nir(stl_deploy.quantize(graph)), paths["integer"])
    nir_io.write(graph, paths["float"])
    ends = {
        "in": nir.Input({"input": np.array([3])}),
        "fc": nir.Linear(weight=np.eye(3)),
        "n": G.lif(np.ones(3), 2e-4, 2.0),
        "out": nir.Output({"output": np.array([3])}),
    }
    other = nir.NIRGraph(ends, [("in", "fc"), ("fc", "n"), ("n", "out")], type_check=False)
    nir_io.write(other, paths["nir"])
    x = torch.rand((8, 1, 16, 16), generator=torch.Generator().manual_seed(0))
    for name, make in OFFICIAL.items():
        paths[name] = folder / f"{name}.pt"
        torch.save(official_nets.drawn(make, x).state_dict(), paths[name])
    for name, keys in LACKING.items():
        paths[name] = folder / f"{name}.pt"
        torch.save({key: torch.ones(3, 3) for key in keys}, paths[name])
    paths["arrays"] = folder / "weights.npy"
    np.save(paths["arrays"], np.ones((10, 12)))
    said = {"system": "ncg", "threshold": [0.5] * 10, "timesteps": 4}
    (folder / "weights.json").write_text(json.dumps(said), "utf-8")
    return paths


@pytest.mark.parametrize("name", IMPORTERS)
def test_every_reader_is_there(name):
    assert callable(IMPORTERS[name].load())
    assert IMPORTERS[name].options.union(READ) <= {field.name for field in fields(Given)}


def test_every_option_goes_with_some_importer():
    used = frozenset(READ).union(*(entry.options for entry in IMPORTERS.values()))
    assert used == {field.name for field in fields(Given)}


@pytest.mark.parametrize("name", sorted(IMPORTERS.keys() - {"model-class"}))
def test_files_are_recognised_and_read(files, name):
    file = File(files[name], Given())
    assert next(key for key, entry in IMPORTERS.items() if entry.recognises(file)) == name
    if name in LACKING:
        with pytest.raises(InputError, match="are not in this file"):
            read(files[name], Given())
        return
    shape = (1, 16, 16) if name in OFFICIAL else None
    model = read(files[name], Given(input_shape=shape))
    assert (model.network is not None) == (name == "integer")
    assert (model.graph is not None) == (name != "integer")
    assert (model.checkpoint is not None) == (name == "stl")


def test_a_named_class_goes_first(files):
    file = File(files["nir"], Given(model_class="a:B"))
    assert IMPORTERS["model-class"].recognises(file)


VALUES = {"tau": 0.5, "dt": 1e-4, "levels": 1, "signed": True, "sample_shape": (1, 3)}
SYSTEMS = "a state_dict of LTMD, a state_dict of TEBN, a state_dict of rate-based backpropagation"
WHERE = {
    "tau": f"{SYSTEMS}, a state_dict of STL-SNN",
    "dt": "NIR files of other tools",
    "levels": f"--model-class, model.nir, model.float.nir, NIR files of other tools, {SYSTEMS}",
    "signed": "--model-class, model.nir, model.float.nir, NIR files of other tools",
    "sample_shape": "--model-class",
}


@pytest.mark.parametrize("name", sorted(IMPORTERS.keys() - {"model-class"}))
def test_options_that_a_file_has_no_use_for_are_refused_all_at_once(files, name):
    unused = {key: v for key, v in VALUES.items() if key not in IMPORTERS[name].options}
    with pytest.raises(InputError) as caught:
        read(files[name], Given(**unused))
    told = {p.where: p.what for p in caught.value.problems}
    assert told == {f"--{key.replace('_', '-')}": f"goes with {WHERE[key]}" for key in unused}


def test_options_that_contradict_a_file_are_refused(files):
    for name in ("integer", "float"):
        with pytest.raises(InputError) as caught:
            read(files[name], Given(timesteps=99, classes=3, levels=7))
        assert [p.where for p in caught.value.problems] == ["--timesteps", "--levels"]
