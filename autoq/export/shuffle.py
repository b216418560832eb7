"""Move a convolution from after a pixel shuffle to before it, with the same integer results.

Integer kernels compute output channels in blocks of 16. The last layer of a super-resolution network has 3 output
channels at the highest resolution and wastes most of a block. Before the shuffle (block size b) it has 3 b^2 output
channels at 1 / b of the resolution, with the shuffle's b^2 input channels gathered into its kernel.
"""

from __future__ import annotations

import itertools

import numpy as np
from onnx import ModelProto, NodeProto, helper, numpy_helper

KERNEL_BLOCK = 16
"""Output channels an integer kernel computes at once."""


def move_before_shuffle(model: ModelProto) -> None:
    """Rewrite, in place, every integer convolution that is the only reader of a DepthToSpace and fills less than a block."""
    made_by = {name: node for node in model.graph.node for name in node.output}
    read_by: dict[str, list[NodeProto]] = {}
    for node in model.graph.node:
        for name in node.input:
            read_by.setdefault(name, []).append(node)
    constants = {tensor.name: tensor for tensor in model.graph.initializer}
    for conv in [node for node in model.graph.node if node.op_type == "Conv"]:
        shuffle, weight = made_by.get(conv.input[0]), made_by.get(conv.input[1])
        if shuffle is None or weight is None or shuffle.op_type != "DepthToSpace" or len(read_by[conv.input[0]]) > 1:
            continue
        source = made_by.get(shuffle.input[0])
        if weight.op_type != "DequantizeLinear" or source is None or source.op_type != "DequantizeLinear":
            continue
        block = helper.get_node_attr_value(shuffle, "blocksize")
        integers = numpy_helper.to_array(constants[weight.input[0]])
        if not _fits(conv, integers.shape, block):
            continue
        zero = int(numpy_helper.to_array(constants[weight.input[2]])) if len(weight.input) > 2 else 0
        constants[weight.input[0]].CopyFrom(numpy_helper.from_array(gather_kernel(integers, block, zero), weight.input[0]))
        repeated = [*weight.input[1:], *(made_by[conv.input[2]].input[:2] if len(conv.input) > 2 else ())]
        for name in repeated:
            values = numpy_helper.to_array(constants[name])
            if values.ndim:  # a per-tensor scale is not repeated
                constants[name].CopyFrom(numpy_helper.from_array(np.repeat(values, block**2), name))
        _swap(model, conv, shuffle, integers.shape[2], block)


def _fits(conv: NodeProto, shape: tuple[int, ...], block: int) -> bool:
    """Whether a convolution has few output channels, `same` padding, and no groups, dilation or stride."""
    attributes = {attribute.name: helper.get_attribute_value(attribute) for attribute in conv.attribute}
    outputs, _, height, width = shape
    return (
        outputs * block**2 <= KERNEL_BLOCK
        and height == width
        and height % 2 == 1
        and attributes.get("group", 1) == 1
        and set(attributes.get("strides", [1])) == {1}
        and set(attributes.get("dilations", [1])) == {1}
        and set(attributes.get("pads", [0])) == {height // 2}
    )


def reach(size: int, block: int) -> tuple[int, int]:
    """(pixels before, pixels after) at low resolution that a centred kernel of `size` after the shuffle covers."""
    half = size // 2
    return -(-half // block), (block - 1 + half) // block


def gather_kernel(kernel: np.ndarray, block: int, zero: int = 0) -> np.ndarray:
    """Gather a kernel [out, in, k, k] after a shuffle into [out b^2, in b^2, m, m] before it.

    Args:
        kernel: Integers of the kernel.
        block: Block size b of the shuffle; channels are in DepthToSpace's CRD order.
        zero: The integer that represents zero.
    """
    outputs, inputs, size, _ = kernel.shape
    before, after = reach(size, block)
    side = before + after + 1
    gathered = np.full((outputs, block, block, inputs, block, block, side, side), zero, kernel.dtype)
    for a, b, u, v in itertools.product(range(block), range(block), range(size), range(size)):
        row, r = divmod(a + u - size // 2, block)
        column, s = divmod(b + v - size // 2, block)
        gathered[:, a, b, :, r, s, row + before, column + before] = kernel[:, :, u, v]
    return gathered.reshape(outputs * block**2, inputs * block**2, side, side)


def _swap(model: ModelProto, conv: NodeProto, shuffle: NodeProto, size: int, block: int) -> None:
    before, after = reach(size, block)
    (result,) = conv.output
    conv.input[0] = shuffle.input[0]
    conv.output[0] = f"{result}.before_shuffle"
    for attribute in conv.attribute:
        if attribute.name == "kernel_shape":
            attribute.ints[:] = [before + after + 1] * 2
        elif attribute.name == "pads":
            attribute.ints[:] = [before, before, after, after]
    moved = helper.make_node("DepthToSpace", [conv.output[0]], [result], name=shuffle.name, blocksize=block, mode="CRD")
    nodes = [node for node in model.graph.node if node is not shuffle]
    nodes.insert(nodes.index(conv) + 1, moved)
    del model.graph.node[:]
    model.graph.node.extend(nodes)
