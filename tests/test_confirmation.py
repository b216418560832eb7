"""What is said of a front that was trained again: intervals, ranks, who leaves."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pytest
from scipy import stats

from autoq.confirmation import confirmed, entries, in_words, mean_interval, median_interval
from autoq.constraints import parse_all
from autoq.findings import to_json
from autoq.policy import Policy, uniform
from autoq.spec import Confirmation, Record, Remeasured, TrialResult

STAGES = {"head": ("weight", "activation"), "body": ("weight", "activation")}
OBJECTIVES = ("size", "latency", "psnr")


def policy(bits: int) -> Policy:
    return uniform(f"{bits}/{bits}", STAGES)


def point(bits: int, size: float, latency: float, psnr: float, name: str | None = None) -> Record:
    values = {"size": size, "latency": latency, "psnr": psnr}
    number = None if name else bits
    source = "baseline" if name else "trial"
    return Record(number=number, name=name, source=source, state="complete", policy=policy(bits).to_dict(), label="", values=values)


def trainings(bits: int, again: Sequence[float], unseen: Sequence[float]) -> list[Confirmation]:
    return [
        Confirmation(
            policy=policy(bits).hash, seed=seed, result=TrialResult(state="complete", values={"psnr": a}), unseen={"psnr": b}
        )
        for seed, (a, b) in enumerate(zip(again, unseen, strict=True), 1)
    ]


FRONT = [point(32, 100, 10, 30.0, "float"), point(8, 50, 5, 29.9), point(6, 40, 5, 29.8), point(4, 30, 5, 29.0)]
FAILED = Confirmation(policy=policy(4).hash, seed=3, result=TrialResult(state="failed", reason="diverged"))
CONFIRMATIONS = [
    *trainings(32, [30.0], [28.0]),
    *trainings(8, [29.7, 29.8, 29.6], [27.0, 27.2, 27.1]),
    *trainings(6, [29.9, 29.8, 29.7], [27.5, 27.4, 27.3]),
    *trainings(4, [29.0, 28.9], [26.0, 26.2]),
    FAILED,
]
AGAIN = Remeasured(samples={policy(bits).hash: (ms,) * 15 for bits, ms in ((32, 10.0), (8, 5.0), (6, 5.0), (4, 5.5))})


def test_ranks_and_who_leaves_the_front() -> None:
    exact, eight, six, four = confirmed(FRONT, CONFIRMATIONS, AGAIN, OBJECTIVES)
    assert [each.ranks for each in (exact, eight, six, four)] == [(1, 1, 1), (2, 3, 3), (3, 2, 2), (4, 4, 4)]
    assert [each.changes_rank for each in (exact, eight, six, four)] == [False, True, True, False]
    assert [each.stays for each in (exact, eight, six, four)] == [True, False, True, True]  # six is smaller and better
    assert four.reason == "diverged"
    assert (exact.unseen["psnr"].low, exact.unseen["psnr"].high) == (28.0, 28.0)
    sentence = in_words([exact, eight, six, four])
    assert "3 of 4 points stay on the front and 2 change their rank in psnr" in sentence
    assert "trial 8, changes by -0.20 dB" in sentence


def test_a_point_that_is_slower_than_it_was_leaves() -> None:
    """Larger and a little worse than the other, it stood on the front for its latency."""
    front = [point(8, 50, 4, 29.8), point(6, 40, 5, 29.9)]
    runs = [*trainings(8, [29.8, 29.8], [27.0, 27.0]), *trainings(6, [29.9, 29.9], [27.1, 27.1])]
    for ms, stays in ((4.0, True), (6.0, False)):
        again = Remeasured(samples={policy(8).hash: (ms,) * 15, policy(6).hash: (5.0,) * 15})
        assert [each.stays for each in confirmed(front, runs, again, OBJECTIVES)] == [stays, True]


def test_nothing_trained_again_is_nothing_said() -> None:
    assert confirmed(FRONT, [], AGAIN, OBJECTIVES) == []
    assert in_words([]) == ""
    (lost,) = confirmed(FRONT, [FAILED], AGAIN, OBJECTIVES)
    assert not lost.stays
    assert in_words([lost]) == "1 could not be trained again: diverged."


def test_equal_points_stay_and_bounds_are_judged_again() -> None:
    front = [point(8, 50, 5, 29.8), point(6, 50, 5, 29.8)]
    runs = [*trainings(8, [29.7, 29.7], [27.0, 27.0]), *trainings(6, [29.7, 29.7], [27.0, 27.0])]
    again = Remeasured(samples={policy(8).hash: (5.0,) * 15, policy(6).hash: (5.0,) * 15})
    assert [each.stays for each in confirmed(front, runs, again, OBJECTIVES)] == [True, True]
    bounds = parse_all(["latency<=4.9ms", "psnr_drop<=0.25", "size<=60B"])
    for each in confirmed(front, runs, again, OBJECTIVES, bounds, {"psnr": 30.0}):
        assert each.breaks == ("latency<=4.9ms", "psnr_drop<=0.25")
        assert not each.stays


def test_without_a_quality_of_its_own_psnr_is_judged_and_the_score_follows() -> None:
    front = [point(8, 50, 5, 29.8), point(6, 40, 5, 29.7)]
    runs = [*trainings(8, [29.8, 29.8], [27.0, 27.0]), *trainings(6, [29.9, 29.9], [27.5, 27.5])]
    eight, six = confirmed(front, runs, Remeasured(samples={}), ("size", "score"))
    assert eight.dominated  # larger, and of lower PSNR at the same latency: a lower score
    assert not six.dominated
    assert six.ranks == (2, 1, 1)


def test_one_training_has_no_interval_and_json_stays_strict() -> None:
    (only,) = confirmed([FRONT[1]], trainings(8, [29.5], [27.0]), Remeasured(samples={}), OBJECTIVES)
    assert math.isinf(only.again["psnr"].high)
    assert only.latency is None
    assert '"high": null' in to_json(entries([only]))


def test_the_interval_of_a_mean_is_student_s() -> None:
    values = [29.1, 29.4, 29.0]
    low, high = stats.t.interval(0.95, 2, np.mean(values), stats.sem(values))
    found = mean_interval(values)
    assert (found.low, found.high) == pytest.approx((low, high))


@pytest.mark.parametrize("count", [6, 9, 15, 40])
def test_the_interval_of_a_median_holds_it_often_enough(count: int) -> None:
    random = np.random.default_rng(0)
    found = [median_interval(random.normal(size=count).tolist()) for _ in range(2000)]
    share = np.mean([each.low <= 0 <= each.high for each in found])
    assert share >= 0.94
    wider = [i for i in range(count // 2) if 1 - 2 * stats.binom.cdf(i, count, 0.5) >= 0.95]
    sample = list(map(float, range(count)))
    assert median_interval(sample).low == wider[-1]
