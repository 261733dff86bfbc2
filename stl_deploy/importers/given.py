"""What the user said about a model file on the command line."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    pass


@dataclass(frozen=True)
class Given:
    """What the user said beside the file; None where nothing. ``raster`` is one that will be run."""

    tau: float | None = None
    timesteps: int | None = None
    classes: int | None = None
    dt: float | None = None
    levels: int | None = None
    model_class: str | None = None
    sample_shape: tuple[int, ...] | None = None
    raster: Path | None = None

    @property
    def steps(self) -> int | None:
        """T of a model whose file does not say: what was given, else that of the raster."""
        if self.timesteps is not None or self.raster is None:
            return self.timesteps
        from stl_deploy.formats import raster as rasters

        return rasters.stream(self.raster).shape[1]
