"""Random rules of neurons, and small chains of them in PyTorch."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from stl_deploy.ir.arch import Architecture
from stl_deploy.models.net import STLNet

STEPS, INPUTS = 7, 6


def rules(rng: np.random.Generator, whole: bool = False) -> dict[str, Any]:
    """Fields of ``arch.Lif``, about half of the rules among them; decays count 1/4096 if ``whole``."""

    def chance(share: float = 0.4) -> bool:
        return bool(rng.random() < share)

    def share(low: float, high: float) -> float:
        value = rng.uniform(low, high)
        return round(4096 * value) / 4096 if whole else float(value)

    found: dict[str, Any] = {"tau": float(rng.choice([0.25 if whole else 0.0, 0.5, 1.0]))}
    if chance():
        found["tau"] = share(0.1, 0.95)
    found["reset"] = str(rng.choice(["zero", "subtract", "constant", "none"]))
    if found["reset"] == "constant":
        found["v_reset"] = float(rng.uniform(-0.2, 0.3))
    if chance():
        found["current"] = share(0, 0.9)
    if chance():
        found["current2"] = share(0, 0.9)
    if ("current" in found or "current2" in found) and chance():
        found["reset_current"] = True
    found["hold"] = int(rng.choice([0, 0, 2, -1]))
    if chance():
        found["floor"] = -0.3
    if chance(0.3):
        found["v0"] = float(rng.uniform(-0.25, 0.4))
    if chance():
        found |= {"adapt": float(rng.uniform(0.0, 0.5)), "adapt_keep": share(0.3, 1)}
    if chance():
        found["gain"] = True
    return found


def recurrent(rng: np.random.Generator) -> dict[str, Any]:
    """The field ``recurrent``, in a part of all cases."""
    if rng.random() < 0.5:
        return {}
    delay, inhibitory = int(rng.integers(1, 4)), int(rng.choice([0, 4]))
    return {"recurrent": {"delay": delay, "inhibitory": inhibitory}}


def described(text: str, given: list[dict[str, Any]], **more: Any) -> Architecture:
    """The chain ``text`` for ``INPUTS`` values, whose LIFs have the fields ``given``, one after the other."""
    data = Architecture.parse(text, (INPUTS,), timesteps=STEPS).to_dict() | more
    lifs = [layer for layer in data["layers"] if layer["kind"] == "lif"]
    for layer, fields in zip(lifs, given, strict=True):
        layer |= fields
    return Architecture.from_dict(data)


def net(arch: Architecture, seed: int, strength: float = 1.0) -> STLNet:
    """A network of ``arch`` with thresholds of 0.2 to 0.9, weights times ``strength``, in float32."""
    torch.manual_seed(seed)
    made = STLNet(arch)
    with torch.no_grad():
        for name, value in made.named_parameters():
            if name.endswith("thresh"):
                value.uniform_(0.2, 0.9)
            elif name.endswith("gain"):
                value.uniform_(0.5, 1.8)
            else:
                value.mul_(strength)
    return made.eval()


def spikes(seed: int, samples: int = 5) -> np.ndarray:
    """A raster [samples, STEPS, INPUTS] in which 40 % are spikes."""
    rng = np.random.default_rng(seed)
    return (rng.random((samples, STEPS, INPUTS)) < 0.4).astype(np.uint8)
