"""Options of the commands, made from their declarations in autoq.config.options."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, TypeVar, get_args, get_origin

import typer

from autoq.config.options import MOST_PROCESSES, RENAMED, Option, Options, SearchOptions, option_of
from autoq.config.validators import MANY, flag, read_whole

C = TypeVar("C", bound=Callable[..., None])

PLAIN = (bool, str, Path)
"""Types that the command line reads as they are."""


def declared(
    name: str,
    model: type[Options] = SearchOptions,
    called: str | None = None,
    help: str | None = None,
    default: str | None = None,
    **changes: Any,
) -> Any:
    """The option of a field as typer takes it, its default in words at the end of its help.

    Args:
        name: The field.
        model: The model it belongs to.
        called: Another name for it.
        help: Another help than the field's.
        default: Another default in words; none is shown for an empty text.
        changes: Further arguments of `typer.Option`.
    """
    field, shown = model.model_fields[name], option_of(name, model)
    default = shown.default if default is None else default
    words: dict[str, Any] = {
        "help": (help or shown.help) + (f" Default: {default}." if default else ""),
        "show_default": False,
        "metavar": shown.metavar or ("" if field.annotation is bool else None),
    }
    if not _plain(field.annotation) and name != "constraints":
        words["parser"] = parser(name, model)
    return typer.Option(*([] if field.default is True else [flag(called or name)]), **{**words, **changes})


def parser(name: str, model: type[Options] = SearchOptions) -> Callable[[Any], Any]:
    """Reads the text of an option. Raises InputError that says what to type."""
    return lambda text: getattr(model.of(**{name: text}), name)


def _plain(annotation: Any) -> bool:
    return get_origin(annotation) is not tuple and any(each in PLAIN for each in (annotation, *get_args(annotation)))


def takes(model: type[Options]) -> Callable[[C], C]:
    """Give a command the options of a model, before its own. It gets them as keywords, None where they are not given.

    Names of earlier versions are accepted but not shown.
    """

    def decorate(command: C) -> C:
        found = inspect.signature(command, eval_str=True).parameters.values()
        own = [each.replace(kind=each.KEYWORD_ONLY) for each in found if each.kind is not each.VAR_KEYWORD]
        known = {name for name, field in model.model_fields.items() if any(isinstance(item, Option) for item in field.metadata)}
        names = [name for name in model.model_fields if name in known - {each.name for each in own}]
        shared = [_parameter(name, name, model) for name in names]
        shared += [_parameter(old, new, model, hidden=True) for old, new in RENAMED.items() if new in names]
        command.__signature__ = inspect.Signature([*shared, *own])  # type: ignore[attr-defined]
        return command

    return decorate


def _parameter(name: str, field: str, model: type[Options], **changes: Any) -> inspect.Parameter:
    annotation: Any = model.model_fields[field].annotation
    kind: Any = list[str] | None if field == "constraints" else annotation | None if _plain(annotation) else Any
    owners = (each for each in model.__mro__ if issubclass(each, Options) and field in inspect.get_annotations(each))
    option = declared(field, model, name, rich_help_panel=next(owners).title, **changes)
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=Annotated[kind, option])


def whole(option: str, least: int, most: int, example: int) -> Callable[[str], int]:
    """A parser of whole numbers that names the option and what to type."""
    return lambda text: read_whole(text, option, least, most, example)


JSON = Annotated[bool, typer.Option("--json", metavar="", help="Print the results as one JSON document on standard output.")]
QUIET = Annotated[bool, typer.Option("--quiet", metavar="", help="Show no progress.")]
STUDY = Annotated[str, typer.Argument(help="Name of a folder in studies/, or an absolute path.")]
TRIAL = Annotated[int | None, typer.Option(parser=whole("--trial", 0, MANY, 7), metavar="N", help="Number of a trial.")]
PICK = Annotated[
    str | None,
    typer.Option(
        metavar="RULE",
        help="How to choose a point: smallest, fastest or compromise (recommended), an objective (best value), 'psnr_drop<=0.1 then size' (best within bounds), or the name of a point (8/8/8; 'trial 7, finetuned').",
    ),
]
MODEL = Annotated[str | None, declared("model")]
SCALE = Annotated[int | None, declared("scale")]
TARGET = Annotated[str, declared("target")]
THREADS = Annotated[
    int | None,
    typer.Option(parser=whole("--threads", 1, MOST_PROCESSES, 2), metavar="N", help="Threads to run on. Default: all cores."),
]
