import json
from pathlib import Path
from typing import Any

import pytest

from autoq.config.policy import Policy
from autoq.config.space_file import bundled_space, load_space
from autoq.config.spec import Record, Replication, StudySpec, TrialResult, TrialSpec
from autoq.config.structure import Structure
from autoq.errors import StudyError
from autoq.study.results import Results, document, to_json
from autoq.study.study import Study, space_facts, study_folder

SPACE = load_space(bundled_space("srgan"), space_facts("srgan", "openvino-cpu")).to_dict()
OBJECTIVES = ("size", "latency", "psnr")


def make(folder: Path, **changes: Any) -> Study:
    fields: dict[str, Any] = {"objectives": OBJECTIVES, "budget": 30, **changes}
    spec = StudySpec(trial=TrialSpec(model="srgan", scale=4), space=SPACE, **fields)
    return Study.create(folder, spec, {"command": "autoq search", "python": "3", "machine": "m", "versions": {}})


def result(policy: Policy, **values: float) -> TrialResult:
    """A made-up, deterministic worth of a policy."""
    bits = sum(quant.weight.bits for _, quant in policy.stages)
    found = {"size": 1000.0 * bits, "latency": 50.0 + bits % 7, "psnr": 30 - 20 / bits, "fidelity": 40.0, **values}
    return TrialResult(state="complete", values=found, steps=1, seconds=0.5)


def float_baseline(study: Study) -> None:
    study.add_baseline(
        "float",
        Policy(()),
        TrialResult(state="complete", values={"size": 2e5, "latency": 100.0, "psnr": 30.0, "fidelity": 100.0}),
        Structure(),
    )


def run(study: Study, count: int) -> list[Record]:
    records = []
    for _ in range(count):
        asked = study.ask()
        records.append(study.tell(asked.number, asked.policy, result(asked.policy), Structure()))
    return records


@pytest.mark.parametrize("sampler", ["auto", "nsga2", "random"])
def test_same_seed_same_suggestions(tmp_path: Path, sampler: str) -> None:
    first = run(make(tmp_path / "a", sampler=sampler), 14)
    again = run(make(tmp_path / "b", sampler=sampler), 14)
    assert [record.policy for record in first] == [record.policy for record in again]
    assert len({json.dumps(record.policy) for record in first}) > 8


def test_gp_suggests(tmp_path: Path) -> None:
    first, again = (run(make(tmp_path / name, sampler="gp", budget=5), 4) for name in "ab")
    assert [record.policy for record in first] == [record.policy for record in again]


def test_another_seed_gives_other_suggestions(tmp_path: Path) -> None:
    other = StudySpec(trial=TrialSpec(model="srgan", scale=4, seed=1), space=SPACE, objectives=OBJECTIVES)
    environment = {"command": "", "python": "", "machine": "", "versions": {}}
    first = run(make(tmp_path / "a"), 3)
    second = run(Study.create(tmp_path / "b", other, environment), 3)
    assert [record.policy for record in first] != [record.policy for record in second]


def test_what_is_told_is_on_disk_and_read_back(tmp_path: Path) -> None:
    study = make(tmp_path / "s")
    float_baseline(study)
    told = run(study, 3)
    asked = study.ask()
    failed = study.tell(asked.number, asked.policy, TrialResult(state="failed", reason="training diverged"), Structure())
    again = Study.open(tmp_path / "s")
    assert again.records()[1:] == [*told, failed]
    assert again.spec == study.spec
    assert again.space == study.space
    data = json.loads(to_json(document(again.name, again.spec, again.results(), 1.5)))
    assert [trial["number"] for trial in data["trials"]] == [0, 1, 2, 3]
    assert data["trials"][3]["reason"] == "training diverged"
    assert data["baselines"]["float"]["psnr"] == 30.0
    assert data["initial_trials_alone"] is None
    assert {"name": "psnr", "direction": "maximize", "unit": "dB"} in data["objectives"]


