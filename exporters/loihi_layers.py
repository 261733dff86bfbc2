"""Every layer as Lava and netx know it: synapses and LIF neurons, and what their registers hold.

Lava has no pooling, so an OR pool becomes a convolution of ones, a group a channel, into neurons
that forget everything and fire above 0. The facts are those of lava-nc 0.10.0, in
lava/proc: lif/models.py, conv/models.py, conv/utils.py, dense/models.py.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from stl_deploy.chips import bounds
from stl_deploy.chips import facts as chips
from stl_deploy.errors import Problem
from stl_deploy.ir import kinds, slices
from stl_deploy.ir.chain import Layer, LifLayer, OrPool
from stl_deploy.ir.network import IntegerNetwork
from stl_deploy.ir.synapses import Conv, Synapses

# Lava's Conv keeps groups, kernel size, stride, padding and dilation as int8 and wraps larger ones.
CONV_INT8_MAX = 127
# Lava's Conv wraps its sums into 24 bits (conv/models.py, clamp_precision), the reference does not.
CONV_SUM_LIMIT = 1 << 23
# Lava's Dense and Sparse multiply graded spikes in int32 (dense/models.py, sparse/models.py).
DENSE_SUM_LIMIT = 1 << 31

# What Lava computes with, whatever a chip's file says: lava-nc 0.10.0, lava/proc/lif/models.py (u and v
# are int32 of precision 24, du and dv uint16 of precision 12, both shifted by 6 bits for the fraction)
ARITHMETIC: chips.Arithmetic = "loihi"
EXACTLY = {"fraction_bits": 6, "decay_bits": 12, "state_bits": 24}
# ... and the widest values that its LIF (the same file) and Dense and Conv (8 bits and a sign mode) take.
AT_MOST = {"weight_bits": 8, "threshold_bits": 17, "bias_mant_bits": 13, "bias_exp_bits": 3}

FEWER_BITS = "quantize again with --overflow proven or fewer --weight-bits"


def lif_form(layer: Layer) -> LifLayer:
    """``layer`` as synapses and LIF neurons, with no more groups than Lava's Conv can count.

    Raises LoweringError for a kind of population or synapses that Lava does not know.
    """
    lif = kinds.entry(POPULATIONS, layer.kind, layer.name, WHO)(layer)
    rules = kinds.entry(SYNAPSES, lif.synapses.kind, lif.name, WHO)
    return replace(lif, synapses=rules.fitted(lif.synapses))


def _pool_as_lif(pool: OrPool) -> LifLayer:
    return LifLayer(
        name=pool.name,
        synapse_name=pool.synapse_name,
        synapses=pool.synapses,
        input_shape=pool.input_shape,
        shape=pool.shape,
        bias_mant=pool.bias_mant,
        vth=pool.vth,
        scale=np.ones(pool.shape[0]),
        du=pool.du,
        dv=pool.dv,
    )


def _merge_groups(conv: Conv) -> Conv:
    """The same convolution with at most 127 groups, zeros where groups were merged."""
    if conv.groups <= CONV_INT8_MAX:
        return conv
    groups = max(g for g in range(1, CONV_INT8_MAX + 1) if conv.groups % g == 0)
    merged = conv.groups // groups
    outputs, inputs, kh, kw = conv.weight.shape
    weight = np.zeros((outputs, merged, inputs, kh, kw), conv.weight.dtype)
    old_group = np.arange(outputs) // (outputs // conv.groups)
    weight[np.arange(outputs), old_group % merged] = conv.weight
    return replace(conv, weight=weight.reshape(outputs, merged * inputs, kh, kw), groups=groups)


def problems(network: IntegerNetwork) -> list[Problem]:
    """What neither Lava nor netx can carry, the whole network at once."""
    chip, own = chips.load("loihi2"), chips.of(network)
    found: list[Problem] = []
    # A network without registers runs as it is when it happens to fit those of the larger chip.
    if bounded := own.arithmetic != "unbounded":
        chip = own
        found += _arithmetic_problems(chip)
    for layer in network.layers:
        if unknown := kinds.layer_unsupported(layer, POPULATIONS, SYNAPSES, WHO):
            found += unknown
            continue
        lif, levels = lif_form(layer), network.input_limit(layer)
        found += _range_problems(lif, chip)
        found += chip.reset_problems(lif.name, lif.reset)
        found += _synapse_problems(lif, levels)
        if not bounded:
            found += _state_problems(lif, levels, network.timesteps, chip)
    return found


def _arithmetic_problems(chip: chips.Chip) -> Iterator[Problem]:
    """What of ``chip`` is not as Lava computes: its spikes would be those of other registers."""
    remedy = "quantize for --chip loihi1 or loihi2, or use --target onnx, which computes as the chip does"
    if chip.arithmetic != ARITHMETIC:
        what = f"arithmetic {chip.arithmetic!r}; Lava computes {ARITHMETIC!r}"
        yield Problem(f"chip {chip.name}", what, remedy)
    for name, bits in (EXACTLY | AT_MOST).items():
        fact: chips.Count | None = getattr(chip.registers, name)
        held = None if fact is None else fact.value
        if held == bits or (name in AT_MOST and held is not None and held < bits):
            continue
        value = "has no limit" if held is None else f"is {held}"
        rule = "computes with" if name in EXACTLY else "holds at most"
        yield Problem(f"chip {chip.name}", f"{name} {value}; Lava {rule} {bits}", remedy)


def _range_problems(layer: LifLayer, chip: chips.Chip) -> Iterator[Problem]:
    registers = chip.registers
    requantize = f"quantize for chip {chip.name}"
    decays = (1 << registers.decay_bits.value) - 1
    weights = slices.span(layer.weight_precision, registers.weight_bits.value)
    exponents = registers.weight_exp_max.value if registers.weight_exp_max else 0
    own = np.zeros(0, np.int8) if layer.recurrent is None else layer.recurrent.weight
    for what, values, low, high, remedy in (
        ("weight", layer.synapses.weight, *weights, requantize),
        ("recurrent weight", own, *weights, requantize),
        (
            "threshold vth",
            layer.vth,
            *chip.threshold_range,
            f"{requantize} with --clamp-thresholds",
        ),
        ("bias mantissa", layer.bias_mant, *chip.bias_mant_range, requantize),
        ("bias exponent", layer.bias_exp, 0, _field(registers.bias_exp_bits), requantize),
        ("weight exponent", layer.exp, 0, exponents, requantize),
        ("current decay du", layer.du, 0, decays, "use a decay that 12 bits hold"),
        ("voltage decay dv", layer.dv, 0, decays, "use a decay that 12 bits hold"),
    ):
        array = np.asarray(values)
        outside = array[(array < low) | (array > high)]
        if outside.size:
            count = f"{outside.size} of {array.size}, " if array.size > 1 else ""
            worst = outside.flat[np.argmax(np.abs(outside.astype(np.int64)))]
            yield Problem(
                layer.name, f"{what} {worst} is outside {low}..{high} ({count}{chip.title})", remedy
            )


def _field(bits: chips.Count | None) -> int:
    """Largest value of an unsigned register."""
    return (1 << bits.value) - 1 if bits else 0


def _synapse_problems(layer: LifLayer, levels: int) -> Iterator[Problem]:
    if layer.recurrent is not None and len(layer.shape) != 1:
        yield Problem(
            layer.name,
            f"is recurrent and has shape {layer.shape}; Lava's Dense has (N,)",
            "flatten the population",
        )
    yield from SYNAPSES[layer.synapses.kind].problems(layer, levels)


def _where(layer: LifLayer) -> str:
    return f"{layer.name} ({layer.synapse_name})"


def _dense_problems(layer: LifLayer, levels: int) -> Iterator[Problem]:
    if len(layer.shape) != 1:
        yield Problem(
            _where(layer),
            f"the neurons behind a dense layer have shape {layer.shape}; Lava's Dense has (N,)",
            "flatten the population",
        )
    yield from _sum_problems(layer, levels)


def _sum_problems(layer: LifLayer, levels: int) -> Iterator[Problem]:
    """Sums that leave the 32 bits of Lava's Dense and Sparse."""
    # What a group adds up is twice as large where signs are mixed (lava.py), and then shifted.
    most = max(
        2 * bounds.layer_largest_sum(group, levels) << (group.exp - layer.exp)
        for group in layer.groups()
    )
    if most >= DENSE_SUM_LIMIT:
        worst, kind = bounds.layer_largest_sum(layer, levels), layer.synapses.kind.capitalize()
        what = f"a sum can reach {worst}; Lava's {kind} adds in 32 bits"
        yield Problem(_where(layer), what, FEWER_BITS)


