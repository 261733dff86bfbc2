"""A drawing of the network as inline SVG: boxes in columns by depth, connections as lines between them.

Columns that do not fit next to each other go on below, band by band. A connection to the next column is a
curve; any other runs along a lane of its own, above the boxes of its band or below them. Lines take the
colour of the page and need no script.
"""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field

from markupsafe import Markup

from stl_deploy.ir.network import Connection, IntegerNetwork
from stl_deploy.ir.readouts import Rule
from stl_deploy.report.numbers import count
from stl_deploy.report.rows import input_words, neuron_words, readout_words, words

COLUMNS = 7  # next to each other: what a page is wide
WIDTH, HEIGHT = 104, 40  # of a box, pixels
GAP, BETWEEN = 44, 16  # between columns, and between the boxes of one
LANE = 11  # between lines that run along
MARGIN = 12
LETTERS = 15  # of a name that fit into a box
# By the rule of the readout, what stands below the last box.
SCORED: dict[Rule, str] = {
    "votes": "read by spikes",
    "last": "read by last v",
    "mean": "read by mean v",
    "max": "read by highest v",
    "first": "read by first spike",
}
LISTED = 24  # boxes that the description names; the tables have them all


@dataclass
class _Box:
    """An input or a population: its column, counted through all bands, and its place on the page."""

    name: str
    column: int
    row: int = 0
    x: float = 0.0
    y: float = 0.0
    leaves: list[Connection] = field(default_factory=list)
    enters: list[Connection] = field(default_factory=list)

    @property
    def band(self) -> int:
        return self.column // COLUMNS

    def out(self, c: Connection) -> tuple[float, float]:
        """Where a connection leaves."""
        return self.x + WIDTH, self.y + _port(self.leaves, c)

    def into(self, c: Connection) -> tuple[float, float]:
        """Where a connection enters."""
        return self.x, self.y + _port(self.enters, c)


def _port(ends: Sequence[Connection], c: Connection) -> float:
    return HEIGHT * (ends.index(c) + 1) / (len(ends) + 1)


class _Lanes:
    """Lanes along a band: lines that would overlap get one each."""

    def __init__(self) -> None:
        self.taken: list[list[tuple[float, float]]] = []

    def take(self, start: float, end: float) -> int:
        """The lowest lane that is free from ``start`` to ``end``."""
        low, high = min(start, end), max(start, end)
        for lane, spans in enumerate(self.taken):
            if all(high < a or b < low for a, b in spans):
                spans.append((low, high))
                return lane
        self.taken.append([(low, high)])
        return len(self.taken) - 1


def draw(network: IntegerNetwork) -> Markup:
    """The SVG element, with a description for those who do not see it."""
    return _Drawing(network).svg()


