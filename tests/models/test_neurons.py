"""Neurons with further rules in PyTorch: they do what the float executor does, and learn as they should."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import snntorch
import torch
from snntorch import surrogate

import stl_deploy
from stl_deploy.errors import InputError
from stl_deploy.formats.checkpoint import save_checkpoint
from stl_deploy.formats.raster import Raster
from stl_deploy.formats.raster import save as save_raster
from stl_deploy.importers import stl
from stl_deploy.ir import execute
from stl_deploy.ir.arch import Architecture, Lif
from stl_deploy.models.layers import ALPHA, LIF
from stl_deploy.models.neurons import Neurons, Spike, dale, make
from stl_deploy.models.train import Settings, Trainer
from tests.build import neurons as build

CHAIN = "FC20-LIF-FC16-LIF-FC10-LIF-AvgPool1"


def drawn(seed: int) -> Architecture:
    rng = np.random.default_rng(seed)
    return build.described(CHAIN, [build.rules(rng) | build.recurrent(rng) for _ in range(3)])


def cases(seed: int) -> tuple[object, np.ndarray, execute.Ran]:
    arch = drawn(seed)
    net = build.net(arch, seed, 1.5).double()
    x = build.spikes(seed)
    return net, x, execute.trace(stl_deploy.from_torch(net), x)


@pytest.mark.parametrize("seed", range(16))
def test_spikes_and_voltages_are_those_of_the_float_network(seed):
    net, x, want = cases(seed)
    with torch.no_grad():
        got = net.run(torch.from_numpy(x))
        last = net.lif3
        assert isinstance(last, Neurons)
        sent, v = last.trace(net.fc3(got["lif2"]))
    for name, spikes in want.sent.items():
        np.testing.assert_array_equal(got[name].numpy(), spikes)
    np.testing.assert_array_equal(sent.numpy(), want.sent["lif3"])
    np.testing.assert_allclose(v.numpy(), want.v, rtol=0, atol=1e-12)


def test_the_drawn_networks_use_every_rule_and_fire():
    """Else the test above could not fail."""
    fields: set[str] = set()
    rates = []
    for seed in range(16):
        for layer in drawn(seed).layers:
            if layer.kind == "lif":
                data = layer.model_dump(exclude_none=True)
                fields |= set(data) | {data.get("reset", "zero")}
        rates += [s.mean() for s in cases(seed)[2].sent.values()]
    rules = {
        "subtract",
        "constant",
        "none",
        "current",
        "current2",
        "reset_current",
        "hold",
        "floor",
    }
    assert rules | {"v0", "adapt", "gain", "recurrent"} <= fields
    assert sum(0.01 < rate < 0.7 for rate in rates) > 30


@pytest.mark.parametrize("fields", [{}, {"current": 0.3}, {"current2": 0.4, "gain": True}])
def test_an_integrator_gives_its_voltage(fields):
    silent = {"fires": False, "tau": 0.9, **fields}
    arch = build.described("FC10-LIF-AvgPool1", [silent], readout="last")
    net = build.net(arch, 0).double()
    x = build.spikes(0)
    assert set(net.lif1.state_dict()) == ({"gain"} if "gain" in fields else set())
    data = arch.to_dict()
    threshold = data["layers"][1] | {"fires": True, "reset": "none"}
    fired = build.described("FC10-LIF-AvgPool1", [threshold])
    params = stl.params_of(net) | {"lif1.thresh": np.full(10, 1e9)}
    want = execute.trace(stl.lower(stl.to_graph(fired, params)), x).v
    with torch.no_grad():
        got = net.run(torch.from_numpy(x))["lif1"].numpy()
    np.testing.assert_allclose(got, want, rtol=0, atol=1e-12)
    assert np.abs(want).max() > 0.1


def test_plain_neurons_are_the_compiled_ones():
    assert type(make(Lif(name="a", tau=0.3), (3,), 4, 1.0)) is LIF
    assert type(make(Lif(name="a", tau=1), (3,), 4, 1.0)) is LIF
    assert type(make(Lif(name="a", reset="subtract"), (3,), 4, 1.0)) is Neurons


def test_without_further_rules_both_modules_are_one():
    """The compiled LIF, and the steps under autograd: the same spikes and gradients."""
    rng = torch.Generator().manual_seed(0)
    theta = torch.rand(5, generator=rng).double() + 0.2
    found = []
    for module in (LIF((5,), 0.7), Neurons(Lif(name="a", tau=0.7), (5,), 8)):
        module.double().thresh.data.copy_(theta)
        x = torch.rand(4, 8, 5, generator=torch.Generator().manual_seed(1)).double()
        x.requires_grad_()
        s = module(x)
        (s * torch.arange(8).reshape(-1, 1)).sum().backward()
        found.append((s.detach(), x.grad, module.thresh.grad))
    assert 0.1 < found[0][0].mean() < 0.9
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)


def smooth(v: torch.Tensor, limit: torch.Tensor) -> torch.Tensor:
    """What has the surrogate as its derivative."""
    return torch.atan(math.pi / 2 * ALPHA * (v - limit)) / math.pi + 0.5


def test_the_gradient_of_a_spike_is_the_arctangent():
    v, limit = (torch.randn(50, dtype=torch.float64, requires_grad=True) for _ in range(2))
    one = torch.autograd.grad(Spike.apply(v, limit, 1.0).sum(), (v, limit))
    other = torch.autograd.grad(smooth(v, limit).sum(), (v, limit))
    torch.testing.assert_close(one, other)


@pytest.mark.parametrize("seed", range(6))
def test_gradients_go_through_all_states(monkeypatch, seed):
    """With a spike that is smooth in the forward pass too, finite differences are the judge."""
    monkeypatch.setattr(Neurons, "spike", lambda _self, v, limit: smooth(v, limit))
    rng = np.random.default_rng(seed)
    fields = build.rules(rng) | {"hold": 0, "gain": True, "current2": 0.5}
    if seed % 2:
        fields |= {"recurrent": {"delay": 2, "inhibitory": 1}}
    module = make(Lif.model_validate({"name": "a", **fields}), (3,), 5, 0.5).double()
    names = [name for name, _ in module.named_parameters()]
    values = [torch.from_numpy(rng.uniform(0.3, 1, p.shape)) for p in module.parameters()]
    x = [torch.from_numpy(rng.normal(0.3, 0.5, (2, 5, 3))) for _ in range(2)]
    given = [t.requires_grad_() for t in (*values, *x)]

    def sent(*tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
        state = dict(zip(names, tensors, strict=False))
        run = torch.func.functional_call(module, state, tensors[len(names) :])
        return (run,)

    assert torch.autograd.gradcheck(sent, given, eps=1e-6, atol=1e-6)


@pytest.mark.parametrize("reset", ["subtract", "zero", "none"])
@pytest.mark.parametrize("current", [None, 0.6])
def test_gradients_are_those_of_snntorch(reset, current):
    """Its neurons that reset in the same step, over inputs that never leave v above the threshold."""
    options = {
        "threshold": 1.0,
        "spike_grad": surrogate.atan(ALPHA),
        "reset_mechanism": reset,
        "reset_delay": False,
    }
    theirs = (
        snntorch.Leaky(beta=0.8, **options)
        if current is None
        else snntorch.Synaptic(alpha=current, beta=0.8, **options)
    )
    mine = Neurons(Lif(name="a", tau=0.8, reset=reset, current=current), (6,), 9, 1.0)
    rng = torch.Generator().manual_seed(2)
    x = (torch.rand(7, 9, 6, generator=rng) - 0.2) * (0.9 if current is None else 0.4)
    weight = torch.rand(9, 6, generator=rng)
    mine_x, their_x = (x.clone().requires_grad_() for _ in range(2))
    state = [torch.zeros(7, 6) for _ in range(1 if current is None else 2)]
    spikes = []
    for t in range(9):
        spike, *state = theirs(their_x[:, t], *state)
        spikes.append(spike)
    got, want = mine(mine_x), torch.stack(spikes, 1)
    assert torch.equal(got, want)
    assert want.mean() > 0.05
    (got * weight).sum().backward()
    (want * weight).sum().backward()
    torch.testing.assert_close(mine_x.grad, their_x.grad, rtol=1e-4, atol=1e-5)


def test_dales_law():
    weight = torch.tensor([[1.0, -2.0, 3.0], [-4.0, 5.0, -6.0]])
    assert dale(weight, 1).tolist() == [[1, 2, -3], [4, 5, -6]]
    arch = build.described(
        "FC4-LIF-AvgPool1", [{"current2": 0.5, "recurrent": {"inhibitory": 1, "delay": 3}}]
    )
    graph = stl.to_graph(arch, stl.params_of(build.net(arch, 0)))
    excites, inhibits = (graph.nodes[f"lif1.{n}"].weight for n in ("recurrent", "inhibition"))
    assert (excites[:, :3] > 0).all()
    assert not excites[:, 3:].any()
    assert not inhibits[:, :3].any()
    assert (inhibits[:, 3:] < 0).all()
    assert graph.nodes["lif1.late"].delay.tolist() == pytest.approx([3e-4] * 4)


@pytest.mark.parametrize(
    ("fields", "what"),
    [
        ({"v_reset": 0.1}, "v_reset = 0.1 with reset 'zero'"),
        ({"reset_current": True}, "reset_current without current or current2"),
        ({"adapt": 0.1}, "adapt without adapt_keep"),
        ({"adapt_keep": 0.1}, "adapt_keep without adapt"),
        ({"floor": 0.1}, "v0 = 0 lies below floor = 0.1"),
        (
            {"floor": -0.1, "reset": "constant", "v_reset": -1},
            "v_reset = -1 lies below floor = -0.1",
        ),
        ({"fires": False, "reset": "subtract"}, "reset 'subtract' without a threshold"),
        ({"fires": False, "hold": 1}, "hold without a threshold"),
        ({"fires": False, "adapt": 1, "adapt_keep": 1}, "adapt without a threshold"),
        ({"fires": False, "recurrent": {}}, "recurrent without a threshold"),
        ({"current": 1}, "less than 1"),
        ({"hold": 64}, "less than or equal to 63"),
        ({"tau": 1.1}, "less than or equal to 1"),
        ({"v0": math.inf}, "finite"),
        ({"recurrent": {"delay": 0}}, "greater than or equal to 1"),
        ({"recurrent": {"inhibitory": 11}}, "11 of 10 neurons inhibit"),
    ],
)
def test_rules_that_contradict_each_other_are_refused(fields, what):
    with pytest.raises(InputError, match=what):
        build.described("FC10-LIF-AvgPool1", [fields])


def test_all_contradictions_are_named_at_once():
    with pytest.raises(InputError) as caught:
        build.described(
            "FC10-LIF-FC10-LIF", [{"adapt": 1, "v_reset": 3}, {"fires": False, "hold": 2}]
        )
    text = str(caught.value)
    assert all(word in text for word in ("adapt without", "v_reset = 3", "hold without"))


@pytest.mark.parametrize(
    ("text", "fields", "what"),
    [
        ("FC10-LIF-FC10-LIF", [{"fires": False}, {}], "sends nothing to fc2"),
        ("FC9000-LIF", [{"recurrent": {}}], "9000 recurrent neurons have more than"),
    ],
)
def test_rules_that_do_not_fit_their_place_are_refused(text, fields, what):
    with pytest.raises(InputError, match=what):
        build.described(text, fields)


def test_recurrent_neurons_stand_in_a_row():
    data = Architecture.parse("4C3-LIF-FC10-LIF", (1, 6, 6)).to_dict()
    data["layers"][1]["recurrent"] = {}
    with pytest.raises(InputError, match="lif1: recurrent neurons stand behind a linear layer"):
        Architecture.from_dict(data)


def test_members_share_no_gain():
    with pytest.raises(InputError, match="lif1: members have no recurrent of their own"):
        build.described(
            "FC10-LIF-FC10-LIF-AvgPool2", [{"recurrent": {}}, {}], members=2, population=2
        )


def test_what_is_left_at_its_default_is_not_written():
    plain = {"name": "lif1", "kind": "lif", "tau": 0.5}
    assert build.described("FC10-LIF", [{}]).to_dict()["layers"][1] == plain
    assert list(build.described("FC10-LIF", [{}]).to_dict()["layers"][1]) == list(plain)
    more = {"hold": -1, "current": 0.0, "recurrent": {"delay": 2, "inhibitory": 0}}
    arch = build.described("FC10-LIF", [more])
    assert arch.to_dict()["layers"][1] == plain | more
    assert Architecture.from_dict(arch.to_dict()) == arch


LEARNED = [
    {"current": 0.4, "current2": 0.3, "recurrent": {"delay": 2, "inhibitory": 5}, "gain": True},
    {"reset": "subtract", "adapt": 0.2, "adapt_keep": 0.9, "floor": -0.5, "hold": 1},
]


def test_from_training_to_parity(command, tmp_path, monkeypatch):
    """All that neurons learn learns, and the file's float network spikes as the checkpoint does."""
    monkeypatch.chdir(tmp_path)
    arch = build.described("FC20-LIF-FC10-LIF-AvgPool1", LEARNED)
    trainer = Trainer(arch, Settings(epochs=2, batch=20, encoding="recorded", lr=1e-2))
    before = {k: v.clone() for k, v in trainer.model.state_dict().items()}
    x = build.spikes(3, 60)
    labels = torch.arange(60) % 10
    reports = list(trainer.run(torch.from_numpy(x), labels))
    assert reports[-1].loss < reports[0].loss
    assert set(reports[-1].rates) == {"lif1", "lif2"}
    after = trainer.trained().state_dict()
    assert not [k for k, v in before.items() if torch.equal(v, after[k])]
    assert {"lif1.gain", "lif1.recurrent", "lif1.thresh"} < set(after)
    save_checkpoint(trainer.trained(), tmp_path / "m.pt")
    save_raster(tmp_path / "r.npz", Raster(x[:30]), {})
    code, out, err = command(
        "stl-export", "m.pt", "--target", "onnx", "--chip", "ideal", "-o", "o", "--json"
    )
    assert (code, err) == (0, "")
    code, out, _ = command("stl-parity", "m.pt", "o/model.nir", "--input", "r.npz", "--json")
    told = json.loads(out)
    assert code == 0, out
    assert [layer["nir_mismatch"] for layer in told["layers"]] == [0, 0]
    assert all(layer["mismatch"] < 0.02 for layer in told["layers"])
    assert (tmp_path / "o" / "onnx").is_dir()
