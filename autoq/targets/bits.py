"""Integers of any width, for research on hardware that does not exist yet: no latency, a QONNX file.

The package qonnx executes such a file, node by node, Quant by its own arithmetic: for checking its numbers, not for speed.
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
"""Of the models that the executor makes of single nodes: any ONNX Runtime that it can be installed with reads it."""


class Bits:
    """Its file is for tools that make or simulate hardware; here the package qonnx executes it, on threads of its own."""

    @staticmethod
    def missing() -> str | None:
        return None

    def load(self, file: bytes | Path, threads: int) -> Runner:
        """Raises InputError where the package qonnx is missing."""
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
    """Raise InputError where the package is missing that executes QONNX files."""
    if importlib.util.find_spec("qonnx") is None:
        raise InputError("QONNX files are executed by the package qonnx, which is not installed; type pip install 'autoq[qonnx]'")


@contextlib.contextmanager
def _older_models() -> Iterator[None]:
    """The executor wraps nodes in models of onnx's newest version, which ONNX Runtime may not know yet."""
    newest = onnx.IR_VERSION
    onnx.IR_VERSION = IR_VERSION  # type: ignore[assignment]
    try:
        yield
    finally:
        onnx.IR_VERSION = newest
