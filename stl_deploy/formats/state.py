"""The state_dict in a checkpoint: out of the dictionaries and names that training scripts wrap it in.

Scripts save ``{"net": state_dict, "epoch": 3, ...}`` under names of their own, and DataParallel,
torch.compile, Lightning and averaged models put prefixes before the names of parameters. Nothing but the
structure says which dictionary is meant: it is the one that holds weights by name. Where two do, nobody but
the user knows.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from stl_deploy.errors import InputError, Problem
from stl_deploy.formats.checkpoint import HOW_TO_CONVERT
from stl_deploy.ir.notes import Diagnostic

Arrays = dict[str, NDArray[Any]]
Tensors = Mapping[str, Any]
COMPILED = "_orig_mod."  # torch.compile's own name, of a whole model or of a part of it
PREFIXES = ("module.", "model.", "net.", "network.")  # names of the one attribute that is the model
AVERAGED = "n_averaged"  # a counter that torch.optim.swa_utils.AveragedModel adds
MAX_DEPTH = 8  # dictionaries in dictionaries


@dataclass(frozen=True)
class State:
    """Tensors by name, and in ``removed`` what stood around them, in words."""

    tensors: Tensors
    removed: tuple[str, ...] = ()

    def notes(self, where: str) -> tuple[Diagnostic, ...]:
        """A note of what was taken off, none where nothing was."""
        if not self.removed:
            return ()
        return (Diagnostic(where, f"the state_dict was unwrapped: {'; '.join(self.removed)}"),)


def unwrapped(path: Path, data: Mapping[Any, Any], expected: Collection[str] = ()) -> State:
    """The state_dict in ``data``, with names that no wrapper has changed.

    ``expected`` are the names of the model that it belongs to, where they are known: prefixes are then taken
    off only as far as that brings the names nearer to these.

    Raises InputError where several dictionaries could be meant.
    """
    tensors, removed = _inside(path, data)
    if AVERAGED in tensors and AVERAGED not in expected:
        tensors = {name: value for name, value in tensors.items() if name != AVERAGED}
        removed.append(f"{AVERAGED}, the counter of an averaged model, was left out")
    forms = list(_forms(tensors))
    if expected:
        wanted = set(expected)
        best = max(len(wanted.intersection(form)) for form, _ in forms)
        chosen, prefixes = next(f for f in forms if len(wanted.intersection(f[0])) == best)
    else:
        chosen, prefixes = forms[-1]
    if prefixes:
        taken = ", ".join(repr(prefix) for prefix in prefixes)
        removed.append(f"{taken} was taken off the names")
    return State(chosen, tuple(removed))


def _inside(path: Path, data: Mapping[Any, Any]) -> tuple[Tensors, list[str]]:
    """The dictionary of weights in ``data``, which may be ``data``, and where it was found."""
    found = list(_candidates(data, ()))
    if not found:
        return data, []
    if len(found) > 1:
        names = [".".join(keys) or "the file itself" for keys, _ in found]
        opened = f"torch.load(PATH){''.join(f'[{key!r}]' for key in found[0][0])}"
        raise InputError(
            Problem(
                str(path),
                f"holds {len(found)} state_dicts: {', '.join(names)}",
                f"save the one that is meant alone, e.g. torch.save({opened}, NEW)",
            )
        )
    ((keys, tensors),) = found
    return tensors, [f"read from {'.'.join(keys)!r}"]


def _candidates(
    data: Mapping[Any, Any], keys: tuple[str, ...]
) -> Iterator[tuple[tuple[str, ...], Tensors]]:
    """The dictionaries within ``data`` that hold weights by name, and where they are.

    Last is ``data`` itself, where weights stand around another.
    """
    if len(keys) >= MAX_DEPTH:
        return
    inside = list(_below(data, keys))
    yield from inside
    if inside and _has_weights(data):
        yield keys, data


def _below(
    data: Mapping[Any, Any], keys: tuple[str, ...]
) -> Iterator[tuple[tuple[str, ...], Tensors]]:
    """The dictionaries of ``_candidates`` but for ``data`` itself."""
    for key, value in data.items():
        if not isinstance(key, str) or not isinstance(value, Mapping):
            continue
        if _is_state(value):
            yield (*keys, key), value
        else:
            yield from _candidates(value, (*keys, key))


def _is_state(data: Mapping[Any, Any]) -> bool:
    """Whether it holds a model's weights: a tensor of two dimensions or more, and no dictionaries."""
    return _has_weights(data) and not any(isinstance(value, Mapping) for value in data.values())


