"""The searcher without Ray: who runs to which rung, cut off at any moment, with several workers, with trials that fail."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from autoq.config.events import Events
from autoq.config.policy import Policy, uniform
from autoq.config.space_file import bundled_space, load_space, parse_space
from autoq.config.spec import Record, Replication, Sensitivity, StudySpec, TrialResult, TrialSpec
from autoq.config.structure import Structure
from autoq.errors import AutoqError
from autoq.study.replication import SHARE, planned, replication_seeds
from autoq.study.study import Study, space_facts
from autoq.tuning.runner import _is_open, _jobs
from autoq.tuning.scheduler import PAUSE, Abort, Job, StudySearcher

SPACE = load_space(bundled_space("srgan"), space_facts("srgan", "openvino-cpu"))
BUDGET, SEEDS, STEPS, RUNGS = 16, 5, 16, (4, 16)


class Killed(Exception):
    """The search ends here without a word to anyone."""


def no_structure(policy: Policy) -> Structure:
    return Structure()


def make(folder: Path, **changes: Any) -> Study:
    fields = {"space": SPACE.to_dict(), "budget": BUDGET, "initial_trials": SEEDS, "rungs": RUNGS, **changes}
    spec = StudySpec(trial=TrialSpec(model="srgan", steps=STEPS), objectives=("size", "latency", "psnr"), **fields)
    study = Study.create(folder, spec, {"command": "", "python": "", "machine": "", "versions": {}})
    draw = random.Random(3)
    policies = [
        Policy(tuple((stage, draw.choice(list(SPACE.stage_quants(stage)))) for stage in SPACE.choices))
        for _ in range(spec.initial_trials)
    ]
    if spec.initial_trials:
        study.set_initial_trials(
            Sensitivity(
                probes=(), initial_trials=tuple(policy.to_dict() for policy in policies), predicted=(0.0,) * spec.initial_trials
            )
        )
    return study


def worth(config: dict[str, Any]) -> TrialResult:
    """A made-up worth of a policy at a rung; some trainings diverge, early or late."""
    policy, until = Policy.from_dict(config["policy"]), config["until"]
    luck = int(policy.hash, 16) % 97
    if config["number"] is not None and (luck < 5 or (luck < 10 and until == STEPS)):
        return TrialResult(state="failed", reason="training diverged", steps=until - 1, seconds=0.1)
    bits = [quant.weight.bits + quant.activation.bits / 4 for _, quant in policy.stages]
    quality = 30 - 30 / sum(bits) + until / 100 + luck / 1000
    values = {"size": 1e3 * sum(bits), "latency": 50 + bits[0] / 3, "psnr": quality}
    return TrialResult(state="complete", values=values, steps=until, seconds=1.0)


def reported(config: dict[str, Any]) -> dict[str, str]:
    """What a worker reports: a trial's worth, or a training with another seed."""
    if config["seed"] is None:
        return {"result": worth(config).model_dump_json()}
    result, policy = worth({**config, "number": 0}), Policy.from_dict(config["policy"])
    again = Replication(policy=policy.hash, seed=config["seed"], result=result.model_copy(update={"held_out": result.values}))
    return {"replication": again.model_dump_json()}


BASELINES = [
    Job("float", uniform("32/32/32", SPACE.facts.stages), STEPS),
    Job("8/8/8", next(SPACE.enumerate()), STEPS),
]


def search(study: Study, workers: int = 1, order: random.Random | None = None, moment: Callable[[], None] = lambda: None) -> None:
    """What Ray does with a searcher: asks while a worker is free, reports whichever trial ends first."""
    done = {record.name for record in study.records()}
    searcher = StudySearcher(study, [job for job in BASELINES if job.name not in done], Events(), no_structure)
    running: dict[str, dict[str, Any]] = {}
    count, over = 0, False
    while not over or running:
        while not over and len(running) < workers:
            config = searcher.suggest(f"t{count}")
            moment()
            if config == PAUSE:
                break
            if isinstance(config, dict):
                running[f"t{count}"] = config
                count += 1
            else:
                over = config == StudySearcher.FINISHED
                break
        assert running or over, "nothing runs and nothing is suggested"
        if running:
            name = (order or random.Random(0)).choice(list(running)) if workers > 1 else next(iter(running))
            searcher.on_trial_complete(name, reported(running.pop(name)))
            moment()
    study.close()


def end_baselines(study: Study) -> None:
    """Those that `search` does not run end without a value."""
    for job in _jobs(study):
        study.add_baseline(job.name, job.policy, TrialResult(state="failed", reason="training diverged"), Structure())


