from pathlib import Path

import pytest

from autoq.config.constraints import parse
from autoq.config.spec import TrialResult
from autoq.config.structure import Structure
from autoq.errors import InputError
from tests.study.test_study import float_baseline, make, result

FLOAT = {"size": 6e6, "latency": 300.0, "psnr": 30.0, "niqe": 4.0}


@pytest.mark.parametrize(
    ("text", "name", "bound", "exact"),
    [
        ("size<=400KiB", "size", 400 * 1024, True),
        ("size <= 1.5 MB", "size", 1.5e6, True),
        ("latency<=0.02s", "latency", 20, True),
        ("psnr_drop<=0.1", "psnr_drop", 0.1, False),
        ("psnr>=29.5dB", "psnr", 29.5, False),
        ("niqe_drop<=0.2", "niqe_drop", 0.2, False),
        ("fidelity >= 40", "fidelity", 40, False),
        ("fidelity>=40dB", "fidelity", 40, False),
    ],
)
def test_bounds_are_read_in_their_units(text: str, name: str, bound: float, exact: bool) -> None:
    found = parse(text)
    assert (found.name, found.bound, found.exact) == (name, pytest.approx(bound), exact)
    assert found.text == text.replace(" ", "")
    assert parse(found.text) == found


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("size<400", "expected NAME<=VALUE"),
        ("size<=-4", "expected NAME<=VALUE"),
        ("sise<=4", "unknown name 'sise' \\(did you mean 'size'\\?\\)"),
        ("size_drop<=4", "unknown name 'size_drop'"),
        ("size<=4ms", "size is measured in bytes; type --constraint 'size<=4'"),
        ("ssim<=4dB", "ssim is measured in plain numbers"),
        ("psnr_to_float>=40", "unknown name 'psnr_to_float'"),
        ("fidelity>=40ms", "fidelity is measured in dB; type --constraint 'fidelity>=40dB'"),
    ],
)
def test_what_is_no_bound_is_refused(text: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        parse(text)


def test_violations_are_shares_of_the_bound() -> None:
    values = {"size": 5e6, "latency": 330.0, "psnr": 29.5, "niqe": 4.5}
    assert parse("size<=4000000").violation(values, FLOAT) == pytest.approx(0.25)
    assert parse("latency<=660").violation(values, FLOAT) == pytest.approx(-0.5)
    assert parse("psnr_drop<=1").violation(values, FLOAT) == pytest.approx(-0.5)
    assert parse("niqe_drop<=0.25").violation(values, FLOAT) == pytest.approx(1.0)
    assert parse("psnr>=59").violation(values, FLOAT) == pytest.approx(0.5)
    assert parse("psnr_drop<=0").violation(values, FLOAT) == pytest.approx(0.5)
    for fidelity, beyond in ((39.0, 0.025), (40.0, 0.0), (44.0, -0.1)):
        assert parse("fidelity>=40").violation({"fidelity": fidelity}, FLOAT) == pytest.approx(beyond)


def test_a_study_keeps_what_breaks_a_bound_off_its_front(tmp_path: Path) -> None:
    study = make(tmp_path / "s", constraints=("size<=30000", "psnr_drop<=0.8"))
    float_baseline(study)
    kept = []
    for _ in range(12):
        asked = study.ask()
        record = study.tell(asked.number, asked.policy, result(asked.policy), Structure())
        assert record.feasible == (record.values["size"] <= 30000 and 30 - record.values["psnr"] <= 0.8)
        assert study.affordable(record.values) == (record.values["size"] <= 30000)
        kept.append(record.feasible)
    assert set(kept) == {True, False}
    assert set(study.front["point"]) <= {f"trial {number}" for number, feasible in enumerate(kept) if feasible}
    (stored,) = study.storage.backend.get_all_studies()
    (trial, *_) = study.storage.backend.get_all_trials(stored._study_id)
    assert set(trial.constraints) == {"size<=30000", "psnr_drop<=0.8"}
    failed = study.ask()
    assert not study.tell(failed.number, failed.policy, TrialResult(state="failed", reason="x"), Structure()).feasible
    study.close()
