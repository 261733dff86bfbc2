"""The search for the unit of each output channel of one layer."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from stl_deploy.chips import bounds
from stl_deploy.chips import facts as chips
from stl_deploy.chips.arithmetic import kept_current, kept_voltage
from stl_deploy.errors import LoweringError, Problem
from stl_deploy.ir import slices
from stl_deploy.ir.float_chain import FloatLayer
from stl_deploy.ir.chain import LifLayer
from stl_deploy.ir.notes import Diagnostic, Precision
from stl_deploy.ir.slices import Weights
from stl_deploy.ir.synapses import Conv, Dense
from stl_deploy.ir.units import DECAY_ONE, FORGETS, UNIT
from stl_deploy.lower import calibration, folding, trained
from stl_deploy.lower.layers import NAMED, rounded_decays
from stl_deploy.lower.options import Options

Float = NDArray[np.float64]
MIN_BITS = 4  # effective bits below which (or below weight_bits) a model is refused
FOLD_MIN_BITS = 2  # the same for a folded neuron: below, its largest weight rounds to 1 or 0
HEADROOM = 2.0  # of ``checked``: the limit over the largest sum seen in calibration


def _synapses(layer: FloatLayer, weight: Weights) -> Conv | Dense:
    return Dense(weight) if layer.geometry is None else Conv(weight, *layer.geometry)


class Fit:
    """The search for the units of one layer; ``problems`` and ``diagnostics`` collect what it met."""

    def __init__(
        self,
        floats: FloatLayer,
        options: Options,
        chip: chips.Chip,
        levels: int,
        timesteps: int,
        seen: Float | None,
    ) -> None:
        self.floats = floats
        self.options = options
        self.chip = chip
        self.levels = levels
        self.timesteps = timesteps
        self.seen = seen
        self.trained = False  # on integers, which are as they are
        self.problems: list[Problem] = []
        self.diagnostics: list[Diagnostic] = []
        self.du, self.dv = rounded_decays(floats.neurons)
        self.flat = floats.theta.reshape(len(floats.weight), -1)
        self.peak = np.abs(floats.weight).reshape(len(floats.weight), -1).max(axis=1)
        if floats.recurrent is not None:
            self.peak = np.maximum(self.peak, np.abs(floats.recurrent).max(axis=1))
        self.qmax = options.qmax
        self.kind = slices.kind(options.weight_precision)

    def choose(self) -> tuple[LifLayer, Precision]:
        """The layer in integers and how its overflow was settled."""
        self._report_decays()
        self.problems += self.chip.reset_problems(self.floats.name, self.floats.neurons.reset)
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
        low, high = bounds.layer_one_sided_sums(layer, self.levels)
        return layer, Precision(mode, bits, int(max(-low.min(), high.max())), limit)

    def as_trained(self, units: Float) -> tuple[LifLayer, Precision]:
        """The layer of the integers that were trained, ``units`` being theirs."""
        self.trained = True
        floats = self.floats
        most = {"weight": float(self.qmax), "bias": float(self.chip.bias_mant_range[1])}
        values = {"weight": floats.weight, "bias": floats.bias}
        self.problems += trained.check_layer(floats.name, values, units, most)
        self._report_decays()
        if self.problems:
            return self._layer(self._plain_units()), Precision("checked", 0.0, 0, None)
        layer = self._layer(units, final=True)
        fits = bool((self._excess(layer) <= 1).all())
        proven = fits and self.options.overflow != "checked"
        if not fits and self.options.overflow == "proven":
            self.problems.append(
                Problem(
                    floats.name,
                    f"its integers could leave the registers of {self.chip.name}",
                    "train it again for this chip (stl-train --qat --chip), or use --overflow checked",
                )
            )
        elif not fits:
            self._warn_checked(units, "as the integers were not trained for this chip")
        low, high = bounds.layer_one_sided_sums(layer, self.levels)
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
                Diagnostic(
                    self.floats.name, "is not fitted: no fitted weights keep overflow proven"
                )
            )
            return layer, how
        vth = calibration.thresholds(fitted, self.chip, self.levels, before, recording)
        corrected = replace(fitted, vth=vth)
        if how.mode == "proven":
            corrected = self._safe_thresholds(corrected, fitted)
        fitted = corrected
        low, high = bounds.layer_one_sided_sums(fitted, self.levels)
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
        channels = len(self.floats.weight), -1
        vth = np.where(excess > 1, fitted.vth.reshape(channels), corrected.vth.reshape(channels))
        mixed = replace(corrected, vth=vth.reshape(fitted.shape))
        # With thresholds "anywhere" one channel's bound hangs on all of the layer's.
        return mixed if (self._excess(mixed) <= 1).all() else fitted

    def _compensated(self, layer: LifLayer, second: Float) -> LifLayer:
        """``layer`` with weights and bias rounded by ``calibration.compensate``; H is ``second``."""
        floats, groups, channels = self.floats, len(second), len(self.floats.weight)
        units = (layer.scale * 2.0**layer.exp)[:, None]
        parts = [floats.weight.reshape(channels, -1), floats.bias[:, None]]
        if floats.recurrent is not None:
            parts.insert(1, floats.recurrent)
        exact = np.concatenate(parts, axis=1) / units
        n = exact.shape[1]
        steps, most = np.ones(n), np.full(n, float(self.qmax))
        steps[-1] = 2.0**-layer.exp
        most[-1] = steps[-1] * self.chip.bias_mant_range[1] if floats.bias.any() else 0.0
        rounded = np.concatenate(
            [
                calibration.compensate(rows, moment, steps, most)
                for rows, moment in zip(np.split(exact, groups), second, strict=True)
            ]
        )
        feeding = floats.weight[0].size
        weight = rounded[:, :feeding].reshape(floats.weight.shape).astype(self.kind)
        recurrent = None
        if floats.recurrent is not None:
            recurrent = Dense(rounded[:, feeding:-1].astype(self.kind))
        return replace(
            layer,
            synapses=_synapses(floats, weight),
            recurrent=recurrent,
            bias_mant=np.rint(rounded[:, -1] / steps[-1]).astype(np.int32),
        )

    def _report_decays(self) -> None:
        """Say where a decay is not a multiple of 1/4096."""
        floats = self.floats
        current = float(1 - floats.neurons.current.flat[0])
        for what, decay, held in (
            ("decay", floats.keep, DECAY_ONE - self.dv),
            ("decay of the current", current, FORGETS - self.du),
        ):
            if abs(held / DECAY_ONE - decay) > 1e-12:
                self.diagnostics.append(
                    Diagnostic(
                        floats.name,
                        f"{what} {decay:.8g} is rounded to {held}/{DECAY_ONE} = {held / DECAY_ONE:.8g}",
                        "train with that value to lose nothing",
                    )
                )

    def _plain_units(self) -> Float:
        """max|w| / qmax a channel; for a channel without weights, one that holds bias and theta."""
        other = np.maximum(np.abs(self.floats.bias), np.abs(self.flat).max(axis=1)) / 2**11
        units = np.where(self.peak > 0, self.peak / self.qmax, other * 2.0**self.options.weight_exp)
        safe: Float = np.where(units > 0, units, 1.0)
        return safe

    def _held(self, units: Float) -> Float:
        """``units`` grown until bias and positive thresholds fit their registers."""
        grid = 2.0**self.options.weight_exp
        bias_max = float(self.chip.bias_mant_range[1])
        vth_max = float(self.chip.threshold_range[1])
        needed = np.maximum(np.abs(self.floats.bias) / bias_max, self.flat.max(axis=1) / vth_max)
        if self.options.clamp_thresholds:
            needed = np.abs(self.floats.bias) / bias_max
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
                self.floats.name, f"no weight scale keeps it inside {self.chip.name}'s registers"
            )
        )

    def _excess(self, layer: LifLayer) -> Float:
        """Worst case over limit, a channel; above 1 it can overflow."""
        # Rounding moves thresholds between the lowest and the highest of the layer.
        rounded = self.options.thresholds != "native" and self.chip.limits.thresholds_per_core
        return bounds.layer_excess(layer, self.chip, self.levels, self.timesteps, bool(rounded))

    def _calibrated(self, units: Float) -> Float:
        """``units`` grown until HEADROOM times the largest sum seen stays in the accumulator.

        A current is held to its register as if that sum came in every step, and at 2x8 so is a voltage.
        """
        limit, register = self.chip.accumulator_limit, self.chip.state_limit
        if self.seen is None or limit is None:
            return units
        seen = self.seen * self.floats.gain * 2.0**self.options.weight_exp
        units = np.maximum(units, HEADROOM * seen / limit)
        if register is None:
            return units
        steps = np.arange(self.timesteps)
        # As if that sum came in every step.
        current = seen * (kept_current(self.du) ** steps).sum()
        if self.du != FORGETS:
            units = np.maximum(units, HEADROOM * current * UNIT / register)
        if self.options.weight_precision == "2x8":
            # The grid keeps no voltage small here, which adds such currents up.
            voltage = current + np.abs(self.floats.bias)
            voltage = voltage * (kept_voltage(self.dv) ** steps).sum()
            units = np.maximum(units, HEADROOM * voltage * UNIT / register)
        return units

    def _warn_checked(self, base: Float, why: str) -> None:
        """Say how far the layer could go, and that nothing but the data keeps it from there."""
        layer = self._layer(base)
        low, high = bounds.layer_one_sided_sums(layer, self.levels)
        down, up = bounds.layer_voltage_range(layer, self.levels, self.timesteps)
        self.diagnostics.append(
            Diagnostic(
                self.floats.name,
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
        floats = self.floats
        ones = [1] * (floats.weight.ndim - 1)
        weight = np.rint(floats.weight / units.reshape(-1, *ones)).astype(self.kind)
        scale = units / 2.0**self.options.weight_exp
        vth = np.ceil(self.flat / scale[:, None]) - 1
        low, high = self.chip.threshold_range
        if final:
            self._report_thresholds(vth, low, high)
        return LifLayer(
            name=floats.name,
            synapse_name=floats.weights.name,
            synapses=_synapses(floats, weight),
            input_shape=floats.input_shape,
            shape=floats.theta.shape,
            bias_mant=np.rint(floats.bias / scale).astype(np.int32),
            vth=np.clip(vth, low, high).astype(np.int32).reshape(floats.theta.shape),
            scale=scale,
            weight_bits=self.options.weight_bits,
            exp=self.options.weight_exp,
            du=self.du,
            dv=self.dv,
            recurrent=None
            if floats.recurrent is None
            else Dense(np.rint(floats.recurrent / units[:, None]).astype(self.kind)),
            recurrent_name=floats.own_name,
            reset=floats.neurons.reset,
            weight_precision=self.options.weight_precision,
        )

    def _folded(self, mode: Literal["proven", "checked"]) -> LifLayer:
        """The layer with one threshold, and units of the neurons' own (``folding.py``)."""
        plain = self._layer(self._plain_units())
        fold = folding.Fold(plain, self.floats)
        grid = 2.0**self.options.weight_exp
        # No neuron's unit may fall below what holds its bias, or what calibration asks for.
        least = np.abs(self.floats.bias) / self.chip.bias_mant_range[1] * grid
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
                self.floats.name,
                f"has no common threshold to fold to: the lowest of {self.flat.min():.4g} would be "
                f"less than one unit, with biases up to {np.abs(self.floats.bias).max():.4g} and "
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
                    self.floats.name,
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
                    self.floats.name,
                    f"{what}; at least {FOLD_MIN_BITS} are needed",
                    f"use --thresholds {folding.instead(self.chip)}, or more --weight-bits",
                )
            )
        else:
            self.diagnostics.append(Diagnostic(self.floats.name, what))

    def _report_bits(self, layer: LifLayer, units: Float, base: Float, least: int) -> None:
        """The worst channel, and what it lost its bits to."""
        largest = self._steps(layer).min(axis=1)
        worst = int(np.where(self.peak > 0, largest, self.qmax).argmin())
        bias, theta = abs(self.floats.bias[worst]), self.flat[worst].max()
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
                self.floats.name,
                f"channel {worst} keeps {self._bits(layer):.2f} effective weight bits, at least "
                f"{least} are needed: next to weights up to {self.peak[worst]:.4g} it has {why}",
                remedy,
            )
        )

    def _report_thresholds(self, vth: Float, low: int, high: int) -> None:
        """Thresholds that the register cannot hold: an error, or with clamping a diagnostic."""
        outside = ((vth < low) | (vth > high)).reshape(self.floats.theta.shape)
        count = int(outside.sum())
        if not count:
            return
        where = [tuple(map(int, index)) for index in np.argwhere(outside)[:NAMED]]
        values = self.floats.theta[outside][:NAMED]
        integers = vth.reshape(outside.shape)[outside][:NAMED]
        listed = ", ".join(
            f"{index if len(index) > 1 else index[0]}: theta {theta:.4g} -> vth {int(v)}"
            for index, theta, v in zip(where, values, integers, strict=True)
        ) + (", ..." if count > NAMED else "")
        what = f"{count} of {outside.size} thresholds do not fit {self.chip.name}'s register {low}..{high}"
        if self.options.clamp_thresholds:
            self.diagnostics.append(
                Diagnostic(
                    self.floats.name, f"{what} and were clamped to its nearest value ({listed})"
                )
            )
        else:
            self.problems.append(
                Problem(
                    self.floats.name,
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