def found(study: Study) -> list[Any]:
    """What a study ends with, whatever the order it ended in."""
    records = [record for record in study.records() if record.number is not None]
    return [
        (record.number, record.state, record.policy, record.values, record.steps, record.seconds)
        for record in sorted(records, key=lambda record: record.number or 0)
    ]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> list[Any]:
    study = make(tmp_path_factory.mktemp("whole") / "s")
    search(study)
    return found(study)


def test_seeds_train_fully_and_of_the_others_at_most_half(whole: list[Any]) -> None:
    assert [entry[0] for entry in whole] == list(range(BUDGET))
    states = [entry[1] for entry in whole]
    assert "pruned" not in states[:SEEDS]
    assert {"pruned", "complete", "failed"} == set(states)
    for first in range(SEEDS, BUDGET, 8):
        assert states[first : first + 8].count("complete") <= 4
    for _, state, _, values, steps, seconds in whole:
        assert (state, steps, seconds) in (("complete", 16, 2.0), ("pruned", 4, 1.0)) or state == "failed"
        assert (values == {}) == (state == "failed")


def test_a_trial_that_stops_is_beaten_or_one_too_many(whole: list[Any], tmp_path: Path) -> None:
    study = make(tmp_path / "s")
    search(study)
    reached = {rung.number: rung.result for rung in study.rungs()}
    assert set(reached) == {entry[0] for entry in whole if entry[1] != "failed" or entry[4] == STEPS - 1}
    assert {rung.policy for rung in study.rungs()} == {Policy.from_dict(entry[2]).hash for entry in whole if entry[0] in reached}
    assert {rung.until for rung in study.rungs()} == {4}


@pytest.mark.parametrize("workers", [2, 3])
def test_several_workers_find_the_same(whole: list[Any], tmp_path: Path, workers: int) -> None:
    for seed in range(2):
        study = make(tmp_path / f"s{seed}")
        search(study, workers, random.Random(seed))
        assert [entry[:5] for entry in found(study)] == [entry[:5] for entry in whole]


@pytest.mark.parametrize("seed", range(5))
def test_cut_off_at_any_moment_it_ends_the_same(whole: list[Any], tmp_path: Path, seed: int) -> None:
    draw = random.Random(seed)
    study = make(tmp_path / "s")
    cuts = 0

    def moment() -> None:
        if draw.random() < 0.06:
            raise Killed

    while True:
        try:
            search(study, 1 + seed % 2, draw, moment)
            break
        except Killed:
            cuts += 1
            study.close()
            if draw.random() < 0.4:
                study.database_path.unlink()
            study = Study.resume(tmp_path / "s")
    assert cuts
    assert [entry[:5] for entry in found(study)] == [entry[:5] for entry in whole]


