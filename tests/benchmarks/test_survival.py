"""What the benchmark counts, on a driver that fails on purpose; and that the searches it kills are the product's.

That searches survive kills is tested in tests/tuning/test_runner.py.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import psutil
import pytest

from benchmarks import survival
from tests.searching import furnished, in_process

DRIVER = """
import json, subprocess, sys
from pathlib import Path

fault, name, budget = sys.argv[1], sys.argv[4], 4
folder = Path("studies") / name
folder.mkdir(parents=True, exist_ok=True)
(folder / "study.yaml").touch()
path = folder / "trials.jsonl"
lines = path.read_text().splitlines() if path.is_file() else []


def record(number):
    state = "failed" if fault == "failed" and number == 1 else "complete"
    return json.dumps({"name": None, "number": number, "source": "trial", "state": state})


there = {json.loads(line)["number"] for line in lines}
missing = [record(number) for number in range(budget - (fault == "unfinished")) if number not in there]
if lines and fault == "lost":
    lines[0] = lines[0].replace("complete", "complete ")
if lines and fault == "run_twice":
    lines.append(lines[0])
path.write_text("".join(f"{line}\\n" for line in [*lines, *missing[:1]]))
if fault == "orphans":
    worker = subprocess.Popen(["ray::Trainable", "60"], executable="/bin/sleep")
else:
    worker = subprocess.Popen(["ray::Trainable"], executable="/bin/cat", stdin=subprocess.PIPE)  # ends with this process
Path("ready").touch()
if not Path("last").exists():
    worker.wait()
worker.kill()
with path.open("a") as file:
    file.write("".join(f"{line}\\n" for line in missing[1:]))
"""
"""As much of a search as is looked at: a line, and a worker process; with that, all lines. The first argument: what goes wrong."""


class Trouble(survival.Trouble):
    """With a driver that has a line and a worker once it is started."""

    def start(self) -> subprocess.Popen[bytes]:
        (self.folder / "ready").unlink(missing_ok=True)
        driver = super().start()
        while not (self.folder / "ready").exists():
            assert driver.poll() is None, (self.folder / f"{self.name}.log").read_text()
            time.sleep(0.01)
        return driver

    def finish(self) -> None:
        (self.folder / "last").touch()
        super().finish()
        (self.folder / "last").unlink()


def test_its_searches_are_the_product_s(tmp_path: Path) -> None:
    survival.prepare(furnished(tmp_path))
    trouble = survival.Trouble(tmp_path, "s", budget=1, steps=0, workers=1)
    done = in_process(
        tmp_path, *trouble.command(), "--initial-trials", "0", "--data", "train", "--eval-data", "eval", "--test-data", "test"
    )
    assert done.returncode == 0, done.stderr
    trouble.look()
    assert set(trouble.seen) == {"float", "8/8/8", "6/6/8", "4/4/8", "first-last-16", "0"}
    assert trouble.figures() == Counter(trials=1, lost=0, run_twice=0, unfinished=0, failed=0)
    assert trouble.command() == ["search", "--study", "s", "--quiet", "--resume"]


@pytest.mark.parametrize("fault", ["none", "lost", "run_twice", "unfinished", "failed", "orphans"])
def test_what_goes_wrong_is_counted(fault: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(survival, "Trouble", Trouble)
    monkeypatch.setattr(survival, "AUTOQ", [sys.executable, "-S", "-c", DRIVER, fault])
    monkeypatch.setattr(survival, "DRIVER_LIVES", 0)
    monkeypatch.setattr(survival, "WORKER_LIVES", 0)
    monkeypatch.setattr(survival, "ORPHANS_AFTER", 0.1 if fault == "orphans" else 20)
    monkeypatch.setattr(sys, "argv", ["survival.py", "--driver-kills", "2", "--worker-kills", "1", "--budget", "4", "--json"])
    survival.main()
    figures = json.loads(capsys.readouterr().out)["figures"]
    counts = {
        "none": {}, "lost": {"lost": 2}, "run_twice": {"run_twice": 3}, "unfinished": {"unfinished": 2}, "failed": {"failed": 2},
        "orphans": {"orphans": 2},
    }[fault]  # fmt: skip
    trials = 8 + counts.get("run_twice", 0) - counts.get("unfinished", 0)
    nothing = dict.fromkeys(("lost", "run_twice", "unfinished", "failed", "orphans"), 0)
    assert figures == {"driver_kills": 2, "worker_kills": 1, "studies": 2, "trials": trials, **nothing, **counts}
    for process in psutil.process_iter(["cmdline"]):
        if process.info["cmdline"] == ["ray::Trainable", "60"]:
            process.kill()
