"""Checkpoints ``model.pt``: read as data alone (``weights_only=True``), written whole or not at all.

Layout: ``{"format": "stl-deploy/1", "arch": {...}, "state_dict": {...}, "training": {...}}``, the
last for people and scripts, never read by the compiler. Where ``arch`` says ``quantized``, weights are
int8, biases and thresholds int32, and ``lif<i>.scale`` float32 is what a unit of them stood for.
"""

from __future__ import annotations

import io
import pickle
import re
import zipfile
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Protocol

import torch

from stl_deploy.errors import InputError, Problem
from stl_deploy.files import check_readable, is_zip
from stl_deploy.files import write as write_file
from stl_deploy.formats import signatures
from stl_deploy.ir.arch import Architecture

FORMAT = "stl-deploy/1"
MAX_BYTES = 4 << 30
HOW_TO_CONVERT = (
    "in the program that made it, save tensors alone: torch.save(model.state_dict(), PATH), or "
    "stl_deploy.save_checkpoint(model, PATH)"
)


class Model(Protocol):
    """What can be saved: a ``models.net.STLNet``."""

    @property
    def arch(self) -> Architecture:
        """Its layers."""

    def state_dict(self) -> dict[str, torch.Tensor]:
        """Its parameters and statistics by name."""


def read_tensors(path: Path) -> dict[str, Any]:
    """The dictionary in a checkpoint. Raises InputError for anything but tensors and plain data."""
    if (other := signatures.other(path)) is not None:
        raise InputError(Problem(str(path), *other))
    check_readable(path, MAX_BYTES)
    if not is_zip(path):
        raise InputError(
            Problem(
                str(path),
                "is not a complete PyTorch checkpoint (a zip archive): truncated, or another format",
                HOW_TO_CONVERT,
            )
        )
    if not _has_data(path):
        what = "is a zip archive, but not a PyTorch checkpoint: it has no data.pkl"
        raise InputError(Problem(str(path), what, HOW_TO_CONVERT))
    try:
        data = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        pickled = re.search(r"GLOBAL ([\w.]+)", str(error))
        raise InputError(
            Problem(
                str(path),
                f"holds pickled Python objects ({pickled[1]}), which could run any code and are never "
                "loaded"
                if pickled
                else "is damaged, or holds pickled Python objects, which are never loaded",
                HOW_TO_CONVERT,
            )
        ) from None
    except (RuntimeError, EOFError, OSError, ValueError, KeyError, TypeError, AttributeError) as e:
        reason = str(e).splitlines()[0] if str(e) else type(e).__name__
        raise InputError(Problem(str(path), f"cannot be read: {reason}", "save it again")) from None
    if not isinstance(data, Mapping):
        raise InputError(
            Problem(str(path), f"holds a {type(data).__name__}, not a dictionary", HOW_TO_CONVERT)
        )
    return dict(data)


def _has_data(path: Path) -> bool:
    """Whether an archive may be PyTorch's; one that cannot be looked into may."""
    with suppress(Exception), zipfile.ZipFile(path) as archive:  # whatever a broken one raises
        return any(name.endswith("/data.pkl") for name in archive.namelist())
    return True


def save_checkpoint(
    model: Model,
    path: str | Path,
    training: Mapping[str, Any] | None = None,
    *,
    replace: bool = True,
) -> None:
    """Write ``model`` as ``model.pt``; ``training`` is plain data for the reader.

    Raises InputError when ``path`` cannot be written, and without ``replace`` when it exists.
    """
    if not hasattr(model, "arch"):
        what = f"is of type {type(model).__name__}, not an STLNet"
        raise InputError(
            Problem("model", what, "save its state_dict: torch.save(net.state_dict(), PATH)")
        )
    data = {
        "format": FORMAT,
        "arch": model.arch.to_dict(),
        "state_dict": _state(model),
        "training": dict(training or {}),
    }
    write_tensors(Path(path), data, replace=replace)


def write_tensors(path: Path, data: Mapping[str, Any], *, replace: bool = True) -> None:
    """What ``read_tensors`` reads. Raises InputError as ``save_checkpoint`` does."""
    memory = io.BytesIO()  # PyTorch's own writer raises a RuntimeError when the disk is full
    torch.save(dict(data), memory)
    write_file(path, memory.getvalue(), replace=replace)


def _state(model: Model) -> dict[str, torch.Tensor]:
    """Parameters on the CPU; those of a network of integers as integers."""
    state = {k: v.detach().cpu() for k, v in model.state_dict().items()}
    if model.arch.quantized is None:
        return state
    types = {f"{name}.weight": torch.int8 for name in model.arch.weighted}
    return {
        k: v if k.endswith(".scale") else v.round().to(types.get(k, torch.int32))
        for k, v in state.items()
    }
