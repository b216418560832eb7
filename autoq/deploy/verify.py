"""What a study promised of a point against what its file does: reloaded in the target's runtime, run on the study's
images, measured again.
"""

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
"""dB, or points of a perceptual metric, that a file's quality may differ from its trial's: more means other weights. Another
processor rounds otherwise in training, which shows most where the file is nearest to the float network."""

LATENCY_TOLERANCE = 0.10
"""Share of the promised latency that a file's may differ, on the machine where it was promised."""

OVERHEAD, OVERHEAD_PER_LAYER = 64 * 1024, 2 * 1024
"""Bytes that a packed package may hold besides its tensors, whichever of both is more: a graph grows with its layers."""

ROUNDS = 25
"""Times that the file is run beside the float network."""


@dataclass(frozen=True)
class Line:
    """One thing promised and found, in the unit of its name. tolerance: in words. holds: None where it cannot be judged."""

    name: str
    promised: float | None
    found: float
    tolerance: str
    holds: bool | None
    low: float | None = None
    high: float | None = None


def qualities(context: TrialContext, run: Runner, quantized: Quantized, promised: Mapping[str, float]) -> list[Line]:
    """Every quality that the trial measured and this machine can, of the file on the study's evaluation images, and how near
    the network that was trained is to it.
    """
    outputs = run_all(context, run)
    lines = []
    for name, value in judge(context, outputs).items():
        if name in promised:
            tolerance = QUALITY_TOLERANCES.get(name, QUALITY_TOLERANCE)
            lines.append(Line(name, promised[name], value, f"within {tolerance:g}", abs(value - promised[name]) <= tolerance))
    return [*lines, Line("agreement", None, agreement(context, quantized, outputs), "training's network to the file", None)]


def latency(
    context: TrialContext, graph: Graph, spec: StudySpec, table: LatencyTable, file: bytes, policy: Policy, promised: float
) -> list[Line]:
    """Milliseconds a frame, alone on this machine, in turn with the float network.

    What is compared is the file's time over the float network's, times that of the study: the machine may be faster or
    slower today. It must be within a share of what was promised, or the intervals of both medians must meet. On another
    machine, or with another runtime, nothing is promised. Where the target models its latency, so is the file's.
    """
    model = target_info(spec.trial.target).model
    if model is not None:
        again = milliseconds(context.plan_for(policy), spec.frame, model)
        return [Line("latency", promised, again, "as modelled", round(again, 3) == promised)]
    target = load_target(spec.trial.target)
    exact = all_float(dict.fromkeys(layer.stage for layer in context.traced.layers))
    float_ms, samples = latencies.measure(
        {"file": lambda: file},
        runtime_file(context, graph, exact),
        lambda data: target.load(data, spec.latency_threads),
        (context.traced.fitted(spec.frame[0]), context.traced.fitted(spec.frame[1])),
        ROUNDS,
    )
    promised_float = table.ms(structure_key(context.plan_for(exact)), exact)
    drift = promised_float / statistics.median(float_ms)
    interval = median_interval([drift * sample for sample in samples["file"]])
    same = (table.machine, table.runtime) == (latencies.machine(), target.version())
    measured = table.entries.get(structure_key(context.plan_for(policy)))
    then = median_interval(measured.samples) if measured else Interval(promised, promised, promised)
    near = abs(interval.middle / promised - 1) <= LATENCY_TOLERANCE or (interval.low <= then.high and then.low <= interval.high)
    words = (
        f"within {LATENCY_TOLERANCE:.0%} of {then.low:.3f} to {then.high:.3f} ms"
        if same
        else "promised on another machine or runtime"
    )
    ratio = promised_float / interval.middle
    found = Line("latency", promised, interval.middle, words, near if same else None, interval.low, interval.high)
    return [found] if policy.is_float else [found, Line("speedup", promised_float / promised, ratio, "", None)]


def exact(name: str, promised: float, found: float) -> Line:
    """Bytes that must be what was promised."""
    return Line(name, promised, found, "exactly", found == promised)


def overhead(found: int, layers: int) -> Line:
    """Bytes of a package that are no tensors. layers: how many the network has."""
    most = max(OVERHEAD, layers * OVERHEAD_PER_LAYER)
    return Line("overhead", None, found, f"{most:,} bytes or less", found <= most)


def broken(lines: Sequence[Line]) -> dict[str, str]:
    """The lines that do not hold, each in a few words, by name."""
    found = {}
    for line in lines:
        if line.holds is False:
            wanted = "" if line.promised is None else f"{in_unit(line.name, line.promised)} was promised, "
            found[line.name] = f"{line.name} {in_unit(line.name, line.found)} where {wanted}{line.tolerance}"
    return found


def faster(lines: Sequence[Line]) -> bool | None:
    """Whether a file was found faster than the float network beside it; None where that was not measured."""
    return next((line.found > 1 for line in lines if line.name == "speedup"), None)


def in_unit(name: str, value: float) -> str:
    """A value with its unit; bytes exactly."""
    shown: dict[str, Callable[[float], str]] = {
        "speedup": lambda found: f"{found:.2f}x",
        "agreement": lambda found: f"{found:.1f} dB",
        "overhead": lambda found: f"{found:,.0f} bytes",
    }
    if name in shown:
        return shown[name](value)
    unit = OBJECTIVES[name].unit if name in OBJECTIVES else "dB"
    return f"{value:,.0f} bytes" if unit == "bytes" else f"{value:.3f} {unit}".strip()
