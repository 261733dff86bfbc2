"""TEBN: a BatchNorm whose output has a learned weight for each step, p[t], in front of the membrane.

Every step: v = 0.25 v + p[t] BN(conv(s)), a spike where v > 1. A layer is a convolution (``fwd.module``),
its ``bn.bn`` and its ``bn.p``. In the numbered layers of a Sequential a number without tensors is an average
pool of 2 x 2. Behind the last one stand linear layers without neurons; where there are several, groups of the
last one's outputs are averaged, one group for a class.
"""

from __future__ import annotations

import math
import re
from itertools import pairwise

import numpy as np

from stl_deploy.errors import InputError, Problem
from stl_deploy.importers.official.draft import Array, At, Draft, Rules
from stl_deploy.importers.official.system import GROUPS, Said, System

LAYER = re.compile(r"(.+)\.fwd\.module\.weight")
NUMBERED = re.compile(r"(?:(.+)\.)?(\d+)")
POOL = 2


def build(draft: Draft, said: Said) -> At:
    """The class, as it runs."""
    at, names = said.input, _layers(draft)
    for before, name in pairwise([None, *names]):
        assert name is not None
        if before is not None and _skips(draft, before, name):
            at = draft.average(at, (POOL, POOL), f"{name}.pool")
        at = draft.norm(draft.conv(at, f"{name}.fwd.module"), f"{name}.bn.bn")
        weights = draft.take(f"{name}.bn.p")
        gains = weights.reshape(-1)
        if weights.shape[:1] != gains.shape:
            what = (
                f"has shape {weights.shape}; one number for each step is expected, [T, 1, 1, 1, 1]"
            )
            raise InputError(Problem(f"{draft.path}: {name}.bn.p", what))
        if len(gains) != said.timesteps:
            what = f"has {len(gains)} steps, and another layer {said.timesteps}"
            raise InputError(Problem(f"{draft.path}: {name}.bn.p", what))
        rules = Rules(said.keep, said.threshold, gains=gains)
        at = draft.spikes(at, f"{name}.act", rules)
    linear = draft.linear_layers()
    at = _pooled(draft, at, linear[0])
    for name in linear:
        at = draft.linear(at, name)
    outputs = math.prod(at.shape)
    if outputs % said.classes:
        what = f"has {outputs} outputs, which do not divide into {said.classes} classes"
        where = f"{draft.path}: {linear[-1]}.weight"
        raise InputError(Problem(where, what, "give the number of classes with --classes"))
    group = outputs // said.classes
    if group == 1:
        return at
    return draft.dense(at, GROUPS, np.kron(np.eye(said.classes), np.ones(group)) / group)


def _layers(draft: Draft) -> list[str]:
    """The layers, in the order of the file. Raises InputError for those of blocks."""
    names = [found[1] for key in draft.params if (found := LAYER.fullmatch(key))]
    blocks = [name for name in names if not NUMBERED.fullmatch(name) and "." in name]
    if blocks:
        what = (
            "is a layer of a residual block: there, currents with step weights of their own are added up, "
            "and a population has one weight a step"
        )
        remedy = "export a network without shortcuts, such as TEBN's VGG"
        raise InputError(Problem(f"{draft.path}: {blocks[0]}", what, remedy))
    return names


def _skips(draft: Draft, before: str, name: str) -> bool:
    """Whether a number is left out between two layers of a Sequential: that of a pool.

    Raises InputError where more than one is.
    """
    one, other = NUMBERED.fullmatch(before), NUMBERED.fullmatch(name)
    if one is None or other is None or one[1] != other[1]:
        return False
    further = int(other[2]) - int(one[2])
    if further not in (1, 2):
        what = f"is {further} numbers behind {before}; 1 is expected, or 2 with a pool between them"
        remedy = "write it as a NIR graph in Python, for stl_deploy.from_nir (docs/official.md)"
        raise InputError(Problem(f"{draft.path}: {name}.fwd.module.weight", what, remedy))
    return further == 2


def _pooled(draft: Draft, at: At, name: str) -> At:
    """``at`` averaged to as many values as the linear layer ``name`` reads."""
    columns = draft.take(f"{name}.weight").shape[1]
    channels, height, width = at.shape
    if columns == channels:
        return draft.global_average(at, f"{name}.pool")
    sizes = (n for n in range(1, min(height, width) + 1) if height % n == width % n == 0)
    size = next((n for n in sizes if channels * (height // n) * (width // n) == columns), 1)
    return draft.average(at, (size, size), f"{name}.pool")


def _first(params: dict[str, Array]) -> str:
    return next((key for key in params if LAYER.fullmatch(key)), "fwd.module.weight")


def _steps(params: dict[str, Array]) -> int | None:
    sizes = (values.size for key, values in params.items() if key.endswith("bn.p"))
    return next(sizes, None)


SYSTEM = System(
    neuron="LIF of TEBN, a BatchNorm weighted by step",
    reset="zero",
    keep=0.25,
    threshold=1.0,
    first=_first,
    build=build,
    steps=_steps,
    notes=(
        "between numbered layers, a number without tensors is read as an average pool of 2 x 2; what the "
        "first linear layer reads, as the mean of as large windows as it needs",
    ),
)
