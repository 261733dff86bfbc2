"""The report: what it says, that it needs nothing from outside, and that it is the same every time."""

import base64
import io
import itertools
import re
import subprocess
import sys
from dataclasses import dataclass, replace
from html.parser import HTMLParser

import matplotlib
import numpy as np
import pytest
from matplotlib.image import imread

from stl_deploy.chips import facts as chips
from stl_deploy.errors import LoweringError
from stl_deploy.hw_sim import reference
from stl_deploy.hw_sim.account.mesh import Mesh
from stl_deploy.hw_sim.simulate import Activity, Recorder
from stl_deploy.ir.network import Connection, Input, IntegerNetwork
from stl_deploy.ir.neurons import Graded, Lif
from stl_deploy.ir.notes import Diagnostic, Precision
from stl_deploy.ir.readouts import Readout
from stl_deploy.ir.synapses import Conv, Dense, Kernel, OneToOne, Sparse
from stl_deploy.report import drawing, figures, numbers, rows
from stl_deploy.report import sections as report
from stl_deploy.verify.against_float import LayerParity, ParityReport
from stl_deploy.verify.divergence import Divergence, Place, Synapse, Voltages
from stl_deploy.verify.fault import Fault
from tests.build import random_graphs
from tests.build.networks import chain, lif, pool

SAMPLES, STEPS = 5, 4
X = "\N{MULTIPLICATION SIGN}"
VOID = {"meta", "img", "br", "hr"}
INLINE = {"strong", "em", "code"}


# What is reported


def network(chip: str = "loihi2", **fields) -> IntegerNetwork:
    rng = np.random.default_rng(0)
    kernels = rng.integers(1, 128, (4, 1, 3, 3)).astype(np.int8)
    conv = lif(
        "lif1",
        Conv(kernels, (1, 1), (1, 1), (1, 1), 1),
        (1, 6, 6),
        vth=rng.integers(50, 400, (4, 6, 6)),
        scale=0.01,
        synapse_name="conv1",
    )
    dense = lif(
        "lif2",
        Dense(rng.integers(-127, 0, (6, 36)).astype(np.int8)),
        (4, 3, 3),
        vth=1234,
        bias=900,
        scale=0.5,
        synapse_name="fc",
        weight_bits=6,
    )
    windows = replace(pool((4, 6, 6), (2, 2)), synapse_name="max1")
    precision = {
        "lif1": Precision("proven", 7.456, 1100, 131072),
        "lif2": Precision("checked", 6.0, 200000, 131072),
    }
    layers, readout = (conv, windows, dense), Readout(3, 2)
    made = chain(*layers, chip=chip, steps=STEPS, readout=readout, precision=precision)
    return replace(made, **fields)


def run(network: IntegerNetwork, profiles: bool = True, raster=None) -> Activity:
    if raster is None:
        size = SAMPLES, STEPS, 1, 6, 6
        raster = np.random.default_rng(1).integers(0, 2, size).astype(np.uint8)
    recorder = Recorder(network)
    trace = reference.run(network, raster, cores=recorder.cores)
    recorder.add(raster, trace)
    done = recorder.done()
    given = {name: values[0] for name, values in network.rasters(raster).items()}
    sample = given | {n: did.spikes[0] for n, did in trace.layers.items()}
    return Activity(done.counts, done.energies if profiles else {}, 0.8, sample)


PARITY = ParityReport(
    samples=200,
    layers=(
        LayerParity("lif1", 115200, 0.00159, 0.00159, 1 / 115200, 0.0, 0.9984, 0.97),
        LayerParity("lif2", 4800, 0.25, 0.0, 0.0, 0.0),
    ),
    accuracy_float=0.985,
    accuracy_lowered=0.98,
    prediction_agreement=0.99,
    first_divergence=Divergence(
        place=Place(3, 1, "lif1", (2, 4, 5)),
        float_spike=True,
        integer_spike=False,
        blame="weight",
        voltages=Voltages(
            v=0.51,
            theta=0.5,
            v_int=3100,
            vth=48,
            fires_from=3136,
            v_lowered=0.484,
            theta_lowered=0.49,
            margin=0.01,
            error=-0.026,
            bound=0.027,
            reset=0,
            contributions={"weight": -0.03, "bias": 0.004, "decay": 0.0, "register": 0.0},
        ),
        synapses=(Synapse("conv1", "input", (0, 3, 4), (2, 0, 0, 1), 17, 17.4375, 2, -0.025),),
        faults=(Fault("lif2", "threshold", 1, "one & only <threshold>"),),
    ),
    not_certified={"lif2": "its reset is not known here"},
)


def with_overflow(activity: Activity, layer: int, *cells: tuple[int, int]):
    layers = list(activity.counts.layers)
    overflow = np.zeros_like(layers[layer].overflow)
    for cell in cells:
        overflow[cell] = 2
    layers[layer] = replace(layers[layer], overflow=overflow)
    return replace(activity, counts=replace(activity.counts, layers=tuple(layers)))


# Reading it back


