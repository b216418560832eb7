"""Finetuning: one policy trained for long, validated at intervals; the best weights are kept.

The weights that are validated are a moving average of the trained ones. The state is saved with every validation, so a
training that is killed continues from the last one, to the same weights.
"""

from __future__ import annotations

import copy
import dataclasses
import functools
import pickle
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from autoq.config.events import Progress, TrainingEvents
from autoq.config.objectives import OBJECTIVES
from autoq.config.options import LossName
from autoq.config.policy import Policy, Role
from autoq.config.spec import TrialResult
from autoq.costs.latency.table import LatencyTable
from autoq.export.onnx import Graph
from autoq.graph.quantize import Quantized
from autoq.images.pixels import to_pixels
from autoq.quantizers import CLIPPING_NAMES, QUANTIZERS
from autoq.system.files import atomic_write
from autoq.training import together
from autoq.training.losses import LOSSES
from autoq.training.originals import OriginalsTraining
from autoq.training.qat import Training
from autoq.trial.context import TrialContext
from autoq.trial.pictures import comparison
from autoq.trial.run import Judged, costs_of, judged_file

BATCH = 8
"""Patches in a step."""

PATCHES = 2048
"""Distinct patches. The float network's outputs for them are kept in memory: 110 KB each at 24 pixels and x4."""

LEARNING_RATE = 4e-4
"""Of the weights: four times that of a trial, whose few steps cannot settle what a large one disturbs."""

ORIGINALS, MOST_ORIGINALS, NEAR = 1 / 5, 200, 0.005
"""Share of the steps, the last ones, that `originals` gives to originals, and the most: first a network has to be near to the float
one, and longer trainings lose what the first steps gain. Where it is near from the start, within this distance (L1) of the float
network's output, the other steps are left out."""

WARM_UP = 1 / 20
"""Share of the steps in which the learning rates rise."""

VALIDATIONS = 20
"""Validations during a training."""

STILL, PATIENCE = 1e-4, 4
"""Share of its value that the quality spans where it no longer moves, and after how many validations in a row that ends a training.
A quality that falls still moves: it may rise again as the learning rates sink."""

AVERAGED, MOST_AVERAGED = 1 / 20, 100
"""Steps that the moving average of weights and scales spans: a share of all, and the most."""


MEASURED = 3
"""Steps that a training's speed is measured by."""

VERSION = 2
"""Of the content of a state."""


ALIKE: tuple[tuple[Role, ...], ...] = (("weight",), ("activation", "skip"))
"""Roles that get the same range estimator: a tensor that is read as both has one quantizer, if its formats are equal."""


def with_steps(context: TrialContext, steps: int) -> TrialContext:
    """A context for another number of steps."""
    return dataclasses.replace(context, spec=context.spec.model_copy(update={"steps": steps}))


def steps_within(context: TrialContext, policy: Policy, graph: Graph, loss: LossName, seconds: float) -> int:
    """Steps of a finetuning that fit in a time with all validations, at least one: some are trained and measured."""
    torch.set_num_threads(context.spec.threads)
    quantized = context.quantized(policy)
    quantized.module.to(context.spec.device)
    training = _trainings(with_steps(context, 2 * MEASURED), quantized, loss, near=False)[0]
    times = [time.perf_counter()]
    for work in (
        lambda: training.advance(MEASURED),
        lambda: training.advance(2 * MEASURED),
        lambda: judged_file(context, quantized, graph, whole=False),
    ):
        work()
        times.append(time.perf_counter())
    _, started, trained, validated = times
    return max(1, int((seconds - (VALIDATIONS + 1) * (validated - trained)) / (trained - started) * MEASURED))


@torch.no_grad()
def _is_near(context: TrialContext, quantized: Quantized) -> bool:
    """Whether an untrained network is near enough to the float one for originals."""
    outputs: Tensor = quantized.module.eval()(context.calibration)
    quantized.module.train()
    return torch.nn.functional.l1_loss(outputs, context.traced.module(context.calibration)).item() < NEAR


