"""Checks of this machine: what a search needs, what is missing, and what that costs."""

from __future__ import annotations

import importlib
import os
import platform
import shutil
import sys
from collections.abc import Callable, Iterable, Iterator
from importlib import metadata
from pathlib import Path
from typing import Literal

from pydantic import BaseModel
from rich import box
from rich.console import Console
from rich.table import Table

from autoq.system import processor

PACKAGES = {
    "torch": "training is impossible",
    "openvino": "target openvino-cpu is unavailable",
    "ray": "trials cannot run",
    "optuna": "a search cannot suggest policies",
    "pyiqa": "niqe and pi, which autoq computes itself, cannot be compared with its",
    "optuna-dashboard": "autoq dashboard is unavailable",
}
OPTIONAL = ("pyiqa", "optuna-dashboard")
BROKEN_IMPORT = (ImportError, OSError, RuntimeError, AttributeError)
"""What an import raises when a dependency is missing or of the wrong version."""

FLAGS = {
    "avx512_vnni": "int8 gains less over float32, and 8-bit weights use only 7 bits, because more would overflow in int8 kernels",
    "avx512_bf16": "training runs in float32, slower than bfloat16; target openvino-cpu-bf16 is unavailable",
}
ALSO = {"avx512_vnni": ("avx_vnni",), "avx512_bf16": ("amx_bf16",)}
"""Newer instructions that replace them."""

LITTLE_DISK = 2 * 2**30
"""Free bytes below which a search may fill the disk with Ray's logs and spilled objects."""


class Check(BaseModel):
    """One check. state: ok, absent (a search can run without it) or broken (it cannot). cost: what the absence costs."""

    name: str
    state: Literal["ok", "absent", "broken"]
    found: str
    cost: str = ""


def examine() -> list[Check]:
    """Check everything a search depends on. Imports the packages, which takes seconds; this module needs none of them."""
    return [*_software(), *_metrics(), *_processor(), _gpu(), *_room()]


def show(checks: Iterable[Check]) -> None:
    """Print the checks as a table on standard output."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for column in ("", "state", "found", "cost if absent"):
        table.add_column(column, overflow="fold")
    for check in checks:
        table.add_row(check.name, check.state, check.found, check.cost)
    Console(highlight=False).print(table, markup=False)


def _software() -> Iterator[Check]:
    yield Check(name="python", state="ok", found=sys.version.split()[0])
    for package, cost in PACKAGES.items():
        try:
            if package == "pyiqa":
                importlib.import_module("autoq.metrics.quality").import_pyiqa()
            else:
                importlib.import_module(package.replace("-", "_"))
        except BROKEN_IMPORT as error:
            state: Literal["absent", "broken"] = "absent" if package in OPTIONAL else "broken"
            yield Check(name=package, state=state, found=" ".join(str(error).split()), cost=cost)
        else:
            yield Check(name=package, state="ok", found=metadata.version(package))


def _metrics() -> Iterator[Check]:
    try:
        from autoq.metrics.quality import METRICS, why_unavailable
    except BROKEN_IMPORT as error:
        yield Check(name="metrics", state="broken", found=" ".join(str(error).split()), cost="quality cannot be measured")
        return
    for name, info in METRICS.items():
        reason = why_unavailable(name)
        if reason is None:
            yield Check(name=f"metric {name}", state="ok", found=", ".join(info.files) or "built in")
        else:
            yield Check(name=f"metric {name}", state="absent", found=reason, cost=f"{name} cannot be an objective")


def _processor(read: Callable[[], dict[str, str] | None] = processor.facts) -> Iterator[Check]:
    facts, cores = read(), f"{processor.available_cores()} cores"
    if facts is None:
        yield Check(name="processor", state="ok", found=f"{platform.processor() or platform.machine()}, {cores}")
        yield Check(name="processor features", state="absent", found="unknown: no /proc/cpuinfo here")
        return
    yield Check(name="processor", state="ok", found=f"{facts.get('model name', platform.machine())}, {cores}")
    flags = facts.get("flags", "").split()
    if platform.machine().lower() not in processor.X86:
        return
    for flag, cost in FLAGS.items():
        have = [name for name in (flag, *ALSO[flag]) if name in flags]
        yield Check(name=flag, state="ok" if have else "absent", found=", ".join(have) or "missing", cost="" if have else cost)


def _gpu() -> Check:
    try:
        import torch
    except (ImportError, OSError):
        return Check(name="gpu", state="absent", found="unknown without torch")
    if torch.cuda.is_available():
        return Check(name="gpu", state="ok", found=torch.cuda.get_device_name(0))
    build = "torch is a CPU build" if torch.version.cuda is None else f"torch for CUDA {torch.version.cuda} finds no GPU"
    return Check(name="gpu", state="absent", found=build, cost="trials train on the CPU")


def _room() -> Iterator[Check]:
    free = shutil.disk_usage(Path.cwd()).free
    little = free < LITTLE_DISK
    yield Check(
        name="disk",
        state="absent" if little else "ok",
        found=f"{free / 2**30:.1f} GiB free in {Path.cwd()}",
        cost="a search may fill it; finished trials are kept" if little else "",
    )
    pages = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    yield Check(name="memory", state="ok", found=f"{pages / 2**30:.1f} GiB free")