class Page(HTMLParser):
    """Tables by caption as rows of cell texts, all tags with attributes, and whether tags balance."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tables: dict[str, list[list[str]]] = {}
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.parts: list[str] = []
        self.rows: list[list[str]] = []
        self.caption = ""
        self.text = ""
        self.feed(html)
        self.close()
        self.text = " ".join(self.text.split())
        assert not self.open

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        self.text += "" if tag in INLINE else " "
        if tag not in VOID:
            self.open.append(tag)
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th", "caption"):
            self.parts = []

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag
        self.text += "" if tag in INLINE else " "
        text = " ".join(" ".join(self.parts).split())
        if tag == "caption":
            self.caption, self.rows = text, []
        if tag in ("td", "th"):
            self.rows[-1].append(text)
        if tag == "table":
            self.tables[self.caption] = self.rows

    def handle_data(self, data):
        self.parts.append(data)
        if "style" not in self.open:
            self.text += data

    def table(self, start: str) -> dict[str, list[str]]:
        """Cells by row name of the table whose caption starts so."""
        rows = next(rows for caption, rows in self.tables.items() if caption.startswith(start))
        return {row[0]: row[1:] for row in rows}


@pytest.fixture(scope="module")
def activity() -> Activity:
    return run(network())


@pytest.fixture(scope="module")
def html(activity: Activity) -> str:
    return report.render("small", network(), activity=activity, parity=PARITY)


@pytest.fixture(scope="module")
def page(html: str) -> Page:
    return Page(html)


# Content


def test_headline(page: Page):
    neurons, synapses = 144 + 36 + 6, 4 * (16 * 16) + 144 + 216
    for text in (f"Neurons {neurons}", f"Synapses {synapses:,}", "Time steps 4", "Chip loihi2"):
        assert text in page.text
    assert "Accuracy, float 98.50 % on 200 samples" in page.text
    assert "Accuracy, integer 98.00 %" in page.text
    assert "Intel Loihi 2" in page.text


def test_network_table(page: Page):
    table = page.table("Populations in order")
    vth = network().by_name["lif1"].neurons.vth
    assert table["lif1"] == [
        f"4{X}6{X}6", "144", "36", "1,024", "7.46", "proven 1,100 / 131,072",
        f"{len(np.unique(vth))} {vth.min()} to {vth.max()}",
    ]  # fmt: skip
    assert table[f"pool1 OR pool 2{X}2"] == [f"4{X}3{X}3", "36", "-", "144", "-", "-", "-"]
    assert table["lif2"] == [
        "6", "6", "216", "216", "6.00", "checked 200,000 / 131,072", "1 1,234",
    ]  # fmt: skip
    assert table["All populations"] == ["", "186", "252", "1,384", "", "", ""]


def test_connection_table(page: Page):
    table = page.table("Connections, by the population")
    conv = table[f"conv1 conv 3{X}3, padding 1"]
    assert conv == ["input", "lif1", "0", "36", "1,024", "8", "7.46"]
    window = table[f"max1 conv 2{X}2, stride 2, 4 groups"]
    assert window == ["lif1", "pool1", "0", "16", "144", "1", "-"]
    assert table["fc dense"] == ["pool1", "lif2", "0", "216", "216", "6", "6.00"]


def test_placement_table(page: Page):
    """By hand: entries of 10 + n * (weight bits + 13) bits, in words of 64."""
    table = page.table("Cores of each population")
    header = ["Cores their numbers", "Bound by", "Compartments of 8,192"]
    assert table["Population"] == [*header, "Bytes of synapse memory of 131,072"]
    assert table["lif1"][:3] == ["1 0", "-", f"144 {numbers.percent(144 / 8192)}"]
    assert table["pool1"][:2] == ["1 1", "-"]
    assert table["lif2"][3] == f"576 {numbers.percent(576 / 131072)}"
    assert table["pool1"][3].split()[0] == "1,152"
    assert table["All populations"][0] == "3"
    assert "Cores 3 1 chip, 1 tile" in page.text
    assert "no figure for Intel Loihi 2 is public: in-axons, out-axons, distinct" in page.text


def test_placement_beyond_a_limit_is_marked():
    page = Page(report.render("x", network("loihi1")))
    distinct = len(np.unique(network().by_name["lif1"].neurons.vth))
    cell = page.table("Cores of each population")["lif1"][-2]
    assert cell == f"{distinct} {numbers.significant(distinct / 7)} times, too many"
    assert page.table("Cores of each population")["lif2"][-2] == f"1 {numbers.percent(1 / 7)}"


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({}, f"conv 3{X}3, padding 1"),
        ({"padding": (0, 0)}, f"conv 3{X}3"),
        (
            {"stride": (2, 1), "dilation": (2, 2), "padding": (0, 1), "groups": 4},
            f"conv 3{X}3, stride 2{X}1, padding 0{X}1, dilation 2, 4 groups",
        ),
    ],
)
def test_kind_names_only_what_is_unusual(fields, words):
    connection = network().connections[0]
    connection = replace(connection, synapses=replace(connection.synapses, **fields))
    assert ", ".join(rows.words(connection)) == words


def test_the_words_of_a_row_are_those_of_its_kind():
    net = network()
    conv, _, dense = net.connections
    kernel = Kernel(conv.synapses.weight.astype(np.float64), np.zeros(4), *conv.synapses.geometry)
    single = np.zeros(1, np.int32)
    sparse = Sparse(single, single, np.ones(1, np.int8), (144, 36), kernel)
    kinds = [
        rows.words(replace(dense, synapses=synapses))
        for synapses in (dense.synapses, sparse, OneToOne(np.ones(6, np.int8)))
    ]
    assert kinds == [["dense"], [f"folded conv 3{X}3", "padding 1"], ["one-to-one"]]
    last = net.by_name["lif2"]
    own = Connection("own", "lif2", "lif2", OneToOne(np.ones(6, np.int8)), delay=1)
    fields = {"du": 100, "reset": "subtract", "dv": np.arange(6, dtype=np.int32)}
    changed = net.changed(replace(last, neurons=replace(last.neurons, **fields)))
    changed = replace(changed, connections=(*net.connections, own))
    one = replace(conv, name="pass", source="lif1", target="pool1", synapses=OneToOne(np.ones(144)))
    relay = replace(net.by_name["pool1"], shape=(4, 6, 6))
    pooled = replace(net.changed(relay), connections=(conv, one))
    found = [
        rows.population_row(net, net.by_name["pool1"]),
        rows.population_row(net, last),
        rows.population_row(changed, changed.by_name["lif2"]),
        rows.population_row(pooled, pooled.by_name["pool1"]),
    ]
    assert [row.kind for row in found] == [
        f"OR pool 2{X}2",
        "",
        "current, soft reset, own decays, recurrent",
        "relay",
    ]
    assert [row.weights for row in found] == [None, 216, 222, None]
    assert [row.thresholds is None for row in found] == [True, False, False, True]


RULED = {
    "hold": 2,
    "reset": "none",
    "du2": 100,
    "gain": np.full((STEPS, 6), 4096, np.int16),
    "floor": -64,
    "graded": Graded(4, 15),
}


# What means nothing without a threshold.
OF_SPIKES = {"hold": 2, "adapt": 64, "reset_current": True}


def ruled(chip="loihi2", readout=None, **fields):
    """The network with rules of its last neurons."""
    net = network(chip)
    last = net.by_name["lif2"]
    changed = net.changed(replace(last, neurons=replace(last.neurons, **fields)))
    return replace(changed, readout=net.readout if readout is None else readout, placement=None)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({}, "LIF, reset to zero"),
        ({"du": 7, "reset": "subtract"}, "LIF, current, soft reset"),
        ({"fires": False, "reset": "constant"}, "integrator"),
        ({"fires": False, "graded": Graded(4, 15)}, "integrator, graded output"),
        ({"reset": "constant", "hold": 1}, "LIF, hold of 1 step, reset to a constant"),
        (
            {"hold": -1, "adapt": 64, "reset_current": True, "du": 7},
            "LIF, current, reset to zero, hold for all remaining steps, adaptive threshold, "
            "reset of the current",
        ),
        ({"fires": False, "reset": "subtract", **OF_SPIKES, "v0": -5}, "integrator, initial v"),
        ({"fires": False, "reset": "none", "hold": -1}, "integrator"),
        (
            RULED,
            "LIF, current, gain for each step, second current, hold of 2 steps, floor of v, graded output, "
            "no reset",
        ),
    ],
)
def test_neurons_in_words(fields, words):
    assert rows.neuron_words(ruled(**fields).by_name["lif2"]) == words
    assert rows.neuron_words(network().by_name["pool1"]) == "OR of all inputs"


def test_rules_that_a_chip_is_assumed_to_carry_are_marked():
    on, off = (rows.populations(ruled(chip, **RULED, dv=0))[-1] for chip in ("loihi2", "ideal"))
    said = (
        "gain for each step, second current, hold of 2 steps, floor of v, graded output, no reset"
    )
    assert (on.kind, ", ".join(on.assumed)) == ("current", said)
    assert (off.kind, off.assumed) == (f"current, {said}", [])
    html = {chip: report.render("m", ruled(chip, **RULED)) for chip in ("loihi2", "ideal")}
    mark = f'<small class="assumed">assumed: {said}</small>'
    assert [mark in html[chip] for chip in ("loihi2", "ideal")] == [True, False]
    assert ["<strong>Assumed</strong>" in html[chip] for chip in html] == [True, False]
    soft = rows.populations(ruled(reset="subtract"))[-1]
    assert (soft.kind, soft.assumed) == ("soft reset", [])
    sums = ruled("ideal", Readout(6, 1, "lif2", "max"), fires=False, reset="subtract", **OF_SPIKES)
    assert rows.populations(sums)[-1].kind == "no threshold"


def test_integrators_have_no_thresholds_to_show():
    net = ruled(fires=False, readout=Readout(6, 1, "lif2", "mean"))
    assert rows.populations(net)[-1].thresholds is None
    html = report.render("m", net)
    assert "thresholds of lif1" in html
    assert "thresholds of lif2" not in html
    assert 'class="lif silent last"' in html


@pytest.mark.parametrize(
    ("readout", "words", "below"),
    [
        (Readout(6, 1, "lif2"), "the most spikes, or sum of values sent", "read by spikes"),
        (Readout(3, 2, "lif2", "last"), "v of the last step", "read by last v"),
        (
            Readout(3, 2, "lif2", "first"),
            "the first spike, then the highest v",
            "read by first spike",
        ),
        (
            Readout(6, 1, "lif2", "mean", factors=np.ones(6, np.int64)),
            "the mean of v over all steps, with a factor for each neuron",
            "read by mean v",
        ),
        (Readout(6, 1, "lif2", "max"), "the highest v of all steps", "read by highest v"),
        (
            Readout(
                *(2, 1, "lif2"),
                steps=(1, 2, 3, 4),
                matrix=np.ones((2, 6), np.int64),
                offset=np.ones(2, np.int64),
            ),
            "the most spikes, or sum of values sent, weighted by step, through a matrix, with an offset",
            "read by spikes",
        ),
    ],
)
def test_the_readout_is_named_in_the_drawing_and_the_text(readout, words, below):
    html = report.render("m", ruled(readout=readout))
    classes = f"{readout.classes} classes by {words}"
    assert f"Readout: lif2 gives {classes}." in html
    assert f"lif2 is read out as {classes}." in html
    assert f'class="delay">{below}</text>' in html
    row = rows.readout_row(readout)
    assert row == {
        "source": "lif2",
        "classes": readout.classes,
        "rule": readout.rule,
        "words": words,
    }


@pytest.mark.parametrize(
    ("port", "words"),
    [
        (Input((1, 6, 6)), f"1{X}6{X}6, binary"),
        (Input((5,), 15), "5, graded 0 to 15"),
        (Input((5,), 300, signed=True), "5, -300 to 300"),
        (Input((5,), 7, held=True), "5, graded 0 to 7, the same in every step"),
    ],
)
def test_inputs_in_words(port, words):
    net = replace(network(), inputs={"input": port})
    assert rows.inputs(net) == [f"input {words}"]
    two = replace(net, inputs={"left": port, "input": port})
    assert rows.inputs(two) == [f"left {words}", f"input {words}"]


def test_effective_bits_of_each_connection():
    """Where one name stands for several connections they are told apart by their source."""
    net = network()
    _, _, dense = net.connections
    same = replace(dense, source="lif1", synapses=Dense(np.ones((6, 144), np.int8)))
    other = replace(same, name="skip", delay=1)
    noted = {"fc (pool1)": 7.0, "fc (lif1)": 5.5, "skip": 3.25}
    precision = {"lif2": replace(net.precision["lif2"], connections=noted)}
    joined = replace(net, connections=(*net.connections, same, other), precision=precision)
    bits = [rows.effective_bits(joined, c) for c in joined.connections]
    assert bits == [None, None, 7.0, 5.5, 3.25]


def test_a_kind_that_the_report_has_no_words_for_is_refused():
    @dataclass(frozen=True, eq=False)
    class Later(Lif):
        kind = "later"

    net = network()
    first = net.by_name["lif1"]
    later = replace(first, neurons=Later(**vars(first.neurons)))
    with pytest.raises(LoweringError, match="lif1: the report does not support 'later'"):
        rows.population_row(net, later)


# Graphs


def boxes(html: str) -> dict[str, tuple[float, float]]:
    """Where each box stands, by its title."""
    found = re.findall(
        r"<g class=\"[a-z ]+\"><title>([^<:]*):[^<]*</title><rect x=\"(.*?)\" y=\"(.*?)\"", html
    )
    return {name: (float(x), float(y)) for name, x, y in found}


def lines(html: str) -> dict[str, list[tuple[float, float]]]:
    """The corners of each line, by the beginning of its title."""
    found = re.findall(r"<g class=\"way\"><title>([^<,]*),[^<]*</title><path d=\"(.*?)\"", html)
    return {
        name: [tuple(map(float, pair)) for pair in re.findall(r"([\d.]+) ([\d.]+)", path)]
        for name, path in found
    }


@pytest.mark.parametrize("seed", range(12))
def test_a_drawing_has_every_population_and_connection_where_it_belongs(seed):
    net, _ = random_graphs.draw(seed)
    html = str(drawing.draw(net))
    placed, drawn = boxes(html), lines(html)
    assert set(placed) == {*net.inputs, *net.by_name}
    assert set(drawn) == {f"{c.name}: {c.source} to {c.target}" for c in net.connections}
    # No two boxes overlap, and columns are depths.
    spots = list(placed.values())
    for i, (x, y) in enumerate(spots):
        for x2, y2 in spots[:i]:
            assert abs(x - x2) > drawing.WIDTH or abs(y - y2) > drawing.HEIGHT
    if net.depth is not None and max(net.depth.values()) < drawing.COLUMNS:
        by_depth = sorted((net.depth[name], x) for name, (x, _) in placed.items())
        assert [x for _, x in by_depth] == sorted(x for _, x in by_depth)
        assert len({x for _, x in by_depth}) == len(set(net.depth.values()))
    for c in net.connections:
        (x1, y1), *_, (x2, y2) = drawn[f"{c.name}: {c.source} to {c.target}"]
        (ax, ay), (bx, by) = placed[c.source], placed[c.target]
        assert x1 == pytest.approx(ax + drawing.WIDTH, abs=0.1)
        assert ay < y1 < ay + drawing.HEIGHT
        assert x2 == pytest.approx(bx, abs=0.1)
        assert by < y2 < by + drawing.HEIGHT
    delays = re.findall(r"class=\"delay\".*?>\+(\d+)<", html)
    assert sorted(map(int, delays)) == sorted(c.delay for c in net.connections if c.delay)


def deep(populations: int) -> IntegerNetwork:
    """A chain with a connection over every second population, and one from the last to the first."""
    parts = [lif(f"p{i:02d}", Dense(np.ones((4, 4), np.int8))) for i in range(populations)]
    net = chain(*parts, chip="ideal")
    names = list(net.by_name)
    one = OneToOne(np.ones(4, np.int8))
    skips = [Connection("skip", a, b, one) for a, b in zip(names, names[2:], strict=False)]
    back = Connection("back", names[-1], names[0], one, delay=60)
    return replace(net, connections=(*net.connections, *skips, back))


def test_a_deep_network_goes_on_below():
    net = deep(60)
    html = str(drawing.draw(net))
    placed = boxes(html)
    width = float(re.search(r"viewBox=\"0 0 (\d+)", html)[1])
    assert width < 1152  # of a page
    assert len({x for x, _ in placed.values()}) == drawing.COLUMNS
    assert len({y for _, y in placed.values()}) == -(-61 // drawing.COLUMNS)
    for path in lines(html).values():
        assert all(0 <= x <= width for x, _ in path)
        # No line runs through a box: what is level lies between them, or ends at one.
        for (x1, y1), (x2, y2) in itertools.pairwise(path):
            if len(path) > 4 and y1 == y2:
                for x, y in placed.values():
                    crosses = min(x1, x2) < x + drawing.WIDTH and max(x1, x2) > x
                    assert not (crosses and y < y1 < y + drawing.HEIGHT)


def test_a_drawing_is_described_in_words():
    net = deep(3)
    label = re.search(r'aria-label="(.*?)"', str(drawing.draw(net)))[1]
    assert label == (
        "Graph of 3 populations, 3 hops deep. input to p00; p00 to p01; p01 to p02; p00 to p02; "
        "p02 to p00 after 60 steps. p02 is read out as 4 classes by the most spikes, or sum of values sent."
    )
    many = re.search(r'aria-label="(.*?)"', str(drawing.draw(deep(60))))[1]
    ways, end = many.split(". p59 is read out as 4 classes by ")
    assert ways.endswith(f" and {60 + 58 + 1 - drawing.LISTED} more")
    assert end == "the most spikes, or sum of values sent."


def test_a_loop_that_no_chip_can_run_is_drawn_all_the_same():
    net = deep(3)
    quick = [replace(c, delay=1) if c.name == "back" else c for c in net.connections]
    net = replace(net, connections=tuple(quick))
    assert net.depth is None
    page = Page(report.render("x", net))
    assert "1 step" not in page.text
    assert "Populations stand in columns by depth" not in page.text
    assert set(boxes(str(drawing.draw(net)))) == {"input", "p00", "p01", "p02"}


@pytest.mark.parametrize("seed", [2, 5, 9, 14])
def test_reports_of_graphs(seed):
    """Several inputs, held and signed ones, loops, relays of no energy: everything is said once."""
    net, rasters = random_graphs.draw(seed)
    activity = run(net, raster=rasters)
    page = Page(report.render("graph", net, activity=activity))
    table = page.table("Populations in order")
    named = {row.split()[0] for row in table} - {"Population", "All"}
    assert named == set(net.by_name)
    assert len(page.table("Connections, by the population")) == 1 + len(net.connections)
    alts = [attrs["alt"] for tag, attrs in page.tags if tag == "img"]
    assert len(alts) == net.timesteps * (len(net.inputs) + len(net.populations))
    for name, given in net.rasters(rasters).items():
        events = int(np.count_nonzero(given[0][0]))
        assert f"{name}, step 0: {events:,} of {net.size(name)} values are not zero" in alts
    if len({c.target for c in net.connections}) < len(net.connections):
        synops = page.table("Synops by connection")
        for c in activity.counts.connections:
            mean = numbers.count(c.synops.sum() / activity.counts.samples)
            assert [c.source, c.target, mean] == synops[c.name]


def test_activity_are_means_per_inference(page: Page, activity: Activity):
    table = page.table("Mean per inference over 5 samples of 4 steps")
    did = activity.counts.layers[0]
    inputs, spikes, rate, synops, active, inactive = table["lif1"]
    assert inputs == numbers.count(did.inputs.sum() / SAMPLES)
    assert spikes == numbers.count(did.spikes.sum() / SAMPLES)
    assert rate == numbers.percent(did.spikes.sum() / (SAMPLES * STEPS * 144))
    assert synops == numbers.count(did.synops.sum() / SAMPLES)
    assert active == numbers.count(did.active.sum() / SAMPLES)
    everything = 144 * activity.counts.physical_steps
    assert inactive == numbers.count((everything - did.active.sum()) / SAMPLES)
    total = sum(int(layer.spikes.sum()) for layer in activity.counts.layers)
    assert table["All populations"][1] == numbers.count(total / SAMPLES)


def test_energy_table(page: Page, activity: Activity):
    table = page.table("Per inference, mean over 5 samples")
    names = ["loihi1-spice", "loihi1-nahuku", "loihi2-pilotnet"]
    energies = [activity.energies[name] for name in names]
    unit = numbers.Unit.fitting("J", (e.total_j for e in energies))
    assert table[f"Dynamic ({unit.label})"] == [unit(e.dynamic_j) for e in energies]
    assert table["synop"] == [unit(e.by_event_j["synop"]) for e in energies]
    assert table["I/O"] == ["not in the model"] * 3
    assert table[f"Total without I/O ({unit.label})"] == [unit(e.total_j) for e in energies]
    synops = sum(int(layer.synops.sum()) for layer in activity.counts.layers) / SAMPLES
    assert table["Dynamic energy per synop (pJ)"] == [
        numbers.significant(e.dynamic_j / synops * 1e12) for e in energies
    ]
    assert table["Cores of the placement"] == [str(e.cores) for e in energies]
    by_layer = page.table("Dynamic energy by population")
    assert by_layer["pool1"] == [unit(e.by_layer_j["pool1"]) for e in energies]


def test_static_energy_shows_the_ends_of_the_range(page: Page, activity: Activity):
    energies = activity.energies
    unit = numbers.Unit.fitting("J", (e.total_j for e in energies.values()))
    cells = page.table("Per inference, mean over 5")[f"Static ({unit.label})"]
    watts = [
        (e.cores * 0.45e-3, e.cores * 0.82e-3) if name.startswith("loihi1") else (0.23, 0.28)
        for name, e in energies.items()
    ]
    for cell, e, (low, high) in zip(cells, energies.values(), watts, strict=True):
        ends = f"{unit(low * e.time_s)} to {unit(high * e.time_s)}"
        assert cell == f"{unit((low + high) / 2 * e.time_s)} {ends}"


def test_energy_of_another_chip_is_said_to_be_that(page: Page):
    assert "made for Intel Loihi 2. The columns of Intel Loihi (first generation) are" in page.text
    assert "no estimate for Intel Loihi 2" in page.text
    assert "models bracket" in page.text
    own = network("loihi1")
    text = Page(report.render("x", own, activity=run(own))).text
    assert "The columns of Intel Loihi 2 are" in text
    assert "no estimate for Intel Loihi (first" in text


def headline(chip: str, *profiles: str) -> tuple[str, dict[str, float], numbers.Unit]:
    """The words of the energy shown first, totals by profile, their unit; without names all profiles."""
    net = network(chip, precision={})
    done = run(net)
    energies = {n: e for n, e in done.energies.items() if not profiles or n in profiles}
    text = Page(report.render("x", net, activity=replace(done, energies=energies))).text
    (words,) = re.findall("(Energy per inference.*?; I/O not included)", text)
    totals = {name: e.total_j for name, e in energies.items()}
    return words.replace("\xa0", " "), totals, numbers.Unit.fitting("J", totals.values())


def test_the_headline_is_the_energy_of_the_networks_own_chip():
    words, totals, unit = headline("loihi2")
    total = f"{unit(totals['loihi2-pilotnet'])} {unit.label}"
    assert total != f"{unit(totals['loihi1-spice'])} {unit.label}"
    by = "Intel Loihi 2 by loihi2-pilotnet, an extrapolation"
    assert words == f"Energy per inference {total} {by}; I/O not included"
    words, totals, unit = headline("loihi1")
    low, high = sorted(totals[name] for name in ("loihi1-spice", "loihi1-nahuku"))
    total = f"{unit(low)} to {unit(high)} {unit.label}"
    by = "Intel Loihi (first generation) by loihi1-spice and loihi1-nahuku"
    assert words == f"Energy per inference {total} {by}; I/O not included"


@pytest.mark.parametrize(
    ("chip", "profiles", "shown"),
    [
        ("ideal", (), ["loihi1-spice", "loihi1-nahuku"]),
        ("ideal", ("loihi2-pilotnet",), ["loihi2-pilotnet"]),
        ("loihi1", ("loihi2-pilotnet",), ["loihi2-pilotnet"]),
        ("loihi2", ("loihi1-nahuku",), ["loihi1-nahuku"]),
    ],
)
def test_a_headline_of_another_chip_names_that_chip(chip, profiles, shown):
    """Where no profile describes the network's own; published profiles go first."""
    words, totals, unit = headline(chip, *profiles)
    two = shown == ["loihi2-pilotnet"]
    values = " to ".join(unit(totals[name]) for name in sorted(shown, key=totals.__getitem__))
    assert words == (
        f"Energy per inference on another chip {values} {unit.label} "
        f"{'Intel Loihi 2' if two else 'Intel Loihi (first generation)'} by {' and '.join(shown)}"
        f"{', an extrapolation' if two else ''}; I/O not included"
    )


