"""What the processor has, as far as numbers depend on it. Knows no torch."""

from __future__ import annotations

import os
import platform
from pathlib import Path

X86 = ("x86_64", "amd64", "i386", "i686")
VNNI = ("avx512_vnni", "avx_vnni")


def facts(path: Path = Path("/proc/cpuinfo")) -> dict[str, str] | None:
    """The first core's entries of /proc/cpuinfo, such as `model name` and `flags`; None where there is no such file."""
    try:
        lines = [line.partition(":") for line in path.read_text().splitlines()]
    except OSError:
        return None
    return {name.strip(): value.strip() for name, _, value in reversed(lines) if name.strip()}


def exact_weight_bits(machine: str = platform.machine(), known: dict[str, str] | None = None) -> int:
    """Bits of the widest weights that int8 kernels multiply with uint8 tensors without overflow: 8, on x86 without VNNI 7.

    There pairs of products are added in 16 bits, which hold 2 x 255 x 63 and not 2 x 255 x 127. Where it is not known what the
    processor has, 7 are exact. known: `facts` of a processor; of this one if not given.
    """
    if machine.lower() not in X86:
        return 8
    flags = ((facts() if known is None else known) or {}).get("flags", "").split()
    return 8 if set(VNNI).intersection(flags) else 7


def available_cores(root: Path = Path("/")) -> int:
    """Cores this process may use: those it may run on, or what its control groups (v1 and v2) let it have, if that is less.

    A part of a core beyond the last whole one is not counted: threads that share it would wait for each other.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, int(min([cores, *_quotas(root)])))


def _quotas(root: Path) -> list[float]:
    """Cores that each control group of this process, and those around it, may use; groups without a bound left out."""
    try:
        lines = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:
        return []
    found = []
    for controllers, path in (line.split(":", 2)[1:] for line in lines):
        if controllers and "cpu" not in controllers.split(","):
            continue
        mount = root / "sys/fs/cgroup" / controllers
        group = mount / path.lstrip("/")
        for folder in (each for each in (group, *group.parents) if each.is_relative_to(mount)):
            quota = _quota_v1(folder) if controllers else _quota_v2(folder)
            found += [] if quota is None else [quota]
    return found


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
