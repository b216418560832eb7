"""OpenVINO IR: `model.xml` and `model.bin`."""

from __future__ import annotations

from pathlib import Path

import openvino


def write_ir(file: bytes, path: Path) -> tuple[Path, Path]:
    """Convert an ONNX file to OpenVINO IR without compressing float tensors to 16 bits.

    Args:
        file: Content of the ONNX file.
        path: Output path, ending in .xml.

    Returns:
        Paths of the .xml and .bin files.
    """
    openvino.save_model(openvino.Core().read_model(file), path, compress_to_fp16=False)
    return path, path.with_suffix(".bin")
