"""Random descriptions whose layers read any before them."""

from __future__ import annotations

from typing import Any

import numpy as np
from pydantic import TypeAdapter

from stl_deploy.ir.arch import INPUT, Architecture, Layer

LAYER: TypeAdapter[Layer] = TypeAdapter(Layer)
SHAPE = (2, 4, 4)


class Drawn:
    """Layers in the making. What arrives at a population is drawn from the input and those before it."""

    def __init__(self, seed: int) -> None:
        self.rng = np.random.default_rng(seed)
        self.layers: list[dict[str, Any]] = []
        self.shapes: dict[str, tuple[int, ...]] = {INPUT: SHAPE}

    def put(self, kind: str, *inputs: str, **fields: Any) -> str:
        """A layer; its name, of which the first letters are those of BatchNorm where it is one."""
        name = f"{'bn' if kind == 'batchnorm' else kind}{len(self.layers)}"
        self.layers.append({"kind": kind, "name": name, "inputs": inputs, **fields})
        spec = LAYER.validate_python(self.layers[-1])
        self.shapes[name] = spec.output_shape(spec.joined([self.shapes[at] for at in inputs]))
        return name

    def conv(self, source: str, channels: int) -> str:
        """A 3x3 convolution, half of all with a BatchNorm behind it."""
        name = self.put("conv", source, channels=channels, kernel=(3, 3), padding=(1, 1))
        return self.put("batchnorm", name) if self.rng.random() < 0.5 else name

    def total(self, parts: list[str]) -> str:
        """The sum of ``parts``; a single one as it is."""
        return self.put("add", *parts) if len(parts) > 1 else parts[0]

    def currents(self, sources: list[str]) -> list[str]:
        """What weights make of ``sources``: of all together, or of each."""
        way = self.rng.random()
        channels = int(self.rng.integers(2, 4))
        if way < 0.3:
            joined = self.put("concat", *sources, sources[0])
            return [self.conv(joined, channels)]
        if way < 0.6 and len({self.shapes[source] for source in sources}) == 1:
            return [self.conv(self.put("add", *sources, sources[0]), channels)]
        return [self.conv(source, channels) for source in sources]

    def architecture(self) -> Architecture:
        """The whole network, with 4 classes."""
        populations: list[str] = []
        for _ in range(int(self.rng.integers(2, 6))):
            known = [INPUT, *populations]
            sources = [str(at) for at in self.rng.choice(known, int(self.rng.integers(1, 4)))]
            parts = self.currents(sources)
            shape = self.shapes[parts[0]]
            parts += [
                at for at in populations if self.shapes[at] == shape and self.rng.random() < 0.3
            ]
            populations.append(self.put("lif", self.total(parts)))
        pools = [self.put("maxpool", populations[-1], kernel=(2, 2))]
        pools += [self.put("avgpool", at, kernel=(4, 4)) for at in populations[:-1]]
        self.put("lif", self.total([self.put("linear", at, features=4) for at in pools]))
        return Architecture.from_dict(
            {"input": {"shape": SHAPE}, "layers": self.layers, "population": 1, "timesteps": 4}
        )
