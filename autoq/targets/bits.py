"""Integers of any width, for research on hardware that does not exist yet: no runtime, no latency, a QONNX file."""

from __future__ import annotations

from pathlib import Path

import onnx

from autoq.errors import InputError
from autoq.targets import Runner


class Bits:
    """Its file is for tools that make or simulate hardware; nothing here executes it."""

    @staticmethod
    def missing() -> str | None:
        return None

    def load(self, file: bytes | Path, threads: int) -> Runner:
        raise InputError("target 'bits' has no runtime; give its QONNX file to a tool that reads QONNX, as the package qonnx")

    def version(self) -> str:
        return f"ONNX {onnx.__version__}"
