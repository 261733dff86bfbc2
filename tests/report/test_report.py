"""The report: what it says, that it needs nothing from outside, and that it is the same every time."""

import base64
import io
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
from stl_deploy.ir import chain as chain_view
from stl_deploy.ir.chain import LifLayer, OrPool
from stl_deploy.ir.network import IntegerNetwork, Readout
from stl_deploy.ir.notes import Diagnostic, Precision
from stl_deploy.ir.synapses import Conv, Dense, Kernel, Sparse
from stl_deploy.report import figures, numbers
from stl_deploy.report import sections as report
from stl_deploy.verify.against_float import LayerParity, ParityReport
from stl_deploy.verify.divergence import Divergence, Place, Synapse, Voltages
from stl_deploy.verify.faults import Fault
from tests.build.networks import chain, lif

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
    pool = OrPool("pool1", "max1", (4, 6, 6), (4, 3, 3), (2, 2))
    precision = {
        "lif1": Precision("proven", 7.456, 1100, 131072),
        "lif2": Precision("checked", 6.0, 200000, 131072),
    }
    layers, readout = (conv, pool, dense), Readout(3, 2)
    made = chain(*layers, chip=chip, steps=STEPS, readout=readout, precision=precision)
    return replace(made, **fields)


def run(network: IntegerNetwork, profiles: bool = True) -> Activity:
    raster = np.random.default_rng(1).integers(0, 2, (SAMPLES, STEPS, 1, 6, 6)).astype(np.uint8)
    recorder = Recorder(network)
    trace = reference.run(network, raster, cores=recorder.cores)
    recorder.add(raster, trace)
    done = recorder.done()
    sample = {"input": raster[0], **{n: did.spikes[0] for n, did in trace.layers.items()}}
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
        synapses=(Synapse((0, 3, 4), (2, 0, 0, 1), 17, 17.4375, 2, -0.025),),
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
    table = page.table("Layers in order")
    vth = network().lif_layers[0].vth
    assert table[f"lif1 conv 3{X}3, padding 1"] == [
        f"4{X}6{X}6", "144", "36", "1,024", "8", "7.46", "proven 1,100 / 131,072",
        f"{len(np.unique(vth))} {vth.min()} to {vth.max()}",
    ]  # fmt: skip
    assert table[f"pool1 OR pool 2{X}2"] == [
        f"4{X}3{X}3",
        "36",
        "-",
        "144",
        "-",
        "-",
        "-",
        "-",
    ]
    assert table["lif2 dense"] == [
        "6", "6", "216", "216", "6", "6.00", "checked 200,000 / 131,072", "1 1,234",
    ]  # fmt: skip
    assert table["All layers"] == ["", "186", "252", "1,384", "", "", "", ""]


def test_placement_table(page: Page):
    """By hand: entries of 10 + n * (weight bits + 13) bits, in words of 64."""
    table = page.table("Cores of each layer")
    header = ["Cores their numbers", "Bound by", "Compartments of 8,192"]
    assert table["Layer"] == [*header, "Bytes of synapse memory of 131,072"]
    assert table["lif1"][:3] == ["1 0", "-", f"144 {numbers.percent(144 / 8192)}"]
    assert table["pool1"][:2] == ["1 1", "-"]
    assert table["lif2"][3] == f"576 {numbers.percent(576 / 131072)}"
    assert table["pool1"][3].split()[0] == "1,152"
    assert table["All layers"][0] == "3"
    assert "Cores 3 1 chip, 1 tile" in page.text
    assert "no figure for Intel Loihi 2 is public: in-axons, out-axons, distinct" in page.text


def test_placement_beyond_a_limit_is_marked():
    page = Page(report.render("x", network("loihi1")))
    distinct = len(np.unique(network().lif_layers[0].vth))
    cell = page.table("Cores of each layer")["lif1"][-1]
    assert cell == f"{distinct} {numbers.significant(distinct / 7)} times, too many"
    assert page.table("Cores of each layer")["lif2"][-1] == f"1 {numbers.percent(1 / 7)}"


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
    layer = network().lif_layers[0]
    layer = replace(layer, synapses=replace(layer.synapses, **fields))
    assert ", ".join(report._lif_columns(layer)[0]) == words


