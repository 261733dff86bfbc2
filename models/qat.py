"""Training on integers: the network that learns is, at every step, the network that runs on the chip.

The forward pass is that of ``hw_sim/reference.py`` on tensors of whole numbers: weights of the grid
+-(2^(B-1)-1), biases and thresholds in the registers' units, v in 1/64 of one, ``v > vth << 6``. What is
learned are floating point numbers behind them, weight / unit being rounded; a unit enters nothing but
that rounding, that of a rule's values of v, and the gradients. All weights that lead to a population share
the units of its channels. Units are found once, channel by channel, and grow where what is learned would
leave a register (docs/numerics.md, "Training on integers").
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, cast

import nir
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.func import functional_call

from stl_deploy.chips import bounds
from stl_deploy.chips import facts as chips
from stl_deploy.chips.rules import refused
from stl_deploy.errors import LoweringError, Problem
from stl_deploy.importers import stl
from stl_deploy.importers.given import Checkpoint
from stl_deploy.ir import arch as A
from stl_deploy.ir import floats as float_networks
from stl_deploy.ir.arch import Architecture, Quantized
from stl_deploy.ir.conv import Pair
from stl_deploy.ir.kinds import entry
from stl_deploy.ir.network import Connection, Input, IntegerNetwork, Population
from stl_deploy.ir.neurons import of_channels
from stl_deploy.ir.readouts import Readout
from stl_deploy.ir.synapses import Conv, Dense
from stl_deploy.ir.units import DECAY_ONE, FORGETS, MAX_SIGNED
from stl_deploy.lower import rows
from stl_deploy.lower.graph import lower
from stl_deploy.lower.integers import FINER, finest
from stl_deploy.lower.rows import Target
from stl_deploy.lower.rules import common_gain
from stl_deploy.models import integer_neurons
from stl_deploy.models.net import STLNet

Float = NDArray[np.float64]
CUTS = np.linspace(0.2, 1.0, 81)  # of max|w|, where a grid may end
TRIES = 200
EXACT = 1 << 24  # float32 holds every whole number up to this


class _Rounded(torch.autograd.Function):
    """value / unit to a whole number in low..high; the gradient passes where it was inside."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, unit: Tensor, low: float, high: float) -> Tensor:
        steps = (value / unit).round_()
        ctx.save_for_backward((steps >= low) & (steps <= high), unit)
        return steps.clamp_(low, high)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Tensor, None, None, None]:
        (grad,) = grads
        inside, unit = ctx.saved_tensors
        return grad * inside / unit, None, None, None


def _rounded_to(value: Tensor, unit: Tensor, low: float, high: float) -> Tensor:
    return cast(Tensor, _Rounded.apply(value, unit, low, high))  # type: ignore[no-untyped-call]


