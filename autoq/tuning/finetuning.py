"""Finetuned points of a study: one that was asked for, and those at the end of a search."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import PIL.Image

from autoq.config.events import Events, Progress, TrainingEvents
from autoq.config.objectives import OBJECTIVES
from autoq.config.options import LossName
from autoq.config.policy import Policy
from autoq.config.spec import Record, StudySpec, TrialSpec
from autoq.costs.latency.table import read_table
from autoq.errors import TrialFailed
from autoq.export.onnx import stored_graph
from autoq.study.replication import by_interest, replicated_qualities
from autoq.study.results import finetuned_name, point_name, shown
from autoq.study.study import Study
from autoq.system.files import atomic_write
from autoq.training.together import told
from autoq.trial.context import TrialContext, prepare
from autoq.trial.finetune import BATCH, PATCHES, Finetuning, begun_steps, steps_within, with_steps
from autoq.tuning.peers import leading

PATCHES_PER_SECOND = 10
"""Distinct patches of a finetuning whose time is given, at most PATCHES: preparing them is part of the time."""


def default_loss(spec: StudySpec) -> LossName:
    """Originals, where they are what a study's first quality compares with."""
    return "originals" if OBJECTIVES[replicated_qualities(spec.objectives)[0]].original else "output"


@dataclass(frozen=True)
class FinetuneRecipe:
    """How long a finetuning trains, so many steps or what fits in so many seconds, what it minimizes, and in how many processes."""

    steps: int | None = None
    seconds: float = 0.0
    loss: LossName = "output"
    processes: int = 1

    @property
    def name(self) -> str:
        """It, as part of a file's name."""
        length = str(self.steps) if self.steps is not None else f"{self.seconds:.0f}s"
        loss = "" if self.loss == "output" else f"-{self.loss}"
        return f"{length}{loss}" if self.processes == 1 else f"{length}{loss}-{self.processes}-processes"

    @property
    def patches(self) -> int:
        """Distinct patches."""
        return PATCHES if self.steps is not None else max(BATCH, min(PATCHES, round(PATCHES_PER_SECOND * self.seconds)))


def context_of(trial: TrialSpec, recipe: FinetuneRecipe, threads: int, device: str) -> TrialContext:
    """The context of a study's trials with the data of a finetuning."""
    steps = PATCHES if recipe.steps is None else recipe.steps
    changes = {"steps": steps, "batch": BATCH * recipe.processes, "patches": recipe.patches, "threads": threads, "device": device}
    return prepare(trial.model_copy(update=changes))


def finetune_point(
    study: Study, record: Record, recipe: FinetuneRecipe, threads: int, device: str, events: TrainingEvents
) -> Record:
    """As `finetune_record`, in as many processes as the recipe asks for, with `threads` threads each. Raises what it raises."""
    trial = study.spec.trial
    with leading(recipe.processes, device, trial.model, _take_part, study.folder.resolve(), record.policy, recipe, threads, device):
        return finetune_record(study, record, context_of(trial, recipe, threads, device), recipe, events)


def _take_part(folder: Path, policy: Mapping[str, Any], recipe: FinetuneRecipe, threads: int, device: str) -> None:
    """What the other processes of a finetuning do."""
    study = Study.open(folder)
    _begun(study, Policy.from_dict(policy), context_of(study.spec.trial, recipe, threads, device), recipe).run(TrainingEvents())


def finetune_record(study: Study, record: Record, context: TrialContext, recipe: FinetuneRecipe, events: TrainingEvents) -> Record:
    """Finetune a point and add the result to the study. Continues a finetuning of the same recipe that was interrupted.

    Args:
        study: The study, locked by this process.
        record: The point.
        context: Of `context_of`.
        recipe: How it trains.
        events: Called while it trains.

    Returns:
        The finetuned point.

    Raises:
        TrialFailed: The training diverged.
        OSError: A file cannot be written.
    """
    policy = Policy.from_dict(record.policy)
    training = _begun(study, policy, context, recipe)
    training.run(events)
    result = training.result(read_table(study.latency_path))
    training.save(study.weights_path(policy, result.steps))
    with atomic_write(study.picture_path(policy, result.steps)) as partial:
        PIL.Image.fromarray(training.picture()).save(partial, "PNG")
    added = study.add_finetuned(record, result)
    study.finetuning_path(policy, recipe.name).unlink()
    return added


def _begun(study: Study, policy: Policy, context: TrialContext, recipe: FinetuneRecipe) -> Finetuning:
    """A finetuning at its beginning, or where its state has it."""
    quality, graph = replicated_qualities(study.spec.objectives)[0], stored_graph(study.graph_path, context.traced)
    state = study.finetuning_path(policy, recipe.name)
    state.parent.mkdir(exist_ok=True)
    steps = recipe.steps or begun_steps(state) or steps_within(context, policy, graph, recipe.loss, recipe.seconds)
    return Finetuning(with_steps(context, told(steps)), policy, graph, quality, recipe.loss, state)


# ------------------------------------------------------------ at the end of a search


def left_to_finetune(study: Study) -> list[Record]:
    """Points that a finished search still has to finetune, the most interesting first."""
    known = {record.name for record in study.finetuned()}
    chosen = by_interest(study.results())[: study.spec.finetune]
    return [record for record in chosen if finetuned_name(record) not in known]


def finetune_front(study: Study, events: Events) -> None:
    """Finetune the points of `left_to_finetune`, all together for about as long as the study's trials took.

    One whose training diverges is noted and left out.
    """
    left = left_to_finetune(study)
    if not left:
        return
    spec = study.spec
    seconds = sum(record.seconds for record in study.records()) / spec.workers / spec.finetune
    recipe = FinetuneRecipe(seconds=max(1.0, seconds), loss=default_loss(spec))
    events.phase("preparing the finetuning")
    context = context_of(spec.trial, recipe, spec.latency_threads, spec.trial.device)
    for record in left:
        try:
            finetune_record(study, record, context, recipe, _Validations(events, point_name(record)))
        except TrialFailed as failure:
            events.note(f"{point_name(record)}: its finetuning failed: {failure}")


class _Validations(TrainingEvents):
    """Shows the validations of a finetuning as phases of a search."""

    def __init__(self, events: Events, name: str) -> None:
        self.events, self.name = events, name

    def validated(self, progress: Progress) -> None:
        value = f"{progress.quality} {shown(progress.quality, progress.value)}"
        self.events.phase(f"finetuning {self.name}: step {progress.step:,} of {progress.steps:,}, {value}")
