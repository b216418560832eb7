"""A picture of what a network changed: the crops where its output differs most from the float network's, side by side."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from autoq.images.data import window_sums
from autoq.trial.context import TrialContext

SIDE = 96
"""Side of a crop in pixels of the output; smaller images are shown whole."""

CROPS, GAP = 4, 4
"""Crops in a picture, each of another image, and white pixels between them."""


def comparison(context: TrialContext, outputs: Sequence[np.ndarray]) -> np.ndarray:
    """The crops with the largest squared difference from the float network's output, uint8 RGB [height, width, 3].

    A crop is a row: the original, if there is one, the float network's output, and the output.

    Args:
        context: The context, for its evaluation images and the float network's outputs.
        outputs: uint8 RGB [height, width, 3] for each evaluation image.
    """
    found = []
    for pair, exact, output in zip(context.pairs, context.float_outputs, outputs, strict=True):
        difference, top, left, side = _worst(exact, output)
        images = [image for image in (pair.high, exact, output) if image is not None]
        crops = [image[top : top + side, left : left + side] for image in images]
        found.append((difference, _spaced(crops, axis=1)))
    found.sort(key=lambda crop: -crop[0])
    widest = max(row.shape[1] for _, row in found)
    return _spaced(
        [np.pad(row, ((0, 0), (0, widest - row.shape[1]), (0, 0)), constant_values=255) for _, row in found[:CROPS]], axis=0
    )


def _worst(exact: np.ndarray, output: np.ndarray) -> tuple[float, int, int, int]:
    """The mean squared difference of the worst square of a side of SIDE at most, and its top, left and side."""
    squares = np.square(exact.astype(float) - output).mean(2)
    side = min(SIDE, *squares.shape)
    totals = window_sums(squares, side)
    top, left = divmod(int(totals.argmax()), totals.shape[1])
    return float(totals[top, left]) / side**2, top, left, side


def _spaced(images: Sequence[np.ndarray], axis: int) -> np.ndarray:
    """Images of equal sides across in a row (axis 1) or a column (axis 0), with white between them."""
    shape = list(images[0].shape)
    shape[axis] = GAP
    gap = np.full(shape, 255, np.uint8)
    parts = [part for image in images for part in (gap, image)]
    return np.concatenate(parts[1:], axis)
