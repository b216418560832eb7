"""The command line: translates, one library call per command. Heavy imports happen inside commands."""

from __future__ import annotations

import os
import re
import shlex
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Annotated, Any

import typer

from autoq import __version__
from autoq.errors import AutoqError, InputError, suggest

if TYPE_CHECKING:
    from autoq.study import Study

app = typer.Typer(
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Find the Pareto-best ways to quantize a super-resolution network for a target.",
)

_UsageError: Any = typer.BadParameter.__bases__[0]
"""Click's UsageError, wherever typer keeps its Click."""


def _version(show: bool) -> None:
    if show:
        typer.echo(f"autoq {__version__}")
        raise typer.Exit


MANY = 1_000_000
"""The most trials, steps, seconds and GiB that can be asked for."""

MOST_SEED = 2**32 - 1
MOST_PROCESSES = 1024
MOST_SCALE = 16
LAST_PORT = 65535


def _whole(option: str, least: int, most: int, example: int) -> Callable[[str], int]:
    """A parser of whole numbers that names the option and what to type."""

    def parse(text: str) -> int:
        if not re.fullmatch("[0-9]{1,10}", text) or not least <= int(text) <= most:
            raise InputError(f"{option} '{text}': expected a whole number from {least} to {most}; type {option} {example}")
        return int(text)

    return parse


def _number(option: str, unit: str, example: float) -> Callable[[str], float]:
    """A parser of numbers from a thousandth to MANY."""

    def parse(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            value = 0.0
        if not 0.001 <= value <= MANY:
            raise InputError(f"{option} '{text}': expected {unit}, from 0.001 to {MANY}; type {option} {example:g}")
        return value

    return parse


@app.callback(invoke_without_command=True)
def _root(
    context: typer.Context,
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and stop.")
    ] = False,
) -> None:
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())


