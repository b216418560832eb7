"""benchmarks/sampling.py in miniature."""

from pathlib import Path

from benchmarks import sampling
from tests.benchmarks.conftest import RunBenchmark
from tests.conftest import small_image


def test_samplings_are_compared_at_equal_steps(run_benchmark: RunBenchmark, tmp_path: Path) -> None:
    options = ["--model", "espcn", "--scale", "3", "--steps", "2", "--seeds", "2"]
    options += ["--data", str(small_image(tmp_path / "train", 0)), "--eval-data", str(small_image(tmp_path / "eval", 1))]
    figures = run_benchmark(sampling, *options)[0]["figures"]
    assert len(figures) == 2 * 3 * 2
    assert figures["gain_uniform_4/4/8_2"] == 0
    assert 5 < figures["psnr_proportional_6/6/8_2"] < 60
