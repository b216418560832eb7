"""The command line: translates, one library call per command. Heavy imports happen inside commands."""

from __future__ import annotations

import shlex
import sys
import time
from pathlib import Path
from typing import Annotated, Any

import typer

from autoq import __version__
from autoq.errors import AutoqError, InputError

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
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


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and stop.")
    ] = False,
) -> None:
    pass


@app.command()
def search(
    model: Annotated[str, typer.Option(help="Network: srgan or srresnet.")],
    scale: Annotated[int, typer.Option(help="Upscaling factor.")] = 4,
    weights: Annotated[Path | None, typer.Option(help="Checkpoint (.safetensors, .pth); bundled weights if absent.")] = None,
    target: Annotated[str, typer.Option(help="Where the result will run.")] = "openvino-cpu",
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
    sampler: Annotated[str, typer.Option(help="auto, tpe, gp, nsga2 or random.")] = "auto",
    budget: Annotated[int, typer.Option(min=1, help="Policies to try.")] = 50,
    steps: Annotated[int, typer.Option(min=0, help="Training steps of a trial; 0 is post-training quantization.")] = 16,
    workers: Annotated[int | None, typer.Option(min=1, help="Trials at once; by default one a core, at most 4.")] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of patches, training and sampler.")] = 0,
    frame: Annotated[str, typer.Option(help="Input size latency is measured at, WIDTHxHEIGHT.")] = "96x96",
    latency_table: Annotated[
        Path | None, typer.Option(help="Use the latency.json of an earlier study instead of measuring.")
    ] = None,
    quiet: Annotated[bool, typer.Option("--quiet", help="No progress.")] = False,
    json: Annotated[bool, typer.Option("--json", help="One JSON document on standard output.")] = False,
) -> None:
    """Search for the Pareto-best policies of a network, and write a report.

    Example: autoq search --model srgan --budget 50
    """
    from autoq import terminal
    from autoq.api import run_search

    started = time.perf_counter()
    found, report = run_search(
        model=model, scale=scale, weights=weights, target=target, space=space, objectives=objectives, data=data, eval_data=eval_data,
        study=study, sampler=sampler, budget=budget, steps=steps, workers=workers, seed=seed, frame=frame, latency_table=latency_table,
        command=shlex.join(["autoq", *sys.argv[1:]]), events=terminal.progress(quiet),
    )  # fmt: skip
    if json:
        from autoq.study import document, to_json

        typer.echo(to_json(document(found, time.perf_counter() - started)))
    else:
        terminal.show_front(found, report, time.perf_counter() - started)


@app.command()
def space(
    model: Annotated[str, typer.Argument(help="Network.")],
    target: Annotated[str, typer.Option(help="Where the result will run.")] = "openvino-cpu",
    json: Annotated[bool, typer.Option("--json", help="One JSON document on standard output.")] = False,
) -> None:
    """Print a model's bundled search space: a file to start your own from.

    Example: autoq space srgan > my_space.yaml
    """
    from autoq.space import bundled_space, load_space
    from autoq.study import space_facts, to_json

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
    from autoq.report.build import build_report
    from autoq.study import Study, study_folder

    for path in build_report(Study.open(study_folder(study)), output):
        typer.echo(str(path))


def main() -> None:
    """Entry point. Exit codes: 0 done, 1 failed, 2 bad input (one line), 130 interrupted."""
    try:
        code = app(standalone_mode=False)
        sys.exit(code if isinstance(code, int) else 0)
    except typer.Exit as stop:
        sys.exit(stop.exit_code)
    except _UsageError as error:
        print(f"autoq: {' '.join(error.format_message().split())}", file=sys.stderr)
        sys.exit(2)
    except AutoqError as error:
        print(f"autoq: {error}", file=sys.stderr)
        sys.exit(2 if isinstance(error, InputError) else 1)
    except KeyboardInterrupt:
        print("autoq: interrupted", file=sys.stderr)
        sys.exit(130)
