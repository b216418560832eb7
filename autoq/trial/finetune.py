"""Finetuning: one policy trained for long, validated at intervals; the best weights are kept.

The weights that are validated are a moving average of the trained ones. The state is saved with every validation, so a
training that is killed continues from the last one, to the same weights.
"""

from __future__ import annotations

import copy
import dataclasses
import pickle
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from autoq.config.events import Progress, TrainingEvents
from autoq.config.objectives import OBJECTIVES
from autoq.config.policy import Policy
from autoq.config.spec import TrialResult
from autoq.costs.latency.table import LatencyTable
from autoq.export.onnx import Graph
from autoq.graph.quantize import Quantized
from autoq.system.files import atomic_write
from autoq.training.qat import Training
from autoq.trial.context import TrialContext
from autoq.trial.run import costs_of, judged_file

BATCH = 8
"""Patches in a step."""

PATCHES = 2048
"""Distinct patches. The float network's outputs for them are kept in memory: 110 KB each at 24 pixels and x4."""

LEARNING_RATE = 4e-4
"""Of the weights: four times that of a trial, whose few steps cannot settle what a large one disturbs."""

WARM_UP = 1 / 20
"""Share of the steps in which the learning rates rise."""

VALIDATIONS = 20
"""Validations during a training."""

PATIENCE = 8
"""Validations in a row without a better one, after which the training ends."""

AVERAGED, MOST_AVERAGED = 1 / 20, 100
"""Steps that the moving average of weights and scales spans: a share of all, and the most."""


MEASURED = 3
"""Steps that a training's speed is measured by."""


def with_steps(context: TrialContext, steps: int) -> TrialContext:
    """A context for another number of steps."""
    return dataclasses.replace(context, spec=context.spec.model_copy(update={"steps": steps}))


def steps_within(context: TrialContext, policy: Policy, graph: Graph, quality: str, seconds: float) -> int:
    """Steps of a finetuning that fit in a time with all validations, at least one: some are trained and measured."""
    tried = Finetuning(with_steps(context, 2 * MEASURED), policy, graph, quality)
    times = [time.perf_counter()]
    for work in (lambda: tried.training.advance(MEASURED), lambda: tried.training.advance(2 * MEASURED), tried.validate):
        work()
        times.append(time.perf_counter())
    _, started, trained, validated = times
    return max(1, int((seconds - (VALIDATIONS + 1) * (validated - trained)) / (trained - started) * MEASURED))


def begun_steps(state: Path) -> int | None:
    """The steps of the finetuning that a file holds the state of; None where it holds none."""
    found = _read(state, "cpu")
    return None if found is None else int(found["steps"])


def _read(state: Path, device: str) -> dict[str, Any] | None:
    """The content of a state; None where the file is missing, or torn."""
    if not state.is_file():
        return None
    try:
        found: dict[str, Any] = torch.load(state, weights_only=True, map_location=device)
    except (RuntimeError, EOFError, pickle.UnpicklingError):
        return None
    return found


