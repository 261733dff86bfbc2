"""docs/recipes on snnTorch's tutorials: the examples and commands run as they stand."""

from __future__ import annotations

import re
import sys
import warnings

import pytest

from stl_deploy.errors import UncheckedWarning
from tests.build.nets import ROOT

FOLDER = ROOT / "docs" / "recipes"


@pytest.mark.parametrize("page", ["snntorch-tutorial-5", "snntorch-tutorial-6"])
def test_a_recipe_runs(page, tmp_path, monkeypatch, command, capfd):
    """The first block is mynets.py, the others a script next to it; then the commands."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "mynets", raising=False)
    text = (FOLDER / f"{page}.md").read_text("utf-8")
    module, *script = re.findall(r"```python\n(.*?)```", text, re.S)
    (tmp_path / "mynets.py").write_text(module)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UncheckedWarning)
        exec(compile("".join(script), page, "exec"), {"__name__": page})
    printed = capfd.readouterr().out
    for shown in re.findall(r"```text\n(.*?)```", text, re.S):
        assert shown in printed
    (lines,) = re.findall(r"```sh\n(.*?)```", text, re.S)
    for line in lines.splitlines():
        code, _, err = command(*line.split())
        assert code == 0, err
    assert (tmp_path / "out2" / "loihi").is_dir()
    made = [(tmp_path / out / "model.nir").read_bytes() for out in ("out", "out2")]
    assert made[0] == made[1]
