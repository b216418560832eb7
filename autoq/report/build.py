"""Build a study's HTML report and the PNG of its Pareto front."""

from __future__ import annotations

import base64
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jinja2
import plotly.io
from markupsafe import Markup

from autoq.config.objectives import FIDELITY, OBJECTIVES
from autoq.config.policy import ROLES, Policy, StageQuant
from autoq.config.spec import Record, Sensitivity
from autoq.report.attribution import speed
from autoq.report.latency import latency_section
from autoq.report.plots import axis_label, axis_value, front_figure, front_png, sensitivity_figure
from autoq.report.stages import stage_table
from autoq.study.intervals import Interval
from autoq.study.replication import in_words, replicated_qualities
from autoq.study.results import NOT_FASTER, Results, faster_than_float, finetuned_name, point_name, prediction_agreement
from autoq.study.selection import close_to_float, recommended
from autoq.study.study import Study
from autoq.system.files import atomic_write_text
from autoq.targets import TargetInfo, target_info

REPORTS = Path("reports")

LEAST_GAIN = 0.0005
"""Share of the hypervolume below which a search counts as no better than its initial trials: it would show as 0.0 %."""


def build_report(study: Study, folder: Path = REPORTS, other: Study | None = None) -> tuple[Path, Path]:
    """Write the report of a study.

    Args:
        study: The study.
        folder: Output folder; created if missing.
        other: A study of the same network to compare the front with.

    Returns:
        The paths of `<name>.html`, one self-contained file, and `<name>.png`, a plot of the Pareto front.

    Raises:
        StudyError: A record of the study is damaged. Nothing is written.
    """
    results = study.points()
    text = render(study, results, other)  # raises before anything is written
    folder.mkdir(parents=True, exist_ok=True)
    page, picture = folder / f"{study.name}.html", folder / f"{study.name}.png"
    atomic_write_text(page, text)
    trial = study.spec.trial
    front_png(results, picture, f"{trial.model} x{trial.scale} on {trial.target}")
    return page, picture


def render(study: Study, results: Results, other: Study | None = None) -> str:
    """Render the page. All text from the study is escaped; only the figures are markup."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("autoq.report", "."), autoescape=True, undefined=jinja2.StrictUndefined
    )
    shown = front_figure(results, other.name if other else "", other.points().front if other else [])
    figure = plotly.io.to_html(shown, {"displaylogo": False}, include_plotlyjs=True, full_html=False)
    sensitivity = study.sensitivity()
    stages = ""
    if sensitivity is not None:
        heatmap = sensitivity_figure(sensitivity)
        stages = plotly.io.to_html(heatmap, {"displayModeBar": False}, include_plotlyjs=False, full_html=False)
    return environment.get_template("template.html.j2").render(
        figure=Markup(figure),
        sensitivity=Markup(stages),
        prediction=prediction_agreement(results.records, sensitivity),
        **page_data(study, results),
        **_replication(study, results),
        compared=_compared(study, results, other),
    )


def page_data(study: Study, results: Results) -> dict[str, Any]:
    """The template's data, as plain strings and numbers."""
    spec, objectives, records = study.spec, study.spec.objectives, results.records
    baselines = list({record.name: record for record in records if record.source == "baseline"}.values())  # the latest of each name
    trials = [record for record in records if record.source == "trial"]
    others = [name for name in OBJECTIVES if name not in objectives and any(name in record.values for record in records)]
    columns = [*objectives, *others]
    info = target_info(spec.trial.target)
    widened, measured = bool(info.size_only), info.model is None
    widths = f"On this target {info.size_only}; they save size, not time."
    return {
        "name": study.name,
        "spec": spec,
        "environment": study.environment,
        "trials": len(trials),
        "complete": sum(record.state == "complete" for record in trials),
        "stopped": sum(record.state == "pruned" for record in trials),
        "verdict": _verdict(study.results(), study.sensitivity()),
        "tiles": _tiles(results, measured),
        "recommended": _recommended(study.name, results),
        "close": close_to_float(objectives),
        "remeasured": measured and bool(info.latency),
        "latency_note": "" if measured else f"Latency is {info.latency}. The float network does not run on this target.",
        "heads": [axis_label(name) for name in objectives],
        "all_heads": [axis_label(name) for name in columns],
        "stages": list(study.space.choices),
        "stage_tables": [stage_table(answer) for answer in study.answers()],
        "front": [_row(record, results, columns, info) for record in results.front],
        "baselines": [_row(record, results, columns, info) for record in baselines],
        "baseline_seconds": f"{sum(record.seconds for record in baselines):.0f}",
        "finetuned": _finetuned(study, results),
        "failures": [record for record in trials if record.state != "complete"],
        "facts": _facts(study),
        **latency_section(
            speed(study.latency_table(), [*results.front, *(record for record in baselines if record not in results.front)])
        ),
        "size_only": widths if widened and any(map(_is_narrow, results.front)) else "",
    }


