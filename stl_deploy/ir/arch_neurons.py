"""Neurons in the description of a network: their rules, and which of them contradict each other.

One step of a neuron, in the order of ``ir/execute.py``; what has its default is left out:

    x = (I + recurrent w s[t - delay]) gain[t]
    u = current u + x;  v = tau v + u             without a current v = tau v + x
    v = max(v, floor)
    s = v >= threshold + q                        not while it holds
    v = 0 where s                                 or the reset says otherwise
    q = adapt_keep q + adapt s
"""

from __future__ import annotations

from typing import Annotated, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, model_validator

from stl_deploy.ir.neurons import MAX_HOLD, ONCE
from stl_deploy.ir.units import DECAY_ONE, FORGETS

MAX_DELAY = 62  # steps: what chips that have delays hold, for the longest of them
MAX_RECURRENT = 1 << 26  # weights [N, N] that an untrusted description may make us allocate

Finite = Annotated[float, Field(allow_inf_nan=False)]
Share = Annotated[float, Field(ge=0, le=1)]
Forgetting = Annotated[float, Field(ge=0, lt=1)]


class Recurrent(BaseModel):
    """A population's spikes arrive at itself ``delay`` steps later, through a weight [N, N].

    Dale's law: of the neurons the last ``inhibitory`` inhibit, all others excite. Weights then count by their
    magnitude alone, and what inhibits arrives at the second current where there is one. With 0 every weight
    has the sign that it was learned with.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    delay: Annotated[int, Field(ge=1, le=MAX_DELAY)] = 1
    inhibitory: Annotated[int, Field(ge=0, le=MAX_RECURRENT)] = 0


class NeuronRules(BaseModel):
    """What neurons do, for all of a population. Values of v are in the units of the threshold.

    Attributes:
        tau: what a step leaves of v; 1 for neurons without a leak.
        reset: what a spike does to v: "zero"; "subtract" the threshold; "constant", to ``v_reset``; "none".
        v_reset: of v, with the reset "constant".
        current: what a step leaves of the synaptic current; None for no current.
        reset_current: whether a spike sets the currents to 0 too.
        current2: what a step leaves of a second current, that of inhibition; None for none.
        hold: steps after a spike in which v rests and the neuron does not fire; -1 for all that are left.
        floor: of v, None for none.
        v0: of v, before the first step.
        adapt, adapt_keep: a spike adds ``adapt`` to the threshold, and a step leaves ``adapt_keep`` of that.
        gain: whether what arrives in each step is multiplied by a learned factor of that step.
        fires: False for a leaky integrator, which has no threshold, and whose v is read.
        recurrent: the population's own spikes, None where they do not come back.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=False)
    kind: Literal["lif"] = "lif"
    tau: Share = 0.5
    reset: Literal["zero", "subtract", "constant", "none"] = "zero"
    v_reset: Finite = 0.0
    current: Forgetting | None = None
    reset_current: bool = False
    current2: Forgetting | None = None
    hold: Annotated[int, Field(ge=ONCE, le=MAX_HOLD)] = 0
    floor: Finite | None = None
    v0: Finite = 0.0
    adapt: Finite | None = None
    adapt_keep: Share | None = None
    gain: bool = False
    fires: bool = True
    recurrent: Recurrent | None = None

    @model_validator(mode="after")
    def _consistent(self) -> NeuronRules:
        if wrong := contradictions(self):
            raise ValueError("; ".join(wrong))
        return self

    @property
    def plain(self) -> bool:
        """Whether they are leaky integrate-and-fire neurons with a threshold, and nothing more."""
        return all(
            getattr(self, name) == field.default
            for name, field in NeuronRules.model_fields.items()
            if name in RULES
        )

    @property
    def shared(self) -> list[str]:
        """What they learn for all of a population, rather than for each neuron."""
        return [name for name in ("gain", "recurrent") if getattr(self, name)]


