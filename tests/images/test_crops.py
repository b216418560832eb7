from __future__ import annotations

import itertools
from collections import Counter
from pathlib import Path

import numpy as np
import PIL.Image
import pytest

from autoq.config.spec import TrialSpec
from autoq.errors import DataError
from autoq.images import crops, data


def spec(**options: object) -> TrialSpec:
    return TrialSpec(model="srgan", **{"scale": 4, **options})


def saved(folder: Path, sizes: dict[str, tuple[int, int]], seed: int = 0) -> Path:
    """Images of noise, name -> (width, height)."""
    random = np.random.default_rng(seed)
    folder.mkdir()
    for name, (width, height) in sizes.items():
        PIL.Image.fromarray(random.integers(0, 256, (height, width, 3), dtype=np.uint8)).save(folder / f"{name}.png")
    return folder


def test_bundled_photographs_are_in_one_part_each_and_in_colour() -> None:
    places = [place for part in data.PHOTOGRAPHS.values() for place in part]
    assert len(places) == len(set(places))
    scenes = {part: {place.split("_")[0] for place in names} for part, names in data.PHOTOGRAPHS.items()}  # left and right: one
    assert not any(one & other for one, other in itertools.combinations(scenes.values(), 2))
    decided = crops.decided(spec())
    evaluation, test = Counter(box[0] for box in decided.eval_boxes), Counter(box[0] for box in decided.test_boxes)
    assert (evaluation.total(), len(evaluation)) == (32, 4)
    assert (test.total(), len(test)) == (32, 3)
    train, pairs = crops.searched(decided)
    assert [pair.name for pair in train] == ["motorcycle_left", "motorcycle_right", "retina"]
    for pair in (*pairs, *crops.held_out(decided)):
        assert pair.high is not None
        assert np.ptp(pair.high.astype(int), axis=2).max() > 10, f"{pair.name} is grey"
    crops.check_held_out(decided)


@pytest.mark.parametrize("scale", [1, 2, 3, 4, 8, 16])
def test_bundled_crops_are_of_one_size_and_hold_a_block_of_niqe(scale: int) -> None:
    shapes = {(pair.high.shape, pair.low.shape) for pair in crops.bundled(scale) if pair.high is not None}
    ((high, low),) = shapes
    assert high == (low[0] * scale, low[1] * scale, 3)
    assert high[0] - 2 * scale >= 96
    assert scale > 8 or high[0] <= 128


def test_low_resolution_crops_are_enlarged_to_the_same_size() -> None:
    pairs = crops.searched(spec(images="lr"))[1]
    assert {pair.low.shape for pair in pairs} == {(30, 30, 3)}
    assert all(pair.high is None for pair in pairs)
    photographs = {image.name: image.pixels for image in data.eval_images(None)}
    name, left, top = pairs[5].name.split("+")
    assert np.array_equal(pairs[5].low, photographs[name][int(top) :, int(left) :][:30, :30])


def test_inputs_divide_by_what_a_network_needs() -> None:
    train, pairs = crops.searched(spec(scale=3), multiple=16)
    assert {pair.low.shape for pair in pairs} == {(32, 32, 3)}
    assert all(size % 16 == 0 for pair in train for size in pair.low.shape[:2])


