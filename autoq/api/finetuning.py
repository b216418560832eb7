"""Finetuning a point of a study: `finetune`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from autoq.api.deployment import picked
from autoq.config.events import TrainingEvents
from autoq.config.options import FinetuneOptions
from autoq.config.policy import Policy
from autoq.config.spec import Record
from autoq.errors import InputError
from autoq.report.progress import listening_to_training
from autoq.study.study import Study
from autoq.system.processor import available_cores
from autoq.tuning.options import resolve_device

if TYPE_CHECKING:
    from autoq.networks import Own


def finetune(
    study: str | Study,
    trial: int | None = None,
    pick: str | None = None,
    *,
    events: TrainingEvents | None = None,
    model: Own | None = None,
    **options: Any,
) -> Record:
    """Train a point of a study for long, and add the result to the study as a point of its own, `trial 7, finetuned`.

    The training starts from the float network's weights. It is validated on the study's evaluation images at intervals, and
    the best weights are kept. The same call continues a training that was interrupted. The search's own records stay as they
    are.

    Args:
        study: A name under studies/, an absolute path, or the study itself.
        trial: Number of a trial; or give `pick`.
        pick: How to choose one of the search's points, as in `autoq.export_point`.
        events: Called while it trains.
        model: The study's network, if it was given from Python.
        options: The fields of `autoq.FinetuneOptions`, as `steps=2000`; None means not given.

    Returns:
        The record of the finetuned point: values on the evaluation images and on the held-out ones.

    Raises:
        InputError: The point or an option cannot be used.
        AutoqError: The training diverged.
        KeyboardInterrupt: It was interrupted; the same call continues it.
    """
    asked = FinetuneOptions.of(**options)
    if {"steps", "hours"} <= asked.model_fields_set:
        raise InputError("finetune: expected either --steps or --hours; omit one of them")
    found, record = picked("finetune", Study.results, study, trial, pick, model)
    if Policy.from_dict(record.policy).is_float:
        raise InputError("finetune: the float network has nothing to train; type `--pick compromise` or `--trial N`")
    if asked.loss == "originals" and found.spec.trial.images == "lr":
        raise InputError("--loss originals: the study's images have no originals; omit the option")
    from autoq.system.device import gpus
    from autoq.tuning.finetuning import FinetuneRecipe, default_loss, finetune_point

    device = resolve_device(asked.device)
    most, what = (gpus(), "GPUs") if device == "cuda" else (available_cores(), "cores")
    if asked.processes > most:
        raise InputError(f"--processes {asked.processes}: expected at most {most}, the number of {what}; type --processes {most}")
    threads = asked.threads if "threads" in asked.model_fields_set else max(1, available_cores() // asked.processes)
    length = {"steps": asked.steps} if asked.hours is None else {"seconds": 3600 * asked.hours}
    loss = asked.loss if "loss" in asked.model_fields_set else default_loss(found.spec)
    recipe = FinetuneRecipe(**length, loss=loss, processes=asked.processes)
    with listening_to_training(events) as heard, found.locked():
        return finetune_point(found, record, recipe, threads, device, heard)
