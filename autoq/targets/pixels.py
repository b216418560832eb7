"""Files that take and give the 8 bits of an image, run as the others are: float32 in [0, 1] in and out."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from autoq.images.pixels import LEVELS
from autoq.targets import Runner


def of_pixels(run: Callable[[np.ndarray], np.ndarray]) -> Runner:
    """run: uint8 RGB [1, 3, height, width] -> uint8 [1, 3, scale height, scale width]."""

    def converted(image: np.ndarray) -> np.ndarray:
        pixels = np.rint(image * LEVELS).astype(np.uint8)
        return run(pixels).astype(np.float32) / np.float32(LEVELS)

    return converted
