"""Images in, low-resolution pairs and training patches out.

Images are RGB uint8 [height, width, 3]; networks see float32 in [0, 1], [n, 3, height, width].
"""

from __future__ import annotations

import hashlib
import importlib.util
import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from autoq.config.options import Sampling
from autoq.errors import DataError
from autoq.images.pixels import to_input as pixels_as_input
from autoq.images.pixels import to_pixels as as_pixels
from autoq.images.reader import read_picture

SUFFIXES = {".png", ".bmp", ".jpg", ".jpeg", ".tif", ".tiff", ".webp"}
SYSTEM_FILES = {"thumbs.db", "desktop.ini"}
"""Files that nobody put there on purpose, in lower case; neither did anybody those whose names begin with a dot."""

Part = Literal["training", "evaluation", "test"]
PHOTOGRAPHS: dict[Part, tuple[str, ...]] = {
    "training": ("skimage/data/motorcycle_left.png", "skimage/data/motorcycle_right.png", "skimage/data/retina.jpg"),
    "evaluation": ("skimage/data/astronaut.png", "skimage/data/chelsea.png", "skimage/data/ihc.png", "skimage/data/rocket.jpg"),
    "test": (
        "matplotlib/mpl-data/sample_data/grace_hopper.jpg",
        "skimage/data/coffee.png",
        "skimage/data/hubble_deep_field.jpg",
    ),
}
"""The colour photographs inside scikit-image's and matplotlib's wheels; no scene is in two parts."""

Names = tuple[Part, Part]
WHY: dict[Names, str] = {
    ("training", "evaluation"): "a trial must not be judged on what it was trained on",
    ("training", "test"): "nothing may be confirmed on what it was trained on",
    ("evaluation", "test"): "nothing may be confirmed on what it was chosen by",
}
OPTION: dict[Part, str] = {"evaluation": "eval-data", "test": "test-data"}

CALIBRATION_PATCHES = 64

VARIATION_THRESHOLD = 0.02
"""Differences of neighbouring luma values (of 1) up to this are noise, not detail: five of 255 levels."""


@dataclass(frozen=True)
class Image:
    """A named RGB image, uint8 [height, width, 3]."""

    name: str
    pixels: np.ndarray


@dataclass(frozen=True)
class Pair:
    """What a network is given and the original it comes from, both uint8 RGB [height, width, 3]. high: None without one."""

    name: str
    high: np.ndarray | None
    low: np.ndarray


def read_image(path: Path) -> Image:
    """One image file, see `pictures.read_picture`; transparency is left out. Raises DataError when it cannot be used."""
    return Image(path.stem, read_picture(path).pixels)


def image_files(folder: Path) -> list[Path]:
    """The image files of a folder, by name. Raises DataError when there are none."""
    if not folder.is_dir():
        found = "not a folder" if folder.exists() else "no such folder"
        raise DataError(f"image folder '{folder}': {found}; give a folder of {', '.join(sorted(SUFFIXES))} files")
    paths = sorted(path for path in _visible(folder) if path.suffix.lower() in SUFFIXES)
    if not paths:
        raise DataError(f"image folder '{folder}': holds no image; give a folder of {', '.join(sorted(SUFFIXES))} files")
    return paths


def _visible(folder: Path) -> Iterator[Path]:
    """The files of a folder itself, without hidden ones and those of an operating system."""
    return (path for path in folder.iterdir() if path.name[0] != "." and path.name.lower() not in SYSTEM_FILES and path.is_file())


def unread(folder: Path) -> str:
    """One line about the files of a folder that `read_folder` does not take; empty where it takes all."""
    kinds = [path.suffix.lower() for path in _visible(folder) if path.suffix.lower() not in SUFFIXES]
    if not kinds:
        return ""
    what = "1 file of another kind was" if len(kinds) == 1 else f"{len(kinds)} files of other kinds were"
    return f"{folder.name}/: {what} not read ({', '.join(sorted({kind or 'no suffix' for kind in kinds}))})"


def sources(folder: Path | None, part: Part) -> dict[str, Path]:
    """The image files of a folder, or the photographs of a part, by the names that their images have: none twice."""
    if folder is None:
        paths = [_package(place.partition("/")[0]).parent / place for place in PHOTOGRAPHS[part]]
    else:
        paths = image_files(folder)
    stems = Counter(path.stem for path in paths)
    return {path.stem if stems[path.stem] == 1 else path.name: path for path in paths}


def _package(name: str) -> Path:
    """The folder of an installed package, which is not imported."""
    found = importlib.util.find_spec(name)
    assert found is not None
    assert found.origin is not None
    return Path(found.origin).parent


def read_sources(paths: Mapping[str, Path]) -> dict[str, Image]:
    """Images by name. Raises DataError when one cannot be read."""
    return {name: Image(name, read_picture(path).pixels) for name, path in paths.items()}


def read_folder(folder: Path) -> list[Image]:
    """All images of a folder, by name. Raises DataError when there are none, or one cannot be read."""
    return list(read_sources(sources(folder, "evaluation")).values())


