"""Certificates: spikes of the integer network that are proved equal to the float model's.

A population is given the float model's spikes over all its connections, also those from itself. For every
entry (sample, step, neuron) the integer voltage is bounded *without running the integer network*: what
arrives in integers, plus what decay, registers and float rounding can do at most. Where all of that lies on
one side of the integer threshold the integer spike is known. It is *certified* where it is also the float
spike. docs/parity.md has the proof;
``stl_deploy/verify/intervals.py`` the loop.

What this does not cover (current memory, an unknown field of the neurons) is not certified at all, and
``certifiers`` says why.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import nir
import numpy as np
from numpy.typing import NDArray

from stl_deploy.chips import facts as chips
from stl_deploy.ir import floats as float_networks
from stl_deploy.ir.floats import FloatNetwork, FloatPopulation, Way
from stl_deploy.ir.kinds import missing, unknown_fields
from stl_deploy.ir.network import Connection, IntegerNetwork, Population
from stl_deploy.ir.neurons import of_channels
from stl_deploy.ir.synapses import Geometry
from stl_deploy.ir.units import DECAY_BITS, DECAY_ONE, FRACTION_BITS, UNIT
from stl_deploy.lower import rules
from stl_deploy.verify import intervals, pairs

Float = NDArray[np.float64]
Bytes = NDArray[np.uint8]
Sent = Mapping[str, NDArray[Any]]  # what inputs and populations send, [N, T, *shape] by name
ROUND = 2.0**-52  # twice what one rounding of a float64 can change, relatively
EXACT = FRACTION_BITS + 1  # steps in which halving v loses none of its fractional bits
LARGEST = 2.0**50  # units of v, beyond which float64 would not tell neighbours apart
COVERED = frozenset({"lif", "or"})  # kinds of neurons


@dataclass(frozen=True, eq=False)
class Verdicts:
    """What is known of a population's integer spikes, arrays [N, T, *shape].

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
    """What certifies each population of ``network``, or in words why nothing does.

    ``graph`` is the lowered float graph; ``source`` the one before it was lowered, where the float model
    is computed as that says: its rounding errors are larger where folding lets terms cancel.
    """
    floats = float_networks.decode(graph)
    before = {} if source is None else float_networks.magnitudes(source)
    return {p.name: certifier(network, p, floats, before.get(p.name)) for p in network.populations}


def certifier(
    network: IntegerNetwork,
    population: Population,
    floats: FloatNetwork,
    before: Float | None = None,
) -> Certifier | str:
    """What certifies ``population``, or in words why nothing does.

    ``before`` float64 [O] are the magnitudes of its sums before the float graph was lowered.
    """
    try:
        return Certifier(network, population, floats, before)
    except _NotCovered as why:
        return str(why)


class _NotCovered(Exception):
    """In words, what of a population the proof does not cover."""