class _Drawing:
    def __init__(self, network: IntegerNetwork) -> None:
        self.network = network
        self.boxes = {name: _Box(name, column) for name, column in _columns(network).items()}
        self._rows()
        for c in network.connections:
            self.boxes[c.source].leaves.append(c)
            self.boxes[c.target].enters.append(c)
        self._order_ports()
        bands = 1 + max(box.band for box in self.boxes.values())
        self.above = [_Lanes() for _ in range(bands)]
        self.below = [_Lanes() for _ in range(bands)]
        self.lanes = {c.key: self._lane(c) for c in network.connections}
        # Along the left margin, and where lines from other bands come in.
        self.margin = _Lanes()
        self.down = {c.key: self._down(c) for c in network.connections if self._kind(c) == "bands"}
        self.over = {
            c.key: self.above[self.boxes[c.target].band].take(-1, self._place_in_band(c.target))
            for c in network.connections
            if self._kind(c) == "bands" and self._place_in_band(c.target)
        }
        self.width = 2 * MARGIN + self._x(
            min(COLUMNS, 1 + max(b.column for b in self.boxes.values()))
        )
        self.height = self._place(bands)

    def _rows(self) -> None:
        """Boxes of a column one below the other, near the rows of what leads into them."""
        by_column: dict[int, list[_Box]] = defaultdict(list)
        for box in self.boxes.values():
            by_column[box.column].append(box)
        for column in sorted(by_column):
            boxes = by_column[column]
            wanted = {box.name: self._wanted(box, i) for i, box in enumerate(boxes)}
            for row, box in enumerate(sorted(boxes, key=lambda box: wanted[box.name])):
                box.row = row

    def _wanted(self, box: _Box, place: int) -> tuple[float, int]:
        into = [] if box.name in self.network.inputs else self.network.into(box.name)
        rows = [self.boxes[c.source].row for c in into if self.boxes[c.source].column < box.column]
        return (sum(rows) / len(rows) if rows else float(place)), place

    def _order_ports(self) -> None:
        """Lines leave and enter in the order in which they come from above and below."""
        for box in self.boxes.values():
            box.leaves.sort(key=lambda c: self._side(c, self.boxes[c.target]))
            box.enters.sort(key=lambda c: self._side(c, self.boxes[c.source]))

    def _side(self, c: Connection, other: _Box) -> tuple[int, int]:
        """Lines along the lanes above a band are the first, those below it the last."""
        kind = self._kind(c)
        return ({"above": 0, "next": 1}.get(kind, 2), other.row)

    def _kind(self, c: Connection) -> str:
        """How a connection runs: to the "next" column, "above" its band, "below" it, or to another band."""
        a, b = self.boxes[c.source], self.boxes[c.target]
        if a.band != b.band:
            return "bands"
        if b.column == a.column + 1:
            return "next"
        return "above" if b.column > a.column else "below"

    def _lane(self, c: Connection) -> int:
        a, b = self.boxes[c.source], self.boxes[c.target]
        kind = self._kind(c)
        start, end = self._place_in_band(a.name), self._place_in_band(b.name)
        if kind == "above":
            return self.above[a.band].take(start, end)
        if kind == "below":
            return self.below[a.band].take(start - 0.4, end + 0.4)
        # Along the lanes below its band to the left, and down along the left margin.
        return self.below[a.band].take(-1, start) if kind == "bands" else 0

    def _down(self, c: Connection) -> int:
        """The lane along the left margin, from below a box to before or above another."""
        a, b = self.boxes[c.source].band, self.boxes[c.target].band
        return self.margin.take(a + 0.75, b + (0.0 if self._place_in_band(c.target) else 0.5))

    def _place_in_band(self, name: str) -> float:
        return float(self.boxes[name].column % COLUMNS)

    def _x(self, column: int) -> float:
        return column * (WIDTH + GAP)

    def _place(self, bands: int) -> float:
        """Put the boxes onto the page; its height is returned."""
        self.left = MARGIN + LANE * len(self.margin.taken)
        self.width += LANE * len(self.margin.taken)
        self.top: list[float] = []
        self.bottom: list[float] = []
        y = float(MARGIN)
        for band in range(bands):
            held = [box for box in self.boxes.values() if box.band == band]
            self.top.append(y + LANE * len(self.above[band].taken))
            rows = 1 + max(box.row for box in held)
            for box in held:
                of_column = sum(other.column == box.column for other in held)
                box.x = self.left + self._x(box.column % COLUMNS)
                shift = (rows - of_column) / 2
                box.y = self.top[band] + (box.row + shift) * (HEIGHT + BETWEEN) + BETWEEN / 2
            self.bottom.append(self.top[band] + rows * (HEIGHT + BETWEEN))
            y = self.bottom[band] + LANE * len(self.below[band].taken) + MARGIN
        return y

    def svg(self) -> Markup:
        """The whole drawing."""
        parts = [*map(self._line, self.network.connections)]
        parts += [self._box(box) for box in self.boxes.values()]
        return Markup(
            '<svg class="graph" role="img" aria-label="{label}" viewBox="0 0 {w:.0f} {h:.0f}" '
            'width="{w:.0f}" height="{h:.0f}"><defs><marker id="graph-tip" viewBox="0 0 6 6" refX="5.5" '
            'refY="3" markerWidth="6" markerHeight="6" orient="auto">'
            '<path d="M0 0.5 L6 3 L0 5.5 z" class="tip"/></marker></defs>{parts}</svg>'
        ).format(
            label=self.description(), w=self.width, h=self.height, parts=Markup("").join(parts)
        )

    def description(self) -> str:
        """What leads where, in words."""
        network = self.network
        depth = f", {count(network.hops)} hops deep" if network.depth is not None else ""
        said = f"Graph of {count(len(network.populations))} populations{depth}."
        ways = [self._way(c) for c in network.connections]
        more = f" and {count(len(ways) - LISTED)} more" if len(ways) > LISTED else ""
        readout = network.readout
        classes = f"{count(readout.classes)} classes by {readout_words(readout)}"
        return (
            f"{said} {'; '.join(ways[:LISTED])}{more}. {readout.source} is read out as {classes}."
        )

    def _way(self, c: Connection) -> str:
        late = f" after {_steps(c.delay)}" if c.delay else ""
        if c.source == c.target:
            return f"{c.source} to itself{late}"
        return f"{c.source} to {c.target}{late}"

    def _box(self, box: _Box) -> Markup:
        network, name = self.network, box.name
        size = "\N{MULTIPLICATION SIGN}".join(map(str, network.shape(name)))
        if name in network.inputs:
            kind, what = "input", f"input, {input_words(network.inputs[name])}"
        else:
            population = network.by_name[name]
            kind = population.kind if population.neurons.fires else f"{population.kind} silent"
            what = f"{count(population.size)} neurons, {neuron_words(population)}"
        below = Markup("")
        if name == network.readout.source:
            below = Markup('<text x="{:.1f}" y="{:.1f}" class="delay">{}</text>').format(
                box.x + WIDTH / 2, box.y + HEIGHT + 11, SCORED[network.readout.rule]
            )
            kind += " last"
            how = readout_words(network.readout)
            what += f", read out as {count(network.readout.classes)} classes by {how}"
        return Markup(
            '<g class="{kind}"><title>{name}: {what}</title>'
            '<rect x="{x:.1f}" y="{y:.1f}" width="{w}" height="{h}" rx="{round}"/>'
            '<text x="{middle:.1f}" y="{first:.1f}">{short}</text>'
            '<text x="{middle:.1f}" y="{second:.1f}" class="size">{size}</text>{below}</g>'
        ).format(
            kind=kind,
            name=name,
            what=what,
            x=box.x,
            y=box.y,
            w=WIDTH,
            h=HEIGHT,
            round=HEIGHT / 2 if name in network.inputs else 4,
            middle=box.x + WIDTH / 2,
            first=box.y + 17,
            second=box.y + 32,
            short=_short(name),
            size=_short(size),
            below=below,
        )

    def _line(self, c: Connection) -> Markup:
        points = self._points(c)
        (x, y), curved = points[0], self._kind(c) == "next"
        path = f"M{x:.1f} {y:.1f}" + (_curve(points) if curved else _corners(points))
        label = Markup("")
        if c.delay:
            at = self._label(points)
            label = Markup('<text class="delay" x="{:.1f}" y="{:.1f}">+{}</text>').format(
                *at, c.delay
            )
        late = f", {_steps(c.delay)} later" if c.delay else ""
        late += ", into the second current" if c.port else ""
        return Markup(
            '<g class="way"><title>{name}: {source} to {target}, {kind}{late}</title>'
            '<path d="{path}" marker-end="url(#graph-tip)"/>{label}</g>'
        ).format(
            name=c.name,
            source=c.source,
            target=c.target,
            kind=", ".join(words(c)),
            late=late,
            path=path,
            label=label,
        )

    def _points(self, c: Connection) -> list[tuple[float, float]]:
        """The corners of a connection's line."""
        a, b = self.boxes[c.source], self.boxes[c.target]
        (x1, y1), (x2, y2) = a.out(c), b.into(c)
        kind, lane = self._kind(c), self.lanes[c.key]
        # Lines of different lanes do not turn on top of each other.
        turn = 4 * (lane % 5)
        right, left = x1 + 6 + turn, x2 - 10 - turn
        if kind == "next":
            return [(x1, y1), (x2, y2)]
        if kind == "above":
            y = self.top[a.band] - LANE * (lane + 0.5)
            return [(x1, y1), (right, y1), (right, y), (left, y), (left, y2), (x2, y2)]
        y = self.bottom[a.band] + LANE * (lane + 0.5)
        if kind == "below":
            return [(x1, y1), (right, y1), (right, y), (left, y), (left, y2), (x2, y2)]
        margin = MARGIN / 2 + LANE * self.down[c.key]
        if c.key not in self.over:
            return [(x1, y1), (right, y1), (right, y), (margin, y), (margin, y2), (x2, y2)]
        over = self.top[b.band] - LANE * (self.over[c.key] + 0.5)
        corners = [(right, y1), (right, y), (margin, y), (margin, over), (left, over), (left, y2)]
        return [(x1, y1), *corners, (x2, y2)]

    def _label(self, points: list[tuple[float, float]]) -> tuple[float, float]:
        """The middle of the longest stretch along a row."""
        pairs = itertools.pairwise(points)
        (x1, y1), (x2, y2) = max(pairs, key=lambda pair: abs(pair[0][0] - pair[1][0]))
        return (x1 + x2) / 2, (y1 + y2) / 2 - 2


def _columns(network: IntegerNetwork) -> dict[str, int]:
    """The column of every input and population: its depth, or where none serves the longest way to it."""
    if network.depth is not None:
        return dict(network.depth)
    column = dict.fromkeys(network.inputs, 0) | dict.fromkeys(network.by_name, 1)
    place = {name: i for i, name in enumerate(column)}
    for name in network.by_name:
        before = [column[c.source] for c in network.into(name) if place[c.source] < place[name]]
        column[name] = 1 + max(before, default=0)
    return column


def _curve(points: list[tuple[float, float]]) -> str:
    (x1, y1), (x2, y2) = points
    middle = (x1 + x2) / 2
    return f" C{middle:.1f} {y1:.1f} {middle:.1f} {y2:.1f} {x2:.1f} {y2:.1f}"


def _corners(points: list[tuple[float, float]]) -> str:
    return "".join(f" L{x:.1f} {y:.1f}" for x, y in points[1:])


def _short(text: str) -> str:
    return text if len(text) <= LETTERS else f"{text[: LETTERS - 1]}\N{HORIZONTAL ELLIPSIS}"


def _steps(delay: int) -> str:
    return "a step" if delay == 1 else f"{delay} steps"
