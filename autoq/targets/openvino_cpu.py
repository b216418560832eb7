"""OpenVINO on the processor it runs on."""

from __future__ import annotations

import functools
from pathlib import Path

import numpy as np
import openvino

from autoq.targets import Runner
from autoq.targets.pixels import of_pixels


@functools.cache
def core() -> openvino.Core:
    """The one core of this process, which never ends.

    With its CPU plugin a core gives signal handlers a stack of its own, and takes it back at its end; of cores that end in another
    order than they began the last leaves a freed stack behind, where the next signal ends the process.
    """
    return openvino.Core()


class OpenVINOCPU:
    """Loads ONNX, and paths of its own format. Float layers run in float32 (not bfloat16), so latencies compare like with like."""

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
