"""Whole searches, small: Ray, Optuna, OpenVINO, the report; repeated, interrupted, with workers that die."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from autoq.study.study import Study

SPACE = """
roles:
  weight: {bits: [4, 8, 16], quantizer: [minmax, lsq], clipping: [minmax, mse]}
  activation: {bits: [4, 8], quantizer: lsq, clipping: minmax}
  skip: {bits: 8, quantizer: lsq, clipping: minmax}
"""


BASELINES = {"float", "8/8/8", "6/6/8", "4/4/8", "first-last-16"}

OPTIONS = [
    "--model", "srresnet", "--scale", "2", "--space", "space.yaml", "--budget", "8", "--steps", "16", "--workers", "1", "--threads", "1",
    "--frame", "32x24", "--replications", "1",
]  # fmt: skip


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-c", "from autoq.cli import main; main()", *arguments]


def environment(folder: Path) -> dict[str, str]:
    return {**os.environ, "TORCH_HOME": str(folder / "no-metrics")}


def autoq(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command(*arguments), cwd=folder, capture_output=True, text=True, check=False, env=environment(folder), timeout=300
    )


def start(folder: Path, *arguments: str) -> subprocess.Popen[str]:
    pipe = subprocess.PIPE
    return subprocess.Popen(command(*arguments), cwd=folder, stdout=pipe, stderr=pipe, text=True, env=environment(folder))


def wait_for_lines(search: subprocess.Popen[str], path: Path, count: int) -> None:
    """Until a running search has finished `count` baselines and trials: lines of its trials.jsonl."""
    while not path.is_file() or path.read_bytes().count(b"\n") < count:
        assert search.poll() is None, search.communicate()[1]
        time.sleep(0.01)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("search")
    (folder / "space.yaml").write_text(SPACE)
    return folder


@pytest.fixture(scope="module")
def first(folder: Path, tiny_weights: Path) -> dict:  # type: ignore[type-arg]
    """The document of a search that nothing disturbs, with one worker; its study is `first`."""
    done = autoq(folder, "search", *OPTIONS, "--weights", str(tiny_weights), "--json", "--study", "first")
    assert done.returncode == 0, done.stderr
    found: dict = json.loads(done.stdout)  # type: ignore[type-arg]
    return found


def test_budget_baselines_and_front(first: dict) -> None:  # type: ignore[type-arg]
    assert [trial["number"] for trial in first["trials"]] == list(range(8))
    states = [trial["state"] for trial in first["trials"]]
    assert states[:4] == ["complete"] * 4, "seeds train fully"
    assert 2 <= states[4:].count("pruned") <= 4, "of a bracket at most half trains on"
    assert {(trial["state"], trial["steps"]) for trial in first["trials"]} <= {("complete", 16), ("pruned", 2)}
    assert set(first["baselines"]) == BASELINES
    assert 0 < first["seeds_alone"]["hypervolume"] <= first["hypervolume"]
    assert [objective["name"] for objective in first["objectives"]] == ["size", "latency", "psnr"]
    assert first["hypervolume"] > 0
    assert first["front"]
    sizes = [entry["values"]["size"] for entry in first["front"]]
    assert sizes == sorted(sizes)


def test_the_front_is_trained_again_on_images_the_search_never_saw(first: dict) -> None:  # type: ignore[type-arg]
    points = {entry.get("name") or f"trial {entry['number']}": entry["values"] for entry in first["front"]}
    confirmed = {entry["point"]: entry for entry in first["confirmed"]["front"]}
    assert confirmed.keys() == points.keys()
    for name, entry in confirmed.items():
        assert entry["reason"] is None
        assert entry["held_out"]["psnr"]["middle"] != points[name]["psnr"]
        assert (entry["latency"] is None) == (entry["replicated"] == {})
    repeated = {name: entry for name, entry in confirmed.items() if entry["replicated"]}
    assert {entry["seeds"] for entry in repeated.values()} == {1}
    assert set(first["recommended"]) == {"smallest", "fastest", "compromise"}
    assert first["recommended"]["smallest"] in repeated, "what a user would take first trains again first"
    for name, entry in repeated.items():
        assert 0 < entry["latency"]["low"] <= entry["latency"]["middle"] <= entry["latency"]["high"]
        assert entry["replicated"]["psnr"]["middle"] == pytest.approx(points[name]["psnr"], abs=1.0)
    every = [trial["values"] for trial in first["trials"] if trial["state"] == "complete"]
    assert min(values["simulation_agreement_db"] for values in (*every, *first["baselines"].values())) >= 40


def test_files_left_behind(folder: Path, first: dict) -> None:  # type: ignore[type-arg]
    study = folder / "studies" / "first"
    assert sorted(path.name for path in study.iterdir()) == [
        "confirmed.jsonl", "graph.onnx", "latency.json", "latency_again.json", "rungs.jsonl", "sensitivity.json", "study.db", "study.yaml", "trials.jsonl",
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


def test_a_study_interrupted_twice_ends_as_an_uninterrupted_one(folder: Path, first: dict, tiny_weights: Path) -> None:  # type: ignore[type-arg]
    table = "studies/first/latency.json"
    lines = folder / "studies" / "cut" / "trials.jsonl"
    search = start(folder, "search", *OPTIONS, "--weights", str(tiny_weights), "--study", "cut", "--latency-table", table)
    wait_for_lines(search, lines, 7)
    search.kill()
    search.communicate()
    assert search.returncode == -signal.SIGKILL
    search = start(folder, "search", "--resume", "--study", "cut")
    wait_for_lines(search, lines, 9)
    search.send_signal(signal.SIGINT)
    out, err = search.communicate(timeout=60)
    assert search.returncode == 130
    assert out.startswith("front of cut")
    assert err.splitlines()[-1] == "autoq: interrupted; to continue, type autoq search --resume --study cut"
    assert "Traceback" not in err
    assert len(Study.open(folder / "studies" / "cut").records()) < 13, "it was stopped on the way"
    done = autoq(folder, "search", "--resume", "--study", "cut", "--json")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    keys = ("number", "state", "policy", "values", "steps")
    assert [[trial[key] for key in keys] for trial in found["trials"]] == [
        [trial[key] for key in keys] for trial in first["trials"]
    ]
    assert found["baselines"] == first["baselines"]
    assert found["hypervolume"] == first["hypervolume"]


def test_a_complete_study_resumed_runs_nothing(folder: Path, first: dict) -> None:  # type: ignore[type-arg]
    before = (folder / "studies" / "first" / "trials.jsonl").read_bytes()
    done = autoq(folder, "search", "--resume", "--study", "first", "--json", "--budget", "8", "--workers", "1")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["front"] == first["front"]
    assert (folder / "studies" / "first" / "trials.jsonl").read_bytes() == before


def test_a_trial_whose_worker_dies_runs_again_and_the_output_stays_clean(
    folder: Path,
    first: dict,
    tiny_weights: Path,  # type: ignore[type-arg]
) -> None:
    arguments = [*OPTIONS, "--weights", str(tiny_weights), "--study", "deaths", "--latency-table", "studies/first/latency.json"]
    search = start(folder, "search", *arguments, "--json")
    wait_for_lines(search, folder / "studies" / "deaths" / "trials.jsonl", 6)
    listening = set()
    for child in psutil.Process(search.pid).children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):
            listening |= {each.laddr.ip for each in child.net_connections("tcp") if each.status == psutil.CONN_LISTEN}
    assert listening
    assert listening <= {"127.0.0.1", "::ffff:127.0.0.1", "::1"}, "nobody else can reach what Ray starts"
    killed = False
    while not killed and search.poll() is None:
        for child in psutil.Process(search.pid).children(recursive=True):
            if not killed and " ".join(child.cmdline()).startswith("ray::ResourceTrainable"):
                child.kill()
                killed = True
    out, err = search.communicate(timeout=200)
    assert killed
    assert search.returncode == 0, err
    assert "its worker process died; it runs again" in err
    assert "Traceback" not in err
    assert [trial["values"] for trial in json.loads(out)["trials"]] == [trial["values"] for trial in first["trials"]]


def test_a_trial_that_takes_too_long_fails_and_the_study_says_so(folder: Path, first: dict, tiny_weights: Path) -> None:  # type: ignore[type-arg]
    arguments = [*OPTIONS, "--weights", str(tiny_weights), "--study", "slow", "--latency-table", "studies/first/latency.json"]
    arguments[arguments.index("--budget") + 1] = "1"
    arguments[arguments.index("--steps") + 1] = "100000"
    done = autoq(folder, "search", *arguments, "--timeout", "0.5")
    assert done.returncode == 1
    last = done.stderr.splitlines()[-1]
    assert last == "autoq: study 'slow': all 1 trials failed; the last: exceeded the time limit of 0.5 s per trial (--timeout)"


def test_bounds_hold_on_the_front_and_what_nothing_keeps_ends_with_the_closest(
    folder: Path, first: dict, tiny_weights: Path
) -> None:  # type: ignore[type-arg]
    arguments = [*OPTIONS, "--weights", str(tiny_weights), "--latency-table", "studies/first/latency.json"]
    largest = first["baselines"]["8/8/8"]["size"]
    arguments[arguments.index("--budget") + 1] = "2"
    done = autoq(folder, "search", *arguments, "--study", "bound", "--constraint", f"size<={largest - 1:.0f}B", "--json")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["front"]
    assert all(entry["values"]["size"] < largest for entry in found["front"])
    assert found["baselines"]["float"]["size"] >= largest
    done = autoq(folder, "search", *arguments, "--study", "impossible", "--constraint", "size<=1B", "--constraint", "psnr_drop<=50")
    assert done.returncode == 1
    records = Study.open(folder / "studies" / "impossible").records()
    smallest = min(record.values["size"] for record in records if record.state == "complete")
    last = done.stderr.splitlines()[-1]
    assert last.startswith("autoq: study 'impossible': no point keeps size<=1B, psnr_drop<=50; the closest, ")
    assert f"reaches size {smallest:.6g}, psnr_drop " in last


def test_what_no_worker_can_prepare_ends_the_search_and_nothing_counts_as_failed(
    folder: Path,
    first: dict,
    tiny_weights: Path,  # type: ignore[type-arg]
) -> None:
    arguments = [*OPTIONS, "--weights", str(tiny_weights), "--study", "unready", "--latency-table", "studies/first/latency.json"]
    code = """
