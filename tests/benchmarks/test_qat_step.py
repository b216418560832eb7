"""The training step in miniature: autoq and float without the rivals, what is said of these, and the ratios."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from autoq.quantizers import QUANTIZERS
from benchmarks import contenders, qat_step
from tests.conftest import small_image


def run(monkeypatch: pytest.MonkeyPatch, *options: str) -> None:
    monkeypatch.setattr(sys, "argv", ["qat_step.py", *options])
    qat_step.main()


def test_autoq_and_float_in_miniature(
    tiny_weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--scale", "2", "--weights", str(tiny_weights), "--batch", "1", "--rounds", "2", "--steps", "2", "--threads", "1"]
    images = ["--data", str(small_image(tmp_path / "train", 0)), "--eval-data", str(small_image(tmp_path / "eval", 1))]
    run(monkeypatch, *options, *images, "--only", "float32", "autoq", "--json")
    found = json.loads(capsys.readouterr().out)
    rows = {row["name"]: row for row in found["rows"]}
    assert list(rows) == ["float32", "autoq"]
    assert rows["float32"]["ratio_float32"]["wall"]["middle"] == 1
    assert found["figures"]["step_ratio_float32"] == rows["autoq"]["ratio_float32"]["wall"]["middle"] > 0
    assert (found["figures"]["step_ratio_brevitas"], found["figures"]["psnr_gap"]) == (None, None)
    assert list(found["psnr"]) == ["autoq"]
    assert found["failed"] == {}


def test_a_rival_that_is_not_installed_is_named_with_what_to_type(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "brevitas", None)
    monkeypatch.setitem(sys.modules, "brevitas.nn", None)
    with pytest.raises(SystemExit) as left:
        run(monkeypatch, "--only", "float32", "brevitas")
    assert left.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: rival 'brevitas': ")
    assert "pip install -c constraints.txt brevitas==0.13.4" in line
    offered = line.partition("--only ")[2].split()
    assert set(offered) == {name for name in contenders.CONTENDERS if not name.startswith("brevitas")}


def test_a_rival_whose_interface_fails_is_listed_with_its_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(start: Any) -> contenders.Steps:
        raise TypeError("unexpected keyword\nand a long story")

    class Idle:
        step = 0

        def advance(self, until: int) -> None:
            self.step = until

    monkeypatch.setitem(contenders.CONTENDERS, "nncf", contenders.Contender(broken))
    monkeypatch.setitem(contenders.CONTENDERS, "float32", contenders.Contender(lambda start: Idle()))
    rows, failed = qat_step.measured(_Start(), ["nncf", "float32"], 3)
    assert failed == {"nncf": "TypeError: unexpected keyword"}
    assert [(row.name, len(row.wall), len(row.cpu)) for row in rows] == [("float32", 3, 3)]
    assert "nncf                   failed: TypeError: unexpected keyword" in qat_step.table(rows, failed)


class _Start:
    """As much of Given as is read before a contender is built."""

    class context:
        class spec:
            seed = 0


def test_ratios_are_medians_over_rounds_and_the_gap_is_autoq_s_minus_brevitas_s(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(contenders, "native_bfloat16", lambda device: False)
    rows = [
        qat_step.Row("float32", 1.0, 1.0, [100.0, 300.0, 100.0], [200.0] * 3),
        qat_step.Row("bfloat16", 1.0, 1.0, [50.0] * 3, [50.0] * 3),
        qat_step.Row("autoq", 1.0, 1.0, [50.0, 240.0, 60.0], [100.0, 120.0, 100.0]),
        qat_step.Row("brevitas", 1.0, 1.0, [200.0, 600.0, 400.0], [400.0] * 3),
    ]
    found = qat_step.document(rows, {}, {"autoq": 29.5, "brevitas": 29.625}, {})
    # round by round 0.5, 0.8, 0.6 and 0.25, 0.4, 0.15; the ratio of the medians would be 0.6 and 0.15
    assert found["figures"] == {"step_ratio_float32": 0.6, "step_ratio_brevitas": 0.25, "psnr_gap": -0.125}
    by_name = {row["name"]: row for row in found["rows"]}
    assert by_name["autoq"]["ratio_float32"]["wall"] == {"middle": 0.6, "low": 0.5, "high": 0.8}
    assert by_name["autoq"]["ratio_float32"]["cpu"]["middle"] == 0.5
    assert by_name["brevitas"]["ratio_float32"]["wall"]["middle"] == 2
    assert by_name["bfloat16"]["ratio_float32"] == {"wall": None, "cpu": None}
    assert "no native bfloat16" in by_name["bfloat16"]["remark"]


def test_every_quantizer_takes_part() -> None:
    own = {name.removeprefix("autoq-") for name in contenders.CONTENDERS if name.startswith("autoq-")}
    assert own - {"compiled"} | {"lsq"} == set(QUANTIZERS)
