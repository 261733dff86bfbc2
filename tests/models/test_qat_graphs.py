"""Training on integers where several layers lead to a population: it is the integer network, bit for bit."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

import stl_deploy
from stl_deploy.chips import bounds
from stl_deploy.errors import InputError, LoweringError
from stl_deploy.formats.checkpoint import save_checkpoint
from stl_deploy.hw_sim import reference
from stl_deploy.importers import stl
from stl_deploy.ir import execute
from stl_deploy.ir.arch import Architecture
from stl_deploy.ir.network import IntegerNetwork
from stl_deploy.lower.quantize import quantize
from stl_deploy.models import qat
from stl_deploy.models.net import STLNet, converted
from stl_deploy.models.train import Settings, Trainer
from tests.build.neurons import net as build_net

SHAPE = (2, 6, 6)
Layers = list[dict[str, Any]]


def conv(name: str, channels: int = 4, *inputs: str, kernel: int = 3, stride: int = 1) -> Any:
    sizes = {"kernel": (kernel, kernel), "padding": (kernel // 2, kernel // 2)}
    said = {"kind": "conv", "name": name, "channels": channels, "stride": (stride, stride)}
    return said | sizes | ({"inputs": inputs} if inputs else {})


def lif(name: str, *inputs: str, **rules: Any) -> Any:
    return {"kind": "lif", "name": name, "inputs": inputs} | rules


def bn(name: str, *inputs: str) -> Any:
    return {"kind": "batchnorm", "name": name, "inputs": inputs}


def add(name: str, *inputs: str) -> Any:
    return {"kind": "add", "name": name, "inputs": inputs}


def end(*rules: dict[str, Any]) -> Layers:
    return [{"kind": "linear", "name": "fc", "features": 10}, lif("out", **(rules or ({},))[0])]


STEM = [conv("c0"), bn("b0"), lif("l0")]
# A sum of two currents; spikes that are added to a current; sums of spikes; all of them with further rules.
GRAPHS: dict[str, Layers] = {
    "two currents": [
        *STEM,
        conv("c1", 6, stride=2),
        bn("b1"),
        conv("d1", 6, "l0", kernel=1, stride=2),
        bn("e1"),
        add("a1", "b1", "e1"),
        lif("l1"),
        *end(),
    ],
    "spikes and a current": [
        *STEM,
        conv("c1"),
        bn("b1"),
        lif("l1"),
        conv("c2"),
        bn("b2"),
        add("a2", "b2", "l0"),
        lif("l2", tau=0.75),
        *end(),
    ],
    "sums of spikes": [
        *STEM,
        conv("c1"),
        bn("b1"),
        lif("l1"),
        add("a1", "l0", "l1"),
        conv("c2"),
        lif("l2"),
        add("a2", "a1", "l2"),
        conv("c3", 5),
        add("m", "c3", "c4"),
        lif("l3"),
        *end(),
    ],
    "rules": [
        *STEM[:2],
        lif("l0", current=0.5, hold=1),
        conv("c1"),
        bn("b1"),
        add("a1", "l0", "b1"),
        lif("l1", current=0.25, gain=True, adapt=0.2, adapt_keep=0.9, reset="subtract"),
        *end({"current2": 0.5, "recurrent": {"inhibitory": 3}, "floor": -0.5}),
    ],
}
GRAPHS["sums of spikes"].insert(-4, conv("c4", 5, "l1", kernel=1))


def described(layers: Layers, **more: Any) -> Architecture:
    data = {"input": {"shape": SHAPE}, "layers": layers, "population": 1, "timesteps": 6}
    return Architecture.from_dict(data | more)


def random(arch: Architecture, seed: int = 0) -> STLNet:
    net = build_net(arch, seed, 2)
    with torch.no_grad():
        for name, value in net.named_buffers():
            if name.endswith("running_mean"):
                value.uniform_(-0.2, 0.2)
            elif name.endswith("running_var"):
                value.uniform_(0.1, 0.6)
    return net


def raster(arch: Architecture, samples: int = 10, seed: int = 0) -> np.ndarray:
    size = samples, arch.timesteps, *arch.input.shape
    return (np.random.default_rng(seed).random(size) < 0.4).astype(np.uint8)


def begun(arch: Architecture, bits: int = 6, chip: str = "loihi2") -> qat.QatNet:
    net = random(arch)
    return qat.from_checkpoint(stl.Checkpoint(arch, stl.params_of(net)), bits, chip)


def bounded_alike(learning: qat.QatNet, network: IntegerNetwork) -> None:
    """What bounds the integers while they are learned is what bounds them in the network."""
    steps = learning.arch.timesteps
    for name in learning.feeds:
        alone, population = learning._alone(name), network.by_name[name]
        mine = bounds.voltage_range(alone, alone.populations[0], steps)
        theirs = bounds.voltage_range(network, population, steps)
        for one, other, worst in zip(mine, theirs, (np.min, np.max), strict=True):
            channels = [worst(side.reshape(len(side), -1), axis=1) for side in (one, other)]
            np.testing.assert_array_equal(*np.broadcast_arrays(*channels))


def same(kept: STLNet, chip: str, x: np.ndarray, *others: STLNet) -> IntegerNetwork:
    """The network of ``kept`` on ``chip``, which spikes as the models do, and as the float graph says."""
    graph = stl_deploy.from_torch(kept)
    network = quantize(graph, chip)
    trace = reference.run(network, x, states=True)
    floats = execute.run(graph, x)
    with torch.no_grad():
        for model in (kept, converted(kept, torch.float64), *others):
            sent, v = model.trace(torch.from_numpy(x))
            for name in kept.feeds if isinstance(kept, qat.QatNet) else floats:
                np.testing.assert_array_equal(sent[name].numpy(), trace.layers[name].spikes)
                np.testing.assert_array_equal(floats[name], trace.layers[name].spikes)
            if v is not None:
                last = trace.layers[network.readout.source]
                unit = network.by_name[network.readout.source].neurons.scale / 64
                np.testing.assert_allclose(v.numpy(), last.v * unit, rtol=1e-6)
                scores = model(torch.from_numpy(x)).argmax(1)
                np.testing.assert_array_equal(scores.numpy(), trace.predictions)
    assert sum(int(did.overflow.sum()) for did in trace.layers.values()) == 0
    return network


@pytest.mark.parametrize("name", GRAPHS)
@pytest.mark.parametrize(("bits", "chip"), [(8, "loihi2"), (3, "ideal")])
def test_the_model_is_the_integer_network(name, bits, chip, tmp_path):
    arch = described(GRAPHS[name])
    learning = begun(arch, bits, chip)
    kept = learning.frozen()
    save_checkpoint(kept, tmp_path / "q.pt")
    read = stl_deploy.load(tmp_path / "q.pt")
    x = raster(arch)
    network = same(read, chip, x, learning.eval(), kept)
    bounded_alike(learning, network)
    rates = [layer.spikes.mean() for layer in reference.run(network, x).layers.values()]
    assert sum(0.02 < rate < 0.7 for rate in rates) > len(rates) / 2
    weights = {c.name: c.synapses.weight for c in network.connections}
    for source in arch.weighted:
        expected = kept.get_parameter(f"{source}.weight").detach().numpy()
        np.testing.assert_array_equal(weights[source], expected)


@pytest.mark.parametrize("name", GRAPHS)
def test_it_begins_where_the_float_network_ended(name):
    """It spikes about as near to it as what rounding to 8 bits gives: all weights arrive, each once."""
    arch = described(GRAPHS[name])
    net, x = random(arch), raster(arch, 20)
    learning = qat.from_checkpoint(stl.Checkpoint(arch, stl.params_of(net)), 8, "ideal")
    rounded = reference.run(quantize(stl_deploy.from_torch(net), "ideal"), x)
    with torch.no_grad():
        floats, whole = net.run(torch.from_numpy(x)), learning.eval().run(torch.from_numpy(x))
    for population, spikes in floats.items():
        off = (spikes != whole[population]).double().mean().item()
        least = (spikes.numpy() != rounded.layers[population].spikes).mean()
        assert off < 1.5 * least + 0.002, population


def test_spikes_that_are_added_weigh_the_whole_number_next_to_one():
    learning = begun(described(GRAPHS["spikes and a current"]))
    scale = learning.get_submodule("l2").scale
    kept = learning.frozen()
    one = kept.get_buffer("a2.one")
    assert (one == torch.round(1 / scale)).all()
    assert one.unique().numel() > 1
    network = quantize(stl_deploy.from_torch(kept), "loihi2")
    (way,) = (c for c in network.into("l2") if c.source == "l0")
    expected = np.repeat(one.numpy(), 36)
    np.testing.assert_array_equal(way.synapses.weight.reshape(-1), expected)


def test_it_stays_so_while_it_learns():
    arch = described(GRAPHS["rules"])
    learning = begun(arch, 5)
    before = {k: v.clone() for k, v in learning.state_dict().items()}
    settings = Settings(epochs=2, batch=20, lr=1e-2, encoding="recorded", weight_bits=5)
    trainer = Trainer(learning.arch, settings, model=learning)
    list(trainer.run(torch.from_numpy(raster(arch, 40)), torch.arange(40) % 10))
    after = learning.state_dict()
    learned = {"c1.weight", "c1.bias", "l1.thresh", "l1.gain", "fc.weight", "out.recurrent"}
    assert not [key for key in learned if torch.equal(before[key], after[key])]
    same(trainer.trained(), "loihi2", raster(arch, seed=1))


@pytest.mark.parametrize("readout", ["last", "mean", "max", "first"])
def test_readouts_by_voltage_have_one_unit(readout):
    rules = {"tau": 0.9} if readout == "first" else {"tau": 0.9, "fires": False, "current": 0.5}
    layers: Layers = [
        {"kind": "linear", "name": "fc1", "features": 20},
        lif("l1", reset="subtract"),
        *end(rules),
    ]
    arch = described(layers, readout=readout)
    learning = begun(arch, 5)
    network = same(learning.frozen(), "loihi2", raster(arch, 30), learning.eval())
    assert np.ptp(network.by_name["out"].neurons.scale) == 0
    assert network.readout.factors is None
    scores = learning(torch.from_numpy(raster(arch, 30)))
    learning.readout.loss(scores, torch.arange(30) % 10).backward()
    assert learning.get_parameter("fc1.weight").grad.abs().sum() > 0


def test_dales_law_counts_in_integers():
    layers: Layers = [
        {"kind": "linear", "name": "fc1", "features": 20},
        lif("l1", current=0.5, recurrent={"inhibitory": 5}),
        {"kind": "linear", "name": "fc2", "features": 12, "inhibitory": 5},
        lif("l2", current=0.5, current2=0.25),
        {"kind": "linear", "name": "fc3", "features": 10, "inhibitory": 4},
        lif("l3"),
    ]
    arch = described(layers)
    learning = begun(arch, 5)
    network = same(learning.frozen(), "loihi2", raster(arch), learning.eval())
    bounded_alike(learning, network)
    assert [c.port for c in network.into("l2")] == [0, 1]
    (way,) = network.into("l3")
    assert (way.synapses.weight[:, :8] >= 0).all()
    assert (way.synapses.weight[:, 8:] <= 0).all()


@pytest.mark.parametrize(
    ("layers", "error", "what"),
    [
        ([*STEM, conv("c1"), conv("c2", 4, "l0"), add("a", "c1", "c2"), bn("b"), lif("l1")],
         LoweringError, "b: normalizes a, which is no layer with weights"),
        ([*STEM, conv("c1"), lif("l1"), lif("l2", "c1"), add("a", "l1", "l2"), conv("c2"), lif("l3")],
         InputError, "c1: leads to l1 and l2"),
        ([*STEM, conv("c1"), conv("c2"), lif("l1")], InputError, "c1: leads to c2"),
        ([*STEM, conv("c1"), add("a", "c1", "c1"), lif("l1")], InputError, "a: adds up c1 twice"),
        ([conv("c0", 2), add("a", "c0", "input"), lif("l0")], InputError, "a: adds the input"),
        ([*STEM, lif("l1"), conv("c1"), lif("l2")], InputError, "l1: reads spikes that no weights"),
        ([*STEM, {"kind": "avgpool", "name": "p", "kernel": (2, 2)}, conv("c1"), lif("l1")],
         LoweringError, "p: average pooling"),
        ([*STEM, conv("c1"), lif("l1"), {"kind": "concat", "name": "k", "inputs": ("l0", "l1")},
          conv("c2"), lif("l2")], LoweringError, "k: a concatenation"),
    ],
)  # fmt: skip
def test_what_integers_cannot_be_is_refused_by_name(layers, error, what):
    arch = described([*layers, *end()])
    with pytest.raises(error, match=what):
        qat.quantized(arch, 8)
