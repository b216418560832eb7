"""An exported file put to use: one image through it, in tiles."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from autoq.deploy.tiling import Tiling, count, upscaled
from autoq.errors import AutoqError, InputError
from autoq.export.geometry import ASK, Geometry, geometry, read_network
from autoq.images.reader import Canvas, check_output, read_picture
from autoq.system.processor import available_cores
from autoq.targets import load_target

MOST_OVERLAP = 48
"""Margin of a tile where the network sees further, or nobody knows how far: input pixels.

It is the whole reach of SRResNet and EDSR of 16 blocks. Of ESRGAN's 6 blocks, which reach 95 pixels, it leaves less than
1e-3 of a level of 255 in float; in integers what remains is rounding, 57 dB from the whole image.
"""

TILE_MEMORY = 2**30
"""Bytes that the heaviest operator of a network may read and write for one tile, as float32."""

LEAST_TILE, MOST_TILE = 64, 512
"""Side that a tile adds by default, input pixels."""

PROBE = 24
"""Side, in pixels, of the image that shows what scale a network has."""

Progress = Callable[[int, int], None]


class Network:
    """An exported file as its target runs it: float32 RGB [1, 3, h, w] in [0, 1] -> [1, 3, scale h, scale w].

    An image whose sides are not multiples of what the network needs is reflected at its end, and the result cut.
    Raises InputError for a file that is not a super-resolution network, or that the target does not load.
    """

    def __init__(self, file: Path, target: str, threads: int | None) -> None:
        self.file, self.target = file, target
        runtime = load_target(target)
        try:
            content = file.read_bytes()
        except OSError as error:
            raise InputError(f"'{file}': {error.strerror}; {ASK}") from error
        self.geometry: Geometry = geometry(read_network(content, str(file)))
        try:
            self.run = runtime.load(content, threads or available_cores())
            side = math.ceil(PROBE / self.geometry.multiple) * self.geometry.multiple
            output = self.run(np.zeros((1, 3, side, side), np.float32))
        except RuntimeError as error:
            raise InputError(f"'{file}': {target} does not run it ({_reason(error)}); {ASK}") from error
        self.scale = output.shape[-1] // side
        if self.scale < 1 or output.shape != (1, 3, self.scale * side, self.scale * side):
            given = f"an image [1, 3, {side}, {side}] gave {list(output.shape)}"
            raise InputError(f"'{file}': {given}, expected [1, 3, side, side], larger by a whole scale; {ASK}")

    def __call__(self, image: np.ndarray) -> np.ndarray:
        height, width = image.shape[2:]
        more = [(0, -side % self.geometry.multiple) for side in (height, width)]
        try:
            output = self.run(np.pad(image, [(0, 0), (0, 0), *more], "reflect") if any(map(any, more)) else image)
            return output[:, :, : height * self.scale, : width * self.scale]
        except RuntimeError as error:
            size = f"{image.shape[3]}x{image.shape[2]}"
            raise AutoqError(f"'{self.file}': {self.target} does not run it on {size} ({_reason(error)})") from error


def _reason(error: RuntimeError) -> str:
    """The last line of what a runtime says that is neither a place in its source nor a page to read."""
    lines = [line.strip(" -") for line in str(error).splitlines() if not re.match("Exception from|Check |$", line)]
    return next((line for line in reversed(lines) if "http" not in line), type(error).__name__)


def tiling(found: Geometry, tile: int | None = None) -> Tiling:
    """How a network's images are cut. tile: side that each tile adds; as much as TILE_MEMORY holds if None."""
    overlap = MOST_OVERLAP if found.reach is None else min(found.reach, MOST_OVERLAP)
    if tile is None:
        side = math.isqrt(TILE_MEMORY // max(1, found.bytes_per_pixel))
        tile = min(max(side - 2 * overlap, LEAST_TILE), MOST_TILE)
    overlap, tile = (math.ceil(length / found.grid) * found.grid for length in (overlap, tile))
    return Tiling(tile, overlap, found.grid)


def upscale(
    file: str | Path,
    image: str | Path,
    output: str | Path,
    *,
    target: str = "openvino-cpu",
    tile: int | None = None,
    threads: int | None = None,
    progress: Progress = lambda done, total: None,
) -> dict[str, Any]:
    """Upscale an image of any size by an exported file, and write it as PNG: there whole or not at all.

    file: an .onnx file of a search, float32 RGB in [0, 1] in and out. image: 8 or 16 bits, RGB, grey or palette;
    transparency is upscaled by bicubic interpolation. tile: side, in input pixels, that each tile adds to the result.
    threads: all cores if None. progress: called with the tiles done and their number. Memory is that of one tile and 4
    bytes an output pixel. Returns what was done; `exact` says whether the tiles overlap by all that the network sees.

    Raises InputError for a file or an image that cannot be used, or an output that is the input.
    """
    network_file, source_file, result_file = Path(file), Path(image), Path(output)
    check_output(result_file, (network_file, source_file))
    source = read_picture(source_file)
    network = Network(network_file, target, threads)
    plan = tiling(network.geometry, tile)
    height, width = source.pixels.shape[:2]
    total = count(height, width, plan)
    canvas = Canvas(source, network.scale)
    progress(0, total)
    for done, part in enumerate(upscaled(network, source.pixels, network.scale, plan), 1):
        canvas.put(*part)
        progress(done, total)
    canvas.save(result_file)
    reach = network.geometry.reach
    return {
        "file": str(network_file), "input": str(source_file), "output": str(result_file), "scale": network.scale,
        "width": width * network.scale, "height": height * network.scale, "tiles": total, "tile": plan.tile,
        "overlap": plan.overlap, "reach": reach, "exact": total == 1 or (reach is not None and reach <= plan.overlap),
        "note": source.note,
    }  # fmt: skip
