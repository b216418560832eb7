"""Finetuning of a small study's points: killed at any moment, added to the study, exported."""

from __future__ import annotations

import base64
import json
import random
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch

from autoq.api.finetuning import finetune
from autoq.config.events import Progress, TrainingEvents
from autoq.config.options import LossName
from autoq.config.policy import Policy, uniform
from autoq.config.spec import TrialSpec
from autoq.errors import AutoqError, InputError
from autoq.export.onnx import load_graph
from autoq.networks import model_info
from autoq.study.results import finetuned_name
from autoq.study.selection import recommended
from autoq.study.study import Study
from autoq.system.files import append_line
from autoq.training.losses import LOSSES
from autoq.training.originals import OriginalsTraining
from autoq.training.qat import Loss, Training
from autoq.trial.context import TrialContext, prepare
from autoq.trial.finetune import Finetuning, begun_steps, nearest_start
from autoq.tuning import finetuning, peers
from tests.searching import OPTIONS, furnished, in_process

STEPS = 10


class Killed(BaseException):
    """The process ends here."""


class Heard(TrainingEvents):
    """Ends the training at a step."""

    def __init__(self, last: int | None = None, end: type[BaseException] = Killed) -> None:
        self.last, self.end, self.values = last, end, list[float]()

    def begin(self, step: int, steps: int) -> None:
        self.steps = steps

    def stepped(self, step: int) -> None:
        if step == self.last:
            raise self.end

    def validated(self, progress: Progress) -> None:
        self.values.append(progress.value)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, tiny_weights: Path) -> Path:
    """A folder with the study `draft`."""
    folder = furnished(tmp_path_factory.mktemp("finetune"))
    arguments = [
        *OPTIONS,
        "--weights",
        str(tiny_weights),
        "--budget",
        "2",
        "--steps",
        "2",
        "--replications",
        "0",
        "--objectives",
        "size,latency,fidelity",
        "--initial-trials",
        "0",
        "--finetune",
        "1",
    ]
    done = in_process(folder, "search", *arguments, "--study", "draft")
    assert done.returncode == 0, done.stderr
    return folder


def test_a_search_finetunes_the_first_recommended_point_once(folder: Path, study: Study) -> None:
    (record,) = study.finetuned()
    point = recommended(study.results())["smallest"]
    assert record.name == finetuned_name(point)
    assert record.policy == point.policy
    before = study.finetuned_path.read_bytes()
    done = in_process(folder, "search", "--resume", "--study", "draft")
    assert done.returncode == 0, done.stderr
    assert study.finetuned_path.read_bytes() == before
    study.finetuned_path.write_bytes(b"")
    done = in_process(folder, "search", "--resume", "--study", "draft")
    assert done.returncode == 0, done.stderr
    assert f"finetuning {finetuned_name(point).partition(',')[0]}: step " in done.stderr
    assert record.name in {each.name for each in study.finetuned()}


@pytest.fixture(scope="module")
def study(folder: Path) -> Study:
    return Study.open(folder / "studies" / "draft")


@pytest.fixture(scope="module")
def context(study: Study) -> TrialContext:
    return prepare(study.spec.trial.model_copy(update={"steps": STEPS, "batch": 2, "patches": 8}))


def weights_of(
    study: Study, context: TrialContext, state: Path, loss: LossName = "output", kills: random.Random | None = None
) -> dict[str, Any]:
    """The best weights of trial 0 after a finetuning that is killed at random steps."""
    trial = next(record for record in study.records() if record.number == 0)
    policy, graph = Policy.from_dict(trial.policy), load_graph(study.graph_path)
    while True:
        training = Finetuning(context, policy, graph, "fidelity", loss, state)
        try:
            training.run(Heard(kills.randint(1, STEPS + 5) if kills else None))
        except Killed:
            continue
        assert training.best is not None
        return training.best


