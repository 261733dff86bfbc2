"""Training on integers: the network that learns is, at every step, the network that runs on the chip.

The forward pass is that of ``hw_sim/reference.py`` on tensors of whole numbers: weights of the grid
+-(2^(B-1)-1), biases and thresholds in the registers' units, v in 1/64 of one, ``v > vth << 6``. What is
learned are floating point numbers behind them, weight / unit being rounded; a unit enters nothing but
that rounding, that of a rule's values of v, and the gradients. All weights that lead to a population share
the units of its channels. Units are found once, channel by channel, and grow where what is learned would
leave a register (docs/numerics.md, "Training on integers").
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Mapping
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
from stl_deploy.models import integer_neurons, neurons
from stl_deploy.models.net import STLNet

Float = NDArray[np.float64]
CUTS = np.linspace(0.2, 1.0, 81)  # of max|w|, where a grid may end
TRIES = 200
EXACT = 1 << 24  # float32 holds every whole number up to this
WIDE = 1 << 31  # float64 holds every product of a current below this and a gain or decay


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
        self.feeds = arch.feeds
        self.rules = {spec.name: spec for spec in arch.layers if spec.kind == "lif"}
        # The sums that add spikes to what arrives at a population.
        self.sums = {
            name: [at for at in arch.passed if arch.behind(at) == [name]] for name in self.feeds
        }
        self.read = arch.layers[-1].name if arch.readout != "votes" else None  # by its v
        self.whole: dict[str, dict[str, Tensor]] = {}
        with torch.no_grad():
            for name in self.feeds:
                self._begin(name, floats[name])
        self.settle()
        whole = [self._alone(name) for name in self.feeds]
        if problems := [problem for network in whole for problem in refused(network)]:
            raise LoweringError(problems)

    def _begin(self, name: str, target: Target) -> None:
        """Take over weights, bias, threshold and gain of a population, and find its units."""
        lif = self._lif(name)
        always = [rows.weight for rows in target.rows if rows.source == target.always]
        learned = []
        bias = (always[0] if always else target.bias).reshape(target.channels, -1)[:, 0].copy()
        for source in self.feeds[name]:
            spec, module = self.arch.weighted[source], self._weights(source)
            # Several sources may share the weights; of Dale's law what inhibits stands apart.
            first = next(rows.source for rows in target.rows if rows.name == source)
            weight = _sum(target, (source, f"{source}.inhibition"), first)
            weight = entry(STORED, spec.kind, source, "training on integers")(spec, weight)
            module.weight.copy_(torch.from_numpy(weight))
            learned.append(weight.reshape(len(weight), -1))
            if module.bias is not None:  # the first has that of all
                module.bias.copy_(torch.from_numpy(bias))
                bias = np.zeros_like(bias)
        if self.rules[name].recurrent is not None:
            own = _sum(target, (f"{name}.recurrent", f"{name}.inhibition"), name)
            lif.recurrent.copy_(torch.from_numpy(own))
            learned.append(own)
        if self.rules[name].fires:
            lif.thresh.copy_(torch.from_numpy(target.theta))
        if target.neurons.amplify is not None:
            gain = target.neurons.amplify.reshape(-1) / common_gain(target.neurons)
            lif.gain.copy_(torch.from_numpy(gain))
        every = np.concatenate(learned, axis=1)
        if name == self.read:  # voltages are compared, so that they have one unit
            found = np.repeat(units(every.reshape(1, -1), self.largest), len(every))
        else:
            found = units(every, self.largest)
        lif.scale.copy_(torch.from_numpy(found))

    def trace(self, raster: Tensor) -> tuple[dict[str, Tensor], Tensor | None]:
        """See ``STLNet``."""
        self.whole = defaultdict(dict)
        for key, value in self.integers().items():
            layer, _, parameter = key.rpartition(".")
            self.whole[layer][parameter] = value
        found = super().trace(raster)
        self.whole = {}
        return found

    def call(self, name: str, *given: Tensor) -> Any:
        """See ``STLNet``: with the integers of this moment."""
        return functional_call(self.get_submodule(name), self.whole.get(name, {}), given)

    def integers(self) -> dict[str, Tensor]:
        """The integers that the parameters stand for, by parameter name; gradients pass through."""
        whole: dict[str, Tensor] = {}
        low, high = map(float, self.chip.threshold_range)
        grid = float(self.largest)
        for name, sources in self.feeds.items():
            lif = self._lif(name)
            most = float(self._bias_max(name))
            learned: list[tuple[str, Tensor | None, float, float]] = [
                (f"{name}.recurrent", getattr(lif, "recurrent", None), -grid, grid)
            ]
            for source in sources:
                module = self._weights(source)
                learned.append((f"{source}.weight", module.weight, -grid, grid))
                learned.append((f"{source}.bias", module.bias, -most, most))
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
            whole |= {f"{at}.one": torch.round(1 / lif.scale) for at in self.sums[name]}
        return whole

    def settle(self) -> None:
        """Let units grow until no input can make the integers leave a register of the chip.

        A chip without registers leaves those of float32, in which the integers are computed.

        Raises LoweringError where that cannot be.
        """
        for name in self.feeds:
            scale = self._lif(name).scale
            for _ in range(TRIES):
                needed = np.maximum(self._excess(self._alone(name)), self._outside(name))
                if name == self.read:
                    needed = np.full_like(needed, needed.max())
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
        bias = np.abs(population.neurons.bias_mant)
        sums = [abs(side) + bias for side in bounds.one_sided_sums(network, population)]
        most = EXACT - 1
        if self.chip.state_limit is not None:
            most = min(most, self.chip.state_limit - 1)
        for limit, (low, high) in (
            # A gain below 1 or a floor can make v small where sums are not.
            (EXACT - 1, (-sums[0], sums[1])),
            (WIDE - 1, bounds.current_range(network, population, steps)),
            (EXACT - 1, bounds.voltage_range(network, population, steps)),
            (most, bounds.threshold_range(population, steps)),
        ):
            found = np.maximum(found, np.maximum(-low, high) / limit)
        by_channel = found.reshape(len(found), -1).max(axis=1)
        return np.broadcast_to(by_channel, population.shape[:1])

    def _weights(self, source: str) -> torch.nn.Linear:
        """The module of a layer with weights, of whatever kind."""
        return cast(torch.nn.Linear, self.get_submodule(source))

    def _outside(self, name: str) -> Float:
        """By how much a channel's biases, threshold or unit weight leave their registers, as a factor."""
        lif = self._lif(name)
        scale = _array(lif.scale)
        factor: Float = np.ones(len(scale))
        if self.rules[name].fires:
            theta = _array(lif.thresh).reshape(len(scale), -1).max(axis=1)
            factor = theta / scale / (self.chip.threshold_range[1] + 0.5)
        biases = [self._weights(source).bias for source in self.feeds[name]]
        total = sum((np.abs(_array(bias)) for bias in biases if bias is not None), np.zeros(1))
        # Each of several is rounded.
        most = self._bias_max(name) + 0.5 - (len(biases) - 1) / 2
        factor = np.maximum(factor, total / scale / most)
        if self.sums[name]:
            factor = np.maximum(factor, 1 / scale / finest(self.chip, self.largest))
        return factor

    def _alone(self, name: str) -> IntegerNetwork:
        """The integers of a population, to be bounded; where the weights go does not matter for that."""
        with torch.no_grad():
            whole = {k: v.cpu().numpy() for k, v in self.integers().items()}
        rules, shape, levels = self.rules[name], self.arch.shapes[name], self.arch.levels
        inputs: dict[str, Input] = {}
        into: list[Connection] = []
        bias = np.zeros(shape[0], np.int32)
        for source in self.feeds[name]:
            (read,) = self.arch.reads[source]
            inputs[read] = Input((), levels[read])
            into += self._connections(name, source, read, whole[f"{source}.weight"])
            bias = bias + whole.get(f"{source}.bias", np.zeros(shape[0])).astype(np.int32)
        if rules.recurrent is not None:
            ways = self._lif(name).ways(torch.from_numpy(whole[f"{name}.recurrent"]))
            into += [
                _connection(f"to{port}", name, name, w.numpy(), delay=1, port=port)
                for port, w in enumerate(ways)
            ]
        columns = {
            f"{at}{i}": (whole[f"{at}.one"], levels[read])
            for at in self.sums[name]
            for i, (read, there) in enumerate(
                zip(self.arch.reads[at], self.arch.passed[at], strict=True)
            )
            if there
        }
        if self._always(name):
            columns["always"] = bias, 1
            bias = np.zeros_like(bias)
        for source, (column, most) in columns.items():
            inputs[source] = Input((1,), most)
            weight = column.astype(np.int16).reshape(-1, 1)
            into.append(Connection(source, source, name, Dense(weight), precision=FINER))
        gain = whole.get(f"{name}.gain")
        record = integer_neurons.record(
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
            (Population(name, shape, record),),
            tuple(into),
            Readout(1, record.vth.size, name),
            chip_facts=chips.carried(self.chip),
        )

    def _connections(
        self, name: str, source: str, read: str, weight: NDArray[Any]
    ) -> list[Connection]:
        """The connections that a layer with weights is: one, or one to each of two currents."""
        inhibitory = getattr(self._weights(source), "inhibitory", 0)
        if not inhibitory:
            return [_connection(source, read, name, weight)]
        signed = neurons.dale(torch.from_numpy(weight), inhibitory).numpy()
        if source not in self.arch.split:
            return [_connection(source, read, name, signed)]
        parts = np.maximum(signed, 0), np.minimum(signed, 0)
        return [
            _connection(f"{source}{port}", read, name, part, port=port)
            for port, part in enumerate(parts)
        ]


