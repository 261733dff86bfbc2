"""ONNX: every rule of neurons and every readout, bit for bit in every state."""

from __future__ import annotations

import json
from dataclasses import fields, replace
from typing import Any

import nir
import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stl_deploy.backends import onnx as onnx_backend
from stl_deploy.chips import facts
from stl_deploy.errors import BackendError
from stl_deploy.exporters import onnx as exporter
from stl_deploy.exporters import onnx_float, onnx_limits, onnx_neurons
from stl_deploy.hw_sim import reference
from stl_deploy.ir import kinds
from stl_deploy.ir import nir_graph as G
from stl_deploy.ir.network import Connection, Input, IntegerNetwork, Population
from stl_deploy.ir.neurons import ONCE, Graded, Lif
from stl_deploy.ir.readouts import Readout
from stl_deploy.ir.synapses import Dense, OneToOne
from stl_deploy.verify import against_reference as agreement
from tests.build import edges as edges_of
from tests.build import float_networks, random_graphs, ties
from tests.build.floats import graph as graph_of
from tests.build.onnx_models import by_step, checked, compared, named, same, same_states, session


def rules_of(network: IntegerNetwork) -> set[str]:
    found = {f"readout {network.readout.rule}"}
    for population in network.populations:
        found |= set(kinds.unknown_fields(population.neurons)) | set(population.neurons.states)
    found |= {
        f"readout {kind}"
        for kind in ("steps", "factors", "matrix", "offset")
        if getattr(network.readout, kind) is not None
    }
    return found | {"port" for c in network.connections if c.port}


def test_random_graphs_over_the_whole_table():
    """scan.onnx under both tools and step.onnx, in every state; scores and predictions too."""
    seen: set[str] = set()
    graphs = entries = values = 0
    for seed, network, rasters in random_graphs.over_the_table(15):
        result = compared(network, rasters)
        assert result.exact, f"seed {seed}: {result}"
        want = reference.run(network, rasters, states=True)
        same_states(want, by_step(network, rasters))
        graphs, entries, values = graphs + 1, entries + result.entries, values + result.states
        seen |= rules_of(network)
    print(f"{graphs} graphs, {entries:,} values sent, {values:,} states")
    assert entries > 500 * graphs
    rules = {"adapt", "du2", "fires", "floor", "gain", "graded", "hold", "reset_current", "v0"}
    assert seen >= rules | {"port", "q", "rest", "reset none", "reset constant", "u2", "v_reset"}
    assert seen >= {f"readout {rule}" for rule in random_graphs.READOUTS}
    assert seen >= {f"readout {kind}" for kind in ("steps", "factors", "matrix", "offset")}


def test_parity_compares_the_states_that_only_some_neurons_have():
    network, rasters = random_graphs.draw(20230, random_graphs.TABLE)
    got = onnx_backend.Session(network).run(rasters)
    same_states(reference.run(network, rasters, states=True), got)
    assert agreement.measure("onnx", network, rasters).exact


# The edges of the registers


@pytest.mark.parametrize("chip", ["ideal", "loihi2"])
def test_registers_at_their_edges(chip):
    network, rasters = edges_of.network(chip)
    edges_of.assert_reached(network, reference.run(network, rasters, states=True))
    assert compared(network, rasters).exact


SIZE = 12
TOP = (1 << 23) - 1  # of v


def edges(rng: np.random.Generator, limit: int, *size: int) -> Any:
    """Whole numbers within -limit..limit, most of them close to an end, to 0 or to a power of two."""
    near = rng.choice([0, limit, -limit], size) + rng.integers(-2, 3, size)
    power = rng.choice([1, -1], size) << rng.integers(0, limit.bit_length(), size)
    anywhere = rng.integers(-limit, limit + 1, size)
    kind = rng.integers(0, 3, size)
    return np.clip(np.choose(kind, [near, power, anywhere]), -limit, limit)


