"""NeuroBench's own code on the spikes of a run, next to our figures.

    pip install neurobench==2.3.0           # in an environment that has stl-deploy too, never a dependency
    python benchmarks/neurobench_metrics.py [--limit 50]

A PyTorch net of the shipped model's integer weights replays the recorded spikes, so that NeuroBench's
hooks see what hw_sim counted. Prints each metric twice.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch

import stl_deploy
from stl_deploy.formats import raster as rasters
from stl_deploy.hw_sim import reference
from stl_deploy.hw_sim.account import neurobench
from stl_deploy.hw_sim.simulate import Recorder
from stl_deploy.ir.chain import LifLayer
from stl_deploy.ir.network import IntegerNetwork
from stl_deploy.ir.synapses import Conv

ZOO = Path(__file__).parents[1] / "models" / "zoo"


class Replay(torch.nn.Module):
    """Gives out recorded spikes [T, N, *shape], a step a call, whatever comes in."""

    def __init__(self, spikes: Any) -> None:
        super().__init__()
        self.spikes, self.step = torch.from_numpy(spikes).float(), -1

    def forward(self, _: torch.Tensor) -> torch.Tensor:
        """The next step."""
        self.step += 1
        return self.spikes[self.step]


class Net(torch.nn.Module):
    """Connection layers and replayed neurons; pools are replayed between them."""

    def __init__(self, network: IntegerNetwork, trace: reference.Trace) -> None:
        super().__init__()
        self.chain: list[tuple[torch.nn.Module | None, Any, Any]] = []
        for layer in network.layers:
            spikes = np.moveaxis(trace.layers[layer.name].spikes, 0, 1)
            connection = connect(layer) if isinstance(layer, LifLayer) else None
            neurons = Replay(spikes) if connection is not None else None
            self.chain.append((connection, neurons, torch.from_numpy(spikes).float()))
        self.connections = torch.nn.ModuleList(c for c, _, _ in self.chain if c is not None)
        self.neurons = torch.nn.ModuleList(n for _, n, _ in self.chain if n is not None)

    def forward(self, batch: torch.Tensor) -> torch.Tensor:
        """All steps of a batch [N, T, *input]."""
        for t in range(batch.shape[1]):
            x = batch[:, t]
            for connection, neurons, pooled in self.chain:
                if connection is None:
                    x = pooled[t]
                    continue
                flat = isinstance(connection, torch.nn.Linear)
                x = neurons(connection(x.flatten(1) if flat else x))
        return x


def connect(layer: LifLayer) -> torch.nn.Module:
    """The PyTorch layer with the integer weights."""
    weight = torch.from_numpy(layer.synapses.weight.astype(np.float32))
    module: torch.nn.Module
    if isinstance(layer.synapses, Conv):
        conv = layer.synapses
        module = torch.nn.Conv2d(
            weight.shape[1] * conv.groups,
            weight.shape[0],
            (weight.shape[2], weight.shape[3]),
            conv.stride,
            conv.padding,
            conv.dilation,
            conv.groups,
            bias=False,
        )
    else:
        module = torch.nn.Linear(weight.shape[1], weight.shape[0], bias=False)
    module.weight = torch.nn.Parameter(weight, requires_grad=False)
    return module


def main() -> None:
    """Count twice and print."""
    try:
        from neurobench.metrics.static import ConnectionSparsity
        from neurobench.metrics.workload import ActivationSparsity, SynapticOperations
        from neurobench.models import TorchModel
    except ImportError as error:
        sys.exit(
            f"{error}: pip install neurobench==2.3.0 in an environment that has stl-deploy too"
        )
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--limit", type=int, default=50)
    args = parser.parse_args()
    model = stl_deploy.load(ZOO / "fashion-stl.pt")
    network = stl_deploy.quantize(stl_deploy.from_torch(model), chip="loihi2")
    spikes = rasters.load(ZOO / "fashion-mnist-test500.npz").first(args.limit).spikes
    recorder = Recorder(network)
    trace = reference.run(network, spikes, cores=recorder.cores)
    recorder.add(spikes, trace)
    ours = neurobench.metrics(network, recorder.done().counts)

    theirs = TorchModel(Net(network, trace))
    theirs.add_activation_module(Replay)
    theirs.register_hooks()
    batch = torch.from_numpy(spikes).float()
    out = theirs(batch)
    synops = SynapticOperations()(theirs, out, (batch, None))
    rows = [
        ("effective ACs", ours.effective_acs, float(synops["Effective_ACs"])),
        ("effective MACs", ours.effective_macs, float(synops["Effective_MACs"])),
        ("dense", ours.dense, float(synops["Dense"])),
        ("activation sparsity", ours.activation_sparsity, ActivationSparsity()(theirs, out, None)),
        ("connection sparsity", ours.connection_sparsity, ConnectionSparsity()(theirs)),
    ]
    for name, mine, other in rows:
        print(f"{name:20} {mine:18,.6f} ours {other:18,.6f} NeuroBench")


if __name__ == "__main__":
    main()
