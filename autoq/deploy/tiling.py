"""Images of any size through a network in tiles: each sees a margin around it, so that no seam shows and memory is bounded.

    windows of `side` pixels, one every `tile` pixels, the last shifted to end where the image does
    |<------- side -------->|
              |<------- side -------->|
    |<-- kept ---->|<------ kept ---->|        side = overlap + tile + overlap
         seam: `overlap` pixels from the begin of the later window

Every pixel kept lies `overlap` or more from the edges of its window, or at the image's own. Where that is the network's
reach, tiled and whole results are the same up to the rounding of floats.
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
    """Input pixels. tile: side of what each window adds; overlap: margin on every side; grid: windows begin at multiples."""

    tile: int
    overlap: int
    grid: int = 1


@dataclass(frozen=True)
class Cut:
    """Along one axis, input pixels [begin, end): what a network is given, and what of it is kept."""

    given: tuple[int, int]
    kept: tuple[int, int]


def cuts(size: int, tiling: Tiling) -> list[Cut]:
    """How an axis of `size` pixels is cut; what is kept covers it once."""
    side = tiling.tile + 2 * tiling.overlap
    count = max(1, math.ceil((size - 2 * tiling.overlap) / tiling.tile))
    last = max(0, size - side) // tiling.grid * tiling.grid
    begins = [min(number * tiling.tile, last) for number in range(count)]
    ends = [*(begin + side for begin in begins[:-1]), size]
    seams = [0, *(begin + tiling.overlap for begin in begins[1:]), size]
    return [Cut(given, kept) for given, kept in zip(zip(begins, ends, strict=True), itertools.pairwise(seams), strict=True)]


def count(height: int, width: int, tiling: Tiling) -> int:
    """Tiles of an image."""
    return len(cuts(height, tiling)) * len(cuts(width, tiling))


def upscaled(run: Runner, pixels: np.ndarray, scale: int, tiling: Tiling) -> Iterator[tuple[int, int, np.ndarray]]:
    """uint8 RGB [height, width, 3] -> (top, left, uint8 RGB) of each tile of the upscaled image, row by row.

    Raises AutoqError where the network gives no finite numbers.
    """
    height, width = pixels.shape[:2]
    for rows in cuts(height, tiling):
        for columns in cuts(width, tiling):
            given = pixels[slice(*rows.given), slice(*columns.given)]
            output = run(to_input(given))
            kept = tuple(
                slice(*((place - cut.given[0]) * scale for place in cut.kept)) for cut in (rows, columns)
            )  # fmt: skip
            yield rows.kept[0] * scale, columns.kept[0] * scale, checked_pixels(output[0][:, *kept])


def checked_pixels(output: np.ndarray) -> np.ndarray:
    """`pixels.to_pixels` of a network's output [3, height, width]. Raises AutoqError for what is no number."""
    if not np.isfinite(output).all():
        raise AutoqError("the network's output is not a finite number everywhere; give a file of another training")
    return to_pixels(output)
