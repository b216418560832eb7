"""What is said of a front on held-out images, from records made up."""

import json
from pathlib import Path

import pytest

from autoq.config.policy import Policy, uniform
from autoq.config.spec import Record, Remeasured, Replication, StudySpec, TrialResult, TrialSpec
from autoq.config.structure import Structure
from autoq.study.replication import replicated_points
from autoq.study.results import Results
from autoq.study.study import Study
from autoq.tuning.options import search_space
from benchmarks.held_out import figures_of, main

OBJECTIVES = ("size", "fidelity")
STAGES = {"body": ("weight", "activation")}


def policy(bits: int) -> Policy:
    return uniform(f"{bits}/{bits}", STAGES)


def point(bits: int, size: float, fidelity: float, apart: float | None, name: str | None = None) -> Record:
    return Record(
        number=None if name else bits, name=name, source="baseline" if name else "trial", state="complete", label="",
        policy=policy(bits).to_dict(), values={"size": size, "fidelity": fidelity},
        held_out={} if apart is None else {"fidelity": apart}, seconds=10.0,
    )  # fmt: skip


RECORDS = [
    point(32, 100, 100.0, 100.0, "float"),
    point(8, 40, 44.0, 40.0, "8/8"),
    point(7, 35, 43.0, 41.0),  # better than 8/8 on held-out images
    point(6, 30, 42.0, 39.0),
    point(5, 30, 41.0, 39.5),  # not on the front; on held-out images better than trial 6
    point(4, 20, 30.0, 31.0),
]
REPLICATED = [
    Replication(
        policy=policy(4).hash,
        seed=1,
        result=TrialResult(state="complete", values={"fidelity": 30.5}, held_out={"fidelity": 30.8}, seconds=7.25),
    )
]


def test_figures_of_a_study() -> None:
    results = Results(RECORDS, OBJECTIVES)
    assert figures_of(results, REPLICATED, replicated_points(results, REPLICATED, Remeasured(samples={}))) == {
        "spearman_held_out": 0.8,  # ranks 5 4 3 2 1 and 4 5 2 3 1: 1 - 6 * 4 / (5 * 24)
        "front_points": 4,
        "front_kept": 0.5,  # 7 and 4 of 8, 7, 6, 4
        "front_trials": 3,
        "search_seconds": 60.0,
        "replication_seconds": 7.2,
    }


def test_a_study_without_held_out_images_has_no_such_figures() -> None:
    records = [record.model_copy(update={"held_out": {}}) for record in RECORDS]
    figures = figures_of(
        Results(records, OBJECTIVES), [], replicated_points(Results(records, OBJECTIVES), [], Remeasured(samples={}))
    )
    assert figures["spearman_held_out"] is None
    assert figures["front_kept"] is None
    assert figures["front_trials"] == 3
    assert figures["search_seconds"] == pytest.approx(60)


def test_a_study_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    trial = TrialSpec(model="espcn", scale=3)
    space = search_space(trial)
    spec = StudySpec(trial=trial, space=space.to_dict(), objectives=OBJECTIVES)
    study = Study.create(tmp_path / "study", spec, {"command": "", "python": "", "machine": "", "versions": {}})
    for bits, size, fidelity in (("8/8/8", 40, 44.0), ("6/6/8", 30, 42.0), ("4/4/8", 20, 38.0)):
        values = {"size": size, "fidelity": fidelity}
        found = TrialResult(state="complete", values=values, held_out={"fidelity": fidelity - 1}, seconds=2.0)
        study.add_baseline(bits, uniform(bits, space.facts.stages), found, Structure())
    study.close()
    monkeypatch.setattr("sys.argv", ["held_out.py", str(study.folder), "--json"])
    main()
    assert json.loads(capsys.readouterr().out)["figures"] == {
        "spearman_held_out": 1.0, "front_points": 3, "front_kept": 1.0, "front_trials": 0, "search_seconds": 6.0,
        "replication_seconds": 0.0,
    }  # fmt: skip


def test_a_study_that_is_none_is_refused(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("sys.argv", ["held_out.py", "no-such-study"])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2
    assert "error: study 'studies/no-such-study'" in capsys.readouterr().err
