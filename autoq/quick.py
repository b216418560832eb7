"""A network computed with less time and memory traffic while it trains on a CPU; the same numbers to float32 rounding."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from autoq import winograd
from autoq.quantizers.functional import in_memory_order, laid_out_as

FEW_CHANNELS = 8
"""A vector register's worth of float32: convolution kernels with fewer outputs leave the rest of it idle."""

MANY_CHANNELS, MANY_PAIRS = 32, 2048
"""Channels in and out, and products of both, from which on transforms cost less than the multiplications that they save."""


class _PReLU(torch.autograd.Function):
    """PReLU with one slope. torch's own backward works value by value; this one in vectors."""

    @staticmethod
    def forward(ctx: torch.autograd.function.FunctionCtx, x: Tensor, slope: Tensor) -> Tensor:
        ctx.save_for_backward(x, slope)
        return F.leaky_relu(x, slope.item())

    @staticmethod
    def backward(ctx: torch.autograd.function.FunctionCtx, *gradients: Tensor) -> tuple[Tensor, Tensor]:
        x, slope = ctx.saved_tensors  # type: ignore[attr-defined]
        below = x.clamp(max=0)
        gradient = laid_out_as(gradients[0], below)
        of_slope = torch.dot(in_memory_order(gradient).float(), in_memory_order(below).float()).reshape(slope.shape)
        return torch.ops.aten.leaky_relu_backward(gradient, x, slope.item(), False), of_slope


def prelu(x: Tensor, slope: Tensor) -> Tensor:
    """`torch.nn.functional.prelu` with one slope for all channels."""
    found: Tensor = _PReLU.apply(x, slope)  # type: ignore[no-untyped-call]
    return found


def convolve_by_columns(x: Tensor, weight: Tensor, bias: Tensor | None, padding: tuple[int, int]) -> Tensor:
    """A convolution of stride 1 in two steps: each column of the kernel apart, as channels of their own, then their sum, shifted.

    x [n, c, h, w], weight [o, c, kh, kw] -> [n, o, h', w']. The multiplications are the same, but the first step has kw times
    as many output channels, which fills the vector registers where o is small.
    """
    outputs, inputs, height, width = weight.shape
    columns = weight.flip(3).permute(0, 3, 1, 2).reshape(outputs * width, inputs, height, 1)
    parts = F.conv2d(x, columns, None, padding=(padding[0], 0))
    size = (parts.shape[2], parts.shape[3] + 2 * padding[1] - width + 1)
    found = F.fold(parts.flatten(2), size, (1, width), padding=(0, width - 1 - padding[1]))
    return found if bias is None else found + bias.reshape(1, -1, 1, 1)


def quicker(module: fx.GraphModule, native_bfloat16: bool = False) -> fx.GraphModule:
    """A graph of the same submodules and parameters whose PReLUs and convolutions are computed as above, or by Winograd.

    native_bfloat16: whether convolutions run in bfloat16, faster than what is saved in float32.
    """
    graph = fx.Graph()
    graph.output(graph.graph_copy(module.graph, {}))
    for node in graph.nodes:
        if node.op == "call_module" and _has_one_slope(module.get_submodule(str(node.target))):
            with graph.inserting_before(node):
                slope = graph.get_attr(f"{node.target}.weight")
            node.op, node.target, node.args = "call_function", prelu, (node.args[0], slope)
        elif node.target is F.conv2d and (quicker_one := _quicker_convolution(module, node, native_bfloat16)):
            node.target, node.args = quicker_one
    return fx.GraphModule(module, graph)


def _has_one_slope(module: nn.Module) -> bool:
    return isinstance(module, nn.PReLU) and module.num_parameters == 1


def _quicker_convolution(
    module: fx.GraphModule, node: fx.Node, native_bfloat16: bool
) -> tuple[Callable[..., Tensor], tuple[Any, ...]] | None:
    """What computes a convolution with less, and its arguments; None where torch's own kernel does best."""
    weight = node.args[1]
    while isinstance(weight, fx.Node) and weight.op == "call_module":
        weight = weight.args[0]  # behind its quantizer
    if not isinstance(weight, fx.Node) or weight.op != "get_attr" or len(node.args) != 7 or node.kwargs:
        return None
    outputs, inputs, height, width = _parameter(module, weight).shape
    stride, padding, dilation, groups = cast(tuple[Any, ...], node.args[3:])
    if (stride, dilation, groups) != ((1, 1), (1, 1), 1) or not isinstance(padding, tuple):
        return None
    if outputs < FEW_CHANNELS <= min(inputs, outputs * width) and padding[1] < width:
        return convolve_by_columns, (*node.args[:3], padding)
    many = min(inputs, outputs) >= MANY_CHANNELS and inputs * outputs >= MANY_PAIRS
    if many and (height, width, *padding) == (3, 3, 1, 1) and not native_bfloat16:
        return winograd.convolve, node.args[:3]
    return None


def _parameter(module: fx.GraphModule, node: fx.Node) -> Tensor:
    path, _, name = str(node.target).rpartition(".")
    found: Tensor = getattr(module.get_submodule(path), name)
    return found