def train_images(folder: Path | None) -> list[Image]:
    """Training and calibration images: the folder's, or photographs inside installed packages."""
    return list(read_sources(sources(folder, "training")).values())


def eval_images(folder: Path | None) -> list[Image]:
    """Evaluation images, whole: the folder's, or photographs inside installed packages."""
    return list(read_sources(sources(folder, "evaluation")).values())


def check_disjoint(known_images: Iterable[Image], others: Iterable[Image], names: Names = ("training", "evaluation")) -> None:
    """Raise DataError if one of the others is among the known images, pixel for pixel. names: what both are."""
    known = {_fingerprint(image): image.name for image in known_images}
    for image in others:
        if (same := known.get(_fingerprint(image))) is not None:
            told = f"{names[1]} image '{image.name}' is {names[0]} image '{same}'"
            raise DataError(f"{told}: {WHY[names]}; give another --{OPTION[names[1]]}")


def _fingerprint(image: Image) -> tuple[tuple[int, ...], bytes]:
    return image.pixels.shape, hashlib.sha256(image.pixels.tobytes()).digest()


# ---------------------------------------------------------------- low resolution


LEAST_SIDE = 8
"""Low-resolution pixels that an image must have on either side."""


def make_pair(image: Image, scale: int, multiple: int = 1) -> Pair:
    """An image cut so that it can be reduced to whole pixels, a multiple of `multiple`, and its reduction by `resize`."""
    high = _cut_to(image, scale * multiple, scale, f" for x{scale}").pixels
    height, width = (size // scale for size in high.shape[:2])
    return Pair(image.name, high, resize(high, height, width))


def low_resolution(image: Image, multiple: int = 1) -> Pair:
    """An image as a network's input, cut to a multiple of `multiple`; there is no original."""
    return Pair(image.name, None, _cut_to(image, multiple, 1, "").pixels)


def _cut_to(image: Image, step: int, scale: int, purpose: str) -> Image:
    """An image without the last rows and columns that are no whole step."""
    height, width = image.pixels.shape[:2]
    least = max(LEAST_SIDE * scale, step)
    if min(height, width) < least:
        raise DataError(f"image '{image.name}': {width}x{height} is too small{purpose}; give images of {least}x{least} or more")
    return Image(image.name, image.pixels[: height - height % step, : width - width % step])


def resize(pixels: np.ndarray, height: int, width: int) -> np.ndarray:
    """Bicubic (a = -0.5) with antialiasing on reduction and mirrored edges: MATLAB's imresize, on uint8.

    Like it, the axis that shrinks most comes first (of equal ones the rows), and each is rounded to uint8 by itself.
    """
    sizes = {0: height, 1: width}
    for axis in sorted(sizes, key=lambda axis: sizes[axis] / pixels.shape[axis]):
        weights, indices = _cubic_taps(pixels.shape[axis], sizes[axis])
        taken = np.take(pixels, indices, axis=axis)  # the taps become the axis after `axis`
        shape = [1] * taken.ndim
        shape[axis], shape[axis + 1] = weights.shape
        # MATLAB rounds half away from zero
        pixels = np.clip(np.floor((taken * weights.reshape(shape)).sum(axis + 1) + 0.5), 0, 255).astype(np.uint8)
    return pixels


def _cubic_taps(before: int, after: int) -> tuple[np.ndarray, np.ndarray]:
    """(weights, source indices), each [after, taps]: Keys 1981 with a = -0.5, stretched when reducing."""
    stretch = max(before / after, 1.0)
    centres = (np.arange(after) + 0.5) * before / after - 0.5
    taps = math.ceil(4 * stretch) + 2
    positions = np.floor(centres - 2 * stretch)[:, None] + np.arange(taps)
    distance = np.abs(positions - centres[:, None]) / stretch
    weights = np.where(
        distance <= 1,
        1.5 * distance**3 - 2.5 * distance**2 + 1,
        np.where(distance <= 2, -0.5 * distance**3 + 2.5 * distance**2 - 4 * distance + 2, 0.0),
    )
    mirrored = np.mod(positions.astype(int), 2 * before)
    indices = np.minimum(mirrored, 2 * before - 1 - mirrored)
    return weights / weights.sum(1, keepdims=True), indices


# ---------------------------------------------------------------- tensors


def to_tensor(pixels: np.ndarray) -> Tensor:
    """uint8 [height, width, 3] -> float32 [1, 3, height, width] in [0, 1]."""
    return torch.from_numpy(pixels_as_input(pixels))


def to_pixels(batch: Tensor) -> np.ndarray:
    """Network output [1, 3, height, width] -> uint8 [height, width, 3], clipped and rounded."""
    return as_pixels(batch[0].numpy())


@dataclass(frozen=True)
class PatchPlan:
    """Which training patches a study sees, in which order: the same for every trial.

    pool: distinct patches; side: their low-resolution side in pixels; batch: patches a step; sampling: where they are
    cut, see `PatchSampler`.
    """

    pool: int
    side: int
    batch: int
    seed: int
    sampling: Sampling = "uniform"


class PatchSampler:
    """Where patches are cut from low-resolution images: every image as often, or by complexity.

    Complexity is TVAT, total variation above a threshold, of MMSR (Yuan et al., cited by Liu et al. 2021): the mean
    difference of neighbouring luma values, differences below VARIATION_THRESHOLD (noise) left out. `proportional`:
    a patch is as likely as it is complex; `threshold`: only the more complex half of all patches, equally likely. Images
    without any detail are drawn from uniformly.
    """

    def __init__(self, pairs: Sequence[Pair], side: int, sampling: Sampling) -> None:
        self.pairs = [pair for pair in pairs if min(pair.low.shape[:2]) >= side]
        if not self.pairs:
            names = f"'{pairs[0].name}' and {len(pairs) - 1} more" if len(pairs) > 1 else f"'{pairs[0].name}'"
            raise DataError(
                f"training images {names}: too small for a {side}x{side} low-resolution patch; give larger images with --data"
            )
        self.side = side
        weights = [complexity(pair.low, side) for pair in self.pairs] if sampling != "uniform" else []
        self.uniform = not any(values.any() for values in weights)
        if self.uniform:
            return
        if sampling == "threshold":
            middle = np.median(np.concatenate([values.ravel() for values in weights]))
            weights = [(values >= middle).astype(float) for values in weights]
        self.ends = np.cumsum([values.size for values in weights])
        self.cumulative = np.cumsum(np.concatenate([values.ravel() for values in weights]))

    def draw(self, random: np.random.Generator, image: int | None = None) -> tuple[Pair, int, int]:
        """(pair, top, left) of one low-resolution patch. image: which one, where every image is as likely."""
        if self.uniform:
            pair = self.pairs[int(random.integers(len(self.pairs))) if image is None else image]
            top, left = (int(random.integers(size - self.side + 1)) for size in pair.low.shape[:2])
            return pair, top, left
        place = int(np.searchsorted(self.cumulative, random.random() * self.cumulative[-1], side="right"))
        which = int(np.searchsorted(self.ends, place, side="right"))
        pair = self.pairs[which]
        top, left = divmod(place - (int(self.ends[which - 1]) if which else 0), pair.low.shape[1] - self.side + 1)
        return pair, top, left


def complexity(low: np.ndarray, side: int) -> np.ndarray:
    """TVAT of every patch of a uint8 RGB image [h, w, 3]: float64 [h - side + 1, w - side + 1], see `PatchSampler`."""
    luma = low @ np.array([0.299, 0.587, 0.114]) / 255
    variation = np.zeros(luma.shape)
    for axis in (0, 1):
        difference = np.abs(np.diff(luma, axis=axis, append=np.take(luma, [-1], axis)))
        variation += np.where(difference > VARIATION_THRESHOLD, difference, 0.0)
    sums = np.pad(variation, ((1, 0), (1, 0))).cumsum(0).cumsum(1)
    totals = sums[side:, side:] - sums[:-side, side:] - sums[side:, :-side] + sums[:-side, :-side]
    found: np.ndarray = np.maximum(totals, 0.0) / side**2
    return found


def turned(patch: np.ndarray, turns: int, flip: bool) -> np.ndarray:
    """One of the eight ways to lay a patch [side, side, 3]."""
    patch = np.rot90(patch, turns)
    return patch[:, ::-1] if flip else patch


def training_patches(pairs: Sequence[Pair], plan: PatchPlan) -> Tensor:
    """`pool` low-resolution patches [pool, 3, side, side], flipped and turned; if uniform, as many from every image."""
    random = np.random.default_rng([plan.seed, 1])
    sampler = PatchSampler(pairs, plan.side, plan.sampling)
    order = np.arange(plan.pool) % len(sampler.pairs)
    patches = []
    for image in random.permutation(order) if sampler.uniform else order:
        pair, top, left = sampler.draw(random, int(image))
        patch = pair.low[top : top + plan.side, left : left + plan.side]
        patches.append(to_tensor(turned(patch, int(random.integers(4)), bool(random.integers(2)))))
    return torch.cat(patches)


def calibration_patches(pairs: Sequence[Pair], seed: int, side: int = 24) -> list[Tensor]:
    """CALIBRATION_PATCHES low-resolution patches in batches [8, 3, side, side]: from everywhere in the training images.

    A few central crops are not enough: ranges must cover the brightest and the busiest places.
    """
    plan = PatchPlan(pool=CALIBRATION_PATCHES, side=side, batch=8, seed=seed)
    return list(torch.split(training_patches(pairs, plan), plan.batch))


def batches(plan: PatchPlan, steps: int) -> Iterator[np.ndarray]:
    """Indices into the pool, step by step: shuffled epochs, the same for every trial of a study."""
    random = np.random.default_rng([plan.seed, 2])
    order = np.empty(0, dtype=int)
    for _ in range(steps):
        if order.size < plan.batch:
            order = np.concatenate([order, random.permutation(plan.pool)])
        yield order[: plan.batch]
        order = order[plan.batch :]
