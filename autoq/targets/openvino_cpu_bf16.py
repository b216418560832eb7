"""Target `openvino-cpu-bf16`: OpenVINO on a CPU with bfloat16 instructions."""

from __future__ import annotations

from autoq.targets.openvino_cpu import OpenVINOCPU, core


class OpenVINOBFloat16(OpenVINOCPU):
    """`OpenVINOCPU` with float layers in bfloat16. OpenVINO sets this precision for the network, not per layer."""

    precision = "bf16"

    @staticmethod
    def missing() -> str | None:
        if "BF16" in core().get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
            return None
        return "this CPU has no bfloat16 instructions (AVX-512 BF16 or AMX); type --target openvino-cpu"