def _finetuned(study: Study, results: Results) -> list[dict[str, Any]]:
    """The finetuned points beside what they were, with their pictures."""
    qualities = [name for name in (*results.objectives, FIDELITY) if OBJECTIVES[name].quality]
    drafts = {finetuned_name(record): record for record in results.records if record.source != "finetuned"}
    rows = []
    for record in study.finetuned():
        path = study.picture_path(Policy.from_dict(record.policy), record.steps)
        draft = drafts[record.name or ""]
        rows.append(
            {
                "name": point_name(record),
                "steps": f"{record.steps:,}",
                "seconds": f"{record.seconds:.0f}",
                "numbers": [
                    _number(name, values.get(name)) for name in dict.fromkeys(qualities) for values in (draft.values, record.values)
                ],
                "heads": [f"{axis_label(name)}, {when}" for name in dict.fromkeys(qualities) for when in ("trial", "finetuned")],
                "picture": base64.b64encode(path.read_bytes()).decode() if path.is_file() else "",
            }
        )
    return rows


def _compared(study: Study, results: Results, other: Study | None) -> str:
    """A sentence that compares the front with another study's front."""
    fronts = None if other is None else results.comparison(other.results())
    if other is None or fronts is None:
        return ""
    same = study.environment["machine"] == other.environment["machine"]
    machines = "" if same else f" {other.name} was measured on another machine ({other.environment['machine']})."
    return (
        f"Compared with {other.name} ({len(other.space.choices)} stages; this study has {len(study.space.choices)}):"
        f" hypervolume {fronts['hypervolume']:.4f} in this study, {fronts['hypervolume_other']:.4f} in {other.name} and"
        f" {fronts['hypervolume_together']:.4f} for both fronts together. {fronts['dominated']:.0%} of this front's points are"
        f" dominated by {other.name}; {fronts['dominated_other']:.0%} of its points are dominated by this study.{machines}"
    )


def _replication(study: Study, results: Results) -> dict[str, Any]:
    """The data of the section on held-out images and replication."""
    points = study.replicated_points
    if not points:
        return {"replication": []}
    qualities = replicated_qualities(study.spec.objectives)
    heads = [f"{axis_label(name)}, {kind}" for name in qualities for kind in ("search", "held-out", "replicated")]
    rows = []
    for point in points:
        numbers = []
        for name in qualities:
            shown = _number(name, point.record.values[name])
            numbers += [shown, _interval(name, point.held_out[name]), _interval(name, point.replicated.get(name))]
        latency = [_number("latency", point.record.values.get("latency")), _interval("latency", point.latency)]
        notes = ["dominated on held-out images"] * point.dominated + [f"violates {bound}" for bound in point.breaks]
        notes += [f"failed: {point.reason}"] * (point.reason is not None)
        rows.append(
            {
                "name": point_name(point.record),
                "source": point.record.source,
                "numbers": numbers + latency,
                "seeds": str(point.seeds or "none"),
                "then": ", ".join(notes),
            }
        )
    return {
        "replication": rows,
        "replication_heads": [*heads, "latency (ms), search", "latency (ms), replicated"],
        "replication_in_words": in_words(points, results),
    }


def _interval(name: str, interval: Interval | None) -> str:
    if interval is None:
        return ""
    middle = _number(name, interval.middle)
    if not math.isfinite(interval.low):
        return middle
    return middle if interval.low == interval.high else f"{middle} [{_number(name, interval.low)}, {_number(name, interval.high)}]"


def _tiles(results: Results, measured: bool) -> list[dict[str, str]]:
    """The figures at the top of the page. measured: whether the target's latency is measured rather than modelled."""
    float_record, objectives = results.float_record, results.objectives
    volume, baseline_volume = results.hypervolume, results.baselines_alone().hypervolume
    from_trials = sum(record.source == "trial" for record in results.front)
    tiles = [{"value": str(len(results.front)), "text": f"points on the Pareto front, {from_trials} from trials"}]
    if volume is not None and baseline_volume is not None:
        tiles.append({"value": f"{volume:.4f}", "text": f"hypervolume (baselines: {baseline_volume:.4f})"})
    quality = next((name for name in objectives if OBJECTIVES[name].quality and name != FIDELITY), None)
    if float_record is not None and quality is not None:
        tiles.append(
            {"value": _number(quality, float_record.values[quality]), "text": f"{axis_label(quality)} of the float network"}
        )
    if float_record is not None and "latency" in float_record.values and measured:
        tiles.append({"value": f"{float_record.values['latency']:.1f} ms", "text": "latency per frame of the float network"})
    return tiles


