"""Certificates: sound on random layers of every kind, complete where decays are exact, loud if wrong."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import nir
import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

import stl_deploy
from stl_deploy.chips import arithmetic
from stl_deploy.chips import facts as chips
from stl_deploy.errors import LoweringError
from stl_deploy.formats import raster
from stl_deploy.formats.raster import Raster
from stl_deploy.hw_sim import reference
from stl_deploy.hw_sim.engine import Engine
from stl_deploy.importers import stl
from stl_deploy.ir import execute, floats
from stl_deploy.ir import nir_graph as G
from stl_deploy.ir.conv import convolve, unroll
from stl_deploy.ir.floats import FloatConnection, FloatNetwork, FloatPopulation
from stl_deploy.ir.floats import OneToOne as FloatOneToOne
from stl_deploy.ir.network import Connection, IntegerNetwork, Population
from stl_deploy.ir.neurons import Graded, Lif
from stl_deploy.ir.synapses import Conv, Dense, Geometry, Kernel, OneToOne, Sparse
from stl_deploy.lower.quantize import quantize
from stl_deploy.models.net import infer
from stl_deploy.spread import Threads
from stl_deploy.verify import certificates
from stl_deploy.verify.against_float import compare
from stl_deploy.verify.audit import Audit
from stl_deploy.verify.certificates import Certifier, Verdicts
from stl_deploy.verify.divergence import CertificateError
from tests.build import random_graphs
from tests.build.float_networks import near, single
from tests.build.floats import graph as graph_of
from tests.build.forced import is_cut
from tests.build.forced import run as run_forced
from tests.build.nets import ZOO, ZOO_RASTER, random_net, random_spikes
from tests.build.networks import chain, dense_lif, lif, pool
from tests.build.random_graphs import Features

EXAMPLES = settings(max_examples=150)
SEEDS = st.integers(0, 2**32 - 1)


# Random layers: any float layer beside any integer one, near or far from it


@dataclass
class Case:
    """Population "lif" of ``network`` behind an input, and the float one that it stands for."""

    network: IntegerNetwork
    floats: FloatNetwork
    inputs: np.ndarray

    @property
    def population(self) -> Population:
        return self.network.by_name["lif"]

    @property
    def known(self) -> FloatPopulation:
        return self.floats.by_name["lif"]

    @property
    def connection(self) -> Connection:
        return self.network.connections[0]

    def arriving(self) -> np.ndarray:
        """The integer sums [N, T, *shape]."""
        n, steps, *shape = self.inputs.shape
        levels = self.network.levels("input")
        sums = self.connection.sums(self.inputs.reshape(-1, *shape), levels)
        return sums.reshape(n, steps, *self.population.shape)

    def certifier(self, steps: int | None = None) -> Certifier:
        network = replace(self.network, timesteps=steps or self.inputs.shape[1])
        return Certifier(network, self.population, self.floats)


def draw(
    seed: int, kind: str, dv: int | None = None, steps: int | None = None, small=False
) -> Case:
    """A float layer, an integer one that is more or less its rounding, and inputs."""
    rng = np.random.default_rng(seed)
    chip = str(rng.choice(["ideal", "loihi1", "loihi2"]))
    levels = 1 if small or rng.random() < 0.6 else int(rng.choice([7, 255]))
    steps = steps or int(rng.integers(1, 12))
    bits = int(rng.integers(2, 9))
    top = (1 << (bits - 1)) - 1
    exp = 0 if small or rng.random() < 0.5 else int(rng.integers(1, 8))
    if kind == "dense":
        before, shape = (int(rng.integers(3, 30)),), (int(rng.integers(2, 12)),)
        held = rng.integers(-top, top + 1, (*shape, *before))
        geometry = None
        synapses = Dense(held.astype(np.int8))
    else:
        groups = int(rng.choice([1, 1, 2]))
        before = (2 * groups, int(rng.integers(3, 7)), int(rng.integers(3, 7)))
        kernel = rng.integers(1, 4, 2)
        stride, padding = rng.integers(1, 3, 2), rng.integers(0, 2, 2)
        held = rng.integers(-top, top + 1, (2 * groups, 2, *kernel))
        pairs = tuple(map(int, stride)), tuple(map(int, padding))
        node = G.conv2d(held.astype(np.float64), np.zeros(len(held)), before, *pairs, groups)
        shape = G.node_output("conv", node, before)
        geometry = Geometry(*pairs, (1, 1), groups)
        synapses = Conv(held.astype(np.int8), *geometry)
    channels = len(held)
    scale = (
        rng.uniform(1e-3, 1, channels)
        if rng.random() < 0.7
        else 2.0 ** -rng.integers(0, 9, channels)
    )
    unit = scale * 2.0**exp
    worth = unit.reshape(-1, *[1] * (held.ndim - 1))
    # From a model that lies on the grid through its rounding to a worse one.
    noise = rng.choice([0, 0.5, 3]) * rng.uniform(-1, 1, held.shape)
    weight = (held + noise) * worth
    biased = rng.random() < 0.6
    bias_exp = 6 if small or rng.random() < 0.5 else int(rng.integers(0, 8))
    mant = (rng.integers(-4 * top, 4 * top + 1, channels) * biased).astype(np.int32)
    bias = (mant + rng.uniform(-0.5, 0.5, channels) * biased) * 2.0 ** (bias_exp - 6) * scale
    if dv is None:
        dv = int(rng.choice([2048, 1024, 3072, 1, 4095, int(rng.integers(0, 4096))]))
    layer = lif(
        "lif",
        synapses,
        before,
        shape,
        (1 << 30) >> 6,
        mant,
        scale,
        weight_bits=bits,
        exp=exp,
        bias_exp=bias_exp,
        dv=dv,
    )
    if kind == "sparse":
        layer = folded(rng, layer, weight, bias)
    size = (3, steps, *before)
    inputs = (rng.integers(1, levels + 1, size) * (rng.random(size) < 0.5)).astype(np.uint8)
    # Thresholds that voltages come near to; a few below zero, a few out of reach.
    network = chain(layer, chip=chip, steps=steps, levels=levels)
    nothing = single(weight, bias, np.ones(shape), 0.5, before, geometry)
    a = Case(network, nothing, inputs).arriving()
    reach = np.abs(a << 6).max() * rng.uniform(-0.1, 1.5, shape)
    vth = (reach.astype(np.int64) >> 6).clip(-(1 << 24), 1 << 24).astype(np.int32)
    population = network.by_name["lif"]
    neurons = replace(population.neurons, vth=vth)
    network = network.changed(replace(population, neurons=neurons))
    theta = (vth + rng.uniform(0, 1, shape) * rng.choice([0, 1, 4])) * neurons.scale
    keep = (4096 - dv) / 4096
    if rng.random() < 0.5:
        keep = float(np.clip(keep + rng.uniform(-1, 1) / 8192, 0, 1))
    return Case(network, single(weight, bias, theta, keep, before, geometry), inputs)


def folded(rng, layer, weight, bias):
    """A convolution with an own scale for each neuron, and the single synapses that makes."""
    conv = layer.synapses
    row, column, exact = unroll(weight, layer.input_shape, layer.shape, *conv.geometry)
    scale = np.repeat(layer.scale, layer.neurons // len(layer.scale))
    scale = scale * rng.uniform(0.7, 3, layer.neurons)
    top = (1 << (layer.weight_bits - 1)) - 1
    held = np.rint(exact / (scale * 2.0**layer.exp)[row]).clip(-top, top).astype(np.int8)
    some = held != 0
    size = layer.neurons, math.prod(layer.input_shape)
    kernel = Kernel(weight, bias, *conv.geometry)
    per_neuron = np.repeat(bias, layer.neurons // len(bias)) / scale * 2.0 ** (6 - layer.bias_exp)
    return replace(
        layer,
        synapses=Sparse(row[some], column[some], held[some], size, kernel),
        bias_mant=np.rint(per_neuron).astype(np.int32),
        scale=scale,
    )


def run_float(case: Case) -> tuple[np.ndarray, np.ndarray]:
    """Spikes and voltages before the reset of the float population, as a float64 model computes them."""
    (way,) = (c.way for c in case.floats.connections)
    known, inputs = case.known, case.inputs
    n, steps = inputs.shape[:2]
    x = inputs.reshape(n * steps, *inputs.shape[2:]).astype(np.float64)
    current = (
        convolve(x, way.weight, *way.geometry) if way.geometry is not None else x @ way.weight.T
    )
    current = current.reshape(n, steps, *known.shape) + known.bias
    v, voltages, spikes = np.zeros_like(current[:, 0]), [], []
    for t in range(steps):
        v = known.neurons.keep * v + current[:, t]
        voltages.append(v)
        spikes.append(v >= known.neurons.theta)
        v = np.where(spikes[-1], 0.0, v)
    return np.stack(spikes, 1).astype(np.uint8), np.stack(voltages, 1)


def run_integer(case: Case) -> tuple[np.ndarray, np.ndarray]:
    """Spikes and voltages before the reset of the integer population, by the reference's own steps."""
    neurons, limit = case.population.neurons, chips.of(case.network).state_limit
    spikes, voltages, arriving = [], [], case.arriving()
    u = v = np.zeros_like(arriving[:, 0])
    for t in range(arriving.shape[1]):
        u, _ = arithmetic.step_current(u, arriving[:, t], neurons.du, limit)
        v, _ = arithmetic.step_voltage(v, u, neurons.bias, neurons.dv, limit)
        voltages.append(v)
        v, s = arithmetic.fire(v, neurons.vth, neurons.reset)
        spikes.append(s)
    got = np.stack(spikes, 1).astype(np.uint8)
    assert (reference.run(case.network, case.inputs).layers["lif"].spikes == got).all()
    return got, np.stack(voltages, 1)


