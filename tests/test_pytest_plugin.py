"""The fixture ``stl_parity`` in pytest runs of their own, and the job of the documentation.

One run has a process of its own; the others are in this one, where everything is imported already.
"""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
import tomllib
import xml.etree.ElementTree as ElementTree
from importlib.metadata import entry_points

import numpy as np
import pytest
import yaml

import stl_deploy
from stl_deploy.formats.checkpoint import save_checkpoint
from stl_deploy.formats.raster import Raster
from stl_deploy.formats.raster import save as save_raster
from stl_deploy.lower.quantize import quantize
from stl_deploy.verify import budgets, check
from tests.build.heavy import HEAVY
from tests.build.nets import ROOT, random_net, random_spikes

pytest_plugins = ["pytester"]
TABLE = """
[tool.stl-deploy.parity]
model = "model.pt"
lowered = "out/model.nir"
input = "test.npz"
max-mismatch = {limit}
"""


@pytest.fixture(scope="module", autouse=True)
def everything_imported(tmp_path_factory):
    """pytester forgets modules that its tests imported first, and numpy's cannot be imported twice."""
    folder = tmp_path_factory.mktemp("warm")
    write_files(folder)
    config = folder / "pyproject.toml"
    config.write_text(TABLE.format(limit=0.5))
    check.run(check.settings(budgets.read(config), config, {}))


def write_files(folder):
    """What the table names."""
    model = random_net(seed=4)
    save_checkpoint(model, folder / "model.pt")
    graph = stl_deploy.from_torch(model)
    network = quantize(graph, "loihi2", weight_bits=4)
    stl_deploy.export(network, "nir", folder / "out", graph=graph)
    raster = Raster(random_spikes(model, 12), np.arange(12, dtype=np.int64) % 10)
    save_raster(folder / "test.npz", raster, {"made": "for a test"})


@pytest.fixture
def project(pytester):
    """A folder with a network and its files; ``project(limit)`` writes the table."""
    write_files(pytester.path)
    pytester.makepyfile("def test_parity(stl_parity):\n    stl_parity()\n")

    def write(limit):
        pytester.makepyprojecttoml(TABLE.format(limit=limit))

    return write


def properties(path):
    """The properties of the only test case in a JUnit file."""
    (case,) = ElementTree.parse(path).getroot().iter("testcase")
    return {p.get("name"): p.get("value") for p in case.iter("property")}, case


def test_parity_within_its_budgets_passes_and_its_figures_are_in_the_xml(project, pytester):
    project(0.5)
    result = pytester.runpytest_subprocess("--junitxml=report.xml")
    result.assert_outcomes(passed=1, warnings=0)
    found, case = properties(pytester.path / "report.xml")
    assert case.find("failure") is None
    assert found["stl_parity.passed"] == "True"
    assert found["stl_parity.samples"] == "12"
    assert found["stl_parity.float_nir.differing"] == "0"
    assert found["stl_parity.backend.hw_sim.spike_mismatches"] == "0"
    assert "The lowered network first differs" in found["stl_parity.first_divergence"]
    report = stl_deploy.parity(
        stl_deploy.load(pytester.path / "model.pt"),
        stl_deploy.load(pytester.path / "out" / "model.nir"),
        random_spikes(random_net(seed=4), 12),
    )
    for layer in report.layers:
        for key in ("mismatch", "mismatch_forced", "certified"):
            assert float(found[f"stl_parity.{layer.name}.{key}"]) == getattr(layer, key)


def test_parity_beyond_a_budget_fails_with_the_first_divergence(project, pytester):
    project(0.001)
    result = pytester.runpytest_inprocess("--junitxml=report.xml")
    result.assert_outcomes(failed=1)
    config = pytester.path / "pyproject.toml"
    result.stdout.fnmatch_lines(
        [
            "parity failed on 12 samples:",
            f"  lif*: mismatch 0.* is above max-mismatch ({config}) 0.001",
            "The lowered network first differs from the float model in sample 0, step *",
        ]
    )
    result.stdout.no_fnmatch_line("*Traceback*")
    result.stdout.no_fnmatch_line("*pytest_plugin.py*")
    found, case = properties(pytester.path / "report.xml")
    assert found["stl_parity.passed"] == "False"
    failure = case.find("failure")
    assert failure is not None
    assert "is above max-mismatch" in failure.get("message", "") + (failure.text or "")
    assert "To blame: " in (failure.text or "")