@pytest.mark.parametrize("loss", ["output", "originals"])
def test_killed_at_random_moments_it_ends_with_the_same_weights(
    study: Study, context: TrialContext, tmp_path: Path, loss: LossName
) -> None:
    expected = weights_of(study, context, tmp_path / "whole.pt", loss)
    for number in range(3):
        found = weights_of(study, context, tmp_path / f"cut{number}.pt", loss, random.Random(number))
        assert (found["step"], found["value"]) == (expected["step"], expected["value"])
        assert found["weights"].keys() == expected["weights"].keys()
        for name, tensor in expected["weights"].items():
            assert torch.equal(found["weights"][name], tensor), name


def test_on_a_gpu_it_ends_with_the_same_weights_too(gpu: str, study: Study, context: TrialContext, tmp_path: Path) -> None:
    there = prepare(context.spec.model_copy(update={"device": gpu}))
    expected = weights_of(study, there, tmp_path / "whole.pt")
    found = weights_of(study, there, tmp_path / "cut.pt", kills=random.Random(0))
    assert found["step"] == expected["step"]
    for name, tensor in expected["weights"].items():
        assert torch.equal(found["weights"][name].cpu(), tensor.cpu()), name


def test_a_finetuned_point_is_one_of_the_study_and_is_exported(folder: Path, study: Study) -> None:
    before = (study.folder / "trials.jsonl").read_bytes()
    done = in_process(folder, "finetune", "draft", "--pick", "4/4/8", "--steps", "40", "--threads", "1", "--json")
    assert done.returncode == 0, done.stderr
    record = json.loads(done.stdout)
    assert (record["name"], record["source"], record["number"]) == ("4/4/8, finetuned", "finetuned", None)
    (draft,) = (each for each in study.records() if each.name == "4/4/8")
    assert record["policy"] == draft.policy
    for cost in ("size", "size_runtime", "latency", "bops"):
        assert record["values"][cost] == draft.values[cost]
    assert record["held_out"]["fidelity"] != record["values"]["fidelity"]
    assert 0 <= record["steps"] <= 40
    assert (study.folder / "trials.jsonl").read_bytes() == before
    assert record == study.points().records[-1].model_dump(mode="json")
    assert [each.name for each in study.results().records if each.source == "finetuned"] == []
    assert not list((study.folder / "finetuned").glob("*state*")), "the training has ended"

    done = in_process(folder, "export", "draft", "--pick", "4/4/8, finetuned", "-o", "shipped", "--json")
    assert done.returncode == 0, done.stderr
    exported = json.loads(done.stdout)
    assert exported["found"]["fidelity"] == pytest.approx(record["values"]["fidelity"], abs=1e-3)
    assert exported["found"]["size"] == record["values"]["size"]

    done = in_process(folder, "report", "draft")
    assert done.returncode == 0, done.stderr
    page = (folder / "reports" / "draft.html").read_text()
    assert '"name":"finetuned points"' in page
    assert '"text":["4\\u002f4\\u002f8, finetuned"]' in page
    picture = study.picture_path(Policy.from_dict(record["policy"]), record["steps"]).read_bytes()
    assert f"data:image/png;base64,{base64.b64encode(picture).decode()}" in page


def test_a_longer_finetuning_takes_the_place_of_a_shorter_one(study: Study) -> None:
    shorter = finetune(study, pick="8/8/8", steps=2, threads=1)
    heard = Heard()
    longer = finetune(study, pick="8/8/8", steps=4, threads=1, events=heard)
    assert longer.values["fidelity"] >= max(heard.values), "the best weights are kept"
    assert len(heard.values) == 4
    assert [each for each in study.finetuned() if each.name == "8/8/8, finetuned"] == [longer]
    assert shorter.name == longer.name


