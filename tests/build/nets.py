"""Small trained-like networks that several tests share."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

import stl_deploy
from stl_deploy.ir.arch import Architecture
from stl_deploy.ir.network import IntegerNetwork
from stl_deploy.models.net import STLNet
from tests.build.networks import values

SMALL = "4C3-BN-LIF-P4-6C3-BN-LIF-P2-FC30-LIF-FC20-LIF-AvgPool2"
CONVOLUTIONAL = "4C3-BN-LIF-P4-FC20-LIF-AvgPool2"
ROOT = Path(__file__).resolve().parents[2]
ZOO = ROOT / "models" / "zoo" / "fashion-stl.pt"
ZOO_RASTER = ROOT / "models" / "zoo" / "fashion-mnist-test500.npz"


def random_net(
    text: str | Architecture = SMALL, seed: int = 0, shape: tuple[int, ...] = (1, 8, 8)
) -> STLNet:
    """A network with random weights, statistics and thresholds, all per neuron and positive."""
    torch.manual_seed(seed)
    net = STLNet(Architecture.parse(text, shape) if isinstance(text, str) else text)
    rng = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, value in net.state_dict().items():
            if name.endswith("thresh"):
                value.uniform_(0.2, 0.9, generator=rng)
            elif name.endswith("running_mean"):
                value.uniform_(-0.2, 0.2, generator=rng)
            elif name.endswith("running_var"):
                value.uniform_(0.05, 0.5, generator=rng)
            elif name.startswith("bn") and value.is_floating_point():
                value.uniform_(0.1, 1.0, generator=rng)
    return net.eval()


def quantized(text: str = CONVOLUTIONAL, seed: int = 0, **options: Any) -> IntegerNetwork:
    """``random_net`` as integers; other options are those of ``stl_deploy.quantize``."""
    return stl_deploy.quantize(stl_deploy.from_torch(random_net(text, seed)), **options)


def random_spikes(net: STLNet, samples: int, seed: int = 0) -> np.ndarray:
    """A Bernoulli raster [N, T, *input] that fits ``net``."""
    return values((samples, net.arch.timesteps, *net.arch.input.shape), 0.4, seed=seed)


def taken(weight: int, precision: str) -> int:
    """How many synapses a weight takes: one where any one of 8 bits can be it, none for zero."""
    if precision == "2x8" and not -128 <= weight <= 127 and weight % 128:
        return 2
    return int(weight != 0)
