"""LTMD: DenseNet whose neurons learn one threshold a layer, theta = tanh(w).

Every step: u = 0.25 u (1 - s) + I, and a spike where u - theta > 0. A dense layer runs norm1, spike1, conv1,
norm2, spike2, conv2 and is joined, as currents, to what it read; a transition runs spike, norm, conv and an
average pool. Behind the global average stand neurons and twice a linear layer, to whose outputs a
convolution over them (``lateralfc``) is added, with neurons that send u where they spike.
"""

from __future__ import annotations

from functools import partial
from itertools import count

import numpy as np

from stl_deploy.errors import InputError, Problem
from stl_deploy.importers.official.draft import Array, At, Draft, Rules
from stl_deploy.importers.official.system import Said, System

POOL = 2  # of a transition
TWICE = {"spikeA": "spike1", "spikeB": "spike2"}  # names of one parameter


def build(draft: Draft, said: Said) -> At:
    """The class, as it runs."""
    neurons = partial(_neurons, draft, said.keep)
    at = draft.conv(said.input, "features.conv0.layer")
    at = draft.norm(draft.carried(at, "features.conv0"), "features.norm0.bn")
    at = draft.conv(at, "features.pool0.layer", stride=2)
    for block in count(1):
        at = _dense_block(draft, said.keep, at, f"features.denseblock{block}")
        name = f"features.transition{block}"
        if not draft.has(f"{name}.spike.w"):
            break
        at = draft.conv(
            draft.norm(neurons(at, f"{name}.spike"), f"{name}.norm.bn"), f"{name}.conv.layer"
        )
        at = draft.average(at, (POOL, POOL), f"{name}.pool")
    at = neurons(draft.norm(at, "features.norm5.bn"), "spike")
    at = neurons(draft.global_average(at, "average"), "spike1")
    for stage in (1, 2):
        weight, bias = _with_lateral(draft, f"classifier{stage}.layer", f"lateralfc{stage}.layer")
        at = draft.dense(at, f"classifier{stage}", weight, bias)
        at = neurons(at, f"outspike{stage}", graded=True)
    return at


def _dense_block(draft: Draft, keep: float, at: At, block: str) -> At:
    parts = [at]
    for number in count(1):
        name = f"{block}.denselayer{number}"
        if not draft.has(f"{name}.conv1.layer.weight"):
            return at
        for twice, own in TWICE.items():
            _check_twice(draft, f"{name}.{twice}.w", f"{name}.{own}.w")
        for half in ("1", "2"):
            at = _neurons(
                draft, keep, draft.norm(at, f"{name}.norm{half}.bn"), f"{name}.spike{half}"
            )
            at = draft.conv(at, f"{name}.conv{half}.layer")
        parts.append(at)
        at = draft.concat(f"{name}.joined", parts)
    raise AssertionError(block)


def _check_twice(draft: Draft, twice: str, own: str) -> None:
    """Raise InputError where two names of one parameter have different values."""
    if draft.has(twice) and not np.array_equal(draft.take(twice), draft.take(own)):
        what = f"differs from {own}, which is the same parameter in the official class"
        raise InputError(Problem(f"{draft.path}: {twice}", what))


def _neurons(draft: Draft, keep: float, at: At, name: str, graded: bool = False) -> At:
    w = draft.take(f"{name}.w")
    if w.size != 1:
        what = f"has shape {w.shape}; one number for all neurons is expected"
        raise InputError(Problem(f"{draft.path}: {name}.w", what))
    threshold = float(np.tanh(w.reshape(())))
    return draft.spikes(at, name, Rules(keep, threshold, graded=graded))


def _with_lateral(draft: Draft, key: str, lateral: str) -> tuple[Array, Array | None]:
    """Weights and bias of y + (k * y), where y are the outputs of the linear layer ``key``."""
    weight = draft.take(f"{key}.weight")
    kernel = draft.take(f"{lateral}.weight")
    if weight.ndim != 2 or kernel.ndim != 3 or kernel.shape[:2] != (1, 1) or not kernel.size % 2:
        what = f"has shape {kernel.shape}; (1, 1, K) with an odd K is expected"
        raise InputError(Problem(f"{draft.path}: {lateral}.weight", what))
    size, half = len(weight), kernel.size // 2
    mix = np.eye(size) + sum(k * np.eye(size, k=i - half) for i, k in enumerate(kernel.flat))
    if not draft.has(f"{key}.bias"):
        return mix @ weight, None
    return mix @ weight, mix @ draft.take(f"{key}.bias", size)


SYSTEM = System(
    neuron="LIF of LTMD, one learned threshold a layer",
    reset="zero",
    keep=0.25,
    threshold=None,
    first=lambda _params: "features.conv0.layer.weight",
    build=build,
)
