"""Commands that export points of a study, one library call each."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from autoq.cli.frame import app
from autoq.cli.options import JSON, PICK, QUIET, STUDY, TRIAL
from autoq.system.output import only_results

OUTPUT = Annotated[Path, typer.Option("--output", "-o", metavar="DIR", help="New folder to write to.")]


@app.command()
def export(
    study: STUDY,
    output: OUTPUT,
    trial: TRIAL = None,
    pick: PICK = None,
    format: Annotated[
        str,
        typer.Option(
            metavar="NAME",
            help="onnx (the target's runtime file), openvino, packed (every weight at its own width) or qonnx (target bits only).",
        ),
    ] = "onnx",
    strict: Annotated[
        bool,
        typer.Option("--strict", metavar="", help="Fail if the latency differs from the study's; by default that is a warning."),
    ] = False,
    quiet: QUIET = False,
    json: JSON = False,
) -> None:
    """Export a point of a study as files that run, and check them against the study's figures.

    A difference in size or quality ends with exit code 1, a difference in latency with a warning.

    Example: autoq export srgan-x4 --pick compromise -o compromise
    """
    from autoq.api.deployment import export_point
    from autoq.cli import tables
    from autoq.report.progress import progress
    from autoq.study.results import to_json

    with only_results(), progress(quiet) as events:
        found = export_point(study, output, trial, pick, format, strict, events)
    if json:
        typer.echo(to_json(found.document()))
    else:
        tables.show_delivered(found.file, found.in_words(), found.document()["faster_than_float"], found.warnings)


@app.command()
def unpack(
    file: Annotated[Path, typer.Argument(help="Packed file, written by autoq export --format packed.")], output: OUTPUT
) -> None:
    """Convert a packed file into the file that the target's runtime loads.

    Example: autoq unpack small/model.safetensors -o runtime
    """
    from autoq.api.deployment import unpack as unpacked

    typer.echo(str(unpacked(file, output)))
