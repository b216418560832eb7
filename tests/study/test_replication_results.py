"""What is said of a front on held-out images and with other seeds: intervals, ranks, who leaves."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
from scipy import stats

from autoq.config.constraints import parse_all
from autoq.config.policy import Policy, uniform
from autoq.config.spec import Record, Remeasured, Replication, TrialResult
from autoq.study.intervals import mean_interval, median_interval
from autoq.study.replication import ReplicatedPoint, document, in_words, rank_agreement, replicated_points
from autoq.study.results import Results, point_name, to_json

STAGES = {"head": ("weight", "activation"), "body": ("weight", "activation")}
OBJECTIVES = ("size", "latency", "psnr")


def policy(bits: int) -> Policy:
    return uniform(f"{bits}/{bits}", STAGES)


def point(bits: int, size: float, latency: float, psnr: float, apart: float | None, **fields: Any) -> Record:
    """A point with its PSNR on the search's images and, where it is known, on held-out ones."""
    held_out = {} if apart is None else {"psnr": apart}
    values = {"size": size, "latency": latency, "psnr": psnr}
    given = {"number": bits, "source": "trial", "state": "complete", "label": "", **fields}
    return Record(policy=policy(bits).to_dict(), values=values, held_out=held_out, **given)


def trainings(bits: int, again: Sequence[float], apart: Sequence[float]) -> list[Replication]:
    return [
        Replication(
            policy=policy(bits).hash, seed=seed, result=TrialResult(state="complete", values={"psnr": a}, held_out={"psnr": b})
        )
        for seed, (a, b) in enumerate(zip(again, apart, strict=True), 1)
    ]


FLOAT = point(32, 100, 10, 30.0, 28.0, number=None, name="float", source="baseline")
FRONT = [FLOAT, point(8, 50, 5, 29.9, 27.0), point(6, 40, 5, 29.8, 27.4), point(4, 30, 5, 29.0, 26.0)]
FAILED = Replication(policy=policy(4).hash, seed=3, result=TrialResult(state="failed", reason="diverged"))
REPLICATIONS = [
    *trainings(8, [29.7, 29.8, 29.6], [27.0, 27.2, 27.1]),
    *trainings(6, [29.9, 29.8, 29.7], [27.5, 27.4, 27.3]),
    *trainings(4, [29.0, 28.9], [26.0, 26.2]),
    FAILED,
]
NONE = Remeasured(samples={})


def names(points: Sequence[ReplicatedPoint]) -> list[tuple[str, bool]]:
    return [(point_name(each.record), each.stays) for each in points]


def test_who_leaves_the_front_and_in_which_order() -> None:
    again = Remeasured(samples={policy(4).hash: (5.5,) * 15})
    found = replicated_points(Results(FRONT, OBJECTIVES), REPLICATIONS, again)
    # six is smaller than eight, and better on held-out images
    assert names(found) == [("trial 4", True), ("trial 6", True), ("trial 8", False), ("float", True)]
    assert (found[2].dominated, found[2].breaks) == (True, ())
    assert [each.seeds for each in found] == [2, 3, 3, 0]
    assert found[0].reason == "diverged"
    assert [each.latency and each.latency.middle for each in found] == [5.5, None, None, None]
    sentence = in_words(found, Results(FRONT, OBJECTIVES))
    assert "3 of 4 points stay on the front (rank correlation of psnr over all fully trained points: 0.50)" in sentence
    assert "3 points were trained again with other seeds; at worst, psnr changed by -0.20 dB (trial 8)" in sentence
    assert sentence.endswith("1 could not be trained again: diverged.")


def test_replicated_is_of_other_seeds_alone_and_held_out_of_all_trainings() -> None:
    four, six, eight, exact = replicated_points(Results(FRONT, OBJECTIVES), REPLICATIONS, NONE)
    for each, again, apart in (
        (eight, [29.7, 29.8, 29.6], [27.0, 27.0, 27.2, 27.1]),
        (six, [29.9, 29.8, 29.7], [27.4, 27.5, 27.4, 27.3]),
        (four, [29.0, 28.9], [26.0, 26.0, 26.2]),
    ):
        for found, values in ((each.replicated["psnr"], again), (each.held_out["psnr"], apart)):
            low, high = stats.t.interval(0.95, len(values) - 1, np.mean(values), stats.sem(values))
            assert (found.middle, found.low, found.high) == pytest.approx((np.mean(values), low, high))
    assert exact.replicated == {}
    assert (exact.held_out["psnr"].middle, exact.held_out["psnr"].high) == (28.0, math.inf)


