"""Layers over [batch, time, ...]: LIF with a learned threshold per neuron, and the usual ones.

The neuron is that of the official STL-SNN code (Sun et al. 2023, doi:10.1109/TCDS.2023.3278712):

    h[t] = tau * v[t-1] + I[t]          membrane before the reset
    s[t] = h[t] >= threshold            same-step spike
    v[t] = (1 - s[t]) * h[t]            same-step hard reset

with the arctangent surrogate ds/dh = (alpha/2) / (1 + (pi/2 * alpha * (h - threshold))^2).
"""

from __future__ import annotations

import math
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from stl_deploy.ir.units import DECAY_ONE, UNIT
from stl_deploy.models import lif_cpu, parallel

ALPHA = 2.0  # slope of the surrogate gradient


class _LifSteps(torch.autograd.Function):
    """All time steps of a LIF layer, [batch, steps or 1, ...] to [batch, steps, ...].

    The backward pass is written out, which saves memory and time. On a CPU both are compiled loops.
    """

    @staticmethod
    def forward(ctx: Any, current: Tensor, threshold: Tensor, tau: float, steps: int) -> Tensor:
        if _compiled(current, threshold):
            membrane, spikes = lif_cpu.forward(current, threshold, tau, steps)
        else:
            membrane, spikes = _lif_steps(
                current.expand(-1, steps, *threshold.shape), threshold, tau
            )
        ctx.save_for_backward(membrane, spikes, threshold)
        ctx.tau, ctx.constant = tau, current.shape[1] < steps
        return spikes

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Tensor, Tensor, None, None]:
        (grad_spikes,) = grads
        membrane, spikes, threshold = ctx.saved_tensors
        if _compiled(membrane, threshold):
            of_current, of_threshold = lif_cpu.backward(
                grad_spikes, membrane, spikes, threshold, ctx.tau, ALPHA, ctx.constant
            )
            return of_current, of_threshold, None, None
        grad_current = torch.empty_like(membrane)
        grad_threshold = torch.zeros_like(threshold)
        grad_v = torch.zeros_like(membrane[:, 0])
        for t in reversed(range(membrane.shape[1])):
            h, s = membrane[:, t], spikes[:, t]
            surrogate = (h - threshold).mul_(math.pi / 2 * ALPHA).square_().add_(1).reciprocal_()
            through_spike = (grad_spikes[:, t] - grad_v * h).mul_(surrogate).mul_(ALPHA / 2)
            grad_threshold -= through_spike.sum(0)
            grad_h = grad_v.mul_(1 - s).add_(through_spike)
            grad_current[:, t] = grad_h
            grad_v = grad_h * ctx.tau
        if ctx.constant:
            grad_current = grad_current.sum(1, keepdim=True)
        return grad_current, grad_threshold, None, None


def _compiled(current: Tensor, threshold: Tensor) -> bool:
    """Whether the loops of ``lif_cpu.py`` can take them."""
    types = {current.dtype, threshold.dtype}
    return current.device.type == "cpu" and types in ({torch.float32}, {torch.float64})


def _lif_steps(current: Tensor, threshold: Tensor, tau: float) -> tuple[Tensor, Tensor]:
    """Membranes before the reset and spikes of all steps."""
    membrane = torch.empty_like(current, memory_format=torch.contiguous_format)
    spikes = torch.empty_like(membrane)
    v = torch.zeros_like(membrane[:, 0])
    for t in range(current.shape[1]):
        h = v.mul_(tau).add_(current[:, t])
        s = (h >= threshold).to(h.dtype)
        membrane[:, t] = h
        spikes[:, t] = s
        v = h * (1 - s)
    return membrane, spikes


class LIF(nn.Module):
    """LIF population with one learned threshold per neuron.

    ``thresh`` has the full population shape, (C, H, W) or (N,). Input and output are
    [batch, time, *shape]; the output holds 0 and 1. State starts at zero for every sample.
    """

    def __init__(self, shape: tuple[int, ...], tau: float = 0.5, threshold: float = 1.0) -> None:
        super().__init__()
        self.tau = tau
        self.thresh = nn.Parameter(torch.full(shape, threshold))

    def forward(self, current: Tensor) -> Tensor:
        """Spikes [batch, time, *shape] for an input current of that shape."""
        steps = current.shape[1]
        return cast(Tensor, _LifSteps.apply(_once(current), self.thresh, self.tau, steps))  # type: ignore[no-untyped-call]

    def extra_repr(self) -> str:
        """Shape and decay for ``print``."""
        return f"shape={tuple(self.thresh.shape)}, tau={self.tau}"


