"""Target `bits`: integers of any width for hardware research, exported as QONNX, without latency.

The qonnx package executes such files node by node with its own Quant arithmetic: slow, but suitable for verification.
"""

from __future__ import annotations

import contextlib
import importlib.util
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx

from autoq.errors import InputError
from autoq.targets import Runner

IR_VERSION = 10
"""ONNX IR version of the single-node models that the executor creates; supported by every compatible ONNX Runtime."""


class Bits:
    """Runs QONNX files with the qonnx package, which ignores `threads`."""

    @staticmethod
    def missing() -> str | None:
        return None

    def load(self, file: bytes | Path, threads: int) -> Runner:
        """Load a file. Raises InputError if the qonnx package is not installed."""
        check_executor()
        from qonnx.core.modelwrapper import ModelWrapper
        from qonnx.core.onnx_exec import execute_onnx
        from qonnx.transformation.infer_shapes import InferShapes

        content = file if isinstance(file, bytes) else file.read_bytes()

        def run(image: np.ndarray) -> np.ndarray:
            model = onnx.load_model_from_string(content)
            for dim, size in zip(model.graph.input[0].type.tensor_type.shape.dim, image.shape, strict=True):
                dim.dim_value = size
            model.graph.output[0].type.tensor_type.ClearField("shape")
            with _older_models():
                wrapped = ModelWrapper(model).transform(InferShapes())
                return np.asarray(execute_onnx(wrapped, {model.graph.input[0].name: image})[model.graph.output[0].name])

        return run

    def version(self) -> str:
        return f"ONNX {onnx.__version__}"


def check_executor() -> None:
    """Raise InputError if the qonnx package is not installed."""
    if importlib.util.find_spec("qonnx") is None:
        raise InputError("QONNX files need the package qonnx, which is not installed; type `pip install 'autoq[qonnx]'`")


@contextlib.contextmanager
def _older_models() -> Iterator[None]:
    """Make the executor create models of an older IR version, as ONNX Runtime may not support onnx's newest one."""
    newest = onnx.IR_VERSION
    onnx.IR_VERSION = IR_VERSION  # type: ignore[assignment]
    try:
        yield
    finally:
        onnx.IR_VERSION = newest
