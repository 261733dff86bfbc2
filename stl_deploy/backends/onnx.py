"""Backend onnx: ``scan.onnx`` as stl-export writes it, under onnxruntime on this machine's CPU."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import onnxruntime
from numpy.typing import NDArray

from stl_deploy.backends import STALL_S, Steps
from stl_deploy.errors import BackendError, LoweringError, Problem
from stl_deploy.exporters import onnx as exporter
from stl_deploy.exporters import onnx_inputs, onnx_limits
from stl_deploy.ir.network import IntegerNetwork, Raster

ERRORS_ONLY = 3  # onnxruntime's level of log messages


def check(network: IntegerNetwork) -> None:
    """Raise LoweringError with everything that ONNX cannot carry."""
    if found := onnx_limits.problems(network):
        raise LoweringError(found)


def set_up() -> None:
    """Nothing: onnxruntime is installed, or this module would not have been loaded."""


def session(network: IntegerNetwork, _stall_s: float = STALL_S) -> Session:
    """``network`` ready to run. Raises LoweringError and BackendError as ``Session`` does."""
    return Session(network)


class Session:
    """A network in onnxruntime (a ``backends.Session``).

    Raises LoweringError (see ``check``), BackendError when onnxruntime refuses the model.
    """

    def __init__(self, network: IntegerNetwork) -> None:
        check(network)
        self.network = network
        options = onnxruntime.SessionOptions()
        options.log_severity_level = ERRORS_ONLY
        model = exporter.scan(network).SerializeToString()
        try:
            self.session = onnxruntime.InferenceSession(
                model, options, providers=["CPUExecutionProvider"]
            )
        except Exception as error:  # onnxruntime has no base class of its own errors
            raise _failed("does not take the model", error) from None

    def run(self, raster: Raster, _on_step: Steps | None = None) -> dict[str, NDArray[Any]]:
        """Run a raster [N, T, *input_shape], or one by input, all samples at once.

        Returns ``spikes/<population>`` uint8, ``u/<population>`` and ``v/<population>`` int32 (int64 on chip
        ideal) [N, T, *shape], ``votes`` int64 [N, classes] and ``prediction`` int64 [N].

        Raises BackendError when onnxruntime fails.
        """
        names = [output.name for output in self.session.get_outputs()]
        inputs = self.network.inputs
        given = raster if isinstance(raster, Mapping) else dict.fromkeys(inputs, raster)
        feed = {
            onnx_inputs.label(self.network, name): given[name].astype(
                onnx_inputs.kind(port), copy=False
            )
            for name, port in inputs.items()
        }
        try:
            values = self.session.run(names, feed)
        except Exception as error:
            raise _failed("failed", error) from None
        return dict(zip(names, values, strict=True))


def _failed(what: str, error: Exception) -> BackendError:
    first = (str(error).splitlines() or [type(error).__name__])[0]
    remedy = "try the onnxruntime that docs/onnx.md names, or fewer samples (--limit)"
    return BackendError(Problem("onnx", f"onnxruntime {what}: {first}", remedy))
