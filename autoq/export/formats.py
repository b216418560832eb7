"""The writer of every file format that a target loads."""

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
"""Format -> function that writes it from the marked graph of `export_graph`.

qdq: QuantizeLinear / DequantizeLinear. Widths below 8 bits get a float Clip before QuantizeLinear, which OpenVINO fuses.
qdq-integer-clip: the Clip follows QuantizeLinear, so that ONNX Runtime recognizes the layer's output as quantized and runs
the layer on integers.
qdq-uint8: uint8 everywhere, including the image and the output.
qonnx: Quant operators of any width on float tensors.
"""

PLAIN: dict[str, Callable[[Graph, Quantized], Graph]] = {
    "qdq": write_plain,
    "qdq-integer-clip": partial(write_plain, clip_integers=True),
    "qdq-uint8": write_plain_uint8,
}
"""Q/DQ format -> function that writes the model without the rewrites for speed, as stored in a package."""
