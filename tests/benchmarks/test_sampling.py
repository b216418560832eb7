import json
import subprocess
import sys
from pathlib import Path

from tests.conftest import small_image

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "sampling.py"


def test_samplings_are_compared_at_equal_steps(tmp_path: Path) -> None:
    options = ["--model", "espcn", "--scale", "3", "--steps", "2", "--seeds", "2", "--json"]
    options += ["--data", str(small_image(tmp_path / "train", 0)), "--eval-data", str(small_image(tmp_path / "eval", 1))]
    done = subprocess.run([sys.executable, str(SCRIPT), *options], capture_output=True, text=True, check=True)
    figures = json.loads(done.stdout)["figures"]
    assert len(figures) == 2 * 3 * 2
    assert figures["gain_uniform_4/4/8_2"] == 0
    assert 5 < figures["psnr_proportional_6/6/8_2"] < 60
