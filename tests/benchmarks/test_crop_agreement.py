import json
import subprocess
import sys
from pathlib import Path

from tests.conftest import small_image

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "crops.py"


def test_crops_are_compared_with_whole_images(tmp_path: Path) -> None:
    options = ["--model", "espcn", "--scale", "3", "--policies", "4", "--crops", "3", "--json"]
    options += ["--data", str(small_image(tmp_path / "train", 0)), "--eval-data", str(small_image(tmp_path / "eval", 1, side=240))]
    done = subprocess.run([sys.executable, str(SCRIPT), *options], capture_output=True, text=True, check=True)
    figures = json.loads(done.stdout)["figures"]
    assert (figures["crops"], figures["whole"]) == (3, 1)
    assert figures["crops_megapixels"] == round(3 * 120**2 / 1e6, 3)
    assert figures["whole_megapixels"] == round(240**2 / 1e6, 3)
    assert 0.5 < figures["spearman"] <= 1
