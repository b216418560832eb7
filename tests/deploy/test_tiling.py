import itertools

import numpy as np
import pytest
import torch

from autoq.deploy import tiling
from autoq.deploy.tiling import Tiling, cuts
from autoq.errors import AutoqError
from autoq.images import data
from autoq.images.pixels import to_input, to_pixels


@pytest.mark.parametrize("grid", [1, 4])
@pytest.mark.parametrize("overlap", [0, 4, 12])
def test_what_is_kept_covers_an_axis_once_and_has_its_margin(overlap: int, grid: int) -> None:
    for size, tile in itertools.product((1, 7, 8, 23, 24, 25, 40, 41, 97, 160), (8, 16, 32)):
        found = cuts(size, Tiling(tile, overlap, grid))
        assert [place for cut in found for place in range(*cut.kept)] == list(range(size))
        for cut in found:
            assert cut.given[0] % grid == 0
            assert 0 <= cut.given[0] <= cut.kept[0]
            assert cut.kept[1] <= cut.given[1] <= size
            assert cut.given[1] - cut.given[0] < tile + 2 * overlap + grid, "memory is bounded"
            for edge, end, kept in ((cut.given[0], 0, cut.kept[0]), (cut.given[1], size, cut.kept[1])):
                assert edge == end or cut.kept[0] == cut.kept[1] or abs(kept - edge) >= overlap


def test_all_windows_have_one_size_without_a_grid() -> None:
    assert {cut.given[1] - cut.given[0] for cut in cuts(1000, Tiling(100, 20))} == {140}
    assert len(cuts(140, Tiling(100, 20))) == 1
    assert [cut.kept for cut in cuts(141, Tiling(100, 20))] == [(0, 21), (21, 141)]


def blurred(image: np.ndarray) -> np.ndarray:
    """x2 by repetition of what a box of 5 x 5 pixels gives, the image continued with zeros."""
    padded = np.pad(image, ((0, 0), (0, 0), (2, 2), (2, 2)))
    height, width = image.shape[2:]
    total = sum(padded[:, :, y : y + height, x : x + width] for y in range(5) for x in range(5))
    result: np.ndarray = (total / 25).repeat(2, 2).repeat(2, 3).astype(np.float32)
    return result


def assembled(pixels: np.ndarray, layout: Tiling) -> np.ndarray:
    result = np.zeros((2 * pixels.shape[0], 2 * pixels.shape[1], 3), np.uint8)
    for top, left, part in tiling.upscaled(blurred, pixels, 2, layout):
        result[top : top + part.shape[0], left : left + part.shape[1]] = part
    return result


def test_tiles_that_overlap_by_the_reach_are_the_whole_and_by_less_are_not() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (37, 50, 3), dtype=np.uint8)
    whole = to_pixels(blurred(to_input(pixels))[0])
    for tile in (8, 16, 64):
        assert (assembled(pixels, Tiling(tile, 2)) == whole).all()
    assert (assembled(pixels, Tiling(8, 1)) != whole).any()
    assert tiling.count(37, 50, Tiling(8, 2)) == 5 * 6


def test_levels_are_clipped_and_rounded() -> None:
    output = np.array([-1, 0.4 / 255, 0.6 / 255, 2], np.float32).reshape(1, 2, 2).repeat(3, 0)
    assert to_pixels(output)[..., 0].tolist() == [[0, 0], [1, 255]]


def test_pixels_become_the_numbers_that_trials_are_judged_on() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (40, 50, 3), dtype=np.uint8)
    assert (to_input(pixels) == (torch.from_numpy(pixels).permute(2, 0, 1)[None].float() / 255).numpy()).all()
    output = np.random.default_rng(1).uniform(-0.1, 1.1, (3, 40, 50)).astype(np.float32)
    output.ravel()[:255] = (np.arange(255, dtype=np.float32) + np.float32(0.5)) / 255
    expected = (torch.from_numpy(output).clamp(0, 1) * 255).round().byte().permute(1, 2, 0).numpy()
    assert (to_pixels(output) == expected).all()
    assert (data.to_pixels(torch.from_numpy(output)[None]) == expected).all()


def test_an_output_that_is_no_number_is_an_error() -> None:
    with pytest.raises(AutoqError, match="NaN or infinity"):
        tiling.checked_pixels(np.full((3, 2, 2), np.nan, np.float32))
