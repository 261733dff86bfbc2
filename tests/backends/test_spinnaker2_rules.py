"""stl-check's rules for py-spinnaker2, held against an independent reading of its importer.

py-spinnaker2 is in no package index, so that it cannot be run here; ``tests/build/spinnaker2.py`` is what its
published source says.
"""

from __future__ import annotations

import warnings

import nir
import numpy as np
import pytest

from stl_deploy.backends import consumers
from stl_deploy.backends.consumers import file as consumer_file
from stl_deploy.backends.consumers import run as runs
from stl_deploy.backends.consumers.rules import CONSUMERS, Verdict
from stl_deploy.formats import nir_io
from stl_deploy.ir import nir_graph as G
from tests.build import nir_cases, spinnaker2

TOOL = CONSUMERS["spinnaker2"]
CHAIN = [("input", "fc"), ("fc", "lif"), ("lif", "output")]
IMAGE = [("input", "conv"), ("conv", "lif"), ("lif", "output")]


def whole(*shape, seed=3):
    return np.random.default_rng(seed).integers(-60, 90, shape).astype(np.float32)


def lif(*shape, vth=150.5, **values):
    node = G.lif(np.full(shape, vth), 2 * G.DT, 2.0)
    for key, value in values.items():
        setattr(node, key, value)
    return node


def nodes(inputs=(12,), outputs=(6,), **others):
    made = {"input": nir.Input({"input": np.array(inputs)}), **others}
    return made | {"output": nir.Output({"output": np.array(outputs)})}


def linear(**others):
    return nodes(**{"fc": nir.Linear(whole(6, 12)), "lif": lif(6), **others})


