"""docs/nir.md: its tables are those of the rules, its commands and its Python run as they stand."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from stl_deploy.backends import consumers, tool_env
from stl_deploy.backends.consumers import run as runs
from stl_deploy.errors import BackendError
from stl_deploy.formats.integer_nir import read_network
from stl_deploy.formats.raster import load as load_raster
from stl_deploy.hw_sim import reference
from tests.build import nir_cases
from tests.build.nets import ROOT

PAGE = (ROOT / "docs" / "nir.md").read_text("utf-8")


def between(start: str, end: str) -> str:
    return PAGE.split(start, 1)[1].split(end, 1)[0]


@pytest.fixture(scope="module")
def python() -> Path:
    """The Python that has Norse."""
    try:
        return tool_env.ensure(runs.environment("current"))
    except BackendError as error:
        if os.environ.get("CI") == "true":
            pytest.fail(f"CI must run Norse: {error}")
        pytest.skip(str(error))


def test_the_rules_are_those_of_the_command():
    assert between("<!-- rules -->\n", "<!-- end -->") == consumers.markdown()


def test_the_table_is_that_of_the_rules(tmp_path):
    assert between("<!-- table -->\n", "<!-- end -->") == nir_cases.table(tmp_path)
    count = len(nir_cases.build(tmp_path)) - len(nir_cases.IN_DOCS)
    assert f"and {count} more," in PAGE


def test_the_example_runs(python, tmp_path):
    (tmp_path / "models").symlink_to(ROOT / "models")
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        ["/bin/sh", "-e", "-c", between("```sh\n", "```")],
        cwd=tmp_path,
        env={**os.environ, "PATH": path},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert between("```text\n", "```") in done.stdout
    sites = [p for p in sys.path if Path(p).name in ("site-packages", "dist-packages")]
    script = f"import sys; sys.path += {sites!r}\n" + between("```python\n", "```")
    said = subprocess.run(
        [python, "-c", script], cwd=tmp_path, capture_output=True, text=True, check=True
    ).stdout
    assert f"prints `{said.strip()}`, the predictions of" in PAGE
    spikes = load_raster(ROOT / "models/zoo/fashion-mnist-test500.npz").spikes[:5]
    ours = reference.run(read_network(tmp_path / "out" / "model.nir"), spikes)
    assert said.strip() == str(ours.predictions.tolist())
