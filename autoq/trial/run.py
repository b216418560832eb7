"""One trial: a policy and a number of training steps in, objectives out. Knows neither Ray nor Optuna."""

from __future__ import annotations

import contextlib
import pickle
import re
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import torch

from autoq.config.objectives import FIDELITY
from autoq.config.policy import Policy
from autoq.config.spec import Replication, TrialResult, TrialSpec
from autoq.costs.latency.analytic import milliseconds
from autoq.costs.latency.structure import structure_key
from autoq.costs.latency.table import LatencyTable
from autoq.costs.operations import costs
from autoq.costs.size import packed_bytes
from autoq.errors import TrialFailed
from autoq.export.onnx import Graph, export_graph, payload_bytes
from autoq.graph.loading import Loaded, load
from autoq.graph.quantize import Quantized, collect, quantize
from autoq.graph.trace import check_integers_only, trace
from autoq.images.pixels import to_input, to_pixels
from autoq.metrics.quality import averaged, decibels, fidelity, judged
from autoq.networks import fresh_model, is_custom, model_info
from autoq.networks.stages import StagePatterns
from autoq.system.files import atomic_write
from autoq.targets import Runner, target_info
from autoq.training.qat import Training
from autoq.trial.context import TrialContext, execution_on, runtime_model, shipped, simulated

Values: TypeAlias = dict[str, float]
"""Values by name of the objective."""

AGREEMENT_IMAGES = 2
"""Evaluation images on which the trained network is compared with its file."""


def regrouped(model: str, scale: int, weights: Path | None, layers: StagePatterns, by: str) -> StagePatterns:
    """Stages that are single layers (`layer`), or layers with the same beginning up to its first number (`block`)."""
    groups: dict[str, tuple[str, ...]] = {}
    for layer in load(model, scale, weights, layers).traced.layers:
        block = re.match(r"[^0-9]*?[0-9]+(?=[.])", layer.path)
        group = block[0] if by == "block" and block else layer.path
        name = re.sub("[^A-Za-z0-9]+", "_", group)
        name = name if name[0].isalpha() else f"layer_{name}"
        groups[name] = (*groups.get(name, ()), layer.path)
    return groups


def price(spec: TrialSpec, policy: Policy, frame: tuple[int, int]) -> dict[str, Any]:
    """Costs of a policy on an image of (width, height), bytes of its weights, and the layers that always run in float.

    They need no image and no training. `latency_modelled` is there on a target that models its latency.
    """
    if spec.weights or is_custom(spec.model):
        loaded = load(spec.model, spec.scale, spec.weights, dict(spec.layers))
    else:
        network, patterns = fresh_model(spec.model, spec.scale).eval(), dict(spec.layers) or model_info(spec.model).patterns
        loaded = Loaded(network, trace(network, patterns), patterns)
    traced, execution = loaded.traced, execution_on(spec.target, spec.exact_weight_bits)
    if target_info(spec.target).output == "uint8":
        check_integers_only(traced, spec.target)
    side = traced.fitted(spec.patch)
    blank = torch.zeros(1, 3, side, side)
    quantized = quantize(traced, policy, collect(traced, [blank]), execution)
    found, model = costs(quantized.plan, frame), target_info(spec.target).model
    latency = {} if model is None else {"latency_modelled": milliseconds(quantized.plan, frame, model)}
    return {
        "parameters": sum(parameter.numel() for parameter in loaded.network.parameters()),
        **asdict(found),
        "size": packed_bytes(quantized.plan),
        "size_runtime": payload_bytes(runtime_model(spec.target, export_graph(traced), quantized)),
        "float_layers": list(traced.float_layers),
        **latency,
    }


def run_trial(
    context: TrialContext,
    policy: Policy,
    latency: LatencyTable,
    graph: Graph,
    until: int | None = None,
    state: Path | None = None,
) -> TrialResult:
    """PTQ, QAT for `spec.steps`, evaluation of the exported file. Deterministic for its arguments on one machine.

    Args:
        context: The context that all trials of the study share.
        policy: The candidate.
        latency: The study's frozen latencies.
        graph: The marked float graph of `export_graph`.
        until: Stop after this many of the steps. A trial that reaches `spec.steps` is also judged on the held-out images.
        state: File that keeps a training that stops early, and from which it continues.

    Returns:
        The values, or a failed result with its reason where the training diverged.
    """
    spec = context.spec
    start = time.perf_counter()
    steps = _steps(spec, policy, until)
    try:
        quantized = trained(context, policy, steps, state)
        values, apart, _ = judged_file(context, quantized, graph, whole=steps == _steps(spec, policy))
    except TrialFailed as failure:
        return TrialResult(state="failed", reason=str(failure), steps=failure.steps, seconds=_since(start))
    values |= costs_of(quantized, policy, latency)
    return TrialResult(state="complete", values=values, held_out=apart, steps=steps, seconds=_since(start))


def costs_of(quantized: Quantized, policy: Policy, latency: LatencyTable) -> Values:
    """The values that training does not change: bytes, operations, memory and the table's latency."""
    cost = costs(quantized.plan, latency.frame)
    values = {
        "size": packed_bytes(quantized.plan),
        "ops": cost.ops,
        "bops": float(cost.bops),
        "peak_memory": float(cost.peak_memory),
    }
    return {**values, "latency": latency.ms(structure_key(quantized.plan), policy)} if latency.entries else values


