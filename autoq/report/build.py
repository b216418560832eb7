"""The report's data, and the file."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jinja2
import plotly.io
from markupsafe import Markup

from autoq.config.objectives import OBJECTIVES
from autoq.config.policy import ROLES, Policy, StageQuant
from autoq.config.spec import Record, Sensitivity
from autoq.report.attribution import speed
from autoq.report.latency import latency_section
from autoq.report.plots import axis_label, axis_value, front_figure, front_png, sensitivity_figure
from autoq.report.stages import stage_table
from autoq.study.intervals import Interval
from autoq.study.replication import confirmed_qualities, in_words
from autoq.study.results import NOT_FASTER, Results, faster_than_float, point_name, prediction_agreement
from autoq.study.selection import close_to_float, recommended
from autoq.study.study import Study
from autoq.system.files import write_whole
from autoq.targets import TargetInfo, target_info

REPORTS = Path("reports")


def build_report(study: Study, folder: Path = REPORTS, other: Study | None = None) -> tuple[Path, Path]:
    """Write `<folder>/<name>.html`, one offline file, and `<name>.png`, the front. Returns both paths. other: a study whose
    front is shown beside it.
    """
    results = study.results()
    text = render(study, results, other)  # a damaged study ends here, before anything is written
    folder.mkdir(parents=True, exist_ok=True)
    page, picture = folder / f"{study.name}.html", folder / f"{study.name}.png"
    write_whole(page, text)
    trial = study.spec.trial
    front_png(results, picture, f"{trial.model} x{trial.scale} on {trial.target}")
    return page, picture


def render(study: Study, results: Results, other: Study | None = None) -> str:
    """The page. Everything from the study is escaped; only the figure, made here, is markup."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("autoq.report", "."), autoescape=True, undefined=jinja2.StrictUndefined
    )
    shown = front_figure(results, other.name if other else "", other.results().front if other else [])
    figure = plotly.io.to_html(shown, include_plotlyjs=True, full_html=False)
    sensitivity = study.sensitivity()
    stages = (
        "" if sensitivity is None else plotly.io.to_html(sensitivity_figure(sensitivity), include_plotlyjs=False, full_html=False)
    )
    return environment.get_template("template.html.j2").render(
        figure=Markup(figure),
        sensitivity=Markup(stages),
        prediction=prediction_agreement(results.records, sensitivity),
        **page_data(study, results),
        **_confirmed(study, results),
        compared=_compared(study, results, other),
    )


def page_data(study: Study, results: Results) -> dict[str, Any]:
    """Everything the template shows, as plain strings and numbers."""
    spec, objectives, records = study.spec, study.spec.objectives, results.records
    baselines = list({record.name: record for record in records if record.source == "baseline"}.values())  # the last of each
    trials = [record for record in records if record.source == "trial"]
    others = [name for name in OBJECTIVES if name not in objectives and any(name in record.values for record in records)]
    columns = [*objectives, *others]
    info = target_info(spec.trial.target)
    widened, measured = bool(info.size_only), info.model is None
    widths = f"On this target {info.size_only}: they save size, not time."
    return {
        "name": study.name,
        "spec": spec,
        "environment": study.environment,
        "trials": len(trials),
        "complete": sum(record.state == "complete" for record in trials),
        "stopped": sum(record.state == "pruned" for record in trials),
        "verdict": _verdict(results, study.sensitivity()),
        "tiles": _tiles(results, measured),
        "recommended": _recommended(study.name, results),
        "close": close_to_float(objectives),
        "remeasured": measured and bool(info.latency),
        "latency_note": "" if measured else f"Latencies are {info.latency}. The float network does not run there.",
        "heads": [axis_label(name) for name in objectives],
        "all_heads": [axis_label(name) for name in columns],
        "stages": list(study.space.choices),
        "stage_tables": [stage_table(answer) for answer in study.answers()],
        "front": [_row(record, results, columns, info) for record in results.front],
        "baselines": [_row(record, results, columns, info) for record in baselines],
        "baseline_seconds": f"{sum(record.seconds for record in baselines):.0f}",
        "failures": [record for record in trials if record.state != "complete"],
        "facts": _facts(study),
        **latency_section(
            speed(study.latency_table(), [*results.front, *(record for record in baselines if record not in results.front)])
        ),
        "size_only": widths if widened and any(map(_is_narrow, results.front)) else "",
    }


def _compared(study: Study, results: Results, other: Study | None) -> str:
    """How a front stands against another study's, in words."""
    found = None if other is None else results.comparison(other.results())
    if other is None or found is None:
        return ""
    same = study.environment["machine"] == other.environment["machine"]
    machines = "" if same else f" (latencies there are of another machine, {other.environment['machine']})"
    return (
        f"Against {other.name} ({len(other.space.choices)} parts with formats of their own, here {len(study.space.choices)}):"
        f" hypervolume {found['hypervolume']:.4f} here, {found['hypervolume_other']:.4f} there, {found['hypervolume_together']:.4f}"
        f" together{machines}; {found['dominated']:.0%} of the points here are dominated by points there,"
        f" {found['dominated_other']:.0%} of those there by points here."
    )