@app.command()
def search(
    model: Annotated[str | None, typer.Option(help="Network: srgan or srresnet.")] = None,
    scale: Annotated[
        int | None,
        typer.Option(parser=_whole("--scale", 1, MOST_SCALE, 4), metavar="N", show_default="4", help="Upscaling factor."),
    ] = None,
    weights: Annotated[Path | None, typer.Option(help="Checkpoint (.safetensors, .pth); bundled weights if absent.")] = None,
    target: Annotated[str | None, typer.Option(show_default="openvino-cpu", help="Where the result will run.")] = None,
    space: Annotated[Path | None, typer.Option(help="Search space (YAML); see `autoq space MODEL`.")] = None,
    objectives: Annotated[
        str | None,
        typer.Option(
            help="Comma-separated: size, size_runtime, latency, psnr, ssim, niqe, pi. By default size,latency and the best quality this machine can measure."
        ),
    ] = None,
    data: Annotated[
        Path | None, typer.Option(help="Folder of training and calibration images; bundled photographs if absent.")
    ] = None,
    eval_data: Annotated[Path | None, typer.Option(help="Folder of evaluation images; bundled photographs if absent.")] = None,
    study: Annotated[
        str | None, typer.Option(help="Name under studies/, or an absolute path; named after the model and the time if absent.")
    ] = None,
    storage: Annotated[
        str | None, typer.Option(help="Database URL for Optuna's trials, without a password; a file in the study if absent.")
    ] = None,
    sampler: Annotated[str | None, typer.Option(show_default="auto", help="auto, tpe, gp, nsga2 or random.")] = None,
    budget: Annotated[
        int | None, typer.Option(parser=_whole("--budget", 1, MANY, 50), metavar="N", show_default="50", help="Policies to try.")
    ] = None,
    steps: Annotated[
        int | None,
        typer.Option(
            parser=_whole("--steps", 0, MANY, 16),
            metavar="N",
            show_default="16",
            help="Training steps of a trial; 0 is post-training quantization.",
        ),
    ] = None,
    workers: Annotated[
        int | None,
        typer.Option(
            parser=_whole("--workers", 1, MOST_PROCESSES, 2),
            metavar="N",
            show_default="one a core, at most 4",
            help="Trials at once, each in a process.",
        ),
    ] = None,
    threads: Annotated[
        int | None,
        typer.Option(
            parser=_whole("--threads", 1, MOST_PROCESSES, 2),
            metavar="N",
            show_default="cores / workers",
            help="Threads of each trial.",
        ),
    ] = None,
    memory: Annotated[
        float | None,
        typer.Option(
            parser=_number("--memory", "GiB", 4),
            metavar="GIB",
            show_default="no bound",
            help="Memory a worker may hold; a trial that needs more fails.",
        ),
    ] = None,
    timeout: Annotated[
        float | None,
        typer.Option(
            parser=_number("--timeout", "seconds", 600),
            metavar="SECONDS",
            show_default="no limit",
            help="A trial that takes longer fails.",
        ),
    ] = None,
    device: Annotated[str | None, typer.Option(show_default="auto", help="Where trials train: auto, cpu or cuda.")] = None,
    seed: Annotated[
        int | None,
        typer.Option(
            parser=_whole("--seed", 0, MOST_SEED, 0), metavar="N", show_default="0", help="Of patches, training and sampler."
        ),
    ] = None,
    frame: Annotated[
        str | None, typer.Option(metavar="WxH", show_default="96x96", help="Input size latency is measured at, WIDTHxHEIGHT.")
    ] = None,
    latency_table: Annotated[
        Path | None, typer.Option(help="Use the latency.json of an earlier study instead of measuring.")
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Continue --study where it was left; other options may be left out.")
    ] = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="No progress.")] = False,
    json: Annotated[bool, typer.Option("--json", help="One JSON document on standard output.")] = False,
) -> None:
    """Search for the Pareto-best policies of a network, and write a report.

    Ctrl-C ends it with the front so far; --resume continues it, after that or a crash.

    Example: autoq search --model srgan --budget 50
    """
    from autoq import terminal
    from autoq.api import search as run
    from autoq.api import write_report

    started = time.perf_counter()
    with terminal.progress(quiet) as events:
        try:
            found = run(
                model, scale=scale, weights=weights, target=target, space=space, objectives=objectives, data=data,
                eval_data=eval_data, study=study, storage=storage, sampler=sampler, budget=budget, steps=steps, workers=workers,
                threads=threads, memory=memory, timeout=timeout, device=device, seed=seed, frame=frame,
                latency_table=latency_table, resume=resume, command=shlex.join(["autoq", *sys.argv[1:]]), events=events,
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
    from autoq import terminal
    from autoq.findings import document, to_json

    seconds = time.perf_counter() - started
    if json:
        typer.echo(to_json(document(study.name, study.spec, study.records(), seconds)))
    else:
        terminal.show_front(study, page, seconds)


def _stopped(folder: Path, started: float, json: bool, cause: BaseException) -> None:
    """A search was interrupted, or could not write: what there is, and how to go on."""
    from autoq.study import STUDIES, Study

    name = folder.name if folder.parent == STUDIES else str(folder)
    resume = f"autoq search --resume --study {shlex.quote(name)}"
    if isinstance(cause, OSError):
        where = f" '{cause.filename}'" if cause.filename else ""
        raise AutoqError(f"cannot write{where}: {cause.strerror or cause}; what has finished is kept, make room and type {resume}")
    _show(Study.open(folder), None, started, json)
    print(f"autoq: interrupted; to continue, type {resume}", file=sys.stderr)
    raise typer.Exit(130)


@app.command()
def space(
    model: Annotated[str, typer.Argument(help="Network.")],
    target: Annotated[str, typer.Option(help="Where the result will run.")] = "openvino-cpu",
    json: Annotated[bool, typer.Option("--json", help="One JSON document on standard output.")] = False,
) -> None:
    """Print a model's bundled search space: a file to start your own from.

    Example: autoq space srgan > my_space.yaml
    """
    from autoq.findings import to_json
    from autoq.space import bundled_space, load_space
    from autoq.study import space_facts

    facts = space_facts(model, target)
    path = bundled_space(model)
    loaded = load_space(path, facts)
    if json:
        typer.echo(to_json({**loaded.to_dict(), "size": loaded.size()}))
    else:
        typer.echo(path.read_text(), nl=False)
        typer.echo(f"# {loaded.size():,} distinct policies on {target}")


@app.command()
def report(
    study: Annotated[str, typer.Argument(help="Name under studies/, or an absolute path.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder to write to.")] = Path("reports"),
) -> None:
    """Write a study's HTML report and PNG again, from its text files alone.

    Example: autoq report srgan-x4
    """
    from autoq.api import open_study, write_report

    found = open_study(study)
    try:
        paths = write_report(found, output)
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
            parser=_whole("--port", 0, LAST_PORT, 8080),
            metavar="N",
            show_default="8080, or a free one",
            help="Port on 127.0.0.1; 0 takes a free one.",
        ),
    ] = None,
) -> None:
    """Show a study, finished or running, in Optuna's dashboard, for this machine's browsers only, until Ctrl-C.

    Example: autoq dashboard srgan-x4
    """
    from autoq.api import open_study
    from autoq.dashboard import serve

    serve(open_study(study), port, lambda url: print(f"{url}  (Ctrl-C ends it)", file=sys.stderr))


