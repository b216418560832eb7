"""The report's tables of `autoq sensitivity` analyses."""

from __future__ import annotations

from typing import Any

from autoq.config.spec import Analysis, Answer, Question
from autoq.report.plots import KIB, axis_label


def stage_table(answer: Answer) -> dict[str, Any]:
    """An analysis as plain strings: its settings, a table, and the ranking of the stages."""
    question, analysis = answer.question, answer.analysis
    return {
        "asked": _asked(question, analysis),
        "head": f"change in {axis_label(question.metric)}",
        "rows": [
            {
                "stages": " + ".join(entry.stages),
                "bits": str(entry.bits),
                "change": f"{entry.change:+.3f}",
                "size_saved": f"{entry.size_saved / KIB:.1f}",
                "time_saved": "" if entry.time_saved is None else f"{entry.time_saved:.2f}",
            }
            for entry in analysis.entries
        ],
        "ranking": _ranking(question, analysis),
        "stability": _stability(analysis),
    }


def _asked(question: Question, analysis: Analysis) -> str:
    training = f"after {question.steps} training steps" if question.steps else "without training"
    frame = f"{question.frame[0]}x{question.frame[1]} input pixels and {question.threads} threads"
    float_value = analysis.exact[question.metric]
    return (
        f"Change in {question.metric} when the named stages are quantized, {training}, and all others stay float"
        f" (float network: {float_value:.3f}). Time saved is for {frame}."
    )


def _ranking(question: Question, analysis: Analysis) -> str:
    """The most and the least sensitive stage, with their changes at the narrowest width."""
    bits = min(question.widths)
    changes = {entry.stages: entry.change for entry in analysis.entries if entry.bits == bits}
    worst, best = analysis.most_sensitive, analysis.least_sensitive
    return (
        f"Most sensitive: {worst} ({changes[worst,]:+.3f} at {bits} bits); least sensitive: {best} ({changes[best,]:+.3f})."
        " Stages are ranked by the error of the output over all widths."
    )


def _stability(analysis: Analysis) -> str:
    """The rank correlation of the ranking with itself on resampled data; empty where it is unknown."""
    parts = [
        f"{agreement.spearman:.2f} over {name} (95 % interval {agreement.low:.2f} to {agreement.high:.2f})"
        for name, agreement in analysis.stability.items()
        if agreement is not None
    ]
    return f"Stability of the ranking (rank correlation): {'; '.join(parts)}." if parts else ""