class QatNet(STLNet):
    """An ``STLNet`` of integers whose parameters are the floating point numbers behind them.

    Args:
        arch: a quantized description, see ``quantized``.
        floats: weights, biases and thresholds to begin with, by the name of the population.
        chip: whose registers nothing may leave, by name or as the path of a chip file.
    """

    def __init__(self, arch: Architecture, floats: Mapping[str, Target], chip: str | Path) -> None:
        super().__init__(arch)
        assert arch.quantized is not None
        self.largest = arch.quantized.largest
        self.chip = chips.find(chip)
        self.pairs = arch.sources
        self.rules = {spec.name: spec for spec in arch.layers if spec.kind == "lif"}
        with torch.no_grad():
            for name, source in self.pairs.items():
                self._begin(name, source, floats[name])
        self.settle()
        whole = [self._alone(name, source, 1) for name, source in self.pairs.items()]
        if problems := [problem for network in whole for problem in refused(network)]:
            raise LoweringError(problems)

    def _begin(self, name: str, source: str, target: Target) -> None:
        """Take over weights, bias, threshold and gain of a population, and find its units."""
        lif, module = self._lif(name), cast(torch.nn.Linear, self.get_submodule(source))
        always = [rows for rows in target.rows if rows.source == target.always]
        back = [rows for rows in target.rows if rows.source == name]
        (feed,) = (rows for rows in target.rows if rows not in always + back)
        spec = self.arch.weighted[source]
        weight = entry(STORED, spec.kind, source, "training on integers")(spec, feed.weight)
        module.weight.copy_(torch.from_numpy(weight))
        if module.bias is not None:
            bias = always[0].weight if always else target.bias
            module.bias.copy_(torch.from_numpy(bias.reshape(-1).copy()))
        learned = [weight.reshape(len(weight), -1)]
        if back:
            # Of Dale's law what excites and what inhibits came apart.
            own = np.sum([rows.weight for rows in back], axis=0)
            lif.recurrent.copy_(torch.from_numpy(own))
            learned.append(own)
        if self.rules[name].fires:
            lif.thresh.copy_(torch.from_numpy(target.theta))
        amplify = target.neurons.amplify
        if amplify is not None:
            factor = common_gain(target.neurons)
            lif.gain.copy_(torch.from_numpy(amplify.reshape(-1) / factor))
        found = units(np.concatenate(learned, axis=1), self.largest)
        lif.scale.copy_(torch.from_numpy(found))

    def run(self, raster: Tensor) -> dict[str, Tensor]:
        """Spikes [batch, time, *shape] of every LIF and max-pool layer, by name."""
        x = raster.to(next(self.parameters()).dtype)
        spikes: dict[str, Tensor] = {}
        whole = self.integers()
        for spec in self.arch.layers:
            prefix = f"{spec.name}."
            own = {k.removeprefix(prefix): v for k, v in whole.items() if k.startswith(prefix)}
            x = cast(Tensor, functional_call(self.get_submodule(spec.name), own, (x,)))
            if spec.spikes:
                spikes[spec.name] = x
        return spikes

    def integers(self) -> dict[str, Tensor]:
        """The integers that the parameters stand for, by parameter name; gradients pass through."""
        whole: dict[str, Tensor] = {}
        low, high = map(float, self.chip.threshold_range)
        grid = float(self.largest)
        for name, source in self.pairs.items():
            lif = self._lif(name)
            module = cast(torch.nn.Linear, self.get_submodule(source))
            most = float(self._bias_max(name))
            learned: list[tuple[str, Tensor | None, float, float]] = [
                (f"{source}.weight", module.weight, -grid, grid),
                (f"{source}.bias", module.bias, -most, most),
                (f"{name}.recurrent", getattr(lif, "recurrent", None), -grid, grid),
            ]
            if self.rules[name].fires:
                # v passes vth where it reaches theta: half a unit lower, rounded to nearest
                learned.append((f"{name}.thresh", lif.thresh - lif.unit / 2, low, high))
            for key, value, least, greatest in learned:
                if value is not None:
                    unit = lif.scale.reshape(-1, *[1] * (value.dim() - 1))
                    whole[key] = _rounded_to(value, unit, least, greatest)
            if self.rules[name].gain:
                one = lif.gain.new_full((), 1 / DECAY_ONE)
                whole[f"{name}.gain"] = _rounded_to(lif.gain, one, -MAX_SIGNED, MAX_SIGNED)
        return whole

    def settle(self) -> None:
        """Let units grow until no input can make the integers leave a register of the chip.

        A chip without registers leaves those of float32, in which the integers are computed.

        Raises LoweringError where that cannot be.
        """
        levels = self.arch.input.levels
        for index, (name, source) in enumerate(self.pairs.items()):
            scale = self._lif(name).scale
            for _ in range(TRIES):
                network = self._alone(name, source, 1 if index else levels)
                worst = self._excess(network)
                needed = np.maximum(worst, self._outside(name, source))
                if (needed <= 1).all():
                    break
                grown = np.where(needed > 1, np.maximum(needed, 1 + 2**-8), 1.0)
                scale.mul_(torch.from_numpy(grown).to(scale))
            else:
                raise LoweringError(
                    Problem(name, f"no unit keeps it inside the registers of {self.chip.name}")
                )

    def frozen(self) -> STLNet:
        """The network of the integers themselves, in evaluation mode, on the CPU."""
        self.settle()
        net = STLNet(self.arch)
        with torch.no_grad():
            state = self.state_dict() | self.integers()
        net.load_state_dict(state)
        return net.eval()

    def _lif(self, name: str) -> Any:
        """The module of a population, an ``IntegerLIF`` or ``IntegerNeurons``."""
        return self.get_submodule(name)

    def _bias_max(self, name: str) -> int:
        """The largest bias of a population: of the register, or of a neuron's weights that always fires."""
        return (
            finest(self.chip, self.largest) if self._always(name) else self.chip.bias_mant_range[1]
        )

    def _always(self, name: str) -> bool:
        """Whether a bias would pass through a current, and so comes from a neuron that always fires."""
        rules = self.rules[name]
        return bool(rules.current) and not rules.gain

    def _excess(self, network: IntegerNetwork) -> Float:
        """By how much each channel of the population can leave a register, or float32, as a factor."""
        (population,) = network.populations
        steps = self.arch.timesteps
        found = bounds.excess(network, population, self.chip, steps)
        most = EXACT - 1
        if self.chip.state_limit is not None:
            most = min(most, self.chip.state_limit - 1)
        for limit, (low, high) in (
            (EXACT - 1, bounds.voltage_range(network, population, steps)),
            (most, bounds.threshold_range(population, steps)),
        ):
            found = np.maximum(found, np.maximum(-low, high) / limit)
        by_channel = found.reshape(len(found), -1).max(axis=1)
        return np.broadcast_to(by_channel, population.shape[:1])

    def _outside(self, name: str, source: str) -> Float:
        """By how much a channel's bias or threshold is above what the register holds, as a factor."""
        lif = self._lif(name)
        scale = _array(lif.scale)
        factor: Float = np.ones(len(scale))
        if self.rules[name].fires:
            theta = _array(lif.thresh).reshape(len(scale), -1).max(axis=1)
            factor = theta / scale / (self.chip.threshold_range[1] + 0.5)
        bias = self.get_submodule(source).bias
        if isinstance(bias, Tensor):
            factor = np.maximum(factor, np.abs(_array(bias)) / scale / (self._bias_max(name) + 0.5))
        return factor

    def _alone(self, name: str, source: str, levels: int) -> IntegerNetwork:
        """The integers of a population, to be bounded; where the weights go does not matter for that."""
        with torch.no_grad():
            whole = {k: v.cpu().numpy() for k, v in self.integers().items()}
        rules, shape = self.rules[name], self.arch.shapes[name]
        weight = whole[f"{source}.weight"].astype(np.int8)
        one: Pair = (1, 1)
        synapses = Dense(weight) if weight.ndim == 2 else Conv(weight, one, one, one, 1)
        inputs = {"input": Input((), levels)}
        into = [Connection(source, "input", name, synapses)]
        if rules.recurrent is not None:
            ways = self._lif(name).ways(torch.from_numpy(whole[f"{name}.recurrent"]))
            into += [
                Connection(
                    f"to{port}", name, name, Dense(w.numpy().astype(np.int8)), 0, 8, "8", 1, port
                )
                for port, w in enumerate(ways)
            ]
        bias = whole.get(f"{source}.bias", np.zeros(len(weight))).astype(np.int32)
        if self._always(name):
            inputs["always"] = Input((1,))
            column = Dense(bias.astype(np.int16).reshape(-1, 1))
            into.append(Connection("bias", "always", name, column, precision=FINER))
            bias = np.zeros_like(bias)
        gain = whole.get(f"{name}.gain")
        neurons = integer_neurons.record(
            rules,
            of_channels(_array(self._lif(name).scale), shape),
            whole.get(f"{name}.thresh", np.zeros(shape)).astype(np.int32),
            of_channels(bias, shape),
            None if gain is None else gain.astype(np.int16),
        )
        return IntegerNetwork(
            self.chip.name,
            self.arch.timesteps,
            inputs,
            (Population(name, shape, neurons),),
            tuple(into),
            Readout(1, neurons.vth.size, name),
        )


