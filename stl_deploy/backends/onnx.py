"""The integer network under onnxruntime: ``scan.onnx`` as stl-export writes it, on this machine's CPU."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from stl_deploy.errors import BackendError, LoweringError, Problem
from stl_deploy.ir.network import IntegerNetwork
from stl_deploy.ir.synapses import IntArray

PACKAGES = ("onnx", "onnxruntime")
ERRORS_ONLY = 3  # onnxruntime's level of log messages


def check(network: IntegerNetwork) -> None:
    """Raise InputError without onnxruntime, LoweringError with everything ONNX cannot carry."""
    from stl_deploy import exporters

    exporters.require("backend onnx", PACKAGES, "onnx")
    from stl_deploy.exporters import onnx_limits

    if found := onnx_limits.problems(network):
        raise LoweringError(found)


class Session:
    """A network ready to run.

    Raises InputError, LoweringError (see ``check``), BackendError when onnxruntime refuses the model.
    """

    def __init__(self, network: IntegerNetwork) -> None:
        check(network)
        import onnxruntime

        from stl_deploy.exporters import onnx

        self.network = network
        options = onnxruntime.SessionOptions()
        options.log_severity_level = ERRORS_ONLY
        model = onnx.scan(network).SerializeToString()
        try:
            self.session = onnxruntime.InferenceSession(
                model, options, providers=["CPUExecutionProvider"]
            )
        except Exception as error:  # onnxruntime has no base class of its own errors
            raise _failed("does not take the model", error) from None

    def run(self, raster: IntArray) -> dict[str, NDArray[Any]]:
        """Run a raster [N, T, *input_shape], all samples at once.

        Returns ``spikes/<layer>`` uint8, ``u/<layer>`` and ``v/<layer>`` int32 (int64 on chip ideal)
        [N, T, *shape], ``votes`` int64 [N, classes] and ``prediction`` int64 [N].

        Raises BackendError when onnxruntime fails.
        """
        names = [output.name for output in self.session.get_outputs()]
        try:
            values = self.session.run(names, {"input": raster.astype(np.uint8, copy=False)})
        except Exception as error:
            raise _failed("failed", error) from None
        return dict(zip(names, values, strict=True))


def _failed(what: str, error: Exception) -> BackendError:
    first = (str(error).splitlines() or [type(error).__name__])[0]
    remedy = "try the onnxruntime that docs/onnx.md names, or fewer samples (--limit)"
    return BackendError(Problem("onnx", f"onnxruntime {what}: {first}", remedy))