def test_a_small_folder_is_looked_at_whole_and_a_large_one_in_crops(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = saved(tmp_path / "set", {"a": (250, 130), "b": (64, 200), "c": (490, 125)})
    whole = (("a", 0, 0, 250, 130), ("b", 0, 0, 64, 200), ("c", 0, 0, 490, 125))
    assert crops.decided(spec(eval_data=folder)).eval_boxes == whole
    monkeypatch.setattr(crops, "WHOLE_PIXELS", 106_549)  # one less than there are
    found = crops.decided(spec(eval_data=folder)).eval_boxes
    assert found == (
        *(("a", left, 5, 120, 120) for left in (5, 125)),
        ("b", 0, 0, 64, 200),  # too small for a crop
        *(("c", left, 2, 120, 120) for left in (5, 125, 245, 365)),
    )
    assert crops.decided(spec(eval_data=folder, eval_crops="all")).eval_boxes == whole
    assert set(crops.decided(spec(eval_data=folder, eval_crops=3)).eval_boxes) < set(found)
    monkeypatch.setattr(crops, "WHOLE_PIXELS", 106_550)
    assert crops.decided(spec(eval_data=folder)).eval_boxes == whole
    assert crops.decided(spec(eval_data=folder, images="lr")).eval_boxes != whole, "16 times as many pixels are put out"


def test_what_was_decided_is_looked_at(tmp_path: Path) -> None:
    folder = saved(tmp_path / "set", {"a": (250, 130), "b": (250, 130)})
    boxes = (("b", 3, 5, 64, 48), ("b", 0, 0, 250, 130))
    (tmp_path / "set" / "a.png").write_text("not looked at, nor read")
    pairs = crops.searched(spec(eval_data=folder, eval_boxes=boxes))[1]
    assert [pair.name for pair in pairs] == ["b+3+5", "b"]
    pixels = np.asarray(PIL.Image.open(folder / "b.png"))
    assert pairs[0].high is not None
    assert np.array_equal(pairs[0].high, pixels[5:53, 3:67])


def test_crops_cover_what_images_show() -> None:
    """Of one image half flat, half noise of one colour, and one of stripes: one of each, however unlike their numbers are."""
    random = np.random.default_rng(0)
    flat = random.integers(90, 110, (120, 1200, 3), dtype=np.uint8)
    noisy = random.integers(0, 256, (120, 240, 3), dtype=np.uint8)
    stripes = np.tile(np.array([[0], [200]], np.uint8)[:, :, None], (60, 360, 3))
    images = {"one": data.Image("one", np.concatenate([flat, noisy], 1)), "two": data.Image("two", stripes)}
    boxes = [box for name, image in images.items() for box in crops.grid(name, image, 120)]
    chosen = crops.representative(images, boxes, 3)
    assert [box[0] for box in chosen] == ["one", "one", "two"]
    assert [box[1] >= 1200 for box in chosen[:2]] == [False, True]
    assert crops.representative(images, boxes, 3) == chosen
    assert crops.representative(images, boxes, 100) == tuple(boxes)


def test_crops_without_detail_are_left_out_where_others_suffice() -> None:
    pixels = np.zeros((120, 480, 3), np.uint8)
    pixels[:, 240:] = np.random.default_rng(0).integers(0, 256, (120, 240, 3))
    images = {"dark": data.Image("dark", pixels)}
    boxes = crops.grid("dark", images["dark"], 120)
    assert [box[1] for box in crops.representative(images, boxes, 2)] == [240, 360]
    assert [box[1] for box in crops.representative(images, boxes, 3)][-2:] != [0, 120]


def test_edges_that_run_one_way_are_told_from_those_that_run_every_way() -> None:
    stripes = np.tile(np.array([[10], [200]], np.uint8)[:, :, None], (20, 40, 3))
    noise = np.random.default_rng(0).integers(0, 256, (40, 40, 3), dtype=np.uint8)
    assert crops.features(stripes)[3] == pytest.approx(1)
    assert crops.features(noise)[3] < 0.1
    assert crops.features(stripes.transpose(1, 0, 2))[3] == pytest.approx(1)
    assert crops.features(np.full((40, 40, 3), 51, np.uint8))[2:] == pytest.approx([0, 0, 0.2, 0.2, 0.2])


def test_an_image_in_two_parts_is_an_error(tmp_path: Path) -> None:
    train, other = saved(tmp_path / "train", {"a": (200, 200)}), saved(tmp_path / "eval", {"b": (200, 200)}, seed=1)
    (other / "again.png").write_bytes((train / "a.png").read_bytes())
    with pytest.raises(
        DataError, match="evaluation image 'again' is the same as training image 'a': trials must be evaluated on images that"
    ):
        crops.searched(spec(data=train, eval_data=other))
    with pytest.raises(DataError, match="test image 'again' is the same as training image 'a'.*give another --test-data"):
        crops.check_held_out(spec(data=train, test_data=other))
    with pytest.raises(DataError, match="test image 'again' is the same as evaluation image 'again'"):
        crops.check_held_out(spec(eval_data=other, test_data=other))
