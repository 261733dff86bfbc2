"""Weights and thresholds fitted to unlabelled inputs: what ``--calib`` adds to rounding to nearest.

**Weights.** Rounding each weight for itself leaves an error dw of a row, and the neuron a voltage error
dw @ x with x the inputs as v adds them up: the sum over the steps of s_in, weakened by the decays; that
the neuron's own spikes reset v is left aside. Its mean square is dw H dw' with H = mean(x x'). Columns are
rounded one after the other, and what each leaves behind is made up for by the columns that are still free
(GPTQ: Frantar et al. 2023, arXiv:2210.17323):

    e = (w[j] - q[j]) / U[j, j];   w[k] -= e * U[j, k] for k > j;   U'U = inverse(H + damping)

The bias is one more column, whose input is always 1; it comes last. Where a layer has none, what would be
left to it is left to the thresholds.

**Thresholds.** Then every neuron takes the vth, near to the one that the rule for thresholds gives, with
which its spikes agree most often with those of the float model.

Every layer is fed with the float model's spikes. Grids, units and registers stay those of the quantizer.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import solve_triangular

from stl_deploy.chips.arithmetic import kept_current, kept_voltage
from stl_deploy.chips.facts import Chip
from stl_deploy.hw_sim.engine import Engine
from stl_deploy.ir import chain as chain_view
from stl_deploy.ir import execute as float_exec
from stl_deploy.ir.conv import windows
from stl_deploy.ir.floats import FloatNetwork
from stl_deploy.ir.chain import LifLayer
from stl_deploy.ir.network import IntegerNetwork, Readout
from stl_deploy.ir.synapses import IntArray
from stl_deploy.ir.units import FORGETS

Float = NDArray[np.float64]
Single = NDArray[np.float32]
Spikes = NDArray[np.uint8]

SAMPLES = 1024  # of the calibration raster, the first ones; more are not looked at
ROWS = 2**18  # patches of a convolution that are looked at, evenly spread over places and steps
BATCH = 32
DAMPING = 0.01  # of the mean of H's diagonal, added to it: inputs seldom seen stay near to nearest
BLOCK = 128  # columns whose corrections are applied to all later ones at once
WINDOW = 8  # steps of vth to either side that are tried: as many units of a weight


@dataclass(frozen=True, eq=False)
class Recording:
    """What the float model fired on the calibration inputs.

    ``inputs`` is uint8 [N, T, *input_shape] with N at most SAMPLES; ``packed`` holds the spikes of each
    population by name, bit by bit, and ``shapes`` their shapes.
    """

    inputs: Spikes
    packed: dict[str, Spikes]
    shapes: dict[str, tuple[int, ...]]

    def batches(self, name: str) -> Iterator[Spikes]:
        """The spikes of population ``name`` ("": the inputs), uint8 [n, T, *shape] each."""
        for start in range(0, len(self.inputs), BATCH):
            part = slice(start, start + BATCH)
            if not name:
                yield self.inputs[part]
                continue
            size = math.prod(self.shapes[name])
            bits = np.unpackbits(self.packed[name][part], axis=-1, count=size)
            yield bits.reshape(*bits.shape[:2], *self.shapes[name])


def record(
    network: FloatNetwork, calib: Spikes, observe: Callable[[str, Float], None] | None = None
) -> Recording:
    """Run the float ``network`` on ``calib`` uint8 [N, T, *input_shape], and keep the first SAMPLES.

    ``observe`` is called as in ``float_exec.run``, for all samples.
    """
    parts: dict[str, list[Spikes]] = {}
    shapes: dict[str, tuple[int, ...]] = {}
    for start in range(0, len(calib), BATCH):
        for name, spikes in float_exec.run(network, calib[start : start + BATCH], observe).items():
            shapes[name] = spikes.shape[2:]
            kept = spikes[: max(0, SAMPLES - start)].reshape(
                -1, spikes.shape[1], math.prod(shapes[name])
            )
            parts.setdefault(name, []).append(np.packbits(kept, axis=-1))
    packed = {name: np.concatenate(part) for name, part in parts.items()}
    return Recording(calib[:SAMPLES], packed, shapes)


def moments(layer: LifLayer, before: str, recording: Recording) -> Float:
    """Second moments H float64 [groups, n, n] of what the voltages of ``layer`` add up.

    ``before`` names the population that feeds it, "" for the inputs. The n columns are the inputs of a
    row (of a group's patch), then the layer's own neurons where it is recurrent, then a 1 for the bias.
    With few rows of data the moments of pairs are drawn toward zero, by rows / (rows + n).
    """
    rng = np.random.default_rng(0)
    steps = recording.inputs.shape[1]
    constant = _traced(np.ones((1, steps, 1), np.float32), layer.dv, FORGETS).ravel()
    own = recording.batches(layer.name) if layer.recurrent is not None else None
    share = min(1.0, ROWS / (len(recording.inputs) * steps * _places(layer)))
    total: Float | float = 0.0
    rows = 0
    for spikes in recording.batches(before):
        n = len(spikes)
        x = _traced(spikes.reshape(n, steps, -1).astype(np.float32), layer.dv, layer.du)
        rows_here = n * steps * _places(layer)
        chosen = np.arange(rows_here)
        if share < 1:
            chosen = np.sort(rng.choice(rows_here, math.ceil(share * rows_here), replace=False))
        x = _columns(layer, x.reshape(n * steps, *layer.input_shape), chosen)
        step = chosen // _places(layer) % steps
        parts = [x]
        if own is not None:
            before_step = np.zeros((n, steps, layer.neurons), np.float32)
            before_step[:, 1:] = next(own).reshape(n, steps, -1)[:, :-1]
            own_part = _traced(before_step, layer.dv, layer.du).reshape(1, n * steps, -1)
            parts.append(own_part[:, chosen])
        parts.append(np.broadcast_to(constant[step][:, None], (len(x), len(step), 1)))
        x = np.concatenate(parts, axis=2)
        total = total + np.matmul(x.transpose(0, 2, 1), x).astype(np.float64)
        rows += len(chosen)
    mean: Float = np.asarray(total) / rows
    # Fewer rows than columns say little of how inputs go together: trust them the less.
    trust = rows / (rows + mean.shape[1])
    return np.where(np.eye(mean.shape[1], dtype=bool), mean, trust * mean)


def _places(layer: LifLayer) -> int:
    """How many neurons share a row of weights."""
    return layer.neurons // len(layer.synapses.weight)


def _traced(x: Single, dv: int, du: int) -> Single:
    """x [N, T, n] as v holds it: through the current, then added up and decaying, without a spike."""
    current = voltage = np.zeros_like(x[:, 0])
    out = np.empty_like(x)
    for t in range(x.shape[1]):
        current = current * np.float32(kept_current(du)) + x[:, t]
        voltage = voltage * np.float32(kept_voltage(dv)) + current
        out[:, t] = voltage
    return out


def _columns(layer: LifLayer, x: Single, chosen: IntArray) -> Single:
    """The inputs [groups, len(chosen), n] of rows of weights; ``chosen`` counts places, in C order."""
    conv = layer.synapses
    if conv.kind != "conv":
        return x.reshape(1, len(x), -1)[:, chosen]
    seen = windows(x, conv.weight.shape[2:], conv.stride, conv.padding, conv.dilation)
    frame, row, column = np.unravel_index(chosen, (len(x), *layer.shape[1:]))
    picked = seen[frame, :, row, column].reshape(len(chosen), conv.groups, -1)
    return np.ascontiguousarray(picked.transpose(1, 0, 2))


def compensate(exact: Float, second: Float, steps: Float, most: Float) -> Float:
    """``exact`` rounded so that the mean square of its error times the inputs becomes small.

    Args:
        exact: rows of weights [O, n], in units of the grid.
        second: H [n, n] of their inputs.
        steps: [n], what a column is rounded to multiples of.
        most: [n], the largest magnitude a column may take; infinity for none.

    Returns:
        [O, n] on the grid. Columns are taken by falling mean square, the last one (the bias) last.
        A weight of exactly zero is not a synapse and stays zero.
    """
    order = np.append(np.argsort(-np.diag(second)[:-1], kind="stable"), len(second) - 1)
    damped = second + DAMPING * max(np.trace(second) / len(second), 1e-12) * np.eye(len(second))
    # U with U'U = inverse(H), from H alone: reversed, a lower factor of H becomes an upper one.
    flipped = np.linalg.cholesky(damped[order][:, order][::-1, ::-1])
    upper = solve_triangular(flipped, np.eye(len(order)), lower=True)[::-1, ::-1]
    left = exact[:, order].copy()
    absent = left == 0
    absent[:, -1] = False
    done = np.empty_like(left)
    for start in range(0, len(order), BLOCK):
        stop = min(start + BLOCK, len(order))
        errors = np.zeros((len(left), stop - start))
        for j in range(start, stop):
            step, limit = steps[order[j]], most[order[j]]
            rounded = np.clip(np.rint(left[:, j] / step) * step, -limit, limit)
            done[:, j] = np.where(absent[:, j], 0.0, rounded)
            errors[:, j - start] = (left[:, j] - done[:, j]) / upper[j, j]
            left[:, j + 1 : stop] -= np.outer(errors[:, j - start], upper[j, j + 1 : stop])
        left[:, stop:] -= errors @ upper[start:stop, stop:]
    out = np.empty_like(done)
    out[:, order] = done
    return out


def thresholds(
    layer: LifLayer,
    chip: Chip,
    levels: int,
    before: str,
    recording: Recording,
) -> NDArray[np.int32]:
    """The vth of every neuron, int32 of ``layer.shape``, whose spikes agree most with the float ones.

    Tried are WINDOW steps to either side of ``layer.vth``, and WINDOW steps of 2, 4, .. 2^exp, as far as
    the register of ``chip`` goes; of equals the nearest one to it is taken, then the lower. ``levels``
    is the largest input.
    """
    low, high = chip.threshold_range
    window = range(-WINDOW, WINDOW + 1)
    moved = sorted({by << e for by in window for e in range(layer.exp + 1)}, key=_by_distance)
    tried = [replace(layer, vth=np.clip(layer.vth + by, low, high)) for by in moved]
    wrong = np.zeros((len(tried), *layer.shape), np.int64)
    for count, candidate in zip(wrong, tried, strict=True):
        engine = Engine(_alone(candidate, chip, levels, recording))
        pairs = zip(recording.batches(before), recording.batches(layer.name), strict=True)
        for inputs, expected in pairs:
            shaped = inputs.reshape(*inputs.shape[:2], *layer.input_shape)
            count += (engine.run_layer(candidate, shaped).spikes != expected).sum(axis=(0, 1))
    best = np.argmin(wrong, axis=0)
    of_all = np.stack([one.vth for one in tried])
    vth: NDArray[np.int32] = np.take_along_axis(of_all, best[None], axis=0)[0].astype(np.int32)
    return vth


def _by_distance(by: int) -> tuple[int, int]:
    return abs(by), by


def _alone(layer: LifLayer, chip: Chip, levels: int, recording: Recording) -> IntegerNetwork:
    """A network of this layer only."""
    return chain_view.of(
        chip=chip.name,
        timesteps=recording.inputs.shape[1],
        input_shape=layer.input_shape,
        input_levels=levels,
        layers=(layer,),
        readout=Readout(1, layer.neurons),
    )
