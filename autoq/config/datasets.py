"""Public image sets by name: where they lie below one folder, under the names that people's folders have."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from autoq.errors import InputError

ROOT = "AUTOQ_DATA"
"""Environment variable with the folder that image sets lie in."""

DATASETS: dict[str, tuple[str, ...]] = {
    "set5": ("set5",),
    "set14": ("set14",),
    "bsd100": ("bsd100", "b100", "bsds100"),
    "urban100": ("urban100",),
    "manga109": ("manga109",),
    "general100": ("general100",),
    "t91": ("t91",),
    "bsds200": ("bsds200",),
    "div2k_valid": ("div2k_valid_hr",),
    "div2k_train": ("div2k_train_hr",),
    "pirm": ("pirm", "pirm_test", "pirm_test_set", "pirm_val", "pirm_valset_100"),
}
"""A set's name -> names of its folder, in lower case."""

HIGH = ("hr", "gt", "gtmod12", "original", "original_images", "high")
"""Names of the subfolder of originals, in lower case, where a set has one beside its low-resolution images."""

DEPTH = 2
"""Folders between the root and a set's: `benchmark/Set5`."""


def image_folder(given: str | Path, root: str | Path | None = None) -> Path:
    """The folder of a path or of a set's name, from the root of the file system. root: instead of the environment's.

    Raises:
        InputError: A set's name without a root, or a root without the set.
    """
    name = str(given).lower()
    if name not in DATASETS or Path(given).exists():
        return Path(given).resolve()
    below = root or os.environ.get(ROOT)
    if not below or not Path(below).is_dir():
        missing = below or given
        raise InputError(f"'{missing}': no such folder; type --data-root DIR, or set {ROOT}, with the folder of your image sets")
    for folder in _folders(Path(below).resolve(), DEPTH):
        if folder.name.lower() in DATASETS[name]:
            return next((inner for inner in _folders(folder, 1) if inner.name.lower() in HIGH), folder)
    raise InputError(f"'{given}': no folder of this name in '{below}' or {DEPTH - 1} folder below; give the path of its images")


def _folders(folder: Path, depth: int) -> Iterator[Path]:
    """The folders below one, those that are less deep first, by name."""
    inner = sorted(path for path in folder.iterdir() if path.is_dir() and path.name[0] != ".")
    yield from inner
    if depth > 1:
        for path in inner:
            yield from _folders(path, depth - 1)