def _array(values: Tensor) -> Float:
    array: Float = values.detach().cpu().double().numpy()
    return array


def _as_it_is(_spec: A.Conv, weight: Float) -> Float:
    return weight


def _in_groups(spec: A.Linear, weight: Float) -> Float:
    return stl.grouped(weight, spec.groups)


# The weights of the float graph, which knows no groups of a linear layer, as a module stores them.
STORED: dict[str, Callable[[Any, Float], Float]] = {"conv": _as_it_is, "linear": _in_groups}


def units(weight: Float, largest: int) -> Float:
    """The unit [O] of each output channel of ``weight`` [O, ...] that rounds it with the least error."""
    flat = weight.reshape(len(weight), -1)
    peak = np.abs(flat).max(axis=1)
    best, least = np.where(peak > 0, peak / largest, 1.0), np.full(len(flat), np.inf)
    for cut in CUTS:
        unit = np.where(peak > 0, cut * peak / largest, 1.0)
        rounded = np.clip(np.rint(flat / unit[:, None]), -largest, largest) * unit[:, None]
        error = np.square(rounded - flat).sum(axis=1)
        best, least = np.where(error < least, unit, best), np.minimum(error, least)
    return best


def _kept(layers: list[A.Layer], spec: A.Layer) -> None:
    layers.append(spec)


