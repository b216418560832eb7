"""Whole searches, small: Ray, Optuna, OpenVINO, the report; repeated, interrupted, with workers that die.

Where Ray's processes are not what is tested, the search runs in this one.
"""

from __future__ import annotations

import json
import re
import signal
from pathlib import Path
from typing import Any

import pytest

from autoq.study.study import Study
from autoq.system.files import append_line
from autoq.tuning import runner
from tests.searching import BASELINES, OPTIONS, furnished, in_process, run_python

SearchDocument = dict[str, Any]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return furnished(tmp_path_factory.mktemp("search"))


@pytest.fixture(scope="module")
def first(folder: Path, tiny_weights: Path) -> SearchDocument:
    """The document of a search that nothing disturbs; its study is `first`."""
    done = in_process(folder, "search", *OPTIONS, "--weights", str(tiny_weights), "--json", "--study", "first")
    assert done.returncode == 0, done.stderr
    found: SearchDocument = json.loads(done.stdout)
    return found


@pytest.fixture
def another(first: SearchDocument, tiny_weights: Path) -> list[str]:
    """Arguments of another search, with the latencies of the first one."""
    return ["search", *OPTIONS, "--weights", str(tiny_weights), "--latency-table", "studies/first/latency.json"]


def test_budget_baselines_and_front(first: SearchDocument) -> None:
    assert [trial["number"] for trial in first["trials"]] == list(range(8))
    states = [trial["state"] for trial in first["trials"]]
    assert states[:4] == ["complete"] * 4, "seeds train fully"
    assert 2 <= states[4:].count("pruned") <= 4, "of a bracket at most half trains on"
    assert {(trial["state"], trial["steps"]) for trial in first["trials"]} <= {("complete", 16), ("pruned", 2)}
    assert set(first["baselines"]) == BASELINES
    assert 0 < first["initial_trials_alone"]["hypervolume"] <= first["hypervolume"]
    assert [objective["name"] for objective in first["objectives"]] == ["size", "latency", "psnr"]
    assert first["hypervolume"] > 0
    assert first["front"]
    sizes = [entry["values"]["size"] for entry in first["front"]]
    assert sizes == sorted(sizes)


def test_the_front_is_trained_again_on_images_the_search_never_saw(first: SearchDocument) -> None:
    points = {entry.get("name") or f"trial {entry['number']}": entry["values"] for entry in first["front"]}
    replicated = {entry["point"]: entry for entry in first["replication"]["front"]}
    assert replicated.keys() == points.keys()
    for name, entry in replicated.items():
        assert entry["reason"] is None
        assert entry["held_out"]["psnr"]["middle"] != points[name]["psnr"]
        assert (entry["latency"] is None) == (entry["replicated"] == {})
    repeated = {name: entry for name, entry in replicated.items() if entry["replicated"]}
    assert {entry["seeds"] for entry in repeated.values()} == {1}
    assert set(first["recommended"]) == {"smallest", "fastest", "compromise"}
    assert first["recommended"]["smallest"] in repeated, "what a user would take first trains again first"
    for name, entry in repeated.items():
        assert 0 < entry["latency"]["low"] <= entry["latency"]["middle"] <= entry["latency"]["high"]
        assert entry["replicated"]["psnr"]["middle"] == pytest.approx(points[name]["psnr"], abs=1.0)
    every = [trial["values"] for trial in first["trials"] if trial["state"] == "complete"]
    assert min(values["simulation_agreement_db"] for values in (*every, *first["baselines"].values())) >= 40


def test_files_left_behind(folder: Path, first: SearchDocument) -> None:
    study = folder / "studies" / "first"
    assert sorted(path.name for path in study.iterdir()) == [
        "graph.onnx", "latency.json", "latency_again.json", "replications.jsonl", "rungs.jsonl", "sensitivity.json", "study.db", "study.yaml", "trials.jsonl",
    ]  # fmt: skip
    assert len((study / "trials.jsonl").read_text().splitlines()) == 13
    assert len((study / "rungs.jsonl").read_text().splitlines()) == 8
    table = json.loads((study / "latency.json").read_text())
    # head 2 x (body: float or int8, skip8, shared or not) 3 x 2 x 2, and float
    assert len(table["entries"]) == 2 * 3 * 2 * 2 + 1
    assert table["frame"] == [32, 24]
    report = (folder / "reports" / "first.html").read_text()
    assert "trial" in report
    assert "Held-out validation" in report
    assert "<code>autoq export first --pick smallest -o smallest</code>" in report
    assert "Stage sensitivity" in report
    assert "predict the ranking of the initial trials after training with a rank correlation of" in report
    assert "The 4 initial trials reach a hypervolume of" in report
    assert (folder / "reports" / "first.png").read_bytes().startswith(b"\x89PNG")