def judge(case: Case) -> tuple[Verdicts, np.ndarray, np.ndarray]:
    """Verdicts, checked against both runs; and the spikes of both."""
    expected, float_v = run_float(case)
    got, integer_v = run_integer(case)
    verdicts = case.certifier().run({"input": case.inputs}, expected, bounds=True)
    assert not (verdicts.fires & verdicts.silent).any()
    assert not verdicts.refuted.any()
    assert (got[verdicts.fires] == 1).all()
    assert (got[verdicts.silent] == 0).all()
    certified = verdicts.certified(expected)
    assert (got == expected)[certified].all()
    assert not verdicts.wrong(got).any()
    unit = np.broadcast_to(case.population.neurons.scale / 64, case.population.shape)
    apart = np.abs(integer_v * unit - float_v)
    assert (apart <= verdicts.bound).all()
    return verdicts, expected, got


@EXAMPLES
@given(SEEDS, st.sampled_from(["dense", "conv", "sparse"]))
def test_no_certificate_and_no_bound_is_ever_wrong(seed, kind):
    judge(draw(seed, kind))


@pytest.mark.parametrize("kind", ["dense", "conv", "sparse"])
def test_the_random_layers_do_what_a_proof_could_miss(kind):
    """Saturation, wrapped currents, inexact decays and uncertain resets do occur among them."""
    met: dict[str, int] = dict.fromkeys(
        ("saturated", "wrapped", "mismatch", "uncertain", "later"), 0
    )
    for seed in range(150):
        case = draw(seed, kind)
        verdicts, expected, got = judge(case)
        uncertain = ~(verdicts.fires | verdicts.silent)
        met["uncertain"] += uncertain.any()
        # Known again after a step that was not.
        seen = uncertain.cumsum(axis=1) > 0
        met["later"] += (seen & (verdicts.fires | verdicts.silent)).any()
        met["mismatch"] += (got != expected).any()
        limit = chips.of(case.network).state_limit
        if limit is not None:
            met["wrapped"] += (np.abs(case.arriving() << 6) > limit).any()
            met["saturated"] += (np.abs(run_integer(case)[1]) == limit - 1).any()
    assert all(met.values()), met


