"""Sensitivity of the stages to quantization: one stage at a time (or two, three), the rest in float.

As figure 7 of Liu et al. 2021 (Super-Resolution Model Quantized in Multi-Precision), and the evaluation it announces as
future work: for every stage the change in quality, and the bytes and milliseconds saved.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import math
import statistics
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
import torch
from scipy.stats import bootstrap, spearmanr

from autoq.config.objectives import FIDELITY
from autoq.config.policy import Policy, Role, StageQuant, all_float
from autoq.config.space import SearchSpace
from autoq.config.spec import Analysis, Probe, Question, TrialSpec
from autoq.costs.latency import measure as latencies
from autoq.costs.latency.analytic import milliseconds
from autoq.costs.size import packed_bytes
from autoq.export.onnx import Graph, export_graph
from autoq.graph.inference import upscale
from autoq.graph.quantize import Quantized
from autoq.images.pixels import to_input
from autoq.targets import load_target, target_info
from autoq.training.qat import Training
from autoq.trial.context import TrialContext, prepare, runtime_file, runtime_model, shipped
from autoq.trial.run import judge
from autoq.tuning import additive

FILES_AT_ONCE = 2
"""Exported files that are loaded and run while the next policy is quantized; more would wait for Python alone."""

NEWS_EVERY = 100
"""Formats between two reports of progress."""


def measure(
    context: TrialContext,
    graph: Graph,
    policies: Iterable[Policy],
    metrics: tuple[str, ...],
    steps: int = 0,
    phase: Callable[[str], None] | None = None,
) -> list[Probe]:
    """Quantize each policy, train it for `steps` (0: post-training quantization), and evaluate the exported file.

    Args:
        context: The context of the trials.
        graph: The marked float graph of `export_graph`.
        policies: The policies.
        metrics: Names of the metrics to measure.
        steps: Training steps.
        phase: Listener for progress.
    """
    policies = list(policies)
    context = dataclasses.replace(context, metrics=tuple(name for name in metrics if name != FIDELITY))  # always judged
    expected = [upscale(context.traced.module, pair.low, "cpu").clamp(0, 1).numpy() for pair in context.pairs]

    def judged(policy: Policy, quantized: Quantized, model: Graph, begun: float) -> Probe:
        start = time.perf_counter()
        run = shipped(context, quantized, model)
        outputs = [np.clip(np.nan_to_num(run(to_input(pair.low))), 0, 1) for pair in context.pairs]
        return Probe(
            policy=policy.to_dict(),
            stages=tuple(stage for stage, quant in policy.stages if quant != StageQuant()),
            label=", ".join(f"{stage} {quant.label}" for stage, quant in policy.stages if quant != StageQuant()),
            mse=tuple(float(np.mean((a - b) ** 2)) for a, b in zip(outputs, expected, strict=True)),
            values=judge(context, outputs) if metrics else {},
            size=packed_bytes(quantized.plan),
            seconds=round(begun + time.perf_counter() - start, 3),
        )

    found: list[Probe] = []
    running: deque[Future[Probe]] = deque()
    with ThreadPoolExecutor(FILES_AT_ONCE) as judging:
        for number, policy in enumerate(policies):
            if phase is not None and number and number % NEWS_EVERY == 0:
                phase(f"quantized {number} of {len(policies)} formats of single stages")
            start = time.perf_counter()
            torch.manual_seed(context.spec.seed)
            quantized = context.quantized(policy)
            quantized.module.to(context.spec.device)
            if steps:
                Training(context, quantized).advance(steps)
            model = runtime_model(context.spec.target, graph, quantized)
            begun = time.perf_counter() - start
            if len(running) == FILES_AT_ONCE:
                found.append(running.popleft().result())
            running.append(judging.submit(judged, policy, quantized, model, begun))
        return [*found, *(each.result() for each in running)]


def alone(space_stages: Iterable[str], stage: str, quant: StageQuant) -> Policy:
    """One stage quantized, all others float."""
    return Policy(tuple((name, quant if name == stage else StageQuant()) for name in space_stages))


# ------------------------------------------------------------ autoq sensitivity


def analyse(spec: TrialSpec, space: SearchSpace, question: Question, phase: Callable[[str], None]) -> Analysis:
    """Analyse the stages: the loss and savings of each, their ranking, and its stability.

    Args:
        spec: Network, target and images.
        space: The search space, for the formats of each role.
        question: The analysis to make.
        phase: Listener for progress.
    """
    start = time.perf_counter()
    context = prepare(spec.model_copy(update={"steps": question.steps}))
    graph, stages, metric = export_graph(context.traced), list(space.choices), question.metric
    groups = [group for size in ((1, 2, 3) if question.pairs else (1,)) for group in itertools.combinations(stages, size)]
    together = {(group, bits): _together(space, group, bits) for group in groups for bits in question.widths}
    roles = _single_roles(space)
    phase(f"quantizing {len(together) + len(roles)} combinations of stages, roles and widths")
    (float_probe,) = measure(context, graph, [all_float(stages)], (metric,))
    probes = measure(context, graph, [*together.values(), *roles.values()], (metric,), question.steps)
    found = dict(zip([*together, *roles], probes, strict=True))
    float_values = {metric: float_probe.values[metric], "size": float_probe.size}
    saved: dict[tuple[str, ...], float] = {}
    if target_info(spec.target).latency:
        phase(f"measuring the latency of {len(groups)} combinations of stages")
        widest = {group: together[group, question.widths[-1]] for group in groups}
        float_ms, saved = _milliseconds_saved(context, graph, widest, question)
        float_values["latency"] = round(float_ms, 3)
    single = [((stage,), bits) for stage in stages for bits in question.widths]
    decades = np.array([np.log10(max(found[key].loss, 1e-12)) for key in single]).reshape(len(stages), -1).mean(1)
    ranking = [stages[index] for index in np.argsort(-decades, kind="stable")]
    phase(f"calibrating with {question.seeds} seeds")
    images = np.array([found[key].mse for key in single]).T
    seeds = [images.mean(0)]
    for seed in range(spec.seed + 1, spec.seed + question.seeds):
        again = measure(context.with_seed(seed), graph, [together[key] for key in single], (), question.steps)
        seeds.append(np.array([probe.loss for probe in again]))
    document = {
        "model": spec.model,
        "scale": spec.scale,
        "target": spec.target,
        "metric": metric,
        "steps": question.steps,
        "float": float_values,
        "ranking": ranking,
        "most_sensitive": ranking[0],
        "least_sensitive": ranking[-1],
        "entries": [
            {"stages": group, "bits": bits, "time_saved": saved.get(group), **_effect(float_probe, found[group, bits], metric)}
            for group in sorted(groups, key=lambda group: (len(group), [ranking.index(stage) for stage in group]))
            for bits in question.widths
        ],
        "roles": [
            {"stage": stage, "role": role, "bits": bits, **_effect(float_probe, found[stage, role, bits], metric)}
            for stage, role, bits in roles
        ],
        "stability": {"images": agreement(images), "seeds": agreement(np.array(seeds))},
        "seconds": round(time.perf_counter() - start, 1),
        "by": question.by,
    }
    return Analysis.model_validate(document)


def _single_roles(space: SearchSpace) -> dict[tuple[str, Role, int], Policy]:
    """(stage, role, bits) -> the policy of the stage's probe that differs from its anchor in that role alone."""
    return {
        (stage, role, quant.role(role).bits): alone(space.choices, stage, quant)
        for stage in space.choices
        for quant in additive.probes(space, stage)
        if (role := _changed(space, stage, quant)) is not None
    }


