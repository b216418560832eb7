"""What ONNX Runtime raises for files and inputs that it does not run: classes of its own, which are no RuntimeErrors."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from onnxruntime.capi import onnxruntime_pybind11_state as compiled

REFUSALS = tuple(each for each in vars(compiled).values() if isinstance(each, type) and issubclass(each, Exception))


@contextlib.contextmanager
def as_runtime_errors() -> Iterator[None]:
    """Raise RuntimeError in their place, as OpenVINO does."""
    try:
        yield
    except REFUSALS as error:
        raise RuntimeError(str(error)) from error
