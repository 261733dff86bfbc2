"""Descriptions as graphs: what layers read, what is refused of them, and the notation in one line."""

from __future__ import annotations

import re

import pytest

from stl_deploy.errors import InputError
from stl_deploy.ir import arch_notation
from stl_deploy.ir.arch import Architecture
from tests.build.nets import ROOT

CONV = {"kind": "conv", "channels": 2, "kernel": (3, 3), "padding": (1, 1)}
LIF = {"kind": "lif"}


def described(*layers, **fields):
    """The network of layers, whose names are a, b, c ..."""
    named = [{"name": chr(ord("a") + i), **layer} for i, layer in enumerate(layers)]
    data = {"input": {"shape": (2, 4, 4)}, "layers": named, "population": 1, **fields}
    return Architecture.from_dict(data)


def refused(*layers, **fields):
    with pytest.raises(InputError) as caught:
        described(*layers, **fields)
    return str(caught.value)


def ways(text, shape=(2, 8, 8)):
    """Name and inputs of each layer of ``text``."""
    return {name: " ".join(read) for name, read in Architecture.parse(text, shape).reads.items()}


def test_a_graph_is_written_and_read_again():
    add = {"kind": "add", "inputs": ("b", "input")}
    arch = described(CONV, LIF, add, LIF)
    assert arch.reads == {"a": ("input",), "b": ("a",), "c": ("b", "input"), "d": ("c",)}
    assert arch.joins == ["c"]
    data = arch.to_dict()
    assert [layer.get("inputs") for layer in data["layers"]] == [None, None, ["b", "input"], None]
    assert "readout" not in data
    assert Architecture.from_dict(data) == arch


@pytest.mark.parametrize(
    ("layers", "fields", "words"),
    [
        ([{**CONV, "inputs": ("b",)}, LIF], {}, ["a: reads 'b', which is no layer before it"]),
        ([CONV, {"kind": "add", "inputs": ("a",)}, LIF], {}, ["b: joins 1 layers"]),
        ([CONV, {**LIF, "inputs": ("a", "input")}], {}, ["b: reads one layer, not 2"]),
        (
            [CONV, {**CONV, "channels": 3}, {"kind": "add", "inputs": ("a", "b")}, LIF],
            {},
            ["c: adds up (2, 4, 4) and (3, 4, 4)", "1x1 convolution"],
        ),
        (
            [{**CONV, "stride": (2, 2)}, {"kind": "concat", "inputs": ("a", "input")}, LIF],
            {},
            ["b: puts (2, 2, 2) and (2, 4, 4) behind each other"],
        ),
        ([CONV, LIF, {**CONV, "inputs": ("a",)}, LIF], {}, ["b: leads to no output"]),
        ([CONV, {"kind": "maxpool", "kernel": (2, 2)}, LIF], {}, ["b: max pooling of a"]),
        (
            [CONV, {**LIF, "fires": False}, CONV, {**LIF, "fires": False}],
            {"readout": "first"},
            ["b: has no threshold, so it sends nothing to c", "a readout by first needs spikes"],
        ),
        (
            [
                {"kind": "linear", "features": 3, "inhibitory": 2},
                {"kind": "dropout", "p": 0.5},
                {**LIF, "current2": 0.5},
            ],
            {},
            ["c: has a second current, at which a inhibits"],
        ),
        ([{"kind": "linear", "features": 3, "inhibitory": 33}, LIF], {}, ["33 of 32 inputs"]),
        (
            [CONV, {"kind": "avgpool", "kernel": (4, 4)}, LIF],
            {"quantized": {"weight_bits": 8}},
            ["b: average pooling, in a network of integers"],
        ),
        (
            [CONV, LIF, {"kind": "add", "inputs": ("b", "b")}, CONV, LIF],
            {"members": 2},
            ["c: members are chains"],
        ),
    ],
)
def test_what_is_refused(layers, fields, words):
    found = refused(*layers, **fields)
    assert all(word in found for word in words), found


def test_all_problems_at_once():
    found = refused(CONV, {"kind": "maxpool", "kernel": (3, 3)}, {**CONV, "groups": 3}, LIF)
    assert "b: windows" in found
    found = refused({**CONV, "groups": 3}, {**CONV, "groups": 3, "inputs": ("input",)}, LIF)
    assert "a: 2 in" in found
    assert "b: 2 in" in found


def test_residual_blocks():
    basic = ways("4C3-BN-LIF-4R3-8R3S2-A1-FC4-LIF")
    assert basic["add1"] == "bn3 lif1"  # the shape stays
    assert (basic["conv6"], basic["add2"]) == ("lif3", "bn5 bn6")  # 1x1 where it does not
    arch = Architecture.parse("4C3-BN-LIF-4R3-8R3S2x2-A1-FC4-LIF", (2, 8, 8))
    assert [arch.weighted[f"conv{i}"].stride[0] for i in (4, 5, 6, 7)] == [2, 1, 2, 1]
    assert arch.weighted["conv6"].kernel == (1, 1)
    sew = ways("4C3-BN-LIF-4SEW3-8SEW3-A1-FC4-LIF")
    assert (sew["add1"], sew["conv6"], sew["add2"]) == ("lif3 lif1", "add1", "lif5 lif6")
    pre = ways("4C3-4PA3-8PA3-BN-LIF-A1-FC4-LIF")
    assert (pre["bn1"], pre["add1"]) == ("conv1", "conv3 conv1")
    assert (pre["conv6"], pre["add2"]) == ("lif3", "conv5 conv6")


