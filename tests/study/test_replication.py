"""Which points train again, in which order, and when there is no time left for more."""

from __future__ import annotations

import pytest

from autoq.config.policy import Policy, uniform
from autoq.config.spec import Record, StudySpec, TrialSpec
from autoq.study.replication import SHARE, planned, replication_seeds
from autoq.study.results import Results, point_name

STAGES = {"head": ("weight", "activation"), "body": ("weight", "activation")}


def policy(bits: int) -> Policy:
    return uniform(f"{bits}/{bits}", STAGES)


def point(bits: int, size: float, latency: float, psnr: float, seconds: float = 10.0, **fields: object) -> Record:
    given = {"number": bits, "source": "trial", "state": "complete", "policy": policy(bits).to_dict(), "label": "", **fields}
    return Record(values={"size": size, "latency": latency, "psnr": psnr}, steps=100, seconds=seconds, **given)


def spec(replications: int, seed: int = 3) -> StudySpec:
    return StudySpec(
        trial=TrialSpec(model="srgan", seed=seed), space={}, objectives=("size", "latency", "psnr"), replications=replications
    )


FLOAT = point(32, 400, 40, 30.0, number=None, name="float", source="baseline")
FRONT = [
    point(2, 90, 30, 29.0),  # of the rest
    point(3, 50, 38, 28.0),  # least bytes
    point(4, 100, 31, 29.4),  # nearest to the best of all: 1/4, 3/10 and 3/10 of the way from best to worst
    point(5, 250, 28, 29.1),  # least milliseconds
    point(6, 150, 37, 29.92),  # close to float: the smallest
    point(7, 200, 35, 29.91),  # close to float: the fastest
    point(8, 240, 36, 30.0),  # best quality
]
BY_INTEREST = [6, 7, 4, 3, 5, 8, 2]
OFF_FRONT = [point(9, 260, 39, 29.0), point(10, 1, 1, 40.0, state="pruned"), point(11, 1, 1, 40.0, feasible=False)]


def names(records: list[Record], replications: int, seed: int = 3) -> list[tuple[str, int]]:
    found = spec(replications, seed)
    plan = planned(Results(records, found.objectives), replication_seeds(found))
    assert all(Policy.from_dict(each.record.policy) == each.policy for each in plan)
    return [(point_name(each.record), each.seed) for each in plan]


def test_recommended_points_come_first_then_the_ends_then_the_rest() -> None:
    plenty = [*FRONT, *OFF_FRONT, FLOAT.model_copy(update={"seconds": 1e4})]
    expected = [(f"trial {bits}", seed) for seed in (8, 9) for bits in BY_INTEREST]
    assert names(plenty, 2, seed=7) == expected
    assert names(list(reversed(plenty)), 2, seed=7) == expected, "the order in which trials ended does not matter"


@pytest.mark.parametrize("trainings", [3, 4, 7, 14, 21, 30])
def test_they_take_a_share_of_the_time_of_all_trials(trainings: int) -> None:
    """Every point with a seed before the next seed; there is time for so many trainings of 10 s, and a half."""
    records = [*FRONT, *OFF_FRONT]
    whole = 10 * (trainings + 0.5) / SHARE
    rest = FLOAT.model_copy(update={"seconds": whole - sum(record.seconds for record in records)})
    found = names([*records, rest], 3)
    assert found == [(f"trial {bits}", seed) for seed in (4, 5, 6) for bits in BY_INTEREST][:trainings]


def test_what_takes_longer_counts_more() -> None:
    slow = [record.model_copy(update={"seconds": 25.0 if record.number == 7 else 10.0}) for record in FRONT]
    rest = FLOAT.model_copy(update={"seconds": 46.0 / SHARE - sum(record.seconds for record in slow)})
    assert names([*slow, rest], 2) == [("trial 6", 4), ("trial 7", 4), ("trial 4", 4)]


def test_nothing_to_repeat() -> None:
    assert names([*FRONT, FLOAT], 0) == []
    assert names([FLOAT], 2) == [], "no seed changes the float network"
    assert names([], 2) == []