def _folded(layers: list[A.Layer], _spec: A.BatchNorm) -> None:
    layers[-1] = layers[-1].model_copy(update={"bias": True})


def _rounded(layers: list[A.Layer], spec: A.Lif) -> None:
    # How many 1/4096 a step may leave of each state.
    spans = {
        "tau": (1, DECAY_ONE if spec.tau == 1 else FORGETS),
        "current": (0, FORGETS),
        "current2": (0, FORGETS),
        "adapt_keep": (1, DECAY_ONE),
    }
    given = {name: getattr(spec, name) for name in spans}
    nearest = {
        name: min(high, max(low, round(DECAY_ONE * given[name]))) / DECAY_ONE
        for name, (low, high) in spans.items()
        if given[name] is not None
    }
    layers.append(spec.model_copy(update=nearest))


# What a layer does to those before it when it goes into a network of integers.
WHOLE: dict[str, Callable[[list[A.Layer], Any], None]] = {
    "conv": _kept,
    "linear": _kept,
    "maxpool": _kept,
    "dropout": _kept,
    "batchnorm": _folded,
    "lif": _rounded,
}


def quantized(arch: Architecture, weight_bits: int) -> Architecture:
    """``arch`` for integers: BatchNorm in the weights before it, decays in whole 1/4096.

    Raises LoweringError for layers and readouts that cannot be trained so.
    """
    found = {
        spec.name: spec.unfit_for_integers()
        for spec in arch.layers
        if WHOLE.get(spec.kind, _kept) is _kept
    }
    if arch.readout != "votes":
        found["readout"] = f"a readout by {arch.readout}"
    problems = [
        Problem(
            name, f"{what} has no training on integers", "train in floating point and export that"
        )
        for name, what in found.items()
        if what
    ]
    if problems:
        raise LoweringError(problems)
    layers: list[A.Layer] = []
    for spec in arch.layers:
        entry(WHOLE, spec.kind, spec.name, "training on integers")(layers, spec)
    changed = {"layers": tuple(layers), "quantized": Quantized(weight_bits=weight_bits)}
    return Architecture.from_dict(arch.model_copy(update=changed).to_dict())


def from_checkpoint(checkpoint: Checkpoint, weight_bits: int, chip: str | Path) -> QatNet:
    """What training on integers begins with: the float network, BatchNorm and input scale folded.

    Raises LoweringError for a network that cannot be lowered, is several that decide together, or has layers
    or a readout that cannot be trained so.
    """
    if checkpoint.arch.members is not None:
        raise LoweringError(
            Problem(
                "members",
                f"it is {checkpoint.arch.members} networks, and training would connect them",
                "train each on integers, then join what comes out (stl-join)",
            )
        )
    if problems := chips.find(chip).input_problems(checkpoint.arch.input.levels):
        raise LoweringError(problems)
    graph: nir.NIRGraph = lower(stl.to_graph(checkpoint.arch, checkpoint.params))
    floats = rows.targets(float_networks.decode(graph))
    return QatNet(quantized(checkpoint.arch, weight_bits), floats, chip)