class Certifier:
    """Certifies one population of ``network`` against that of its name in ``floats``.

    Raises _NotCovered for what the proof does not hold for.
    """

    def __init__(
        self,
        network: IntegerNetwork,
        population: Population,
        floats: FloatNetwork,
        before: Float | None = None,
    ) -> None:
        known = floats.by_name.get(population.name)
        if known is None and pairs.passes_on(network, population.name):
            does = "passes spikes on" if network.into(population.name) else "stands for a bias"
            raise _NotCovered(f"it {does}, and the float graph does not have it")
        if known is None:
            raise _NotCovered("the float graph has no such population")
        _check_floats(floats, known)
        _check(network, population, known)
        _check_sources(network, population, floats)
        self.network, self.population, self.floats, self.known = network, population, floats, known
        self.steps = network.timesteps
        neurons = population.neurons
        self.unit = self.each(neurons.scale) / UNIT  # of v, in the float model's units
        self.gain, self.leak = self.each(known.neurons.total_gain), self.each(known.neurons.leak)
        self.bias = self.each(known.bias) * self.gain + self.leak
        self.kept = (DECAY_ONE - self.each(neurons.dv)) / DECAY_ONE
        stays = self.each(neurons.vth) * UNIT * self.unit
        self.cells = intervals.Cells(
            keep=self.each(known.neurons.keep),
            kept=self.kept,
            bias=self.each(neurons.bias) * self.unit,
            theta=self.each(known.neurons.theta),
            threshold=self.each(known.neurons.threshold),
            stays=stays,
            fires=stays + self.unit,
            unit=self.unit,
            slack=self._slack(before, stays),
            exact=np.broadcast_to(_exact_decays(network, population), population.shape).reshape(-1),
        )
        self.rules = intervals.Rules(
            float_subtracts=known.neurons.reset == "subtract",
            subtracts=neurons.reset == "subtract",
            limit=float(chips.of(network).state_limit or 0),
        )

    def run(self, sent: Sent, spikes: Bytes, bounds: bool = False) -> Verdicts:
        """Judge every entry.

        Args:
            sent: what every source sends in the float model, [N, T, *shape]; the population may be left out.
                Relays, which the float model does not have, send what they then receive.
            spikes: [N, T, *shape] of the population in the float model, uint8.
            bounds: whether ``Verdicts.bound`` is wanted.
        """
        n, steps = spikes.shape[:2]
        if steps > self.steps:
            raise ValueError(f"{steps} steps, where rounding was bounded for {self.steps}")
        size = (n, steps, self.population.size)
        spikes = np.require(spikes.reshape(size), np.uint8, ["C", "W"])
        currents, integers = self.sums({**sent, self.population.name: spikes})
        currents += self.bias
        integers += self.cells.bias
        verdicts = np.zeros(size, np.uint8)
        bound = np.zeros(size if bounds else (0, 0, 0))
        intervals.follow(currents, integers, spikes, self.cells, self.rules, verdicts, bound)
        shape = (n, steps, *self.population.shape)
        verdicts = verdicts.reshape(shape)
        return Verdicts(
            (verdicts & intervals.SILENT) != 0,
            (verdicts & intervals.FIRES) != 0,
            (verdicts & intervals.REFUTED) != 0,
            bound.reshape(shape) if bounds else None,
        )

    def sums(self, sent: Sent) -> tuple[Float, Float]:
        """float64 [N, T, neurons]: what arrives in float and in integers, without the bias."""
        n, steps = sent[self.population.name].shape[:2]
        floats = np.zeros((n, steps, self.population.size))
        for way in self.floats.into(self.population.name):
            _add(
                floats,
                weighted(way.way, _flat(sent[way.source], self.floats.shape(way.source))),
                way.delay,
            )
        integers = np.zeros_like(floats)
        for c in self.network.into(self.population.name):
            _add(
                integers,
                self._sums(c, _flat(sent[c.source], self.network.shape(c.source))),
                c.delay,
            )
        floats *= self.gain
        integers *= UNIT * self.unit
        return floats, integers

    def each(self, values: Any) -> Float:
        """Values that broadcast to the population, one for each neuron: float64 [neurons]."""
        full = np.broadcast_to(np.asarray(values, np.float64), self.population.shape)
        return full.reshape(-1).copy()

    def _sums(self, c: Connection, x: NDArray[Any]) -> Float:
        """The weighted sums of a connection, whole numbers."""
        if c.synapses.geometry is None:
            return c.sums(x, self.network.levels(c.source)).astype(np.float64)
        weight = c.synapses.weight.astype(np.float64) * 2.0**c.exp
        return _convolved(c.synapses.geometry, x, weight)

    def _slack(self, before: Float | None, stays: Float) -> Float:
        """What rounding in float64 may add up to, of each neuron [neurons], outward.

        The float model, its voltage here, and the integer sum are sums of so many terms a step; the
        voltages of both take a few roundings more. Raises _NotCovered where float64 could not tell one
        unit of v from the next.
        """
        shape, neurons = self.population.shape, self.known.neurons
        integer = np.abs(self.each(self.population.neurons.bias)) * self.unit
        terms = 16
        for c in self.network.into(self.population.name):
            weight = np.abs(c.synapses.weight.astype(np.int64))
            rows = self.each(of_channels(c.synapses.row_sums(weight), shape))
            integer += rows * (self.unit * UNIT * 2.0**c.exp) * self.network.levels(c.source)
        floats = np.abs(self.each(self.known.bias))
        for way in self.floats.into(self.known.name):
            levels = self.network.levels(way.source) if way.source in self.network.inputs else 1
            floats += self.each(_peaks(way.way, shape)) * levels
            terms += _terms(way.way)
        if before is not None:
            one = len(before) not in (shape[0], self.population.size)
            floats = np.maximum(
                floats, before.max() if one else self.each(of_channels(before, shape))
            )
        magnitude = np.maximum(floats * np.abs(self.gain) + np.abs(self.leak), integer)
        if "subtract" in (self.population.neurons.reset, neurons.reset):
            magnitude += np.maximum(np.abs(stays), np.abs(self.each(neurons.threshold)))
        keep = np.maximum(self.each(neurons.keep), self.kept)
        with np.errstate(divide="ignore"):
            horizon = np.minimum(float(self.steps), 1 / np.maximum(1 - keep, 0))
        largest = np.maximum(horizon * magnitude, np.abs(stays))
        if not (largest / self.unit < LARGEST).all():
            raise _NotCovered("its voltages have more digits than a float64")
        slack: Float = 2 * horizon * ROUND * (4 * terms * magnitude + 16 * largest)
        return slack


