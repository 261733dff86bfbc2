"""Neurons of the integer network: their parameters, for all of a population or for each neuron.

A parameter is a number, or an array that broadcasts to the population's shape: [C, 1, 1] holds one value for
each channel of a population [C, H, W]. What a step does with them is in ``hw_sim/reference.py``. A further
kind is a further class here; the tables of those who carry populations are keyed by ``kind``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from stl_deploy.ir.units import DECAY_ONE, FORGETS, FRACTION_BITS, MAX_SIGNED

Reset = Literal["zero", "subtract", "constant", "none"]
Each = int | NDArray[np.int32]  # one for all neurons, or broadcastable to the population
ONCE = -1  # as ``hold``: a neuron that spiked rests for the remaining steps
MAX_HOLD = 63  # steps
MAX_SHIFT = 23  # bits by which a graded value may be shifted
# The lowest and the highest value of fields that everything but a table of the chip leaves alone.
RANGES = {
    **dict.fromkeys(("v_reset", "floor", "adapt", "v0"), (-(1 << 31), (1 << 31) - 1)),
    **dict.fromkeys(("dq", "du2"), (0, FORGETS)),
    "hold": (ONCE, MAX_HOLD),
}


@dataclass(frozen=True)
class Graded:
    """Values that neurons send instead of spikes: shifted right by ``shift``, cut off at ``levels``.

    Raises ValueError for what no connection can carry.
    """

    shift: int
    levels: int

    def __post_init__(self) -> None:
        """See the class."""
        if not 0 <= self.shift <= MAX_SHIFT or not 1 <= self.levels <= MAX_SIGNED:
            raise ValueError(
                f"a shift of {self.shift} and {self.levels} levels; 0 to {MAX_SHIFT} bits and 1 to "
                f"{MAX_SIGNED} levels are possible"
            )


@dataclass(frozen=True, eq=False)
class Lif:
    """Leaky integrate-and-fire neurons, with a current (CUBA) where ``du`` is less than 4095.

    Values "of v" count 1/64 of a unit of ``vth``. docs/numerics.md has the order of operations.

    Attributes:
        vth: int32 of the population's shape; a neuron fires where v > vth << 6.
        bias_mant, bias_exp: mant << exp is added to v in every step.
        scale: float64, the float value of 64 units of v (of one unit of vth).
        du, dv: decay constants of current and voltage, 0..4095.
        reset: what a spike does to v: "zero"; "subtract" vth << 6; "constant", to ``v_reset``; "none".
        v_reset: of v, where the reset is "constant".
        fires: whether there is a threshold; without one ``vth``, ``reset`` and what belongs to spikes mean
            nothing.
        reset_current: whether a spike sets the currents to 0 too.
        hold: steps after a spike in which v rests at what the reset left and does not fire, while currents
            run on; ``ONCE`` for all steps that are left.
        floor: of v, which is no less before the threshold; None for no floor.
        adapt, dq: a spike adds ``adapt``, of v, to q, which is added to the threshold from the next step on
            and decays by ``dq``.
        du2: decay of a second current, which connections of port 1 feed; None where there is none.
        gain: int16 [T, ...], 4096 for 1, of what arrives in each step, bias included; None for no gain.
            What stands behind T broadcasts to the population's shape.
        v0: of v, before the first step.
        graded: sends v, before the reset, where it spikes; without a threshold the sum that arrives, in every
            step. None for spikes, and for nothing without a threshold.
    """

    vth: NDArray[np.int32]
    bias_mant: NDArray[np.int32]
    scale: NDArray[np.float64]
    bias_exp: int = FRACTION_BITS
    du: Each = FORGETS
    dv: Each = DECAY_ONE // 2
    reset: Reset = "zero"
    v_reset: Each = 0
    fires: bool = True
    reset_current: bool = False
    hold: int = 0
    floor: Each | None = None
    adapt: Each = 0
    dq: Each = 0
    du2: Each | None = None
    gain: NDArray[np.int16] | None = None
    v0: Each = 0
    graded: Graded | None = None

    kind: ClassVar[Literal["lif"]] = "lif"

    def __post_init__(self) -> None:
        """Raise ValueError for values that no such neurons have."""
        wrong = [] if self.reset in get_args(Reset) else [f"no reset is called {self.reset!r}"]
        for name, (low, high) in RANGES.items():
            value = getattr(self, name)
            if value is None:
                continue
            least, most = int(np.min(value)), int(np.max(value))
            if least < low or most > high:
                wrong.append(f"{name} {least if least < low else most}, not {low}..{high}")
        if self.gain is not None and (self.gain.dtype != np.int16 or self.gain.ndim == 0):
            wrong.append(f"gain {self.gain.dtype} {list(self.gain.shape)}, not int16 [T, ...]")
        if wrong:
            raise ValueError("; ".join(wrong))

    @property
    def bias(self) -> NDArray[np.int64]:
        """What is added to v every step, broadcastable to the population."""
        return self.bias_mant.astype(np.int64) << self.bias_exp

    @property
    def has_current(self) -> bool:
        """Whether any neuron remembers a current from step to step."""
        return self.du2 is not None or bool(np.any(np.asarray(self.du) != FORGETS))

    @property
    def adapts(self) -> bool:
        """Whether thresholds move."""
        return bool(np.any(np.asarray(self.adapt) != 0))

    @property
    def decays(self) -> dict[str, Each]:
        """The decay constants of its states, by field."""
        found = {"du": self.du, "dv": self.dv}
        found |= {} if self.du2 is None else {"du2": self.du2}
        return found | ({"dq": self.dq} if self.fires and self.adapts else {})

    @property
    def states(self) -> tuple[str, ...]:
        """The states that are neither u nor v: ``u2``, ``q``, and ``rest``, the steps left to rest."""
        there = {"u2": self.du2 is not None, "q": self.adapts, "rest": self.hold != 0}
        return tuple(name for name, used in there.items() if used)

    @property
    def span(self) -> tuple[int, int]:
        """The lowest and the highest value that a neuron sends."""
        if self.graded is None:
            return 0, int(self.fires)
        above = (
            self.fires and bool((self.vth >= 0).all()) and bool(np.all(np.asarray(self.adapt) >= 0))
        )
        lowest = 0 if above else -self.graded.levels
        return lowest, self.graded.levels


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
    v_reset: ClassVar[int] = 0
    fires: ClassVar[bool] = True
    reset_current: ClassVar[bool] = False
    hold: ClassVar[int] = 0
    floor: ClassVar[None] = None
    adapt: ClassVar[int] = 0
    dq: ClassVar[int] = 0
    adapts: ClassVar[bool] = False
    du2: ClassVar[None] = None
    gain: ClassVar[None] = None
    v0: ClassVar[int] = 0
    graded: ClassVar[None] = None
    states: ClassVar[tuple[str, ...]] = ()
    decays: ClassVar[dict[str, Each]] = {"du": FORGETS, "dv": FORGETS}
    span: ClassVar[tuple[int, int]] = (0, 1)

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


def misfit(neurons: Neurons, shape: tuple[int, ...], timesteps: int) -> str | None:
    """Why a population of ``shape`` cannot have these neurons for so many steps; None where it can."""
    sizes = {name: np.shape(getattr(neurons, name)) for name in (*RANGES, "du", "dv")}
    if neurons.gain is not None:
        sizes["gain"] = neurons.gain.shape[1:]
        if len(neurons.gain) < timesteps:
            return f"a gain for {len(neurons.gain)} steps; {timesteps} are needed"
    for name, size in sizes.items():
        wide = len(size) > len(shape) or any(
            n not in (1, m) for n, m in zip(size[::-1], shape[::-1], strict=False)
        )
        if wide:
            return f"{name} {list(size)} does not broadcast to neurons {list(shape)}"
    return None


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
