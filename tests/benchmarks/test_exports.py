import json
import sys
from pathlib import Path

import pytest

from autoq.study.study import Study
from benchmarks import exports
from tests.deploy.test_pipeline import expected, finished

__all__ = ["finished"]


def test_points_of_a_study_are_exported_in_both_formats(
    finished: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["exports.py", str(finished), "--points", "2", "--json"])
    exports.main()
    found = json.loads(capsys.readouterr().out)
    figures, rows = found["figures"], found["rows"]
    assert figures["points"] == len(rows) == 2
    assert figures["worst_psnr_difference"] <= 0.05
    assert figures["worst_agreement_db"] >= 50
    assert figures["payload_mismatches"] == 0
    assert 0 < figures["largest_overhead_bytes"] <= 64 * 1024
    assert figures["latencies_judged"] == 2
    study = Study.open(finished)
    for row in rows:
        values = expected(study, row["point"])
        assert row["payload"]["size"]["found"] == values["size"]
        assert row["latency"]["expected"] == values["latency"]
        assert row["psnr"]["packed"] == row["psnr"]["onnx"], "one runtime file"


def test_the_front_comes_first_and_the_others_are_spread_over_size(finished: Path) -> None:
    study = Study.open(finished)
    everything = exports.chosen(study, 10)
    assert sorted(str(record.name) for record in everything) == ["4/6/8", "8/8/8", "float"]
    on_front = {str(record.name) for record in study.results().front}
    assert {str(record.name) for record in everything[: len(on_front)]} == on_front


def test_what_does_not_hold_is_counted() -> None:
    def row(psnr: float, found: int, holds: bool | None) -> dict:
        return {
            "psnr": {"expected": 30.0, "onnx": psnr, "packed": 30.0}, "agreement_db": {"onnx": 51.0, "packed": 60.0},
            "payload": {"size": {"expected": 10, "found": found}, "size_runtime": {"expected": 20, "found": 20}},
            "overhead_bytes": {"onnx": 70_000, "packed": 5}, "latency": {"holds": holds},
        }  # fmt: skip

    figures = exports.summary([row(29.9, 10, None), row(30.05, 11, False), {**row(30, 10, True), "latency": None}])
    assert figures["worst_psnr_difference"] == pytest.approx(0.1)
    assert (figures["payload_mismatches"], figures["latency_misses"], figures["latencies_judged"]) == (1, 1, 1)
    assert (figures["largest_overhead_bytes"], figures["overheads_too_large"]) == (70_000, 3)
