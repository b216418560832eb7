"""The application: signals, exit codes, errors in one line."""

from __future__ import annotations

import logging
import os
import signal
import sys
import threading
from types import FrameType
from typing import Annotated, Any

import typer

from autoq import __version__
from autoq.cli.options import JSON
from autoq.errors import AutoqError, InputError, suggest


class _Group(typer.core.TyperGroup):
    """Commands whose --help is shown without a value, as it takes none."""

    def get_help_option(self, ctx: Any) -> Any:
        return _without_value(super().get_help_option(ctx))

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        command = super().get_command(ctx, cmd_name)
        if command is not None:
            _without_value(command.get_help_option(typer.Context(command, parent=ctx)))
        return command


def _without_value(option: Any) -> Any:
    option.metavar = ""
    return option


app = typer.Typer(
    cls=_Group,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Find the Pareto-optimal ways to quantize a super-resolution network for a target.",
)

_UsageError: Any = typer.BadParameter.__bases__[0]
"""Click's UsageError, wherever typer keeps its Click."""


def _version(show: bool) -> None:
    if show:
        typer.echo(f"autoq {__version__}")
        raise typer.Exit


@app.callback(invoke_without_command=True)
def _root(
    context: typer.Context,
    version: Annotated[
        bool, typer.Option("--version", metavar="", callback=_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())


@app.command()
def doctor(json: JSON = False) -> None:
    """Check this machine: what is installed, what is missing, and what each gap costs. Exit code 1 if a search cannot run.

    Example: autoq doctor
    """
    import json as format

    from autoq.api.doctor import examine, show

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
    """Click's complaint in one line that says what to type."""
    context = error.ctx
    command = context.command_path if context else " ".join(["autoq", *(word for word in sys.argv[1:2] if word[:1] != "-")])
    help_line = f"`{command} --help`"
    name, missing = getattr(error, "option_name", None), getattr(error, "param", None)
    if missing is not None and missing.required:
        return f"{context.info_name}: {_typed(missing)} is missing; type {_needed(context)}"
    if name and name.startswith("-") and getattr(error, "possibilities", None) is not None:
        parameters = context.command.params if context else []
        values = [each for each in parameters if each.param_type_name == "argument" and each.name == name.lstrip("-")]
        if values:
            return f"{command} has no option '{name}'; give the value without it: `{command} {_typed(values[0])}`"
        known = [option for each in parameters if each.param_type_name == "option" for option in each.opts]
        return f"no such option '{name}'{suggest(name, known)}; type {help_line} for the options"
    said = error.format_message().rstrip(".")
    said = said[:1].lower() + said[1:]
    listed = "options" if " " in command else "commands"
    return f"{said}{' Type' if said.endswith('?') else '; type'} {help_line} for the {listed}"


def _typed(parameter: Any) -> str:
    """A parameter as it is typed: `STUDY`, `--output DIR`."""
    value = (parameter.metavar or parameter.name).upper()
    return value if parameter.param_type_name == "argument" else f"{parameter.opts[0]} {value}"


def _needed(context: Any) -> str:
    """A command with all that it cannot do without."""
    return f"`{' '.join([context.command_path, *(_typed(each) for each in context.command.params if each.required)])}`"


def _line(text: str) -> str:
    """A message in one line: space for any white space, an escape for what a terminal would act on."""
    line = " ".join(text.split())
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in line)


def main() -> None:
    """Entry point. Exit codes: 0 done, 1 failed, 2 bad input (one line), 130 interrupted."""
    warnings = logging.StreamHandler()  # to standard error
    warnings.setLevel(logging.WARNING)
    logging.getLogger("autoq").addHandler(warnings)
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
    finally:
        logging.getLogger("autoq").removeHandler(warnings)
