"""Whether a backend equals the reference of hw_sim: every spike, u and v, counted."""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping
from contextlib import closing
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from stl_deploy.ir.network import IntegerNetwork
from stl_deploy.spread import Spread, Threads

if TYPE_CHECKING:
    from stl_deploy.hw_sim.reference import Trace

Kind = Literal["u", "v", "spikes"]
# In the order in which a step computes them.
KINDS: tuple[Kind, ...] = ("u", "v", "spikes")
ENGINE_BATCH = 25  # samples; the reference works on them in numpy


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
    spread: Spread | None = None,
) -> Agreement:
    """Run ``backend`` ("hw_sim", "lava", "netx", "onnx") on a raster [N, T, *input_shape], in batches.

    "hw_sim" is the engine that the command of that name runs, worked on by ``spread``; "onnx" runs in
    this process, the others in processes of their own on this machine. ``on_steps(done)`` is called with
    the number of time steps done; ``stall_s``: see ``lava_backend.run``.

    Raises LoweringError when the backend cannot carry the network, BackendError when it fails.
    """
    from stl_deploy.hw_sim.simulate import batch_size

    tell = on_steps or (lambda _: None)
    largest = ENGINE_BATCH if backend in ("hw_sim", "onnx") else len(raster)
    batch = max(1, min(largest, batch_size(network)))
    batches = [(start, raster[start : start + batch]) for start in range(0, len(raster), batch)]
    if backend == "hw_sim":
        results = (spread or Threads()).run(EngineCheck(network), batches)
    elif backend == "onnx":
        results = _on_onnx(network, batches)
    else:
        results = _on_lava(backend, network, batches, stall_s, tell)
    total = Agreement()
    with closing(results):
        for (start, inputs), found in zip(batches, results, strict=True):
            total += found
            tell((start + len(inputs)) * network.timesteps)
    return total


@dataclass(frozen=True, eq=False)
class EngineCheck:
    """The compiled engine against the reference (a ``spread.Job``)."""

    network: IntegerNetwork

    def prepare(self) -> Callable[[tuple[int, NDArray[np.uint8]]], Agreement]:
        """What does one batch: (number of its first sample, inputs)."""
        from stl_deploy.hw_sim import reference
        from stl_deploy.hw_sim.engine import Engine

        engine = Engine(self.network)

        def check(batch: tuple[int, NDArray[np.uint8]]) -> Agreement:
            start, inputs = batch
            expected = reference.run(self.network, inputs, states=True)
            # Without states the engine takes other ways, those that hw_sim takes.
            fast, full = engine.run(inputs), engine.run(inputs, states=True)
            got: dict[str, NDArray[Any]] = {}
            for name, did in full.layers.items():
                want, bare = expected.layers[name].spikes, fast.layers[name].spikes
                got[f"spikes/{name}"] = np.where(bare != want, bare, did.spikes)
                got[f"u/{name}"], got[f"v/{name}"] = np.asarray(did.u), np.asarray(did.v)
            return compare(self.network, expected, got, start)

        return check


def _on_onnx(
    network: IntegerNetwork, batches: list[tuple[int, NDArray[np.uint8]]]
) -> Generator[Agreement]:
    """Every batch under onnxruntime, against the reference."""
    from stl_deploy.backends.onnx import Session
    from stl_deploy.hw_sim import reference

    session = Session(network)
    for start, inputs in batches:
        expected = reference.run(network, inputs, states=True)
        yield compare(network, expected, session.run(inputs), start)


def _on_lava(
    backend: str,
    network: IntegerNetwork,
    batches: list[tuple[int, NDArray[np.uint8]]],
    stall_s: float | None,
    tell: Callable[[int], None],
) -> Generator[Agreement]:
    """Every batch on Lava, against the reference."""
    from stl_deploy.backends import lava as lava_backend
    from stl_deploy.hw_sim import reference

    for start, inputs in batches:
        before = start * network.timesteps

        def step(steps: int, before: int = before) -> None:
            tell(before + steps)

        got = lava_backend.run(
            backend, network, inputs, stall_s=stall_s or lava_backend.STALL_S, on_step=step
        )
        yield compare(network, reference.run(network, inputs, states=True), got, start)
