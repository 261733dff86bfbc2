"""A population in integers, given the unit of each of its channels.

All connections into a population share its units. One that leads from each value to one neuron would widen
them where its weights are far above those of a convolution into the same neurons, as a skip of spikes has
weights of one. Where they leave the grid, such a connection is stored with the weight precision "2x8"
instead, which takes a second synapse for the weights that need it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stl_deploy.chips import facts as chips
from stl_deploy.ir import slices
from stl_deploy.ir.network import Connection, Input, IntegerNetwork, Population
from stl_deploy.ir.neurons import Lif
from stl_deploy.ir.readouts import Readout
from stl_deploy.ir.slices import WeightPrecision
from stl_deploy.lower import rules
from stl_deploy.lower.options import Options
from stl_deploy.lower.rows import Rows, Target

Float = NDArray[np.float64]
FINER: WeightPrecision = "2x8"


def can_be_finer(chip: chips.Chip) -> bool:
    """Whether weights of ``chip`` can have both exponents that the finer grid needs."""
    exponents = chip.registers.weight_exp_max
    needed = max(group.exp for group in slices.GROUPS[FINER])
    return exponents is None or exponents.value >= needed


def finest(chip: chips.Chip, largest: int) -> int:
    """The largest weight of a connection that may be finer, where that of others is ``largest``."""
    return max(largest, slices.largest(FINER, slices.SLICE_BITS)) if can_be_finer(chip) else largest


def with_neurons(network: IntegerNetwork, **fields: Any) -> IntegerNetwork:
    """``network``, of a single population, with other fields of its neurons."""
    (population,) = network.populations
    neurons: Any = population.neurons
    return network.changed(replace(population, neurons=replace(neurons, **fields)))


class Integers:
    """What a population becomes on ``chip``: networks of it alone, whose ``inputs`` are its sources.

    ``peak`` [C] is the largest weight of a channel that its unit is made for.
    """

    def __init__(
        self,
        target: Target,
        inputs: Mapping[str, Input],
        options: Options,
        chip: chips.Chip,
        timesteps: int,
    ) -> None:
        self.target = target
        self.inputs = inputs
        self.options = options
        self.chip = chip
        self.timesteps = timesteps
        self.grid = 2.0**options.weight_exp
        self.theta = target.theta.reshape(target.channels, -1)
        wide = self._peak([rows for rows in target.rows if not rows.fine])
        self.fine = self._peak([rows for rows in target.rows if rows.fine])
        # Where nothing else leads into a channel, its unit is made for what could be finer.
        self.peak = np.where(wide > 0, wide, self.fine)
        if target.common:
            self.peak = np.full_like(self.peak, self.peak.max())
        self.can_be_finer = can_be_finer(chip)

    @property
    def finest(self) -> int:
        """The largest weight of a connection that may be finer, as a whole number of units."""
        return finest(self.chip, int(self.options.qmax * self.grid))

    @property
    def least(self) -> Float:
        """The units [C] below which a weight that may be finer leaves its grid."""
        units: Float = self.fine * self.grid / self.finest
        return units

    def network(self, units: Float) -> IntegerNetwork:
        """The population with these units [C], everything rounded to nearest."""
        target, (low, high) = self.target, self.chip.threshold_range
        scale = self._by_channel(units / self.grid)
        neurons = Lif(
            np.clip(self.vth(units), low, high).astype(np.int32).reshape(target.shape),
            np.rint(target.bias / scale).astype(np.int32),
            scale * target.gain,
            du=target.du,
            dv=target.dv,
            reset=rules.reset(target.neurons),
            **rules.fields(target.neurons, scale * target.gain, target.shape),
        )
        return IntegerNetwork(
            self.chip.name,
            self.timesteps,
            self.inputs,
            (Population(target.name, target.shape, neurons),),
            tuple(self._connection(rows, units) for rows in target.rows),
            Readout(target.size, 1, target.name),
            chip_facts=chips.carried(self.chip),
        )

    def vth(self, units: Float) -> Float:
        """The thresholds [C, n] in whole numbers, as far out as they are."""
        if not self.target.neurons.fires:
            return np.zeros_like(self.theta)
        vth: Float = np.ceil(self.theta / (units / self.grid)[:, None]) - 1
        return vth

    def units(self, network: IntegerNetwork) -> Float:
        """The units [C, n] of the neurons of ``network``; n is 1 where those of a channel have the same."""
        scale = network.populations[0].neurons.scale / self.target.gain
        units: Float = scale.reshape(self.target.channels, -1) * self.grid
        return units

    def steps(self, network: IntegerNetwork) -> Float:
        """A channel's largest weight in units of its neurons, float64 [C, n] as ``units``."""
        steps: Float = np.rint(self.peak[:, None] / self.units(network))
        return np.minimum(steps, self.options.qmax)

    def bits(self, network: IntegerNetwork) -> float:
        """Effective bits of the worst channel or neuron with weights: log2(steps + 1) + 1."""
        used = self.steps(network)[self.peak > 0]
        return slices.effective_bits(float(used.min()) if used.size else float(self.options.qmax))

    def bits_by_connection(self, network: IntegerNetwork) -> dict[str, float]:
        """The same of each connection of the float model, where several lead into the population.

        By the name of its weights, with that of the source where one name stands for several.
        """
        pairs = [
            (rows, connection)
            for rows, connection in zip(self.target.rows, network.connections, strict=True)
            if rows.source != self.target.always
        ]
        if len(self.target.rows) < 2:
            return {}
        found = {}
        names = [rows.name for rows, _ in pairs]
        for rows, connection in pairs:
            peak = rows.peak(self.target.channels)
            unit = self.units(network) * 2.0**connection.exp / self.grid
            most = slices.largest(connection.precision, connection.bits)
            used = np.minimum(np.rint(peak[:, None] / unit), most)[peak > 0]
            once = names.count(rows.name) == 1
            key = rows.name if once else f"{rows.name} ({rows.source})"
            found[key] = slices.effective_bits(float(used.min()) if used.size else float(most))
        return found

    def _connection(self, rows: Rows, units: Float) -> Connection:
        by_channel = rows.weight.reshape(self.target.channels, -1)
        exp, bits = self.options.weight_exp, self.options.weight_bits
        precision = self.options.weight_precision
        steps = np.rint(by_channel / units[:, None])
        if rows.fine and self.can_be_finer and np.abs(steps).max(initial=0) > self.options.qmax:
            exp, bits, precision = 0, slices.SLICE_BITS, FINER
            steps = np.rint(by_channel / (units / self.grid)[:, None])
        weight = steps.reshape(rows.weight.shape).astype(slices.kind(precision))
        at = rows.name, rows.source, self.target.name
        return Connection(*at, rows.synapses(weight), exp, bits, precision, rows.delay, rows.port)

    def _by_channel(self, values: Float) -> Float:
        return values.reshape(-1, *[1] * (len(self.target.shape) - 1))

    def _peak(self, rows: Sequence[Rows]) -> Float:
        """The largest weight of each channel."""
        peak: Float = np.zeros(self.target.channels)
        for some in rows:
            peak = np.maximum(peak, some.peak(self.target.channels))
        return peak
