"""``--model-class``: a state_dict, and the user's own class that it belongs to."""

from __future__ import annotations

import difflib
import importlib
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import nn

from stl_deploy.errors import InputError, LoweringError, Problem
from stl_deploy.formats import signatures
from stl_deploy.formats.checkpoint import read_tensors
from stl_deploy.formats.state import unwrapped
from stl_deploy.importers.given import File, Given, Model
from stl_deploy.importers.nir.graph import Options
from stl_deploy.importers.torch.net import Lowered, lowered

NAMED = 8  # classes that a message names
HOW = {"snntorch": "pip install 'stl-deploy[snntorch]'", "spikingjelly": "pip install spikingjelly"}


def read_model(file: File) -> Model:
    """See ``read``."""
    assert file.given.model_class is not None
    found = read(file.path, file.given.model_class, file.given)
    return Model(found.graph, notes=found.notes, live=found.live)


def read(path: Path, model_class: str, given: Given) -> Lowered:
    """The graph of a state_dict in ``path`` and the class (or function) ``package.module:Name``.

    With it come the layers that could hardly be checked. The class is imported, from the current folder
    too, and called without arguments: it is code that the user names, and is run.

    Raises InputError and LoweringError naming everything that is wrong.
    """
    made = made_by(model_class)
    net, sample = made if isinstance(made, tuple) and len(made) == 2 else (made, None)
    named = f"--model-class {model_class}"
    if not isinstance(net, nn.Module):
        remedy = "let it return the module, or (module, sample)"
        raise InputError(Problem(named, f"gives a {type(net).__name__}, not an nn.Module", remedy))
    if signatures.is_nir(path):
        what = f"makes a PyTorch model, and {path} is a NIR file"
        raise InputError(Problem(named, what, "omit it, or name the state_dict of the model"))
    if given.sample_shape is not None:
        sample = torch.rand(given.sample_shape, generator=torch.Generator().manual_seed(0))
    if sample is None:
        raise InputError(
            Problem(
                "--sample-shape",
                "is needed: the shape of what forward takes, batch included, and time where it loops over it",
                "give e.g. --sample-shape 1,784, or name a function that returns (net, sample)",
            )
        )
    state = unwrapped(path, read_tensors(path), net.state_dict().keys())
    try:
        with redirect_stdout(sys.stderr):
            net.load_state_dict(dict(state.tensors))
    except (Exception, SystemExit) as error:
        lines = [line.strip() for line in str(error).splitlines()[1:]] or [str(error)]
        raise InputError(
            [
                Problem(f"{path}: state_dict", line, f"is it that of {model_class}?")
                for line in lines
            ]
        ) from None
    options = Options(
        timesteps=given.steps,
        steps_from=given.steps_from,
        classes=given.classes,
        levels=given.levels or 1,
        signed=bool(given.signed),
        normalize=given.normalize,
    )
    try:
        with redirect_stdout(sys.stderr):
            found = lowered(net, sample, options)
        return found._replace(notes=(*state.notes(str(path)), *found.notes))
    except (InputError, LoweringError) as error:
        where = {"sample": "--sample-shape"} if given.sample_shape is not None else {}
        raise type(error)(
            [replace(p, where=where.get(p.where, f"{path}: {p.where}")) for p in error.problems]
        ) from None


@contextmanager
def _current_folder() -> Iterator[None]:
    """Modules of the current folder can be imported, as with ``python -m``."""
    folder = os.getcwd()
    sys.path.insert(0, folder)
    try:
        yield
    finally:
        if folder in sys.path:
            sys.path.remove(folder)


def _missing(where: str, module: ModuleType, attribute: str) -> Problem:
    """That a module of the user's has no such class, and what it has."""
    own = [
        name
        for name, value in vars(module).items()
        if getattr(value, "__module__", None) == module.__name__ and callable(value)
    ]
    near = difflib.get_close_matches(attribute, own, 3) or own[:NAMED]
    remedy = f"name one of {', '.join(near)}" if near else "name a class or function that it has"
    return Problem(where, f"{module.__name__} has no {attribute}", remedy)


def made_by(model_class: str) -> Any:
    """What ``package.module:Name`` gives, called without arguments. Raises InputError."""
    where = f"--model-class {model_class}"
    # What the user's code prints is not part of a command's result.
    name, _, attribute = model_class.partition(":")
    if not name or not attribute:
        what = "is not of the form package.module:Class"
        raise InputError(Problem(where, what, f"give e.g. --model-class {name or 'mynets'}:Net"))
    try:
        with redirect_stdout(sys.stderr), _current_folder():
            module = importlib.import_module(name)
            if not hasattr(module, attribute):
                raise InputError(_missing(where, module, attribute))
            maker: Callable[[], Any] = getattr(module, attribute)
            return maker()
    except InputError:
        raise
    except ImportError as error:
        remedy = "is it in the current folder, or on PYTHONPATH?"
        remedy = HOW.get((error.name or "").split(".")[0], remedy)
        raise InputError(Problem(where, f"cannot be imported: {error}", remedy)) from None
    except (Exception, SystemExit) as error:  # whatever the user's own code raises
        text = f"{type(error).__name__}: {error}".splitlines()[0]
        raise InputError(
            Problem(where, f"fails: {text}", "let it be callable without arguments")
        ) from None
