"""What `autoq sensitivity` was asked about a study, as the report shows it."""

from __future__ import annotations

from typing import Any

from autoq.config.spec import Analysis, Answer, Question
from autoq.report.plots import KIB, axis_label


def stage_table(answer: Answer) -> dict[str, Any]:
    """A question and its answer as plain strings: what was asked, a table, what it says about the ranking."""
    question, found = answer.question, answer.analysis
    return {
        "asked": _asked(question, found),
        "head": f"change in {axis_label(question.metric)}",
        "rows": [
            {
                "stages": " + ".join(entry.stages),
                "bits": str(entry.bits),
                "change": f"{entry.change:+.3f}",
                "size_saved": f"{entry.size_saved / KIB:.1f}",
                "time_saved": "" if entry.time_saved is None else f"{entry.time_saved:.2f}",
            }
            for entry in found.entries
        ],
        "ranking": _ranking(question, found),
        "stability": _stability(found),
    }


def _asked(question: Question, found: Analysis) -> str:
    training = f"after {question.steps} training steps" if question.steps else "without training"
    frame = f"{question.frame[0]}x{question.frame[1]} pixels in, {question.threads} threads"
    exact = found.exact[question.metric]
    return (
        f"{question.metric} with some stages quantized, {training}, the rest float ({exact:.3f} with all in float); time: {frame}."
    )


def _ranking(question: Question, found: Analysis) -> str:
    """The most and the least sensitive stage, with the evidence at the narrowest width."""
    bits = min(question.widths)
    changes = {entry.stages: entry.change for entry in found.entries if entry.bits == bits}
    worst, best = found.most_sensitive, found.least_sensitive
    return (
        f"Most sensitive: {worst} ({changes[worst,]:+.3f} at {bits} bits); least: {best} ({changes[best,]:+.3f})."
        " Ranked by the error of the output over all widths."
    )


def _stability(found: Analysis) -> str:
    """How the ranking agrees with itself, where that can be said."""
    parts = [
        f"over {name} {each.spearman:.2f}, 95 % interval {each.low:.2f} to {each.high:.2f}"
        for name, each in found.stability.items()
        if each is not None
    ]
    return f"Rank correlation of the ranking {'; '.join(parts)}." if parts else ""
