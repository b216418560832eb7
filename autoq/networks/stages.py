"""Which stage a layer belongs to: named groups of fnmatch patterns over module paths."""

from __future__ import annotations

import fnmatch
from collections.abc import Iterable, Mapping

from autoq.errors import InputError

StagePatterns = Mapping[str, tuple[str, ...]]


def assign(paths: Iterable[str], patterns: StagePatterns) -> dict[str, str]:
    """layer path -> stage. Every layer must match patterns of exactly one stage, every pattern a layer.

    Raises InputError that names the layers or patterns left over.
    """
    paths = list(paths)
    found: dict[str, str] = {}
    for path in paths:
        stages = [stage for stage, globs in patterns.items() if any(fnmatch.fnmatchcase(path, glob) for glob in globs)]
        if len(stages) != 1:
            expected = "exactly one stage"
            raise InputError(
                f"layer '{path}' is in {', '.join(stages) or 'no stage'}: expected {expected}; mend the stage patterns"
            )
        found[path] = stages[0]
    for stage, globs in patterns.items():
        for glob in globs:
            if not any(fnmatch.fnmatchcase(path, glob) for path in paths):
                raise InputError(f"stage '{stage}': pattern '{glob}' matches no layer (layers: {', '.join(paths)})")
    return found