@EXAMPLES
@given(SEEDS, st.sampled_from(["dense", "conv", "sparse"]))
def test_where_every_decay_is_exact_everything_is_known(seed, kind):
    """Six halvings lose nothing: no verdict is open, and what agrees is certified."""
    verdicts, expected, got = judge(draw(seed, kind, dv=2048, steps=7, small=True))
    assert (verdicts.fires | verdicts.silent).all()
    assert (verdicts.certified(expected) == (got == expected)).all()


@pytest.mark.parametrize(
    ("dv", "exp", "bias_exp", "exact"),
    [
        (2048, 0, 6, 6),
        (2048, 1, 7, 7),
        (2048, 0, 3, 3),
        (1024, 0, 6, 3),
        (3072, 2, 7, 3),
        (1, 0, 6, 0),
    ],
)
def test_decays_are_exact_as_long_as_the_bits_lost_are_zero(dv, exp, bias_exp, exact):
    """An odd sum of weight and bias, then the bias alone: which decay may lose something is known."""
    steps = exact + 2
    layer = dense_lif([[100]], 1 << 12, bias=1, exp=exp, bias_exp=bias_exp, dv=dv)
    network = chain(layer, chip="ideal", steps=steps)
    weight, bias = np.full((1, 1), 100.0 * 2**exp), np.array([2.0 ** (bias_exp - 6)])
    keep = (4096 - dv) / 4096
    floats = single(weight, bias, np.full(1, 2.0**12), keep, (1,))
    inputs = np.zeros((1, steps, 1), np.uint8)
    inputs[0, 0] = 1
    case = Case(network, floats, inputs)
    bound = judge(case)[0].bound
    assert bound is not None
    assert (bound[0, : exact + 1] < 1e-9).all()
    assert bound[0, exact + 1] == pytest.approx(1 / 64, abs=1e-6)
    # It really is so: what the reference shifts out is zero so long, and then not.
    apart = np.abs(run_integer(case)[1] / 64 - run_float(case)[1])[0, :, 0]
    assert (apart[: exact + 1] < 1e-9).all()
    assert apart[exact + 1] > 1e-4


