"""A PyTorch network from an architecture description; module names are the layer names."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from stl_deploy.ir import arch as A
from stl_deploy.ir.arch import Architecture, Shape
from stl_deploy.ir.kinds import entry
from stl_deploy.models import integer_neurons, layers, neurons, readouts


class STLNet(nn.Module):
    """Spiking network with learned thresholds, [batch, time, *input] to class scores [batch, K].

    Args:
        arch: the description; its layer names become module names and state_dict keys. Where it is
            ``quantized``, parameters are whole numbers, and so is all that is computed.
        threshold: initial firing threshold of every neuron.
    """

    def __init__(self, arch: Architecture, threshold: float = 0.5) -> None:
        super().__init__()
        self.arch = arch
        table, read = (
            (MODULES, _read) if arch.quantized is None else (INTEGER_MODULES, _integer_read)
        )
        given, split = arch.given, arch.split
        for spec in arch.layers:
            make = entry(table, spec.kind, spec.name, "PyTorch")
            if spec is arch.layers[-1] and arch.readout != "votes":
                make = read  # its v is needed
            elif spec.name in split:
                make = _two_currents
            self.add_module(spec.name, make(spec, given[spec.name], arch.timesteps, threshold))
        for name, spikes in arch.passed.items() if arch.quantized is not None else ():
            self.add_module(name, integer_neurons.Add(given[name], spikes))
        self.readout = readouts.make(arch.readout, arch.population)

    def forward(self, raster: Tensor) -> Tensor:
        """Class scores [batch, K] for a raster [batch, time, *input] of integers 0..levels.

        Those of votes are rates.
        """
        last = self.arch.layers[-1].name
        if self.arch.readout == "votes":
            return cast(Tensor, self.readout(self.run(raster)[last]))
        sent, v = self.trace(raster)
        return cast(Tensor, self.readout(sent[last], v))

    def run(self, raster: Tensor) -> dict[str, Tensor]:
        """What every population and max-pool layer sends, [batch, time, *shape], by name.

        That is spikes, or v of neurons without a threshold.
        """
        sent, v = self.trace(raster)
        last = self.arch.layers[-1]
        if v is not None and last.kind == "lif" and not last.fires:
            sent[last.name] = v
        return sent

    def trace(self, raster: Tensor) -> tuple[dict[str, Tensor], Tensor | None]:
        """Spikes of every population and max-pool layer, by name, none without a threshold; and the v of the
        last neurons after each step, None where votes are read."""
        steps = raster.shape[1]
        if steps > 1 and raster.stride(1) == 0:  # the same at every step, and converted once
            raster = raster[:, :1]
        x = raster.to(next(self.parameters()).dtype)
        if self.arch.quantized is None:
            x = x / self.arch.input.levels
        x = x.expand(-1, steps, *x.shape[2:])
        reads = self.arch.reads
        left = Counter(name for read in reads.values() for name in read)
        values: dict[str, tuple[Tensor, ...]] = {A.INPUT: (x,)}  # of two currents, both
        sent: dict[str, Tensor] = {}
        v = None
        for spec in self.arch.layers:
            given = (value for name in reads[spec.name] for value in values[name])
            out = self.call(spec.name, *given)
            if spec.kind == "lif" and isinstance(out, tuple):
                out, v = out
            values[spec.name] = out if isinstance(out, tuple) else (out,)
            if spec.spikes:
                sent[spec.name] = out
            for name in reads[spec.name]:
                left[name] -= 1
                if not left[name]:  # nobody reads it any more
                    del values[name]
        return sent, v

    def call(self, name: str, *given: Tensor) -> Any:
        """What layer ``name`` makes of its inputs."""
        return self.get_submodule(name)(*given)

    def settle(self) -> None:
        """Bring what was learned where the network can be kept; here nothing has to be."""

    def frozen(self) -> STLNet:
        """The network to keep, once trained."""
        return self


def _conv(spec: A.Conv, shape: Shape, _steps: int, _threshold: float) -> nn.Module:
    return layers.Conv2d(
        shape[0],
        spec.channels,
        spec.kernel,
        stride=spec.stride,
        padding=spec.padding,
        groups=spec.groups,
        bias=spec.bias,
    )


def _batchnorm(spec: A.BatchNorm, shape: Shape, _steps: int, _threshold: float) -> nn.Module:
    return layers.BatchNorm(shape[0], eps=spec.eps)


def _lif(spec: A.Lif, shape: Shape, timesteps: int, threshold: float) -> nn.Module:
    return neurons.make(spec, shape, timesteps, threshold)


class _Read(neurons.Neurons):
    """Neurons whose v is read too: it gives spikes, and the v that each step leaves, in floating point."""

    def forward(self, current: Tensor, current2: Tensor | None = None) -> Any:
        """Run all steps."""
        sent, v = self.trace(current, current2)
        return sent, self.told(v)


class _IntegerRead(_Read, integer_neurons.IntegerNeurons):
    """The same of neurons that count in whole numbers."""


def _read(spec: A.Lif, shape: Shape, timesteps: int, threshold: float) -> nn.Module:
    return _Read(spec, shape, timesteps, threshold)


def _integer_read(spec: A.Lif, shape: Shape, timesteps: int, _threshold: float) -> nn.Module:
    return _IntegerRead(spec, shape, timesteps)


def _integer_lif(spec: A.Lif, shape: Shape, timesteps: int, _threshold: float) -> nn.Module:
    return integer_neurons.make(spec, shape, timesteps)


def _maxpool(spec: A.MaxPool, _shape: Shape, _steps: int, _threshold: float) -> nn.Module:
    return layers.MaxPool2d(spec.kernel)


def _linear(spec: A.Linear, shape: Shape, _steps: int, _threshold: float) -> nn.Module:
    inputs = math.prod(shape)
    if spec.inhibitory:
        return neurons.DaleLinear(inputs, spec.features, spec.bias, spec.inhibitory)
    return layers.Linear(inputs, spec.features, bias=spec.bias, groups=spec.groups)


def _two_currents(spec: A.Linear, shape: Shape, _steps: int, _threshold: float) -> nn.Module:
    return neurons.TwoCurrents(math.prod(shape), spec.features, spec.bias, spec.inhibitory)


def _avgpool(spec: A.AvgPool, _shape: Shape, _steps: int, _threshold: float) -> nn.Module:
    return layers.AvgPool2d(spec.kernel)


def _add(_spec: A.Add, _shape: Shape, _steps: int, _threshold: float) -> nn.Module:
    return layers.Add()


def _concat(_spec: A.Concat, _shape: Shape, _steps: int, _threshold: float) -> nn.Module:
    return layers.Concat()


def _dropout(spec: A.Dropout, _shape: Shape, _steps: int, _threshold: float) -> nn.Module:
    return nn.Dropout(spec.p)


# What runs a layer, made from its description, the shape of its input, the time steps of a sample and the
# initial threshold.
MODULES: dict[str, Callable[[Any, Shape, int, float], nn.Module]] = {
    "conv": _conv,
    "batchnorm": _batchnorm,
    "lif": _lif,
    "maxpool": _maxpool,
    "linear": _linear,
    "dropout": _dropout,
    "avgpool": _avgpool,
    "add": _add,
    "concat": _concat,
}
INTEGER_MODULES = MODULES | {"lif": _integer_lif}


def from_params(arch: Architecture, params: Mapping[str, NDArray[Any]]) -> STLNet:
    """A model in evaluation mode from checked parameters, in their own precision."""
    model = STLNet(arch)
    if arch.quantized is None and any(value.dtype == np.float64 for value in params.values()):
        model = model.double()
    # num_batches_tracked plays no part in evaluation and is not kept.
    model.load_state_dict({k: torch.from_numpy(v) for k, v in params.items()}, strict=False)
    return model.eval()


def infer(model: STLNet, raster: Tensor, dtype: torch.dtype = torch.float64) -> dict[str, Tensor]:
    """Spikes of every layer in evaluation mode and in ``dtype``; the model itself is not changed."""
    copy = converted(model, dtype)
    with torch.inference_mode():
        return copy.run(raster)


def converted(model: STLNet, dtype: torch.dtype) -> STLNet:
    """A copy of ``model`` in ``dtype`` and in evaluation mode."""
    copy = STLNet(model.arch).to(dtype)
    copy.load_state_dict(model.state_dict())
    return copy.eval()
