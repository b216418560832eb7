"""Q/DQ files with uint8 images as input and output, and uint8 tensors in between.

    write_plain_uint8(graph, quantized)    write the policy as stored in a package
    write_uint8(graph, quantized)          write the policy for a runtime

The input image is dequantized instead of quantized; the output is quantized and not dequantized.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import onnx
from onnx import TensorProto, helper

from autoq.export.onnx import (
    INPUT,
    OPSET,
    OUTPUT,
    Graph,
    Writer,
    as_numpy,
    for_runtime,
    rewrite,
    sites_of,
    weight_widths,
    write_plain,
)
from autoq.graph.quantize import Placed, Quantized
from autoq.quantizers.base import Quantizer


class Uint8Writer(Writer):
    """Rewrites one marked graph whose input is uint8."""

    def tensor(self, source: str, placed: Placed) -> str:
        if source != INPUT:
            return super().tensor(source, placed)
        name = placed.quantizer.removeprefix("quantizers.")
        return self.add("DequantizeLinear", [INPUT, *self.grid(placed, name)], f"{name}.value")

    def grid(self, placed: Placed, name: str) -> list[str]:
        """Store the scale and the zero point of an image and return their names."""
        quantizer = self.module.get_submodule(placed.quantizer)
        assert isinstance(quantizer, Quantizer)
        scale, zero_point = (as_numpy(value.reshape(())) for value in (quantizer.scale, quantizer.zero_point))
        return [self.constant(f"{name}.scale", scale), self.constant(f"{name}.zero_point", zero_point.astype("uint8"))]


def write_plain_uint8(graph: Graph, quantized: Quantized) -> Graph:
    """Write a policy as Q/DQ ONNX with uint8 images.

    A network without a quantized output, such as the float reference, is written with float32 images.

    Args:
        graph: The marked graph of `export_graph`.
        quantized: The trained network with its quantizers.

    Raises:
        PolicyError: As `write_plain`, for a network with float32 images.
    """
    of_site = sites_of(quantized)
    output = next((placed for placed in quantized.placed if placed.placement.sites[0].role == "output"), None)
    if output is None:
        return write_plain(graph, quantized)
    writer = Uint8Writer(quantized.module, of_site)
    grid = writer.grid(output, OUTPUT)
    model = rewrite(graph, quantized, writer, {"": OPSET})
    _quantize_output(model, grid)
    for image in (*model.graph.input, *model.graph.output):
        image.type.tensor_type.elem_type = TensorProto.UINT8
    return model


def write_uint8(graph: Graph, quantized: Quantized) -> Graph:
    """Write the policy's file for a runtime."""
    return for_runtime(write_plain_uint8(graph, quantized), weight_widths(quantized))


def _quantize_output(model: Graph, grid: list[str]) -> None:
    """Quantize the output. QuantizeLinear goes before a pixel shuffle and replaces a clip to [0, 1], which it implies, so that
    it directly follows the last layer and the layer becomes an integer kernel.
    """
    nodes: list[onnx.NodeProto] = list(model.graph.node)
    made_by = {name: node for node in nodes for name in node.output}
    last, integers = made_by[OUTPUT], f"{OUTPUT}.integer"
    shuffled = last.op_type == "DepthToSpace"
    if shuffled:
        source, last.input[0] = last.input[0], integers
    else:
        source = last.output[0] = f"{OUTPUT}.value"
        made_by[source], integers = last, OUTPUT
    before = made_by[source]
    if before.op_type == "Clip" and [_number(name, made_by) for name in before.input[1:]] == [0, 1]:
        source = before.input[0]
    position = nodes.index(last) + (not shuffled)
    nodes.insert(position, helper.make_node("QuantizeLinear", [source, *grid], [integers], name=integers))
    del model.graph.node[:]
    model.graph.node.extend(_read(nodes))


def _number(name: str, made_by: Mapping[str, onnx.NodeProto]) -> float | None:
    """A constant number as the exporter writes it, also through casts; None for anything else."""
    node = made_by.get(name)
    while node is not None and node.op_type in ("Cast", "CastLike"):
        node = made_by.get(node.input[0])
    constants = node.attribute if node is not None and node.op_type == "Constant" else ()
    return next((attribute.f for attribute in constants if attribute.name == "value_float"), None)


def _read(nodes: Sequence[onnx.NodeProto]) -> list[onnx.NodeProto]:
    """The nodes that the output depends on."""
    needed, kept = {OUTPUT}, list[onnx.NodeProto]()
    for node in reversed(nodes):
        if needed.intersection(node.output):
            needed.update(node.input)
            kept.insert(0, node)
    return kept
