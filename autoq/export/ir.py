"""OpenVINO's own format: a runtime file as `model.xml` and `model.bin`."""

from __future__ import annotations

from pathlib import Path

import openvino


def write_ir(file: bytes, path: Path) -> tuple[Path, Path]:
    """Convert an ONNX file; float tensors keep their 32 bits. path: ends with .xml. Returns what was written."""
    openvino.save_model(openvino.Core().read_model(file), path, compress_to_fp16=False)
    return path, path.with_suffix(".bin")
