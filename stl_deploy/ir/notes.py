"""What accompanies an integer network without changing what it computes: precision, placement, notes."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from stl_deploy.errors import Problem


@dataclass(frozen=True)
class Precision:
    """How a layer's overflow was settled and what precision its weights kept.

    ``mode`` is "proven" (no input can overflow) or "checked" (some could; hw_sim flags it).
    ``effective_bits`` is that of the worst channel; ``worst_sum`` the largest |a_in| any input can
    reach and ``limit`` what the chip holds (None: no limit). ``calibrated`` is the number of inputs that
    weights, bias and thresholds were fitted to, 0 where they are rounded each for itself.
    ``connections`` are the effective bits of each connection, where several lead into the population: by
    the name of the weights, with the source behind it in parentheses where the name stands for several.
    """

    mode: Literal["proven", "checked"]
    effective_bits: float
    worst_sum: int
    limit: int | None
    calibrated: int = 0
    connections: dict[str, float] = field(default_factory=dict)


Lowering = Literal["native", "fold", "grouped"]


@dataclass(frozen=True)
class Rounding:
    """What ``grouped`` did to a layer's thresholds.

    ``changed`` is the fraction of neurons whose vth moved, ``mean`` and ``largest`` the change
    relative to vth + 1, over all neurons.
    """

    changed: float
    mean: float
    largest: float


@dataclass(frozen=True)
class Diagnostic:
    """Something the user should know that is not an error."""

    where: str
    what: str
    remedy: str = ""


Limit = Literal["compartments", "synapse_bytes", "in_axons", "out_axons", "thresholds", "decays"]


@dataclass(frozen=True)
class LayerPlacement:
    """The cores of one population (see ``placement.py``).

    Attributes:
        first_core: number of its first core; the others follow.
        blocks: neurons on each core, dealt position by position and at each channel by channel.
        bound_by: the limit that ended most blocks, None where none ended before the population did.
        fullest: of each limit, what the core needs that needs most of it.
        total: the same over all cores, without thresholds and decays, of which cores may share values.
        order: the neurons, as numbered in the order of ``wiring.py``, as they are laid onto the
            cores; None where they are taken as they come.
    """

    first_core: int
    blocks: tuple[int, ...]
    bound_by: Limit | None
    fullest: dict[Limit, int]
    total: dict[Limit, int]
    order: tuple[int, ...] | None = None

    @property
    def cores(self) -> int:
        """How many cores the population takes."""
        return len(self.blocks)


@dataclass(frozen=True)
class Placement:
    """Where a network lies on ``chip``: ``layers`` are its populations by name, in order.

    ``beyond`` lists what no core could hold and delays that the chip does not have, all of which
    ``quantize`` refuses.
    """

    chip: str
    layers: dict[str, LayerPlacement]
    cores: int
    tiles: int
    chips: int
    beyond: tuple[Problem, ...] = ()