def _together(space: SearchSpace, group: Sequence[str], bits: int) -> Policy:
    """Some stages with every role at one width, in the representative formats of the space; the rest float."""
    quants = {stage: StageQuant() for stage in space.choices}
    for stage in group:
        roles = {str(role): additive.plain(space, stage, role, bits) for role in space.choices[stage]}
        quants[stage] = StageQuant(**roles)
    return Policy(tuple(quants.items()))


def _changed(space: SearchSpace, stage: str, quant: StageQuant) -> Role | None:
    """The role in which a probe differs from its stage's anchor, if it is an integer with the first range estimator."""
    wide = additive.anchor(space, stage)
    for role, choices in space.choices[stage].items():
        own = quant.role(role)
        if own != wide.role(role):
            plain = own.bits <= space.facts.integer_bits and own.clipping == choices.clipping[0]
            return role if plain else None
    return None


def _effect(float_probe: Probe, found: Probe, metric: str) -> dict[str, float]:
    """The effect of quantization: change of the metric, error of the output, bytes saved."""
    return {
        "change": round(found.values[metric] - float_probe.values[metric], 4),
        "mse": found.loss,
        "size_saved": float_probe.size - found.size,
    }


def _milliseconds_saved(
    context: TrialContext, graph: Graph, policies: Mapping[tuple[str, ...], Policy], question: Question
) -> tuple[float, dict[tuple[str, ...], float]]:
    """Milliseconds a frame of the float network, and those that each policy saves."""
    float_policy = all_float(stage for stage, _ in next(iter(policies.values())).stages)
    model = target_info(context.spec.target).model
    if model is not None:
        float_ms = milliseconds(context.plan_for(float_policy), question.frame, model)
        found = {group: milliseconds(context.plan_for(policy), question.frame, model) for group, policy in policies.items()}
        return float_ms, {group: round(float_ms - ms, 3) for group, ms in found.items()}
    target = load_target(context.spec.target)
    float_samples, samples = latencies.measure(
        {" ".join(group): functools.partial(runtime_file, context, graph, policy) for group, policy in policies.items()},
        runtime_file(context, graph, float_policy),
        lambda data: target.load(data, question.threads),
        question.frame,
    )
    float_ms = statistics.median(float_samples)
    return float_ms, {group: round(float_ms - statistics.median(samples[" ".join(group)]), 3) for group in policies}


def agreement(rows: np.ndarray, resamples: int = 500) -> dict[str, float] | None:
    """Mean rank correlation (Spearman) between rows, with a 95 % interval by bootstrap over columns.

    Args:
        rows: [images or seeds, quantized stages]: the errors to correlate.
        resamples: Resamples of the bootstrap.

    Returns:
        `spearman`, `low` and `high`; None for a single row, or where all values of a row are equal.
    """
    if len(rows) < 2 or not np.isfinite(found := _mean_correlation(rows)):
        return None
    drawn = bootstrap(
        (np.arange(rows.shape[1]),),
        lambda columns: _mean_correlation(rows[:, columns]),
        n_resamples=resamples,
        vectorized=False,
        method="percentile",
        rng=np.random.default_rng(0),
    )
    low, high = np.nanpercentile(drawn.bootstrap_distribution, [2.5, 97.5])
    return {"spearman": round(found, 3), "low": round(float(low), 3), "high": round(float(high), 3)}


def _mean_correlation(rows: np.ndarray) -> float:
    """NaN where all values of a row are equal."""
    if (np.ptp(rows, axis=1) == 0).any():
        return math.nan
    found = spearmanr(rows, axis=1).statistic  # a matrix, or one number for two rows
    return float(found if len(rows) == 2 else found[np.triu_indices(len(rows), 1)].mean())