def _recommended(name: str, results: Results) -> list[dict[str, str]]:
    """The recommended points as cards: gains, quality, and the export command."""
    cards = []
    for rule, record in recommended(results).items():
        ratios = {word: _ratio(results.float_record, record, name) for word, name in (("smaller", "size"), ("faster", "latency"))}
        names = [name for name in results.objectives if OBJECTIVES[name].quality]
        qualities = [f"{axis_label(name)} {_number(name, record.values[name])}" for name in names]
        cards.append(
            {
                "value": ", ".join(f"{ratio} {word}" for word, ratio in ratios.items() if ratio) or point_name(record),
                "text": f"{rule}: {point_name(record)}, {', '.join(qualities)}",
                "command": f"autoq export {name} --pick {rule} -o {rule}",
            }
        )
    return cards


def _verdict(results: Results, sensitivity: Sensitivity | None) -> str:
    """How much the sampler's trials improve on the initial trials; empty for a study without initial trials."""
    initial_volume, volume = results.initial_alone(sensitivity).hypervolume, results.hypervolume
    if sensitivity is None or initial_volume is None or volume is None:
        return ""
    initial = f"The {len(sensitivity.initial_trials)} initial trials reach a hypervolume of {initial_volume:.4f}"
    if volume / max(initial_volume, 1e-9) - 1 < LEAST_GAIN:
        return f"{initial}; the search did not improve on it."
    gain = f"raised it by {volume / initial_volume - 1:.1%}" if initial_volume else f"raised it to {volume:.4f}"
    return f"{initial}; the search {gain}."


def _row(record: Record, results: Results, columns: Sequence[str], target: TargetInfo) -> dict[str, Any]:
    """A row of the report's tables."""
    structure = record.structure.in_words(target.integer_bits)
    policy = Policy.from_dict(record.policy)
    return {
        "name": point_name(record),
        "source": record.source,
        "numbers": [_number(name, record.values.get(name)) for name in results.objectives],
        "all_numbers": [_number(name, record.values.get(name)) for name in columns],
        "smaller": _ratio(results.float_record, record, "size"),
        "faster": _ratio(results.float_record, record, "latency")
        + (f" ({NOT_FASTER})" if faster_than_float(record, results.float_record) is False else ""),
        "structure": structure + ("; below 8 bits: size-only" if target.size_only and _is_narrow(record) else ""),
        "bits": [_stage_bits(quant) for _, quant in policy.stages],
        "seconds": f"{record.seconds:.1f}",
    }


def _is_narrow(record: Record) -> bool:
    """Whether a policy has a width below 8 bits."""
    policy = Policy.from_dict(record.policy)
    return any(quant.role(role).bits < 8 for _, quant in policy.stages for role in ROLES)


def _stage_bits(quant: StageQuant) -> str:
    formats = [f"{quant.role(role).quantizer}+{quant.role(role).clipping}" for role in ROLES if quant.role(role).bits <= 8]
    return quant.label + (f" [{', '.join(formats)}]" if formats else "")


def _number(name: str, value: float | None) -> str:
    if value is None:
        return ""
    shown = axis_value(name, value)
    return f"{shown:.1f}" if not OBJECTIVES[name].quality else f"{shown:.3f}"


def _ratio(float_record: Record | None, record: Record, name: str) -> str:
    if float_record is None or name not in record.values:
        return ""
    return f"{float_record.values[name] / record.values[name]:.2f}x"


def _facts(study: Study) -> list[dict[str, str]]:
    spec, environment = study.spec, study.environment
    versions = ", ".join(f"{name} {version}" for name, version in environment["versions"].items())
    in_float = [{"name": "float layers", "value": ", ".join(spec.float_layers)}] if spec.float_layers else []
    return [
        *in_float,
        {"name": "weights", "value": str(spec.trial.weights or "bundled")},
        {"name": "training images", "value": str(spec.trial.data or "bundled photographs")},
        {"name": "evaluation images", "value": str(spec.trial.eval_data or "bundled photographs")},
        {"name": "latency", "value": target_info(spec.trial.target).latency or "none"},
        {"name": "latency frame", "value": f"{spec.frame[0]}x{spec.frame[1]} input pixels, {spec.latency_threads} threads"},
        {
            "name": "training",
            "value": f"{spec.trial.steps} steps, batch {spec.trial.batch}, patches of {spec.trial.patch}x{spec.trial.patch} pixels",
        },
        {
            "name": "search",
            "value": f"{spec.sampler} sampler, seed {spec.trial.seed}, {spec.workers} workers, {spec.trial.threads} threads each",
        },
        {"name": "machine", "value": str(environment["machine"])},
        {"name": "versions", "value": f"python {environment['python']}, {versions}"},
    ]
