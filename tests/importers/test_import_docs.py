"""The examples of the pages on importing run as they stand."""

from __future__ import annotations

import re
import sys
import warnings

import pytest

from stl_deploy.errors import UncheckedWarning
from tests.build.nets import ROOT


@pytest.mark.parametrize("page", ["import-nir", "import-snntorch"])
def test_examples(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    text = (ROOT / "docs" / f"{page}.md").read_text("utf-8")
    example = "".join(re.findall(r"```python\n(.*?)```", text, re.S))
    with warnings.catch_warnings():
        warnings.simplefilter("error", UncheckedWarning)  # a page shows what leaves nothing open
        exec(compile(example, page, "exec"), {"__name__": page})
    assert (tmp_path / "out" / "model.nir").exists()


def test_the_command_of_the_page(tmp_path, monkeypatch, command):
    """Its class in a module of the user's, and its options."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    text = (ROOT / "docs" / "import-snntorch.md").read_text("utf-8")
    (example,) = re.findall(r"```python\n(.*?)```", text, re.S)
    exec(compile(example, "page", "exec"), {"__name__": "page"})
    (tmp_path / "mynets.py").write_text(example[: example.index("torch.manual_seed")])
    (words,) = re.findall(r"stl-export (net\.pt .*?) --target loihi -o out", text)
    assert command("stl-export", *words.split(), "--target", "nir", "-o", "new")[0] == 0
    assert "mynets" in sys.modules
    assert (tmp_path / "new" / "model.nir").read_bytes()
