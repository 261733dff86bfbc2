"""Training with surrogate gradients in the three modes of the STL-SNN paper.

``synergistic`` learns weights and thresholds, ``synaptic`` weights alone (thresholds stay at their
initial value), ``threshold`` thresholds alone (weights stay random). Everything random comes from
(seed, epoch), so that a run resumed after any epoch ends in the same parameters as one that was
never interrupted. A ``QatNet`` is trained the same way (``models/qat.py``), and so is a network that
several processes train together (``models/parallel.py``).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from stl_deploy.errors import InputError, LoweringError, Problem
from stl_deploy.formats.checkpoint import read_tensors, write_tensors
from stl_deploy.ir.arch import Architecture
from stl_deploy.models import parallel
from stl_deploy.models.net import STLNet

Mode = Literal["synergistic", "synaptic", "threshold"]
Encoding = Literal["bernoulli", "graded", "recorded"]
RESUME_FORMAT = "stl-deploy-training/2"  # 2: rates, thresholds and tests of every epoch
TEST = 2**31  # stands for the epoch where noise for the test images is drawn


@dataclass(frozen=True)
class Settings:
    """What determines a training run, in addition to architecture and data."""

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
    """What one epoch reported: mean loss and accuracy on the training images as they were seen.

    ``rates``: spikes per neuron and step of every LIF layer on the same images. ``thresholds``: mean,
    std (of the population), min and max of every LIF layer's after the epoch. ``test_accuracy`` and
    ``test_rates``: on held-out images after the epoch, where there were any.
    """

    epoch: int
    loss: float
    accuracy: float
    rates: dict[str, float] = field(default_factory=dict)
    thresholds: dict[str, dict[str, float]] = field(default_factory=dict)
    test_accuracy: float | None = None
    test_rates: dict[str, float] | None = None


class Meter:
    """Spikes of every LIF layer of a model while it runs, counted; neurons without a threshold send none."""

    def __init__(self, model: STLNet) -> None:
        self.lifs = {
            spec.name: model.get_submodule(spec.name)
            for spec in model.arch.layers
            if spec.kind == "lif" and spec.fires
        }
        self.thresh = {name: model.get_parameter(f"{name}.thresh") for name in self.lifs}
        self.device = next(model.parameters()).device
        self.spikes: dict[str, Tensor] = {}

    @contextmanager
    def counting(self) -> Iterator[None]:
        """Count what runs inside."""
        self.spikes = {
            name: torch.zeros((), dtype=torch.int64, device=self.device) for name in self.lifs
        }
        handles = [m.register_forward_hook(self._hook(name)) for name, m in self.lifs.items()]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _hook(self, name: str) -> Callable[..., None]:
        def count(_module: object, _inputs: object, out: Tensor | tuple[Tensor, Tensor]) -> None:
            spikes = out[0] if isinstance(out, tuple) else out
            self.spikes[name] += spikes.detach().count_nonzero()

        return count

    def rates(self, steps: int) -> dict[str, float]:
        """Spikes per neuron and step; ``steps`` were seen by all processes together."""
        return {
            name: parallel.total(self.spikes[name]).item() / (steps * thresh.numel())
            for name, thresh in self.thresh.items()
        }

    def thresholds(self) -> dict[str, dict[str, float]]:
        """Mean, std, min and max of every layer."""
        found = {}
        for name, thresh in self.thresh.items():
            theta = thresh.detach().double()
            found[name] = {
                "mean": theta.mean().item(),
                "std": theta.std(correction=0).item(),
                "min": theta.min().item(),
                "max": theta.max().item(),
            }
        return found


def freeze(model: STLNet, mode: Mode) -> list[torch.nn.Parameter]:
    """Mark what ``mode`` learns, and return it. Running statistics of BatchNorm follow in any mode."""
    for name, parameter in model.named_parameters():
        is_threshold = name.endswith(".thresh")
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

    It begins with ``model``, or with a network of ``arch`` that nothing was learned by. In a process
    that torchrun started each does its share of every batch, and all have the same parameters.
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
        if settings.batch < parallel.world():
            what = f"a batch of {settings.batch} for {parallel.world()} processes"
            raise InputError(Problem("--batch", what, "start fewer processes"))
        torch.manual_seed(settings.seed)
        self.settings = settings
        self.device = device
        self.model = (model or STLNet(arch, threshold=settings.threshold)).to(device)
        self.optimizer = torch.optim.Adam(freeze(self.model, settings.mode), lr=settings.lr)
        self.meter = Meter(self.model)
        self.learner = parallel.wrapped(self.model, device)
        self.history: list[Epoch] = []

    def run(
        self,
        images: Tensor,
        labels: Tensor,
        on_batch: Callable[[int, int, float], None] | None = None,
        held_out: tuple[Tensor, Tensor] | None = None,
    ) -> Iterator[Epoch]:
        """Train the epochs that are left; ``on_batch(done, total, loss)`` reports progress.

        ``held_out`` images and labels are looked at after every epoch and change nothing.
        """
        images, labels = images.to(self.device), labels.to(self.device)
        for epoch in range(len(self.history), self.settings.epochs):
            report = self._epoch(epoch, images, labels, on_batch)
            parallel.check_same(f"epoch {epoch + 1}", parallel.digest(self.model))
            if held_out is not None:
                accuracy, rates = self.test(*held_out)
                report = replace(report, test_accuracy=accuracy, test_rates=rates)
            self.history.append(report)
            yield report

    def _epoch(
        self,
        epoch: int,
        images: Tensor,
        labels: Tensor,
        on_batch: Callable[[int, int, float], None] | None,
    ) -> Epoch:
        order_rng = np.random.default_rng([self.settings.seed, epoch])
        rng = self._generator(order_rng)
        # What dropout draws from, in every process another.
        torch.manual_seed(int(order_rng.spawn(parallel.world())[parallel.rank()].integers(2**62)))
        order = torch.from_numpy(order_rng.permutation(len(images))).to(self.device)
        batches = torch.split(order, self.settings.batch)
        self.model.train()
        self.model.settle()
        loss_sum = 0.0
        hits = torch.zeros((), dtype=torch.int64, device=self.device)
        with self.meter.counting():
            for i, index in enumerate(batches):
                self._set_rate((epoch + i / len(batches)) / self.settings.epochs)
                loss, right = self._step(images[index], labels[index], rng)
                if not math.isfinite(loss):
                    raise LoweringError(
                        Problem(f"epoch {epoch + 1}", f"the loss is {loss}", "use a smaller --lr")
                    )
                loss_sum += loss * len(index)
                hits += right
                if on_batch is not None:
                    on_batch(i + 1, len(batches), loss)
        return Epoch(
            epoch,
            loss_sum / len(images),
            parallel.total(hits).item() / len(images),
            self.meter.rates(len(images) * self.model.arch.timesteps),
            self.meter.thresholds(),
        )

    def _step(self, x: Tensor, labels: Tensor, rng: torch.Generator) -> tuple[float, Tensor]:
        """Learn from a batch: its loss, and how many of this process's share were right.

        Noise is drawn for the whole batch, so that it does not depend on the number of processes.
        """
        if self.settings.flip:
            mirrored = torch.rand(len(x), generator=rng, device=self.device) < 0.5
            x = torch.where(mirrored.view(-1, *[1] * (x.dim() - 1)), x.flip(-1), x)
        raster = encode(x, self.model.arch.timesteps, self.settings.encoding, rng)
        mine = parallel.share(len(x))
        target = labels[mine]
        scores = self.learner(raster[mine])
        # Gradients are averaged over processes whatever their shares are; of nothing a mean is none.
        weight = len(target) * parallel.world() / len(x)
        loss = self.model.readout.loss(scores, target) * weight if weight else scores.sum()
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self.optimizer.step()
        mean = parallel.total(loss.detach()).item() / parallel.world()
        return mean, (scores.argmax(1) == target).sum()

    def test(self, images: Tensor, labels: Tensor) -> tuple[float, dict[str, float]]:
        """Accuracy, and spikes per neuron and step of every LIF layer; the same noise every time."""
        rng = self._generator(np.random.default_rng([self.settings.seed, TEST]))
        self.model.settle()  # as the next epoch would, and what is kept
        self.model.eval()
        steps = self.model.arch.timesteps
        hits = torch.zeros((), dtype=torch.int64, device=self.device)
        with self.meter.counting(), torch.no_grad():
            for index in torch.split(torch.arange(len(images)), self.settings.batch):
                x = images[index].to(self.device)
                mine = parallel.share(len(x))
                rates = self.model(encode(x, steps, self.settings.encoding, rng)[mine])
                hits += (rates.argmax(1) == labels[index][mine].to(self.device)).sum()
        accuracy = parallel.total(hits).item() / len(images)
        return accuracy, self.meter.rates(len(images) * steps)

    def _generator(self, seed: np.random.Generator) -> torch.Generator:
        rng = torch.Generator(self.device)
        rng.manual_seed(int(seed.integers(2**62)))
        return rng

    def _set_rate(self, progress: float) -> None:
        """Cosine from ``lr`` to zero over the whole run."""
        for group in self.optimizer.param_groups:
            group["lr"] = self.settings.lr * 0.5 * (1 + math.cos(math.pi * progress))

    def trained(self) -> STLNet:
        """The network to keep; of a ``QatNet`` its integers."""
        return self.model.frozen()

    def save(self, path: Path) -> None:
        """Write everything that a later ``resume`` needs, in the first process and for all."""
        parallel.from_first(lambda: self._write(path))

    def _write(self, path: Path) -> None:
        data = {
            "format": RESUME_FORMAT,
            "arch": self.model.arch.to_dict(),
            "settings": asdict(self.settings),
            "history": [asdict(e) for e in self.history],
            "state_dict": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
        }
        write_tensors(path, data)

    def resume(self, path: Path) -> None:
        """Continue from ``save``, in all processes; only the first reads the file.

        Raises InputError when it belongs to another run, or is not one of this version.
        """
        self._continue(path, parallel.from_first(lambda: self._read(path)))

    def _read(self, path: Path) -> dict[str, Any]:
        try:
            data: dict[str, Any] = read_tensors(path)
        except InputError as error:
            remedy = "delete the file, and training begins anew"
            raise InputError([Problem(p.where, p.what, remedy) for p in error.problems]) from None
        kind = str(data.get("format"))
        if kind != RESUME_FORMAT and kind.startswith(RESUME_FORMAT.split("/")[0] + "/"):
            what = (
                f"is of another version of stl-deploy: {kind!r}, this one reads {RESUME_FORMAT!r}"
            )
            remedy = "finish the run with that version, or delete the file and begin again"
            raise InputError(Problem(str(path), what, remedy))
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
        return data

    def _continue(self, path: Path, data: dict[str, Any]) -> None:
        try:
            history = [Epoch(**e) for e in data["history"]]
            self.model.load_state_dict(data["state_dict"])
            self.optimizer.load_state_dict(data["optimizer"])
            self.history = history
        except (AttributeError, KeyError, TypeError, ValueError, RuntimeError) as error:
            raise InputError(
                Problem(str(path), f"cannot be resumed: {error}", "delete the file")
            ) from None
