"""Keep standard output free for results: other output, from networks and libraries, goes to standard error."""

from __future__ import annotations

import contextlib
import ctypes
import os
import sys
from collections.abc import Iterator

STDOUT, STDERR = 1, 2


@contextlib.contextmanager
def only_results() -> Iterator[None]:
    """Context that redirects standard output to standard error, for Python, compiled code and child processes."""
    sys.stdout.flush()
    saved = os.dup(STDOUT)
    os.dup2(STDERR, STDOUT)
    try:
        with contextlib.redirect_stdout(sys.stderr):
            yield
    finally:
        ctypes.CDLL(None).fflush(None)  # flush the buffers of compiled code
        os.dup2(saved, STDOUT)
        os.close(saved)
