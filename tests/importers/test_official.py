"""Official checkpoints: the float graph is the class that they belong to, and what they lack is said."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import stl_deploy
from stl_deploy.commands import export, parity
from stl_deploy.errors import InputError, LoweringError
from stl_deploy.hw_sim import engine, reference
from stl_deploy.importers import read as models
from stl_deploy.importers.given import Given, Model, Normalize
from stl_deploy.ir import execute, floats
from stl_deploy.ir import nir_graph as G
from tests.build import official_nets as nets
from tests.build.onnx_models import compared
from tests.build.traces import assert_same

SIDE, NEAR = 16, 1e-9
HOW = Normalize.of(0.286, 0.353)
NETS: dict[str, Callable[[], nets.Noting]] = {
    "ltmd": nets.Ltmd,
    "tebn": lambda: nets.Tebn(side=SIDE),
    "vgg": lambda: nets.RateVgg(side=SIDE),
    "resnet": nets.RateResNet,
    "sew": nets.RateSew,
    "preact": nets.RatePreact,
}
# What neurons that the class does not have carry.
CARRIED = {
    "ltmd": {"features.conv0.carried"},
    "preact": {f"conv0.pool.{part}.more" for part in ("upper", "lower", "all")},
    "sew": {"readout"},
}


def pixels(samples: int = 4) -> np.ndarray:
    return np.random.default_rng(1).integers(0, 256, (samples, 1, SIDE, SIDE))


def inputs(frames: np.ndarray, how: Normalize | None = HOW) -> torch.Tensor:
    x = torch.from_numpy(frames / 255)
    return x if how is None else (x - how.mean[0]) / how.std[0]


def held(frames: np.ndarray) -> np.ndarray:
    return np.repeat(frames[:, None], nets.T, axis=1).astype(np.uint8)


def net_of(name: str, how: Normalize | None = HOW) -> nets.Noting:
    return nets.drawn(NETS[name], inputs(pixels(16), how).float())


def saved(path: Path, net: nn.Module, prefix: str = "") -> Path:
    state = {f"{prefix}{key}": value for key, value in net.state_dict().items()}
    torch.save({"best_net": state, "epoch": 3, "best_acc": torch.tensor(0.9)}, path)
    return path


def imported(path: Path, **given: Any) -> Model:
    return models.read(path, Given(**{"normalize": HOW, "input_shape": (1, SIDE, SIDE)} | given))


@pytest.mark.parametrize("how", [HOW, None], ids=["normalized", "plain"])
@pytest.mark.parametrize("name", NETS)
def test_the_float_graph_is_the_float64_network(tmp_path: Path, name: str, how: Any) -> None:
    net = net_of(name, how)
    model = imported(saved(tmp_path / "net.pt", net, "module."), normalize=how)
    assert model.graph is not None
    frames = pixels()
    net.double()
    with torch.no_grad():
        scores = net(inputs(frames, how)).numpy()
    assert net.near > NEAR
    ran, network = execute.trace(model.graph, held(frames)), floats.decode(model.graph)
    for population, sent in net.spikes.items():
        got = ran.sent[population].reshape(sent.shape)
        np.testing.assert_allclose(got, sent, 0, 1e-12, err_msg=population)
        assert sent.any(), population
    assert set(ran.sent) - set(net.spikes) == CARRIED.get(name, set())
    assert network.readout is not None
    last = ran.sent[network.output], ran.v
    np.testing.assert_array_equal(network.readout.predict(*last), scores.argmax(1))
    got = network.readout.scores(*last)
    ratio = np.abs(got).max() / np.abs(scores).max()  # of a sum over steps to a mean
    np.testing.assert_allclose(got, scores * ratio, 1e-9, 1e-9)


@pytest.mark.parametrize("name", NETS)
def test_in_whole_numbers_every_backend_computes_the_same(tmp_path: Path, name: str) -> None:
    model = imported(saved(tmp_path / "net.pt", net_of(name)))
    assert model.graph is not None
    network = stl_deploy.quantize(model.graph, "loihi2")
    x = held(pixels(1))
    want = reference.run(network, x, states=True)
    assert_same(engine.run(network, x, states=True), want)
    assert compared(network, x).exact


def test_carriers_have_no_bias_which_would_take_bits_of_their_weights(tmp_path: Path) -> None:
    graph = imported(saved(tmp_path / "net.pt", net_of("ltmd"))).graph
    assert graph is not None
    carrier = floats.decode(graph).by_name["features.conv0.carried"]
    assert not carrier.bias.any()
    assert not carrier.neurons.leak.any()


def test_a_network_that_no_chip_holds_is_refused_with_its_readout(tmp_path: Path) -> None:
    """A matrix reads it, and its last neurons have a problem."""
    net = net_of("preact")
    net.get_buffer("bn.running_mean")[6] = -(2.0**31)
    graph = imported(saved(tmp_path / "net.pt", net)).graph
    assert graph is not None
    with pytest.raises(LoweringError, match=r"bn\.neurons"):
        stl_deploy.quantize(graph, "ideal")


def read_as(model: Model) -> Mapping[str, Any]:
    assert model.graph is not None
    return {one.population: one for one in G.float_meta(model.graph).read_as}


def test_how_it_was_read_is_said(tmp_path: Path) -> None:
    path = saved(tmp_path / "net.pt", net_of("preact"))
    found = read_as(imported(path))
    neurons, carrier = found["bn.neurons"], found["conv0.pool.all.more"]
    assert (neurons.reset, neurons.when, neurons.spikes, neurons.timesteps) == (
        "subtract",
        "same step",
        1,
        4,
    )
    assert neurons.tau == 0.2
    assert neurons.assumed == ("tau", "timesteps")
    assert (carrier.neuron, carrier.spikes) == ("none: it carries currents", None)
    said = read_as(imported(path, timesteps=6))["bn.neurons"]
    assert (said.timesteps, said.origin["timesteps"]) == (6, "option")


def test_what_is_assumed_is_said_and_options_say_otherwise(tmp_path: Path) -> None:
    path = saved(tmp_path / "net.pt", net_of("resnet"))
    text = " ".join(map(str, models.read(path, Given()).notes))
    for part in ("thresholds of 1", "(1, 28, 28)", "pixels 0..255", "not normalized"):
        assert part in text
    model = imported(path, tau=0.5, threshold=2.0, levels=15, timesteps=3)
    assert "is assumed" not in " ".join(map(str, model.notes))
    assert model.graph is not None
    neurons = floats.decode(model.graph).by_name["conv0.neurons"].neurons
    np.testing.assert_allclose(neurons.keep, 0.5)
    np.testing.assert_array_equal(neurons.theta, 2.0)
    assert G.float_meta(model.graph).input_levels == 15


def test_steps_of_tebn_are_in_the_file(tmp_path: Path) -> None:
    path = saved(tmp_path / "net.pt", net_of("tebn"))
    assert read_as(imported(path))["features.0.act"].origin["timesteps"] == "file"
    with pytest.raises(InputError, match=r"--timesteps: 6, but .* says 4"):
        imported(path, timesteps=6)


def test_groups_of_outputs_that_nobody_asked_for_are_said(tmp_path: Path) -> None:
    path = saved(tmp_path / "net.pt", net_of("tebn"))
    words = "10 classes, each the mean of a group of outputs"
    assert words in imported(path).notes[-1].what
    assert all(words not in note.what for note in imported(path, classes=20).notes)


def changed(tmp_path: Path, name: str, change: Callable[[dict[str, Any]], object]) -> Path:
    state = dict(net_of(name).state_dict())
    change(state)
    torch.save(state, tmp_path / "net.pt")
    return tmp_path / "net.pt"


def renamed(old: str, new: str) -> Callable[[dict[str, Any]], object]:
    def change(state: dict[str, Any]) -> None:
        for key in [key for key in state if key.startswith(old)]:
            state[key.replace(old, new, 1)] = state.pop(key)

    return change


@pytest.mark.parametrize(
    ("name", "change", "what"),
    [
        ("ltmd", lambda s: s.update({"more.weight": torch.ones(3, 3)}), "more.weight: of shape .* no layer"),
        ("ltmd", lambda s: s.pop("features.norm5.bn.bias"), "features.norm5.bn.bias: is missing"),
        ("ltmd", lambda s: s.update({"spike.w": torch.ones(3)}), "spike.w: has shape .* one number"),
        (
            "ltmd",
            lambda s: s.update({"features.denseblock1.denselayer1.spikeA.w": torch.tensor(9.0)}),
            "spikeA.w: differs from .*spike1.w",
        ),
        ("tebn", renamed("features.3", "layer1.0.conv1"), "layer1.0.conv1: is a layer of a residual block"),
        ("tebn", renamed("features.4", "features.6"), "features.6.fwd.* is 3 numbers behind features.3"),
        (
            "tebn",
            lambda s: s.update({"features.1.bn.p": torch.ones(1, 1, 4, 1, 1)}),
            r"features.1.bn.p: has shape \(1, 1, 4, 1, 1\); one number for each step",
        ),
        ("vgg", renamed("feature.7", "feature.9"), "feature.9.weight: is 3 numbers behind"),
        (
            "resnet",
            lambda s: s.update({"conv0.0.weight": torch.ones(6, 1, 7, 7)}),
            "7 x 7, as for ImageNet; the strides",
        ),
        ("resnet", lambda s: s.update({"layer1.0.conv2.weight": torch.ones(6, 5, 3, 3)}), "reads an input"),
    ],
)  # fmt: skip
def test_files_of_other_classes_are_refused_by_name(
    tmp_path: Path, name: str, change: Callable[[dict[str, Any]], object], what: str
) -> None:
    with pytest.raises((InputError, LoweringError), match=what):
        imported(changed(tmp_path, name, change))


@pytest.mark.parametrize(
    ("name", "given", "what"),
    [
        ("ltmd", {"threshold": 1.0}, "--threshold: goes with a state_dict of TEBN"),
        (
            "resnet",
            {"tau": 1.25},
            "--tau: 1.25 is not in 0 <= tau < 1: .* give 1 - 1/tau, here 0.2",
        ),
        ("resnet", {"threshold": -1.0}, "--threshold: -1 is not above 0"),
        ("resnet", {"input_shape": (3, 28, 28)}, "reads 1 channels .* --input-shape 1,H,W"),
        ("resnet", {"normalize": Normalize.of((0.1, 0.2), (1, 1))}, "2 means for the 1 channels"),
        ("vgg", {"input_shape": (1, 28, 28)}, "classifier.0.weight: has shape .* --input-shape"),
        ("vgg", {"input_shape": (1, 15, 15)}, r"plane \(15, 15\).* tile"),
        ("tebn", {"classes": 7}, "100 outputs, which do not divide into 7 classes"),
    ],
)
def test_options_that_do_not_fit_are_named(
    tmp_path: Path, name: str, given: dict[str, Any], what: str
) -> None:
    with pytest.raises(InputError, match=what):
        imported(saved(tmp_path / "net.pt", net_of(name)), **given)


@pytest.mark.parametrize(
    ("names", "what"),
    [
        (("net.0.weight", "net.0.norm_weight", "net.0.norm_bias"), "thresholds, time constants"),
        (
            ("con1.op.weight", "con2.op.weight"),
            "stork; time constants, kernels and strides are not in",
        ),
    ],
)
def test_files_that_lack_too_much_say_what(
    tmp_path: Path, names: tuple[str, ...], what: str
) -> None:
    torch.save({"net": {name: torch.ones(3, 3) for name in names}, "epoch": 1}, tmp_path / "net.pt")
    with pytest.raises(InputError, match=rf"{what}.*export the live network"):
        models.read(tmp_path / "net.pt", Given())


def test_by_the_commands(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    saved(tmp_path / "net.pt", net_of("resnet"), "module.")
    np.savez(tmp_path / "graded.npz", spikes=held(pixels(2)), labels=np.arange(2))

    def run(command: Any, *words: str) -> dict[str, Any]:
        monkeypatch.setattr("sys.argv", [command.__name__, *words, "--json"])
        with pytest.raises(SystemExit) as caught:
            command.main()
        out = capsys.readouterr()
        assert caught.value.code == 0, out.err
        return dict(json.loads(out.out))

    norm = ("--normalize", "0.2860,0.3530")
    targets = ("--target", "nir", "--target", "onnx", "--target", "loihi")
    more = ("--threshold", "1.5", "--eval", "graded.npz", "-o", "out")
    run(export, "net.pt", *targets, *norm, *more)
    against = ("net.pt", "out/model.nir", "--input", "graded.npz", "--backend", "hw_sim,onnx")
    found = run(parity, *against, *norm, "--threshold", "1.5")
    assert found["passed"]
    assert found["backends"]["onnx"]["spike_mismatches"] == 0
