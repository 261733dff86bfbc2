"""The pictures of the report, as inline SVG or PNG."""

from __future__ import annotations

import base64
import io
import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from markupsafe import Markup
from numpy.typing import NDArray

from stl_deploy.hw_sim.account.traffic import Traffic
from stl_deploy.ir.network import Population
from stl_deploy.report.numbers import Unit, count, significant

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Float = NDArray[np.float64]
BINS = 40  # of a threshold histogram
LOG_RATIO = 100  # tallest bin over lowest from which a histogram counts on a log axis
FIGURE_INCHES = 3.6  # narrow: a figure fills a phone's width at a readable type size
# Tol's "bright" scheme: told apart by colour-blind readers, and visible on white and on black.
PALETTE = ("#4477aa", "#ee6677", "#228833", "#ccbb44", "#66ccee", "#aa3377")
INK = "#010203"  # drawn by matplotlib, then replaced by CSS's currentColor
OUTLINE: dict[str, Any] = {"edgecolor": INK, "alpha": 0.4, "linewidth": 0.5}
GRID: dict[str, Any] = {"color": INK, "alpha": 0.15, "linewidth": 0.5}
SPIKE_RGB = (0x44, 0x77, 0xAA)
SILENT_ALPHA = 28  # of 255, so that a silent neuron differs from the page
NO_SOFTWARE: dict[str, Any] = {"Software": None}  # no version in a PNG


def mosaic(step: NDArray[Any]) -> NDArray[np.int16]:
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


def png(image: NDArray[np.int16], largest: int) -> str:
    """A PNG as data URL: transparent but for the neurons, the more opaque the larger the value."""
    from matplotlib.image import imsave

    rgba = np.empty((*image.shape, 4), np.uint8)
    rgba[..., :3] = SPIKE_RGB
    shade = SILENT_ALPHA + image.astype(np.float64) / max(largest, 1) * (255 - SILENT_ALPHA)
    rgba[..., 3] = np.where(image < 0, 0, shade)
    buffer = io.BytesIO()
    imsave(buffer, rgba, format="png", metadata=NO_SOFTWARE)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


# Figures


@dataclass(frozen=True)
class Picture:
    """An inline SVG, its caption, and in ``svg`` its description for those who do not see it."""

    caption: str
    svg: Markup


def threshold_figure(population: Population) -> Picture:
    """Histogram of the thresholds of ``population`` in the units of the float model."""
    name, neurons = population.name, population.neurons
    theta = np.broadcast_to(neurons.vth * neurons.scale, population.shape).reshape(-1)
    bins, edges = np.histogram(theta, BINS)
    low, middle, high = (significant(float(q), 4) for q in np.quantile(theta, [0, 0.5, 1]))
    extent = f"all {low}" if low == high else f"{low} to {high}, median {middle}"

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
        f"{name}: {extent}",
        _svg(
            f"threshold-{name}",
            f"Histogram of the {population.size:,} thresholds of {name}: {extent}",
            draw,
            height=1.9,
        ),
    )


def stacked(
    caption: str, parts: dict[str, dict[str, float]], colours: dict[str, str], unit: Unit
) -> Picture:
    """One horizontal bar a profile, one part an event or population; the tables serve as legend."""

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


def core_map(title: str, traffic: Traffic, colours: dict[str, str], samples: int) -> Picture:
    """The tiles of a chip: a square a core in its population's colour, the fuller the more synops.

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


def ramp(n: int) -> list[str]:
    """``n`` colours from the first population to the last, visible on white and on black."""
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
