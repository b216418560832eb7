"""Which point of a study a number, a name or a rule means."""

from __future__ import annotations

import pytest

from autoq.errors import InputError
from autoq.pick import by_name, by_number, by_rule
from autoq.spec import Record

OBJECTIVES = ("size", "latency", "psnr")


def record(
    number: int | None, size: float, latency: float, psnr: float, name: str | None = None, state: str = "complete"
) -> Record:
    values = {"size": size, "latency": latency, "psnr": psnr, "ssim": psnr / 100}
    return Record(
        number=number, name=name, source="baseline" if name else "trial", state=state, policy={"stages": {}, "output": "float"}, label="",
        structure="", values=values, feasible=state == "complete", steps=100, seconds=1.0, reason="others are better" if state == "pruned" else None,
    )  # type: ignore[arg-type]  # fmt: skip


RECORDS = [
    record(None, 4096, 200, 30.0, "float"),
    record(None, 1024, 40, 29.7, "8/8/8"),
    record(0, 2048, 100, 29.99),
    record(1, 512, 40, 29.0),
    record(2, 1100, 20, 29.6),
    record(3, 3000, 150, 20.0),
    record(4, 1, 1, 40.0, state="pruned"),
]


@pytest.mark.parametrize(
    ("rule", "number"),
    [
        ("size", 1),
        ("latency", 2),
        ("psnr", 0),
        ("ssim", 0),
        ("knee", None),
        ("psnr_drop<=0.2 then size", 0),
        ("psnr_drop<=0.5, latency<=30ms then size", 2),
        ("size<=1KiB then psnr", None),
        ("trial 3", 3),
    ],
)
def test_rules(rule: str, number: int | None) -> None:
    """None is 8/8/8, which has no number. Knee: its shares are 0.33, 0.25 and 0.29; those of trial 2 0.38, 0 and 0.39."""
    assert by_rule(RECORDS, OBJECTIVES, rule).number == number


def test_the_knee_is_the_nearest_to_the_best_of_all() -> None:
    """Each objective counted from its best to its worst on the front."""
    front = [each for each in RECORDS if each.number in (1, 2) or each.name == "8/8/8"]
    shares = {"8/8/8": (512 / 588, 1, 0), "trial 1": (0, 1, 1), "trial 2": (1, 0, 1 / 7)}
    nearest = min(shares, key=lambda name: sum(share**2 for share in shares[name]))
    found = by_rule(front, OBJECTIVES, "knee")
    assert nearest == "trial 2" == f"trial {found.number}"


def test_names_and_numbers() -> None:
    assert by_name(RECORDS, "8/8/8").name == "8/8/8"
    assert by_number(RECORDS, 3).number == 3
    assert by_rule(RECORDS, OBJECTIVES, "float").name == "float"


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        ("knie", "unknown objective 'knie'"),
        ("psnr_drop<=0.2 then sise", "unknown objective 'sise'.*Did you mean 'size'"),
        ("psnr>=31 then size", "no point of the front keeps psnr>=31"),
        ("psnr=>3 then size", "constraint 'psnr=>3': expected NAME<=NUMBER"),
        ("niqe", "niqe was not measured"),
        ("niqe<=3 then size", "niqe was not measured"),
        ("trial 4", "cannot be exported: pruned, others are better"),
    ],
)
def test_rules_that_mean_nothing(rule: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        by_rule(RECORDS, OBJECTIVES, rule)


def test_numbers_that_are_not_there() -> None:
    with pytest.raises(InputError, match="has no 'trial 9'; type one of: float, 8/8/8, trial 0"):
        by_number(RECORDS, 9)
    with pytest.raises(InputError, match="the front holds nothing but the float network"):
        by_rule(RECORDS[:1], OBJECTIVES, "knee")
