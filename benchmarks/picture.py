"""Draw one crop of a photograph as several points of a study upscale it: docs/images/compared.png.

python benchmarks/picture.py srgan-x4     the float network, the compromise, another point of the front, and 4/4/8 everywhere

Every point is exported by the product and upscales the photograph, reduced by bicubic interpolation, with its file. Labels are the
study's figures. The photograph is one of scikit-image's that no suggestion of a default search depends on.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
import PIL.Image
import skimage

import autoq

PHOTOGRAPH = "coffee.png"
CROP = (236, 60, 400, 224)
"""Left, top, right, bottom, in pixels of the output."""

POINTS = {"float": "float network", "compromise": "compromise", "smallest": "smallest", "4/4/8": "4/4/8 everywhere"}
"""What is exported, and its title."""


def upscaled(study: str, point: str, image: Path, folder: Path) -> tuple[str, np.ndarray]:
    """A point's title and figures, and the image through its file: uint8 [height, width, 3]."""
    output = folder / f"{point.replace('/', '-')}.png"
    exported = autoq.export_point(study, folder / output.stem, pick=point)
    autoq.upscale(exported.file, image, output)
    lines = json.loads((exported.file.parent / "policy.json").read_text())["lines"]
    values = {line["name"]: line["expected"] for line in lines}
    figures = f"{values['size'] / 1024:.0f} KiB, {values['latency']:.1f} ms"
    if point != "float":
        figures += f", {values['fidelity']:.1f} dB"
    with PIL.Image.open(output) as opened:
        return f"{POINTS.get(point, point)}\n{figures}", np.asarray(opened)


def main() -> None:
    """Draw the picture."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("study", help="name under studies/, or an absolute path")
    parser.add_argument("--points", nargs="+", default=list(POINTS), help="points as --pick names them")
    parser.add_argument("--output", type=Path, default=Path("docs/images/compared.png"))
    options = parser.parse_args()
    figure, axes = plt.subplots(1, len(options.points), figsize=(3.2 * len(options.points), 3.8), squeeze=False)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        with PIL.Image.open(Path(skimage.__file__).parent / "data" / PHOTOGRAPH) as photograph:
            width, height = photograph.size
            photograph.resize((width // 4, height // 4), PIL.Image.Resampling.BICUBIC).save(folder / "small.png")
        for axis, point in zip(axes[0], options.points, strict=True):
            left, top, right, bottom = CROP
            title, pixels = upscaled(options.study, point, folder / "small.png", folder)
            axis.imshow(pixels[top:bottom, left:right])
            axis.set_title(title, fontsize=12)
            axis.axis("off")
    figure.tight_layout()
    figure.savefig(options.output, dpi=72, bbox_inches="tight", pil_kwargs={"optimize": True})
    print(options.output)


if __name__ == "__main__":
    main()