class IntegerLIF(LIF):
    """The neuron of ``hw_sim/reference.py`` in PyTorch, bit for bit where no register overflows.

    ``thresh`` holds vth, whole numbers; ``scale`` [C] is what a unit of it stands for in floating point
    and plays no part in the result. A current of whole numbers comes in, and v counts 1/64 of them:

        v = trunc(v * 4096*tau / 4096) + 64 * I;  s = v > 64 * vth;  v = 0 where s

    float32 holds whole numbers up to 2^24, so that v, below 2^23, is exact; only the product of v and
    4096*tau needs float64, unless tau is 1/2.
    """

    def __init__(self, shape: tuple[int, ...], tau: float = 0.5) -> None:
        super().__init__(shape, tau)
        self.register_buffer("scale", torch.ones(shape[0]))
        self.scale: Tensor

    def forward(self, current: Tensor) -> Tensor:
        """Spikes [batch, time, *shape] for a current of that shape and of whole numbers."""
        return cast(Tensor, _IntegerSteps.apply(current, self.thresh, self.unit, self.tau))  # type: ignore[no-untyped-call]

    @property
    def unit(self) -> Tensor:
        """``scale``, broadcastable to the population's shape."""
        return self.scale.reshape(-1, *[1] * (self.thresh.dim() - 1))


class _IntegerSteps(torch.autograd.Function):
    """All time steps of an ``IntegerLIF``; gradients are those of the float neuron it stands for.

    With h = v * unit / 64 and theta half a 1/64 above vth that is ``_LifSteps``' backward pass; the
    gradients it returns are those of the whole numbers, so that a unit enters nowhere else.
    """

    @staticmethod
    def forward(ctx: Any, current: Tensor, vth: Tensor, unit: Tensor, tau: float) -> Tensor:
        wide = current if tau == 0.5 else current.double()
        membrane = torch.empty_like(current)
        spikes = torch.empty_like(current)
        v = torch.zeros_like(wide[:, 0])
        for t in range(current.shape[1]):
            v = v.mul_(DECAY_ONE * tau).div_(DECAY_ONE).trunc_().add_(wide[:, t], alpha=UNIT)
            s = (v > UNIT * vth).to(v.dtype)
            membrane[:, t] = v
            spikes[:, t] = s
            v = v * (1 - s)
        ctx.save_for_backward(membrane, spikes, vth, unit)
        ctx.tau = tau
        return spikes

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Tensor, Tensor, None, None]:
        (grad_spikes,) = grads
        membrane, spikes, vth, unit = ctx.saved_tensors
        grad_current = torch.empty_like(membrane)
        grad_vth = torch.zeros_like(vth)
        grad_v = torch.zeros_like(membrane[:, 0])
        theta = (vth + 1 / (2 * UNIT)) * unit
        for t in reversed(range(membrane.shape[1])):
            h, s = membrane[:, t] * (unit / UNIT), spikes[:, t]
            surrogate = (h - theta).mul_(math.pi / 2 * ALPHA).square_().add_(1).reciprocal_()
            through_spike = (grad_spikes[:, t] - grad_v * h).mul_(surrogate).mul_(ALPHA / 2)
            grad_vth -= through_spike.sum(0)
            grad_h = grad_v.mul_(1 - s).add_(through_spike)
            grad_current[:, t] = grad_h * unit
            grad_v = grad_h * ctx.tau
        return grad_current, grad_vth * unit, None, None


def _once(x: Tensor) -> Tensor:
    """[batch, time, ...], or [batch, 1, ...] of what a graded input gives: the same at every step."""
    return x[:, :1] if x.shape[1] > 1 and x.stride(1) == 0 else x


class Conv2d(nn.Conv2d):
    """``nn.Conv2d`` over [batch, time, C, H, W], all time steps in one call."""

    def forward(self, input: Tensor) -> Tensor:
        """Convolve every step."""
        x = _once(input)
        out = super().forward(x.flatten(0, 1))
        return out.reshape(*x.shape[:2], *out.shape[1:]).expand(-1, input.shape[1], -1, -1, -1)


