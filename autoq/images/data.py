"""Image folders, pairs of high- and low-resolution images, and training patches.

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
from autoq.images.reader import KINDS, SUFFIXES, read_picture

SYSTEM_FILES = {"thumbs.db", "desktop.ini"}
"""Files of operating systems, in lower case; these and hidden files are ignored."""

ORIGINAL = "_hr"
"""How names of originals end, in lower case, in folders that also hold their low-resolution images and results."""

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
"""Colour photographs from the scikit-image and matplotlib wheels; no scene is in more than one part."""

Names = tuple[Part, Part]
WHY: dict[Names, str] = {
    ("training", "evaluation"): "trials must be evaluated on images that are not in the training set",
    ("training", "test"): "held-out images must not be in the training set",
    ("evaluation", "test"): "held-out images must not be in the evaluation set",
}
OPTION: dict[Part, str] = {"evaluation": "eval-data", "test": "test-data"}

CALIBRATION_PATCHES = 64

VARIATION_THRESHOLD = 0.02
"""Differences of neighbouring luma values (full scale 1) up to this are noise, not detail: five of 255 levels."""


@dataclass(frozen=True)
class Image:
    """A named RGB image, uint8 [height, width, 3]."""

    name: str
    pixels: np.ndarray


@dataclass(frozen=True)
class Pair:
    """A network's input `low` and its original `high`, both uint8 RGB [height, width, 3]. `high` is None without an original."""

    name: str
    high: np.ndarray | None
    low: np.ndarray


def read_image(path: Path) -> Image:
    """Read one image file without its transparency, see `reader.read_picture`. Raises DataError if it cannot be used."""
    return Image(path.stem, read_picture(path).pixels)


def image_files(folder: Path, part: Part | None = None) -> list[Path]:
    """The image files of a folder, sorted by name. Raises DataError, which names the part, if there are none."""
    what = f"{part} image folder" if part else "image folder"
    if not folder.is_dir():
        reason = "not a folder" if folder.exists() else "no such folder"
        raise DataError(f"{what} '{folder}': {reason}; give a folder of {KINDS} files")
    paths = sorted(path for path in _visible(folder) if path.suffix.lower() in SUFFIXES)
    paths = [path for path in paths if path.stem.lower().endswith(ORIGINAL)] or paths
    if not paths:
        raise DataError(f"{what} '{folder}': no image files; give a folder of {KINDS} files")
    return paths


def _visible(folder: Path) -> Iterator[Path]:
    """The files of a folder without subfolders, hidden files and files of operating systems."""
    return (path for path in folder.iterdir() if path.name[0] != "." and path.name.lower() not in SYSTEM_FILES and path.is_file())


def unread(folder: Path) -> str:
    """One line about the files of a folder that are skipped; empty if there are none."""
    files = list(_visible(folder))
    suffixes = [path.suffix.lower() for path in files if path.suffix.lower() not in SUFFIXES]
    others = len(files) - len(suffixes) - len(image_files(folder))
    skipped = []
    if suffixes:
        types = ", ".join(sorted({suffix or "no suffix" for suffix in suffixes}))
        skipped.append(f"{_files(len(suffixes))} of other types ({types})")
    if others:
        skipped.append(f"{_files(others)} beside originals (*{ORIGINAL.upper()})")
    return f"{folder.name}/: skipped {' and '.join(skipped)}" if skipped else ""


def _files(count: int) -> str:
    return "1 file" if count == 1 else f"{count} files"


def sources(folder: Path | None, part: Part) -> dict[str, Path]:
    """The image files of a folder, or the bundled photographs of a part, by unique image names."""
    if folder is None:
        paths = [_package(place.partition("/")[0]).parent / place for place in PHOTOGRAPHS[part]]
    else:
        paths = image_files(folder, part)
    stems = Counter(path.stem for path in paths)
    return {path.stem if stems[path.stem] == 1 else path.name: path for path in paths}


def _package(name: str) -> Path:
    """The folder of an installed package, found without importing it."""
    spec = importlib.util.find_spec(name)
    assert spec is not None
    assert spec.origin is not None
    return Path(spec.origin).parent


def read_sources(paths: Mapping[str, Path]) -> dict[str, Image]:
    """Read images by name. Raises DataError if one cannot be read."""
    return {name: Image(name, read_picture(path).pixels) for name, path in paths.items()}


def read_folder(folder: Path) -> list[Image]:
    """Read all images of a folder, sorted by name. Raises DataError if there are none, or one cannot be read."""
    return list(read_sources(sources(folder, "evaluation")).values())


def train_images(folder: Path | None) -> list[Image]:
    """Training and calibration images: the folder's, or bundled photographs."""
    return list(read_sources(sources(folder, "training")).values())


def eval_images(folder: Path | None) -> list[Image]:
    """Full evaluation images: the folder's, or bundled photographs."""
    return list(read_sources(sources(folder, "evaluation")).values())