def test_every_column_of_energy_and_time_names_its_chip(page: Page, activity: Activity):
    one, two = "Intel Loihi (first generation)", "Intel Loihi 2"
    named = [f"loihi1-spice {one}", f"loihi1-nahuku {one}", f"loihi2-pilotnet {two}"]
    assert page.table("Per inference, mean over 5 samples")["Quantity"] == named
    assert page.table("Mean duration in")["Step"] == named
    assert page.table("Dynamic energy by population")["Population"] == named
    assert "loihi2-pilotnet is an extrapolation: Loihi 1's ratios" in page.text


def test_time_steps_and_what_binds_them(page: Page, activity: Activity):
    table = page.table("Mean duration in")
    energies = list(activity.energies.values())
    unit = numbers.Unit.fitting("s", (e.latency_s for e in energies))
    assert [row for row in table if row.startswith("t = ")] == [f"t = {t}" for t in range(STEPS)]
    for t in range(STEPS):
        for cell, e in zip(table[f"t = {t}"], energies, strict=True):
            first = e.step_bounds[t]
            assert cell.startswith(f"{unit(e.per_step_s[t])} core {first.core} of {first.layer}, ")
            assert cell.endswith(f", {first.steps} of {len(e.series_s[t::STEPS])}")


def test_maps_of_the_cores(activity: Activity):
    html = report.render("x", network(), activity=activity)
    assert "Map: 3 cores of Intel Loihi (first generation); busiest core" in html
    assert "Map: 3 cores of Intel Loihi 2; busiest core" in html
    spread = activity.energies["loihi1-spice"].traffic
    wide = replace(spread, mesh=Mesh(chips.load("loihi1"), 128 * report.MAPPED_CHIPS + 1))
    far = replace(activity.energies["loihi1-spice"], traffic=wide)
    many = replace(activity, energies={"loihi1-spice": far})
    assert "Map: " not in report.render("x", network(), activity=many)


