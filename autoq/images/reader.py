"""Read image files as 8-bit RGB with transparency and colour profile; write PNG files atomically."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import PIL.Image
import PIL.ImageOps

from autoq.errors import AutoqError, DataError
from autoq.system.files import atomic_write

SUFFIX = ".png"
"""Suffix of output files: lossless, 8 bits per channel."""

OPAQUE, CLEAR = ("1", "L", "P", "RGB"), ("LA", "La", "PA", "RGBA", "RGBa")
DEEP = "I;16"
"""Pillow's modes: without and with transparency, and 16-bit grey in either byte order."""

SUFFIXES = (".bmp", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp")
KINDS = f"{', '.join(SUFFIXES[:-1])} or {SUFFIXES[-1]}"
MODES = "RGB, grey or palette, with or without transparency"
ASK = f"give an existing {KINDS} file"


@dataclass(frozen=True)
class Picture:
    """A decoded image.

    Attributes:
        pixels: uint8 RGB [height, width, 3], upright.
        alpha: uint8 [height, width]; None for an opaque image.
        profile: ICC profile.
        note: A remark for the user; empty if there is none.
    """

    pixels: np.ndarray
    alpha: np.ndarray | None
    profile: bytes | None
    note: str


def read_picture(path: Path) -> Picture:
    """Read an image file with 8 or 16 bits per channel, rotated as its EXIF data says. Raises DataError for any other file."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", PIL.Image.DecompressionBombWarning)
            with PIL.Image.open(path) as file:
                return _picture(file, path)
    except (PIL.Image.DecompressionBombWarning, PIL.Image.DecompressionBombError) as error:
        limit = f"{PIL.Image.MAX_IMAGE_PIXELS:,}"
        raise DataError(f"image '{path}': too large, expected at most {limit} pixels; split the image") from error
    except (OSError, SyntaxError, ValueError) as error:
        reason = getattr(error, "strerror", None) or "not an image, or damaged"
        reason = reason[0].lower() + reason[1:]
        raise DataError(f"cannot read image '{path}': {reason}; {ASK}") from error


def _picture(file: PIL.Image.Image, path: Path) -> Picture:
    if getattr(file, "n_frames", 1) > 1:
        raise DataError(f"image '{path}': {file.n_frames} frames, expected one; save a single frame")  # type: ignore[attr-defined]
    mode, deep = file.mode, file.mode.startswith(DEEP) or _bits(file) == 16
    if mode not in (*OPAQUE, *CLEAR) and not mode.startswith(DEEP):
        raise DataError(f"image '{path}': mode {mode}, expected {MODES}; convert the image")
    upright = PIL.ImageOps.exif_transpose(file)
    if mode.startswith(DEEP):
        upright = PIL.Image.fromarray((np.asarray(upright) >> 8).astype(np.uint8))
    clear = mode in CLEAR or "transparency" in file.info
    pixels = np.asarray(upright.convert("RGBA" if clear else "RGB"))
    return Picture(
        pixels=pixels[..., :3],
        alpha=pixels[..., 3] if clear else None,
        profile=file.info.get("icc_profile") if mode in ("RGB", "RGBA") else None,
        note=f"'{path}' has 16 bits per channel; only the upper 8 are used" if deep else "",
    )


def _bits(file: PIL.Image.Image) -> int:
    """Bits per channel of a PNG or TIFF file that Pillow reads as 8-bit."""
    stored = [str(part[3]) for part in getattr(file, "tile", ())]
    return 16 if any(";16" in arguments for arguments in stored) else 8


def check_output(path: Path, sources: Iterable[Path]) -> None:
    """Raise DataError if an image cannot be written to a path, or the path is one of the sources."""
    if path.suffix.lower() != SUFFIX:
        raise DataError(f"output '{path}': expected a {SUFFIX} file; type {path.stem or 'output'}{SUFFIX}")
    if path.is_dir():
        raise DataError(f"output '{path}' is a folder, expected a {SUFFIX} file; give a file name")
    if not path.parent.is_dir():
        raise DataError(f"output '{path}': no such folder '{path.parent}'; create it, or give another path")
    for source in sources:
        if path.exists() and source.exists() and path.samefile(source):
            raise DataError(f"output '{path}' is an input file; give another name")
    if not os.access(path.parent, os.W_OK):
        raise DataError(f"output '{path}': no permission to write to '{path.parent}'; give another path")


class Canvas:
    """An output image that is filled tile by tile; uses up to 4 bytes per pixel."""

    def __init__(self, source: Picture, scale: int) -> None:
        height, width = source.pixels.shape[:2]
        self.image = PIL.Image.new("RGB" if source.alpha is None else "RGBA", (width * scale, height * scale))
        self.source = source

    def put(self, top: int, left: int, pixels: np.ndarray) -> None:
        """Paste uint8 RGB [height, width, 3]."""
        self.image.paste(PIL.Image.fromarray(np.ascontiguousarray(pixels)), (left, top))

    def save(self, path: Path) -> None:
        """Write a PNG file, with transparency upscaled by bicubic interpolation. Raises AutoqError if writing fails."""
        if self.source.alpha is not None:
            alpha = PIL.Image.fromarray(np.ascontiguousarray(self.source.alpha))
            self.image.putalpha(alpha.resize(self.image.size, PIL.Image.Resampling.BICUBIC))
        try:
            with atomic_write(path) as partial:
                self.image.save(partial, "PNG", icc_profile=self.source.profile)
        except OSError as error:
            raise AutoqError(f"cannot write '{path}': {error.strerror or error}; free some space, or give another path") from error
