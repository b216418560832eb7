"""A whole search, small: Ray, Optuna, OpenVINO, the report, twice."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

SPACE = """
roles:
  weight: {bits: [4, 8, 16], quantizer: [minmax, lsq], clipping: [minmax, mse]}
  activation: {bits: [4, 8], quantizer: lsq, clipping: minmax}
  skip: {bits: 8, quantizer: lsq, clipping: minmax}
"""


def autoq(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", "from autoq.cli import main; main()", *arguments]
    environment = {**os.environ, "TORCH_HOME": str(folder / "no-metrics")}
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False, env=environment, timeout=300)


@pytest.fixture(scope="module")
def searched(tmp_path_factory: pytest.TempPathFactory, tiny_weights: Path) -> tuple[Path, list[dict]]:  # type: ignore[type-arg]
    folder = tmp_path_factory.mktemp("search")
    (folder / "space.yaml").write_text(SPACE)
    common = [
        "search", "--model", "srresnet", "--scale", "2", "--weights", str(tiny_weights), "--space", "space.yaml", "--budget", "5",
        "--steps", "2", "--workers", "1", "--frame", "32x24", "--json",
    ]  # fmt: skip
    documents = []
    for name, more in (("first", []), ("again", ["--latency-table", "studies/first/latency.json"])):
        done = autoq(folder, *common, "--study", name, *more)
        assert done.returncode == 0, done.stderr
        documents.append(json.loads(done.stdout))
    return folder, documents


def test_budget_baselines_and_front(searched) -> None:  # type: ignore[no-untyped-def]
    _, (found, _) = searched
    assert [trial["number"] for trial in found["trials"]] == [0, 1, 2, 3, 4]
    assert {trial["state"] for trial in found["trials"]} == {"complete"}
    assert {trial["steps"] for trial in found["trials"]} == {2}
    assert set(found["baselines"]) == {"float", "8/8/8", "6/6/8", "4/4/8"}
    assert [objective["name"] for objective in found["objectives"]] == ["size", "latency", "psnr"]
    assert found["hypervolume"] > 0
    assert found["front"]
    sizes = [entry["values"]["size"] for entry in found["front"]]
    assert sizes == sorted(sizes)


def test_a_repeated_study_is_equal(searched) -> None:  # type: ignore[no-untyped-def]
    _, (first, again) = searched
    keys = ("number", "state", "policy", "values", "steps")
    assert [[trial[key] for key in keys] for trial in first["trials"]] == [
        [trial[key] for key in keys] for trial in again["trials"]
    ]
    assert first["hypervolume"] == again["hypervolume"]


def test_files_left_behind(searched) -> None:  # type: ignore[no-untyped-def]
    folder, _ = searched
    study = folder / "studies" / "first"
    assert sorted(path.name for path in study.iterdir()) == ["graph.onnx", "latency.json", "study.db", "study.yaml", "trials.jsonl"]
    assert len((study / "trials.jsonl").read_text().splitlines()) == 9
    table = json.loads((study / "latency.json").read_text())
    # head 2 x (body: float or int8, skip8, shared or not) 3 x 2 x 2, and float
    assert len(table["entries"]) == 2 * 3 * 2 * 2 + 1
    assert table["frame"] == [32, 24]
    report = (folder / "reports" / "first.html").read_text()
    assert "trial" in report
    assert (folder / "reports" / "first.png").read_bytes().startswith(b"\x89PNG")


def test_an_existing_study_is_refused(searched) -> None:  # type: ignore[no-untyped-def]
    folder, _ = searched
    done = autoq(folder, "search", "--model", "srresnet", "--budget", "1", "--study", "first")
    assert done.returncode == 2
    assert done.stderr.strip().splitlines()[-1].endswith("exists already; give another --study NAME, or remove the folder")


def test_a_report_is_rebuilt_from_text_files_without_torch(searched) -> None:  # type: ignore[no-untyped-def]
    folder, _ = searched
    code = (
        "import sys; sys.modules['torch'] = None; sys.argv = ['autoq', 'report', 'first', '-o', 'again']\n"
        "from autoq.cli import main; main()"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["again/first.html", "again/first.png"]