def _conv_problems(layer: LifLayer, levels: int) -> Iterator[Problem]:
    conv: Any = layer.synapses
    for what, pair in (
        ("kernel", conv.weight.shape[2:]),
        ("stride", conv.stride),
        ("padding", conv.padding),
        ("dilation", conv.dilation),
    ):
        if max(pair) > CONV_INT8_MAX:
            limit = f"Lava's Conv counts to {CONV_INT8_MAX}"
            yield Problem(_where(layer), f"{what} {tuple(pair)}: {limit}", "use a smaller one")
    worst = bounds.layer_largest_sum(layer, levels) << max(layer.exp, 0)
    if worst >= CONV_SUM_LIMIT:
        what = f"a sum can reach {worst}; Lava's Conv wraps at {CONV_SUM_LIMIT}"
        yield Problem(_where(layer), what, FEWER_BITS)


def _state_problems(
    layer: LifLayer, levels: int, timesteps: int, chip: chips.Chip
) -> Iterator[Problem]:
    """An ideal chip never overflows, Loihi's registers do: only what provably fits may go."""
    # Exponents and decays outside their fields are named by _range_problems.
    if chip.state_limit is None or min(layer.du, layer.dv, layer.exp, layer.bias_exp) < 0:
        return
    top = bounds.layer_largest_state(layer, levels, timesteps)
    if top >= chip.state_limit:
        yield Problem(
            layer.name,
            f"u or v can reach {top}; {chip.title} holds {chip.state_limit - 1}",
            f"quantize for chip {chip.name}",
        )


@dataclass(frozen=True)
class Rules:
    """What Lava makes of one kind of synapses.

    ``fitted`` gives equal ones that Lava can count, ``problems`` what it cannot carry of a layer with
    inputs 0..levels.
    """

    fitted: Callable[[Any], Synapses]
    problems: Callable[[LifLayer, int], Iterator[Problem]]


def _same(value: Any) -> Any:
    return value


WHO = "Lava"
# By kind: a population as LIF neurons, and the rules of synapses. lava.py writes the same kinds.
POPULATIONS: dict[str, Callable[[Any], LifLayer]] = {"lif": _same, "or_pool": _pool_as_lif}
SYNAPSES: dict[str, Rules] = {
    "conv": Rules(_merge_groups, _conv_problems),
    "dense": Rules(_same, _dense_problems),
    "sparse": Rules(_same, _sum_problems),
}
