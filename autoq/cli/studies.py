"""Commands about studies, one library call each. Heavy imports happen inside."""

from __future__ import annotations

import shlex
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from autoq.cli.frame import app
from autoq.cli.options import JSON, PICK, QUIET, SCALE, STUDY, TARGET, TRIAL, declared, takes, whole
from autoq.config.options import FinetuneOptions, SearchOptions
from autoq.errors import AutoqError, InputError
from autoq.system.output import only_results

if TYPE_CHECKING:
    from autoq.study.study import Study


@app.command()
@takes(SearchOptions)
def search(quiet: QUIET = False, json: JSON = False, **options: Any) -> None:
    """Search for Pareto-optimal quantization policies for a network, and write a report.

    Ctrl-C stops the search and shows the front so far. `--resume --study NAME` continues it after Ctrl-C or a crash.

    Example: autoq search --model srgan --budget 50
    """
    from autoq.api.studies import search as run
    from autoq.api.studies import write_report
    from autoq.report.progress import progress

    started = time.perf_counter()
    with only_results(), progress(quiet) as events:
        try:
            found = run(**options, command=shlex.join(["autoq", *sys.argv[1:]]), events=events)
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


@app.command()
@takes(FinetuneOptions)
def finetune(
    study: STUDY, trial: TRIAL = None, pick: PICK = None, quiet: QUIET = False, json: JSON = False, **options: Any
) -> None:
    """Train a point of a study for long, and add the result to the study as a point of its own.

    The best weights on the evaluation images are kept. Ctrl-C keeps the training so far; the same command continues it.

    Example: autoq finetune srgan-x4 --pick compromise --steps 2000
    """
    from autoq.api.finetuning import finetune as run
    from autoq.api.studies import open_study
    from autoq.cli import tables
    from autoq.report.progress import training
    from autoq.study.results import to_json

    with only_results(), training(quiet) as events:
        try:
            found = run(study, trial, pick, **options, events=events)
        except KeyboardInterrupt:
            print("autoq: interrupted; to continue, repeat the command", file=sys.stderr)
            raise typer.Exit(130) from None
        except OSError as error:
            raise AutoqError(
                f"cannot write '{error.filename}': {error.strerror}; free some space, then repeat the command"
            ) from error
    if json:
        typer.echo(to_json(found.model_dump(mode="json")))
    else:
        tables.show_finetuned(open_study(study), found)


def _show(study: Study, page: Path | None, started: float, json: bool) -> None:
    from autoq.cli import tables
    from autoq.report.attribution import speed
    from autoq.study import replication, selection
    from autoq.study.results import document, to_json

    seconds = time.perf_counter() - started
    if json:
        results = study.points()
        latency = speed(study.latency_table(), [record for record in results.records if record.state == "complete"])
        of_latency = None if latency is None else latency.document()
        judged = replication.document(study.replicated_points, results)
        rules = selection.recommended(results)
        told = document(study.name, study.spec, results, seconds, study.sensitivity(), judged, of_latency, rules)
        typer.echo(to_json(told))
    else:
        tables.show_front(study, page, seconds)


def _stopped(folder: Path, started: float, json: bool, cause: BaseException) -> None:
    """A search was interrupted or could not write: show the results so far, and how to continue."""
    from autoq.study.study import Study, resume_command

    resume = resume_command(folder)
    if isinstance(cause, OSError):
        where = f" '{cause.filename}'" if cause.filename else ""
        raise AutoqError(
            f"cannot write{where}: {cause.strerror or cause}; finished trials are kept; free some space, then type {resume}"
        )
    _show(Study.open(folder), None, started, json)
    print(f"autoq: interrupted; to continue, type {resume}", file=sys.stderr)
    raise typer.Exit(130)


@app.command()
def space(
    model: Annotated[str | None, typer.Argument(help="Network name, package.module:factory, or checkpoint file (.pth).")] = None,
    target: TARGET = "openvino-cpu",
    scale: SCALE = None,
    weights: Annotated[Path | None, declared("weights", help="Checkpoint of your own network.", default="")] = None,
    list_spaces: Annotated[bool, typer.Option("--list", metavar="", help="List the bundled search spaces by name.")] = False,
    json: JSON = False,
) -> None:
    """Print a network's bundled search space, as a file to start your own from.

    Example: autoq space srgan > my_space.yaml
    """
    from autoq.api.networks import space_file
    from autoq.config.space_file import named_spaces
    from autoq.study.results import to_json

    if list_spaces:
        found = named_spaces()
        typer.echo(to_json(found) if json else "\n\n".join(f"{name}\n    {purpose}" for name, purpose in found.items()))
        return
    if model is None:
        raise InputError("space: no network given; type `autoq space srgan`, or `autoq space --list` for the names")
    with only_results():
        text, loaded = space_file(model, target=target, scale=scale, weights=weights)
    if json:
        typer.echo(to_json({**loaded.to_dict(), "size": loaded.size()}))
    else:
        typer.echo(text, nl=False)
        typer.echo(f"# {loaded.size():,} distinct policies on {target}")


@app.command()
def report(
    study: STUDY,
    compare: Annotated[
        str | None, typer.Option(metavar="STUDY", help="Another study of the same network, to show both fronts in one report.")
    ] = None,
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder to write to.")] = Path("reports"),
) -> None:
    """Write a study's HTML report and PNG again, from its files.

    Example: autoq report srgan-x4
    """
    from autoq.api.studies import open_study, write_report

    found = open_study(study)
    other = open_study(compare) if compare else None
    try:
        paths = write_report(found, output, other)
    except OSError as error:
        raise InputError(f"--output '{output}': {error.strerror}; give a writable folder") from error
    for path in paths:
        typer.echo(str(path))


@app.command()
def dashboard(
    study: STUDY,
    port: Annotated[
        int | None,
        typer.Option(
            parser=whole("--port", 0, 65535, 8080),
            metavar="N",
            help="Port on 127.0.0.1; 0 for any free port. Default: 8080, or a free port.",
        ),
    ] = None,
) -> None:
    """Serve Optuna's dashboard of a finished or running study on this machine, until Ctrl-C.

    Example: autoq dashboard srgan-x4
    """
    from autoq.api.studies import open_study
    from autoq.report.dashboard import serve

    serve(open_study(study), port, lambda url: print(f"{url}  (Ctrl-C to stop)", file=sys.stderr))
