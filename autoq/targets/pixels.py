"""Adapt networks with uint8 images to the float32 interface of `Runner`."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from autoq.images.pixels import LEVELS
from autoq.targets import Runner


def of_pixels(run: Callable[[np.ndarray], np.ndarray]) -> Runner:
    """Wrap a network of uint8 RGB [1, 3, height, width] -> uint8 [1, 3, scale height, scale width] as a Runner."""

    def converted(image: np.ndarray) -> np.ndarray:
        pixels = np.rint(image * LEVELS).astype(np.uint8)
        return run(pixels).astype(np.float32) / np.float32(LEVELS)

    return converted