def _has_weights(data: Mapping[Any, Any]) -> bool:
    return any(isinstance(value, torch.Tensor) and value.ndim > 1 for value in data.values())


def _forms(tensors: Tensors) -> Iterator[tuple[Tensors, tuple[str, ...]]]:
    """``tensors``, and with one prefix after another taken off, outermost first."""
    taken: tuple[str, ...] = ()
    yield tensors, taken
    while tensors and all(isinstance(name, str) for name in tensors):
        prefix = next((p for p in PREFIXES if all(n.startswith(p) for n in tensors)), None)
        if prefix is not None:
            shorter = {name.removeprefix(prefix): value for name, value in tensors.items()}
        elif any(_is_compiled(name) for name in tensors):
            prefix = COMPILED
            shorter = {_not_compiled(name): value for name, value in tensors.items()}
        else:
            return
        if len(shorter) < len(tensors) or "" in shorter:
            return
        tensors, taken = shorter, (*taken, prefix)
        yield tensors, taken


def _is_compiled(name: str) -> bool:
    return f".{COMPILED}" in f".{name}"


def _not_compiled(name: str) -> str:
    return f".{name}".replace(f".{COMPILED}", ".").removeprefix(".")


def arrays(path: Path, state: Any, integers: bool = False) -> Arrays:
    """Tensors as arrays in their own precision; integers where they may be.

    Raises InputError naming all that are not.
    """
    if not isinstance(state, Mapping) or not state:
        raise InputError(Problem(f"{path}: state_dict", "is missing or empty", HOW_TO_CONVERT))
    problems: list[Problem] = []
    made: Arrays = {}
    for key, value in state.items():
        where = f"{path}: {key}"
        if problem := _no_plain_tensor(where, key, value):
            problems.append(problem)
        elif key.endswith("num_batches_tracked"):
            continue
        elif integers and value.dtype in (torch.int8, torch.int32):
            made[key] = value.detach().numpy()
        elif not value.is_floating_point():
            wanted = "int8 or int32 for an integer" if integers else "a floating one"
            problems.append(Problem(where, f"has type {value.dtype}, not {wanted}"))
        else:
            wide = value if value.dtype == torch.float64 else value.float()
            made[key] = wide.detach().resolve_neg().numpy()
            problems += _wrong_values(where, key, made[key])
    if problems:
        raise InputError(problems)
    return made


def _no_plain_tensor(where: str, key: Any, value: Any) -> Problem | None:
    """Why an entry is not a tensor whose values can be read by its name."""
    if not isinstance(key, str):
        return Problem(where, f"is a key of type {type(key).__name__}, not a name")
    if not isinstance(value, torch.Tensor):
        return Problem(where, f"is a {type(value).__name__}, not a tensor", HOW_TO_CONVERT)
    if value.is_meta:
        return Problem(where, "is a meta tensor without values", "save real tensors")
    if value.layout != torch.strided or value.is_quantized:
        return Problem(where, "is sparse or quantized", "save plain tensors")
    if value.numel() * value.element_size() > value.untyped_storage().nbytes():
        what = f"claims {tuple(value.shape)} but stores less"
        return Problem(where, what, "save a copy of it")
    return None


def _wrong_values(where: str, key: str, values: NDArray[Any]) -> list[Problem]:
    bad = int((~np.isfinite(values)).sum())
    if bad:
        what = f"{bad} of {values.size} values are NaN or infinite"
        return [Problem(where, what, "training diverged: use an earlier checkpoint")]
    if key.endswith("running_var") and (values < 0).any():
        return [Problem(where, "holds negative variances")]
    return []
