"""Bounds on one trial inside its worker process: seconds and memory."""

from __future__ import annotations

import contextlib
import faulthandler
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from types import FrameType

from autoq.errors import TrialFailed

GIB = 2**30

GRACE = 10.0
"""Seconds after which a trial that did not heed its time limit (it hangs in compiled code) takes its process down."""


@contextlib.contextmanager
def time_limit(seconds: float | None) -> Iterator[None]:
    """Raise TrialFailed in the main thread once `seconds` have passed; None is no limit.

    Python code is interrupted at once, compiled code when it returns; where it does not within GRACE seconds the
    process ends, and its driver sees a worker that died. Works on the main thread of a POSIX process only.
    """
    if seconds is None:
        yield
        return

    def expired(number: int, frame: FrameType | None) -> None:
        raise TrialFailed(f"took longer than the limit of {seconds:g} s a trial (--timeout)", 0)

    before = signal.signal(signal.SIGALRM, expired)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    with Path(os.devnull).open("w") as silence:
        faulthandler.dump_traceback_later(seconds + GRACE, exit=True, file=silence)
        try:
            yield
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            faulthandler.cancel_dump_traceback_later()
            signal.signal(signal.SIGALRM, before)


def bound_memory(gib: float | None) -> None:
    """Let this process hold at most `gib` GiB; an allocation beyond fails. None is no bound. Linux only.

    The kernel bounds private writable mappings, stacks and reserves included; so what the process has now but does
    not use is added to the bound.
    """
    if gib is None:
        return
    import resource

    pages = {line.split(":")[0]: line.split()[1] for line in Path("/proc/self/status").read_text().splitlines() if "kB" in line}
    unused = (int(pages["VmData"]) - int(pages["RssAnon"])) * 1024
    _, hard = resource.getrlimit(resource.RLIMIT_DATA)
    resource.setrlimit(resource.RLIMIT_DATA, (int(gib * GIB) + max(unused, 0), hard))


def ran_out_of_memory(error: BaseException) -> bool:
    """Whether an error of numpy, torch or Python says that memory could not be had."""
    text = str(error).lower()
    return isinstance(error, MemoryError) or "can't allocate memory" in text or "out of memory" in text