def on_the_edge(rng: np.random.Generator, chip: str) -> IntegerNetwork:
    """Two inputs into two currents of one population that has some of the rules, at the ends."""

    def chance() -> bool:
        return bool(rng.random() < 0.4)

    def each(limit: int = TOP) -> Any:
        drawn = edges(rng, limit, SIZE).astype(np.int32)
        return drawn if chance() else int(drawn[0])

    second = chance()
    neurons = Lif(
        abs(edges(rng, (1 << 17) - 1, SIZE)).astype(np.int32) - (5 if chance() else 0),
        edges(rng, 4095, SIZE).astype(np.int32),
        np.ones(SIZE),
        int(rng.integers(0, 8)),
        rng.integers(0, 4096, SIZE).astype(np.int32) if chance() else int(rng.choice([0, 4095])),
        rng.integers(0, 4097, SIZE).astype(np.int32) if chance() else int(rng.choice([0, 4096])),
        str(rng.choice(["zero", "subtract", "constant", "none"])),  # type: ignore[arg-type]
        v_reset=each(),
        fires=rng.random() < 0.8,
        reset_current=chance(),
        hold=int(rng.choice([0, ONCE, 1, 63])),
        floor=each() if chance() else None,
        adapt=each((1 << 31) - 1) if chance() else 0,
        dq=abs(each(4095)),
        du2=abs(each(4095)) if second else None,
        gain=edges(rng, (1 << 15) - 1, 2, *((SIZE,) if chance() else ())).astype(np.int16)
        if chance()
        else None,
        v0=each() if chance() else 0,
        graded=Graded(int(rng.choice([0, 6, 23])), int(rng.choice([1, 255, 256, 32_767])))
        if chance()
        else None,
    )
    weight = [edges(rng, 127, SIZE).astype(np.int8) for _ in range(2)]
    connections = tuple(
        Connection(f"w{i}", f"x{i}", "p", OneToOne(weight[i]), int(rng.choice([0, 7])), port=port)
        for i, port in enumerate((0, int(second)))
    )
    port = Input((SIZE,), (1 << 15) - 1, signed=True)
    return IntegerNetwork(
        chip,
        2,
        {"x0": port, "x1": port},
        (Population("p", (SIZE,), neurons),),
        connections,
        Readout(SIZE, 1, "p"),
    )


@given(st.integers(0, 2**32 - 1), st.sampled_from(["ideal", "loihi1", "loihi2"]))
def test_one_step_from_any_state(seed, chip):
    """Every state anywhere in its register, and sums far beyond 32 bits."""
    rng = np.random.default_rng(seed)
    network, samples = on_the_edge(rng, chip), 20
    (population,) = network.populations
    assert not onnx_limits.problems(network)
    limit = facts.of(network).state_limit or 1 << 40
    raster = {name: edges(rng, (1 << 15) - 1, samples, SIZE) for name in network.inputs}
    neurons = reference.Neurons(population, samples, facts.of(network))
    t = int(rng.integers(0, 2))
    feed = {f"input/{name}": x.astype(np.int16) for name, x in raster.items()}
    kind = onnx_neurons.state_type(network)
    for name in ("u", "v", *population.neurons.states):
        if name == "rest":
            state = rng.choice([-1, 0, 0, 1, 63], (samples, SIZE))
        else:
            state = edges(rng, limit - 1, samples, SIZE)
        if name != "v" or not t or not np.any(population.neurons.v0):
            setattr(neurons, name, state)
        feed[f"{name}_in/p"] = state.astype(kind)
    if np.any(population.neurons.v0):  # which v is in the first step, whatever comes in
        neurons.v = feed["v_in/p"].astype(np.int64) if t else neurons.v * 0 + population.neurons.v0
    if f"t_in/{population.name}" in {value.name for value in exporter.step(network).graph.input}:
        feed["t_in/p"] = np.full(samples, t, np.int64)
    else:
        assert population.neurons.gain is None
    a = [np.zeros((samples, SIZE), np.int64) for _ in range(2)]
    for c in network.connections:
        a[c.port] += c.sums(raster[c.source], 1)
    sent, _, _ = neurons.step(t, *a)
    got = named(session(checked(exporter.step(network))), feed)
    same(got["spikes/p"], sent, "spikes")
    for name in ("u", "v", *population.neurons.states):
        same(got[f"{name}/p"], neurons.state(name), name)
    if "t/p" in got:
        same(got["t/p"], np.full(samples, t + 1), "t")


def test_samples_of_a_batch_may_be_at_different_steps():
    lif = Lif(np.full(2, 5, np.int32), np.zeros(2, np.int32), np.ones(2), dv=0, v0=7)
    gain = np.array([[4096, 0], [-4096, 8192]], np.int16)
    network = one(replace(lif, gain=gain), np.eye(2) * 3)
    running = session(exporter.step(network))
    feed = {"input": np.ones((2, 2), np.uint8), "t_in/p": np.array([0, 1])}
    feed |= {f"{name}_in/p": np.full((2, 2), 64, np.int32) for name in "uv"}
    got = named(running, feed)
    assert got["v/p"].tolist() == [[3 * 64 + 7, 7], [-2 * 64, 0]]
    assert got["t/p"].tolist() == [1, 2]


