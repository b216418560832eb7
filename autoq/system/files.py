"""Crash-safe files: atomic writes, and append-only files of JSON lines that are flushed to disk line by line."""

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
def atomic_write(path: Path) -> Iterator[Path]:
    """Context that yields a temporary path; it replaces `path` on success and is removed on an exception."""
    partial = path.with_name(f".{path.name}.partial")
    try:
        yield partial
        partial.replace(path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


def atomic_write_text(path: Path, text: str) -> None:
    """Write a text file atomically and flush it to disk."""
    with atomic_write(path) as partial, partial.open("w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())


def append_line(path: Path, document: BaseModel) -> None:
    """Append a document as a JSON line and flush it to disk."""
    with path.open("a") as lines:
        lines.write(document.model_dump_json() + "\n")
        lines.flush()
        os.fsync(lines.fileno())


def read_lines(path: Path, kind: type[M], check: Callable[[M], None] = lambda document: None) -> list[M]:
    """Read a file of JSON lines. An incomplete last line, which is still being written, is skipped.

    Args:
        path: The file; a missing file has no lines.
        kind: Type of the documents.
        check: Raises an exception for an invalid document.

    Raises:
        StudyError: A line is malformed or invalid.
    """
    if not path.is_file():
        return []
    documents = []
    *lines, last = path.read_bytes().split(b"\n")
    for number, line in enumerate([*lines, *([last] if _is_complete(last, kind) else [])], 1):
        try:
            document = kind.model_validate_json(line)
            check(document)
        except (ValidationError, AutoqError, KeyError, ValueError, AttributeError, TypeError) as error:
            raise StudyError(f"{path}: line {number} is not a valid record of this study; remove the line") from error
        documents.append(document)
    return documents


def cut_torn_line(path: Path, kind: type[BaseModel]) -> None:
    """Remove an incomplete last line left by a killed process, or add the newline to a complete one."""
    if not path.is_file():
        return
    content = path.read_bytes()
    end = content.rfind(b"\n") + 1
    if end == len(content):
        return
    if _is_complete(content[end:], kind):
        with path.open("a") as lines:
            lines.write("\n")
    else:
        os.truncate(path, end)


def _is_complete(line: bytes, kind: type[BaseModel]) -> bool:
    try:
        kind.model_validate_json(line)
    except ValidationError:
        return False
    return True
