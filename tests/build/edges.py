"""Networks in which every register of a neuron and of a readout comes to its edges, step by step as written.

Each case is a neuron and what arrives at it; ``reached`` are the values that one of its
states, or what it sends, must have after given steps. So a network shows that its run was at the edges.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from stl_deploy.ir.network import Connection, Input, IntegerNetwork, Population
from stl_deploy.ir.neurons import MAX_HOLD, ONCE, Graded, Lif
from stl_deploy.ir.readouts import MAX_FACTOR, Readout
from stl_deploy.ir.synapses import Dense

M = 1 << 23
TOP = (1 << 31) - 1  # of parameters
SHARED = (
    "reset",
    "hold",
    "fires",
    "graded",
)  # fields that all neurons of a population have in common
STEPS = 6
LOW = 1 << 13  # what a sum counts in one of its two inputs, and the other in steps of it
BEYOND = 1 << 25  # times 64, the first sum beyond 32 bits


@dataclass(frozen=True)
class Case:
    """Neurons without a leak of v and with no memory of currents, but for ``fields``.

    ``a`` and ``a2`` arrive in the first steps, 0 in all others. ``reached`` maps a state or "spikes" to its
    values by step.
    """

    fields: Mapping[str, Any]
    a: Sequence[int] = ()
    reached: Mapping[str, Mapping[int, int]] = field(default_factory=dict)
    a2: Sequence[int] = ()
    vth: int = 131_071
    bias: int = 0

    def neurons(self) -> Lif:
        parameters = {"dv": 0, "bias_exp": 0, **self.fields}
        one = np.ones(1, np.int32)
        return Lif(one * self.vth, one * self.bias, np.ones(1), **parameters)


def gain(*values: int) -> dict[str, Any]:
    """The gains of the first steps; those of the others are 1."""
    return {"gain": np.array([*values, *[4096] * (STEPS - len(values))], np.int16)}


def _currents(port: int) -> dict[str, Case]:
    """A current that leaves 24 and 32 bits, by either sign; what arrives at the edge of 32 bits."""
    name = ("u", "u2")[port]

    def case(sums: Sequence[int], values: Mapping[int, int], decay: int = 0, **more: Any) -> Case:
        rules = {"du2": decay} if port else {"du": decay, "reset": "none"}
        given = {"a2": sums} if port else {"a": sums}
        bias = more.pop("bias", 0)
        return Case({**rules, **more}, reached={name: values}, bias=bias, **given)

    kept = M - 2048  # of M, by 4095 / 4096
    cases = {
        "M": case([131_072], {0: M, 1: kept}),
        "-M": case([-131_072], {0: M}),
        "least": case([-131_071], {0: 64 - M}),
        "above M": case([131_073], {0: 64 - M}),
        "below -M": case([-131_073], {0: M - 64}),
        "2^31": case([BEYOND], {0: 2 * M - (1 << 31), 1: wrapped(2 * M - (1 << 31), 4095)}),
        "below 2^31": case([BEYOND - 1], {0: (1 << 31) - 64 - 2 * M}),
        "sum beyond 32 bits": case(
            [131_072, BEYOND - 1], {0: M, 1: wrapped(M, 4095, (1 << 31) - 64)}
        ),
        "gain": case([BEYOND, BEYOND], {0: 0, 1: -M // 2}, 4095, **gain(-(1 << 15), 8)),
        "gain toward zero": case([1, -1, -1], {0: 0, 1: 0, 2: 0}, 4095, **gain(63, 63, -63)),
        "gain of -1/4096": case([64, -64], {0: -1, 1: 1}, 4095, **gain(-1, -1)),
        "largest product": case(
            [BEYOND - 1], {0: wrapped(0, 0, ((1 << 31) - 64) * 32_767 >> 12)}, **gain(32_767)
        ),
    }
    if not port:
        cases |= {
            "-M + 1": case([-131_071], {0: 1 - M}, 4095, bias=-63, **gain()),
            "M + 1": case([131_072], {0: 1 - M}, 4095, bias=1, **gain()),
            "bias beyond 32 bits": case([BEYOND - 1], {0: -M // 2}, 4095, bias=64, **gain(8)),
        }
    return {f"{name} {key}": value for key, value in cases.items()}


def wrapped(kept: int, share: int, arrives: int = 0) -> int:
    """A current by its definition: of ``kept``, ``share`` / 4096 stay."""
    left = (abs(kept) * share >> 12) * (1 if kept >= 0 else -1)
    u = (left + arrives + (1 << 31)) % (1 << 32) - (1 << 31)
    return u - 2 * M if u > M else u + 2 * M if u <= -M else u


REGISTERS: dict[str, Case] = {
    **_currents(0),
    **_currents(1),
    # The same without a rule, which other loops run.
    **{
        f"plain {name}": Case({"du": 0}, case.a, case.reached)
        for name, case in _currents(0).items()
        if case.fields.keys() == {"du", "reset"}
    },
    "v": Case({"reset": "none"}, [65_536, 65_536], {"v": {0: M // 2, 1: M - 1}, "spikes": {1: 1}}),
    "v down": Case({"v0": 0}, [-65_536, -65_536], {"v": {0: -M // 2, 1: 1 - M}}),
    "v one less": Case({"reset": "none"}, [131_071], {"v": {0: M - 2}}, bias=62),
    "v the most": Case({"reset": "none"}, [131_071], {"v": {0: M - 1, 1: M - 1}}, bias=63),
    "v plain": Case({}, [65_536, 65_536], {"v": {0: M // 2, 1: 0}, "spikes": {1: 1}}),
    "v plain down": Case({}, [-65_536, -65_536], {"v": {0: -M // 2, 1: 1 - M}}),
    "taken off": Case({"reset": "subtract"}, [131_071], {"v": {0: 63}}, bias=63),
    "not above": Case({"reset": "subtract"}, [131_071], {"v": {0: M - 64}, "spikes": {0: 0}}),
    "v_reset": Case(
        {"reset": "constant", "v_reset": M - 1}, [1], {"v": {0: M - 1, 1: M - 1}}, vth=0
    ),
    "v_reset down": Case({"reset": "constant", "v_reset": 1 - M}, [1], {"v": {0: 1 - M}}, vth=0),
    "v0": Case({"v0": M - 1}, [], {"v": {0: 0}, "spikes": {0: 1}}),
    "v0 down": Case({"v0": 1 - M}, [-1], {"v": {0: 1 - M}}),
    "floor": Case({"floor": M - 1, "reset": "none"}, [-9], {"v": {0: M - 1}, "spikes": {0: 1}}),
    "floor down": Case({"floor": 1 - M}, [-131_071, -131_071, 1], {"v": {1: 1 - M, 2: 65 - M}}),
    "floor while v rests": Case(
        {"floor": M - 1, "hold": 2, "reset": "constant", "v_reset": 1 - M},
        [],
        {"v": {0: 1 - M, 1: M - 1}, "spikes": {0: 1, 1: 0, 2: 0, 3: 1}},
    ),
    "q": Case(
        {"adapt": M - 1, "dq": 0, "v0": 1, "reset": "none"},
        [0, 131_071, 131_071],
        {"q": {0: M - 1, 1: M - 1}, "spikes": {0: 1, 1: 0, 2: 0}},
        vth=0,
    ),
    "q saturates": Case(
        {"adapt": 5 << 20, "v0": M - 1, "reset": "none"},
        [],
        {"q": {0: 5 << 20, 1: M - 1}, "spikes": {0: 1, 1: 1, 2: 0}},
        vth=0,
    ),
    "q down": Case(
        {"adapt": 1 - M, "v0": 1},
        [],
        {"q": {0: 1 - M, 1: 1 - M}, "spikes": {0: 1, 1: 1, 2: 1}},
        vth=0,
    ),
    "q forgets": Case(
        {"adapt": 1 - M, "dq": 4095, "v0": 1, "v_reset": 1 - M, "reset": "constant"},
        [],
        {"q": {0: 1 - M, 1: -2047, 2: 0}, "spikes": {0: 1, 1: 0}},
        vth=0,
    ),
    "rest": Case(
        {"hold": MAX_HOLD},
        [1] * STEPS,
        {"rest": {0: 63, 1: 62, 5: 58}, "spikes": {0: 1, 5: 0}},
        vth=0,
    ),
    "rest for good": Case(
        {"hold": ONCE}, [1] * STEPS, {"rest": {0: -1, STEPS - 1: -1}, "spikes": {1: 0}}, vth=0
    ),
    "rest alone": Case({"hold": ONCE, "v0": 1}, [], {"rest": {0: -1, 5: -1}}, vth=0),
    # Only the sum leaves its register.
    "accumulator": Case({"v0": -64, "reset": "none"}, [131_072], {"u": {0: M}, "v": {0: M - 64}}),
    "sent": Case(
        {"graded": Graded(0, 32_767), "reset": "none"},
        [511, 1, 131_000],
        {"spikes": {0: 32_767, 1: 32_767, 2: 32_767}},
        vth=0,
        bias=63,
    ),
    "sent one less": Case(
        {"graded": Graded(0, 32_767)}, [511], {"spikes": {0: 32_766, 1: 62}}, vth=0, bias=62
    ),
    "sent below zero": Case(
        {"graded": Graded(0, 32_767), "adapt": 1 - M},
        [1, -511, -600],
        {"spikes": {0: 64, 1: -32_704, 2: -32_767}},
        vth=0,
    ),
    "sent of 24 bits": Case(
        {"graded": Graded(23, 1), "adapt": 1 - M, "reset": "none"},
        [131_071, -131_071, -1],
        {"spikes": {0: 0, 1: 0, 2: -1}},
        vth=0,
    ),
    "sums": Case(
        {"graded": Graded(0, 32_767), "fires": False},
        [32_766, 32_767, 32_768, -32_767, -32_768, 0],
        {"spikes": {0: 32_766, 1: 32_767, 2: 32_767, 3: -32_767, 4: -32_767, 5: 0}},
    ),
    "sums of 23 bits": Case(
        {"graded": Graded(23, 32_767), "fires": False},
        [-1, (1 << 23) - 1, 1 << 23, -(1 << 23), -(1 << 23) - 1],
        {"spikes": {0: -1, 1: 0, 2: 1, 3: -1, 4: -2}},
    ),
}

# Where states have no registers: what parameters and sums of 32 bits come to.
WIDE: dict[str, Case] = {
    "u": Case(
        {"du": 0}, [1 << 27, 1 << 27], {"u": {0: 1 << 33, 1: (1 << 34) - (1 << 21)}}, vth=TOP
    ),
    "u2": Case({"du2": 0}, [], {"u2": {0: -(1 << 33)}, "v": {0: -(1 << 33)}}, [-(1 << 27)], TOP),
    "gain": Case(
        {"reset": "none", **gain(-(1 << 15), 32_767)},
        [1 << 27, 1 << 27],
        {"u": {0: -(1 << 36), 1: (1 << 33) * 32_767 >> 12}},
    ),
    "v": Case({"reset": "none"}, [1 << 27] * STEPS, {"v": {0: 1 << 33, STEPS - 1: STEPS << 33}}),
    "taken off": Case(
        {"reset": "subtract"}, [1 << 27], {"v": {0: (1 << 33) + (1 << 37)}}, vth=-(1 << 31)
    ),
    "v_reset": Case(
        {"reset": "constant", "v_reset": -(1 << 31)}, [1], {"v": {0: -(1 << 31)}}, vth=0
    ),
    "floor": Case({"floor": -(1 << 31)}, [-(1 << 27)], {"v": {0: -(1 << 31)}}),
    "floor up": Case({"floor": TOP}, [-(1 << 27)], {"v": {0: 0}, "spikes": {0: 1}}, vth=TOP >> 6),
    "v0": Case({"v0": TOP}, [], {"v": {0: TOP}}, vth=TOP),
    "q": Case(
        {"adapt": TOP, "v0": 1 << 29, "reset": "none"},
        [1 << 27] * STEPS,
        {"q": {0: TOP, 1: 2 * TOP, 3: 4 * TOP}, "spikes": {0: 1, 3: 1}},
        vth=0,
    ),
    "q down": Case({"adapt": -(1 << 31), "v0": 1}, [], {"q": {0: -(1 << 31), 2: -3 << 31}}, vth=0),
}

CLASSES = 3  # of two neurons: the first adds up to large scores, the second adds 0 to 12


def network(chip: str) -> tuple[IntegerNetwork, dict[str, np.ndarray]]:
    """All cases on the chip, and what arrives; on ``ideal``, float64 would not tell the scores apart."""
    groups = _groups(chip)
    size = 2 * sum(map(len, groups.values()))
    low, high = np.zeros((2, size, STEPS), np.int64)
    populations, connections, at = [], [], 0
    for name, cases in groups.items():
        populations.append(Population(name, (len(cases),), _together([*cases.values()])))
        ports = 1 + (populations[-1].neurons.du2 is not None)
        weight = np.zeros((ports, len(cases), size), np.int8)
        for i, case in enumerate(cases.values()):
            for port, sums in enumerate((case.a, case.a2)[:ports]):
                high[at, : len(sums)], low[at, : len(sums)] = np.divmod(sums, LOW)
                weight[port, i, at] = 1
                at += 1
        for port in range(ports):
            parts = ("low", weight[port], 0), ("high", weight[port] * 64, 7)
            connections += [
                Connection(f"{name}_{part}{port}", part, name, Dense(w), exp, port=port)
                for part, w, exp in parts
            ]
    neurons = 2 * CLASSES
    none = np.zeros(neurons, np.int32)
    start = np.array([0, 1, 0, 2, 0, 1], np.int32)
    reads = Lif(none, none, np.ones(neurons), dv=0, fires=False, v0=start)
    drive = np.array([[127], [0], [127], [0], [-127], [0]], np.int8)
    populations.append(Population("read", (neurons,), reads))
    connections.append(Connection("read_w", "one", "read", Dense(drive), 7))
    factors = np.array([MAX_FACTOR, 1] * CLASSES)
    much = 32_767 if chip == "ideal" else 1
    port = Input((size,), (1 << 15) - 1, signed=True)
    made = IntegerNetwork(
        chip,
        STEPS,
        {"low": port, "high": port, "one": Input((1,), much, signed=True)},
        tuple(populations),
        tuple(connections),
        Readout(CLASSES, 2, "read", "mean", factors=factors),
    )
    rasters = {"low": low.T[None].astype(np.int16), "high": high.T[None].astype(np.int16)}
    return made, rasters | {"one": np.full((1, STEPS, 1), much, np.int16)}


def _groups(chip: str) -> dict[str, dict[str, Case]]:
    """The cases by population: those with the same rules are neurons of one."""
    found: dict[tuple[Any, ...], dict[str, Case]] = {}
    for name, case in (WIDE if chip == "ideal" else REGISTERS).items():
        shared = tuple((field, case.fields.get(field)) for field in SHARED)
        found.setdefault((*case.fields, shared), {})[name] = case
    return {f"p{i}": cases for i, cases in enumerate(found.values())}


def _together(cases: Sequence[Case]) -> Lif:
    """Neurons of one population."""
    ones = [case.neurons() for case in cases]
    fields = {name: value for name, value in cases[0].fields.items() if name in SHARED}
    for name in cases[0].fields.keys() - fields.keys() - {"gain"}:
        fields[name] = np.array([getattr(one, name) for one in ones], np.int32)
    if ones[0].gain is not None:
        fields["gain"] = np.stack([case.fields["gain"] for case in cases], axis=1)
    vth, bias = (
        np.concatenate([getattr(one, name) for one in ones]) for name in ("vth", "bias_mant")
    )
    return Lif(vth, bias, np.ones(len(ones)), **{"dv": 0, "bias_exp": 0, **fields})


def assert_reached(network: IntegerNetwork, trace: Any) -> None:
    """Every case was at its edge."""
    for population, cases in _groups(network.chip).items():
        did = trace.layers[population]
        states = {"u": did.u, "v": did.v, "spikes": did.spikes, **did.more}
        for i, (name, case) in enumerate(cases.items()):
            for state, values in case.reached.items():
                got = {t: int(states[state][0, t, i]) for t in values}
                assert got == dict(values), (name, state)
    read = trace.layers[network.readout.source]
    assert len({*network.readout.scores(read.spikes, read.v)[0]}) == CLASSES
    assert trace.predictions.tolist() == [1]
