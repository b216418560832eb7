from pathlib import Path

import numpy as np
import PIL.Image
import pytest

from autoq.errors import DataError
from autoq.images import data
from autoq.metrics.quality import psnr


@pytest.mark.parametrize(
    ("images", "scale", "published"), [("Set5", 2, 33.66), ("Set5", 3, 30.39), ("Set5", 4, 28.42), ("Set14", 4, 26.00)]
)
def test_bicubic_reproduces_published_figures(shared: Path, images: str, scale: int, published: float) -> None:
    """The figures that papers give since SRCNN (Dong et al. 2014). Their scripts compare a grey file by its own 255 levels."""
    values = []
    for path in data.image_files(shared / "test" / images):
        pair = data.make_pair(data.read_image(path), scale)
        assert pair.high is not None
        with PIL.Image.open(path) as file:
            wider = 20 * np.log10(219 / 255) if file.mode == "L" else 0
        values.append(psnr(data.resize(pair.low, *pair.high.shape[:2]), pair.high, scale) + wider)
    assert np.mean(values) == pytest.approx(published, abs=0.05)


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


def test_an_evaluation_image_among_the_training_images_is_an_error() -> None:
    images = data.eval_images(None)
    with pytest.raises(DataError, match="evaluation image 'rocket' is the same as training image 'rocket'"):
        data.check_disjoint(images, images[-1:])


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
    sampler, random = data.PatchSampler([half_busy()], 8, sampling), np.random.default_rng(1)
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
    with pytest.raises(DataError, match="no image files"):
        data.read_folder(tmp_path)
    (tmp_path / "text.png").write_text("not a picture")
    with pytest.raises(
        DataError,
        match=r"text\.png': not an image, or damaged; give an existing .bmp, .jpeg, .jpg, .png, .tif, .tiff or .webp file",
    ):
        data.read_folder(tmp_path)
    with pytest.raises(DataError, match="image 'small': 20x20 pixels, expected at least 32x32 for x4; remove the image"):
        data.make_pair(data.Image("small", np.zeros((20, 20, 3), dtype=np.uint8)), 4)
    with pytest.raises(DataError, match="image 'small': 20x20 pixels, expected at least 24x24; remove the image"):
        data.low_resolution(data.Image("small", np.zeros((20, 20, 3), dtype=np.uint8)), multiple=24)


def test_images_are_cut_to_what_a_network_takes() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (70, 90, 3), dtype=np.uint8)
    pair = data.make_pair(data.Image("any", pixels), 3, multiple=4)
    assert pair.high is not None
    assert (pair.high.shape, pair.low.shape) == ((60, 84, 3), (20, 28, 3))
    assert np.array_equal(pair.high, pixels[:60, :84])
    assert np.array_equal(pair.low, data.resize(pixels[:60, :84], 20, 28))
    given = data.low_resolution(data.Image("any", pixels), multiple=4)
    assert given.high is None
    assert np.array_equal(given.low, pixels[:68, :88])


# ---------------------------------------------------------------- folders and files of every kind

COLOURS = np.random.default_rng(3).integers(0, 256, (24, 16, 3), dtype=np.uint8)
RGB = PIL.Image.fromarray(COLOURS)


def test_what_a_system_leaves_in_a_folder_is_not_read(tmp_path: Path) -> None:
    folder = tmp_path / "train"
    folder.mkdir()
    for name in ("a.png", "B2.PNG", "c.webp"):
        RGB.save(folder / name)
    for name in ("._a.png", ".DS_Store", "Thumbs.db", "desktop.ini"):
        (folder / name).write_bytes(b"\0\5\x16\7")
    for name in ("@eaDir", "nested.png", ".git"):
        (folder / name).mkdir()
    assert [path.name for path in data.image_files(folder)] == ["B2.PNG", "a.png", "c.webp"]
    assert [image.name for image in data.read_folder(folder)] == ["B2", "a", "c"]
    assert data.unread(folder) == ""
    (folder / "notes.txt").write_text("")
    assert data.unread(folder) == "train/: skipped 1 file of other types (.txt)"
    for name in ("clip.GIF", "more.txt", "LICENSE"):
        (folder / name).write_text("")
    assert data.unread(folder) == "train/: skipped 4 files of other types (.gif, .txt, no suffix)"
    for name in ("img_001_SRF_4_HR.png", "img_001_SRF_4_LR.png", "img_002_SRF_4_hr.png"):
        RGB.save(folder / name)
    assert [path.name for path in data.image_files(folder)] == ["img_001_SRF_4_HR.png", "img_002_SRF_4_hr.png"]
    skipped = "skipped 4 files of other types (.gif, .txt, no suffix) and 4 files beside originals (*_HR)"
    assert data.unread(folder) == f"train/: {skipped}"


def test_images_of_one_stem_keep_their_suffixes(tmp_path: Path) -> None:
    for name in ("a.png", "a.bmp", "b.png"):
        RGB.save(tmp_path / name)
    assert [image.name for image in data.read_folder(tmp_path)] == ["a.bmp", "a.png", "b"]


def turned_by_exif(path: Path) -> None:
    exif = PIL.Image.Exif()
    exif[274] = 6  # to be turned clockwise by a quarter
    RGB.transpose(PIL.Image.Transpose.ROTATE_90).save(path, exif=exif)


GREY = np.asarray(RGB.convert("L"))
KINDS = {
    "rgb": (RGB.save, COLOURS),
    "turned": (turned_by_exif, COLOURS),
    "rgba": (RGB.convert("RGBA").save, COLOURS),
    "palette": (RGB.quantize(8).save, np.asarray(RGB.quantize(8).convert("RGB"))),
    "grey": (RGB.convert("L").save, GREY[..., None].repeat(3, 2)),
    "grey-alpha": (RGB.convert("LA").save, GREY[..., None].repeat(3, 2)),
    "grey-16": (PIL.Image.fromarray(GREY.astype(np.uint16) * 256 + 255).save, GREY[..., None].repeat(3, 2)),
    "one-bit": (RGB.convert("1").save, np.asarray(RGB.convert("1").convert("RGB"))),
}


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_image_is_read_as_upright_rgb(tmp_path: Path, kind: str) -> None:
    save, expected = KINDS[kind]
    save(tmp_path / "x.png")
    assert np.array_equal(data.read_folder(tmp_path)[0].pixels, expected)


def test_kinds_that_are_refused(tmp_path: Path) -> None:
    RGB.convert("CMYK").save(tmp_path / "x.jpg")
    with pytest.raises(
        DataError, match="mode CMYK, expected RGB, grey or palette, with or without transparency; convert the image"
    ):
        data.read_folder(tmp_path)
    (tmp_path / "x.jpg").unlink()
    RGB.save(tmp_path / "x.tif", save_all=True, append_images=[RGB])
    with pytest.raises(DataError, match="2 frames, expected one"):
        data.read_folder(tmp_path)