def brute_force(records: Sequence[Record]) -> list[tuple[str, bool]]:
    """Points of the front on the search's images, and whether no fully trained one beats them on held-out images."""

    def beaten(one: Record, quality: Callable[[Record], float]) -> bool:
        losses = [(each.values["size"], each.values["latency"], -quality(each)) for each in (one, *records)]
        return any(all(a <= b for a, b in zip(other, losses[0], strict=True)) and other != losses[0] for other in losses[1:])

    front = [each for each in records if not beaten(each, lambda record: record.values["psnr"])]
    order = sorted(front, key=lambda record: record.values["size"])
    return [(point_name(each), not beaten(each, lambda record: record.held_out["psnr"])) for each in order]


def test_points_are_held_against_every_fully_trained_one() -> None:
    """Larger ones are better on the search's images, more or less."""
    random = np.random.default_rng(2)
    records = [point(32, 20, 20, 21.0, 21.0, number=None, name="float", source="baseline")]
    for size in range(2, 16):
        psnr, apart = (size + random.normal(0, 3, 2)).tolist()
        records.append(point(size, size, random.integers(1, 5), psnr, apart))
    found = names(replicated_points(Results(records, OBJECTIVES), [], NONE))
    assert found == brute_force(records)
    assert {True, False} == {stays for _, stays in found}
    alone = [record for record in records if point_name(record) in dict(found)]
    assert names(replicated_points(Results(alone, OBJECTIVES), [], NONE)) != found, (
        "against each other alone more of them would stay"
    )


@pytest.mark.parametrize(
    "fields", [{"state": "pruned", "reason": "others are better"}, {"feasible": False}, {"state": "failed"}], ids=str
)
def test_what_did_not_train_fully_or_breaks_a_bound_beats_nobody(fields: dict[str, Any]) -> None:
    """It is smaller, and better on held-out images than all."""
    better = point(5, 1, 1, 40.0, 40.0, **fields)
    assert names(replicated_points(Results([*FRONT, better], OBJECTIVES), [], NONE)) == names(
        replicated_points(Results(FRONT, OBJECTIVES), [], NONE)
    )
    unseen = point(5, 1, 1, 20.0, None)  # of an earlier version
    assert names(replicated_points(Results([*FRONT, unseen], OBJECTIVES), [], NONE)) == names(
        replicated_points(Results(FRONT, OBJECTIVES), [], NONE)
    )


def test_rank_agreement_is_spearman_s_over_all_fully_trained_points() -> None:
    random = np.random.default_rng(0)
    psnr, apart = random.normal(30, 1, 8), random.normal(27, 1, 8)
    records = [point(bits, 40, 5, *pair) for bits, pair in enumerate(zip(psnr, apart, strict=True), 2)]
    ranks = np.argsort(np.argsort(psnr)) - np.argsort(np.argsort(apart))
    expected = 1 - 6 * (ranks**2).sum() / (8 * 63)
    others = [FLOAT, point(10, 40, 5, 20.0, 40.0, state="pruned"), point(11, 40, 5, 20.0, None)]
    assert rank_agreement([*records, *others], "psnr") == pytest.approx(expected)
    assert rank_agreement([*records[:2], *others], "psnr") is None, "two points agree or they do not"
    assert rank_agreement(records, "fidelity") is None
    assert rank_agreement([point(bits, 40, 5, 30.0, 27.0 + bits) for bits in range(2, 6)], "psnr") is None, "nothing differs"


def test_nothing_known_of_held_out_images_is_nothing_said() -> None:
    earlier = [record.model_copy(update={"held_out": {}}) for record in FRONT]
    assert replicated_points(Results(earlier, OBJECTIVES), REPLICATIONS, NONE) == []
    assert in_words([], Results(earlier, OBJECTIVES)) == ""
    assert document([], Results(earlier, OBJECTIVES)) == {"rank_agreement": {"psnr": None}, "stay": 0, "front": []}


