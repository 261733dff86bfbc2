"""``--model-class``: a state_dict, and the user's own class that it belongs to."""

from __future__ import annotations

import difflib
import importlib
import inspect
import os
import sys
import traceback
from collections.abc import Iterator
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

TRY = "python -c"
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
    name, _, attribute = model_class.partition(":")
    if not name or not attribute:
        what = "is not of the form package.module:Class"
        module, _, last = name.rpartition(".")
        instead = f"{module}:{last}" if last[:1].isupper() else f"{name or 'mynets'}:Net"
        raise InputError(Problem(where, what, f"give e.g. --model-class {instead}"))
    if name.endswith(".py") or os.sep in name:
        instead = name.removesuffix(".py").strip(f".{os.sep}").replace(os.sep, ".")
        what = "names a file, not a module"
        raise InputError(Problem(where, what, f"give --model-class {instead}:{attribute}"))
    # What the user's code prints is not part of a command's result.
    with redirect_stdout(sys.stderr), _current_folder():
        maker = _maker(where, name, attribute)
        if wrong := _not_callable(maker, name, attribute):
            raise InputError(Problem(where, *wrong))
        try:
            return maker()
        except (Exception, SystemExit) as error:  # whatever the user's own code raises
            remedy = f"{TRY} 'import {name}; {name}.{attribute}()' shows the same"
            raise InputError(Problem(where, f"fails {_place(error)}", remedy)) from None


def _maker(where: str, name: str, attribute: str) -> Any:
    """What is called ``attribute`` in the module ``name``. Raises InputError."""
    try:
        module = importlib.import_module(name)
    except ImportError as error:
        remedy = "is it in the current folder, or on PYTHONPATH?"
        remedy = HOW.get((error.name or "").split(".")[0], remedy)
        raise InputError(Problem(where, f"cannot be imported: {error}", remedy)) from None
    except (Exception, SystemExit) as error:  # whatever the user's own code raises
        remedy = f"{TRY} 'import {name}' shows the same"
        raise InputError(Problem(where, f"fails on import {_place(error)}", remedy)) from None
    if not hasattr(module, attribute):
        raise InputError(_missing(where, module, attribute))
    return getattr(module, attribute)


def _not_callable(maker: Any, name: str, attribute: str) -> tuple[str, str] | None:
    """Why it cannot be called without arguments, and the remedy."""
    if not callable(maker):
        kind = type(maker).__name__
        return (
            f"{name}.{attribute} is of type {kind}, not a class or function",
            "name one that makes the model",
        )
    if isinstance(maker, nn.Module):
        what = f"{name}.{attribute} is a model, not what makes one"
        return what, f"name its class, or a function that returns it: def net(): return {attribute}"
    try:
        parameters = inspect.signature(maker).parameters.values()
    except (TypeError, ValueError):
        return None  # it says nothing
    variable = inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD
    needed = [p.name for p in parameters if p.default is p.empty and p.kind not in variable]
    if not needed:
        return None
    given = ", ".join(f"{argument}=..." for argument in needed)
    what = f"{name}.{attribute} needs arguments: {', '.join(needed)}"
    return what, f"name a function that gives them: def net(): return {attribute}({given})"


def _place(error: BaseException) -> str:
    """Where the user's code raised an error, and the error."""
    text = f"{type(error).__name__}: {error}".splitlines()[0]
    last = traceback.extract_tb(error.__traceback__)[-1]
    return f"in {Path(last.filename).name}, line {last.lineno}: {text}"