@app.command()
def doctor(json: Annotated[bool, typer.Option("--json", help="One JSON document on standard output.")] = False) -> None:
    """Say what this machine has, what it lacks, and what each absence costs. Exit code 1 where a search cannot run.

    Example: autoq doctor
    """
    import json as format

    from autoq.doctor import examine, show

    checks = examine()
    if json:
        typer.echo(format.dumps([check.model_dump() for check in checks], indent=2))
    else:
        show(checks)
    if any(check.state == "broken" for check in checks):
        raise typer.Exit(1)


def _hear_signals() -> None:
    """The first Ctrl-C (or SIGTERM) ends cleanly, the second at once.

    Python swallows what a handler raises while a finalizer runs; then the signal is sent again a little later.
    """
    heard = 0
    report = sys.unraisablehook

    def handle(number: int, frame: FrameType | None) -> None:
        nonlocal heard
        heard += 1
        if heard > 1:
            os._exit(130)
        raise KeyboardInterrupt

    def swallowed(unraisable: Any) -> None:
        nonlocal heard
        if not issubclass(unraisable.exc_type, KeyboardInterrupt):
            report(unraisable)
            return
        heard = 0
        threading.Timer(0.1, os.kill, (os.getpid(), signal.SIGINT)).start()

    sys.unraisablehook = swallowed
    signal.signal(signal.SIGINT, handle)
    signal.signal(signal.SIGTERM, handle)


def _usage(error: Any) -> str:
    """Click's complaint in one line that ends with what to type."""
    context = error.ctx
    command = context.command_path if context else " ".join(["autoq", *(word for word in sys.argv[1:2] if word[:1] != "-")])
    help_line = f"{command} --help"
    name = getattr(error, "option_name", None)
    if name and name.startswith("-") and getattr(error, "possibilities", None) is not None:
        known = [option for parameter in context.command.params for option in parameter.opts] if context else []
        return f"no option '{name}'.{suggest(name, known)} Type {help_line}"
    said = error.format_message().rstrip(".")
    return f"{said}{' Type' if said.endswith('?') else '; type'} {help_line}"


def _line(text: str) -> str:
    """A message in one line: space for any white space, an escape for what a terminal would act on."""
    line = " ".join(text.split())
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in line)


def main() -> None:
    """Entry point. Exit codes: 0 done, 1 failed, 2 bad input (one line), 130 interrupted."""
    try:
        _hear_signals()
        code = app(prog_name="autoq", standalone_mode=False)
        sys.exit(code if isinstance(code, int) else 0)
    except typer.Exit as stop:
        sys.exit(stop.exit_code)
    except _UsageError as error:
        print(f"autoq: {_line(_usage(error))}", file=sys.stderr)
        sys.exit(2)
    except AutoqError as error:
        print(f"autoq: {_line(str(error))}", file=sys.stderr)
        sys.exit(2 if isinstance(error, InputError) else 1)
    except KeyboardInterrupt:
        print("autoq: interrupted", file=sys.stderr)
        sys.exit(130)
