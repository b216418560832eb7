"""The benchmarks that train, in miniature."""

import csv
import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import small_image

FOLDER = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def options(tmp_path: Path) -> list[str]:
    images = ["--data", str(small_image(tmp_path / "train", 0)), "--eval-data", str(small_image(tmp_path / "eval", 1))]
    return ["--model", "espcn", "--scale", "3", "--steps", "2", "--batch", "1", "--table", str(tmp_path / "t.csv"), *images]


def run(script: str, *options: str) -> tuple[dict[str, float], str]:
    """Its figures, and what it says while it measures."""
    command = [sys.executable, str(FOLDER / script), *options, "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)["figures"], done.stderr


def test_the_ablation_goes_on_where_it_was_stopped(options: list[str], tmp_path: Path) -> None:
    figures, said = run("ablation.py", *options, "--seeds", "2")
    assert said.count("dB") == 3 * 2
    lines = list(csv.DictReader((tmp_path / "t.csv").read_text().splitlines()))
    psnr = {(line["name"], line["seed"]): float(line["psnr"]) for line in lines}
    gains = [psnr["+ learned interval", seed] - psnr["fixed ranges", seed] for seed in ("0", "1")]
    assert figures["gain_learned interval"] == pytest.approx(sum(gains) / 2, abs=6e-4)
    assert figures["gain_low_SQCL"] <= figures["gain_SQCL"] <= figures["gain_high_SQCL"]
    assert figures["agrees"] == (figures["gain_learned interval"] > 0 and figures["gain_SQCL"] > 0)

    text = (tmp_path / "t.csv").read_text().splitlines()
    (tmp_path / "t.csv").write_text("\n".join(text[:-2]) + "\n")
    again, said = run("ablation.py", *options, "--seeds", "2")
    assert said.count("dB") == 2
    assert again == figures


def test_what_qat_gains(options: list[str]) -> None:
    figures, said = run("qat_gain.py", *options, "--clippings", "minmax", "mse")
    assert said.count("dB") == 1 + 2 * 2 + 2
    assert figures["qat_drop"] == pytest.approx(figures["psnr_float"] - figures["psnr_qat_8/8/8"], abs=2e-3)
    rules = [figures[f"psnr_ptq_{rule}_4/4/8"] for rule in ("minmax", "mse")]
    assert figures["psnr_ptq_4/4/8"] == max(rules)
    assert figures["qat_gain"] == pytest.approx(figures["psnr_qat_4/4/8"] - max(rules), abs=2e-3)
