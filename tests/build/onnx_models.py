"""ONNX models under onnxruntime and ONNX's own reference evaluator, compared with the reference of hw_sim."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray
from onnx.reference import ReferenceEvaluator

from stl_deploy.exporters import onnx as exporter
from stl_deploy.exporters import onnx_inputs
from stl_deploy.hw_sim import reference
from stl_deploy.ir.network import IntegerNetwork, Raster
from stl_deploy.verify import against_reference as agreement

Arrays = dict[str, NDArray[Any]]


def session(model: onnx.ModelProto) -> onnxruntime.InferenceSession:
    return onnxruntime.InferenceSession(
        model.SerializeToString(), providers=["CPUExecutionProvider"]
    )


def named(running: onnxruntime.InferenceSession, feed: Mapping[str, NDArray[Any]]) -> Arrays:
    """The outputs of a session by name."""
    names = [value.name for value in running.get_outputs()]
    return dict(zip(names, running.run(names, feed), strict=True))


def checked(model: onnx.ModelProto) -> onnx.ModelProto:
    """``model``, which ONNX's checker and strict shape inference accept; no shape is a guess."""
    onnx.checker.check_model(model, full_check=True)
    full = onnx.shape_inference.infer_shapes(
        model, check_type=True, strict_mode=True, data_prop=True
    )
    assert full.graph.output == model.graph.output
    return model


def by_step(network: IntegerNetwork, raster: Raster) -> Arrays:
    """What step.onnx gives, [N, T, ...], run step after step from a state of zeros."""
    running = session(checked(exporter.step(network)))
    rasters = {onnx_inputs.label(network, n): x for n, x in network.rasters(raster).items()}
    samples, count = next(iter(rasters.values())).shape[:2]
    kinds = {"uint8": np.uint8, "int16": np.int16, "int32": np.int32, "int64": np.int64}
    state = {
        value.name: np.zeros((samples, *value.shape[1:]), kinds[value.type[7:-1]])
        for value in running.get_inputs()
        if value.name not in rasters
    }
    steps: list[Arrays] = []
    for t in range(count):
        steps.append(named(running, {name: x[:, t] for name, x in rasters.items()} | state))
        state = {name: steps[-1][name.replace("_in/", "/")] for name in state}
    return {name: np.stack([step[name] for step in steps], axis=1) for name in steps[0]}


def compared(
    network: IntegerNetwork, raster: Raster, model: onnx.ModelProto | None = None
) -> agreement.Agreement:
    """Differences of scan.onnx under both tools from the reference.

    Types, the states that only some neurons have, scores and predictions are right.
    """
    model = checked(exporter.scan(network)) if model is None else model
    by_name = raster if isinstance(raster, Mapping) else dict.fromkeys(network.inputs, raster)
    given = {onnx_inputs.label(network, name): values for name, values in by_name.items()}
    want = reference.run(network, raster, states=True)
    evaluator = ReferenceEvaluator(model)
    with np.errstate(all="ignore"):
        other = evaluator.run(None, given)
    total = agreement.Agreement()
    for got in (
        named(session(model), given),
        dict(zip(evaluator.output_names, other, strict=True)),
    ):
        total += agreement.compare(network, want, got)
        same_states(want, got)
        last = want.layers[network.readout.source]
        same(got["scores"], network.readout.scores(last.spikes, last.v), "scores")
        same(got["prediction"], want.predictions, "prediction")
    return total


def same_states(want: reference.Trace, got: Arrays) -> None:
    """Every state is there, with its type, and the same."""
    states = {
        f"{kind}/{name}": values
        for name, did in want.layers.items()
        for kind, values in {"spikes": did.spikes, "u": did.u, "v": did.v, **did.more}.items()
        if values is not None
    }
    assert states.keys() == {n for n in got if "/" in n and n.split("/")[0] not in ("past", "t")}
    for name, values in states.items():
        assert got[name].dtype == values.dtype, name
        same(got[name], values, name)


def same(got: NDArray[Any], want: NDArray[Any], name: str) -> None:
    np.testing.assert_array_equal(got, want, err_msg=name)
