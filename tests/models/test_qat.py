"""Training on integers: the PyTorch model is the integer network, before, while and after it learns."""

from __future__ import annotations

import json

import nir
import numpy as np
import pytest
import torch

import stl_deploy
from stl_deploy.chips import bounds
from stl_deploy.errors import InputError, LoweringError
from stl_deploy.formats import float_nir as float_file
from stl_deploy.formats import integer_nir as nir_file
from stl_deploy.formats.checkpoint import save_checkpoint
from stl_deploy.formats.raster import Raster
from stl_deploy.formats.raster import save as save_raster
from stl_deploy.hw_sim import reference
from stl_deploy.importers import stl
from stl_deploy.ir import execute as float_exec
from stl_deploy.ir import nir_graph as G
from stl_deploy.ir import nir_words as words
from stl_deploy.ir.arch import Architecture
from stl_deploy.lower.quantize import quantize
from stl_deploy.models import layers, qat
from stl_deploy.models.net import STLNet, converted
from stl_deploy.models.train import Settings, Trainer
from tests.build.files import bars, write_images
from tests.build.floats import graph as graph_of
from tests.build.nets import random_net, random_spikes

TINY = "3C3-BN-LIF-P3-FC20-LIF-AvgPool2"


def checkpoint_of(net):
    return stl.Checkpoint(net.arch, stl.params_of(net))


def described(seed):
    """A small random network with another decay, input, depth of time and grid for every seed."""
    rng = np.random.default_rng(seed)
    text = rng.choice(
        ["4C3-BN-LIF-P4-6C3-LIF-P2-FC30-LIF-FC20-LIF-AvgPool2", TINY, "FC30-LIF-FC10-LIF"]
    )
    shape = (2, 8, 8) if text[0] == "4" else (1, 6, 6)
    arch = Architecture.parse(
        str(text),
        shape,
        levels=int(rng.choice([1, 1, 7, 255])),
        timesteps=int(rng.integers(1, 12)),
        tau=float(rng.choice([0.5, 0.5, 0.9, 0.3, 0.0])),
    )
    net = random_net(str(text), seed, shape)
    net.arch = arch
    with torch.no_grad():
        for spec in arch.layers:
            if spec.kind == "linear":
                net.get_submodule(spec.name).weight.mul_(3)
    raster = random_spikes(net, 12, seed) * rng.integers(1, arch.input.levels + 1)
    bits, chip = int(rng.integers(2, 9)), str(rng.choice(["loihi2", "loihi1", "ideal"]))
    if arch.input.levels > 1 and chip == "loihi1":
        chip = "loihi2"
    return net, raster.astype(np.uint8), bits, chip


@pytest.mark.parametrize("seed", range(24))
def test_the_model_is_the_integer_network(seed, tmp_path):
    """In float32 and float64, as it learns, as it is kept, as it is read, and as its NIR graph says."""
    net, raster, bits, chip = described(seed)
    learning = qat.from_checkpoint(checkpoint_of(net), bits, chip)
    kept = learning.frozen()
    save_checkpoint(kept, tmp_path / "q.pt")
    read = stl_deploy.load(tmp_path / "q.pt")
    graph = stl_deploy.from_torch(read)
    network = quantize(graph, chip)
    x = torch.from_numpy(raster)
    with torch.no_grad():
        runs = [m.run(x) for m in (learning.eval(), kept, read, converted(read, torch.float64))]
    runs.append({k: torch.from_numpy(v) for k, v in float_exec.run(graph, raster).items()})
    trace = reference.run(network, raster)
    for name, did in trace.layers.items():
        for run in runs:
            np.testing.assert_array_equal(run[name].numpy(), did.spikes)
    assert sum(int(did.overflow.sum()) for did in trace.layers.values()) == 0
    fired = [did.spikes.mean() for did in trace.layers.values()]
    assert max(fired) > 0


def test_the_random_networks_fire():
    """Else the test above could not fail."""
    fires = 0
    for seed in range(24):
        net, raster, bits, chip = described(seed)
        kept = qat.from_checkpoint(checkpoint_of(net), bits, chip).frozen()
        spikes = float_exec.run(stl_deploy.from_torch(kept), raster)
        fires += all(0.005 < s.mean() < 0.95 for s in spikes.values())
    assert fires >= 16


