"""How much each stage suffers from being quantized: one stage at a time (or two, three), the rest in float.

Liu et al. 2021 (Super-Resolution Model Quantized in Multi-Precision), figure 7, and the evaluation it announces as
future work: of every stage the change in quality, and the bytes and milliseconds it saves.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import statistics
import time
from collections.abc import Callable, Iterable, Mapping, Sequence

import numpy as np
import torch
from scipy.stats import rankdata

from autoq.config.objectives import FIDELITY
from autoq.config.policy import Policy, Role, StageQuant, all_float
from autoq.config.space import SearchSpace
from autoq.config.spec import Analysis, Probe, Question, TrialSpec
from autoq.costs.latency import measure as latencies
from autoq.costs.latency.analytic import milliseconds
from autoq.costs.size import packed_bytes
from autoq.export.onnx import Graph, export_graph
from autoq.graph.inference import upscale
from autoq.graph.quantize import quantize
from autoq.images.pixels import to_input
from autoq.targets import load_target, target_info
from autoq.training.qat import Training
from autoq.trial.context import TrialContext, prepare, runtime_file, runtime_model, shipped
from autoq.trial.run import judge
from autoq.tuning import additive

NEWS_EVERY = 100
"""Formats after which a search says how many are looked at."""


def measure(
    context: TrialContext,
    graph: Graph,
    policies: Iterable[Policy],
    metrics: tuple[str, ...],
    steps: int = 0,
    phase: Callable[[str], None] | None = None,
) -> list[Probe]:
    """Quantize, train for `steps` of the context's (none: post-training quantization), and judge the written file.

    graph: the marked float graph of `export_graph`.
    """
    policies = list(policies)
    context = dataclasses.replace(context, metrics=tuple(name for name in metrics if name != FIDELITY))  # which is always judged
    expected = [upscale(context.traced.module, pair.low, "cpu").clamp(0, 1).numpy() for pair in context.pairs]
    found = []
    for number, policy in enumerate(policies):
        if phase is not None and number and number % NEWS_EVERY == 0:
            phase(f"quantized {number} of {len(policies)} formats of single stages")
        start = time.perf_counter()
        torch.manual_seed(context.spec.seed)
        quantized = quantize(context.traced, policy, context.statistics, context.execution)
        quantized.module.to(context.spec.device)
        if steps:
            Training(context, quantized).advance(steps)
        run = shipped(context, quantized, runtime_model(context.spec.target, graph, quantized))
        outputs = [np.clip(np.nan_to_num(run(to_input(pair.low))), 0, 1) for pair in context.pairs]
        found.append(
            Probe(
                policy=policy.to_dict(),
                stages=tuple(stage for stage, quant in policy.stages if quant != StageQuant()),
                label=", ".join(f"{stage} {quant.label}" for stage, quant in policy.stages if quant != StageQuant()),
                mse=tuple(float(np.mean((a - b) ** 2)) for a, b in zip(outputs, expected, strict=True)),
                values=judge(context, outputs) if metrics else {},
                size=packed_bytes(context.traced, [placed.placement for placed in quantized.placed], context.execution),
                seconds=round(time.perf_counter() - start, 3),
            )
        )
    return found


def alone(space_stages: Iterable[str], stage: str, quant: StageQuant) -> Policy:
    """One stage quantized, all others float."""
    return Policy(tuple((name, quant if name == stage else StageQuant()) for name in space_stages))


# ------------------------------------------------------------ what a person asks


def analyse(spec: TrialSpec, space: SearchSpace, question: Question, phase: Callable[[str], None]) -> Analysis:
    """How much each stage suffers, what it saves, which suffers most, and how sure that is."""
    start = time.perf_counter()
    spec = spec.model_copy(update={"steps": question.steps})
    context = prepare(spec)
    graph = export_graph(context.traced)
    stages = list(space.choices)
    groups: list[tuple[str, ...]] = [(stage,) for stage in stages]
    if question.pairs:
        groups += [*itertools.combinations(stages, 2), *itertools.combinations(stages, 3)]
    whole = {(group, bits): _together(space, group, bits) for group in groups for bits in question.widths}
    parts = {
        (stage, role, quant.role(role).bits): alone(stages, stage, quant)
        for stage in stages
        for quant in additive.probes(space, stage)
        for role in [_changed(space, stage, quant)]
        if role is not None
    }
    phase(f"quantizing {len(whole) + len(parts)} combinations of stages, roles and widths")
    metrics = (question.metric,)
    float_policy = all_float(stages)
    (exact,) = measure(context, graph, [float_policy], metrics)
    found = dict(
        zip([*whole, *parts], measure(context, graph, [*whole.values(), *parts.values()], metrics, question.steps), strict=True)
    )
    times: dict[str, float] = {}
    saved: dict[tuple[str, ...], float] = {}
    if target_info(spec.target).latency:
        phase(f"measuring the latency of {len(groups)} combinations of stages")
        float_ms, saved = _milliseconds_saved(
            context, graph, {group: whole[group, question.widths[-1]] for group in groups}, question
        )
        times = {"latency": round(float_ms, 3)}
    suffering = {
        stage: float(np.mean([np.log10(max(found[(stage,), bits].loss, 1e-12)) for bits in question.widths])) for stage in stages
    }
    ranked = sorted(stages, key=suffering.__getitem__, reverse=True)
    entries = [
        {
            "stages": list(group),
            "bits": bits,
            **_against(exact, found[group, bits], question.metric),
            "time_saved": saved.get(group),
        }
        for group in sorted(groups, key=lambda group: (len(group), [ranked.index(stage) for stage in group]))
        for bits in question.widths
    ]
    images = np.array([found[(stage,), bits].mse for stage in stages for bits in question.widths]).T
    phase(f"calibrating with {question.seeds} seeds")
    seeds = [images.mean(0)]
    for seed in range(spec.seed + 1, spec.seed + question.seeds):
        other = prepare(spec.model_copy(update={"seed": seed}))
        again = measure(other, graph, [whole[(stage,), bits] for stage in stages for bits in question.widths], (), question.steps)
        seeds.append(np.array([probe.loss for probe in again]))
    document = {
        "model": spec.model,
        "scale": spec.scale,
        "target": spec.target,
        "metric": question.metric,
        "steps": question.steps,
        "float": {question.metric: exact.values[question.metric], "size": exact.size, **times},
        "ranking": ranked,
        "most_sensitive": ranked[0],
        "least_sensitive": ranked[-1],
        "entries": entries,
        "roles": [
            {"stage": stage, "role": role, "bits": bits, **_against(exact, found[stage, role, bits], question.metric)}
            for stage, role, bits in parts
        ],
        "stability": {"images": agreement(images), "seeds": agreement(np.array(seeds))},
        "seconds": round(time.perf_counter() - start, 1),
        "by": question.by,
    }
    return Analysis.model_validate(document)


def _together(space: SearchSpace, group: Sequence[str], bits: int) -> Policy:
    """Some stages with every role at one width, in the formats that stand for the space's; the rest float."""
    quants = {stage: StageQuant() for stage in space.choices}
    for stage in group:
        roles = {str(role): additive.plain(space, stage, role, bits) for role in space.choices[stage]}
        quants[stage] = StageQuant(**roles)
    return Policy(tuple(quants.items()))


