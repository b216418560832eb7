"""What a point's latency is made of, by hand: three stages, 100 ms in float, whose changes cost 2 ms each."""

from __future__ import annotations

import itertools

import pytest

from autoq.config.policy import Policy
from autoq.config.spec import Record
from autoq.config.structure import Structure
from autoq.costs.latency.table import Entry, LatencyTable
from autoq.report.attribution import Speed, speed

SAVES = {"head": 5.0, "body": 40.0, "tail": 30.0}
CHANGE = 2.0
SKIP = 7.0
"""What integer skips in the body save."""

OFFSETS = (-0.3, 0.2, -0.1, 0.0, 0.1, 0.4)
"""Of the samples from the median."""


def structure(integers: tuple[bool, ...], skip: bool) -> Structure:
    on_integers = [stage for stage, on in zip(SAVES, integers, strict=True) if on]
    return Structure(stages=tuple(SAVES), integer=tuple(on_integers), skips=("body",) if skip else ())


def truth(integers: tuple[bool, ...], skip: bool) -> float:
    saved = sum(save for save, on in zip(SAVES.values(), integers, strict=True) if on)
    return 100 - saved - SKIP * skip + CHANGE * sum(a != b for a, b in itertools.pairwise(integers))


EVERY = [(integers, skip) for integers in itertools.product((False, True), repeat=3) for skip in (False, True)]


def table(combinations: list[tuple[tuple[bool, ...], bool]]) -> LatencyTable:
    entries = {}
    for number, each in enumerate(combinations):
        samples = tuple(truth(*each) + offset for offset in OFFSETS)
        entries[str(number)] = Entry(structure=structure(*each), ms=truth(*each), samples=samples)
    return LatencyTable(model="m", target="openvino-cpu", runtime="r 1", frame=(32, 24), threads=2, machine="a", entries=entries)


def record(integers: tuple[bool, ...], skip: bool) -> Record:
    return Record(
        number=0, source="trial", state="complete", policy=Policy(()).to_dict(), label="", structure=structure(integers, skip),
        values={"latency": truth(integers, skip)},
    )  # fmt: skip


def found(combinations: list[tuple[tuple[bool, ...], bool]], *points: tuple[tuple[bool, ...], bool]) -> Speed:
    answer = speed(table(combinations), [record(*point) for point in points])
    assert answer is not None
    return answer


def test_parts_and_what_changes_cost() -> None:
    points = [each for each in EVERY if any(each[0])]
    for (integers, skip), point in zip(points, found(EVERY, *points).points, strict=True):
        changes = sum(a != b for a, b in itertools.pairwise(integers))
        assert point.changes == changes
        assert point.parts == pytest.approx(truth(integers, skip) - CHANGE * changes)
        assert point.beyond_parts == (pytest.approx(CHANGE * changes) if changes else None)
        assert point.times == pytest.approx(100 / point.ms)
        assert point.interval is not None
        assert (point.interval.low, point.interval.high) == pytest.approx((point.ms - 0.3, point.ms + 0.4))


def test_a_stage_alone_pays_for_its_changes_and_the_last_one_spares_them() -> None:
    stages = {(each.stage, each.skips): each for each in found(EVERY).stages}
    assert len(stages) == 6
    for skips in ((), ("body",)):
        body, tail = stages["body", skips], stages["tail", skips]
        assert (body.first_in, body.last_in, body.contribution) == pytest.approx((40 - 2 * CHANGE, 40 + 2 * CHANGE, 40))
        assert (tail.first_in, tail.last_in, tail.contribution) == pytest.approx((30 - CHANGE, 30 + CHANGE, 30))


def test_without_the_structures_that_say_so_there_are_no_parts() -> None:
    some = [each for each in EVERY if each[0] != (True, False, True)]
    answer = found(some, ((True, True, False), False))
    assert answer.stages == ()
    assert answer.points[0].parts is None
    assert answer.points[0].beyond_parts is None
    assert answer.document()["points"][0]["beyond_parts"] is None


def test_a_point_that_was_predicted_has_no_interval() -> None:
    other = record((True, True, False), False).model_copy(update={"values": {"latency": 61.0}})
    answer = speed(table(EVERY), [other])
    assert answer is not None
    assert answer.points[0].interval is None


def test_a_study_without_latencies_has_none() -> None:
    assert speed(None, []) is None
    assert speed(table([]), []) is None


def test_how_it_was_measured_is_told() -> None:
    document = found(EVERY, EVERY[5]).document()
    assert {name: document[name] for name in ("frame", "threads", "runtime", "machine", "warm_up", "rounds", "structures")} == {
        "frame": (32, 24), "threads": 2, "runtime": "r 1", "machine": "a", "warm_up": 1, "rounds": 6, "structures": 16,
    }  # fmt: skip
