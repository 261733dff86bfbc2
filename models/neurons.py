"""Neurons with further rules than a LIF's, over [batch, time, ...], step by step under autograd.

The rules are those of a description (``ir/arch_neurons.py``), the order of operations is that of
``ir/execute.py``, whose spikes and voltages these are. The gradient of a spike is that of ``layers.py``.
Where nothing but a leak and a threshold is asked for, ``make`` gives the compiled LIF instead.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from stl_deploy.ir import arch_neurons
from stl_deploy.ir.arch_neurons import NeuronRules
from stl_deploy.models.layers import ALPHA, LIF

Shape = tuple[int, ...]


def make(rules: NeuronRules, shape: Shape, timesteps: int, threshold: float) -> LIF | Neurons:
    """The module of neurons with ``rules``, whose thresholds begin at ``threshold``."""
    if rules.plain:
        return LIF(shape, rules.tau, threshold)
    return Neurons(rules, shape, timesteps, threshold)


def dale(weight: Tensor, inhibitory: int) -> Tensor:
    """``weight`` [O, I] with the signs of Dale's law: of its inputs the last ``inhibitory`` inhibit."""
    signs = arch_neurons.signs(weight.shape[1], inhibitory)
    return weight.abs() * torch.from_numpy(signs).to(weight)


class DaleLinear(nn.Linear):
    """Weights of Dale's law over [batch, time, ...]; what follows the time axis is flattened."""

    def __init__(self, inputs: int, features: int, bias: bool, inhibitory: int) -> None:
        super().__init__(inputs, features, bias)
        self.inhibitory = inhibitory

    def forward(self, input: Tensor) -> Any:
        """Apply to every step."""
        weight = dale(self.weight, self.inhibitory)
        return functional.linear(input.flatten(2), weight, self.bias)


class TwoCurrents(DaleLinear):
    """The same, what excites and what inhibits apart: it gives both, the bias with what excites."""

    def forward(self, input: Tensor) -> Any:
        """Apply to every step."""
        weight, x = dale(self.weight, self.inhibitory), input.flatten(2)
        excites = functional.linear(x, weight.clamp(min=0), self.bias)
        return excites, functional.linear(x, weight.clamp(max=0))


class Spike(torch.autograd.Function):
    """1 where v > limit, both of one shape; the gradient is the arctangent surrogate at the same place.

    ``slope`` is what a unit of v is in floating point, 1 for floats. Whole numbers pass a threshold that
    lies ``above`` their limit.
    """

    @staticmethod
    def forward(
        ctx: Any, v: Tensor, limit: Tensor, slope: Tensor | float, above: float = 0.0
    ) -> Tensor:
        """Compare."""
        ctx.save_for_backward((v - (limit + above)) * slope)
        ctx.slope = slope
        return (v > limit).to(v.dtype)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Tensor, Tensor, None, None]:
        """See the class."""
        (grad,) = grads
        (x,) = ctx.saved_tensors
        through = grad * (ALPHA / 2) / (1 + (math.pi / 2 * ALPHA * x).square()) * ctx.slope
        return through, -through, None, None