def test_energy_without_static_power_or_synops(activity: Activity):
    energy = replace(
        activity.energies["loihi1-spice"],
        by_event_j={"synop": 2e-9},
        by_layer_j={"lif1": 2e-9, "pool1": 0.0, "lif2": 0.0},
        by_layer_event_j={"lif1": {"synop": 2e-9}},
        static_j=None,
        static_range_j=None,
    )
    quiet = tuple(
        replace(layer, synops=np.zeros_like(layer.synops)) for layer in activity.counts.layers
    )
    only = replace(
        activity,
        counts=replace(activity.counts, layers=quiet),
        energies={"loihi1-spice": energy},
    )
    page = Page(report.render("x", network(), activity=only))
    table = page.table("Per inference, mean")
    assert table["Static (nJ)"] == ["not known"]
    assert table["Dynamic energy per synop (pJ)"] == ["-"]
    assert page.table("Dynamic energy by population")["lif1"] == ["2.00"]
    assert "models bracket" not in page.text
    assert "middle of the measured range" not in page.text


def test_parity_table(page: Page):
    table = page.table("Mismatch")
    row = ["115,200", "0.159 %", "0.159 %", "99.84 %", "97.00 %", "0.000868 %", "0 %"]
    assert table["lif1"] == row
    assert table["lif2"] == ["4,800", "25.00 %", "0 %", "-", "-", "0 %", "0 %"]
    assert "lif2 is not certified: its reset is not known here." in page.text
    assert "The same class is predicted in 99.00 % of them" in page.text