def kernel(shape=(2, 8, 8), stride=(1, 1), groups=1, dilation=(1, 1), outputs=3, padding=(1, 1)):
    weight = whole(outputs, shape[0] // groups, 3, 3)
    return G.conv2d(weight, np.zeros(outputs), shape, stride, padding, groups, dilation)


def pool(size, stride=None, padding=0):
    stride = size if stride is None else stride
    return nir.SumPool2d(*(np.array((n, n)) for n in (size, stride, padding)))


def flat(*shape):
    return nir.Flatten({"input": np.array(shape)}, 0, -1)


def subtracts(*shape):
    return lif(*shape, metadata={"reset": "subtract"})


def integrates(r):
    shape = (6,)
    return nir.IF(r=np.full(shape, r), v_threshold=np.full(shape, 150.5), v_reset=np.zeros(shape))


TWO = [("input", "fc"), ("fc", "a"), ("a", "fc2"), ("fc2", "lif"), ("lif", "output")]


def two(a, b):
    return nodes(fc=nir.Linear(whole(20, 12)), a=a, fc2=nir.Linear(whole(6, 20)), lif=b)


GRAPHS = {
    "plain": (linear(), CHAIN),
    "weights of nine bits": (linear(fc=nir.Linear(3 * whole(6, 12))), CHAIN),
    "no whole weights": (linear(fc=nir.Linear(whole(6, 12) / 40.3), lif=lif(6, vth=3.1)), CHAIN),
    "a bias": (linear(fc=nir.Affine(whole(6, 12), np.full(6, 40.0))), CHAIN),
    "a leak": (linear(lif=lif(6, v_leak=np.full(6, 90.0))), CHAIN),
    "resets to something": (linear(lif=lif(6, v_reset=np.full(6, 40.0))), CHAIN),
    "r of an IF": (linear(lif=integrates(2e4)), CHAIN),
    "r of 1 of an IF": (linear(lif=integrates(1.0)), CHAIN),
    "subtracts": (two(subtracts(20), subtracts(6)), TWO),
    "a threshold below 0": (two(lif(20, vth=-20.5), lif(6)), TWO),
    "two resets": (two(subtracts(20), lif(6)), TWO),
    "an edge": (nodes(fc=nir.Linear(whole(6, 12)), a=lif(6), lif=lif(6, vth=0.4)),
                [("input", "fc"), ("fc", "a"), ("a", "lif"), ("lif", "output")]),
    "weights in a row": (nodes(fc=nir.Linear(whole(9, 12)), fc2=nir.Linear(whole(6, 9)), lif=lif(6)),
                         [("input", "fc"), ("fc", "fc2"), ("fc2", "lif"), ("lif", "output")]),
    "weights at the end": (nodes(outputs=(4,), fc=nir.Linear(whole(6, 12)), lif=lif(6),
                                 fc2=nir.Linear(whole(4, 6))),
                           [("input", "fc"), ("fc", "lif"), ("lif", "fc2"), ("fc2", "output")]),
    "a delay": (nodes(fc=nir.Linear(whole(6, 12)), d=nir.Delay(np.full(6, 1e-4)), lif=lif(6)),
                [("input", "fc"), ("fc", "d"), ("d", "lif"), ("lif", "output")]),
    "a skip": (nodes(fc=nir.Linear(whole(20, 12)), a=lif(20), fc2=nir.Linear(whole(6, 20)),
                     over=nir.Linear(whole(6, 12)), lif=lif(6)),
               [*TWO, ("input", "over"), ("over", "lif")]),
    "an image": (nodes((2, 8, 8), (3, 8, 8), conv=kernel(), lif=lif(3, 8, 8)), IMAGE),
    "groups": (nodes((2, 8, 8), (4, 8, 8), conv=kernel(groups=2, outputs=4), lif=lif(4, 8, 8)), IMAGE),
    "dilation": (nodes((2, 8, 8), (3, 6, 6), conv=kernel(dilation=(2, 2)), lif=lif(3, 6, 6)), IMAGE),
    "a current": (nodes((2, 8, 8), (3, 8, 8), conv=kernel(), lif=nir.CubaLIF(
        *(np.full((3, 8, 8), v) for v in (2e-4, 2e-4, 2.0, 0.0, 150.5)), np.zeros((3, 8, 8)),
        np.full((3, 8, 8), 2.0))), IMAGE),
    "a Flatten": (nodes((2, 8, 8), (6,), flat=flat(2, 8, 8), fc=nir.Affine(whole(6, 128), np.zeros(6)),
                        lif=lif(6)), [("input", "flat"), ("flat", "fc"), *CHAIN[1:]]),
    "a pool, a Flatten and an Affine": (
        nodes((2, 8, 8), (6,), pool=pool(2), flat=flat(2, 4, 4),
              fc=nir.Affine(whole(6, 32), np.zeros(6)), lif=lif(6)),
        [("input", "pool"), ("pool", "flat"), ("flat", "fc"), *CHAIN[1:]]),
    "a pool, a Flatten and a Linear": (
        nodes((2, 8, 8), (6,), pool=pool(2), flat=flat(2, 4, 4), fc=nir.Linear(whole(6, 32)),
              lif=lif(6)),
        [("input", "pool"), ("pool", "flat"), ("flat", "fc"), *CHAIN[1:]]),
    "a pool in front": (nodes((2, 16, 16), (3, 8, 8), pool=pool(2), conv=kernel(), lif=lif(3, 8, 8)),
                        [("input", "pool"), ("pool", "conv"), *IMAGE[1:]]),
    "a pool that overlaps": (
        nodes((2, 17, 17), (3, 6, 6), pool=pool(3, 2), conv=kernel(padding=(0, 0)),
              lif=lif(3, 6, 6)),
        [("input", "pool"), ("pool", "conv"), *IMAGE[1:]]),
    "a pool behind": (nodes((2, 8, 8), (3, 4, 4), conv=kernel(), pool=pool(2), lif=lif(3, 4, 4)),
                      [("input", "conv"), ("conv", "pool"), ("pool", "lif"), ("lif", "output")]),
    "a matrix": (nodes((3, 4), flat=flat(3, 4), fc=nir.Affine(whole(6, 12), np.zeros(6)), lif=lif(6)),
                 [("input", "flat"), ("flat", "fc"), *CHAIN[1:]]),
}  # fmt: skip


@pytest.fixture(scope="module")
def cases(tmp_path_factory):
    """By name, a file and its raster: those of the other tools, and some for this one."""
    folder = tmp_path_factory.mktemp("cases")
    found = {name: (case.path, case.spikes) for name, case in nir_cases.build(folder).items()}
    for name, (made, edges) in GRAPHS.items():
        path = folder / f"s2 {name}.nir"
        nir_io.write(nir.NIRGraph(made, edges, type_check=False), path)
        shape = made["input"].input_type["input"]
        raster = (np.random.default_rng(5).random((3, 6, *shape)) < 0.4).astype(np.uint8)
        found[f"s2 {name}"] = path, raster
    return found


@pytest.fixture(scope="module")
def files(cases):
    return {name: consumer_file.read(path) for name, (path, _) in cases.items()}


def answer(file):
    (found,) = consumers.check(file, [TOOL])
    return found


def depths(file):
    """How late the spikes of each population are, following the edges one by one."""
    late, pending = dict.fromkeys(file.inputs, 0), list(file.inputs)
    while pending:
        name = pending.pop(0)
        for source, target in file.graph.edges:
            step = int(isinstance(file.graph.nodes[target], consumer_file.NEURONS))
            if source == name and target not in late:
                late[target] = late[name] + step
                pending.append(target)
    return late


def became(file, raster, reset):
    """The verdict that the reading of the importer gives."""
    try:
        chip = spinnaker2.Chip(file.path, reset)
        late, wrong = depths(file), 0
        expected = runs.expected(file, runs.steps(file, raster))
        expected.pop("readout matrix", None)
        for i, sample in enumerate(runs.steps(file, raster)):
            seen = chip.run(sample, len(sample) + max(late.values()))
            for name, spikes in expected.items():
                ours = seen[name][late[name] : late[name] + len(sample)]
                wrong += int((ours.reshape(spikes[i].shape) != spikes[i]).sum())
    except spinnaker2.CannotReadError:
        return Verdict.UNREADABLE
    except spinnaker2.MisfitError:
        return Verdict.DIFFERS
    return Verdict.DIFFERS if wrong else Verdict.EXACT


def test_every_case_becomes_what_the_rules_say(cases, files):
    wrong, seen = [], set()
    for name, file in files.items():
        said = answer(file)
        currents = any(isinstance(node, nir.CubaLIF) for node in file.graph.nodes.values())
        if said.verdict == Verdict.UNKNOWN or currents or len(file.inputs) > 1:
            continue
        words = [rule for rules in file.unsaid.values() for rule in rules]
        reset = "subtract" if "reset by subtraction" in words else "zero"
        with warnings.catch_warnings(), np.errstate(all="ignore"):
            warnings.simplefilter("ignore")
            was = became(file, cases[name][1], reset)
        seen.add(was)
        if was != said.verdict:
            wrong.append((name, said.verdict.value, was.value, [r.why for r in said.reasons]))
    assert not wrong, "\n".join(map(str, wrong))
    assert seen == {Verdict.EXACT, Verdict.DIFFERS, Verdict.UNREADABLE}


def test_every_rule_decides_a_case(files):
    """Without the rule, the verdict on the case would be another."""
    undecided = []
    for rule in TOOL.rules:
        if rule.verdict not in (Verdict.DIFFERS, Verdict.UNREADABLE):
            continue
        gravest = [
            [r.why for r in said.reasons if r.verdict == said.verdict]
            for said in map(answer, files.values())
        ]
        if [rule.why] not in gravest:
            undecided.append(rule.why)
    assert not undecided
