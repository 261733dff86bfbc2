"""The datasets that ``--dataset`` knows, and what a network is trained with on each by default.

Where an architecture comes from ``PLIF`` it is that of Fang et al. 2021 (doi:10.1109/ICCV48922.2021.00266;
codes/models.py of https://github.com/fangwei123456/Parametric-Leaky-Integrate-and-Fire-Spiking-Neuron,
``create_conv_sequential`` and ``create_2fc``, with the T, channels, depth and split by number of its
logs). The official code of STL-SNNs has MNIST alone: neither readers nor hyper-parameters of an
event dataset are in it (https://github.com/sunhongze/STL-SNN, params.py). From there come tau = 0.5,
the initial threshold 2, batches of 50 and the rate 1e-3. What has no source says "ours".
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Literal, cast

from stl_deploy.errors import InputError, Problem

if TYPE_CHECKING:
    from stl_deploy.data.binning import Binning
    from stl_deploy.data.events import Listing, Split

Name = Literal["fashion-mnist", "mnist", "nmnist", "dvs128gesture", "cifar10dvs", "shd"]
IMAGES = ("fashion-mnist", "mnist")  # IDX files, stl_deploy/formats/idx.py

CHANNELS = 128  # of a convolution in PLIF's networks

STL = "STL-SNN's code (for MNIST)"
PLIF = "Fang et al. 2021"


@dataclass(frozen=True)
class EventSet:
    """One dataset of events.

    ``sensor`` is (polarity, H, W) or (channels,); ``size`` the H = W, or channels, of a frame by
    default. ``window`` is the time in microseconds that frames cover where ``binning`` is window.
    ``sources`` says where each default comes from.
    """

    title: str
    module: str
    sensor: tuple[int, ...]
    classes: int
    files: str  # what the folder must hold
    published: str
    size: int
    timesteps: int
    binning: Binning
    sources: dict[str, str]
    halvings: int = 0
    linear: str = ""
    window: int = 0
    tau: float = 0.5
    threshold: float = 2.0
    batch: int = 50
    lr: float = 1e-3

    @property
    def remedy(self) -> str:
        """Which files are expected, and where they are to be had."""
        return (
            f"--data needs the files of {self.title}: {self.files}. Nothing is downloaded; "
            f"the dataset is published at {self.published}"
        )

    def listing(self, folder: Path, split: Split) -> Listing:
        """The samples of a split in ``folder``. Raises InputError naming the files it needs."""
        if not folder.is_dir():
            raise InputError(Problem(str(folder), "is not a folder", self.remedy))
        module = import_module(f"stl_deploy.data.{self.module}")
        listing = cast("Callable[[Path, Split, str], Listing]", module.listing)
        return listing(folder, split, self.remedy)

    def shape(self, size: int | None) -> tuple[int, ...]:
        """Shape of a frame with ``size``. Raises InputError where that is more than the sensor has."""
        size = size or self.size
        if size > self.sensor[-1]:
            raise InputError(
                Problem("--size", f"{size} is more than the {self.sensor[-1]} of {self.title}")
            )
        return (size,) if len(self.sensor) == 1 else (self.sensor[0], size, size)

    def network(self, shape: tuple[int, ...]) -> str:
        """The default architecture for frames of ``shape``, as ``--arch`` takes it.

        Raises InputError where it cannot halve them.
        """
        if self.linear:
            return self.linear
        side = shape[-1]
        if len(shape) != 3 or shape[1] != side or side % (1 << self.halvings):
            raise InputError(
                Problem(
                    "--arch",
                    f"frames {shape} cannot be halved {self.halvings} times, as the network of "
                    f"{self.title} does",
                    f"name another, or give a --size that is a multiple of {1 << self.halvings}",
                )
            )
        sizes = [side >> i for i in range(1, self.halvings + 1)]
        features = CHANNELS * sizes[-1] ** 2
        return (
            "".join(f"{CHANNELS}C3-BN-LIF-P{size}-" for size in sizes)
            + f"D0.5-FC{features // 4}-LIF-D0.5-FC{10 * self.classes}-LIF-AvgPool10"
        )


def _like_plif(timesteps: str, size: str) -> dict[str, str]:
    return {
        "arch": PLIF,
        "timesteps": timesteps,
        "binning": PLIF,
        "size": size,
        "levels": "ours (they train on counts)",
        "tau": f"{STL}, {PLIF}",
        "threshold": f"{STL}; the same as 1 in {PLIF}, where the input is halved",
        "batch": STL,
        "lr": f"{STL}, {PLIF}",
    }


EVENT_SETS: dict[str, EventSet] = {
    "nmnist": EventSet(
        title="N-MNIST",
        module="nmnist",
        sensor=(2, 34, 34),
        classes=10,
        files="folders Train and Test, in each 0 to 9, in these *.bin",
        published="https://www.garrickorchard.com/datasets/n-mnist",
        size=32,
        timesteps=10,
        binning="count",
        halvings=2,
        sources=_like_plif(PLIF, "ours: 34 cannot be halved twice; they drop a row and a column"),
    ),
    "dvs128gesture": EventSet(
        title="DVS128 Gesture",
        module="gesture",
        sensor=(2, 128, 128),
        classes=11,
        files="trials_to_train.txt, trials_to_test.txt, user*.aedat and user*_labels.csv; or tonic's "
        "ibmGestureTrain and ibmGestureTest",
        published="https://research.ibm.com/interactive/dvsgesture/",
        size=128,
        timesteps=20,
        binning="count",
        halvings=5,
        sources=_like_plif(PLIF, PLIF),
    ),
    "cifar10dvs": EventSet(
        title="CIFAR10-DVS",
        module="cifar10dvs",
        sensor=(2, 128, 128),
        classes=10,
        files="folders airplane to truck, in each *.aedat (or tonic's *.aedat4)",
        published="https://figshare.com/articles/dataset/CIFAR10-DVS_New/4724671",
        size=128,
        timesteps=20,
        binning="count",
        halvings=4,
        sources=_like_plif(PLIF, PLIF),
    ),
    "shd": EventSet(
        title="Spiking Heidelberg Digits",
        module="shd",
        sensor=(700,),
        classes=20,
        files="shd_train.h5 and shd_test.h5",
        published="https://zenkelab.org/resources/spiking-heidelberg-datasets-shd/",
        size=700,
        timesteps=100,
        binning="window",
        window=1_400_000,
        linear="FC256-LIF-FC200-LIF-AvgPool10",
        tau=0.9375,
        threshold=1.0,
        sources={
            "arch": "ours",
            "timesteps": "ours",
            "binning": "ours, window of 1.4 s",
            "size": "all channels",
            "levels": "ours",
            "tau": "ours, 15/16: 217 ms at steps of 14 ms",
            "threshold": "ours",
            "batch": STL,
            "lr": STL,
        },
    ),
}
