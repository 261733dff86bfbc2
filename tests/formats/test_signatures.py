"""Files of other kinds, or under other names, are told by their first bytes."""

from __future__ import annotations

import gzip
import pickle
import tarfile
import zipfile

import h5py
import nir
import numpy as np
import pytest
import torch
from torch import nn

import stl_deploy
from stl_deploy.commands import export, hw_sim
from stl_deploy.errors import InputError
from stl_deploy.formats import nir_io, signatures
from stl_deploy.formats.checkpoint import read_tensors, save_checkpoint
from stl_deploy.importers import read as models
from stl_deploy.importers.given import Given
from tests.build.nir_graphs import chain, lif
from tests.build.torch_nets import command


def legacy(path):
    state = nn.Linear(2, 2).state_dict()
    torch.save(state, path, _use_new_zipfile_serialization=False)


def script(path):
    torch.jit.script(nn.Linear(2, 2)).save(str(path))


def onnx_model(path):
    import onnx

    onnx.save(onnx.helper.make_model(onnx.helper.make_graph([], "g", [], [])), path)


def safetensors(path):
    header = b'{"w":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}'
    path.write_bytes(len(header).to_bytes(8, "little") + header + bytes(4))


def tar(path):
    with tarfile.open(path, "w") as file:
        file.add(__file__)


def netx(path):
    with h5py.File(path, "w") as file:
        file.create_group("layer/0")


def keras(path):
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("config.json", "{}")
        file.writestr("model.weights.h5", b"")


def data(content):
    return lambda path: path.write_bytes(content)


OTHERS = {
    "torch.pt": (legacy, "is a checkpoint of PyTorch before 1.6"),
    "script.pt": (script, "is a TorchScript archive"),
    "m.onnx": (onnx_model, "is an ONNX model"),
    "m.safetensors": (safetensors, "is a safetensors file"),
    "m.gguf": (data(b"GGUF" + bytes(30)), "is a GGUF file"),
    "m.tflite": (data(bytes(4) + b"TFL3" + bytes(9)), "is a TensorFlow Lite model"),
    "m.np": (data(b"\x93NUMPY" + bytes(9)), "is a numpy array"),
    "m.npz": (lambda path: np.savez(path, x=np.ones(3)), "contains numpy arrays, as rasters do"),
    "m.pkl": (lambda path: path.write_bytes(pickle.dumps([1, 2])), "is a Python pickle"),
    "m.pt.gz": (lambda path: path.write_bytes(gzip.compress(b"x")), "is a compressed archive"),
    "m.tar": (tar, "is a tar archive"),
    "m.keras": (keras, "is a Keras model"),
    "lfs.pt": (data(b"version https://git-lfs.github.com/spec/v1\noid"), "is a pointer of Git LFS"),
    "page.pt": (data(b"\n<!DOCTYPE html><html>"), "is a web page"),
    "text.pt": (data(b"a: 1\nb: 2\n"), "is a text file"),
    "text.nir": (data(b"a: 1\nb: 2\n"), "is a text file"),
    "empty.pt": (data(b""), "is empty"),
    "empty.nir": (data(b""), "is empty"),
    "folder.pt": (lambda path: path.mkdir(), "is a folder"),
}


@pytest.mark.parametrize("name", OTHERS)
def test_what_is_not_read_is_told(name, tmp_path):
    make, text = OTHERS[name]
    path = tmp_path / name
    make(path)
    for read in (read_tensors, nir_io.read, lambda p: models.read(p, Given()), stl_deploy.load):
        with pytest.raises(InputError) as error:
            read(path)
        (problem,) = error.value.problems
        assert problem.where == str(path)
        assert problem.what.startswith(text)
        assert problem.remedy


def test_a_netx_file_is_no_nir_file(tmp_path):
    netx(tmp_path / "network.net")
    with pytest.raises(InputError, match="HDF5 file, but not one of NIR: it contains layer"):
        models.read(tmp_path / "network.net", Given())


def test_a_folder_that_contains_the_model_names_it(tmp_path):
    (tmp_path / "model.nir").touch()
    what, remedy = signatures.other(tmp_path)
    assert (what, remedy) == ("is a folder", f"name {tmp_path / 'model.nir'}")


@pytest.mark.parametrize("name", ["NET.NIR", "net.h5", "net.hdf5", "net.pt", "net"])
def test_a_nir_file_under_any_name(tmp_path, name, capsys):
    nir_io.write(chain(nir.Linear(np.ones((3, 4))), lif(3)), tmp_path / name)
    assert (
        command(export.export, str(tmp_path / name), "--target", "nir", "-o", str(tmp_path / "o"))
        == 0
    )
    (tmp_path / "o" / "model.nir").rename(tmp_path / f"again {name}")
    assert stl_deploy.load(tmp_path / f"again {name}").populations


def test_a_checkpoint_under_any_name(tmp_path, net):
    save_checkpoint(net, tmp_path / "model.nir")
    assert models.read(tmp_path / "model.nir", Given()).checkpoint is not None
    with pytest.raises(InputError, match="is a checkpoint, not a NIR file -> export it first"):
        nir_io.read(tmp_path / "model.nir")


def test_a_checkpoint_given_to_hw_sim_is_to_be_exported_first(tmp_path, net, capsys):
    save_checkpoint(net, tmp_path / "model.pt")
    (tmp_path / "r.npz").touch()
    code = command(hw_sim.simulate, str(tmp_path / "model.pt"), "--input", str(tmp_path / "r.npz"))
    assert code == 2
    assert "export it first: stl-export" in capsys.readouterr().err.replace("\n", " ")
