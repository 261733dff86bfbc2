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
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import solve_triangular

from stl_deploy.chips.arithmetic import kept_current, kept_voltage
from stl_deploy.chips.facts import Chip
from stl_deploy.hw_sim import engine
from stl_deploy.ir import execute as float_exec
from stl_deploy.ir.conv import windows
from stl_deploy.ir.floats import FloatNetwork
from stl_deploy.ir.network import Connection, IntegerNetwork
from stl_deploy.ir.neurons import Each
from stl_deploy.ir.notes import Diagnostic
from stl_deploy.ir.synapses import IntArray, Shape
from stl_deploy.ir.units import FORGETS
from stl_deploy.lower.integers import Integers, with_neurons

Float = NDArray[np.float64]
Single = NDArray[np.float32]
Spikes = NDArray[np.uint8]

SAMPLES = 1024  # of the calibration raster, the first ones; more are not looked at
ROWS = 2**18  # patches of a convolution that are looked at, evenly spread over places and steps
BATCH = 32
COLUMNS = 1 << 14  # inputs to a neuron whose moments are worth their memory
DAMPING = 0.01  # of the mean of H's diagonal, added to it: inputs seldom seen stay near to nearest
BLOCK = 128  # columns whose corrections are applied to all later ones at once
WINDOW = 8  # steps of vth to either side that are tried: as many units of a weight


@dataclass(frozen=True, eq=False)
class Recording:
    """What the float model was given and fired.

    ``inputs`` holds [N, T, *shape] of each input by name, with N at most SAMPLES; ``packed`` the spikes of
    each population by name, bit by bit, and ``shapes`` their shapes. ``largest`` is the largest magnitude
    that a population sent in any sample, of those that send other values than spikes.
    """

    inputs: Mapping[str, IntArray]
    packed: Mapping[str, Spikes]
    shapes: Mapping[str, Shape]
    largest: Mapping[str, float] = field(default_factory=dict)

    @property
    def samples(self) -> int:
        """How many samples there are."""
        return len(next(iter(self.inputs.values())))

    @property
    def steps(self) -> int:
        """How many steps each has."""
        return int(next(iter(self.inputs.values())).shape[1])

    def with_input(self, name: str, values: IntArray) -> Recording:
        """The recording with one more source, [N, T, *shape]."""
        return replace(self, inputs={**self.inputs, name: values})

    def batches(self, names: Sequence[str]) -> Iterator[dict[str, IntArray]]:
        """What inputs and populations sent, [n, T, *shape] by name, some samples at a time."""
        for start in range(0, self.samples, BATCH):
            part = slice(start, start + BATCH)
            yield {name: self._sent(name, part) for name in names}

    def _sent(self, name: str, part: slice) -> IntArray:
        if name in self.inputs:
            return self.inputs[name][part]
        size = math.prod(self.shapes[name])
        bits = np.unpackbits(self.packed[name][part], axis=-1, count=size)
        return bits.reshape(*bits.shape[:2], *self.shapes[name])


def record(
    network: FloatNetwork,
    calib: Mapping[str, IntArray],
    observe: Callable[[str, Float], None] | None = None,
) -> Recording:
    """Run the float ``network`` on ``calib``, [N, T, *shape] of each input, and keep the first SAMPLES.

    ``observe`` is called as in ``float_exec.run``, for all samples.
    """
    parts: dict[str, list[Spikes]] = {}
    largest: dict[str, float] = {}
    shapes: dict[str, Shape] = {}
    count = len(next(iter(calib.values())))
    for start in range(0, count, BATCH):
        batch = {name: x[start : start + BATCH] for name, x in calib.items()}
        for name, spikes in float_exec.run(network, batch, observe).items():
            shapes[name] = spikes.shape[2:]
            if network.by_name[name].neurons.graded:
                here = float(np.abs(spikes).max(initial=0))
                largest[name] = max(largest.get(name, 0.0), here)
                continue
            kept = spikes[: max(0, SAMPLES - start)].reshape(
                -1, spikes.shape[1], math.prod(shapes[name])
            )
            parts.setdefault(name, []).append(np.packbits(kept, axis=-1))
    packed = {name: np.concatenate(part) for name, part in parts.items()}
    return Recording({name: x[:SAMPLES] for name, x in calib.items()}, packed, shapes, largest)


