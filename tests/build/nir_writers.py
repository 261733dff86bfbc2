"""NIR files that Norse, Rockpool, sinabs and snnTorch write of their networks, with the spikes these have.

Usage, with the Python of an environment of stl_deploy.consumers.run:
nir_writers.py {norse,rockpool,sinabs,snntorch} FOLDER.
Writes for every network NAME.nir and NAME.npz: ``inputs`` and ``spikes`` [N, T, n] of its last neurons.
Nothing of stl-deploy is imported.
"""

from __future__ import annotations

import math
import os
import sys
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

sys.path += os.environ["STL_CONSUMER_SITES"].split(os.pathsep)
warnings.simplefilter("ignore")

import nir  # noqa: E402
import numpy as np  # noqa: E402
import torch  # noqa: E402

SAMPLES, STEPS, INPUTS = 6, 12, 10


def linear(outputs: int, inputs: int, bias: bool = True) -> torch.nn.Linear:
    """Weights that make neurons with thresholds around 1 fire now and then."""
    layer = torch.nn.Linear(inputs, outputs, bias=bias)
    with torch.no_grad():
        layer.weight.copy_(torch.randn(outputs, inputs) * 0.8 + 0.3)
    return layer


def small(outputs: int, inputs: int) -> torch.nn.Linear:
    """Weights whose sums are below a threshold of 1.7, some of them negative."""
    layer = torch.nn.Linear(inputs, outputs, bias=False)
    with torch.no_grad():
        layer.weight.copy_(torch.rand(outputs, inputs) * 0.22 - 0.06)
    return layer


def convolution() -> torch.nn.Conv2d:
    """Two channels to three, of the same size."""
    layer = torch.nn.Conv2d(2, 3, 3, padding=1)
    with torch.no_grad():
        layer.weight.copy_(torch.randn(3, 2, 3, 3) * 0.5 + 0.1)
    return layer


def raster(*shape: int) -> torch.Tensor:
    """Inputs [N, T, *shape] of spikes."""
    return (torch.rand(SAMPLES, STEPS, *shape) < 0.4).float()


def norse(folder: Path) -> None:
    """Cells of Norse, stepped with their states handed on."""
    import norse.torch as N

    def box(*shape: int, leak: float = 0.0) -> torch.nn.Module:
        p = N.LIFBoxParameters(
            tau_mem_inv=torch.full(shape, 300.0),
            v_leak=torch.full(shape, leak),
            v_th=torch.linspace(0.5, 0.7, math.prod(shape)).reshape(shape),
        )
        return N.LIFBoxCell(p, dt=1e-3)

    def current(n: int) -> torch.nn.Module:
        ones = torch.ones(n)
        p = N.LIFParameters(
            tau_syn_inv=300 * ones, tau_mem_inv=200 * ones, v_leak=0 * ones, v_th=0.9 * ones
        )
        return N.LIFCell(p, dt=1e-3)

    def integrates(n: int) -> torch.nn.Module:
        return N.IAFCell(N.IAFParameters(v_th=torch.linspace(1.1, 1.9, n)))

    def two(neurons: Callable[[int], torch.nn.Module]) -> list[torch.nn.Module]:
        return [linear(20, INPUTS), neurons(20), linear(8, 20), neurons(8)]

    # to_nir writes dt / tau_mem_inv: the time constant for a dt of 1.
    for name, parts, shape, dt in (
        ("box", two(box), (INPUTS,), 1.0),
        ("box, dt left alone", two(box), (INPUTS,), 1e-3),
        ("box that rests elsewhere", two(partial(box, leak=0.3)), (INPUTS,), 1.0),
        ("image", [convolution(), box(3, 6, 6)], (2, 6, 6), 1.0),
        ("current", two(current), (INPUTS,), 1.0),
        ("integrates", two(integrates), (INPUTS,), 1.0),
    ):
        net = N.SequentialState(*parts)
        graph = N.to_nir(net, torch.zeros(shape), dt=dt)
        graph.infer_types()  # a convolution cannot be written without
        x, outs = raster(*shape), []
        with torch.no_grad():
            for sample in x:
                state, steps = None, []
                for value in sample:
                    out, state = net(value, state)
                    steps.append(out)
                outs.append(torch.stack(steps))
        _save(folder, name, graph, x, torch.stack(outs))


