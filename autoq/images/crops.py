"""Which parts of which images a study trains on, is judged on and is confirmed on.

Small folders are looked at whole. Of large ones, and of the photographs inside installed packages, crops of one size are
taken that together resemble all of them: texture, edges and flat parts, so that short trials see much of a little.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from autoq.config.spec import Box, TrialSpec
from autoq.images.data import (
    VARIATION_THRESHOLD,
    Image,
    Pair,
    Part,
    check_disjoint,
    low_resolution,
    make_pair,
    read_sources,
    sources,
)

CROPS = 32
CROP_SIDE, BLOCK = 120, 96
"""Output pixels. A crop divides by scales 2, 3 and 4, the halves too, and holds a block of NIQE without a border of `scale`."""

WHOLE_PIXELS = 1_500_000
"""Output pixels up to which the images of a folder are looked at whole; see docs/numbers.md for what that costs."""

MOST_CANDIDATES = 2000
"""Crops to choose from are compared each with each."""

LUMA = np.array([0.299, 0.587, 0.114])
DULL = 0.05
"""Share of a crop's area with detail below which it is left out: at 45 dB and more its PSNR would outweigh all others'."""


def searched(spec: TrialSpec, multiple: int = 1) -> tuple[list[Pair], tuple[Pair, ...]]:
    """What a study trains on, whole images, and what trials are judged on. Raises DataError where the two share an image.

    multiple: what sides of the network's inputs must divide by.
    """
    train, evaluation = _images(spec, "training"), _images(spec, "evaluation")
    check_disjoint(train.values(), evaluation.values())
    return [_pair(spec, image, multiple) for image in train.values()], _cut(spec, "evaluation", evaluation, multiple)


def held_out(spec: TrialSpec, multiple: int = 1) -> tuple[Pair, ...]:
    """What no suggestion depends on."""
    return _cut(spec, "test", _images(spec, "test"), multiple)


def bundled(scale: int) -> tuple[Pair, ...]:
    """What trials are judged on where no folder is given."""
    spec = TrialSpec(model="", scale=scale)
    return _cut(spec, "evaluation", _images(spec, "evaluation"), 1)


def check_held_out(spec: TrialSpec) -> None:
    """Raise DataError where a test image is one that trials are trained or judged on."""
    test = _images(spec, "test").values()
    for part in ("training", "evaluation"):
        check_disjoint(_images(spec, part).values(), test, (part, "test"))


def decided(spec: TrialSpec) -> TrialSpec:
    """The spec with the boxes of what is judged, so that a resumed study looks at exactly the same."""
    return spec.model_copy(update={"eval_boxes": _boxes(spec, "evaluation"), "test_boxes": _boxes(spec, "test")})


def crop_side(spec: TrialSpec) -> int:
    """Side of a crop in the pixels of the images that are given."""
    low = math.ceil(max(CROP_SIDE, BLOCK + 2 * spec.scale) / spec.scale)
    return low if spec.images == "lr" else low * spec.scale


def _images(spec: TrialSpec, part: Part) -> dict[str, Image]:
    """The images of a part that are looked at, by name."""
    paths = sources(_folder(spec, part), part)
    boxes = _decided(spec, part)
    return read_sources({name: path for name, path in paths.items() if not boxes or name in {box[0] for box in boxes}})


def _folder(spec: TrialSpec, part: Part) -> Path | None:
    return {"training": spec.data, "evaluation": spec.eval_data, "test": spec.test_data}[part]


def _decided(spec: TrialSpec, part: Part) -> tuple[Box, ...]:
    return {"training": (), "evaluation": spec.eval_boxes, "test": spec.test_boxes}[part]


def _pair(spec: TrialSpec, image: Image, multiple: int) -> Pair:
    return make_pair(image, spec.scale, multiple) if spec.images == "hr" else low_resolution(image, multiple)


def _cut(spec: TrialSpec, part: Part, images: Mapping[str, Image], multiple: int) -> tuple[Pair, ...]:
    boxes = _decided(spec, part) or _chosen(spec, part, images)
    return tuple(_pair(spec, cut(images[box[0]], box), multiple) for box in boxes)


def cut(image: Image, box: Box) -> Image:
    """A part of an image; its name says where it is, unless it is all of it."""
    _, left, top, width, height = box
    pixels = image.pixels[top : top + height, left : left + width].copy()  # a view would keep the whole image
    return Image(image.name if pixels.shape == image.pixels.shape else f"{image.name}+{left}+{top}", pixels)


def _boxes(spec: TrialSpec, part: Part) -> tuple[Box, ...]:
    return _decided(spec, part) or _chosen(spec, part, _images(spec, part))


def _chosen(spec: TrialSpec, part: Part, images: Mapping[str, Image]) -> tuple[Box, ...]:
    """All of the images where that is asked for or no more than WHOLE_PIXELS of a folder, else crops."""
    pixels = sum(image.pixels.shape[0] * image.pixels.shape[1] for image in images.values())
    small = pixels * (spec.scale**2 if spec.images == "lr" else 1) <= WHOLE_PIXELS
    if spec.eval_crops == "all" or (spec.eval_crops is None and small and _folder(spec, part)):
        return tuple((name, 0, 0, image.pixels.shape[1], image.pixels.shape[0]) for name, image in images.items())
    side = crop_side(spec)
    boxes = [box for name, image in images.items() for box in grid(name, image, side)]
    return representative(images, boxes, spec.eval_crops or CROPS)


# ---------------------------------------------------------------- the choice


def grid(name: str, image: Image, side: int) -> list[Box]:
    """The crops [side, side] of an image that lie side by side in its middle; all of an image that is too small for one."""
    sizes = image.pixels.shape[:2]
    if min(sizes) < side:
        return [(name, 0, 0, sizes[1], sizes[0])]
    tops, lefts = (range(size % side // 2, size - side + 1, side) for size in sizes)
    return [(name, left, top, side, side) for top in tops for left in lefts]


def representative(images: Mapping[str, Image], boxes: Sequence[Box], count: int) -> tuple[Box, ...]:
    """Boxes that all boxes are near to: each next one is what most lessens their distances to the chosen, every image alike.

    Distances are between `features`, each counted in its own spread. Boxes without any detail are left out if others suffice.
    Returned in the order of `boxes`.
    """
    boxes = [
        boxes[index] for index in np.unique(np.linspace(0, len(boxes) - 1, min(len(boxes), MOST_CANDIDATES)).round().astype(int))
    ]
    crops = [cut(images[box[0]], box).pixels for box in boxes]
    values = np.array([features(pixels) for pixels in crops])
    lively = np.flatnonzero(values[:, SHARE_WITH_DETAIL] >= DULL)
    if len(lively) >= count:
        boxes, values = [boxes[index] for index in lively], values[lively]
    values = (values - values.mean(0)) / np.maximum(values.std(0), 1e-6)
    distances = np.sqrt(((values[:, None] - values[None]) ** 2).sum(-1))
    of_image = Counter(box[0] for box in boxes)
    weights = np.array([1 / of_image[box[0]] for box in boxes])
    chosen: list[int] = []
    nearest = np.full(len(boxes), np.inf)
    for _ in range(min(count, len(boxes))):
        left = [index for index in range(len(boxes)) if index not in chosen]
        chosen.append(min(left, key=lambda index: float(np.minimum(nearest, distances[index]) @ weights)))
        nearest = np.minimum(nearest, distances[chosen[-1]])
    return tuple(boxes[index] for index in sorted(chosen))


SHARE_WITH_DETAIL = 2
"""Its place in `features`."""


def features(pixels: np.ndarray) -> list[float]:
    """What a crop, uint8 RGB [height, width, 3], shows: how much detail, its strongest edges, its share of area with detail,
    whether edges run one way (1) or every way (0), and its mean colour.
    """
    luma = pixels @ LUMA / 255
    down, right = np.diff(luma, axis=0), np.diff(luma, axis=1)
    down, right = (down[:, :-1] + down[:, 1:]) / 2, (right[:-1] + right[1:]) / 2  # of the same four pixels
    steepness = np.hypot(down, right)
    energy = float((down**2 + right**2).sum())
    one_way = math.hypot(float((down**2 - right**2).sum()), 2 * float((down * right).sum())) / energy if energy else 0.0
    return [
        math.log(float(steepness.mean()) + 1e-3),
        math.log(float(np.quantile(steepness, 0.99)) + 1e-3),
        float((steepness > VARIATION_THRESHOLD).mean()),
        one_way,
        *(pixels.mean((0, 1)) / 255),
    ]