def one(neurons: Lif, weight: Any, readout: Readout | None = None, **given: Any) -> IntegerNetwork:
    """An input behind dense weights [neurons, inputs], one population of ``neurons``."""
    weight = np.array(weight)
    connection = Connection("w", "input", "p", Dense(weight.astype(np.int16)), precision="split")
    population = Population("p", (len(weight),), neurons)
    return IntegerNetwork(
        **{
            "chip": "loihi2",
            "timesteps": 2 if neurons.gain is None else len(neurons.gain),
            "inputs": {"input": Input(weight.shape[1:])},
            "populations": (population,),
            "connections": (connection,),
            "readout": readout or Readout(len(weight), 1, "p"),
        }
        | given
    )


def integrator(**rules: Any) -> Lif:
    """Three neurons without a threshold that keep all of v."""
    none = np.zeros(3, np.int32)
    return Lif(none, none, np.ones(3), dv=0, fires=False, **rules)


@pytest.mark.parametrize("port", [0, 1])
@pytest.mark.parametrize("levels", [100, 255, 256, 32_767])
def test_values_of_16_bits_from_either_current(levels, port):
    """An integrator sends what arrives at its first current, or zero, and later ones read it with a delay."""
    first = integrator(graded=Graded(1, levels), du2=1000, hold=1, adapt=5, reset="subtract")
    second = Lif(np.full(3, 9, np.int32), np.zeros(3, np.int32), np.ones(3), du=7)
    weight = Dense(np.array([[127, 3, -3], [-127, -1, 1], [1, -1, 0]], np.int16))
    network = one(first, weight.weight)
    (into,) = network.connections
    network = replace(
        network,
        inputs={"input": Input((3,), (1 << 15) - 1, signed=True)},
        populations=(*network.populations, Population("n", (3,), second)),
        connections=(
            replace(into, port=port, exp=3),
            Connection("now", "p", "n", weight),
            Connection("late", "p", "n", weight, delay=2),
        ),
        readout=Readout(3, 1, "p"),
        timesteps=4,
    )
    rng = np.random.default_rng(0)
    raster = edges(rng, (1 << 15) - 1, 9, 4, 3).astype(np.int16)
    assert compared(network, raster).exact
    want = reference.run(network, raster, states=True)
    sent = want.layers["p"].spikes
    assert (sent.max(), sent.min()) == ((0, 0) if port else (levels, -levels))
    same_states(want, by_step(network, raster))


def test_no_more_steps_than_gains():
    network = one(integrator(gain=np.full((3, 1), 4096, np.int16)), np.eye(3))
    running = onnx_backend.Session(network)
    raster = np.ones((2, 3, 3), np.uint8)
    assert agreement.compare(
        network, reference.run(network, raster, states=True), running.run(raster)
    ).exact
    with pytest.raises(BackendError, match="onnxruntime failed"):
        running.run(np.ones((2, 4, 3), np.uint8))


# Readouts


@pytest.mark.parametrize("chip", ["loihi2", "ideal"])
@pytest.mark.parametrize("kind", ties.KINDS)
@pytest.mark.parametrize("variety", ties.VARIETIES)
def test_every_readout_with_its_ties(variety, kind, chip):
    network, raster = ties.network(kind, variety, chip), ties.raster()
    assert compared(network, raster).exact
    assert compared(network, raster[:, :2]).exact
    trace = reference.run(network, raster, states=True)
    classes, tied = ties.decided(network.readout, trace.layers["p"].spikes, trace.layers["p"].v)
    assert trace.predictions.tolist() == classes
    assert tied > 0
    assert len({*classes}) > 1 or kind == "integrators"


def test_the_first_of_equal_classes_wins_of_many():
    """More classes than a sort takes in one stretch, all of them equal but for a few."""
    count = 3000
    lif = Lif(np.zeros(count, np.int32), np.zeros(1, np.int32), np.ones(1), fires=False)
    weight = np.zeros((count, 2), np.int8)
    weight[1000:, 0] = weight[2000:, 1] = 1
    raster = np.array([[[0, 0]], [[1, 0]], [[0, 1]], [[1, 1]]], np.uint8)
    for rule in ("last", "first"):
        network = one(lif, weight, Readout(count, 1, "p", rule), timesteps=1)
        assert compared(network, raster).exact
        got = onnx_backend.Session(network).run(raster)
        assert got["prediction"].tolist() == [0, 1000, 2000, 2000]


def test_the_file_says_how_to_score():
    readout = Readout(
        ties.CLASSES,
        ties.EACH,
        "p",
        steps=(2.0, 1.0),
        matrix=ties.MATRIX,
        offset=ties.OFFSET.astype(np.int64),
    )
    model = exporter.step(one(ties.KINDS["spikes"], np.ones((ties.NEURONS, 2)), readout))
    said = {p.key: p.value for p in model.metadata_props}
    assert json.loads(said["stl_deploy.readout"]) == {
        "source": "p",
        "classes": ties.CLASSES,
        "population": ties.EACH,
        "rule": "votes",
        "steps": [2, 1],
        "matrix": ties.MATRIX.tolist(),
        "offset": ties.OFFSET.tolist(),
    }