class Fitting:
    """Weights and biases of a population fitted to what the float model did, for any units."""

    def __init__(self, integers: Integers, recording: Recording) -> None:
        self.integers = integers
        target = integers.target
        kernels = any(rows.kind == "conv" for rows in target.rows)
        kind = "conv" if kernels else "dense"
        # A weight into a single neuron has nothing next to it that could make up for its error.
        self.fitted = [
            i
            for i, rows in enumerate(target.rows)
            if rows.kind == kind and not rows.fine and not rows.port
        ]
        self.beside = [
            rows.name
            for i, rows in enumerate(target.rows)
            if not rows.fine and i not in self.fitted
        ]
        columns = sum(target.rows[i].weight[0].size for i in self.fitted)
        self.too_many = columns if columns > COLUMNS else 0
        plain = integers.network(np.ones(target.channels))
        self.second = None
        if self.fitted and not self.too_many:
            self.second = moments(plain, [plain.connections[i] for i in self.fitted], recording)

    def left_out(self) -> list[Diagnostic]:
        """Say which weights are not fitted."""
        name = self.integers.target.name
        if self.too_many:
            what = f"has {self.too_many:,} inputs to a neuron, of which {COLUMNS:,} can be fitted"
            return [Diagnostic(name, f"{what}; its weights are rounded to nearest")]
        if self.beside:
            which = "weights of the second current are not fitted"
            if not any(rows.port for rows in self.integers.target.rows):
                which = "only kernels are fitted there"
            what = f"{', '.join(self.beside)}: rounded to nearest, as {which}"
            return [Diagnostic(name, what)]
        return []

    def network(self, units: Float) -> IntegerNetwork:
        """The population with these units [C], its weights and bias rounded by ``compensate``."""
        network = self.integers.network(units)
        if self.second is None:
            return network
        target, grid = self.integers.target, self.integers.grid
        rows = [target.rows[i] for i in self.fitted]
        count = len(rows[0].weight)
        bias = self._bias(count)
        parts = [some.weight.reshape(count, -1) for some in rows]
        of_rows = np.repeat(units, count // len(units))
        exact = np.concatenate([*parts, bias[:, None]], axis=1) / of_rows[:, None]
        steps = np.ones(exact.shape[1])
        most = np.full(exact.shape[1], float(self.integers.options.qmax))
        steps[-1] = 1 / grid
        most[-1] = steps[-1] * self.integers.chip.bias_mant_range[1] if bias.any() else 0.0
        rounded = np.concatenate(
            [
                compensate(some, moment, steps, most)
                for some, moment in zip(np.split(exact, len(self.second)), self.second, strict=True)
            ]
        )
        ends = np.cumsum([part.shape[1] for part in parts])[:-1]
        pairs = zip(self.fitted, np.split(rounded[:, :-1], ends, axis=1), strict=True)
        changed = [self._with(network.connections[i], weight) for i, weight in pairs]
        network = network.changed(*changed)
        if not bias.any():
            return network
        mantissa = np.rint(rounded[:, -1] / steps[-1]).astype(np.int32)
        shape = target.shape if count == target.size else target.bias.shape
        return with_neurons(network, bias_mant=mantissa.reshape(shape))

    def _bias(self, count: int) -> Float:
        """The bias of each of ``count`` rows; none where neurons that share a row differ in it."""
        target = self.integers.target
        if count == target.size:
            return np.broadcast_to(target.bias, target.shape).reshape(-1)
        return target.bias.reshape(-1) if target.bias.size == count else np.zeros(count)

    def _with(self, connection: Connection, weight: Float) -> Connection:
        old = connection.synapses.weight
        new = weight.reshape(old.shape).astype(old.dtype)
        return replace(connection, synapses=connection.synapses.with_weights(new))


def moments(
    network: IntegerNetwork, connections: Sequence[Connection], recording: Recording
) -> Float:
    """Second moments H float64 [groups, n, n] of what the voltages of a population add up.

    ``connections`` lead into the only population of ``network``, and share its rows. The n columns are the
    inputs of a row (of a group's patch) over one connection after the other, then a 1 for the bias. With few
    rows of data the moments of pairs are drawn toward zero, by rows / (rows + n). Of decays that differ
    between the neurons those in the middle are taken for all.
    """
    (population,) = network.populations
    rng = np.random.default_rng(0)
    steps = recording.steps
    du, dv = _middle(population.neurons.du), _middle(population.neurons.dv)
    constant = _traced(np.ones((1, steps, 1), np.float32), dv, FORGETS).ravel()
    places = population.size // len(connections[0].synapses.weight)
    groups = math.lcm(*(_groups(connection) for connection in connections))
    share = min(1.0, ROWS / (recording.samples * steps * places))
    total: Float | float = 0.0
    rows = 0
    for sent in recording.batches([connection.source for connection in connections]):
        n = len(next(iter(sent.values())))
        rows_here = n * steps * places
        chosen = np.arange(rows_here)
        if share < 1:
            chosen = np.sort(rng.choice(rows_here, math.ceil(share * rows_here), replace=False))
        step = chosen // places % steps
        parts = []
        for connection in connections:
            x = sent[connection.source].astype(np.float32)
            x = _traced(_late(x.reshape(n, steps, -1), connection.delay), dv, du)
            frames = x.reshape(n * steps, *network.shape(connection.source))
            columns = _columns(connection, population.shape, frames, chosen)
            parts.append(np.repeat(columns, groups // len(columns), axis=0))
        parts.append(np.broadcast_to(constant[step][:, None], (groups, len(step), 1)))
        x = np.concatenate(parts, axis=2)
        total = total + np.matmul(x.transpose(0, 2, 1), x).astype(np.float64)
        rows += len(chosen)
    mean: Float = np.asarray(total) / rows
    # Fewer rows than columns say little of how inputs go together: trust them the less.
    trust = rows / (rows + mean.shape[1])
    return np.where(np.eye(mean.shape[1], dtype=bool), mean, trust * mean)


def _groups(connection: Connection) -> int:
    geometry = connection.synapses.geometry
    return 1 if geometry is None else geometry.groups


def _middle(constant: Each) -> int:
    """The decay constant of all neurons, or the one in the middle."""
    return int(np.median(constant))


def _late(x: Single, delay: int) -> Single:
    """x [N, T, n] as it arrives, ``delay`` steps later."""
    if not delay:
        return x
    late = np.zeros_like(x)
    late[:, delay:] = x[:, :-delay]
    return late


def _traced(x: Single, dv: int, du: int) -> Single:
    """x [N, T, n] as v holds it: through the current, then added up and decaying, without a spike."""
    current = voltage = np.zeros_like(x[:, 0])
    out = np.empty_like(x)
    for t in range(x.shape[1]):
        current = current * np.float32(kept_current(du)) + x[:, t]
        voltage = voltage * np.float32(kept_voltage(dv)) + current
        out[:, t] = voltage
    return out


def _columns(connection: Connection, shape: Shape, x: Single, chosen: IntArray) -> Single:
    """The inputs [groups, len(chosen), n] of rows of weights, of frames x [frames, *source].

    ``chosen`` counts places of a population of ``shape``, in C order.
    """
    conv = connection.synapses
    if conv.kind != "conv":
        return x.reshape(1, len(x), -1)[:, chosen]
    seen = windows(x, conv.weight.shape[2:], conv.stride, conv.padding, conv.dilation)
    frame, row, column = np.unravel_index(chosen, (len(x), *shape[1:]))
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


def thresholds(network: IntegerNetwork, chip: Chip, recording: Recording) -> NDArray[np.int32]:
    """The vth of every neuron, int32 of its shape, whose spikes agree most with the float ones.

    Tried are WINDOW steps to either side of those of the only population of ``network``, and WINDOW steps
    of 2, 4, .. 2^exp, as far as the register of ``chip`` goes; of equals the nearest one is taken, then the
    lower.
    """
    (population,) = network.populations
    vth = population.neurons.vth
    if not network.inputs:
        return vth
    low, high = chip.threshold_range
    window = range(-WINDOW, WINDOW + 1)
    exp = max((connection.exp for connection in network.connections), default=0)
    moved = sorted({by << e for by in window for e in range(exp + 1)}, key=_by_distance)
    tried = [np.clip(vth + by, low, high).astype(np.int32) for by in moved]
    wrong = np.zeros((len(tried), *population.shape), np.int64)
    for count, one in zip(wrong, tried, strict=True):
        # Prepared once for all batches: that takes as long as to run some of them.
        candidate = engine.Engine(with_neurons(network, vth=one))
        for sent in recording.batches([*network.inputs, population.name]):
            did = candidate.run({name: sent[name] for name in network.inputs})
            fired = did.layers[population.name].spikes
            count += (fired != sent[population.name]).sum(axis=(0, 1))
    best = np.argmin(wrong, axis=0)
    chosen: NDArray[np.int32] = np.take_along_axis(np.stack(tried), best[None], axis=0)[0]
    return chosen


def _by_distance(by: int) -> tuple[int, int]:
    return abs(by), by
