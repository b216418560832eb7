"""CPU features that affect numerical results, and the number of available cores. Does not import torch."""

from __future__ import annotations

import os
import platform
from pathlib import Path

X86 = ("x86_64", "amd64", "i386", "i686")
VNNI = ("avx512_vnni", "avx_vnni")


def facts(path: Path = Path("/proc/cpuinfo")) -> dict[str, str] | None:
    """The first core's entries of /proc/cpuinfo, such as `model name` and `flags`; None if the file is missing."""
    try:
        lines = [line.partition(":") for line in path.read_text().splitlines()]
    except OSError:
        return None
    return {name.strip(): value.strip() for name, _, value in reversed(lines) if name.strip()}


def exact_weight_bits(machine: str = platform.machine(), cpu: dict[str, str] | None = None) -> int:
    """Largest number of weight bits for which int8 kernels do not overflow: 8, or 7 on x86 without VNNI.

    Without VNNI, pairs of uint8 x int8 products are summed in 16 bits, which hold 2 x 255 x 63 but not 2 x 255 x 127.

    Args:
        machine: Name of the architecture.
        cpu: `facts` of a CPU. Default: this one. Without `flags`, no VNNI is assumed.
    """
    if machine.lower() not in X86:
        return 8
    flags = ((facts() if cpu is None else cpu) or {}).get("flags", "").split()
    return 8 if set(VNNI).intersection(flags) else 7


def available_cores(root: Path = Path("/")) -> int:
    """Number of cores that this process can use: the smaller of its CPU affinity and its cgroup quotas (v1 and v2).

    A fraction of a core is not counted, as threads that share it would wait for each other.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, int(min([cores, *_quotas(root)])))


def _quotas(root: Path) -> list[float]:
    """Quotas in cores of this process's cgroups and their parents; groups without a quota are skipped."""
    try:
        lines = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:
        return []
    quotas = []
    for controllers, path in (line.split(":", 2)[1:] for line in lines):
        if controllers and "cpu" not in controllers.split(","):
            continue
        mount = root / "sys/fs/cgroup" / controllers
        group = mount / path.lstrip("/")
        for folder in (parent for parent in (group, *group.parents) if parent.is_relative_to(mount)):
            quota = _quota_v1(folder) if controllers else _quota_v2(folder)
            quotas += [] if quota is None else [quota]
    return quotas


def _quota_v2(group: Path) -> float | None:
    try:
        quota, period = (group / "cpu.max").read_text().split()
    except OSError:
        return None
    return None if quota == "max" else int(quota) / int(period)


def _quota_v1(group: Path) -> float | None:
    try:
        quota, period = (int((group / f"cpu.cfs_{name}_us").read_text()) for name in ("quota", "period"))
    except OSError:
        return None
    return quota / period if quota > 0 else None
