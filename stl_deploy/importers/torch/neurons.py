"""The neurons of a layer as a node, by the library that they are of."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from torch import nn

from stl_deploy.importers.torch import modules, spikingjelly
from stl_deploy.importers.torch.families import family_of
from stl_deploy.importers.torch.modules import Neurons
from stl_deploy.ir.float_neurons import FloatNeurons
from stl_deploy.ir.read_as import ReadAs
from stl_deploy.ir.synapses import Shape

READ_AS: dict[str, Callable[..., ReadAs]] = {
    "snnTorch": modules.read_as,
    "SpikingJelly": spikingjelly.read_as,
}


def neurons(
    name: str,
    module: nn.Module,
    shape: Shape,
    membrane: bool,
    factors: Sequence[float] | None = None,
) -> Neurons:
    """The neurons of the layer ``name``, which may be read out by their ``membrane``.

    ``factors`` multiply what arrives in each step. A module of no library stands for neurons that were made
    here: they never fire and keep nothing, so that v is what arrives.

    Raises LoweringError with everything that cannot be lowered exactly, and ValueError for parameters of
    another shape.
    """
    family = family_of(module)
    if family is None:
        one = np.ones(shape)
        silent = FloatNeurons("lif", one, one, 0 * one, one, 0 * one, one, one, fires=False)
        return Neurons(silent.node(), {})
    if family.name == "SpikingJelly":
        return Neurons(spikingjelly.neuron(name, module, shape, factors), {})
    return modules.neuron(name, module, shape, membrane)
