"""Attribution of latency: how much time each stage saves on integers, and the cost of changes between integers and float.

A stage saves one amount as the only stage on integers, and another as the last one, with all others on integers. In the
first case changes between float and integers at its ends cost time, in the second they disappear, so in the mean they
cancel out. These means, scaled to add up to what all stages save together, are the contributions of the stages. The time
of a point beyond the contributions of its stages is the cost of its changes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from autoq.config.spec import Record
from autoq.costs.latency.table import Entry, LatencyTable, float_entry
from autoq.study.intervals import Interval, median_interval
from autoq.study.results import point_name
from autoq.targets import target_info

Stages = tuple[str, ...]
"""Names of stages, in the order of the network."""


@dataclass(frozen=True)
class StageSpeed:
    """Milliseconds that a stage saves on integers: alone, last, and as a part. skips: stages whose skips are integers meanwhile."""

    stage: str
    skips: tuple[str, ...]
    alone: float
    last: float
    part: float


@dataclass(frozen=True)
class PointSpeed:
    """A point's milliseconds. interval: 95 %, None where it was predicted. times: faster than float.

    changes: how often a stage on integers meets one in float. parts: what its stages come to, None where that cannot be said.
    """

    point: str
    ms: float
    interval: Interval | None
    times: float
    changes: int
    parts: float | None

    @property
    def beyond_parts(self) -> float | None:
        """Milliseconds that changes cost; None where there are none, or where parts are not known."""
        return None if self.parts is None or not self.changes else self.ms - self.parts


@dataclass(frozen=True)
class Speed:
    """How a study's latencies were measured, and what they are made of. rounds: samples of every structure, after `warm_up`
    runs that do not count.
    """

    frame: tuple[int, int]
    threads: int
    runtime: str
    machine: str
    warm_up: int
    rounds: int
    structures: int
    float_ms: float
    stages: tuple[StageSpeed, ...]
    points: tuple[PointSpeed, ...]

    def document(self) -> dict[str, Any]:
        """Plain data."""
        found = asdict(self)
        for point, plain in zip(self.points, found["points"], strict=True):
            plain["beyond_parts"] = point.beyond_parts
        return found


def speed(table: LatencyTable | None, points: Sequence[Record]) -> Speed | None:
    """Of points and the table they were measured in. None where a study has no latencies, or a model's."""
    exact = float_entry(table) if table else None
    if table is None or exact is None or target_info(table.target).model is not None:
        return None
    fastest = _fastest(table)
    stages = exact.structure.stages
    settings = sorted({skips for _, skips in fastest}, key=lambda skips: [stage in skips for stage in stages])
    parts = {skips: found for skips in settings if (found := _parts(stages, fastest, skips))}
    return Speed(
        frame=table.frame,
        threads=table.threads,
        runtime=table.runtime,
        machine=table.machine,
        warm_up=table.warm_up,
        rounds=min(len(entry.samples) for entry in table.entries.values()),
        structures=len(table.entries),
        float_ms=exact.ms,
        stages=tuple(stage for found in parts.values() for stage in found),
        points=tuple(
            _point(record, table, exact, fastest, parts)
            for record in points
            if "latency" in record.values and record.structure.stages
        ),
    )


def _fastest(table: LatencyTable) -> dict[tuple[Stages, Stages], float]:
    """(stages on integers, stages with integer skips) -> milliseconds of the fastest such structure."""
    found: dict[tuple[Stages, Stages], float] = {}
    for entry in table.entries.values():
        key = entry.structure.integer, entry.structure.skips
        found[key] = min(found.get(key, entry.ms), entry.ms)
    return found


def _parts(stages: Stages, fastest: Mapping[tuple[Stages, Stages], float], skips: Stages) -> list[StageSpeed]:
    """The saving of every stage; empty where a structure it follows from was not measured."""
    alone = [fastest.get(((stage,), skips)) for stage in stages]
    last = [fastest.get((tuple(other for other in stages if other != stage), skips)) for stage in stages]
    none, every = fastest.get(((), skips)), fastest.get((stages, skips))
    if none is None or every is None:
        return []
    saved = [(none - one, most - every) for one, most in zip(alone, last, strict=True) if one is not None and most is not None]
    total = sum(map(sum, saved)) / 2
    if len(saved) < len(stages) or total <= 0:
        return []
    scale = (none - every) / total
    return [StageSpeed(stage, skips, *each, scale * sum(each) / 2) for stage, each in zip(stages, saved, strict=True)]


def _point(
    record: Record,
    table: LatencyTable,
    exact: Entry,
    fastest: Mapping[tuple[Stages, Stages], float],
    parts: Mapping[Stages, Sequence[StageSpeed]],
) -> PointSpeed:
    ms, structure = record.values["latency"], record.structure
    measured = [entry for entry in table.entries.values() if (entry.structure, entry.ms) == (structure, ms)]
    whole: float | None = None
    if structure.skips in parts:
        whole = fastest[(), structure.skips] - sum(
            stage.part for stage in parts[structure.skips] if stage.stage in structure.integer
        )
    elif table.rest is not None:
        whole = table.rest.parts(structure)
    return PointSpeed(
        point=point_name(record),
        ms=ms,
        interval=median_interval(measured[0].samples) if measured else None,
        times=exact.ms / ms,
        changes=structure.changes(),
        parts=whole,
    )
