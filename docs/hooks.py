"""The command-line reference, written from the program when the site is built."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import typer.main

from autoq.cli import app

if TYPE_CHECKING:
    from mkdocs.config.defaults import MkDocsConfig
    from mkdocs.structure.files import Files

PAGE = "reference/cli.md"

INTRODUCTION = """# Command-line options

This page is generated from the program. `autoq COMMAND --help` prints the same.
Exit codes: 0 done, 1 failed, 2 bad input, 130 interrupted.
"""


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the page that mkdocs.yml names in its navigation."""
    from mkdocs.structure.files import File

    files.append(File.generated(config, PAGE, content=reference()))
    return files


def reference() -> str:
    """The page: every command with its help and a table of its options."""
    commands = typer.main.get_group(app).commands
    return "\n\n".join([INTRODUCTION.strip(), *(_section(name, commands[name]) for name in sorted(commands))]) + "\n"


def _section(name: str, command: Any) -> str:
    text, _, example = command.help.partition("Example: ")
    rows = [_row(parameter) for parameter in command.params if not parameter.hidden]
    table = ["| option | meaning |", "| --- | --- |", *rows] if rows else []
    return "\n".join([f"## autoq {name}", "", text.strip(), "", "```sh", example.strip(), "```", "", *table]).strip()


def _row(parameter: Any) -> str:
    names = [*parameter.opts, *parameter.secondary_opts]
    is_option = names[0].startswith("-")
    value = f" {parameter.metavar}" if is_option and parameter.metavar else ""
    shown = " / ".join(f"`{each}{value if each == names[0] else ''}`" for each in (names if is_option else [names[0].upper()]))
    words = parameter.help or ""
    if parameter.required:
        words += " Required."
    elif parameter.show_default and parameter.default not in (None, False, ""):
        words += f" Default: {parameter.default}."
    return f"| {shown} | {_cell(words)} |"


def _cell(text: str) -> str:
    return text.replace("|", r"\|").replace("<", "&lt;")
