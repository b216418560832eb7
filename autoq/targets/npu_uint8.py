"""Target `npu-uint8`: ONNX Runtime computes the same integers on this CPU as an NPU with per-tensor uint8."""

from __future__ import annotations

from autoq.targets.onnxruntime_cpu import ONNXRuntimeCPU


class NpuUint8(ONNXRuntimeCPU):
    """Loads the file that the NPU's tools accept. Latency is modelled, as the time on this CPU is not that of the NPU."""
