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

import numpy as np
import torch

import stl_deploy
from stl_deploy.formats import raster as rasters
from stl_deploy.hw_sim import reference
from stl_deploy.hw_sim.account import neurobench
from stl_deploy.hw_sim.simulate import Recorder
from stl_deploy.ir.network import Connection, IntegerNetwork
from stl_deploy.ir.synapses import Conv, IntArray

ZOO = Path(__file__).parents[1] / "models" / "zoo"


class Replay(torch.nn.Module):
    """Gives out recorded spikes [T, N, *shape], a step a call, whatever comes in."""

    def __init__(self, spikes: torch.Tensor) -> None:
        super().__init__()
        self.spikes, self.step = spikes, -1

    def forward(self, _: torch.Tensor) -> torch.Tensor:
        """The next step."""
        self.step += 1
        return self.spikes[self.step]


class Net(torch.nn.Module):
    """Connection layers and replayed neurons: every connection sees what its source sent in the step.

    Pools have neither, and what they sent is only looked up.
    """

    def __init__(self, network: IntegerNetwork, spikes: IntArray, trace: reference.Trace) -> None:
        super().__init__()
        sent = network.rasters(spikes) | {name: did.spikes for name, did in trace.layers.items()}
        self.sent = {
            name: torch.from_numpy(np.moveaxis(values, 0, 1)).float()
            for name, values in sent.items()
        }
        own = [population.name for population in network.weighted]
        layers = [c for c in network.connections if c.target in own]
        self.sources = [c.source for c in layers]
        self.connections = torch.nn.ModuleList(map(connect, layers))
        self.neurons = torch.nn.ModuleList(Replay(self.sent[name]) for name in own)

    def forward(self, batch: torch.Tensor) -> torch.Tensor:
        """All steps of a batch [N, T, *input]."""
        for t in range(batch.shape[1]):
            for source, layer in zip(self.sources, self.connections, strict=True):
                x = self.sent[source][t]
                layer(x.flatten(1) if isinstance(layer, torch.nn.Linear) else x)
            for neurons in self.neurons:
                last: torch.Tensor = neurons(batch)
        return last


def connect(connection: Connection) -> torch.nn.Module:
    """The PyTorch layer with the integer weights."""
    weight = torch.from_numpy(connection.synapses.weight.astype(np.float32))
    module: torch.nn.Module
    if isinstance(connection.synapses, Conv):
        conv = connection.synapses
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

    theirs = TorchModel(Net(network, spikes, trace))
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