def test_the_first_divergence(page: Page):
    found = PARITY.first_divergence
    assert found is not None
    assert found.text in page.text
    for words in (
        "sample 3, step 1, at lif1 channel 2, row 4, column 5, with equal inputs",
        "the float model spikes, the integer network does not spike",
        "Since its spike in step 0 the float voltage has come to 0.51, which is 0.01 above theta",
        "come to 3,100, in float units 0.484, and with vth = 48 the neuron spikes from 3,136 on",
        "an error of -0.026; up to 0.027 was proved possible, which is more than the margin",
        "To blame: the rounding of the weights",
        "made of weight -0.03, bias +0.004)",
        "weight (2, 0, 0, 1) of conv1 from input (0, 3, 4), which is 17 for 17.44 (-0.025)",
        "Not rounding: lif2: one & only <threshold>.",
    ):
        assert words in found.text
    table = page.table("What the rounding of single weights did")
    assert table["input 0, 3, 4"] == ["conv1", "2, 0, 0, 1", "17", "17.438", "2", "-0.025"]


def test_parity_without_any_difference():
    same = replace(PARITY, first_divergence=None)
    text = Page(report.render("x", network(), parity=same)).text
    assert "No spike differs." in text
    assert "first divergence" not in text


def test_parity_without_labels():
    unlabelled = replace(PARITY, accuracy_float=None, accuracy_lowered=None)
    text = Page(report.render("x", network(), parity=unlabelled)).text
    assert "On 200 samples without labels" in text
    assert "Accuracy" not in text


