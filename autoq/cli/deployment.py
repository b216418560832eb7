"""Commands that take a point of a study to where it runs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from autoq.cli.frame import app
from autoq.cli.options import JSON, MANY, QUIET, whole
from autoq.system.output import only_results

OUTPUT = Annotated[Path, typer.Option("--output", "-o", metavar="DIR", help="New folder to write to.")]


@app.command()
def export(
    study: Annotated[str, typer.Argument(help="Name under studies/, or an absolute path.")],
    output: OUTPUT,
    trial: Annotated[
        int | None, typer.Option(parser=whole("--trial", 0, MANY, 7), metavar="N", help="A trial, by its number.")
    ] = None,
    pick: Annotated[
        str | None,
        typer.Option(
            metavar="RULE",
            help="smallest, fastest or compromise (recommended points), an objective (its best), 'psnr_drop<=0.1 then size' (the best within bounds), or a name (8/8/8).",
        ),
    ] = None,
    format: Annotated[
        str,
        typer.Option(
            metavar="NAME",
            help="onnx (what the target's runtime loads), openvino, packed (every weight at its own width), or qonnx (of target bits).",
        ),
    ] = "onnx",
    strict: Annotated[
        bool, typer.Option("--strict", help="Refuse a file whose latency is not what was promised; otherwise that is a warning.")
    ] = False,
    quiet: QUIET = False,
    json: JSON = False,
) -> None:
    """Write a point of a study as files that run, checked against what the study promised.

    Bytes or quality that differ end with exit code 1; a latency that differs is a warning.

    Example: autoq export srgan-x4 --pick compromise -o compromise
    """
    from autoq.api.deployment import export_point
    from autoq.cli import display, terminal
    from autoq.study.results import to_json

    with only_results(), terminal.progress(quiet) as events:
        found = export_point(study, output, trial, pick, format, strict, events)
    if json:
        typer.echo(to_json(found.document()))
    else:
        display.show_delivered(found.file, found.in_words(), found.document()["faster_than_float"], found.warnings)


@app.command()
def unpack(
    file: Annotated[Path, typer.Argument(help="A package: the file that autoq export --format packed wrote.")], output: OUTPUT
) -> None:
    """Make the file that the target's runtime loads of a package.

    Example: autoq unpack small/model.safetensors -o runtime
    """
    from autoq.api.deployment import unpack as unpacked

    typer.echo(str(unpacked(file, output)))
