from pathlib import Path

import numpy as np
import PIL.Image
import pytest

from autoq import data
from autoq.errors import DataError
from autoq.objectives.quality import psnr


def test_bicubic_reproduces_the_published_set5_figure(shared: Path) -> None:
    pairs = [data.make_pair(image, 4) for image in data.read_folder(shared / "test" / "Set5")]
    values = [psnr(data.resize(pair.low, *pair.high.shape[:2]), pair.high, 4) for pair in pairs]
    assert np.mean(values) == pytest.approx(28.43, abs=0.01)


def test_reduction_equals_matlabs_but_for_the_border(shared: Path) -> None:
    """lr_x4.png is what MATLAB's imresize made of hr.png."""
    high, low = (data.read_image(shared.parent / "cases" / "matlab_lr" / f"{name}.png").pixels for name in ("hr", "lr_x4"))
    assert np.array_equal(data.resize(high, *low.shape[:2])[8:-8, 8:-8], low[8:-8, 8:-8])


def test_the_axis_that_shrinks_most_comes_first() -> None:
    """Each axis is rounded by itself, so the order shows in the result."""
    image = np.random.default_rng(0).integers(0, 256, (24, 24, 3), dtype=np.uint8)
    assert np.array_equal(data.resize(image, 12, 6), data.resize(data.resize(image, 24, 6), 12, 6))
    assert np.array_equal(data.resize(image, 12, 12), data.resize(data.resize(image, 12, 24), 12, 12))
    assert not np.array_equal(data.resize(image, 12, 12), data.resize(data.resize(image, 24, 12), 12, 12))


def test_resize_by_hand() -> None:
    row = np.array([[0, 0, 255, 255]], dtype=np.uint8)[:, :, None].repeat(3, 2)
    # x2: centres at -0.25, 0.25, ...; Keys weights at 0.25 and 0.75 with a = -0.5
    weights = {-1.75: -0.0078125 * 3, -0.75: 0.2265625, 0.25: 0.8671875, 1.25: -0.0703125}
    expected = 255 * (weights[0.25] + weights[1.25])  # output pixel 4, between source 1 (0) and sources 2, 3 (255)
    assert data.resize(row, 1, 8)[0, 4, 0] == round(expected)


def test_bundled_images_are_split() -> None:
    data.check_disjoint(data.train_images(None), data.eval_images(None))
    assert all(data.centre(image).pixels.shape == (256, 256, 3) for image in data.eval_images(None))


def test_the_middle_of_a_pair_shows_the_same_in_both() -> None:
    """Of a picture of flat blocks of 3x3 pixels, which a reduction by 3 keeps."""
    low = np.arange(10 * 14 * 3).reshape(10, 14, 3).astype(np.uint8)
    found = data.middle(data.Pair("blocks", low.repeat(3, 0).repeat(3, 1), low))
    assert np.array_equal(found.low, low[2:7, 3:10])
    assert np.array_equal(found.high, found.low.repeat(3, 0).repeat(3, 1))


def test_an_evaluation_image_among_the_training_images_is_an_error() -> None:
    images = data.eval_images(None)
    with pytest.raises(DataError, match="evaluation image 'rocket' is training image 'rocket'"):
        data.check_disjoint(images, images[1:])


def test_patches_and_batches_are_the_same_for_every_trial() -> None:
    pairs = [data.make_pair(image, 4) for image in data.eval_images(None)]
    plan = data.PatchPlan(pool=10, side=12, batch=4, seed=3)
    first, again = data.training_patches(pairs, plan), data.training_patches(pairs, plan)
    assert first.shape == (10, 3, 12, 12)
    assert (first == again).all()
    assert not (first == data.training_patches(pairs, data.PatchPlan(10, 12, 4, seed=4))).all()
    orders = [list(map(list, data.batches(plan, 7))) for _ in range(2)]
    assert orders[0] == orders[1]
    assert sorted(np.concatenate(orders[0][:5])) == sorted([*range(10), *range(10)]), "two epochs in five steps"


def half_busy() -> data.Pair:
    """An image whose left half is flat and whose right half is noise."""
    low = np.full((40, 60, 3), 128, np.uint8)
    low[:, 30:] = np.random.default_rng(0).integers(0, 256, (40, 30, 3))
    return data.Pair("half", np.zeros(()), low)


def test_complexity_is_the_mean_of_the_differences_above_the_threshold() -> None:
    low, side = half_busy().low[:20, 20:50], 6
    luma = low @ np.array([0.299, 0.587, 0.114]) / 255
    found = data.complexity(low, side)
    assert found.shape == (15, 25)
    for top, left in ((0, 0), (3, 8), (7, 13)):
        total = 0.0
        for row, column in np.ndindex(side, side):
            y, x = top + row, left + column
            for difference in (luma[y + 1, x] - luma[y, x], luma[y, x + 1] - luma[y, x]):
                total += abs(difference) if abs(difference) > data.VARIATION_THRESHOLD else 0
        assert found[top, left] == pytest.approx(total / side**2)
    assert found[0, 0] == 0


@pytest.mark.parametrize(("sampling", "least", "most"), [("uniform", 0.3, 0.6), ("proportional", 0.75, 1), ("threshold", 0.9, 1)])
def test_where_patches_are_cut(sampling: str, least: float, most: float) -> None:
    sampler, random = data.PatchSampler([half_busy()], 8, sampling), np.random.default_rng(1)  # type: ignore[arg-type]
    draws = [sampler.draw(random) for _ in range(400)]
    assert all(0 <= top <= 32 and 0 <= left <= 52 for _, top, left in draws)
    assert least <= np.mean([left + 4 > 30 for _, _, left in draws]) <= most


def test_images_are_drawn_by_their_complexity_and_flat_ones_uniformly() -> None:
    flat = data.Pair("flat", np.zeros(()), np.full((40, 60, 3), 7, np.uint8))
    random = np.random.default_rng(0)
    sampler = data.PatchSampler([flat, half_busy()], 8, "proportional")
    assert {sampler.draw(random)[0].name for _ in range(50)} == {"half"}
    sampler = data.PatchSampler([flat, flat], 8, "threshold")
    assert len({sampler.draw(random)[1:] for _ in range(50)}) > 10


def test_unusable_images(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such folder"):
        data.read_folder(tmp_path / "none")
    with pytest.raises(DataError, match="holds no image"):
        data.read_folder(tmp_path)
    (tmp_path / "text.png").write_text("not a picture")
    with pytest.raises(DataError, match=r"text\.png': not readable"):
        data.read_folder(tmp_path)
    PIL.Image.new("RGBA", (40, 40)).save(tmp_path / "text.png")
    with pytest.raises(DataError, match="expected 8-bit RGB or grey, found mode RGBA; convert it to 8-bit RGB"):
        data.read_folder(tmp_path)
    with pytest.raises(DataError, match="image 'small': 20x20 is too small for x4"):
        data.make_pair(data.Image("small", np.zeros((20, 20, 3), dtype=np.uint8)), 4)
