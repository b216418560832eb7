import json
import subprocess
import sys
from pathlib import Path

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "survival.py"


def test_searches_survive_kills(tmp_path: Path) -> None:
    options = ["--driver-kills", "1", "--worker-kills", "1", "--budget", "4", "--steps", "30", "--json"]
    done = subprocess.run(
        [sys.executable, str(SCRIPT), *options], capture_output=True, text=True, check=True, cwd=tmp_path, timeout=600
    )
    figures = json.loads(done.stdout)["figures"]
    assert (figures["driver_kills"], figures["worker_kills"]) == (1, 1)
    assert figures["trials"] == 4 * figures["studies"]
    assert {figures[key] for key in ("lost", "run_twice", "unfinished", "failed", "orphans")} == {0}
