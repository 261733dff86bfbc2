"""docs/recipes on the official code of published systems: every block runs, on files as scripts save them."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from stl_deploy.formats import nir_io
from stl_deploy.ir import execute, floats
from tests.build import official_nets, seeds
from tests.build.files import write_idx
from tests.build.nets import ROOT, random_net
from tests.build.seeds import Ran, Watch
from tests.seeds import test_ncg, test_sleep, test_stork, test_time_based

FOLDER = ROOT / "docs" / "recipes"


def bare(text: str) -> str:
    """``text`` without the spaces at the ends of lines."""
    return "\n".join(line.rstrip() for line in text.splitlines())


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: Any, capfd: Any) -> Any:
    """Run the blocks of a page in their order, with ``given`` names; returns the names that it leaves.

    Text blocks are what the block before has printed.
    """
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "120")

    def blocks(page: str, **given: Any) -> dict[str, Any]:
        said, text = "", (FOLDER / f"{page}.md").read_text("utf-8")
        for language, block in re.findall(r"^```(\w+)\n(.*?)^```", text, re.M | re.S):
            if language == "python":
                exec(compile(block, page, "exec"), given)
                said = capfd.readouterr().out
            elif language == "sh":
                ran = [command(*line.split()) for line in block.splitlines()]
                assert all(code == 0 for code, _, _ in ran), ran
                said = "".join(out + err for _, out, err in ran)
            elif language == "text":
                assert bare(block) in bare(said), said
        return given

    return blocks


def mnist(side: int = 28) -> np.ndarray:
    """Images [12, side, side] in files as torchvision keeps MNIST's."""
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (12, side, side)) * (rng.random((12, side, side)) < 0.4)
    raw = Path("MNIST", "raw")
    raw.mkdir(parents=True)
    write_idx(raw / "t10k-images-idx3-ubyte", images, compress=False)
    write_idx(raw / "t10k-labels-idx1-ubyte", np.arange(12) % 10, compress=False)
    return images


def test_a_checkpoint_of_stl_snn(run: Any) -> None:
    mnist()
    arch = "4C5-BN-LIF-P14-4C5-BN-LIF-P7-FC30-LIF-FC20-LIF-AvgPool2"
    torch.save(random_net(arch, shape=(1, 28, 28)).state_dict(), "model.pth")
    run("stl-snn")


CHECKPOINTS: dict[str, tuple[Callable[[], official_nets.Noting], str]] = {
    "ltmd": (lambda: official_nets.Ltmd(first=4, growth=2, blocks=(1, 1)), "state_dict"),
    "tebn": (lambda: official_nets.Tebn(side=16), "model"),
    "rate-based": (official_nets.RateResNet, "best_net"),
}


@pytest.mark.parametrize("page", CHECKPOINTS)
def test_a_checkpoint_read_by_its_names(run: Any, page: str) -> None:
    make, key = CHECKPOINTS[page]
    x = torch.from_numpy((mnist(16)[:, None] / 255 - 0.1307) / 0.3081)
    net = official_nets.drawn(make, x.float())
    torch.save({key: net.state_dict(), "epoch": 3}, "best.pth")
    run(page, net=net)
    expected = json.loads(Path("out", "manifest.json").read_text("utf-8"))["expected"]
    assert expected["passed"]
    assert expected["samples"] == 4


def test_the_network_of_time_based_losses(run: Any) -> None:
    """Its neurons are those of the equations, and its steps count as their readout weighs them."""
    rng = np.random.default_rng(0)
    system = test_time_based.System()
    for layer, size in (("net.0", (4, 1, 3, 3)), ("net.4", (10, 4 * 14 * 14))):
        fan = float(np.prod(size[1:]))
        system.weight[layer] = rng.normal(0, 1, size).astype(np.float32)
        system.norm_weight[layer] = (rng.uniform(2, 4, size[0]) / fan**0.5).astype(np.float32)
        system.norm_bias[layer] = (rng.uniform(0, 1, size[0]) / fan).astype(np.float32)
        system.theta[layer] = rng.uniform(0.2, 0.5, size[0])
    fields = ("weight", "norm_weight", "norm_bias")
    state = {
        f"{layer}.{name}": torch.from_numpy(getattr(system, name)[layer])
        for layer in system.weight
        for name in fields
    }
    torch.save({"net": state, "epoch": 1}, "best.pth")
    np.savez("thresholds.npz", **system.theta)
    np.savez("images.npz", images=rng.integers(0, 256, (6, 28, 28)), labels=np.arange(6))

    page = run("time-based")
    x = page["raster"]
    assert x.shape == (6, 5, 1, 28, 28)
    for name in fields:
        kept = getattr(system, name)
        kept.update({layer: array.astype(np.float64) for layer, array in kept.items()})
    ran = Ran(watch=Watch())
    assert ran.watch is not None
    held = {"lif1": (0.0, 0.0), "lif2": (0.0, 0.0)}

    def fired(name: str, arriving: Any, theta: np.ndarray) -> Any:
        c, u = held[name]
        c = (1 - 1 / 3) * c + arriving
        u = (1 - 1 / 5) * u + c / 3
        assert ran.watch is not None
        sent = ran.watch.above(u, theta)
        held[name] = c * (1 - sent), u * (1 - sent)
        return ran.note(name, sent)

    score = np.zeros((6, 10))
    for t in range(5):
        arriving = seeds.conv2d(x[:, t] / 60, system.whole("net.0"), padding=1)
        y = fired("lif1", arriving, seeds.per_channel(system.theta["net.0"]))
        y = seeds.avg_pool(y, 2).reshape(6, -1) @ system.whole("net.4").T
        score += (11 * 5 - t) * fired("lif2", y, system.theta["net.4"])
    ran.classes = score.argmax(axis=1)
    seeds.agree(floats.decode(page["float_graph"]), x, ran)
    assert ran.works, {name: sent.mean() for name, sent in ran.spikes.items()}