def test_sections_appear_where_there_are_data():
    text = Page(report.render("x", network())).text
    assert "Thresholds" in text
    for section in ("Activity", "Energy and time", "Parity", "Energy models"):
        assert section not in text


def test_ideal_has_neither_cores_nor_energy():
    unlimited = network("ideal", precision={})
    page = Page(report.render("x", unlimited, activity=run(unlimited, profiles=False)))
    assert page.table("Populations in order")["lif2"][4:] == ["-", "-", "1 1,234"]
    assert "No energy model was applied" in page.text
    assert "Ideal integer machine has no cores" in page.text
    assert "Accuracy, integer 80.00 %" in page.text


def test_overflow_is_prominent(activity: Activity):
    flagged = with_overflow(activity, 0, (1, 2), (1, 3), (4, 0))
    page = Page(report.render("x", network(), activity=flagged))
    assert "lif1: 6 of 2,880 neuron steps (0.208 %), in 2 of 5 samples" in page.text
    assert page.text.index("neuron steps") < page.text.index("Populations in order")
    assert "No register overflowed" not in page.text


def test_no_overflow_is_said(page: Page):
    assert "No register overflowed in this run" in page.text


def test_diagnostics_come_with_their_remedy(page: Page):
    notes = (Diagnostic("lif1", "too many thresholds", "use profiles"), Diagnostic("lif2", "odd"))
    text = Page(report.render("x", network(diagnostics=notes))).text
    assert "lif1: too many thresholds What to do: use profiles" in text
    assert text.count("What to do") == 1
    assert "Diagnostics None." in page.text


