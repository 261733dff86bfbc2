"""Relays: neurons that pass spikes on a hop later, where a chip's synapses cannot wait long enough.

A connection that leads over more hops than its delay and its own hop account for has to wait
(``IntegerNetwork.waits``). A relay is an ``Or`` population behind one-to-one weights of 1: it fires in the
logical step in which its source fires, and lies one hop deeper. So a connection from it waits a step less
and keeps its delay, and no spike of the network changes. Relays of one source form a chain, which all
connections from that source share.

A population that nothing leads into needs no relays: a copy of it fires as it does, at any depth.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Literal, get_args

import numpy as np

from stl_deploy.chips.facts import Chip
from stl_deploy.errors import LoweringError, Problem
from stl_deploy.ir import order
from stl_deploy.ir.network import Connection, IntegerNetwork, Population
from stl_deploy.ir.neurons import Or
from stl_deploy.ir.synapses import OneToOne

Skips = Literal["auto", "delay", "relay"]
SKIPS: tuple[Skips, ...] = get_args(Skips)


def relayed(network: IntegerNetwork, chip: Chip, skips: Skips = "auto") -> IntegerNetwork:
    """``network`` with relays for what the synapses of ``chip`` do not wait.

    With "delay" synapses wait all of it, with "relay" nothing, with "auto" as much as the chip allows. A
    chip without hops, as ``ideal``, gets relays only where they are asked for.

    Raises:
        LoweringError: a loop with fewer steps of delay than hops, a wait longer than the chip's with
            "delay", or values other than spikes that would need a relay; all problems at once.
    """
    longest = longest_delay(chip)
    if longest is None and skips != "relay":
        return network
    if loops := list(_loops(network, chip)):
        raise LoweringError(loops)
    most = 0 if skips == "relay" or longest is None else longest
    hops = {c.key: max(0, network.waits(c) - most) for c in network.connections}
    if problems := list(_problems(network, chip, most, hops, skips)):
        raise LoweringError(problems)
    return _Relays(network, hops).network() if any(hops.values()) else network


def longest_delay(chip: Chip) -> int | None:
    """Steps that a synapse of ``chip`` can wait besides its hop; None without a limit."""
    return None if chip.arithmetic == "unbounded" else order.MAX_DELAY


def _loops(network: IntegerNetwork, chip: Chip) -> Iterator[Problem]:
    ways = [(c.source, c.target, c.delay) for c in network.connections]
    other = "use --skips auto" if longest_delay(chip) is None else "use --chip ideal"
    for loop in order.too_short(list(network.by_name), ways):
        what = "a loop with fewer steps of delay than hops, and each hop takes a step"
        yield Problem(", ".join(loop), what, f"{other}, or delay a connection of the loop")


def _problems(
    network: IntegerNetwork,
    chip: Chip,
    most: int,
    hops: dict[tuple[str, str, str], int],
    skips: Skips,
) -> Iterator[Problem]:
    for c in network.connections:
        if not hops[c.key]:
            continue
        where, waits = f"{c.name} ({c.source} to {c.target})", network.waits(c)
        if skips == "delay":
            what = f"waits {waits} steps; a synapse of {chip.title} waits at most {most}"
            yield Problem(where, what, "use --skips auto")
        elif network.span(c.source) != (0, 1):
            low, high = network.span(c.source)
            what = f"waits {waits} steps, and a relay passes on spikes, not values {low} to {high}"
            remedy = "use --skips auto" if skips == "relay" else "use --chip ideal"
            yield Problem(where, what, f"{remedy}, or encode the input as spikes")


class _Relays:
    """``network`` with a chain of ``hops`` relays, by the key of a connection, for each source."""

    def __init__(self, network: IntegerNetwork, hops: dict[tuple[str, str, str], int]) -> None:
        self.given, self.hops = network, hops
        names = {name for c in network.connections for name in (c.name, c.source, c.target)}
        self.taken = names | set(network.inputs) | set(network.by_name)

    def network(self) -> IntegerNetwork:
        """The network; relays stand directly behind their source."""
        populations: list[Population] = []
        connections: list[Connection] = []
        # Where the connections of each source start, by the number of hops that they leave to relays.
        starts: dict[str, dict[int, str]] = {}
        for name in [*self.given.inputs, *self.given.by_name]:
            if name in self.given.by_name:
                populations.append(self.given.by_name[name])
            found = sorted({self.hops[c.key] for c in self.given.out_of(name)} - {0})
            starts[name] = {0: name}
            if found and name in self.given.by_name and not self.given.into(name):
                for i, count in enumerate(found, 1):
                    copy = replace(self.given.by_name[name], name=self._name(f"{name}_relay{i}"))
                    populations.append(copy)
                    starts[name][count] = copy.name
                continue
            for i in range(1, max(found, default=0) + 1):
                relay = Population(self._name(f"{name}_relay{i}"), self.given.shape(name), Or())
                weights = OneToOne(np.ones(relay.size, np.int8))
                way = self._name(f"{relay.name}_w"), starts[name][i - 1], relay.name
                populations.append(relay)
                connections.append(Connection(*way, weights, bits=1))
                starts[name][i] = relay.name
        connections += [
            replace(c, source=starts[c.source][self.hops[c.key]]) for c in self.given.connections
        ]
        return replace(
            self.given,
            populations=tuple(populations),
            connections=tuple(connections),
            placement=None,
        )

    def _name(self, wanted: str) -> str:
        """``wanted``, or that with something behind it, as no other name is."""
        while wanted in self.taken:
            wanted += "_"
        self.taken.add(wanted)
        return wanted
