"""In which order the populations of a network run, which run together, and how deep they lie."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy.sparse import csr_array
from scipy.sparse.csgraph import connected_components

from stl_deploy.errors import Problem
from stl_deploy.ir.units import MAX_STEPS

MOST_LOOPS = 16  # that are named at once


def check(
    inputs: Sequence[str],
    populations: Sequence[str],
    connections: Sequence[tuple[tuple[str, ...], str, str, int]],
) -> None:
    """Raise ValueError for names that are missing or stand twice, and for ways that no order serves.

    ``connections`` are (key, source, target, delay).
    """
    names = [*inputs, *populations]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ValueError(f"{', '.join(twice)}: the name of two inputs or populations")
    place = {name: i for i, name in enumerate(names)}
    keys = [key for key, *_ in connections]
    for key, source, target, delay in connections:
        if keys.count(key) > 1:
            raise ValueError(f"{key}: two connections of this name between these two")
        if source not in place or target not in populations:
            raise ValueError(f"{key}: leads from {source} to {target}, which are not both there")
        if not 0 <= delay <= MAX_STEPS:
            raise ValueError(f"{key}: a delay of {delay} steps, not of 0 to {MAX_STEPS}")
        if delay == 0 and place[source] >= place[target]:
            raise ValueError(f"{key}: leads back from {source} to {target} without a delay")


def parts(names: Sequence[str], ways: Sequence[tuple[str, str]]) -> list[list[str]]:
    """``names`` in groups as small as can be; ways lead into a group from itself or groups before it.

    Those of a group are in the order of ``names``.
    """
    place = {name: i for i, name in enumerate(names)}
    inside = [(place[a], place[b]) for a, b in ways if a in place and b in place]
    rows, columns = zip(*inside, strict=True) if inside else ((), ())
    matrix = csr_array((np.ones(len(inside)), (rows, columns)), shape=(len(names), len(names)))
    _, group = connected_components(matrix, directed=True, connection="strong")
    members: dict[int, list[str]] = {}
    for name, number in zip(names, group.tolist(), strict=True):
        members.setdefault(number, []).append(name)
    before: dict[int, set[int]] = {number: set() for number in members}
    for a, b in inside:
        if group[a] != group[b]:
            before[int(group[b])].add(int(group[a]))
    found: list[list[str]] = []
    done: set[int] = set()
    left = list(members)  # by their first member
    while left:
        ready = next(number for number in left if before[number] <= done)
        left.remove(ready)
        done.add(ready)
        found.append(members[ready])
    return found


def depths(
    inputs: Sequence[str], populations: Sequence[str], ways: Sequence[tuple[str, str, int]]
) -> dict[str, int] | None:
    """The least depths, from 1 on, of which no way (source, target, delay) climbs by more than it waits.

    That is, ``depth[target] >= depth[source] + 1 - delay``; inputs have depth 0. None where a loop has more
    hops than steps of delay. A population without incoming ways lies just above the first that it leads to.
    """
    depth = dict.fromkeys(inputs, 0) | dict.fromkeys(populations, 1)
    for _ in range(len(populations) + 1):
        changed = False
        for source, target, delay in ways:
            least = depth[source] + 1 - delay
            if depth[target] < least:
                depth[target] = least
                changed = True
        if not changed:
            break
    else:
        return None
    hears = {target for _, target, _ in ways}
    for name in reversed(populations):
        heard = [depth[target] - 1 + delay for source, target, delay in ways if source == name]
        if name not in hears and heard:
            depth[name] = max(1, min(heard))
    return depth


class ShortLoop(NamedTuple):
    """A loop with more hops than steps of delay.

    names: its populations, the first one first and then as spikes go; delay: its steps of delay; way: which
    of the ways waits longest, so that it would have to wait ``missing`` steps more.
    """

    names: tuple[str, ...]
    delay: int
    way: int

    @property
    def missing(self) -> int:
        """Steps of delay that it lacks."""
        return len(self.names) - self.delay

    @property
    def what(self) -> str:
        """The loop in words, a hop for each population."""
        hops, steps = len(self.names), self.delay
        return (
            f"a loop of {hops} hop{'s' if hops > 1 else ''} has {steps} step{'s' if steps != 1 else ''} "
            "of delay"
        )


def short_loops(names: Sequence[str], ways: Sequence[tuple[str, str, int]]) -> list[ShortLoop]:
    """Loops of which no depths serve. If all are given what they miss, depths serve, where few were found.

    At most ``MOST_LOOPS`` are found.
    """
    waits = list(ways)
    found: list[ShortLoop] = []
    while len(found) < MOST_LOOPS and (loop := _short_loop(names, waits)) is not None:
        found.append(loop)
        source, target, delay = waits[loop.way]
        waits[loop.way] = source, target, delay + loop.missing
    return found


def at_once(names: Sequence[str], ways: Sequence[tuple[str, str]]) -> list[Problem]:
    """What is wrong with loops of ``ways``, none of which has a delay."""
    return [
        Problem(
            ", ".join(loop.names),
            "is a loop without a delay, so that nothing says whose spikes come first",
            f"put a Delay on the way back: of 1 step for --chip ideal, of {loop.missing} for other chips",
        )
        for loop in short_loops(names, [(source, target, 0) for source, target in ways])
    ]


def _short_loop(names: Sequence[str], ways: Sequence[tuple[str, str, int]]) -> ShortLoop | None:
    """One of the loops, found as a cycle of positive gain is by Bellman and Ford."""
    depth = dict.fromkeys(names, 0)
    inside = [i for i, way in enumerate(ways) if way[0] in depth and way[1] in depth]
    by: dict[str, int] = {}
    raised: str | None = None
    for _ in range(len(names) + 1):
        raised = None
        for i in inside:
            source, target, delay = ways[i]
            if depth[target] < depth[source] + 1 - delay:
                depth[target] = depth[source] + 1 - delay
                by[target], raised = i, target
        if raised is None:
            return None
    assert raised is not None
    for _ in names:  # from there back into the loop
        raised = ways[by[raised]][0]
    loop = [by[raised]]
    while ways[loop[-1]][0] != raised:
        loop.append(by[ways[loop[-1]][0]])
    loop.reverse()
    longest = max(loop, key=lambda i: ways[i][2])
    populations = [ways[i][0] for i in loop]
    first = min(range(len(loop)), key=lambda i: names.index(populations[i]))
    in_order = (*populations[first:], *populations[:first])
    return ShortLoop(in_order, sum(ways[i][2] for i in loop), longest)
