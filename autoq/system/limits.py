"""Time and memory limits of a trial inside its worker process.

Both raise TrialFailed in the main thread: immediately in Python code, on return from compiled code. POSIX only; memory is
read from Linux's /proc.
"""

from __future__ import annotations

import contextlib
import faulthandler
import math
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType

from autoq.errors import TrialFailed

KIB_PER_GIB = 2**20
STATUS = Path("/proc/self/status")

GRACE = 10.0
"""Seconds after the time limit until the process is killed if a trial hangs in compiled code."""

AGAIN = 1.0
"""Seconds until an exception without effect is raised again: Python drops it in destructors and callbacks of weak references."""

MEMORY_PERIOD = 0.1
"""Seconds between checks of the memory in use."""


@contextlib.contextmanager
def limits(seconds: float | None, gib: float | None, spent: float = 0.0) -> Iterator[None]:
    """Context with `time_limit` and `memory_limit`; None is no limit. spent: seconds that the trial has already used."""
    with contextlib.ExitStack() as stack:
        if seconds is not None:
            stack.enter_context(time_limit(seconds, spent))
        if gib is not None:
            stack.enter_context(memory_limit(gib))
        yield


@contextlib.contextmanager
def time_limit(seconds: float, spent: float = 0.0) -> Iterator[None]:
    """Raise TrialFailed after `seconds - spent`, and kill the process if that has no effect within GRACE."""
    left = max(0.001, seconds - spent)
    message = f"exceeded the time limit of {seconds:g} s per trial (--timeout)"

    def cancel() -> None:
        signal.setitimer(signal.ITIMER_REAL, 0)
        faulthandler.cancel_dump_traceback_later()

    with Path(os.devnull).open("w") as silence, _raising(signal.SIGALRM, message, cancel):
        faulthandler.dump_traceback_later(left + GRACE, exit=True, file=silence)
        signal.setitimer(signal.ITIMER_REAL, left, AGAIN)
        yield


@contextlib.contextmanager
def memory_limit(gib: float) -> Iterator[None]:
    """Raise TrialFailed when the process uses more than `gib` GiB of private memory."""
    done = threading.Event()
    main = threading.get_ident()

    def watch() -> None:
        while not done.wait(MEMORY_PERIOD):
            if private_memory() > gib:
                signal.pthread_kill(main, signal.SIGUSR1)

    watcher = threading.Thread(target=watch, daemon=True)

    def stop() -> None:
        done.set()
        if watcher.ident is not None:
            watcher.join()

    with _raising(signal.SIGUSR1, f"exceeded the memory limit of {gib:g} GiB per worker (--memory)", stop):
        watcher.start()
        yield


def can_bound_memory() -> bool:
    """Whether this system reports the memory of a process."""
    return STATUS.is_file()


def private_memory() -> float:
    """Private memory of this process in GiB."""
    lines = STATUS.read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("RssAnon")) / KIB_PER_GIB


@contextlib.contextmanager
def _raising(number: signal.Signals, message: str, last: Callable[[], object]) -> Iterator[None]:
    """Context in which a signal raises TrialFailed in the main thread; others within AGAIN, and after its end, are ignored.

    Args:
        number: The signal.
        message: Message of the exception.
        last: Called at the end to stop further signals; the handler stays installed until it returns.
    """
    raised = -math.inf

    def handle(number: int, frame: FrameType | None) -> None:
        nonlocal raised
        if time.monotonic() - raised >= AGAIN:
            raised = time.monotonic()
            raise TrialFailed(message, 0)

    before = signal.signal(number, handle)
    try:
        try:
            yield
        finally:
            raised = math.inf
    finally:
        try:
            last()
        finally:
            signal.signal(number, before)
