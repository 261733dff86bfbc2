"""A kind of synapses that no table of the simulator has an entry for."""

from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import numpy as np
import pytest

from stl_deploy.chips import facts as chips
from stl_deploy.errors import LoweringError
from stl_deploy.hw_sim import engine, plans, reference
from stl_deploy.hw_sim.account import neurobench
from stl_deploy.hw_sim.account.energy import Meter
from stl_deploy.hw_sim.account.traffic import OnChip
from stl_deploy.hw_sim.account.work import synapses_by_core
from stl_deploy.ir.neurons import Lif
from stl_deploy.ir.synapses import Conv, Dense
from tests.build.loads import hears, tiny
from tests.build.networks import chain, pool, raster


@dataclass(frozen=True)
class Odd(Dense):
    """Dense synapses under a name that nobody knows."""

    kind: Literal["odd"] = "odd"


def odd(network):
    """``network`` with its last population behind synapses of the unknown kind."""
    last = network.populations[-1].name
    feed = next(c for c in network.into(last) if c.source != last)
    return network.changed(replace(feed, synapses=Odd(feed.synapses.weight)))


def planned(network, population=None):
    part = (population or network.populations[-1],)
    return plans.plan(network, part, 3, False, {}) is not None


@pytest.mark.parametrize("network", [tiny(), hears(tiny())], ids=["tiny", "recurrent"])
def test_the_reference_runs_it(network):
    unknown, inputs = odd(network), raster(network, 5)
    want = reference.run(network, inputs, states=True)
    assert planned(network)
    assert not planned(unknown)
    for got in (
        reference.run(unknown, inputs, states=True),
        engine.run(unknown, inputs, states=True),
    ):
        for name, did in want.layers.items():
            for field in ("spikes", "active", "overflow", "u", "v"):
                assert (getattr(got.layers[name], field) == getattr(did, field)).all(), (
                    name,
                    field,
                )


@dataclass(frozen=True, eq=False)
class Held(Lif):
    """A LIF with a field that the kernels do not know."""

    odd: int = 0


@dataclass(frozen=True, eq=False)
class Other(Lif):
    """A LIF under another name."""

    kind: ClassVar[str] = "other"


def test_what_the_kernels_do_not_know_of_neurons_is_left_to_the_reference():
    network, inputs = tiny(), raster(tiny(), 5)
    last = network.populations[-1]
    want = reference.run(network, inputs)
    values = vars(last.neurons)
    for made, known in (
        (Held(**values), True),
        (Held(**values, odd=2), False),
        (Other(**values), False),
    ):
        tried = network.changed(replace(last, neurons=made))
        assert planned(tried) == known
        assert (engine.run(tried, inputs).predictions == want.predictions).all()


def test_its_synapses_count_themselves():
    network, unknown = tiny(), odd(tiny())
    cores = np.arange(network.populations[-1].size) % 2
    known, own = (synapses_by_core(n, n.connections[-1], cores, 2) for n in (network, unknown))
    assert (own != known).nnz == 0
    of = [neurobench._dense(n, n.connections[-1]) for n in (network, unknown)]
    assert of[0] == of[1] > 0


def test_an_energy_model_without_its_cost_refuses_it():
    network = odd(tiny())
    chip, model = chips.profiles()["loihi1-nahuku"]
    on = OnChip(tiny(), chip)
    name = network.connections[-1].name
    with pytest.raises(
        LoweringError, match=f"{name}: energy model .* does not support 'odd'"
    ) as refused:
        Meter(network, on, model)
    assert "it supports conv, dense, one_to_one, sparse" in str(refused.value)


@pytest.mark.parametrize("kernel", [(1, 1), (3, 2)])
def test_the_size_of_a_convolution(kernel):
    """Zero weights are possible synapses too, those outside of the input are not."""
    weight = np.zeros((4, 1, *kernel), np.int8)
    conv = Conv(weight, (1, 1), (1, 0), (1, 1), 2)
    rows, columns = 5 + 2 - kernel[0] + 1, 4 - kernel[1] + 1
    inside = sum(0 <= i + p - 1 < 5 for i in range(rows) for p in range(kernel[0]))
    assert conv.possible((2, 5, 4)) == 4 * inside * columns * kernel[1]
    assert conv.parameters((2, 5, 4)) == weight.size
    assert [a.shape for a in conv.arrays] == [weight.shape]


def test_a_pool_lists_the_synapses_that_it_has():
    network = chain(pool((2, 4, 6), (2, 3)))
    cores = np.array([0, 0, 1, 1, 2, 2, 0, 0])
    got = synapses_by_core(network, network.connections[0], cores, 3).toarray().reshape(3, 2, 4, 6)
    target = np.repeat(np.repeat(cores.reshape(2, 2, 2), 2, axis=1), 3, axis=2)
    assert (got == (np.arange(3)[:, None, None, None] == target)).all()
