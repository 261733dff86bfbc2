"""Graphs that were trained on integers (``models/qat.py``): taken as they are, or refused.

What such a model learned are the integers themselves. Another grid, data to fit to, or other thresholds
would make another network of it, so that asking for one is an error.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from stl_deploy.chips.facts import Chip
from stl_deploy.errors import InputError, Problem
from stl_deploy.ir import nir_graph as G
from stl_deploy.lower.options import Options
from stl_deploy.lower.rows import Target

TAKEN = "omit it: a model trained on integers is exported unchanged"
AGAIN = "train it again for this chip (stl-train --qat --chip)"
NEAR = 1e-6  # of a unit; a float64 product of an integer and its unit is nearer


def check_asked(trained: G.Trained, asked: dict[str, object]) -> None:
    """Raise InputError for options that contradict the training.

    ``asked`` holds "weight_bits", "weight_exp", "weight_precision", "thresholds", "calib" and
    "clamp_thresholds" of ``quantize``, None for what was not asked for.
    """
    may = {
        "weight_bits": (None, trained.weight_bits),
        "weight_exp": (None, 0),
        "weight_precision": (None, "8"),
        "thresholds": (None, "auto", "native"),
        "calib": (None,),
        "clamp_thresholds": (None, False),
    }
    shown = {"calib": "fitting to data", "clamp_thresholds": "moving thresholds"}
    problems = [
        Problem(
            name,
            f"{shown.get(name, value)} was asked for, but the model was trained on integers of "
            f"{trained.weight_bits} bits with a threshold for every neuron",
            TAKEN,
        )
        for name, value in asked.items()
        if not any(value is ok or (ok is not None and value == ok) for ok in may[name])
    ]
    if problems:
        raise InputError(problems)


def check_weights(
    target: Target, units: NDArray[np.float64], options: Options, chip: Chip, finer: int
) -> list[Problem]:
    """What of a population's weights and biases is no integer of its channel's unit [C], or too large.

    ``finer`` is the largest weight of spikes that are added as they are, and of a bias that comes from a
    neuron that always fires.
    """
    one = len(target.rows) == 1
    held = [
        (
            "weight" if one else f"weight {rows.name}",
            rows.weight,
            finer if rows.fine else options.qmax,
        )
        for rows in target.rows
    ]
    problems = []
    for what, value, most in [*held, ("bias", target.bias, chip.bias_mant_range[1])]:
        steps = value.reshape(target.channels, -1) / units[:, None]
        off = np.abs(steps - np.rint(steps)) > NEAR
        if off.any():
            problems.append(
                Problem(
                    target.name,
                    f"{int(off.sum())} of {off.size} values of its {what} are no whole numbers of their "
                    f"unit, the first {steps[off][0]:.6g}",
                    "name the checkpoint that stl-train --qat wrote",
                )
            )
        elif np.abs(steps).max(initial=0) > most:
            problems.append(
                Problem(
                    target.name,
                    f"its {what} goes from {steps.min():,.0f} to {steps.max():,.0f}; at most "
                    f"{most:,.0f} in size can be held",
                    AGAIN,
                )
            )
    if target.common and np.ptp(units):
        what = "is read by its voltages, and its channels have units of their own"
        problems.append(Problem(target.name, what, AGAIN))
    return problems
