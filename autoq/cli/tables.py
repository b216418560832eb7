"""Results of the commands as tables and lines on standard output."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from autoq.config.objectives import OBJECTIVES
from autoq.config.policy import FLOAT_BITS
from autoq.config.spec import Record
from autoq.report.progress import front_table
from autoq.study import replication, selection
from autoq.study.results import finetuned_name, point_name
from autoq.study.study import Study


def show_front(study: Study, report: Path | None, seconds: float) -> None:
    """The front as a table, how it compares, and where the files are."""
    console = Console(highlight=False)
    objectives = study.spec.objectives
    results = study.points()
    if results.front:
        console.print(f"front of {study.name}")
        console.print(front_table(results.front, objectives, results.float_record))
        if rules := selection.recommended(results):
            points = ", ".join(f"{rule} {point_name(record)}" for rule, record in rules.items())
            close = selection.close_to_float(objectives)
            console.print(f"recommended: {points} (smallest and fastest with {close}, if a point reaches it)", soft_wrap=True)
    alone, volume = results.baselines_alone().hypervolume, results.hypervolume
    if alone is not None and volume is not None:
        sensitivity = study.sensitivity()
        initial = results.initial_alone(sensitivity).hypervolume
        of_initial = f"; initial trials alone {initial:.4f}" if sensitivity else ""
        console.print(f"hypervolume {volume:.4f}{of_initial}; baselines alone {alone:.4f}")
    if sentence := replication.in_words(study.replicated_points, results):
        console.print(sentence, soft_wrap=True)
    files = f"study {study.folder}" + (f"; report {report}" if report else "")
    console.print(f"{seconds:.0f} s; {files}", soft_wrap=True)
    if results.front:
        console.print(f"to export a point, type autoq export {study.name} --pick compromise -o DIR", soft_wrap=True)


def show_finetuned(study: Study, found: Record) -> None:
    """A finetuned point beside the point it was and the float network."""
    console = Console(highlight=False)
    results = study.results()
    float_record = results.float_record
    before = next(record for record in results.records if finetuned_name(record) == found.name)
    rows = [*([float_record] if float_record else []), before, found]
    console.print(front_table(rows, study.spec.objectives, float_record))
    export = f"autoq export {study.name} --pick '{found.name}' -o finetuned"
    console.print(f"best after {found.steps} steps, {found.seconds:.0f} s; to export it, type {export}", soft_wrap=True)


def show_models(found: Sequence[Mapping[str, Any]]) -> None:
    """The networks as a table."""
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1))
    for heading in ("network", "scale", "parameters", "float MiB", "bundled weights, PSNR dB"):
        table.add_column(heading, justify="right" if heading in ("parameters", "float MiB") else "left", no_wrap=True)
    for model in found:
        for scale in model["scales"]:
            bundled = model["bundled"].get(scale)
            quality = ", ".join(f"{name} {value:.2f}" for name, value in bundled["psnr"].items()) if bundled else "-"
            table.add_row(
                model["name"] if scale == model["scales"][0] else "",
                f"x{scale}",
                f"{model['parameters'][scale]:,}",
                f"{model['float_mib'][scale]:.2f}",
                quality,
            )
    Console(highlight=False).print(table)


def show_targets(found: Sequence[Mapping[str, Any]]) -> None:
    """The targets and their facts."""
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1))
    for heading in ("target", "here", "facts"):
        table.add_column(heading, overflow="fold", no_wrap=heading == "target")
    for target in found:
        facts = {role: _formats(formats) for role, formats in target["roles"].items()}
        facts[f"runs on integers (up to {target['integer_bits']} bits)"] = target["integers"]
        facts |= {"size-only": target["size_only"], "latency": target["latency"] or "none", "file": target["file"]}
        lines = [f"{name}: {value}" for name, value in facts.items() if value]
        table.add_row(target["name"], "yes" if target["usable"] else f"no: {target['reason']}", Text("\n".join(lines)))
    Console(highlight=False).print(table, markup=False)


def _formats(formats: Mapping[str, Any]) -> str:
    """`1-16, 32 bits; per channel or tensor; symmetric`."""
    integers = [bits for bits in formats["bits"] if bits != FLOAT_BITS]
    widths = f"{integers[0]}-{integers[-1]}" if len(integers) > 1 else str(integers[0])
    also = ", float" if FLOAT_BITS in formats["bits"] else ""
    signs = " or ".join("symmetric" if signed else "affine" for signed in formats["signed"])
    return f"{widths} bits{also}; per {' or '.join(formats['granularity'])}; {signs}"


COST_LINES = (
    ("parameters", "parameters", ""),
    ("macs", "multiply-accumulates", ""),
    ("ops", "operations of 32 x 32 bits (bit operations / 1024)", ""),
    ("bops", "bit operations", ""),
    ("peak_memory", "peak memory of feature maps (three at once, FQSR paper)", "KiB"),
    ("peak_memory_liveness", "peak memory of feature maps (by their lifetimes)", "KiB"),
    ("size", "size: tensors, each at its own width", "KiB"),
    ("size_runtime", "size_runtime: tensors in the runtime's file", "KiB"),
)


def show_cost(found: Mapping[str, Any]) -> None:
    """Costs as lines."""
    table = Table(box=None, show_header=False)
    for key, meaning, unit in COST_LINES:
        table.add_row(meaning, f"{found[key] / 1024:,.0f} KiB" if unit else f"{found[key]:,.0f}", style=None)
    if "latency_modelled" in found:
        table.add_row("modelled latency", f"{found['latency_modelled']:,.2f} ms")
    if found["float_layers"]:
        table.add_row("layers always in float", Text(", ".join(found["float_layers"])))
    Console(highlight=False).print(table)


def show_sensitivity(found: Mapping[str, Any]) -> None:
    """What quantizing stages alone changes and saves, and their ranking."""
    console = Console(highlight=False)
    metric, widths = found["metric"], sorted({entry["bits"] for entry in found["entries"]})
    groups = list(dict.fromkeys(tuple(entry["stages"]) for entry in found["entries"]))
    known = {(tuple(entry["stages"]), entry["bits"]): entry for entry in found["entries"]}
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("quantized stage", overflow="fold", min_width=18)
    for heading in (*(f"{bits} bits" for bits in widths), f"saved at {widths[0]} bits", "time saved"):
        table.add_column(heading, justify="right", no_wrap=True)
    console.print(
        f"{metric} of {found['model']} x{found['scale']}: {found['float'][metric]:.2f} in float; change when quantized:",
        soft_wrap=True,
    )
    for group in groups:
        changes = [f"{known[group, bits]['change']:+.2f}" for bits in widths]
        saved, faster = (known[group, widths[0]][name] for name in ("size_saved", "time_saved"))
        table.add_row(
            " + ".join(group), *changes, f"{saved / 1024:.0f} KiB", "no latency" if faster is None else f"{faster:.1f} ms"
        )
    console.print(table)
    worst, best = found["most_sensitive"], found["least_sensitive"]
    evidence = {stage: f"{known[(stage,), widths[0]]['change']:+.2f}" for stage in (worst, best)}
    words = f"most sensitive: {worst} ({evidence[worst]} {metric} at {widths[0]} bits); least: {best} ({evidence[best]})"
    console.print(words, soft_wrap=True)
    for over, agreement in found["stability"].items():
        if agreement is not None:
            interval = f"[{agreement['low']:.2f}, {agreement['high']:.2f}]"
            console.print(f"stability of the ranking over {over}: rank correlation {agreement['spearman']:.2f} {interval}")
    console.print(f"{found['seconds']:.0f} s")


def show_upscaled(found: Mapping[str, Any]) -> None:
    """What was written, in how many tiles, and notes on it."""
    console = Console(highlight=False)
    tiles = f"{found['tiles']} tiles that overlap by {found['overlap']}" if found["tiles"] > 1 else "one piece"
    console.print(
        f"{found['output']}: {found['width']}x{found['height']}, x{found['scale']}, in {tiles}", soft_wrap=True, markup=False
    )
    if not found["exact"]:
        reach = "unbounded or unknown" if found["reach"] is None else f"{found['reach']} pixels"
        console.print(f"receptive field {reach}: tiled output differs slightly from untiled output", soft_wrap=True)
    if found["note"]:
        console.print(found["note"], soft_wrap=True, markup=False)


def show_evaluation(found: Mapping[str, Any]) -> None:
    """Metrics of every image and their means."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("image", overflow="fold")
    for name in found["metrics"]:
        unit = OBJECTIVES[name].unit
        table.add_column(f"{name} {unit}".strip(), justify="right", no_wrap=True)
    for image in found["each"]:
        table.add_row(Text(image["image"]), *(f"{image[name]:#.4g}" for name in found["metrics"]))
    table.add_section()
    table.add_row(f"mean of {found['images']}", *(f"{value:#.4g}" for value in found["metrics"].values()))
    Console(highlight=False).print(table)


def show_delivered(file: Path, lines: Sequence[Mapping[str, str]], faster: bool | None, warnings: Sequence[str]) -> None:
    """An exported file and its figures: expected from the study, and found. faster: than float, where measured."""
    console = Console(highlight=False)
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("")
    for column in ("expected", "found"):
        table.add_column(column, justify="right")
    table.add_column("tolerance")
    for line in lines:
        table.add_row(line["name"], line["expected"], line["found"], line["tolerance"])
    console.print(table)
    if faster is False:
        console.print("not faster than the float network here", soft_wrap=True)
    for warning in warnings:
        console.print(f"warning: {warning}", soft_wrap=True, markup=False)
    console.print(str(file) if warnings else f"{file}: as expected", soft_wrap=True, markup=False)