class MaxPool2d(nn.MaxPool2d):
    """``nn.MaxPool2d`` over [batch, time, C, H, W]; on spikes a same-step OR."""

    def forward(self, input: Tensor) -> Tensor:
        """Pool every step."""
        out = cast(Tensor, super().forward(input.flatten(0, 1)))
        return out.reshape(*input.shape[:2], *out.shape[1:])


class AvgPool2d(nn.AvgPool2d):
    """``nn.AvgPool2d`` over [batch, time, C, H, W]."""

    def forward(self, input: Tensor) -> Tensor:
        """Pool every step."""
        x = _once(input)
        out = super().forward(x.flatten(0, 1))
        return out.reshape(*x.shape[:2], *out.shape[1:]).expand(-1, input.shape[1], -1, -1, -1)


class Add(nn.Module):
    """The sum of its inputs, all [batch, time, ...]."""

    def forward(self, first: Tensor, *others: Tensor) -> Tensor:
        """Add up, from the first on."""
        for other in others:
            first = first + other
        return first


class Concat(nn.Module):
    """Its inputs [batch, time, C, ...] behind each other along the channels."""

    def forward(self, *inputs: Tensor) -> Tensor:
        """Join every step."""
        return torch.cat(inputs, dim=2)


class BatchNorm(nn.modules.batchnorm._BatchNorm):
    """BatchNorm over [batch, time, C, ...] with the statistics of each step, as the official code.

    In training every time step is normalised by its own batch statistics and updates the running
    ones in turn; in evaluation all steps share the running statistics. Where several processes train,
    the batch is that of all of them.
    """

    def _check_input_dim(self, input: Tensor) -> None:
        if input.dim() < 2:
            raise ValueError(f"expected [batch, C, ...], got {tuple(input.shape)}")

    def forward(self, input: Tensor) -> Tensor:
        """Normalise every step."""
        x = _once(input)
        if not self.training:
            return super().forward(x.flatten(0, 1)).reshape(x.shape).expand_as(input)
        # Each step's channels as channels of their own: one call, and nothing is copied.
        steps, channels = x.shape[1:3]
        flat, weight, bias = x.flatten(1, 2), self.weight.repeat(steps), self.bias.repeat(steps)
        if parallel.world() > 1:
            out, mean, var = parallel.batch_norm(flat, weight, bias, self.eps)
        else:
            mean, var = (x.new_zeros(steps * channels) for _ in range(2))  # 0 * NaN is NaN
            out = functional.batch_norm(
                flat, mean, var, weight, bias, training=True, momentum=1.0, eps=self.eps
            )
        for t in range(input.shape[1]):
            step = slice(t % steps * channels, (t % steps + 1) * channels)
            self._follow(mean[step], var[step])
        return out.reshape(x.shape).expand_as(input)

    def _follow(self, mean: Tensor, var: Tensor) -> None:
        """Move the running statistics towards those of a step."""
        assert self.running_mean is not None
        assert self.running_var is not None
        assert self.num_batches_tracked is not None
        assert self.momentum is not None
        self.running_mean.lerp_(mean, self.momentum)
        self.running_var.lerp_(var, self.momentum)
        self.num_batches_tracked.add_(1)


class Linear(nn.Linear):
    """``nn.Linear`` over [batch, time, ...]; what follows the time axis is flattened.

    With ``groups`` G, each of G equal parts of the outputs receives one such part of the inputs, as a
    convolution's channels do: ``weight`` is [out, in/G].
    """

    def __init__(self, inputs: int, features: int, bias: bool = True, groups: int = 1) -> None:
        super().__init__(inputs // groups, features, bias)
        self.groups = groups

    def forward(self, input: Tensor) -> Tensor:
        """Apply to every step."""
        x = input.flatten(2)
        if self.groups == 1:
            return super().forward(x)
        parts = x.reshape(*x.shape[:2], self.groups, -1)
        weight = self.weight.reshape(self.groups, -1, parts.shape[-1])
        out = torch.einsum("btgi,goi->btgo", parts, weight).flatten(2)
        return out if self.bias is None else out + self.bias

    def extra_repr(self) -> str:
        """Sizes for ``print``."""
        return f"{super().extra_repr()}, groups={self.groups}"
