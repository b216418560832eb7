"""Latency attribution: the time that each stage saves on integers, and the cost of boundaries between integer and float stages.

A stage's contribution is the mean of its first-in saving (all other stages float) and its last-in saving (all other stages
on integers). The boundaries at its ends add time in the first case and remove time in the second, so they cancel out.
Contributions are scaled to add up to the saving of all stages. The boundary cost of a mixed point is its latency beyond
the sum of its stages.
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
    """Milliseconds that a stage saves on integers.

    Attributes:
        stage: Name of the stage.
        skips: Stages with integer skips while this was measured.
        first_in: Saving while all other stages are float.
        last_in: Saving while all other stages run on integers.
        contribution: The mean of both, scaled.
    """

    stage: str
    skips: tuple[str, ...]
    first_in: float
    last_in: float
    contribution: float


@dataclass(frozen=True)
class PointSpeed:
    """The latency of a point.

    Attributes:
        point: Name of the point.
        ms: Latency in milliseconds.
        interval: 95 % confidence interval; None for a predicted latency.
        times: Speedup over the float network.
        changes: Number of boundaries between integer and float stages.
        parts: Sum of the stages in milliseconds; None where it is unknown.
    """

    point: str
    ms: float
    interval: Interval | None
    times: float
    changes: int
    parts: float | None

    @property
    def beyond_parts(self) -> float | None:
        """Boundary cost in milliseconds; None without boundaries, or where the sum of the stages is unknown."""
        return None if self.parts is None or not self.changes else self.ms - self.parts


@dataclass(frozen=True)
class Speed:
    """A study's latency benchmark and the attribution of its results.

    Attributes:
        frame: Height and width of the input in pixels.
        threads: Threads of the runtime.
        runtime: Name and version of the runtime.
        machine: Description of the machine.
        warm_up: Discarded runs of each structure.
        rounds: Fewest samples of a structure.
        structures: Number of structures.
        float_ms: Latency of the float network in milliseconds.
        stages: Savings of the stages.
        points: Latencies of the points.
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
        """JSON data."""
        data = asdict(self)
        for point, plain in zip(self.points, data["points"], strict=True):
            plain["beyond_parts"] = point.beyond_parts
        return data


def speed(table: LatencyTable | None, points: Sequence[Record]) -> Speed | None:
    """Attribute the latency of points.

    Args:
        table: The study's latency table.
        points: Records to attribute.

    Returns:
        The attribution; None for a study without measured latencies.
    """
    reference = float_entry(table) if table else None
    if table is None or reference is None or target_info(table.target).model is not None:
        return None
    fastest = _fastest(table)
    stages = reference.structure.stages
    settings = sorted({skips for _, skips in fastest}, key=lambda skips: [stage in skips for stage in stages])
    parts = {skips: speeds for skips in settings if (speeds := _parts(stages, fastest, skips))}
    return Speed(
        frame=table.frame,
        threads=table.threads,
        runtime=table.runtime,
        machine=table.machine,
        warm_up=table.warm_up,
        rounds=min(len(entry.samples) for entry in table.entries.values()),
        structures=len(table.entries),
        float_ms=reference.ms,
        stages=tuple(stage for speeds in parts.values() for stage in speeds),
        points=tuple(
            _point(record, table, reference, fastest, parts)
            for record in points
            if "latency" in record.values and record.structure.stages
        ),
    )


def _fastest(table: LatencyTable) -> dict[tuple[Stages, Stages], float]:
    """(integer stages, stages with integer skips) -> milliseconds of the fastest such structure."""
    fastest: dict[tuple[Stages, Stages], float] = {}
    for entry in table.entries.values():
        key = entry.structure.integer, entry.structure.skips
        fastest[key] = min(fastest.get(key, entry.ms), entry.ms)
    return fastest


def _parts(stages: Stages, fastest: Mapping[tuple[Stages, Stages], float], skips: Stages) -> list[StageSpeed]:
    """The savings of every stage; empty if a structure that they depend on was not measured."""
    only_this = [fastest.get(((stage,), skips)) for stage in stages]
    all_others = [fastest.get((tuple(other for other in stages if other != stage), skips)) for stage in stages]
    float_ms, integer_ms = fastest.get(((), skips)), fastest.get((stages, skips))
    if float_ms is None or integer_ms is None:
        return []
    saved = [
        (float_ms - one, others - integer_ms)
        for one, others in zip(only_this, all_others, strict=True)
        if one is not None and others is not None
    ]
    total = sum(map(sum, saved)) / 2
    if len(saved) < len(stages) or total <= 0:
        return []
    scale = (float_ms - integer_ms) / total
    return [
        StageSpeed(stage, skips, first_in, last_in, scale * (first_in + last_in) / 2)
        for stage, (first_in, last_in) in zip(stages, saved, strict=True)
    ]


def _point(
    record: Record,
    table: LatencyTable,
    reference: Entry,
    fastest: Mapping[tuple[Stages, Stages], float],
    parts: Mapping[Stages, Sequence[StageSpeed]],
) -> PointSpeed:
    ms, structure = record.values["latency"], record.structure
    measured = [entry for entry in table.entries.values() if (entry.structure, entry.ms) == (structure, ms)]
    total: float | None = None
    if structure.skips in parts:
        total = fastest[(), structure.skips] - sum(
            stage.contribution for stage in parts[structure.skips] if stage.stage in structure.integer
        )
    elif table.rest is not None:
        total = table.rest.parts(structure)
    return PointSpeed(
        point=point_name(record),
        ms=ms,
        interval=median_interval(measured[0].samples) if measured else None,
        times=reference.ms / ms,
        changes=structure.changes(),
        parts=total,
    )
