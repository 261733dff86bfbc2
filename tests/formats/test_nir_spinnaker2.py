"""The dialect of py-spinnaker2: the integers on an independent reading of its importer, or an error."""

from __future__ import annotations

import json
from dataclasses import replace

import nir
import numpy as np
import pytest

import stl_deploy
from stl_deploy import from_torch, quantize
from stl_deploy.chips import facts as chips
from stl_deploy.errors import InputError, LoweringError
from stl_deploy.formats import nir_io
from stl_deploy.formats import portable_nir as nir_portable
from stl_deploy.formats import spinnaker2_nir as dialect
from stl_deploy.hw_sim import reference
from stl_deploy.importers.given import File, Given
from stl_deploy.importers.nir.graph import read_model
from stl_deploy.ir.network import Connection, Input, IntegerNetwork, Population
from stl_deploy.ir.neurons import Lif
from stl_deploy.ir.readouts import Readout
from stl_deploy.ir.synapses import Conv, Dense, OneToOne
from stl_deploy.ir.units import FORGETS
from stl_deploy.lower.relays import relayed
from tests.build import nir_cases, random_networks, spinnaker2
from tests.build.nets import random_net, random_spikes
from tests.build.networks import chain, pool, values
from tests.formats.test_nir_portable import halving


def rng(seed=3):
    return np.random.default_rng(seed)


def written(network, tmp_path):
    path = tmp_path / dialect.NAME
    dialect.write_beside(network, tmp_path)
    return path


def differing(network, raster, path, scale_weights=False):
    """Entries that differ on the chip, where each population is as late as it is deep, of how many."""
    meta = nir_portable.read_meta(nir_io.read(path))
    chip = spinnaker2.Chip(path, meta.reset, scale_weights)
    expected = reference.run(network, raster).layers
    assert set(chip.populations) == set(expected)
    wrong = entries = 0
    for i, sample in enumerate(raster):
        steps = len(sample) + network.hops
        seen = chip.run(sample, steps)
        for name, layer in expected.items():
            late = network.depth[name]
            ours, theirs = layer.spikes[i], seen[name][late : late + len(sample)]
            wrong += int((ours != theirs).sum())
            entries += ours.size
    return wrong, entries


def plain(network, reset):
    """Spikes as input, no current, no bias, one reset, thresholds of 0 or more, no decay that rounds."""
    network = halving(network)
    changed = [
        replace(
            p,
            neurons=replace(
                p.neurons,
                du=FORGETS,
                reset=reset,
                bias_mant=np.zeros_like(p.neurons.bias_mant),
                vth=np.maximum(p.neurons.vth, 0),
            ),
        )
        for p in network.weighted
    ]
    network = network.changed(*changed)
    (port,) = network.inputs.values()
    return replace(network, inputs={"input": Input(port.shape)}, placement=None)


@pytest.mark.parametrize("reset", ["zero", "subtract"])
def test_random_networks_have_their_spikes_on_the_chip(reset, tmp_path):
    """0 differ over networks with convolutions, max pooling, recurrent layers and exponents."""
    words, refused, entries, ones, tried, seed = set(), [], 0, 0, 0, 0
    while tried < 16:
        network, raster = random_networks.draw(seed, recurrent=seed % 2 == 1)
        network, seed = plain(network, reset), seed + 1
        assert seed < 90
        if nir_portable.inexact(network):
            continue
        try:
            path = written(network, tmp_path)
        except LoweringError as error:
            refused += error.problems
            continue
        tried += 1
        words |= {type(node).__name__ for node in nir_io.read(path).nodes.values()}
        raster = (raster > 0).astype(np.uint8)
        wrong, seen = differing(network, raster, path)
        ones += sum(int(x.spikes.sum()) for x in reference.run(network, raster).layers.values())
        assert wrong == 0, seed
        entries += seen
    assert {"Conv2d", "Linear", "LIF", "SumPool2d", "Flatten", "Affine"} <= words
    assert not {"Scale", "Threshold", "IF", "Delay"} & words
    assert entries > 5000
    assert 0.05 < ones / entries < 0.9
    assert all("strides" in p.what or "convolutions and" in p.what for p in refused)


