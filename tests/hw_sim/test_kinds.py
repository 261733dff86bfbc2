"""A kind of synapses that no table of the simulator has an entry for."""

from dataclasses import dataclass, fields, replace
from typing import Literal

import numpy as np
import pytest

from stl_deploy.chips import facts as chips
from stl_deploy.errors import LoweringError
from stl_deploy.hw_sim import engine, reference
from stl_deploy.hw_sim.account import neurobench
from stl_deploy.hw_sim.account.energy import Meter
from stl_deploy.hw_sim.account.traffic import OnChip
from stl_deploy.hw_sim.account.work import synapses_by_core
from stl_deploy.ir import chain as chain_view
from stl_deploy.ir.chain import LifLayer
from stl_deploy.ir.synapses import Conv, Dense
from tests.build.loads import hears, tiny
from tests.build.networks import chain, pool, raster


@dataclass(frozen=True)
class Odd(Dense):
    """Dense synapses under a name that nobody knows."""

    kind: Literal["odd"] = "odd"


def odd(network):
    """``network`` with its last layer behind synapses of the unknown kind."""
    *before, last = network.layers
    return chain_view.with_layers(
        network, (*before, replace(last, synapses=Odd(last.synapses.weight)))
    )


@pytest.mark.parametrize("network", [tiny(), hears(tiny())], ids=["tiny", "recurrent"])
def test_the_reference_runs_it(network):
    unknown, inputs = odd(network), raster(network, 5)
    want = reference.run(network, inputs, states=True)
    assert engine._plan(network, network.layers[-1], 3, False, None) is not None
    assert engine._plan(unknown, unknown.layers[-1], 3, False, None) is None
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


@dataclass(frozen=True)
class Held(LifLayer):
    """A LIF with a field that the kernels do not know."""

    hold: int = 0


def test_a_field_that_the_kernels_do_not_know_is_left_to_the_reference():
    network = tiny()
    last = network.layers[-1]
    values = {field.name: getattr(last, field.name) for field in fields(last)}
    for hold, planned in ((0, True), (2, False)):
        plan = engine._plan(network, Held(**values, hold=hold), 3, False, None)
        assert (plan is not None) == planned


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
