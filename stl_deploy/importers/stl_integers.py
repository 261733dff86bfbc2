"""Checkpoints of networks that count in integers (``models/qat.py``): their units, and what they can hold."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import nir
import numpy as np
from numpy.typing import NDArray

from stl_deploy.errors import InputError, Problem
from stl_deploy.importers.given import Params
from stl_deploy.ir import arch as A
from stl_deploy.ir import nir_graph as G
from stl_deploy.ir.units import DECAY_ONE, MAX_SIGNED, UNIT


def in_units(architecture: A.Architecture, params: Params) -> tuple[G.Trained, Params]:
    """The units of a network of integers, and its parameters as multiples of them in float64.

    A threshold is put half a 1/64 above vth: v, a multiple of 1/64, passes it when it passes vth, and
    no rounding of a float sum can change that.
    """
    assert architecture.quantized is not None
    out: Params = {}
    scales: dict[str, list[float]] = {}
    for name, sources in architecture.feeds.items():
        scale = params[f"{name}.scale"].astype(np.float64)
        scales[name] = scale.tolist()
        thresh = f"{name}.thresh"
        keys = [f"{source}.{what}" for source in sources for what in ("weight", "bias")]
        keys += [f"{at}.one" for at in architecture.passed if architecture.behind(at) == [name]]
        keys += [thresh, f"{name}.recurrent"]
        whole = {key: params[key].astype(np.float64) for key in keys if key in params}
        if thresh in whole:
            whole[thresh] += 0.5 / UNIT
        out |= {k: v * scale.reshape(-1, *[1] * (v.ndim - 1)) for k, v in whole.items()}
        if (gain := f"{name}.gain") in params:
            out[gain] = params[gain].astype(np.float64) / DECAY_ONE
    return G.Trained(weight_bits=architecture.quantized.weight_bits, scale=scales), out


def weighed(
    architecture: A.Architecture, name: str, sources: Sequence[str], params: Params
) -> tuple[dict[str, nir.ir.NIRNode], list[tuple[str, str]], list[str]]:
    """Scales on the ways of spikes into the sum ``name``: nodes, edges, and what the sum then reads."""
    shape = architecture.shapes[name]
    one: NDArray[Any] = params[f"{name}.one"].reshape(-1, *[1] * (len(shape) - 1))
    nodes: dict[str, nir.ir.NIRNode] = {}
    edges, read = [], []
    for i, (source, spikes) in enumerate(zip(sources, architecture.passed[name], strict=True)):
        at = f"{name}.one{i}" if spikes else source
        if spikes:
            nodes[at] = nir.Scale(scale=np.broadcast_to(one, shape).copy())
            edges.append((source, at))
        read.append(at)
    return nodes, edges, read


def check(path: Path, architecture: A.Architecture, params: Params) -> None:
    """Raise InputError for numbers that a network trained on integers cannot hold."""
    if architecture.quantized is None:
        return
    bits, grid = architecture.quantized.weight_bits, float(architecture.quantized.largest)
    of_bits = f"the grid of {bits} bits"
    spans = {
        ".weight": (grid, of_bits),
        ".recurrent": (grid, of_bits),
        ".gain": (float(MAX_SIGNED), "16 bits"),
        ".one": (float(MAX_SIGNED), "16 bits"),
    }
    problems = []
    for key, value in params.items():
        where, wide = f"{path}: {key}", value.astype(np.float64)
        worst = wide.flat[np.abs(wide).argmax()]
        most, what = spans.get(key[key.rindex(".") :], (np.inf, ""))
        if key.endswith(".scale"):
            if not (wide > 0).all():
                problems.append(Problem(where, "contains a unit that is not above zero"))
        elif (wide != np.rint(wide)).any():
            problems.append(Problem(where, "contains a value that is not a whole number"))
        elif abs(worst) > most:
            said = f"holds {worst:g}, outside {what}, -{most:g}..{most:g}"
            problems.append(Problem(where, said))
        elif abs(worst) > 1 << 24:
            problems.append(Problem(where, f"holds {worst:.0f}, which PyTorch's float32 cannot"))
    if problems:
        raise InputError(problems)
