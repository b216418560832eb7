"""Studies of earlier versions are read as this one would have written them."""

from __future__ import annotations

import json
from pathlib import Path

from autoq.config.policy import Policy
from autoq.config.spec import Confirmation, Record, Rung, TrialResult
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


def test_held_out_qualities_were_beside_a_confirmation_s_result() -> None:
    old = {"policy": "0123456789ab", "seed": 1, "result": OLD, "unseen": {"psnr": 27.5, "psnr_to_float": 40.5}}
    found = Confirmation.model_validate_json(json.dumps(old))
    assert (found.policy, found.seed) == ("0123456789ab", 1)
    assert found.result.held_out == {"psnr": 27.5, "fidelity": 40.5}
    assert found.result.values == TrialResult.model_validate(OLD).values
    assert "unseen" not in found.model_dump_json()
    assert Confirmation.model_validate_json(found.model_dump_json()) == found
    failed = {**old, "result": {"state": "failed", "reason": "diverged"}, "unseen": {}}
    assert Confirmation.model_validate(failed).result == TrialResult(state="failed", reason="diverged")


def test_an_earlier_study_is_read(tmp_path: Path) -> None:
    """Nothing was known of its points on held-out images but what training the front again said."""
    study = make(tmp_path / "s", objectives=("size", "psnr"), confirm=1)
    study.trials_path.write_text(json.dumps(RECORD) + "\n")
    again = {"policy": Policy.from_dict(RECORD["policy"]).hash, "seed": 1, "result": OLD, "unseen": {"psnr": 27.5}}  # type: ignore[arg-type]
    study.confirmed_path.write_text(json.dumps(again) + "\n")
    assert [record.values["fidelity"] for record in study.records()] == [41.5]
    assert study.front["fidelity"].tolist() == [41.5]
    assert [each.result.held_out for each in study.confirmations()] == [{"psnr": 27.5}]
    assert study.confirmed == []
    study.close()