class Finetuning:
    """The finetuning of a policy, with what has to be saved for it to go on.

    Args:
        context: A context of the study's trials, prepared with the data and steps of the finetuning.
        policy: The policy.
        graph: The marked float graph of `export_graph`.
        quality: Name of the quality that decides which weights are the best.
    """

    def __init__(self, context: TrialContext, policy: Policy, graph: Graph, quality: str) -> None:
        torch.set_num_threads(context.spec.threads)
        torch.manual_seed(context.spec.seed)
        self.context, self.policy, self.graph, self.quality = context, policy, graph, quality
        self.quantized = context.quantized(policy)
        self.quantized.module.to(context.spec.device)
        self.steps = context.spec.steps
        self.training = Training(context, self.quantized, LEARNING_RATE, round(WARM_UP * self.steps), exact=True)
        decay = 1 - 1 / max(1.0, min(AVERAGED * self.steps, MOST_AVERAGED))
        self.average = AveragedModel(self.training.module, multi_avg_fn=get_ema_multi_avg_fn(decay))
        self.best: dict[str, Any] | None = None
        self.seconds = 0.0

    def run(self, state: Path, events: TrainingEvents) -> None:
        """Train to the end, or until validations no longer improve. Continues from the file `state`, if it is there.

        Raises:
            TrialFailed: The training diverged.
            OSError: The state cannot be written.
        """
        self._restore(state)
        every = max(1, self.steps // VALIDATIONS)
        start = time.perf_counter() - self.seconds
        events.begin(self.training.step, self.steps)
        if self.best is None:
            self.validate()  # a training that only does harm ends with the weights that it began with
        while not self._is_over(every):
            losses: list[float] = []

            def stepped(loss: float, losses: list[float] = losses) -> None:
                self.average.update_parameters(self.training.module)
                losses.append(loss)
                events.stepped(self.training.step)

            self.training.advance(min(self.steps, self.training.step + every), stepped)
            value = self.validate()
            self.seconds = time.perf_counter() - start
            with atomic_write(state) as partial:
                torch.save(self._state(), partial)
            loss = sum(losses) / len(losses)
            events.validated(Progress(self.training.step, self.steps, loss, value, self.seconds, self.quality))

    def _is_over(self, every: int) -> bool:
        waited = 0 if self.best is None else (self.training.step - self.best["step"]) // every
        return self.training.step >= self.steps or waited >= PATIENCE

    def validate(self) -> float:
        """The quality of the averaged weights; the best ones so far are kept."""
        averaged = self._averaged()
        values, _ = judged_file(self.context, averaged, self.graph, whole=False)
        value = values[self.quality]
        sign = 1 if OBJECTIVES[self.quality].direction == "maximize" else -1
        if self.best is None or sign * value > sign * self.best["value"]:
            self.best = {"value": value, "step": self.training.step, "weights": averaged.module.cpu().state_dict()}
        return value

    def _averaged(self) -> Quantized:
        """The trained network with the averages of its parameters."""
        module = copy.deepcopy(self.quantized.module)
        with torch.no_grad():
            for parameter, average in zip(module.parameters(), self.average.parameters(), strict=True):
                parameter.copy_(average)
        return dataclasses.replace(self.quantized, module=module)

    def _state(self) -> dict[str, Any]:
        return {
            "training": self.training.state(),
            "average": self.average.state_dict(),
            "best": self.best,
            "seconds": self.seconds,
            "steps": self.steps,
        }

    def _restore(self, state: Path) -> None:
        found = _read(state, self.context.spec.device)
        if found is None:  # it starts anew, to the same weights
            return
        self.training.restore(found["training"])
        self.average.load_state_dict(found["average"])
        self.best, self.seconds = found["best"], found["seconds"]

    def save(self, weights: Path) -> None:
        """Write the best weights."""
        assert self.best is not None
        with atomic_write(weights) as partial:
            torch.save(self.best["weights"], partial)

    def result(self, table: LatencyTable) -> TrialResult:
        """The best weights, judged as a trial's: their file on both sets of images."""
        assert self.best is not None
        best = with_weights(self.context, self.policy, self.best["weights"])
        values, held_out = judged_file(self.context, best, self.graph, whole=True)
        values |= costs_of(best, self.policy, table)
        return TrialResult(
            state="complete", values=values, held_out=held_out, steps=self.best["step"], seconds=round(self.seconds, 3)
        )


def finetuned(context: TrialContext, policy: Policy, weights: Path) -> Quantized:
    """The network of a finetuned policy from its file of weights."""
    return with_weights(context, policy, torch.load(weights, weights_only=True))


def with_weights(context: TrialContext, policy: Policy, weights: Mapping[str, Any]) -> Quantized:
    """A policy's network with the weights and scales of a training."""
    quantized = context.quantized(policy)
    quantized.module.load_state_dict(weights)
    quantized.module.to(context.spec.device)
    return quantized
