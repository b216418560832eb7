"""ONNX Runtime on the processor it runs on."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnxruntime

from autoq.targets import Runner
from autoq.targets.pixels import of_pixels
from autoq.targets.refusals import as_runtime_errors


class ONNXRuntimeCPU:
    """Loads ONNX files: one pool of threads, one operator at a time, whose threads sleep between frames."""

    providers = ("CPUExecutionProvider",)

    @staticmethod
    def missing() -> str | None:
        return None

    def load(self, file: bytes | Path, threads: int) -> Runner:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
        options.execution_mode = onnxruntime.ExecutionMode.ORT_SEQUENTIAL
        # else the threads of one network wait in a busy loop while the next one is measured
        options.add_session_config_entry("session.force_spinning_stop", "1")
        with as_runtime_errors():
            session = onnxruntime.InferenceSession(file, options, providers=list(self.providers))

        def run(image: np.ndarray) -> np.ndarray:
            with as_runtime_errors():
                return np.asarray(session.run(None, {"input": image})[0])

        return of_pixels(run) if session.get_inputs()[0].type == "tensor(uint8)" else run

    def version(self) -> str:
        return f"ONNX Runtime {onnxruntime.__version__}"