@EXAMPLES
@given(SEEDS)
def test_pools_are_certified_whole(seed):
    rng = np.random.default_rng(seed)
    kernel = int(rng.integers(1, 4)), int(rng.integers(1, 4))
    before = (3, 2 * kernel[0], 3 * kernel[1])
    levels = int(rng.choice([1, 9]))
    network = chain(pool(before, kernel, "pool"), chip="ideal", levels=levels)
    inputs = ((rng.random((2, 4, *before)) < 0.2) * levels).astype(np.uint8)
    spikes = reference.run(network, inputs).layers["pool"].spikes
    nodes = {
        "pool_w": G.sum_pool(kernel, before),
        "pool": nir.Threshold(threshold=np.full((3, 2, 3), 0.5)),
    }
    graph = graph_of(nodes, before, (3, 2, 3), levels=levels)
    verdicts = certificates.certifiers(network, graph)["pool"].run({"input": inputs}, spikes)
    assert verdicts.certified(spikes).all()
    assert not verdicts.wrong(spikes).any()
    flipped = spikes.copy()
    at = tuple(rng.integers(0, n) for n in flipped.shape)
    flipped[at] ^= 1
    assert np.argwhere(verdicts.wrong(flipped)).tolist() == [list(map(int, at))]


# Whole networks as the commands make them

ARCHITECTURES = (
    "4C3-BN-LIF-P4-6C3-BN-LIF-P2-FC30-LIF-FC20-LIF-AvgPool2",
    "3C5-LIF-P2-FC12-BN-LIF-FC10-LIF",
    "FC20-LIF-FC10-LIF",
)


@settings(max_examples=40)
@given(
    SEEDS,
    st.sampled_from(ARCHITECTURES),
    st.sampled_from(["ideal", "loihi1", "loihi2"]),
    st.sampled_from(["native", "fold", "grouped"]),
    st.integers(2, 8),
    st.integers(0, 4),
    st.sampled_from([0.5, 0.75, 0.3, 0.95]),
    st.sampled_from([1, 4, 9]),
)
@example(0, ARCHITECTURES[0], "loihi1", "grouped", 8, 0, 0.5, 4)
@example(0, ARCHITECTURES[0], "loihi2", "fold", 8, 0, 0.5, 4)
def test_whole_networks(seed, text, chip, thresholds, bits, exp, tau, steps):
    """``compare`` refuses a wrong certificate itself; forced spikes that agree may be uncertified."""
    model = random_net(text, seed % 1000)
    spec = model.arch.model_dump()
    spec["timesteps"] = steps
    for layer in spec["layers"]:
        if layer["kind"] == "lif":
            layer["tau"] = tau
    arch = type(model.arch).from_dict(spec)
    rebuilt = type(model)(arch)
    rebuilt.load_state_dict(model.state_dict())
    model = rebuilt.eval()
    if chip != "loihi1" and thresholds == "grouped":
        chip = "loihi1"
    graph = stl_deploy.from_torch(model)
    try:
        network = quantize(graph, chip, weight_bits=bits, weight_exp=exp, thresholds=thresholds)
    except LoweringError:
        return
    report = compare(model, graph, network, Raster(random_spikes(model, 6, seed % 99)), batch=4)
    assert report.not_certified == {}
    for layer in report.layers:
        assert layer.certified is not None
        assert layer.certified + layer.mismatch_forced <= 1 + 1e-12
        assert layer.certified >= 0.5
    differs = any(layer.mismatch for layer in report.layers)
    assert (report.first_divergence is not None) == differs


