"""Figures of the Pareto front and of stage sensitivity: Plotly for the report, matplotlib for a PNG."""

from __future__ import annotations

import html
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from autoq.config.objectives import OBJECTIVES
from autoq.config.policy import ROLES, Policy, StageQuant
from autoq.config.spec import Record, Sensitivity
from autoq.study.results import Results, point_name

KIB = 1024


def axis_label(name: str) -> str:
    """An objective with its unit, for example `latency (ms)`. Sizes are in KiB."""
    unit = "KiB" if OBJECTIVES[name].unit == "bytes" else OBJECTIVES[name].unit
    return f"{name} ({unit})" if unit else name


def axis_value(name: str, value: float) -> float:
    """An objective's value in the unit of `axis_label`."""
    return value / KIB if OBJECTIVES[name].unit == "bytes" else value


def split_axes(objectives: Sequence[str]) -> tuple[str, str, str | None]:
    """Choose (x, y, colour): the first cost, the first quality metric, and the third objective if there is one."""
    costs = [name for name in objectives if not OBJECTIVES[name].quality]
    qualities = [name for name in objectives if OBJECTIVES[name].quality]
    ordered = [*costs[:1], *qualities[:1], *costs[1:], *qualities[1:]] if costs and qualities else list(objectives)
    return ordered[0], ordered[1], ordered[2] if len(ordered) > 2 else None


def front_figure(results: Results, other: str = "", others: Sequence[Record] = ()) -> go.Figure:
    """Plot trials, baselines, finetuned points and the Pareto front over the axes of `split_axes`.

    Args:
        results: The study's results.
        other: Name of a second study.
        others: The second study's Pareto front.
    """
    records, front, objectives = results.records, results.front, results.objectives
    x, y, colour = split_axes(objectives)
    on_front = {id(record) for record in front}
    groups = (
        ("trials", [r for r in records if r.source == "trial" and id(r) not in on_front], "circle", 8, 0.45),
        ("Pareto front", [r for r in front if r.source == "trial"], "circle", 13, 1.0),
        ("baselines", [r for r in records if r.source == "baseline"], "diamond", 13, 1.0),
        ("finetuned points", [r for r in records if r.source == "finetuned"], "star", 15, 1.0),
        (f"Pareto front of {html.escape(other)}", others, "cross", 11, 0.9),
    )
    figure = go.Figure()
    for name, group, symbol, size, opacity in groups:
        done = [record for record in group if record.state == "complete"]
        named = name in ("baselines", "finetuned points")
        if not done:
            continue
        figure.add_scatter(
            x=[axis_value(x, record.values[x]) for record in done],
            y=[axis_value(y, record.values[y]) for record in done],
            mode="markers+text" if named else "markers",
            text=[html.escape(record.name or "") for record in done] if named else None,
            textposition=[f"{('bottom', 'top')[number % 2]} center" for number in range(len(done))],  # avoid overlaps
            name=name,
            hovertext=[_hover(record, objectives) for record in done],
            hoverinfo="text",
            marker={
                "symbol": symbol,
                "size": size,
                "opacity": opacity,
                "line": {"width": 2 if name == "Pareto front" else 1, "color": "#111"},
                **({"color": [axis_value(colour, r.values[colour]) for r in done], "coloraxis": "coloraxis"} if colour else {}),
            },
        )
    figure.update_layout(
        xaxis_title=axis_label(x),
        yaxis_title=axis_label(y),
        template="plotly_white",
        height=560,
        margin={"l": 60, "r": 20, "t": 20, "b": 60},
        legend={"orientation": "h", "y": 1.08},
        coloraxis={"colorscale": "Viridis", "colorbar": {"title": axis_label(colour)}} if colour else {},
    )
    return figure


def _hover(record: Record, objectives: Sequence[str]) -> str:
    values = "<br>".join(f"{axis_label(name)}: {axis_value(name, record.values[name]):.4g}" for name in objectives)
    return f"{html.escape(point_name(record))}<br>{html.escape(record.label)}<br>{values}"


