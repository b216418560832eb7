import json
import subprocess
import sys
from pathlib import Path

from tests.conftest import small_image

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "esrgan.py"


def test_a_study_from_a_file_in_the_authors_layout(tmp_path: Path) -> None:
    options = ["--blocks", "1", "--frame", "16x16", "--budget", "1", "--data", str(small_image(tmp_path / "train", 0)), "--json"]
    options += ["--eval-data", str(small_image(tmp_path / "eval", 1))]
    done = subprocess.run([sys.executable, str(SCRIPT), *options], capture_output=True, text=True, check=True, cwd=tmp_path)
    figures = json.loads(done.stdout)["figures"]
    assert (figures["blocks"], figures["trials"], figures["complete"]) == (1, 1, 1)
    assert figures["float_bytes"] > 3_000_000
    assert 0.5 < figures["peak_gib"] < 12
