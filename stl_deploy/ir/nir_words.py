"""What NIR's equations cannot say of a node, in its metadata: a JSON string, and arrays next to it.

``node.metadata["stl_deploy"]`` is the string; the array ``v0``, for one, is
``node.metadata["stl_deploy.v0"]``. NIR files keep strings and arrays of metadata, at one level. A reset
stands apart, as ``metadata["reset"]`` (``nir_graph.reset_of``).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, Literal

import nir
import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from stl_deploy.ir.neurons import MAX_HOLD, ONCE
from stl_deploy.ir.nir_graph import KEY

ARRAYS = ("floor", "v0", "adapt", "adapt_step", "current2", "drive2", "amplify")
Float = NDArray[np.float64]


class Words(BaseModel):
    """The JSON string of a node: ``port`` of weights, all others of neurons (``FloatNeurons``)."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    port: Literal[0, 1] = 0
    reset_current: bool = False
    hold: int = Field(default=0, ge=ONCE, le=MAX_HOLD)
    graded: bool = False

    @property
    def neurons(self) -> dict[str, Any]:
        """The words of neurons."""
        return self.model_dump(exclude={"port"})


def say(node: nir.ir.NIRNode, arrays: Mapping[str, Any] | None = None, **words: Any) -> None:
    """Put ``words`` and ``arrays`` into the metadata of ``node``, but for defaults and None.

    A number becomes an array of one: h5py compresses metadata, and refuses to for scalars.
    """
    said = Words(**words).model_dump_json(exclude_defaults=True)
    if said != "{}":
        node.metadata[KEY] = said
    for name, values in (arrays or {}).items():
        if values is not None:
            node.metadata[f"{KEY}.{name}"] = np.atleast_1d(np.asarray(values, np.float64))


def read(node: nir.ir.NIRNode) -> Words:
    """The words of ``node``. Raises ValueError for a string that says none."""
    text = node.metadata.get(KEY, "{}")
    text = text.decode("utf-8", "replace") if isinstance(text, bytes) else text
    try:
        return Words.model_validate(json.loads(text))
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise ValueError(f"metadata.{KEY}: {where}: {first['msg']}") from None
    except (ValueError, TypeError, RecursionError) as error:
        raise ValueError(f"metadata.{KEY} is not valid: {error}") from None


def arrays(node: nir.ir.NIRNode, shape: tuple[int, ...]) -> dict[str, Float]:
    """The arrays of neurons of ``shape``, float64, as the node says them.

    Raises ValueError for unknown ones, for numbers that are not finite, and for shapes that neither broadcast
    to ``shape`` nor differ from it in ones alone; that of ``amplify`` behind its steps.
    """
    found: dict[str, Float] = {}
    for key, values in node.metadata.items():
        if not key.startswith(f"{KEY}."):
            continue
        name, given = key.removeprefix(f"{KEY}."), np.asarray(values)
        if name not in ARRAYS:
            raise ValueError(f"metadata.{key} is not known; known are {', '.join(ARRAYS)}")
        if given.dtype.kind not in "iuf" or not np.isfinite(given).all():
            raise ValueError(f"metadata.{key} contains what is not a finite number")
        apart = 1 if name == "amplify" else 0
        steps, within = given.shape[:apart], given.shape[apart:]
        if given.size == 0 or given.ndim < apart or not _broadcasts(within, shape):
            if given.size == 0 or _without_ones(within) != _without_ones(shape):
                raise ValueError(f"metadata.{key} has shape {given.shape}, its neurons {shape}")
            given = given.reshape(*steps, *shape)
        found[name] = given.astype(np.float64, copy=False)
    return found


def _without_ones(shape: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(n for n in shape if n != 1)


def _broadcasts(given: tuple[int, ...], shape: tuple[int, ...]) -> bool:
    try:
        return np.broadcast_shapes(given, shape) == shape
    except ValueError:
        return False
