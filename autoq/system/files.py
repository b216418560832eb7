"""Files that a crash cannot spoil: written whole or not at all, or line by line with every line on the disk at once."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

from pydantic import BaseModel, ValidationError

from autoq.errors import AutoqError, StudyError

M = TypeVar("M", bound=BaseModel)


@contextlib.contextmanager
def whole(path: Path) -> Iterator[Path]:
    """A path to write to that becomes `path` at the end, or is removed where an exception ends the writing."""
    partial = path.with_name(f".{path.name}.partial")
    try:
        yield partial
        partial.replace(path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


def write_whole(path: Path, text: str) -> None:
    """Write a text file so that it is there whole or not at all, whatever happens meanwhile."""
    with whole(path) as partial, partial.open("w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())


def append_line(path: Path, document: BaseModel) -> None:
    """Add a document as a line; it is on the disk when this returns."""
    with path.open("a") as lines:
        lines.write(document.model_dump_json() + "\n")
        lines.flush()
        os.fsync(lines.fileno())


def read_lines(path: Path, kind: type[M], check: Callable[[M], None] = lambda document: None) -> list[M]:
    """The documents of a file of lines; none where there is no file.

    A last line that is not whole is still being written, and left out. Raises StudyError for a malformed line, or one of
    which `check` raises ValueError, KeyError, AttributeError or TypeError.
    """
    if not path.is_file():
        return []
    found = []
    *lines, last = path.read_bytes().split(b"\n")
    for number, line in enumerate([*lines, *([last] if _is_whole(last, kind) else [])], 1):
        try:
            document = kind.model_validate_json(line)
            check(document)
        except (ValidationError, AutoqError, KeyError, ValueError, AttributeError, TypeError) as error:
            raise StudyError(f"{path}: line {number} is not a trial record of this study; remove the line") from error
        found.append(document)
    return found


def cut_torn_line(path: Path, kind: type[BaseModel]) -> None:
    """Remove what a killed process left of a line; a whole line only lacks its newline (an editor left it out)."""
    if not path.is_file():
        return
    content = path.read_bytes()
    end = content.rfind(b"\n") + 1
    if end == len(content):
        return
    if _is_whole(content[end:], kind):
        with path.open("a") as lines:
            lines.write("\n")
    else:
        os.truncate(path, end)


def _is_whole(line: bytes, kind: type[BaseModel]) -> bool:
    try:
        kind.model_validate_json(line)
    except ValidationError:
        return False
    return True
