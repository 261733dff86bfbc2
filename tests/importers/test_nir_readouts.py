"""NIR files that end in something other than spikes, and neurons that reset to a value of their own."""

from __future__ import annotations

import os
import warnings
from collections import Counter
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace

import nir
import numpy as np
import pytest

import stl_deploy
from stl_deploy.commands import export
from stl_deploy.errors import InputError, LoweringError, UncheckedWarning
from stl_deploy.formats import integer_nir as nir_file
from stl_deploy.formats import nir_io
from stl_deploy.importers import read as models
from stl_deploy.importers.given import Given
from stl_deploy.ir import execute, floats
from stl_deploy.ir import nir_graph as G
from tests.build import nir_interpreter
from tests.build.nir_graphs import chain, lif
from tests.importers.test_nir_import import run
from tests.importers.test_nir_interpreter import CLOSE, SAMPLES, STEPS, Draw

DRAWS = int(os.environ.get("STL_NIR_READOUTS", "300"))
RULES = "last", "mean", "max"
OVER_TIME = {
    "last": lambda x: x[:, -1],
    "mean": lambda x: x.sum(axis=1),
    "max": lambda x: x.max(axis=1),
}


class Ending(Draw):
    """A random graph with neurons that reset to values of their own, and another end."""

    def __init__(self, seed):
        super().__init__(seed)
        for node in self.nodes.values():
            inner = node.nodes.values() if isinstance(node, nir.NIRGraph) else [node]
            for one in inner:
                if isinstance(one, G.Neurons) and self.maybe(0.5):
                    one.v_reset = self.grid(-0.5, 0.1, one.v_threshold.shape)
                    self.words.add("v_reset")
        del self.nodes["out"]
        self.ends = [a for a, b in self.edges if b == "out"]
        self.edges = [edge for edge in self.edges if edge[1] != "out"]
        self.end = str(self.rng.choice(["LI", "I", "CubaLI", "matrix", "scale", "two", "weights"]))
        self.words.add(self.end)
        if len(self.shape) > 1 and (self.end in ("matrix", "two", "weights") or self.maybe(0.5)):
            self.flatten("end_flat")
        getattr(self, f"end_{self.end}")()
        self.put("out", nir.Output({"output": np.array(self.shape)}))
        self.graph = nir.NIRGraph(self.nodes, self.edges, type_check=False)

    def affine(self, name, behind=None):
        n = int(self.rng.integers(2, 6))
        node = nir.Affine(self.weights(n, *self.shape), self.bias(n))
        self.put(name, node, behind)
        self.shape = (n,)

    def neurons_end(self, node):
        if self.maybe(0.3):
            self.put("end_w", nir.Scale(self.each(0.25, 2)))
        self.put("end", node)

    def end_LI(self):
        if len(self.shape) == 1:
            self.affine("end_fc")
        decay = self.decay()
        leak = self.grid(-0.5, 0.5, self.shape) if len(self.shape) == 1 else np.zeros(self.shape)
        self.neurons_end(nir.LI(self.dt / decay, self.each(0.5, 2) / decay, leak))

    def end_I(self):
        r = np.ones(self.shape) if self.maybe(0.5) else self.each(0.5, 2) / self.dt
        self.neurons_end(nir.I(r))

    def end_CubaLI(self):
        decay, current = self.decay(), self.decay()
        node = nir.CubaLI(
            tau_syn=self.dt / current,
            tau_mem=self.dt / decay,
            r=self.each(0.5, 2) / decay,
            v_leak=self.grid(-0.5, 0.5, self.shape),
            w_in=self.each(0.5, 2) / current,
        )
        self.neurons_end(node)

    def end_matrix(self):
        self.affine("end_fc")

    def end_weights(self):
        self.affine("end_fc")
        self.put("end_more", nir.Linear(self.weights(3, *self.shape)))
        self.shape = (3,)

    def end_scale(self):
        self.put("end_w", nir.Scale(self.grid(-1, 1, self.shape) + 1 / 32))

    def end_two(self):
        """Spikes of two populations, each over weights of its own; or of one, twice."""
        ends, shape = self.ends, self.shape
        other, before = self.sources[int(self.rng.integers(len(self.sources)))]
        self.affine("end_fc")
        self.put("end_flat2", nir.Flatten({"input": np.array(before)}, 0, -1), [other])
        flat = (int(np.prod(before)),)
        self.put("end_fc2", nir.Linear(self.weights(self.shape[0], *flat)))
        self.ends = ["end_fc", "end_fc2"]
        assert ends
        assert shape


def quietly(graph, **options):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UncheckedWarning)
        return stl_deploy.from_nir(graph, **options)


