"""Tiled inference on images of any size, with overlapping tiles, bounded memory and no visible seams.

    windows of `side` pixels, one every `tile` pixels, the last one shifted to end with the image
    |<------- side -------->|
              |<------- side -------->|
    |<-- kept ---->|<------ kept ---->|        side = overlap + tile + overlap
         seam: `overlap` pixels from the start of the later window

Every kept pixel is at least `overlap` pixels from the edges of its window, unless the image ends there. If `overlap` covers
the network's receptive field, tiling changes the output only by float rounding.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from autoq.errors import AutoqError
from autoq.images.pixels import to_input, to_pixels
from autoq.targets import Runner


@dataclass(frozen=True)
class Tiling:
    """A tiling, in input pixels.

    Attributes:
        tile: Distance between neighbouring windows.
        overlap: Margin of a window on every side.
        grid: Windows start at multiples of this.
    """

    tile: int
    overlap: int
    grid: int = 1


@dataclass(frozen=True)
class Cut:
    """One window along one axis, as input pixels [start, end): what the network is given, and the part of it that is kept."""

    given: tuple[int, int]
    kept: tuple[int, int]


def cuts(size: int, tiling: Tiling) -> list[Cut]:
    """Cut an axis of `size` pixels into windows; the kept parts cover it exactly once."""
    side = tiling.tile + 2 * tiling.overlap
    count = max(1, math.ceil((size - 2 * tiling.overlap) / tiling.tile))
    last = max(0, size - side) // tiling.grid * tiling.grid
    begins = [min(number * tiling.tile, last) for number in range(count)]
    ends = [*(begin + side for begin in begins[:-1]), size]
    seams = [0, *(begin + tiling.overlap for begin in begins[1:]), size]
    return [Cut(given, kept) for given, kept in zip(zip(begins, ends, strict=True), itertools.pairwise(seams), strict=True)]


def count(height: int, width: int, tiling: Tiling) -> int:
    """Number of tiles of an image."""
    return len(cuts(height, tiling)) * len(cuts(width, tiling))


def upscaled(run: Runner, pixels: np.ndarray, scale: int, tiling: Tiling) -> Iterator[tuple[int, int, np.ndarray]]:
    """Upscale an image tile by tile.

    Args:
        run: The network.
        pixels: uint8 RGB [height, width, 3].
        scale: The network's scale.
        tiling: The tiling.

    Yields:
        (top, left, uint8 RGB [h, w, 3]) of each tile of the upscaled image, row by row.

    Raises:
        AutoqError: The network's output is not finite.
    """
    height, width = pixels.shape[:2]
    for rows in cuts(height, tiling):
        for columns in cuts(width, tiling):
            given = pixels[slice(*rows.given), slice(*columns.given)]
            output = run(to_input(given))
            kept = tuple(
                slice(*((position - cut.given[0]) * scale for position in cut.kept)) for cut in (rows, columns)
            )  # fmt: skip
            yield rows.kept[0] * scale, columns.kept[0] * scale, checked_pixels(output[0][:, *kept])


def checked_pixels(output: np.ndarray) -> np.ndarray:
    """A network's output [3, height, width] as uint8 [height, width, 3]. Raises AutoqError for NaN or infinity."""
    if not np.isfinite(output).all():
        raise AutoqError("the network's output contains NaN or infinity; check the weights, or use another file")
    return to_pixels(output)
