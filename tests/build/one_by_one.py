"""The integer network in loops over single neurons, with Python's integers and no arrays.

These loops restate every rule from its equations in docs/numerics.md: the sums over synapses, the step of a
neuron, what it sends, what counts as active and as overflow.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

# M and the bound of |a_in|; the registers of the chips, restated.
REGISTERS = {"ideal": (None, None), "loihi1": (1 << 23, 1 << 15), "loihi2": (1 << 23, 1 << 17)}


def w32(x):
    return (x + 2**31) % 2**32 - 2**31


def times(x, factor):
    """x * factor / 4096, toward zero."""
    size = abs(x * factor) // 4096
    return size if x * factor >= 0 else -size


@dataclass
class Did:
    """What one neuron did in one step: its states after it, what it sent, and the counts."""

    s: int
    active: bool
    overflow: bool
    states: dict[str, int] = field(default_factory=dict)


class Neuron:
    """One neuron of a population, before its first step."""

    def __init__(self, population, index, chip):
        neurons, self.shape, self.index = population.neurons, population.shape, index
        self.big, self.too_large = REGISTERS[chip]
        self.bias = self.of(neurons.bias_mant) * 2**neurons.bias_exp
        self.vth, self.du, self.dv = (self.of(x) for x in (neurons.vth, neurons.du, neurons.dv))
        self.reset, self.v_reset = neurons.reset, self.of(neurons.v_reset)
        self.fires, self.hold, self.graded = neurons.fires, neurons.hold, neurons.graded
        self.reset_current, self.gain = neurons.reset_current, neurons.gain
        self.floor = None if neurons.floor is None else self.of(neurons.floor)
        self.du2 = None if neurons.du2 is None else self.of(neurons.du2)
        self.adapt, self.dq = self.of(neurons.adapt), self.of(neurons.dq)
        self.u = self.u2 = self.q = self.rest = 0
        self.v = self.of(neurons.v0)

    def of(self, values):
        return int(np.broadcast_to(values, self.shape)[self.index])

    def step(self, t, a, a2):
        """Step ``t``, in which ``a`` and ``a2`` arrive."""
        kept_u = times(self.u, 4095 - self.du)
        kept_u2 = 0 if self.du2 is None else times(self.u2, 4095 - self.du2)
        comes = [kept_u, kept_u2, self.v, self.q, self.rest, a, self.bias]
        if self.du2 is not None:
            comes.append(a2)
        overflow = self.too_large is not None and max(abs(a), abs(a2)) >= self.too_large

        gain = None if self.gain is None else self.of(self.gain[t])
        u, wrapped = self.current(kept_u, a, self.bias, gain)
        overflow = overflow or wrapped
        u2 = 0
        if self.du2 is not None:
            u2, wrapped = self.current(kept_u2, a2, 0, gain)
            overflow = overflow or wrapped

        v = self.v
        if self.rest == 0:
            v = times(v, 4096 - self.dv) + u + u2 + (self.bias if gain is None else 0)
            if self.big is not None:
                v = w32(v)
                overflow = overflow or abs(v) >= self.big
                v = self.within(v)
        if self.floor is not None and v < self.floor:
            v = self.floor
        s = self.fires and self.rest == 0 and v > 64 * self.vth + self.q
        sent = self.sends(s, v, a)

        if s and self.reset != "none":
            v = {"zero": 0, "subtract": v - 64 * self.vth, "constant": self.v_reset}[self.reset]
        if s and self.reset_current:
            u = u2 = 0
        if s:
            self.rest = self.hold
        elif self.rest > 0:
            self.rest -= 1
        self.q = self.within(times(self.q, 4096 - self.dq) + self.adapt * s)
        self.u, self.u2, self.v = u, u2, v
        states = {"u": u, "v": v, "u2": u2, "q": self.q, "rest": self.rest}
        return Did(sent, any(comes), overflow, states)

    def current(self, kept, a, bias, gain):
        """A current after the step, and whether it left its register."""
        x = 64 * a if self.big is None else w32(64 * a)
        if gain is not None:
            x = x + bias if self.big is None else w32(x + bias)
            x = times(x, gain)
        if self.big is None:
            return kept + x, False
        u = w32(kept + w32(x))
        if -self.big < u <= self.big:
            return u, False
        return u - 2 * self.big * (1 if u > 0 else -1), True

    def within(self, x):
        return x if self.big is None else max(1 - self.big, min(self.big - 1, x))

    def sends(self, s, v, a):
        if self.graded is None or (self.fires and not s):
            return int(s)
        value = (v if self.fires else a) // 2**self.graded.shift
        return max(-self.graded.levels, min(self.graded.levels, value))


def synapses_into(network, connection):
    """The synapses (input, weight) of each neuron of the target, both by their place in C order."""
    found = {i: [] for i in range(network.size(connection.target))}
    held, shape = connection.synapses, network.shape(connection.target)
    if held.kind == "dense":
        for i, row in enumerate(held.weight.tolist()):
            found[i] = list(enumerate(row))
    elif held.kind == "one_to_one":
        for i, w in enumerate(held.weight.tolist()):
            found[i] = [(i, w)]
    elif held.kind == "sparse":
        for i, j, w in zip(
            *(x.tolist() for x in (held.row, held.column, held.weight)), strict=True
        ):
            found[i].append((j, w))
    else:
        for at, index in enumerate(np.ndindex(shape)):
            found[at] = list(seen(held, network.shape(connection.source), shape, index))
    return found


def seen(conv, before, shape, index):
    """The synapses (input, weight) of one neuron of a convolution."""
    (channels, height, width), (o, i, j) = before, index
    per_group_in, per_group_out = channels // conv.groups, shape[0] // conv.groups
    for k in range(per_group_in):
        c = (o // per_group_out) * per_group_in + k
        for p in range(conv.weight.shape[2]):
            for q in range(conv.weight.shape[3]):
                y = i * conv.stride[0] + p * conv.dilation[0] - conv.padding[0]
                z = j * conv.stride[1] + q * conv.dilation[1] - conv.padding[1]
                if 0 <= y < height and 0 <= z < width:
                    yield (c * height + y) * width + z, int(conv.weight[o, k, p, q])


def naive(network, rasters):
    """What each population did, by name: states by name and ``spikes`` [N, T, *shape], counts [N, T]."""
    samples = len(next(iter(rasters.values())))
    steps = network.timesteps
    sent = {name: x.astype(object).reshape(*x.shape[:2], -1) for name, x in rasters.items()}
    for name, port in network.inputs.items():
        sent[name] = np.repeat(sent[name], steps, axis=1) if port.held else sent[name]
    out = {p.name: {} for p in network.populations}
    for p in network.populations:
        for key in ("u", "v", *p.neurons.states, "spikes"):
            out[p.name][key] = np.zeros((samples, steps, p.size), object)
        for key in ("active", "overflow"):
            out[p.name][key] = np.zeros((samples, steps), object)
        sent[p.name] = out[p.name]["spikes"]
    ways = {c.key: synapses_into(network, c) for c in network.connections}
    for n in range(samples):
        neurons = {
            p.name: [Neuron(p, index, network.chip) for index in np.ndindex(p.shape)]
            for p in network.populations
        }
        for t in range(steps):
            for p in network.populations:
                kept = out[p.name]
                for i, one in enumerate(neurons[p.name]):
                    a = [0, 0]
                    for c in network.into(p.name):
                        if t >= c.delay:
                            came = sent[c.source][n, t - c.delay]
                            a[c.port] += sum(w * came[j] for j, w in ways[c.key][i]) * 2**c.exp
                    did = one.step(t, *a)
                    for key in ("u", "v", *p.neurons.states):
                        kept[key][n, t, i] = did.states[key]
                    kept["spikes"][n, t, i] = did.s
                    kept["active"][n, t] += did.active
                    kept["overflow"][n, t] += did.overflow
    for p in network.populations:
        for key in ("u", "v", *p.neurons.states, "spikes"):
            out[p.name][key] = out[p.name][key].reshape(samples, steps, *p.shape)
    return out


def assert_same(trace, expected):
    """Fail unless every state, spike and count of the reference's trace is that of the loops."""
    for name, kept in expected.items():
        did = trace.layers[name]
        found = {"u": did.u, "v": did.v, "spikes": did.spikes, **did.more}
        found |= {"active": did.active, "overflow": did.overflow}
        assert set(found) == set(kept), name
        for key, values in kept.items():
            assert found[key].tolist() == values.tolist(), f"{name}: {key}"
