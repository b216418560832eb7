"""Rewrite a network to train faster on a CPU, with less memory traffic and the same results up to rounding."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch.autograd.function import once_differentiable

from autoq.quantizers.functional import in_memory_order, laid_out_as

FEW_CHANNELS = 8
"""Float32 values per vector register; convolutions with fewer output channels leave part of it idle."""


def empty_image(like: Tensor, shape: tuple[int, int, int, int]) -> Tensor:
    """An uninitialized tensor [n, c, h, w] in channels-last layout; not a view, so it can be changed in place."""
    return torch.empty(shape, dtype=like.dtype, device=like.device, memory_format=torch.channels_last)


class _PReLU(torch.autograd.Function):
    """PReLU with one slope and a vectorized backward pass; torch's is scalar."""

    @staticmethod
    def forward(ctx: torch.autograd.function.FunctionCtx, x: Tensor, slope: Tensor) -> Tensor:
        ctx.save_for_backward(x, slope)
        return F.leaky_relu(x, slope.item())

    @staticmethod
    @once_differentiable
    def backward(ctx: torch.autograd.function.FunctionCtx, *gradients: Tensor) -> tuple[Tensor, Tensor]:
        x, slope = ctx.saved_tensors  # type: ignore[attr-defined]
        below = x.clamp(max=0)
        gradient = laid_out_as(gradients[0], below)
        grad_slope = torch.dot(in_memory_order(gradient).float(), in_memory_order(below).float()).reshape(slope.shape)
        return torch.ops.aten.leaky_relu_backward(gradient, x, slope.item(), False), grad_slope


def prelu(x: Tensor, slope: Tensor) -> Tensor:
    """`torch.nn.functional.prelu` with one slope for all channels."""
    output: Tensor = _PReLU.apply(x, slope)  # type: ignore[no-untyped-call]
    return output


