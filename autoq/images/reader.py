"""Photographs of any kind in, as RGB of 8 bits and what goes with it; PNG files out, whole or not at all."""

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
from autoq.system.files import whole

SUFFIX = ".png"
"""What is written: 8 bits a channel, no pixel changed."""

OPAQUE, CLEAR = ("1", "L", "P", "RGB"), ("LA", "La", "PA", "RGBA", "RGBa")
DEEP = "I;16"
"""Pillow's modes: without and with transparency, and grey of 16 bits in either order of bytes."""

MODES = "RGB, grey or palette, with or without transparency"
ASK = "give a PNG or JPEG image"


@dataclass(frozen=True)
class Picture:
    """uint8 RGB [height, width, 3], upright. alpha: uint8 [height, width] where some of it is transparent. profile: ICC."""

    pixels: np.ndarray
    alpha: np.ndarray | None
    profile: bytes | None
    note: str


def read_picture(path: Path) -> Picture:
    """An image file of 8 or 16 bits a channel, turned upright as its EXIF says. Raises DataError when it is not one."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", PIL.Image.DecompressionBombWarning)
            with PIL.Image.open(path) as file:
                return _picture(file, path)
    except (PIL.Image.DecompressionBombWarning, PIL.Image.DecompressionBombError) as error:
        most = f"{PIL.Image.MAX_IMAGE_PIXELS:,}"
        raise DataError(f"image '{path}': expected {most} pixels or fewer; cut it into parts") from error
    except (OSError, SyntaxError, ValueError) as error:
        reason = getattr(error, "strerror", None) or "not an image, or damaged"
        raise DataError(f"image '{path}': {reason}; {ASK}") from error


def _picture(file: PIL.Image.Image, path: Path) -> Picture:
    if getattr(file, "n_frames", 1) > 1:
        raise DataError(f"image '{path}': holds {file.n_frames} pictures, expected one; save the one you mean by itself")  # type: ignore[attr-defined]
    mode, deep = file.mode, file.mode.startswith(DEEP) or _bits(file) == 16
    if mode not in (*OPAQUE, *CLEAR) and not mode.startswith(DEEP):
        raise DataError(f"image '{path}': found mode {mode}, expected {MODES}; convert it")
    upright = PIL.ImageOps.exif_transpose(file)
    if mode.startswith(DEEP):
        upright = PIL.Image.fromarray((np.asarray(upright) >> 8).astype(np.uint8))
    clear = mode in CLEAR or "transparency" in file.info
    pixels = np.asarray(upright.convert("RGBA" if clear else "RGB"))
    return Picture(
        pixels=pixels[..., :3],
        alpha=pixels[..., 3] if clear else None,
        profile=file.info.get("icc_profile") if mode in ("RGB", "RGBA") else None,
        note=f"'{path}' has 16 bits a channel; its upper 8 are used" if deep else "",
    )


def _bits(file: PIL.Image.Image) -> int:
    """Bits a channel of a PNG or TIFF file that Pillow reads as 8."""
    stored = [str(part[3]) for part in getattr(file, "tile", ())]
    return 16 if any(";16" in arguments for arguments in stored) else 8


def check_output(path: Path, sources: Iterable[Path]) -> None:
    """Raise DataError where a picture cannot be written to a path, or it is one of the sources."""
    if path.suffix.lower() != SUFFIX:
        raise DataError(f"output '{path}': expected a name that ends in {SUFFIX}; type {path.stem or 'output'}{SUFFIX}")
    if path.is_dir():
        raise DataError(f"output '{path}': a folder; give the name of a {SUFFIX} file")
    if not path.parent.is_dir():
        raise DataError(f"output '{path}': there is no folder '{path.parent}'; make it, or give another path")
    for source in sources:
        if path.exists() and source.exists() and path.samefile(source):
            raise DataError(f"output '{path}': that is the input; give another name")
    if not os.access(path.parent, os.W_OK):
        raise DataError(f"output '{path}': nothing can be written to '{path.parent}'; give another path")


class Canvas:
    """A picture that is made tile by tile: 4 bytes a pixel."""

    def __init__(self, source: Picture, scale: int) -> None:
        height, width = source.pixels.shape[:2]
        self.image = PIL.Image.new("RGB" if source.alpha is None else "RGBA", (width * scale, height * scale))
        self.source = source

    def put(self, top: int, left: int, pixels: np.ndarray) -> None:
        """Lay uint8 RGB [height, width, 3] at a place."""
        self.image.paste(PIL.Image.fromarray(np.ascontiguousarray(pixels)), (left, top))

    def save(self, path: Path) -> None:
        """Write a PNG file, transparency upscaled by bicubic interpolation. Raises AutoqError where that cannot be done."""
        if self.source.alpha is not None:
            alpha = PIL.Image.fromarray(np.ascontiguousarray(self.source.alpha))
            self.image.putalpha(alpha.resize(self.image.size, PIL.Image.Resampling.BICUBIC))
        try:
            with whole(path) as partial:
                self.image.save(partial, "PNG", icc_profile=self.source.profile)
        except OSError as error:
            raise AutoqError(f"cannot write '{path}': {error.strerror or error}; make room, or give another path") from error
