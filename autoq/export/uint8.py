"""Q/DQ files that take and give the 8 bits of an image: everything between them is uint8, too.

    write_plain_uint8(graph, quantized)    the policy, as a package holds it
    write_uint8(graph, quantized)          the same, as a runtime loads it

The image is dequantized instead of quantized, and the network's output is quantized and left so.
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
        """Names of the scale and the zero point of images, as constants."""
        quantizer = self.module.get_submodule(placed.quantizer)
        assert isinstance(quantizer, Quantizer)
        scale, zero_point = (as_numpy(each.reshape(())) for each in (quantizer.scale, quantizer.zero_point))
        return [self.constant(f"{name}.scale", scale), self.constant(f"{name}.zero_point", zero_point.astype("uint8"))]


def write_plain_uint8(graph: Graph, quantized: Quantized) -> Graph:
    """The policy in ONNX: `graph` (from `export_graph`) with the integers of `quantized`, uint8 images in and out.

    A network that gives float, as the one that others are compared with, takes and gives float32. Raises PolicyError as
    `write_plain` for that one.
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
    """The policy's file, as a runtime loads it."""
    return for_runtime(write_plain_uint8(graph, quantized), weight_widths(quantized))


def _quantize_output(model: Graph, grid: list[str]) -> None:
    """Put a QuantizeLinear behind what makes the output: in front of a shuffle of pixels and in the place of a clip to
    [0, 1], which it does itself, so that the layer before them is quantized at once and becomes an integer kernel.
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
    place = nodes.index(last) + (not shuffled)
    nodes.insert(place, helper.make_node("QuantizeLinear", [source, *grid], [integers], name=integers))
    del model.graph.node[:]
    model.graph.node.extend(_read(nodes))


def _number(name: str, made_by: Mapping[str, onnx.NodeProto]) -> float | None:
    """A constant number as the exporter writes it, also behind casts; None for anything else."""
    node = made_by.get(name)
    while node is not None and node.op_type in ("Cast", "CastLike"):
        node = made_by.get(node.input[0])
    constants = node.attribute if node is not None and node.op_type == "Constant" else ()
    return next((attribute.f for attribute in constants if attribute.name == "value_float"), None)


def _read(nodes: Sequence[onnx.NodeProto]) -> list[onnx.NodeProto]:
    """Those whose results another one or the user reads."""
    wanted, kept = {OUTPUT}, list[onnx.NodeProto]()
    for node in reversed(nodes):
        if wanted.intersection(node.output):
            wanted.update(node.input)
            kept.insert(0, node)
    return kept
