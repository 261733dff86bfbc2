"""Training with surrogate gradients in the three modes of the STL-SNN paper.

``synergistic`` learns weights and thresholds, ``synaptic`` weights alone (thresholds stay at their
initial value), ``threshold`` thresholds alone (weights stay random). Everything random comes from
(seed, epoch), so that a run resumed after any epoch ends in the same parameters as one that was
never interrupted. A ``QatNet`` is trained the same way (``models/qat.py``).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from stl_deploy.arch import Architecture
from stl_deploy.checkpoint import read_tensors
from stl_deploy.errors import InputError, LoweringError, Problem
from stl_deploy.files import atomic
from stl_deploy.models.layers import LIF
from stl_deploy.models.net import STLNet
from stl_deploy.models.qat import QatNet

Mode = Literal["synergistic", "synaptic", "threshold"]
Encoding = Literal["bernoulli", "graded", "recorded"]
RESUME_FORMAT = "stl-deploy-training/1"


@dataclass(frozen=True)
class Settings:
    """What determines a training run, beside architecture and data."""

    mode: Mode = "synergistic"
    encoding: Encoding = "bernoulli"
    epochs: int = 24
    batch: int = 128
    lr: float = 2e-3
    seed: int = 0
    threshold: float = 1.0
    flip: bool = False
    data: str = ""  # what it is trained on, so that no other data continues the run
    weight_bits: int | None = None  # of training on integers, with the chip, and what it began with
    chip: str = ""
    start: str = ""


@dataclass(frozen=True)
class Epoch:
    """What one epoch reported: mean loss and accuracy on the training images as they were seen."""

    epoch: int
    loss: float
    accuracy: float


def freeze(model: STLNet, mode: Mode) -> list[torch.nn.Parameter]:
    """Mark what ``mode`` learns, and return it. Running statistics of BatchNorm follow in any mode."""
    thresholds = {id(m.thresh) for m in model.modules() if isinstance(m, LIF)}
    for parameter in model.parameters():
        is_threshold = id(parameter) in thresholds
        parameter.requires_grad_(mode == "synergistic" or is_threshold == (mode == "threshold"))
    return [p for p in model.parameters() if p.requires_grad]


def encode(images: Tensor, timesteps: int, encoding: Encoding, rng: torch.Generator) -> Tensor:
    """Images uint8 [N, *shape] to a raster [N, T, *shape]: Bernoulli spikes with P = pixel/255, or
    the pixel itself at every step; what is recorded is a raster already."""
    if encoding == "recorded":
        return images
    steps = images.unsqueeze(1).expand(-1, timesteps, *images.shape[1:])
    if encoding == "graded":
        return steps
    noise = torch.rand(steps.shape, generator=rng, device=images.device)
    return noise < steps.to(noise.dtype) / 255


class Trainer:
    """One run: ``for report in trainer.run(...)`` trains an epoch at a time.

    It begins with ``model``, or with a network of ``arch`` that nothing was learned by.
    """

    def __init__(
        self,
        arch: Architecture,
        settings: Settings,
        device: str = "cpu",
        model: STLNet | None = None,
    ) -> None:
        graded = settings.encoding == "graded"
        if settings.encoding != "recorded" and graded != (arch.input.levels > 1):
            raise InputError(
                Problem(
                    "encoding",
                    f"{settings.encoding} input for a network of {arch.input.levels} input levels",
                )
            )
        torch.manual_seed(settings.seed)
        self.settings = settings
        self.device = device
        self.model = (model or STLNet(arch, threshold=settings.threshold)).to(device)
        self.optimizer = torch.optim.Adam(freeze(self.model, settings.mode), lr=settings.lr)
        self.history: list[Epoch] = []

    def run(
        self,
        images: Tensor,
        labels: Tensor,
        on_batch: Callable[[int, int, float], None] | None = None,
    ) -> Iterator[Epoch]:
        """Train the epochs that are left; ``on_batch(done, total, loss)`` reports progress."""
        images, labels = images.to(self.device), labels.to(self.device)
        for epoch in range(len(self.history), self.settings.epochs):
            self.history.append(self._epoch(epoch, images, labels, on_batch))
            yield self.history[-1]

    def _epoch(
        self,
        epoch: int,
        images: Tensor,
        labels: Tensor,
        on_batch: Callable[[int, int, float], None] | None,
    ) -> Epoch:
        settings = self.settings
        order_rng = np.random.default_rng([settings.seed, epoch])
        rng = torch.Generator(self.device)
        rng.manual_seed(int(order_rng.integers(2**62)))
        order = torch.from_numpy(order_rng.permutation(len(images))).to(self.device)
        batches = torch.split(order, settings.batch)
        self.model.train()
        if isinstance(self.model, QatNet):
            self.model.settle()
        loss_sum = torch.zeros((), device=self.device)
        hits = torch.zeros((), device=self.device)
        for i, index in enumerate(batches):
            self._set_rate((epoch + i / len(batches)) / settings.epochs)
            x = images[index]
            if settings.flip:
                mirrored = torch.rand(len(x), generator=rng, device=self.device) < 0.5
                x = torch.where(mirrored.view(-1, *[1] * (x.dim() - 1)), x.flip(-1), x)
            raster = encode(x, self.model.arch.timesteps, settings.encoding, rng)
            rates = self.model(raster)
            loss = rate_loss(rates, labels[index])
            self.optimizer.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]
            self.optimizer.step()
            loss_sum += loss.detach() * len(index)
            hits += (rates.argmax(1) == labels[index]).sum()
            if on_batch is not None:
                on_batch(i + 1, len(batches), loss.item())
            if not torch.isfinite(loss):
                raise LoweringError(
                    Problem(
                        f"epoch {epoch + 1}", f"the loss is {loss.item()}", "use a smaller --lr"
                    )
                )
        return Epoch(epoch, loss_sum.item() / len(images), hits.item() / len(images))

    def _set_rate(self, progress: float) -> None:
        """Cosine from ``lr`` to zero over the whole run."""
        for group in self.optimizer.param_groups:
            group["lr"] = self.settings.lr * 0.5 * (1 + math.cos(math.pi * progress))

    def trained(self) -> STLNet:
        """The network to keep; of a ``QatNet`` its integers."""
        return self.model.frozen() if isinstance(self.model, QatNet) else self.model

    def save(self, path: Path) -> None:
        """Write everything that a later ``resume`` needs."""
        with atomic(path) as temporary:
            torch.save(
                {
                    "format": RESUME_FORMAT,
                    "arch": self.model.arch.to_dict(),
                    "settings": asdict(self.settings),
                    "history": [asdict(e) for e in self.history],
                    "state_dict": self.model.state_dict(),
                    "optimizer": self.optimizer.state_dict(),
                },
                temporary,
            )

    def resume(self, path: Path) -> None:
        """Continue from ``save``. Raises InputError when it belongs to another run."""
        data: dict[str, Any] = read_tensors(path)
        mine = {
            "format": RESUME_FORMAT,
            "arch": self.model.arch.to_dict(),
            "settings": asdict(self.settings),
        }
        differing = [key for key, value in mine.items() if data.get(key) != value]
        if differing == ["settings"] and isinstance(theirs := data["settings"], dict):
            same = asdict(self.settings)
            differing = [key for key, value in same.items() if theirs.get(key) != value]
        if differing:
            raise InputError(
                Problem(
                    str(path),
                    f"belongs to another run: {', '.join(differing)} differ",
                    "resume with the arguments that the run began with, or delete the file",
                )
            )
        try:
            self.history = [Epoch(**e) for e in data["history"]]
            self.model.load_state_dict(data["state_dict"])
            self.optimizer.load_state_dict(data["optimizer"])
        except (KeyError, TypeError, ValueError, RuntimeError) as error:
            raise InputError(
                Problem(str(path), f"cannot be resumed: {error}", "delete the file")
            ) from None


def rate_loss(rates: Tensor, labels: Tensor) -> Tensor:
    """Squared error of the class rates [batch, K] against one-hot targets, as the official code."""
    target = functional.one_hot(labels, rates.shape[1]).to(rates.dtype)
    return functional.mse_loss(rates, target)
