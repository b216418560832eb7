"""Which point of a study a number, a name or a rule means."""

from __future__ import annotations

import pytest

from autoq.config.spec import Record
from autoq.errors import InputError
from autoq.study.results import Results
from autoq.study.selection import CLOSE, by_name, by_number, by_rule, close_to_float, recommended

OBJECTIVES = ("size", "latency", "psnr")


def record(
    number: int | None, size: float, latency: float, psnr: float, name: str | None = None, state: str = "complete"
) -> Record:
    values = {"size": size, "latency": latency, "psnr": psnr, "ssim": psnr / 100}
    return Record(
        number=number, name=name, source="baseline" if name else "trial", state=state, policy={"stages": {}, "output": "float"}, label="",
        values=values, feasible=state == "complete", steps=100, seconds=1.0, reason="others are better" if state == "pruned" else None,
    )  # fmt: skip


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
        ("compromise", None),
        ("psnr_drop<=0.2 then size", 0),
        ("psnr_drop<=0.5, latency<=30ms then size", 2),
        ("size<=1KiB then psnr", None),
        ("trial 3", 3),
    ],
)
def test_rules(rule: str, number: int | None) -> None:
    """None is 8/8/8, which has no number. Compromise: its shares are 0.33, 0.25 and 0.29; those of trial 2 0.38, 0 and 0.39."""
    assert by_rule(Results(RECORDS, OBJECTIVES), rule).number == number


def test_the_compromise_is_the_nearest_to_the_best_of_all() -> None:
    """Each objective counted from its best to its worst on the front."""
    front = [each for each in RECORDS if each.number in (1, 2) or each.name == "8/8/8"]
    shares = {"8/8/8": (512 / 588, 1, 0), "trial 1": (0, 1, 1), "trial 2": (1, 0, 1 / 7)}
    nearest = min(shares, key=lambda name: sum(share**2 for share in shares[name]))
    found = by_rule(Results(front, OBJECTIVES), "compromise")
    assert nearest == "trial 2" == f"trial {found.number}"


def judged(quality: str, value: float, size: float, latency: float, name: str | None = None, **values: float) -> Record:
    """A point that is judged by one quality; its number is its size."""
    made = record(None if name else int(size), size, latency, 20.0, name)
    return made.model_copy(update={"values": {"size": size, "latency": latency, "fidelity": 50.0, quality: value, **values}})


WORTH = {  # of the float network, of the worst that is close to it, and of the next that is not
    "psnr": (30.0, 29.91, 29.89),
    "ssim": (0.9, 0.8971, 0.8969),
    "fidelity": (100.0, 40.1, 39.9),
    "niqe": (4.0, 4.09, 4.11),
    "pi": (2.0, 2.09, 2.11),
}


@pytest.mark.parametrize("quality", CLOSE)
def test_the_smallest_and_the_fastest_are_close_to_float(quality: str) -> None:
    exact, close, far = WORTH[quality]
    objectives = ("size", "latency", quality)
    records = [
        judged(quality, exact, 1000, 100, "float"),
        judged(quality, (exact + close) / 2, 500, 80),
        judged(quality, close, 400, 90),  # the smallest of the close
        judged(quality, close, 450, 70),  # the fastest of the close
        judged(quality, far, 200, 20),  # the nearest to the best of all
    ]
    found = recommended(Results(records, objectives))
    assert {rule: each.number for rule, each in found.items()} == {"smallest": 400, "fastest": 450, "compromise": 200}
    for rule, each in found.items():
        assert by_rule(Results(records, objectives), rule) == each
    assert by_rule(Results(records, objectives), f"{close_to_float(objectives)} then size").number == 400


@pytest.mark.parametrize("quality", CLOSE)
def test_where_no_point_is_close_to_float_the_best_is_taken(quality: str) -> None:
    exact, close, far = WORTH[quality]
    objectives = ("size", "latency", quality)
    farther = far + 2 * (far - close)
    records = [
        judged(quality, exact, 1000, 100, "float"),
        judged(quality, far, 500, 50),
        judged(quality, farther, 100, 49),
    ]
    assert {rule: each.number for rule, each in recommended(Results(records, objectives)).items()} == {
        "smallest": 500, "fastest": 500, "compromise": 100,
    }  # fmt: skip


def test_what_is_fastest_without_a_latency_needs_the_fewest_operations() -> None:
    """Of points that are equally fast the smaller one."""
    objectives = ("size", "bops", "psnr")
    records = [
        judged("psnr", 30.0, 1000, 0, "float", bops=900),
        judged("psnr", 29.99, 500, 0, bops=300),
        judged("psnr", 29.95, 400, 0, bops=350),
    ]
    records = [
        each.model_copy(update={"values": {key: value for key, value in each.values.items() if key != "latency"}})
        for each in records
    ]
    assert {rule: each.number for rule, each in recommended(Results(records, objectives)).items()} == {
        "smallest": 400, "fastest": 500, "compromise": 500,
    }  # fmt: skip
    tied = [judged("psnr", 30.0, 1000, 100, "float"), judged("psnr", 29.99, 500, 50), judged("psnr", 29.95, 400, 50)]
    assert recommended(Results(tied, OBJECTIVES))["fastest"].number == 400


def test_a_study_without_a_quality_is_close_by_fidelity() -> None:
    records = [
        judged("fidelity", 100.0, 1000, 100, "float"),
        judged("fidelity", 41.0, 500, 50),
        judged("fidelity", 39.0, 400, 60),
    ]
    assert close_to_float(("size", "latency")) == "fidelity>=40"
    assert recommended(Results([*records, judged("fidelity", 60.0, 450, 55)], ("size", "latency")))["smallest"].number == 450


def test_a_front_of_the_float_network_alone_recommends_nothing() -> None:
    assert recommended(Results(RECORDS[:1], OBJECTIVES)) == {}
    assert recommended(Results([], OBJECTIVES)) == {}


def test_names_and_numbers() -> None:
    assert by_name(RECORDS, "8/8/8").name == "8/8/8"
    assert by_number(RECORDS, 3).number == 3
    assert by_rule(Results(RECORDS, OBJECTIVES), "float").name == "float"


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        ("knie", "'knie': no such rule, objective or point"),
        ("psnr_drop<=0.2 then sise", "no such rule, objective or point; type --pick compromise"),
        ("psnr>=31 then size", "no point of the front keeps psnr>=31"),
        ("psnr=>3 then size", "--constraint 'psnr=>3': expected NAME<=VALUE"),
        ("niqe", "niqe was not measured"),
        ("niqe<=3 then size", "niqe was not measured"),
        ("trial 4", "cannot be exported: pruned, others are better"),
    ],
)
def test_rules_that_mean_nothing(rule: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        by_rule(Results(RECORDS, OBJECTIVES), rule)


def test_numbers_that_are_not_there() -> None:
    with pytest.raises(
        InputError, match="has no point 'trial 9'; type --trial with one of 0, .* or --pick with one of float, 8/8/8"
    ):
        by_number(RECORDS, 9)
    with pytest.raises(InputError, match="the front holds nothing but the float network"):
        by_rule(Results(RECORDS[:1], OBJECTIVES), "compromise")