# What plain neurons do without.
RULES = frozenset(NeuronRules.model_fields) - {"kind", "tau"}


def contradictions(rules: NeuronRules) -> list[str]:
    """What of the rules contradicts the others, each with its remedy."""
    lowest = "-inf" if rules.floor is None else f"{rules.floor:g}"
    found = {
        f"v_reset = {rules.v_reset:g} with reset {rules.reset!r} (set reset to 'constant', or omit it)": (
            rules.v_reset != 0 and rules.reset != "constant"
        ),
        "reset_current without current or current2 (give one of them, or omit it)": (
            rules.reset_current and rules.current is None and rules.current2 is None
        ),
        "adapt without adapt_keep (say what a step leaves of it, 1 for all)": (
            rules.adapt is not None and rules.adapt_keep is None
        ),
        "adapt_keep without adapt (say what a spike adds, or omit it)": (
            rules.adapt is None and rules.adapt_keep is not None
        ),
        f"v0 = {rules.v0:g} lies below floor = {lowest} (raise it, or lower the floor)": (
            rules.floor is not None and rules.v0 < rules.floor
        ),
        f"v_reset = {rules.v_reset:g} lies below floor = {lowest} (raise it, or lower the floor)": (
            rules.floor is not None and rules.v_reset < rules.floor
        ),
    }
    after_spikes = {
        f"reset {rules.reset!r}": rules.reset != "zero",
        "reset_current": rules.reset_current,
        "hold": rules.hold != 0,
        "adapt": rules.adapt is not None,
        "recurrent": rules.recurrent is not None,
    }
    found |= {
        f"{what} without a threshold (omit it, or set fires to true)": there and not rules.fires
        for what, there in after_spikes.items()
    }
    return [what for what, wrong in found.items() if wrong]


def misfit(rules: NeuronRules, shape: tuple[int, ...]) -> str | None:
    """Why a population of ``shape`` cannot have these rules; None where it can."""
    if rules.recurrent is None:
        return None
    if len(shape) != 1:
        return f"recurrent neurons stand behind a linear layer, not in an image {shape}"
    if shape[0] ** 2 > MAX_RECURRENT:
        return f"{shape[0]} recurrent neurons have more than {MAX_RECURRENT} weights"
    if rules.recurrent.inhibitory > shape[0]:
        return f"{rules.recurrent.inhibitory} of {shape[0]} neurons inhibit"
    return None


def parameters(
    rules: NeuronRules, shape: tuple[int, ...], timesteps: int
) -> dict[str, tuple[int, ...]]:
    """Name and shape of what a population of ``shape`` learns."""
    found: dict[str, tuple[int, ...]] = {"thresh": shape} if rules.fires else {}
    if rules.gain:
        found["gain"] = (timesteps,)
    if rules.recurrent is not None:
        found["recurrent"] = (*shape, *shape)
    return found


def signs(inputs: int, inhibitory: int) -> NDArray[np.float64]:
    """1 for each of ``inputs`` that excites, -1 for the last ``inhibitory``, which inhibit."""
    return np.where(np.arange(inputs) < inputs - inhibitory, 1.0, -1.0)


def unfit_for_integers(rules: NeuronRules) -> str:
    """Which decay no register of a chip says, "" where none."""
    # How many 1/4096 a step may leave of each.
    spans = {
        "tau": (rules.tau, 1, DECAY_ONE),
        "current": (rules.current, 0, FORGETS),
        "current2": (rules.current2, 0, FORGETS),
        "adapt_keep": (rules.adapt_keep, 1, DECAY_ONE),
    }
    return ", ".join(
        f"{name} = {value} is none of {low}/{DECAY_ONE}, {low + 1}/{DECAY_ONE}, ... {high}/{DECAY_ONE}"
        for name, (value, low, high) in spans.items()
        if value is not None and DECAY_ONE * value not in range(low, high + 1)
    )
