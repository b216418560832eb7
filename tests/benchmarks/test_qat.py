"""The benchmarks that train, ablation.py and qat_gain.py, in miniature."""

import csv
from pathlib import Path

import pytest

from benchmarks import ablation, qat_gain
from tests.benchmarks.conftest import RunBenchmark
from tests.conftest import small_image


@pytest.fixture
def options(tmp_path: Path) -> list[str]:
    images = ["--data", str(small_image(tmp_path / "train", 0)), "--eval-data", str(small_image(tmp_path / "eval", 1))]
    return ["--model", "espcn", "--scale", "3", "--steps", "2", "--batch", "1", "--table", str(tmp_path / "t.csv"), *images]


def test_the_ablation_goes_on_where_it_was_stopped(run_benchmark: RunBenchmark, options: list[str], tmp_path: Path) -> None:
    document, said = run_benchmark(ablation, *options, "--seeds", "2")
    figures = document["figures"]
    assert said.count("dB") == 3 * 2
    lines = list(csv.DictReader((tmp_path / "t.csv").read_text().splitlines()))
    psnr = {(line["name"], line["seed"]): float(line["psnr"]) for line in lines}
    gains = [psnr["+ learned interval", seed] - psnr["fixed ranges", seed] for seed in ("0", "1")]
    assert figures["gain_learned interval"] == pytest.approx(sum(gains) / 2, abs=6e-4)
    assert figures["gain_low_SQCL"] <= figures["gain_SQCL"] <= figures["gain_high_SQCL"]
    assert figures["agrees"] == (figures["gain_learned interval"] > 0 and figures["gain_SQCL"] > 0)

    text = (tmp_path / "t.csv").read_text().splitlines()
    (tmp_path / "t.csv").write_text("\n".join(text[:-2]) + "\n")
    again, said = run_benchmark(ablation, *options, "--seeds", "2")
    assert said.count("dB") == 2
    assert again == document


def test_what_qat_gains(run_benchmark: RunBenchmark, options: list[str]) -> None:
    document, said = run_benchmark(qat_gain, *options, "--clippings", "minmax", "mse")
    figures = document["figures"]
    assert said.count("dB") == 1 + 2 * 2 + 2
    assert figures["qat_drop"] == pytest.approx(figures["psnr_float"] - figures["psnr_qat_8/8/8"], abs=2e-3)
    rules = [figures[f"psnr_ptq_{rule}_4/4/8"] for rule in ("minmax", "mse")]
    assert figures["psnr_ptq_4/4/8"] == max(rules)
    assert figures["qat_gain"] == pytest.approx(figures["psnr_qat_4/4/8"] - max(rules), abs=2e-3)
