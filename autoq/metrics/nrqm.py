"""NRQM, the no-reference quality metric for super-resolution (Ma, Yang, Yang and Yang 2017), with pyiqa's numbers.

Three groups of features of luma, each rated by a forest of regression trees; the score is a linear function of the three ratings.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy import fft, linalg
from scipy.io import loadmat
from scipy.ndimage import correlate1d

from autoq.metrics.filters import Space, gaussian, resized, rounded_luma
from autoq.metrics.generalized_gaussian import table
from autoq.metrics.steerable_pyramid import ORIENTATIONS, pyramid

REDUCTIONS = 2
"""How often an image is halved for the features in blocks."""

BLOCK, STRIDE = 7, 3
"""Side of the blocks whose cosine transforms are described, and their distance, in pixels."""

PATCH = 5
"""Side of the patches whose singular values are features."""

GUARD = 16
"""Pixels of the first scale's bands at every edge that are not described."""

LEAST_SHAPE = 0.03
TINY = 1e-7
CONTRAST = (0.03 * 255) ** 2
"""What keeps a similarity of structures finite."""

PLACES = np.arange(BLOCK * BLOCK).reshape(BLOCK, BLOCK)
FLAT = np.concatenate([PLACES[0, 1:], PLACES[1, 2:], PLACES[2, 4:], PLACES[3, 5:]])
"""Coefficients of the first orientation, those of the third mirrored."""

DIAGONAL = np.concatenate([PLACES[1, 1:2], PLACES[2, 2:4], PLACES[3, 2:5], PLACES[4, 3:], PLACES[5, 4:], PLACES[6, 4:]])
DIRECTIONS = (FLAT, DIAGONAL, PLACES.T.ravel()[FLAT])


# ---------------------------------------------------------------- score


@dataclass(frozen=True)
class Forest:
    """Regression trees, each a column: children [nodes, trees] with 0 for none, counted from 1 as the features are."""

    left: np.ndarray
    right: np.ndarray
    threshold: np.ndarray
    value: np.ndarray
    feature: np.ndarray

    def rated(self, found: np.ndarray) -> float:
        """The mean over all trees of the value of the leaf that the features lead to."""
        trees = np.arange(self.left.shape[1])
        node = np.zeros(len(trees), int)
        for _ in range(len(self.left)):
            goes_left = found[self.feature[node, trees].astype(int) - 1] <= self.threshold[node, trees]
            below = np.where(goes_left, self.left[node, trees], self.right[node, trees]).astype(int) - 1
            if (below < 0).all():
                break
            node = np.where(below < 0, node, below)
        return float(self.value[node, trees].mean())


@dataclass(frozen=True)
class Regression:
    """The published model: weights of a constant and of the three ratings, and the forests."""

    weights: np.ndarray
    forests: tuple[Forest, Forest, Forest]

    @classmethod
    def read(cls, file: Path) -> Regression:
        """The published model file, `NRQM_model.mat`."""
        model = loadmat(file)["model"][0, 0]
        forests = [Forest(*(model["rf"][0, group][0, 0][field] for field in (0, 1, 4, 5, 6))) for group in range(3)]
        return cls(model["linear"].ravel(), (forests[0], forests[1], forests[2]))


def nrqm(pixels: np.ndarray, space: Space, regression: Regression) -> float:
    """NRQM of uint8 RGB [height, width, 3]."""
    return score(features(rounded_luma(pixels, space)), regression)


def score(found: tuple[np.ndarray, ...], regression: Regression) -> float:
    """The score of the three groups of features."""
    ratings = [forest.rated(group) for forest, group in zip(regression.forests, found, strict=True)]
    return float(np.dot([1.0, *ratings], regression.weights))


