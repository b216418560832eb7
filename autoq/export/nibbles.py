"""Store weights of at most four bits as INT4 tensors, followed by a Cast to int8.

Runtimes fold the Cast of a constant when they load the file, so kernels and integers are the same as with int8 weights.
Without the Cast, OpenVINO and ONNX Runtime would run the layer in float.
"""

from __future__ import annotations

from collections.abc import Mapping

from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

from autoq.export.widths import Width, pack_bits

NIBBLE = Width(4, signed=True)
OPSET = 21
"""The first opset whose Cast supports INT4."""


def store_nibbles(model: ModelProto, widths: Mapping[str, Width]) -> None:
    """Rewrite every int8 weight of at most four bits, in place.

    A weight with unevenly spaced levels stays int8 if its integers need more than four bits.

    Args:
        model: A Q/DQ model.
        widths: Widths of the weights by the names of their initializers.
    """
    narrow = {
        tensor.name: tensor
        for tensor in model.graph.initializer
        if tensor.data_type == TensorProto.INT8
        and tensor.name in widths
        and widths[tensor.name].bits <= NIBBLE.bits
        and NIBBLE.holds(numpy_helper.to_array(tensor))
    }
    if not narrow:
        return
    nodes: list[NodeProto] = []
    for node in model.graph.node:
        if node.op_type == "DequantizeLinear" and (stored := node.input[0]) in narrow:
            node.input[0] = f"{stored}.int8"
            nodes.append(helper.make_node("Cast", [stored], [node.input[0]], name=node.input[0], to=TensorProto.INT8))
        nodes.append(node)
    for name, tensor in narrow.items():
        content = pack_bits(numpy_helper.to_array(tensor), NIBBLE.bits).tobytes()
        tensor.CopyFrom(helper.make_tensor(name, TensorProto.INT4, tensor.dims, content, raw=True))
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    for imported in model.opset_import:
        if imported.domain == "":
            imported.version = max(imported.version, OPSET)
