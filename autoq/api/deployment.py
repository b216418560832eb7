"""Points of a study as files: what `autoq export` and `autoq unpack` do, as functions."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from autoq.api.studies import check_inputs, check_options, open_study
from autoq.config.events import Events
from autoq.config.options import SearchOptions
from autoq.errors import InputError
from autoq.study import selection as picking
from autoq.study.study import Study
from autoq.tuning.options import model_name

if TYPE_CHECKING:
    from autoq.deploy.pipeline import Delivered
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
) -> Delivered:
    """Write a point of a study as files that run: model, policy.json, README.md (model card) and run.py.

    study: its name under studies/, an absolute path, or what `search` returned. folder: a new one. trial: a number, or
    pick: a rule, `compromise`, `smallest`, `fastest`, an objective, `psnr_drop<=0.1 then size`, or a point's name. format:
    onnx (what the target's runtime loads), openvino, packed (every weight at its own width; `unpack` makes the runtime's file
    of it), or qonnx (what the target `bits` has instead of them). model: the study's network,
    where that was given from Python.

    The policy trains again, to the same weights. The file is then reloaded in the target's runtime and held against the
    study's figures: qualities, bytes, latency. Raises InputError for a point or folder that cannot be, AutoqError where
    bytes or qualities are not what was promised; then no folder is left. strict: raise for a latency that differs, too.
    """
    found = open_study(study) if isinstance(study, str) else study
    events = events or Events()
    if (trial is None) == (pick is None):
        raise InputError("export: which point? type --trial N or --pick RULE, for example --pick compromise")
    records = found.records()
    record = picking.by_number(records, trial) if trial is not None else picking.by_rule(records, found.spec.objectives, str(pick))
    name = study if isinstance(study, str) else found.name
    if model is not None:
        check_options(name, found.spec, SearchOptions.of(model=model_name(model)), "to export it")
    check_inputs(name, found.spec)
    from autoq.deploy.pipeline import deliver

    return deliver(found, record, format, Path(folder), events.phase, strict)


def unpack(file: str | Path, folder: str | Path) -> Path:
    """Make the runtime's file of a package, in a new folder. Returns its path. Raises InputError where it is no package."""
    from autoq.deploy.pipeline import unpack_to

    return unpack_to(Path(file), Path(folder))
