"""Which writer makes the file of a target: one line a format."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from autoq.export.onnx import Graph, write_plain, write_qdq
from autoq.export.qonnx import write_qonnx
from autoq.export.uint8 import write_plain_uint8, write_uint8
from autoq.graph.quantize import Quantized

WRITERS: dict[str, Callable[[Graph, Quantized], Graph]] = {
    "qdq": write_qdq,
    "qdq-integer-clip": partial(write_qdq, clip_integers=True),
    "qdq-uint8": write_uint8,
    "qonnx": write_qonnx,
}
"""Format -> what writes it from the marked graph of `export_graph`.

qdq: QuantizeLinear / DequantizeLinear, a Clip of floats in front of widths below 8 bits, which OpenVINO takes into its
quantization. qdq-integer-clip: the Clip behind QuantizeLinear instead, so that ONNX Runtime finds the layer's result
quantized at once, and runs it on integers. qdq-uint8: 8 bits everywhere, the image and the output among them. qonnx:
Quant operators of any width on float tensors.
"""

PLAIN: dict[str, Callable[[Graph, Quantized], Graph]] = {
    "qdq": write_plain,
    "qdq-integer-clip": partial(write_plain, clip_integers=True),
    "qdq-uint8": write_plain_uint8,
}
"""Of Q/DQ formats, what writes the model before it is rewritten for speed: what a package holds."""