def _confirmed(study: Study, results: Results) -> dict[str, Any]:
    """The section on what became of the front's points on held-out images, trained and measured again."""
    points = study.confirmed
    if not points:
        return {"confirmed": []}
    qualities = confirmed_qualities(study.spec.objectives)
    heads = [f"{axis_label(name)}, {kind}" for name in qualities for kind in ("found", "held-out images", "other seeds")]
    rows = []
    for point in points:
        numbers = []
        for name in qualities:
            shown = _number(name, point.record.values[name])
            numbers += [shown, _interval(name, point.held_out[name]), _interval(name, point.replicated.get(name))]
        latency = [_number("latency", point.record.values.get("latency")), _interval("latency", point.latency)]
        notes = ["dominated on held-out images"] * point.dominated + [f"breaks {bound}" for bound in point.breaks]
        notes += [f"failed: {point.reason}"] * (point.reason is not None)
        rows.append(
            {
                "name": point_name(point.record),
                "source": point.record.source,
                "numbers": numbers + latency,
                "seeds": str(point.seeds or "not repeated"),
                "then": ", ".join(notes),
            }
        )
    return {
        "confirmed": rows,
        "confirmed_heads": [*heads, "latency (ms), found", "again"],
        "confirmed_in_words": in_words(points, results),
    }


def _interval(name: str, interval: Interval | None) -> str:
    if interval is None:
        return ""
    middle = _number(name, interval.middle)
    if not math.isfinite(interval.low):
        return middle
    return middle if interval.low == interval.high else f"{middle} [{_number(name, interval.low)}, {_number(name, interval.high)}]"


def _tiles(results: Results, measured: bool) -> list[dict[str, str]]:
    """measured: whether latencies are; a float network whose latency is modelled does not run there."""
    found, float_record, objectives = results.front, results.float_record, results.objectives
    volume, alone = results.hypervolume, results.baselines_alone().hypervolume
    tiles = [{"value": str(len(found)), "text": f"points on the front, {sum(r.source == 'trial' for r in found)} of them trials"}]
    if volume is not None and alone is not None:
        tiles.append({"value": f"{volume:.4f}", "text": f"hypervolume; the baselines alone reach {alone:.4f}"})
    quality = next((name for name in objectives if OBJECTIVES[name].quality), None)
    if float_record is not None and quality is not None:
        tiles.append(
            {"value": _number(quality, float_record.values[quality]), "text": f"{axis_label(quality)} of the float network"}
        )
    if float_record is not None and "latency" in float_record.values and measured:
        tiles.append({"value": f"{float_record.values['latency']:.1f} ms", "text": "a frame of the float network"})
    return tiles


def _recommended(name: str, results: Results) -> list[dict[str, str]]:
    """The recommended points as cards: what is gained, at what quality, and the command that exports each."""
    cards = []
    for rule, record in recommended(results).items():
        ratios = {word: _ratio(results.float_record, record, name) for word, name in (("smaller", "size"), ("faster", "latency"))}
        names = [name for name in results.objectives if OBJECTIVES[name].quality]
        qualities = [f"{axis_label(name)} {_number(name, record.values[name])}" for name in names]
        cards.append(
            {
                "value": ", ".join(f"{times} {what}" for what, times in ratios.items() if times) or point_name(record),
                "text": f"{rule}: {point_name(record)}, {', '.join(qualities)}",
                "command": f"autoq export {name} --pick {rule} -o {rule}",
            }
        )
    return cards


def _verdict(results: Results, sensitivity: Sensitivity | None) -> str:
    """Whether trials of the sampler added to what the seeds found; empty where the study has none."""
    alone, volume = results.initial_alone(sensitivity).hypervolume, results.hypervolume
    if sensitivity is None or alone is None or volume is None:
        return ""
    if volume <= alone:
        return f"The search did not get beyond its {len(sensitivity.initial_trials)} seeds, whose hypervolume is {alone:.4f}."
    gain = f"{volume / alone - 1:.1%}" if alone else "all there is"
    return f"Its {len(sensitivity.initial_trials)} seeds alone reach a hypervolume of {alone:.4f}; the search added {gain}."


def _row(record: Record, results: Results, columns: Sequence[str], target: TargetInfo) -> dict[str, Any]:
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
    """Whether a width below 8 bits is among a policy's formats."""
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
    in_float = [{"name": "always in float", "value": ", ".join(spec.float_layers)}] if spec.float_layers else []
    return [
        *in_float,
        {"name": "weights", "value": str(spec.trial.weights or "bundled")},
        {"name": "training images", "value": str(spec.trial.data or "bundled photographs")},
        {"name": "evaluation images", "value": str(spec.trial.eval_data or "bundled photographs")},
        {"name": "latency", "value": target_info(spec.trial.target).latency or "none"},
        {"name": "frame", "value": f"{spec.frame[0]}x{spec.frame[1]} pixels in, {spec.latency_threads} threads"},
        {
            "name": "training",
            "value": f"{spec.trial.steps} steps of {spec.trial.batch} patches {spec.trial.patch}x{spec.trial.patch}",
        },
        {
            "name": "search",
            "value": f"sampler {spec.sampler}, seed {spec.trial.seed}, {spec.workers} workers of {spec.trial.threads} threads",
        },
        {"name": "machine", "value": str(environment["machine"])},
        {"name": "versions", "value": f"python {environment['python']}, {versions}"},
    ]