def weighted(way: Way, x: NDArray[Any]) -> Float:
    """x [N, *source] through a connection of the float network, without bias."""
    x = x.astype(np.float64)
    if way.kind == "weights" and way.geometry is not None:
        return _convolved(way.geometry, x, way.weight)
    return way.apply(x)


def _convolved(geometry: Geometry, x: NDArray[Any], weight: Float) -> Float:
    import torch

    with torch.inference_mode():
        out: Float = torch.nn.functional.conv2d(
            torch.from_numpy(x.astype(np.float64)), torch.from_numpy(weight), None, *geometry
        ).numpy()
    return out


def _flat(values: NDArray[Any], shape: tuple[int, ...]) -> NDArray[Any]:
    """[N, T, ...] as [N * T, *shape]."""
    return values.reshape(-1, *shape)


def _add(total: Float, sums: Float, delay: int) -> None:
    """Add ``sums`` [N * T, ...] to ``total`` [N, T, neurons], ``delay`` steps later."""
    n, steps = total.shape[:2]
    if delay < steps:
        total[:, delay:] += sums.reshape(n, steps, -1)[:, : steps - delay]


def _peaks(way: Way, shape: tuple[int, ...]) -> Float:
    """The largest sum of magnitudes for spikes of 1, broadcastable to the population's ``shape``."""
    if way.kind == "window":
        return np.full(1, float(math.prod(way.kernel)))
    if way.kind == "one_to_one":
        return np.abs(way.weight).reshape(shape)
    rows = np.abs(way.weight).reshape(len(way.weight), -1).sum(axis=1)
    return of_channels(rows, shape)


def _terms(way: Way) -> int:
    """How many products a sum has at most."""
    if way.kind == "window":
        return math.prod(way.kernel)
    return 1 if way.kind == "one_to_one" else int(way.weight[0].size)


def _exact_decays(network: IntegerNetwork, population: Population) -> NDArray[np.int64]:
    """How many decays in a row, from zero on, lose nothing because the bits lost are zero.

    Broadcastable to the population.
    """
    lost = _bits_lost(population)
    exact = _zero_bits(network, population) // np.maximum(lost, 1)
    return np.where(lost == 0, 1 << 30, exact)


def _bits_lost(population: Population) -> NDArray[np.int64]:
    """Bits that one decay shifts out, broadcastable to the population."""
    kept = DECAY_ONE - np.asarray(population.neurons.dv, np.int64)
    ends_in = np.log2(kept & -kept).astype(np.int64)  # zeros at the end
    lost: NDArray[np.int64] = DECAY_BITS - np.minimum(DECAY_BITS, ends_in)
    return lost