# Limits


def test_every_field_of_the_neurons_is_carried():
    """A further field is refused until somebody writes it here and in the step."""
    carried = onnx_neurons.POPULATIONS["lif"].fields
    assert {field.name for field in fields(Lif)} <= carried


def refused(network: IntegerNetwork) -> list[str]:
    return [str(problem).split(" -> ")[0] for problem in onnx_limits.problems(network)]


EYE = np.eye(3)
REFUSED: list[tuple[IntegerNetwork, str]] = [
    (
        one(integrator(v0=TOP + 1), EYE),
        "p: v0, where v begins, 8388608 is outside -8388607..8388607",
    ),
    (one(integrator(v_reset=-TOP - 1), EYE), "p: v_reset -8388608 is outside -8388607..8388607"),
    (one(integrator(floor=TOP + 1), EYE), "p: the floor of v 8388608 is outside -8388607..8388607"),
    (
        one(
            ties.KINDS["spikes"],
            np.ones((ties.NEURONS, 2)),
            Readout(2, 1, "p", matrix=np.full((2, ties.NEURONS), 1 << 60), offset=np.array([0, 5])),
        ),
        f"p: a score can reach {2 * ties.NEURONS * (1 << 60) + 10}; ONNX carries less than {1 << 63}",
    ),
]


@pytest.mark.parametrize(("network", "what"), REFUSED)
def test_what_64_bits_and_the_rules_do_not_hold_is_refused_by_name(network, what):
    assert what in refused(network)


def test_thresholds_that_push_v_away_count_in_its_bound():
    """One below zero adds to v; one that spikes lower takes v down to q, from where inputs go on."""
    none = np.zeros(1, np.int32)
    up = Lif(none - 10, none, np.ones(1), dv=0, reset="subtract")
    down = Lif(
        none + 1000, none, np.ones(1), dv=0, reset="subtract", v0=64_001, adapt=-300_000, dq=4095
    )
    late = np.repeat([0, 4], 5).astype(np.uint8)[None, :, None]
    for lif, weight, furthest in ((up, 0, 10 * 640), (down, -78, 255_999 + 5 * 4 * 78 * 64)):
        port = Input((1,), 4)
        network = one(lif, [[weight]], chip="ideal", timesteps=10, inputs={"input": port})
        v = reference.run(network, late, states=True).layers["p"].v
        assert v is not None
        assert abs(v).max() == furthest
        assert onnx_limits._largest_state(network, network.by_name["p"]) >= furthest


@given(st.integers(0, 2**32 - 1))
def test_on_chip_ideal_no_state_passes_its_bound(seed):
    rng = np.random.default_rng(seed)
    network = replace(on_the_edge(rng, "ideal"), timesteps=2)
    (population,) = network.populations
    top = onnx_limits._largest_state(network, population)
    raster = {name: edges(rng, (1 << 15) - 1, 20, 2, SIZE) for name in network.inputs}
    did = reference.run(network, raster, states=True).layers["p"]
    for values in (did.u, did.v, *(did.more[name] for name in did.more if name != "rest")):
        assert values is not None
        assert int(abs(values).max()) <= top


@pytest.mark.parametrize(
    ("rule", "what"),
    [
        ({"hold": 2}, "'hold' of its neurons"),
        ({"v0": np.zeros(3)}, "'v0' of its neurons"),
        ({"reset": "none"}, "the reset 'none'"),
    ],
)
def test_a_float_step_without_a_rule_of_its_graph_is_not_written(monkeypatch, rule, what):
    network = float_networks.single(np.eye(3), np.zeros(3), np.ones(3), 0.5, (3,))
    (population,) = network.populations
    changed = replace(population, neurons=replace(population.neurons, **rule))
    graph = graph_of(
        {"fc": nir.Linear(weight=np.eye(3)), "lif": G.lif(np.ones(3), tau=2e-4, r=2.0)}, 3, 3
    )
    assert not onnx_float.notes(graph)
    monkeypatch.setattr(onnx_float, "decode", lambda _: replace(network, populations=(changed,)))
    (note,) = onnx_float.notes(graph)
    assert note.what == f"not written: lif: {what} has no place in it"
    assert note.remedy == "use step.onnx"


def test_neurons_without_these_rules_have_no_further_node():
    plain = one(ties.KINDS["spikes"], np.ones((ties.NEURONS, 2)))
    model = exporter.step(plain)
    assert {value.name for value in model.graph.input} == {"input", "u_in/p", "v_in/p"}
    operators = {node.op_type for node in model.graph.node}
    assert not operators & {"And", "Equal", "Max", "Expand", "GatherND"}
    assert isinstance(model, onnx.ModelProto)
