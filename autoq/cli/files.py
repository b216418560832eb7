"""Commands about exported files, one library call each. Heavy imports happen inside."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from autoq.cli.frame import app
from autoq.cli.options import JSON, QUIET, TARGET, THREADS, declared, whole
from autoq.system.output import only_results

MOST_SIDE = 8192
MOST_BORDER = 256


@app.command()
def upscale(
    file: Annotated[Path, typer.Argument(help="An exported .onnx file.")],
    image: Annotated[Path, typer.Argument(help="Image to upscale.")],
    output: Annotated[Path, typer.Argument(help="PNG file to write.")],
    target: TARGET = "openvino-cpu",
    tile: Annotated[
        int | None,
        typer.Option(
            parser=whole("--tile", 16, MOST_SIDE, 256),
            metavar="N",
            help="Side of a tile in input pixels; smaller tiles need less memory. Default: as large as 1 GiB allows.",
        ),
    ] = None,
    threads: THREADS = None,
    quiet: QUIET = False,
    json: JSON = False,
) -> None:
    """Upscale an image of any size, in tiles without visible seams.

    Example: autoq upscale compromise/model.onnx photo.png large.png
    """
    from autoq.cli import tables
    from autoq.deploy.upscale import upscale as run
    from autoq.report.progress import counted
    from autoq.study.results import to_json

    with only_results(), counted("tiles", quiet) as progress:
        found = run(file, image, output, target=target, tile=tile, threads=threads, progress=progress)
    if json:
        typer.echo(to_json(found))
    else:
        tables.show_upscaled(found)


@app.command()
def evaluate(
    file: Annotated[Path | None, typer.Argument(help="An exported .onnx file; or give --model.")] = None,
    model: Annotated[
        str | None, declared("model", help="A float network instead of a file: a name, package.module:factory, or a .pth file.")
    ] = None,
    weights: Annotated[Path | None, declared("weights", help="Checkpoint of --model.")] = None,
    data: Annotated[Path | None, declared("data", help="Folder of images.")] = None,
    data_root: Annotated[Path | None, declared("data_root")] = None,
    metrics: Annotated[
        str, typer.Option(metavar="NAMES", help="Some of psnr, ssim, niqe and pi, separated by commas.")
    ] = "psnr,ssim",
    scale: Annotated[int | None, declared("scale", default="the file's")] = None,
    target: Annotated[str | None, declared("target")] = None,
    border: Annotated[
        int | None,
        typer.Option(
            parser=whole("--border", 0, MOST_BORDER, 4),
            metavar="N",
            help="Pixels at the edges to ignore. Default: the scale.",
        ),
    ] = None,
    threads: THREADS = None,
    quiet: QUIET = False,
    json: JSON = False,
) -> None:
    """Downscale images, upscale them again and compare with the originals, as trials are evaluated.

    Example: autoq evaluate compromise/model.onnx --data Set5 --metrics psnr,ssim
    """
    from autoq.cli import tables
    from autoq.deploy.evaluate import evaluate as run
    from autoq.report.progress import counted
    from autoq.study.results import to_json

    with only_results(), counted("images", quiet) as progress:
        found = run(
            file, model=model, weights=weights, data=data, data_root=data_root, metrics=metrics, scale=scale, target=target,
            border=border, threads=threads, progress=progress,
        )  # fmt: skip
    for note in found["notes"]:
        print(f"note: {note}", file=sys.stderr)
    if json:
        typer.echo(to_json({key: value for key, value in found.items() if key not in ("each", "notes")}))
    else:
        tables.show_evaluation(found)
