"""Target `onnxruntime-cpu`: ONNX Runtime's CPU provider."""

from __future__ import annotations

from pathlib import Path

import onnxruntime

from autoq.targets import Runner
from autoq.targets.sessions import runner


class ONNXRuntimeCPU:
    """Loads ONNX files. Operators run one at a time on one thread pool, whose threads sleep between frames."""

    providers = ("CPUExecutionProvider",)

    @staticmethod
    def missing() -> str | None:
        return None

    def load(self, file: bytes | Path, threads: int) -> Runner:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
        options.execution_mode = onnxruntime.ExecutionMode.ORT_SEQUENTIAL
        # otherwise the threads of one network spin while the next one is measured
        options.add_session_config_entry("session.force_spinning_stop", "1")
        return runner(file, options, providers=list(self.providers))

    def version(self) -> str:
        return f"ONNX Runtime {onnxruntime.__version__}"