DISTURBED = """
import contextlib, os, signal, sys, threading
from pathlib import Path

import psutil

from autoq import cli
from autoq.study import study

append, count = study.append_line, 0


def kill_worker():
    # in the midst of its trial: only then its name is that of a method
    while True:
        for child in psutil.Process().children(recursive=True):
            with contextlib.suppress(psutil.NoSuchProcess):
                if " ".join(child.cmdline()).startswith("ray::ResourceTrainable"):
                    return child.kill()


def listen():
    addresses = set()
    for child in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):
            addresses |= {each.laddr.ip for each in child.net_connections("tcp") if each.status == psutil.CONN_LISTEN}
    Path("listening").write_text(" ".join(addresses))


def disturbed(path, document):
    global count
    if path.name == "trials.jsonl":
        disturb(count)
        count += 1
    append(path, document)


study.append_line = disturbed
exec(sys.argv.pop(1))
cli.main()
"""
"""A search that something happens to when it has written so many lines: the first argument defines `disturb(count)`."""

WORKER_KILLED_AND_INTERRUPTED = """
def disturb(count):
    if count == 2:
        listen()
        threading.Thread(target=kill_worker).start()
    if count == 7:
        threading.Timer(0.1, os.kill, (os.getpid(), signal.SIGINT)).start()
"""

