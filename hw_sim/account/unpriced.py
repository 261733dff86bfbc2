"""What a run takes that no energy model prices, and what an energy model prices without a figure for it.

Nobody has published what it costs a chip, in energy or in time, that a host reads v, and no energy model here
has a host. Energy models know one kind of neuron each: rules that a chip does not have, or has only if
somebody writes a program for them, are priced like neurons without them.
"""

from __future__ import annotations

from dataclasses import dataclass

from stl_deploy.chips import rules
from stl_deploy.chips.facts import Chip
from stl_deploy.ir.network import IntegerNetwork


@dataclass(frozen=True)
class Unpriced:
    """What figures of energy and time leave out or take for granted, in words; empty where nothing.

    Attributes:
        left_out: what a run takes per inference that the figures do not contain.
        unable: what the network asks of the energy model's chip that it does not do.
        assumed: rules of neurons, by population, for which the chip needs a program of its own.
    """

    left_out: tuple[str, ...]
    unable: tuple[str, ...]
    assumed: tuple[str, ...]

    @property
    def in_a_word(self) -> str:
        """What the figures are worth for the chip's neurons; empty where it runs the network as it is."""
        return "not on this chip" if self.unable else "assumed" if self.assumed else ""


def of(network: IntegerNetwork, chip: Chip) -> Unpriced:
    """What is to be said of energy and time of ``network`` on ``chip``, for which it need not be made."""
    by_words: dict[tuple[str, ...], list[str]] = {}
    for name, words in rules.assumed(network, chip).items():
        by_words.setdefault(tuple(words), []).append(name)
    return Unpriced(
        left_out=tuple(_left_out(network)),
        unable=tuple(rules.unable(network, chip)),
        assumed=tuple(
            f"{', '.join(names)}: {', '.join(words)}" for words, names in by_words.items()
        ),
    )


def reads(network: IntegerNetwork) -> int:
    """How often the host reads a v per inference."""
    readout = network.readout
    return readout.reads(network.timesteps) * network.size(readout.source)


def _left_out(network: IntegerNetwork) -> list[str]:
    readout, count = network.readout, reads(network)
    found = [f"{count:,} reads of v of {readout.source} by the host"] if count else []
    if readout.matrix is not None:
        found.append(f"{readout.matrix.size:,} multiplications of the readout's matrix on the host")
    return found