@pytest.mark.parametrize(("tau", "timesteps"), [(0.9, 12), (0.3, 12), (0.5, 12), (51 / 64, 12)])
def test_a_decay_truncates_as_the_chip_does(tau, timesteps):
    """Where bits are lost a network without truncation, which the graph is without its note, differs."""
    arch = Architecture.parse("FC300-LIF", (6,), timesteps=timesteps, tau=tau)
    torch.manual_seed(0)
    net = STLNet(arch)
    with torch.no_grad():
        net.lif1.thresh.uniform_(0.05, 0.6)
    raster = (np.random.default_rng(0).random((200, timesteps, 6)) < 0.3).astype(np.uint8)
    kept = qat.from_checkpoint(checkpoint_of(net), 3, "loihi2").frozen()
    graph = stl_deploy.from_torch(kept)
    expected = reference.run(quantize(graph, "loihi2"), raster).layers["lif1"].spikes
    with torch.no_grad():
        got = [
            m.run(torch.from_numpy(raster))["lif1"] for m in (kept, converted(kept, torch.float64))
        ]
    for spikes in (*(g.numpy() for g in got), float_exec.run(graph, raster)["lif1"]):
        np.testing.assert_array_equal(spikes, expected)
    meta = G.float_meta(graph).model_copy(update={"trained": None})
    graph.metadata[G.KEY] = meta.text()
    assert (float_exec.run(graph, raster)["lif1"] != expected).any()


@pytest.mark.parametrize("bits", [8, 2])
def test_it_stays_so_while_it_learns(bits):
    net = random_net(TINY, 1, (1, 6, 6))
    model = qat.from_checkpoint(checkpoint_of(net), bits, "loihi2")
    before = {k: v.clone() for k, v in model.state_dict().items()}
    settings = Settings(epochs=3, batch=20, lr=1e-2, weight_bits=bits, chip="loihi2")
    trainer = Trainer(model.arch, settings, model=model)
    images, labels = bars(120)
    reports = list(trainer.run(images, labels))
    assert reports[-1].loss < reports[0].loss
    kept = trainer.trained()
    changed = {k for k, v in before.items() if not torch.equal(v, model.state_dict()[k])}
    assert {"conv1.weight", "conv1.bias", "lif1.thresh", "fc1.weight", "lif2.thresh"} <= changed
    network = quantize(stl_deploy.from_torch(kept), "loihi2")
    raster = random_spikes(kept, 50)
    trace = reference.run(network, raster)
    with torch.no_grad():
        spikes = kept.run(torch.from_numpy(raster))
    for name, did in trace.layers.items():
        np.testing.assert_array_equal(spikes[name].numpy(), did.spikes)
    largest = max(np.abs(c.synapses.weight).max() for c in network.connections)
    assert largest <= 2 ** (bits - 1) - 1


@pytest.mark.parametrize(
    ("mode", "learned"),
    [("threshold", {"lif1.thresh", "lif2.thresh"}), ("synaptic", {"conv1", "fc1"})],
)
def test_modes_hold_on_integers_too(mode, learned):
    model = qat.from_checkpoint(checkpoint_of(random_net(TINY, 1, (1, 6, 6))), 4, "loihi2")
    before = {k: v.clone() for k, v in model.state_dict().items()}
    trainer = Trainer(model.arch, Settings(epochs=1, batch=20, mode=mode), model=model)
    list(trainer.run(*bars()))
    changed = {k for k, v in model.state_dict().items() if not torch.equal(v, before[k])}
    named = {k if mode == "threshold" else k.split(".")[0] for k in changed}
    assert named == learned


def test_a_resumed_run_ends_where_an_uninterrupted_one_does(tmp_path):
    def begin():
        model = qat.from_checkpoint(checkpoint_of(random_net(TINY, 1, (1, 6, 6))), 3, "loihi2")
        return Trainer(model.arch, Settings(epochs=3, batch=20, lr=1e-2), model=model)

    whole, first, second = begin(), begin(), begin()
    list(whole.run(*bars()))
    next(iter(first.run(*bars())))
    first.save(tmp_path / "s.pt")
    second.resume(tmp_path / "s.pt")
    assert len(list(second.run(*bars()))) == 2
    expected, got = whole.trained().state_dict(), second.trained().state_dict()
    assert all(torch.equal(expected[k], got[k]) for k in expected)