def test_the_shipped_model():
    """The bar: at 8 bits, 99 % of each layer's entries, 97 % of those where either side spikes."""
    model = stl_deploy.load(ZOO)
    network = stl_deploy.quantize(stl_deploy.from_torch(model), chip="loihi2")
    shipped = raster.load(ZOO_RASTER)
    report = stl_deploy.parity(model, network, shipped.spikes[:100])
    for layer in report.layers:
        assert layer.certified is not None
        assert layer.certified_spiking is not None
        assert layer.certified >= 0.99
        assert layer.certified_spiking >= 0.97
        # Halvings are exact in four steps: all that is not certified does differ.
        assert layer.certified == pytest.approx(1 - layer.mismatch_forced, abs=1e-12)


def test_float_rounding_is_bounded_by_the_model_before_folding():
    """Where a BatchNorm subtracts a large mean, the model rounds more than the folded weights would."""
    model = random_net("FC20-BN-LIF-FC10-LIF", 3)
    with torch.no_grad():
        model.get_submodule("bn1").running_mean += 1e9
        model.get_submodule("bn1").bias += (
            1e9
            / torch.sqrt(model.get_submodule("bn1").running_var + 1e-5)
            * model.get_submodule("bn1").weight
        )
    params = stl.params_of(model)
    source = stl.to_graph(model.arch, params)
    lowered = floats.magnitudes(stl_deploy.from_torch(model))
    before = floats.magnitudes(source)
    assert (before["lif1"] > 1e8).all()
    assert (lowered["lif1"] < 1e8).all()
    assert (before["lif2"] == lowered["lif2"]).all()
    graph = stl_deploy.from_torch(model)
    network = quantize(graph, "ideal")
    both = [certificates.certifiers(network, graph, s)["lif1"] for s in (None, source)]
    assert both[1].cells.slack.min() > 100 * both[0].cells.slack.max()
    spikes = random_spikes(model, 50)
    double = infer(model, torch.from_numpy(spikes), torch.float64)["lif1"].numpy()
    verdicts = both[1].run({"input": spikes}, double.astype(np.uint8))
    assert not verdicts.wrong(Engine(network).run(spikes).layers["lif1"].spikes).any()


def test_fractions_are_counted_over_what_they_say(net):
    """Of all entries, and of those where either side spikes, over several batches."""
    graph = stl_deploy.from_torch(net)
    network = quantize(graph, "loihi2", weight_bits=3)
    audit, engine = Audit(graph, network), Engine(network)
    counts = {population.name: np.zeros(4) for population in network.populations}
    for seed in range(3):
        spikes = random_spikes(net, 5, seed)
        double = infer(net, torch.from_numpy(spikes), torch.float64)
        expected = {name: s.numpy().astype(np.uint8) for name, s in double.items()}
        forced, lowered = (
            {name: did.spikes for name, did in trace.layers.items()}
            for trace in (run_forced(network, spikes, expected), engine.run(spikes))
        )
        audit.add(spikes, expected, forced, lowered)
        for name, want in expected.items():
            # In four steps every halving is exact: what agrees is certified.
            equal, spiking = want == forced[name], (want != 0) | (forced[name] != 0)
            counts[name] += [equal.size, equal.sum(), spiking.sum(), (equal & spiking).sum()]
    for name, (entries, equal, spiking, both) in counts.items():
        assert audit.certified(name) == equal / entries
        assert audit.certified_spiking(name) == both / spiking
    assert any(equal < entries for entries, equal, _, _ in counts.values())


# What is not covered is not certified


@dataclass(frozen=True, eq=False)
class Later(Lif):
    """Neurons with a field that certificates were not made for."""

    adaptation: str = "none"


def with_neurons(network: IntegerNetwork, name: str, **fields) -> IntegerNetwork:
    """The network with other fields of a population, or of its neurons."""
    population = network.by_name[name]
    own = {key: value for key, value in fields.items() if key in ("shape",)}
    rest = {key: value for key, value in fields.items() if key not in own}
    neurons = replace(population.neurons, **rest)
    return network.changed(replace(population, neurons=neurons, **own))