def test_dense_blocks():
    spikes = ways("4C3-BN-LIF-2DB3x2-A1-FC4-LIF")
    assert (spikes["conv2"], spikes["cat1"]) == ("lif1", "lif1 lif2")
    assert (spikes["conv3"], spikes["cat2"], spikes["avg1"]) == ("cat1", "lif1 lif2 lif3", "cat2")
    currents = Architecture.parse("4C3-2DC3x2-BN-LIF-A1-FC4-LIF", (2, 8, 8))
    assert currents.reads["cat2"] == ("conv1", "conv3", "conv5")
    assert (currents.shapes["conv2"], currents.shapes["cat2"]) == ((8, 8, 8), (8, 8, 8))


def test_options_of_neurons():
    arch = Architecture.parse(
        "FC8-LIF[tau=0.9,reset=constant,v_reset=-0.5,hold=-1]-FC6[bias]-"
        "LIF[gain,recurrent=3,inhibitory=2]-FC4-LI[tau=1]-Last2",
        (5,),
        tau=0.25,
    )
    first, second, last = (layer for layer in arch.layers if layer.kind == "lif")
    assert (first.tau, first.reset, first.v_reset, first.hold) == (0.9, "constant", -0.5, -1)
    assert (second.tau, second.gain) == (0.25, True)
    assert (second.recurrent.delay, second.recurrent.inhibitory) == (3, 2)
    assert (last.fires, last.tau) == (False, 1)
    assert (arch.readout, arch.population, arch.classes) == ("last", 2, 2)
    block = Architecture.parse("4C3-LIF-4R3[reset=subtract]-FC4-LIF", (2, 8, 8))
    resets = [layer.reset for layer in block.layers if layer.kind == "lif"]
    assert resets == ["zero", "subtract", "subtract", "zero"]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("4X3-LIF", ["token 1 '4X3'", "use <n>C<k>"]),
        ("4C4-LIF", ["token 1 '4C4'", "kernel 4 is even", "use an odd kernel"]),
        ("4C3-P3-LIF", ["token 2 'P3'", "cannot be tiled", "pool to a divisor"]),
        ("4C3-LIF[taw=1]", ["token 2", "'taw' is not an option", "options are adapt, "]),
        ("4C3-LIF[tau=1,tau=1]", ["'tau' is there twice"]),
        ("4C3-LIF[tau=2]", ["token 2 'LIF[tau=2]'.tau", "less than or equal to 1"]),
        ("4C3-LIF[v_reset=1]", ["token 2", "v_reset = 1 with reset 'zero'"]),
        ("4C3-LIF[tau=0.5-FC3-LIF", ["bracket that is not closed"]),
        ("4C3-A3-LIF", ["token 2 'A3'", "cannot be tiled"]),
        ("4C3-LIF-4PA3-LIF", ["token 3 '4PA3'", "lif1 is no current", "put <n>C<k> before it"]),
        ("2DC3x2-LIF", ["token 1 '2DC3x2'", "input is no current"]),
        ("Mean-FC4-LIF", ["token 1 'Mean'", "not the last token", "move it to the end"]),
        ("FC4-LIF-AvgPool", ["token 3 'AvgPool'", "use AvgPool<n>"]),
        ("FC4-LIF-P2[bias]", ["'bias' is not an option of it", "options are none"]),
        ("FC4-LI-First", ["lif1: has no threshold, and a readout by first"]),
        ("FC4-R3", ["token 2 'R3'", "is not known"]),
        ("FC4-4R3-FC4-LIF", ["token 2 '4R3'", "conv needs an input (C, H, W)"]),
    ],
)
def test_errors_name_the_token_and_the_remedy(text, words):
    with pytest.raises(InputError) as caught:
        Architecture.parse(text, (2, 8, 8))
    found = str(caught.value)
    assert all(word in found for word in words), found


def test_a_description_is_bounded():
    with pytest.raises(InputError, match="at most 1024 items"):
        Architecture.parse("2C1-BN-LIF-" + "-".join(["2R1x99"] * 2) + "-FC4-LIF", (2, 2, 2))


def test_sums_of_sums_take_no_time():
    """Each doubles the paths; nothing may walk along all of them."""
    sums = [{"kind": "add", "name": f"s{i}", "inputs": (f"s{i - 1}",) * 2} for i in range(1, 200)]
    first = {**CONV, "name": "s0"}
    found = refused(first, *sums, LIF | {"name": "z"}, quantized={"weight_bits": 8})
    assert "s1: adds up s0 twice" in found
    assert "s199: adds up s0 twice" in found


def test_the_documentation_has_every_token_and_option():
    text = (ROOT / "docs" / "training.md").read_text()
    rows = [line.split("|")[1] for line in text.splitlines() if line.startswith("| `")]
    told = [word for row in rows for word in re.findall(r"`([^`]+)`", row)]
    patterns = [*arch_notation.TOKENS, "|".join(f"{rule}\\d*" for rule in arch_notation.RULES)]
    for pattern in patterns:
        assert any(re.fullmatch(pattern, word) for word in told), pattern
    options = {part.split("=")[0] for word in told for part in word.split(",")}
    assert options >= arch_notation.NEURONS