def test_arguments_go_before_the_table(project, pytester):
    project(0.001)
    pytester.makepyfile(
        """
        def test_parity(stl_parity):
            outcome = stl_parity(max_mismatch=0.9, limit=3)
            assert outcome.passed and outcome.report.samples == 3

        def test_unknown(stl_parity):
            stl_parity(max_mismach=0.9)
        """
    )
    result = pytester.runpytest_inprocess()
    result.assert_outcomes(passed=1, failed=1)
    result.stdout.fnmatch_lines(["*max-mismach: is not known*did you mean max-mismatch?*"])


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("[tool.stl-deploy.parity]\nmax-mismach = 1", "*max-mismach: is not known*"),
        ("[tool.other]", "*has no table [[]tool.stl-deploy.parity[]]*"),
        (TABLE.format(limit=2), "*is 2; it should be less than or equal to 1*"),
    ],
)
def test_a_table_that_is_wrong_fails(project, pytester, text, what):
    pytester.makepyprojecttoml(text)
    result = pytester.runpytest_inprocess()
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["parity could not be checked:", what])


def test_another_file_can_be_named(project, pytester):
    project(0.001)
    (pytester.path / "loose.toml").write_text(TABLE.format(limit=0.9))
    result = pytester.runpytest_inprocess("-o", "stl_parity_config=loose.toml")
    result.assert_outcomes(passed=1)


def test_the_plugin_is_registered_and_light():
    (entry,) = (e for e in entry_points(group="pytest11") if e.name == "stl_parity")
    assert entry.value == "stl_deploy.pytest_plugin"
    heavy = (*HEAVY, "numpy", "scipy", "distributed")
    script = (
        f"import stl_deploy.pytest_plugin, sys; print([m for m in {heavy!r} if m in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], check=True, capture_output=True, text=True
    )
    # Rich comes with pytest itself in some versions.
    assert set(json.loads(done.stdout.replace("'", '"'))) <= {"rich"}


# docs/parity.md


def blocks(kind):
    """The fenced blocks of one kind."""
    return re.findall(rf"```{kind}\n(.*?)```", (ROOT / "docs" / "parity.md").read_text(), re.S)


def test_the_table_of_the_documentation_is_one():
    tables = [tomllib.loads(block) for block in blocks("toml")]
    (found,) = (t["tool"]["stl-deploy"]["parity"] for t in tables)
    table = budgets.validate(found, "docs")
    # It shows every budget.
    for name in budgets.BUDGETS:
        assert getattr(table, name) is not None, name
    assert {"model", "lowered", "input"} <= set(found)


def test_the_job_of_the_documentation_runs_what_there_is():
    (job,) = map(yaml.safe_load, blocks("yaml"))
    # YAML 1.1 reads the key ``on`` as true.
    assert {"push", "pull_request"} <= set(job[True])
    (steps,) = (part["steps"] for part in job["jobs"].values())
    assert all(step.keys() & {"uses", "run"} for step in steps)
    lines = [line for step in steps for line in step.get("run", "").splitlines() if line.strip()]
    scripts = {e.name: e for e in entry_points(group="console_scripts")}
    seen = set()
    for line in lines:
        program, *args = shlex.split(line)
        seen.add(program)
        if program.startswith("stl-"):
            check_options(scripts[program], args)
        else:
            assert program in ("pip", "pytest"), line
    assert {"stl-export", "pytest"} <= seen
    (run,) = (shlex.split(line) for line in lines if line.startswith("pytest"))
    (xml,) = (a.removeprefix("--junitxml=") for a in run if a.startswith("--junitxml="))
    uploads = [s for s in steps if "upload-artifact" in s.get("uses", "")]
    assert uploads[0]["with"]["path"] == xml
    assert uploads[0]["if"] == "always()"


def check_options(entry, args):
    """The command parses ``args``: it goes as far as reading files, which are not there."""
    done = subprocess.run(
        [sys.executable, "-c", f"from {entry.module} import main; main()", *args],
        capture_output=True,
        text=True,
        check=False,
        cwd="/",
    )
    assert done.returncode == 2
    assert "does not exist" in done.stderr, done.stderr
    assert "No such option" not in done.stderr
