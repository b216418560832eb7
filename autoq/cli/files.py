"""Commands about exported files: translated into one library call each. Heavy imports happen inside."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from autoq.cli.frame import app
from autoq.cli.options import JSON, MOST_PROCESSES, MOST_SCALE, QUIET, TARGET, whole
from autoq.system.output import only_results

MOST_SIDE = 8192
MOST_BORDER = 256

THREADS = Annotated[
    int | None,
    typer.Option(
        parser=whole("--threads", 1, MOST_PROCESSES, 2), metavar="N", show_default="all cores", help="Threads it runs on."
    ),
]


@app.command()
def upscale(
    file: Annotated[Path, typer.Argument(help="An .onnx file of a search.")],
    image: Annotated[Path, typer.Argument(help="The image to upscale.")],
    output: Annotated[Path, typer.Argument(help="The .png file to write.")],
    target: TARGET = "openvino-cpu",
    tile: Annotated[
        int | None,
        typer.Option(
            parser=whole("--tile", 16, MOST_SIDE, 256),
            metavar="N",
            show_default="what fits 1 GiB",
            help="Input pixels that each tile adds; fewer take less memory.",
        ),
    ] = None,
    threads: THREADS = None,
    quiet: QUIET = False,
    json: JSON = False,
) -> None:
    """Upscale an image of any size, in tiles that leave no seams.

    Example: autoq upscale compromise/model.onnx photo.png large.png
    """
    from autoq.cli import display
    from autoq.deploy.upscale import upscale as run
    from autoq.study.results import to_json

    with only_results(), display.counted("tiles", quiet) as progress:
        found = run(file, image, output, target=target, tile=tile, threads=threads, progress=progress)
    if json:
        typer.echo(to_json(found))
    else:
        display.show_upscaled(found)


@app.command()
def evaluate(
    file: Annotated[Path | None, typer.Argument(help="An .onnx file of a search; or give --model.")] = None,
    model: Annotated[
        str | None, typer.Option(help="Instead: a float network, see `autoq models`; package.module:factory; or a .pth file.")
    ] = None,
    weights: Annotated[Path | None, typer.Option(help="Its checkpoint; bundled weights if absent.")] = None,
    data: Annotated[Path | None, typer.Option(help="Folder of images; bundled photographs if absent.")] = None,
    metrics: Annotated[str, typer.Option(help="Some of psnr, ssim, niqe and pi.")] = "psnr,ssim",
    scale: Annotated[
        int | None,
        typer.Option(parser=whole("--scale", 1, MOST_SCALE, 4), metavar="N", show_default="the file's", help="Upscaling factor."),
    ] = None,
    target: Annotated[str | None, typer.Option(show_default="openvino-cpu", help="Where the file runs.")] = None,
    border: Annotated[
        int | None,
        typer.Option(
            parser=whole("--border", 0, MOST_BORDER, 4),
            metavar="N",
            show_default="the scale",
            help="Pixels at the edges that are not looked at.",
        ),
    ] = None,
    threads: THREADS = None,
    quiet: QUIET = False,
    json: JSON = False,
) -> None:
    """Reduce images, upscale them again and compare, as a trial is judged.

    Example: autoq evaluate compromise/model.onnx --data Set5 --metrics psnr,ssim
    """
    from autoq.cli import display
    from autoq.deploy.evaluate import evaluate as run
    from autoq.study.results import to_json

    with only_results(), display.counted("images", quiet) as progress:
        found = run(
            file, model=model, weights=weights, data=data, metrics=metrics, scale=scale, target=target, border=border,
            threads=threads, progress=progress,
        )  # fmt: skip
    for note in found["notes"]:
        print(f"note: {note}", file=sys.stderr)
    if json:
        typer.echo(to_json({key: value for key, value in found.items() if key not in ("each", "notes")}))
    else:
        display.show_evaluation(found)
