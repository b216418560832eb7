"""Target `openvino-cpu`: OpenVINO's CPU plugin."""

from __future__ import annotations

import functools
from pathlib import Path

import numpy as np
import openvino

from autoq.targets import Runner
from autoq.targets.pixels import of_pixels


@functools.cache
def core() -> openvino.Core:
    """The only core of this process, which is never destroyed.

    The CPU plugin installs an alternate signal stack and restores the previous one when a core is destroyed. If cores are
    destroyed in another order than created, a freed stack remains installed, and the next signal crashes the process.
    """
    return openvino.Core()


class OpenVINOCPU:
    """Loads ONNX and OpenVINO IR files. Float layers run in float32, not bfloat16, so that latencies are comparable."""

    precision = "f32"

    @staticmethod
    def missing() -> str | None:
        return None

    def load(self, file: bytes | Path, threads: int) -> Runner:
        compiled = core().compile_model(
            core().read_model(file),
            "CPU",
            {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": self.precision, "INFERENCE_NUM_THREADS": threads},
        )

        def run(image: np.ndarray) -> np.ndarray:
            return np.asarray(compiled(image)[0])

        return of_pixels(run) if compiled.input(0).element_type == openvino.Type.u8 else run

    def version(self) -> str:
        return f"OpenVINO {openvino.get_version()}"