def test_front_and_hypervolume_by_hand(tmp_path: Path) -> None:
    study = make(tmp_path / "s", objectives=("size", "psnr"))
    values = [(100.0, 30.0), (60.0, 29.0), (50.0, 29.5), (40.0, 20.0)]
    for number, (size, psnr) in enumerate(values):
        found = TrialResult(state="complete", values={"size": size, "psnr": psnr, "fidelity": 40.0})
        study.add_baseline("float" if number == 0 else f"b{number}", Policy(()), found, Structure())
    records = study.records()
    assert [record.name for record in Results(records, ("size", "psnr")).front] == ["b3", "b2", "float"]
    # reference: 1.01 x size, 3 dB below; b3 lies outside it
    assert Results(records, ("size", "psnr")).reference_point == [101.0, 27.0]
    expected = ((101 - 50) * 2.5 + (101 - 100) * 0.5) / (101 * 27)
    assert Results(records, ("size", "psnr")).hypervolume == pytest.approx(expected)
    assert Results(records[1:], ("size", "psnr")).hypervolume is None, "no float, no reference"


def test_fidelity_counts_from_30_db_on_whatever_the_float_network_is_worth(tmp_path: Path) -> None:
    objectives = ("size", "fidelity")
    study = make(tmp_path / "s", objectives=objectives, constraints=("fidelity>=29",))
    values = {"float": (100.0, 100.0), "b1": (60.0, 45.0), "b2": (50.0, 29.5), "b3": (40.0, 28.0)}
    for name, (size, fidelity) in values.items():
        found = TrialResult(state="complete", values={"size": size, "psnr": 30.0, "fidelity": fidelity})
        assert study.add_baseline(name, Policy(()), found, Structure()).feasible == (name != "b3")
    records = study.records()
    assert [record.name for record in Results(records, objectives).front] == ["b2", "b1", "float"]
    assert Results(records, objectives).reference_point == [101.0, 30.0]
    expected = ((101 - 60) * 15 + (101 - 100) * (100 - 45)) / (101 * 30)
    assert Results(records, objectives).hypervolume == pytest.approx(expected)
    study.close()


def test_quality_guard_keeps_noise_off_the_front(tmp_path: Path) -> None:
    study = make(tmp_path / "s", objectives=("size", "latency", "niqe"))
    asked = study.ask()
    noisy = study.tell(asked.number, asked.policy, result(asked.policy, niqe=1.0, fidelity=25.0), Structure())
    asked = study.ask()
    faithful = study.tell(asked.number, asked.policy, result(asked.policy, niqe=4.0, fidelity=31.0), Structure())
    assert (noisy.feasible, faithful.feasible) == (False, True)
    assert study.results().front == [faithful]


def test_replications_by_their_earlier_file_name_are_read_and_continued(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    study = make(tmp_path / "study")
    policy = study.ask().policy
    first, second = (Replication(policy=policy.hash, seed=seed, result=TrialResult(state="failed", reason="x")) for seed in (1, 2))
    study.add_replication(first)
    study.replications_path.rename(study.folder / "confirmed.jsonl")
    opened = Study.open(study.folder)
    assert caplog.messages == ["study of an earlier version: confirmed.jsonl is now replications.jsonl"]
    opened.add_replication(second)
    assert Study.open(study.folder).replications() == [first, second]


def test_an_existing_study_is_not_overwritten(tmp_path: Path) -> None:
    make(tmp_path / "s")
    with pytest.raises(StudyError, match="exists already; add --resume to continue it, or give another --study NAME"):
        make(tmp_path / "s")


def test_unusable_folders_and_lines(tmp_path: Path) -> None:
    with pytest.raises(StudyError, match=r"there is no such study"):
        Study.open(tmp_path / "none")
    (tmp_path / "odd").mkdir()
    (tmp_path / "odd" / "study.yaml").write_text("definition: {}\nenvironment: {}")
    with pytest.raises(StudyError, match=r"study\.yaml is not a study definition"):
        Study.open(tmp_path / "odd")
    study = make(tmp_path / "s")
    float_baseline(study)
    with study.trials_path.open("a") as lines:
        lines.write("{half a line\n")
    with pytest.raises(StudyError, match=r"trials\.jsonl: line 2 is not a valid record"):
        study.records()


@pytest.mark.parametrize("name", ["../out", "a/b", "", ".hidden", "a b"])
def test_study_names_stay_below_their_folder(name: str) -> None:
    with pytest.raises(StudyError, match="expected a name of up to 100 letters"):
        study_folder(name)


def test_a_study_s_path_is_taken(tmp_path: Path) -> None:
    assert study_folder("studies/x/") == study_folder("./studies/x") == study_folder("x") == Path("studies/x")
    assert study_folder(str(tmp_path / "x")) == tmp_path / "x"