def _trainings(context: TrialContext, quantized: Quantized, loss: LossName, near: bool) -> list[Training]:
    """What a finetuning consists of, in this order: a training towards the float network, one towards originals, or both."""
    steps = context.spec.steps
    last = min(round(ORIGINALS * steps), MOST_ORIGINALS) if loss == "originals" else 0
    found: list[Training] = []
    if not (near and last):
        taught = steps - last
        found.append(Training(with_steps(context, taught), quantized, LEARNING_RATE, round(WARM_UP * taught), exact=True))
        found[0].loss = LOSSES[loss](found[0])
    if last:
        own, warm_up = with_steps(context, last), round(WARM_UP * last)
        found.append(OriginalsTraining(own, context.train_pairs, quantized, LEARNING_RATE, warm_up))
    return found


def begun_steps(state: Path) -> int | None:
    """The steps of the finetuning that a file holds the state of; None where it holds none."""
    found = _read(state, "cpu")
    return None if found is None else int(found["steps"])


def _read(state: Path, device: str) -> dict[str, Any] | None:
    """The content of a state; None where the file is missing, torn, or of another version."""
    if not state.is_file():
        return None
    try:
        found: dict[str, Any] = torch.load(state, weights_only=True, map_location=device)
    except (RuntimeError, EOFError, pickle.UnpicklingError):
        return None
    return found if found.get("version") == VERSION else None


@torch.no_grad()
def nearest_start(context: TrialContext, policy: Policy) -> Quantized:
    """A policy's untrained network, with the ranges to begin with that put it nearest to the float network.

    A learned range only begins at its range estimator's, so the estimator is free: it is chosen for weights, then for activations
    and skips together, by the squared error of the outputs on images of calibration. Ranges that are not learned stay as the policy
    has them, and so does which sites share a quantizer, as those of equal formats do.
    """
    expected = context.traced.module(context.calibration)

    def distance(quantized: Quantized) -> float:
        outputs: Tensor = quantized.module.eval()(context.calibration)
        return (outputs - expected).square().mean().item()

    nearest, best = policy, context.quantized(policy)
    least = distance(best)
    quantizers = best.module.state_dict().keys()
    for roles in ALIKE:
        for clipping in CLIPPING_NAMES:
            candidate = _learned_from(policy, roles, clipping)
            if candidate != policy:
                quantized = context.quantized(candidate)
                if quantized.module.state_dict().keys() == quantizers and (found := distance(quantized)) < least:
                    best, least, nearest = quantized, found, candidate
        policy = nearest
    best.module.train()
    return best


def _learned_from(policy: Policy, roles: Sequence[Role], clipping: str) -> Policy:
    """The policy with another range estimator for the ranges of these roles that are learned."""
    return policy.mapped(
        lambda each, quant: (
            dataclasses.replace(quant, clipping=clipping) if each in roles and QUANTIZERS[quant.quantizer].learned else quant
        )
    )