def _changed(space: SearchSpace, stage: str, quant: StageQuant) -> Role | None:
    """The role in which a probe differs from its stage's anchor, where it has the first clipping rule and is an integer."""
    wide = additive.anchor(space, stage)
    for role, choices in space.choices[stage].items():
        own = quant.role(role)
        if own != wide.role(role):
            plain = own.bits <= space.facts.integer_bits and own.clipping == choices.clipping[0]
            return role if plain else None
    return None


def _against(exact: Probe, found: Probe, metric: str) -> dict[str, float]:
    """What quantizing changed: the metric, the error of the output, bytes saved."""
    return {
        "change": round(found.values[metric] - exact.values[metric], 4),
        "mse": found.loss,
        "size_saved": exact.size - found.size,
    }


def _milliseconds_saved(
    context: TrialContext, graph: Graph, policies: Mapping[tuple[str, ...], Policy], question: Question
) -> tuple[float, dict[tuple[str, ...], float]]:
    """Milliseconds a frame of the float network, and what each policy saves of them."""
    exact, model = all_float(stage for stage, _ in next(iter(policies.values())).stages), target_info(context.spec.target).model
    if model is not None:
        whole = milliseconds(context.traced, exact, context.execution, question.frame, model)
        found = {
            group: milliseconds(context.traced, policy, context.execution, question.frame, model)
            for group, policy in policies.items()
        }
        return whole, {group: round(whole - ms, 3) for group, ms in found.items()}
    target = load_target(context.spec.target)
    float_samples, samples = latencies.measure(
        {" ".join(group): functools.partial(runtime_file, context, graph, policy) for group, policy in policies.items()},
        runtime_file(context, graph, exact),
        lambda data: target.load(data, question.threads),
        question.frame,
    )
    float_ms = statistics.median(float_samples)
    return float_ms, {group: round(float_ms - statistics.median(samples[" ".join(group)]), 3) for group in policies}


def agreement(rows: np.ndarray, resamples: int = 500) -> dict[str, float] | None:
    """Mean rank correlation (Spearman) between rows (images, seeds) over columns (what was quantized), with a 95 % interval
    by resampling the columns. None for a single row, or where nothing differs.
    """
    if len(rows) < 2:
        return None
    draws = np.random.default_rng(0).integers(0, rows.shape[1], (resamples, rows.shape[1]))
    spread = [value for draw in draws if np.isfinite(value := _mean_correlation(rows[:, draw]))]
    if not spread or not np.isfinite(_mean_correlation(rows)):
        return None
    low, high = np.percentile(spread, [2.5, 97.5])
    return {"spearman": round(_mean_correlation(rows), 3), "low": round(float(low), 3), "high": round(float(high), 3)}


def _mean_correlation(rows: np.ndarray) -> float:
    ranks = np.array([rankdata(row) for row in rows])
    if (ranks.std(1) == 0).any():
        return float("nan")
    correlations = np.corrcoef(ranks)
    return float(correlations[np.triu_indices(len(rows), 1)].mean())
