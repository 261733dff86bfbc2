"""Every rule of neurons and readouts on Lava, bit for bit as the reference has them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from stl_deploy.exporters import loihi_layers
from stl_deploy.hw_sim import reference
from stl_deploy.ir import slices
from stl_deploy.ir.network import Connection, Input, IntegerNetwork, Population
from stl_deploy.ir.neurons import Graded, Lif
from stl_deploy.ir.readouts import Readout
from stl_deploy.ir.synapses import Conv, Dense, OneToOne, Synapses
from tests.build import edges, random_graphs
from tests.build.lava_runs import compared


def test_random_graphs_over_the_table_are_the_same_on_lava(python, short):
    """Every rule of neurons and every readout, in all states and in the predictions."""
    refused: list[str] = []

    def fits(network: IntegerNetwork) -> bool:
        if found := loihi_layers.problems(
            network
        ):  # what leaves Lava's registers, or too short a loop
            refused.append(network.chip)
        return not found

    drawn = {seed: graph for seed, *graph in random_graphs.over_the_table(8, fits)}
    assert set(refused) <= {"ideal"}
    assert len(refused) < len(drawn)
    total = compared(python, "lava", drawn, short)
    print(f"{len(drawn)} networks, {total.entries:,} values sent, {total.states:,} states")


def test_rules_at_the_ends_of_registers_are_the_same_on_lava(python, short):
    """Gains, resets, floors, steps and sums that wrap, saturate and fill whole registers, of either sign."""
    drawn = {seed: extremes(np.random.default_rng(seed)) for seed in range(4)}
    compared(python, "lava", drawn, short)
    overflows = sum(
        did.overflow.sum()
        for network, rasters in drawn.values()
        for did in reference.run(network, rasters).layers.values()
    )
    assert overflows > 100


def test_registers_at_their_edges_are_the_same_on_lava(python, short):
    network, rasters = edges.network("loihi2")
    edges.assert_reached(network, reference.run(network, rasters, states=True))
    compared(python, "lava", {0: (network, rasters)}, short)


def extremes(rng: np.random.Generator) -> tuple[IntegerNetwork, dict[str, Any]]:
    """Values of 15 bits and sign through a graded population and a sum that is sent, into every rule."""
    neurons, most, steps = 30, (1 << 23) - 1, 8

    def end() -> Any:
        values = rng.choice([-most, -most + 1, -64, -1, 0, 1, 63, most - 64, most], neurons)
        return values.astype(np.int32)

    def lif(**fields: Any) -> Lif:
        vth = rng.choice([0, 1, 1000, 131_071], neurons).astype(np.int32)
        bias = rng.choice([-4096, 0, 4095], neurons).astype(np.int32)
        du, dv = (rng.choice([0, 1, 4095], neurons).astype(np.int32) for _ in range(2))
        return Lif(vth, bias, np.ones(neurons), 7, du, dv, **fields)

    def dense(source: str, target: str, exp: int = 7, port: int = 0, **fields: Any) -> Connection:
        weight = rng.choice([-127, -1, 0, 1, 126], (neurons, neurons)).astype(np.int8)
        return Connection(
            f"{source}{port}", source, target, Dense(weight), exp, port=port, **fields
        )

    gain = rng.choice([-32_768, -1, 0, 1, 4096, 32_767], (steps, neurons)).astype(np.int16)
    wide = {"floor": end(), "adapt": end(), "dq": int(rng.choice([0, 4095])), "v0": end()}
    network = IntegerNetwork(
        "loihi2",
        steps,
        {"input": Input((neurons,), 32_767, signed=True)},
        (
            Population("sums", (neurons,), lif(fires=False, graded=Graded(12, 32_767), v0=end())),
            Population("sent", (neurons,), lif(graded=Graded(8, 32_767), reset="none")),
            Population("all", (neurons,), lif(gain=gain, du2=0, reset="constant", v_reset=end())),
            Population("held", (neurons,), lif(hold=2, reset_current=True, du2=4095, **wide)),
            Population("once", (neurons,), lif(hold=-1, reset="subtract", gain=gain[::-1], **wide)),
        ),
        (
            dense("input", "sums", 2),
            replace(dense("input", "sums", 2), name="again", delay=1),
            dense("sums", "sent"),
            dense("sums", "all"),
            dense("sent", "all", port=1),
            dense("sent", "held"),
            dense("all", "held", port=1),
            dense("sums", "once", 0),
            replace(dense("sent", "once"), delay=2),
            dense("held", "sent", 4, delay=3),
        ),
        Readout(neurons, 1, "once", str(rng.choice(["last", "mean", "max", "first"]))),  # type: ignore[arg-type]
    )
    raster = rng.choice([-32_767, -1, 0, 1, 32_767], (2, steps, neurons)).astype(np.int16)
    return network, {"input": raster}


def test_values_with_a_sign_pass_every_synapse_and_delay_on_lava(python, short):
    """15 bits and sign through Conv, Dense and Sparse, in each precision, at once and late."""
    drawn = {}
    for seed, precision in enumerate(slices.PRECISIONS):
        network, rasters = every_way(np.random.default_rng(seed), precision)
        assert not loihi_layers.problems(network)
        sent = reference.run(network, rasters).layers["values"].spikes
        assert (sent.min(), sent.max()) == (-32_767, 32_767)
        drawn[seed] = network, rasters
    compared(python, "lava", drawn, short)


def every_way(
    rng: np.random.Generator, precision: slices.WeightPrecision
) -> tuple[IntegerNetwork, dict[str, Any]]:
    """A population that sends values, and one behind each kind of synapses, twice."""
    shape, size, steps = (2, 4, 4), 32, 6
    top = slices.largest(precision, 8)

    def weights(count: tuple[int, ...], most: int) -> Any:
        return rng.integers(-most, most + 1, count).astype(slices.kind(precision))

    ways: dict[str, Synapses] = {
        "conv": Conv(weights((2, 2, 3, 3), 14), (1, 1), (1, 1), (1, 1), 1),
        "dense": Dense(weights((size, size), min(top, 800))),
        "single": OneToOne(weights((size,), top)),
    }
    none, ones = np.zeros((2, 1, 1), np.int32), np.ones((2, 1, 1))
    sends = Lif(np.zeros(shape, np.int32), none, ones, fires=False, graded=Graded(0, 32_767))
    fires = Lif(np.full(shape, 9000, np.int32), none, ones, dv=300)
    raster = rng.integers(-32_767, 32_768, (2, steps, *shape)).astype(np.int16)
    raster[:, :, 0, 0, :2] = -32_767, 32_767
    return IntegerNetwork(
        "loihi2",
        steps,
        {"input": Input(shape, 32_767, signed=True)},
        (Population("values", shape, sends), *(Population(n, shape, fires) for n in ways)),
        (
            Connection("in", "input", "values", OneToOne(np.ones(size, np.int8))),
            *(
                Connection(f"{name}{delay}", "values", name, synapses, 0, 8, precision, delay)
                for name, synapses in ways.items()
                for delay in (0, 2)
            ),
        ),
        Readout(size, 1, "single"),
    ), {"input": raster}
