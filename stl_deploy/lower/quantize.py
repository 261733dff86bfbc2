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

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import nir
import numpy as np
from numpy.typing import NDArray

from stl_deploy.chips import facts as chips
from stl_deploy.chips import placement
from stl_deploy.errors import InputError, LoweringError, Problem
from stl_deploy.formats import float_nir
from stl_deploy.ir import chain as chain_view
from stl_deploy.ir import nir_graph as G
from stl_deploy.ir import slices
from stl_deploy.ir.float_neurons import Float
from stl_deploy.ir.float_chain import FloatLayer
from stl_deploy.ir.floats import FloatNetwork, decode
from stl_deploy.ir.chain import Layer, OrPool
from stl_deploy.ir.network import IntegerNetwork, Readout
from stl_deploy.ir.notes import Diagnostic, Lowering, Precision
from stl_deploy.ir.slices import WeightPrecision
from stl_deploy.ir.units import FORGETS
from stl_deploy.lower import calibration, folding, grouped, trained
from stl_deploy.lower.layers import NAMED, rounded_decays
from stl_deploy.lower.layers import check as check_layers
from stl_deploy.lower.options import Options, Overflow, Thresholds, check_options
from stl_deploy.lower.units import Fit


def quantize(
    graph: nir.NIRGraph,
    chip: str | Path = "ideal",
    calib: NDArray[np.uint8] | None = None,
    *,
    weight_bits: int | None = None,
    weight_exp: int = 0,
    thresholds: Thresholds = "auto",
    overflow: Overflow = "auto",
    clamp_thresholds: bool = False,
    weight_precision: WeightPrecision = "8",
    on_progress: Callable[[int, int, str], None] | None = None,
) -> IntegerNetwork:
    """Quantize a lowered float graph (``lower/graph.py``) for ``chip``.

    Args:
        graph: chain of Conv2d/Linear/Affine -> LIF, IF or CubaLIF, SumPool2d -> Threshold and Flatten
            nodes; flat neurons may have a Linear node from them back to them, and ``reset: "subtract"``
            in their metadata.
        chip: name of a chip that comes with the package, or the path of a chip file.
        calib: raster [N, T, *input] that weights and thresholds are fitted to (``calibration.py``; not
            with thresholds "fold") and that sets scales with ``overflow="checked"``; no labels.
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
        on_progress: called with (parts done, all parts, what is done next): layers, with ``calib`` the
            float run before them, and the placement.

    A graph that was trained on integers (``stl-train --qat``) is taken as it is.

    Raises:
        InputError: an option out of range, or one that contradicts such a training.
        LoweringError: every problem of the model at once.
    """
    facts = chips.find(chip)
    if not isinstance(graph, nir.NIRGraph):
        raise InputError(
            Problem("graph", f"is a {type(graph).__name__}, not a NIR graph", "see from_torch")
        )
    meta = G.float_meta(graph)
    floats = decode(graph)
    if weight_bits is None:
        weight_bits = 8 if meta.trained is None else meta.trained.weight_bits
    options = Options(
        weight_bits, weight_exp, thresholds, overflow, clamp_thresholds, weight_precision
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
    if calib is not None and calib.shape[2:] != G.in_shape(graph):
        raise InputError(
            Problem("calib", f"has inputs {calib.shape[2:]}, the network {G.in_shape(graph)}")
        )
    problems: list[Problem] = []
    diagnostics: list[Diagnostic] = []
    problems += facts.input_problems(meta.input_levels)
    if calib is not None and not len(calib):
        raise InputError(Problem("calib", "holds no samples", "give a raster with some inputs"))
    check_layers(floats)
    if options.thresholds == "fold":
        problems += _fold_problems(floats, options, facts)
        if problems:
            raise LoweringError(problems)
    seen: dict[str, Float] = {}
    recording = None
    parts = ["float model", *floats.layer_by_name, "placement"]
    tell = on_progress or (lambda _done, _all, _what: None)
    if calib is not None:
        tell(0, len(parts), parts[0])
        recorded, seen = _recorded(floats, calib)
        recording = None if thresholds == "fold" else recorded
    layers: list[Layer] = []
    precision: dict[str, Precision] = {}
    for index, given in enumerate(floats.layers, 1):
        tell(index, len(parts), given.name)
        if given.kind == "or_pool":
            window = given.window
            pool = OrPool(given.name, window.name, given.input_shape, given.shape, window.kernel)
            layers.append(pool)
            continue
        levels = meta.input_levels if not layers else 1
        fitted = Fit(given, options, facts, levels, meta.timesteps, seen.get(given.name))
        if meta.trained is None:
            layer, how = fitted.choose()
        else:
            layer, how = fitted.as_trained(np.array(meta.trained.scale[given.name]))
        if recording is not None and not fitted.problems:
            before = layers[-1].name if layers else ""
            layer, how = fitted.calibrated(layer, how, before, recording)
        problems += fitted.problems
        diagnostics += fitted.diagnostics
        layers.append(layer)
        precision[given.name] = how
    if calib is not None:
        diagnostics.append(_fitted_to(recording))
    network = chain_view.of(
        chip=facts.name,
        chip_facts=chips.carried(facts),
        timesteps=meta.timesteps,
        input_shape=G.in_shape(graph),
        input_levels=meta.input_levels,
        layers=tuple(layers),
        readout=Readout(meta.classes, meta.population),
        precision=precision,
    )
    tell(len(parts) - 1, len(parts), parts[-1])
    network = replace(network, placement=placement.place(network, facts))
    problems += () if network.placement is None else network.placement.beyond
    if problems:
        raise LoweringError(problems)
    if meta.trained is not None:
        network = replace(network, lowering_reason="the integers are taken as they were trained")
    else:
        network = _lowered(network, options.thresholds, facts)
    diagnostics += _distinct_thresholds(network, facts, meta.trained is not None)
    if network.placement is not None and network.placement.chips > 1:
        fewer = "--weight-precision split" if weight_precision == "2x8" else "fewer --weight-bits"
        diagnostics.append(placement.more_than_one_chip(network.placement, facts, fewer))
    return replace(network, diagnostics=tuple(diagnostics))


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


def _fold_problems(floats: FloatNetwork, options: Options, chip: chips.Chip) -> list[Problem]:
    """Why ``fold`` cannot be had: thresholds that cannot be scaled, or too many connections."""
    problems: list[Problem] = []
    unrolled: list[FloatLayer] = []
    remedy = f"use --thresholds {folding.instead(chip)}"
    for layer in floats.layers:
        if layer.kind != "lif":
            continue
        unroll = folding.needs_unrolling(layer)
        unfit = "is recurrent" if layer.recurrent is not None else ""
        if unroll and rounded_decays(layer.neurons)[0] != FORGETS:
            unfit = "has a current behind a convolution"
        if unfit:
            problems.append(Problem(layer.name, f"{unfit}, which cannot be folded", remedy))
        low = layer.theta <= 0
        if low.any():
            where = [tuple(map(int, index)) for index in np.argwhere(low)[:NAMED]]
            listed = ", ".join(
                f"{index if len(index) > 1 else index[0]}: theta {layer.theta[index]:.4g}"
                for index in where
            ) + (", ..." if low.sum() > NAMED else "")
            problems.append(
                Problem(
                    layer.name,
                    f"{low.sum()} of {low.size} thresholds are not above zero ({listed}), and no "
                    "scaling of the inputs makes them another one",
                    remedy,
                )
            )
        if unroll:
            unrolled.append(layer)
    per_weight = slices.PER_WEIGHT[options.weight_precision]
    return problems + folding.too_large(unrolled, options.weight_bits, per_weight, chip)


def _fitted_to(recording: calibration.Recording | None) -> Diagnostic:
    """How calibration data was used, as a note that goes with the network."""
    if recording is None:
        return Diagnostic(
            "calib",
            "set scales only: a folded layer's weights are rounded to nearest",
            "use --thresholds native or grouped to have weights and thresholds fitted",
        )
    used = len(recording.inputs)
    return Diagnostic("calib", f"weights and thresholds are fitted to {used:,} unlabelled inputs")


def _recorded(
    floats: FloatNetwork, calib: NDArray[np.uint8]
) -> tuple[calibration.Recording, dict[str, Float]]:
    """What the float model fires on ``calib``, and the largest |sum of w*s| of each layer's channels.

    The sums are by the name of the population.
    """
    largest: dict[str, Float] = {}

    def observe(name: str, out: Float) -> None:
        x = np.abs(np.moveaxis(out, 2, 0)).reshape(out.shape[2], -1).max(axis=1)
        largest[name] = np.maximum(largest.get(name, 0.0), x)

    return calibration.record(floats, calib, observe), largest


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