def test_sources_of_every_fact_are_given(page: Page):
    for chip in (chips.load("loihi2"), chips.load("loihi1")):
        registers = {name: fact for name, fact in chip.registers if fact is not None}
        table = page.table(chip.title)
        for name, fact in registers.items():
            assert table[name.replace("_", " ")] == [f"{fact.value:,}", fact.source]
    for _, profile in chips.profiles().values():
        assert profile.source in page.text


def test_thresholds_are_in_units_of_the_float_model(page: Page):
    labels = [attrs.get("aria-label") or "" for tag, attrs in page.tags if tag == "svg"]
    theta = network().by_name["lif1"].neurons.vth * 0.01
    low, high, middle = (
        numbers.significant(float(f(theta)), 4) for f in (np.min, np.max, np.median)
    )
    assert labels[1].endswith(f"144 thresholds of lif1: {low} to {high}, median {middle}")
    assert labels[2] == "Histogram of the 6 thresholds of lif2: all 617.0"


def test_negative_thresholds():
    net = network("ideal")
    first = net.by_name["lif1"]
    below = replace(first, neurons=replace(first.neurons, vth=-first.neurons.vth))
    html = report.render("x", net.changed(below))
    assert Page(html).table("Populations in order")["lif1"][6].count("-") == 2


# The picture of spikes


def test_mosaic_of_channels_and_of_neurons():
    maps = np.arange(1, 13, dtype=np.uint8).reshape(3, 2, 2)
    image = figures.mosaic(maps)
    assert image.shape == (5, 5)
    assert image[:2, :2].tolist() == [[1, 2], [3, 4]]
    assert image[:2, 3:].tolist() == [[5, 6], [7, 8]]
    assert image[3:, :2].tolist() == [[9, 10], [11, 12]]
    assert (image[2] == -1).all()
    assert (image[3:, 3:] == -1).all()
    assert figures.mosaic(np.array([1, 0, 1], np.uint8)).tolist() == [[1, 0], [1, -1]]


def test_large_layers_and_long_runs_are_cut_and_say_so():
    spikes = np.zeros((20, 100, 32, 32), np.uint8)
    (row,) = report._sample_rows({"lif1": spikes}, ())
    assert row.shown == "the first 64 of 100 channels"
    assert row.neurons == 100 * 32 * 32
    assert len(row.tiles) == report.SHOWN_STEPS
    (row,) = report._sample_rows({"lif1": np.ones((2, 70000), np.uint8)}, ())
    assert row.shown == "the first 65,536 of 70,000 neurons"
    assert [tile.fired for tile in row.tiles] == [70000, 70000]


