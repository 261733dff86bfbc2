"""Whether a backend equals the reference of hw_sim: every spike, u and v, counted."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from stl_deploy.network import IntegerNetwork

if TYPE_CHECKING:
    from stl_deploy.hw_sim.reference import Trace

Kind = Literal["u", "v", "spikes"]
# In the order in which a step computes them.
KINDS: tuple[Kind, ...] = ("u", "v", "spikes")


@dataclass(frozen=True)
class Difference:
    """One entry that differs: ``neuron`` is its index in the layer's population."""

    layer: str
    kind: Kind
    sample: int
    step: int
    neuron: tuple[int, ...]
    expected: int
    got: int


@dataclass(frozen=True)
class Agreement:
    """``entries`` are the spikes compared, N*T*neurons of all layers; each has a u and a v too.

    ``first`` is the first difference in the first layer that has one.
    """

    entries: int = 0
    spike_mismatches: int = 0
    state_mismatches: int = 0
    first: Difference | None = None

    @property
    def exact(self) -> bool:
        """No difference."""
        return not self.spike_mismatches and not self.state_mismatches

    def __add__(self, other: Agreement) -> Agreement:
        return Agreement(
            self.entries + other.entries,
            self.spike_mismatches + other.spike_mismatches,
            self.state_mismatches + other.state_mismatches,
            self.first or other.first,
        )


def compare(
    network: IntegerNetwork, expected: Trace, got: Mapping[str, NDArray[Any]], first_sample: int = 0
) -> Agreement:
    """Compare a backend's trace (keys as those of a trace file) with the reference's, with states."""
    total = Agreement()
    for layer in network.layers:
        reference = expected.layers[layer.name]
        for kind in KINDS:
            want = getattr(reference, kind)
            have = got[f"{kind}/{layer.name}"]
            where = np.argwhere(have != want)
            count = len(where)
            total += Agreement(
                entries=want.size if kind == "spikes" else 0,
                spike_mismatches=count if kind == "spikes" else 0,
                state_mismatches=0 if kind == "spikes" else count,
                first=_difference(layer.name, kind, where[0], want, have, first_sample)
                if count
                else None,
            )
    return total


def _difference(
    layer: str,
    kind: Kind,
    index: NDArray[np.int64],
    want: NDArray[Any],
    have: NDArray[Any],
    first_sample: int,
) -> Difference:
    sample, step, *neuron = (int(i) for i in index)
    at = (sample, step, *neuron)
    return Difference(
        layer, kind, first_sample + sample, step, tuple(neuron), int(want[at]), int(have[at])
    )


def measure(
    backend: str,
    network: IntegerNetwork,
    raster: NDArray[np.uint8],
    *,
    stall_s: float | None = None,
    on_steps: Callable[[int], None] | None = None,
) -> Agreement:
    """Run ``backend`` ("hw_sim", "lava", "netx") on a raster [N, T, *input_shape], in batches.

    "hw_sim" is the reference itself, so it agrees by definition. ``on_steps(done)`` is called with
    the number of time steps done; ``stall_s``: see ``lava_backend.run``.

    Raises LoweringError when the backend cannot carry the network, BackendError when it fails.
    """
    from stl_deploy import lava_backend
    from stl_deploy.hw_sim import reference
    from stl_deploy.hw_sim.simulate import batch_size

    per_sample = network.timesteps * sum(layer.neurons for layer in network.layers)
    if backend == "hw_sim":
        return Agreement(entries=len(raster) * per_sample)
    total, batch = Agreement(), batch_size(network)
    for start in range(0, len(raster), batch):
        inputs = raster[start : start + batch]
        done = start * network.timesteps

        def tell(steps: int, done: int = done) -> None:
            if on_steps is not None:
                on_steps(done + steps)

        got = lava_backend.run(
            backend,
            network,
            inputs,
            stall_s=stall_s or lava_backend.STALL_S,
            on_step=tell,
        )
        total += compare(network, reference.run(network, inputs, states=True), got, start)
        tell(len(inputs) * network.timesteps)
    return total