@pytest.mark.parametrize(
    ("changed", "why"),
    [
        ({"fires": False}, "its neurons have no threshold"),
        ({"graded": Graded(0, 9)}, "its neurons send values instead of spikes"),
        ({"du": 4096}, "its decay or exponents are outside the registers"),
        ({"dv": 4096}, "its decay or exponents are outside the registers"),
        ({"bias_exp": -1}, "its decay or exponents are outside the registers"),
        ({"scale": np.zeros(10)}, "its scale is not positive"),
        ({"bias_mant": np.full(10, 1 << 25, np.int32)}, "its bias is as large as its registers"),
        ({"shape": (5, 2)}, "its shape is not that of the float population"),
    ],
)
def test_uncovered_populations_are_not_certified(changed, why):
    graph = stl_deploy.from_torch(random_net("FC20-LIF-FC10-LIF", 1))
    network = with_neurons(quantize(graph, "ideal"), "lif2", **changed)
    got = certificates.certifiers(network, graph)
    assert isinstance(got["lif1"], Certifier)
    assert isinstance(got["lif2"], str)
    assert why in got["lif2"]


def test_sources_that_the_float_graph_does_not_have_are_named():
    graph = stl_deploy.from_torch(random_net("FC20-LIF-FC10-LIF", 1))
    network = quantize(graph, "ideal")
    other = replace(
        network,
        populations=tuple(
            replace(p, name=p.name.replace("lif1", "first")) for p in network.populations
        ),
        connections=tuple(
            replace(
                c,
                source=c.source.replace("lif1", "first"),
                target=c.target.replace("lif1", "first"),
            )
            for c in network.connections
        ),
    )
    assert certificates.certifiers(other, graph) == {
        "first": "the float graph has no such population",
        "lif2": "its source first is not in the float graph",
    }


def test_an_unknown_field_is_certified_only_at_its_default():
    graph = stl_deploy.from_torch(random_net("FC20-LIF-FC10-LIF", 1))
    network = quantize(graph, "ideal")
    first = network.by_name["lif1"]
    for value, covered in (("none", True), ("some", False)):
        later = replace(first, neurons=Later(**vars(first.neurons), adaptation=value))
        got = certificates.certifiers(network.changed(later), graph)["lif1"]
        assert isinstance(got, Certifier) == covered
        assert covered or got == "its adaptation is not known here"


def test_a_parity_report_says_what_is_not_certified(net):
    graph = stl_deploy.from_torch(net)
    network = quantize(graph, "ideal")
    network = with_neurons(network, "lif4", graded=Graded(0, 1))
    report = compare(net, graph, network, Raster(random_spikes(net, 4)))
    assert report.not_certified == {"lif4": "its neurons send values instead of spikes"}
    assert report.layers[-1].certified is None
    assert report.layers[-1].certified_spiking is None
    assert all(layer.certified is not None for layer in report.layers[:-1])


def test_more_steps_than_were_bounded_are_refused():
    case = draw(1, "dense", steps=6)
    with pytest.raises(ValueError, match="6 steps, where rounding was bounded for 3"):
        case.certifier(3).run({"input": case.inputs}, run_float(case)[0])


def test_other_float_neurons_are_not_understood():
    theta = np.ones(4)
    network = chain(dense_lif(np.ones((4, 3))), chip="ideal", steps=2)

    def why(neurons: nir.ir.NIRNode):
        nodes = {"lif_w": nir.Linear(weight=np.ones((4, 3))), "lif": neurons}
        return certificates.certifiers(network, graph_of(nodes, (3,), (4,), timesteps=2))["lif"]

    good = G.lif(theta, 2e-4, 2.0)
    good.tau[0] = 3e-4
    assert isinstance(why(good), Certifier)
    good.v_reset[1] = 0.1
    assert isinstance(why(good), Certifier)
    assert isinstance(why(G.cuba_lif(theta, 2e-4, 2e-4, 2.0, 2.0, np.zeros(4))), Certifier)
    short = G.lif(theta, 2e-4, 2.0)
    short.tau[0] = 5e-5
    assert why(short) == "a decay of its float neurons is not between 0 and 1"


# Graphs: any number of connections, delays, loops, resets that subtract, what a population sends itself


