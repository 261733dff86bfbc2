"""Neurons of the integer network: their parameters, for all of a population or for each neuron.

A parameter is a number, or an array that broadcasts to the population's shape: [C, 1, 1] holds one value for
each channel of a population [C, H, W]. What a step does with them is in ``hw_sim/reference.py``. A further
kind is a further class here; the tables of those who carry populations are keyed by ``kind``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

from stl_deploy.ir.units import DECAY_ONE, FORGETS, FRACTION_BITS

Reset = Literal["zero", "subtract"]
Each = int | NDArray[np.int32]  # one for all neurons, or broadcastable to the population


@dataclass(frozen=True, eq=False)
class Lif:
    """Leaky integrate-and-fire neurons, with a current (CUBA) where ``du`` is less than 4095.

    Attributes:
        vth: int32 of the population's shape; a neuron fires where v > vth << 6.
        bias_mant, bias_exp: mant << exp is added to v in every step.
        scale: float64, the float value of 64 units of v (of one unit of vth).
        du, dv: decay constants of current and voltage, 0..4095.
        reset: what a spike does to v: "zero", or "subtract" vth << 6.
    """

    vth: NDArray[np.int32]
    bias_mant: NDArray[np.int32]
    scale: NDArray[np.float64]
    bias_exp: int = FRACTION_BITS
    du: Each = FORGETS
    dv: Each = DECAY_ONE // 2
    reset: Reset = "zero"

    kind: ClassVar[Literal["lif"]] = "lif"

    @property
    def bias(self) -> NDArray[np.int64]:
        """What is added to v every step, broadcastable to the population."""
        return self.bias_mant.astype(np.int64) << self.bias_exp

    @property
    def has_current(self) -> bool:
        """Whether any neuron remembers a current from step to step."""
        return bool(np.any(np.asarray(self.du) != FORGETS))


@dataclass(frozen=True, eq=False)
class Or:
    """Neurons that fire where anything arrives and forget it: what max pooling of spikes ends in.

    They answer as the ``Lif`` that they are on a chip: a threshold of zero, and nothing kept.
    """

    kind: ClassVar[Literal["or"]] = "or"
    bias_exp: ClassVar[int] = FRACTION_BITS
    du: ClassVar[int] = FORGETS
    dv: ClassVar[int] = FORGETS
    reset: ClassVar[Reset] = "zero"
    has_current: ClassVar[bool] = False

    @property
    def vth(self) -> NDArray[np.int32]:
        """Zero for all."""
        return np.zeros((), np.int32)

    @property
    def bias_mant(self) -> NDArray[np.int32]:
        """Zero for all."""
        return np.zeros((), np.int32)

    @property
    def bias(self) -> NDArray[np.int64]:
        """Zero for all."""
        return np.zeros((), np.int64)

    @property
    def scale(self) -> NDArray[np.float64]:
        """One for all."""
        return np.ones(())


Neurons = Lif | Or


def shared(values: Any) -> int | None:
    """The value that all neurons have, or None where they differ."""
    flat = np.asarray(values).reshape(-1)
    return int(flat[0]) if (flat == flat[0]).all() else None


def by_channel(values: Any, shape: tuple[int, ...]) -> NDArray[Any]:
    """One value for each channel [C] of a population of ``shape``.

    Raises ValueError where they differ within a channel.
    """
    full = np.broadcast_to(values, shape).reshape(shape[0], -1)
    if (full != full[:, :1]).any():
        raise ValueError("differs between the neurons of a channel")
    return full[:, 0].copy()


def of_channels(values: NDArray[Any], shape: tuple[int, ...]) -> NDArray[Any]:
    """Values [C] of the channels, or [neurons] of the neurons, broadcastable to ``shape``."""
    if len(values) == shape[0]:
        return values.reshape(-1, *[1] * (len(shape) - 1))
    return values.reshape(shape)
