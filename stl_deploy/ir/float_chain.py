"""For the rooms that still read a chain: a float network as layers. To be removed."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from stl_deploy.ir.float_neurons import FloatNeurons
from stl_deploy.ir.floats import FloatNetwork, Way, Weights, Window
from stl_deploy.ir.synapses import Geometry, Shape

Float = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class FloatLayer:
    """A population and what leads to it.

    Attributes:
        name: of the neurons.
        ways: what the spikes before pass through, first to last.
        neurons: what they arrive at.
        input_shape, shape: of the population before and of this one, without batch and time.
        own, own_name: weights [neurons, neurons] from the population back to it, in the graph's units.
    """

    name: str
    ways: tuple[Way, ...]
    neurons: FloatNeurons
    input_shape: Shape
    shape: Shape
    own: Float | None = None
    own_name: str = ""
    arriving_bias: Float | None = None

    @property
    def kind(self) -> Literal["lif", "or_pool", "other"]:
        """As that of an integer layer; "other" for what no integer layer is."""
        first = self.ways[0] if len(self.ways) == 1 else None
        if isinstance(first, Weights) and self.neurons.has_state:
            return "lif"
        return "or_pool" if isinstance(first, Window) and self._pools(first) else "other"

    def _pools(self, window: Window) -> bool:
        """Whether the neurons fire exactly where an input of their window does."""
        theta = self.neurons.threshold
        alone = not self.neurons.has_state and self.own is None
        return alone and window.tiles and bool(((theta >= 0) & (theta < 1)).all())

    @property
    def weights(self) -> Weights:
        """The weights of a layer of kind "lif"."""
        (way,) = self.ways
        assert isinstance(way, Weights)
        return way

    @property
    def window(self) -> Window:
        """The window of a layer of kind "or_pool"."""
        (way,) = self.ways
        assert isinstance(way, Window)
        return way

    # A layer of kind "lif" whose neurons have the same constants, in the units of v:
    # v = keep * v + (w x + bias), fires where v >= theta.

    @property
    def geometry(self) -> Geometry | None:
        """Where the weights go; None for all-to-all."""
        return self.weights.geometry

    @property
    def gain(self) -> float:
        """What v gains for each unit of the graph's sums."""
        return float(self.neurons.total_gain.flat[0])

    @property
    def keep(self) -> float:
        """What a step leaves of v."""
        return float(self.neurons.keep.flat[0])

    @cached_property
    def weight(self) -> Float:
        """[O, ...] with the gain."""
        return self.weights.weight * self.gain

    @cached_property
    def bias(self) -> Float:
        """[O] with the gain, and the leak of each channel's first neuron."""
        channels = len(self.weight)
        given = self.weights.bias if self.arriving_bias is None else self.arriving_bias
        arriving = np.zeros(channels) if given is None else given
        bias: Float = arriving * self.gain
        if self.neurons.leak.any():
            leak = np.broadcast_to(self.neurons.leak, self.shape).reshape(channels, -1)
            bias = bias + leak[:, 0]
        return bias

    @property
    def theta(self) -> Float:
        """The thresholds, of the population's shape."""
        return self.neurons.theta

    @cached_property
    def recurrent(self) -> Float | None:
        """The weights from the population back to it, with the gain."""
        return None if self.own is None else self.own * self.gain

    def describe(self) -> str:
        """Of a layer of kind "other": the neurons, and what is before them."""
        before = " and ".join(way.kind for way in self.ways) or "nothing"
        return f"it is a {self.neurons.kind} behind {before}"


def _square(way):  # type: ignore[no-untyped-def]
    return np.diag(way.weight.reshape(-1)) if way.kind == "one_to_one" else way.weight


def layers_of(network: FloatNetwork) -> tuple[FloatLayer, ...]:
    """The layers of a float network that is a chain."""
    layers = []
    (before,) = network.inputs
    for p in network.populations:
        own = [c for c in network.into(p.name) if c.source == p.name]
        (feed,) = (c for c in network.into(p.name) if c.source != p.name)
        if feed.source != before or feed.delay or len(own) > 1 or any(c.delay != 1 for c in own):
            raise ValueError(f"{p.name}: not a chain")
        channels = p.shape[0]
        bias = np.broadcast_to(p.bias, p.shape).reshape(channels, -1)[:, 0].copy()
        layers.append(
            FloatLayer(
                p.name,
                (feed.way,),
                p.neurons,
                network.shape(before),
                p.shape,
                _square(own[0].way) if own else None,
                own[0].name if own else "",
                bias,
            )
        )
        before = p.name
    return tuple(layers)
