"""What neurons do besides leaking and firing, in whole numbers, and which of it no integers say.

Values of v are rounded to 1/64 of a unit of the threshold, decays to multiples of 1/4096. A gain counts
1/4096 in 16 bits: what its factors have in common stands in the weights (``common_gain``).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stl_deploy.errors import Problem
from stl_deploy.ir.float_neurons import FloatNeurons
from stl_deploy.ir.floats import FloatConnection, FloatNetwork, FloatPopulation
from stl_deploy.ir.neurons import MAX_HOLD, ONCE, Each, Reset
from stl_deploy.ir.order import parts
from stl_deploy.ir.synapses import Shape
from stl_deploy.ir.units import DECAY_ONE, FORGETS, UNIT

Float = NDArray[np.float64]
WIDEST = 1 << 30  # of v: what int32 arrays of parameters hold, with room to add
GAIN_MAX = (1 << 15) - 1


def common_gain(neurons: FloatNeurons) -> float:
    """The power of two that is taken out of the gains and stands in the weights.

    It is 1 where the largest gain lies in 1 to 8, which 16 bits hold with 12 of a fraction, and where no gain
    would be rounded, as in a network that was trained on integers.
    """
    if neurons.amplify is None:
        return 1.0
    steps = DECAY_ONE * neurons.amplify
    if (steps == np.rint(steps)).all() and np.abs(steps).max(initial=0) <= GAIN_MAX:
        return 1.0
    peak = float(np.abs(neurons.amplify).max(initial=0))
    if 1 <= peak < GAIN_MAX / DECAY_ONE or not peak:
        return 1.0
    factor: float = 2.0 ** np.floor(np.log2(peak))
    return factor


def gains(neurons: FloatNeurons) -> NDArray[np.int16] | None:
    """int16 [T, ...] of the gains, without what is common to them."""
    if neurons.amplify is None:
        return None
    exact = neurons.amplify / common_gain(neurons) * DECAY_ONE
    return np.rint(exact).astype(np.int16)


def reset(neurons: FloatNeurons) -> Reset:
    """What a spike does to v, by the word of the integer neurons."""
    if neurons.reset != "zero" and neurons.fires:
        return neurons.reset
    return "constant" if neurons.fires and (neurons.v_reset != 0).any() else "zero"


def second_share(neurons: FloatNeurons) -> Float:
    """What arrives at the second current counts, where the same at the first counts 1."""
    if neurons.drive2 is None:
        return np.ones(1)
    share: Float = neurons.drive2 / neurons.drive
    return share


def decay_constant(share: Float, lowest: int) -> Float:
    """What a step takes, of 4096, as a whole number from ``lowest`` on."""
    constant: Float = np.clip(np.rint(DECAY_ONE * share) + lowest, 0, FORGETS)
    return constant


def each(values: Any, shape: Shape) -> Each:
    """Whole numbers as one for all neurons, one for each channel [C, 1, ...], or of ``shape``."""
    full = np.broadcast_to(values, shape)
    if not np.ptp(full):
        return int(full.flat[0])
    rows = full.reshape(shape[0], -1)
    if (rows == rows[:, :1]).all():
        full = rows[:, :1].reshape(-1, *[1] * (len(shape) - 1))
    return full.astype(np.int32)


def fields(neurons: FloatNeurons, scale: Float, shape: Shape) -> dict[str, Any]:
    """The fields of the integer neurons that say these rules; defaults are left out.

    ``scale`` is the float value of 64 units of v, broadcastable to ``shape``. Values end at 30 bits.
    """

    def of_v(values: Float) -> Each:
        steps = np.rint(values / scale * UNIT)
        return each(np.clip(steps, -WIDEST, WIDEST).astype(np.int64), shape)

    found: dict[str, Any] = {}
    if neurons.v0 is not None and neurons.v0.any():
        found["v0"] = of_v(neurons.v0)
    if neurons.floor is not None:
        found["floor"] = of_v(neurons.floor)
    if neurons.current2 is not None:
        found["du2"] = each(decay_constant(neurons.current2, -1), shape)
    if neurons.amplify is not None:
        found["gain"] = gains(neurons)
    if not neurons.fires:
        return {"fires": False, **found}
    if reset(neurons) == "constant":
        found["v_reset"] = of_v(neurons.v_reset)
    if neurons.reset_current and ((neurons.current != 1).any() or "du2" in found):
        found["reset_current"] = True
    if neurons.hold:
        found["hold"] = neurons.hold
    if neurons.adapt is not None and neurons.adapt.any():
        step = np.zeros(1) if neurons.adapt_step is None else neurons.adapt_step
        found |= {"adapt": of_v(neurons.adapt), "dq": each(decay_constant(step, 0), shape)}
    return found


def resets(neurons: FloatNeurons) -> bool:
    """Whether a spike sets v back."""
    return neurons.fires and neurons.reset != "none"


def added_up(neurons: FloatNeurons, arrived: Float) -> Float:
    """float64 [C]: how far v goes from zero in each channel where nothing resets it.

    ``arrived`` [N, T, C, ...] is what comes to the first current, the only one, bias included.
    """
    current = np.zeros_like(arrived[:, 0])
    v = current if neurons.v0 is None else current + neurons.v0
    most = np.abs(v)
    for t in range(arrived.shape[1]):
        x = arrived[:, t] if neurons.amplify is None else arrived[:, t] * neurons.amplify[t]
        current = (1 - neurons.current) * current + neurons.drive * x
        v = neurons.keep * v + neurons.gain * current + neurons.leak
        most = np.maximum(most, np.abs(v))
    peak: Float = np.moveaxis(most, 1, 0).reshape(arrived.shape[2], -1).max(axis=1)
    return peak


def further_decays(neurons: FloatNeurons) -> Iterator[tuple[str, Float, Float]]:
    """Decays besides those of v and the first current: their name, what a step keeps, and in 1/4096."""
    if neurons.current2 is not None:
        held = FORGETS - decay_constant(neurons.current2, -1)
        yield "decay of the second current", 1 - neurons.current2, held
    if neurons.fires and neurons.adapt is not None and neurons.adapt_step is not None:
        held = DECAY_ONE - decay_constant(neurons.adapt_step, 0)
        yield "decay of the threshold's rise", 1 - neurons.adapt_step, held


def largest(neurons: FloatNeurons) -> list[Float]:
    """The values of v among the parameters, which its register must hold."""
    used = [neurons.v0, neurons.floor, neurons.adapt if neurons.fires else None]
    if reset(neurons) == "constant":
        used.append(neurons.v_reset)
    return [values for values in used if values is not None]


def extra(neurons: FloatNeurons) -> list[str]:
    """The rules that neurons have besides a reset to zero or by subtraction, in words."""
    said = {
        "no threshold": not neurons.fires,
        f"reset {reset(neurons)!r}": reset(neurons) in ("constant", "none"),
        "a start above or below zero": neurons.v0 is not None,
        "a floor": neurons.floor is not None,
        "an adaptive threshold": neurons.adapt is not None,
        "a second current": neurons.current2 is not None,
        "a gain for each step": neurons.amplify is not None,
        "graded values": neurons.graded,
    }
    return [what for what, there in said.items() if there]


def problems(network: FloatNetwork, population: FloatPopulation) -> Iterator[Problem]:
    """Which rules of neurons behind weights no integer network can have."""
    neurons, name = population.neurons, population.name
    steps = None if network.meta is None else network.meta.timesteps
    if neurons.hold != ONCE and not 0 <= neurons.hold <= MAX_HOLD:
        what = f"rests {neurons.hold} steps after a spike; at most {MAX_HOLD} can be kept"
        yield Problem(name, what, f"shorten it, or let it rest for good ({ONCE})")
    for what, share, least in (
        ("adapt_step", neurons.adapt_step, 0.0),
        ("current2", neurons.current2, np.nextafter(0, 1)),
    ):
        if share is not None and (share.min() < least or share.max() > 1):
            limits = (
                f"{share.min():g} to {share.max():g}; it lies in {'[' if not least else '('}0, 1]"
            )
            yield Problem(name, f"{what} ranges from {limits}", "train with a decay in that range")
    if neurons.drive2 is not None and not (neurons.drive > 0).all():
        yield Problem(
            name, "drive is not positive, to which that of the second current is relative"
        )
    for c in network.into(name) if neurons.drive2 is not None else ():
        by_row = second_share(neurons)
        by_row = np.broadcast_to(by_row, population.shape).reshape(population.shape[0], -1)
        kernel = c.way.kind == "weights" and c.way.geometry is not None
        if c.port and kernel and np.ptp(by_row, axis=1).any():
            what = "drive of the second current, relative to the first, differs within a channel"
            yield Problem(name, what, f"give the neurons of a channel one, or replace {c.name}")
    bias_arrives = (
        neurons.amplify is None and (neurons.current != 1).any() and population.bias.any()
    )
    if neurons.graded and not neurons.fires and bias_arrives:
        what = "sends what arrives, which the neuron that its bias comes from would change"
        yield Problem(name, what, "train without a bias")
    if neurons.amplify is not None:
        if neurons.leak.any():
            what = "has a gain for each step and v_leak, which a chip would multiply too"
            yield Problem(name, what, "train without v_leak")
        if steps is not None and len(neurons.amplify) < steps:
            what = f"has gains for {len(neurons.amplify)} steps; the network has {steps}"
            yield Problem(name, what, "give a gain for each step")
    ways_out = [c for c in network.connections if c.source == name]
    if not neurons.fires and not neurons.graded and ways_out:
        what = f"has no threshold, so it sends nothing over {', '.join(c.name for c in ways_out)}"
        yield Problem(name, what, "give it a threshold, or let it send graded values")
    if neurons.graded:
        yield from _graded(network, population, ways_out)


def _graded(
    network: FloatNetwork, population: FloatPopulation, ways_out: list[FloatConnection]
) -> Iterator[Problem]:
    """Where graded values cannot go: their unit must be known before that of the weights behind them."""
    ways = [(c.source, c.target) for c in network.connections]
    names = list(network.by_name)
    (loop,) = (part for part in parts(names, ways) if population.name in part)
    for c in ways_out:
        if c.target in loop or names.index(c.target) < names.index(c.source):
            what = f"sends graded values back over {c.name}, to {c.target}"
            yield Problem(population.name, what, "send spikes on the way back")
        elif c.way.kind == "window":
            what = f"pools graded values of {population.name}; only spikes are pooled"
            yield Problem(c.target, what, "pool spikes, or use strided convolutions")