def check_disjoint(first: Iterable[Image], second: Iterable[Image], names: Names = ("training", "evaluation")) -> None:
    """Raise DataError if two sets share an image, pixel for pixel. names: the names of both sets."""
    fingerprints = {_fingerprint(image): image.name for image in first}
    for image in second:
        if (same := fingerprints.get(_fingerprint(image))) is not None:
            raise DataError(
                f"{names[1]} image '{image.name}' is the same as {names[0]} image '{same}': {WHY[names]};"
                f" give another --{OPTION[names[1]]}"
            )


def _fingerprint(image: Image) -> tuple[tuple[int, ...], bytes]:
    return image.pixels.shape, hashlib.sha256(image.pixels.tobytes()).digest()


# ---------------------------------------------------------------- low resolution


LEAST_SIDE = 8
"""Minimum height and width of a low-resolution image, in pixels."""


def make_pair(image: Image, scale: int, multiple: int = 1) -> Pair:
    """Crop an image to sides that divide by `scale * multiple`, and downscale it with `resize`."""
    high = _cut_to(image, scale * multiple, scale, f" for x{scale}").pixels
    height, width = (size // scale for size in high.shape[:2])
    return Pair(image.name, high, resize(high, height, width))


def low_resolution(image: Image, multiple: int = 1) -> Pair:
    """Use an image as a network's input, without an original; its sides are cropped to multiples of `multiple`."""
    return Pair(image.name, None, _cut_to(image, multiple, 1, "").pixels)


def _cut_to(image: Image, step: int, scale: int, purpose: str) -> Image:
    """Crop rows at the bottom and columns at the right so that both sides divide by `step`."""
    height, width = image.pixels.shape[:2]
    least = max(LEAST_SIDE * scale, step)
    if min(height, width) < least:
        raise DataError(
            f"image '{image.name}': {width}x{height} pixels, expected at least {least}x{least}{purpose}; remove the image"
        )
    return Image(image.name, image.pixels[: height - height % step, : width - width % step])


def resize(pixels: np.ndarray, height: int, width: int) -> np.ndarray:
    """Bicubic interpolation as MATLAB's imresize does it on uint8: a = -0.5, antialiasing when downscaling, mirrored edges.

    As in MATLAB, the axis with the smaller scale factor is resized first (rows if both are equal), and each result is
    rounded to uint8.

    Args:
        pixels: uint8 [height, width, channels].
        height: New height in pixels.
        width: New width in pixels.
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
    """(weights, source indices), each [after, taps]: Keys 1981 with a = -0.5; the kernel is stretched when downscaling."""
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
    return weights / weights.sum(1, keepdims=True), mirrored(positions.astype(int), before)


def mirrored(indices: np.ndarray, size: int) -> np.ndarray:
    """Indices of an axis beyond its ends, mirrored back; the outermost pixels count twice."""
    within = np.mod(indices, 2 * size)
    return np.minimum(within, 2 * size - 1 - within)


# ---------------------------------------------------------------- tensors


def to_tensor(pixels: np.ndarray) -> Tensor:
    """uint8 [height, width, 3] -> float32 [1, 3, height, width] in [0, 1]."""
    return torch.from_numpy(pixels_as_input(pixels))


def to_pixels(batch: Tensor) -> np.ndarray:
    """Network output [1, 3, height, width] in [0, 1] -> uint8 [height, width, 3], clipped and rounded."""
    return as_pixels(batch[0].numpy())


@dataclass(frozen=True)
class PatchPlan:
    """The training patches of a study and their order, the same for every trial.

    Attributes:
        pool: Number of distinct patches.
        side: Low-resolution side of a patch in pixels.
        batch: Patches per step.
        seed: Random seed.
        sampling: Where patches are cut, see `PatchSampler`.
    """

    pool: int
    side: int
    batch: int
    seed: int
    sampling: Sampling = "uniform"


class PatchSampler:
    """Samples patches from low-resolution images, uniformly or by complexity.

    Complexity is TVAT, total variation above a threshold, from MMSR (Yuan et al., cited by Liu et al. 2021): the mean
    difference of neighbouring luma values, without differences below VARIATION_THRESHOLD (noise).

    uniform: all images are equally likely.
    proportional: the probability of a patch is proportional to its complexity.
    threshold: the more complex half of all patches, equally likely.

    Images without any detail are sampled uniformly.

    Raises:
        DataError: No image is large enough for a patch.
    """

    def __init__(self, pairs: Sequence[Pair], side: int, sampling: Sampling) -> None:
        self.pairs = [pair for pair in pairs if min(pair.low.shape[:2]) >= side]
        if not self.pairs:
            names = f"'{pairs[0].name}' and {len(pairs) - 1} more" if len(pairs) > 1 else f"'{pairs[0].name}'"
            raise DataError(
                f"training images {names}: smaller than a patch of {side}x{side} low-resolution pixels;"
                " give larger images with --data"
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
        """Draw (pair, top, left) of one low-resolution patch. image: index of the image, used by uniform sampling only."""
        if self.uniform:
            pair = self.pairs[int(random.integers(len(self.pairs))) if image is None else image]
            top, left = (int(random.integers(size - self.side + 1)) for size in pair.low.shape[:2])
            return pair, top, left
        position = int(np.searchsorted(self.cumulative, random.random() * self.cumulative[-1], side="right"))
        index = int(np.searchsorted(self.ends, position, side="right"))
        pair = self.pairs[index]
        top, left = divmod(position - (int(self.ends[index - 1]) if index else 0), pair.low.shape[1] - self.side + 1)
        return pair, top, left


def complexity(low: np.ndarray, side: int) -> np.ndarray:
    """TVAT of every patch of a uint8 RGB image [h, w, 3]: float64 [h - side + 1, w - side + 1], see `PatchSampler`."""
    luma = low @ np.array([0.299, 0.587, 0.114]) / 255
    variation = np.zeros(luma.shape)
    for axis in (0, 1):
        difference = np.abs(np.diff(luma, axis=axis, append=np.take(luma, [-1], axis)))
        variation += np.where(difference > VARIATION_THRESHOLD, difference, 0.0)
    mean: np.ndarray = np.maximum(window_sums(variation, side), 0.0) / side**2
    return mean


def window_sums(values: np.ndarray, side: int) -> np.ndarray:
    """The sum over every window of side x side values of [h, w]: [h - side + 1, w - side + 1]."""
    sums = np.pad(values, ((1, 0), (1, 0))).cumsum(0).cumsum(1)
    totals: np.ndarray = sums[side:, side:] - sums[:-side, side:] - sums[side:, :-side] + sums[:-side, :-side]
    return totals


def turned(patch: np.ndarray, turns: int, flip: bool) -> np.ndarray:
    """Rotate a patch [side, side, 3] by quarter turns and optionally flip it."""
    patch = np.rot90(patch, turns)
    return patch[:, ::-1] if flip else patch


@dataclass(frozen=True)
class Patch:
    """Where a training patch is cut from an image, and how it is turned: `side` low-resolution pixels from (top, left)."""

    pair: Pair
    side: int
    top: int
    left: int
    turns: int
    flip: bool

    def cut(self, pixels: np.ndarray, scale: int = 1) -> np.ndarray:
        """The patch of an image that is `scale` times as large as the low-resolution one: uint8 [scale side, scale side, 3]."""
        top, left, side = (scale * size for size in (self.top, self.left, self.side))
        return turned(pixels[top : top + side, left : left + side], self.turns, self.flip)


def drawn_patches(pairs: Sequence[Pair], plan: PatchPlan) -> Iterator[Patch]:
    """The patches of a plan, with random flips and rotations; uniform sampling balances images."""
    random = np.random.default_rng([plan.seed, 1])
    sampler = PatchSampler(pairs, plan.side, plan.sampling)
    order = np.arange(plan.pool) % len(sampler.pairs)
    for image in random.permutation(order) if sampler.uniform else order:
        pair, top, left = sampler.draw(random, int(image))
        yield Patch(pair, plan.side, top, left, int(random.integers(4)), bool(random.integers(2)))


def training_patches(pairs: Sequence[Pair], plan: PatchPlan) -> Tensor:
    """The low-resolution patches of a plan, float32 [pool, 3, side, side]."""
    return torch.cat([to_tensor(patch.cut(patch.pair.low)) for patch in drawn_patches(pairs, plan)])


def original_patches(pairs: Sequence[Pair], plan: PatchPlan, scale: int) -> Tensor:
    """The originals of a plan's patches, uint8 [pool, 3, scale side, scale side]; every pair has one."""
    patches = (patch.cut(patch.pair.high, scale) for patch in drawn_patches(pairs, plan) if patch.pair.high is not None)
    return torch.stack([torch.from_numpy(np.ascontiguousarray(pixels.transpose(2, 0, 1))) for pixels in patches])


def calibration_patches(pairs: Sequence[Pair], seed: int, side: int = 24) -> list[Tensor]:
    """Sample CALIBRATION_PATCHES low-resolution patches from the training images, in batches [8, 3, side, side].

    A few centre crops are not enough, as ranges must cover the brightest and the most detailed regions.
    """
    plan = PatchPlan(pool=CALIBRATION_PATCHES, side=side, batch=8, seed=seed)
    return list(torch.split(training_patches(pairs, plan), plan.batch))


def batches(plan: PatchPlan, steps: int) -> Iterator[np.ndarray]:
    """Yield the batch of every step as indices into the pool: shuffled epochs, the same for every trial of a study."""
    random = np.random.default_rng([plan.seed, 2])
    order = np.empty(0, dtype=int)
    for _ in range(steps):
        if order.size < plan.batch:
            order = np.concatenate([order, random.permutation(plan.pool)])
        yield order[: plan.batch]
        order = order[plan.batch :]