# Gradients


def test_gradients_are_those_of_the_float_neuron():
    """With units that are powers of two, and no voltage on a threshold, both neurons do the same."""
    rng = torch.Generator().manual_seed(0)
    shape, unit = (3, 4, 4), torch.tensor([0.5, 0.25, 0.125])
    current = torch.randint(-6, 9, (5, 4, *shape), generator=rng).float()
    vth = torch.randint(2, 9, shape, generator=rng).float()
    grad = torch.randn(5, 4, *shape, generator=rng)
    whole = layers.IntegerLIF(shape)
    whole.scale.copy_(unit)
    floating = layers.LIF(shape)
    with torch.no_grad():
        # Half of a 1/64 above vth: no v is there.
        whole.thresh.copy_(vth)
        floating.thresh.copy_((vth + 1 / 128) * whole.unit)
    a = current.clone().requires_grad_()
    b = (current * whole.unit).requires_grad_()
    spikes = whole(a), floating(b)
    assert torch.equal(*spikes)
    assert 0.05 < spikes[0].mean() < 0.9
    for s in spikes:
        s.backward(grad)
    torch.testing.assert_close(a.grad, b.grad * whole.unit)
    torch.testing.assert_close(whole.thresh.grad, floating.thresh.grad * whole.unit)


def test_rounding_passes_the_gradient_inside_the_grid():
    value = torch.tensor([[0.26, -0.9, 3.4], [0.26, -0.9, 30.0]], requires_grad=True)
    unit = torch.tensor([[0.5], [5.0]])
    steps = qat._Rounded.apply(value, unit, -3.0, 3.0)
    assert steps.tolist() == [[1, -2, 3], [0, 0, 3]]
    steps.backward(torch.ones(2, 3))
    assert value.grad.tolist() == [[2, 2, 0], [pytest.approx(0.2), pytest.approx(0.2), 0]]


# Units


def test_units_round_with_the_least_error():
    rng = np.random.default_rng(0)
    weight = rng.normal(size=(6, 50))
    weight[5] = 0
    for largest in (1, 7, 127):
        found = qat.units(weight, largest)

        def error(unit, largest=largest):
            rounded = np.clip(np.rint(weight / unit[:, None]), -largest, largest) * unit[:, None]
            return np.square(rounded - weight).sum(axis=1)

        plain = np.where(np.abs(weight).max(axis=1) > 0, np.abs(weight).max(axis=1) / largest, 1)
        assert (error(found) <= error(plain)).all()
        assert (found > 0).all()
    assert (error(qat.units(weight, 127)) < 1e-2).all()


@pytest.mark.parametrize("chip", ["loihi1", "loihi2", "ideal"])
def test_no_input_makes_the_integers_leave_a_register(chip):
    """Weights of one sign, whose sums pass every register at the plain unit."""
    arch = Architecture.parse("FC40-LIF-FC10-LIF", (900,), levels=1 if chip == "loihi1" else 255)
    net = STLNet(arch)
    with torch.no_grad():
        net.fc1.weight.uniform_(0.5, 1.0)
        net.lif1.thresh.uniform_(100, 2000)
    model = qat.from_checkpoint(checkpoint_of(net), 8, chip)
    plain = qat.units(net.fc1.weight.detach().double().numpy() / arch.input.levels, 127)
    assert (model.lif1.scale.numpy() > 1.001 * plain).all()
    assert model.lif2.scale.numpy() == pytest.approx(
        qat.units(net.fc2.weight.detach().double().numpy(), 127), rel=1e-6
    )
    network = quantize(stl_deploy.from_torch(model.frozen()), chip, overflow="proven")
    low, high = bounds.voltage_range(network, network.populations[0], arch.timesteps)
    assert max(-low.min(), high.max()) < 1 << 24
    assert max(-low.min(), high.max()) > (1 << 22) / 4
    assert network.precision["lif1"].mode == "proven"


@pytest.mark.filterwarnings("ignore:invalid value")
def test_a_network_that_no_unit_holds_is_an_error():
    net = random_net("FC10-LIF", 0, (30,))
    model = qat.from_checkpoint(checkpoint_of(net), 8, "loihi2")
    with torch.no_grad():
        model.lif1.thresh[3] = float("inf")
    with pytest.raises(LoweringError, match="lif1: no unit keeps it inside"):
        model.settle()


