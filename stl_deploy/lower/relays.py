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

import numpy as np

from stl_deploy.chips.facts import Chip
from stl_deploy.errors import LoweringError, Problem
from stl_deploy.ir import order
from stl_deploy.ir.network import Connection, IntegerNetwork, Population
from stl_deploy.ir.neurons import Or
from stl_deploy.ir.synapses import OneToOne
from stl_deploy.lower.options import Skips


def relayed(network: IntegerNetwork, chip: Chip, skips: Skips = "auto") -> IntegerNetwork:
    """``network`` with relays for what the synapses of ``chip`` do not wait.

    With "delay" synapses wait all of it, with "relay" nothing, with "auto" as much as the chip allows. A
    chip whose delays have no limit, as ``ideal``, gets relays only where they are asked for.

    Raises:
        LoweringError: a loop with fewer steps of delay than hops, a wait longer than the chip's with
            "delay", or values other than spikes that would need a relay; all problems at once.
    """
    asked = skips == "delay" or network.depth is None
    if asked and (problems := chip.delay_problems(network)):
        raise LoweringError(problems)
    if skips == "relay" and network.depth is None:
        raise LoweringError(list(_loops(network)))
    longest = 0 if skips == "relay" else chip.delay_max
    if longest is None:
        return network
    hops = {c.key: max(0, network.waits(c) - longest) for c in network.connections}
    if graded := list(_graded(network, hops, skips)):
        raise LoweringError(graded)
    return _Relays(network, hops).network() if any(hops.values()) else network


def _loops(network: IntegerNetwork) -> Iterator[Problem]:
    """Why a chip that needs no depths cannot have relays."""
    ways = [(c.source, c.target, c.delay) for c in network.connections]
    for loop in order.too_short(list(network.by_name), ways):
        what = "a loop has fewer steps of delay than hops, and relays are a hop each"
        yield Problem(", ".join(loop), what, "use --skips auto, or lengthen the delays on its way")


def _graded(
    network: IntegerNetwork, hops: dict[tuple[str, str, str], int], skips: Skips
) -> Iterator[Problem]:
    instead = "use --skips auto" if skips == "relay" else "use --chip ideal"
    for c in network.connections:
        low, high = network.span(c.source)
        if hops[c.key] and (low, high) != (0, 1):
            where, waits = f"{c.name} ({c.source} to {c.target})", network.waits(c)
            what = f"waits {waits} steps, and a relay passes on spikes, not values {low} to {high}"
            yield Problem(where, what, f"{instead}, or encode the input as spikes")


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