KILLED_WITHOUT_RAY = """
from tests.searching import no_ray

here = contextlib.ExitStack()
here.enter_context(no_ray())

def disturb(count):
    if count == 2:
        os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_study_with_a_dead_worker_killed_and_interrupted_ends_as_an_undisturbed_one(
    folder: Path, first: SearchDocument, another: list[str]
) -> None:
    """And trials in workers find what those in the process of the first study found."""
    done = run_python(folder, DISTURBED, WORKER_KILLED_AND_INTERRUPTED, *another, "--study", "cut")
    assert done.returncode == 130, done.stderr
    assert done.stdout.startswith("front of cut")
    assert done.stderr.splitlines()[-1] == "autoq: interrupted; to continue, type autoq search --resume --study cut"
    listening = {*(folder / "listening").read_text().split()}
    assert listening
    assert listening <= {"127.0.0.1", "::ffff:127.0.0.1", "::1"}, "nobody else can reach what Ray starts"
    assert "its worker process died; it runs again" in done.stderr
    assert not re.search("Traceback|ERROR|WARNING", done.stderr), "Ray says nothing of its own"
    done = run_python(folder, DISTURBED, KILLED_WITHOUT_RAY, "search", "--resume", "--study", "cut")
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert 9 <= len(Study.open(folder / "studies" / "cut").records()) < 13, "it was stopped on the way"
    done = in_process(folder, "search", "--resume", "--study", "cut", "--json")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    keys = ("number", "state", "policy", "values", "steps")
    assert [[trial[key] for key in keys] for trial in found["trials"]] == [
        [trial[key] for key in keys] for trial in first["trials"]
    ]
    assert found["baselines"] == first["baselines"]
    assert found["hypervolume"] == first["hypervolume"]


def test_a_complete_study_resumed_runs_nothing(folder: Path, first: SearchDocument) -> None:
    before = (folder / "studies" / "first" / "trials.jsonl").read_bytes()
    done = in_process(folder, "search", "--resume", "--study", "first", "--json", "--budget", "8", "--workers", "1")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["front"] == first["front"]
    assert (folder / "studies" / "first" / "trials.jsonl").read_bytes() == before


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # dropped where it came, and raised again
def test_a_trial_that_takes_too_long_fails_and_the_study_says_so(folder: Path, another: list[str]) -> None:
    done = in_process(
        folder, *another, "--study", "slow", "--budget", "1", "--initial-trials", "0", "--steps", "100000", "--timeout", "0.5"
    )
    assert done.returncode == 1
    last = done.stderr.splitlines()[-1]
    assert last == "autoq: study 'slow': all 1 trials failed; the last: exceeded the time limit of 0.5 s per trial (--timeout)"


def test_bounds_hold_on_the_front_and_what_nothing_keeps_ends_with_the_closest(
    folder: Path, first: SearchDocument, another: list[str]
) -> None:
    largest = first["baselines"]["8/8/8"]["size"]
    bounded = [*another, "--budget", "2", "--steps", "4", "--initial-trials", "0"]
    done = in_process(folder, *bounded, "--study", "bound", "--constraint", f"size<={largest - 1:.0f}B", "--json")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["front"]
    assert all(entry["values"]["size"] < largest for entry in found["front"])
    assert found["baselines"]["float"]["size"] >= largest
    done = in_process(folder, *bounded, "--study", "impossible", "--constraint", "size<=1B", "--constraint", "psnr_drop<=50")
    assert done.returncode == 1
    records = Study.open(folder / "studies" / "impossible").records()
    smallest = min(record.values["size"] for record in records if record.state == "complete")
    last = done.stderr.splitlines()[-1]
    assert last.startswith("autoq: study 'impossible': no point keeps size<=1B, psnr_drop<=50; the closest, ")
    assert f"reaches size {smallest:.6g}, psnr_drop " in last


def test_what_no_worker_can_prepare_ends_the_search_and_nothing_counts_as_failed(
    folder: Path, another: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runner, "save_graph", lambda graph, path: path.write_bytes(b"no graph"))
    done = in_process(folder, *another, "--study", "unready")
    assert (done.returncode, done.stdout) == (1, "")
    last = done.stderr.splitlines()[-1]
    assert last.startswith("autoq: study 'unready': failed 3 times in a row with one cause: StudyError")
    assert last.endswith("; what has finished is kept, remove the cause and type autoq search --resume --study unready")
    assert "Traceback" not in done.stderr
    assert Study.open(folder / "studies" / "unready").records() == []


NO_SPACE_LEFT = "cannot write '{}': No space left on device; finished trials are kept; free some space, then type autoq search --resume --study {}"


def test_a_full_disk_ends_the_search_with_one_line(folder: Path, another: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    append, written = append_line, list[Path]()

    def disk(path: Path, document: Any) -> None:
        if path.name == "trials.jsonl":
            if len(written) == 3:
                raise OSError(28, "No space left on device", str(path))
            written.append(path)
        append(path, document)

    monkeypatch.setattr("autoq.study.study.append_line", disk)
    done = in_process(folder, *another, "--study", "full", "--budget", "2", "--steps", "4", "--quiet")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == f"autoq: {NO_SPACE_LEFT.format('studies/full/trials.jsonl', 'full')}\n"
    assert len(Study.open(folder / "studies" / "full").records()) == 3


def test_an_existing_study_is_refused(folder: Path, another: list[str]) -> None:
    done = in_process(folder, *another, "--study", "first")
    assert done.returncode == 2
    assert (
        done.stderr.strip().splitlines()[-1].endswith("exists already; add --resume to continue it, or give another --study NAME")
    )


def test_a_report_is_rebuilt_from_text_files_without_torch(folder: Path, first: SearchDocument) -> None:
    code = """
import sys

class WithoutTorch:
    def find_spec(self, name, path=None, target=None):
        if name.partition('.')[0] == 'torch':
            raise ModuleNotFoundError(name)

sys.meta_path.insert(0, WithoutTorch())
sys.argv = ['autoq', 'report', 'first', '-o', 'again']
from autoq.cli import main
main()
"""
    done = run_python(folder, code)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["again/first.html", "again/first.png"]
    done = in_process(folder, "report", "first", "--compare", "first", "-o", "both")
    assert done.returncode == 0, done.stderr
    page = (folder / "both" / "first.html").read_text()
    assert "0% of this front&#39;s points are dominated by first; 0% of its points are dominated by this study." in page


def test_what_serves_as_low_resolution_inputs_is_said(folder: Path, tiny_weights: Path) -> None:
    begun = [each for each in OPTIONS if each not in ("--test-data", "test")]
    options = ["--images", "lr", "--budget", "1", "--initial-trials", "0", "--steps", "0", "--replications", "0"]
    done = in_process(folder, "search", *begun, *options, "--weights", str(tiny_weights), "--study", "blind")
    assert done.returncode == 0, done.stderr
    assert "bundled photographs serve as low-resolution inputs where no folder is given" in done.stdout + done.stderr