def compare(seed, found):
    draw = Ending(seed)
    rule = RULES[seed % 3]
    try:
        made = quietly(draw.graph, dt=draw.dt, timesteps=STEPS, readout=rule)
    except (InputError, LoweringError) as error:
        found.refused.append(f"{seed}: {error}")
        return
    expected, margin = nir_interpreter.run(draw.graph, draw.raster, draw.dt)
    if margin < CLOSE:
        return
    output = nir_interpreter.outputs(draw.graph, draw.raster, draw.dt)
    network = floats.decode(made)
    ran = execute.trace(network, draw.raster.reshape(SAMPLES, STEPS, *G.in_shape(made)))
    wrong = [
        name
        for name, spikes in expected.items()
        if (ran.sent[name].reshape(spikes.shape) != spikes).any()
    ]
    scores = network.readout.scores(ran.sent[network.output], ran.v)
    wanted = OVER_TIME[rule](output).reshape(scores.shape)
    if not np.allclose(scores, wanted, rtol=1e-9, atol=1e-9):
        wrong.append(f"scores by {rule} ({draw.end})")
    if wrong:
        found.differ.append(f"seed {seed} ({', '.join(sorted(draw.words))}): {'; '.join(wrong)}")
    found.words.update([*draw.words, f"{draw.end} {rule}"])
    found.same += 1


@pytest.fixture(scope="module")
def outcomes():
    found = SimpleNamespace(refused=[], differ=[], words=Counter(), same=0)
    for seed in range(DRAWS):
        try:
            compare(seed, found)
        except Exception as error:
            error.add_note(f"seed {seed}")
            raise
    return found


def test_what_is_read_is_what_leaves_the_graph(outcomes):
    assert not outcomes.differ, "\n".join(outcomes.differ)


def test_the_random_graphs_are_lowered(outcomes):
    assert outcomes.same > 0.8 * DRAWS, "\n".join(outcomes.refused)
    least = dict.fromkeys(["LI", "I", "CubaLI", "matrix", "scale", "two", "weights"], 0.05)
    least["v_reset"] = 0.4
    rare = {w: outcomes.words[w] for w, share in least.items() if outcomes.words[w] < share * DRAWS}
    assert not rare


RNG = np.random.default_rng(7)
W1, W2 = RNG.normal(0.2, 0.6, (6, 4)), RNG.normal(0, 0.6, (3, 6))
RASTER = (RNG.random((40, 8, 4)) < 0.5).astype(np.uint8)


def li(n=3, tau=4e-4):
    return nir.LI(tau=np.full(n, tau), r=np.full(n, 4.0), v_leak=np.zeros(n))


def network(*nodes, outputs=(3,)):
    return chain(nir.Linear(W1), lif(6), *nodes, outputs=outputs)


def stated(graph):
    for node in graph.nodes.values():
        if isinstance(node, G.Neurons):
            node.metadata["reset"] = "zero"
    return graph


def notes_of(graph, **options):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        made = stl_deploy.from_nir(stated(graph), timesteps=8, **options)
    return made, [str(w.message) for w in caught]


def read_by(graph, **options):
    read = floats.decode(quietly(graph, timesteps=8, **options)).readout
    return read.rule, read.source, read.matrix is not None


def test_the_default_is_the_last_voltage_and_is_told():
    for last in (li(), nir.I(np.ones(3))):
        graph = network(nir.Linear(W2), last)
        made, told = notes_of(graph)
        assert floats.decode(made).readout.rule == "last"
        assert told == [
            "readout of n3: the network's output is v of neurons without a threshold; classes are read "
            "from it after the last step -> choose another by --readout last, mean or max (in Python "
            "readout=...)"
        ]
        for rule in RULES:
            made, told = notes_of(graph, readout=rule)
            assert (floats.decode(made).readout.rule, told) == (rule, [])


def test_weights_at_the_end_are_a_matrix_on_counts():
    graph = network(nir.Affine(W2, np.array([0.5, 0, -0.5])))
    assert read_by(graph) == read_by(graph, readout="mean") == ("votes", "n1", True)
    made, (told,) = notes_of(graph)
    assert "n1: weights follow the last neurons; classes are read from their mean output" in told
    read = floats.decode(made).readout
    np.testing.assert_array_equal(read.matrix, W2)
    np.testing.assert_array_equal(read.offset, [0.5, 0, -0.5])


@pytest.mark.parametrize("rule", ["last", "max"])
def test_another_rule_reads_such_weights_by_neurons_that_forget(rule):
    graph = network(nir.Linear(W2))
    assert read_by(graph, readout=rule) == (rule, "readout", False)
    taken = {**graph.nodes, "readout": lif(3)}
    order = ["in", "n0", "n1", "readout", "n2", "out"]
    taken["readout"], taken["n2"] = taken["n2"], lif(3)
    graph = nir.NIRGraph(taken, list(pairwise(order)), type_check=False)
    assert read_by(graph) == ("votes", "n2", False)


