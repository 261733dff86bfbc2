"""docs/recipes: the code of every page runs as it stands, in the tool that it is about.

The first Python block runs with the tool's own packages, further ones with ours, and commands in the order in
which they stand. What a page prints as the answer of a command has to be in it.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from stl_deploy.backends import lava_env, tool_env
from stl_deploy.backends.consumers import run as runs
from stl_deploy.errors import BackendError
from tests.build.nets import ROOT

PAGES = ROOT / "docs" / "recipes"
ENVIRONMENTS = {"norse": "current", "sinabs": "nir104", "rockpool": "nir104"}
# slayer's object detection wants OpenCV, which no block needs.
SLAYER = """
import types
sys.modules["lava.lib.dl.slayer.object_detection"] = types.ModuleType("object_detection")
"""


def blocks(page):
    """(language, text) of every block of code."""
    text = (PAGES / f"{page}.md").read_text("utf-8")
    return re.findall(r"^```(\w+)\n(.*?)^```", text, re.M | re.S)


def interpreter(page):
    """The Python of the environment that has the tool of a page."""
    try:
        if page == "lava-dl":
            return lava_env.python()
        return tool_env.ensure(runs.environment(ENVIRONMENTS[page]))
    except BackendError as error:
        if os.environ.get("CI") == "true":
            pytest.fail(f"CI must run the tools: {error}")
        pytest.skip(str(error))


def python(executable, code, folder, paths=(), before=""):
    """Run ``code``, with ``paths`` behind its own packages."""
    script = f"import sys\nsys.path += {list(map(str, paths))!r}\n{before}{code}"
    (folder / "block.py").write_text(script, "utf-8")
    kept = {k: v for k, v in os.environ.items() if not k.startswith("PYTHON")}
    done = subprocess.run(
        [str(executable), "-W", "ignore", "block.py"],
        cwd=folder,
        env={**kept, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr


def shell(commands, folder):
    """What ``commands`` print."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        ["/bin/sh", "-e", "-c", commands],
        cwd=folder,
        env={**os.environ, "PATH": path, "COLUMNS": "200"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def bare(text):
    """``text`` without the spaces at the ends of lines."""
    return "\n".join(line.rstrip() for line in text.splitlines())


def nothing_differs(said):
    """Of every recorded population: its entries differ nowhere."""
    table = said.split("nothing may differ", 1)[1].split("\n\n", 1)[0]
    rows = [line.split() for line in table.splitlines()[1:] if not set(line) <= set("─ ")]
    header, rows = rows[0], rows[1:]
    assert rows
    assert {row[header.index("differing")] for row in rows} == {"0"}
    assert all(int(row[header.index("spikes")].replace(",", "")) > 20 for row in rows)


@pytest.mark.parametrize("page", [*ENVIRONMENTS, "lava-dl"])
def test_a_network_comes_over_as_its_tool_runs_it(page, tmp_path):
    sites = [p for p in sys.path if Path(p).name in ("site-packages", "dist-packages")]
    first, *rest = blocks(page)
    assert first[0] == "python"
    if page in ENVIRONMENTS:
        python(interpreter(page), first[1], tmp_path, sites)
    else:
        home = interpreter(page)
        theirs = next((home.parents[1] / "lib").glob("python*/site-packages"))
        python(sys.executable, first[1], tmp_path, [theirs], SLAYER)
    said = ""
    for language, text in rest:
        if language == "python":
            python(sys.executable, text, tmp_path)
        elif language == "sh":
            said = shell(text, tmp_path)
            nothing_differs(said)
        else:
            assert bare(text) in bare(said), said


def test_the_commands_for_spinnaker2_run(tmp_path):
    """Its script needs a board: it is compiled alone."""
    (tmp_path / "models").symlink_to(ROOT / "models")
    (_, commands), (_, script) = blocks("spinnaker2")
    assert "SpiNNaker2" in shell(commands, tmp_path)
    compile(script, "spinnaker2.md", "exec")


def test_every_page_is_run():
    assert {page.stem for page in PAGES.glob("*.md")} >= {*ENVIRONMENTS, "lava-dl", "spinnaker2"}
