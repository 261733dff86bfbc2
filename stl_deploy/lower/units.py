"""The search for the unit of each channel of one population."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from stl_deploy.chips import bounds
from stl_deploy.chips import facts as chips
from stl_deploy.chips.arithmetic import kept_current, kept_voltage
from stl_deploy.errors import LoweringError, Problem
from stl_deploy.ir.network import Input, IntegerNetwork
from stl_deploy.ir.neurons import Each
from stl_deploy.ir.notes import Diagnostic, Precision
from stl_deploy.ir.units import DECAY_ONE, FORGETS, UNIT
from stl_deploy.lower import calibration, folding, graded, rules, trained
from stl_deploy.lower.checks import NAMED
from stl_deploy.lower.integers import Integers, with_neurons
from stl_deploy.lower.options import Options
from stl_deploy.lower.rows import Target

Float = NDArray[np.float64]
MIN_BITS = 4  # effective bits below which (or below weight_bits) a model is refused
MIN_THRESHOLD_BITS = 4  # below which a note says that thresholds are coarse
ONE_VALUE = 1e-6  # of the largest threshold: what differs by less was not learned, but rounded
MAX_LOST_BITS = 2  # above which a note says what they were lost to
FOLD_MIN_BITS = 2  # the same for a folded neuron: below, its largest weight rounds to 1 or 0
HEADROOM = 2.0  # of ``checked``: the limit over the largest sum seen in calibration


@dataclass(frozen=True, eq=False)
class Seen:
    """How far a population went in calibration, in the graph's units.

    ``sums`` is the largest |sum| that arrived at each channel [C], ``voltages`` the largest |v| [C] where
    nothing resets it, ``sent`` the largest magnitude that was sent where that is not spikes; else None.
    """

    sums: Float
    voltages: Float | None = None
    sent: float | None = None


class Fit:
    """The search for the units of one population; ``problems`` and ``diagnostics`` collect what it met.

    Args:
        target: the float population.
        inputs: its sources, as inputs of a network of it alone, which is what a fit gives.
        seen: in calibration, None without data.
    """

    def __init__(
        self,
        target: Target,
        inputs: Mapping[str, Input],
        options: Options,
        chip: chips.Chip,
        timesteps: int,
        seen: Seen | None,
    ) -> None:
        self.target = target
        self.integers = Integers(target, inputs, options, chip, timesteps)
        self.options = options
        self.chip = chip
        self.timesteps = timesteps
        self.seen = None if seen is None else seen.sums * target.factor
        self.added_up = None if seen is None else seen.voltages
        if self.seen is not None and target.always is not None:
            self.seen = self.seen + target.from_always
        gains = rules.gains(target.neurons)
        self.amplified = 1.0 if gains is None else float(np.abs(gains).max(initial=0)) / DECAY_ONE
        if target.neurons.current2 is not None:
            self.seen = None  # what arrives at the second current is not recorded
        self.trained = False  # on integers, which are as they are
        self.problems: list[Problem] = []
        self.diagnostics: list[Diagnostic] = []
        self.flat = target.theta.reshape(target.channels, -1)
        self.bias = self._worst(np.abs(target.bias))

    def choose(self) -> tuple[IntegerNetwork, Precision]:
        """The population in integers and how its overflow was settled."""
        self._report_decays()
        self._report_gains()
        base = self._held(self._plain_units())
        mode: Literal["proven", "checked"] = "checked"
        if self.options.overflow == "checked":
            units = self._calibrated(base)
            if self.seen is None and (self._excess(self.integers.network(base)) > 1).any():
                self._warn_checked(base, "as asked for")
        else:
            mode, units = "proven", self._proven(base)
            cost = self._bits(base) - self._bits(units)
            # The grid of 2x8 has bits that no accumulator holds: only data can say which are safe to
            # use, and who asks for two slices and gives data wants all of them.
            wide = self.options.weight_precision == "2x8"
            known, worth = not wide or self.seen is not None, 0 if wide else 1
            if not rules.resets(self.target.neurons):
                # Nothing keeps such a voltage small: a guess would overflow in the last steps.
                known = self.seen is not None
            if self.options.overflow == "auto" and cost > worth and known:
                mode, units = "checked", self._calibrated(base)
                lost = "bits of the slices" if wide else "more than one bit"
                self._warn_checked(
                    units if wide else base, f"because proving it safe would cost {lost}"
                )
        least = min(MIN_BITS, self.options.weight_bits)
        if self.options.thresholds == "fold":
            network = self._folded(mode)
        else:
            self._report_thresholds(units)
            self._report_resolution(units)
            network = self.integers.network(units)
            self._report_bits(network, units, base, least)
        return network, self._precision(network, mode)

    def as_trained(self, units: Float) -> tuple[IntegerNetwork, Precision]:
        """The population of the integers that were trained, ``units`` being theirs."""
        self.trained = True
        self.problems += trained.check_weights(
            self.target, units, self.options, self.chip, self.integers.finest
        )
        self._report_decays()
        if self.problems:
            network = self.integers.network(self._plain_units())
            return network, Precision("checked", 0.0, 0, None)
        self._report_thresholds(units)
        network = self.integers.network(units)
        fits = bool((self._excess(network) <= 1).all())
        proven = fits and self.options.overflow != "checked"
        if not fits and self.options.overflow == "proven":
            self.problems.append(
                Problem(
                    self.target.name,
                    f"its integers could leave the registers of {self.chip.name}",
                    "train it again for this chip (stl-train --qat --chip), or use --overflow checked",
                )
            )
        elif not fits:
            self._warn_checked(units, "as the integers were not trained for this chip")
        how = self._precision(network, "proven" if proven else "checked")
        return network, replace(how, effective_bits=float(self.options.weight_bits))

    def calibrated(
        self, network: IntegerNetwork, how: Precision, recording: calibration.Recording
    ) -> tuple[IntegerNetwork, Precision]:
        """``network`` with weights, bias and thresholds fitted to what the float model did.

        Where nothing may overflow, a unit grows as in ``_proven``, and thresholds that could make v
        overflow stay what they were.
        """
        fitting = calibration.Fitting(self.integers, recording)
        self.diagnostics += fitting.left_out()
        units = self._together(self.integers.units(network)[:, 0])
        fitted = fitting.network(units)
        for _ in range(200):
            excess = self._excess(fitted)
            if how.mode != "proven" or (excess <= 1).all():
                break
            units = self._grown(units, excess)
            fitted = fitting.network(units)
        else:
            self.diagnostics.append(
                Diagnostic(
                    self.target.name, "is not fitted: no fitted weights keep overflow proven"
                )
            )
            return network, how
        if not self.target.neurons.fires:
            done = self._precision(fitted, how.mode)
            return fitted, replace(done, calibrated=recording.samples)
        vth = calibration.thresholds(fitted, self.chip, recording)
        corrected = with_neurons(fitted, vth=vth)
        if how.mode == "proven":
            corrected = self._safe_thresholds(corrected, fitted)
        done = replace(self._precision(corrected, how.mode), calibrated=recording.samples)
        return corrected, done

    def _precision(self, network: IntegerNetwork, mode: Literal["proven", "checked"]) -> Precision:
        low, high = bounds.one_sided_sums(network, network.populations[0])
        return Precision(
            mode,
            self.integers.bits(network),
            int(max(-low.min(), high.max())),
            self.chip.accumulator_limit,
            connections=self.integers.bits_by_connection(network),
        )

    def _safe_thresholds(self, corrected: IntegerNetwork, fitted: IntegerNetwork) -> IntegerNetwork:
        """``corrected``, with the thresholds of ``fitted`` in the channels where v could overflow."""
        excess = self._excess(corrected).reshape(-1, *[1] * (len(self.target.shape) - 1))
        old, new = (network.populations[0].neurons.vth for network in (fitted, corrected))
        mixed = with_neurons(corrected, vth=np.where(excess > 1, old, new))
        # With thresholds "anywhere" one channel's bound hangs on all of the population's.
        return mixed if (self._excess(mixed) <= 1).all() else fitted

    def _report_decays(self) -> None:
        """Say where a decay is not a multiple of 1/4096."""
        neurons = self.target.neurons
        for what, decay, held in (
            ("decay", neurons.keep, DECAY_ONE - np.asarray(self.target.dv)),
            ("decay of the current", 1 - neurons.current, FORGETS - np.asarray(self.target.du)),
            *rules.further_decays(neurons),
        ):
            exact, held = np.broadcast_arrays(decay, held)
            off = np.abs(held / DECAY_ONE - exact)
            count = int((off > 1e-12).sum())
            if not count:
                continue
            if np.ptp(held) == 0 and np.ptp(exact) <= 1e-12:
                one = int(held.flat[0])
                said = f"{what} {exact.flat[0]:.8g} is rounded to {one}/{DECAY_ONE} = {one / DECAY_ONE:.8g}"
            else:
                said = (
                    f"{what} of {count:,} of {held.size:,} neurons, from {exact.min():.6g} to "
                    f"{exact.max():.6g}, is rounded to multiples of 1/{DECAY_ONE}, by up to "
                    f"{off.max():.2g}"
                )
            # Who forgets at once was made so, and nobody can train that.
            remedy = "train with that value to lose nothing" if exact.any() else ""
            self.diagnostics.append(Diagnostic(self.target.name, said, remedy))

    def _report_gains(self) -> None:
        """Say by how much the gains of the steps are rounded."""
        neurons = self.target.neurons
        held = rules.gains(neurons)
        if held is None or neurons.amplify is None:
            return
        factor = rules.common_gain(neurons)
        off = float(np.abs(held / DECAY_ONE * factor - neurons.amplify).max())
        if off > 1e-12:
            grid = f"{factor:g}/{DECAY_ONE}"
            what = f"gains of its steps are rounded to multiples of {grid}, by up to {off:.2g}"
            self.diagnostics.append(Diagnostic(self.target.name, what))

    def _plain_units(self) -> Float:
        """max|w| / qmax a channel; for a channel without weights, one that holds bias and theta."""
        other = np.maximum(self.bias, np.abs(self.flat).max(axis=1)) / 2**11
        peak = self.integers.peak
        units = np.where(peak > 0, peak / self.options.qmax, other * self.integers.grid)
        safe: Float = np.where(units > 0, units, 1.0)
        return self._together(np.maximum(safe, self.integers.least))

    def _held(self, units: Float) -> Float:
        """``units`` grown until bias and positive thresholds fit their registers."""
        bias_max = float(self.chip.bias_mant_range[1])
        vth_max = float(self.chip.threshold_range[1])
        needed = np.maximum(self.bias / bias_max, self.flat.max(axis=1) / vth_max)
        if self.options.clamp_thresholds:
            needed = self.bias / bias_max
        held: Float = np.maximum(units, needed * self.integers.grid)
        limit = self.chip.state_limit or rules.WIDEST
        for values in rules.largest(self.target.neurons):
            steps = self._worst(np.abs(values / self.target.gain)) * (UNIT / (limit - 1))
            held = np.maximum(held, steps * self.integers.grid)
        return self._together(held)

    def _proven(self, units: Float) -> Float:
        """``units`` grown until no input can leave the accumulator, the current or the voltage."""
        for _ in range(200):
            excess = self._excess(self.integers.network(units))
            if (excess <= 1).all():
                return units
            units = self._grown(units, excess)
        raise LoweringError(
            Problem(
                self.target.name, f"no weight scale keeps it inside {self.chip.name}'s registers"
            )
        )

    def _grown(self, units: Float, excess: Float) -> Float:
        """``units`` [C], larger where they exceed what can be held."""
        return self._together(np.where(excess > 1, units * np.maximum(excess, 1 + 2**-8), units))

    def _together(self, units: Float) -> Float:
        """``units`` [C], the largest for all where channels have one in common."""
        return np.full_like(units, units.max()) if self.target.common else units

    def _excess(self, network: IntegerNetwork) -> Float:
        """Worst case over limit, a channel; above 1 it can overflow."""
        # Rounding moves thresholds between the lowest and the highest of the population.
        rounded = self.options.thresholds != "native" and self.chip.limits.thresholds_per_core
        (population,) = network.populations
        excess = self._worst(
            bounds.excess(network, population, self.chip, self.timesteps, bool(rounded))
        )
        if self.target.neurons.graded and self.seen is None:
            excess = np.maximum(excess, graded.excess(network, self.chip))
        return excess

    def _worst(self, values: Float) -> Float:
        """The largest of ``values``, broadcastable to the population, in each channel [C]."""
        full = np.broadcast_to(values, self.target.shape).reshape(self.target.channels, -1)
        worst: Float = full.max(axis=1)
        return worst

    def _calibrated(self, units: Float) -> Float:
        """``units`` grown until HEADROOM times the largest sum seen stays in the accumulator.

        A current is held to its register as if that sum came in every step, and at 2x8 so is a voltage. Where
        nothing resets a voltage, HEADROOM times the largest one seen is held.
        """
        limit, register = self.chip.accumulator_limit, self.chip.state_limit
        if self.seen is None or limit is None:
            return units
        seen = self.seen * self.integers.grid
        units = np.maximum(units, HEADROOM * seen / limit)
        if register is None:
            return self._together(units)
        seen = seen * self.amplified
        steps = np.arange(self.timesteps)
        du, dv = _slowest(self.target.du), _slowest(self.target.dv)
        # As if that sum came in every step.
        current = seen * (kept_current(du) ** steps).sum()
        if du != FORGETS:
            units = np.maximum(units, HEADROOM * current * UNIT / register)
        if self.added_up is not None:
            voltage = self._worst(1 / self.target.gain) * self.added_up * self.integers.grid
            units = np.maximum(units, HEADROOM * voltage * UNIT / register)
        elif self.options.weight_precision == "2x8":
            # The grid keeps no voltage small here, which adds such currents up.
            voltage = current + self.bias
            voltage = voltage * (kept_voltage(dv) ** steps).sum()
            units = np.maximum(units, HEADROOM * voltage * UNIT / register)
        return self._together(units)

    def _warn_checked(self, base: Float, why: str) -> None:
        """Say how far the population could go, and that nothing but the data keeps it from there."""
        network = self.integers.network(base)
        (population,) = network.populations
        low, high = bounds.one_sided_sums(network, population)
        down, up = bounds.voltage_range(network, population, self.timesteps)
        self.diagnostics.append(
            Diagnostic(
                self.target.name,
                f"in the worst case sums reach {int(max(-low.min(), high.max())):,} (limit "
                f"{self.chip.accumulator_limit:,}) and voltages {int(max(-down.min(), up.max())):,} "
                f"(limit {self.chip.state_limit:,}) on {self.chip.name}; overflow is checked, not "
                f"proven, {why}" + ("" if self.seen is not None else ", without calibration data"),
                ("give --calib NPZ, " if self.seen is None and not self.trained else "")
                + "look at hw_sim's overflow count, or "
                + ("train for this chip" if self.trained else "force --overflow proven"),
            )
        )

    def _folded(self, mode: Literal["proven", "checked"]) -> IntegerNetwork:
        """The population with one threshold, and units of the neurons' own (``folding.py``)."""
        plain_units, grid = self._plain_units(), self.integers.grid
        plain = self.integers.network(plain_units)
        fold = folding.Fold(plain, self.target, grid)
        # No neuron's unit may fall below what holds its bias, or what calibration asks for.
        least = self.bias / self.chip.bias_mant_range[1] * grid
        if mode == "checked":
            least = self._calibrated(least)
        held = np.divide(
            self.flat * grid,
            least[:, None],
            out=np.full_like(self.flat, np.inf),
            where=least[:, None] > 0,
        )
        most = min(float(held.min()), self.chip.threshold_range[1] + 1.0)
        ratio = self.flat * grid / plain_units[:, None]
        theta_ref = fold.best(min(float(ratio.min()), most), min(float(np.median(ratio)), most))
        while most >= 1 and theta_ref >= 1:
            network = fold.network(theta_ref)
            excess = float(self._excess(network).max()) if mode == "proven" else 0.0
            if excess <= 1:
                self._report_folded(network, fold.cut_off(theta_ref))
                return network
            theta_ref = min(theta_ref - 1, math.floor(theta_ref / excess))
        self.problems.append(
            Problem(
                self.target.name,
                f"has no common threshold to fold to: the lowest of {self.flat.min():.4g} would be "
                f"less than one unit, with biases up to {self.bias.max():.4g} and "
                f"sums that {self.chip.name} must hold",
                f"use --thresholds {folding.instead(self.chip)}",
            )
        )
        return plain

    def _report_folded(self, network: IntegerNetwork, cut_off: int) -> None:
        """Say which weights lost much: an error where too many did, else a diagnostic."""
        if cut_off:
            self.diagnostics.append(
                Diagnostic(
                    self.target.name,
                    f"folding cuts off weights of {cut_off:,} of {self.target.size:,} neurons, whose "
                    "thresholds are low, at the ends of the weight grid",
                )
            )
        steps = self.integers.steps(network)
        bits = (np.log2(steps + 1) + 1)[self.integers.peak > 0]
        usual = min(MIN_BITS, self.options.weight_bits)
        few, most = int((bits < usual - 1e-9).sum()), bits.size
        if not few:
            return
        kind = "neurons" if steps.size == self.target.size else "channels"
        what = (
            f"folding leaves {few:,} of {most:,} {kind} with fewer than {usual} effective weight "
            f"bits, the worst with {bits.min():.2f}"
        )
        if bits.min() < FOLD_MIN_BITS - 1e-9:
            self.problems.append(
                Problem(
                    self.target.name,
                    f"{what}; at least {FOLD_MIN_BITS} are needed",
                    f"use --thresholds {folding.instead(self.chip)}, or more --weight-bits",
                )
            )
        else:
            self.diagnostics.append(Diagnostic(self.target.name, what))

    def _bits(self, units: Float) -> float:
        return self.integers.bits(self.integers.network(units))

    def _report_bits(self, network: IntegerNetwork, units: Float, base: Float, least: int) -> None:
        """The worst channel, and what it lost its bits to: an error below ``least`` bits, else a note."""
        bits, wanted = self.integers.bits(network), self.options.weight_bits
        # How much of its grid a weight of two slices has depends on registers alone.
        noted = self.options.weight_precision != "2x8" and bits < wanted - MAX_LOST_BITS
        if bits >= least - 1e-9 and not noted:
            return
        peak = self.integers.peak
        largest = self.integers.steps(network).min(axis=1)
        worst = int(np.where(peak > 0, largest, self.options.qmax).argmin())
        bias, theta = self.bias[worst], self.flat[worst].max()
        ideal = "" if self.chip.name == "ideal" else "use --chip ideal, or "
        plain = peak[worst] / self.options.qmax
        if units[worst] > base[worst] and units[worst] / base[worst] >= base[worst] / plain:
            why = f"sums and voltages that {self.chip.name} cannot hold"
            if not rules.resets(self.target.neurons):
                why = f"voltages that nothing resets in {self.timesteps} steps of {self.chip.name}"
            remedy = "use --overflow checked with --calib, another --chip, or smaller weights"
        elif self.integers.least[worst] >= base[worst]:
            why = f"a weight of {self.integers.fine[worst]:.4g} into a single neuron"
            remedy = "use --weight-exp 0 and --weight-precision 8, or retrain with a smaller one"
        elif bias / self.chip.bias_mant_range[1] >= theta / self.chip.threshold_range[1]:
            why = f"a bias of {bias:.4g}, which the register must hold"
            remedy = f"{ideal}retrain with a smaller bias; --normalize adds none where MEAN is 0"
        elif (most := max(map(_peak, rules.largest(self.target.neurons)), default=0.0)) > theta:
            why = f"a voltage to start or reset at, or a floor, of {most:.4g}"
            remedy = "train with a smaller one"
        else:
            why = f"a threshold of {theta:.4g}, which the register must hold"
            remedy = f"{ideal}give --clamp-thresholds, or retrain"
        why = f"next to weights up to {peak[worst]:.4g} it has {why}"
        if bits < least - 1e-9:
            what = f"keeps {bits:.2f} effective weight bits, at least {least} are needed: {why}"
            self.problems.append(Problem(self.target.name, f"channel {worst} {what}", remedy))
        else:
            what = f"keeps {bits:.2f} of {wanted} effective weight bits: {why}"
            self.diagnostics.append(Diagnostic(self.target.name, f"channel {worst} {what}", remedy))

    def _report_thresholds(self, units: Float) -> None:
        """Thresholds that the register cannot hold: an error, or with clamping a diagnostic."""
        if not self.target.neurons.fires:
            return
        (low, high), theta = self.chip.threshold_range, self.target.neurons.theta
        vth = self.integers.vth(units).reshape(theta.shape)
        outside = (vth < low) | (vth > high)
        count = int(outside.sum())
        if not count:
            return
        where = [tuple(map(int, index)) for index in np.argwhere(outside)[:NAMED]]
        listed = ", ".join(
            f"{index if len(index) > 1 else index[0]}: theta {theta[index]:.4g} -> vth "
            f"{float(vth[index]):.10g}"
            for index in where
        ) + (", ..." if count > NAMED else "")
        what = f"{count} of {outside.size} thresholds do not fit {self.chip.name}'s register {low}..{high}"
        if self.options.clamp_thresholds:
            self.diagnostics.append(
                Diagnostic(
                    self.target.name, f"{what} and were clamped to its nearest value ({listed})"
                )
            )
        else:
            self.problems.append(
                Problem(
                    self.target.name,
                    f"{what} ({listed})",
                    trained.AGAIN
                    if self.trained
                    else "give --clamp-thresholds to move them to the nearest value it holds, or use "
                    "--chip ideal",
                )
            )

    def _report_resolution(self, units: Float) -> None:
        """A note where different thresholds come to few whole numbers, down to a single one.

        A step is what thresholds of neighbouring whole numbers differ by, in a neuron of the median channel.
        """
        if not self.target.neurons.fires:
            return
        theta = self.integers.theta
        low, high = float(theta.min()), float(theta.max())
        if high - low <= ONE_VALUE * max(abs(low), abs(high)):
            return
        steps = (high - low) / float(np.median(units / self.integers.grid))
        bits = math.log2(1 + steps)
        if bits >= MIN_THRESHOLD_BITS:
            return
        vth = np.unique(self.integers.vth(units))
        kept = f"all are {vth[0]:.10g}" if len(vth) == 1 else f"{len(vth):,} whole numbers are left"
        what = (
            f"its thresholds from {low:.4g} to {high:.4g} keep {bits:.2f} bits, and {MIN_THRESHOLD_BITS} "
            f"are wanted: on {self.chip.name} {kept}, next to weights up to {self.integers.peak.max():.4g}"
        )
        remedy = "use more --weight-bits or a larger --weight-exp, or train with smaller weights"
        self.diagnostics.append(Diagnostic(self.target.name, what, remedy))


def _slowest(constant: Each) -> int:
    """The decay constant that forgets least."""
    return int(np.min(constant))


def _peak(values: Float) -> float:
    """The largest magnitude."""
    return float(np.abs(values).max())