def test_an_interrupted_command_continues(folder: Path, study: Study, monkeypatch: pytest.MonkeyPatch) -> None:
    run = Finetuning.run
    monkeypatch.setattr(Finetuning, "run", lambda self, events: run(self, Heard(3, KeyboardInterrupt)))
    arguments = ["finetune", "draft", "--trial", "1", "--steps", "4", "--threads", "1"]
    done = in_process(folder, *arguments)
    assert (done.returncode, done.stdout) == (130, "")
    assert done.stderr.endswith("autoq: interrupted; to continue, repeat the command\n")
    assert len(list((study.folder / "finetuned").glob("*-4-state.pt"))) == 1
    monkeypatch.setattr(Finetuning, "run", run)
    done = in_process(folder, *arguments)
    assert done.returncode == 0, done.stderr
    assert "type autoq export draft --pick 'trial 1, finetuned' -o finetuned" in done.stdout


def test_as_many_steps_as_fit_in_a_time(study: Study, monkeypatch: pytest.MonkeyPatch) -> None:
    class Interrupts(Heard):
        def validated(self, progress: Progress) -> None:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        finetune(study, pick="6/6/8", hours=0.001, threads=1, events=Interrupts())
    (state,) = (study.folder / "finetuned").glob("*-4s-state.pt")
    steps = begun_steps(state)
    monkeypatch.setattr(finetuning, "steps_within", None)
    heard = Heard()
    record = finetune(study, pick="6/6/8", hours=0.001, threads=1, events=heard)
    assert record.seconds < 20
    assert heard.steps == steps, "a training that was interrupted keeps its length"


