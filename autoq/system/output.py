"""Standard output is for results. What else a process prints there, as networks and libraries do, goes to standard error."""

from __future__ import annotations

import contextlib
import ctypes
import os
import sys
from collections.abc import Iterator

STDOUT, STDERR = 1, 2


@contextlib.contextmanager
def only_results() -> Iterator[None]:
    """Within, whatever prints to standard output prints to standard error: Python, compiled code, child processes."""
    sys.stdout.flush()
    kept = os.dup(STDOUT)
    os.dup2(STDERR, STDOUT)
    try:
        with contextlib.redirect_stdout(sys.stderr):
            yield
    finally:
        ctypes.CDLL(None).fflush(None)  # what compiled code has printed and not written yet
        os.dup2(kept, STDOUT)
        os.close(kept)