def sensitivity_figure(sensitivity: Sensitivity) -> go.Figure:
    """Plot the output error of stages quantized one at a time: by role and width (heatmap), all roles at minimum width (bars)."""
    errors: dict[tuple[str, str], dict[int, float]] = {}
    anchors: dict[str, tuple[StageQuant, float]] = {}
    for probe in sensitivity.probes:
        (stage,) = probe.stages
        quant = Policy.from_dict(probe.policy).stage(stage)
        wide, _ = anchors.setdefault(stage, (quant, probe.loss))
        changed = [role for role in ROLES if quant.role(role) != wide.role(role)]
        for role in changed[:1] or [role for role in ROLES if not quant.role(role).is_float]:
            cell = errors.setdefault((stage, role), {})
            bits = quant.role(role).bits
            cell[bits] = min(cell.get(bits, math.inf), probe.loss)
    widths = sorted({bits for cell in errors.values() for bits in cell})
    rows = [f"{stage}, {role}" for stage, role in errors]
    worst = {
        stage: anchors[stage][1] + sum(cell[min(cell)] - anchors[stage][1] for (name, _), cell in errors.items() if name == stage)
        for stage in anchors
    }
    figure = make_subplots(
        1,
        2,
        column_widths=[0.62, 0.38],
        horizontal_spacing=0.24,
        subplot_titles=("one role at a time (dB)", "all roles at minimum width"),
    )
    cells = [[_decibels(cell[bits]) if bits in cell else None for bits in widths] for cell in errors.values()]
    figure.add_heatmap(
        z=cells,
        x=[f"{bits} bits" for bits in widths],
        y=rows,
        texttemplate="%{z:.1f}",
        colorscale="Viridis",
        showscale=False,
        hoverongaps=False,
        row=1,
        col=1,
    )
    ranked = sorted(worst, key=worst.__getitem__)
    figure.add_bar(x=[_decibels(worst[stage]) + FLOOR for stage in ranked], y=ranked, orientation="h", base=-FLOOR, row=1, col=2)
    figure.update_yaxes(autorange="reversed", row=1, col=1)
    figure.update_xaxes(title="output error (dB)", row=1, col=2)
    figure.update_layout(template="plotly_white", height=420, margin={"l": 160, "r": 20, "t": 40, "b": 60}, showlegend=False)
    return figure


FLOOR = 60.0
"""Where the bars begin, in dB below full scale."""


def _decibels(error: float) -> float:
    """A mean squared error, relative to a full scale of 1, in dB."""
    return 10 * math.log10(max(error, 1e-6))


def front_png(results: Results, path: Path, title: str) -> None:
    """Write the plot of `front_figure` as a PNG of 1600 x 1000 pixels."""
    x, y, colour = split_axes(results.objectives)
    figure, axes = plt.subplots(figsize=(8, 5), dpi=200)
    done = [record for record in results.records if record.state == "complete"]
    shades = [axis_value(colour, record.values[colour]) for record in done] if colour else None
    limits: dict[str, Any] = {"vmin": min(shades), "vmax": max(shades), "cmap": "viridis"} if shades else {}
    on_front = {id(record) for record in results.front}
    for source, marker in (("trial", "o"), ("baseline", "D"), ("finetuned", "*")):
        for member, size, alpha in ((False, 28, 0.45), (True, 75, 1.0)):
            group = [record for record in done if record.source == source and (id(record) in on_front) is member]
            if group:
                drawn = axes.scatter(
                    [axis_value(x, record.values[x]) for record in group],
                    [axis_value(y, record.values[y]) for record in group],
                    c=[axis_value(colour, record.values[colour]) for record in group] if colour else "tab:blue",
                    s=size,
                    marker=marker,
                    alpha=alpha,
                    edgecolors="black",
                    linewidths=1.1 if member else 0.4,
                    label=f"{source}{' on the Pareto front' if member else ''}",
                    **limits,
                )
    for number, record in enumerate(record for record in done if record.source != "trial"):
        at = (axis_value(x, record.values[x]), axis_value(y, record.values[y]))
        axes.annotate(record.name or "", at, textcoords="offset points", xytext=(7, (-12, 8)[number % 2]), fontsize=8)
    if colour and done:
        figure.colorbar(drawn, ax=axes, label=axis_label(colour))
    axes.set(xlabel=axis_label(x), ylabel=axis_label(y), title=title)
    axes.grid(alpha=0.25)
    if done:
        axes.legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(path)
    plt.close(figure)