def test_no_decay_is_rounded():
    """Voltages of 22 bits that a product in float32 would carry over the threshold."""
    kept = 3686  # of 4096
    first = np.arange(40_000, 69_000)
    left = first * 64 * kept // 4096
    chosen = (left % 64 == 0) & (first * kept % 64 >= 48)
    first, left = first[chosen], left[chosen]
    assert len(first) > 50
    lif = layers.IntegerLIF((len(first),), kept / 4096)
    current = torch.from_numpy(np.stack([first, first])[None]).float()
    with torch.no_grad():
        lif.thresh.copy_(torch.from_numpy(left // 64 + first))
        assert not lif(current).any()
        lif.thresh.sub_(1)
        assert lif(current)[0, 1].all()


def test_thresholds_are_rounded_as_the_exporter_does():
    """ceil(theta / unit) - 1: one unit below, and v fires where it passes that."""
    model = qat.from_checkpoint(checkpoint_of(random_net()), 6, "loihi2")
    whole = model.integers()
    for name in model.feeds:
        lif = model.get_submodule(name)
        wanted = torch.ceil(lif.thresh / lif.unit) - 1
        assert torch.equal(whole[f"{name}.thresh"], wanted)


def learned(model):
    """What learning may do: weights that grow until all lie at the ends of the grid."""
    with torch.no_grad():
        model.fc1.weight.mul_(40)
    return model


def test_units_grow_with_what_is_learned():
    arch = Architecture.parse("FC40-LIF-FC10-LIF", (900,))
    torch.manual_seed(0)
    begun = qat.from_checkpoint(checkpoint_of(STLNet(arch)), 8, "loihi1")
    before = begun.lif1.scale.clone()
    kept = learned(begun).frozen()
    assert (kept.lif1.scale > 1.01 * before).all()
    quantize(stl_deploy.from_torch(kept), "loihi1", overflow="proven")

    model = learned(qat.from_checkpoint(checkpoint_of(STLNet(arch)), 8, "loihi1"))
    before = model.lif1.scale.clone()
    images = torch.zeros(20, 900, dtype=torch.uint8)
    trainer = Trainer(model.arch, Settings(epochs=1, batch=20, lr=0.0), model=model)
    list(trainer.run(images, torch.zeros(20, dtype=torch.int64)))
    assert (model.lif1.scale > 1.01 * before).all()


# What it becomes


@pytest.fixture
def kept():
    return qat.from_checkpoint(checkpoint_of(random_net()), 4, "loihi2").frozen()


def test_the_quantizer_takes_the_integers_as_they_are(kept):
    network = quantize(stl_deploy.from_torch(kept), "loihi2")
    state = kept.state_dict()
    names = {"lif1": "conv1", "lif2": "conv2", "lif3": "fc1", "lif4": "fc2"}
    for population in network.weighted:
        (connection,), neurons = network.into(population.name), population.neurons
        source = names[population.name]
        weight = state[f"{source}.weight"].numpy()
        np.testing.assert_array_equal(connection.synapses.weight, weight)
        np.testing.assert_array_equal(neurons.vth, state[f"{population.name}.thresh"].numpy())
        if f"{source}.bias" in state:
            bias = state[f"{source}.bias"].numpy()
            np.testing.assert_array_equal(neurons.bias_mant.ravel(), bias)
            assert np.abs(bias).max() > 0
        scale = state[f"{population.name}.scale"].double().numpy()
        np.testing.assert_array_equal(neurons.scale.ravel(), scale)
        assert connection.bits == 4
    assert network.lowering == "native"
    assert network.diagnostics == ()


def test_what_contradicts_the_training_is_refused(kept):
    graph = stl_deploy.from_torch(kept)
    calib = random_spikes(kept, 4)
    with pytest.raises(InputError) as caught:
        quantize(
            graph,
            "loihi1",
            calib,
            weight_bits=8,
            weight_exp=1,
            weight_precision="split",
            thresholds="fold",
        )
    assert {p.where for p in caught.value.problems} == {
        "weight_bits",
        "weight_exp",
        "weight_precision",
        "thresholds",
        "calib",
    }
    assert all("trained on integers of 4 bits" in p.what for p in caught.value.problems)
    with pytest.raises(InputError, match="grouped was asked for"):
        quantize(graph, "loihi1", thresholds="grouped")
    quantize(graph, "loihi1", weight_bits=4, thresholds="native")


def test_a_chip_with_few_thresholds_gets_the_network_and_a_note(kept):
    network = quantize(stl_deploy.from_torch(kept), "loihi1")
    assert network.lowering == "native"
    assert any("distinct thresholds" in d.what for d in network.diagnostics)


def test_another_chip_that_cannot_hold_it_says_so(kept):
    """Trained for a chip without registers, exported for one that has some."""
    arch = Architecture.parse("FC40-LIF-FC10-LIF", (900,), levels=255)
    net = STLNet(arch)
    with torch.no_grad():
        net.fc1.weight.uniform_(0.5, 1.0)
    graph = stl_deploy.from_torch(qat.from_checkpoint(checkpoint_of(net), 8, "ideal").frozen())
    network = quantize(graph, "loihi2")
    assert network.precision["lif1"].mode == "checked"
    assert any("not trained for this chip" in d.what for d in network.diagnostics)
    with pytest.raises(
        LoweringError, match="lif1: its integers could leave the registers of loihi2"
    ):
        quantize(graph, "loihi2", overflow="proven")


def test_a_graph_beyond_its_grid_is_refused(kept):
    graph = stl_deploy.from_torch(kept)
    graph.nodes["fc1"].weight[2, 3] = 9 * kept.lif3.scale[2].item()
    with pytest.raises(LoweringError, match="weight goes from -7 to 9; at most 7 in size"):
        quantize(graph, "loihi2")


@pytest.mark.parametrize("sign", [1, -1])
def test_the_first_step_beyond_the_grid_is_refused(kept, sign):
    """In 8 bits that is 128, which int8 would turn into -128."""
    graph = stl_deploy.from_torch(kept)
    unit = kept.lif3.scale[2].item()
    graph.nodes["fc1"].weight[2, 3] = sign * 7 * unit
    quantize(graph, "loihi2")
    graph.nodes["fc1"].weight[2, 3] = sign * 8 * unit
    with pytest.raises(LoweringError, match="at most 7 in size"):
        quantize(graph, "loihi2")


@pytest.mark.parametrize(
    ("change", "what"),
    [
        ({"tau": 1e-4 / 0.30001}, "decay of v other than 1/4096"),
        ({"gain": 1.00001}, "gain other than -32767/4096"),
        ({"gain": 8.0}, "gain other than -32767/4096"),
        ({"adapt_step": 1.0}, "decay of the threshold other than 1/4096"),
        ({"current2": 1e-5}, "decay of the second current other than 0/4096"),
        ({"graded": True}, "graded values, which training on integers does not know"),
    ],
)
def test_neurons_that_training_does_not_know_are_refused(change, what):
    fc, n = nir.Linear(weight=np.eye(3)), np.ones(3)
    lif = G.lif(2.5 * n, change.get("tau", 2 * G.DT), 2.0)
    arrays = {
        "amplify": np.full((4, 1), change["gain"]) if "gain" in change else None,
        "adapt_step": change.get("adapt_step"),
        "adapt": 1.0 if "adapt_step" in change else None,
        "current2": change.get("current2"),
        "drive2": 1.0 if "current2" in change else None,
    }
    words.say(
        lif,
        {k: None if v is None else np.atleast_1d(v) for k, v in arrays.items()},
        graded="graded" in change,
    )
    trained = G.Trained(weight_bits=4, scale={"lif": [1.0, 1.0, 1.0]})
    graph = graph_of({"fc": fc, "lif": lif}, 3, 3, version=4, trained=trained, timesteps=4)
    with pytest.raises(InputError, match=what):
        quantize(graph, "loihi2")


def test_every_spike_is_certified(kept):
    graph = stl_deploy.from_torch(kept)
    report = stl_deploy.parity(kept, quantize(graph, "loihi2"), random_spikes(kept, 20))
    for layer in report.layers:
        assert (layer.mismatch, layer.float32_mismatch, layer.nir_mismatch) == (0, 0, 0)
        assert layer.certified == 1
    assert report.first_divergence is None


def test_a_decay_that_truncates_is_said_not_to_be_certified():
    net = random_net(TINY, 1, (1, 6, 6))
    arch = net.arch.model_copy(update={"timesteps": 9})
    net.arch = arch
    kept = qat.from_checkpoint(checkpoint_of(net), 4, "loihi2").frozen()
    network = quantize(stl_deploy.from_torch(kept), "loihi2")
    report = stl_deploy.parity(kept, network, random_spikes(kept, 20))
    assert set(report.not_certified) == {"lif1", "lif2"}
    assert "truncates" in report.not_certified["lif1"]
    assert all(layer.mismatch == 0 for layer in report.layers)


def test_a_fault_in_the_integers_is_found(kept):
    graph = stl_deploy.from_torch(kept)
    network = quantize(graph, "loihi2")
    (connection,) = network.into("lif2")
    connection.synapses.weight[3, 2, 1, 1] += 3
    report = stl_deploy.parity(kept, network, random_spikes(kept, 40))
    assert report.layers[2].mismatch_forced > 0
    assert "(3, 2, 1, 1)" in report.first_divergence.text


# Files


def test_the_checkpoint_holds_integers(kept, tmp_path):
    save_checkpoint(kept, tmp_path / "q.pt")
    state = torch.load(tmp_path / "q.pt", weights_only=True)
    kinds = {k: v.dtype for k, v in state["state_dict"].items()}
    assert kinds["conv1.weight"] == kinds["fc2.weight"] == torch.int8
    assert kinds["conv1.bias"] == kinds["lif1.thresh"] == torch.int32
    assert kinds["lif1.scale"] == torch.float32
    assert state["arch"]["quantized"] == {"weight_bits": 4}
    save_checkpoint(random_net(), tmp_path / "f.pt")
    assert "quantized" not in torch.load(tmp_path / "f.pt", weights_only=True)["arch"]


def test_a_tampered_checkpoint_is_refused(kept, tmp_path):
    save_checkpoint(kept, tmp_path / "q.pt")
    data = torch.load(tmp_path / "q.pt", weights_only=True)
    state = data["state_dict"]
    state["conv1.weight"] = state["conv1.weight"].int()
    state["conv1.weight"][0, 0, 0, 0] = 8
    state["conv2.weight"] = state["conv2.weight"].float() + 0.5
    state["lif1.scale"][1] = 0
    state["lif2.scale"] = state["lif2.scale"][:2].clone()
    torch.save(data, tmp_path / "q.pt")
    with pytest.raises(InputError) as caught:
        stl.read(tmp_path / "q.pt")
    assert "lif2.scale" in str(caught.value)
    state["lif2.scale"] = torch.ones(6)
    torch.save(data, tmp_path / "q.pt")
    with pytest.raises(InputError) as caught:
        stl.read(tmp_path / "q.pt")
    told = {p.where.split(": ")[1]: p.what for p in caught.value.problems}
    assert set(told) == {"conv1.weight", "conv2.weight", "lif1.scale"}
    assert "8, outside the grid of 4 bits, -7..7" in told["conv1.weight"]
    assert "not a whole number" in told["conv2.weight"]


def test_integers_have_no_place_in_a_float_checkpoint(tmp_path):
    net = random_net()
    save_checkpoint(net, tmp_path / "f.pt")
    data = torch.load(tmp_path / "f.pt", weights_only=True)
    data["state_dict"]["fc1.weight"] = data["state_dict"]["fc1.weight"].to(torch.int8)
    torch.save(data, tmp_path / "f.pt")
    with pytest.raises(InputError, match=r"torch.int8, not a floating one"):
        stl.read(tmp_path / "f.pt")


@pytest.mark.parametrize(
    ("change", "what"),
    [
        ({"layers": [{"kind": "batchnorm", "name": "bn1"}]}, "BatchNorm"),
        ({"tau": 0.0}, "is none of 1/4096"),
    ],
)
def test_a_description_that_integers_cannot_follow_is_refused(kept, change, what):
    described = kept.arch.to_dict()
    if "tau" in change:
        described["layers"][-1]["tau"] = change["tau"]
    else:
        described["layers"] = described["layers"][:1] + change["layers"] + described["layers"][1:]
    with pytest.raises(InputError, match=what):
        Architecture.from_dict(described)


def test_the_float_graph_survives_its_file(kept, tmp_path):
    graph = stl_deploy.from_torch(kept)
    nir.write(tmp_path / "q.nir", graph)
    again = float_file.read(tmp_path / "q.nir")
    raster = random_spikes(kept, 10)
    one, two = float_exec.run(graph, raster), float_exec.run(again, raster)
    assert all(np.array_equal(one[k], two[k]) for k in one)
    a, b = quantize(graph, "loihi2"), quantize(again, "loihi2")
    for x, y in zip(a.connections, b.connections, strict=True):
        np.testing.assert_array_equal(x.synapses.weight, y.synapses.weight)
    for p, q in zip(a.weighted, b.weighted, strict=True):
        np.testing.assert_array_equal(p.neurons.vth, q.neurons.vth)


def test_a_float_graph_that_contradicts_itself_is_refused(kept, tmp_path):
    graph = stl_deploy.from_torch(kept)
    meta = json.loads(graph.metadata[G.KEY])
    meta["trained"]["scale"]["lif1"].pop()
    graph.metadata[G.KEY] = json.dumps(meta)
    nir.write(tmp_path / "q.nir", graph)
    with pytest.raises(InputError, match="has 3 units for 4 channels"):
        float_file.read(tmp_path / "q.nir")
    with pytest.raises(InputError, match="has 3 units for 4 channels"):
        quantize(graph, "loihi2")
    meta["trained"]["scale"]["lif1"] += [meta["trained"]["scale"]["lif1"][0] * 1.1]
    graph.metadata[G.KEY] = json.dumps(meta)
    with pytest.raises(LoweringError, match="are no whole numbers of their unit"):
        quantize(graph, "loihi2")
    meta |= {"version": 1, "read_as": []}
    graph.metadata[G.KEY] = json.dumps(meta)
    with pytest.raises(InputError, match="version 1 with trained"):
        quantize(graph, "loihi2")


# Commands


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_images(tmp_path, *bars())
    net = random_net(TINY, 1, (1, 6, 6))
    save_checkpoint(net, tmp_path / "float.pt")
    save_raster(tmp_path / "r.npz", Raster(random_spikes(net, 30)), {})
    return tmp_path


def test_from_training_to_parity(command, here):
    args = ["--qat", "--init", "float.pt", "--data", here, "--epochs", 2, "--weight-bits", 3]
    code, out, _ = command("stl-train", *args, "-o", "q.pt", "--json")
    assert code == 0
    settings = json.loads(out)["settings"]
    assert (settings["weight_bits"], settings["chip"], settings["lr"]) == (3, "loihi2", 5e-4)
    code, out, err = command("stl-export", "q.pt", "--target", "loihi", "-o", "o", "--json")
    assert (code, err) == (0, "")
    told = json.loads(out)
    assert [row["weight_bits"] for row in told["layers"] if row["name"] != "pool1"] == [3, 3]
    code, out, _ = command(
        "stl-parity", "q.pt", "o/model.nir", "--input", "r.npz", "--max-mismatch", 0, "--json"
    )
    assert code == 0
    assert [layer["mismatch"] for layer in json.loads(out)["layers"]] == [0, 0, 0]
    code, _, _ = command(
        "stl-parity", "o/model.float.nir", "o/model.nir", "--input", "r.npz", "--max-mismatch", 0
    )
    assert code == 0
    assert nir_file.read_network(here / "o" / "model.nir").connections[0].bits == 3


def test_export_refuses_what_contradicts_the_training(command, here):
    kept = qat.from_checkpoint(stl.read(here / "float.pt"), 3, "loihi2").frozen()
    save_checkpoint(kept, here / "q.pt")
    for more, where in (
        (["--weight-bits", 8], "--weight-bits"),
        (["--calib", "r.npz"], "--calib"),
        (["--thresholds", "fold"], "--thresholds"),
        (["--thresholds", "grouped", "--chip", "loihi1"], "--thresholds"),
        (["--weight-exp", 1], "--weight-exp"),
        (["--weight-precision", "2x8"], "--weight-precision"),
        (["--clamp-thresholds"], "--clamp-thresholds"),
    ):
        code, _, err = command("stl-export", "q.pt", "--target", "loihi", "-o", "o", *more)
        assert code == 2
        assert f"{where}: " in err
        assert "trained on integers of 3 bits" in err
        assert not (here / "o").exists()


def test_train_refuses_options_that_do_not_go_together(command, here):
    for args, told in (
        (["--qat"], ["--qat: starts from a trained network"]),
        (
            ["--init", "float.pt", "--weight-bits", 4],
            ["--init: has no effect without", "also: --weight-bits"],
        ),
        (
            ["--qat", "--init", "float.pt", "--arch", TINY, "--tau", 0.5],
            ["--arch: comes from", "also: --tau"],
        ),
    ):
        code, _, err = command("stl-train", "--data", here, "-o", "q.pt", *args)
        assert code == 2
        assert all(text in err for text in told)
    kept = qat.from_checkpoint(stl.read(here / "float.pt"), 3, "loihi2").frozen()
    save_checkpoint(kept, here / "done.pt")
    save_checkpoint(random_net(TINY, 1, (1, 9, 9)), here / "larger.pt")
    for name, told in (
        ("done.pt", "is already trained on integers"),
        ("larger.pt", "the images are"),
    ):
        code, _, err = command("stl-train", "--qat", "--init", name, "--data", here, "-o", "q.pt")
        assert code == 2
        assert told in err
    assert not (here / "q.pt").exists()
    args = ["--qat", "--init", "float.pt", "--data", here, "--force", "-o", "float.pt"]
    code, _, err = command("stl-train", *args)
    assert code == 2
    assert "is another input or output of this command" in err
    assert stl.read(here / "float.pt").arch.quantized is None


def test_a_chip_with_few_thresholds_is_warned_of_before_training(command, here):
    args = ["--qat", "--init", "float.pt", "--data", here, "--epochs", 1, "--chip", "loihi1"]
    code, _, err = command("stl-train", *args, "-o", "q.pt")
    assert code == 0
    assert "a core of loihi1 holds 7 distinct thresholds" in err
    code, _, err = command("stl-train", *args[:-1], "loihi2", "-o", "q.pt", "--force")
    assert code == 0
    assert "distinct thresholds" not in err


def test_a_graded_network_is_not_trained_for_a_chip_of_spikes(command, here):
    arch = Architecture.parse(TINY, (1, 6, 6), levels=255)
    save_checkpoint(STLNet(arch), here / "graded.pt")
    args = ["--qat", "--init", "graded.pt", "--data", here, "--chip", "loihi1", "-o", "q.pt"]
    code, _, err = command("stl-train", *args)
    assert code == 1
    assert "graded.pt: input: graded 0..255, but loihi1 knows binary spikes only" in err


def test_resuming_with_other_settings_names_them(tmp_path):
    model = qat.from_checkpoint(checkpoint_of(random_net(TINY, 1, (1, 6, 6))), 3, "loihi2")
    Trainer(model.arch, Settings(epochs=3, weight_bits=3), model=model).save(tmp_path / "s.pt")
    other = Trainer(model.arch, Settings(epochs=4, weight_bits=3, lr=1.0), model=model)
    with pytest.raises(InputError, match="another run: epochs, lr differ"):
        other.resume(tmp_path / "s.pt")


def test_integers_that_float32_cannot_hold_are_refused(kept, tmp_path):
    save_checkpoint(kept, tmp_path / "q.pt")
    data = torch.load(tmp_path / "q.pt", weights_only=True)
    data["state_dict"]["conv1.bias"][1] = -(1 << 24) - 1
    data["state_dict"]["fc1.weight"] = data["state_dict"]["fc1.weight"].to(torch.int16)
    torch.save(data, tmp_path / "q.pt")
    with pytest.raises(InputError, match="int16, not int8 or int32"):
        stl.read(tmp_path / "q.pt")
    data["state_dict"]["fc1.weight"] = data["state_dict"]["fc1.weight"].to(torch.int8)
    data["state_dict"]["fc2.weight"][0, 0] = -8
    torch.save(data, tmp_path / "q.pt")
    with pytest.raises(InputError) as caught:
        stl.read(tmp_path / "q.pt")
    assert "-16777217, which PyTorch's float32 cannot" in str(caught.value)
    assert "holds -8, outside the grid" in str(caught.value)


def test_checked_overflow_is_said_as_asked(kept):
    network = quantize(stl_deploy.from_torch(kept), "loihi2", overflow="checked")
    assert {how.mode for how in network.precision.values()} == {"checked"}
    assert network.diagnostics == ()