class _PixelShuffle(torch.autograd.Function):
    """Pixel shuffle that moves contiguous channels for each position of a block; torch moves single values."""

    @staticmethod
    def forward(ctx: torch.autograd.function.FunctionCtx, x: Tensor, factor: int) -> Tensor:
        ctx.factor = factor  # type: ignore[attr-defined]
        images, channels, height, width = x.shape
        channels //= factor**2
        blocks = x.permute(0, 2, 3, 1).reshape(images, height, width, channels, factor, factor)
        output = empty_image(x, (images, channels, height * factor, width * factor))
        places = output.permute(0, 2, 3, 1).view(images, height, factor, width, factor, channels)
        for row, column in itertools.product(range(factor), repeat=2):
            places[:, :, row, :, column] = blocks[..., row, column]
        return output

    @staticmethod
    @once_differentiable
    def backward(ctx: torch.autograd.function.FunctionCtx, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        factor: int = ctx.factor  # type: ignore[attr-defined]
        images, channels, height, width = gradients[0].shape
        blocks = gradients[0].permute(0, 2, 3, 1).reshape(images, height // factor, factor, width // factor, factor, channels)
        grad_x = blocks.new_empty((images, height // factor, width // factor, channels, factor, factor))
        for row, column in itertools.product(range(factor), repeat=2):
            grad_x[..., row, column] = blocks[:, :, row, :, column]
        return grad_x.flatten(3).permute(0, 3, 1, 2), None


def pixel_shuffle(x: Tensor, factor: int) -> Tensor:
    """`torch.nn.functional.pixel_shuffle`."""
    output: Tensor = _PixelShuffle.apply(x, factor)  # type: ignore[no-untyped-call]
    return output


def convolve_by_columns(x: Tensor, weight: Tensor, bias: Tensor | None, padding: tuple[int, int]) -> Tensor:
    """Convolution with stride 1 in two steps: one convolution per kernel column, then the sum of the shifted results.

    The first step has kw times as many output channels, which fills the vector registers if o is small.

    Args:
        x: [n, c, h, w].
        weight: [o, c, kh, kw].
        bias: [o].
        padding: (vertical, horizontal) in pixels.

    Returns:
        [n, o, h', w'].
    """
    outputs, inputs, height, width = weight.shape
    columns = weight.permute(3, 0, 1, 2).reshape(outputs * width, inputs, height, 1)
    columns = F.pad(columns, (0, 0, 0, 0, 0, 0, 0, -len(columns) % FEW_CHANNELS))
    parts = F.conv2d(x, columns, None, padding=(padding[0], 0))
    output: Tensor = _ShiftedSum.apply(parts, outputs, width, padding[1])  # type: ignore[no-untyped-call]
    return output if bias is None else output + bias.reshape(1, -1, 1, 1)


class _ShiftedSum(torch.autograd.Function):
    """Sum of the kernel columns' results, column k shifted by k - padding: [n, >= kw o, h, w] -> [n, o, h, w']."""

    @staticmethod
    def forward(ctx: torch.autograd.function.FunctionCtx, parts: Tensor, outputs: int, width: int, padding: int) -> Tensor:
        ctx.shape, ctx.columns = parts.shape, (outputs, width, padding)  # type: ignore[attr-defined]
        images, _, height, side = parts.shape
        output = empty_image(parts.float(), (images, outputs, height, side + 2 * padding - width + 1)).zero_()
        for column, here, there in _shifts(side, *ctx.columns):  # type: ignore[attr-defined]
            output[:, :, :, there] += parts[:, column, :, here]
        return output.to(parts.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: torch.autograd.function.FunctionCtx, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        images, channels, height, side = ctx.shape  # type: ignore[attr-defined]
        grad_parts = gradients[0].new_zeros((images, height, side, channels))
        for column, here, there in _shifts(side, *ctx.columns):  # type: ignore[attr-defined]
            grad_parts[:, :, here, column] = gradients[0].permute(0, 2, 3, 1)[:, :, there]
        return grad_parts.permute(0, 3, 1, 2), None, None, None


def _shifts(side: int, outputs: int, width: int, padding: int) -> Iterator[tuple[slice, slice, slice]]:
    """For every kernel column: its channels, and the source and destination positions."""
    for column in range(width):
        move = column - padding
        first, last = max(0, -move), min(side + 2 * padding - width + 1, side - move)
        yield slice(column * outputs, (column + 1) * outputs), slice(first + move, last + move), slice(first, last)


def quicker(module: fx.GraphModule) -> fx.GraphModule:
    """A graph with the same submodules and parameters and faster PReLUs, pixel shuffles and convolutions with few outputs."""
    graph = fx.Graph()
    graph.output(graph.graph_copy(module.graph, {}))
    for node in graph.nodes:
        if node.op == "call_module" and _has_one_slope(module.get_submodule(str(node.target))):
            with graph.inserting_before(node):
                slope = graph.get_attr(f"{node.target}.weight")
            node.op, node.target, node.args = "call_function", prelu, (node.args[0], slope)
        elif node.op == "call_module" and isinstance(shuffle := module.get_submodule(str(node.target)), nn.PixelShuffle):
            node.op, node.target, node.args = "call_function", pixel_shuffle, (node.args[0], shuffle.upscale_factor)
        elif node.target is F.conv2d and (replacement := _quicker_convolution(module, node)):
            node.target, node.args = replacement
    return fx.GraphModule(module, graph)


def _has_one_slope(module: nn.Module) -> bool:
    return isinstance(module, nn.PReLU) and module.num_parameters == 1


def _quicker_convolution(module: fx.GraphModule, node: fx.Node) -> tuple[Callable[..., Tensor], tuple[Any, ...]] | None:
    """A faster function for a convolution, and its arguments; None if torch's kernel is the best choice."""
    weight = node.args[1]
    while isinstance(weight, fx.Node) and weight.op == "call_module":
        weight = weight.args[0]  # behind its quantizer
    if not isinstance(weight, fx.Node) or weight.op != "get_attr" or len(node.args) != 7 or node.kwargs:
        return None
    outputs, inputs, _, width = _parameter(module, weight).shape
    stride, padding, dilation, groups = cast(tuple[Any, ...], node.args[3:])
    if (stride, dilation, groups) != ((1, 1), (1, 1), 1) or not isinstance(padding, tuple):
        return None
    if outputs < FEW_CHANNELS <= min(inputs, outputs * width) and padding[1] < width:
        return convolve_by_columns, (*node.args[:3], padding)
    return None


def _parameter(module: fx.GraphModule, node: fx.Node) -> Tensor:
    path, _, name = str(node.target).rpartition(".")
    parameter: Tensor = getattr(module.get_submodule(path), name)
    return parameter
