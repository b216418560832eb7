"""`autoq.search(model=net)`: a network from Python is searched, taken up again and exported, from the object alone."""

from __future__ import annotations

import dataclasses
import json
import os
import pickle
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from torch import nn

import autoq
from autoq.api.studies import _create
from autoq.config.events import Events
from autoq.config.options import SearchOptions
from autoq.errors import InputError, StudyError
from autoq.networks import given, staged_model
from autoq.networks.given import give
from autoq.tuning.options import default_scale, model_name
from autoq.tuning.workers import UserCode
from tests.conftest import small_image

SCRIPT = """
import json, os, sys
from pathlib import Path
import torch
from torch import nn
import autoq
from tests.searching import no_ray

SHARED = 8
SICK = Path("sick").absolute()

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.head, self.tail, self.shuffle = nn.Conv2d(3, SHARED, 3, padding=1), nn.Conv2d(SHARED, 12, 3, padding=1), nn.PixelShuffle(2)
    def __setstate__(self, state):
        if Path(sys.argv[0]).name == "default_worker.py" and SICK.is_file():
            SICK.rename("process").write_text(str(os.getpid()))
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 64 bytes")
        super().__setstate__(state)
    def forward(self, x):
        print("forward")
        return self.shuffle(self.tail(torch.relu(self.head(x))))

class Notes(autoq.Events):
    notes = []
    stop = True
    def note(self, text):
        self.notes.append(text)
    def finished(self, record):
        if self.stop and record.source == "trial":
            raise KeyboardInterrupt

if __name__ == "__main__":
    torch.manual_seed(3)
    net, notes, study = Net(), Notes(), sys.argv[1]
    options = dict(data="train", eval_data="eval", test_data="test", objectives="size,latency,psnr", budget=2, steps=2, initial_trials=0, replications=0, workers=1, threads=1, frame="32x24", stopping=False)
    try:
        with no_ray():
            autoq.search(net, study=study, events=notes, **options)
    except KeyboardInterrupt:
        first = [record.number for record in autoq.open_study(study).records() if record.number is not None]
    weights = net.state_dict()
    net = Net()
    net.load_state_dict(weights)
    notes.stop = False
    SICK.touch()
    found = autoq.search(model=net, study=study, resume=True, events=notes)
    exported = autoq.export_point(study, "out", trial=0, model=net)
    judged = autoq.evaluate(model=net, data="eval", metrics="psnr")["metrics"]["psnr"]
    torch.save(weights, "weights.pth")
    print(json.dumps({"first": first, "notes": notes.notes, "command": found.environment["command"], "judged": judged,
        "trials": [(r.number, r.name, r.state, r.reason, r.values.get("psnr")) for r in found.records()], "file": str(exported.file)}))
"""


