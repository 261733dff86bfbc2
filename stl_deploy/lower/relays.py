"""Relays: neurons that pass spikes on a hop later, where a chip's synapses cannot wait long enough.

A connection that leads over more hops than its delay and its own hop account for has to wait
(``IntegerNetwork.waits``). A relay is an ``Or`` population behind one-to-one weights of 1: it fires in the
logical step in which its source fires, and lies one hop deeper. So a connection from it waits a step less
and keeps its delay, and no spike of the network changes. Relays of one source form a chain, which all
connections from that source share.

A population that nothing leads into needs no relays: a copy of it fires as it does, at any depth.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace

import numpy as np

from stl_deploy.chips.facts import Chip
from stl_deploy.errors import LoweringError, Problem
from stl_deploy.ir import order
from stl_deploy.ir.network import Connection, IntegerNetwork, Population
from stl_deploy.ir.neurons import Or
from stl_deploy.ir.notes import Diagnostic
from stl_deploy.ir.synapses import OneToOne
from stl_deploy.lower.options import Skips

MOST = 256  # relays of one source


def relayed(network: IntegerNetwork, chip: Chip, skips: Skips = "auto") -> IntegerNetwork:
    """``network`` with relays for what the synapses of ``chip`` do not wait.

    With "delay" synapses wait all of it, with "relay" nothing, with "auto" as much as the chip allows, and
    then a note says which relays there are. A chip whose delays have no limit, as ``ideal``, gets relays only
    where they are asked for.

    Raises:
        LoweringError: a loop with fewer steps of delay than hops, a wait longer than the chip's with
            "delay", values other than spikes that would need a relay, or more than ``MOST`` relays; all
            problems at once.
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
    if wrong := [*_graded(network, hops, skips), *_long(network, hops, longest, chip)]:
        raise LoweringError(wrong)
    if not any(hops.values()):
        return network
    made = _Relays(network, hops).network()
    notes = () if skips == "relay" else tuple(_notes(network, hops, longest, chip))
    return replace(made, diagnostics=(*made.diagnostics, *notes))


def _loops(network: IntegerNetwork) -> Iterator[Problem]:
    """Why a chip that needs no depths cannot have relays."""
    ways = [(c.source, c.target, c.delay) for c in network.connections]
    for loop in order.short_loops(list(network.by_name), ways):
        what = f"{loop.what}, and relays are a hop each"
        longer = f"lengthen the delay of {network.connections[loop.way].words} by {loop.missing}"
        yield Problem(", ".join(loop.names), what, f"use --skips auto, or {longer}")


def _graded(
    network: IntegerNetwork, hops: dict[tuple[str, str, str], int], skips: Skips
) -> Iterator[Problem]:
    instead = "use --skips auto" if skips == "relay" else "use --chip ideal"
    for c in network.connections:
        low, high = network.span(c.source)
        if hops[c.key] and (low, high) != (0, 1):
            what = f"waits {network.waits(c)} steps, and a relay passes on spikes, not values {low} to {high}"
            yield Problem(c.words, what, f"{instead}, or encode the input as spikes")


def _long(
    network: IntegerNetwork, hops: dict[tuple[str, str, str], int], longest: int, chip: Chip
) -> Iterator[Problem]:
    for c in network.connections:
        if hops[c.key] > MOST:
            what = (
                f"spikes wait {network.waits(c):,} steps; {_held(longest, chip)}, and {hops[c.key]:,} "
                f"relays are more than {MOST}"
            )
            yield Problem(c.words, what, "shorten the delay, or use --chip ideal with --skips auto")


def _notes(
    network: IntegerNetwork, hops: dict[tuple[str, str, str], int], longest: int, chip: Chip
) -> Iterator[Diagnostic]:
    """Which sources have relays, and why."""
    for name in [*network.inputs, *network.by_name]:
        ways = [c for c in network.out_of(name) if hops[c.key]]
        if not ways:
            continue
        copied = name in network.by_name and not network.into(name)
        count = len({hops[c.key] for c in ways}) if copied else max(hops[c.key] for c in ways)
        targets = ", ".join(dict.fromkeys(c.target for c in ways))
        neurons = count * math.prod(network.shape(name))
        kind = "copies of it" if copied else "relays"
        added = (
            f"{count} populations of {kind} pass" if count > 1 else f"a population of {kind} passes"
        )
        yield Diagnostic(
            f"{name} to {targets}",
            f"spikes wait up to {max(network.waits(c) for c in ways)} steps; {_held(longest, chip)}. "
            f"{added} them on ({neurons:,} more neurons)",
        )


def _held(longest: int, chip: Chip) -> str:
    """What the synapses of ``chip`` wait at most, in words."""
    if not longest:
        return (
            f"{chip.name} has no synaptic delays" if not chip.delay_max else "no synapse is to wait"
        )
    return f"synapses of {chip.name} wait at most {longest}"


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
