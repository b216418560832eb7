"""A network computed with less time and memory traffic while it trains on a CPU; the same numbers to a few roundings."""

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
"""A vector register's worth of float32: convolution kernels with fewer outputs leave the rest of it idle."""


def empty_image(like: Tensor, shape: tuple[int, int, int, int]) -> Tensor:
    """A tensor [n, c, h, w] with its channels last; no view, so that what comes after may change it in place."""
    return torch.empty(shape, dtype=like.dtype, device=like.device, memory_format=torch.channels_last)


class _PReLU(torch.autograd.Function):
    """PReLU with one slope. torch's own backward works value by value; this one in vectors."""

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
        of_slope = torch.dot(in_memory_order(gradient).float(), in_memory_order(below).float()).reshape(slope.shape)
        return torch.ops.aten.leaky_relu_backward(gradient, x, slope.item(), False), of_slope


def prelu(x: Tensor, slope: Tensor) -> Tensor:
    """`torch.nn.functional.prelu` with one slope for all channels."""
    found: Tensor = _PReLU.apply(x, slope)  # type: ignore[no-untyped-call]
    return found


class _PixelShuffle(torch.autograd.Function):
    """Place by place within a block: channels stay together, where torch moves single values."""

    @staticmethod
    def forward(ctx: torch.autograd.function.FunctionCtx, x: Tensor, factor: int) -> Tensor:
        ctx.factor = factor  # type: ignore[attr-defined]
        images, channels, height, width = x.shape
        channels //= factor**2
        blocks = x.permute(0, 2, 3, 1).reshape(images, height, width, channels, factor, factor)
        found = empty_image(x, (images, channels, height * factor, width * factor))
        places = found.permute(0, 2, 3, 1).view(images, height, factor, width, factor, channels)
        for row, column in itertools.product(range(factor), repeat=2):
            places[:, :, row, :, column] = blocks[..., row, column]
        return found

    @staticmethod
    @once_differentiable
    def backward(ctx: torch.autograd.function.FunctionCtx, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        factor: int = ctx.factor  # type: ignore[attr-defined]
        images, channels, height, width = gradients[0].shape
        blocks = gradients[0].permute(0, 2, 3, 1).reshape(images, height // factor, factor, width // factor, factor, channels)
        of_x = blocks.new_empty((images, height // factor, width // factor, channels, factor, factor))
        for row, column in itertools.product(range(factor), repeat=2):
            of_x[..., row, column] = blocks[:, :, row, :, column]
        return of_x.flatten(3).permute(0, 3, 1, 2), None


def pixel_shuffle(x: Tensor, factor: int) -> Tensor:
    """`torch.nn.functional.pixel_shuffle`."""
    found: Tensor = _PixelShuffle.apply(x, factor)  # type: ignore[no-untyped-call]
    return found


def convolve_by_columns(x: Tensor, weight: Tensor, bias: Tensor | None, padding: tuple[int, int]) -> Tensor:
    """A convolution of stride 1 in two steps: each column of the kernel apart, as channels of their own, then their sum, shifted.

    x [n, c, h, w], weight [o, c, kh, kw] -> [n, o, h', w']. The multiplications are the same, but the first step has kw times
    as many output channels, which fills the vector registers where o is small; zeros fill the last one.
    """
    outputs, inputs, height, width = weight.shape
    columns = weight.permute(3, 0, 1, 2).reshape(outputs * width, inputs, height, 1)
    columns = F.pad(columns, (0, 0, 0, 0, 0, 0, 0, -len(columns) % FEW_CHANNELS))
    parts = F.conv2d(x, columns, None, padding=(padding[0], 0))
    found: Tensor = _ShiftedSum.apply(parts, outputs, width, padding[1])  # type: ignore[no-untyped-call]
    return found if bias is None else found + bias.reshape(1, -1, 1, 1)


class _ShiftedSum(torch.autograd.Function):
    """Column k of the output channels, moved by k - padding: [n, >= kw o, h, w] -> [n, o, h, w']."""

    @staticmethod
    def forward(ctx: torch.autograd.function.FunctionCtx, parts: Tensor, outputs: int, width: int, padding: int) -> Tensor:
        ctx.shape, ctx.columns = parts.shape, (outputs, width, padding)  # type: ignore[attr-defined]
        images, _, height, side = parts.shape
        found = empty_image(parts.float(), (images, outputs, height, side + 2 * padding - width + 1)).zero_()
        for column, here, there in _shifts(side, *ctx.columns):  # type: ignore[attr-defined]
            found[:, :, :, there] += parts[:, column, :, here]
        return found.to(parts.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: torch.autograd.function.FunctionCtx, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        images, channels, height, side = ctx.shape  # type: ignore[attr-defined]
        of_parts = gradients[0].new_zeros((images, height, side, channels))
        for column, here, there in _shifts(side, *ctx.columns):  # type: ignore[attr-defined]
            of_parts[:, :, here, column] = gradients[0].permute(0, 2, 3, 1)[:, :, there]
        return of_parts.permute(0, 3, 1, 2), None, None, None


def _shifts(side: int, outputs: int, width: int, padding: int) -> Iterator[tuple[slice, slice, slice]]:
    """For every column of a kernel its channels, and the places that they are read at and added to."""
    for column in range(width):
        move = column - padding
        first, last = max(0, -move), min(side + 2 * padding - width + 1, side - move)
        yield slice(column * outputs, (column + 1) * outputs), slice(first + move, last + move), slice(first, last)


def quicker(module: fx.GraphModule) -> fx.GraphModule:
    """A graph of the same submodules and parameters: PReLUs, pixel shuffles and convolutions of few outputs as above."""
    graph = fx.Graph()
    graph.output(graph.graph_copy(module.graph, {}))
    for node in graph.nodes:
        if node.op == "call_module" and _has_one_slope(module.get_submodule(str(node.target))):
            with graph.inserting_before(node):
                slope = graph.get_attr(f"{node.target}.weight")
            node.op, node.target, node.args = "call_function", prelu, (node.args[0], slope)
        elif node.op == "call_module" and isinstance(shuffle := module.get_submodule(str(node.target)), nn.PixelShuffle):
            node.op, node.target, node.args = "call_function", pixel_shuffle, (node.args[0], shuffle.upscale_factor)
        elif node.target is F.conv2d and (quicker_one := _quicker_convolution(module, node)):
            node.target, node.args = quicker_one
    return fx.GraphModule(module, graph)


def _has_one_slope(module: nn.Module) -> bool:
    return isinstance(module, nn.PReLU) and module.num_parameters == 1


def _quicker_convolution(module: fx.GraphModule, node: fx.Node) -> tuple[Callable[..., Tensor], tuple[Any, ...]] | None:
    """What computes a convolution with less, and its arguments; None where torch's own kernel does best."""
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
    found: Tensor = getattr(module.get_submodule(path), name)
    return found