def flat(size, **fields):
    zeros = np.zeros(size, np.int32)
    return Population(
        "", (size,), Lif(np.full(size, 150, np.int32), zeros, np.ones(size), **fields)
    )


def graph(populations, connections, **fields):
    """Populations by name behind an input of 12 spikes; the last is read out."""
    named = tuple(replace(p, name=name) for name, p in populations.items())
    settings = {"chip": "loihi2", "timesteps": 6, "inputs": {"input": Input((12,))}} | fields
    last = named[-1]
    return IntegerNetwork(
        populations=named,
        connections=tuple(connections),
        readout=Readout(last.size, 1, last.name),
        **settings,
    )


def way(source, target, inputs, outputs, seed=5, **fields):
    weight = rng(seed).integers(-60, 90, (outputs, inputs)).astype(np.int8)
    return Connection(f"{source}_{target}", source, target, Dense(weight), **fields)


def skip():
    """Three populations, of which the first leads to the last too."""
    ways = [way("input", "a", 12, 20), way("a", "b", 20, 20), way("b", "c", 20, 6)]
    return graph({"a": flat(20), "b": flat(20), "c": flat(6)}, [*ways, way("a", "c", 20, 6)])


def test_a_shorter_way_is_refused_and_relays_make_it_as_long(tmp_path):
    with pytest.raises(LoweringError, match=r"a_c \(a to c\): is 1 step shorter .* --skips relay"):
        dialect.from_network(skip())
    network = relayed(skip(), chips.load("loihi2"), "relay")
    raster = values((4, 6, 12), seed=1)
    assert differing(network, raster, written(network, tmp_path))[0] == 0


def test_kernels_in_groups_and_with_gaps_are_filled_up(tmp_path):
    """The importer reads neither groups nor dilation."""
    layer = nir_cases.conv(rng(), 4, 6, (3, 3), groups=2, dilation=(2, 1), padding=(1, 2))
    network = chain(layer, pool(layer.shape, (2, 2)), steps=5)
    path = written(network, tmp_path)
    node = next(n for n in nir_io.read(path).nodes.values() if isinstance(n, nir.Conv2d))
    assert node.weight.shape == (6, 4, 5, 3)
    assert differing(network, values((3, 5, 4, 8, 8), seed=2), path)[0] == 0


def test_one_to_one_weights_are_a_diagonal_or_a_kernel(tmp_path):
    network = relayed(nir_cases.skip(rng(), one_to_one=True), chips.load("loihi2"), "relay")
    assert differing(network, values((4, 5, 12), seed=3), written(network, tmp_path))[0] == 0
    shape = (2, 3, 3)
    kernel = Conv(np.full((2, 1, 1, 1), 90, np.int8), (1, 1), (0, 0), (1, 1), 2)
    neurons = Lif(np.full(shape, 70, np.int32), np.zeros((), np.int32), np.ones(()))
    populations = {name: Population("", shape, neurons) for name in "ab"}
    each = np.repeat(np.array([80, 100], np.int8), 9)
    ways = [Connection("w", "input", "a", kernel), Connection("x", "a", "b", OneToOne(each))]
    network = graph(populations, ways, inputs={"input": Input(shape)})
    path = written(network, tmp_path)
    assert isinstance(nir_io.read(path).nodes["x"], nir.Conv2d)
    assert differing(network, values((4, 6, *shape), seed=4), path)[0] == 0


def test_the_scale_of_a_population_is_one_where_its_largest_weight_is_127(tmp_path):
    """With scale_weights the importer multiplies by 127/max|w| and rounds."""
    exact = skip().connections[0]
    weight = exact.synapses.weight.copy()
    raster = values((20, 6, 12), seed=1)
    found = {}
    for largest in (127, 101):
        weight[0, 0] = largest
        network = graph({"a": flat(20)}, [replace(exact, synapses=Dense(weight.copy()))])
        path = written(network, tmp_path)
        assert differing(network, raster, path)[0] == 0
        found[largest] = differing(network, raster, path, scale_weights=True)[0]
    assert found[127] == 0
    assert found[101] > 0


