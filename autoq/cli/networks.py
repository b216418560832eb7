"""Commands about networks: translated into one library call each. Heavy imports happen inside."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from autoq.cli.frame import app
from autoq.cli.options import JSON, MANY, MOST_PROCESSES, MOST_SEED, QUIET, SCALE, TARGET, whole
from autoq.errors import AutoqError
from autoq.system.output import only_results


@app.command()
def models(json: JSON = False) -> None:
    """List the networks: scales, parameters, stages, bundled weights and their PSNR.

    Example: autoq models
    """
    from autoq.api.networks import models as list_models
    from autoq.cli import terminal
    from autoq.study.results import to_json

    found = list_models()
    if json:
        typer.echo(to_json(found))
    else:
        terminal.show_models(found)


@app.command()
def targets(json: JSON = False) -> None:
    """List the targets: what each role may be, what runs on integers, how latency is measured, and which run here.

    Example: autoq targets
    """
    from autoq.api.networks import targets as list_targets
    from autoq.cli import terminal
    from autoq.study.results import to_json

    found = list_targets()
    if json:
        typer.echo(to_json(found))
    else:
        terminal.show_targets(found)


@app.command()
def cost(
    model: Annotated[str, typer.Option(help="Network, see `autoq models`; package.module:factory; or a .pth file.")],
    scale: SCALE = None,
    policy: Annotated[str, typer.Option(help="Bits of weights/activations/skips, or stage=w/a/s for every stage.")] = "8/8/8",
    input: Annotated[str, typer.Option(metavar="WxH", help="Low-resolution image, WIDTHxHEIGHT.")] = "96x96",
    target: TARGET = "openvino-cpu",
    weights: Annotated[Path | None, typer.Option(help="Checkpoint of a network of another depth or width.")] = None,
    space: Annotated[Path | None, typer.Option(help="Search space (YAML) with layers, for a network of your own.")] = None,
    json: JSON = False,
) -> None:
    """Say what a policy costs: operations, memory for feature maps, bytes of weights.

    Example: autoq cost --model srresnet --scale 2 --policy 8/8/8 --input 1020x678
    """
    from autoq.api.networks import cost as price
    from autoq.cli import terminal
    from autoq.study.results import to_json

    with only_results():
        found = price(model, scale=scale, weights=weights, policy=policy, input=input, target=target, space=space)
    if json:
        typer.echo(to_json(found))
    else:
        terminal.show_cost(found)


@app.command()
def sensitivity(
    model: Annotated[str | None, typer.Option(help="Network, see `autoq models`; package.module:factory; or a .pth file.")] = None,
    study: Annotated[
        str | None,
        typer.Option(help="Instead: a study's name or absolute path. It says all but the question, and keeps the answer."),
    ] = None,
    scale: SCALE = None,
    weights: Annotated[Path | None, typer.Option(help="Checkpoint (.safetensors, .pth); bundled weights if absent.")] = None,
    target: Annotated[str | None, typer.Option(show_default="openvino-cpu", help="Where the result will run.")] = None,
    space: Annotated[Path | None, typer.Option(help="Search space (YAML) whose widths and formats are looked at.")] = None,
    data: Annotated[Path | None, typer.Option(help="Folder of calibration images; bundled photographs if absent.")] = None,
    eval_data: Annotated[Path | None, typer.Option(help="Folder of evaluation images; bundled photographs if absent.")] = None,
    by: Annotated[str, typer.Option(help="What is quantized alone: stage, block or layer.")] = "stage",
    metric: Annotated[str, typer.Option(help="Quality: psnr, ssim, fidelity, niqe or pi.")] = "psnr",
    steps: Annotated[
        int | None,
        typer.Option(parser=whole("--steps", 0, MANY, 16), metavar="N", show_default="0", help="Training steps after quantizing."),
    ] = None,
    pairs: Annotated[bool, typer.Option("--pairs", help="Two and three stages together, too.")] = False,
    seed: Annotated[
        int | None, typer.Option(parser=whole("--seed", 0, MOST_SEED, 0), metavar="N", show_default="0", help="Of calibration.")
    ] = None,
    frame: Annotated[
        str | None, typer.Option(metavar="WxH", show_default="96x96", help="Input size latency is measured at, WIDTHxHEIGHT.")
    ] = None,
    quiet: QUIET = False,
    json: JSON = False,
) -> None:
    """Which stages suffer most from being quantized, and what each saves.

    With --study the answer is kept in the study, shown at once when the same is asked again, and part of its report.

    Example: autoq sensitivity --model srgan
    """
    from autoq.api.networks import sensitivity as run
    from autoq.cli import terminal
    from autoq.study.results import to_json

    with only_results(), terminal.progress(quiet) as events:
        found = run(
            model, study=study, scale=scale, weights=weights, target=target, space=space, data=data, eval_data=eval_data, by=by, metric=metric,
            steps=steps or 0, pairs=pairs, seed=seed, frame=frame, events=events,
        )  # fmt: skip
    if json:
        typer.echo(to_json(found))
    else:
        terminal.show_sensitivity(found)


@app.command()
def pretrain(
    model: Annotated[str, typer.Option(help="Network, see `autoq models`.")],
    scale: SCALE = None,
    data: Annotated[Path | None, typer.Option(help="Folder of training images; bundled photographs if absent.")] = None,
    eval_data: Annotated[Path | None, typer.Option(help="Folder of evaluation images; bundled photographs if absent.")] = None,
    weights: Annotated[Path | None, typer.Option(help="Checkpoint to start from.")] = None,
    steps: Annotated[
        int | None,
        typer.Option(
            parser=whole("--steps", 0, MANY, 20000), metavar="N", show_default="the recipe's", help="Training steps on pixels."
        ),
    ] = None,
    adversarial_steps: Annotated[
        int | None,
        typer.Option(
            parser=whole("--adversarial-steps", 0, MANY, 4000),
            metavar="N",
            show_default="the recipe's",
            help="Then so many against a discriminator (srgan, esrgan).",
        ),
    ] = None,
    sampling: Annotated[
        str, typer.Option(help="Where patches are cut: uniform, proportional or threshold (complexity).")
    ] = "uniform",
    seed: Annotated[
        int | None,
        typer.Option(
            parser=whole("--seed", 0, MOST_SEED, 0), metavar="N", show_default="0", help="Of the first weights and of patches."
        ),
    ] = None,
    threads: Annotated[
        int | None,
        typer.Option(
            parser=whole("--threads", 1, MOST_PROCESSES, 2), metavar="N", show_default="all cores", help="Threads of the training."
        ),
    ] = None,
    device: Annotated[str, typer.Option(help="Where to train: auto, cpu or cuda.")] = "auto",
    output: Annotated[
        Path | None, typer.Option("--output", "-o", show_default="pretrained/MODEL-xSCALE", help="Folder of the training.")
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the training in --output.")] = False,
    quiet: QUIET = False,
    json: JSON = False,
) -> None:
    """Train a network in float, by its paper's recipe. Ctrl-C keeps what there is; --resume goes on.

    Example: autoq pretrain --model espcn --scale 3 --data photographs
    """
    from autoq.api.networks import pretrain as run
    from autoq.cli import terminal
    from autoq.study.results import to_json

    with only_results(), terminal.training(quiet) as events:
        try:
            folder, record = run(
                model, scale=scale, weights=weights, data=data, eval_data=eval_data, steps=steps, adversarial_steps=adversarial_steps,
                sampling=sampling, seed=seed, threads=threads, device=device, output=output, resume=resume, events=events,
            )  # fmt: skip
        except (KeyboardInterrupt, OSError) as stop:
            if not events.begun:
                raise
            ended: BaseException | None = stop
        else:
            ended = None
    if isinstance(ended, OSError):
        raise AutoqError(f"cannot write '{ended.filename}': {ended.strerror}; make room and type the command again with --resume")
    if ended is not None:
        print("autoq: interrupted; to continue, type the command again with --resume", file=sys.stderr)
        raise typer.Exit(130)
    if json:
        typer.echo(to_json({"weights": str(folder / "weights.safetensors"), **record}))
    else:
        typer.echo(f"{record['psnr_mean']:.2f} dB; weights: {folder / 'weights.safetensors'}")
