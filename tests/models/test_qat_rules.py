"""Training on integers with all rules of neurons: the PyTorch model is the integer network, bit for bit."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

import stl_deploy
from stl_deploy.errors import InputError, LoweringError
from stl_deploy.formats.checkpoint import save_checkpoint
from stl_deploy.formats.raster import Raster
from stl_deploy.formats.raster import save as save_raster
from stl_deploy.hw_sim import reference
from stl_deploy.importers import stl
from stl_deploy.ir import execute
from stl_deploy.ir.arch import Architecture, Lif
from stl_deploy.lower.quantize import quantize
from stl_deploy.models import layers, qat
from stl_deploy.models.integer_neurons import IntegerNeurons
from stl_deploy.models.net import STLNet, converted
from stl_deploy.models.neurons import Neurons
from tests.build import neurons as build
from tests.build.files import bars, write_images

SEEDS = 20


def described(seed: int) -> tuple[STLNet, np.ndarray, int, str]:
    """A network of 8 outputs with a bias or BatchNorm, its raster, bits of weights and the chip."""
    rng = np.random.default_rng(seed)
    text = str(rng.choice(["FC20-BN-LIF-FC8-LIF", "FC20-LIF-FC8-BN-LIF"]))
    given = [build.rules(rng) | build.recurrent(rng) for _ in range(2)]
    levels = int(rng.choice([1, 1, 15]))
    arch = build.described(
        f"{text}-AvgPool1", given, input={"shape": (build.INPUTS,), "levels": levels}
    )
    net = build.net(arch, seed, 1.5)
    with torch.no_grad():
        for name, value in net.named_buffers():
            if name.endswith("running_mean"):
                value.uniform_(-0.2, 0.2)
            elif name.endswith("running_var"):
                value.uniform_(0.3, 1.2)
    raster = build.spikes(seed, 8) * rng.integers(1, levels + 1)
    bits, chip = int(rng.integers(3, 9)), str(rng.choice(["loihi2", "ideal"]))
    return net, raster.astype(np.uint8), bits, chip


def checkpoint_of(net: STLNet) -> stl.Checkpoint:
    return stl.Checkpoint(net.arch, stl.params_of(net))


def begun(seed: int) -> tuple[qat.QatNet, np.ndarray, str]:
    net, raster, bits, chip = described(seed)
    return qat.from_checkpoint(checkpoint_of(net), bits, chip), raster, chip


@pytest.mark.parametrize("seed", range(SEEDS))
def test_the_model_is_the_integer_network(seed, tmp_path):
    """As it learns, as it is kept and read, as its float graph says, and as the reference has it."""
    learning, raster, chip = begun(seed)
    kept = learning.frozen()
    save_checkpoint(kept, tmp_path / "q.pt")
    read = stl_deploy.load(tmp_path / "q.pt")
    graph = stl_deploy.from_torch(read)
    network = quantize(graph, chip)
    trace = reference.run(network, raster, states=True)
    x = torch.from_numpy(raster)
    with torch.no_grad():
        runs = [m.run(x) for m in (learning.eval(), kept, read, converted(read, torch.float64))]
    floats = execute.trace(graph, raster)
    runs.append({k: torch.from_numpy(v) for k, v in floats.sent.items()})
    for name in ("lif1", "lif2"):
        for run in runs:
            np.testing.assert_array_equal(run[name].numpy(), trace.layers[name].spikes)
    assert sum(int(did.overflow.sum()) for did in trace.layers.values()) == 0
    last = trace.layers["lif2"]
    scale = network.by_name["lif2"].neurons.scale / 64
    np.testing.assert_allclose(floats.v / scale, last.v, rtol=0, atol=1e-6)
    if isinstance(kept.lif2, IntegerNeurons):
        linear = [m for n, m in kept.named_children() if n not in ("lif1", "lif2", "readout")][-1]
        with torch.no_grad():
            _, v = kept.lif2.trace(linear(runs[1]["lif1"]))
        np.testing.assert_array_equal(v.numpy(), last.v)


@pytest.mark.parametrize("seed", range(0, SEEDS, 3))
def test_nothing_is_rounded_on_the_way_to_the_chip(seed):
    learning, _, chip = begun(seed)
    kept = learning.frozen()
    network = quantize(stl_deploy.from_torch(kept), chip)
    state = {k: v.numpy() for k, v in kept.state_dict().items()}
    weights = {c.name: c.synapses.weight for c in network.connections}
    for spec in kept.arch.layers:
        if spec.weighted:
            np.testing.assert_array_equal(weights[spec.name], state[f"{spec.name}.weight"])
        if spec.kind != "lif":
            continue
        record = network.by_name[spec.name].neurons
        np.testing.assert_array_equal(record.vth, state[f"{spec.name}.thresh"])
        if spec.gain:
            np.testing.assert_array_equal(record.gain.reshape(-1), state[f"{spec.name}.gain"])
        if spec.recurrent is not None:
            own = sum(weights.get(f"{spec.name}.{n}", 0) for n in ("recurrent", "inhibition"))
            expected = state[f"{spec.name}.recurrent"]
            if spec.recurrent.inhibitory:
                own, expected = np.abs(own), np.abs(expected)
            np.testing.assert_array_equal(own, expected)
    assert not [d for d in network.diagnostics if "round" in d.what]


def test_the_drawn_networks_use_every_rule_and_fire():
    """Else the tests above could not fail."""
    fields: set[str] = set()
    rates = []
    for seed in range(SEEDS):
        learning, raster, _ = begun(seed)
        for layer in learning.arch.layers:
            if layer.kind == "lif":
                data = layer.model_dump(exclude_none=True)
                fields |= set(data) | {data.get("reset", "zero")}
        with torch.no_grad():
            sent = learning.run(torch.from_numpy(raster))
        rates += [float(sent[name].mean()) for name in ("lif1", "lif2")]
    rules = {"subtract", "constant", "none", "current", "current2", "reset_current", "hold"}
    assert rules | {"floor", "v0", "adapt", "gain", "recurrent"} <= fields
    assert sum(0.01 < rate < 0.8 for rate in rates) > SEEDS


def test_images_have_rules_too():
    """Units, and values of v that are rounded to 1/64 of them, differ between channels."""
    arch = Architecture.parse("4C3-BN-LIF-P3-FC10-LIF", (1, 6, 6), timesteps=8).to_dict()
    rules = {"current": 0.5, "floor": -0.2, "hold": 1, "gain": True, "v0": 0.1, "tau": 0.8}
    more = {"reset": "constant", "v_reset": 0.1, "adapt": 0.3, "adapt_keep": 0.75, "tau": 1}
    arch["layers"][2] |= rules
    arch["layers"][5] |= more
    net = build.net(Architecture.from_dict(arch), 0, 2)
    kept = qat.from_checkpoint(checkpoint_of(net), 5, "loihi2").frozen()
    raster = (np.random.default_rng(0).random((20, 8, 1, 6, 6)) < 0.4).astype(np.uint8)
    network = quantize(stl_deploy.from_torch(kept), "loihi2")
    trace = reference.run(network, raster)
    with torch.no_grad():
        spikes = kept.run(torch.from_numpy(raster))
    for name, did in trace.layers.items():
        np.testing.assert_array_equal(spikes[name].numpy(), did.spikes)
    assert 0.02 < trace.layers["lif2"].spikes.mean() < 0.6
    assert len(np.unique(network.by_name["lif1"].neurons.floor)) == 4


def test_without_further_rules_both_modules_are_one():
    """The steps of a LIF written out, and those under autograd: the same spikes and gradients."""
    rng = torch.Generator().manual_seed(0)
    theta = torch.randint(1, 20, (5,), generator=rng).float()
    current = torch.randint(-10, 20, (4, 8, 5), generator=rng).float()
    rules = Lif(name="a", tau=0.75)
    found = []
    for module in (layers.IntegerLIF((5,), 0.75), IntegerNeurons(rules, (5,), 8)):
        module.scale.copy_(torch.tensor([0.05, 0.1, 0.2, 0.01, 0.4]))
        module.thresh.data.copy_(theta)
        x = current.clone().requires_grad_()
        s = module(x)
        (s * torch.arange(8).reshape(-1, 1)).sum().backward()
        found.append((s.detach(), x.grad, module.thresh.grad))
    assert 0.1 < found[0][0].mean() < 0.9
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("seed", range(4))
def test_gradients_are_those_of_the_float_neurons(seed):
    """Where units are powers of two and nothing is truncated, of the same inputs and thresholds."""
    rng = np.random.default_rng(seed)
    fields = build.rules(rng) | {"gain": True, "current": 0.5, "current2": 0.25, "tau": 0.5}
    of_v = {name: -0.25 for name in ("floor", "v_reset") if fields.get(name)}
    adapts = {"adapt": 0.25, "adapt_keep": 0.5} if "adapt" in fields else {}
    rules = Lif.model_validate({"name": "a", **fields, **of_v, **adapts, "v0": 0})
    unit, steps = 2.0**-4, 3
    floats, whole = Neurons(rules, (4,), steps).double(), IntegerNeurons(rules, (4,), steps)
    vth = torch.from_numpy(rng.integers(4, 12, 4)).double()
    gain = torch.tensor([1.0, 0.5, 1.5], dtype=torch.float64)
    whole = whole.double()
    whole.scale.fill_(unit)
    with torch.no_grad():
        whole.thresh.copy_(vth)
        whole.gain.copy_(4096 * gain)
        floats.thresh.copy_((vth + 1 / 128) * unit)
        floats.gain.copy_(gain)
    arriving = [torch.from_numpy(rng.integers(-2, 9, (6, steps, 4)) * 4.0) for _ in range(2)]
    weight = torch.from_numpy(rng.normal(size=(6, steps, 4)))
    found = []
    for module, one in ((floats, unit), (whole, 1.0)):
        given = [(x * one).requires_grad_() for x in arriving]
        sent = module(*given)
        (sent * weight).sum().backward()
        grads = [x.grad * one for x in given]
        at = module.thresh.grad * one
        found.append((sent.detach(), *grads, at, module.gain.grad))
    assert 0.05 < found[0][0].mean() < 0.95
    (spikes, *float_grads, float_gain), (other, *whole_grads, whole_gain) = found
    assert torch.equal(spikes, other)
    tolerance = {"rtol": 0.02, "atol": 0.02} if rules.reset == "subtract" else {}
    for one, another in zip(float_grads, whole_grads, strict=True):
        torch.testing.assert_close(one, another, **tolerance)
    torch.testing.assert_close(float_gain, whole_gain * 4096, **tolerance)


def test_it_stays_so_while_it_learns(command, tmp_path, monkeypatch):
    """From stl-train --qat to stl-parity: all that neurons learn learns, and nothing differs."""
    monkeypatch.chdir(tmp_path)
    write_images(tmp_path, *bars(60))
    given = [
        {"current": 0.4, "current2": 0.3, "recurrent": {"inhibitory": 5, "delay": 2}, "gain": True},
        {"reset": "subtract", "adapt": 0.2, "adapt_keep": 0.9, "floor": -0.5, "hold": 1},
    ]
    data = build.described("FC20-BN-LIF-FC10-LIF-AvgPool1", given).to_dict()
    net = build.net(Architecture.from_dict(data | {"input": {"shape": (1, 6, 6)}}), 0)
    save_checkpoint(net, "float.pt")
    raster = (np.random.default_rng(0).random((30, build.STEPS, 1, 6, 6)) < 0.3).astype(np.uint8)
    save_raster(tmp_path / "r.npz", Raster(raster), {})
    before = qat.from_checkpoint(checkpoint_of(net), 4, "loihi2").frozen().state_dict()
    args = ["--qat", "--init", "float.pt", "--data", tmp_path, "--epochs", 2, "--lr", 0.01]
    code, _, err = command("stl-train", *args, "--weight-bits", 4, "-o", "q.pt", "--json")
    assert code == 0, err
    after = stl_deploy.load(tmp_path / "q.pt").state_dict()
    learned = {
        "fc1.weight",
        "fc1.bias",
        "lif1.gain",
        "lif1.recurrent",
        "lif1.thresh",
        "lif2.thresh",
    }
    assert not [key for key in learned if torch.equal(before[key], after[key])]
    code, _, err = command("stl-export", "q.pt", "--target", "onnx", "-o", "o", "--json")
    assert (code, err) == (0, "")
    for model in ("q.pt", "o/model.float.nir"):
        code, out, _ = command(
            "stl-parity", model, "o/model.nir", "--input", "r.npz", "--max-mismatch", 0, "--json"
        )
        assert code == 0, out
        for layer in json.loads(out)["layers"]:
            assert (layer["mismatch"], layer["nir_mismatch"] or 0) == (0, 0)


def test_a_chip_without_a_rule_refuses_it_before_training():
    arch = build.described("FC10-LIF-FC10-LIF", [{"hold": 3, "floor": -1}, {"reset": "none"}])
    with pytest.raises(LoweringError) as caught:
        qat.from_checkpoint(checkpoint_of(build.net(arch, 0)), 8, "loihi1")
    told = {(p.where, p.what.split(":")[0]) for p in caught.value.problems}
    assert ("lif1", "floor of v") in told
    assert any(where == "lif2" and "reset 'none'" in what for where, what in told)


def test_units_grow_until_thresholds_that_move_stay_inside_the_registers():
    adapts = {"adapt": 30.0, "adapt_keep": 1.0}
    arch = build.described("FC10-LIF", [adapts], timesteps=200)
    model = qat.from_checkpoint(checkpoint_of(build.net(arch, 0)), 8, "loihi2")
    network = quantize(stl_deploy.from_torch(model.frozen()), "loihi2")
    limit = model.chip.state_limit
    assert 0.5 * limit < np.max(network.by_name["lif1"].neurons.adapt) * 200 < limit


def test_a_floor_that_no_register_holds_is_refused():
    arch = build.described("FC10-LIF", [{"floor": -900.0}])
    with pytest.raises(LoweringError, match="lif1: floor of"):
        qat.from_checkpoint(checkpoint_of(build.net(arch, 0)), 8, "loihi2")


@pytest.mark.parametrize(
    ("key", "value", "what"),
    [
        ("lif1.gain", 32768, "outside 16 bits"),
        ("lif1.recurrent", 8, "outside the grid of 4 bits"),
        ("lif1.gain", 0.5, "a value that is not a whole number"),
    ],
)
def test_a_tampered_checkpoint_is_refused(tmp_path, key, value, what):
    arch = build.described("FC10-LIF", [{"gain": True, "recurrent": {}}])
    kept = qat.from_checkpoint(checkpoint_of(build.net(arch, 0)), 4, "loihi2").frozen()
    save_checkpoint(kept, tmp_path / "q.pt")
    data = torch.load(tmp_path / "q.pt", weights_only=True)
    changed = data["state_dict"][key].float()
    changed.view(-1)[0] = value
    data["state_dict"][key] = changed
    torch.save(data, tmp_path / "q.pt")
    with pytest.raises(InputError, match=what):
        stl.read(tmp_path / "q.pt")


def test_sums_stay_exact_where_a_floor_hides_them_from_v():
    """float32 adds up whole numbers exactly below 2^24, and v does not show how far they went."""
    arch = build.described("FC4-LIF", [{"floor": -0.01}], input={"shape": (600,), "levels": 255})
    net = build.net(arch, 0)
    with torch.no_grad():
        net.fc1.weight.fill_(-1.0)
    model = qat.from_checkpoint(checkpoint_of(net), 8, "ideal")
    weight = model.integers()["fc1.weight"]
    assert 2**22 < 255 * weight.abs().sum(1).max() < 2**24
