"""What uint8 per tensor costs a published checkpoint: figures of `benchmarks/uint8.py`, and the two of `clipped_output.py`."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from autoq.images.data import read_folder
from autoq.networks import MODELS
from benchmarks import clipped_output
from benchmarks.uint8 import psnrs
from tests.conftest import small_image


def test_a_public_checkpoint_loses_less_than_03_db_on_set14(shared: Path) -> None:
    """The published 5000 epochs with a clipped output: 29.63 dB in float; the file runs in ONNX Runtime."""
    found = psnrs(shared / "weights" / "xlsr_x3_cxzhou95.pt", read_folder(shared / "test" / "Set14"), ("minmax",), threads=2)
    assert found["float"] == pytest.approx(29.63, abs=0.05)
    assert 0.1 < found["float"] - found["minmax"] < 0.3


def test_both_outputs_are_trained_alike_and_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--steps", "2", "--work", str(tmp_path / "work"), "--threads", "1", "--json"]
    options += ["--data", str(small_image(tmp_path / "train", 0)), "--eval-data", str(small_image(tmp_path / "eval", 1))]
    monkeypatch.setattr(sys, "argv", ["clipped_output.py", *options])
    for variant in clipped_output.VARIANTS:
        monkeypatch.setitem(MODELS, f"xlsr-{variant}", MODELS["xlsr"])  # the script puts its own there; gone afterwards
    clipped_output.main()
    first = json.loads(capsys.readouterr().out)
    trained = {path: path.read_bytes() for path in (tmp_path / "work").glob("*/weights.safetensors")}
    clipped_output.main()
    assert json.loads(capsys.readouterr().out) == first
    assert len(trained) == 2
    assert all(path.read_bytes() == content for path, content in trained.items())
    figures = first["figures"]
    assert (figures["clipped_loss_paper"], figures["linear_loss_paper"], figures["steps"]) == (0.28, 5.39, 2)
    for variant in ("clipped", "linear"):
        assert 3 < figures[f"{variant}_uint8"] < 60
        assert figures[f"{variant}_loss"] == pytest.approx(figures[f"{variant}_float"] - figures[f"{variant}_uint8"], abs=2e-3)
    assert figures["order"] == ("agrees" if figures["linear_loss"] > figures["clipped_loss"] else "differs")
    assert figures["robustness"] in ("agrees", "differs")
