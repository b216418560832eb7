"""Commands about networks, one library call each. Heavy imports happen inside."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from autoq.cli.frame import app
from autoq.cli.options import JSON, MODEL, QUIET, SCALE, TARGET, declared, takes
from autoq.config.options import PretrainOptions
from autoq.errors import AutoqError
from autoq.system.output import only_results


@app.command()
def models(json: JSON = False) -> None:
    """List the networks: scales, parameters, size, and bundled weights with their PSNR.

    Example: autoq models
    """
    from autoq.api.networks import models as list_models
    from autoq.cli import tables
    from autoq.study.results import to_json

    found = list_models()
    if json:
        typer.echo(to_json(found))
    else:
        tables.show_models(found)


@app.command()
def targets(json: JSON = False) -> None:
    """List the deployment targets: number formats, integer execution, latency, file, and which run here.

    Example: autoq targets
    """
    from autoq.api.networks import targets as list_targets
    from autoq.cli import tables
    from autoq.study.results import to_json

    found = list_targets()
    if json:
        typer.echo(to_json(found))
    else:
        tables.show_targets(found)


@app.command()
def fetch_metrics(
    names: Annotated[list[str] | None, typer.Argument(metavar="[NAME]...", help="Metrics; all that need a file if absent.")] = None,
    quiet: QUIET = False,
    json: JSON = False,
) -> None:
    """Download the published model files that metrics need.

    Example: autoq fetch-metrics pi
    """
    from autoq.api.metrics import fetch_metrics as fetch
    from autoq.report.progress import downloading
    from autoq.study.results import to_json

    with downloading(quiet) as progress:
        found = fetch(*(names or ()), progress=progress)
    if json:
        typer.echo(to_json({name: str(path) for name, path in found.items()}))
    else:
        for path in found.values():
            typer.echo(path)


@app.command()
def cost(
    model: Annotated[str, declared("model", default="")],
    scale: SCALE = None,
    policy: Annotated[
        str,
        typer.Option(metavar="W/A/S", help="Bits of weights/activations/skips, or stage=w/a/s for every stage, comma-separated."),
    ] = "8/8/8",
    frame: Annotated[str, typer.Option("--frame", "--input", metavar="WxH", help="Size of the low-resolution image.")] = "96x96",
    target: TARGET = "openvino-cpu",
    weights: Annotated[
        Path | None, declared("weights", help="Checkpoint of a network with another depth or width.", default="")
    ] = None,
    space: Annotated[
        Path | None, declared("space", help="Search space (YAML) with layers, for your own network.", default="")
    ] = None,
    json: JSON = False,
) -> None:
    """Compute what a policy costs: operations, feature-map memory, bytes of weights.

    Example: autoq cost --model srresnet --scale 2 --policy 8/8/8 --frame 1020x678
    """
    from autoq.api.networks import cost as price
    from autoq.cli import tables
    from autoq.study.results import to_json

    with only_results():
        found = price(model, scale=scale, weights=weights, policy=policy, frame=frame, target=target, space=space)
    if json:
        typer.echo(to_json(found))
    else:
        tables.show_cost(found)


@app.command()
def sensitivity(
    model: MODEL = None,
    study: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="A study instead of --model; it gives network, images and space, and keeps the answer."),
    ] = None,
    scale: SCALE = None,
    weights: Annotated[Path | None, declared("weights")] = None,
    target: Annotated[str | None, declared("target")] = None,
    space: Annotated[Path | None, declared("space")] = None,
    data: Annotated[Path | None, declared("data", help="Folder of calibration images.")] = None,
    eval_data: Annotated[Path | None, declared("eval_data")] = None,
    by: Annotated[str, declared("by", parser=None, help="Unit that is quantized alone.")] = "stage",
    metric: Annotated[
        str, typer.Option(metavar="NAME", help="Quality that is measured: psnr, ssim, fidelity, niqe or pi.")
    ] = "psnr",
    steps: Annotated[int, declared("steps", help="Training steps after quantization.", default="0")] = 0,
    pairs: Annotated[bool, typer.Option("--pairs", metavar="", help="Measure pairs and triples of stages, too.")] = False,
    seed: Annotated[int | None, declared("seed", help="Random seed of calibration.")] = None,
    frame: Annotated[Any, declared("frame")] = None,
    quiet: QUIET = False,
    json: JSON = False,
) -> None:
    """Measure how much quality each stage loses when quantized alone, and what that saves.

    With --study the answer is stored in the study, reused when the same is asked again, and shown in its report.

    Example: autoq sensitivity --model srgan
    """
    from autoq.api.networks import sensitivity as run
    from autoq.cli import tables
    from autoq.report.progress import progress
    from autoq.study.results import to_json

    with only_results(), progress(quiet) as events:
        found = run(
            model, study=study, scale=scale, weights=weights, target=target, space=space, data=data, eval_data=eval_data, by=by, metric=metric,
            steps=steps, pairs=pairs, seed=seed, frame=frame, events=events,
        )  # fmt: skip
    if json:
        typer.echo(to_json(found))
    else:
        tables.show_sensitivity(found)


@app.command()
@takes(PretrainOptions)
def pretrain(
    model: Annotated[str, declared("model", help="Network (see `autoq models`).", default="")],
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", metavar="DIR", help="Folder of the training. Default: pretrained/MODEL-xSCALE."),
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", metavar="", help="Continue the training in --output.")] = False,
    quiet: QUIET = False,
    json: JSON = False,
    **options: Any,
) -> None:
    """Train a network in float, by its paper's recipe. Ctrl-C keeps the training so far; --resume continues it.

    Example: autoq pretrain --model espcn --scale 3 --data photographs
    """
    from autoq.api.networks import pretrain as run
    from autoq.report.progress import training
    from autoq.study.results import to_json

    with only_results(), training(quiet) as events:
        try:
            folder, record = run(model, **options, output=output, resume=resume, events=events)
        except (KeyboardInterrupt, OSError) as stop:
            if not events.begun:
                raise
            ended: BaseException | None = stop
        else:
            ended = None
    if isinstance(ended, OSError):
        raise AutoqError(
            f"cannot write '{ended.filename}': {ended.strerror}; free some space, then repeat the command with --resume"
        )
    if ended is not None:
        print("autoq: interrupted; to continue, repeat the command with --resume", file=sys.stderr)
        raise typer.Exit(130)
    if json:
        typer.echo(to_json({"weights": str(folder / "weights.safetensors"), **record}))
    else:
        typer.echo(f"{record['psnr_mean']:.2f} dB; weights: {folder / 'weights.safetensors'}")