def _connection(
    name: str, source: str, target: str, weight: NDArray[Any], delay: int = 0, port: int = 0
) -> Connection:
    one: Pair = (1, 1)
    w = weight.astype(np.int8)
    synapses = Dense(w) if w.ndim == 2 else Conv(w, one, one, one, 1)
    return Connection(name, source, target, synapses, delay=delay, port=port)


def _sum(target: Target, names: Collection[str], source: str) -> Float:
    """The weights from ``source`` of these names, added up."""
    found = [rows.weight for rows in target.rows if rows.name in names and rows.source == source]
    return np.asarray(sum(found[1:], found[0]))


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


def _without_batchnorm(arch: Architecture) -> list[A.Layer]:
    """The layers with BatchNorm in the biases of the weights that it reads.

    Raises LoweringError where it reads anything else.
    """
    reads, weighted = arch.reads, arch.weighted
    folded = {
        layer.name: reads[layer.name][0] for layer in arch.layers if layer.kind == "batchnorm"
    }
    readers = Counter(name for read in reads.values() for name in read)
    if problems := [
        Problem(
            name,
            f"normalizes {read}, which is no layer with weights that it alone reads",
            "place BatchNorm directly behind a convolution or a linear layer",
        )
        for name, read in folded.items()
        if read not in weighted or readers[read] > 1
    ]:
        raise LoweringError(problems)
    found: list[A.Layer] = []
    for layer in arch.layers:
        if layer.name in folded:
            continue
        update: dict[str, Any] = {}
        if layer.name in folded.values():
            update["bias"] = True
        read = tuple(folded.get(name, name) for name in reads[layer.name])
        before = found[-1].name if found else A.INPUT
        update["inputs"] = () if read == (before,) else read
        found.append(layer.model_copy(update=update))
    return found


def _rounded(spec: A.Lif) -> A.Lif:
    """Neurons whose decays are the nearest that registers hold."""
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
    return spec.model_copy(update=nearest)


def quantized(arch: Architecture, weight_bits: int) -> Architecture:
    """``arch`` for integers: BatchNorm in the weights before it, decays in whole 1/4096.

    Raises LoweringError for layers that integers cannot be.
    """
    layers = [_rounded(spec) if spec.kind == "lif" else spec for spec in _without_batchnorm(arch)]
    if problems := [
        Problem(
            layer.name,
            f"{what} cannot be trained on integers",
            "train without --qat, and export that",
        )
        for layer in layers
        if (what := layer.unfit_for_integers())
    ]:
        raise LoweringError(problems)
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