def test_two_processes_train_together(folder: Path, study: Study, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("autoq.api.finetuning.available_cores", lambda: 2)
    done = in_process(folder, "finetune", "draft", "--pick", "6/6/8", "--steps", "6", "--processes", "2", "--json")
    assert done.returncode == 0, done.stderr
    together, alone = json.loads(done.stdout), finetune(study, pick="6/6/8", steps=6, threads=1)
    assert 0 < together["steps"] <= 6
    assert together["values"]["fidelity"] == pytest.approx(alone.values["fidelity"], abs=1)


def test_a_process_that_ends_is_told(study: Study, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(peers, "START", "raise SystemExit('no memory left')")
    monkeypatch.setattr("autoq.training.together.MEETING", timedelta(seconds=5))
    with pytest.raises(
        AutoqError, match="a process of the training ended, with its message above; to continue, repeat the command"
    ):
        finetune(study, pick="8/8/8", steps=2, processes=2)
    assert "no memory left" in capfd.readouterr().err


@pytest.mark.parametrize(
    ("pick", "message"),
    [
        ({"pick": "8/8/8", "steps": 2, "hours": 1}, "finetune: expected either --steps or --hours; omit one of them"),
        ({"pick": "8/8/8", "processes": 99}, "--processes 99: expected at most "),
        ({"pick": "float"}, "finetune: the float network has nothing to train; type `--pick compromise` or `--trial N`"),
        ({"pick": "4/4/8, finetuned"}, "--pick '4/4/8, finetuned': no such rule, objective or point; type"),
        ({}, "finetune: expected either --trial or --pick; type `--pick compromise` or `--trial N`"),
    ],
)
def test_what_cannot_be_finetuned(study: Study, pick: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError) as refused:
        finetune(study, **pick)
    assert str(refused.value).startswith(message)


def test_lost_weights_are_named(folder: Path, study: Study) -> None:
    record = finetune(study, pick="6/6/8", steps=1, threads=1)
    append_line(study.finetuned_path, record.model_copy(update={"name": "lost, finetuned", "steps": 7}))
    done = in_process(folder, "export", "draft", "--pick", "lost, finetuned", "-o", "lost")
    assert done.returncode == 2
    assert "autoq: lost, finetuned: its weights are missing (" in done.stderr
    assert done.stderr.endswith("); finetune it again\n")


@pytest.mark.parametrize(
    ("values", "over"),
    [
        ([30.0], False),
        ([30.0, 29.0, 28.0, 27.0, 26.0, 25.0], False),  # it falls, and may rise again
        ([30.0, 31.0, 31.001, 31.002, 31.001], False),
        ([30.0, 31.0, 31.001, 31.002, 31.001, 31.0], True),
        ([30.0, 31.0, 31.001, 31.002, 31.001, 31.0, 31.1], False),
    ],
)
def test_it_ends_where_validations_no_longer_move(context: TrialContext, study: Study, values: list[float], over: bool) -> None:
    policy = Policy.from_dict(study.records()[-1].policy)
    training = Finetuning(context, policy, load_graph(study.graph_path), "fidelity", "output")
    training.values = values
    assert training._is_over() is over


def test_it_starts_nearer_to_float_with_the_same_quantizers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Trunk tensors are activations and skips: with equal formats they have one quantizer, with other range estimators two."""
    monkeypatch.setattr("autoq.trial.finetune.CLIPPING_NAMES", ("minmax", "percentile"))
    context = prepare(TrialSpec(model="srresnet", scale=4, steps=1, batch=1, patches=1))
    policy, tried = uniform("4/4/4", model_info("srresnet").stages, "lsq"), list[Policy]()
    quantized = TrialContext.quantized
    monkeypatch.setattr(TrialContext, "quantized", lambda self, policy: (tried.append(policy), quantized(self, policy))[1])  # type: ignore[func-returns-value]
    found = nearest_start(context, policy)
    plain = quantized(context, policy)
    assert found.module.state_dict().keys() == plain.module.state_dict().keys()
    assert {(each.stage("body").activation.clipping, each.stage("body").skip.clipping) for each in tried} == {
        ("minmax", "minmax"),
        ("percentile", "percentile"),
    }
    assert found.module.training
    with torch.no_grad():
        exact = context.traced.module(context.calibration)
        errors = [(each.module.eval()(context.calibration) - exact).square().mean().item() for each in (found, plain)]
    assert errors[0] < errors[1]


def test_a_loss_by_name(study: Study, monkeypatch: pytest.MonkeyPatch) -> None:
    taken: list[str] = []

    def heard(name: str, made: Callable[..., Loss]) -> Callable[..., Loss]:
        def make(*given: Any) -> Loss:
            taken.append(name)
            return made(*given)

        return make

    for name, made in list(LOSSES.items()):
        monkeypatch.setitem(LOSSES, name, heard(name, made))
    finetune(study, pick="8/8/8", steps=1, threads=1)
    finetune(study, pick="8/8/8", steps=1, threads=1, loss="frequency")
    assert taken == ["output", "frequency"]
    assert finetuning.FinetuneRecipe(7, loss="gradient").name != finetuning.FinetuneRecipe(7).name, "each has its own state"


def test_what_is_judged_by_originals_learns_from_them(study: Study) -> None:
    for quality, loss in (("psnr", "originals"), ("ssim", "originals"), ("fidelity", "output"), ("niqe", "output")):
        spec = study.spec.model_copy(update={"objectives": ("size", "latency", quality)})
        assert finetuning.default_loss(spec) == loss


def test_originals_teach_where_there_are_some(study: Study) -> None:
    blind = Study.open(study.folder)
    blind.spec = blind.spec.model_copy(update={"trial": blind.spec.trial.model_copy(update={"images": "lr"})})
    with pytest.raises(InputError, match="--loss originals: the study's images have no originals; omit the option"):
        finetune(blind, pick="8/8/8", loss="originals")


@pytest.mark.parametrize(("distance", "kinds"), [(1.0, [OriginalsTraining]), (0.0, [Training, OriginalsTraining])])
def test_a_network_that_is_near_learns_from_originals_alone(
    study: Study, context: TrialContext, monkeypatch: pytest.MonkeyPatch, distance: float, kinds: list[type]
) -> None:
    monkeypatch.setattr("autoq.trial.finetune.NEAR", distance)
    policy = Policy.from_dict(study.records()[-1].policy)
    training = Finetuning(context, policy, load_graph(study.graph_path), "psnr", "originals")
    assert [type(each) for each in training.trainings] == kinds
    assert [each.steps for each in training.trainings] == [STEPS - STEPS // 5, STEPS // 5][-len(kinds) :]
    heard = Heard()
    training.run(heard)
    assert (training.step, heard.steps) == (training.steps, training.steps)
