"""Whether points of a study export as expected: each trained again once, written as onnx and as packed, reloaded, run, measured.

python benchmarks/exports.py srgan-x4 --points 10     the front first, then other trials and baselines spread over size
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))

from autoq.api.studies import check_inputs, open_study
from autoq.config.spec import Record
from autoq.deploy.pipeline import Exported, retrain, write
from autoq.deploy.verify import OVERHEAD, Line
from autoq.study.results import Results, point_name
from autoq.study.study import Study
from autoq.system.processor import available_cores
from autoq.trial.context import TrialContext, prepare
from benchmarks.documents import reserve_output

FORMATS = ("onnx", "packed")
PAYLOADS = ("size", "size_runtime")


def chosen(study: Study, count: int) -> list[Record]:
    """Points that trained fully: those of the front, then of the others as many as are left, spread over size."""
    full = [record for record in study.records() if record.state == "complete" and record.feasible]
    first = Results(full, study.spec.objectives).front[:count]
    others = sorted((record for record in full if record not in first), key=lambda record: record.values["size"])
    left = min(count - len(first), len(others))
    return first + [others[index] for index in np.linspace(0, len(others) - 1, left).round().astype(int)] if left else first


def exported(study: Study, context: TrialContext, record: Record) -> dict[str, Any]:
    """What one point should do, and what its files do."""
    point = retrain(study, record, lambda text: print(f"  {text}", file=sys.stderr), context)
    written: dict[str, Exported] = {}
    with tempfile.TemporaryDirectory() as scratch:
        for format in FORMATS:
            folder = Path(scratch) / format
            folder.mkdir()
            written[format] = write(point, format, folder, lambda text: None)
    lines = {format: {line.name: line for line in found.lines} for format, found in written.items()}
    plain = lines["onnx"]
    overheads = {"onnx": written["onnx"].bytes - plain["size_runtime"].found, "packed": lines["packed"]["overhead"].found}
    return {
        "point": point_name(record),
        "psnr": {"expected": record.values["psnr"]} | {format: each["psnr"].found for format, each in lines.items()},
        "agreement_db": {format: each["agreement"].found for format, each in lines.items()},
        "payload": {name: {"expected": plain[name].expected, "found": plain[name].found} for name in PAYLOADS},
        "overhead_bytes": {format: int(found) for format, found in overheads.items()},
        "latency": _latency(plain.get("latency")),
    }


def _latency(line: Line | None) -> dict[str, Any] | None:
    """Milliseconds with the 95 % interval; holds: None where another machine or runtime measured them."""
    if line is None:
        return None
    return {"expected": line.expected, "found": line.found, "low": line.low, "high": line.high, "holds": line.holds}


def summary(rows: Sequence[dict[str, Any]]) -> dict[str, float]:
    """The figures over all points."""
    return {
        "points": len(rows),
        "worst_psnr_difference": max(
            abs(row["psnr"][format] - row["psnr"]["expected"]) for row in rows for format in FORMATS
        ),
        "worst_agreement_db": min(min(row["agreement_db"].values()) for row in rows),
        "payload_mismatches": sum(each["expected"] != each["found"] for row in rows for each in row["payload"].values()),
        "largest_overhead_bytes": max(max(row["overhead_bytes"].values()) for row in rows),
        "overheads_too_large": sum(size > OVERHEAD for row in rows for size in row["overhead_bytes"].values()),
        "latency_misses": sum(row["latency"] is not None and row["latency"]["holds"] is False for row in rows),
        "latencies_judged": sum(row["latency"] is not None and row["latency"]["holds"] is not None for row in rows),
    }  # fmt: skip


def in_words(row: dict[str, Any]) -> str:
    """One point in one line."""
    psnr, payload, latency = row["psnr"], row["payload"], row["latency"]
    sizes = ", ".join(f"{name} {each['expected']:,.0f} -> {each['found']:,.0f}" for name, each in payload.items())
    time = ""
    if latency is not None:
        time = f"; {latency['expected']:.2f} -> {latency['found']:.2f} ms [{latency['low']:.2f}, {latency['high']:.2f}]"
        time += {True: "", False: " MISSED", None: " (measured elsewhere)"}[latency["holds"]]
    return (
        f"{row['point']:>12}  PSNR {psnr['expected']:.3f} -> {psnr['onnx']:.3f} (packed {psnr['packed']:.3f}) dB,"
        f" agreement {min(row['agreement_db'].values()):.1f} dB; {sizes} bytes;"
        f" overhead {row['overhead_bytes']['onnx']:,} and {row['overhead_bytes']['packed']:,}{time}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("study", help="name under studies/, or an absolute path")
    parser.add_argument("--points", type=int, default=10)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    tell = reserve_output(options.json)
    study = open_study(options.study)
    check_inputs(study.name, study.spec)
    context, rows = prepare(study.spec.trial, available_cores()), []
    for record in chosen(study, options.points):
        rows.append(exported(study, context, record))
        if not options.json:
            print(in_words(rows[-1]), flush=True)
    figures = summary(rows)
    if options.json:
        tell({"bench": "exports", "figures": figures, "rows": rows})
    else:
        print(", ".join(f"{name} {value:.4g}" for name, value in figures.items()))


if __name__ == "__main__":
    main()
