"""The float network as it is decoded: what a layer is, and that one table says all neurons."""

from __future__ import annotations

import math
from dataclasses import replace

import nir
import numpy as np
import pytest

from stl_deploy.errors import LoweringError
from stl_deploy.ir import floats
from stl_deploy.ir import nir_graph as G
from stl_deploy.ir.float_neurons import NEURONS
from stl_deploy.ir.float_neurons import decode as decode_neurons
from stl_deploy.lower.quantize import quantize
from stl_deploy.verify import faults
from tests.build.floats import with_ways_back

RNG = np.random.default_rng(0)


def graph(nodes, shape, out, recurrent=None, **fields):
    meta = G.FloatMeta(timesteps=4, classes=1, population=math.prod(out), **fields)
    return with_ways_back(G.chain_graph(nodes, shape, out, meta.text()), recurrent or {})


def lif(n):
    return G.lif(np.linspace(0.5, 1, n), 2e-4, 2.0)


def pool(threshold=0.5, stride=2):
    window = G.sum_pool((2, 2), (1, 4, 4))
    window.stride = np.array((stride, stride))
    size = (1, *[(4 - 2) // stride + 1] * 2)
    return {"sum": window, "spikes": nir.Threshold(threshold=np.full(size, threshold))}, size


def test_layers_in_order_and_what_leads_to_them():
    window, _ = pool()
    kernel = RNG.normal(size=(2, 1, 2, 2)).astype(np.float32)
    nodes = {
        **window,
        "conv": G.conv2d(kernel, np.array([1.0, 2.0]), (1, 2, 2), (1, 1), (1, 0)),
        "lif1": G.lif(np.ones((2, 3, 1)), 2e-4, 4.0),
        "flat": G.flatten((2, 3, 1)),
        "fc": nir.Linear(weight=np.ones((5, 6))),
        "lif2": lif(5),
    }
    own = {"lif2": ("back", nir.Linear(weight=np.eye(5)))}
    network = floats.decode(graph(nodes, (1, 4, 4), (5,), own))
    assert [p.name for p in network.populations] == ["spikes", "lif1", "lif2"]
    assert [network.pools(p.name) for p in network.populations] == [True, False, False]
    first, second, third = network.populations
    assert (network.into("spikes")[0].way.kernel, first.shape) == ((2, 2), (1, 2, 2))
    (conv,) = network.into("lif1")
    assert conv.way.geometry == ((1, 1), (1, 0), (1, 1), 1)
    assert (network.shape(conv.source), second.shape) == ((1, 2, 2), (2, 3, 1))
    assert conv.way.weight.dtype == np.float64
    np.testing.assert_array_equal(conv.way.weight, kernel)
    assert second.bias.tolist() == [[[1.0]], [[2.0]]]  # in the units of the graph's sums
    assert (second.neurons.total_gain == 2).all()  # r * dt / tau
    assert (second.neurons.keep == 0.5).all()
    fc, back = network.into("lif2")
    assert (fc.way.geometry, fc.source, fc.delay) == (None, "lif1", 0)
    assert (back.name, back.source, back.delay) == ("back", "lif2", 1)
    np.testing.assert_array_equal(back.way.weight, np.eye(5))
    assert (third.neurons.theta > third.neurons.threshold).all()


@pytest.mark.parametrize(
    ("threshold", "stride", "pools"),
    [(0.5, 2, True), (0.0, 2, True), (1.0, 2, False), (-0.5, 2, False), (0.5, 1, False)],
)
def test_a_pool_fires_exactly_where_an_input_does(threshold, stride, pools):
    nodes, size = pool(threshold, stride)
    built = graph(nodes, (1, 4, 4), size)
    assert floats.decode(built).pools("spikes") == pools
    if not pools:
        with pytest.raises(LoweringError):
            quantize(built)


def test_every_node_without_a_place_is_named():
    nodes = {
        "scale": G.InputScale((3,), (3,), 2),
        "fc": nir.Linear(weight=np.eye(3)),
        "drop": G.Dropout((3,), (3,)),
        "lif": lif(3),
    }
    with pytest.raises(LoweringError) as caught:
        floats.decode(graph(nodes, (3,), (3,)))
    assert [p.where for p in caught.value.problems] == ["scale", "drop"]


def test_nodes_that_do_not_fit_are_named():
    nodes = {"fc": nir.Linear(weight=np.eye(3)), "lif": lif(3)}
    own = {"lif": ("back", nir.Linear(weight=np.eye(2)))}
    with pytest.raises(LoweringError, match="back: Linear does not fit an input of shape"):
        floats.decode(graph(nodes, (3,), (3,), own))


def test_weights_without_neurons_behind_them_are_refused():
    nodes = {
        "fc": nir.Linear(weight=np.eye(3)),
        "lif": lif(3),
        "more": nir.Scale(scale=np.ones(3)),
    }
    with pytest.raises(LoweringError, match="more: has no neurons behind it"):
        floats.decode(graph(nodes, (3,), (3,)))


def neuron_nodes():
    def values(low, high):
        return RNG.uniform(low, high, 7)

    zero, dt = np.zeros(7), G.DT
    yield nir.LIF(
        tau=dt / values(0.1, 1),
        r=values(1, 9),
        v_leak=zero,
        v_threshold=values(0, 1),
        v_reset=zero,
    )
    yield nir.IF(r=values(1, 9), v_threshold=values(0, 1), v_reset=zero)
    yield nir.CubaLIF(
        tau_syn=dt / values(0.1, 1),
        tau_mem=dt / values(0.1, 1),
        r=values(1, 9),
        v_leak=values(-1, 1),
        v_threshold=values(0, 1),
        v_reset=zero,
        w_in=values(1, 9),
    )


@pytest.mark.parametrize("node", list(neuron_nodes()), ids=lambda node: type(node).__name__)
@pytest.mark.parametrize("reset", ["zero", "subtract"])
def test_neurons_come_back_from_their_node(node, reset):
    """Of a gain the very float64: weights that are whole numbers meet thresholds exactly."""
    neurons = replace(decode_neurons(node), reset=reset)
    again = decode_neurons(neurons.node())
    assert (again.kind, again.reset) == (neurons.kind, reset)
    for key in ("gain", "drive", "threshold", "v_reset"):
        np.testing.assert_array_equal(getattr(again, key), getattr(neurons, key))
    for key in ("step", "current", "leak"):
        np.testing.assert_allclose(getattr(again, key), getattr(neurons, key), rtol=1e-12)


def test_the_table_has_the_parameters_of_every_node():
    for kind, entry in NEURONS.items():
        named = set(kind.__dataclass_fields__) - {"input_type", "output_type", "metadata"}
        assert set(entry.parameters) == named


def test_parameters_of_single_precision_are_widened_before_anything_is_rounded():
    """The quantizer takes the same float64 layer that runs, and that faults are judged by."""
    n = 40
    tau, r = np.full(n, 3e-4, np.float32), np.full(n, 1.7, np.float32)
    theta = RNG.uniform(0.3, 1, n).astype(np.float32)
    zero = np.zeros(n, np.float32)
    nodes = {
        "fc": nir.Linear(weight=RNG.normal(size=(n, 30)).astype(np.float32)),
        "lif": nir.LIF(tau=tau, r=r, v_leak=zero, v_threshold=theta, v_reset=zero),
    }
    built = graph(nodes, (30,), (n,))
    decoded = floats.decode(built)
    neurons, (fc,) = decoded.by_name["lif"].neurons, decoded.into("lif")
    gain = 1e-4 / np.float64(tau[0]) * np.float64(r[0])
    assert (neurons.total_gain == gain).all()
    np.testing.assert_array_equal(neurons.theta, np.nextafter(theta.astype(np.float64), np.inf))
    network = quantize(built, "loihi2")
    integers = network.by_name["lif"]
    unit = np.abs(fc.way.weight * gain).max(axis=1) / 127
    np.testing.assert_array_equal(integers.neurons.scale, unit)
    assert faults.of_network(network, integers, decoded) == []
