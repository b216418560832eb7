"""Model files of metrics: `fetch_metrics`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from autoq.errors import InputError, unknown


def fetch_metrics(*names: str, progress: Callable[[str, int, int], None] = lambda name, done, total: None) -> dict[str, Path]:
    """Download the published model files that metrics need and that are not here yet.

    Args:
        names: Metrics; all that need a file, if none is given.
        progress: Called with a file's name, the bytes that are here, and those of the whole file.

    Returns:
        The path of each file by its name.

    Raises:
        InputError: A metric has no model file, or is unknown.
        AutoqError: A file cannot be downloaded; what is here of it is kept, and the same call continues.
    """
    from autoq.metrics.model_files import MODEL_FILES
    from autoq.metrics.quality import METRICS

    wanted = {name: info.models for name, info in METRICS.items() if info.models}
    for name in names:
        if name not in wanted:
            raise InputError(unknown("metric with a model file", name, wanted))
    files = [MODEL_FILES[model] for name in names or wanted for model in wanted[name]]
    for file in dict.fromkeys(files):
        if not file.path.is_file():
            file.fetch(lambda done, total, name=file.name: progress(name, done, total))  # type: ignore[misc]
    return {file.name: file.path for file in files}
