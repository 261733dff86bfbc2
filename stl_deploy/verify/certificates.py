"""Certificates: spikes of the integer network that are proved equal to the float model's.

A population is given the float model's spikes over all its connections, also those from itself. For every
entry (sample, step, neuron) the integer voltage is bounded *without running the integer network*: what
arrives in integers, plus what decay, registers and float rounding can do at most. Where all of that lies on
one side of the integer threshold the integer spike is known. It is *certified* where it is also the float
spike. docs/parity.md has the proof;
``stl_deploy/verify/intervals.py`` the loop.

What this does not cover (graded values, neurons without a threshold, an unknown field of the neurons) is not
certified at all, and ``certifiers`` says why.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import nir
import numpy as np
from numpy.typing import NDArray

from stl_deploy.chips import arithmetic
from stl_deploy.chips import facts as chips
from stl_deploy.ir import floats as float_networks
from stl_deploy.ir.floats import FloatNetwork, FloatPopulation, Way
from stl_deploy.ir.kinds import missing
from stl_deploy.ir.network import Connection, IntegerNetwork, Population
from stl_deploy.ir.neurons import of_channels
from stl_deploy.ir.synapses import Geometry
from stl_deploy.ir.units import DECAY_BITS, DECAY_ONE, FORGETS, FRACTION_BITS, UNIT
from stl_deploy.lower import rules
from stl_deploy.verify import intervals, pairs, sides

Float = NDArray[np.float64]
Bytes = NDArray[np.uint8]
Sent = Mapping[str, NDArray[Any]]  # what inputs and populations send, [N, T, *shape] by name
ROUND = 2.0**-52  # twice what one rounding of a float64 can change, relatively
EXACT = FRACTION_BITS + 1  # steps in which halving v loses none of its fractional bits
LONGEST = 62  # bits
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
        _check_values(network, population, floats)
        _check_floats(floats, known)
        _check(network, population, known)
        _check_sources(network, population, floats)
        self.network, self.population, self.floats, self.known = network, population, floats, known
        self.steps = network.timesteps
        mine, theirs = population.neurons, known.neurons
        self.limit = chips.of(network).state_limit
        self.unit = self.each(mine.scale) / UNIT  # of v, in the float model's units
        self.currents = sides.through_currents(mine, theirs)
        second = 0.0 if theirs.drive2 is None else theirs.gain * theirs.drive2
        # What v gains for each unit of input at either current.
        self.gains = self.each(theirs.total_gain), self.each(second)
        self.bias = self.each(known.bias) * self.gains[0]
        if not self.currents:
            self.bias = self.bias + self.each(theirs.leak)
        stays = self.each(mine.vth) * UNIT * self.unit
        self.cells = intervals.Cells(
            floats=sides.of_floats(theirs, self.each),
            whole=sides.of_integers(mine, self.each, self.unit),
            theta=self.each(theirs.theta),
            stays=stays,
            fires=stays + self.unit,
            unit=self.unit,
            slack=np.zeros(0),
            exact=np.broadcast_to(_exact_decays(network, population), population.shape).reshape(-1),
        )
        self.cells = self.cells._replace(slack=self._slack(before))
        self.rules = intervals.Rules(
            floats=sides.kind(theirs),
            whole=sides.kind(mine),
            limit=float(self.limit or 0),
            currents=self.currents,
            rises=sides.rises(mine, theirs),
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
        arriving = self.arriving({**sent, self.population.name: spikes})
        verdicts = np.zeros(size, np.uint8)
        bound = np.zeros(size if bounds else (0, 0, 0))
        intervals.follow(arriving, spikes, self.cells, self.rules, verdicts, bound)
        shape = (n, steps, *self.population.shape)
        verdicts = verdicts.reshape(shape)
        return Verdicts(
            (verdicts & intervals.SILENT) != 0,
            (verdicts & intervals.FIRES) != 0,
            (verdicts & intervals.REFUTED) != 0,
            bound.reshape(shape) if bounds else None,
        )

    def arriving(self, sent: Sent) -> intervals.Arriving:
        """What arrives, with the bias."""
        if not self.currents:
            floats, integers = self.sums(sent)
            floats += self.bias
            integers += self.cells.whole.bias
            nothing = np.zeros((0, 0, 0))
            return intervals.Arriving(floats, integers, nothing, nothing)
        (floats, whole), (floats2, whole2) = (self._both(sent, port) for port in (0, 1))
        return intervals.Arriving(floats, whole, floats2, whole2)

    def sums(self, sent: Sent, port: int = 0) -> tuple[Float, Float]:
        """float64 [N, T, neurons]: what arrives at a current in float and in integers, without the bias."""
        floats, integers = self._floats(sent, port), self._whole(sent, port)
        integers *= UNIT * self.unit
        return floats, integers

    def amplified(self) -> tuple[Float, NDArray[np.int32]]:
        """What multiplies in each step what arrives: float64 [T, neurons], and int32, 4096 for 1."""
        theirs, mine = self.known.neurons.amplify, self.population.neurons.gain
        one = np.ones((self.steps, 1))
        floats, whole = (
            one if x is None else np.stack([self.each(x[t]) for t in range(self.steps)])
            for x in (theirs, mine)
        )
        return floats, (whole * (DECAY_ONE if mine is None else 1)).astype(np.int32)

    def _both(self, sent: Sent, port: int) -> tuple[Float, Float]:
        """What arrives at a current of both sides, in float units, and in whole numbers of v."""
        steps = sent[self.population.name].shape[1]
        amplified, gain = self.amplified()
        bias = self.bias if port == 0 else 0.0
        floats = (self._floats(sent, port) + bias) * amplified[:steps]
        neurons = self.population.neurons
        whole = arithmetic.arriving(
            self._whole(sent, port).astype(np.int64),
            self.limit,
            self.each(neurons.bias).astype(np.int64) if port == 0 else 0,
            None if neurons.gain is None else gain[:steps],
        )
        return floats, whole.astype(np.float64)

    def _floats(self, sent: Sent, port: int) -> Float:
        """What arrives in float, without the bias."""
        n, steps = sent[self.population.name].shape[:2]
        total = np.zeros((n, steps, self.population.size))
        for way in self.floats.into(self.population.name):
            if way.port == port:
                x = _flat(sent[way.source], self.floats.shape(way.source))
                _add(total, weighted(way.way, x), way.delay)
        total *= self.gains[port]
        return total

    def _whole(self, sent: Sent, port: int) -> Float:
        """What arrives in integers, without the bias, in whole numbers of vth."""
        n, steps = sent[self.population.name].shape[:2]
        total = np.zeros((n, steps, self.population.size))
        for c in self.network.into(self.population.name):
            if c.port == port:
                self._bring(total, sent, c)
        return total

    def brought(self, sent: Sent, c: Connection) -> Float:
        """The same over one connection."""
        n, steps = sent[self.population.name].shape[:2]
        total = np.zeros((n, steps, self.population.size))
        self._bring(total, sent, c)
        return total

    def _bring(self, total: Float, sent: Sent, c: Connection) -> None:
        x = _flat(sent[c.source], self.network.shape(c.source))
        _add(total, self._sums(c, x), c.delay)

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

    def _slack(self, before: Float | None) -> Float:
        """What rounding in float64 may add up to, of each neuron [neurons], outward.

        The float model, its voltage here, and the integer sum are sums of so many terms a step; the
        voltages of both take a few roundings more, as do currents and what is added to thresholds. Raises
        _NotCovered where float64 could not tell one unit of v from the next.
        """
        floats, whole, stays = self.cells.floats, self.cells.whole, self.cells.stays
        taken: Float = np.zeros(self.population.size)
        if "subtract" in (self.population.neurons.reset, self.known.neurons.reset):
            taken = np.maximum(np.abs(stays), np.abs(self.each(self.known.neurons.threshold)))
        magnitude = entering = np.zeros(self.population.size)
        for port in (0, 1) if self.currents else (0,):
            terms, arrives = self._magnitude(port, before)
            arrives = arrives + taken
            kept = (floats.first, whole.first) if port == 0 else (floats.second, whole.second)
            lasting = self._horizon(kept[0], kept[1] / DECAY_ONE)
            entering = entering + lasting * (4 * terms * arrives)
            if self.currents:
                entering = entering + lasting * (16 * lasting * arrives)
            magnitude = magnitude + lasting * arrives
        horizon = self._horizon(floats.keep, whole.keep)
        set_to = (floats.start, whole.start, floats.reset, whole.reset)
        largest = horizon * magnitude + np.max(np.abs(set_to), axis=0)
        lasting = self._horizon(floats.rise_keep, whole.rise_keep)
        rise = lasting * np.maximum(np.abs(floats.rise), np.abs(whole.rise))
        largest = np.maximum(largest, np.abs(stays)) + rise
        if not (largest / self.unit < LARGEST).all():
            raise _NotCovered("its voltages have more digits than a float64")
        slack: Float = 2 * horizon * ROUND * (entering + 16 * largest) + 32 * lasting * ROUND * rise
        return slack

    def _magnitude(self, port: int, before: Float | None) -> tuple[int, Float]:
        """Of what arrives at a current in a step: how many terms at most, and the sum of their magnitudes."""
        shape, mine, theirs = self.population.shape, self.population.neurons, self.known.neurons
        integer = np.abs(self.each(mine.bias if port == 0 else 0)) * self.unit
        terms = 16
        for c in self.network.into(self.population.name):
            if c.port == port:
                weight = np.abs(c.synapses.weight.astype(np.int64))
                rows = self.each(of_channels(c.synapses.row_sums(weight), shape))
                integer += rows * (self.unit * UNIT * 2.0**c.exp) * self.network.levels(c.source)
        floats = np.abs(self.each(self.known.bias if port == 0 else 0.0))
        for way in self.floats.into(self.known.name):
            if way.port == port:
                spiking = way.source not in self.network.inputs
                levels = 1 if spiking else self.network.levels(way.source)
                floats += self.each(_peaks(way.way, shape)) * levels
                terms += _terms(way.way)
        if before is not None:
            one = len(before) not in (shape[0], self.population.size)
            floats = np.maximum(
                floats, before.max() if one else self.each(of_channels(before, shape))
            )
        amplified, gain = (np.abs(values).max(axis=0) for values in self.amplified())
        leak = np.abs(self.each(theirs.leak)) if port == 0 else 0.0
        floats = floats * np.abs(self.gains[port]) * amplified + leak
        return terms, np.maximum(floats, integer * np.maximum(gain / DECAY_ONE, 1))

    def _horizon(self, *keep: Float) -> Float:
        """In how many steps at most something rounded is felt, where a step leaves ``keep`` of it."""
        most = np.maximum(*keep)
        with np.errstate(divide="ignore"):
            horizon: Float = np.minimum(float(self.steps), 1 / np.maximum(1 - most, 0))
        return horizon


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
    """Lowest bits of v that nothing sets: no input, no bias, no reset and no start."""
    neurons, into = population.neurons, network.into(population.name)
    if neurons.has_current or neurons.gain is not None:
        return 0
    zeros = FRACTION_BITS + min((c.exp for c in into), default=0)
    zeros = min(zeros, neurons.bias_exp) if neurons.bias_mant.any() else zeros
    for value in (neurons.v_reset if neurons.reset == "constant" else 0, neurons.v0):
        zeros = min(zeros, _ends_in(np.bitwise_or.reduce(np.asarray(value, np.int64), axis=None)))
    return min(zeros, FRACTION_BITS) if neurons.reset == "subtract" else zeros


def _ends_in(value: Any) -> int:
    """Zeros at the end of a whole number."""
    return int(np.log2(value & -value)) if value else LONGEST


def grain(
    network: IntegerNetwork, population: Population, neuron: tuple[int, ...], decays: int
) -> int:
    """What v of a neuron is a multiple of, after so many decays, unless a register cut it off."""
    lost = int(np.broadcast_to(_bits_lost(population), population.shape)[neuron])
    return 1 << max(0, _zero_bits(network, population) - lost * decays)


def comparable(network: IntegerNetwork, population: Population, floats: FloatNetwork) -> bool:
    """Whether the parameters of both sides can be compared, certified or not."""
    known = floats.by_name.get(population.name)
    try:
        if known is not None:
            _check_floats(floats, known)
            _check(network, population, known)
            _check_sources(network, population, floats)
    except _NotCovered:
        return False
    return known is not None


def _check_values(network: IntegerNetwork, population: Population, floats: FloatNetwork) -> None:
    """Raise _NotCovered for values that are sent, for no threshold, and for fields that are not known."""
    said = list(sides.left_out_of_floats(floats.by_name[population.name].neurons))
    if population.kind == "lif":
        said = said or list(sides.left_out(population.neurons))
    if said:
        raise _NotCovered(" and ".join(said))
    sources = [c.source for c in floats.into(population.name)]
    sources = [name for name in sources if name in floats.by_name]
    sending = [name for name in sources if floats.by_name[name].neurons.graded]
    mine = [c.source for c in network.into(population.name) if c.source in network.by_name]
    sending += [name for name in mine if network.by_name[name].neurons.graded is not None]
    if sending:
        raise _NotCovered(f"its source {sending[0]} sends values in units of its own")


def _check_floats(floats: FloatNetwork, known: FloatPopulation) -> None:
    """Raise _NotCovered for a float population that the proof is not about."""
    neurons = known.neurons
    shares = [neurons.step, neurons.current, neurons.current2, neurons.adapt_step]
    if not all(((share >= 0) & (share <= 1)).all() for share in shares if share is not None):
        raise _NotCovered("a decay of its float neurons is not between 0 and 1")
    if floats.trained is not None and neurons.has_state:
        taken = [neurons.step, *([neurons.current] if neurons.has_current else [])]
        halves = all((np.rint(DECAY_ONE * share) == DECAY_ONE // 2).all() for share in taken)
        if floats.meta is None or not halves or floats.meta.timesteps > EXACT:
            raise _NotCovered("it was trained on integers, and its decay truncates as theirs does")
        if list(rules.extra(neurons)) or neurons.hold or neurons.reset != "zero":
            raise _NotCovered("it was trained on integers with rules that the proof does not know")


def _check(network: IntegerNetwork, population: Population, known: FloatPopulation) -> None:
    """Raise _NotCovered for an integer population that the proof is not about."""
    neurons = population.neurons
    if population.kind not in COVERED:
        raise _NotCovered(missing(COVERED, population.kind, population.name, "the proof").what)
    exps = [neurons.bias_exp, *(c.exp for c in network.into(population.name))]
    decays, currents = np.asarray(neurons.dv), np.asarray(neurons.du)
    inside = (decays >= 0).all() and (decays < DECAY_ONE).all()
    inside &= (currents >= 0).all() and (currents <= FORGETS).all()
    if not inside or min(exps) < 0 or max(exps) > 16:
        raise _NotCovered("its decay or exponents are outside the registers")
    limit = chips.of(network).state_limit
    for name in ("v0", "v_reset", "floor"):
        value = getattr(neurons, name)
        if limit is not None and value is not None and (np.abs(value) >= limit).any():
            raise _NotCovered(f"its {name} is outside the registers")
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
