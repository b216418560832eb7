"""What no-reference metrics do to an image first, as their published programs do it, float32 where pyiqa has it."""

from __future__ import annotations

import functools
import math
from typing import Literal

import numpy as np
import torch

from autoq.images.data import mirrored

Space = Literal["yiq", "ycbcr"]
"""Colour space of luma. NIQE's official values, which are pyiqa's default, use YIQ; those of PIRM use YCbCr."""

LUMA: dict[Space, tuple[tuple[float, float, float], float]] = {
    "yiq": ((0.299, 0.587, 0.114), 0.0),
    "ycbcr": ((65.481, 128.553, 24.966), 16.0),
}
"""Weights of red, green and blue in [0, 1], and what is added to their sum."""


def rounded_luma(pixels: np.ndarray, space: Space) -> np.ndarray:
    """uint8 RGB [height, width, 3] -> luma of whole levels, float64 [height, width]. Float32 decides about halves."""
    weights, offset = LUMA[space]
    rgb = torch.from_numpy(pixels.copy()).float() / 255
    luma = (rgb[None] @ torch.tensor(weights)[:, None])[0, ..., 0]
    luma = luma * 255 if space == "yiq" else (luma + offset) / 255 * 255
    return luma.round().double().numpy()


@functools.cache
def gaussian(size: int, sigma: float) -> np.ndarray:
    """A Gaussian window that sums to 1, [size], float64."""
    x = np.arange(size) - (size - 1) / 2
    values = np.exp(-(x**2) / (2 * sigma**2))
    window: np.ndarray = values / values.sum()
    return window


def resized(image: np.ndarray, height: int, width: int) -> np.ndarray:
    """Bicubic interpolation (a = -0.5) with antialiasing and mirrored edges, rows first, in float32: float64 [height, width]."""
    image = image.astype(np.float32)
    for axis, size in enumerate((height, width)):
        if image.shape[axis] != size:
            weights, indices = _taps(image.shape[axis], size)
            shape = (-1, 1) if axis == 0 else (1, -1)
            image = sum(np.take(image, index, axis) * weight.reshape(shape) for weight, index in zip(weights, indices, strict=True))
    return image.astype(float)


@functools.lru_cache(maxsize=64)
def _taps(before: int, after: int) -> tuple[np.ndarray, np.ndarray]:
    """(weights, source indices), each [taps, after]."""
    scale = after / before
    shrink = np.float32(min(scale, 1.0))
    taps = math.ceil(4 / min(scale, 1.0)) + 2
    positions = (np.arange(after, dtype=np.float32) + np.float32(0.5)) / np.float32(scale) - np.float32(0.5)
    first = np.floor(positions) - taps // 2 + 1
    x = np.abs(np.stack([positions - first - np.float32(tap) for tap in range(taps)]) * shrink)
    weights = np.where(x <= 1, 1.5 * x**3 - 2.5 * x**2 + 1, np.where(x <= 2, -0.5 * x**3 + 2.5 * x**2 - 4 * x + 2, 0))
    weights = (weights / weights.sum(0, dtype=np.float32)).astype(np.float32)
    return weights, mirrored(first.astype(int) + np.arange(taps)[:, None], before)
