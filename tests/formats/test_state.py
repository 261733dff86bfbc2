"""State_dicts in what training scripts wrap around them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel

from stl_deploy.errors import InputError
from stl_deploy.formats import state

HERE = Path("net.pt")


def tensors() -> dict[str, Any]:
    return {"conv1.weight": torch.rand(4, 1, 3, 3), "lif1.thresh": torch.rand(4)}


def renamed(prefix: str) -> dict[str, Any]:
    return {f"{prefix}{name}": value for name, value in tensors().items()}


WRAPPED: dict[str, Mapping[str, Any]] = {
    "bare": tensors(),
    "net": {"net": tensors(), "epoch": 3, "best_acc": torch.tensor(0.9)},
    "model, module.": {"model": renamed("module."), "epoch": 3, "best_acc": 0.9},
    "best_net": {"best_net": tensors(), "args": {"lr": 0.1, "milestones": [1, 2]}},
    "model_state_dict": {
        "model_state_dict": tensors(),
        "optimizer_state_dict": {
            "state": {0: {"exp_avg": torch.rand(4, 4)}},
            "param_groups": [{"lr": 0.1}],
        },
    },
    "nested": {"checkpoint": {"params": renamed("_orig_mod.module.")}},
    "Lightning": {
        "state_dict": renamed("model."),
        "hyper_parameters": {"class_weights": torch.rand(10)},
        "optimizer_states": [{"state": {0: {"exp_avg": torch.rand(4, 4)}}}],
    },
    "EMA": {"ema": {"n_averaged": torch.tensor(5), **renamed("module.")}},
    "compiled inside": {
        "conv1._orig_mod.weight": torch.rand(4, 1, 3, 3),
        "lif1.thresh": torch.rand(4),
    },
}


@pytest.mark.parametrize("name", WRAPPED)
def test_every_wrapper_is_taken_off(name: str) -> None:
    found = state.unwrapped(HERE, WRAPPED[name])
    assert list(found.tensors) == list(tensors())
    assert bool(found.removed) == (name != "bare")


def test_what_was_taken_off_is_said() -> None:
    (note,) = state.unwrapped(HERE, WRAPPED["model, module."]).notes("net.pt")
    assert "read from 'model'" in note.what
    assert "'module.'" in note.what


def test_two_dictionaries_are_named_and_none_is_chosen() -> None:
    both = {"model": tensors(), "training": {"ema": tensors()}, "epoch": 3}
    with pytest.raises(InputError, match=r"2 state_dicts: model, training.ema .*\['model'\]"):
        state.unwrapped(HERE, both)


@pytest.mark.parametrize(
    ("around", "named"),
    [
        ({**tensors(), "ema": tensors()}, "ema, the file itself"),
        ({"net": {**tensors(), "ema": tensors()}}, "net.ema, net"),
    ],
)
def test_weights_around_a_dictionary_are_not_passed_over(around: Any, named: str) -> None:
    with pytest.raises(InputError, match=rf"2 state_dicts: {named} .*\['ema'\]"):
        state.unwrapped(HERE, around)


def test_names_of_the_model_itself_stay() -> None:
    """A class that has an attribute ``model`` gives names that only look like a wrapper's."""
    inner = nn.Sequential(nn.Linear(3, 2))
    net = nn.ModuleDict({"model": nn.ModuleDict({"module": inner})})
    names = list(net.state_dict())
    for wrapped in (net, nn.DataParallel(net), AveragedModel(net)):
        found = state.unwrapped(HERE, wrapped.state_dict(), names)
        assert list(found.tensors) == names


def test_names_that_would_become_one_stay() -> None:
    clashing = {"_orig_mod.weight": torch.rand(2, 2), "weight": torch.rand(2, 2)}
    assert list(state.unwrapped(HERE, clashing).tensors) == list(clashing)


def test_a_view_with_its_negative_bit_set_is_read() -> None:
    values = torch.rand(3, 3)
    made = state.arrays(HERE, {"weight": torch._neg_view(values)})
    assert (made["weight"] == -values.numpy()).all()
