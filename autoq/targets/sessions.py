"""ONNX Runtime sessions as runners."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from onnxruntime.capi import onnxruntime_pybind11_state as compiled

from autoq.targets import Runner
from autoq.targets.pixels import of_pixels

REFUSALS = tuple(kind for kind in vars(compiled).values() if isinstance(kind, type) and issubclass(kind, Exception))
"""ONNX Runtime's exceptions for files and inputs that it cannot run; they are not RuntimeErrors."""


def runner(file: bytes | Path, options: onnxruntime.SessionOptions, **settings: Any) -> Runner:
    """Load a file with float32 or uint8 images. Raises RuntimeError for a rejected file, as OpenVINO does."""
    with as_runtime_errors():
        session = onnxruntime.InferenceSession(file, options, **settings)

    def run(image: np.ndarray) -> np.ndarray:
        with as_runtime_errors():
            return np.asarray(session.run(None, {"input": image})[0])

    return of_pixels(run) if session.get_inputs()[0].type == "tensor(uint8)" else run


@contextlib.contextmanager
def as_runtime_errors() -> Iterator[None]:
    """Convert REFUSALS to RuntimeError."""
    try:
        yield
    except REFUSALS as error:
        raise RuntimeError(str(error)) from error
