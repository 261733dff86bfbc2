"""Training: three modes, determinism, and runs that continue where they were cut off."""

from __future__ import annotations

import json
import sys

import numpy as np
import pytest
import torch
from test_data import write_idx

from stl_deploy.arch import Architecture
from stl_deploy.errors import InputError, LoweringError
from stl_deploy.importers import stl
from stl_deploy.models.layers import BatchNorm
from stl_deploy.models.train import Settings, Trainer

ARCH = "3C3-BN-LIF-P3-FC20-LIF-AvgPool2"


def data(n=60):
    """Ten classes that a small net can tell apart: a bright bar in one of ten places."""
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 10, n)
    images = rng.integers(0, 40, (n, 1, 6, 6)).astype(np.uint8)
    images.reshape(n, -1)[np.arange(n)[:, None], labels[:, None] * 3 + np.arange(3)] = 255
    return torch.from_numpy(images), torch.from_numpy(labels)


def trainer(**settings):
    arch = Architecture.parse(ARCH, (1, 6, 6))
    return Trainer(arch, Settings(**{"epochs": 3, "batch": 20, **settings}))


def parameters(t):
    return {k: v.clone() for k, v in t.model.state_dict().items()}


@pytest.mark.parametrize("mode", ["synergistic", "synaptic", "threshold"])
def test_modes_learn_what_they_say(mode):
    t = trainer(mode=mode)
    before = parameters(t)
    list(t.run(*data()))
    changed = {k for k, v in parameters(t).items() if not torch.equal(v, before[k])}
    thresholds = {"lif1.thresh", "lif2.thresh"}
    weights = {"conv1.weight", "fc1.weight", "bn1.weight", "bn1.bias"}
    expected = {"synergistic": thresholds | weights, "synaptic": weights, "threshold": thresholds}
    assert {k for k in changed if "running" not in k and "tracked" not in k} == expected[mode]


def test_it_learns():
    t = trainer(epochs=15, lr=1e-2)
    reports = list(t.run(*data(200)))
    assert reports[-1].loss < 0.8 * reports[0].loss
    assert reports[-1].accuracy > 0.3


def test_a_seed_determines_everything():
    runs = []
    for seed in (0, 0, 1):
        t = trainer(seed=seed, flip=True)
        list(t.run(*data()))
        runs.append(parameters(t))
    assert all(torch.equal(runs[0][k], runs[1][k]) for k in runs[0])
    assert any(not torch.equal(runs[0][k], runs[2][k]) for k in runs[0])


def test_a_resumed_run_ends_where_an_uninterrupted_one_does(tmp_path):
    whole = trainer()
    list(whole.run(*data()))
    first = trainer()
    next(iter(first.run(*data())))
    first.save(tmp_path / "s.pt")
    second = trainer()
    second.resume(tmp_path / "s.pt")
    assert len(list(second.run(*data()))) == 2
    expected, got = parameters(whole), parameters(second)
    assert all(torch.equal(expected[k], got[k]) for k in expected)
    assert second.history == whole.history


def test_resuming_another_run_is_refused(tmp_path):
    t = trainer()
    t.save(tmp_path / "s.pt")
    with pytest.raises(InputError, match="seed differ"):
        trainer(seed=1).resume(tmp_path / "s.pt")
    torch.save({"format": "other"}, tmp_path / "s.pt")
    with pytest.raises(InputError, match="belongs to another run"):
        t.resume(tmp_path / "s.pt")


def test_running_statistics_do_not_depend_on_what_memory_held(monkeypatch):
    def dirty(self, *shape):
        return torch.full(shape, float("nan"), dtype=self.dtype)

    monkeypatch.setattr(torch.Tensor, "new_empty", dirty)
    layer = BatchNorm(3)
    layer(torch.rand(4, 2, 3, 5, 5))
    assert layer.running_mean.isfinite().all()
    assert layer.running_var.isfinite().all()


def test_graded_input_needs_a_graded_network():
    with pytest.raises(InputError, match="graded input for a network of 1 input levels"):
        trainer(encoding="graded")
    arch = Architecture.parse(ARCH, (1, 6, 6), levels=255)
    list(Trainer(arch, Settings(epochs=1, encoding="graded")).run(*data()))