def test_what_acts_before_the_first_input_is_noted(tmp_path):
    biased = Lif(np.full(6, 150, np.int32), np.full(6, 60, np.int32), np.ones(6))
    below = Lif(np.full(6, -5, np.int32), np.zeros(6, np.int32), np.ones(6))
    ways = [way("input", "a", 12, 6), way("a", "b", 6, 6), way("b", "c", 6, 6)]
    populations = {
        "a": flat(6),
        "b": Population("", (6,), biased),
        "c": Population("", (6,), below),
    }
    network = graph(populations, ways)
    path = written(network, tmp_path)
    late = "before the first input of py-spinnaker2, which arrives"
    assert {note.where: note.what for note in dialect.notes(network)} == {
        "b": f"its bias acts {late} 2 steps late",
        "c": f"its neurons fire without input, also {late} 3 steps late",
    }
    assert differing(network, values((4, 6, 12), seed=1), path)[0] > 0


def test_what_the_importer_cannot_be_told_is_refused_by_name():
    """All at once."""
    shape = (2, 4, 4)
    kernel = Conv(np.full((2, 2, 3, 3), -128, np.int8), (2, 1), (1, 1), (1, 1), 1)
    lif = Lif(np.full((2, 2, 4), 9, np.int32), np.zeros((), np.int32), np.ones(()))
    current = replace(lif, du=2047, reset="constant", v_reset=64)
    subtracts = replace(lif, reset="subtract")
    ways = [
        Connection("k", "input", "a", kernel),
        Connection("o", "a", "b", OneToOne(np.ones(16, np.int8))),
        Connection("p", "b", "c", OneToOne(np.ones(16, np.int8))),
    ]
    populations = {
        name: Population("", (2, 2, 4), n)
        for name, n in zip("abc", (current, subtracts, lif), strict=True)
    }
    network = graph(populations, ways, chip="ideal", inputs={"input": Input(shape, levels=7)})
    with pytest.raises(LoweringError) as caught:
        dialect.from_network(network)
    said = {f"{p.where}: {p.what}" for p in caught.value.problems}
    for begins in (
        "input: is graded (0..7)",
        "a: resets v to other than 0",
        "reset: c reset to 0, b by subtraction",
        "a: has a current behind a convolution",
        "k (input to a): has a weight of size 128",
        "k (input to a): has strides (2, 1)",
    ):
        assert any(text.startswith(begins) for text in said), begins
    late = way("input", "a", 12, 6, delay=1)
    with pytest.raises(LoweringError, match="has a delay"):
        dialect.from_network(graph({"a": flat(6)}, [late]))
    adapts = graph({"a": flat(6, adapt=64)}, [way("input", "a", 12, 6)])
    with pytest.raises(LoweringError, match="a: adaptive threshold"):
        dialect.from_network(adapts)
    matrix = Readout(4, 1, "a", matrix=rng().integers(-9, 9, (4, 6)))
    ends = replace(graph({"a": flat(6)}, [way("input", "a", 12, 6)]), readout=matrix)
    with pytest.raises(LoweringError, match="readout: is a matrix"):
        dialect.from_network(ends)


def test_an_export_of_a_trained_model_has_its_spikes_on_the_chip(tmp_path):
    """With the file, its name in the manifest, and no command that takes it for a model."""
    model = random_net()
    float_graph = from_torch(model)
    network, raster = quantize(float_graph, chip="loihi2"), random_spikes(model, 4)
    assert any(p.kind == "or" for p in network.populations)
    out = tmp_path / "out"
    stl_deploy.export(network, "nir", out, graph=float_graph, nir_dialect="spinnaker2")
    manifest = json.loads((out / "manifest.json").read_text())
    assert manifest["nir_dialect"] == "spinnaker2"
    assert dialect.NAME in manifest["files"]
    path = out / dialect.NAME
    noted = [d["where"] for d in manifest["diagnostics"] if "bias acts" in d["what"]]
    assert noted == ["lif1", "lif2"]
    unbiased = [
        replace(p, neurons=replace(p.neurons, bias_mant=np.zeros_like(p.neurons.bias_mant)))
        for p in network.weighted
    ]
    unbiased = network.changed(*unbiased)
    assert differing(unbiased, raster, written(unbiased, tmp_path))[0] == 0
    for node in nir_io.read(path).nodes.values():
        if isinstance(node, nir.LIF):
            assert node.metadata["reset"] == "zero"
    with pytest.raises(InputError, match=r"written for other tools .* model\.nir"):
        read_model(File(path, Given()))
