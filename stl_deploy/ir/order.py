"""In which order the populations of a network run, which run together, and how deep they lie."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy.sparse import csr_array
from scipy.sparse.csgraph import connected_components

MAX_DELAY = 62  # steps


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
        if not 0 <= delay <= MAX_DELAY:
            raise ValueError(f"{key}: a delay of {delay} steps, not of 0 to {MAX_DELAY}")
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


def too_short(names: Sequence[str], ways: Sequence[tuple[str, str, int]]) -> list[list[str]]:
    """The groups of ``parts`` whose loops have more hops than steps of delay, so that no depths serve."""
    found = []
    for part in parts(names, [(source, target) for source, target, _ in ways]):
        inside = [way for way in ways if way[0] in part and way[1] in part]
        if depths([], part, inside) is None:
            found.append(part)
    return found
