"""Curves of search strategies: percent of a table's hypervolume over seconds of trial work, as text and as a picture."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np

if TYPE_CHECKING:
    from benchmarks.search import Run

MOMENTS = (1, 2, 5, 10, 20, 50, 100)
"""Seconds of trial work after which the curves are printed."""

LEAST_DRAWN = 60
"""Percent of the hypervolume where the picture begins; all strategies leap there with their first few trials."""


def volume_at(run: Run, seconds: float) -> float:
    """Hypervolume reached within so many seconds."""
    return max((volume for spent, volume in run.curve if spent <= seconds), default=0.0)


def shares_at(runs: Sequence[Run], moments: Iterable[float]) -> np.ndarray:
    """[runs, moments]: percent of the table's hypervolume reached by then; what a run ended with stays."""
    moments = list(moments)
    return np.array([[100 * volume_at(run, seconds) / run.table.whole for seconds in moments] for run in runs])


def curves_of(runs: dict[str, list[Run]]) -> dict[str, list[list[float]]]:
    """strategy -> [seconds, median over seeds of the percent reached] at MOMENTS."""
    medians = {name: np.median(shares_at(found, MOMENTS), axis=0) for name, found in runs.items()}
    return {
        name: [[seconds, round(float(share), 1)] for seconds, share in zip(MOMENTS, median, strict=True)]
        for name, median in medians.items()
    }


def curve_table(curves: dict[str, list[list[float]]]) -> str:
    """The curves as text, one strategy a row."""
    head = f"{'% of the hypervolume after':28}" + "".join(f"{f'{seconds} s':>8}" for seconds in MOMENTS)
    return "\n".join([head, *(f"{name:28}" + "".join(f"{share:8.1f}" for _, share in curve) for name, curve in curves.items())])


def draw(runs: dict[str, list[Run]], path: Path) -> None:
    """The curves from LEAST_DRAWN up as a picture: a line for the median over seeds, a band from their 10th to 90th percentile."""
    figure, axes = plt.subplots(figsize=(9, 5.5), dpi=150)
    moments = np.geomspace(MOMENTS[0], MOMENTS[-1], 300)
    for name, found in runs.items():
        low, median, high = np.percentile(shares_at(found, moments), [10, 50, 90], axis=0)
        (line,) = axes.plot(moments, median, label=name, linewidth=2.4 if name == "autoq" else 1.3, zorder=3 - (name != "autoq"))
        axes.fill_between(moments, low, high, color=line.get_color(), alpha=0.08, linewidth=0)
    axes.set_xscale("log")
    axes.set_xticks(MOMENTS, [str(seconds) for seconds in MOMENTS])
    axes.set(xlabel="seconds of trial work", xlim=(MOMENTS[0], MOMENTS[-1]))
    axes.set(ylabel="% of the table's hypervolume", ylim=(LEAST_DRAWN, 100.5))
    axes.grid(alpha=0.25)
    axes.legend(fontsize=8, loc="lower right")
    figure.tight_layout()
    figure.savefig(path)
    plt.close(figure)
