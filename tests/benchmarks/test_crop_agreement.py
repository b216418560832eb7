"""benchmarks/crops.py in miniature."""

from pathlib import Path

from benchmarks import crops
from tests.benchmarks.conftest import RunBenchmark
from tests.conftest import small_image


def test_crops_are_compared_with_whole_images(run_benchmark: RunBenchmark, tmp_path: Path) -> None:
    options = ["--model", "espcn", "--scale", "3", "--policies", "4", "--crops", "3"]
    options += ["--data", str(small_image(tmp_path / "train", 0)), "--eval-data", str(small_image(tmp_path / "eval", 1, side=240))]
    figures = run_benchmark(crops, *options)[0]["figures"]
    assert (figures["crops"], figures["whole"]) == (3, 1)
    assert figures["crops_megapixels"] == round(3 * 120**2 / 1e6, 3)
    assert figures["whole_megapixels"] == round(240**2 / 1e6, 3)
    assert 0.5 < figures["spearman"] <= 1
