"""Commands about studies: translated into one library call each. Heavy imports happen inside."""

from __future__ import annotations

import shlex
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from autoq.cli.frame import app
from autoq.cli.options import JSON, LAST_PORT, MANY, MOST_PROCESSES, MOST_SEED, QUIET, SCALE, TARGET, number, whole
from autoq.errors import AutoqError, InputError
from autoq.system.output import only_results

if TYPE_CHECKING:
    from autoq.study.study import Study


@app.command()
def search(
    model: Annotated[str | None, typer.Option(help="Network, see `autoq models`; package.module:factory; or a .pth file.")] = None,
    scale: SCALE = None,
    weights: Annotated[
        Path | None,
        typer.Option(help="Checkpoint (.safetensors, .pth), or `published` to fetch the authors'; bundled weights if absent."),
    ] = None,
    target: Annotated[str | None, typer.Option(show_default="openvino-cpu", help="Where the result will run.")] = None,
    space: Annotated[
        Path | None, typer.Option(help="Search space: a YAML file (see `autoq space MODEL`), or the name of a bundled one.")
    ] = None,
    by: Annotated[
        str | None, typer.Option(show_default="stage", help="What gets a format of its own: stage, block or layer.")
    ] = None,
    objectives: Annotated[
        str | None,
        typer.Option(
            help="Comma-separated: size, size_runtime, latency, ops, bops, peak_memory, psnr, ssim, fidelity, niqe, pi, score. By default size, latency and the quality that suits the network: psnr if it is trained for pixels, else fidelity, nearness to the float network."
        ),
    ] = None,
    constraint: Annotated[
        list[str] | None,
        typer.Option(
            metavar="BOUND",
            show_default="none",
            help="What points on the front must keep: 'size<=400KiB', 'latency<=10ms', 'psnr_drop<=0.1'. May be given again.",
        ),
    ] = None,
    data: Annotated[
        Path | None, typer.Option(help="Folder of training and calibration images; bundled photographs if absent.")
    ] = None,
    eval_data: Annotated[Path | None, typer.Option(help="Folder of evaluation images; bundled photographs if absent.")] = None,
    test_data: Annotated[
        Path | None,
        typer.Option(
            help="Folder of images that no trial is judged on, for the front's confirmation; bundled photographs if absent."
        ),
    ] = None,
    images: Annotated[
        str | None,
        typer.Option(
            metavar="hr|lr",
            show_default="hr",
            help="What the folders hold: originals, which are reduced (hr), or low-resolution inputs (lr).",
        ),
    ] = None,
    eval_crops: Annotated[
        str | None,
        typer.Option(
            metavar="all|N",
            show_default="whole images of a small folder, else 32",
            help="Crops of the evaluation and test images to look at, or all for whole images.",
        ),
    ] = None,
    study: Annotated[
        str | None, typer.Option(help="Name under studies/, or an absolute path; named after the model and the time if absent.")
    ] = None,
    storage: Annotated[
        str | None, typer.Option(help="Database URL for Optuna's trials, without a password; a file in the study if absent.")
    ] = None,
    sampler: Annotated[str | None, typer.Option(show_default="auto", help="auto, tpe, gp, nsga2, nsga3 or random.")] = None,
    budget: Annotated[
        int | None, typer.Option(parser=whole("--budget", 1, MANY, 50), metavar="N", show_default="50", help="Policies to try.")
    ] = None,
    max_steps: Annotated[
        int | None,
        typer.Option(
            parser=whole("--max-steps", 1, MANY, 2000),
            metavar="N",
            show_default="no bound",
            help="Training steps of all trials after which no new one begins.",
        ),
    ] = None,
    warm_start: Annotated[
        str | None, typer.Option(metavar="STUDY", help="An earlier study: up to half of the seeds are like its front.")
    ] = None,
    seeds: Annotated[
        int | None,
        typer.Option(
            parser=whole("--seeds", 0, MANY, 16),
            metavar="N",
            show_default="half the budget, at most 16",
            help="Of the budget, policies that the sensitivity of the stages proposes, first.",
        ),
    ] = None,
    stopping: Annotated[
        bool | None, typer.Option(show_default="stopping", help="Whether trials that others beat on the way stop there.")
    ] = None,
    steps: Annotated[
        int | None,
        typer.Option(
            parser=whole("--steps", 0, MANY, 32),
            metavar="N",
            show_default="32",
            help="Training steps of a trial; 0 is post-training quantization.",
        ),
    ] = None,
    workers: Annotated[
        int | None,
        typer.Option(
            parser=whole("--workers", 1, MOST_PROCESSES, 2),
            metavar="N",
            show_default="one a core, at most 4",
            help="Trials at once, each in a process.",
        ),
    ] = None,
    threads: Annotated[
        int | None,
        typer.Option(
            parser=whole("--threads", 1, MOST_PROCESSES, 2),
            metavar="N",
            show_default="cores / workers",
            help="Threads of each trial.",
        ),
    ] = None,
    memory: Annotated[
        float | None,
        typer.Option(
            parser=number("--memory", "GiB", 4),
            metavar="GIB",
            show_default="no bound",
            help="Memory a worker may hold; a trial that needs more fails.",
        ),
    ] = None,
    timeout: Annotated[
        float | None,
        typer.Option(
            parser=number("--timeout", "seconds", 600),
            metavar="SECONDS",
            show_default="no limit",
            help="A trial that takes longer fails.",
        ),
    ] = None,
    device: Annotated[str | None, typer.Option(show_default="auto", help="Where trials train: auto, cpu or cuda.")] = None,
    sampling: Annotated[
        str | None,
        typer.Option(
            show_default="proportional", help="Where training patches are cut: uniform, proportional or threshold (complexity)."
        ),
    ] = None,
    sqcl: Annotated[
        float | None,
        typer.Option(
            parser=number("--sqcl", "a weight", 0.3, least=0),
            metavar="WEIGHT",
            show_default="0, without",
            help="Of FQSR's calibration loss in training: the error of every quantizer is trained down, too.",
        ),
    ] = None,
    seed: Annotated[
        int | None,
        typer.Option(
            parser=whole("--seed", 0, MOST_SEED, 0), metavar="N", show_default="0", help="Of patches, training and sampler."
        ),
    ] = None,
    frame: Annotated[
        str | None, typer.Option(metavar="WxH", show_default="96x96", help="Input size latency is measured at, WIDTHxHEIGHT.")
    ] = None,
    confirm: Annotated[
        int | None,
        typer.Option(
            parser=whole("--confirm", 0, MANY, 3),
            metavar="N",
            show_default="3",
            help="Other seeds that the front is trained again with at the end; 0 for none.",
        ),
    ] = None,
    latency_table: Annotated[
        Path | None, typer.Option(help="Use the latency.json of an earlier study instead of measuring.")
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Continue --study where it was left; other options may be left out.")
    ] = False,
    quiet: QUIET = False,
    json: JSON = False,
) -> None:
    """Search for the Pareto-best policies of a network, and write a report.

    Ctrl-C ends it with the front so far; --resume continues it, after that or a crash.

    Example: autoq search --model srgan --budget 50
    """
    from autoq.api.studies import search as run
    from autoq.api.studies import write_report
    from autoq.cli import terminal

    started = time.perf_counter()
    with only_results(), terminal.progress(quiet) as events:
        try:
            found = run(
                model, scale=scale, weights=weights, target=target, space=space, by=by, objectives=objectives,
                constraints=constraint or None, data=data, eval_data=eval_data, test_data=test_data, images=images, eval_crops=eval_crops, study=study, storage=storage, sampler=sampler,
                budget=budget, max_steps=max_steps, warm_start=warm_start, seeds=seeds, stopping=stopping, steps=steps, workers=workers, threads=threads, memory=memory,
                timeout=timeout, device=device, sampling=sampling, sqcl=sqcl, seed=seed, frame=frame, confirm=confirm, latency_table=latency_table,
                resume=resume, command=shlex.join(["autoq", *sys.argv[1:]]), events=events,
            )  # fmt: skip
            page, _ = write_report(found)
        except (KeyboardInterrupt, OSError) as stop:
            ended: BaseException | None = stop
        else:
            ended = None
    if ended is None:
        _show(found, page, started, json)
    elif events.folder is None:
        raise ended
    else:
        _stopped(events.folder, started, json, ended)


