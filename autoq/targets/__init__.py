"""What a result will run on. This table knows no torch; the implementation is imported when it is used.

To add one: write `autoq/targets/<name>.py` with a class that has the methods of `Target`, add one entry to
TARGETS, run `pytest tests/contracts`.
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

from autoq.config.policy import EVERY_WIDTH, INTEGER_RUNTIME, Formats, Output, Role
from autoq.errors import InputError, unknown
from autoq.targets.model import SYNAPTICS, LatencyModel

if TYPE_CHECKING:
    import numpy as np

FileFormat = Literal["qdq", "qdq-integer-clip", "qdq-uint8", "qonnx"]
"""What a runtime loads, see `autoq/export/formats.py`."""


class Runner(Protocol):
    """A loaded network: float32 RGB [1, 3, height, width] in, [1, 3, scale height, scale width] out."""

    def __call__(self, image: np.ndarray) -> np.ndarray: ...


class Target(Protocol):
    """A runtime: loads the bytes of its file and says what it is. missing: why it does not run here, None where it does."""

    @staticmethod
    def missing() -> str | None: ...

    def load(self, file: bytes | Path, threads: int) -> Runner: ...

    def version(self) -> str: ...


@dataclass(frozen=True)
class TargetInfo:
    """Facts. package: what its implementation imports, and `pip install` finds; wheel: what it finds it in, if named otherwise.

    formats: what each role may be. integer_bits: the widest integer it executes; what is wider is stored as float16 or stays
    float. fused_sums: whether a sum is computed in the accumulators of the layer before it. file: the format it loads.
    latency: how it is measured; empty where it is not offered. integers, size_only: in words, what runs on integers and
    what is stored narrower than it runs. output: what networks take and give there, images as float32 or as uint8. model:
    what latency is computed from where it is not measured. overflows: whether it has int8 kernels that are exact with weights of
    `processor.exact_weight_bits` only. bfloat16: whether float layers and sums compute in it. executes: whether its runtime runs
    a file fast enough to judge every trial by it.
    """

    location: str
    package: str
    formats: Mapping[Role, Formats]
    integer_bits: int
    fused_sums: bool
    file: FileFormat
    latency: str
    integers: str
    size_only: str
    meaning: str
    output: Output = "float"
    model: LatencyModel | None = None
    wheel: str = ""
    overflows: bool = False
    bfloat16: bool = False
    executes: bool = True


TARGETS: dict[str, TargetInfo] = {
    "openvino-cpu": TargetInfo(
        location="autoq.targets.openvino_cpu:OpenVINOCPU",
        package="openvino",
        formats=INTEGER_RUNTIME,
        integer_bits=8,
        fused_sums=True,
        file="qdq",
        latency="measured, float layers in float32",
        integers="layers and sums whose operands have 8 bits or fewer",
        size_only="widths below 8 bits run as int8",
        meaning="OpenVINO on this processor: int8 executed, narrower widths run as int8 (size-only), wider ones as float32",
        overflows=True,
    ),
    "openvino-cpu-bf16": TargetInfo(
        location="autoq.targets.openvino_cpu_bf16:OpenVINOBFloat16",
        package="openvino",
        formats=INTEGER_RUNTIME,
        integer_bits=8,
        fused_sums=True,
        file="qdq",
        latency="measured, float layers and the float network in bfloat16",
        integers="layers and sums whose operands have 8 bits or fewer",
        size_only="widths below 8 bits run as int8",
        meaning="OpenVINO on a processor with bfloat16: as openvino-cpu, but what is wider than 8 bits runs as bfloat16",
        overflows=True,
        bfloat16=True,
    ),
    "onnxruntime-cpu": TargetInfo(
        location="autoq.targets.onnxruntime_cpu:ONNXRuntimeCPU",
        package="onnxruntime",
        formats=INTEGER_RUNTIME,
        integer_bits=8,
        fused_sums=False,
        file="qdq-integer-clip",
        latency="measured",
        integers="layers whose result is quantized at once or after a ReLU, and sums; others compute in float between integers",
        size_only="widths below 8 bits run as int8",
        meaning="ONNX Runtime's CPU provider: QDQ int8, narrower widths run as int8 (size-only), wider ones as float32",
        overflows=True,
    ),
    "onnxruntime-cuda": TargetInfo(
        location="autoq.targets.onnxruntime_cuda:ONNXRuntimeCUDA",
        package="onnxruntime",
        formats=INTEGER_RUNTIME,
        integer_bits=8,
        fused_sums=False,
        file="qdq",
        latency="measured, layers in float32 (no TF32), with the image's way to the GPU and back",
        integers="nothing: tensors are quantized and dequantized there, layers and sums compute in float32",
        size_only="integers of every width, 8 bits too, compute as float32",
        meaning="ONNX Runtime's CUDA provider, where there is an NVIDIA GPU: integers are stored, layers compute in float32",
        wheel="onnxruntime-gpu",
    ),
    "npu-uint8": TargetInfo(
        location="autoq.targets.npu_uint8:NpuUint8",
        package="onnxruntime",
        formats={
            "weight": Formats((8,), ("tensor",), (False,)),
            "activation": Formats((8,), ("tensor",), (False,)),
            "skip": Formats((8,), ("tensor",), (False,)),
        },
        integer_bits=8,
        fused_sums=False,
        file="qdq-uint8",
        latency="modelled, not measured: from the time published for XLSR on one NPU and what is slow there",
        integers="everything; the image and the output are uint8, too",
        size_only="",
        meaning="an NPU that has uint8 per tensor and nothing else (Synaptics Dolphin); ONNX Runtime computes its numbers here",
        output="uint8",
        model=SYNAPTICS,
    ),
    "bits": TargetInfo(
        location="autoq.targets.bits:Bits",
        package="onnx",
        formats={
            "weight": Formats(EVERY_WIDTH, ("channel", "tensor"), (True, False)),
            "activation": Formats(EVERY_WIDTH, ("tensor",), (False, True)),
            "skip": Formats(EVERY_WIDTH, ("tensor",), (False, True)),
        },
        integer_bits=16,
        fused_sums=False,
        file="qonnx",
        latency="",
        integers="every layer and sum, at its own width",
        size_only="",
        meaning="integers of any width, for research on hardware: no latency, a QONNX file",
        executes=False,
    ),
}


def target_info(name: str) -> TargetInfo:
    """The table's entry. Raises InputError with the nearest name."""
    if name not in TARGETS:
        raise InputError(unknown("target", name, TARGETS))
    return TARGETS[name]


def why_unusable(name: str) -> str | None:
    """Why a target does not run here, in one line; None where it does."""
    info = target_info(name)
    if importlib.util.find_spec(info.package) is None:
        return f"{info.package} is not installed; type pip install {info.wheel or info.package}"
    found: str | None = _implementation(name).missing()
    return found


def check_usable(name: str) -> None:
    """Raise InputError for a target that does not run here."""
    if (reason := why_unusable(name)) is not None:
        raise InputError(f"target '{name}': {reason}; autoq targets lists what runs here")


def load_target(name: str) -> Target:
    """The target's implementation. Raises InputError where it does not run here."""
    check_usable(name)
    target: Target = _implementation(name)()
    return target


def _implementation(name: str) -> Any:
    module, _, attribute = target_info(name).location.partition(":")
    return getattr(importlib.import_module(module), attribute)
