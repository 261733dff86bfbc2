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
values, ``folding.py`` gives the neurons units of their own and one vth, and ``profiles.py`` rounds
vth and places neurons by it.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal, get_args

import nir
import numpy as np
from numpy.typing import NDArray

from stl_deploy.chips import bounds, placement
from stl_deploy.chips import facts as chips
from stl_deploy.errors import InputError, LoweringError, Problem
from stl_deploy.ir import nir_graph as G
from stl_deploy.ir import slices
from stl_deploy.ir.network import (
    Conv,
    Dense,
    Diagnostic,
    IntegerNetwork,
    Layer,
    LifLayer,
    Lowering,
    OrPool,
    Precision,
    Readout,
    Reset,
)
from stl_deploy.ir.slices import WeightPrecision, Weights
from stl_deploy.lower import calibration, folding, trained
from stl_deploy.lower import grouped as profiles

Float = NDArray[np.float64]
Overflow = Literal["auto", "proven", "checked"]
Thresholds = Literal["auto", "native", "fold", "profiles"]
MIN_BITS = 4  # effective bits below which (or below weight_bits) a model is refused
FOLD_MIN_BITS = 2  # the same for a folded neuron: below, its largest weight rounds to 1 or 0
HEADROOM = 2.0  # of ``checked``: the limit over the largest sum seen in calibration
NAMED = 5  # neurons that a message lists before it says "..."


@dataclass(frozen=True)
class Options:
    """What the user may choose; the defaults are those of ``stl-export``."""

    weight_bits: int = 8
    weight_exp: int = 0
    thresholds: Thresholds = "auto"
    overflow: Overflow = "auto"
    clamp_thresholds: bool = False
    weight_precision: WeightPrecision = "8"

    @property
    def qmax(self) -> int:
        """The end of the weight grid."""
        return slices.largest(self.weight_precision, self.weight_bits)