def test_pixels_follow_spikes():
    url = figures.png(np.array([[0, 5, 10, -1]], np.int16), 10)
    data = base64.b64decode(url.removeprefix("data:image/png;base64,"))
    silent, half, full, none = imread(io.BytesIO(data), format="png")[0, :, 3]
    assert none == 0 < silent < half < full == 1
    assert b"tEXt" not in data


def test_pictures_of_the_first_sample_say_what_they_show(page: Page, activity: Activity):
    alts = [attrs["alt"] for tag, attrs in page.tags if tag == "img"]
    assert len(alts) == 4 * STEPS
    first = int(activity.sample["input"][0].sum())
    assert alts[0] == f"input, step 0: {first} of 36 values are not zero"
    last = int(activity.sample["lif2"][3].sum())
    assert alts[-1] == f"lif2, step 3: {last} of 6 fired"


# The file


def test_nothing_comes_from_outside(html: str, page: Page):
    assert "script" not in {tag for tag, _ in page.tags}
    for tag, attrs in page.tags:
        for name in ("src", "href", "xlink:href"):
            value = attrs.get(name) or "#"
            assert value.startswith(("data:image/png;base64,", "#")), tag
        assert not any(name.startswith("on") for name in attrs)
    assert not re.search(r"@import|url\((?!#)", html)


def test_ids_are_unique_and_references_resolve(html: str, page: Page):
    ids = [attrs["id"] for _, attrs in page.tags if "id" in attrs]
    assert len(ids) == len(set(ids))
    used = re.findall(r"(?:url\(#|href=\"#)([^\")]+)", html)
    assert used
    assert set(used) <= set(ids)


def test_accessible(page: Page):
    assert dict(page.tags)["html"] == {"lang": "en"}
    for tag, attrs in page.tags:
        if tag == "th":
            assert attrs.get("scope") in ("row", "col")
        if tag == "img":
            assert attrs.get("alt")
        if tag == "svg":
            assert attrs.get("role") == "img"
            assert attrs.get("aria-label")
    assert sum(tag == "table" for tag, _ in page.tags) == len(page.tables)


def test_figures_take_the_colour_of_the_page(html: str):
    assert figures.INK not in html
    assert "currentColor" in html


def test_same_input_same_bytes(html: str, activity: Activity):
    with matplotlib.rc_context({"font.size": 30, "axes.grid": True, "savefig.dpi": 7}):
        again = report.render("small", network(), activity=activity, parity=PARITY)
        assert matplotlib.rcParams["font.size"] == 30
    assert again == html
    assert not re.search(r"\d{4}-\d\d-\d\dT", html)


def with_names(network: IntegerNetwork, more: str) -> IntegerNetwork:
    """The network with ``more`` before every name, and a note about it."""
    return replace(
        network,
        inputs={more + name: port for name, port in network.inputs.items()},
        populations=tuple(replace(p, name=more + p.name) for p in network.populations),
        connections=tuple(
            replace(c, name=more + c.name, source=more + c.source, target=more + c.target)
            for c in network.connections
        ),
        readout=replace(network.readout, source=more + network.readout.source),
        precision={},
        diagnostics=(Diagnostic(more, more, more),),
    )


def test_names_are_escaped():
    evil = '<script>alert("1")</script> & $x_'
    renamed = with_names(network(), evil)
    parity = replace(PARITY, layers=(replace(PARITY.layers[0], name=evil),))
    html = report.render(evil, renamed, activity=run(renamed), parity=parity)
    page = Page(html)
    assert "<script" not in html
    assert "script" not in {tag for tag, _ in page.tags}
    assert f"{evil}lif1" in page.table("Populations in order")
    assert f"{evil}conv1 conv 3{X}3, padding 1" in page.table("Connections, by the population")


def test_import_is_light():
    code = (
        "import sys, stl_deploy.report; "
        "print([m for m in ('matplotlib', 'torch', 'stl_deploy.hw_sim') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


# Numbers


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0"),
        (1234567.8, "1,234,568"),
        (999.6, "1,000"),
        (12.34, "12.3"),
        (0.5, "0.500"),
        (0.00012345, "0.000123"),
        (-2.345, "-2.35"),
    ],
)
def test_significant(value: float, text: str):
    assert numbers.significant(value) == text


@pytest.mark.parametrize(
    ("value", "text"), [(0, "0"), (1234567, "1,234,567"), (27.1333, "27.1"), (1234.5, "1,234")]
)
def test_count(value: float, text: str):
    assert numbers.count(value) == text


@pytest.mark.parametrize(
    ("fraction", "text"),
    [
        (0, "0 %"),
        (1, "100 %"),
        (0.5, "50.00 %"),
        (0.00159, "0.159 %"),
        (0.0000012, "0.000120 %"),
        (0.999994, "99.9994 %"),
        (0.9985, "99.85 %"),
    ],
)
def test_percent_is_0_or_100_only_where_exact(fraction: float, text: str):
    assert numbers.percent(fraction) == text


@pytest.mark.parametrize(
    ("values", "label"),
    [
        ([2.5e-6, 1e-9], "µJ"),
        ([1.5], "J"),
        ([3e-3], "mJ"),
        ([1e-13], "pJ"),
        ([0.0], "pJ"),
        ([], "pJ"),
    ],
)
def test_unit_fits_the_largest(values: list[float], label: str):
    unit = numbers.Unit.fitting("J", values)
    assert unit.label == label
    assert unit(unit.factor * 2.5) == "2.50"
