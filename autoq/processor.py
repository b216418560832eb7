"""What the processor has, as far as numbers depend on it. Knows no torch."""

from __future__ import annotations

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
