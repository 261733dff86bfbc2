"""The report: one HTML file without scripts or outside resources, the same bytes for the same input.

Numbers are prepared here, words and layout stand in ``templates/report.html.j2``. Figures are inline
SVG drawn by matplotlib, except the spikes of the first sample, which are small PNGs, a pixel a neuron.
"""

from __future__ import annotations

import base64
import io
import math
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from importlib import resources
from typing import TYPE_CHECKING, Any

import numpy as np
from jinja2 import Environment, StrictUndefined, Template
from markupsafe import Markup
from numpy.typing import NDArray

from stl_deploy.chips import facts as chips
from stl_deploy.chips import placement
from stl_deploy.ir.network import (
    Dense,
    IntegerNetwork,
    Layer,
    LayerPlacement,
    LifLayer,
    OrPool,
    Placement,
    Precision,
    Sparse,
    synapse_count,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from stl_deploy.hw_sim.account.counts import Counts, LayerCounts
    from stl_deploy.hw_sim.account.energy import Bound, Energy, Traffic
    from stl_deploy.verify.against_float import ParityReport

Float = NDArray[np.float64]

SHOWN_STEPS = 8  # of the first sample
SHOWN_NEURONS = 1 << 16  # of a layer in the first sample, so that the file stays small
MAPPED_CHIPS = 2  # more would be too small to see on a page
TILE_PIXELS = 128  # width of a picture of spikes on a wide screen
BINS = 40  # of a threshold histogram
LOG_RATIO = 100  # tallest bin over lowest from which a histogram counts on a log axis
FIGURE_INCHES = 3.6  # narrow: a figure fills a phone's width at a readable type size
# Tol's "bright" scheme: told apart by colour-blind readers, and visible on white and on black.
PALETTE = ("#4477aa", "#ee6677", "#228833", "#ccbb44", "#66ccee", "#aa3377")
STATIC_COLOUR = "#999999"
INK = "#010203"  # drawn by matplotlib, then replaced by CSS's currentColor
OUTLINE: dict[str, Any] = {"edgecolor": INK, "alpha": 0.4, "linewidth": 0.5}
GRID: dict[str, Any] = {"color": INK, "alpha": 0.15, "linewidth": 0.5}
SPIKE_RGB = (0x44, 0x77, 0xAA)
SILENT_ALPHA = 28  # of 255, so that a silent neuron differs from the page
NO_SOFTWARE: dict[str, Any] = {"Software": None}  # no version in a PNG
PREFIXES = ((1.0, ""), (1e-3, "m"), (1e-6, "µ"), (1e-9, "n"), (1e-12, "p"))


@dataclass(frozen=True)
class Activity:
    """A run of the network: counts, energies by profile name, accuracy (None without labels).

    ``sample`` holds the spikes uint8 [T, *shape] of the first sample by layer name, "input" first.
    """

    counts: Counts
    energies: dict[str, Energy]
    accuracy: float | None
    sample: dict[str, NDArray[np.uint8]]


def render(
    title: str,
    network: IntegerNetwork,
    *,
    activity: Activity | None = None,
    parity: ParityReport | None = None,
) -> str:
    """The report as HTML. Sections on activity, energy and parity appear where there are data."""
    chip = chips.load(network.chip)
    placed = placement.of(network, chip)
    energies = {} if activity is None else activity.energies
    profiles = {name: chips.profiles()[name] for name in energies}
    rows = [_layer_row(network, layer) for layer in network.layers]
    return _template().render(
        title=title,
        network=network,
        chip=chip,
        placed=placed,
        placement=None if placed is None else _placement_section(placed, chip),
        rows=rows,
        neurons=sum(layer.neurons for layer in network.layers),
        synapses=sum(row.synapses for row in rows),
        thresholds=[_threshold_figure(layer) for layer in network.lif_layers],
        activity=activity,
        activity_rows=[] if activity is None else _activity_rows(activity.counts),
        overflows=[] if activity is None else _overflows(activity.counts),
        sample=[] if activity is None else _sample_rows(activity.sample),
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
    path = resources.files("stl_deploy") / "templates" / "report.html.j2"
    return environment.from_string(path.read_text("utf-8"))


# Numbers for people


def significant(value: float, digits: int = 3) -> str:
    """``value`` with so many significant digits, thousands separated, never an exponent."""
    if value == 0:
        return "0"
    decimals = max(0, digits - 1 - math.floor(math.log10(abs(value))))
    return f"{value:,.{decimals}f}"


def count(value: float) -> str:
    """A count, or the mean of counts: a small mean keeps three significant digits."""
    return f"{value:,.0f}" if value == int(value) or abs(value) >= 100 else significant(value)


def percent(fraction: float) -> str:
    """A fraction in percent. Only what is exactly 0 or 1 reads as 0 % or 100 %."""
    if fraction in (0, 1):
        return f"{fraction:.0%}".replace("%", " %")
    # Near 0 three significant digits, near 1 as many decimals as tell it from 100 %.
    low, high = math.log10(100 * fraction), math.log10(100 * (1 - fraction))
    decimals = max(2, 2 - math.floor(low), -math.floor(high))
    return f"{100 * fraction:.{decimals}f} %"


@dataclass(frozen=True)
class Unit:
    """A unit with its prefix; calling it formats a value given in the plain unit."""

    label: str
    factor: float

    @classmethod
    def fitting(cls, unit: str, values: Iterable[float]) -> Unit:
        """The prefix that makes the largest value at least 1, so that a table has one unit."""
        largest = max((abs(v) for v in values), default=0.0)
        factor, prefix = next((p for p in PREFIXES if largest >= p[0]), PREFIXES[-1])
        return cls(prefix + unit, factor)

    def __call__(self, value: float) -> str:
        """``value`` as a number of this unit, without its label."""
        return significant(value / self.factor)


# Network


@dataclass(frozen=True)
class LayerRow:
    """A row of the network table; None where a column does not apply.

    ``weights`` are the non-zero numbers stored, ``synapses`` the connections that they make.
    """

    layer: Layer
    kind: str
    weights: int | None
    synapses: int
    precision: Precision | None
    thresholds: NDArray[np.int32] | None


def _layer_row(network: IntegerNetwork, layer: Layer) -> LayerRow:
    lif = layer if isinstance(layer, LifLayer) else None
    return LayerRow(
        layer=layer,
        kind=_kind(layer),
        weights=None if lif is None else lif.stored_weights,
        synapses=synapse_count(layer),
        precision=network.precision.get(layer.name),
        thresholds=None if lif is None else np.unique(lif.vth),
    )


def _kind(layer: Layer) -> str:
    if isinstance(layer, OrPool):
        return f"OR pool {_times(layer.kernel)}"
    beyond = ["recurrent"] if layer.recurrent is not None else []
    beyond += ["current"] if layer.du != 4095 else []
    beyond += ["soft reset"] if layer.reset == "subtract" else []
    if isinstance(layer.synapses, Dense):
        return ", ".join(["dense", *beyond])
    folded = isinstance(layer.synapses, Sparse)
    conv = layer.synapses.kernel if isinstance(layer.synapses, Sparse) else layer.synapses
    words = [f"{'folded ' if folded else ''}conv {_times(conv.weight.shape[2:])}"]
    if conv.stride != (1, 1):
        words.append(f"stride {_pair(conv.stride)}")
    if conv.padding != (0, 0):
        words.append(f"padding {_pair(conv.padding)}")
    if conv.dilation != (1, 1):
        words.append(f"dilation {_pair(conv.dilation)}")
    if conv.groups != 1:
        words.append(f"{conv.groups} groups")
    return ", ".join([*words, *beyond])


def _times(sizes: Sequence[int]) -> str:
    return "\N{MULTIPLICATION SIGN}".join(map(str, sizes))


def _pair(pair: tuple[int, int]) -> str:
    return str(pair[0]) if pair[0] == pair[1] else _times(pair)


@dataclass(frozen=True)
class PlacementRow:
    """A layer's cores: the first and last number, what bound them, and each limit's cell.

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
    first = float(counts.layers[0].inputs.sum())
    return [*rows, _activity_row("All layers", neurons, counts.layers, first, counts)]


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
    """Neuron steps of a layer outside a register, of how many, and in how many samples."""

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
    """One population of the first sample; ``shown`` says what is left out, if anything."""

    name: str
    neurons: int
    shown: str
    tiles: list[Tile]


def _sample_rows(sample: dict[str, NDArray[np.uint8]]) -> list[SampleRow]:
    rows = []
    for name, spikes in sample.items():
        maps = spikes.reshape(len(spikes), -1) if spikes.ndim < 4 else spikes
        whole, kept = maps.shape[1], maps.shape[1]
        if maps[0].size > SHOWN_NEURONS:
            kept = max(1, SHOWN_NEURONS // math.prod(maps.shape[2:]))
        of = "channels" if spikes.ndim >= 4 else "neurons"
        rows.append(
            SampleRow(
                name=name,
                neurons=maps[0].size,
                shown="" if kept == whole else f"the first {kept:,} of {whole:,} {of}",
                tiles=[_tile(step, kept, int(maps.max())) for step in maps[:SHOWN_STEPS]],
            )
        )
    return rows


def _tile(step: NDArray[np.uint8], kept: int, largest: int) -> Tile:
    image = _mosaic(step[:kept])
    return Tile(int(np.count_nonzero(step)), _png(image, largest), image.shape[1] < TILE_PIXELS)


def _mosaic(step: NDArray[np.uint8]) -> NDArray[np.int16]:
    """One image of one step: maps [C, H, W] side by side, or neurons [n] in rows; -1 is no neuron."""
    maps = step.reshape(len(step), *(step.shape[1:] if step.ndim == 3 else (1, 1)))
    channels, height, width = maps.shape
    gap = 1 if step.ndim == 3 and channels > 1 else 0
    columns = math.ceil(math.sqrt(channels * height / width))
    rows = math.ceil(channels / columns)
    image = np.full((rows * (height + gap) - gap, columns * (width + gap) - gap), -1, np.int16)
    for index, pixels in enumerate(maps):
        top, left = index // columns * (height + gap), index % columns * (width + gap)
        image[top : top + height, left : left + width] = pixels
    return image


def _png(image: NDArray[np.int16], largest: int) -> str:
    """A PNG as data URL: transparent but for the neurons, the more opaque the larger the value."""
    from matplotlib.image import imsave

    rgba = np.empty((*image.shape, 4), np.uint8)
    rgba[..., :3] = SPIKE_RGB
    shade = SILENT_ALPHA + image.astype(np.float64) / max(largest, 1) * (255 - SILENT_ALPHA)
    rgba[..., 3] = np.where(image < 0, 0, shade)
    buffer = io.BytesIO()
    imsave(buffer, rgba, format="png", metadata=NO_SOFTWARE)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


# Energy


@dataclass(frozen=True)
class Headline:
    """The energy that the report shows first: one chip's, by its published profiles if it has any.

    ``total`` is a number, or a range where the ``profiles`` differ; ``chip`` the title of the chip
    that they describe, ``own`` whether the network was lowered to it.
    """

    total: str
    chip: str
    own: bool
    profiles: list[str]
    extrapolated: bool


@dataclass(frozen=True)
class EnergySection:
    """Energies of one run by profile, their common units, colours and figures.

    ``chips`` are the titles of the chips that the profiles describe, by profile, ``other_chips`` those
    that are not the network's own; ``headline`` is in ``joule``;
    ``per_synop_j`` is the dynamic energy over the synops, None where there were none;
    ``static_range_j`` the ends of the measured range, None where no static power is known; ``steps``
    has for each time step by profile its mean duration and what bound it most often.
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


def _energy_section(
    chip: str, activity: Activity, profiles: dict[str, tuple[chips.Chip, chips.Profile]]
) -> EnergySection:
    energies, counts = activity.energies, activity.counts
    joule = Unit.fitting("J", (e.total_j for e in energies.values()))
    synops = sum(float(layer.synops.sum()) for layer in counts.layers) / counts.samples
    events = list(dict.fromkeys(event for e in energies.values() for event in e.by_event_j))
    layers = list(dict.fromkeys(layer for e in energies.values() for layer in e.by_layer_j))
    event_colours = {e: PALETTE[i % len(PALETTE)] for i, e in enumerate(events)}
    layer_colours = dict(zip(layers, _ramp(len(layers)), strict=True))
    by_event = {name: dict(e.by_event_j) for name, e in energies.items()}
    for name, energy in energies.items():
        if energy.static_j is not None:
            by_event[name]["static"] = energy.static_j
    by_layer = {name: e.by_layer_j for name, e in energies.items()}
    second = Unit.fitting("s", (e.latency_s for e in energies.values()))
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
            _stacked("By event", by_event, event_colours | {"static": STATIC_COLOUR}, joule),
            _stacked("Dynamic, by layer", by_layer, layer_colours, joule),
            *(
                _stacked(f"{name}: layers by event", e.by_layer_event_j, event_colours, joule)
                for name, e in energies.items()
            ),
        ],
        maps=[
            _core_map(title, traffic, layer_colours, counts.samples)
            for title, traffic in {
                profiles[name][0].title: e.traffic for name, e in energies.items()
            }.items()
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
    )


def _steps_of(energy: Energy, step: int, counts: Counts) -> int:
    """How many physical steps of a run are one of ``step``, ``step`` + T, ..."""
    return len(range(step, len(energy.series_s), counts.timesteps))


def _bound(bound: Bound, of: int) -> str:
    """What bound a step, and how often."""
    where = "the network" if bound.core is None else f"core {bound.core} of {bound.layer}"
    part = "" if bound.core is None else f", {bound.part}"
    return f"{where}{part}, {bound.steps:,} of {of:,}"


# Figures


@dataclass(frozen=True)
class Picture:
    """An inline SVG, its caption, and in ``svg`` its description for those who do not see it."""

    caption: str
    svg: Markup


def _threshold_figure(layer: LifLayer) -> Picture:
    """Histogram of the thresholds of ``layer`` in the units of the float model."""
    theta = _theta(layer).reshape(-1)
    bins, edges = np.histogram(theta, BINS)
    low, middle, high = (significant(float(q), 4) for q in np.quantile(theta, [0, 0.5, 1]))
    spread = f"all {low}" if low == high else f"{low} to {high}, median {middle}"

    def draw(axes: Axes) -> None:
        log = bins.max() > LOG_RATIO * bins[bins > 0].min()
        axes.bar(edges[:-1], bins, np.diff(edges), align="edge", color=PALETTE[0], log=log)
        axes.set_xlabel("threshold, units of the float model")
        axes.set_ylabel("neurons (log axis)" if log else "neurons")
        axes.locator_params("x", nbins=5)
        axes.ticklabel_format(axis="x", useOffset=False)
        axes.grid(axis="y", **GRID)
        axes.yaxis.set_major_formatter("{x:,g}")
        if log:
            axes.set_ylim(bottom=0.5)
            axes.minorticks_off()

    return Picture(
        f"{layer.name}: {spread}",
        _svg(
            f"threshold-{layer.name}",
            f"Histogram of the {layer.neurons:,} thresholds of {layer.name}: {spread}",
            draw,
            height=1.9,
        ),
    )


def _theta(layer: LifLayer) -> Float:
    """vth in the units of the float model, float64 of ``layer.shape``."""
    theta: Float = layer.vth * layer.per_neuron(layer.scale)
    return theta


def _stacked(
    caption: str, parts: dict[str, dict[str, float]], colours: dict[str, str], unit: Unit
) -> Picture:
    """One horizontal bar a profile, one part an event or layer; the tables serve as legend."""

    def draw(axes: Axes) -> None:
        for row, values in enumerate(parts.values()):
            left = 0.0
            for part, value in values.items():
                axes.barh(row, value / unit.factor, 0.6, left, color=colours[part])
                left += value / unit.factor
        axes.set_yticks(range(len(parts)), list(parts))
        axes.invert_yaxis()
        axes.locator_params("x", nbins=5)
        axes.set_xlabel(f"{unit.label} per inference")
        axes.xaxis.set_major_formatter("{x:,g}")
        axes.grid(axis="x", **GRID)

    shares = "; ".join(
        f"{name}: " + ", ".join(f"{part} {unit(v)} {unit.label}" for part, v in values.items())
        for name, values in parts.items()
    )
    svg = _svg(
        f"bars-{caption}",
        f"{caption}, energy per inference. {shares}",
        draw,
        height=0.8 + 0.4 * len(parts),
    )
    return Picture(caption, svg)


def _core_map(title: str, traffic: Traffic, colours: dict[str, str], samples: int) -> Picture:
    """The tiles of a chip: a square a core in its layer's colour, the fuller the more synops.

    Lines between tiles are as wide as the packets that take them, in both directions together.
    """
    mesh, cores = traffic.mesh, np.arange(traffic.placed.cores)
    across = math.ceil(math.sqrt(mesh.cores_per_tile))
    column, row = mesh.position(mesh.tile(cores))
    within_row, within_column = np.divmod(cores % mesh.cores_per_tile, across)
    busiest = int(traffic.synops.argmax())
    loads: dict[tuple[int, int], int] = {}
    for link, packets in traffic.links:
        ends = (min(link.source, link.target), max(link.source, link.target))
        loads[ends] = loads.get(ends, 0) + packets

    def draw(axes: Axes) -> None:
        from matplotlib.patches import Rectangle

        for tile in range(mesh.tiles):
            x, y = (int(at) for at in mesh.position(tile))
            axes.add_patch(Rectangle((x + 0.1, y + 0.1), 0.8, 0.8, fill=False, **OUTLINE))
        for (a, b), packets in loads.items():
            ends = [[int(at) + 0.5 for at in mesh.position(tile)] for tile in (a, b)]
            width = 4 * packets / max(loads.values())
            axes.plot(*zip(*ends, strict=True), color=INK, alpha=0.5, linewidth=width, zorder=0)
        side = 0.8 / across
        for core in cores:
            at = (
                column[core] + 0.1 + side * within_column[core],
                row[core] + 0.1 + side * within_row[core],
            )
            shade = 0.25 + 0.75 * traffic.synops[core] / max(1, traffic.synops[busiest])
            colour = colours[traffic.layer_of(int(core))]
            axes.add_patch(Rectangle(at, side, side, color=colour, alpha=shade, linewidth=0))
        axes.set_xlim(0, mesh.columns)
        axes.set_ylim(0, mesh.rows)
        axes.set_aspect("equal")
        axes.axis("off")

    told = (
        f"{traffic.placed.cores:,} cores of {title}; busiest core {busiest} of "
        f"{traffic.layer_of(busiest)} with {count(traffic.synops[busiest] / samples)} synops"
    )
    if traffic.links:
        link, packets = traffic.links[0]
        told += (
            f", busiest link from tile {link.source} {link.direction} with "
            f"{count(packets / samples)} packets an inference"
        )
    height = 0.2 + FIGURE_INCHES * mesh.rows / mesh.columns
    return Picture(told, _svg(f"map-{title}", f"Map: {told}", draw, height=height))


def _ramp(n: int) -> list[str]:
    """``n`` colours from the first layer to the last, visible on white and on black."""
    from matplotlib import colormaps, colors

    return [colors.to_hex(c) for c in colormaps["plasma"](np.linspace(0.15, 0.85, n))]


def _svg(name: str, description: str, draw: Callable[[Axes], None], height: float) -> Markup:
    """An inline SVG of what ``draw`` puts onto one pair of axes, in the page's text colour."""
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context():
        matplotlib.rcdefaults()  # whatever the user's matplotlibrc says
        matplotlib.rcParams.update(
            {
                "svg.fonttype": "none",
                "svg.hashsalt": name,
                "text.parse_math": False,
                "font.size": 8,
                **dict.fromkeys(("text.color", "axes.labelcolor", "axes.edgecolor"), INK),
                **dict.fromkeys(("xtick.color", "ytick.color"), INK),
                "axes.spines.top": False,
                "axes.spines.right": False,
                "axes.axisbelow": True,
            }
        )
        figure = Figure(figsize=(FIGURE_INCHES, height), layout="constrained")
        axes = figure.subplots()
        axes.patch.set_alpha(0)
        figure.patch.set_alpha(0)
        draw(axes)
        return _inline(name, description, figure)


def _inline(name: str, description: str, figure: Figure) -> Markup:
    """The SVG element alone, with ids of its own and the page's colour in place of INK.

    Markup: matplotlib has escaped the text that it holds.
    """
    buffer = io.StringIO()
    metadata = dict.fromkeys(("Date", "Creator", "Format", "Type"))
    figure.savefig(buffer, format="svg", metadata=metadata)
    text = buffer.getvalue()
    text = text[text.index("<svg") :].replace(INK, "currentColor")
    prefix = re.sub(r"[^a-zA-Z0-9]", lambda m: f"-{ord(m[0]):x}-", name)
    text = re.sub(r'( id="|href="#|url\(#)', rf"\g<1>{prefix}-", text)
    label = Markup('<svg role="img" aria-label="{}"').format(description)
    return Markup(text.replace("<svg", label, 1))
