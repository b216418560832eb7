"""The report's latency section: the protocol, the points, and the time that each stage saves."""

from __future__ import annotations

from typing import Any

from autoq.report.attribution import PointSpeed, Speed


def latency_section(latency: Speed | None) -> dict[str, Any]:
    """The section's data as plain strings: the protocol and two tables; empty for a study without latencies."""
    if latency is None:
        return {"measured": "", "stage_speeds": [], "point_speeds": []}
    return {
        "measured": protocol(latency),
        "stage_speeds": [
            {
                "stage": stage.stage,
                "skips": ", ".join(stage.skips) or "none",
                "numbers": [f"{saved:.2f}" for saved in (stage.first_in, stage.last_in, stage.contribution)],
            }
            for stage in latency.stages
        ],
        "point_speeds": [_row(point) for point in latency.points],
    }


def protocol(latency: Speed) -> str:
    """The benchmark in two sentences: structures, frame, threads, runs, runtime and machine."""
    return (
        f"Benchmark of {latency.structures} graph structures on {latency.machine} ({latency.runtime}): {latency.frame[0]}x"
        f"{latency.frame[1]} input pixels, {latency.threads} threads, no other load. Latency is the median of at least"
        f" {latency.rounds} runs after {latency.warm_up} warm-up; runs alternate with the float network ({latency.float_ms:.2f} ms)"
        " to correct for drift."
    )


def _row(point: PointSpeed) -> dict[str, Any]:
    interval = "predicted" if point.interval is None else f"[{point.interval.low:.2f}, {point.interval.high:.2f}]"
    boundary_cost = point.beyond_parts
    return {
        "name": point.point,
        "numbers": [
            f"{point.ms:.2f}",
            interval,
            f"{point.times:.2f}x",
            "" if point.parts is None else f"{point.parts:.2f}",
            str(point.changes),
            "" if boundary_cost is None else f"{boundary_cost:+.2f}",
        ],
    }