class Net(nn.Module):
    """What the script has, here."""

    def __init__(self) -> None:
        super().__init__()
        self.head, self.tail, self.shuffle = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 12, 3, padding=1), nn.PixelShuffle(2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.shuffle(self.tail(torch.relu(self.head(x))))


@pytest.fixture(scope="module")
def searched(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """A search of a network of a script's own, interrupted after its first trial, continued in a worker and exported there."""
    folder = tmp_path_factory.mktemp("given")
    small_image(folder / "train", 0)
    small_image(folder / "eval", 1)
    small_image(folder / "test", 2)
    (folder / "script.py").write_text(SCRIPT)
    environment = {**os.environ, "TORCH_HOME": str(folder / "no-metrics"), "PYTHONPATH": str(Path(__file__).parents[1])}
    done = subprocess.run(
        [sys.executable, "script.py", str(folder / "study")], cwd=folder, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert "ERROR" not in done.stderr, "Ray says nothing of its own"
    return folder, json.loads(done.stdout)


def test_a_search_is_interrupted_and_continued(searched: tuple[Path, dict[str, Any]]) -> None:
    folder, found = searched
    assert found["first"] == [0]
    trials = [trial for trial in found["trials"] if trial[0] is not None]
    assert [(number, state) for number, _, state, *_ in trials] == [(0, "complete"), (1, "complete")], trials
    exact = next(value for _, name, _, _, value in found["trials"] if name == "float")
    assert found["judged"] == pytest.approx(exact, abs=1e-4)
    assert found["notes"][0] == (
        "stages found in the network: feature_extraction (1 layer), reconstruction (1 layer); stages=... overrides"
    )
    assert found["command"].startswith("autoq.search(net, data='")
    assert "objectives=('size', 'latency', 'psnr'), budget=2, initial_trials=0, replications=0" in found["command"]
    assert Path(folder / found["file"]).is_file()


def test_a_worker_that_cannot_work_is_replaced(searched: tuple[Path, dict[str, Any]]) -> None:
    folder, found = searched
    (note,) = [text for text in found["notes"] if "DefaultCPUAllocator" in text]
    assert note == (
        "trial 1: RuntimeError: DefaultCPUAllocator: can't allocate memory: you tried to allocate 64 bytes; it runs again in a"
        " new process"
    )
    assert not psutil.pid_exists(int((folder / "process").read_text()))


def test_no_pickle_of_the_network_is_left(searched: tuple[Path, dict[str, Any]]) -> None:
    names = {path.name for path in (searched[0] / "study").rglob("*")}
    assert not [name for name in names if name.endswith((".pkl", ".pickle", ".pth", ".pt"))]
    assert "ray" not in names


def test_without_the_network_one_line_says_what_to_call(
    searched: tuple[Path, dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(given, "_GIVEN", {})
    study = str(searched[0] / "study")
    message = (
        f"study '{study}': its network was given from Python; call autoq.search(model=net, study='{study}', resume=True),"
        f" or autoq.export_point('{study}', FOLDER, model=net, ...)"
    )
    for call in (
        lambda: autoq.search(study=study, resume=True),
        lambda: autoq.export_point(study, searched[0] / "again", trial=0),
    ):
        with pytest.raises(StudyError) as error:
            call()
        assert str(error.value) == message


def test_another_network_is_refused(searched: tuple[Path, dict[str, Any]]) -> None:
    study, other = str(searched[0] / "study"), Net()
    changed = f"study '{study}': the network has changed since the study began; restore it, or give another --study"
    with pytest.raises(StudyError) as error:
        autoq.search(model=other, study=study, resume=True)
    assert str(error.value) == changed
    with pytest.raises(StudyError) as error:
        autoq.export_point(study, searched[0] / "again", trial=0, model=other)
    assert str(error.value) == changed
    with pytest.raises(StudyError, match="was started with --model object:Net, given object:Sequential"):
        autoq.search(model=nn.Sequential(nn.Conv2d(3, 3, 1)), study=study, resume=True)


def test_the_same_weights_in_another_process_are_the_same_network(searched: tuple[Path, dict[str, Any]]) -> None:
    folder, found = searched
    network = Net()
    network.load_state_dict(torch.load(folder / "weights.pth", weights_only=True))
    again = autoq.search(model=network, study=str(folder / "study"), resume=True)
    assert [record.number for record in again.records() if record.number is not None] == [0, 1]
    assert len(again.records()) == len(found["trials"])


# ---------------------------------------------------------------- names


def make(scale: int = 2) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 3 * scale**2, 3, padding=1), nn.PixelShuffle(scale))


@pytest.mark.parametrize(
    ("model", "name", "scale"),
    [
        (make(3), "object:Sequential", 3),
        (make, "object:make", 2),
        (lambda: make(4), "object:lambda", 4),
        (nn.DataParallel(make(2)), "object:DataParallel", 2),
    ],
)
def test_a_module_or_a_function_has_a_name_and_a_scale(model: Any, name: str, scale: int) -> None:
    assert model_name(model) == name
    assert default_scale(name) == scale
    network, stages = staged_model(name, scale)
    assert network(torch.zeros(1, 3, 5, 7)).shape == (1, 3, 5 * scale, 7 * scale)
    assert not stages


def test_a_function_that_takes_the_scale_is_given_it() -> None:
    assert staged_model(give(make), 3)[0](torch.zeros(1, 3, 5, 7)).shape == (1, 3, 15, 21)


def test_what_is_trained_afterwards_does_not_change_it() -> None:
    network = Net()
    name, before = give(network), network.head.weight.detach().clone()
    with torch.no_grad():
        network.head.weight.zero_()
    assert torch.equal(staged_model(name, 2)[0].head.weight, before)


@pytest.mark.parametrize("model", [3, torch.zeros(1), {"net": 1}])
def test_what_is_no_module_is_refused(model: Any) -> None:
    with pytest.raises(InputError) as error:
        autoq.search(model=model)
    assert str(error.value) == (
        f"model: got {type(model).__name__}, expected a name, a torch.nn.Module or a function that creates one;"
        " type autoq.search(model=net)"
    )


def test_a_function_that_gives_no_module_is_refused() -> None:
    with pytest.raises(
        InputError, match="model 'object:lambda': got a result of type int, expected one torch.nn.Module; give a function"
    ):
        autoq.search(model=lambda: 3)


def test_stages_by_patterns(tmp_path: Path) -> None:
    options = {
        "model": give(Net()), "stages": {"front": "head", "back": ["tail"]}, "study": str(tmp_path / "s"), "replications": 0, "initial_trials": 0,
        "objectives": "size,bops,psnr", "data": small_image(tmp_path / "train", 0), "eval_data": small_image(tmp_path / "eval", 1),
    }  # fmt: skip
    study, _ = _create(SearchOptions.of(**options), Events(), "here")
    study.close()
    assert [*study.space.choices] == ["front", "back"]
    assert study.spec.trial.layers == (("front", ("head",)), ("back", ("tail",)))
    with pytest.raises(InputError, match=r"layer 'tail' is in no stage, expected exactly one stage; change the patterns"):
        autoq.search(model=Net(), stages={"front": "head"})
    with pytest.raises(InputError, match=r"stages: layers: found '\[\]', expected stages with patterns"):
        autoq.search(model=Net(), stages=[])


def test_the_network_travels_to_a_worker_in_memory(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    code = pickle.loads(pickle.dumps(UserCode.of(give(lambda: make(2)))))
    monkeypatch.setattr(given, "_GIVEN", {})
    monkeypatch.setattr(sys, "path", [*sys.path])
    code.enter()
    assert code.folder == tmp_path
    assert {*code.paths} <= {*sys.path}
    assert torch.equal(staged_model("object:lambda", 2)[0].state_dict()["0.weight"], make(2).state_dict()["0.weight"])
    assert UserCode.of("mynet:make") == dataclasses.replace(code, model="mynet:make", network=None)


def test_a_network_that_does_not_travel_is_refused() -> None:
    kept = threading.Lock()  # as anything that belongs to its process
    with pytest.raises(InputError, match="model 'object:lambda': it cannot be sent to worker processes"):
        UserCode.of(give(lambda: (kept, make(2))))