def test_weights_of_competition_groups(run: Any) -> None:
    def draw(rng: np.random.Generator) -> tuple[test_ncg.System, np.ndarray, Ran]:
        system, x, _ = test_ncg.drawn(rng, 5, 1.5)
        system = replace(system, theta=6.0, last=np.full_like(system.last, 3.5))
        return system, x, test_ncg.theirs(system, x)

    system, x, ran = seeds.working(0, draw)
    np.save("weights.npy", system.weight)
    np.save("features.npy", system.kernel)
    np.save("times.npy", np.where(x.any(axis=1), x.argmax(axis=1), x.shape[1]))
    np.save("labels.npy", ran.classes)
    run("ncg")
    np.testing.assert_array_equal(np.load("test.npz")["spikes"], x)
    _as_written(ran, {}, x)


def test_weights_of_sleep_based_stdp(run: Any) -> None:
    rng = np.random.default_rng(0)
    system, _, _ = seeds.working(0, test_sleep.drawn)
    same = np.ones_like(system.tm)
    system = replace(
        system, tm=20 * same, ts=5 * same, theta=-52 * same, r=same, into=5 * system.into
    )
    np.save("weights.npy", system.into)
    np.save("recurrent.npy", system.between)
    np.save("readout.npy", system.matrix)
    np.save("images.npy", rng.integers(0, 256, (4, test_sleep.PIXELS)))
    np.save("labels.npy", np.arange(4))
    x = run("sleep-stdp")["spikes"].astype(np.uint8)
    ran = test_sleep.theirs(system, x)
    assert ran.works, {name: sent.mean() for name, sent in ran.spikes.items()}
    _as_written(ran, {"both": "neurons"}, x)


def _as_written(ran: Ran, names: dict[str, str], x: np.ndarray) -> None:
    """The float graph of the export spikes and decides as the equations did."""
    network = floats.decode(nir_io.read(Path("out", "model.float.nir")))
    got = execute.trace(network, x)
    for name, sent in ran.spikes.items():
        np.testing.assert_array_equal(got.sent[names.get(name, name)], sent, err_msg=name)
    assert network.readout is not None
    classes = network.readout.predict(got.sent[network.output], got.v)
    np.testing.assert_array_equal(classes, ran.classes)
    assert ran.watch is None or ran.watch.least > seeds.NEAR


# stork: a recurrent convolution, and behind it 24 excitatory and 6 inhibitory neurons.


def test_the_network_of_stork(run: Any) -> None:
    con, x, ran = seeds.working(2, _stork)
    torch.save({f"{n}.op.weight": torch.from_numpy(w) for n, w in con.items()}, "best.pth")
    np.savez("sounds.npz", spikes=x)
    page = run("stork")
    network, late = floats.decode(page["float_graph"]), test_stork.LATE
    got = execute.trace(network, page["raster"])
    steps = page["raster"].shape[1]
    for deep, name in enumerate(("layer1", "both"), 1):
        expected = ran.spikes[name][:, late * deep :][:, :steps]
        np.testing.assert_array_equal(got.sent[name], expected.reshape(got.sent[name].shape))
    assert network.readout is not None
    last = got.sent[network.output], got.v
    np.testing.assert_allclose(network.readout.scores(*last), ran.scores, 1e-9, 1e-12)
    np.testing.assert_array_equal(network.readout.predict(*last), ran.classes)
    assert len(set(ran.classes)) > 1
    assert ran.watch is not None
    assert ran.watch.least > seeds.NEAR


def _stork(rng: np.random.Generator) -> tuple[dict[str, np.ndarray], np.ndarray, Ran]:
    """The weights in the order of connections, sounds, and what stork's equations give in as many steps."""
    e, i = 24, 6
    con = {
        "con1": seeds.weights(rng, (5, 1, 7), 3.0, 25, mean=0.8),
        "con2": seeds.weights(rng, (5, 5, 3), 1.5, 25),
    }
    sizes = [
        ((e, 80), 0.5),
        ((i, 80), 0.5),
        ((e, e), 0.4),
        ((i, e), 0.4),
        ((e, i), 1.5),
        ((i, i), 1.5),
    ]
    for number, (size, spread) in enumerate(sizes, 3):
        con[f"con{number}"] = np.abs(seeds.weights(rng, size, spread, 25))
    con["con9"] = test_stork.balanced(rng, e)
    into, from_e, from_i = (np.concatenate([con[f"con{n}"], con[f"con{n + 1}"]]) for n in (3, 5, 7))
    weight = {
        ("input", "layer1", 0): con["con1"][:, :, None],
        ("layer1", "layer1", 0): con["con2"][:, :, None],
        ("layer1", "both", 0): into,
        ("both", "both", 0): np.pad(from_e, ((0, 0), (0, i))),
        ("both", "both", 1): np.pad(-from_i, ((0, 0), (e, 0))),
        ("both", "out", 0): np.pad(con["con9"], ((0, 0), (0, i))),
    }
    currents = test_stork.DS, float(np.exp(-test_stork.STEP / 20e-3))
    groups = {"layer1": ((5, 1, 16), currents[:1]), "both": ((e + i,), currents)}
    x = test_stork.sounds(rng)
    system = test_stork.System(groups, weight, {"layer1": 1})
    return con, x, test_stork.theirs(system, x[:, :, None, None], test_stork.T)
