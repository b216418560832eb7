"""NIQE, the natural image quality evaluator (Mittal, Soundararajan and Bovik 2013), with pyiqa's numbers.

Blocks of 96x96 pixels, at full and at half size, are described by 18 features of normalized luma each. The score is the distance
between the Gaussian distribution of these 36 features and that of pristine images (equation 10).
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy.io import loadmat
from scipy.ndimage import correlate1d
from scipy.special import gammaln

from autoq.metrics.filters import Space, resized, rounded_luma
from autoq.metrics.generalized_gaussian import table

BLOCK = 96
"""Side of a block in pixels; an image has at least one."""

NEIGHBOURS = ((0, 1), (1, 0), (1, 1), (1, -1))
"""Shifts (rows, columns) of the neighbours whose products with a pixel are described."""

LEAST_SHAPE = 0.2
REACH = 3
"""Pixels from the centre of the 7x7 window, whose sigma is 7/6."""


@dataclass(frozen=True)
class Pristine:
    """The distribution of the features of pristine images: mean [36] and covariance [36, 36]."""

    mean: np.ndarray
    covariance: np.ndarray

    @classmethod
    def read(cls, file: Path) -> Pristine:
        """The published model file, `niqe_modelparameters.mat`."""
        found = loadmat(file)
        return cls(found["mu_prisparam"].ravel(), found["cov_prisparam"])


def niqe(pixels: np.ndarray, space: Space, pristine: Pristine) -> float:
    """NIQE of uint8 RGB [height, width, 3]."""
    return distance(features(rounded_luma(pixels, space)), pristine)


def distance(found: np.ndarray, pristine: Pristine) -> float:
    """The score of the features of an image's blocks [blocks, 36]. Blocks with NaN count in the means of their other features."""
    whole = found[~np.isnan(found).any(1)]
    covariance = np.cov(whole, rowvar=False, ddof=1 if len(whole) > 1 else 0)
    difference = pristine.mean - np.nanmean(found, 0)
    return float(np.sqrt(difference @ np.linalg.pinv((pristine.covariance + covariance) / 2) @ difference))


def features(luma: np.ndarray) -> np.ndarray:
    """Features of every block [blocks, 36] of luma in [0, 255], float64 [height, width]; what is left of whole blocks is cut."""
    height, width = (size // BLOCK * BLOCK for size in luma.shape)
    image = luma[:height, :width]
    half = resized(image / 255, height // 2, width // 2) * 255
    return np.concatenate([_described(_normalized(image), BLOCK), _described(_normalized(half), BLOCK // 2)], 1)


def _described(image: np.ndarray, side: int) -> np.ndarray:
    """The 18 features of every block, column by column."""
    rows, columns = (size // side for size in image.shape)
    blocks = image.reshape(rows, side, columns, side).transpose(2, 0, 1, 3).reshape(-1, side, side)
    shape, left, right = _asymmetric(blocks)
    found = [shape, (left + right) / 2]
    for shift in NEIGHBOURS:
        shape, left, right = _asymmetric(blocks * np.roll(blocks, shift, (1, 2)))
        mean = (right - left) * np.exp(gammaln(2 / shape) - gammaln(1 / shape))  # equation 8
        found += [shape, mean, left, right]
    return np.stack(found, 1)


def _asymmetric(blocks: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Shape and the scales below and above zero of an asymmetric generalized Gaussian distribution, of blocks [n, side, side]."""
    values = blocks.reshape(len(blocks), -1)
    squares = np.square(values)
    below, above = values < 0, values > 0
    with np.errstate(divide="ignore", invalid="ignore"):
        left, right = (np.sqrt((squares * part).sum(1) / part.sum(1)) for part in (below, above))
        ratio = left / right
        moments = np.abs(values).mean(1) ** 2 / squares.mean(1)
        shape = table(LEAST_SHAPE).by_inverse(moments * (ratio**3 + 1) * (ratio + 1) / (ratio**2 + 1) ** 2)
    scale = np.sqrt(np.exp(gammaln(1 / shape) - gammaln(3 / shape)))
    return shape, left * scale, right * scale


def _normalized(image: np.ndarray) -> np.ndarray:
    """(x - mean) / (deviation + 1) in a Gaussian window around each pixel (equations 1 to 3)."""
    mean = _smoothed(image)
    deviation = np.sqrt(np.abs(_smoothed(np.square(image)) - np.square(mean)) + np.finfo(float).eps)
    normalized: np.ndarray = (image - mean) / (deviation + 1)
    return normalized


@functools.cache
def _window() -> np.ndarray:
    """The window in float32, as pyiqa has it: its rounding is what flat regions consist of."""
    x = np.square(np.arange(-REACH, REACH + 1))
    values = np.exp(-(x[:, None] + x) / (2 * (7 / 6) ** 2))
    window: np.ndarray = (values / values.sum()).astype(np.float32).astype(float)
    return window


def _smoothed(image: np.ndarray) -> np.ndarray:
    """The image in the window, with its edges repeated. Rows at equal distances have equal weights."""
    window, height = _window(), len(image)
    padded = np.pad(image, ((REACH, REACH), (0, 0)), mode="edge")
    total: np.ndarray = correlate1d(image, window[REACH], axis=1, mode="nearest")
    for distance in range(1, REACH + 1):
        rows = padded[REACH - distance :][:height] + padded[REACH + distance :][:height]
        total += correlate1d(rows, window[REACH + distance], axis=1, mode="nearest")
    return total
