"""Studies of earlier versions are read as this one would have written them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from autoq.config.policy import Policy
from autoq.config.spec import Record, Replication, Rung, Sensitivity, StudyFile, TrialResult
from autoq.study.study import Study
from tests.study.test_study import make

OLD = {
    "state": "complete",
    "values": {"size": 50.0, "psnr": 29.8, "psnr_to_float": 41.5},
    "steps": 100,
    "seconds": 2.0,
    "reason": None,
}
RECORD = {
    "number": None,
    "name": "8/8/8",
    "source": "baseline",
    "policy": {"stages": {}, "output": "float"},
    "label": "8/8/8",
    **OLD,
}


def test_fidelity_was_psnr_to_float() -> None:
    expected = {"size": 50.0, "psnr": 29.8, "fidelity": 41.5}
    assert TrialResult.model_validate(OLD).values == expected
    assert Rung.model_validate({"number": 1, "policy": "a", "until": 25, "result": OLD}).result.values == expected
    record = Record.model_validate_json(json.dumps(RECORD))
    assert (record.values, record.held_out) == (expected, {})
    assert "psnr_to_float" not in record.model_dump_json()
    assert Record.model_validate_json(record.model_dump_json()) == record


def test_held_out_qualities_were_beside_the_result_of_a_replication() -> None:
    old = {"policy": "0123456789ab", "seed": 1, "result": OLD, "unseen": {"psnr": 27.5, "psnr_to_float": 40.5}}
    found = Replication.model_validate_json(json.dumps(old))
    assert (found.policy, found.seed) == ("0123456789ab", 1)
    assert found.result.held_out == {"psnr": 27.5, "fidelity": 40.5}
    assert found.result.values == TrialResult.model_validate(OLD).values
    assert "unseen" not in found.model_dump_json()
    assert Replication.model_validate_json(found.model_dump_json()) == found
    failed = {**old, "result": {"state": "failed", "reason": "diverged"}, "unseen": {}}
    assert Replication.model_validate(failed).result == TrialResult(state="failed", reason="diverged")


def test_an_earlier_study_is_read(tmp_path: Path) -> None:
    """Nothing was known of its points on held-out images but what training the front again said."""
    study = make(tmp_path / "s", objectives=("size", "psnr"), replications=1)
    study.trials_path.write_text(json.dumps(RECORD) + "\n")
    again = {"policy": Policy.from_dict(RECORD["policy"]).hash, "seed": 1, "result": OLD, "unseen": {"psnr": 27.5}}
    study.replications_path.write_text(json.dumps(again) + "\n")
    assert [record.values["fidelity"] for record in study.records()] == [41.5]
    assert study.front["fidelity"].tolist() == [41.5]
    assert [each.result.held_out for each in study.replications()] == [{"psnr": 27.5}]
    assert study.replicated_points == []
    study.close()


DEFINITION = {
    "trial": {"model": "srgan", "steps": 8},
    "space": {"model": "srgan", "stages": {}},
    "objectives": ["size", "psnr"],
    "seeds": 4,
    "confirm": 2,
    "hand_rule": True,
}
ENVIRONMENT = {"command": "autoq search", "python": "3", "machine": "m", "versions": {}}


def test_definitions_of_earlier_versions_are_read_with_one_line_of_notice(caplog: pytest.LogCaptureFixture) -> None:
    file = StudyFile.model_validate({"definition": DEFINITION, "environment": ENVIRONMENT})
    spec = file.definition
    assert (spec.initial_trials, spec.replications, spec.first_last_16) == (4, 2, True)
    assert spec.trial.exact_weight_bits == 8, "it did not say so"
    assert caplog.messages == [
        "study of an earlier version: seeds is now initial_trials, confirm is now replications, hand_rule is now first_last_16"
    ]
    caplog.clear()
    assert StudyFile.model_validate(file.model_dump(mode="json")) == file
    assert caplog.messages == []


def test_records_and_sensitivity_of_earlier_versions_are_read() -> None:
    assert Record.model_validate({**RECORD, "name": "hand rule"}).name == "first-last-16"
    found = Sensitivity.model_validate({"probes": [], "seeds": [{"stages": {}}], "predicted": [0.5]})
    assert found.initial_trials == ({"stages": {}},)
    assert Sensitivity.model_validate_json(found.model_dump_json()) == found


STUDIES = [file.parent for file in sorted(Path(__file__).parents[2].glob("studies/*/study.yaml"))]


@pytest.mark.parametrize("folder", STUDIES, ids=lambda folder: folder.name)
def test_the_studies_here_have_the_names_of_this_version(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    study = Study.open(folder)
    assert caplog.messages == []
    assert "first-last-16" in {record.name for record in study.records()}
    assert study.spec.first_last_16
    assert study.spec.replications == 3
    sensitivity = study.sensitivity()
    assert sensitivity is not None
    assert len(sensitivity.initial_trials) == study.spec.initial_trials == 12
