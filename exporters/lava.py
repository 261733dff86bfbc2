"""The Lava process graph: a standalone script and the arrays that it hands to Lava's processes.

``lava_network.py`` is a fixed file (templates/lava_network.py). ``lava_params.npz`` holds, for
layer i of the chain, what lava-nc 0.10.0 takes, with populations (C, H, W) as (W, H, C):

- ``i/weight`` int32. Conv: [O, kw, kh, C/groups], spatially flipped because lava/proc/conv/utils.py
  convolves where PyTorch correlates, and times 2^exp because Conv ignores exponents. It does not look
  at the size of weights either, so that it holds w of any precision, all groups in one.
- ``i/weight/g`` int32, for each group g of synapses (``slices.py``) that holds anything, all into the
  same neurons. Dense: 2 w where signs are mixed, because such a matrix keeps even weights only
  (lava/utils/weightutils.py), with ``weight_exp`` = exp - 1, which Dense applies after the sum
  (lava/proc/dense/models.py), so that nothing is lost; w where they are not. Its columns count the
  inputs in the order C, H, W. Sparse: the same of each single connection (lava/proc/sparse/models.py),
  with ``i/row/g`` (neuron) and ``i/column/g`` (input) int32, which count in the order W, H, C.
- ``i/recurrent/g`` int32, where the layer is recurrent: a Dense like the others.
- ``i/vth``, ``i/bias_mant`` int32 of the population's shape.

``network`` is a JSON string with the rest.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stl_deploy.errors import LoweringError
from stl_deploy.exporters import loihi_layers
from stl_deploy.files import atomic
from stl_deploy.files import write as write_file
from stl_deploy.ir import kinds, slices
from stl_deploy.ir.chain import LifLayer
from stl_deploy.ir.network import IntegerNetwork
from stl_deploy.ir.slices import Sign
from stl_deploy.ir.synapses import Shape, Synapses

FORMAT = "stl-deploy-lava/3"


def write(network: IntegerNetwork, folder: Path) -> None:
    """Write lava_network.py and lava_params.npz. Raises LoweringError with all problems."""
    if problems := loihi_layers.problems(network):
        raise LoweringError(problems)
    arrays = params(network)
    script = resources.files("stl_deploy.exporters") / "templates" / "lava_network.py"
    write_file(folder / "lava_network.py", script.read_bytes())
    # numpy gives its zip entries the time 1980-01-01, so equal arrays make equal bytes.
    with atomic(folder / "lava_params.npz") as temporary:
        np.savez_compressed(temporary, **arrays)


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
        arrays |= {f"{i}/{key}": array for key, array in _synapses(layer).items()}
        arrays[f"{i}/vth"] = layer.vth.astype(np.int32).T
        bias = layer.per_neuron(layer.bias_mant.astype(np.int32))
        arrays[f"{i}/bias_mant"] = np.broadcast_to(bias, layer.shape).T
    return arrays


def _description(layer: LifLayer) -> dict[str, Any]:
    return {
        "name": layer.name,
        "kind": layer.synapses.kind,
        "shape": layer.shape,
        "bias_exp": layer.bias_exp,
        "du": layer.du,
        "dv": layer.dv,
        "synapse_groups": [],
        "recurrent_groups": [_group(*group) for group in _own(layer)],
        "reset": layer.reset,
        **_form(layer).describe(layer),
    }


def _group(sign: Sign, exp: int, _: Synapses) -> dict[str, Any]:
    """How Lava is told of a group."""
    return {"sign": sign.upper(), "weight_exp": exp - (sign == "mixed")}


def _feeding(layer: LifLayer) -> list[tuple[Sign, int, Synapses]]:
    """Sign, exponent and weights of each group from the inputs."""
    each = zip(slices.GROUPS[layer.weight_precision], layer.groups(), strict=True)
    return _holding([(group.sign, one.exp, one.synapses) for group, one in each])


def _own(layer: LifLayer) -> list[tuple[Sign, int, Synapses]]:
    """The same from the layer's own neurons, none where it is not recurrent."""
    each = zip(slices.GROUPS[layer.weight_precision], layer.groups(), strict=True)
    return _holding(
        [(group.sign, one.exp, one.recurrent) for group, one in each if one.recurrent is not None]
    )


def _holding(groups: list[tuple[Sign, int, Synapses]]) -> list[tuple[Sign, int, Synapses]]:
    """Those that hold any weight, the first if none does."""
    return [group for group in groups if group[2].weight.any()] or groups[:1]


def _synapses(layer: LifLayer) -> dict[str, Any]:
    """The arrays of a layer's synapses."""
    arrays = _form(layer).arrays(layer)
    for g, (sign, _, held) in enumerate(_own(layer)):
        arrays[f"recurrent/{g}"] = _doubled(sign, held)
    return arrays


def _conv_description(layer: LifLayer) -> dict[str, Any]:
    """Lava wants (W, H)."""
    conv: Any = layer.synapses
    pairs = {key: getattr(conv, key)[::-1] for key in ("stride", "padding", "dilation")}
    return {"groups": conv.groups, **pairs}


def _conv_arrays(layer: LifLayer) -> dict[str, Any]:
    weight = layer.synapses.weight.astype(np.int32)
    return {"weight": weight[:, :, ::-1, ::-1].transpose(0, 3, 2, 1) << layer.exp}


def _group_descriptions(layer: LifLayer) -> dict[str, Any]:
    return {"synapse_groups": [_group(*group) for group in _feeding(layer)]}


def _dense_arrays(layer: LifLayer) -> dict[str, Any]:
    return {
        f"weight/{g}": _doubled(sign, held) for g, (sign, _, held) in enumerate(_feeding(layer))
    }


def _sparse_arrays(layer: LifLayer) -> dict[str, Any]:
    arrays: dict[str, Any] = {}
    held: Any
    for g, (sign, _, held) in enumerate(_feeding(layer)):
        arrays[f"weight/{g}"] = _doubled(sign, held)
        arrays[f"row/{g}"] = _reversed(layer.shape)[held.row]
        arrays[f"column/{g}"] = _reversed(layer.input_shape)[held.column]
    return arrays


@dataclass(frozen=True)
class Form:
    """How one kind of synapses is written: what ``network`` says of a layer, and its arrays."""

    describe: Callable[[LifLayer], dict[str, Any]]
    arrays: Callable[[LifLayer], dict[str, Any]]


SYNAPSES: dict[str, Form] = {
    "conv": Form(_conv_description, _conv_arrays),
    "dense": Form(_group_descriptions, _dense_arrays),
    "sparse": Form(_group_descriptions, _sparse_arrays),
}


def _form(layer: LifLayer) -> Form:
    return kinds.entry(SYNAPSES, layer.synapses.kind, layer.name, loihi_layers.WHO)


def _doubled(sign: Sign, held: Synapses) -> NDArray[np.int32]:
    weight = held.weight.astype(np.int32)
    return 2 * weight if sign == "mixed" else weight


def _reversed(shape: Shape) -> NDArray[np.int32]:
    """The place of each neuron, in C order of ``shape``, when all axes are reversed."""
    place = np.arange(math.prod(shape), dtype=np.int32).reshape(shape[::-1])
    return place.T.reshape(-1)
