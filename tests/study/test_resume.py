"""A study that was cut off at any moment goes on as if it had not been. No Ray here: ask and tell, and what is on disk."""

from __future__ import annotations

import functools
import json
import shutil
import tempfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import optuna
import pytest
from sqlalchemy.exc import OperationalError

from autoq.config.policy import Policy
from autoq.config.space_file import bundled_space, load_space
from autoq.config.spec import Record, StudySpec, TrialResult, TrialSpec
from autoq.config.structure import Structure
from autoq.errors import StudyError
from autoq.study import storage as storage_module
from autoq.study import study as study_module
from autoq.study.study import Study, space_facts

SPACE = load_space(bundled_space("srgan"), space_facts("srgan", "openvino-cpu")).to_dict()


def make(folder: Path, sampler: str = "auto", budget: int = 14) -> Study:
    spec = StudySpec(
        trial=TrialSpec(model="srgan"), space=SPACE, objectives=("size", "latency", "psnr"), budget=budget, sampler=sampler
    )
    return Study.create(folder, spec, {"command": "", "python": "", "machine": "", "versions": {}})


def worth(policy: Policy, number: int) -> TrialResult:
    """A made-up worth of a policy; every seventh trial fails."""
    if number % 7 == 5:
        return TrialResult(state="failed", reason="training diverged")
    bits = [quant.weight.bits + quant.activation.bits / 4 for _, quant in policy.stages]
    return TrialResult(state="complete", values={"size": 1e3 * sum(bits), "latency": 50 + bits[0] / 3, "psnr": 30 - 20 / sum(bits)})


def go_on(study: Study, until: int) -> None:
    """What a search with one worker does: what was running first, then new suggestions."""
    for asked in study.storage.running():
        study.tell(asked.number, asked.policy, worth(asked.policy, asked.number), Structure())
    while study.storage.count < until:
        asked = study.ask()
        study.tell(asked.number, asked.policy, worth(asked.policy, asked.number), Structure())
    study.close()


@functools.cache
def uninterrupted(sampler: str, budget: int) -> list[Record]:
    """What a study ends with that nothing disturbs."""
    with tempfile.TemporaryDirectory() as folder:
        study = make(Path(folder) / "s", sampler, budget)
        go_on(study, budget)
        return study.records()


def left_running(study: Study) -> None:
    """Killed while a trial runs."""
    study.ask()


def told_by_half(study: Study) -> None:
    """Killed between the line in trials.jsonl and the storage."""
    asked = study.ask()
    study.storage.tell = lambda record: None  # type: ignore[method-assign]
    study.tell(asked.number, asked.policy, worth(asked.policy, asked.number), Structure())


def line_torn(study: Study) -> None:
    """Killed, or the disk full, within a line."""
    study.ask()
    with study.trials_path.open("a") as lines:
        lines.write('{"number": 6, "source": "tri')


def database_lost(study: Study) -> None:
    """Only the text files came along."""
    study.database_path.unlink()