def _show(study: Study, page: Path | None, started: float, json: bool) -> None:
    from autoq.cli import terminal
    from autoq.report.attribution import speed
    from autoq.study import replication, selection
    from autoq.study.results import document, to_json

    seconds = time.perf_counter() - started
    if json:
        records = study.records()
        latency = speed(study.latency_table(), [record for record in records if record.state == "complete"])
        of_latency = None if latency is None else latency.document()
        objectives = study.spec.objectives
        judged = replication.document(study.confirmed, records, objectives)
        rules = selection.recommended(records, objectives)
        told = document(study.name, study.spec, records, seconds, study.sensitivity(), judged, of_latency, rules)
        typer.echo(to_json(told))
    else:
        terminal.show_front(study, page, seconds)


def _stopped(folder: Path, started: float, json: bool, cause: BaseException) -> None:
    """A search was interrupted, or could not write: what there is, and how to go on."""
    from autoq.study.study import Study, resume_command

    resume = resume_command(folder)
    if isinstance(cause, OSError):
        where = f" '{cause.filename}'" if cause.filename else ""
        raise AutoqError(f"cannot write{where}: {cause.strerror or cause}; what has finished is kept, make room and type {resume}")
    _show(Study.open(folder), None, started, json)
    print(f"autoq: interrupted; to continue, type {resume}", file=sys.stderr)
    raise typer.Exit(130)


