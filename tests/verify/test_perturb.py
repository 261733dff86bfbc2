"""Noise on inputs and drift of parameters: what they change, how much, and what they leave alone."""

from dataclasses import replace

import numpy as np
import pytest

import stl_deploy
from stl_deploy.importers import stl
from stl_deploy.ir import slices
from stl_deploy.models.net import from_params
from stl_deploy.verify import perturb
from tests.build import random_graphs
from tests.build.nets import random_net, random_spikes
from tests.build.networks import chain, dense_lif

IMAGES = np.full((40, 1, 28, 28), 100, np.uint8)


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def test_pixel_noise_sets_a_share_to_black_or_white():
    noisy = perturb.pixel(IMAGES, 0.3, rng())
    values, counts = np.unique(noisy, return_counts=True)
    assert values.tolist() == [0, 100, 255]
    assert counts / noisy.size == pytest.approx([0.15, 0.7, 0.15], abs=0.01)


def test_gaussian_noise_has_its_sigma_and_stays_in_range():
    noisy = perturb.gaussian(IMAGES, 0.1, rng()).astype(float)
    assert noisy.mean() == pytest.approx(100, abs=1)
    assert noisy.std() == pytest.approx(25.5, abs=0.5)
    wide = perturb.gaussian(IMAGES, 2.0, rng())
    assert wide.dtype == np.uint8
    # Without a cut, -510 + 100 would wrap around to 102.
    assert (wide == 0).mean() == pytest.approx(0.42, abs=0.02)  # Phi(-100/510)
    assert (wide == 255).mean() == pytest.approx(0.38, abs=0.02)  # Phi(-155/510)


def test_dropped_events_are_lost_one_by_one():
    raster = np.repeat(IMAGES[:, None], 4, axis=1)
    kept = perturb.drop(raster, 0.25, rng())
    assert set(np.unique(kept)) == {0, 100}
    assert (kept == 0).mean() == pytest.approx(0.25, abs=0.01)
    assert (kept[:, 0] != kept[:, 1]).any()  # each step for itself


@pytest.mark.parametrize("of", ["weight", "thresh"])
def test_drift_of_a_float_model_is_relative_and_leaves_the_rest_alone(of):
    params = stl.params_of(random_net())
    moved = perturb.drift_params(params, 0.1, of, 3)
    concerned = {k for k, v in params.items() if k.endswith(of) and (of == "thresh" or v.ndim > 1)}
    assert concerned == {k for k in params if not np.array_equal(params[k], moved[k])}
    assert len(concerned) == 4
    for key in concerned:
        ratio = moved[key] / params[key]
        assert moved[key].dtype == params[key].dtype
        assert ratio.mean() == pytest.approx(1, abs=0.05)
        assert ratio.std() == pytest.approx(0.1, rel=0.35)
    again = perturb.drift_params(params, 0.1, of, 3)
    assert all(np.array_equal(moved[k], again[k]) for k in params)
    from_params(random_net().arch, moved)  # still fits


@pytest.mark.parametrize("precision", ["8", "split", "2x8"])
@pytest.mark.parametrize("of", ["weight", "thresh"])
def test_drift_of_integers_stays_on_the_grid(of, precision):
    net = random_net()
    graph = stl_deploy.from_torch(net)
    network = stl_deploy.quantize(graph, "loihi2", weight_precision=precision)
    moved = perturb.drift_network(network, 0.3, of, 1)
    ratios = []
    for population in network.weighted:
        (before,), (after,) = network.into(population.name), moved.into(population.name)
        weights, drifted = before.synapses.weight, after.synapses.weight
        vth, new_vth = population.neurons.vth, moved.by_name[population.name].neurons.vth
        assert np.array_equal(vth, new_vth) == (of == "weight")
        assert np.array_equal(weights, drifted) == (of == "thresh")
        top = slices.largest(precision, before.bits)
        assert drifted.dtype == weights.dtype
        assert np.abs(drifted.astype(int)).max() <= top
        assert not drifted[weights == 0].any()
        values, new = (weights, drifted) if of == "weight" else (vth, new_vth)
        size = np.abs(values.astype(int))  # rounding and the grid's end hide little of the drift
        inside = (size > 8) & (size < top // 3 if of == "weight" else True)
        ratios.append(new[inside] / values[inside])
    assert np.concatenate(ratios).std() == pytest.approx(0.3, rel=0.1)
    spikes = random_spikes(net, 4)
    assert stl_deploy.simulate(moved, spikes).predictions.shape == (4,)


def test_no_drift_changes_nothing():
    network = stl_deploy.quantize(stl_deploy.from_torch(random_net()), "loihi2")
    same = perturb.drift_network(network, 0.0, "weight", 0)
    for before, after in zip(network.connections, same.connections, strict=True):
        assert np.array_equal(before.synapses.weight, after.synapses.weight)


@pytest.mark.parametrize("of", ["weight", "thresh"])
def test_every_way_into_neurons_of_their_own_drifts(of):
    for seed in range(12):
        network, _ = random_graphs.draw(seed)
        moved = perturb.drift_network(network, 0.5, of, seed)
        for before, after in zip(network.connections, moved.connections, strict=True):
            weight = before.synapses.weight
            still = of == "thresh" or network.by_name[before.target].kind == "or"
            if still or np.abs(weight.astype(int)).max() > 8:
                assert np.array_equal(after.synapses.weight, weight) == still
        for before, after in zip(network.populations, moved.populations, strict=True):
            assert np.array_equal(before.neurons.vth, after.neurons.vth) or of == "thresh"
            assert np.array_equal(before.neurons.bias, after.neurons.bias)


def test_connections_that_share_weights_drift_alike():
    weight = np.arange(-18, 18).reshape(6, 6)
    network = chain(dense_lif(weight, name="a"), dense_lif(weight, name="b"))
    first, second = network.connections
    shared = replace(network, connections=(first, replace(second, name=first.name)))
    for net, same in ((network, False), (shared, True)):
        a, b = (c.synapses.weight for c in perturb.drift_network(net, 0.5, "weight", 1).connections)
        assert np.array_equal(a, b) == same
