"""Float graph to integer network: weights on a symmetric grid, scales absorbed into the thresholds.

A LIF neuron does not change when its weights, bias and threshold are scaled together. So every
output channel c gets a unit of its own, ``unit[c]``, the float value of one weight step:

    w_q  = round(w / unit)                  -(2^(B-1)-1) .. 2^(B-1)-1, or another grid of slices.py
    vth  = ceil(theta / scale) - 1          fires where v > vth, that is v >= theta on the grid
    bias = round(b / scale)                 as mantissa << exponent
    with scale = unit / 2^exp, the float value of 64 units of v

"Plain" units are max|w| / (2^(B-1)-1). A unit grows where a register would not hold the bias or
the threshold, or where sums could leave the accumulator; each doubling costs one effective bit. The grid
of "2x8" is finer than registers let most layers use: there it is they that set the unit. With calibration
data ``calibration.py`` rounds instead, on the same grid.

That is the *native* lowering of thresholds: a vth for every neuron. Where the chip wants fewer
values, ``folding.py`` gives the neurons units of their own and one vth, and ``grouped.py`` rounds
vth and places neurons by it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import nir
import numpy as np
from numpy.typing import ArrayLike

from stl_deploy.chips import facts as chips
from stl_deploy.chips import placement
from stl_deploy.chips.rules import refused
from stl_deploy.errors import InputError, LoweringError, Problem
from stl_deploy.formats import float_nir
from stl_deploy.formats.raster import ONLY, Raster
from stl_deploy.ir import nir_graph as G
from stl_deploy.ir.floats import FloatNetwork, decode
from stl_deploy.ir.network import Input, IntegerNetwork
from stl_deploy.ir.notes import Diagnostic, Lowering
from stl_deploy.ir.readouts import FloatReadout
from stl_deploy.ir.slices import WeightPrecision
from stl_deploy.ir.synapses import IntArray
from stl_deploy.lower import folding, grouped, relays, rows, trained
from stl_deploy.lower.assembly import Assembly
from stl_deploy.lower.checks import check as check_floats
from stl_deploy.lower.options import Options, Overflow, Skips, Thresholds, check_options

Calib = ArrayLike | Mapping[str, ArrayLike]


def quantize(
    graph: nir.NIRGraph | FloatNetwork,
    chip: str | Path = "ideal",
    calib: Calib | None = None,
    *,
    weight_bits: int | None = None,
    weight_exp: int = 0,
    thresholds: Thresholds = "auto",
    overflow: Overflow = "auto",
    clamp_thresholds: bool = False,
    weight_precision: WeightPrecision = "8",
    skips: Skips = "auto",
    on_progress: Callable[[int, int, str], None] | None = None,
) -> IntegerNetwork:
    """Quantize a lowered float graph (``lower/graph.py``) for ``chip``.

    Args:
        graph: of LIF, IF and CubaLIF populations and the Conv2d, Linear, Affine and Scale nodes between
            them, with at most a Delay and a Flatten before each; SumPool2d -> Threshold for max pooling.
            Neurons may have ``reset: "subtract"`` in their metadata. Or the float network itself, with
            ``meta``.
        chip: name of a chip that comes with the package, or the path of a chip file.
        calib: raster [N, T, *input], or one for each input by name, that weights and thresholds are fitted
            to (``calibration.py``; not with thresholds "fold") and that sets scales with
            ``overflow="checked"``; no labels.
        weight_bits: 2..8, the grid +-(2^(B-1)-1) of precision "8"; 8 without, or what the model was
            trained on.
        weight_exp: 0..7, weights count 2^exp; a larger one makes the threshold grid finer.
        thresholds: "native", a threshold per neuron; "fold", one a layer, inputs scaled instead;
            "grouped", rounded to what a core of ``chip`` holds, neurons placed by threshold;
            "auto", native where the chip can hold that, else grouped.
        overflow: "proven" (no input can overflow), "checked" (units from ``calib``; hw_sim flags an
            overflow), "auto": proven where it costs at most one effective bit, and with
            "2x8" where there is no ``calib``.
        clamp_thresholds: put thresholds outside the chip's register onto its nearest value.
        weight_precision: how a weight is stored (``slices.py``): "8", one synapse; "split", one of two
            one-signed groups, the grid +-(2^B-1); "2x8", two slices of 8 bits, the grid +-16,319 as far
            as registers let it be used, at up to two synapses a weight (weight_bits 8, weight_exp 0).
        skips: how a chip waits for spikes that jump over populations: "delay", by its synapses; "relay",
            by neurons in between; "auto", by the synapses where they can wait so long.
        on_progress: called with (parts done, all parts, what is done next): populations, with
            ``calib`` the float run before them, and the placement.

    A graph that was trained on integers (``stl-train --qat``) is taken as it is.

    Raises:
        InputError: an option out of range, or one that contradicts such a training.
        LoweringError: every problem of the model at once.
    """
    facts = chips.find(chip)
    if not isinstance(graph, nir.NIRGraph | FloatNetwork):
        raise InputError(
            Problem(
                "graph",
                f"is of type {type(graph).__name__}, not a float NIR graph",
                "give the graph that from_torch(model) or from_nir(path) makes",
            )
        )
    floats = graph if isinstance(graph, FloatNetwork) else decode(graph)
    meta = floats.meta if isinstance(graph, FloatNetwork) else G.float_meta(graph)
    if meta is None:
        raise InputError(
            Problem("graph", "has no meta: steps and classes are not known", "give it")
        )
    if weight_bits is None:
        weight_bits = 8 if meta.trained is None else meta.trained.weight_bits
    options = Options(
        weight_bits, weight_exp, thresholds, overflow, clamp_thresholds, weight_precision, skips
    )
    if meta.trained is not None:
        asked = {
            "weight_bits": weight_bits,
            "weight_exp": weight_exp,
            "weight_precision": weight_precision,
            "thresholds": thresholds,
            "clamp_thresholds": clamp_thresholds,
        }
        trained.check_asked(meta.trained, {**asked, "calib": calib})
        float_nir.check_trained(floats, meta.trained)
    check_options(options, facts, calib is not None)
    check_floats(floats)
    _check_readout(floats, meta)
    given = _rasters(floats, meta, calib)
    problems = facts.input_problems(meta.input_levels, meta.signed)
    targets = rows.targets(floats)
    if options.thresholds == "fold":
        shapes = {**floats.inputs, **{p.name: p.shape for p in floats.populations}}
        problems += folding.problems(list(targets.values()), shapes, options, facts)
        if problems:
            raise LoweringError(problems)
    parts = len(floats.populations) + 2
    tell = on_progress or (lambda _done, _all, _what: None)
    assembly = Assembly(floats, meta, targets, options, facts)
    assembly.quantize(given, lambda done, what: tell(done, parts, what))
    problems += assembly.problems
    if not floats.by_name.keys() <= {population.name for population in assembly.populations}:
        raise LoweringError(problems)  # without one of them there is no network to look at
    network = assembly.network()
    problems += refused(network)
    try:
        network = relays.relayed(network, facts, skips)
    except LoweringError as error:
        raise LoweringError([*problems, *error.problems]) from None
    tell(parts - 1, parts, "placement")
    network = replace(network, placement=placement.place(network, facts))
    problems += () if network.placement is None else network.placement.beyond
    if problems:
        raise LoweringError(problems)
    if meta.trained is not None:
        network = replace(network, lowering_reason="the integers are taken as they were trained")
    else:
        network = _lowered(network, options.thresholds, facts)
    diagnostics = [*network.diagnostics]
    diagnostics += _distinct_thresholds(network, facts, meta.trained is not None)
    if network.placement is not None and network.placement.chips > 1:
        fewer = "--weight-precision split" if weight_precision == "2x8" else "fewer --weight-bits"
        diagnostics.append(placement.more_than_one_chip(network.placement, facts, fewer))
    return replace(network, diagnostics=tuple(diagnostics))


def _check_readout(floats: FloatNetwork, meta: G.FloatMeta) -> None:
    """Raise InputError where the readout is not one of the neurons and steps that there are."""
    read = floats.readout or FloatReadout(meta.classes, meta.population, floats.output)
    if (what := read.misfit(math.prod(floats.shape(floats.output)), meta.timesteps)) is not None:
        remedy = "correct classes, population and timesteps of the metadata, or what the readout is given"
        raise InputError(Problem(floats.output, what, remedy))


def _rasters(
    floats: FloatNetwork, meta: G.FloatMeta, calib: Calib | None
) -> dict[str, IntArray] | None:
    """What ``calib`` gives each input, [N, T, *shape]; a frame that is held is repeated in every step.

    Raises InputError for rasters that do not fit.
    """
    if calib is None:
        return None
    inputs = {
        name: Input(shape, meta.input_levels, meta.signed, meta.held)
        for name, shape in floats.inputs.items()
    }
    given = Raster.given(calib, where="calib").as_inputs("calib", inputs, meta.timesteps).arrays
    by_name = given if ONLY not in given else dict.fromkeys(inputs, given[ONLY])
    if not meta.held:
        return dict(by_name)
    return {
        name: np.broadcast_to(x[:, :1], (len(x), meta.timesteps, *x.shape[2:]))
        for name, x in by_name.items()
    }


def _lowered(network: IntegerNetwork, asked: Thresholds, chip: chips.Chip) -> IntegerNetwork:
    """``network``, quantized and placed, with the lowering of its thresholds settled, and why."""
    fact = chip.limits.thresholds_per_core
    if asked in ("native", "fold"):
        how: Lowering = "fold" if asked == "fold" else "native"
        return replace(network, lowering=how, lowering_reason="as asked for")
    if fact is None or network.placement is None:
        why = f"{chip.name} holds a threshold for every neuron"
        return replace(network, lowering_reason=why)
    most = max(placed.fullest["thresholds"] for placed in network.placement.layers.values())
    if most <= fact.value and asked == "auto":
        why = (
            f"no core gets more than {most} distinct thresholds, and {chip.name} holds {fact.value}"
        )
        return replace(network, lowering_reason=why)
    why = "as asked for"
    if asked == "auto":
        why = f"a core of {chip.name} holds {fact.value} distinct thresholds, and up to {most} are needed"
    return replace(grouped.pack(network, chip), lowering_reason=why)


def _distinct_thresholds(
    network: IntegerNetwork, chip: chips.Chip, as_trained: bool
) -> list[Diagnostic]:
    """Say where a core gets more distinct thresholds than the chip holds."""
    fact = chip.limits.thresholds_per_core
    if fact is None or network.placement is None:
        return []
    return [
        Diagnostic(
            name,
            f"a core gets {placed.fullest['thresholds']} distinct thresholds; one of {chip.name} "
            f"holds {fact.value}. The file is right for simulation but cannot be loaded onto that "
            "chip as it is",
            "use --chip loihi2, or the float model with --thresholds grouped"
            if as_trained
            else "use --thresholds grouped or fold, or --chip loihi2",
        )
        for name, placed in network.placement.layers.items()
        if placed.fullest["thresholds"] > fact.value
    ]