@app.command()
def space(
    model: Annotated[str | None, typer.Argument(help="Network, package.module:factory, or a .pth file.")] = None,
    target: TARGET = "openvino-cpu",
    scale: SCALE = None,
    weights: Annotated[Path | None, typer.Option(help="Checkpoint of a network of your own.")] = None,
    list_spaces: Annotated[
        bool, typer.Option("--list", help="List the bundled search spaces: `--space` takes their names.")
    ] = False,
    json: JSON = False,
) -> None:
    """Print a model's bundled search space: a file to start your own from.

    Example: autoq space srgan > my_space.yaml
    """
    from autoq.api.networks import space_file
    from autoq.config.space import named_spaces
    from autoq.study.results import to_json

    if list_spaces:
        found = named_spaces()
        typer.echo(to_json(found) if json else "\n\n".join(f"{name}\n    {purpose}" for name, purpose in found.items()))
        return
    if model is None:
        raise InputError("space: no network given; type autoq space srgan, or autoq space --list")
    with only_results():
        text, loaded = space_file(model, target=target, scale=scale, weights=weights)
    if json:
        typer.echo(to_json({**loaded.to_dict(), "size": loaded.size()}))
    else:
        typer.echo(text, nl=False)
        typer.echo(f"# {loaded.size():,} distinct policies on {target}")


@app.command()
def report(
    study: Annotated[str, typer.Argument(help="Name under studies/, or an absolute path.")],
    compare: Annotated[
        str | None, typer.Option(metavar="STUDY", help="Another study of the same network: both fronts in one report.")
    ] = None,
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder to write to.")] = Path("reports"),
) -> None:
    """Write a study's HTML report and PNG again, from its text files alone.

    Example: autoq report srgan-x4
    """
    from autoq.api.studies import open_study, write_report

    found = open_study(study)
    other = open_study(compare) if compare else None
    try:
        paths = write_report(found, output, other)
    except OSError as error:
        raise InputError(f"--output '{output}': {error.strerror}; type --output FOLDER, one that can be written") from error
    for path in paths:
        typer.echo(str(path))


@app.command()
def dashboard(
    study: Annotated[str, typer.Argument(help="Name under studies/, or an absolute path.")],
    port: Annotated[
        int | None,
        typer.Option(
            parser=whole("--port", 0, LAST_PORT, 8080),
            metavar="N",
            show_default="8080, or a free one",
            help="Port on 127.0.0.1; 0 takes a free one.",
        ),
    ] = None,
) -> None:
    """Show a study, finished or running, in Optuna's dashboard, for this machine's browsers only, until Ctrl-C.

    Example: autoq dashboard srgan-x4
    """
    from autoq.api.studies import open_study
    from autoq.report.dashboard import serve

    serve(open_study(study), port, lambda url: print(f"{url}  (Ctrl-C ends it)", file=sys.stderr))