class Finetuning:
    """The finetuning of a policy, with what has to be saved for it to go on.

    Args:
        context: A context of the study's trials, prepared with the data and steps of the finetuning.
        policy: The policy.
        graph: The marked float graph of `export_graph`.
        quality: Name of the quality that decides which weights are the best.
        loss: Name of what is minimized.
        state: The file that keeps it. Where it holds a state of the same finetuning, that one goes on.
    """

    def __init__(
        self, context: TrialContext, policy: Policy, graph: Graph, quality: str, loss: LossName, state: Path | None = None
    ) -> None:
        torch.set_num_threads(context.spec.threads)
        torch.manual_seed(context.spec.seed)
        self.context, self.policy, self.graph, self.quality, self.state = context, policy, graph, quality, state
        found = _read(state, context.spec.device) if state else None
        self.quantized = context.quantized(policy) if found else nearest_start(context, policy)
        self.near = bool(found["near"]) if found else loss == "originals" and _is_near(context, self.quantized)
        self.quantized.module.to(context.spec.device)
        self.trainings = _trainings(context, self.quantized, loss, self.near)
        self.steps = sum(training.steps for training in self.trainings)
        decay = 1 - 1 / max(1.0, min(AVERAGED * self.steps, MOST_AVERAGED))
        self.average = AveragedModel(self.quantized.module, multi_avg_fn=get_ema_multi_avg_fn(decay))
        self.current = 0
        self.best: dict[str, Any] | None = None
        self.values: list[float] = []
        self.seconds = 0.0
        if found:
            self._restore(found)

    @property
    def step(self) -> int:
        """Completed steps. A training that ended early counts with all of its steps."""
        before = self.trainings[: self.current]
        return sum(training.steps for training in before) + self.trainings[self.current].step

    def run(self, events: TrainingEvents) -> None:
        """Train to the end, each training until validations no longer move.

        Raises:
            TrialFailed: The training diverged.
            OSError: The state cannot be written.
        """
        self.start = time.perf_counter() - self.seconds
        events.begin(self.step, self.steps)
        if self.best is None:
            self.validate()  # a training that only does harm ends with the weights that it began with
        while True:
            while not self._is_over():
                self._advance(events)
            if self.current + 1 == len(self.trainings):
                return
            self.current, self.values = self.current + 1, self.values[-1:]

    def _advance(self, events: TrainingEvents) -> None:
        """Train up to the next validation, validate, and keep the state."""
        training, losses = self.trainings[self.current], list[float]()

        def stepped(loss: float) -> None:
            self.average.update_parameters(self.quantized.module)
            losses.append(loss)
            events.stepped(self.step)

        training.advance(min(training.steps, training.step + max(1, self.steps // VALIDATIONS)), stepped)
        value = self.validate()
        self.seconds = time.perf_counter() - self.start
        if self.state and together.leads():
            with atomic_write(self.state) as partial:
                torch.save(self._state(), partial)
        loss = sum(losses) / len(losses)
        events.validated(Progress(self.step, self.steps, loss, value, self.seconds, self.quality))

    def _is_over(self) -> bool:
        """Whether the current training is."""
        last, training = self.values[-PATIENCE - 1 :], self.trainings[self.current]
        moves = len(last) <= PATIENCE or max(last) - min(last) > STILL * abs(last[-1])
        return training.step >= training.steps or not moves

    def validate(self) -> float:
        """The quality of the averaged weights; the best ones so far are kept."""
        averaged = self._averaged()
        value = 0.0
        if together.leads():
            value = judged_file(self.context, averaged, self.graph, whole=False).values[self.quality]
        value = together.told(value)
        self.values.append(value)
        sign = 1 if OBJECTIVES[self.quality].direction == "maximize" else -1
        if self.best is None or sign * value > sign * self.best["value"]:
            self.best = {"value": value, "step": self.step, "weights": averaged.module.cpu().state_dict()}
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
            "version": VERSION,
            "near": self.near,
            "current": self.current,
            "training": self.trainings[self.current].state(),
            "average": self.average.state_dict(),
            "best": self.best,
            "values": self.values,
            "seconds": self.seconds,
            "steps": self.context.spec.steps,
        }

    def _restore(self, found: Mapping[str, Any]) -> None:
        self.current = found["current"]
        self.trainings[self.current].restore(found["training"])
        self.average.load_state_dict(found["average"])
        self.best, self.values, self.seconds = found["best"], found["values"], found["seconds"]

    def save(self, weights: Path) -> None:
        """Write the best weights."""
        assert self.best is not None
        with atomic_write(weights) as partial:
            torch.save(self.best["weights"], partial)

    def result(self, table: LatencyTable) -> TrialResult:
        """The best weights, judged as a trial's: their file on both sets of images."""
        assert self.best is not None
        quantized, judged = self.judged
        return TrialResult(
            state="complete",
            values=judged.values | costs_of(quantized, self.policy, table),
            held_out=judged.held_out,
            steps=self.best["step"],
            seconds=round(self.seconds, 3),
        )

    def picture(self) -> np.ndarray:
        """What the best weights change: see `comparison`."""
        return comparison(self.context, [to_pixels(output[0]) for output in self.judged[1].outputs])

    @functools.cached_property
    def judged(self) -> tuple[Quantized, Judged]:
        """The network of the best weights, and its file on both sets of images."""
        assert self.best is not None
        quantized = with_weights(self.context, self.policy, self.best["weights"])
        return quantized, judged_file(self.context, quantized, self.graph, whole=True)


def finetuned(context: TrialContext, policy: Policy, weights: Path) -> Quantized:
    """The network of a finetuned policy from its file of weights."""
    return with_weights(context, policy, torch.load(weights, weights_only=True))


def with_weights(context: TrialContext, policy: Policy, weights: Mapping[str, Any]) -> Quantized:
    """A policy's network with the weights and scales of a training."""
    quantized = context.quantized(policy)
    quantized.module.load_state_dict(weights)
    quantized.module.to(context.spec.device)
    return quantized
