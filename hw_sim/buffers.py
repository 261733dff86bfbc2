"""Compiled loops of populations whose sums are added up in a buffer before their neurons step."""

# No ``from __future__ import annotations``: numba reads the functions as they are.
from typing import NamedTuple

import numpy as np

from stl_deploy.hw_sim.compiled import Array, Int, compiled, inner, merged
from stl_deploy.hw_sim.kernels import (
    Did,
    Neurons,
    Pieces,
    Wiring,
    clear,
    collect,
    count_active,
    find_events,
    list_events,
    scatter,
    update_plain,
    update_wide,
)


class Back(NamedTuple):
    """A way back: synapses that bring spikes to the current ``port`` ``delay`` steps later, times 2^exp.

    A ``delay`` of 0 stands for none. Weights are int8, with sums int16, or ``wide_weights`` int16, with sums
    int32; the others are empty. The sums ``acc`` or ``wide_acc`` [phases, accumulators] are zero.
    ``pointers`` and ``found`` are room for the list of events.
    """

    delay: Int
    exp: Int
    port: Int
    weights: Array
    wide_weights: Array
    wiring: Wiring
    pieces: Pieces
    acc: Array
    wide_acc: Array
    pointers: Array
    found: Array


@inner
def add_pieces(acc: Array, pieces: Pieces, block: int, factor: Int, sums: Array) -> None:
    """Add the sums of a block, ``acc`` [phases, accumulators], times ``factor`` to ``sums`` [neurons].

    Sums wrap in the type of ``sums``.
    """
    for phase in range(len(acc)):
        for piece in range(pieces.block_first[block], pieces.block_first[block + 1]):
            first, size, at = pieces.first[piece], pieces.length[piece], pieces.at[piece]
            part, to = acc[phase, at : at + size], sums[first : first + size]
            for i in range(size):
                to[i] += part[i] * factor


@compiled
def add_scattered(
    x: Array,
    values: Array | None,
    weights: Array,
    wiring: Wiring,
    pieces: Pieces,
    acc: Array,
    exp: int,
    first: int,
    sums: Array,
) -> None:
    """Add what inputs x [N, S, pixels, channels] bring to ``sums`` int32 [N, T, neurons].

    The first step of ``x`` is added to step ``first``, and so on. ``values`` and ``acc`` are as in
    ``run_plain``. It is known that no sum passes 32 bits.
    """
    steps, pixels = x.shape[1], x.shape[2]
    rows = x.shape[0] * steps
    pointers, channels = list_events(x, wiring, values)
    for block in range(len(pieces.block_first) - 1):
        for start in range(0, rows, len(acc)):
            some = acc[: min(len(acc), rows - start)]
            collect(wiring, weights, block, pointers, channels, values, start, pixels, some)
            for i in range(len(some)):
                n, t = (start + i) // steps, (start + i) % steps
                add_pieces(some[i], pieces, block, 1 << exp, sums[n, first + t])
            clear(some)


@compiled
def add_listed(
    x: Array, pointers: Array, neurons: Array, weights: Array, exp: int, first: int, sums: Array
) -> None:
    """Add what inputs x [N, S, inputs] bring to ``sums`` int32 [N, T, neurons].

    The first step of ``x`` is added to step ``first``, and so on. Input i has the int32 ``weights`` from
    ``pointers[i]`` to ``pointers[i+1]``, which lead to the ``neurons`` that stand there. It is known that no
    sum passes 32 bits.
    """
    for n in range(x.shape[0]):
        for t in range(x.shape[1]):
            given, to = x[n, t], sums[n, first + t]
            for i in range(len(given)):
                value = np.int64(given[i])
                if value:
                    for k in range(pointers[i], pointers[i + 1]):
                        to[neurons[k]] += (value * weights[k]) << exp


@inner
def add_own(neurons: Neurons, did: Did, n: int, t: int, sums: Array) -> None:
    """Add what the spikes of a sample's step ``t - delay`` bring their own neurons to ``sums`` [neurons]."""
    if len(neurons.own) and t >= neurons.delay:
        fired = did.spikes[n, t - neurons.delay]
        for i in range(len(neurons.own)):
            sums[i] += neurons.own[i] * fired[i]


@compiled
def sums_plain(sums: Array, neurons: Neurons, active: Array, v: Array, did: Did) -> None:
    """Run a population of one block whose sums int32 [N, T, 1, accumulators] are known by the plain step.

    ``active`` uint8 [T, neurons] and ``v`` int32 [2, neurons] are scratch.
    """
    steps = sums.shape[1]
    for n in range(len(sums)):
        update_plain(neurons, 0, sums[n], v, did, n * steps, active)
        for t in range(steps):
            count_active(neurons, 0, active[t], did.active[n, t])


@compiled
def sums_wide(
    sums: Array,
    neurons: Neurons,
    first: int,
    last: int,
    active: Array,
    u: Array,
    v: Array,
    did: Did,
) -> None:
    """Run the steps ``first`` to ``last`` of a population of one block, by a step for any neurons.

    ``sums`` [N, T, neurons] are known but for what neurons send themselves by ``own``, int32 where all fit
    and else int64. ``u`` and ``v`` int64 [N, neurons] are left for the next step; ``active`` uint8 [neurons]
    is scratch.
    """
    steps = did.spikes.shape[1]
    for n in range(len(sums)):
        for t in range(first, last):
            add_own(neurons, did, n, t, sums[n, t])
            update_wide(neurons, 0, sums[n, t], u[n], v[n], did, n * steps + t, active)
            count_active(neurons, 0, active, did.active[n, t])


@inner
def bring(back: Back, weights: Array, acc: Array, sums: Array) -> None:
    """Add what the listed events bring by weights of one type to ``sums``."""
    for block in range(len(back.pieces.block_first) - 1):
        for phase in range(len(acc)):
            at = back.pointers[phase:]
            scatter(back.wiring, weights, block, at, back.found, None, acc[phase])
        add_pieces(acc, back.pieces, block, 1 << back.exp, sums)
        clear(acc)


@merged
def hear(back: Back, sent: Array, sums: Array) -> None:
    """Add what ``sent`` uint8 [neurons], spikes of one step, bring back to the ``sums`` of another."""
    channels = len(back.wiring.channel_at)
    find_events(sent.reshape(-1, channels), back.wiring.phases, back.pointers, back.found, None)
    if len(back.acc):
        bring(back, back.weights, back.acc, sums)
    else:
        bring(back, back.wide_weights, back.wide_acc, sums)


@compiled
def run_recurrent(
    sums: Array, back: Back, neurons: Neurons, active: Array, u: Array, v: Array, did: Did
) -> None:
    """Run a population as ``sums_wide`` does all steps, with what comes ``back``.

    ``u`` and ``v`` int64 [neurons] are scratch.
    """
    steps = did.spikes.shape[1]
    for row in range(len(sums) * steps):
        n, t = row // steps, row % steps
        if t >= back.delay:
            hear(back, did.spikes[n, t - back.delay], sums[n, t])
        add_own(neurons, did, n, t, sums[n, t])
        update_wide(neurons, 0, sums[n, t], u, v, did, row, active)
        count_active(neurons, 0, active, did.active[n, t])