def test_without_other_seeds_the_search_s_own_training_is_judged() -> None:
    found = replicated_points(Results(FRONT, OBJECTIVES), [], NONE)
    assert names(found) == [("trial 4", True), ("trial 6", True), ("trial 8", False), ("float", True)]
    assert in_words(found, Results(FRONT, OBJECTIVES)) == (
        "On held-out images, 3 of 4 points stay on the front (rank correlation of psnr over all fully trained points: 0.50)."
    )


def test_equal_points_stay() -> None:
    """On the front of the search's images there is one of them; on held-out images they are no better than each other."""
    records = [FLOAT, point(8, 50, 5, 29.8, 27.0), point(6, 50, 5, 29.7, 27.0)]
    assert names(replicated_points(Results(records, OBJECTIVES), [], NONE)) == [("trial 8", True), ("float", True)]


def test_bounds_are_judged_by_what_was_repeated() -> None:
    records = [FLOAT, point(8, 50, 5, 29.8, 27.0)]
    runs, again = trainings(8, [29.7, 29.7], [27.0, 27.0]), Remeasured(samples={policy(8).hash: (5.0,) * 15})
    bounds = parse_all(["latency<=4.9ms", "psnr_drop<=0.25", "size<=60B"])
    eight, exact = replicated_points(Results(records, OBJECTIVES), runs, again, bounds)
    assert (eight.breaks, eight.stays) == (("latency<=4.9ms", "psnr_drop<=0.25"), False)
    assert exact.breaks == ("latency<=4.9ms", "size<=60B")
    eight, _ = replicated_points(Results(records, OBJECTIVES), [], NONE, parse_all(["latency<=5ms", "psnr_drop<=0.25"]))
    assert (eight.breaks, eight.stays) == ((), True)


def test_without_a_quality_of_its_own_psnr_is_judged() -> None:
    records = [point(8, 50, 5, 29.8, 27.0), point(6, 40, 6, 29.7, 27.5)]
    found = replicated_points(Results(records, ("size", "latency")), [], NONE)
    assert [(each.held_out["psnr"].middle, each.dominated) for each in found] == [(27.5, False), (27.0, False)]


def test_one_training_has_no_interval_and_json_stays_strict() -> None:
    results = Results([FLOAT, FRONT[1]], OBJECTIVES)
    found = document(replicated_points(results, trainings(8, [29.5], [27.0]), NONE), results)
    assert json.loads(to_json(found)) == {
        "rank_agreement": {"psnr": None},
        "stay": 2,
        "front": [
            {
                "point": "trial 8", "seeds": 1, "latency": None, "stays": True, "breaks": [], "reason": None,
                "replicated": {"psnr": {"middle": 29.5, "low": None, "high": None}},
                "held_out": {"psnr": {"middle": 27.0, "low": 27.0, "high": 27.0}},
            },
            {
                "point": "float", "seeds": 0, "latency": None, "stays": True, "breaks": [], "reason": None,
                "replicated": {}, "held_out": {"psnr": {"middle": 28.0, "low": None, "high": None}},
            },
        ],
    }  # fmt: skip


def test_the_interval_of_a_mean_is_student_s() -> None:
    values = [29.1, 29.4, 29.0]
    low, high = stats.t.interval(0.95, 2, np.mean(values), stats.sem(values))
    found = mean_interval(values)
    assert (found.low, found.high) == pytest.approx((low, high))


@pytest.mark.parametrize("count", [6, 9, 15, 40])
def test_the_interval_of_a_median_holds_it_often_enough(count: int) -> None:
    sample = list(map(float, range(count)))
    found = median_interval(sample)  # of ranks: which values of a sample it is between
    drawn = np.sort(np.random.default_rng(0).normal(size=(2000, count)))
    share = np.mean((drawn[:, int(found.low)] <= 0) & (drawn[:, int(found.high)] >= 0))
    assert share >= 0.94
    wider = [i for i in range(count // 2) if 1 - 2 * stats.binom.cdf(i, count, 0.5) >= 0.95]
    assert found.low == wider[-1]
