"""How much each stage suffers from being quantized: one stage at a time (or two, three), the rest in float.

Liu et al. 2021 (Super-Resolution Model Quantized in Multi-Precision), figure 7, and the evaluation it announces as
future work: of every stage the change in quality, and the bytes and milliseconds it saves.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterable, Sequence

import numpy as np
import torch

from autoq import additive
from autoq.executed import as_executed
from autoq.objectives.cost import costs
from autoq.objectives.latency import LatencyTable, by_kinds, kind, structure_key
from autoq.objectives.size import packed_bytes
from autoq.policy import Policy, StageQuant
from autoq.qat import Training
from autoq.quantize import place, quantize
from autoq.space import SearchSpace
from autoq.spec import Probe, Sensitivity
from autoq.trial import judge, upscale_all
from autoq.workbench import Workbench, upscale


def measure(bench: Workbench, policies: Iterable[Policy], metrics: tuple[str, ...], steps: int = 0) -> list[Probe]:
    """Quantize, train for `steps` of the bench's (none: post-training quantization), and look at the output."""
    bench = dataclasses.replace(bench, metrics=metrics)
    expected = [upscale(bench.traced.module, pair.low, "cpu").clamp(0, 1) for pair in bench.pairs]
    found = []
    for policy in policies:
        start = time.perf_counter()
        torch.manual_seed(bench.spec.seed)
        quantized = quantize(bench.traced, policy, bench.statistics, bench.execution)
        quantized.module.to(bench.spec.device)
        if steps:
            Training(bench, quantized).advance(steps)
        module = as_executed(quantized)
        outputs = upscale_all(bench, module)
        found.append(
            Probe(
                policy=policy.to_dict(),
                stages=tuple(stage for stage, quant in policy.stages if quant != StageQuant()),
                label=", ".join(f"{stage} {quant.label}" for stage, quant in policy.stages if quant != StageQuant()),
                mse=tuple(float((a.clamp(0, 1) - b).square().mean()) for a, b in zip(outputs, expected, strict=True)),
                values=judge(bench, outputs) if metrics else {},
                size=packed_bytes(bench.traced, [placed.placement for placed in quantized.placed], bench.execution),
                seconds=round(time.perf_counter() - start, 3),
            )
        )
    return found


def alone(space_stages: Iterable[str], stage: str, quant: StageQuant) -> Policy:
    """One stage quantized, all others float."""
    return Policy(tuple((name, quant if name == stage else StageQuant()) for name in space_stages))


def find_seeds(bench: Workbench, space: SearchSpace, objectives: Sequence[str], table: LatencyTable, count: int) -> Sensitivity:
    """Quantize the stages one at a time, without training; the policies predicted to be the front, the most worth first.

    Costs that add up over stages are exact; latency is the table's. Whatever the quality objective is, the error of the
    output stands for it.
    """
    stages = list(space.choices)
    wanted = [(stage, quant) for stage in stages for quant in additive.probes(space, stage)]
    probes = measure(bench, (alone(stages, stage, quant) for stage, quant in wanted), ())
    measured: dict[str, dict[StageQuant, float]] = {stage: {} for stage in stages}
    for (stage, quant), probe in zip(wanted, probes, strict=True):
        measured[stage][quant] = probe.loss

    def costs_of(policy: Policy) -> list[float]:
        placements, found = place(bench.traced, policy, bench.execution), costs(bench.traced, policy, bench.execution, table.frame)
        every = {
            "size": float(packed_bytes(bench.traced, placements, bench.execution)),
            "ops": found.ops,
            "bops": float(found.bops),
            "peak_memory": float(found.peak_memory),
        }
        every["size_runtime"] = every["size"]
        return [every[name] for name in objectives if name in every]

    integer_bits = bench.execution.integer_bits
    options = additive.options(space, measured, costs_of, lambda quant: kind(quant, integer_bits))
    float_policy = Policy(tuple((stage, StageQuant()) for stage in stages))
    reference = [1.01 * cost for cost in costs_of(float_policy)]
    if "latency" in objectives:
        milliseconds = by_kinds(bench.traced, space, bench.execution, table)
        front = additive.predicted_front(options, milliseconds.__getitem__)
        reference.append(1.01 * table.ms(structure_key(bench.traced, [], bench.execution)))
    else:
        front = additive.predicted_front(options)
    pairs = zip(bench.float_outputs, bench.pairs, strict=True)
    float_mse = float(np.mean([np.mean((output.astype(float) - pair.high) ** 2) / 255**2 for output, pair in pairs]))
    chosen = additive.by_worth(front, float_mse, reference, count)
    return Sensitivity(
        probes=tuple(probes),
        seeds=tuple(each.policy.to_dict() for each in chosen),
        predicted=tuple(each.loss for each in chosen),
    )