def run_graph(seed: int, features: Features):
    """A random graph, a float network near it, and both of its runs."""
    network, rasters = random_graphs.draw(seed, features)
    rng = np.random.default_rng(seed)
    network, known = near(rng, network, float(rng.choice([0, 0.5, 3])))
    given = network.rasters(rasters)
    expected = execute.run(known, given)
    forced = run_forced(network, rasters, expected, states=True)
    return network, known, {**given, **expected}, forced


def voltages(network, known, name, sent, got):
    """Voltages before the reset of both sides [N, T, *shape], by their definitions."""
    population, limit = network.by_name[name], chips.of(network).state_limit
    neurons, floats = population.neurons, known.by_name[name].neurons
    spikes, size = sent[name], (*sent[name].shape[:2], *population.shape)

    def late(c, values, levels):
        out = np.zeros(size, np.asarray(levels).dtype)
        for t in range(c.delay, size[1]):
            out[:, t] = values(t - c.delay).reshape(size[0], *population.shape)
        return out

    arriving, current = np.zeros(size, np.int64), np.zeros(size)
    for c in network.into(name):
        x = sent[c.source]
        arriving += late(c, lambda t, c=c, x=x: c.sums(x[:, t], network.levels(c.source)), 1)
    for c in known.into(name):
        x = sent[c.source].astype(np.float64)
        current += late(c, lambda t, c=c, x=x: c.way.apply(x[:, t]), 1.0)
    current = (current + known.by_name[name].bias) * floats.total_gain + floats.leak
    u = v = np.zeros_like(arriving[:, 0])
    f, mine, theirs = np.zeros(current[:, 0].shape), [], []
    for t in range(size[1]):
        u, _ = arithmetic.step_current(u, arriving[:, t], neurons.du, limit)
        v, _ = arithmetic.step_voltage(v, u, neurons.bias, neurons.dv, limit)
        f = floats.keep * f + current[:, t]
        mine.append(v)
        theirs.append(f)
        v, fired = arithmetic.fire(v, neurons.vth, neurons.reset)
        assert (fired == got[:, t]).all()
        after = f - floats.threshold if floats.reset == "subtract" else 0.0
        f = np.where(spikes[:, t], after, f)
    return np.stack(mine, 1), np.stack(theirs, 1)


WITHOUT_CURRENTS = Features(currents=False)


@settings(max_examples=30)
@given(SEEDS)
def test_no_certificate_and_no_bound_is_wrong_in_graphs(seed):
    network, known, sent, forced = run_graph(seed, WITHOUT_CURRENTS)
    for population in network.populations:
        name, got = population.name, forced.layers[population.name].spikes
        found = Certifier(network, population, known)
        verdicts = found.run(sent, sent[name], bounds=True)
        assert not (verdicts.fires & verdicts.silent).any()
        assert not verdicts.wrong(got).any()
        assert (got == sent[name])[verdicts.certified(sent[name])].all()
        mine, theirs = voltages(network, known, name, sent, got)
        unit = np.broadcast_to(population.neurons.scale / 64, population.shape)
        assert (np.abs(mine * unit - theirs) <= verdicts.bound).all()


def test_the_random_graphs_have_what_a_proof_could_miss():
    """Each of these is certified, and somewhere not: the proofs are of something."""
    met = {key: np.zeros(3) for key in ("own", "subtract", "delay", "decays", "loop")}
    for seed in range(60):
        network, known, sent, forced = run_graph(seed, WITHOUT_CURRENTS)
        loops = {p.name for part in network.parts if len(part) > 1 for p in part}
        for population in network.populations:
            name, into = population.name, network.into(population.name)
            found = Certifier(network, population, known)
            verdicts = found.run(sent, sent[name])
            certified = verdicts.certified(sent[name])
            equal = forced.layers[name].spikes == sent[name]
            for key, there in {
                "own": any(c.source == name for c in into),
                "subtract": population.neurons.reset == "subtract",
                "delay": any(c.delay for c in into if c.source != name),
                "decays": np.ndim(population.neurons.dv) > 0,
                "loop": name in loops,
            }.items():
                met[key] += np.array([certified.size, certified.sum(), equal.sum()]) * there
    for key, (entries, certified, equal) in met.items():
        assert 0.9 * entries < certified < entries, key
        # Little that agrees stays open.
        assert certified > equal - 0.01 * entries, key


