"""An NPU of uint8 per tensor, as far as its numbers go: ONNX Runtime executes the same integers on this processor."""

from __future__ import annotations

from autoq.targets.onnxruntime_cpu import ONNXRuntimeCPU


class NpuUint8(ONNXRuntimeCPU):
    """Loads the file that the NPU's tools take. How long it runs here says nothing of the NPU: latency is modelled."""