def test_spikes_vote_unless_said():
    graph = network(nir.Linear(W2), lif(3))
    assert read_by(graph) == ("votes", "n3", False)
    made, told = notes_of(graph)
    assert not told
    assert floats.decode(made).meta.readout is None
    for rule in ("first", *RULES):
        assert read_by(graph, readout=rule) == (rule, "n3", False)


def test_classes_group_the_rows_of_a_matrix():
    made = quietly(network(nir.Linear(np.arange(24.0).reshape(4, 6)), outputs=(4,)), classes=2)
    read = floats.decode(made).readout
    rows = np.arange(24.0).reshape(2, 2, 6).sum(axis=1)
    np.testing.assert_array_equal(read.matrix, rows)
    with pytest.raises(InputError, match="--classes: 3 outputs do not divide into 2 classes"):
        quietly(network(nir.Linear(W2)), classes=2)
    assert floats.decode(quietly(network(nir.Linear(W2), li()), classes=1)).readout.population == 3


@pytest.mark.parametrize(
    ("graph", "options", "where", "what"),
    [
        (network(nir.Linear(W2), li()), {"readout": "votes"}, "n3", "no threshold, and a readout by votes"),
        (network(nir.Linear(W2), li()), {"readout": "first"}, "n3", "no threshold, and a readout by first"),
        (network(nir.Linear(W2)), {"readout": "first"}, "out", "is weighted values"),
        (network(nir.Linear(W2), li(), nir.Linear(W2[:, :3])), {}, "n4", "lies behind n3, whose voltage"),
        (network(nir.Linear(W2), li(), nir.Scale(np.array([1, 1, -1]))), {}, "n4", "lies behind n3"),
        (network(li(6), nir.Linear(W2), lif(3)), {}, "n2", "other neurons receive its voltage"),
        (network(nir.I(np.ones(6)), nir.Linear(W2), li()), {}, "n2", "other neurons receive its voltage"),
        (network(nir.Linear(W2), li()), {"readout": "middle"}, "--readout", "'middle' is not a known"),
    ],
)  # fmt: skip
def test_what_cannot_be_read_is_named(graph, options, where, what):
    with pytest.raises((InputError, LoweringError)) as error:
        quietly(graph, **options)
    (problem,) = error.value.problems
    assert problem.where == where
    assert what in problem.what


def test_the_remedy_for_a_leaky_integrator_in_front_of_neurons_is_exact():
    """A LI, weights and a LIF are those weights and a CubaLIF."""
    n = 3
    given = network(li(6), nir.Linear(W2), lif(n))
    current = {"tau_syn": np.full(n, 4e-4), "w_in": np.full(n, 4.0)}
    rest = {"tau_mem": np.full(n, 2e-4), "r": np.full(n, 2.0), "v_threshold": np.full(n, 0.5)}
    zeros = {"v_leak": np.zeros(n), "v_reset": np.zeros(n)}
    remedied = network(nir.Linear(W2), nir.CubaLIF(**current, **rest, **zeros))
    expected, _ = nir_interpreter.run(given, RASTER)
    got = execute.run(quietly(remedied, timesteps=8), RASTER)
    assert got["n3"].any()
    np.testing.assert_array_equal(got["n3"], expected["n4"])


def test_weights_may_stand_before_the_integrator():
    """The remedy for weights behind one: with a single tau it is the same output."""
    given, remedied = network(li(6), nir.Linear(W2)), network(nir.Linear(W2), li())
    expected = nir_interpreter.outputs(given, RASTER)
    np.testing.assert_allclose(execute.trace(quietly(remedied, timesteps=8), RASTER).v, expected)
    with pytest.raises(LoweringError, match="put the weights before n2"):
        quietly(given)


def test_the_option_of_the_commands(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    nir_io.write(stated(network(nir.Linear(W2), li())), Path("net.nir"))
    words = "--target", "nir", "--timesteps", "8"
    run(export.export, "net.nir", *words, "-o", "last")
    assert "classes are read from it after the last step" in capsys.readouterr().err
    run(export.export, "net.nir", *words, "-o", "max", "--readout", "max")
    assert "classes are read" not in capsys.readouterr().err
    assert nir_file.read_network(Path("max/model.nir")).readout.rule == "max"
    own = Path("max/model.float.nir")
    assert models.read(own, Given(readout="max")).graph is not None
    with pytest.raises(InputError, match=r"--readout: last, but .* says max"):
        models.read(own, Given(readout="last"))