def test_a_reset_that_comes_a_step_late_is_certified():
    """By hand: a neuron that its own spike pulls down by 3 in the next step, which no input does."""
    own = Connection("own", "lif", "lif", OneToOne(np.array([-3], np.int8)), delay=1)
    network = chain(dense_lif([[4]], 2, dv=0, reset="subtract"), chip="ideal", steps=4)
    network = replace(network, connections=(*network.connections, own))
    inputs = np.ones((1, 4, 1), np.uint8)
    # 4 > 2 spikes, 2 left; 2 - 3 + 4 = 3 spikes, 1 left; 1 - 3 + 4 = 2 does not; 2 + 4 spikes.
    known = single(np.full((1, 1), 4.0), np.zeros(1), np.full(1, 2.5), 1.0, (1,))
    neurons = replace(known.populations[0].neurons, reset="subtract", threshold=np.full(1, 2.0))
    way = FloatConnection("lif", "lif", FloatOneToOne("own", np.full(1, -3.0)), 1)
    known = replace(
        known,
        populations=(replace(known.populations[0], neurons=neurons),),
        connections=(*known.connections, way),
    )
    expected = execute.run(known, inputs)["lif"]
    assert expected.ravel().tolist() == [1, 1, 0, 1]
    verdicts = Certifier(network, network.populations[0], known).run({"input": inputs}, expected)
    assert verdicts.certified(expected).all()
    # Without what it sends itself it would spike every time, and the proof knows that too.
    alone = replace(network, connections=network.connections[:1])
    verdicts = Certifier(alone, alone.populations[0], known).run({"input": inputs}, expected)
    assert verdicts.fires.ravel().tolist() == [True, True, True, True]


# Wrong ones are errors


@pytest.fixture
def lowered_net(net):
    graph = stl_deploy.from_torch(net)
    return graph, quantize(graph, "loihi2")


def test_a_run_that_contradicts_a_certificate_is_an_error(net, lowered_net, monkeypatch):
    graph, network = lowered_net
    whole = Engine.run

    def wrong(self, raster, states=False):
        trace = whole(self, raster, states)
        if is_cut(self.network):
            trace.layers["lif3"].spikes[1, 2, 7] ^= 1
        return trace

    monkeypatch.setattr(Engine, "run", wrong)
    with pytest.raises(CertificateError) as caught:
        compare(net, graph, network, Raster(random_spikes(net, 8)), batch=3)
    (problem,) = caught.value.problems
    assert problem.where == "lif3"
    assert "certificates are wrong, the first in sample 1, step 2, neuron (7,)" in problem.what
    assert "please report" in problem.remedy
    assert caught.value.exit_code == 1


def test_samples_are_counted_across_batches(net, lowered_net, monkeypatch):
    graph, network = lowered_net
    calls = []
    whole = Engine.run

    def wrong(self, raster, states=False):
        trace = whole(self, raster, states)
        calls.append(is_cut(self.network))
        if calls[-1] and calls.count(True) == 3:
            trace.layers["lif4"].spikes[1, 3, 4] ^= 1
        return trace

    monkeypatch.setattr(Engine, "run", wrong)
    with pytest.raises(
        CertificateError, match=r"1 certificates are wrong, the first in sample 7, step 3"
    ):
        compare(net, graph, network, Raster(random_spikes(net, 9)), batch=3, spread=Threads(1))


def test_a_proof_that_is_too_narrow_is_an_error(net, lowered_net, monkeypatch):
    """The bounds forget the weights' error: the run shows that they are wrong."""
    graph, _ = lowered_net
    small = quantize(graph, "loihi2", weight_bits=4)
    whole = Certifier.sums

    def blind(self, sent, port=0):
        floats, _ = whole(self, sent, port)
        return floats, floats.copy()

    monkeypatch.setattr(Certifier, "sums", blind)
    with pytest.raises(CertificateError, match="was proved to"):
        compare(net, graph, small, Raster(random_spikes(net, 8)))


def test_a_float_graph_that_is_not_the_model_is_an_error(net, lowered_net):
    graph, network = lowered_net
    graph.nodes["conv2"].bias = graph.nodes["conv2"].bias + 0.05
    with pytest.raises(CertificateError, match="contradicts the float model's own spike"):
        compare(net, graph, network, Raster(random_spikes(net, 8)))
