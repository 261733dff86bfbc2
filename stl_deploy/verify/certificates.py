"""Certificates: spikes of the integer network that are proved equal to the float model's.

A layer is given the float model's spikes. For every entry (sample, step, neuron) the integer voltage
is bounded *without running the integer network*: float voltage, plus the signed error of the weights
on the inputs that really came, plus what decay, registers and float rounding can do at most. Where
all of that lies on one side of the integer threshold the integer spike is known. It is *certified*
where it is also the float spike. docs/parity.md has the proof; ``stl_deploy/verify/intervals.py`` the loop.

What this does not cover (current memory, another reset, an unknown field of a layer) is not
certified at all, and ``certifiers`` says why.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import nir
import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array

from stl_deploy.chips import facts as chips
from stl_deploy.ir import conv
from stl_deploy.ir import floats as float_layers
from stl_deploy.ir.float_chain import FloatLayer
from stl_deploy.ir.floats import FloatNetwork
from stl_deploy.ir.kinds import FIELDS, entry, missing, unknown_fields
from stl_deploy.ir.chain import Layer, LifLayer, OrPool
from stl_deploy.ir.network import IntegerNetwork
from stl_deploy.ir.synapses import Conv, Dense, Geometry, Sparse
from stl_deploy.ir.units import DECAY_BITS, DECAY_ONE, FRACTION_BITS, UNIT
from stl_deploy.verify import intervals

Float = NDArray[np.float64]
Bytes = NDArray[np.uint8]
ROUND = 2.0**-52  # twice what one rounding of a float64 can change, relatively
EXACT = FRACTION_BITS + 1  # steps in which halving v loses none of its fractional bits
LARGEST = 2.0**50  # units of v, beyond which float64 would not tell neighbours apart
KNOWN = FIELDS - {"recurrent", "recurrent_name", "reset"}


@dataclass(frozen=True, eq=False)
class Verdicts:
    """What is known of a layer's integer spikes, arrays [N, T, *shape].

    ``silent`` and ``fires``: proved so; ``refuted``: the float voltage contradicts the float spike,
    which cannot be. ``bound`` float64: how far the integer voltage and the float one, before the
    reset, can be apart in the float model's units; None unless asked for.
    """

    silent: NDArray[np.bool_]
    fires: NDArray[np.bool_]
    refuted: NDArray[np.bool_]
    bound: Float | None = None

    def certified(self, spikes: Bytes) -> NDArray[np.bool_]:
        """Where the integer spike is proved to be the float one of ``spikes``."""
        equal: NDArray[np.bool_] = np.where(spikes != 0, self.fires, self.silent) & ~self.refuted
        return equal

    def wrong(self, spikes: Bytes) -> NDArray[np.bool_]:
        """Where the ``spikes`` of the integer network contradict what was proved."""
        contradicted: NDArray[np.bool_] = np.where(spikes != 0, self.silent, self.fires)
        return contradicted | self.refuted


def certifiers(
    network: IntegerNetwork, graph: nir.NIRGraph, source: nir.NIRGraph | None = None
) -> dict[str, Certifier | str]:
    """What certifies each layer of ``network``, or in words why nothing does.

    ``graph`` is the lowered float graph; ``source`` the one before it was lowered, where the float model
    is computed as that says: its rounding errors are larger where folding lets terms cancel.
    """
    floats = float_layers.decode(graph)
    magnitudes = float_layers.magnitudes(graph)
    for name, peak in ({} if source is None else float_layers.magnitudes(source)).items():
        magnitudes[name] = np.maximum(magnitudes[name], peak)
    out: dict[str, Certifier | str] = {}
    for layer in network.layers:
        known = floats.layer_by_name.get(layer.name)
        if known is None:
            out[layer.name] = "the float graph has no such layer"
        else:
            out[layer.name] = not_understood(floats, known) or _certifier(
                network, layer, known, magnitudes
            )
    return out


def not_understood(floats: FloatNetwork, layer: FloatLayer) -> str:
    """In words, what of a float layer the proof is not about; "" where it is."""
    if layer.kind == "or_pool":
        return ""
    if layer.kind == "other":
        return layer.describe()
    neurons = layer.neurons
    if neurons.has_current:
        return "its neurons have a synaptic current"
    if (neurons.v_reset != 0).any() or neurons.leak.any():
        return "v_leak or v_reset is not zero"
    if np.ptp(neurons.step) != 0 or np.ptp(neurons.gain) != 0:
        return "its neurons have different time constants"
    if floats.trained is not None:
        halves = (np.rint(DECAY_ONE * neurons.step) == DECAY_ONE // 2).all()
        if floats.meta is None or not halves or floats.meta.timesteps > EXACT:
            return "it was trained on integers, and its decay truncates as theirs does"
    return ""


def _certifier(
    network: IntegerNetwork, layer: Layer, known: FloatLayer, magnitudes: dict[str, Float]
) -> Certifier | str:
    if layer.kind not in CERTIFIERS:
        return missing(CERTIFIERS, layer.kind, layer.name, "the proof").what
    if known.kind != layer.kind:
        return "the float layer of this name is of another kind"
    try:
        return CERTIFIERS[layer.kind](network, layer, known, magnitudes)
    except _NotCovered as why:
        return str(why)


class _NotCovered(Exception):
    """In words, what of a layer the proof does not cover."""


class PoolCertifier:
    """OR pools: given equal inputs, float and integer pool are the same function.

    Raises _NotCovered for graded inputs, and for other windows than those of the float layer.
    """

    def __init__(self, layer: OrPool, floats: FloatLayer, levels: int = 1) -> None:
        if levels > 1:
            raise _NotCovered("it pools graded inputs")
        if (layer.kernel, layer.input_shape) != (floats.window.kernel, floats.input_shape):
            raise _NotCovered("its windows are not those of the float layer")
        self.layer, self.floats = layer, floats

    def run(self, inputs: Bytes, spikes: Bytes, bounds: bool = False) -> Verdicts:
        """See ``LifCertifier.run``; a pool has no voltage and no bound."""
        kh, kw = self.layer.kernel
        fires = np.zeros(spikes.shape, np.bool_)
        for i, j in np.ndindex(kh, kw):
            fires |= inputs[..., i::kh, j::kw] != 0
        return Verdicts(~fires, fires, fires != (spikes != 0))


class LifCertifier:
    """Certifies one LIF layer.

    Args:
        layer: the integers; ``floats``: the float layer they stand for.
        magnitude: float64 [O], see ``float_layers.magnitudes``.
        chip, levels, steps: registers, largest input, time steps.

    Raises _NotCovered for what the proof does not hold for.
    """

    def __init__(
        self,
        layer: LifLayer,
        floats: FloatLayer,
        magnitude: Float,
        chip: chips.Chip,
        levels: int,
        steps: int,
    ) -> None:
        _check(layer, floats)
        self.layer, self.floats, self.steps = layer, floats, steps
        self.limit = float(chip.state_limit or 0)
        self.kept = (DECAY_ONE - layer.dv) / DECAY_ONE
        self.exact = _exact_decays(layer)
        self.unit = layer.scale / UNIT  # of v, in the float model's units
        self.errors = weight_errors(layer, floats)
        bias = layer.bias_mant * 2.0**layer.bias_exp * self.unit
        per_channel = layer.neurons // len(floats.bias)
        float_bias = np.repeat(floats.bias, per_channel)
        integer_bias = self._by_neuron(bias)
        stays = (layer.vth.astype(np.float64) * UNIT).reshape(-1) * self._by_neuron(self.unit)
        slack = self._slack(np.repeat(magnitude, per_channel), stays, levels)
        self.cells = intervals.Cells(
            bias=float_bias,
            bias_error=integer_bias - float_bias,
            integer_bias=integer_bias,
            theta=floats.theta.reshape(-1),
            stays=stays,
            fires=stays + self._by_neuron(self.unit),
            unit=self._by_neuron(self.unit),
            slack=slack,
        )

    def run(self, inputs: Bytes, spikes: Bytes, bounds: bool = False) -> Verdicts:
        """Judge every entry.

        Args:
            inputs: [N, T, *input_shape], what both layers receive.
            spikes: [N, T, *shape] of the float layer on these inputs, uint8.
            bounds: whether ``Verdicts.bound`` is wanted.
        """
        n, steps = inputs.shape[:2]
        if steps > self.steps:
            raise ValueError(f"{steps} steps, where rounding was bounded for {self.steps}")
        size = (n, steps, self.layer.neurons)
        verdicts = np.zeros(size, np.uint8)
        bound = np.zeros(size if bounds else (0, 0, 0))
        intervals.follow(
            self.sums(inputs),
            np.require(spikes.reshape(size), np.uint8, ["C", "W"]),
            self.cells,
            self.floats.keep,
            self.kept,
            self.exact,
            self.limit,
            verdicts,
            bound,
        )
        shape = (n, steps, *self.layer.shape)
        verdicts = verdicts.reshape(shape)
        return Verdicts(
            (verdicts & intervals.SILENT) != 0,
            (verdicts & intervals.FIRES) != 0,
            (verdicts & intervals.REFUTED) != 0,
            bound.reshape(shape) if bounds else None,
        )

    def sums(self, inputs: Bytes) -> Float:
        """float64 [N, T, 2, neurons]: weighted inputs of the float layer, and the weights' error."""
        n, steps = inputs.shape[:2]
        x = inputs.reshape(n * steps, *self.layer.input_shape).astype(np.float64)
        weight, error = self.floats.weight, self.errors
        geometry = self.floats.geometry
        if not isinstance(error, np.ndarray):
            flat = x.reshape(len(x), -1)
            parts = [_weighted(geometry, x, weight).reshape(len(x), -1), (error @ flat.T).T]
            sums = np.stack(parts, axis=1)
        elif geometry is not None and geometry.groups > 1:
            sums = np.stack([_weighted(geometry, x, w) for w in (weight, error)], axis=1)
        else:
            # One pass over the inputs for both.
            sums = _weighted(geometry, x, np.concatenate([weight, error]))
        return np.ascontiguousarray(sums).reshape(n, steps, 2, self.layer.neurons)

    def _by_neuron(self, values: Float) -> Float:
        """Values of the layer's channels [O], or of its neurons, one for each neuron."""
        return np.repeat(values, self.layer.neurons // len(values))

    def _slack(self, magnitude: Float, stays: Float, levels: int) -> Float:
        """What rounding in float64 may add up to, of each neuron [neurons], outward.

        The float model, its voltage here, and the error sum (of two magnitudes) are four sums of
        so many terms a step; the voltages of both take a few roundings more. Raises _NotCovered
        where float64 could not tell one unit of v from the next.
        """
        layer, steps = self.layer, self.steps
        weight = layer.synapses.row_sums(np.abs(layer.synapses.weight.astype(np.int64)))
        bias = np.abs(layer.bias_mant) * 2.0**layer.bias_exp * self.unit
        integer = weight * (self.unit * UNIT * 2.0**layer.exp) * levels + bias
        magnitude = np.maximum(magnitude, self._by_neuron(integer))
        keep = max(self.floats.keep, self.kept)
        horizon = float(steps) if keep >= 1 else min(float(steps), 1 / (1 - keep))
        largest = np.maximum(horizon * magnitude, np.abs(stays))
        if not (largest / self._by_neuron(self.unit) < LARGEST).all():
            raise _NotCovered("its voltages have more digits than a float64")
        terms = self.floats.weight[0].size + 16
        slack: Float = 2 * horizon * ROUND * (4 * terms * magnitude + 16 * largest)
        return slack


Certifier = LifCertifier | PoolCertifier


def _certify_lif(
    network: IntegerNetwork, layer: LifLayer, known: FloatLayer, magnitudes: dict[str, Float]
) -> LifCertifier:
    chip, levels = chips.of(network), network.input_limit(layer)
    return LifCertifier(layer, known, magnitudes[layer.name], chip, levels, network.timesteps)


def _certify_pool(
    network: IntegerNetwork, layer: OrPool, known: FloatLayer, _magnitudes: dict[str, Float]
) -> PoolCertifier:
    return PoolCertifier(layer, known, network.input_limit(layer))


# What certifies a layer and the float layer of the same kind. They raise _NotCovered.
CERTIFIERS: dict[str, Callable[[IntegerNetwork, Any, Any, dict[str, Float]], Certifier]] = {
    "lif": _certify_lif,
    "or_pool": _certify_pool,
}


def weight_errors(layer: LifLayer, floats: FloatLayer) -> Any:
    """Integer weights minus float ones, in the float model's units.

    An array of the float weight's shape, or for single connections a sparse matrix float64
    [neurons, inputs].
    """
    compare = entry(ERRORS, layer.synapses.kind, layer.name, "the proof")
    return compare(layer, layer.synapses, floats)


def _errors_of_weights(layer: LifLayer, mine: Conv | Dense, floats: FloatLayer) -> Float:
    return mine.scaled(layer.scale * 2.0**layer.exp) - floats.weight


def _errors_of_connections(
    layer: LifLayer, mine: Sparse, floats: FloatLayer
) -> csr_array[np.float64]:
    row, column, weight = unrolled(layer, floats)
    exact = csr_array((weight, (row, column)), shape=mine.size)
    return mine.scaled(layer.scale * 2.0**layer.exp) - exact


ERRORS: dict[str, Callable[[LifLayer, Any, FloatLayer], Any]] = {
    "conv": _errors_of_weights,
    "dense": _errors_of_weights,
    "sparse": _errors_of_connections,
}


def unrolled(layer: LifLayer, floats: FloatLayer) -> tuple[Any, Any, Float]:
    """(neuron, input, weight) of every in-bounds synapse of the float layer."""
    if floats.geometry is None:
        row, column = np.indices(floats.weight.shape, np.int32).reshape(2, -1)
        return row, column, floats.weight.reshape(-1)
    (c, h, w), (o, y, x) = layer.input_shape, layer.shape
    return conv.unroll(floats.weight, (c, h, w), (o, y, x), *floats.geometry)


def _weighted(geometry: Geometry | None, x: Float, weight: Float) -> Float:
    """x [N, ...] through ``weight``, without bias."""
    if geometry is None:
        product: Float = x.reshape(len(x), -1) @ weight.T
        return product
    import torch

    with torch.inference_mode():
        out: Float = torch.nn.functional.conv2d(
            torch.from_numpy(x), torch.from_numpy(weight), None, *geometry
        ).numpy()
    return out


def _exact_decays(layer: LifLayer) -> int:
    """How many decays in a row, from a reset on, lose nothing because the bits lost are zero."""
    lost = _bits_lost(layer)
    return _zero_bits(layer) // lost if lost else 1 << 30


def _bits_lost(layer: LifLayer) -> int:
    """Bits that one decay shifts out."""
    kept = DECAY_ONE - layer.dv
    return DECAY_BITS - min(DECAY_BITS, (kept & -kept).bit_length() - 1)


def _zero_bits(layer: LifLayer) -> int:
    """Lowest bits of v that no input and no bias sets."""
    zeros = FRACTION_BITS + layer.exp
    return min(zeros, layer.bias_exp) if layer.bias_mant.any() else zeros


def grain(layer: LifLayer, decays: int) -> int:
    """What v is a multiple of, so many decays after it was zero, unless a register cut it off."""
    return 1 << max(0, _zero_bits(layer) - _bits_lost(layer) * decays)


def _check(layer: LifLayer, floats: FloatLayer) -> None:
    """Raise _NotCovered for a layer that the proof is not about."""
    for name in unknown_fields(layer, KNOWN):
        raise _NotCovered(f"its {name} is not known here")
    if layer.has_current:
        raise _NotCovered("its synaptic current has a memory")
    if not 0 <= layer.dv < DECAY_ONE or not 0 <= layer.exp <= 16 or not 0 <= layer.bias_exp <= 16:
        raise _NotCovered("its decay or exponents are outside the registers")
    if not (np.isfinite(layer.scale) & (layer.scale > 0)).all():
        raise _NotCovered("its scale is not positive")
    if np.abs(layer.bias_mant.astype(np.int64) << layer.bias_exp).max(initial=0) >= 1 << 30:
        raise _NotCovered("its bias is as large as its registers")
    if layer.input_shape != floats.input_shape or layer.shape != floats.shape:
        raise _NotCovered("its shape is not that of the float layer")
    if not 0 <= floats.keep <= 1:
        raise _NotCovered("the float layer's decay is not between 0 and 1")
    _check_geometry(layer, floats)


def _check_geometry(layer: LifLayer, floats: FloatLayer) -> None:
    """Raise _NotCovered unless the weights go where the float layer's go."""
    mine = layer.synapses
    if mine.kind == "sparse" and floats.geometry is not None:
        return
    if mine.weight.shape == floats.weight.shape and mine.geometry == floats.geometry:
        return
    raise _NotCovered("its synapses do not lie where the float layer's do")
