"""What ``--model-class`` says of a module, a class or a function that does not make a model."""

from __future__ import annotations

import sys

import pytest

from stl_deploy.errors import InputError
from stl_deploy.importers.torch.model_class import made_by

MODULE = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self, inputs, hidden, *, beta, classes=10, **more):
        super().__init__()

class Fails(nn.Module):
    def __init__(self):
        super().__init__()
        raise RuntimeError("no data here")

class Inner(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = Net()

class Abstract(nn.Module):
    def __init__(self, *args):
        super().__init__()

size = 3
model = Abstract()
"""


@pytest.fixture
def module(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mynets.py").write_text(MODULE)
    (tmp_path / "broken.py").write_text("size = 1 / 0")
    for name in ("mynets", "broken"):  # another test may have left one of that name
        monkeypatch.delitem(sys.modules, name, raising=False)
    yield
    for name in ("mynets", "broken"):
        sys.modules.pop(name, None)


@pytest.mark.parametrize(
    ("name", "what", "remedy"),
    [
        (
            "mynets:Net",
            "mynets.Net needs arguments: inputs, hidden, beta",
            "def net(): return Net(inputs=..., hidden=..., beta=...)",
        ),
        ("mynets:Fails", "fails in mynets.py, line 12: RuntimeError: no data here", "python -c"),
        (
            "mynets:Inner",
            "fails in mynets.py, line 17: TypeError: Net.__init__() missing",
            "python -c",
        ),
        ("mynets:Nett", "mynets has no Nett", "name one of Net"),
        (
            "mynets:size",
            "mynets.size is of type int, not a class or function",
            "name one that makes",
        ),
        ("mynets:model", "mynets.model is a model, not what makes one", "def net(): return model"),
        ("broken:Net", "fails on import in broken.py, line 1: ZeroDivisionError", "import broken"),
        ("nowhere:Net", "cannot be imported: No module named 'nowhere'", "PYTHONPATH"),
        ("mynets.py:Net", "names a file, not a module", "--model-class mynets:Net"),
        ("./nets/mynets.py:Net", "names a file, not a module", "--model-class nets.mynets:Net"),
        ("mynets", "is not of the form package.module:Class", "--model-class mynets:Net"),
        ("mynets.Net", "is not of the form package.module:Class", "--model-class mynets:Net"),
    ],
)
def test_what_is_wrong_is_told(module, name, what, remedy):
    with pytest.raises(InputError) as error:
        made_by(name)
    (problem,) = error.value.problems
    assert problem.where == f"--model-class {name}"
    assert problem.what.startswith(what)
    assert remedy in problem.remedy


def test_a_class_that_takes_any_arguments_is_called_without(module):
    assert type(made_by("mynets:Abstract")).__name__ == "Abstract"