def features(luma: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Features of luma in [0, 255], float64 [height, width]: of cosine transforms [18], of a steerable pyramid [45], and singular
    values [75]."""
    images = [luma / 255]
    for _ in range(REDUCTIONS):
        images.append(_smoothed(images[-1], gaussian(3, 0.5))[1::2, 1::2])
    local, spatial = (np.concatenate([described(image) for image in images]) for described in (cosines, singular_values))
    return local, pyramid_features(luma), spatial


def _smoothed(image: np.ndarray, window: np.ndarray) -> np.ndarray:
    """The image in a separable window, of its size, with zeros beyond its edges."""
    smoothed: np.ndarray = correlate1d(correlate1d(image, window, 0, mode="constant"), window, 1, mode="constant")
    return smoothed


# ---------------------------------------------------------------- local frequency


def cosines(image: np.ndarray) -> np.ndarray:
    """Shape, variation and direction of the cosine transforms of all blocks: mean of an extreme tenth, and mean, of each [6]."""
    coefficients = _cosine_transforms(image)
    sizes = np.abs(coefficients)
    shapes, variations = _shape(coefficients[1:]), _variation(sizes[1:], TINY)
    directions = np.var([_variation(sizes[places], 1e-8) for places in DIRECTIONS], axis=0, ddof=1)
    count = len(shapes)
    lowest, highest = math.ceil(0.1 * count) + 1, math.floor(0.9 * count)
    found = [np.sort(shapes)[:lowest].mean(), shapes.mean()]
    for values in (variations, directions):
        found += [np.partition(values, highest)[highest:].mean(), values.mean()]
    return np.array(found)


def _cosine_transforms(image: np.ndarray) -> np.ndarray:
    """Coefficients [49, blocks] of blocks at distances of STRIDE, with zeros around the image."""
    pads = []
    for size in image.shape:
        pad = (math.ceil(size / STRIDE) - 1) * STRIDE + BLOCK - size
        pads.append((pad // 2, pad - pad // 2))
    windows = np.lib.stride_tricks.sliding_window_view(np.pad(image, pads), (BLOCK, BLOCK))[::STRIDE, ::STRIDE]
    coefficients: np.ndarray = _cosine_basis() @ windows.reshape(-1, BLOCK * BLOCK).T
    return coefficients


@functools.cache
def _cosine_basis() -> np.ndarray:
    one = fft.dct(np.eye(BLOCK), axis=0, norm="ortho")
    return np.kron(one, one)


def _shape(values: np.ndarray) -> np.ndarray:
    """The shape of each column [k, n] as of a generalized Gaussian distribution, [n]."""
    values = values - values.mean(0)
    variance = np.einsum("ij,ij->j", values, values) / (len(values) - 1)
    return table(LEAST_SHAPE).by_ratio(variance / (np.square(np.abs(values).mean(0)) + TINY))


def _variation(sizes: np.ndarray, tiny: float) -> np.ndarray:
    """Deviation by mean of each column [k, n], [n]."""
    variation: np.ndarray = sizes.std(0, ddof=1) / (sizes.mean(0) + tiny)
    return variation


# ---------------------------------------------------------------- global frequency


def pyramid_features(luma: np.ndarray) -> np.ndarray:
    """Shapes of the normalized bands of a steerable pyramid, of each and of both scales together; similarities of the structure of
    each band and the residual, and of the orientations of the first scale [45]."""
    residual, bands = pyramid(luma)
    normalized = [_normalized(bands, scale, number) for scale in range(len(bands)) for number in range(ORIENTATIONS)]
    values = [band.reshape(-1, 1) for band in normalized]
    values += [np.concatenate([values[number], values[number + ORIENTATIONS]]) for number in range(ORIENTATIONS)]
    found = [_shape(each)[0] for each in values]
    whole = _Structure(residual)
    found += [whole.similarity(_Structure(resized(band, *residual.shape))) for scale in bands for band in scale]
    structures = [_Structure(band) for band in normalized[:ORIENTATIONS]]
    found += [one.similarity(other) for index, one in enumerate(structures) for other in structures[index + 1 :]]
    return np.array(found)


def _normalized(bands: list[np.ndarray], scale: int, number: int) -> np.ndarray:
    """A band divided by what its neighbours let expect (a Gaussian scale mixture, Portilla et al. 2003), without its edges.

    Neighbours of a coefficient: the 3x3 around it, the one at its place in the next scale, and those of other orientations.
    """
    band = bands[scale][number]
    height, width = (size - 2 for size in band.shape)
    inner = bands[scale][:, 1:-1, 1:-1]
    rows = [band[top : top + height, left : left + width] for top in range(3) for left in range(3)]
    if scale + 1 < len(bands):
        rows.append(resized(bands[scale + 1][number], *band.shape)[1:-1, 1:-1])
    count = len(rows)
    rows += [inner[other] for other in range(ORIENTATIONS) if other != number]
    neighbours = np.stack(rows).reshape(len(rows), -1)
    expected = np.sqrt(_energies(neighbours) / count).reshape(height, width)
    with np.errstate(divide="ignore", invalid="ignore"):
        found = np.where(expected == 0, 0, (inner[number] - inner[number].mean()) / (expected + 1e-12))
    guard = GUARD >> scale
    found = found[guard:-guard, guard:-guard]
    normalized: np.ndarray = found - found.mean()
    return normalized


def _energies(neighbours: np.ndarray) -> np.ndarray:
    """x' C^-1 x of every column x [k, n], C their covariance, without the negative values that rounding gives it; [n]."""
    values, vectors = np.linalg.eigh(neighbours @ neighbours.T / neighbours.shape[1])
    kept = np.maximum(values, 0)
    kept = kept * values.sum() / (kept.sum() or 1)
    with np.errstate(divide="ignore", invalid="ignore"):
        white = (vectors / np.sqrt(kept)).T @ neighbours
    energies: np.ndarray = np.einsum("ij,ij->j", white, white)
    return energies


class _Structure:
    """An image with its means and variances in a Gaussian window of 11x11."""

    def __init__(self, image: np.ndarray) -> None:
        self.image, self.mean = image, self._means(image)
        self.variance = self._means(np.square(image)) - np.square(self.mean)

    def similarity(self, other: _Structure) -> float:
        """The mean of SSIM's contrast and structure (Wang et al. 2004), where it is not negative."""
        covariance = self._means(self.image * other.image) - self.mean * other.mean
        return float(np.maximum((2 * covariance + CONTRAST) / (self.variance + other.variance + CONTRAST), 0).mean())

    @staticmethod
    def _means(image: np.ndarray) -> np.ndarray:
        return _smoothed(image, gaussian(11, 1.5))[5:-5, 5:-5]


# ---------------------------------------------------------------- spatial discontinuity


def singular_values(image: np.ndarray) -> np.ndarray:
    """Singular values of the matrix of all patches, side by side and with zeros at the right and at the bottom [25]."""
    image = np.pad(image, [(0, -size % PATCH) for size in image.shape])
    rows, columns = (size // PATCH for size in image.shape)
    patches = image.reshape(rows, PATCH, columns, PATCH).transpose(0, 2, 1, 3).reshape(rows * columns, PATCH**2)
    (triangle,) = linalg.qr(patches, mode="r", check_finite=False)
    values: np.ndarray = linalg.svdvals(triangle[: PATCH**2])
    return values