@pytest.fixture
def folder(tmp_path):
    images, labels = data()
    write_idx(tmp_path / "train-images-idx3-ubyte.gz", images[:, 0].numpy())
    write_idx(tmp_path / "train-labels-idx1-ubyte.gz", labels.numpy())
    return tmp_path


def command(monkeypatch, *args):
    from stl_deploy.models.cli import main

    monkeypatch.setattr(sys, "argv", ["stl-train", *map(str, args)])
    with pytest.raises(SystemExit) as stop:
        main()
    return stop.value.code


def test_command(folder, monkeypatch, capfd):
    out = folder / "m.pt"
    args = ["--data", folder, "--arch", ARCH, "--epochs", 2, "--seed", 3, "-o", out]
    assert command(monkeypatch, *args, "--json") == 0
    told = json.loads(capfd.readouterr().out)
    assert len(told["history"]) == 2
    assert told["settings"]["seed"] == 3
    assert stl.read(out).arch == Architecture.parse(ARCH, (1, 6, 6))
    assert sorted(p.name for p in folder.glob("*.pt")) == ["m.pt"]
    assert command(monkeypatch, *args) == 2
    assert "--force" in capfd.readouterr().err


def test_command_resumes_after_a_kill(folder, monkeypatch):
    from stl_deploy.models import train

    args = ["--data", folder, "--arch", ARCH, "--epochs", 3, "--batch", 20]
    assert command(monkeypatch, *args, "-o", folder / "whole.pt") == 0
    epoch = train.Trainer._epoch

    def killed(self, number, *rest):
        if number == 2:
            raise KeyboardInterrupt
        return epoch(self, number, *rest)

    monkeypatch.setattr(train.Trainer, "_epoch", killed)
    code = command(monkeypatch, *args, "-o", folder / "cut.pt")
    assert code not in (0, None)
    assert (folder / "cut.resume.pt").exists()
    monkeypatch.setattr(train.Trainer, "_epoch", epoch)
    assert command(monkeypatch, *args, "-o", folder / "cut.pt", "--resume") == 0
    whole, cut = stl.read(folder / "whole.pt").params, stl.read(folder / "cut.pt").params
    assert all(np.array_equal(whole[k], cut[k]) for k in whole)
    assert not (folder / "cut.resume.pt").exists()


def test_command_checks_before_it_trains(folder, monkeypatch, capfd):
    args = ["--data", folder, "--epochs", 1]
    for more, what in (
        (["--arch", "FC10-LIF-AvgPool5", "-o", folder / "m.pt"], "tells 2 classes apart"),
        (["--arch", ARCH, "-o", folder / "no" / "m.pt"], "does not exist"),
        (["--arch", ARCH, "-o", folder, "--force"], "is a folder"),
    ):
        assert command(monkeypatch, *args, *more) == 2
        assert what in capfd.readouterr().err
    assert list(folder.glob("*.pt")) == []


def test_other_data_does_not_continue_a_run(folder, monkeypatch, capfd):
    from stl_deploy.models import train

    args = ["--data", folder, "--arch", ARCH, "--epochs", 2, "-o", folder / "m.pt"]
    save = train.Trainer.save

    def save_and_stop(self, path):
        save(self, path)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(train.Trainer, "save", save_and_stop)
        assert command(monkeypatch, *args) == 130
    assert "--resume continues" in capfd.readouterr().err
    assert command(monkeypatch, *args, "--limit", 40, "--resume") == 2
    assert "data differ" in capfd.readouterr().err
    assert command(monkeypatch, *args, "--resume") == 0


def test_a_diverging_run_stops():
    t = trainer()
    with torch.no_grad():
        t.model.fc1.weight.fill_(float("nan"))
        t.model.lif2.thresh.fill_(float("nan"))
    t.model.readout.forward = lambda spikes: spikes.mean(1)[:, :10] * float("nan")
    with pytest.raises(LoweringError, match="the loss is nan"):
        list(t.run(*data()))