from autoq import cli
from autoq.tuning import runner

runner.save_graph = lambda graph, path: path.write_bytes(b"no graph")
cli.main()
"""
    done = subprocess.run(
        [sys.executable, "-c", code, "search", *arguments],
        cwd=folder, capture_output=True, text=True, check=False, env=environment(folder), timeout=200,
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (1, "")
    last = done.stderr.splitlines()[-1]
    assert last.startswith("autoq: study 'unready': failed 3 times in a row with one cause: DecodeError")
    assert last.endswith("; what has finished is kept, remove the cause and type autoq search --resume --study unready")
    assert "Traceback" not in done.stderr
    assert Study.open(folder / "studies" / "unready").records() == []


SICK = """
import os, sys
from pathlib import Path

from autoq.networks.srresnet import SRResNet

SICK = Path(__file__).with_name("sick")


def network():
    if Path(sys.argv[0]).name == "default_worker.py" and SICK.is_file():
        SICK.unlink()
        Path(__file__).with_name("process").write_text(str(os.getpid()))
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 64 bytes")
    import torch

    torch.manual_seed(0)
    return SRResNet(scale=2, blocks=1, features=8)
"""

SICK_SPACE = (
    SPACE
    + """
layers:
  all: ["*"]
"""
)


def test_a_worker_that_cannot_work_is_replaced_and_every_trial_ends(folder: Path) -> None:
    (folder / "ailing.py").write_text(SICK)
    (folder / "sick").touch()
    (folder / "ailing.yaml").write_text(SICK_SPACE)
    done = subprocess.run(
        command(
            "search", "--model", "ailing:network", "--scale", "2", "--space", "ailing.yaml", "--budget", "3", "--steps", "4",
            "--workers", "1", "--threads", "1", "--frame", "32x24", "--replications", "0", "--study", "ailing", "--objectives", "size,psnr", "--json",
        ),
        cwd=folder, capture_output=True, text=True, check=False,
        env={**environment(folder), "PYTHONPATH": os.pathsep.join([str(folder), os.environ.get("PYTHONPATH", "")])}, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    (note,) = [line for line in done.stderr.splitlines() if line.startswith("float: ")]
    assert "RuntimeError: DefaultCPUAllocator: can't allocate memory: you tried to allocate 64 bytes" in note
    assert note.endswith("; it runs again in a new process")
    assert "Traceback" not in done.stderr
    found = json.loads(done.stdout)
    assert [trial["state"] for trial in found["trials"]] == ["complete"] * 3
    assert set(found["baselines"]) == BASELINES
    assert not psutil.pid_exists(int((folder / "process").read_text()))


def test_a_full_disk_ends_the_search_with_one_line_and_loses_nothing(folder: Path, first: dict, tiny_weights: Path) -> None:  # type: ignore[type-arg]
    code = """
