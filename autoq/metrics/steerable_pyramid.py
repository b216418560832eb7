"""The steerable pyramid (Simoncelli and Freeman 1995) of two scales and six orientations, in the frequency domain."""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass

import numpy as np
from scipy import fft

SCALES, ORIENTATIONS = 2, 6
ANGLES = 1024
"""Angles in a half turn at which an orientation's response is tabulated."""

RADII = 256
"""Radii in the transition between two bands at which it is tabulated."""


@dataclass(frozen=True)
class _Masks:
    """What the spectrum of an image is multiplied with, with frequency 0 in the middle; float32, as pyiqa has them.

    Attributes:
        high, low: The residual, and what the bands are taken from.
        bands: Of each scale [orientations, h, w].
        crops: Of each scale after the first: the part of the scale before, and its low pass.
    """

    high: np.ndarray
    low: np.ndarray
    bands: tuple[np.ndarray, ...]
    crops: tuple[tuple[tuple[slice, slice], np.ndarray], ...]


def pyramid(image: np.ndarray) -> tuple[np.ndarray, list[np.ndarray]]:
    """The high-pass residual [h, w], and the bands of each scale, [orientations, h, w] and [orientations, h / 2, w / 2]."""
    masks = _masks(*image.shape)
    spectrum = fft.fftshift(fft.fft2(image))
    residual = _inverse(spectrum * masks.high)
    spectrum = spectrum * masks.low
    found = []
    for scale, bands in enumerate(masks.bands):
        if scale:
            crop, low = masks.crops[scale - 1]
            spectrum = spectrum[crop] * low
        found.append(_inverse((-1j) ** (ORIENTATIONS - 1) * spectrum * bands))
    return residual, found


def _inverse(spectrum: np.ndarray) -> np.ndarray:
    axes = (-2, -1)
    image: np.ndarray = fft.ifft2(fft.ifftshift(spectrum, axes), axes=axes).real
    return image


@functools.lru_cache(maxsize=16)
def _masks(height: int, width: int) -> _Masks:
    x, y = np.meshgrid(_frequencies(width), _frequencies(height))
    angle, radius = np.arctan2(y, x), np.hypot(x, y)
    radius[height // 2, width // 2] = radius[height // 2, width // 2 - 1]  # instead of 0
    octaves = np.log2(radius)
    places, rise, fall = _transition()
    high, low = _at(octaves, places, rise), _at(octaves, places, fall)
    bands, crops = [], []
    for scale in range(SCALES):
        if scale:
            crop = tuple(_middle_half(size) for size in octaves.shape)
            octaves, angle = octaves[crop], angle[crop]
            crops.append(((crop[0], crop[1]), _at(octaves, places - scale, fall)))
        band = _at(octaves, places - scale - 1, rise).astype(float)
        bands.append(np.stack([_at(angle, *_lobe(number)) * band for number in range(ORIENTATIONS)]))
    return _Masks(high, low, tuple(bands), tuple(crops))


def _frequencies(size: int) -> np.ndarray:
    """Frequencies in [-1, 1) with 0 in the middle; [-1, 1] without it being there exactly for an odd size."""
    first = -(size // 2) / (size / 2)
    return np.linspace(first, -first - (1 - size % 2) * 2 / size, size)


def _transition() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Octaves, and above and below them the square roots of a raised cosine that rises from -1 to 0."""
    x = np.pi * np.arange(-RADII - 1, 2) / (2 * RADII)
    power = np.cos(x) ** 2
    power[0], power[-1] = power[1], power[-2]
    return -0.5 + 2 / np.pi * (x + np.pi / 4), np.sqrt(power), np.sqrt(1 - power)


def _lobe(number: int) -> tuple[np.ndarray, np.ndarray]:
    """Angles, and the response of an orientation to them: a power of the cosine over half a turn."""
    order = ORIENTATIONS - 1
    angles = np.pi * np.arange(-2 * ANGLES - 1, ANGLES + 2) / ANGLES
    within = np.abs((angles + np.pi) % (2 * np.pi) - np.pi) < np.pi / 2
    gain = 2 ** (2 * order) * math.factorial(order) ** 2 / (ORIENTATIONS * math.factorial(2 * order))
    return angles + np.pi * number / ORIENTATIONS, 2 * np.sqrt(gain) * np.cos(angles) ** order * within


def _at(points: np.ndarray, places: np.ndarray, values: np.ndarray) -> np.ndarray:
    return np.interp(points.ravel(), places, values).reshape(points.shape).astype(np.float32)


def _middle_half(size: int) -> slice:
    """The middle half of an axis, in whose middle is frequency 0."""
    half = math.ceil((size - 0.5) / 2)
    first = math.ceil((size + 0.5) / 2) - math.ceil((half + 0.5) / 2)
    return slice(first, first + half)
