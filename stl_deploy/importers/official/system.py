"""What is known of a system's class, in addition to what its files hold."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from stl_deploy.importers.official.draft import Array, At, Draft

GROUPS = "groups"  # the node that averages groups of outputs, one for each class


@dataclass(frozen=True)
class Said:
    """What a file does not say, from an option or by default.

    input: what the class receives; keep: what a step leaves of v; threshold: of v, of systems whose files do
    not say it; classes: that are read.
    """

    input: At
    keep: float
    threshold: float
    timesteps: int
    classes: int


@dataclass(frozen=True)
class System:
    """A system, as its official code has it.

    Attributes:
        neuron: its neurons, in words.
        reset: what a spike does to v; it is done in the same step.
        keep: what a step leaves of v by default.
        threshold: by default; None where files hold it.
        first: the name of the first weights among the parameters, whose inputs are the channels.
        build: adds the class to a draft, and returns its output.
        steps: T where the file says it, else None.
        notes: what else is assumed, in words.
    """

    neuron: str
    reset: str
    keep: float
    threshold: float | None
    first: Callable[[dict[str, Array]], str]
    build: Callable[[Draft, Said], At]
    steps: Callable[[dict[str, Array]], int | None] = lambda _params: None
    notes: tuple[str, ...] = ()
