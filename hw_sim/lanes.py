"""Operations on LANES neurons at a time, in the form that ``compiled.py`` chose, and counts of marks."""

# No ``from __future__ import annotations``: numba reads the functions as they are.
from typing import NamedTuple

import llvmlite
import numba
from numba import uintp

from stl_deploy.errors import BackendError, Problem
from stl_deploy.hw_sim.compiled import LANES, PLAIN, SWITCH, Array, Int, compiled, inner

__all__ = [
    "Lanes",
    "Steps",
    "add_runs",
    "count_rows",
    "count_runs",
    "how_many",
    "lowest",
    "marked",
    "step",
]

if PLAIN:
    from stl_deploy.hw_sim.plain import add_runs, how_many, lowest, marked, step
else:
    try:
        from stl_deploy.hw_sim.vectors import add_runs, how_many, lowest, marked, step
    except (AttributeError, ImportError) as error:
        raise BackendError(
            Problem(
                f"numba {numba.__version__} with llvmlite {llvmlite.__version__}",
                f"lacks a private interface that the compiled kernels need ({error})",
                f"install versions within stl-deploy's bounds, or set {SWITCH}=1 for slower kernels that "
                "do without",
            )
        ) from error


class Lanes(NamedTuple):
    """What ``step`` reads and writes, flat: sums ``acc`` int16 or int32, marks uint8, the rest int32."""

    acc: Array
    before: Array
    after: Array
    bias: Array
    threshold: Array
    keep: Array
    own: Array
    spikes: Array
    active: Array


class Steps(NamedTuple):
    """Where ``step`` finds it, all int64.

    The LANES neurons from ``neuron`` on are stepped ``steps`` times, from a sample's step ``first`` on.
    Step i takes the sum of ``phases`` runs of ``acc``, from ``acc_at + i * acc_step`` on, each ``acc_phase``
    after the one before, times 2^shift. ``keep`` is what the decay leaves, of 4096; with ``halves`` it is a
    half everywhere. Voltages come from ``before``, or are zero where ``first`` is. Marks go to ``spikes`` and
    ``active`` from ``spikes_at`` and ``active_at`` on, and ``marks_step`` further with every step.

    Unless they are ``bare``, neurons whose mark of ``delay`` steps before is set receive ``own``, in units of
    v, and with ``subtract`` a spike takes the threshold off v. ``bare`` neurons have neither.
    """

    neuron: Int
    steps: Int
    first: Int
    acc_at: Int
    acc_step: Int
    phases: Int
    acc_phase: Int
    shift: Int
    halves: Int
    bare: Int
    subtract: Int
    delay: Int
    spikes_at: Int
    active_at: Int
    marks_step: Int


@inner
def count_runs(marks: Array, first: Array, length: Array, kind: Array, counts: Array) -> None:
    """Add the marks uint8 [neurons] of each run to the counts int64 [kinds] of its kind.

    Run i are the ``length[i]`` neurons from ``first[i]``; a mark is whatever is not zero.
    """
    for i in range(len(first)):
        at, count = first[i], 0
        end = at + length[i]
        while at < end:
            if at + LANES <= len(marks):
                bits = marked(marks, at)
                if end - at < LANES:
                    bits &= (1 << (end - at)) - 1
                count += how_many(bits)
                at += LANES
            else:
                count += marks[uintp(at)] != 0
                at += 1
        counts[kind[i]] += count


@compiled
def count_rows(marks: Array, first: Array, length: Array, kind: Array, counts: Array) -> None:
    """``count_runs`` for each row of marks [rows, neurons] and counts [rows, kinds]."""
    for row in range(len(marks)):
        count_runs(marks[row], first, length, kind, counts[row])
