"""QONNX files: any width, for tools that make hardware.

    write_qonnx(graph, quantized)    the marks become Quant operators, or nothing
    packed_size(model)               bytes of the file's tensors, each at the width that its Quant says

Quant (Pappalardo et al. 2022, QONNX: Representing Arbitrary-Precision Quantized Neural Networks, section 4) takes a float
tensor, a scale, a zero point and a width, and gives the nearest value of that grid: all tensors, weights too, stay float32.
Biases are constants.
"""

from __future__ import annotations

import numpy as np
import onnx
from onnx import numpy_helper
from torch import Tensor

from autoq.errors import PolicyError
from autoq.export.onnx import OPSET, Graph, Writer, as_numpy, rewrite, sites_of
from autoq.graph.quantize import Placed, Quantized
from autoq.quantizers.base import BiasQuantizer, Quantizer
from autoq.quantizers.functional import integer_range

DOMAIN, VERSION = "qonnx.custom_op.general", 1
ZERO_POINT_BYTES = 1


class QONNXWriter(Writer):
    """Rewrites one marked graph with Quant."""

    def weight(self, source: str, placed: Placed) -> str:
        quantizer = self.quantizer(placed)
        values = self.module.get_parameter(source)
        shape = [1] * values.dim()
        if quantizer.scale.numel() > 1:
            shape[quantizer.axis] = -1
        scale, zero_point = (as_numpy(each).reshape(shape) for each in (quantizer.scale, quantizer.zero_point))
        stored = ((as_numpy(quantizer.to_integer(values)) - zero_point) * scale).astype(np.float32)
        del self.initializers[source]
        return self.quant(self.constant(f"{source}.values", stored), source, scale, zero_point, quantizer)

    def tensor(self, source: str, placed: Placed) -> str:
        quantizer = self.quantizer(placed)
        scale, zero_point = (as_numpy(each.reshape(())) for each in (quantizer.scale, quantizer.zero_point))
        return self.quant(source, f"{placed.quantizer.removeprefix('quantizers.')}.value", scale, zero_point, quantizer)

    def bias(self, name: str, values: Tensor, quantizer: BiasQuantizer) -> None:
        """Values of the accumulators' grid; as integers they may be wider than the 32 bits of other formats."""
        self.constant(name, as_numpy(quantizer(values)))

    def quantizer(self, placed: Placed) -> Quantizer:
        found = self.module.get_submodule(placed.quantizer)
        if not isinstance(found, Quantizer):
            raise PolicyError(f"QONNX holds integers and float32; {placed.placement.source} is stored as float16")
        return found

    def quant(self, source: str, name: str, scale: np.ndarray, zero_point: np.ndarray, quantizer: Quantizer) -> str:
        """A tensor on a quantizer's grid, which is whole or, where it is symmetric, lacks its lowest level."""
        bits, signed = quantizer.quant.bits, quantizer.quant.signed
        assert (quantizer.qmin, quantizer.qmax) == integer_range(bits, signed)
        inputs = [
            source,
            self.constant(f"{name}.scale", scale),
            self.constant(f"{name}.zero_point", zero_point.astype(np.float32)),
            self.constant(f"{bits}.bits", np.array(bits, np.float32)),
        ]
        return self.add("Quant", inputs, name, domain=DOMAIN, signed=int(signed), narrow=int(signed), rounding_mode="ROUND")


def write_qonnx(graph: Graph, quantized: Quantized) -> Graph:
    """The policy's QONNX file: `graph` (from `export_graph`) with the trained tensors of `quantized`, Quant at every site.

    Raises PolicyError for weights that are stored as float16.
    """
    result = rewrite(graph, quantized, QONNXWriter(quantized.module, sites_of(quantized)), {"": OPSET, DOMAIN: VERSION})
    onnx.checker.check_model(result)
    return result


def packed_size(model: Graph) -> int:
    """Bytes of a QONNX file's tensors as a package holds them: weights at their Quant's width, packed per tensor and rounded
    up, a byte a zero point where integers are unsigned, and all else as it is stored. Shapes and widths are none.
    """
    values = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    sizes = {name: array.nbytes for name, array in values.items() if array.dtype == np.float32}
    for node in model.graph.node:
        if node.op_type == "Quant":
            source, _, zero_point, width = node.input
            signed = onnx.helper.get_node_attr_value(node, "signed")
            sizes[zero_point] = 0 if signed else values[zero_point].size * ZERO_POINT_BYTES
            sizes[width] = 0
            if source in values:
                sizes[source] = -(-values[source].size * int(values[width]) // 8)
    return sum(sizes.values())
