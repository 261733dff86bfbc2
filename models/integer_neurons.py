"""Neurons with further rules that count in whole numbers, as ``hw_sim/reference.py`` defines them.

They equal the definition bit for bit where no register overflows. States count 1/64 of a unit of the
threshold, gains 1/4096, and what a step leaves of a state is truncated toward zero. Whole numbers up to 2^53
are exact in the float64 that they are computed in. Gradients are those of the float neurons they stand for:
truncation passes them as they are, and a spike has its surrogate in the units of floating point.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from stl_deploy.ir.arch_neurons import NeuronRules
from stl_deploy.ir.neurons import Lif
from stl_deploy.ir.units import DECAY_ONE, UNIT
from stl_deploy.models.layers import IntegerLIF
from stl_deploy.models.neurons import Neurons, Shape, Spike

Float = NDArray[np.float64]


def make(rules: NeuronRules, shape: Shape, timesteps: int) -> IntegerLIF | IntegerNeurons:
    """The module of neurons with ``rules``."""
    if rules.plain:
        return IntegerLIF(shape, rules.tau)
    return IntegerNeurons(rules, shape, timesteps)


class IntegerNeurons(Neurons):
    """A population of whole numbers: ``thresh`` holds vth, ``recurrent`` weights, ``gain`` 4096 for 1.

    ``scale`` [C] is what a unit of them stands for in floating point. Of the results it changes those of
    rules that are given in floating point: a constant reset, a floor, a start, what a spike adds to the
    threshold. They are rounded to 1/64 of it.
    """

    def __init__(self, rules: NeuronRules, shape: Shape, timesteps: int) -> None:
        super().__init__(rules, shape, timesteps)
        self.register_buffer("scale", torch.ones(shape[0]))
        self.scale: Tensor
        if rules.gain:
            self.gain.data.fill_(DECAY_ONE)

    @property
    def unit(self) -> Tensor:
        """``scale``, broadcastable to the population's shape."""
        return self.scale.reshape(-1, *[1] * (len(self.shape) - 1))

    def wide(self, x: Tensor) -> Tensor:
        """See ``Neurons``."""
        return x.double()

    def received(self, x: Tensor, t: int) -> Tensor:
        """See ``Neurons``."""
        counted = UNIT * x
        return (
            _truncated(counted * (self.gain[t].double() / DECAY_ONE))
            if self.rules.gain
            else counted
        )

    def kept(self, x: Tensor, share: float) -> Tensor:
        """See ``Neurons``; ``share`` is a multiple of 1/4096."""
        return _truncated(x * share)

    def of_v(self, value: float) -> Tensor | float:
        """See ``Neurons``: the whole number nearest to it, as the quantizer rounds it."""
        return torch.round(value / self.unit.double() * UNIT)

    def limit(self) -> Tensor:
        """See ``Neurons``."""
        return UNIT * self.thresh.double()

    def spike(self, v: Tensor, limit: Tensor) -> Tensor:
        """See ``Neurons``; the threshold that v passes lies half a 1/64 above the limit."""
        slope = self.unit.double() / UNIT
        return cast(Tensor, Spike.apply(v, limit, slope, 0.5))  # type: ignore[no-untyped-call]

    def told(self, v: Tensor) -> Tensor:
        """See ``Neurons``."""
        return v * (self.unit / UNIT)


class Add(nn.Module):
    """A sum of currents and spikes; ``one`` [C] is what a spike adds, in whole units of its channel."""

    def __init__(self, shape: Shape, spikes: Sequence[bool]) -> None:
        super().__init__()
        self.spikes = tuple(spikes)
        self.register_buffer("one", torch.ones(shape[0]))
        self.one: Tensor
        self.rank = len(shape)

    def forward(self, *inputs: Tensor) -> Tensor:
        """Add up, from the first on."""
        one = self.one.reshape(-1, *[1] * (self.rank - 1))
        first, *others = (
            x * one if is_spikes else x for x, is_spikes in zip(inputs, self.spikes, strict=True)
        )
        for other in others:
            first = first + other
        return first


def record(
    rules: NeuronRules,
    unit: Float,
    vth: NDArray[np.int32],
    bias: NDArray[np.int32],
    gain: NDArray[np.int16] | None,
) -> Lif:
    """The neurons as a chip has them; ``unit`` broadcasts to the shape of ``vth``, and ``gain`` is [T]."""

    def of_v(value: float | None) -> NDArray[np.int32] | None:
        if value is None:
            return None
        limits = np.iinfo(np.int32)
        return np.clip(np.rint(value / unit * UNIT), limits.min, limits.max).astype(np.int32)

    def taken(share: float | None, more: int) -> int | None:
        return None if share is None else DECAY_ONE - round(DECAY_ONE * share) - more

    fields: dict[str, Any] = {
        "du": taken(rules.current, 1),
        "du2": taken(rules.current2, 1),
        "v_reset": of_v(rules.v_reset or None),
        "floor": of_v(rules.floor),
        "v0": of_v(rules.v0 or None),
        "adapt": of_v(rules.adapt),
        "dq": taken(rules.adapt_keep, 0),
        "gain": None if gain is None else gain.reshape(-1, *[1] * vth.ndim),
    }
    return Lif(
        vth,
        bias,
        unit,
        dv=DECAY_ONE - round(DECAY_ONE * rules.tau),
        reset=rules.reset,
        fires=rules.fires,
        reset_current=rules.reset_current,
        hold=rules.hold,
        **{name: value for name, value in fields.items() if value is not None},
    )


def _truncated(x: Tensor) -> Tensor:
    """``x`` toward zero; the gradient passes as it is."""
    return x + (x.trunc() - x).detach()
