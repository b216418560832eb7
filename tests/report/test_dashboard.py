"""Optuna's dashboard on a study: over HTTP, and as a browser shows it while the search runs."""

from __future__ import annotations

import json
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from autoq.config.policy import Policy
from autoq.config.spec import TrialResult
from autoq.config.structure import Structure
from autoq.study.results import Results
from autoq.study.study import Study
from tests.searching import command, environment
from tests.study.test_resume import make, worth

ROOT = Path(__file__).parents[2]
STRUCTURE = Structure(stages=("body", "upsampling"), integer=("body",), skips=("body",))


@contextmanager
def dashboard(folder: Path, study: str) -> Iterator[str]:
    """The address of a served study's page."""
    arguments = command("dashboard", study, "--port", "0")
    with subprocess.Popen(arguments, cwd=folder, stderr=subprocess.PIPE, text=True, env=environment(folder)) as server:
        try:
            assert server.stderr is not None
            line = server.stderr.readline()
            assert line.startswith("http://127.0.0.1:"), line + server.stderr.read()
            yield line.split()[0]
        finally:
            server.send_signal(signal.SIGINT)
            assert server.wait(30) == 0


def get(url: str, **headers: str) -> dict:
    with urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=30) as answer:
        found: dict = json.load(answer)
        return found


def shown(chromium: str, url: str, profile: Path) -> str:
    """The text of a page after its scripts ran."""
    options = ["--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--virtual-time-budget=8000"]
    done = subprocess.run(
        [chromium, *options, f"--user-data-dir={profile}", "--dump-dom", url],
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    )
    return re.sub(r"\s+", " ", re.sub(r"<[^>]*>", " ", re.sub(r"<(style|script).*?</\1>", "", done.stdout, flags=re.DOTALL)))


@contextmanager
def running(folder: Path) -> Iterator[Study]:
    """A study of made-up trials that goes on meanwhile, several trials a second."""
    study, over = make(folder, "random", 500), threading.Event()
    exact = TrialResult(state="complete", values={"size": 31744.0, "latency": 5.0, "psnr": 30.0})
    study.add_baseline("float", Policy(()), exact, Structure())

    def go_on() -> None:
        while not over.wait(0.2):
            asked = study.ask()
            study.tell(asked.number, asked.policy, worth(asked.policy, asked.number), STRUCTURE)

    search = threading.Thread(target=go_on)
    search.start()
    try:
        while len(study.records()) < 10:
            assert search.is_alive()
            time.sleep(0.1)
        yield study
        assert search.is_alive(), "the study was running all the while"
    finally:
        over.set()
        search.join()
        study.close()


def test_a_running_study_in_a_browser(tmp_path: Path, chromium: str) -> None:
    folder = tmp_path / "studies" / "live"
    with running(folder) as study, dashboard(tmp_path, "live") as url:
        before = trials_on_front(folder)
        page = shown(chromium, url, tmp_path / "profile")
        after = trials_on_front(folder)
        analytics = shown(chromium, f"{url}/analytics", tmp_path / "profile")
        trial = shown(chromium, f"{url}/trials?numbers=0", tmp_path / "profile")
    best = set(re.findall(r"Trial \d+(?= Objective Values)", page))
    assert best & (before | after), (best, before, after)
    assert "baseline float size 31 KiB, latency 5.0 ms, psnr 30.00 dB" in page
    for name in ("size (bytes)", "latency (ms)", "psnr (dB)"):
        assert name in analytics
    record = next(record for record in study.records() if record.number == 0)
    assert f"policy {record.label}" in trial
    assert "structure body int8+skip, upsampling float" in trial


def trials_on_front(folder: Path) -> set[str]:
    """As Optuna sees it, which knows no baselines."""
    study = Study.open(folder)
    trials = [record for record in study.records() if record.source == "trial"]
    return {f"Trial {record.number}" for record in Results(trials, study.spec.objectives).front}


@pytest.fixture(scope="module")
def copied(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, str]]:
    """A folder with a study that came without its database, and the address of its page."""
    folder = tmp_path_factory.mktemp("copied")
    shutil.copytree(
        ROOT / "studies" / "srgan-x4", folder / "studies" / "srgan-x4", ignore=shutil.ignore_patterns("*.db", "ray", "graph.onnx")
    )
    with dashboard(folder, "srgan-x4") as url:
        yield folder, url


def test_a_study_that_came_without_its_database_is_for_reading_only(copied: tuple[Path, str]) -> None:
    folder, url = copied
    base = url.partition("/dashboard")[0]
    study = get(f"{base}/api/studies/0?after=0")
    assert study["objective_names"] == ["size (bytes)", "latency (ms)", "fidelity (dB)"]
    assert study["directions"] == ["minimize", "minimize", "maximize"]
    assert len(study["trials"]) == 50
    best = {f"Trial {trial['number']}" for trial in study["best_trials"]}
    assert trials_on_front(ROOT / "studies" / "srgan-x4") <= best, "of equal points autoq keeps one, Optuna all"
    with pytest.raises(urllib.error.HTTPError, match="403"):
        urllib.request.urlopen(urllib.request.Request(f"{base}/api/studies", method="POST", data=b"{}"), timeout=30)
    with pytest.raises(urllib.error.HTTPError, match="403"):
        get(f"{base}/api/studies", Host="elsewhere.example:80")
    assert not (folder / "studies" / "srgan-x4" / "study.db").exists()


def test_a_copied_study_is_shown_from_its_records(tmp_path: Path) -> None:
    shutil.copytree(
        ROOT / "studies" / "srgan-x4", tmp_path / "studies" / "first", ignore=shutil.ignore_patterns("ray", "graph.onnx")
    )
    Study.resume(tmp_path / "studies" / "first").close()
    shutil.copytree(tmp_path / "studies" / "first", tmp_path / "studies" / "copy")
    with dashboard(tmp_path, "copy") as url:
        study = get(f"{url.partition('/dashboard')[0]}/api/studies/0?after=0")
        assert (study["name"], len(study["trials"])) == ("copy", 50)


def test_a_port_that_is_taken_is_one_line(copied: tuple[Path, str]) -> None:
    folder, url = copied
    port = url.split(":")[2].partition("/")[0]
    done = subprocess.run(command("dashboard", "srgan-x4", "--port", port), cwd=folder, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == f"autoq: --port {port}: Address already in use; type `--port 0` for a free port\n"


def test_the_dashboard_needs_neither_torch_nor_ray(tmp_path: Path) -> None:
    code = "import sys; sys.modules['torch'] = sys.modules['ray'] = None; import autoq.report.dashboard"
    subprocess.run([sys.executable, "-c", code], check=True)