def quantize(
    graph: nir.NIRGraph,
    chip: str = "ideal",
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
    """Quantize a lowered float graph (``passes.lower``) for ``chip``.

    Args:
        graph: chain of Conv2d/Linear/Affine -> LIF, IF or CubaLIF, SumPool2d -> Threshold and Flatten
            nodes; flat neurons may have a Linear node from them back to them, and ``reset: "subtract"``
            in their metadata.
        chip: name of a file in ``chips/``.
        calib: raster [N, T, *input] that weights and thresholds are fitted to (``calibration.py``; not
            with thresholds "fold") and that sets scales with ``overflow="checked"``; no labels.
        weight_bits: 2..8, the grid +-(2^(B-1)-1) of precision "8"; 8 without, or what the model was
            trained on.
        weight_exp: 0..7, weights count 2^exp; a larger one makes the threshold grid finer.
        thresholds: "native", a threshold per neuron; "fold", one a layer, inputs scaled instead;
            "profiles", rounded to what a core of ``chip`` holds, neurons placed by threshold;
            "auto", native where the chip can hold that, else profiles.
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
    facts = chips.load(chip)
    if not isinstance(graph, nir.NIRGraph):
        raise InputError(
            Problem("graph", f"is a {type(graph).__name__}, not a NIR graph", "see from_torch")
        )
    meta = G.float_meta(graph)
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
        trained.check_graph(graph, meta.trained)
    _check_options(options, facts, calib is not None)
    if calib is not None and calib.shape[2:] != G.in_shape(graph):
        raise InputError(
            Problem("calib", f"has inputs {calib.shape[2:]}, the network {G.in_shape(graph)}")
        )
    problems: list[Problem] = []
    diagnostics: list[Diagnostic] = []
    problems += facts.input_problems(meta.input_levels)
    if calib is not None and not len(calib):
        raise InputError(Problem("calib", "holds no samples", "give a raster with some inputs"))
    blocks = _blocks(graph)
    if options.thresholds == "fold":
        problems += _fold_problems(blocks, options, facts)
        if problems:
            raise LoweringError(problems)
    seen: dict[str, Float] = {}
    recording = None
    parts = ["float model", *(block.name for block in blocks), "placement"]
    tell = on_progress or (lambda _done, _all, _what: None)
    if calib is not None:
        tell(0, len(parts), parts[0])
        recorded, seen = _recorded(graph, calib)
        recording = None if thresholds == "fold" else recorded
    layers: list[Layer] = []
    precision: dict[str, Precision] = {}
    for index, block in enumerate(blocks, 1):
        tell(index, len(parts), block.name)
        if isinstance(block, OrPool):
            layers.append(block)
            continue
        levels = meta.input_levels if not layers else 1
        fitted = _Fit(block, options, facts, levels, meta.timesteps, seen.get(block.synapse_name))
        if meta.trained is None:
            layer, how = fitted.choose()
        else:
            layer, how = fitted.as_trained(np.array(meta.trained.scale[block.name]))
        if recording is not None and not fitted.problems:
            before = layers[-1].name if layers else ""
            layer, how = fitted.calibrated(layer, how, before, recording)
        problems += fitted.problems
        diagnostics += fitted.diagnostics
        layers.append(layer)
        precision[block.name] = how
    if calib is not None:
        diagnostics.append(_fitted_to(recording))
    network = IntegerNetwork(
        chip=chip,
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
    return replace(profiles.pack(network, chip), lowering_reason=why)


def _fold_problems(
    blocks: list[_Block | OrPool], options: Options, chip: chips.Chip
) -> list[Problem]:
    """Why ``fold`` cannot be had: thresholds that cannot be scaled, or too many connections."""
    problems: list[Problem] = []
    unrolled: dict[str, tuple[Float, tuple[int, ...], nir.Conv2d]] = {}
    for block in blocks:
        if isinstance(block, OrPool):
            continue
        unfit = "hears itself" if block.recurrent is not None else ""
        if folding.needs_unrolling(block.node, block.threshold) and block.du != 4095:
            unfit = "has a current behind a convolution"
        if unfit:
            problems.append(
                Problem(
                    block.name,
                    f"{unfit}, which cannot be folded",
                    f"use --thresholds {folding.instead(chip)}",
                )
            )
        low = block.threshold <= 0
        if low.any():
            where = [tuple(map(int, index)) for index in np.argwhere(low)[:NAMED]]
            listed = ", ".join(
                f"{index if len(index) > 1 else index[0]}: theta {block.threshold[index]:.4g}"
                for index in where
            ) + (", ..." if low.sum() > NAMED else "")
            problems.append(
                Problem(
                    block.name,
                    f"{low.sum()} of {low.size} thresholds are not above zero ({listed}), and no "
                    "scaling of the inputs makes them another one",
                    f"use --thresholds {folding.instead(chip)}",
                )
            )
        if folding.needs_unrolling(block.node, block.threshold):
            unrolled[block.name] = block.weight, block.input_shape, block.node
    per_weight = slices.PER_WEIGHT[options.weight_precision]
    return problems + folding.too_large(unrolled, options.weight_bits, per_weight, chip)


def _synapses(node: nir.ir.NIRNode, weight: Weights) -> Conv | Dense:
    if isinstance(node, nir.Conv2d):
        return Conv(weight, *G.conv_geometry(node), int(node.groups))
    return Dense(weight)


@dataclass(frozen=True)
class _Block:
    """One weight node and the neurons behind it, in float, as v counts.

    ``gain`` is what turns the sums of the graph into that, ``decay`` and ``current_decay`` what a step
    leaves of v and of the current, before they are rounded to ``dv`` and ``du``.
    """

    name: str
    synapse_name: str
    node: nir.ir.NIRNode
    weight: Float
    bias: Float
    threshold: Float
    dv: int
    decay: float
    gain: float
    input_shape: tuple[int, ...]
    du: int = 4095
    current_decay: float = 0.0
    recurrent: Float | None = None
    recurrent_name: str = ""
    reset: Reset = "zero"


def _blocks(graph: nir.NIRGraph) -> list[_Block | OrPool]:
    """Pair the nodes of the chain up. Raises LoweringError naming every node that does not fit."""
    out: list[_Block | OrPool] = []
    problems: list[Problem] = []
    beside = G.recurrent(graph)
    shape = population = G.in_shape(graph)
    pending: tuple[str, nir.ir.NIRNode] | None = None
    for name, node in G.inner(graph).items():
        try:
            after = G.node_output(name, node, shape)
        except ValueError as error:
            what = str(error).removeprefix(f"{name}: ")
            raise LoweringError([*problems, Problem(name, what)]) from None
        match pending, node:
            case None, nir.Flatten():
                pass
            case None, nir.Conv2d() | nir.Linear() | nir.Affine() | nir.SumPool2d():
                pending = (name, node)
            case (
                (synapse, nir.Conv2d() | nir.Linear() | nir.Affine() as source),
                nir.LIF() | nir.IF() | nir.CubaLIF(),
            ):
                try:
                    block = _block(name, node, synapse, source, population)
                    out.append(_with_recurrent(block, beside.get(name)))
                except LoweringError as error:
                    problems += error.problems
                pending, population = None, after
            case (pool, nir.SumPool2d() as source), nir.Threshold() if (node.threshold < 1).all():
                kernel = G.pair(source.kernel_size)
                out.append(OrPool(name, pool, population, after, kernel))
                if G.pair(source.stride) != kernel or G.pair(source.padding) != (0, 0):
                    problems.append(Problem(pool, "pooling windows overlap or are padded"))
                pending, population = None, after
            case _:
                before = pending[0] if pending else "spikes"
                problems.append(
                    Problem(
                        name,
                        f"{type(node).__name__} follows {before}; what can be lowered is "
                        "convolution or linear -> LIF, IF or CubaLIF, and max pooling of spikes",
                    )
                )
                pending = None
        shape = after
    if pending is not None:
        problems.append(Problem(pending[0], "has no neurons behind it"))
    if problems:
        raise LoweringError(problems)
    return out


def _block(
    name: str,
    node: G.Neurons,
    synapse: str,
    source: nir.ir.NIRNode,
    input_shape: tuple[int, ...],
) -> _Block:
    """The block in the units of v. Raises LoweringError with all that the neurons cannot have."""
    cuba = isinstance(node, nir.CubaLIF)
    current = G.DT / node.tau_syn if cuba else np.ones(1)
    if isinstance(node, nir.IF):
        step, gain, dv = np.zeros(1), G.DT * node.r, np.zeros(1)
    else:
        step = G.DT / (node.tau_mem if cuba else node.tau)
        gain = step * node.r * (current * node.w_in if cuba else 1)
        # dv = 0 would be no leak and 4096 does not fit 12 bits; what rounding changes is reported.
        dv = np.clip(np.rint(4096 * step), 1, 4095)
    leaks = not isinstance(node, nir.CubaLIF | nir.IF) and (node.v_leak != 0).any()
    du = np.clip(np.rint(4096 * current) - 1, 0, 4095)
    problems = []
    if (node.v_reset != 0).any() or leaks:
        problems.append(Problem(name, "v_leak or v_reset is not zero"))
    constants = [] if isinstance(node, nir.IF) else [("tau", step, dv), ("tau_syn", current, du)]
    for tau, decays, rounded in constants:
        if np.ptp(rounded) != 0 or not (decays.min() > 0 and decays.max() <= 1):
            problems.append(
                Problem(
                    name,
                    f"decay 1 - dt/{tau} from {(1 - decays).min():g} to {(1 - decays).max():g}; one "
                    "value a layer, from 0 to less than 1, can be held",
                    f"give all neurons of the layer one {tau}",
                )
            )
    if np.ptp(gain) > 1e-12 * np.abs(gain).max() or not gain.flat[0] > 0:
        what = "w_in * dt / tau_syn * r * dt / tau_mem" if cuba else "r * dt / tau"
        what = "r * dt" if isinstance(node, nir.IF) else what
        problems.append(Problem(name, f"{what} differs between neurons or is not positive"))
    weight = source.weight.astype(np.float64) * gain.flat[0]
    bias = np.zeros(len(weight))
    if hasattr(source, "bias"):
        bias = source.bias.astype(np.float64) * gain.flat[0]
    if cuba and bias.any() and (current != 1).any():
        problems.append(
            Problem(
                synapse,
                f"has a bias, which would pass through the current of {name}; a chip adds it to v",
                "give it as v_leak, or train the layer without a bias",
            )
        )
    if cuba:
        leak = (step * node.v_leak).reshape(len(weight), -1)
        bias = bias + leak[:, 0]
        if (leak != leak[:, :1]).any():
            problems.append(Problem(name, "v_leak differs between the neurons of a channel"))
    if problems:
        raise LoweringError(problems)
    # The float file holds nextafter(theta, -inf) behind NIR's strict >; theta itself is meant here.
    threshold = np.nextafter(node.v_threshold, np.inf) + 0.0  # and no negative zero
    return _Block(
        name,
        synapse,
        source,
        weight,
        bias,
        threshold,
        int(dv.flat[0]),
        float(1 - step.flat[0]),
        float(gain.flat[0]),
        input_shape,
        int(du.flat[0]),
        float(1 - current.flat[0]),
        reset=G.reset_of(node),
    )


def _with_recurrent(block: _Block, found: tuple[str, nir.Linear] | None) -> _Block:
    """``block`` with the weights from its neurons back to them, in the units of v."""
    if found is None:
        return block
    name, node = found
    G.verify_recurrent(block.name, name, node, block.threshold.shape)
    weight = node.weight.astype(np.float64) * block.gain
    return replace(block, recurrent=weight, recurrent_name=name)


class _Fit:
    """The search for the units of one layer; ``problems`` and ``diagnostics`` collect what it met."""

    def __init__(
        self,
        block: _Block,
        options: Options,
        chip: chips.Chip,
        levels: int,
        timesteps: int,
        seen: Float | None,
    ) -> None:
        self.block = block
        self.options = options
        self.chip = chip
        self.levels = levels
        self.timesteps = timesteps
        self.seen = seen
        self.trained = False  # on integers, which are as they are
        self.problems: list[Problem] = []
        self.diagnostics: list[Diagnostic] = []
        self.flat = block.threshold.reshape(len(block.weight), -1)
        self.peak = np.abs(block.weight).reshape(len(block.weight), -1).max(axis=1)
        if block.recurrent is not None:
            self.peak = np.maximum(self.peak, np.abs(block.recurrent).max(axis=1))
        self.qmax = options.qmax
        self.kind = slices.kind(options.weight_precision)

    def choose(self) -> tuple[LifLayer, Precision]:
        """The layer in integers and how its overflow was settled."""
        self._report_decays()
        self.problems += self.chip.reset_problems(self.block.name, self.block.reset)
        base = self._held(self._plain_units())
        limit = self.chip.accumulator_limit
        mode: Literal["proven", "checked"] = "checked"
        if self.options.overflow == "checked":
            units = self._calibrated(base)
            if self.seen is None and (self._excess(self._layer(base)) > 1).any():
                self._warn_checked(base, "as asked for")
        else:
            mode, units = "proven", self._proven(base)
            cost = self._bits(self._layer(base)) - self._bits(self._layer(units))
            # The grid of 2x8 has bits that no accumulator holds: only data can say which are safe to
            # use, and who asks for two slices and gives data wants all of them.
            wide = self.options.weight_precision == "2x8"
            known, worth = not wide or self.seen is not None, 0 if wide else 1
            if self.options.overflow == "auto" and cost > worth and known:
                mode, units = "checked", self._calibrated(base)
                lost = "bits of the slices" if wide else "more than one bit"
                self._warn_checked(
                    units if wide else base, f"because proving it safe would cost {lost}"
                )
        least = min(MIN_BITS, self.options.weight_bits)
        if self.options.thresholds == "fold":
            layer = self._folded(mode)
        else:
            layer = self._layer(units, final=True)
            if self._bits(layer) < least - 1e-9:
                self._report_bits(layer, units, base, least)
        bits = self._bits(layer)
        low, high = bounds.one_sided_sums(layer, self.levels)
        return layer, Precision(mode, bits, int(max(-low.min(), high.max())), limit)

    def as_trained(self, units: Float) -> tuple[LifLayer, Precision]:
        """The layer of the integers that were trained, ``units`` being theirs."""
        self.trained = True
        block = self.block
        most = {"weight": float(self.qmax), "bias": float(self.chip.bias_mant_range[1])}
        values = {"weight": block.weight, "bias": block.bias}
        self.problems += trained.check_layer(block.name, values, units, most)
        self._report_decays()
        if self.problems:
            return self._layer(self._plain_units()), Precision("checked", 0.0, 0, None)
        layer = self._layer(units, final=True)
        fits = bool((self._excess(layer) <= 1).all())
        proven = fits and self.options.overflow != "checked"
        if not fits and self.options.overflow == "proven":
            self.problems.append(
                Problem(
                    block.name,
                    f"its integers could leave the registers of {self.chip.name}",
                    "train it again for this chip (stl-train --qat --chip), or use --overflow checked",
                )
            )
        elif not fits:
            self._warn_checked(units, "as the integers were not trained for this chip")
        low, high = bounds.one_sided_sums(layer, self.levels)
        worst = int(max(-low.min(), high.max()))
        bits = float(self.options.weight_bits)
        mode: Literal["proven", "checked"] = "proven" if proven else "checked"
        return layer, Precision(mode, bits, worst, self.chip.accumulator_limit)

    def calibrated(
        self, layer: LifLayer, how: Precision, before: str, recording: calibration.Recording
    ) -> tuple[LifLayer, Precision]:
        """``layer`` with weights, bias and thresholds fitted to what the float model did.

        ``before`` names the population that feeds it, "" for the inputs. Where nothing may overflow, a
        unit grows as in ``_proven``, and thresholds that could make v overflow stay what they were.
        """
        second = calibration.moments(layer, before, recording)
        units = layer.scale * 2.0**self.options.weight_exp
        fitted = self._compensated(self._layer(units), second)
        for _ in range(200):
            excess = np.broadcast_to(self._excess(fitted), units.shape)
            if how.mode != "proven" or (excess <= 1).all():
                break
            units = np.where(excess > 1, units * np.maximum(excess, 1 + 2**-8), units)
            fitted = self._compensated(self._layer(units), second)
        else:
            self.diagnostics.append(
                Diagnostic(self.block.name, "is not fitted: no fitted weights keep overflow proven")
            )
            return layer, how
        vth = calibration.thresholds(fitted, self.chip, self.levels, before, recording)
        corrected = replace(fitted, vth=vth)
        if how.mode == "proven":
            corrected = self._safe_thresholds(corrected, fitted)
        fitted = corrected
        low, high = bounds.one_sided_sums(fitted, self.levels)
        worst = int(max(-low.min(), high.max()))
        return fitted, replace(
            how,
            effective_bits=self._bits(fitted),
            worst_sum=worst,
            calibrated=len(recording.inputs),
        )

    def _safe_thresholds(self, corrected: LifLayer, fitted: LifLayer) -> LifLayer:
        """``corrected``, with the thresholds of ``fitted`` in the channels where v could overflow."""
        excess = self._excess(corrected).reshape(-1, 1)
        channels = len(self.block.weight), -1
        vth = np.where(excess > 1, fitted.vth.reshape(channels), corrected.vth.reshape(channels))
        mixed = replace(corrected, vth=vth.reshape(fitted.shape))
        # With thresholds "anywhere" one channel's bound hangs on all of the layer's.
        return mixed if (self._excess(mixed) <= 1).all() else fitted

    def _compensated(self, layer: LifLayer, second: Float) -> LifLayer:
        """``layer`` with weights and bias rounded by ``calibration.compensate``; H is ``second``."""
        block, groups, channels = self.block, len(second), len(self.block.weight)
        units = (layer.scale * 2.0**layer.exp)[:, None]
        parts = [block.weight.reshape(channels, -1), block.bias[:, None]]
        if block.recurrent is not None:
            parts.insert(1, block.recurrent)
        exact = np.concatenate(parts, axis=1) / units
        n = exact.shape[1]
        steps, most = np.ones(n), np.full(n, float(self.qmax))
        steps[-1] = 2.0**-layer.exp
        most[-1] = steps[-1] * self.chip.bias_mant_range[1] if block.bias.any() else 0.0
        rounded = np.concatenate(
            [
                calibration.compensate(rows, moment, steps, most)
                for rows, moment in zip(np.split(exact, groups), second, strict=True)
            ]
        )
        feeding = block.weight[0].size
        weight = rounded[:, :feeding].reshape(block.weight.shape).astype(self.kind)
        recurrent = None
        if block.recurrent is not None:
            recurrent = Dense(rounded[:, feeding:-1].astype(self.kind))
        return replace(
            layer,
            synapses=_synapses(block.node, weight),
            recurrent=recurrent,
            bias_mant=np.rint(rounded[:, -1] / steps[-1]).astype(np.int32),
        )

    def _report_decays(self) -> None:
        """Say where a decay is not a multiple of 1/4096."""
        block = self.block
        for what, decay, held in (
            ("decay", block.decay, 4096 - block.dv),
            ("decay of the current", block.current_decay, 4095 - block.du),
        ):
            if abs(held / 4096 - decay) > 1e-12:
                self.diagnostics.append(
                    Diagnostic(
                        block.name,
                        f"{what} {decay:.8g} is rounded to {held}/4096 = {held / 4096:.8g}",
                        "train with that value to lose nothing",
                    )
                )

    def _plain_units(self) -> Float:
        """max|w| / qmax a channel; for a channel without weights, one that holds bias and theta."""
        other = np.maximum(np.abs(self.block.bias), np.abs(self.flat).max(axis=1)) / 2**11
        units = np.where(self.peak > 0, self.peak / self.qmax, other * 2.0**self.options.weight_exp)
        safe: Float = np.where(units > 0, units, 1.0)
        return safe

    def _held(self, units: Float) -> Float:
        """``units`` grown until bias and positive thresholds fit their registers."""
        grid = 2.0**self.options.weight_exp
        bias_max = float(self.chip.bias_mant_range[1])
        vth_max = float(self.chip.threshold_range[1])
        needed = np.maximum(np.abs(self.block.bias) / bias_max, self.flat.max(axis=1) / vth_max)
        if self.options.clamp_thresholds:
            needed = np.abs(self.block.bias) / bias_max
        held: Float = np.maximum(units, needed * grid)
        return held

    def _proven(self, units: Float) -> Float:
        """``units`` grown until no input can leave the accumulator, the current or the voltage."""
        for _ in range(200):
            excess = self._excess(self._layer(units))
            if (excess <= 1).all():
                return units
            units = np.where(excess > 1, units * np.maximum(excess, 1 + 2**-8), units)
        raise LoweringError(
            Problem(
                self.block.name, f"no weight scale keeps it inside {self.chip.name}'s registers"
            )
        )

    def _excess(self, layer: LifLayer) -> Float:
        """Worst case over limit, a channel; above 1 it can overflow."""
        # Rounding moves thresholds between the lowest and the highest of the layer.
        rounded = self.options.thresholds != "native" and self.chip.limits.thresholds_per_core
        return bounds.excess(layer, self.chip, self.levels, self.timesteps, bool(rounded))

    def _calibrated(self, units: Float) -> Float:
        """``units`` grown until HEADROOM times the largest sum seen stays in the accumulator.

        A current is held to its register as if that sum came in every step, and at 2x8 so is a voltage.
        """
        limit, register = self.chip.accumulator_limit, self.chip.state_limit
        if self.seen is None or limit is None:
            return units
        seen = self.seen * self.block.gain * 2.0**self.options.weight_exp
        units = np.maximum(units, HEADROOM * seen / limit)
        if register is None:
            return units
        steps = np.arange(self.timesteps)
        # As if that sum came in every step.
        current = seen * ((1 - (self.block.du + 1) / 4096) ** steps).sum()
        if self.block.du != 4095:
            units = np.maximum(units, HEADROOM * current * 64 / register)
        if self.options.weight_precision == "2x8":
            # The grid keeps no voltage small here, which adds such currents up.
            voltage = (current + np.abs(self.block.bias)) * (
                (1 - self.block.dv / 4096) ** steps
            ).sum()
            units = np.maximum(units, HEADROOM * voltage * 64 / register)
        return units

    def _warn_checked(self, base: Float, why: str) -> None:
        """Say how far the layer could go, and that nothing but the data keeps it from there."""
        layer = self._layer(base)
        low, high = bounds.one_sided_sums(layer, self.levels)
        down, up = bounds.voltage_range(layer, self.levels, self.timesteps)
        self.diagnostics.append(
            Diagnostic(
                self.block.name,
                f"in the worst case sums reach {int(max(-low.min(), high.max())):,} (limit "
                f"{self.chip.accumulator_limit:,}) and voltages {int(max(-down.min(), up.max())):,} "
                f"(limit {self.chip.state_limit:,}) on {self.chip.name}; overflow is checked, not "
                f"proven, {why}" + ("" if self.seen is not None else ", without calibration data"),
                ("give --calib NPZ, " if self.seen is None and not self.trained else "")
                + "look at hw_sim's overflow count, or "
                + ("train for this chip" if self.trained else "force --overflow proven"),
            )
        )

    def _layer(self, units: Float, final: bool = False) -> LifLayer:
        """The layer with these units; ``final`` reports thresholds outside the register."""
        block = self.block
        ones = [1] * (block.weight.ndim - 1)
        weight = np.rint(block.weight / units.reshape(-1, *ones)).astype(self.kind)
        scale = units / 2.0**self.options.weight_exp
        vth = np.ceil(self.flat / scale[:, None]) - 1
        low, high = self.chip.threshold_range
        if final:
            self._report_thresholds(vth, low, high)
        return LifLayer(
            name=block.name,
            synapse_name=block.synapse_name,
            synapses=_synapses(block.node, weight),
            input_shape=block.input_shape,
            shape=block.threshold.shape,
            bias_mant=np.rint(block.bias / scale).astype(np.int32),
            vth=np.clip(vth, low, high).astype(np.int32).reshape(block.threshold.shape),
            scale=scale,
            weight_bits=self.options.weight_bits,
            exp=self.options.weight_exp,
            du=block.du,
            dv=block.dv,
            recurrent=None
            if block.recurrent is None
            else Dense(np.rint(block.recurrent / units[:, None]).astype(self.kind)),
            recurrent_name=block.recurrent_name,
            reset=block.reset,
            weight_precision=self.options.weight_precision,
        )

    def _folded(self, mode: Literal["proven", "checked"]) -> LifLayer:
        """The layer with one threshold, and units of the neurons' own (``folding.py``)."""
        plain = self._layer(self._plain_units())
        fold = folding.Fold(
            plain, self.block.node, self.block.weight, self.block.bias, self.block.threshold
        )
        grid = 2.0**self.options.weight_exp
        # No neuron's unit may fall below what holds its bias, or what calibration asks for.
        least = np.abs(self.block.bias) / self.chip.bias_mant_range[1] * grid
        if mode == "checked":
            least = self._calibrated(least)
        held = np.divide(
            self.flat * grid,
            least[:, None],
            out=np.full_like(self.flat, np.inf),
            where=least[:, None] > 0,
        )
        most = min(float(held.min()), self.chip.threshold_range[1] + 1.0)
        ratio = self.flat * grid / self._plain_units()[:, None]
        theta_ref = fold.best(min(float(ratio.min()), most), min(float(np.median(ratio)), most))
        while most >= 1 and theta_ref >= 1:
            layer = fold.layer(theta_ref)
            excess = float(self._excess(layer).max()) if mode == "proven" else 0.0
            if excess <= 1:
                self._report_folded(layer, fold.cut_off(theta_ref))
                return layer
            theta_ref = min(theta_ref - 1, math.floor(theta_ref / excess))
        self.problems.append(
            Problem(
                self.block.name,
                f"has no common threshold to fold to: the lowest of {self.flat.min():.4g} would be "
                f"less than one unit, beside biases up to {np.abs(self.block.bias).max():.4g} and "
                f"sums that {self.chip.name} must hold",
                f"use --thresholds {folding.instead(self.chip)}",
            )
        )
        return plain

    def _report_folded(self, layer: LifLayer, cut_off: int) -> None:
        """Say which weights lost much: an error where too many did, else a diagnostic."""
        if cut_off:
            self.diagnostics.append(
                Diagnostic(
                    self.block.name,
                    f"folding cuts off weights of {cut_off:,} of {layer.neurons:,} neurons, whose "
                    "thresholds are low, at the ends of the weight grid",
                )
            )
        bits = (np.log2(self._steps(layer) + 1) + 1)[self.peak > 0]
        usual = min(MIN_BITS, self.options.weight_bits)
        few, most = int((bits < usual - 1e-9).sum()), bits.size
        if not few:
            return
        kind = "neurons" if layer.scale.size == layer.neurons else "channels"
        what = (
            f"folding leaves {few:,} of {most:,} {kind} with fewer than {usual} effective weight "
            f"bits, the worst with {bits.min():.2f}"
        )
        if bits.min() < FOLD_MIN_BITS - 1e-9:
            self.problems.append(
                Problem(
                    self.block.name,
                    f"{what}; at least {FOLD_MIN_BITS} are needed",
                    f"use --thresholds {folding.instead(self.chip)}, or more --weight-bits",
                )
            )
        else:
            self.diagnostics.append(Diagnostic(self.block.name, what))

    def _report_bits(self, layer: LifLayer, units: Float, base: Float, least: int) -> None:
        """The worst channel, and what it lost its bits to."""
        largest = self._steps(layer).min(axis=1)
        worst = int(np.where(self.peak > 0, largest, self.qmax).argmin())
        bias, theta = abs(self.block.bias[worst]), self.flat[worst].max()
        if units[worst] > base[worst]:
            why = f"sums and voltages that {self.chip.name} cannot hold"
            remedy = "use --overflow checked with --calib, another --chip, or smaller weights"
        elif bias / self.chip.bias_mant_range[1] >= theta / self.chip.threshold_range[1]:
            why = f"a bias of {bias:.4g}, which the register must hold"
            remedy = "use --chip ideal, or retrain with a smaller bias"
        else:
            why = f"a threshold of {theta:.4g}, which the register must hold"
            remedy = "give --clamp-thresholds, use --chip ideal, or retrain"
        self.problems.append(
            Problem(
                self.block.name,
                f"channel {worst} keeps {self._bits(layer):.2f} effective weight bits, at least "
                f"{least} are needed: beside weights up to {self.peak[worst]:.4g} it has {why}",
                remedy,
            )
        )

    def _report_thresholds(self, vth: Float, low: int, high: int) -> None:
        """Thresholds that the register cannot hold: an error, or with clamping a diagnostic."""
        outside = ((vth < low) | (vth > high)).reshape(self.block.threshold.shape)
        count = int(outside.sum())
        if not count:
            return
        where = [tuple(map(int, index)) for index in np.argwhere(outside)[:NAMED]]
        values = self.block.threshold[outside][:NAMED]
        integers = vth.reshape(outside.shape)[outside][:NAMED]
        listed = ", ".join(
            f"{index if len(index) > 1 else index[0]}: theta {theta:.4g} -> vth {int(v)}"
            for index, theta, v in zip(where, values, integers, strict=True)
        ) + (", ..." if count > NAMED else "")
        what = f"{count} of {outside.size} thresholds do not fit {self.chip.name}'s register {low}..{high}"
        if self.options.clamp_thresholds:
            self.diagnostics.append(
                Diagnostic(
                    self.block.name, f"{what} and were clamped to its nearest value ({listed})"
                )
            )
        else:
            self.problems.append(
                Problem(
                    self.block.name,
                    f"{what} ({listed})",
                    trained.AGAIN
                    if self.trained
                    else "give --clamp-thresholds to move them to the nearest value it holds, or use "
                    "--chip ideal",
                )
            )

    def _steps(self, layer: LifLayer) -> Float:
        """A channel's largest weight in units of its neurons, float64 [O, n]; n = 1 if they agree."""
        unit = layer.scale.reshape(len(self.peak), -1) * 2.0**layer.exp
        steps: Float = np.minimum(np.rint(self.peak[:, None] / unit), self.qmax)
        return steps

    def _bits(self, layer: LifLayer) -> float:
        """Effective bits of the worst channel or neuron with weights: log2(steps + 1) + 1."""
        used = self._steps(layer)[self.peak > 0]
        return slices.effective_bits(float(used.min()) if used.size else float(self.qmax))


def _fitted_to(recording: calibration.Recording | None) -> Diagnostic:
    """How calibration data was used, as a note that goes with the network."""
    if recording is None:
        return Diagnostic(
            "calib",
            "set scales only: a folded layer's weights are rounded to nearest",
            "use --thresholds native or profiles to have weights and thresholds fitted",
        )
    used = len(recording.inputs)
    return Diagnostic("calib", f"weights and thresholds are fitted to {used:,} unlabelled inputs")


def _recorded(
    graph: nir.NIRGraph, calib: NDArray[np.uint8]
) -> tuple[calibration.Recording, dict[str, Float]]:
    """What the float model fires on ``calib``, and the largest |sum of w*s| of each node's channels."""
    nodes = G.inner(graph)
    largest: dict[str, Float] = {}

    def observe(name: str, out: NDArray[np.float64]) -> None:
        bias = getattr(nodes[name], "bias", np.zeros(out.shape[1]))
        x = np.abs(np.moveaxis(out, 1, 0).reshape(out.shape[1], -1) - bias[:, None]).max(axis=1)
        largest[name] = np.maximum(largest.get(name, 0.0), x)

    return calibration.record(graph, calib, observe), largest


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
            "use --chip loihi2, or the float model with --thresholds profiles"
            if as_trained
            else "use --thresholds profiles or fold, or --chip loihi2",
        )
        for name, placed in network.placement.layers.items()
        if placed.fullest["thresholds"] > fact.value
    ]


