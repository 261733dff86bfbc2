"""Training: three modes, determinism, and runs that continue where they were cut off."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch

from stl_deploy.errors import InputError, LoweringError
from stl_deploy.formats import raster as rasters
from stl_deploy.importers import stl
from stl_deploy.ir.arch import Architecture
from stl_deploy.models.layers import BatchNorm
from stl_deploy.models.train import Settings, Trainer
from tests.build.files import bars, write_idx, write_images
from tests.build.killed_training import in_a_process

ARCH = "3C3-BN-LIF-P3-FC20-LIF-AvgPool2"


def trainer(**settings):
    arch = Architecture.parse(ARCH, (1, 6, 6))
    return Trainer(arch, Settings(**{"epochs": 3, "batch": 20, **settings}))


def parameters(t):
    return {k: v.clone() for k, v in t.model.state_dict().items()}


@pytest.mark.parametrize("mode", ["synergistic", "synaptic", "threshold"])
def test_modes_learn_what_they_say(mode):
    t = trainer(mode=mode)
    before = parameters(t)
    list(t.run(*bars()))
    changed = {k for k, v in parameters(t).items() if not torch.equal(v, before[k])}
    thresholds = {"lif1.thresh", "lif2.thresh"}
    weights = {"conv1.weight", "fc1.weight", "bn1.weight", "bn1.bias"}
    expected = {"synergistic": thresholds | weights, "synaptic": weights, "threshold": thresholds}
    assert {k for k in changed if "running" not in k and "tracked" not in k} == expected[mode]


def test_it_learns():
    t = trainer(epochs=15, lr=1e-2)
    reports = list(t.run(*bars(200)))
    assert reports[-1].loss < 0.8 * reports[0].loss
    assert reports[-1].accuracy > 0.3


def test_a_seed_determines_everything():
    runs = []
    for seed in (0, 0, 1):
        t = trainer(seed=seed, flip=True)
        list(t.run(*bars()))
        runs.append(parameters(t))
    assert all(torch.equal(runs[0][k], runs[1][k]) for k in runs[0])
    assert any(not torch.equal(runs[0][k], runs[2][k]) for k in runs[0])


def test_a_resumed_run_ends_where_an_uninterrupted_one_does(tmp_path):
    whole = trainer()
    list(whole.run(*bars()))
    first = trainer()
    next(iter(first.run(*bars())))
    first.save(tmp_path / "s.pt")
    second = trainer()
    second.resume(tmp_path / "s.pt")
    assert len(list(second.run(*bars()))) == 2
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
    list(Trainer(arch, Settings(epochs=1, encoding="graded")).run(*bars()))


@pytest.fixture
def folder(tmp_path):
    write_images(tmp_path, *bars())
    return tmp_path


def command(monkeypatch, *args):
    from stl_deploy.commands.train import main

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
        (["--arch", "FC10-LIF-AvgPool5", "-o", folder / "m.pt"], "distinguishes 2 classes"),
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
    assert "resume with --resume" in capfd.readouterr().err
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
        list(t.run(*bars()))


def test_a_resumed_run_draws_the_same_dropout(tmp_path):
    arch = Architecture.parse("3C3-BN-LIF-P3-D0.3-FC20-LIF-AvgPool2", (1, 6, 6))
    whole, first, second = (Trainer(arch, Settings(epochs=2, batch=20)) for _ in range(3))
    list(whole.run(*bars()))
    next(iter(first.run(*bars())))
    first.save(tmp_path / "s.pt")
    torch.rand(7)  # another process would be elsewhere
    second.resume(tmp_path / "s.pt")
    list(second.run(*bars()))
    expected, got = parameters(whole), parameters(second)
    assert all(torch.equal(expected[k], got[k]) for k in expected)


def test_an_epoch_reports_rates_and_thresholds():
    t = trainer(epochs=2, threshold=0.3)
    seen = {"lif1": [], "lif2": []}
    for name, spikes in seen.items():
        module = t.model.get_submodule(name)
        module.register_forward_hook(lambda _m, _i, out, spikes=spikes: spikes.append(out))
    first = next(iter(t.run(*bars(50))))
    for name, spikes in seen.items():
        assert first.rates[name] == pytest.approx(torch.cat(spikes).mean().item(), rel=1e-6)
        assert 0 < first.rates[name] < 1
        theta = t.model.get_submodule(name).thresh.detach().numpy().astype(np.float64)
        wanted = {f: getattr(theta, f)() for f in ("mean", "std", "min", "max")}
        assert first.thresholds[name] == pytest.approx(wanted)
    assert first.test_accuracy is None
    assert first.test_rates is None


def test_looking_at_held_out_images_changes_nothing():
    plain, looked = trainer(seed=1, threshold=0.3), trainer(seed=1, threshold=0.3)
    list(plain.run(*bars()))
    reports = list(looked.run(*bars(), held_out=bars(33)))
    expected, got = parameters(plain), parameters(looked)
    assert all(torch.equal(expected[k], got[k]) for k in expected)
    accuracy, rates = looked.test(*bars(33))
    assert (reports[-1].test_accuracy, reports[-1].test_rates) == (accuracy, rates)
    looked.settings = replace(looked.settings, batch=33)
    assert 0 <= looked.test(*bars(33))[0] <= 1


def test_a_snapshot_of_another_version_is_refused(tmp_path):
    torch.save({"format": "stl-deploy-training/1"}, tmp_path / "s.pt")
    with pytest.raises(InputError, match="of another version of stl-deploy"):
        trainer().resume(tmp_path / "s.pt")


ENDS = ["--arch", ARCH, "--epochs", 3, "--batch", 20]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """What ends where nothing is killed."""
    folder = tmp_path_factory.mktemp("whole")
    write_images(folder, *bars())
    words = ["--data", folder, *ENDS, "-o", folder / "whole.pt"]
    done = in_a_process("never", words, folder / "log")
    assert done.returncode == 0, done.stderr
    return folder / "whole.pt"


@pytest.mark.parametrize("moment", ["2", "5", "snapshot"])
def test_a_run_killed_at_any_moment_resumes(folder, whole, moment):
    """60 images are three batches: killed in the first epoch, in the second, and as that is saved."""
    cut = ["--data", folder, *ENDS, "-o", folder / "cut.pt"]
    assert in_a_process(moment, cut, folder / "log").returncode == -signal.SIGKILL
    assert not (folder / "cut.pt").exists()
    assert (folder / "cut.resume.pt").exists() == (moment != "2")
    again = in_a_process("never", [*cut, "--resume"], folder / "log")
    assert again.returncode == 0, again.stderr
    assert ("does not exist: training begins at epoch 1" in again.stderr) == (moment == "2")
    epochs = [line.split("/")[0] for line in again.stderr.splitlines() if line.startswith("epoch")]
    assert len(epochs) == (3 if moment == "2" else 2)
    assert bits(whole) == bits(folder / "cut.pt")


def bits(path):
    state = torch.load(path, weights_only=True)["state_dict"]
    return {name: value.numpy().tobytes() for name, value in state.items()}


@pytest.mark.parametrize("threads", ["1", "2"])
def test_the_same_command_gives_the_same_bytes(folder, threads, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", threads)
    args = ["--data", folder, "--arch", ARCH, "--epochs", 2, "--flip"]
    code = "from stl_deploy.commands.train import main; main()"
    for name in ("a.pt", "b.pt"):
        words = map(str, [*args, "-o", folder / name])
        subprocess.run([sys.executable, "-c", code, *words], check=True, capture_output=True)
    assert bits(folder / "a.pt") == bits(folder / "b.pt")


def test_command_measures_on_the_test_split(folder, monkeypatch, capfd):
    images, labels = bars(40)
    write_idx(folder / "t10k-images-idx3-ubyte.gz", images[:, 0].numpy())
    write_idx(folder / "t10k-labels-idx1-ubyte.gz", labels.numpy())
    args = ["--data", folder, "--arch", ARCH, "--epochs", 2]
    assert command(monkeypatch, *args, "--eval", "--eval-limit", 30, "-o", folder / "m.pt") == 0
    said = capfd.readouterr()
    assert "test accuracy" in said.out
    assert "firing lif1" in said.err
    history = torch.load(folder / "m.pt", weights_only=True)["training"]["history"]
    assert all(
        30 * e["test_accuracy"] == pytest.approx(round(30 * e["test_accuracy"])) for e in history
    )
    assert history[0]["test_rates"].keys() == history[0]["thresholds"].keys() == {"lif1", "lif2"}
    assert command(monkeypatch, *args, "--eval-limit", 3, "-o", folder / "n.pt") == 2
    assert "has no effect without --eval" in capfd.readouterr().err
    write_idx(folder / "t10k-labels-idx1-ubyte.gz", labels.numpy() + 5)
    assert command(monkeypatch, *args, "--eval", "-o", folder / "n.pt") == 2
    assert "are not for a network of input (1, 6, 6) and 10 classes" in capfd.readouterr().err


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_not_there_is_refused(folder, monkeypatch, capfd):
    args = ["--data", folder, "--arch", ARCH, "--device", "cuda", "-o", folder / "m.pt"]
    assert command(monkeypatch, *args) == 2
    assert "PyTorch finds no GPU" in capfd.readouterr().err


def test_a_raster_is_not_overwritten_by_what_it_trained(folder, monkeypatch, capfd):
    source = folder / "r.npz"
    rasters.save(source, rasters.Raster(np.ones((4, 2, 6), np.uint8), np.arange(4)), {})
    before = source.read_bytes()
    args = [
        "--raster",
        source,
        "--arch",
        "FC4-LIF-AvgPool1",
        "--epochs",
        1,
        "--batch",
        2,
        "--force",
    ]
    assert command(monkeypatch, *args, "-o", source) == 2
    assert "is another input or output" in capfd.readouterr().err
    assert source.read_bytes() == before
    assert command(monkeypatch, *args, "-o", folder / "m.pt") == 0


def test_arguments_that_end_elsewhere_than_meant(folder, monkeypatch, capfd):
    args = ["--data", folder, "--epochs", 1, "--batch", 20, "-o", folder / "m.pt"]
    assert command(monkeypatch, *args, "--arch", ARCH, "--seed", 2**63) == 2
    assert "--seed" in capfd.readouterr().err
    # Twenty neurons without AvgPool2 are twenty classes.
    assert command(monkeypatch, *args, "--arch", ARCH.rpartition("-")[0]) == 0
    assert "classes, but labels go up to" in capfd.readouterr().err
    assert command(monkeypatch, *args, "--arch", ARCH, "--force") == 0
    assert "distinguishes" not in capfd.readouterr().err


def test_a_damaged_snapshot_can_be_deleted(folder, monkeypatch, capfd):
    (folder / "m.resume.pt").write_text("garbage")
    args = ["--data", folder, "--arch", ARCH, "--epochs", 1, "-o", folder / "m.pt", "--resume"]
    assert command(monkeypatch, *args) == 2
    assert "delete the file, and training begins anew" in capfd.readouterr().err
