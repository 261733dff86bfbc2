"""NeuroBench's own code on the spikes of a run, next to our figures.

    pip install neurobench==2.3.0           # in an environment that has stl-deploy too, never a dependency
    python -m benchmarks.neurobench_metrics [--limit 50] [--graphs 40]      # in the root of a checkout

A PyTorch net of the shipped model's integer weights replays the recorded spikes, so that NeuroBench's
hooks see what hw_sim counted. Prints each metric twice. With --graphs the same for random networks with all
rules of neurons and readouts, and how many agree; ACs and MACs are added up there, as NeuroBench tells them
apart by the values of a step and hw_sim by those that can occur.
"""

from __future__ import annotations

import argparse
import importlib.util
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

import stl_deploy
from stl_deploy.formats import raster as rasters
from stl_deploy.hw_sim import reference
from stl_deploy.hw_sim.account import neurobench
from stl_deploy.hw_sim.simulate import Recorder
from stl_deploy.ir.network import Connection, IntegerNetwork, Raster
from stl_deploy.ir.readouts import Readout
from stl_deploy.ir.synapses import Conv, IntArray
from tests.build import random_graphs

ZOO = Path(__file__).parents[1] / "models" / "zoo"
LAYERS = replace(
    random_graphs.TABLE,
    chips=("loihi2",),
    sparse=False,
    one_to_one=False,
    pools=False,
    bias_source=False,
    precisions=("8",),
)


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

    Pools have neither, and what they sent is only looked up. Neurons without a threshold are no activations;
    a readout's matrix is one more layer, which sees the votes.
    """

    def __init__(self, network: IntegerNetwork, inputs: Raster, trace: reference.Trace) -> None:
        super().__init__()
        sent = network.rasters(inputs) | {name: did.spikes for name, did in trace.layers.items()}
        self.sent = {
            name: torch.from_numpy(np.moveaxis(values, 0, 1)).float()
            for name, values in sent.items()
        }
        own = [population.name for population in network.weighted]
        layers = [c for c in network.connections if c.target in own]
        self.sources = [c.source for c in layers]
        self.connections = torch.nn.ModuleList(map(connect, layers))
        firing = [population.name for population in network.weighted if population.neurons.fires]
        self.neurons = torch.nn.ModuleList(Replay(self.sent[name]) for name in firing)
        self.matrix = None
        if network.readout.matrix is not None:
            self.matrix = linear(network.readout.matrix)
            self.votes = self.sent[network.readout.source].sum(dim=0).flatten(1)

    def forward(self, batch: torch.Tensor) -> torch.Tensor:
        """All steps of a batch [N, T, *input]."""
        last = batch
        for t in range(batch.shape[1]):
            for source, layer in zip(self.sources, self.connections, strict=True):
                x = self.sent[source][t]
                layer(x.flatten(1) if isinstance(layer, torch.nn.Linear) else x)
            for neurons in self.neurons:
                last = neurons(batch)
        if self.matrix is not None:
            self.matrix(self.votes)
        return last


def linear(weight: IntArray) -> torch.nn.Linear:
    """The PyTorch layer with these weights [outputs, inputs]."""
    module = torch.nn.Linear(weight.shape[1], weight.shape[0], bias=False)
    values = torch.from_numpy(weight.astype(np.float32))
    module.weight = torch.nn.Parameter(values, requires_grad=False)
    return module


def connect(connection: Connection) -> torch.nn.Module:
    """The PyTorch layer with the integer weights."""
    if not isinstance(connection.synapses, Conv):
        return linear(connection.synapses.weight)
    conv = connection.synapses
    weight = torch.from_numpy(conv.weight.astype(np.float32))
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
    module.weight = torch.nn.Parameter(weight, requires_grad=False)
    return module


Rows = list[tuple[str, float, float]]


def compare(network: IntegerNetwork, inputs: Raster) -> Rows:
    """(metric, ours, NeuroBench's) of a run."""
    from neurobench.metrics.static import ConnectionSparsity
    from neurobench.metrics.workload import ActivationSparsity, SynapticOperations
    from neurobench.models import TorchModel

    recorder = Recorder(network)
    trace = reference.run(network, inputs, cores=recorder.cores)
    recorder.add(inputs, trace)
    ours = neurobench.metrics(network, recorder.done().counts)
    theirs = TorchModel(Net(network, inputs, trace))
    theirs.add_activation_module(Replay)
    theirs.register_hooks()
    batch = torch.zeros(len(trace.predictions), network.timesteps, 1)
    out = theirs(batch)
    synops = SynapticOperations()(theirs, out, (batch, None))
    return [
        ("effective ACs", ours.effective_acs, float(synops["Effective_ACs"])),
        ("effective MACs", ours.effective_macs, float(synops["Effective_MACs"])),
        ("dense", ours.dense, float(synops["Dense"])),
        ("activation sparsity", ours.activation_sparsity, ActivationSparsity()(theirs, out, None)),
        ("connection sparsity", ours.connection_sparsity, ConnectionSparsity()(theirs)),
    ]


def random_network(seed: int) -> tuple[IntegerNetwork, Raster]:
    """Rules of neurons and readouts at random, of connections that are layers of PyTorch."""
    network, inputs = random_graphs.draw(seed, LAYERS)
    source = network.readout.source
    if network.readout.rule == "votes":
        matrix = np.random.default_rng(seed).integers(-3, 4, (3, network.size(source)))
        network = replace(network, readout=Readout(3, 1, source, matrix=matrix))
    return network, inputs


def agree(rows: Rows) -> bool:
    """Whether the two say the same; NeuroBench rounds the last metric to four digits."""
    ours, theirs = (np.array([row[i] for row in rows]) for i in (1, 2))
    same = [ours[:2].sum(), *ours[2:4]], [theirs[:2].sum(), *theirs[2:4]]
    return bool(np.allclose(*same, rtol=1e-12, atol=1e-12)) and abs(ours[4] - theirs[4]) < 1e-4


def main() -> None:
    """Count twice and print."""
    if importlib.util.find_spec("neurobench") is None:
        sys.exit("pip install neurobench==2.3.0 in an environment that has stl-deploy too")
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--limit", type=int, default=50)
    parser.add_argument("--graphs", type=int, default=0)
    args = parser.parse_args()
    if args.graphs:
        found = [agree(compare(*random_network(seed))) for seed in range(args.graphs)]
        print(f"{sum(found)} of {len(found)} random networks agree")
        return
    model = stl_deploy.load(ZOO / "fashion-stl.pt")
    network = stl_deploy.quantize(stl_deploy.from_torch(model), chip="loihi2")
    spikes = rasters.load(ZOO / "fashion-mnist-test500.npz").first(args.limit).spikes
    for name, mine, other in compare(network, spikes):
        print(f"{name:20} {mine:18,.6f} ours {other:18,.6f} NeuroBench")


if __name__ == "__main__":
    main()
