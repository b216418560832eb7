"""The table of deployment targets: runtimes and devices that an exported network runs on.

CONTRIBUTING.md says how to add a target. This module does not import torch; an implementation is imported when it is used.
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
"""File format that a runtime loads, see `autoq/export/formats.py`."""


class Runner(Protocol):
    """A loaded network: float32 RGB [1, 3, height, width] in [0, 1] -> [1, 3, scale height, scale width]."""

    def __call__(self, image: np.ndarray) -> np.ndarray: ...


class Target(Protocol):
    """A runtime that loads and runs exported files."""

    @staticmethod
    def missing() -> str | None:
        """Why the target does not run on this machine; None if it runs."""

    def load(self, file: bytes | Path, threads: int) -> Runner:
        """Load a file, given by its content or path. Raises RuntimeError for a file that the runtime rejects."""

    def version(self) -> str:
        """Name and version of the runtime."""


@dataclass(frozen=True)
class TargetInfo:
    """A target.

    Attributes:
        location: `module:class` of the implementation.
        package: Python package that the implementation imports.
        formats: Formats that each role can have.
        integer_bits: The widest integer that the target executes. Wider tensors are stored as float16 or stay float.
        fused_sums: Whether a sum is computed in the accumulators of the layer before it.
        file: The file format that the target loads.
        latency: How latency is obtained, with the word "modelled" if by `model`; empty if the target has none.
        integers: Description of the operations that run on integers.
        size_only: Description of the widths that reduce size but not latency; empty if there are none.
        meaning: Description of the target.
        output: Whether input and output are images as float32 or as uint8.
        model: Model that computes latency instead of a measurement.
        wheel: Distribution to install, if its name differs from `package`.
        overflows: Whether its int8 kernels are exact only up to `processor.exact_weight_bits` weight bits.
        bfloat16: Whether float layers and sums compute in bfloat16.
        executes: Whether its runtime is fast enough to evaluate every trial.
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
        meaning="OpenVINO on this CPU: integers of up to 8 bits run as int8, wider formats as float32",
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
        meaning="OpenVINO on a CPU with bfloat16: as openvino-cpu, but formats wider than 8 bits run as bfloat16",
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
        integers="sums, and layers whose output is quantized directly or after a ReLU; other layers compute in float",
        size_only="widths below 8 bits run as int8",
        meaning="ONNX Runtime's CPU provider: integers of up to 8 bits run as int8, wider formats as float32",
        overflows=True,
    ),
    "onnxruntime-cuda": TargetInfo(
        location="autoq.targets.onnxruntime_cuda:ONNXRuntimeCUDA",
        package="onnxruntime",
        formats=INTEGER_RUNTIME,
        integer_bits=8,
        fused_sums=False,
        file="qdq",
        latency="measured, layers in float32 (no TF32), including the transfers to and from the GPU",
        integers="none: tensors are quantized and dequantized, layers and sums compute in float32",
        size_only="integers of all widths, including 8 bits, compute as float32",
        meaning="ONNX Runtime's CUDA provider on an NVIDIA GPU: weights are stored as integers, layers compute in float32",
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
        latency="modelled, not measured: derived from the published time of XLSR on one NPU and its slow operations",
        integers="all operations; the image and the output are uint8, too",
        size_only="",
        meaning="an NPU with per-tensor uint8 only (Synaptics Dolphin); ONNX Runtime computes the same numbers on this machine",
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
        integers="all layers and sums, each at its own width",
        size_only="",
        meaning="integers of any width for hardware research, exported as QONNX; no latency",
        executes=False,
    ),
}


def target_info(name: str) -> TargetInfo:
    """The entry of a target. Raises InputError for an unknown name."""
    if name not in TARGETS:
        raise InputError(unknown("target", name, TARGETS))
    return TARGETS[name]


def why_unusable(name: str) -> str | None:
    """Why a target does not run on this machine, in one line; None if it runs."""
    info = target_info(name)
    if importlib.util.find_spec(info.package) is None:
        return f"{info.package} is not installed; type `pip install {info.wheel or info.package}`"
    reason: str | None = _implementation(name).missing()
    return reason


def check_usable(name: str) -> None:
    """Raise InputError for a target that does not run on this machine."""
    if (reason := why_unusable(name)) is not None:
        raise InputError(f"target '{name}': {reason}, or choose a target from `autoq targets`")


def load_target(name: str) -> Target:
    """Create a target's implementation. Raises InputError if the target does not run on this machine."""
    check_usable(name)
    target: Target = _implementation(name)()
    return target


def _implementation(name: str) -> Any:
    module, _, attribute = target_info(name).location.partition(":")
    return getattr(importlib.import_module(module), attribute)
