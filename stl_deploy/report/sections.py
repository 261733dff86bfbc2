"""The report: one HTML file without scripts or outside resources, the same bytes for the same input.

Numbers are prepared here, words and layout stand in ``templates/report.html.j2``. Figures are inline
SVG drawn by matplotlib, except the spikes of the first sample, which are small PNGs, a pixel a neuron.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from typing import Any, Protocol

import numpy as np
from jinja2 import Environment, StrictUndefined, Template
from numpy.typing import NDArray

from stl_deploy.chips import facts as chips
from stl_deploy.chips import placement
from stl_deploy.hw_sim.account.counts import Counts, LayerCounts
from stl_deploy.hw_sim.account.energy import Bound, Energy
from stl_deploy.hw_sim.simulate import Activity
from stl_deploy.ir.network import IntegerNetwork
from stl_deploy.ir.notes import LayerPlacement, Placement
from stl_deploy.report import reading
from stl_deploy.report import rows as R
from stl_deploy.report.drawing import draw
from stl_deploy.report.figures import (
    PALETTE,
    Picture,
    core_map,
    mosaic,
    png,
    ramp,
    stacked,
    threshold_figure,
)
from stl_deploy.report.numbers import Unit, count, percent, significant

SHOWN_STEPS = 8  # of the first sample
SHOWN_NEURONS = 1 << 16  # of a population in the first sample, so that the file stays small
MAPPED_CHIPS = 2  # more would be too small to see on a page
TILE_PIXELS = 128  # width of a picture of spikes on a wide screen
STATIC_COLOUR = "#999999"


class Parity(Protocol):
    """What the report shows of a comparison with the float model (``verify.against_float.ParityReport``).

    Accuracies are None without labels; ``layers`` are rows of figures by population, ``not_certified``
    says of populations why not, ``first_divergence`` is None where no spike differs. ``voltages`` are the
    errors of those that the readout reads, None where it reads none. ``nir_differing`` is None where the
    model is what was read from a file, and no network of its own. ``expected`` is the comparison with a
    recording of the network in its own tool, None without one.
    """

    @property
    def samples(self) -> int: ...  # noqa: D102
    @property
    def accuracy_float(self) -> float | None: ...  # noqa: D102
    @property
    def accuracy_lowered(self) -> float | None: ...  # noqa: D102
    @property
    def prediction_agreement(self) -> float: ...  # noqa: D102
    @property
    def layers(self) -> Sequence[object]: ...  # noqa: D102
    @property
    def not_certified(self) -> Mapping[str, str]: ...  # noqa: D102
    @property
    def first_divergence(self) -> object: ...  # noqa: D102
    @property
    def voltages(self) -> object: ...  # noqa: D102
    @property
    def nir_differing(self) -> int | None: ...  # noqa: D102
    @property
    def expected(self) -> object: ...  # noqa: D102


def render(
    title: str,
    network: IntegerNetwork,
    *,
    activity: Activity | None = None,
    parity: Parity | None = None,
) -> str:
    """The report as HTML. Sections on activity, energy and parity appear where there are data."""
    chip = chips.of(network)
    placed = placement.of(network, chip)
    energies = {} if activity is None else activity.energies
    models = chips.profiles(chip)
    profiles = {name: models[name] for name in energies}
    rows = R.populations(network)
    return _template().render(
        title=title,
        network=network,
        chip=chip,
        placed=placed,
        placement=None if placed is None else _placement_section(placed, chip),
        drawing=draw(network),
        read_as=reading.table(network.read_as),
        assumed=reading.assumed(network.read_as),
        rows=rows,
        connections=R.connections(network),
        inputs=R.inputs(network),
        readout=R.readout_words(network.readout),
        neurons=sum(population.size for population in network.populations),
        synapses=sum(row.synapses for row in rows),
        thresholds=[
            threshold_figure(p)
            for p in network.populations
            if p.kind == "lif" and p.neurons.fires and network.into(p.name)
        ],
        activity=activity,
        activity_rows=[] if activity is None else _activity_rows(activity.counts),
        synops=[] if activity is None else _synops_rows(activity.counts),
        overflows=[] if activity is None else _overflows(activity.counts),
        sample=[] if activity is None else _sample_rows(activity.sample, network.inputs),
        shown_steps=SHOWN_STEPS,
        energy=_energy_section(chip.name, activity, profiles) if activity and energies else None,
        profiles=profiles,
        parity=parity,
        facts=[_facts(c) for c in {c.name: c for c in (chip, *_chips_of(profiles))}.values()],
    )


def _template() -> Template:
    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {"count": count, "percent": percent, "significant": significant}
    path = resources.files("stl_deploy.report") / "template.html.j2"
    return environment.from_string(path.read_text("utf-8"))


@dataclass(frozen=True)
class PlacementRow:
    """A population's cores: the first and last number, what bound them, and each limit's cell.

    A cell is what the fullest core needs, its share of the limit, and whether that is too much.
    """

    name: str
    cores: int
    numbers: str
    bound_by: str
    cells: list[tuple[int, float, bool]]


@dataclass(frozen=True)
class PlacementSection:
    """The placement table: names of the limits with what a core holds, rows, and MiB of synapses."""

    limits: list[tuple[str, int]]
    rows: list[PlacementRow]
    unlimited: list[str]
    mebibytes: str


def _placement_section(placed: Placement, chip: chips.Chip) -> PlacementSection:
    held = placement.limits(chip)
    memory = sum(layer.total["synapse_bytes"] for layer in placed.layers.values())
    return PlacementSection(
        limits=[(placement.UNITS[name], n) for name, n in held.items()],
        rows=[_placement_row(name, layer, chip) for name, layer in placed.layers.items()],
        unlimited=[placement.NAMES[name] for name in placement.LIMITS if name not in held],
        mebibytes=f"{memory / 2**20:,.1f}",
    )


def _placement_row(name: str, placed: LayerPlacement, chip: chips.Chip) -> PlacementRow:
    first, last = placed.first_core, placed.first_core + placed.cores - 1
    return PlacementRow(
        name=name,
        cores=placed.cores,
        numbers=f"{first:,}" if first == last else f"{first:,} to {last:,}",
        bound_by="-" if placed.bound_by is None else placement.NAMES[placed.bound_by],
        cells=[
            (placed.fullest[limit], share, share > 1)
            for limit, share in placement.utilisation(placed, chip).items()
        ],
    )


@dataclass(frozen=True)
class Facts:
    """The facts of a chip that the report rests on: rows of name, value and source."""

    title: str
    rows: list[tuple[str, str, str]]


def _facts(chip: chips.Chip) -> Facts:
    rows = []
    for table in (chip.registers, chip.limits, chip.packing, chip.static):
        for name, fact in table or ():
            if fact is not None:
                rows.append((name.replace("_", " "), f"{fact.value:,}", fact.source))
    return Facts(chip.title, rows)


def _chips_of(profiles: dict[str, tuple[chips.Chip, chips.Profile]]) -> list[chips.Chip]:
    return [chip for chip, _ in profiles.values()]


# Activity


@dataclass(frozen=True)
class ActivityRow:
    """A row of the activity table, means per inference; ``rate`` is per neuron and step."""

    name: str
    inputs: float
    spikes: float
    rate: float
    synops: float
    active: float
    inactive: float


def _activity_rows(counts: Counts) -> list[ActivityRow]:
    rows = [
        _activity_row(layer.name, layer.neurons, [layer], float(layer.inputs.sum()), counts)
        for layer in counts.layers
    ]
    neurons = sum(layer.neurons for layer in counts.layers)
    return [*rows, _activity_row("All populations", neurons, counts.layers, 0.0, counts)]


def _synops_rows(counts: Counts) -> list[tuple[str, str, str, float]]:
    """Connections with source, target and synops per inference, where a population has several."""
    if len({c.target for c in counts.connections}) == len(counts.connections):
        return []
    return [
        (c.name, c.source, c.target, float(c.synops.sum()) / counts.samples)
        for c in counts.connections
    ]


def _activity_row(
    name: str, neurons: int, layers: Sequence[LayerCounts], inputs: float, counts: Counts
) -> ActivityRow:
    spikes, synops, active = (
        sum(float(getattr(layer, field).sum()) for layer in layers)
        for field in ("spikes", "synops", "active")
    )
    return ActivityRow(
        name=name,
        inputs=inputs / counts.samples,
        spikes=spikes / counts.samples,
        rate=spikes / (counts.samples * counts.timesteps * neurons),
        synops=synops / counts.samples,
        active=active / counts.samples,
        inactive=(neurons * counts.physical_steps - active) / counts.samples,
    )


@dataclass(frozen=True)
class Overflow:
    """Neuron steps of a population outside a register, of how many, and in how many samples."""

    name: str
    times: int
    of: int
    samples: int


def _overflows(counts: Counts) -> list[Overflow]:
    return [
        Overflow(
            name=layer.name,
            times=int(layer.overflow.sum()),
            of=counts.samples * counts.timesteps * layer.neurons,
            samples=int(layer.overflow.any(axis=1).sum()),
        )
        for layer in counts.layers
        if layer.overflow.any()
    ]


# First sample


@dataclass(frozen=True)
class Tile:
    """The spikes of one population in one step: how many fired, and a PNG as data URL.

    ``coarse`` images are shown larger than they are, with sharp pixels; others must be smoothed,
    or spikes would be dropped.
    """

    fired: int
    image: str
    coarse: bool


@dataclass(frozen=True)
class SampleRow:
    """An input or a population of the first sample; ``shown`` says what is left out, if anything."""

    name: str
    of_input: bool
    neurons: int
    shown: str
    tiles: list[Tile]


def _sample_rows(sample: Mapping[str, NDArray[Any]], inputs: Collection[str]) -> list[SampleRow]:
    rows = []
    for name, values in sample.items():
        spikes = np.abs(values)
        maps = spikes.reshape(len(spikes), -1) if spikes.ndim < 4 else spikes
        whole, kept = maps.shape[1], maps.shape[1]
        if maps[0].size > SHOWN_NEURONS:
            kept = max(1, SHOWN_NEURONS // math.prod(maps.shape[2:]))
        of = "channels" if spikes.ndim >= 4 else "neurons"
        rows.append(
            SampleRow(
                name=name,
                of_input=name in inputs,
                neurons=maps[0].size,
                shown="" if kept == whole else f"the first {kept:,} of {whole:,} {of}",
                tiles=[_tile(step, kept, int(maps.max())) for step in maps[:SHOWN_STEPS]],
            )
        )
    return rows


def _tile(step: NDArray[Any], kept: int, largest: int) -> Tile:
    image = mosaic(step[:kept])
    return Tile(int(np.count_nonzero(step)), png(image, largest), image.shape[1] < TILE_PIXELS)


# Energy


@dataclass(frozen=True)
class Headline:
    """The energy that the report shows first: one chip's, by its published profiles if it has any.

    ``total`` is a number, or a range where the ``profiles`` differ; ``chip`` the title of the chip
    that they describe, ``own`` whether the network was lowered to it. ``unable`` and ``assumed``: whether it
    lacks rules of the network, or has them only by programs that nobody has written.
    """

    total: str
    chip: str
    own: bool
    profiles: list[str]
    extrapolated: bool
    unable: bool
    assumed: bool


@dataclass(frozen=True)
class EnergySection:
    """Energies of one run by profile, their common units, colours and figures.

    ``chips`` are the titles of the chips that the profiles describe, by profile, ``other_chips`` those
    that are not the network's own; ``headline`` is in ``joule``;
    ``per_synop_j`` is the dynamic energy over the synops, None where there were none;
    ``static_range_j`` the ends of the measured range, None where no static power is known; ``steps``
    has for each time step by profile its mean duration and what bound it most often. ``words`` say for each
    profile what its figures are worth for the rules of the network, ``unable`` and ``assumed`` of each chip
    by title why, and ``left_out`` is not priced at all.
    """

    energies: dict[str, Energy]
    chips: dict[str, str]
    other_chips: list[str]
    headline: Headline
    joule: Unit
    second: Unit
    event_colours: dict[str, str]
    layer_colours: dict[str, str]
    static_colour: str
    static_range_j: dict[str, tuple[float, float] | None]
    per_synop_j: dict[str, float | None]
    figures: list[Picture]
    maps: list[Picture]
    steps: list[list[tuple[str, str]]]
    beyond: list[str]
    words: list[str]
    unable: list[tuple[str, str]]
    assumed: list[tuple[str, str]]
    left_out: tuple[str, ...]


def _energy_section(
    chip: str, activity: Activity, profiles: dict[str, tuple[chips.Chip, chips.Profile]]
) -> EnergySection:
    energies, counts = activity.energies, activity.counts
    joule = Unit.fitting("J", (e.total_j for e in energies.values()))
    synops = sum(float(layer.synops.sum()) for layer in counts.layers) / counts.samples
    events = list(dict.fromkeys(event for e in energies.values() for event in e.by_event_j))
    layers = list(dict.fromkeys(layer for e in energies.values() for layer in e.by_layer_j))
    event_colours = {e: PALETTE[i % len(PALETTE)] for i, e in enumerate(events)}
    layer_colours = dict(zip(layers, ramp(len(layers)), strict=True))
    by_event = {name: dict(e.by_event_j) for name, e in energies.items()}
    for name, energy in energies.items():
        if energy.static_j is not None:
            by_event[name]["static"] = energy.static_j
    by_layer = {name: e.by_layer_j for name, e in energies.items()}
    second = Unit.fitting("s", (e.latency_s for e in energies.values()))
    unpriced = {profiles[name][0].title: e.unpriced for name, e in energies.items()}
    return EnergySection(
        energies=energies,
        chips={name: of.title for name, (of, _) in profiles.items()},
        other_chips=list(dict.fromkeys(c.title for c, _ in profiles.values() if c.name != chip)),
        headline=_headline(chip, energies, profiles, joule),
        joule=joule,
        second=second,
        event_colours=event_colours,
        layer_colours=layer_colours,
        static_colour=STATIC_COLOUR,
        static_range_j={n: e.static_range_j for n, e in energies.items()},
        per_synop_j={n: e.dynamic_j / synops if synops else None for n, e in energies.items()},
        figures=[
            stacked("By event", by_event, event_colours | {"static": STATIC_COLOUR}, joule),
            stacked("Dynamic, by population", by_layer, layer_colours, joule),
            *(
                stacked(f"{name}: populations by event", e.by_layer_event_j, event_colours, joule)
                for name, e in energies.items()
            ),
        ],
        maps=[
            core_map(of.title, traffic, layer_colours, counts.samples)
            for of, traffic in {
                profiles[name][0].name: (profiles[name][0], e.traffic)
                for name, e in energies.items()
            }.values()
            if traffic.mesh.chips <= MAPPED_CHIPS
        ],
        steps=[
            [
                (second(e.per_step_s[t]), _bound(e.step_bounds[t], _steps_of(e, t, counts)))
                for e in energies.values()
            ]
            for t in range(min(counts.timesteps, SHOWN_STEPS))
        ],
        beyond=list(dict.fromkeys(p for e in energies.values() for p in e.beyond)),
        words=[e.unpriced.in_a_word for e in energies.values()],
        unable=[(title, what) for title, of in unpriced.items() for what in of.unable],
        assumed=[(title, what) for title, of in unpriced.items() for what in of.assumed],
        left_out=next(iter(unpriced.values())).left_out,
    )


def _headline(
    chip: str,
    energies: dict[str, Energy],
    profiles: dict[str, tuple[chips.Chip, chips.Profile]],
    joule: Unit,
) -> Headline:
    """The figure of ``chip``; where no profile describes it, that of the first chip with a published one."""
    published = [name for name, e in energies.items() if e.extrapolation is None]
    if any(of.name == chip for of, _ in profiles.values()):
        shown = chip
    else:
        shown = profiles[next(iter(published or energies))][0].name
    names = [name for name, (of, _) in profiles.items() if of.name == shown]
    names = [name for name in names if name in published] or names
    totals = sorted(energies[name].total_j for name in names)
    return Headline(
        total=" to ".join(dict.fromkeys((joule(totals[0]), joule(totals[-1])))),
        chip=profiles[names[0]][0].title,
        own=shown == chip,
        profiles=names,
        extrapolated=energies[names[0]].extrapolation is not None,
        unable=bool(energies[names[0]].unpriced.unable),
        assumed=bool(energies[names[0]].unpriced.assumed),
    )


def _steps_of(energy: Energy, step: int, counts: Counts) -> int:
    """How many physical steps of a run are one of ``step``, ``step`` + T, ..."""
    return len(range(step, len(energy.series_s), counts.timesteps))


def _bound(bound: Bound, of: int) -> str:
    """What bound a step, and how often."""
    where = "the network" if bound.core is None else f"core {bound.core} of {bound.layer}"
    part = "" if bound.core is None else f", {bound.part}"
    return f"{where}{part}, {bound.steps:,} of {of:,}"
