"""Conversion between 8-bit images and the float tensors of networks."""

from __future__ import annotations

import numpy as np

LEVELS = 255


def to_input(pixels: np.ndarray) -> np.ndarray:
    """uint8 RGB [height, width, 3] -> float32 [1, 3, height, width] in [0, 1]."""
    return np.ascontiguousarray(pixels.transpose(2, 0, 1)[None], dtype=np.float32) / np.float32(LEVELS)


def to_pixels(output: np.ndarray) -> np.ndarray:
    """float32 [3, height, width] -> uint8 [height, width, 3], clipped and rounded."""
    pixels: np.ndarray = np.rint(np.clip(output, 0, 1) * LEVELS).astype(np.uint8).transpose(1, 2, 0)
    return pixels