class Neurons(nn.Module):
    """A population with ``rules``; input and output are [batch, time, *shape].

    What leaves it are spikes, or v where it does not fire. Parameters: ``thresh`` [*shape] where it fires,
    ``gain`` [T] and ``recurrent`` [N, N] where the rules have them. State starts anew for every sample.
    """

    thresh: Tensor
    gain: Tensor
    recurrent: Tensor

    def __init__(
        self, rules: NeuronRules, shape: Shape, timesteps: int, threshold: float = 1.0
    ) -> None:
        super().__init__()
        self.rules, self.shape = rules, shape
        shapes = arch_neurons.parameters(rules, shape, timesteps)
        for name, size in shapes.items():
            self.register_parameter(name, nn.Parameter(BEGIN[name](size, threshold)))

    def forward(self, current: Tensor, current2: Tensor | None = None) -> Tensor:
        """What is sent; ``current`` and ``current2`` are what arrives at the two currents."""
        sent, v = self._run(current, current2)
        return torch.stack(sent, dim=1) if self.rules.fires else self.told(torch.stack(v, dim=1))

    def trace(self, current: Tensor, current2: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Spikes, 0 without a threshold, and the v that each step leaves, in the units of the state."""
        sent, v = self._run(current, current2)
        return torch.stack(sent, dim=1), torch.stack(v, dim=1)

    def ways(self, weight: Tensor) -> list[Tensor]:
        """What ``recurrent`` weights are to the first current, and under Dale's law to the second."""
        own = self.rules.recurrent
        if own is None or not own.inhibitory:
            return [weight]
        signed = dale(weight, own.inhibitory)
        if self.rules.current2 is None:
            return [signed]
        return [signed.clamp(min=0), signed.clamp(max=0)]

    def extra_repr(self) -> str:
        """Shape and rules for ``print``."""
        told = self.rules.model_dump(exclude={"name", "kind"}, exclude_none=True)
        return ", ".join(f"{name}={value}" for name, value in {"shape": self.shape, **told}.items())

    def _run(self, current: Tensor, current2: Tensor | None) -> tuple[list[Tensor], list[Tensor]]:
        """Spikes and voltages, [batch, *shape] of each step."""
        rules, run = self.rules, _Run(self, current)
        sent: list[Tensor] = []
        voltages: list[Tensor] = []
        ways = self.ways(self.recurrent) if rules.recurrent is not None else []
        for t in range(current.shape[1]):
            arrived: list[Tensor | None] = [
                current[:, t],
                None if current2 is None else current2[:, t],
            ]
            if rules.recurrent is not None and t >= rules.recurrent.delay:
                own = sent[t - rules.recurrent.delay]
                for port, weight in enumerate(ways):
                    before = arrived[port]
                    more = own @ weight.T
                    arrived[port] = more if before is None else before + more
            first, second = arrived
            assert first is not None
            sent.append(run.step(t, first, second))
            voltages.append(run.v)
        return sent, voltages

    # What the steps are made of, in floating point.

    def wide(self, x: Tensor) -> Tensor:
        """``x`` in the precision of the state."""
        return x

    def received(self, x: Tensor, t: int) -> Tensor:
        """What a current gets where ``x`` arrives in step ``t``."""
        return x * self.gain[t] if self.rules.gain else x

    def kept(self, x: Tensor, share: float) -> Tensor:
        """What a step leaves of a state."""
        return x * share

    def of_v(self, value: float) -> Tensor | float:
        """A value of v in the units of the state, broadcastable to the population."""
        return value

    def limit(self) -> Tensor:
        """What v must exceed, [*shape]: a spike where v reaches the threshold."""
        theta = self.thresh
        below = torch.nextafter(theta.detach(), theta.new_tensor(-math.inf))
        return theta + (below - theta.detach())

    def told(self, v: Tensor) -> Tensor:
        """v in floating point."""
        return v

    def spike(self, v: Tensor, limit: Tensor) -> Tensor:
        """1 where v exceeds ``limit`` [batch, *shape]."""
        return cast(Tensor, Spike.apply(v, limit, 1.0))  # type: ignore[no-untyped-call]


class _Run:
    """The state of all samples, [batch, *shape], on its way through the steps."""

    def __init__(self, neurons: Neurons, current: Tensor) -> None:
        self.neurons, self.rules = neurons, neurons.rules
        self.zero = neurons.wide(torch.zeros_like(current[:, 0]))
        self.u = self.u2 = self.q = self.zero
        self.v = self.zero + neurons.of_v(self.rules.v0) if self.rules.v0 else self.zero
        self.rest = torch.zeros_like(self.zero)
        self.limit = neurons.limit() if self.rules.fires else None

    def step(self, t: int, first: Tensor, second: Tensor | None) -> Tensor:
        """Spikes of step ``t``, where ``first`` and ``second`` arrive; ``v`` is then what it leaves."""
        n, rules = self.neurons, self.rules
        x = n.received(n.wide(first), t)
        self.u = x if rules.current is None else n.kept(self.u, rules.current) + x
        total = self.u
        if rules.current2 is not None:
            self.u2 = n.kept(self.u2, rules.current2)
            if second is not None:
                self.u2 = self.u2 + n.received(n.wide(second), t)
            total = total + self.u2
        v = n.kept(self.v, rules.tau) + total
        resting = self.rest != 0
        if rules.hold:
            v = torch.where(resting, self.v, v)
        if rules.floor is not None:
            v = torch.maximum(v, self.zero + n.of_v(rules.floor))
        if self.limit is None:
            self.v = v
            return self.zero.to(first.dtype)
        s = n.spike(v, (self.limit + self.q).expand_as(v))
        if rules.hold:
            s = s * ~resting
        self.v = RESETS[rules.reset](self, v, s)
        self._after(s, resting)
        return s.to(first.dtype)

    def _after(self, s: Tensor, resting: Tensor) -> None:
        """The states other than v after spikes ``s``."""
        n, rules = self.neurons, self.rules
        if rules.reset_current:
            self.u, self.u2 = self.u * (1 - s), self.u2 * (1 - s)
        if rules.hold:
            left = torch.where(self.rest > 0, self.rest - 1, self.rest)
            self.rest = torch.where(s.detach() != 0, float(rules.hold), left)
        if rules.adapt is not None and rules.adapt_keep is not None:
            self.q = n.kept(self.q, rules.adapt_keep) + n.of_v(rules.adapt) * s


def _constant(run: _Run, v: Tensor, s: Tensor) -> Tensor:
    return v * (1 - s) + s * run.neurons.of_v(run.rules.v_reset)


def _subtract(run: _Run, v: Tensor, s: Tensor) -> Tensor:
    assert run.limit is not None
    return v - s * run.limit


# What spikes s leave of v, by the name of the reset.
RESETS: dict[str, Callable[[_Run, Tensor, Tensor], Tensor]] = {
    "zero": lambda _run, v, s: v * (1 - s),
    "constant": _constant,
    "subtract": _subtract,
    "none": lambda _run, v, _s: v,
}


def _weights(size: Shape, _threshold: float) -> Tensor:
    weight = torch.empty(size)
    nn.init.kaiming_uniform_(weight, a=math.sqrt(5))  # as nn.Linear
    return weight


# What parameters begin with, by their name.
BEGIN: dict[str, Callable[[Shape, float], Tensor]] = {
    "thresh": lambda size, threshold: torch.full(size, threshold),
    "gain": lambda size, _threshold: torch.ones(size),
    "recurrent": _weights,
}
