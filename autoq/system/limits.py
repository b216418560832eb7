"""Bounds on one trial inside its worker process: seconds and memory.

Both interrupt the process's main thread with TrialFailed: Python code at once, compiled code when it returns. POSIX only;
memory is read from Linux's /proc.
"""

from __future__ import annotations

import contextlib
import faulthandler
import os
import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType

from autoq.errors import TrialFailed

KIB_PER_GIB = 2**20
STATUS = Path("/proc/self/status")

GRACE = 10.0
"""Seconds after which a trial that did not heed its time limit (it hangs in compiled code) takes its process down."""

MEMORY_PERIOD = 0.1
"""Seconds between two looks at the memory in use."""


@contextlib.contextmanager
def limits(seconds: float | None, gib: float | None, spent: float = 0.0) -> Iterator[None]:
    """`time_limit` and `memory_limit`; None is no limit. spent: seconds of the trial that have passed already."""
    with contextlib.ExitStack() as stack:
        if seconds is not None:
            stack.enter_context(time_limit(seconds, spent))
        if gib is not None:
            stack.enter_context(memory_limit(gib))
        yield


@contextlib.contextmanager
def time_limit(seconds: float, spent: float = 0.0) -> Iterator[None]:
    """Raise TrialFailed once `seconds` less `spent` have passed; where that is not heeded within GRACE, end the process."""
    left = max(0.001, seconds - spent)
    message = f"took longer than the limit of {seconds:g} s a trial (--timeout)"

    def cancel() -> None:
        signal.setitimer(signal.ITIMER_REAL, 0)
        faulthandler.cancel_dump_traceback_later()

    with Path(os.devnull).open("w") as silence, _raising(signal.SIGALRM, message, cancel):
        faulthandler.dump_traceback_later(left + GRACE, exit=True, file=silence)
        signal.setitimer(signal.ITIMER_REAL, left)
        yield


@contextlib.contextmanager
def memory_limit(gib: float) -> Iterator[None]:
    """Raise TrialFailed once the process holds more than `gib` GiB of its own (memory shared with others not counted)."""
    done = threading.Event()
    main = threading.get_ident()

    def watch() -> None:
        while not done.wait(MEMORY_PERIOD):
            if held() > gib:
                signal.pthread_kill(main, signal.SIGUSR1)

    watcher = threading.Thread(target=watch, daemon=True)

    def stop() -> None:
        done.set()
        if watcher.ident is not None:
            watcher.join()

    with _raising(signal.SIGUSR1, f"needs more memory than the bound of {gib:g} GiB a worker (--memory)", stop):
        watcher.start()
        yield


def can_bound_memory() -> bool:
    """Whether this system says how much memory a process holds."""
    return STATUS.is_file()


def held() -> float:
    """GiB this process holds of its own."""
    lines = STATUS.read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("RssAnon")) / KIB_PER_GIB


@contextlib.contextmanager
def _raising(number: signal.Signals, message: str, last: Callable[[], object]) -> Iterator[None]:
    """Within, the first signal raises TrialFailed in the main thread. Later ones do nothing, and are handled until `last` returns.

    last: called at the end; it sees to it that no more signals come.
    """
    heeded = False

    def handle(number: int, frame: FrameType | None) -> None:
        nonlocal heeded
        if not heeded:
            heeded = True
            raise TrialFailed(message, 0)

    before = signal.signal(number, handle)
    try:
        try:
            yield
        finally:
            heeded = True
    finally:
        try:
            last()
        finally:
            signal.signal(number, before)
