"""Points of deploy.py beside each other: who dominates whom, as figures, as JSON and as text."""

from __future__ import annotations

import statistics
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Literal

from autoq.study.intervals import Interval, median_interval
from autoq.tuning.baselines import FIRST_LAST_16
from benchmarks.rivals import FLOAT, ORT, PTQ, File, named

Group = Literal["rival", "baseline", "front"]
Payload = Literal["shipped", "loaded"]

PSNR_MARGIN, PAYLOAD_MARGIN, LATENCY_MARGIN = 0.02, 0.01, 0.05
"""dB and shares: differences up to these do not count."""

INT8 = "8/8/8"
MIXED = FIRST_LAST_16
"""Baselines of every search: all integers, and floats at both ends."""

TITLES: dict[Group, str] = {"rival": "rivals", "baseline": "autoq, not on the front", "front": "autoq's front"}


@dataclass
class Point:
    """A file, and what was found of it. shipped: bytes of the tensors that are stored, in autoq's package or in the file itself.

    quality: metrics by name. samples: milliseconds.
    """

    name: str
    group: Group
    file: File
    shipped: int
    quality: dict[str, float] = field(default_factory=dict)
    samples: list[float] = field(default_factory=list)

    @property
    def ms(self) -> float:
        return statistics.median(self.samples)

    def payload(self, which: Payload) -> int:
        return self.shipped if which == "shipped" else self.file.payload

    def dominates(self, other: Point, which: Payload) -> bool:
        """Whether it is no worse in PSNR, payload and milliseconds, and better in one, beyond the margins."""
        gains = (
            (self.quality["psnr"] - other.quality["psnr"]) / PSNR_MARGIN,
            (1 - self.payload(which) / other.payload(which)) / PAYLOAD_MARGIN,
            (1 - self.ms / other.ms) / LATENCY_MARGIN,
        )
        return min(gains) >= -1 and max(gains) > 1


@dataclass(frozen=True)
class Found:
    """Everything measured. failed: rivals that could not be built or do not run here, and why.

    float_ms: of float32, in turn with the others. remark: why NIQE was not judged. images: judged on; seen: of them, those that
    the study's trials were judged on.
    """

    points: list[Point]
    failed: dict[str, str]
    float_ms: list[float]
    remark: str
    images: int
    seen: int

    def of(self, group: Group) -> list[Point]:
        return [point for point in self.points if point.group == group]

    def point(self, name: str) -> Point:
        return next(point for point in self.points if point.name == name)

    def beaten(self, winners: Group, losers: Group, which: Payload) -> dict[str, list[str]]:
        """Names of the winners that dominate a loser, and of whom each dominates."""
        found = {
            point.name: [other.name for other in self.of(losers) if point.dominates(other, which)] for point in self.of(winners)
        }
        return {name: names for name, names in found.items() if names}

    def dominating(self, which: Payload) -> dict[str, list[str]]:
        """Rivals that dominate a point of the front."""
        return self.beaten("rival", "front", which)

    def standing(self, which: Payload) -> dict[str, list[str]]:
        """Of the rivals that dominate a point of the front, those points that none of it dominates that stands itself here."""
        fallen = self.fallen(which)
        found = {name: [other for other in names if other not in fallen] for name, names in self.dominating(which).items()}
        return {name: names for name, names in found.items() if names}

    def fallen(self, which: Payload) -> set[str]:
        """Points of the front that another one dominates that has not fallen itself."""
        left, fallen = self.of("front"), set[str]()
        while best := [point for point in left if not any(other.dominates(point, which) for other in left)]:
            beaten = [point for point in left if any(other.dominates(point, which) for other in best)]
            fallen |= {point.name for point in beaten}
            left = [point for point in left if point not in best and point not in beaten]
        return fallen

    def dominated(self, which: Payload) -> dict[str, list[str]]:
        """Rivals that are dominated, and by which points of the front."""
        found = self.beaten("front", "rival", which)
        by = {point.name: [name for name, names in found.items() if point.name in names] for point in self.of("rival")}
        return {name: names for name, names in by.items() if names}

    def speed(self, point: Point, over: str | None = None) -> Interval:
        """Times that a point is as fast as float32 in OpenVINO, or as another point."""
        base = self.point(over).ms if over else statistics.median(self.float_ms)
        return median_interval([base / sample for sample in point.samples])


