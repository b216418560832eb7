"""Convolutions of 3x3 with a quarter of the multiplications: Winograd's minimal filtering, for training on processors.

Lavin and Gray 2016, Fast Algorithms for Convolutional Neural Networks, section 4: F(4x4, 3x3). An output tile of 4x4 comes of
an input tile of 6x6 as A^T ((G w G^T) * (B^T x B)) A, which is linear in both, so the gradients are the transposes.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

TILE = 4
WINDOW = TILE + 2
"""Side of an output tile, and of the input that it sees."""

CHUNK = 1 << 21
"""Transformed values that are worked on at a time: what stays in the cache. More would be paged in anew at every step."""

_INPUT = (
    (4, 0, -5, 0, 1, 0),
    (0, -4, -4, 1, 1, 0),
    (0, 4, -4, -1, 1, 0),
    (0, -2, -1, 2, 1, 0),
    (0, 2, -1, -2, 1, 0),
    (0, 4, 0, -5, 0, 1),
)
_FILTER = (
    (1 / 4, 0, 0),
    (-1 / 6, -1 / 6, -1 / 6),
    (-1 / 6, 1 / 6, -1 / 6),
    (1 / 24, 1 / 12, 1 / 6),
    (1 / 24, -1 / 12, 1 / 6),
    (0, 0, 1),
)
_OUTPUT = (
    (1, 1, 1, 1, 1, 0),
    (0, 1, -1, 2, -2, 0),
    (0, 1, 1, 4, 4, 0),
    (0, 1, -1, 8, -8, 1),
)


def _both_ways(rows: tuple[tuple[float, ...], ...]) -> Tensor:
    """m x m^T of a tile as one matrix on its values, row by row."""
    matrix = torch.tensor(rows, dtype=torch.float64)
    return torch.kron(matrix, matrix).float()


INPUT, FILTER, OUTPUT = _both_ways(_INPUT), _both_ways(_FILTER), _both_ways(_OUTPUT)
"""[36, 36], [36, 9] and [16, 36]: B^T, G and A^T of the paper, on both axes."""

ERROR = 3e-5
"""Share of the largest value that rounding may change: three times what was seen."""

POINTS = WINDOW**2
"""Products that an output tile takes for every pair of channels, where a direct convolution takes 144."""


def convolve(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """A convolution of 3x3 with stride 1 and padding 1. x [n, c, h, w], weight [o, c, 3, 3] -> [n, o, h, w], float32.

    Rounding errors are some times those of a direct convolution; of outputs and gradients within ERROR of their largest value.
    """
    found: Tensor = _Convolution.apply(x, weight, bias)  # type: ignore[no-untyped-call]
    return found


class _Convolution(torch.autograd.Function):
    """Kept for the backward pass: the transformed inputs, chunk by chunk, and the transformed weight."""

    @staticmethod
    def forward(ctx: torch.autograd.function.FunctionCtx, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        images, inputs, height, width = x.shape
        outputs, rows, columns = weight.shape[0], _count(height), _count(width)
        shift = weight.new_zeros(1) if bias is None else bias
        filters = _each(FILTER, weight.permute(0, 2, 3, 1).reshape(outputs, -1, inputs)).transpose(0, 1)
        found = empty_image(x, (images, outputs, TILE * rows, TILE * columns))
        places = found.permute(0, 2, 3, 1).view(images, rows, TILE, columns, TILE, outputs)
        seen = []
        for part in _chunks(x.shape, outputs):
            seen.append(_each(INPUT, _windows(x[part])))
            products = torch.bmm(seen[-1].transpose(0, 1), filters.transpose(1, 2)).transpose(0, 1)
            tiles = torch.baddbmm(shift, OUTPUT.expand(len(products), -1, -1), products)
            places[part] = tiles.view(-1, rows, columns, TILE, TILE, outputs).transpose(2, 3)
        ctx.save_for_backward(filters, *seen)
        ctx.shape = x.shape  # type: ignore[attr-defined]
        whole = found.shape[2:] == x.shape[2:]
        return found if whole else found[:, :, :height, :width].clone(memory_format=torch.channels_last)

    @staticmethod
    @once_differentiable
    def backward(ctx: torch.autograd.function.FunctionCtx, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        filters, *seen = ctx.saved_tensors  # type: ignore[attr-defined]
        images, inputs, height, width = ctx.shape  # type: ignore[attr-defined]
        outputs = filters.shape[1]
        gradient = gradients[0].permute(0, 2, 3, 1)
        of_x = gradient.new_empty((images, height, width, inputs)) if ctx.needs_input_grad[0] else None  # type: ignore[attr-defined]
        of_filters = gradient.new_zeros(filters.shape) if ctx.needs_input_grad[1] else None  # type: ignore[attr-defined]
        for part, own in zip(_chunks(ctx.shape, outputs), seen, strict=True):  # type: ignore[attr-defined]
            of_products = _each(OUTPUT.T, _tiles(gradient[part])).transpose(0, 1)
            if of_filters is not None:
                of_filters.baddbmm_(of_products.transpose(1, 2), own.transpose(0, 1))
            if of_x is not None:
                of_x[part] = _sum_of_windows(_each(INPUT.T, torch.bmm(of_products, filters).transpose(0, 1)), of_x[part].shape)
        of_weight = None if of_filters is None else _each(FILTER.T, of_filters.transpose(0, 1)).view(outputs, 3, 3, inputs)
        of_bias = gradient.sum((0, 1, 2)) if ctx.needs_input_grad[2] else None  # type: ignore[attr-defined]
        return *(None if each is None else each.permute(0, 3, 1, 2) for each in (of_x, of_weight)), of_bias


def empty_image(like: Tensor, shape: tuple[int, int, int, int]) -> Tensor:
    """A tensor [n, c, h, w] with its channels last; no view, so that what comes after may change it in place."""
    return torch.empty(shape, dtype=like.dtype, device=like.device, memory_format=torch.channels_last)


def _each(matrix: Tensor, tiles: Tensor) -> Tensor:
    """A matrix times every tile. [k, m] and [tiles, m, channels] -> [tiles, k, channels]."""
    return torch.bmm(matrix.expand(tiles.shape[0], -1, -1), tiles)


def _chunks(shape: torch.Size, outputs: int) -> Iterator[slice]:
    """Images that are worked on at a time."""
    images, inputs, height, width = shape
    values = POINTS * _count(height) * _count(width) * max(inputs, outputs)
    parts = -(-images // max(1, CHUNK // values))
    step = -(-images // parts)
    for start in range(0, images, step):
        yield slice(start, start + step)


def _count(side: int) -> int:
    """Tiles that cover a side."""
    return -(-side // TILE)


def _windows(x: Tensor) -> Tensor:
    """[n, c, h, w] -> [tiles, 36, c]: what every tile sees, zeros around the image."""
    channels, height, width = x.shape[1:]
    below, right = TILE * _count(height) - height, TILE * _count(width) - width
    padded = F.pad(x, (1, 1 + right, 1, 1 + below)).permute(0, 2, 3, 1)
    windows = padded.unfold(1, WINDOW, TILE).unfold(2, WINDOW, TILE)
    return windows.permute(0, 1, 2, 4, 5, 3).reshape(-1, POINTS, channels)


def _tiles(image: Tensor) -> Tensor:
    """[n, h, w, c] -> [tiles, 16, c]: the image in parts."""
    images, height, width, channels = image.shape
    rows, columns = _count(height), _count(width)
    if (height, width) != (TILE * rows, TILE * columns):
        image = F.pad(image, (0, 0, 0, TILE * columns - width, 0, TILE * rows - height))
    parts = image.reshape(images, rows, TILE, columns, TILE, channels).transpose(2, 3)
    return parts.reshape(-1, TILE**2, channels)


def _sum_of_windows(windows: Tensor, shape: torch.Size) -> Tensor:
    """The transpose of `_windows`: [tiles, 36, c] -> [n, h, w, c], each value the sum of its windows'."""
    images, height, width, channels = shape
    rows, columns = _count(height), _count(width)
    parts = windows.view(images, rows, columns, WINDOW, WINDOW, channels).transpose(2, 3)
    total = windows.new_zeros((images, rows + 1, TILE, columns + 1, TILE, channels))
    over = WINDOW - TILE
    total[:, :rows, :, :columns] += parts[:, :, :TILE, :, :TILE]
    total[:, 1:, :over, :columns] += parts[:, :, TILE:, :, :TILE]
    total[:, :rows, :, 1:, :over] += parts[:, :, :TILE, :, TILE:]
    total[:, 1:, :over, 1:, :over] += parts[:, :, TILE:, :, TILE:]
    return total.view(images, TILE * (rows + 1), TILE * (columns + 1), channels)[:, 1 : height + 1, 1 : width + 1]