def _zero_bits(network: IntegerNetwork, population: Population) -> int:
    """Lowest bits of v that no input, no bias and no reset sets."""
    neurons, into = population.neurons, network.into(population.name)
    zeros = FRACTION_BITS + min((c.exp for c in into), default=0)
    zeros = min(zeros, neurons.bias_exp) if neurons.bias_mant.any() else zeros
    return min(zeros, FRACTION_BITS) if neurons.reset == "subtract" else zeros


def grain(
    network: IntegerNetwork, population: Population, neuron: tuple[int, ...], decays: int
) -> int:
    """What v of a neuron is a multiple of, so many decays after zero, unless a register cut it off."""
    lost = int(np.broadcast_to(_bits_lost(population), population.shape)[neuron])
    return 1 << max(0, _zero_bits(network, population) - lost * decays)


def _check_floats(floats: FloatNetwork, known: FloatPopulation) -> None:
    """Raise _NotCovered for a float population that the proof is not about."""
    neurons = known.neurons
    if neurons.has_current:
        raise _NotCovered("its float neurons have a synaptic current")
    if (neurons.v_reset != 0).any():
        raise _NotCovered("its v_reset is not zero")
    if said := [*rules.extra(neurons), *(["a rest after spikes"] if neurons.hold else [])]:
        raise _NotCovered(
            f"its float neurons have {' and '.join(said)}, which the proof leaves out"
        )
    for c in floats.into(known.name):
        if c.source in floats.by_name and floats.by_name[c.source].neurons.graded:
            raise _NotCovered(f"its source {c.source} sends values in units of its own")
    if not ((neurons.keep >= 0) & (neurons.keep <= 1)).all():
        raise _NotCovered("the decay of its float neurons is not between 0 and 1")
    if floats.trained is not None and neurons.has_state:
        halves = (np.rint(DECAY_ONE * neurons.step) == DECAY_ONE // 2).all()
        if floats.meta is None or not halves or floats.meta.timesteps > EXACT:
            raise _NotCovered("it was trained on integers, and its decay truncates as theirs does")


def _check(network: IntegerNetwork, population: Population, known: FloatPopulation) -> None:
    """Raise _NotCovered for an integer population that the proof is not about."""
    neurons = population.neurons
    if population.kind not in COVERED:
        raise _NotCovered(missing(COVERED, population.kind, population.name, "the proof").what)
    for name in unknown_fields(neurons):
        raise _NotCovered(f"its {name} is not known here")
    if neurons.has_current:
        raise _NotCovered("its synaptic current has a memory")
    exps = [neurons.bias_exp, *(c.exp for c in network.into(population.name))]
    decays = np.asarray(neurons.dv)
    if not ((decays >= 0) & (decays < DECAY_ONE)).all() or min(exps) < 0 or max(exps) > 16:
        raise _NotCovered("its decay or exponents are outside the registers")
    if not (np.isfinite(neurons.scale) & (neurons.scale > 0)).all():
        raise _NotCovered("its scale is not positive")
    if np.abs(neurons.bias).max(initial=0) >= 1 << 30:
        raise _NotCovered("its bias is as large as its registers")
    if population.shape != known.shape:
        raise _NotCovered("its shape is not that of the float population")


def _check_sources(network: IntegerNetwork, population: Population, floats: FloatNetwork) -> None:
    """Raise _NotCovered unless what leads to the population has the same sources on both sides."""
    mine = {c.source: network.shape(c.source) for c in network.into(population.name)}
    theirs = {c.source: floats.shape(c.source) for c in floats.into(population.name)}
    for source, shape in mine.items():
        if source not in floats.inputs and source not in floats.by_name:
            if pairs.passes_on(network, source):
                continue
            raise _NotCovered(f"its source {source} is not in the float graph")
        if math.prod(shape) != math.prod(floats.shape(source)):
            raise _NotCovered(f"its source {source} does not have the shape of the float graph's")
    for source in theirs:
        if source not in network.inputs and source not in network.by_name:
            raise _NotCovered(f"its source {source} is not in the integer network")