@pytest.mark.parametrize(
    ("sampler", "cut", "budget"),
    [
        *(("auto", cut, 14) for cut in (left_running, told_by_half, line_torn, database_lost)),
        ("nsga2", left_running, 14),
        ("random", left_running, 14),
        ("gp", left_running, 4),
    ],
    ids=lambda value: getattr(value, "__name__", str(value)),
)
def test_interrupted_twice_ends_as_uninterrupted(tmp_path: Path, sampler: str, cut: Callable[[Study], None], budget: int) -> None:
    study = make(tmp_path / "s", sampler, budget)
    for until in (budget // 3, 2 * budget // 3):
        go_on(study, until)
        again = Study.resume(tmp_path / "s")
        cut(again)
        again.close()
        study = Study.resume(tmp_path / "s")
    go_on(study, budget)
    assert study.records() == uninterrupted(sampler, budget)


def test_the_storage_says_what_trials_jsonl_says(tmp_path: Path) -> None:
    study = make(tmp_path / "s")
    go_on(study, 8)
    (stored,) = optuna.get_all_study_summaries(study.storage_url)
    trials = optuna.load_study(study_name=stored.study_name, storage=study.storage_url).trials
    assert [trial.number for trial in trials] == list(range(8))
    for trial, record in zip(trials, study.records(), strict=True):
        assert trial.state == {"complete": optuna.trial.TrialState.COMPLETE, "failed": optuna.trial.TrialState.FAIL}[record.state]
        assert trial.user_attrs["policy"] == record.label
        if record.state == "complete":
            assert trial.values == [record.values[name] for name in study.spec.objectives]
        else:
            assert trial.user_attrs["reason"] == "training diverged"


def test_a_database_made_again_is_the_one_that_was_lost(tmp_path: Path) -> None:
    study = make(tmp_path / "s")
    go_on(study, 8)
    was = optuna.load_study(study_name="s", storage=study.storage_url).trials
    study.database_path.unlink()
    Study.resume(tmp_path / "s").close()
    now = optuna.load_study(study_name="s", storage=study.storage_url).trials
    for before, after in zip(was, now, strict=True):
        assert (before.params, before.distributions, before.values) == (after.params, after.distributions, after.values)
        assert before.user_attrs == after.user_attrs


def test_a_trial_is_retried_with_its_policy_and_counts_its_attempts(tmp_path: Path) -> None:
    study = make(tmp_path / "s")
    asked = study.ask()
    study.close()
    again = Study.resume(tmp_path / "s")
    assert again.storage.running() == [asked]
    again.storage.set_attempts(asked.number, 2)
    again.close()
    last = Study.resume(tmp_path / "s")
    assert [running.attempts for running in last.storage.running()] == [2]
    last.close()


def test_trials_that_end_out_of_order_keep_their_numbers(tmp_path: Path) -> None:
    study = make(tmp_path / "s")
    first, second = study.ask(), study.ask()
    study.tell(second.number, second.policy, worth(second.policy, second.number), Structure())
    study.close()
    study.database_path.unlink()
    again = Study.resume(tmp_path / "s")
    assert [asked.number for asked in again.storage.running()] == [first.number]
    assert again.storage.count == 2
    again.close()


def test_only_one_process_runs_a_study(tmp_path: Path) -> None:
    study = make(tmp_path / "s")
    with pytest.raises(StudyError, match="is running in another process; wait for it, or watch it with `autoq dashboard s`"):
        Study.resume(tmp_path / "s")
    study.close()
    Study.resume(tmp_path / "s").close()


def test_two_processes_cannot_create_a_study_at_once(tmp_path: Path) -> None:
    """One looks whether the folder is empty while the other, which made it, is about to write."""
    (tmp_path / "s").mkdir()
    with study_module._lock(tmp_path / "s", tmp_path / "s"), pytest.raises(StudyError, match="is running in another process"):
        make(tmp_path / "s")
    make(tmp_path / "s").close()
    with pytest.raises(StudyError, match="exists already"):
        make(tmp_path / "s")


def test_studies_named_after_the_same_second_have_folders_of_their_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with ThreadPoolExecutor(8) as pool:
        made = [*pool.map(study_module.new_folder, ["espcn-x2-20261126-120000"] * 8)]
    assert {path.name for path in made} == {
        "espcn-x2-20261126-120000", *(f"espcn-x2-20261126-120000-{number}" for number in range(2, 9))
    }  # fmt: skip
    assert {path.name for path in (tmp_path / "studies").iterdir()} == {path.name for path in made}


@pytest.mark.parametrize("name", ["what?", "#1", "100%", "50%20", "{braces}", "a b", "ü&=", "plain"])
def test_whatever_a_folder_is_called_its_database_is_in_it(tmp_path: Path, name: str) -> None:
    folder = tmp_path / name / f"s{name}"
    study = make(folder)
    go_on(study, 3)
    assert {path.name for path in folder.iterdir()} == {"study.yaml", "study.db", "trials.jsonl"}
    assert [path.name for path in tmp_path.iterdir()] == [name]
    stored = optuna.load_study(study_name=folder.name, storage=study.storage_url)
    assert len(stored.trials) == 3
    again = Study.resume(folder)
    assert again.storage.count == 3
    again.close()
    if name == "plain":
        assert study.storage_url == f"sqlite:///{folder}/study.db"


def test_a_study_opened_to_be_read_cannot_be_told(tmp_path: Path) -> None:
    make(tmp_path / "s").close()
    with pytest.raises(StudyError, match=r"is open for reading only; use Study\.resume"):
        Study.open(tmp_path / "s").ask()


def test_storage_and_records_that_contradict_each_other(tmp_path: Path) -> None:
    study = make(tmp_path / "s")
    go_on(study, 3)
    lines = study.trials_path.read_text().splitlines(keepends=True)
    study.trials_path.write_text("".join(lines[:2]))
    with pytest.raises(
        StudyError, match=r"has trial 2 as ended, trials\.jsonl does not; restore trials\.jsonl, or remove study\.db"
    ):
        Study.resume(tmp_path / "s")
    other = json.loads(lines[2])
    other["policy"] = json.loads(lines[0])["policy"]
    study.trials_path.write_text("".join([*lines[:2], json.dumps(other) + "\n"]))
    with pytest.raises(StudyError, match=r"trial 2 has another policy in its storage than in trials\.jsonl"):
        Study.resume(tmp_path / "s")


def test_a_full_disk_loses_nothing_that_has_finished(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    study = make(tmp_path / "s")
    go_on(study, 3)
    study = Study.resume(tmp_path / "s")
    asked = study.ask()
    monkeypatch.setattr("os.fsync", lambda descriptor: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(OSError, match="No space left"):
        study.tell(asked.number, asked.policy, worth(asked.policy, asked.number), Structure())
    study.close()
    monkeypatch.undo()
    shutil.copytree(tmp_path / "s", tmp_path / "copy")
    go_on(Study.resume(tmp_path / "s"), 6)
    assert [record.number for record in Study.open(tmp_path / "s").records()] == list(range(6))


def test_a_whole_last_line_without_its_newline_stays(tmp_path: Path) -> None:
    study = make(tmp_path / "s")
    go_on(study, 3)
    found = study.records()
    study.trials_path.write_bytes(study.trials_path.read_bytes().removesuffix(b"\n"))
    assert study.records() == found
    go_on(Study.resume(tmp_path / "s"), 4)
    assert study.records()[:3] == found
    assert len(study.records()) == 4


def test_a_result_that_the_study_cannot_have_is_not_written(tmp_path: Path) -> None:
    study = make(tmp_path / "s")
    asked = study.ask()
    with pytest.raises(ValueError, match="values are missing"):
        study.tell(asked.number, asked.policy, TrialResult(state="complete", values={"size": 1.0}), Structure())
    study.close()
    assert Study.open(tmp_path / "s").records() == []


def test_a_folder_with_other_files_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "s" / "ray").mkdir(parents=True)
    with pytest.raises(StudyError, match="the folder holds other files; give another --study NAME, or an empty folder"):
        make(tmp_path / "s")
    assert [path.name for path in (tmp_path / "s").iterdir()] == ["ray"]


def test_baselines_are_told_again_where_the_database_is_made_again(tmp_path: Path) -> None:
    study = make(tmp_path / "s")
    study.add_baseline(
        "float", Policy(()), TrialResult(state="complete", values={"size": 2048.0, "latency": 5, "psnr": 30}), Structure()
    )
    study.close()
    study.database_path.unlink()
    Study.resume(tmp_path / "s").close()
    stored = optuna.load_study(study_name="s", storage=study.storage_url)
    assert stored.user_attrs == {"baseline float": "size 2 KiB, latency 5.0 ms, psnr 30.00 dB"}


def test_a_database_that_fails_under_way_is_an_error_of_writing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    study = make(tmp_path / "s")
    asked = study.ask()

    def full(self: object, *arguments: object, **named: object) -> None:
        raise OperationalError("insert", {}, Exception("database or disk is full"))

    with monkeypatch.context() as patched:
        patched.setattr(optuna.storages.RDBStorage, "set_trial_user_attr", full)
        with pytest.raises(OSError, match="database or disk is full") as error:
            study.tell(asked.number, asked.policy, worth(asked.policy, asked.number), Structure())
    assert error.value.filename == study.storage_url
    study.close()
    go_on(Study.resume(tmp_path / "s"), 3)
    assert [record.number for record in Study.open(tmp_path / "s").records()] == [0, 1, 2]


def test_front_and_trials_are_tables(tmp_path: Path) -> None:
    study = make(tmp_path / "s")
    go_on(study, 8)
    trials: Any = study.trials
    assert list(trials["point"]) == [f"trial {number}" for number in range(8)]
    assert list(trials["state"]).count("failed") == 1
    assert trials.loc[trials["state"] == "failed", "reason"].tolist() == ["training diverged"]
    found: Any = study.front
    assert found["size"].is_monotonic_increasing
    assert set(found["point"]) < set(trials["point"])
    assert found["policy"][0]["stages"].keys() == {"feature_extraction", "body", "upsampling", "reconstruction"}


def test_every_policy_is_led_to_by_its_parameters() -> None:
    space = load_space(bundled_space("srgan"), space_facts("srgan", "openvino-cpu"))
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=3))
    for _ in range(100):
        trial = study.ask()
        policy = space.suggest(trial)
        assert space.parameters(policy) == trial.params


def test_samplers_are_told_apart_by_seed_and_number() -> None:
    draws = {
        (seed, number): optuna.create_study(sampler=storage_module.make_sampler("random", seed, number, 50))
        .ask()
        .suggest_float("x", 0, 1)
        for seed in (0, 1)
        for number in (0, 1)
    }
    assert len(set(draws.values())) == 4