def replicate(context: TrialContext, policy: Policy, graph: Graph) -> Replication:
    """Train a policy fully in a context with another seed, and judge it on both sets of images."""
    start = time.perf_counter()
    steps = _steps(context.spec, policy)
    try:
        values, apart, _ = judged_file(context, trained(context, policy, steps), graph, whole=True)
        result = TrialResult(state="complete", values=values, held_out=apart, steps=steps, seconds=_since(start))
    except TrialFailed as failure:
        result = TrialResult(state="failed", reason=str(failure), steps=failure.steps, seconds=_since(start))
    return Replication(policy=policy.hash, seed=context.spec.seed, result=result)


class Judged(NamedTuple):
    """Values of a file on the evaluation images and on the held-out images, and its outputs for the former."""

    values: Values
    held_out: Values
    outputs: list[np.ndarray]


def judged_file(context: TrialContext, quantized: Quantized, graph: Graph, whole: bool) -> Judged:
    """The exported file on the evaluation images, and for a `whole` trial also on the held-out images."""
    model = runtime_model(context.spec.target, graph, quantized)
    run = shipped(context, quantized, model)
    outputs = run_all(context, run)
    values = judge(context, outputs)
    values["size_runtime"] = payload_bytes(model)
    if not whole:
        return Judged(values, {}, outputs)
    values["simulation_agreement_db"] = agreement(context, quantized, outputs)
    return Judged(values, evaluate(context.held_out(), run), outputs)


def _steps(spec: TrialSpec, policy: Policy, until: int | None = None) -> int:
    """Training steps of a policy; the float network needs none."""
    return 0 if policy.is_float else spec.steps if until is None else until


def trained(context: TrialContext, policy: Policy, steps: int, state: Path | None = None) -> Quantized:
    """A policy's network after `steps` training steps.

    Args:
        context: The context of the trial.
        policy: The candidate.
        steps: Training steps.
        state: As in `run_trial`.

    Raises:
        TrialFailed: The training diverged.
    """
    torch.set_num_threads(context.spec.threads)
    torch.manual_seed(context.spec.seed)
    quantized = context.quantized(policy) if context.spec.steps else context.rounded(policy)
    quantized.module.to(context.spec.device)
    training = Training(context, quantized)
    _restore(training, state, steps)
    training.advance(steps)
    if state is not None and steps < context.spec.steps:
        _keep(training, state)
    return quantized


def _restore(training: Training, state: Path | None, steps: int) -> None:
    """Continue from a file. Where it is missing, torn or beyond `steps`, training from the start gives the same values."""
    if state is None or not state.is_file():
        return
    try:
        found = torch.load(state, weights_only=True, map_location="cpu")
    except (OSError, RuntimeError, EOFError, pickle.UnpicklingError):
        return
    if found["step"] <= steps:
        training.restore(found)


def _keep(training: Training, state: Path) -> None:
    """Keep a training for later. On a full disk it only starts anew; files that a study needs raise their own errors."""
    with contextlib.suppress(OSError, RuntimeError):
        state.parent.mkdir(exist_ok=True)
        with atomic_write(state) as partial:
            torch.save(training.state(), partial)


def _since(start: float) -> float:
    return round(time.perf_counter() - start, 3)


def evaluate(context: TrialContext, run: Runner) -> dict[str, float]:
    """Every metric and fidelity, averaged over the evaluation images. Raises TrialFailed, see `run_all` and `judge`."""
    return judge(context, run_all(context, run))


def run_all(context: TrialContext, run: Runner) -> list[np.ndarray]:
    """Outputs for the evaluation images, float32 [1, 3, height, width] each. Raises TrialFailed when one is not finite."""
    outputs = []
    for pair in context.pairs:
        output = run(to_input(pair.low))
        if not np.isfinite(output).all():
            raise TrialFailed(f"the output for image '{pair.name}' is not finite", context.spec.steps)
        outputs.append(output)
    return outputs


def judge(context: TrialContext, outputs: Sequence[np.ndarray]) -> dict[str, float]:
    """Every metric of the context, averaged over outputs for the evaluation images, and their fidelity to the float network's.

    Raises TrialFailed where a metric is not a finite number.
    """
    found = [to_pixels(output[0]) for output in outputs]
    border = context.spec.scale
    values = averaged([judged(context.metrics, image, pair.high, border) for image, pair in zip(found, context.pairs, strict=True)])
    broken = [name for name, value in values.items() if not np.isfinite(value)]
    if broken:
        raise TrialFailed(f"{', '.join(broken)} of the output is not a finite number", context.spec.steps)
    values[FIDELITY] = float(np.mean([fidelity(a, b) for a, b in zip(found, context.float_outputs, strict=True)]))
    return values


def agreement(context: TrialContext, quantized: Quantized, outputs: Sequence[np.ndarray]) -> float:
    """PSNR (dB) between a file's outputs, clipped to [0, 1], and those of the trained network.

    It shows how well training approximates the runtime, over the first AGREEMENT_IMAGES evaluation images.
    """
    run = simulated(context, quantized)
    errors = []
    for pair, output in zip(context.pairs[:AGREEMENT_IMAGES], outputs, strict=False):
        difference = np.clip(output, 0, 1) - np.clip(run(to_input(pair.low)), 0, 1)
        errors.append(np.mean(difference.astype(float) ** 2))
    return decibels(float(np.mean(errors)))
