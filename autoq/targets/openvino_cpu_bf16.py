"""OpenVINO on a processor that multiplies bfloat16."""

from __future__ import annotations

from autoq.targets.openvino_cpu import OpenVINOCPU, core


class OpenVINOBFloat16(OpenVINOCPU):
    """As `OpenVINOCPU`, but float layers run in bfloat16; the precision is the whole network's, OpenVINO has none of a layer."""

    precision = "bf16"

    @staticmethod
    def missing() -> str | None:
        if "BF16" in core().get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
            return None
        return "this processor has no instructions for bfloat16 (AVX-512 BF16 or AMX); type --target openvino-cpu"
