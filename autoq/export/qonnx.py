"""QONNX files: integers of any width, for hardware generators.

    write_qonnx(graph, quantized)    replace the marks by Quant operators, or remove them
    packed_size(model)               bytes of the file's tensors, each at the width of its Quant

Quant (Pappalardo et al. 2022, QONNX: Representing Arbitrary-Precision Quantized Neural Networks, section 4) rounds a float
tensor to the grid of a scale, a zero point and a width. All tensors, including weights, stay float32. Biases are constants.
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
    """Rewrites one marked graph with Quant operators."""

    def weight(self, source: str, placed: Placed) -> str:
        quantizer = self.quantizer(placed)
        values = self.module.get_parameter(source)
        shape = [1] * values.dim()
        if quantizer.scale.numel() > 1:
            shape[quantizer.axis] = -1
        scale, zero_point = (as_numpy(values).reshape(shape) for values in (quantizer.scale, quantizer.zero_point))
        stored = ((as_numpy(quantizer.to_integer(values)) - zero_point) * scale).astype(np.float32)
        del self.initializers[source]
        return self.quant(self.constant(f"{source}.values", stored), source, scale, zero_point, quantizer)

    def tensor(self, source: str, placed: Placed) -> str:
        quantizer = self.quantizer(placed)
        scale, zero_point = (as_numpy(value.reshape(())) for value in (quantizer.scale, quantizer.zero_point))
        return self.quant(source, f"{placed.quantizer.removeprefix('quantizers.')}.value", scale, zero_point, quantizer)

    def bias(self, name: str, values: Tensor, quantizer: BiasQuantizer) -> None:
        """Store a bias as float values on the accumulator's grid; its integers may exceed 32 bits."""
        self.constant(name, as_numpy(quantizer(values)))

    def quantizer(self, placed: Placed) -> Quantizer:
        quantizer = self.module.get_submodule(placed.quantizer)
        if not isinstance(quantizer, Quantizer):
            raise PolicyError(f"weight '{placed.placement.source}' is stored as float16, expected integers or float32 for QONNX")
        return quantizer

    def quant(self, source: str, name: str, scale: np.ndarray, zero_point: np.ndarray, quantizer: Quantizer) -> str:
        """Add the Quant of a quantizer; a symmetric grid lacks its lowest level (`narrow`)."""
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
    """Write a policy as QONNX, with a Quant at every quantized site.

    Args:
        graph: The marked graph of `export_graph`.
        quantized: The trained network with its quantizers.

    Raises:
        PolicyError: A weight is stored as float16.
    """
    result = rewrite(graph, quantized, QONNXWriter(quantized.module, sites_of(quantized)), {"": OPSET, DOMAIN: VERSION})
    onnx.checker.check_model(result)
    return result


def packed_size(model: Graph) -> int:
    """Bytes of a QONNX file's tensors in packed form.

    Weights count at their Quant's width, rounded up to bytes per tensor; zero points of unsigned integers count one byte each;
    float tensors count as stored. Shapes and widths do not count.
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
