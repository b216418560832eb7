"""Verify an exported file against its study: sizes, quality on the study's images, and latency, in the target's runtime."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from autoq.config.objectives import FIDELITY, OBJECTIVES
from autoq.config.policy import Policy, all_float
from autoq.config.spec import StudySpec
from autoq.costs.latency import measure as latencies
from autoq.costs.latency.analytic import milliseconds
from autoq.costs.latency.structure import structure_key
from autoq.costs.latency.table import LatencyTable
from autoq.export.onnx import Graph
from autoq.graph.quantize import Quantized
from autoq.study.intervals import Interval, median_interval
from autoq.targets import Runner, load_target, target_info
from autoq.trial.context import TrialContext, runtime_file
from autoq.trial.run import agreement, judge, run_all

QUALITY_TOLERANCE = 0.05
QUALITY_TOLERANCES = {FIDELITY: 0.5}
"""Largest difference between the quality of a file and of its trial, in dB or points of a perceptual metric. A larger one
means different weights. Rounding in training depends on the processor, which affects fidelity most."""

LATENCY_TOLERANCE = 0.10
"""Largest relative difference between the latency of a file and of its trial on the study's machine."""

OVERHEAD, OVERHEAD_PER_LAYER = 64 * 1024, 2 * 1024
"""Bytes that a packed package may hold besides its tensors: the larger of a constant and a rate per layer."""

ROUNDS = 25
"""Latency samples of the file, each next to one of the float network."""


@dataclass(frozen=True)
class Line:
    """One verified quantity, in the unit of its name.

    Attributes:
        name: Name of the quantity.
        expected: The study's value; None if the study has none.
        found: The file's value.
        tolerance: Description of the tolerance.
        holds: Whether the value is within the tolerance; None if it was not checked.
        low: Lower end of the 95 % confidence interval of `found`.
        high: Upper end.
    """

    name: str
    expected: float | None
    found: float
    tolerance: str
    holds: bool | None
    low: float | None = None
    high: float | None = None


def qualities(context: TrialContext, run: Runner, quantized: Quantized, expected: Mapping[str, float]) -> list[Line]:
    """Evaluate a file on the study's evaluation images with every metric of its trial that is available here.

    The last line is the agreement: PSNR (dB) between the outputs of the file and of the network in training.
    """
    outputs = run_all(context, run)
    lines = []
    for name, value in judge(context, outputs).items():
        if name in expected:
            tolerance = QUALITY_TOLERANCES.get(name, QUALITY_TOLERANCE)
            lines.append(Line(name, expected[name], value, f"within {tolerance:g}", abs(value - expected[name]) <= tolerance))
    return [*lines, Line("agreement", None, agreement(context, quantized, outputs), "", None)]


def latency(
    context: TrialContext, graph: Graph, spec: StudySpec, table: LatencyTable, file: bytes, policy: Policy, expected: float
) -> list[Line]:
    """Measure a file's latency, in milliseconds per frame, alternating with the float network.

    The file's latency is scaled by the ratio of the float network's latencies in the study and here, because the speed of a
    machine varies. It passes if it is within LATENCY_TOLERANCE of the study's, or if the confidence intervals of both
    medians overlap. It is not checked on another machine or runtime. For a target with a latency model the model is used.
    """
    model = target_info(spec.trial.target).model
    if model is not None:
        modelled = milliseconds(context.plan_for(policy), spec.frame, model)
        return [Line("latency", expected, modelled, "equal", round(modelled, 3) == expected)]
    target = load_target(spec.trial.target)
    float_policy = all_float(dict.fromkeys(layer.stage for layer in context.traced.layers))
    float_ms, samples = latencies.measure(
        {"file": lambda: file},
        runtime_file(context, graph, float_policy),
        lambda data: target.load(data, spec.latency_threads),
        (context.traced.fitted(spec.frame[0]), context.traced.fitted(spec.frame[1])),
        ROUNDS,
    )
    expected_float = table.ms(structure_key(context.plan_for(float_policy)), float_policy)
    drift = expected_float / statistics.median(float_ms)
    interval = median_interval([drift * sample for sample in samples["file"]])
    same_machine = (table.machine, table.runtime) == (latencies.machine(), target.version())
    entry = table.entries.get(structure_key(context.plan_for(policy)))
    then = median_interval(entry.samples) if entry else Interval(expected, expected, expected)
    overlaps = interval.low <= then.high and then.low <= interval.high
    holds = overlaps or abs(interval.middle / expected - 1) <= LATENCY_TOLERANCE
    tolerance = (
        f"within {LATENCY_TOLERANCE:.0%} of {then.low:.3f} to {then.high:.3f} ms"
        if same_machine
        else "not checked: another machine or runtime"
    )
    speedup = expected_float / interval.middle
    line = Line("latency", expected, interval.middle, tolerance, holds if same_machine else None, interval.low, interval.high)
    return [line] if policy.is_float else [line, Line("speedup", expected_float / expected, speedup, "", None)]


def equal(name: str, expected: float, found: float) -> Line:
    """A number of bytes that must equal the study's."""
    return Line(name, expected, found, "equal", found == expected)


def overhead(found: int, layers: int) -> Line:
    """Bytes of a package besides its tensors. layers: number of layers of the network."""
    limit = max(OVERHEAD, layers * OVERHEAD_PER_LAYER)
    return Line("overhead", None, found, f"at most {limit:,} bytes", found <= limit)


def mismatches(lines: Sequence[Line]) -> dict[str, str]:
    """A message for every line outside its tolerance, by name."""
    messages = {}
    for line in lines:
        if line.holds is False:
            wanted = line.tolerance if line.expected is None else f"{in_unit(line.name, line.expected)} ({line.tolerance})"
            messages[line.name] = f"{line.name} is {in_unit(line.name, line.found)}, expected {wanted}"
    return messages


def faster(lines: Sequence[Line]) -> bool | None:
    """Whether a file was found faster than the float network beside it; None where that was not measured."""
    return next((line.found > 1 for line in lines if line.name == "speedup"), None)


def in_unit(name: str, value: float) -> str:
    """A value with its unit; bytes are not rounded."""
    formats: dict[str, Callable[[float], str]] = {
        "speedup": lambda ratio: f"{ratio:.2f}x",
        "agreement": lambda psnr: f"{psnr:.1f} dB",
        "overhead": lambda size: f"{size:,.0f} bytes",
    }
    if name in formats:
        return formats[name](value)
    unit = OBJECTIVES[name].unit if name in OBJECTIVES else "dB"
    return f"{value:,.0f} bytes" if unit == "bytes" else f"{value:.3f} {unit}".strip()
