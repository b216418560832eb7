"""ONNX Runtime's sessions as runners."""

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

REFUSALS = tuple(each for each in vars(compiled).values() if isinstance(each, type) and issubclass(each, Exception))
"""What it raises for files and inputs that it does not run: classes of its own, which are no RuntimeErrors."""


def runner(file: bytes | Path, options: onnxruntime.SessionOptions, **settings: Any) -> Runner:
    """A file with float32 or uint8 images in and out. Raises RuntimeError for what is refused, as OpenVINO does."""
    with as_runtime_errors():
        session = onnxruntime.InferenceSession(file, options, **settings)

    def run(image: np.ndarray) -> np.ndarray:
        with as_runtime_errors():
            return np.asarray(session.run(None, {"input": image})[0])

    return of_pixels(run) if session.get_inputs()[0].type == "tensor(uint8)" else run


@contextlib.contextmanager
def as_runtime_errors() -> Iterator[None]:
    """Raise RuntimeError in the place of REFUSALS."""
    try:
        yield
    except REFUSALS as error:
        raise RuntimeError(str(error)) from error
