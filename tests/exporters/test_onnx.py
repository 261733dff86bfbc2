"""ONNX: the exported integers under onnxruntime and under ONNX's own reference evaluator, bit for bit.

``STL_ONNX_NETWORKS`` sets how many random networks of each kind are compared (default 3; releases run
50), ``STL_ONNX_SEED`` the first seed.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import os
import re
import subprocess
import sys
from dataclasses import asdict, replace

import nir
import numpy as np
import onnx
import pytest

import stl_deploy
from stl_deploy import backends, exporters
from stl_deploy.backends import onnx as onnx_backend
from stl_deploy.commands import common
from stl_deploy.commands import export as export_command
from stl_deploy.errors import BackendError, InputError, LoweringError
from stl_deploy.exporters import folder as output
from stl_deploy.exporters import onnx as exporter
from stl_deploy.exporters import (
    onnx_float,
    onnx_graph,
    onnx_limits,
    onnx_sums,
)
from stl_deploy.formats.integer_nir import to_nir
from stl_deploy.formats.nir_io import write as write_nir
from stl_deploy.formats.raster import load as load_raster
from stl_deploy.hw_sim import reference
from stl_deploy.ir import execute as float_exec
from stl_deploy.ir import nir_graph as G
from stl_deploy.ir.readouts import Readout
from stl_deploy.ir.synapses import Conv, Dense, Sparse
from stl_deploy.verify import against_reference as agreement
from tests.build import random_graphs, random_networks
from tests.build.floats import cuba, random_graph
from tests.build.floats import graph as graph_of
from tests.build.nets import ROOT, ZOO, ZOO_RASTER, random_net, random_spikes
from tests.build.networks import chain, dense_lif, lif, pool
from tests.build.onnx_models import by_step, checked, compared, named, session
from tests.build.random_graphs import TABLE

NETWORKS = int(os.environ.get("STL_ONNX_NETWORKS", "3"))
SEED = int(os.environ.get("STL_ONNX_SEED", "20230"))
INTEGER_OPERATORS = {
    *("Add", "And", "Cast", "Clip", "Concat", "ConstantOfShape", "ConvInteger", "Div", "Equal"),
    *("Expand", "Gather", "GatherND", "Greater", "Identity", "Less", "MatMul"),
    *("MatMulInteger", "Max", "Min", "Mod", "Mul", "Range", "ReduceMax", "ReduceMin", "ReduceSum"),
    *("Reshape", "Scan", "Shape", "Slice", "Squeeze", "Sub", "Tile", "TopK", "Transpose"),
    *("Unsqueeze", "Where"),
}


# Integers


KINDS = {"plain": {}, "process_graph": {"process_graph": True}, "recurrent": {"recurrent": True}}


@pytest.mark.parametrize("kind", KINDS)
def test_random_networks_are_the_same(kind):
    """Every layer fires 2 to 60 % and minds its thresholds (random_networks.py)."""
    print(f"seeds {SEED} to {SEED + NETWORKS - 1}")  # shown when the test fails
    entries = 0
    for seed in range(SEED, SEED + NETWORKS):
        network, raster = random_networks.draw(seed, **KINDS[kind])
        result = compared(network, raster)
        assert result.exact, f"seed {seed}, {kind}: {result}"
        entries += result.entries
    assert entries > 500 * NETWORKS


def test_random_graphs_are_the_same():
    """Joins, delays, loops, one-to-one, several inputs, signed and held ones (random_graphs.py)."""
    print(f"seeds {SEED} to {SEED + 4 * NETWORKS - 1}")
    seen = set()
    for seed in range(SEED, SEED + 4 * NETWORKS):
        network, rasters = random_graphs.draw(seed)
        result = compared(network, rasters)
        assert result.exact, f"seed {seed}: {result}"
        seen |= {c.synapses.kind for c in network.connections}
        seen |= {"delay" for c in network.connections if c.delay}
        seen |= {"loop" for part in network.parts if len(part) > 1}
        seen |= {"signed" for port in network.inputs.values() if port.signed}
        seen |= {"held" for port in network.inputs.values() if port.held}
    assert seen >= {"dense", "conv", "one_to_one", "delay", "loop", "signed", "held"}


def test_the_zoo_model_is_the_same():
    network = stl_deploy.quantize(stl_deploy.from_torch(stl_deploy.load(ZOO)), chip="loihi2")
    spikes = load_raster(ZOO_RASTER).spikes[:30]
    told = []
    result = agreement.measure("onnx", network, spikes, on_steps=told.append)
    entries = 30 * 4 * sum(n.size for n in network.populations)
    assert result == agreement.Agreement(entries, states=2 * entries)
    assert told == [100, 120]  # in batches, so that memory stays bounded


def loaded(rng, chip, kind=np.int8, levels=1, steps=5):
    """Layers of all sorts whose sums leave the registers, or would need more than int8."""
    top = min(np.iinfo(kind).max, 16_383 if chip == "ideal" else 1 << 15)

    def weight(*size):
        return rng.integers(-top, top + 1, size).astype(kind)

    def layer(name, synapses, before, shape, exp, **fields):
        vth = rng.integers(-3 if chip == "ideal" else 0, 131_071, shape).astype(np.int32)
        bias = rng.integers(-4096, 4096, shape[0]).astype(np.int32)
        decays = {"du": int(rng.integers(0, 4096)), "dv": int(rng.integers(0, 3000))}
        fixed = {"bias_exp": int(rng.integers(0, 8)), "exp": exp, **decays, **fields}
        return lif(name, synapses, before, shape, vth, bias, **fixed)

    soft = "zero" if chip == "loihi1" else "subtract"
    conv = Conv(weight(6, 2, 3, 2), (2, 1), (1, 2), (2, 1), 2)
    single = random_networks.single(
        rng,
        layer("lif3", Conv(weight(4, 3, 2, 2), (1, 1), (0, 1), (1, 1), 2), (6, 4, 3), (4, 3, 4), 3),
    )
    if kind != np.int8:
        wide = weight(len(single.synapses.weight))
        single = replace(single, synapses=replace(single.synapses, weight=wide))
    layers = (
        layer("lif1", conv, (4, 9, 3), (6, 4, 6), 7, reset=soft),
        pool((6, 4, 6), (1, 2)),
        single,
        layer("lif4", Dense(weight(20, 48)), (4, 3, 4), (20,), 7, recurrent=Dense(weight(20, 20))),
    )
    network = chain(*layers, chip=chip, steps=steps, levels=levels, readout=Readout(5, 4))
    raster = rng.integers(0, levels + 1, (3, steps, 4, 9, 3)).astype(np.uint8)
    return network, raster


@pytest.mark.parametrize("levels", [1, 127, 255])
@pytest.mark.parametrize("chip", ["loihi1", "loihi2", "ideal"])
@pytest.mark.parametrize("kind", [np.int8, np.int16])
def test_registers_that_overflow_and_weights_beyond_int8(kind, chip, levels):
    """u wraps at 2^32 and once at M, v saturates; more than eight bits go in slices."""
    rng = np.random.default_rng([levels, len(chip), np.dtype(kind).itemsize])
    for _ in range(2):
        network, raster = loaded(rng, chip, kind, levels)
        trace = reference.run(network, raster, states=True)
        overflow = [bool(trace.layers[n.name].overflow.any()) for n in network.weighted]
        assert overflow[0] == (chip != "ideal")
        if kind == np.int16:
            assert overflow == [chip != "ideal"] * 3
        if kind == np.int16 and levels > 1:
            first = network.into("lif1")[0].sums(raster[:, 0], levels)
            assert int(abs(first).max()) << 6 > 1 << 31
        result = compared(network, raster)
        assert result.exact, result
        if chip != "ideal":
            largest = max(int(abs(trace.layers[n.name].v).max()) for n in network.weighted)
            assert largest == (1 << 23) - 1
        assert any(trace.layers[n.name].spikes.any() for n in network.weighted)


@pytest.mark.parametrize("chip", ["loihi1", "loihi2"])
def test_the_ends_of_the_registers(chip):
    """u at M, at -M and one step beyond: only above M and from -M down it wraps. v stops at M - 1."""
    sums = np.array([131_072, 131_073, -131_071, -131_072, -131_073])  # 64 of u each
    weight = np.full((5, 1_100), 126, np.int8) * np.sign(sums)[:, None].astype(np.int8)
    weight[:, 0] = abs(sums) % 126 * np.sign(sums)
    heard = abs(sums) // 126
    weight[np.arange(1_100)[None] > heard[:, None]] = 0
    np.testing.assert_array_equal(weight.sum(axis=1, dtype=np.int64), sums)
    layer = dense_lif(weight, 131_071, bias=[-1, 0, -1, 0, 0], bias_exp=0, dv=0)
    network = chain(layer, chip=chip, steps=2)
    raster = np.ones((1, 2, 1_100), np.uint8)
    u = reference.run(network, raster, states=True).layers["lif"].u[0, 0]
    limit = 1 << 23
    assert u.tolist() == [limit, 64 - limit, 64 - limit, limit, limit - 64]
    assert compared(network, raster).exact


@pytest.mark.parametrize("precision", ["split", "2x8"])
def test_weights_in_groups_and_slices_are_the_same(net, precision):
    graph = stl_deploy.from_torch(net)
    network = stl_deploy.quantize(graph, chip="loihi2", weight_precision=precision)
    assert any(abs(c.synapses.weight.astype(int)).max() > 128 for c in network.connections)
    assert compared(network, random_spikes(net, 5)).exact


@pytest.mark.parametrize("levels", [1, 127, 128, 255])
@pytest.mark.parametrize("kind", [np.int8, np.int16])
def test_slices_add_up_and_two_products_fit_16_bits(kind, levels):
    every = np.arange(np.iinfo(kind).min, np.iinfo(kind).max + 1).astype(kind)
    total = np.zeros(len(every), np.int64)
    parts = onnx_sums.slices(every, levels)
    for part, shift in parts:
        assert part.dtype == np.int8
        assert 2 * levels * int(abs(part.astype(int)).max()) < 1 << 15
        total += part.astype(np.int64) << shift
    np.testing.assert_array_equal(total, every)
    assert len(parts) == {(np.int8, False): 1, (np.int8, True): 2}.get((kind, levels > 127), 3)
    ((zero, shift),) = onnx_sums.slices(np.zeros((2, 3), kind), levels)
    assert not zero.any()
    assert shift == 0


def test_blocks_are_the_connections():
    """A folded convolution as small matrices: every connection where it belongs, none else."""
    rng = np.random.default_rng(0)
    network, _ = loaded(rng, "loihi2")
    (found,) = (c for c in network.connections if isinstance(c.synapses, Sparse))
    sparse, (outputs, *plane) = found.synapses, network.shape(found.target)
    want = sparse.matrix.toarray()
    for groups in (1, 2, 4):
        index, weight = onnx_sums.blocks(sparse, outputs, groups)
        places, slots = int(np.prod(plane)), outputs // groups
        assert weight.shape == (*index.shape, slots)
        got = np.zeros_like(want)
        for block, k, slot in np.ndindex(weight.shape):
            neuron = (block // places * slots + slot) * places + block % places
            got[neuron, index[block, k]] += weight[block, k, slot]
        np.testing.assert_array_equal(got, want)
    # The groups of the kernel: no block hears the other group's channels.
    assert onnx_sums.blocks(sparse, outputs, 2)[0].shape[1] <= 3 * 2 * 2


def test_batch_and_time_are_free_and_no_state_is_kept():
    network, _ = random_networks.draw(SEED, recurrent=True)
    running = onnx_backend.Session(network)
    rng = np.random.default_rng(1)
    for n, steps in ((1, 1), (7, network.timesteps + 5), (2, 3), (0, 2)):
        port = network.inputs["input"]
        raster = rng.integers(0, port.levels + 1, (n, steps, *port.shape)).astype(np.uint8)
        got = running.run(raster)
        assert got["scores"].shape == (n, network.readout.classes)
        if n:
            want = reference.run(network, raster, states=True)
            assert agreement.compare(network, want, got).exact


def renamed(network, names):
    """``network`` with other names of its populations, in their order."""
    new = dict(zip(network.by_name, names, strict=True))
    return replace(
        network,
        populations=tuple(replace(p, name=new[p.name]) for p in network.populations),
        connections=tuple(
            replace(c, source=new.get(c.source, c.source), target=new[c.target])
            for c in network.connections
        ),
        readout=replace(network.readout, source=new[network.readout.source]),
    )


def test_populations_and_inputs_may_be_called_anything():
    network, raster = loaded(np.random.default_rng(5), "loihi2")
    names = ("step", "by_time", "u", "scores")
    network = renamed(network, names)
    assert compared(network, raster).exact
    names = ("input_by_time", "lif_by_time", "lif", "readout.groups")
    network = renamed(network, names)
    assert compared(network, raster).exact
    (port,) = network.inputs.values()
    connections = tuple(
        replace(c, source="scores" if c.source == "input" else c.source)
        for c in network.connections
    )
    network = replace(network, inputs={"scores": port}, connections=connections)
    assert compared(network, {"scores": raster}).exact


@pytest.mark.parametrize("kind", KINDS)
def test_the_step_carries_its_state_by_name(kind):
    network, raster = random_networks.draw(SEED + 1, **KINDS[kind])
    late = {c.source: c.delay for c in network.connections if c.delay}
    if kind == "recurrent":  # and one step longer
        connections = tuple(replace(c, delay=2 * c.delay) for c in network.connections)
        network = replace(network, connections=connections)
        assert late
    model = checked(exporter.step(network))
    assert {value.name for value in model.graph.input} == {"input"} | {
        f"past_in/{name}" for name in late
    } | {f"{what}_in/{n.name}" for n in network.weighted for what in "uv"}
    got, want = by_step(network, raster), reference.run(network, raster, states=True)
    assert agreement.compare(network, want, got).exact


def operators(graph):
    for node in graph.node:
        yield node.op_type
        for attribute in node.attribute:
            if attribute.type == onnx.AttributeProto.GRAPH:
                yield from operators(attribute.g)


def test_nothing_is_computed_in_floating_point():
    rng = np.random.default_rng(0)
    for chip in ("loihi1", "loihi2", "ideal"):
        network, _ = loaded(rng, chip)
        graphs = [random_graphs.draw(5)[0], *(random_graphs.draw(i, TABLE)[0] for i in range(8))]
        every = (exporter.step(network), exporter.scan(network), *map(exporter.scan, graphs))
        for model in every:
            assert set(operators(model.graph)) <= INTEGER_OPERATORS
            assert [(o.domain, o.version) for o in model.opset_import] == [("", 17)]
            text = onnx.printer.to_text(model)
            assert not re.search(r"\b(float|double|float16)\b", text)


# Floats


def float_run(graph, raster):
    """Spikes of float_step.onnx, step by step, under onnxruntime."""
    (model,) = (onnx.helper.make_model(onnx_float.graph(graph), **exporter.VERSIONS),)
    running = session(checked(model))
    kinds = {"tensor(uint8)": np.uint8, "tensor(float)": np.float32}
    state = {
        value.name: np.zeros((len(raster), *value.shape[1:]), kinds[value.type])
        for value in running.get_inputs()
        if value.name != "input"
    }
    steps = []
    for t in range(raster.shape[1]):
        steps.append(named(running, {"input": raster[:, t], **state}))
        state = {name: steps[-1][name.replace("_in/", "/")] for name in state}
    return {name: np.stack([step[name] for step in steps], axis=1) for name in steps[0]}


def float_differences(graph, raster):
    want, got = float_exec.run(graph, raster), float_run(graph, raster)
    assert {name for name in got if name.startswith("spikes/")} == {f"spikes/{n}" for n in want}
    assert all(0.005 < spikes.mean() < 0.9 for spikes in want.values())
    return sum(int((got[f"spikes/{name}"] != spikes).sum()) for name, spikes in want.items())


def test_the_float_step_spikes_as_the_float_graph_does():
    net = random_net()
    assert float_differences(stl_deploy.from_torch(net), random_spikes(net, 20)) == 0


@pytest.mark.parametrize("reset", ["zero", "subtract"])
def test_currents_recurrence_and_resets_in_float(reset):
    rng = np.random.default_rng(3)
    graph = random_graph(rng)
    node = cuba(rng, 10, v_leak=np.zeros(10))
    node.metadata = {"reset": reset}
    (last,) = (a for a, b in graph.edges if b == "output")
    nodes = graph.nodes | {"fc3": nir.Linear(weight=rng.normal(size=(10, 10))), "lif3": node}
    edges = [(a, "fc3" if (a, b) == (last, "output") else b) for a, b in graph.edges]
    edges += [("fc3", "lif3"), ("lif3", "output")]
    graph = nir.NIRGraph(nodes, edges, metadata=graph.metadata, type_check=False)
    raster = (rng.random((10, 6, 40)) < 0.5).astype(np.uint8)
    assert float_differences(graph, raster) == 0


def test_integrate_and_fire_in_float():
    rng = np.random.default_rng(4)
    nodes = {
        "fc1": nir.Linear(weight=rng.normal(size=(30, 40))),
        "lif1": G.integrate_and_fire(rng.uniform(3, 9, 30)),
        "fc2": nir.Linear(weight=rng.normal(size=(10, 30))),
        "lif2": G.integrate_and_fire(rng.uniform(1, 3, 10), 0.7),
    }
    graph = graph_of(nodes, 40, 10, timesteps=6)
    raster = (rng.random((10, 6, 40)) < 0.3).astype(np.uint8)
    assert float_differences(graph, raster) == 0


def test_a_threshold_reached_exactly_fires_in_float32_too():
    """nextafter(theta, -inf) in float64 rounds back to theta, which v has to exceed."""
    theta = np.array([0.5, 0.75, 1.0])
    lif = G.lif(np.nextafter(theta, -np.inf), tau=2e-4, r=2.0)
    nodes = {"fc": nir.Linear(weight=np.diag(theta)), "lif": lif}
    graph = graph_of(nodes, 3, 3, timesteps=1)
    raster = np.ones((1, 1, 3), np.uint8)
    assert float_run(graph, raster)["spikes/lif"].all()
    assert (onnx_float._down(np.array([0.1, -0.1])) <= [0.1, -0.1]).all()


def test_what_has_no_float_step_is_left_out_and_said(net, tmp_path):
    network = stl_deploy.quantize(stl_deploy.from_torch(net), chip="loihi2")
    unknown = graph_of(
        {"fc": nir.Linear(weight=np.ones((3, 3))), "drop": G.Dropout((3,), (3,))}, 3, 3
    )
    trained = stl_deploy.from_torch(net)
    said = G.float_meta(trained).model_dump()
    scale = {n.name: [1.0] * n.shape[0] for n in network.weighted}
    said |= {"trained": {"weight_bits": 8, "scale": scale}}
    trained.metadata = {G.KEY: json.dumps(said)}
    for i, (graph, why) in enumerate(
        (
            (None, "there is no float graph"),
            (unknown, "drop: a Dropout has no place in a lowered float graph"),
            (trained, "the model was trained on integers"),
        )
    ):
        (tmp_path / str(i)).mkdir()
        (note,) = exporters.write(network, "onnx", tmp_path / str(i), exporters.Origin(graph))
        assert note.where == "onnx/float_step.onnx"
        assert note.what.startswith(f"not written: {why}")
        names = sorted(path.name for path in (tmp_path / str(i) / "onnx").iterdir())
        assert names == ["scan.onnx", "step.onnx"]


def test_integers_that_are_exported_again_say_how_to_get_the_float_step(model, tmp_path, capsys):
    """On the command line there is no graph to give; model.float.nir is what it takes."""
    for source, out, note in (
        (model, "first", None),
        (tmp_path / "first" / "model.nir", "again", "model.float.nir next to model.nir"),
        (tmp_path / "first" / "model.float.nir", "float", None),
    ):
        words = [str(source), "--target", "onnx", "--json", "-o", str(tmp_path / out)]
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("sys.argv", ["stl-export", *words])
            with pytest.raises(SystemExit) as end:
                common.run(export_command.export, "stl-export")
        assert end.value.code == 0
        said = json.loads(capsys.readouterr().out)
        remedies = [d["remedy"] for d in said["diagnostics"] if "float_step" in d["where"]]
        assert ("onnx/float_step.onnx" in said["files"]) == (note is None)
        assert [note in remedy for remedy in remedies] == ([] if note is None else [True])


# Files


def test_an_export_says_what_it_is(net, model, tmp_path):
    network = stl_deploy.quantize(stl_deploy.from_torch(net), chip="loihi2")
    outs = [tmp_path / "a", tmp_path / "b"]
    for out in outs:
        graph = stl_deploy.from_torch(net)
        manifest = output.export(network, "onnx", out, graph=graph, source=model)
    digest = hashlib.sha256(model.read_bytes()).hexdigest()
    assert manifest["source"]["sha256"] == digest
    names = sorted(path.name for path in (outs[0] / "onnx").iterdir())
    assert names == ["float_step.onnx", "scan.onnx", "step.onnx"]
    for name in names:
        raw = (outs[0] / "onnx" / name).read_bytes()
        assert raw == (outs[1] / "onnx" / name).read_bytes()
        assert manifest["files"][f"onnx/{name}"] == hashlib.sha256(raw).hexdigest()
        loaded_model = checked(onnx.load(outs[0] / "onnx" / name))
        said = {p.key.removeprefix("stl_deploy."): p.value for p in loaded_model.metadata_props}
        assert said.pop("model") == name.removesuffix(".onnx")
        scales = json.loads(said.pop("scales"))
        for population in network.weighted:
            scale = population.neurons.scale.reshape(-1)
            np.testing.assert_array_equal(scales[population.name], scale)
        assert said == {
            "format": "stl-deploy/onnx",
            "version": "3",
            "chip": "loihi2",
            "timesteps": "4",
            "inputs": '{"input": {"levels": 1, "signed": false, "held": false}}',
            "readout": '{"source": "lif4", "classes": 10, "population": 2, "rule": "votes"}',
            "source_sha256": digest,
        }


def test_what_cannot_be_carried_is_named_at_once(tmp_path):
    network, _ = loaded(np.random.default_rng(0), "ideal")

    def other(name, **fields):
        population = network.by_name[name]
        return replace(population, neurons=replace(population.neurons, **fields))

    broken = replace(
        network.changed(
            replace(network.into("lif3")[0], exp=8),
            other("lif4", dv=5000, bias_exp=8),
        ),
        inputs={"input": replace(network.inputs["input"], levels=256)},
    )
    with pytest.raises(LoweringError) as caught:
        exporters.write(broken, "onnx", tmp_path)
    lines = [str(problem).split(" -> ")[0] for problem in caught.value.problems]
    assert lines == [
        "input: input levels 256; ONNX reads it as uint8, up to 255",
        "lif3_w: weight exponent 8 is outside 0..7",
        "lif4: voltage decay dv 5000 is outside 0..4096",
        "lif4: bias exponent 8 is outside 0..7",
    ]
    assert not list((tmp_path / "onnx").iterdir())


def one_dense(inputs, levels=1, chip="loihi2", **fields):
    layer = dense_lif(np.full((1, inputs), -127), 0, **fields)
    return chain(layer, chip=chip, steps=4096, levels=levels)


@pytest.mark.parametrize(
    ("network", "what"),
    [
        (
            one_dense(300_000, 127),
            "lif_w: a sum can reach 4838700000; ONNX adds products in 32 bits",
        ),
        (
            one_dense(130_000, 127, "ideal", exp=7, du=0, dv=0),
            r"lif: u or v can reach \d+; the decay is exact below 1125899906842624",
        ),
    ],
)
def test_sums_and_states_that_do_not_fit_are_refused(network, what):
    (problem,) = onnx_limits.problems(network)
    assert re.match(what, str(problem))


@pytest.mark.parametrize("kind", ["dense", "conv"])
def test_sums_just_below_the_limit_are_right(kind):
    """int32 to its last 0.02 %, and the register of u far beyond its end."""
    inputs = ((1 << 31) - 1) // (127 * 127)
    network = one_dense(inputs, 127)
    if kind == "conv":
        weight, shape = np.full((1, inputs, 1, 1), -127, np.int8), (inputs, 1, 1)
        layer = lif("lif", Conv(weight, (1, 1), (0, 0), (1, 1), 1), shape, (1, 1, 1))
        network = chain(layer, chip="loihi2", steps=4096, levels=127)
    assert not onnx_limits.problems(network)
    raster = np.full((1, 2, *network.shape("input")), 127, np.uint8)
    got = onnx_backend.Session(network).run(raster)
    want = reference.run(network, raster, states=True)
    assert agreement.compare(network, want, got).exact


def test_a_file_that_would_be_too_large_is_refused(net, monkeypatch, tmp_path):
    network, _ = loaded(np.random.default_rng(0), "loihi2")
    size = len(exporter.scan(network).SerializeToString())
    monkeypatch.setattr(onnx_graph, "FILE_BYTES_MAX", 2_000)
    (problem,) = onnx_limits.problems(network)
    said = int(re.search(r"take ([\d,]+) bytes", problem.what).group(1).replace(",", ""))
    weights = sum(len(c.raw_data) for c in exporter.step(network).graph.initializer)
    assert weights - 2_000 < said
    assert size > weights
    small = stl_deploy.quantize(stl_deploy.from_torch(net))
    with pytest.raises(LoweringError, match="an ONNX file holds 2,000"):
        stl_deploy.export(small, "onnx", tmp_path / "out")
    assert not list(tmp_path.iterdir())
    (note,) = onnx_float.notes(stl_deploy.from_torch(net))
    assert "an ONNX file holds 2,000" in note.what


# The commands


@pytest.fixture
def lowered(net, tmp_path):
    path = tmp_path / "model.nir"
    write_nir(to_nir(stl_deploy.quantize(stl_deploy.from_torch(net), chip="loihi2")), path)
    return path


def test_parity_with_onnx(command, model, lowered, raster):
    args = (model, lowered, "--input", raster, "--backend", "hw_sim,onnx", "--json")
    code, out, err = command("stl-parity", *args)
    assert (code, err) == (0, "")
    entries = 12 * 4 * sum(p.size for p in stl_deploy.load(lowered).populations)
    exact = asdict(agreement.Agreement(entries, states=2 * entries))
    assert json.loads(out)["backends"] == {"hw_sim": exact, "onnx": exact}


def test_parity_sees_a_model_that_differs(command, model, lowered, raster, monkeypatch):
    """The thresholds of one layer halved."""
    true_scan = exporter.scan

    def wrong(network):
        last = network.by_name["lif4"]
        halved = replace(last.neurons, vth=last.neurons.vth // 2)
        return true_scan(network.changed(replace(last, neurons=halved)))

    monkeypatch.setattr(exporter, "scan", wrong)
    args = (model, lowered, "--input", raster, "--backend", "onnx", "--json")
    code, out, err = command("stl-parity", *args)
    assert code == 1
    found = json.loads(out)["backends"]["onnx"]
    assert found["spike_mismatches"] > 0
    assert found["first"]["layer"] == "lif4"
    assert "onnx differs from the reference in" in err


def test_without_the_extra_the_remedy_is_said(
    command, model, lowered, raster, monkeypatch, tmp_path
):
    before = sorted(tmp_path.iterdir())
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    args = (model, lowered, "--input", raster, "--backend", "onnx")
    code, out, err = command("stl-parity", *args)
    assert (code, out) == (2, "")
    assert "backend onnx: needs the packages onnxruntime" in err
    assert "pip install 'stl-deploy[onnx]'" in err
    monkeypatch.setitem(sys.modules, "onnx", None)
    code, out, err = command("stl-export", model, "--target", "onnx", "-o", tmp_path / "out")
    assert (code, out) == (2, "")
    assert "target onnx: needs the packages onnx" in err
    assert sorted(tmp_path.iterdir()) == before
    with pytest.raises(InputError, match="needs the packages onnx"):
        exporters.check(("onnx",))
    extras = importlib.metadata.metadata("stl-deploy").get_all("Provides-Extra")
    entries = [*exporters.TARGETS.values(), *backends.BACKENDS.values()]
    assert {entry.extra for entry in entries if entry.extra} <= set(extras)


def test_a_failing_onnxruntime_is_one_error(net, monkeypatch):
    network = stl_deploy.quantize(stl_deploy.from_torch(net), chip="loihi2")
    running = onnx_backend.Session(network)
    with pytest.raises(BackendError, match="onnx: onnxruntime failed: "):
        running.run(np.zeros((1, 2, 3), np.uint8))
    monkeypatch.setattr(exporter, "scan", lambda _: onnx.ModelProto())
    with pytest.raises(BackendError, match="onnx: onnxruntime does not take the model: "):
        onnx_backend.Session(network)


# docs/onnx.md


def test_the_examples_of_the_documentation_run(command, model, raster, tmp_path):
    """In a process of their own, in which nothing of this project can be imported."""
    text = (ROOT / "docs" / "onnx.md").read_text("utf-8")
    scripts = re.findall(r"```python\n(.*?)```", text, re.S)
    assert len(scripts) == 2
    assert command("stl-export", model, "--target", "onnx", "-o", tmp_path / "out")[0] == 0
    network = stl_deploy.load(tmp_path / "out" / "model.nir")
    want = reference.run(network, load_raster(raster).spikes, states=True)
    os.rename(raster, tmp_path / "test.npz")
    for script in scripts:
        code = f"import sys; sys.modules['stl_deploy'] = None\n{script}np.savez('got.npz', **got)\n"
        subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=True)
        with np.load(tmp_path / "got.npz") as got:
            assert agreement.compare(network, want, got).exact
            if "scores" in got:
                np.testing.assert_array_equal(got["prediction"], want.predictions)