def _check_options(options: Options, chip: chips.Chip, calib: bool) -> None:
    problems = _precision_problems(options, chip, calib)
    fact = chip.registers.weight_exp_max
    for name, value, low, high in (
        ("weight_bits", options.weight_bits, 2, chip.registers.weight_bits.value),
        ("weight_exp", options.weight_exp, 0, 7 if fact is None else fact.value),
    ):
        if not isinstance(value, int) or not low <= value <= high:
            problems.append(Problem(name, f"{value} is not a whole number in {low}..{high}"))
    for name, choice, choices in (
        ("overflow", options.overflow, get_args(Overflow)),
        ("thresholds", options.thresholds, get_args(Thresholds)),
    ):
        if choice not in choices:
            problems.append(Problem(name, f"{choice!r} is not one of {', '.join(choices)}"))
    if options.thresholds == "profiles" and chip.limits.thresholds_per_core is None:
        problems.append(
            Problem(
                "thresholds",
                f"profiles serves chips that hold few thresholds a core; {chip.name} holds one for "
                "every neuron",
                "use --thresholds native",
            )
        )
    if problems:
        raise InputError(problems)


def _precision_problems(options: Options, chip: chips.Chip, calib: bool) -> list[Problem]:
    """Why a weight precision is not one, or does not go with the other options or the chip."""
    given, where = options.weight_precision, "weight_precision"
    if given not in slices.PRECISIONS:
        what = f"{given!r} is not one of {', '.join(slices.PRECISIONS)}"
        return [Problem(where, what)]
    problems = [
        Problem(where, what, "leave that option out, or use --weight-precision split")
        for what in slices.contradictions(given, options.weight_bits, options.weight_exp)
    ]
    exponents = chip.registers.weight_exp_max
    needed = max(group.exp for group in slices.GROUPS[given])
    if exponents is not None and exponents.value < needed:
        what = (
            f"{given} needs the weight exponent {needed}; {chip.name} has up to {exponents.value}"
        )
        problems.append(Problem(where, what, "use --weight-precision split"))
    limited = chip.accumulator_limit is not None
    if given == "2x8" and options.overflow == "checked" and limited and not calib:
        problems.append(
            Problem(
                where,
                f"2x8 with overflow checked: without data the full grid overflows {chip.name}",
                "give --calib, or use --overflow proven",
            )
        )
    return problems