def sinabs(folder: Path) -> None:
    """Layers of sinabs, all steps at once."""
    import sinabs.activation as A
    import sinabs.layers as L
    from sinabs.nir import to_nir

    resets = {"spike_fn": A.SingleSpike, "reset_fn": A.MembraneReset()}
    tau = {"tau_mem": torch.full((20,), 3.0), "norm_input": False}
    leak = {"tau_mem": torch.linspace(2.0, 5.0, 20), "spike_fn": A.SingleSpike}

    def after(first: torch.nn.Module, kind: Any = L.IAFSqueeze, **settings: object) -> Any:
        threshold = torch.full((20,), 1.7)
        return [first, kind(batch_size=SAMPLES, spike_threshold=threshold, **settings)]

    image = [
        convolution(),
        L.IAFSqueeze(batch_size=SAMPLES, spike_threshold=torch.tensor(1.3), **resets),
        L.SumPool2d(2, 2),
        torch.nn.Flatten(),
        *after(linear(20, 27), **resets),
    ]
    for name, parts, shape in (
        ("resets", after(linear(20, INPUTS), **resets), (INPUTS,)),
        ("image", image, (2, 6, 6)),
        ("subtracts once", after(linear(20, INPUTS), spike_fn=A.SingleSpike), (INPUTS,)),
        ("subtracts", after(linear(20, INPUTS)), (INPUTS,)),
        ("leaks", after(linear(20, INPUTS), L.LIFSqueeze, **tau, **resets), (INPUTS,)),
        ("leaks by default", after(linear(20, INPUTS), L.LIFSqueeze, **leak), (INPUTS,)),
        ("one at most", after(small(20, INPUTS)), (INPUTS,)),
    ):
        net = torch.nn.Sequential(*parts)
        x = raster(*shape)
        with torch.no_grad():
            out = net(x.flatten(0, 1)).reshape(SAMPLES, STEPS, -1)
        graph = to_nir(net, x.flatten(0, 1))
        graph.infer_types()
        _save(folder, name, graph, x, out)


def rockpool(folder: Path) -> None:
    """LIFTorch, by default with several spikes a step."""
    from rockpool.nn.combinators import Sequential
    from rockpool.nn.modules import LIFTorch, LinearTorch
    from rockpool.nn.modules.torch.nir import to_nir

    def lif(n: int, **settings: object) -> torch.nn.Module:
        taus = {"tau_mem": torch.linspace(4e-3, 9e-3, n), "tau_syn": torch.linspace(2e-3, 6e-3, n)}
        return LIFTorch(n, dt=1e-3, threshold=torch.full((n,), 1.3), **(taus | settings))

    def weights(inputs: int, n: int, scale: float) -> torch.nn.Module:
        return LinearTorch((inputs, n), weight=torch.randn(inputs, n) * scale, has_bias=False)

    def few(inputs: int, n: int) -> torch.nn.Module:
        return LinearTorch((inputs, n), weight=torch.rand(inputs, n) * 0.054, has_bias=False)

    once = {"max_spikes_per_dt": torch.tensor(1.0)}
    for name, net in (
        (
            "once",
            Sequential(
                weights(INPUTS, 20, 0.6), lif(20, **once), weights(20, 8, 0.6), lif(8, **once)
            ),
        ),
        ("several", Sequential(weights(INPUTS, 20, 0.9), lif(20))),
        ("one at most", Sequential(few(INPUTS, 20), lif(20))),
    ):
        x = raster(INPUTS)
        with torch.no_grad():
            outs = [net(sample[None])[0][0] for sample in x if net.reset_state() is not None]
        _save(folder, name, to_nir(net, x[:1]), x, torch.stack(outs))


def snntorch(folder: Path) -> None:
    """Leaky neurons of snnTorch, which by default subtract the threshold, a step late."""
    import snntorch as snn
    from snntorch.export_nir import export_to_nir

    for name, reset in (("subtracts", "subtract"), ("resets", "zero")):

        def leaky(n: int, reset: str = reset) -> torch.nn.Module:
            return snn.Leaky(
                beta=torch.full((n,), 0.8),
                threshold=torch.linspace(0.9, 1.7, n),
                reset_mechanism=reset,
                init_hidden=True,
            )

        net = torch.nn.Sequential(linear(20, INPUTS), leaky(20), linear(8, 20), leaky(8))
        x, outs = raster(INPUTS), []
        with torch.no_grad():
            for sample in x:
                net[1].reset_mem()
                net[3].reset_mem()
                outs.append(torch.stack([net(value) for value in sample]))
        _save(folder, name, export_to_nir(net, x[0, 0]), x, torch.stack(outs))


def _save(folder: Path, name: str, graph: object, x: torch.Tensor, out: torch.Tensor) -> None:
    nir.write(str(folder / f"{name}.nir"), graph)
    np.savez(folder / f"{name}.npz", inputs=x.numpy().astype(np.uint8), spikes=out.numpy())


if __name__ == "__main__":
    torch.manual_seed(0)
    tools = {"norse": norse, "rockpool": rockpool, "sinabs": sinabs, "snntorch": snntorch}
    tools[sys.argv[1]](Path(sys.argv[2]))
