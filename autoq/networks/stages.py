"""Assign layers to stages: named groups of fnmatch patterns over module paths."""

from __future__ import annotations

import fnmatch
from collections.abc import Iterable, Mapping

from autoq.errors import InputError

StagePatterns = Mapping[str, tuple[str, ...]]


def assign(paths: Iterable[str], patterns: StagePatterns) -> dict[str, str]:
    """Map layer paths to stages.

    Args:
        paths: Module paths of the layers.
        patterns: Stage -> fnmatch patterns.

    Raises:
        InputError: A layer matches no stage or several, or a pattern matches no layer.
    """
    paths = list(paths)
    assigned: dict[str, str] = {}
    for path in paths:
        stages = [stage for stage, globs in patterns.items() if any(fnmatch.fnmatchcase(path, glob) for glob in globs)]
        if len(stages) != 1:
            given = f"stages {', '.join(stages)}" if stages else "no stage"
            raise InputError(
                f"layer '{path}' is in {given}, expected exactly one stage;"
                " change the patterns of the stages, `layers:` in --space FILE (of a built-in network: in `MODELS`)"
            )
        assigned[path] = stages[0]
    for stage, globs in patterns.items():
        for glob in globs:
            if not any(fnmatch.fnmatchcase(path, glob) for path in paths):
                raise InputError(f"stage '{stage}': pattern '{glob}' matches no layer (layers: {', '.join(paths)})")
    return assigned
