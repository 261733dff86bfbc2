"""Target ``onnx``: the integer network as a step and in a Scan over time, and the float step.

``step.onnx`` and ``scan.onnx`` hold the integers of model.nir and compute what ``hw_sim`` does, bit for
bit (onnx_step.py); ``float_step.onnx`` is the lowered float graph in float32 (onnx_float.py). All three
carry what they are in ``metadata_props``. docs/onnx.md says how to run them.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import onnx
from onnx import helper

from stl_deploy.errors import LoweringError
from stl_deploy.exporters import Origin, onnx_float, onnx_limits, onnx_step
from stl_deploy.exporters.onnx_graph import IR_VERSION, OPSET
from stl_deploy.files import write as write_file
from stl_deploy.ir.network import IntegerNetwork
from stl_deploy.ir.notes import Diagnostic
from stl_deploy.ir.readouts import Readout
from stl_deploy.version import __version__

FORMAT = "stl-deploy/onnx"
VERSION = 3
VERSIONS: dict[str, Any] = {
    "ir_version": IR_VERSION,
    "opset_imports": [helper.make_opsetid("", OPSET)],
}


def write(network: IntegerNetwork, folder: Path, origin: Origin) -> tuple[Diagnostic, ...]:
    """Write the files into ``folder``, which exists and is empty; what was left out is returned.

    Raises LoweringError with everything that the integers of ONNX cannot carry; nothing is written then.
    """
    if found := onnx_limits.problems(network):
        raise LoweringError(found)
    models = {"step.onnx": step(network, origin), "scan.onnx": scan(network, origin)}
    left_out = onnx_float.notes(origin.graph)
    if origin.graph is not None and not left_out:
        models["float_step.onnx"] = _model(onnx_float.graph(origin.graph), network, origin)
    for name, model in models.items():
        write_file(folder / name, model.SerializeToString(deterministic=True))
    return left_out


def step(network: IntegerNetwork, origin: Origin | None = None) -> onnx.ModelProto:
    """One time step of ``network``. See ``onnx_step.step_graph``."""
    return _model(onnx_step.step_graph(network), network, origin)


def scan(network: IntegerNetwork, origin: Origin | None = None) -> onnx.ModelProto:
    """All time steps of ``network``. See ``onnx_step.scan_graph``."""
    return _model(onnx_step.scan_graph(network), network, origin)


def _model(
    graph: onnx.GraphProto, network: IntegerNetwork, origin: Origin | None
) -> onnx.ModelProto:
    model = helper.make_model(
        graph,
        **VERSIONS,
        producer_name="stl-deploy",
        producer_version=__version__,
    )
    helper.set_model_props(model, _metadata(graph.name, network, origin))
    return model


def _metadata(kind: str, network: IntegerNetwork, origin: Origin | None) -> dict[str, str]:
    """What a reader of the file alone wants to know; every value is a text, most of them JSON."""
    source = None if origin is None else origin.source_sha256
    return {
        "stl_deploy.format": FORMAT,
        "stl_deploy.version": str(VERSION),
        "stl_deploy.model": kind,
        "stl_deploy.chip": network.chip,
        "stl_deploy.timesteps": str(network.timesteps),
        "stl_deploy.inputs": json.dumps(
            {
                name: {"levels": port.levels, "signed": port.signed, "held": port.held}
                for name, port in network.inputs.items()
            }
        ),
        "stl_deploy.readout": json.dumps(_readout(network.readout)),
        # The float value of 64 units of v, for every channel or neuron.
        "stl_deploy.scales": json.dumps(
            {p.name: p.neurons.scale.reshape(-1).tolist() for p in network.weighted}
        ),
        "stl_deploy.source_sha256": source or "",
    }


def _readout(readout: Readout) -> dict[str, Any]:
    """What the scores are computed from; arrays only where the readout has them."""
    said: dict[str, Any] = {
        "source": readout.source,
        "classes": readout.classes,
        "population": readout.population,
        "rule": readout.rule,
    }
    if readout.steps is not None:
        said["steps"] = [int(weight) for weight in readout.steps]
    arrays = {"factors": readout.factors, "matrix": readout.matrix, "offset": readout.offset}
    return said | {name: x.tolist() for name, x in arrays.items() if x is not None}
