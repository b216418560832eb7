"""Points of a study as files: `export_point`, `unpack`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from autoq.api.studies import check_inputs, check_options, open_study
from autoq.config.events import Events
from autoq.config.options import SearchOptions
from autoq.config.spec import Record
from autoq.errors import InputError
from autoq.report.progress import listening
from autoq.study import selection as picking
from autoq.study.results import Results
from autoq.study.study import Study
from autoq.tuning.options import model_name

if TYPE_CHECKING:
    from autoq.deploy.pipeline import Exported
    from autoq.networks import Own


def export_point(
    study: str | Study,
    folder: str | Path,
    trial: int | None = None,
    pick: str | None = None,
    format: str = "onnx",
    strict: bool = False,
    events: Events | None = None,
    model: Own | None = None,
) -> Exported:
    """Export a point of a study as files that run: model, policy.json, README.md (model card) and run.py.

    The policy is trained again, to the same weights. The file is then loaded in the target's runtime, and its quality, bytes
    and latency are compared with the study's figures.

    Args:
        study: A name under studies/, an absolute path, or the study itself.
        folder: New folder to write to.
        trial: Number of a trial; or give `pick`.
        pick: How to choose a point: `smallest`, `fastest`, `compromise`, an objective (best value),
            `psnr_drop<=0.1 then size` (best within bounds), or the name of a baseline.
        format: `onnx` (the target's runtime file), `openvino`, `packed` (every weight at its own width; `unpack` converts it)
            or `qonnx` (target `bits` only).
        strict: Whether a latency that differs from the study's is an error, not a warning.
        events: Called while it runs; see `autoq.Events`.
        model: The study's network, if it was given from Python.

    Returns:
        The file, its figures and the warnings.

    Raises:
        InputError: The point or the folder cannot be used.
        AutoqError: Bytes or quality differ from the study's. No folder is left then.
    """
    found, record = picked("export", Study.points, study, trial, pick, model)
    from autoq.deploy.pipeline import export_record

    with listening(events) as heard:
        return export_record(found, record, format, Path(folder), heard.phase, strict)


def picked(
    command: str,
    points: Callable[[Study], Results],
    study: str | Study,
    trial: int | None,
    pick: str | None,
    model: Own | None,
) -> tuple[Study, Record]:
    """The study and the point of it that a command is to take, once the study's network and files are as they were.

    Raises InputError where there is no such point, not one is asked for, or something has changed since the study began.
    """
    found = open_study(study) if isinstance(study, str) else study
    if (trial is None) == (pick is None):
        raise InputError(f"{command}: expected either --trial or --pick; type `--pick compromise` or `--trial N`")
    results = points(found)
    record = picking.by_rule(results, str(pick)) if trial is None else picking.by_number(results.records, trial)
    name = study if isinstance(study, str) else found.name
    if model is not None:
        check_options(name, found.spec, SearchOptions.of(model=model_name(model)), f"to {command} it")
    check_inputs(name, found.spec)
    return found, record


def unpack(file: str | Path, folder: str | Path) -> Path:
    """Convert a packed file into the file that the target's runtime loads.

    Args:
        file: A file that `export_point` wrote with `format="packed"`.
        folder: New folder to write to.

    Returns:
        The path of the runtime's file.

    Raises:
        InputError: The file is no packed file, or the folder cannot be used.
    """
    from autoq.deploy.pipeline import unpack_to

    return unpack_to(Path(file), Path(folder))
