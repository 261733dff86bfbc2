"""The Lava process graph: a standalone script and the arrays that it hands to Lava's processes.

``lava_network.py`` is a fixed file (templates/lava_network.py). ``lava_params.npz`` holds, for
layer i of the chain, what lava-nc 0.10.0 takes, with populations (C, H, W) as (W, H, C):

- ``i/weight`` int32. Conv: [O, kw, kh, C/groups], spatially flipped because lava/proc/conv/utils.py
  convolves where PyTorch correlates, and times 2^exp because Conv ignores exponents. Dense: 2 w,
  because a matrix of mixed sign keeps even weights only (lava/utils/weightutils.py), with
  ``weight_exp`` = exp - 1, which Dense applies after the sum (lava/proc/dense/models.py), so that
  nothing is lost. Its columns count the inputs in the order C, H, W. Sparse: 2 w of each single
  connection, for the same reason (lava/proc/sparse/models.py), with ``i/row`` (neuron) and
  ``i/column`` (input) int32, which count in the order W, H, C.
- ``i/recurrent`` int32, where the layer hears itself: 2 w, a Dense like the others.
- ``i/vth``, ``i/bias_mant`` int32 of the population's shape.

``network`` is a JSON string with the rest.
"""

from __future__ import annotations

import json
import math
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stl_deploy.errors import LoweringError
from stl_deploy.exporters import loihi_layers
from stl_deploy.network import Conv, IntegerNetwork, LifLayer, Shape, Sparse

FORMAT = "stl-deploy-lava/2"


def write(network: IntegerNetwork, folder: Path) -> None:
    """Write lava_network.py and lava_params.npz. Raises LoweringError with all problems."""
    if problems := loihi_layers.problems(network):
        raise LoweringError(problems)
    script = resources.files("stl_deploy.exporters") / "templates" / "lava_network.py"
    (folder / "lava_network.py").write_bytes(script.read_bytes())
    # numpy gives its zip entries the time 1980-01-01, so equal arrays make equal bytes.
    np.savez_compressed(folder / "lava_params.npz", **params(network))


def params(network: IntegerNetwork) -> dict[str, Any]:
    """The arrays of lava_params.npz."""
    layers = [loihi_layers.lif_form(layer) for layer in network.layers]
    description = {
        "format": FORMAT,
        "chip": network.chip,
        "timesteps": network.timesteps,
        "input_shape": network.input_shape,
        "input_levels": network.input_levels,
        "layers": [_description(layer) for layer in layers],
    }
    arrays: dict[str, Any] = {"network": np.array(json.dumps(description, sort_keys=True))}
    for i, layer in enumerate(layers):
        arrays[f"{i}/weight"] = _weight(layer)
        if isinstance(layer.synapses, Sparse):
            arrays[f"{i}/row"] = _reversed(layer.shape)[layer.synapses.row]
            arrays[f"{i}/column"] = _reversed(layer.input_shape)[layer.synapses.column]
        if layer.recurrent is not None:
            arrays[f"{i}/recurrent"] = 2 * layer.recurrent.weight.astype(np.int32)
        arrays[f"{i}/vth"] = layer.vth.astype(np.int32).T
        bias = layer.per_neuron(layer.bias_mant.astype(np.int32))
        arrays[f"{i}/bias_mant"] = np.broadcast_to(bias, layer.shape).T
    return arrays


def _description(layer: LifLayer) -> dict[str, Any]:
    row: dict[str, Any] = {
        "name": layer.name,
        "kind": layer.synapses.kind,
        "shape": layer.shape,
        "bias_exp": layer.bias_exp,
        "du": layer.du,
        "dv": layer.dv,
        "weight_exp": layer.exp - 1,  # of Dense and Sparse
        "recurrent": layer.recurrent is not None,
        "reset": layer.reset,
    }
    if isinstance(layer.synapses, Conv):
        conv = layer.synapses
        row["groups"] = conv.groups
        # Lava wants (W, H).
        row |= {key: getattr(conv, key)[::-1] for key in ("stride", "padding", "dilation")}
    return row


def _reversed(shape: Shape) -> NDArray[np.int32]:
    """The place of each neuron, in C order of ``shape``, when all axes are reversed."""
    place = np.arange(math.prod(shape), dtype=np.int32).reshape(shape[::-1])
    return place.T.reshape(-1)


def _weight(layer: LifLayer) -> NDArray[np.int32]:
    weight = layer.synapses.weight.astype(np.int32)
    if isinstance(layer.synapses, Conv):
        return weight[:, :, ::-1, ::-1].transpose(0, 3, 2, 1) << layer.exp
    return 2 * weight
