"""What the commands do, as functions. `run_search` turns plain options into a study and runs it."""

from __future__ import annotations

import datetime
import os
from pathlib import Path
from typing import TYPE_CHECKING, cast, get_args

from autoq.errors import InputError, unknown
from autoq.models import model_info
from autoq.objectives import OBJECTIVES, check_objectives
from autoq.space import bundled_space, load_space
from autoq.spec import SamplerName, StudySpec, TrialSpec
from autoq.study import Study, space_facts, study_folder

if TYPE_CHECKING:
    from autoq.driver import Events

SAMPLERS: tuple[str, ...] = get_args(SamplerName)
QUALITY_ORDER = ("pi", "niqe", "psnr")
"""Which quality a search optimizes by default: the first this machine can measure; PSNR for PSNR-trained networks."""

MAX_WORKERS = 4


def run_search(
    *,
    model: str,
    scale: int,
    weights: Path | None,
    target: str,
    space: Path | None,
    objectives: str | None,
    data: Path | None,
    eval_data: Path | None,
    study: str | None,
    sampler: str,
    budget: int,
    steps: int,
    workers: int | None,
    seed: int,
    frame: str,
    latency_table: Path | None,
    command: str,
    events: Events,
) -> tuple[Study, Path]:
    """Check every option, create the study, search, write the report. Returns the study and the report's path.

    Raises InputError before anything is written when an option cannot be used.
    """
    if sampler not in SAMPLERS:
        raise InputError(unknown("sampler", sampler, SAMPLERS))
    folder = study_folder(study or f"{model}-x{scale}-{datetime.datetime.now():%Y%m%d-%H%M%S}")
    size = parse_frame(frame)
    facts = space_facts(model, target)
    loaded = load_space(space or bundled_space(model), facts)
    chosen = tuple(name.strip() for name in objectives.split(",")) if objectives else default_objectives(model, events)
    check_objectives(chosen)
    _check_measurable(chosen)
    cores = os.cpu_count() or 1
    workers = workers or min(cores, MAX_WORKERS)
    spec = StudySpec(
        trial=TrialSpec(
            model=model, scale=scale, weights=_absolute(weights), target=target, data=_absolute(data), eval_data=_absolute(eval_data),
            steps=steps, seed=seed, threads=max(1, cores // workers),
        ),
        space=loaded.to_dict(), objectives=chosen, sampler=cast(SamplerName, sampler), budget=budget, workers=workers,
        frame=size, latency_threads=cores,
    )  # fmt: skip

    from autoq.driver import check_table, environment
    from autoq.driver import search as drive
    from autoq.objectives.latency import read_table
    from autoq.report.build import build_report
    from autoq.trial import prepare

    table = read_table(latency_table) if latency_table else None
    prepare(spec.trial)  # bad weights and images end here, before a study exists
    if table:
        check_table(table, spec, loaded)
    created = Study.create(folder, spec, environment(command))
    drive(created, table, events)
    page, _ = build_report(created)
    return created, page


def default_objectives(model: str, events: Events) -> tuple[str, ...]:
    """size, latency and the best quality this machine can measure; says so where that is not the first choice."""
    from autoq.objectives.quality import why_unavailable

    if not model_info(model).perceptual:
        return ("size", "latency", "psnr")
    reasons = {name: why_unavailable(name) for name in QUALITY_ORDER}
    quality = next(name for name in QUALITY_ORDER if reasons[name] is None)
    if quality != QUALITY_ORDER[0]:
        events.phase(f"quality is {quality}: {reasons[QUALITY_ORDER[0]]}")
    return ("size", "latency", quality)


def _check_measurable(objectives: tuple[str, ...]) -> None:
    from autoq.objectives.quality import METRICS, why_unavailable

    for name in objectives:
        if OBJECTIVES[name].quality and name in METRICS and (reason := why_unavailable(name)):
            raise InputError(reason)


def parse_frame(text: str) -> tuple[int, int]:
    """`96x64` -> (96, 64). Raises InputError."""
    parts = text.lower().split("x")
    if len(parts) != 2 or not all(part.isdigit() and int(part) >= 16 for part in parts):
        raise InputError(f"frame '{text}': expected WIDTHxHEIGHT of 16 pixels or more, for example 96x96")
    return int(parts[0]), int(parts[1])


def _absolute(path: Path | None) -> Path | None:
    return path.resolve() if path else None
