"""stl-check's rules, held against the tools themselves at the versions that they name.

Each tool runs every case in its environment, which makes itself in seconds. Without it these tests are
skipped, but where ``CI`` is set they fail.
"""

from __future__ import annotations

import os
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from stl_deploy.backends import consumers, tool_env
from stl_deploy.backends.consumers import file as consumer_file
from stl_deploy.backends.consumers import run as runs
from stl_deploy.backends.consumers.rules import CONSUMERS, Verdict
from stl_deploy.commands import check as check_command
from stl_deploy.errors import BackendError
from tests.build import nir_cases

RUN = {name: consumer for name, consumer in CONSUMERS.items() if consumer.seen == "run"}


@pytest.fixture(scope="module")
def cases(tmp_path_factory):
    return nir_cases.build(tmp_path_factory.mktemp("cases"))


@pytest.fixture(scope="module")
def files(cases):
    return {name: consumer_file.read(case.path) for name, case in cases.items()}


@pytest.fixture(scope="module")
def expected(cases, files):
    """Spikes by case and node: hw_sim's for integers, those of NIR's equations for other files."""
    found = {}
    for name, case in cases.items():
        if case.network is None:
            found[name] = runs.expected(files[name], case.spikes)
        else:
            rasters = dict.fromkeys(case.network.inputs, case.spikes)
            found[name] = runs.of_network(case.network, rasters)
    return found


@pytest.fixture(scope="module")
def seen(cases):
    """By tool and case, what the tool made of it."""
    keys = [(tool, case) for tool in RUN for case in cases]
    jobs = [runs.Job(RUN[tool], cases[case].path, cases[case].spikes) for tool, case in keys]
    try:
        results = runs.run(jobs)
    except BackendError as error:
        if os.environ.get("CI") == "true":
            pytest.fail(f"CI must run the tools: {error}")
        pytest.skip(str(error))
    return dict(zip(keys, results, strict=True))


def answer(file, tool):
    (found,) = consumers.check(file, [CONSUMERS[tool]])
    return found


@pytest.mark.parametrize("tool", RUN)
def test_every_case_becomes_what_the_rules_say(tool, cases, files, expected, seen):
    wrong = []
    for name in cases:
        said, was = answer(files[name], tool), seen[tool, name]
        counts = was.mismatches(expected[name])
        if was.error is not None:
            became = Verdict.UNREADABLE
        else:
            same = counts is not None and not any(counts.values())
            became = Verdict.EXACT if same else Verdict.DIFFERS
        if said.verdict not in (became, Verdict.UNKNOWN):
            wrong.append((name, said.verdict.value, became.value, was.error or counts))
    assert not wrong


@pytest.mark.parametrize("tool", RUN)
def test_every_rule_decides_a_case(tool, files):
    """Without the rule, the verdict on the case would be another."""
    undecided = []
    for rule in RUN[tool].rules:
        if rule.verdict not in (Verdict.DIFFERS, Verdict.UNREADABLE):
            continue
        deciding = False
        for file in files.values():
            said = answer(file, tool)
            gravest = [r.why for r in said.reasons if r.verdict == said.verdict]
            deciding |= gravest == [rule.why]
        if not deciding:
            undecided.append(rule.why)
    assert not undecided


def test_what_a_file_says_to_mind_is_seen(files, seen):
    for tool in ("norse", "snntorch"):
        said = {
            name
            for name, file in files.items()
            if any("one sample" in r.why for r in answer(file, tool).reasons)
        }
        ran = {case for (t, case), was in seen.items() if t == tool and was.error is None}
        assert said & ran == {case for case in ran if seen[tool, case].alone} != set()


# The environments and the runs


def test_without_a_network_the_remedy_is_said(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("UV_CACHE_DIR", str(tmp_path / "empty"))
    monkeypatch.setenv("UV_OFFLINE", "1")
    with pytest.raises(BackendError, match="uv pip install failed") as caught:
        tool_env.ensure(runs.environment("current"), lambda _: None)
    assert "UV_DEFAULT_INDEX" in caught.value.problems[0].remedy
    left = [path.name for path in (tmp_path / "stl-deploy" / "consumers").iterdir()]
    assert all(name.endswith(".lock") for name in left)


@pytest.mark.parametrize("ending", ["/bin/false", "/bin/true"])
def test_a_worker_that_ends_early_is_an_error(cases, monkeypatch, ending):
    monkeypatch.setattr(tool_env, "ensure", lambda *_: Path(ending))
    with pytest.raises(BackendError, match=r"Norse: (failed|ended after 0 of 1 runs)"):
        runs.run([runs.Job(CONSUMERS["norse"], cases["dense"].path, cases["dense"].spikes)])


def test_a_run_against_the_rules_is_a_problem(cases, monkeypatch, capfd, tmp_path):
    case = cases["dense"]
    raster = tmp_path / "r.npz"
    np.savez(raster, spikes=case.spikes)

    def one_more(jobs):
        right = runs.expected(consumer_file.read(case.path), case.spikes)["lif1"].astype(np.float32)
        wrong = right.copy()
        wrong[0, 0, 0] = 1 - wrong[0, 0, 0]
        outputs = [wrong if job.consumer.name == "norse" else right for job in jobs]
        return [runs.Seen(output=output, spikes={"lif1": output}) for output in outputs]

    monkeypatch.setattr(runs, "run", one_more)
    args = [case.path, "--input", raster, "--need", "norse,snntorch"]
    monkeypatch.setattr(sys, "argv", ["stl-check", *map(str, args)])
    with pytest.raises(SystemExit) as stop:
        check_command.main()
    out, err = capfd.readouterr()
    assert stop.value.code == 1
    assert err.count("1 spikes differ, against the rules") == 1
    assert "Norse 1.1.0" in err
    assert "snnTorch 1.0.0" not in err
    assert "spikes that differ" in out


def test_outputs_of_another_size_are_no_match(cases, files, expected):
    name = "dense"
    right = expected[name]["lif1"].astype(np.float32)
    seen = runs.Seen(output=right, spikes={"lif1": right})
    assert seen.mismatches(expected[name]) == {"lif1": 0}
    assert replace(seen, output=right[..., :-1]).mismatches(expected[name]) is None
    assert runs.Seen(error="no").mismatches(expected[name]) is None