def test_the_row_of_a_layer_is_that_of_its_kind():
    net = network()
    conv, pool, dense = net.layers
    kernel = Kernel(conv.synapses.weight.astype(np.float64), np.zeros(4), *conv.synapses.geometry)
    single = np.zeros(1, np.int32)
    sparse = Sparse(single, single, np.ones(1, np.int8), (144, 36), kernel)
    own = {"recurrent": Dense(np.ones((6, 6), np.int8)), "du": 100, "reset": "subtract"}
    rows = [
        report._layer_row(net, layer)
        for layer in (pool, dense, replace(dense, **own), replace(conv, synapses=sparse))
    ]
    assert [row.kind for row in rows] == [
        f"OR pool 2{X}2",
        "dense",
        "dense, recurrent, current, soft reset",
        f"folded conv 3{X}3, padding 1",
    ]
    assert [row.weights for row in rows] == [None, 216, 252, 1]
    assert [row.thresholds is None for row in rows] == [True, False, False, False]


def test_a_kind_that_the_report_has_no_words_for_is_refused():
    @dataclass(frozen=True)
    class Later(LifLayer):
        kind = "later"

    net = network()
    layer = Later(**vars(net.layers[0]))
    with pytest.raises(LoweringError, match="lif1: the report does not support 'later'"):
        report._layer_row(net, layer)


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
    assert table["All layers"][1] == numbers.count(total / SAMPLES)


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
    by_layer = page.table("Dynamic energy by layer")
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
    assert page.table("Dynamic energy by layer")["Layer"] == named
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
    assert page.table("Dynamic energy by layer")["lif1"] == ["2.00"]
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
        "weight (2, 0, 0, 1) from input (0, 3, 4), which is 17 for 17.44 (-0.025)",
        "Not rounding: lif2: one & only <threshold>.",
    ):
        assert words in found.text
    table = page.table("What the rounding of single weights did")
    assert table["0, 3, 4"] == ["2, 0, 0, 1", "17", "17.438", "2", "-0.025"]


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
    assert page.table("Layers in order")["lif2 dense"][4:] == ["6", "-", "-", "1 1,234"]
    assert "No energy model was applied" in page.text
    assert "Ideal integer machine has no cores" in page.text
    assert "Accuracy, integer 80.00 %" in page.text


def test_overflow_is_prominent(activity: Activity):
    flagged = with_overflow(activity, 0, (1, 2), (1, 3), (4, 0))
    page = Page(report.render("x", network(), activity=flagged))
    assert "lif1: 6 of 2,880 neuron steps (0.208 %), in 2 of 5 samples" in page.text
    assert page.text.index("neuron steps") < page.text.index("Layers in order")
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
    theta = network().lif_layers[0].vth * 0.01
    low, high, middle = (
        numbers.significant(float(f(theta)), 4) for f in (np.min, np.max, np.median)
    )
    assert labels[0].endswith(f"144 thresholds of lif1: {low} to {high}, median {middle}")
    assert labels[1] == "Histogram of the 6 thresholds of lif2: all 617.0"


def test_negative_thresholds():
    layers = network().layers
    below = chain_view.with_layers(
        network("ideal"), (replace(layers[0], vth=-layers[0].vth), *layers[1:])
    )
    html = report.render("x", below)
    assert Page(html).table("Layers in order")[f"lif1 conv 3{X}3, padding 1"][7].count("-") == 2


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
    (row,) = report._sample_rows({"lif1": spikes})
    assert row.shown == "the first 64 of 100 channels"
    assert row.neurons == 100 * 32 * 32
    assert len(row.tiles) == report.SHOWN_STEPS
    (row,) = report._sample_rows({"lif1": np.ones((2, 70000), np.uint8)})
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


def test_names_are_escaped():
    evil = '<script>alert("1")</script> & $x_'
    old = network()
    layers = tuple(replace(layer, name=evil + layer.name) for layer in old.layers)
    notes = (Diagnostic(evil, evil, evil),)
    renamed = chain_view.with_layers(old, layers, precision={}, diagnostics=notes)
    parity = replace(PARITY, layers=(replace(PARITY.layers[0], name=evil),))
    html = report.render(evil, renamed, activity=run(renamed), parity=parity)
    page = Page(html)
    assert "<script" not in html
    assert "script" not in {tag for tag, _ in page.tags}
    assert f"{evil}lif1 conv 3{X}3, padding 1" in page.table("Layers in order")


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
