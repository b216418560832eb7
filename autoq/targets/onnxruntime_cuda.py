"""Target `onnxruntime-cuda`: ONNX Runtime's CUDA provider on an NVIDIA GPU.

The provider has kernels for QuantizeLinear and DequantizeLinear but no integer convolutions, so layers compute in float32
on quantized values.
"""

from __future__ import annotations

import functools
from pathlib import Path

import onnxruntime
from onnx import TensorProto, helper

from autoq.targets import Runner
from autoq.targets.sessions import as_runtime_errors, runner

PROVIDER = "CUDAExecutionProvider"
OPTIONS = {"use_tf32": "0"}
"""TF32 rounds operands to 10 bits, which is not exact for integer sums."""


class ONNXRuntimeCUDA:
    """Loads ONNX files on the first GPU. Latency includes the transfers to and from the GPU."""

    @staticmethod
    def missing() -> str | None:
        if PROVIDER not in onnxruntime.get_available_providers():
            install = "pip uninstall -y onnxruntime && pip install onnxruntime-gpu"
            return f"onnxruntime has no {PROVIDER}; if there is an NVIDIA GPU, type `{install}`"
        return None if _starts() else f"{PROVIDER} does not start; check the GPU (nvidia-smi), CUDA and cuDNN"

    def load(self, file: bytes | Path, threads: int) -> Runner:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads  # for operators that run on the CPU
        return runner(file, options, providers=[(PROVIDER, OPTIONS)], enable_fallback=0)

    def version(self) -> str:
        return f"ONNX Runtime {onnxruntime.__version__} CUDA"


@functools.cache
def _starts() -> bool:
    """Whether the provider runs a network. ONNX Runtime silently falls back to the CPU if libraries or the GPU are missing."""
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1]) for name in ("x", "y")]
    graph = helper.make_graph([helper.make_node("Abs", ["x"], ["y"])], "probe", ends[:1], ends[1:])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4  # the caller reports failures
    try:
        with as_runtime_errors():
            session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=[PROVIDER], enable_fallback=0)
    except RuntimeError:
        return False
    return PROVIDER in session.get_providers()
