"""Upscale one image with an exported file, in tiles."""

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
"""Largest overlap of tiles, in input pixels; also used if the network's receptive field is unknown.

It covers SRResNet and EDSR with 16 blocks. ESRGAN with 6 blocks sees 95 pixels; its error is then below 1e-3 of a level of
255 in float, and 57 dB in integers, which is rounding.
"""

TILE_MEMORY = 2**30
"""Bytes that the largest operator may read and write for one tile, as float32."""

LEAST_TILE, MOST_TILE = 64, 512
"""Bounds of the default tile, in input pixels."""

PROBE = 24
"""Side, in pixels, of the image that is run to find a network's scale."""

Progress = Callable[[int, int], None]


class Network:
    """An exported file in its target's runtime: float32 RGB [1, 3, h, w] in [0, 1] -> [1, 3, scale h, scale w].

    If the sides of an image are not multiples of what the network needs, the image is padded by reflection and the output
    is cropped.

    Raises:
        InputError: The file is not a super-resolution network, or the target cannot load it.
    """

    def __init__(self, file: Path, target: str, threads: int | None) -> None:
        self.file, self.target = file, target
        runtime = load_target(target)
        try:
            content = file.read_bytes()
        except OSError as error:
            raise InputError(f"cannot read '{file}': {error.strerror}; {ASK}") from error
        self.geometry: Geometry = geometry(read_network(content, str(file)))
        try:
            self.run = runtime.load(content, threads or available_cores())
            side = math.ceil(PROBE / self.geometry.multiple) * self.geometry.multiple
            output = self.run(np.zeros((1, 3, side, side), np.float32))
        except RuntimeError as error:
            raise InputError(f"'{file}': {target} cannot run this file ({_reason(error)}); {ASK}") from error
        self.scale = output.shape[-1] // side
        if self.scale < 1 or output.shape != (1, 3, self.scale * side, self.scale * side):
            given = f"input [1, 3, {side}, {side}] gives output {list(output.shape)}"
            raise InputError(f"'{file}': {given}, expected [1, 3, s * {side}, s * {side}] with an integer scale s; {ASK}")

    def __call__(self, image: np.ndarray) -> np.ndarray:
        height, width = image.shape[2:]
        more = [(0, -side % self.geometry.multiple) for side in (height, width)]
        try:
            output = self.run(np.pad(image, [(0, 0), (0, 0), *more], "reflect") if any(map(any, more)) else image)
            return output[:, :, : height * self.scale, : width * self.scale]
        except RuntimeError as error:
            size = f"{image.shape[3]}x{image.shape[2]}"
            raise AutoqError(
                f"'{self.file}': {self.target} failed on {size} pixels ({_reason(error)}); use a smaller image or --tile"
            ) from error


def _reason(error: RuntimeError) -> str:
    """The last line of a runtime's error message that is neither a source location nor a link."""
    lines = [line.strip(" -") for line in str(error).splitlines() if not re.match("Exception from|Check |$", line)]
    return next((line for line in reversed(lines) if "http" not in line), type(error).__name__)


def tiling(geometry: Geometry, tile: int | None = None) -> Tiling:
    """The tiling for a network. tile: size of a tile in input pixels; by default as large as TILE_MEMORY allows."""
    overlap = MOST_OVERLAP if geometry.reach is None else min(geometry.reach, MOST_OVERLAP)
    if tile is None:
        side = math.isqrt(TILE_MEMORY // max(1, geometry.bytes_per_pixel))
        tile = min(max(side - 2 * overlap, LEAST_TILE), MOST_TILE)
    overlap, tile = (math.ceil(length / geometry.grid) * geometry.grid for length in (overlap, tile))
    return Tiling(tile, overlap, geometry.grid)


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
    """Upscale an image of any size with an exported file and write a PNG file atomically.

    Memory use is that of one tile plus 4 bytes per output pixel.

    Args:
        file: An exported .onnx file.
        image: Image with 8 or 16 bits per channel: RGB, grey or palette. Transparency is upscaled with bicubic interpolation.
        output: Path of the PNG file.
        target: Runtime for `file`.
        tile: Size of a tile in input pixels. Default: as large as 1 GiB of memory allows.
        threads: Threads of the runtime. Default: all cores.
        progress: Called with the number of tiles done and the total.

    Returns:
        A dict with file, input, output, scale, width, height, tiles, tile, overlap, reach, exact and note. `exact` is True
        if the overlap covers the network's receptive field.

    Raises:
        InputError: A file cannot be used, or the output is the input.
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