def figures(found: Found) -> dict[str, float]:
    """What a benchmark says in numbers. Of NNCF's PTQ the drop of its defaults, and of its best setting."""
    known: dict[str, float] = {
        "rivals": len(found.of("rival")),
        "front": len(found.of("front")),
        "dominating_rivals": len(found.dominating("shipped")),
        "dominating_rivals_standing": len(found.standing("shipped")),
        "dominated_rivals": len(found.dominated("shipped")),
        "dominating_rivals_loaded": len(found.dominating("loaded")),
        "dominating_rivals_loaded_standing": len(found.standing("loaded")),
        "dominated_rivals_loaded": len(found.dominated("loaded")),
        "failed_rivals": len(found.failed),
        "images": found.images,
        "images_searched_on": found.seen,
        "float_ms": round(statistics.median(found.float_ms), 3),
    }
    for key, name in (("int8", INT8), ("mixed", MIXED)):
        speed = found.speed(found.point(name))
        ends = (("", speed.middle), ("_low", speed.low), ("_high", speed.high))
        known |= {f"{key}_speedup{end}": round(value, 3) for end, value in ends}
    exact = found.point(FLOAT).quality["psnr"]
    drops = {point.name: exact - point.quality["psnr"] for point in found.of("rival") if point.name.startswith(PTQ)}
    if PTQ in drops:
        known |= {"nncf_ptq_psnr_drop": round(drops[PTQ], 4), "nncf_ptq_psnr_drop_best": round(min(drops.values()), 4)}
    return known


def document(found: Found, about: dict[str, Any]) -> dict[str, Any]:
    """The JSON document."""

    def entry(point: Point) -> dict[str, Any]:
        speed = found.speed(point)
        return {
            "name": point.name,
            "group": point.group,
            **{name: round(value, 4) for name, value in point.quality.items()},
            "shipped": point.shipped,
            "loaded": point.file.payload,
            "file": point.file.bytes,
            "ms": round(point.ms, 3),
            "speed": round(speed.middle, 3),
            "speed_low": round(speed.low, 3),
            "speed_high": round(speed.high, 3),
        }

    return {
        "bench": "deploy",
        "figures": figures(found),
        "about": about,
        "points": [entry(point) for point in found.points],
        "dominating": found.dominating("shipped"),
        "standing": found.standing("shipped"),
        "dominated": found.dominated("shipped"),
        "failed": found.failed,
    }


def table(found: Found) -> Iterator[str]:
    """Every point, a line each."""
    yield f"{'':44}{'PSNR':>8}{'NIQE':>7}{'shipped':>11}{'loaded':>11}{'file':>11}{'ms':>9}  speed"
    for group, title in TITLES.items():
        yield f"{title}:"
        for point in found.of(group):
            words = _times(found.speed(point))
            if point.file.runtime == ORT:
                words += f" ({found.speed(point, named(FLOAT, point.file.runtime)).middle:.2f}x)"
            niqe = f"{point.quality['niqe']:.2f}" if "niqe" in point.quality else "-"
            yield (
                f"  {point.name:42}{point.quality['psnr']:8.3f}{niqe:>7}{point.shipped:11,}{point.file.payload:11,}"
                f"{point.file.bytes:11,}{point.ms:9.2f}  {words}"
            )


def verdict(found: Found) -> Iterator[str]:
    """Who dominates whom, in words."""
    words: dict[Payload, str] = {"shipped": "bytes as shipped", "loaded": "bytes as the runtime loads them"}
    for which, meaning in words.items():
        above, below, rivals = found.dominating(which), found.dominated(which), len(found.of("rival"))
        yield f"{meaning}: {len(above)} of {rivals} rivals dominate a point of the front, {len(below)} are dominated by one"
        standing = found.standing(which)
        yield f"  {len(standing)} dominate a point that no other of the front dominates"
        for name, names in above.items():
            fallen = [f"{each} (as another of the front does)" for each in names if each not in standing.get(name, ())]
            yield f"  {name} dominates {', '.join([*standing.get(name, ()), *fallen])}"
        yield from (f"  {name} is dominated by {', '.join(names)}" for name, names in below.items())
    yield from (f"not here: {name}: {reason}" for name, reason in found.failed.items())


def line(found: Found) -> Iterator[str]:
    """All integers, and float ends, beside float32."""
    exact, whole, mixed = statistics.median(found.float_ms), found.point(INT8), found.point(MIXED)
    yield f"float32: {exact:.2f} ms"
    for words, point in (("8 bits everywhere", whole), ("16 bits, so float, at both ends, 8 in between", mixed)):
        yield f"{words}: {point.ms:.2f} ms, {_times(found.speed(point))}"
    between = min(exact, whole.ms) < mixed.ms < max(exact, whole.ms)
    yield f"the last is {'' if between else 'not '}between the others"


def _times(speed: Interval) -> str:
    return f"{speed.middle:.2f}x [{speed.low:.2f}, {speed.high:.2f}]"
