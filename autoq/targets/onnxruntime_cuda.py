"""ONNX Runtime on an NVIDIA GPU.

Its CUDA provider has kernels for QuantizeLinear and DequantizeLinear and none for convolutions of integers, so layers compute
in float32 on values that lie on the integers' grids.
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
"""TF32 rounds products to 10 bits, which is less than sums of integers need."""


class ONNXRuntimeCUDA:
    """Loads ONNX files on the first GPU. A time includes the image's way there and the result's way back."""

    @staticmethod
    def missing() -> str | None:
        if PROVIDER not in onnxruntime.get_available_providers():
            return f"this onnxruntime has no {PROVIDER}; type pip uninstall onnxruntime && pip install onnxruntime-gpu"
        return None if _starts() else f"{PROVIDER} does not start here; see with nvidia-smi that there is a GPU, CUDA and cuDNN"

    def load(self, file: bytes | Path, threads: int) -> Runner:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads  # of what the processor is left with
        return runner(file, options, providers=[(PROVIDER, OPTIONS)], enable_fallback=0)

    def version(self) -> str:
        return f"ONNX Runtime {onnxruntime.__version__} CUDA"


@functools.cache
def _starts() -> bool:
    """Whether the provider takes a network; where its libraries or the GPU are missing ONNX Runtime goes on without it."""
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1]) for name in ("x", "y")]
    graph = helper.make_graph([helper.make_node("Abs", ["x"], ["y"])], "probe", ends[:1], ends[1:])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4  # what fails is said in one line
    try:
        with as_runtime_errors():
            session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=[PROVIDER], enable_fallback=0)
    except RuntimeError:
        return False
    return PROVIDER in session.get_providers()
