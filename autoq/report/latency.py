"""How a study's latencies were measured, what stages save, and what changing between integers and float costs."""

from __future__ import annotations

from typing import Any

from autoq.report.attribution import PointSpeed, Speed


def latency_section(found: Speed | None) -> dict[str, Any]:
    """As plain strings: how, and two tables."""
    if found is None:
        return {"measured": "", "stage_speeds": [], "point_speeds": []}
    return {
        "measured": in_words(found),
        "stage_speeds": [
            {
                "stage": each.stage,
                "skips": ", ".join(each.skips) or "none",
                "numbers": [f"{saved:.2f}" for saved in (each.alone, each.last, each.part)],
            }
            for each in found.stages
        ],
        "point_speeds": [_row(point) for point in found.points],
    }


def in_words(found: Speed) -> str:
    """What was run, how often, on what."""
    return (
        f"{found.structures} graph structures, {found.frame[0]}x{found.frame[1]} pixels in, {found.threads} threads, alone on the"
        f" machine: median of {found.rounds} or more runs each after {found.warm_up} to warm up, in turn with the float network"
        f" ({found.float_ms:.2f} ms), whose drift is divided out; {found.runtime} on {found.machine}"
    )


def _row(point: PointSpeed) -> dict[str, Any]:
    interval = "predicted" if point.interval is None else f"[{point.interval.low:.2f}, {point.interval.high:.2f}]"
    beyond = point.beyond_parts
    return {
        "name": point.point,
        "numbers": [
            f"{point.ms:.2f}",
            interval,
            f"{point.times:.2f}x",
            "" if point.parts is None else f"{point.parts:.2f}",
            str(point.changes),
            "" if beyond is None else f"{beyond:+.2f}",
        ],
    }