def test_the_next_bracket_begins_while_a_promoted_trial_trains(tmp_path: Path) -> None:
    study = make(tmp_path / "s", budget=SEEDS + 24)
    end_baselines(study)
    searcher = StudySearcher(study, BASELINES[:1], Events(), no_structure)
    together: list[tuple[int, int]] = []
    running: dict[str, dict[str, Any]] = {}
    for count in range(1000):
        config = searcher.suggest(f"t{count}")
        if config == StudySearcher.FINISHED:
            break
        if isinstance(config, dict) and config != PAUSE:
            running[f"t{count}"] = config
            numbers = [each["number"] for each in running.values()]
            if len(running) == 2 and None not in numbers and max(numbers) >= SEEDS:
                together.append((min(numbers), max(numbers)))
        if len(running) == 2 or config == PAUSE:
            promoted = [name for name, each in running.items() if each["until"] == STEPS]
            name = next((name for name in running if name not in promoted), next(iter(running)))  # full training takes longest
            searcher.on_trial_complete(name, reported(running.pop(name)))
    study.close()
    brackets = [[(number - SEEDS) // 8 for number in pair] for pair in together]
    overlapping = {tuple(pair) for pair in brackets if pair[0] < pair[1]}
    assert overlapping <= {(-1, 0), (0, 1), (1, 2)}
    assert {(0, 1), (1, 2)} <= overlapping


def test_a_kill_between_a_decision_and_the_word_about_it(whole: list[Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tell, told = Study.tell, list[None]()

    def killed(self: Study, *arguments: Any) -> Record:
        if len(told) in (7, 9):
            told.append(None)
            raise Killed
        told.append(None)
        return tell(self, *arguments)

    monkeypatch.setattr(Study, "tell", killed)
    study = make(tmp_path / "s")
    cuts = 0
    while True:
        try:
            search(study)
            break
        except Abort:
            cuts += 1
            study.close()
            study = Study.resume(tmp_path / "s")
    assert cuts == 2
    assert [entry[:5] for entry in found(study)] == [entry[:5] for entry in whole]


@pytest.mark.parametrize(
    "changes",
    [{"rungs": ()}, {"initial_trials": 0}, {"initial_trials": BUDGET}, {"budget": 1, "initial_trials": 0}, {"rungs": (2, 4, 16)}],
)
def test_other_shapes_of_a_search(tmp_path: Path, changes: dict[str, Any]) -> None:
    study = make(tmp_path / "s", **changes)
    search(study, 2)
    spec = study.spec
    entries = found(study)
    assert [entry[0] for entry in entries] == list(range(spec.budget))
    if not spec.rungs or spec.initial_trials >= spec.budget:
        assert all(entry[1] != "pruned" for entry in entries)
    assert len({str(entry[2]) for entry in entries}) == len(entries), "no policy is tried twice"


def test_no_trial_begins_after_the_last_step_allowed(tmp_path: Path, whole: list[Any]) -> None:
    study = make(tmp_path / "s", max_steps=100)
    search(study)
    entries = found(study)
    assert [entry[:5] for entry in entries] == [entry[:5] for entry in whole[: len(entries)]]
    assert len(entries) == SEEDS + 8, "80 steps of the seeds, then one bracket"
    again = Study.resume(tmp_path / "s")
    end_baselines(again)
    assert not _is_open(again)
    search(again)
    assert found(again) == entries


def test_a_space_smaller_than_the_budget_is_tried_whole_and_that_is_all(tmp_path: Path) -> None:
    fixed = {"bits": 8, "quantizer": "lsq", "clipping": "minmax"}
    searched = {"bits": [4, 6, 8], "quantizer": "lsq", "clipping": ["minmax", "mse"]}
    roles = {"weight": fixed, "activation": fixed, "skip": fixed}
    small = {"roles": roles, "stages": {"feature_extraction": {"weight": searched}}}
    space = parse_space(small, SPACE.facts, "small")
    assert space.size() == 6
    study = make(tmp_path / "s", space=space.to_dict(), budget=22, initial_trials=0, sampler="random")
    search(study)
    assert {Policy.from_dict(entry[2]) for entry in found(study)} == {*space.enumerate()}
    assert len(found(study)) == 6
    again = Study.resume(tmp_path / "s")
    end_baselines(again)
    assert not _is_open(again)
    again.close()


def test_a_baseline_that_failed_has_ended(tmp_path: Path) -> None:
    study = make(tmp_path / "s", budget=1, initial_trials=0, first_last_16=True)
    assert [job.name for job in _jobs(study)] == ["float", "8/8/8", "6/6/8", "4/4/8", "first-last-16"]
    end_baselines(study)
    assert _is_open(study)
    asked = study.ask()
    study.tell(asked.number, asked.policy, worth({"policy": asked.policy.to_dict(), "until": STEPS, "number": None}), Structure())
    assert not _is_open(study)
    study.close()


def broken(number: int) -> dict[str, str]:
    """What a worker says that something broke in."""
    return {"broken": f"RuntimeError: CUDA error at 0x7f{number:04x}: tried to allocate {number}.25 MiB"}


def test_one_cause_of_three_trials_ends_the_search_and_they_run_again_when_it_is_resumed(tmp_path: Path, whole: list[Any]) -> None:
    study = make(tmp_path / "s")
    searcher = StudySearcher(study, [], Events(), no_structure)
    while isinstance(config := searcher.suggest("t0"), dict) and config["number"] < SEEDS:
        searcher.on_trial_complete("t0", reported(config))
    assert isinstance(searcher.suggest("t1"), dict)
    assert isinstance(searcher.suggest("t2"), dict)
    for number in range(2):
        searcher.on_trial_result(f"t{number}", broken(number))
        searcher.on_trial_complete(f"t{number}", error=True)
    searcher.on_trial_result("t2", broken(2))
    with pytest.raises(Abort) as abort:
        searcher.on_trial_complete("t2", error=True)
    assert isinstance(abort.value.__cause__, AutoqError)
    assert str(abort.value.__cause__) == (
        "study 's': failed 3 times in a row with one cause: RuntimeError: CUDA error at 0x7f0002: tried to allocate 2.25 MiB;"
        f" what has finished is kept, remove the cause and type autoq search --resume --study {tmp_path / 's'}"
    )
    searcher.interrupted()
    study.close()
    again = Study.resume(tmp_path / "s")
    assert {asked.attempts for asked in again.storage.running()} == {0}
    search(again)
    assert [entry[:5] for entry in found(again)] == [entry[:5] for entry in whole]


def test_a_trial_that_breaks_every_worker_fails_and_the_others_go_on(tmp_path: Path, whole: list[Any]) -> None:
    study = make(tmp_path / "s")
    searcher = StudySearcher(study, [], Events(), no_structure)
    while isinstance(config := searcher.suggest("t"), dict):
        if config["number"] == 7:
            searcher.on_trial_result("t", {"broken": "IndexError: list index out of range"})
            searcher.on_trial_complete("t", error=True)
        else:
            searcher.on_trial_complete("t", reported(config))
    states = {record.number: (record.state, record.reason) for record in study.records()}
    assert states.pop(7) == ("failed", "IndexError: list index out of range")
    assert len(states) == BUDGET - 1
    assert all(reason is None or "IndexError" not in reason for _, reason in states.values())
    study.close()


def test_what_trials_fail_of_by_themselves_never_ends_a_search(tmp_path: Path) -> None:
    study = make(tmp_path / "s", budget=6, initial_trials=0)
    searcher = StudySearcher(study, [], Events(), no_structure)
    while isinstance(searcher.suggest("t"), dict):
        slow = TrialResult(state="failed", reason="exceeded the time limit of 5 s per trial (--timeout)")
        searcher.on_trial_complete("t", {"result": slow.model_dump_json()})
    assert [record.state for record in study.records()] == ["failed"] * 6
    study.close()


def test_workers_that_are_never_ready_end_the_search_whatever_trial_they_were_given(tmp_path: Path) -> None:
    study = make(tmp_path / "s")
    searcher = StudySearcher(study, list(BASELINES), Events(), no_structure)

    def lose(name: str) -> None:
        config = searcher.suggest(name)
        assert isinstance(config, dict)
        assert Policy.from_dict(config["policy"]).is_float
        searcher.on_trial_result(name, {"broken": "MemoryError", "began": False})
        searcher.on_trial_complete(name, error=True)

    lose("t1")
    lose("t2")
    with pytest.raises(Abort):
        lose("t3")
    assert study.records() == []
    study.close()


def test_a_worker_that_leaves_after_its_trial_has_given_its_result(tmp_path: Path) -> None:
    study = make(tmp_path / "s", budget=1, initial_trials=1, rungs=())
    searcher = StudySearcher(study, [], Events(), no_structure)
    config = searcher.suggest("t")
    assert isinstance(config, dict)
    searcher.on_trial_result("t", reported(config))
    searcher.on_trial_complete("t", error=True)
    assert [record.state for record in study.records()] == ["complete"]
    study.close()


def test_a_worker_that_dies_at_every_rung_has_three_attempts_at_each(tmp_path: Path) -> None:
    study = make(tmp_path / "s", budget=1, initial_trials=1)
    searcher = StudySearcher(study, [], Events(), no_structure)
    for until in RUNGS:
        for _ in range(2):
            config = searcher.suggest("t")
            assert isinstance(config, dict)
            assert config["until"] == until
            searcher.on_trial_complete("t", error=True)
        config = searcher.suggest("t")
        assert isinstance(config, dict)
        result = TrialResult(state="complete", values={"size": 1, "latency": 1, "psnr": 1}, steps=until)
        searcher.on_trial_complete("t", {"result": result.model_dump_json()})
    assert searcher.suggest("t") == StudySearcher.FINISHED
    assert [record.state for record in study.records()] == ["complete"]
    study.close()


def test_the_front_is_trained_again_with_other_seeds_once_each(tmp_path: Path) -> None:
    """However often the search is cut off, the same points train again, each seed once, within their share of the trials' time."""
    study = make(tmp_path / "whole", replications=2)
    search(study)
    points = {Policy.from_dict(record.policy).hash: record.name for record in study.results().front}
    assert "float" in points.values()
    trained = [(each.policy, each.seed) for each in study.replications()]
    assert len(set(trained)) == len(trained)
    expected = {(each.policy.hash, each.seed) for each in planned(study.results(), replication_seeds(study.spec))}
    assert set(trained) == expected
    assert {seed for _, seed in trained} == {1}, "every point with one seed before the next"
    assert {policy for policy, _ in trained} < {policy for policy, name in points.items() if name != "float"}
    spent, total = (sum(each.seconds for each in part) for part in ([run.result for run in study.replications()], study.records()))
    assert spent <= total * SHARE
    assert [seed for _, seed in trained] == sorted(seed for _, seed in trained)  # a worker prepares once for each seed
    cut = make(tmp_path / "cut", replications=2)
    for kill in range(1, 200):
        left = iter(range(20 + kill % 7))

        def moment(left: Iterator[int] = left) -> None:
            if next(left, None) is None:
                raise Killed

        try:
            search(cut, moment=moment)
            break
        except Killed:
            cut.close()
            cut = Study.resume(tmp_path / "cut")
    assert found(cut) == found(study)
    assert {(each.policy, each.seed) for each in cut.replications()} == expected
    assert len(cut.replications()) == len(expected)
