"""Select the images and crops that a study trains on, evaluates on, and validates on.

Small folders are used in full. From large folders and from the bundled photographs, crops of one size are selected that
represent all images (texture, edges and flat regions), so that evaluation stays fast.
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
"""In output pixels. A crop and its halves divide by 2, 3 and 4; without a border of `scale` it holds a block of NIQE."""

WHOLE_PIXELS = 1_500_000
"""Folders with up to this many output pixels are evaluated in full."""

MOST_CANDIDATES = 2000
"""Limit on candidate crops, as selection compares all pairs."""

LUMA = np.array([0.299, 0.587, 0.114])
DULL = 0.05
"""Crops with detail in a smaller share of their area are skipped: their PSNR of 45 dB and more would dominate the mean."""


def searched(spec: TrialSpec, multiple: int = 1) -> tuple[list[Pair], tuple[Pair, ...]]:
    """The full training images and the evaluation crops of a study.

    Args:
        spec: The trials' settings.
        multiple: The sides of a network's input must be multiples of this.

    Returns:
        (training pairs, evaluation pairs).

    Raises:
        DataError: Both sets share an image, or an image cannot be used.
    """
    train, evaluation = _images(spec, "training"), _images(spec, "evaluation")
    check_disjoint(train.values(), evaluation.values())
    return [_pair(spec, image, multiple) for image in train.values()], _cut(spec, "evaluation", evaluation, multiple)


def held_out(spec: TrialSpec, multiple: int = 1) -> tuple[Pair, ...]:
    """The held-out pairs, which no suggestion of the search depends on."""
    return _cut(spec, "test", _images(spec, "test"), multiple)


def bundled(scale: int) -> tuple[Pair, ...]:
    """The evaluation pairs that are used if no folder is given."""
    spec = TrialSpec(model="", scale=scale)
    return _cut(spec, "evaluation", _images(spec, "evaluation"), 1)


def check_held_out(spec: TrialSpec) -> None:
    """Raise DataError if a held-out image is also a training or evaluation image."""
    test = _images(spec, "test").values()
    for part in ("training", "evaluation"):
        check_disjoint(_images(spec, part).values(), test, (part, "test"))


def decided(spec: TrialSpec) -> TrialSpec:
    """The spec with the selected crops filled in, so that a resumed study uses the same ones."""
    return spec.model_copy(update={"eval_boxes": _boxes(spec, "evaluation"), "test_boxes": _boxes(spec, "test")})


def crop_side(spec: TrialSpec) -> int:
    """Side of a crop, in pixels of the given images."""
    low = math.ceil(max(CROP_SIDE, BLOCK + 2 * spec.scale) / spec.scale)
    return low if spec.images == "lr" else low * spec.scale


def _images(spec: TrialSpec, part: Part) -> dict[str, Image]:
    """The images of a part that have a crop, by name."""
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
    """Crop an image; the position becomes part of its name unless the crop is the full image."""
    _, left, top, width, height = box
    pixels = image.pixels[top : top + height, left : left + width].copy()  # a view would keep the whole image
    return Image(image.name if pixels.shape == image.pixels.shape else f"{image.name}+{left}+{top}", pixels)


def _boxes(spec: TrialSpec, part: Part) -> tuple[Box, ...]:
    return _decided(spec, part) or _chosen(spec, part, _images(spec, part))


def _chosen(spec: TrialSpec, part: Part, images: Mapping[str, Image]) -> tuple[Box, ...]:
    """Full images if requested, or if a folder has at most WHOLE_PIXELS; otherwise representative crops."""
    pixels = sum(image.pixels.shape[0] * image.pixels.shape[1] for image in images.values())
    small = pixels * (spec.scale**2 if spec.images == "lr" else 1) <= WHOLE_PIXELS
    if spec.eval_crops == "all" or (spec.eval_crops is None and small and _folder(spec, part)):
        return tuple((name, 0, 0, image.pixels.shape[1], image.pixels.shape[0]) for name, image in images.items())
    side = crop_side(spec)
    boxes = [box for name, image in images.items() for box in grid(name, image, side)]
    return representative(images, boxes, spec.eval_crops or CROPS)


# ---------------------------------------------------------------- the choice


def grid(name: str, image: Image, side: int) -> list[Box]:
    """Split an image into adjacent, centred crops of [side, side]; an image too small for one is its own crop."""
    sizes = image.pixels.shape[:2]
    if min(sizes) < side:
        return [(name, 0, 0, sizes[1], sizes[0])]
    tops, lefts = (range(size % side // 2, size - side + 1, side) for size in sizes)
    return [(name, left, top, side, side) for top in tops for left in lefts]


def representative(images: Mapping[str, Image], boxes: Sequence[Box], count: int) -> tuple[Box, ...]:
    """Select boxes that represent all boxes: a greedy k-medoids selection in which every image has the same weight.

    Every step adds the box that reduces the summed distance of all boxes to their nearest selected box most. Distances are
    Euclidean between standardized `features`. Boxes without detail are skipped if enough others remain.

    Returns:
        The selected boxes, in the order of `boxes`.
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
"""Index in `features`."""


def features(pixels: np.ndarray) -> list[float]:
    """Features of a crop, uint8 RGB [height, width, 3]: log mean gradient, log 99th percentile of gradients, share of the area
    with detail, coherence of edge directions (1: all parallel, 0: isotropic), and mean colour.
    """
    luma = pixels @ LUMA / 255
    down, right = np.diff(luma, axis=0), np.diff(luma, axis=1)
    down, right = (down[:, :-1] + down[:, 1:]) / 2, (right[:-1] + right[1:]) / 2  # both centred on the same 2x2 pixels
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
