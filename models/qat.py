"""Training on integers: the network that learns is, at every step, the network that runs on the chip.

The forward pass is that of ``hw_sim/reference.py`` on tensors of whole numbers: weights of the grid
+-(2^(B-1)-1), biases and thresholds in the registers' units, v in 1/64 of one, ``v > vth << 6``. What is
learned are floating point numbers behind them, weight / unit being rounded; a unit enters nothing but
that rounding and the gradients. Units are found once, channel by channel, and grow where what is
learned would leave a register (docs/numerics.md, "Training on integers").
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
from stl_deploy.errors import LoweringError, Problem
from stl_deploy.importers import stl
from stl_deploy.importers.given import Checkpoint
from stl_deploy.ir import arch as A
from stl_deploy.ir import floats as float_networks
from stl_deploy.ir.arch import Architecture, Quantized
from stl_deploy.ir.conv import Pair
from stl_deploy.ir.kinds import entry
from stl_deploy.ir.network import Connection, Input, IntegerNetwork, Population
from stl_deploy.ir.neurons import Lif, of_channels
from stl_deploy.ir.readouts import Readout
from stl_deploy.ir.synapses import Conv, Dense
from stl_deploy.ir.units import DECAY_ONE, FORGETS
from stl_deploy.lower import rows
from stl_deploy.lower.graph import lower
from stl_deploy.lower.rows import Target
from stl_deploy.models.layers import IntegerLIF
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
        with torch.no_grad():
            for name, source in self.pairs.items():
                target, lif = floats[name], self._lif(name)
                (feed,) = target.rows
                module = cast(torch.nn.Linear, self.get_submodule(source))
                spec = arch.weighted[source]
                weight = entry(STORED, spec.kind, source, "training on integers")(spec, feed.weight)
                module.weight.copy_(torch.from_numpy(weight))
                if module.bias is not None:
                    module.bias.copy_(torch.from_numpy(target.bias.reshape(-1)))
                lif.thresh.copy_(torch.from_numpy(target.theta))
                lif.scale.copy_(torch.from_numpy(units(weight, self.largest)))
        self.settle()

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
        bias_max = float(self.chip.bias_mant_range[1])
        low, high = map(float, self.chip.threshold_range)
        for name, source in self.pairs.items():
            lif = self._lif(name)
            module = cast(torch.nn.Linear, self.get_submodule(source))
            for key, value, least, most in (
                (f"{source}.weight", module.weight, -float(self.largest), float(self.largest)),
                (f"{source}.bias", module.bias, -bias_max, bias_max),
                # v passes vth where it reaches theta: half a unit lower, rounded to nearest
                (f"{name}.thresh", lif.thresh - lif.unit / 2, low, high),
            ):
                if value is not None:
                    unit = lif.scale.reshape(-1, *[1] * (value.dim() - 1))
                    rounded = _Rounded.apply(value, unit, least, most)  # type: ignore[no-untyped-call]
                    whole[key] = cast(Tensor, rounded)
        return whole

    def settle(self) -> None:
        """Let units grow until no input can make the integers leave a register of the chip.

        A chip without registers leaves those of float32, in which the integers are computed.

        Raises LoweringError where that cannot be.
        """
        levels, steps = self.arch.input.levels, self.arch.timesteps
        for index, (name, source) in enumerate(self.pairs.items()):
            scale = self._lif(name).scale
            for _ in range(TRIES):
                network = self._alone(name, source, 1 if index else levels)
                (population,) = network.populations
                excess = bounds.excess(network, population, self.chip, steps)
                low, high = bounds.voltage_range(network, population, steps)
                exact = np.maximum(-low, high) / (EXACT - 1)
                worst = np.maximum(excess, exact).reshape(-1)
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

    def _lif(self, name: str) -> IntegerLIF:
        return cast(IntegerLIF, self.get_submodule(name))

    def _outside(self, name: str, source: str) -> Float:
        """By how much a channel's bias or threshold is above what the register holds, as a factor."""
        lif = self._lif(name)
        scale = lif.scale.detach().cpu().double().numpy()
        theta = lif.thresh.detach().cpu().double().numpy().reshape(len(scale), -1).max(axis=1)
        factor: Float = theta / scale / (self.chip.threshold_range[1] + 0.5)
        bias = self.get_submodule(source).bias
        if isinstance(bias, Tensor):
            most = self.chip.bias_mant_range[1] + 0.5
            factor = np.maximum(factor, np.abs(bias.detach().cpu().double().numpy()) / scale / most)
        return factor

    def _alone(self, name: str, source: str, levels: int) -> IntegerNetwork:
        """The integers of a population, to be bounded; where the weights go does not matter for that."""
        with torch.no_grad():
            whole = {k: v.cpu().numpy() for k, v in self.integers().items()}
        weight, vth = whole[f"{source}.weight"].astype(np.int8), whole[f"{name}.thresh"]
        bias = whole.get(f"{source}.bias", np.zeros(len(weight))).astype(np.int32)
        neurons = Lif(
            vth.astype(np.int32),
            of_channels(bias, vth.shape),
            np.ones(()),
            dv=DECAY_ONE - int(DECAY_ONE * self._lif(name).tau),
        )
        one: Pair = (1, 1)
        synapses = Dense(weight) if weight.ndim == 2 else Conv(weight, one, one, one, 1)
        return IntegerNetwork(
            self.chip.name,
            self.arch.timesteps,
            {"input": Input((), levels)},
            (Population(name, vth.shape, neurons),),
            (Connection(source, "input", name, synapses),),
            Readout(1, vth.size, name),
        )


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
    tau = min(FORGETS, max(1, round(DECAY_ONE * spec.tau))) / DECAY_ONE
    layers.append(spec.model_copy(update={"tau": tau}))


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
    """``arch`` for integers: BatchNorm in the weights before it, tau 1/4096 to 4095/4096."""
    layers: list[A.Layer] = []
    for spec in arch.layers:
        entry(WHOLE, spec.kind, spec.name, "training on integers")(layers, spec)
    changed = {"layers": tuple(layers), "quantized": Quantized(weight_bits=weight_bits)}
    return Architecture.from_dict(arch.model_copy(update=changed).to_dict())


def from_checkpoint(checkpoint: Checkpoint, weight_bits: int, chip: str | Path) -> QatNet:
    """What training on integers begins with: the float network, BatchNorm and input scale folded.

    Raises LoweringError for a network that cannot be lowered, or is several that decide together.
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