from autoq import cli
from autoq.study import study

append, written = study.append_line, []

def disk(path, document):
    if path.name == "trials.jsonl":
        if len(written) == 7:
            raise OSError(28, "No space left on device", str(path))
        written.append(path)
    append(path, document)

study.append_line = disk
cli.main()
"""
    arguments = [*OPTIONS, "--weights", str(tiny_weights), "--study", "full", "--latency-table", "studies/first/latency.json"]
    done = subprocess.run(
        [sys.executable, "-c", code, "search", *arguments, "--quiet"],
        cwd=folder, capture_output=True, text=True, check=False, env=environment(folder), timeout=200,
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == (
        "autoq: cannot write 'studies/full/trials.jsonl': No space left on device;"
        " finished trials are kept; free some space, then type autoq search --resume --study full\n"
    )
    kept = {
        record.number: record.values for record in Study.open(folder / "studies" / "full").records() if record.number is not None
    }
    assert len(kept) >= 4
    assert all(values == first["trials"][number]["values"] for number, values in kept.items())


def test_an_existing_study_is_refused(folder: Path, first: dict) -> None:  # type: ignore[type-arg]
    done = autoq(folder, "search", "--model", "srresnet", "--budget", "1", "--study", "first")
    assert done.returncode == 2
    assert (
        done.stderr.strip().splitlines()[-1].endswith("exists already; add --resume to continue it, or give another --study NAME")
    )


def test_a_report_is_rebuilt_from_text_files_without_torch(folder: Path, first: dict) -> None:  # type: ignore[type-arg]
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
    done = subprocess.run([sys.executable, "-c", code], cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["again/first.html", "again/first.png"]
    done = autoq(folder, "report", "first", "--compare", "first", "-o", "both")
    assert done.returncode == 0, done.stderr
    page = (folder / "both" / "first.html").read_text()
    assert "0% of the points here are dominated by points there, 0% of those there by points here" in page
