"""Processes that train together with this one, each on a GPU of its own or on threads of the processor."""

from __future__ import annotations

import contextlib
import pickle
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from autoq.errors import AutoqError
from autoq.training.together import joined
from autoq.tuning.workers import UserCode

START = "from autoq.tuning.peers import take_part; take_part()"


@contextlib.contextmanager
def leading(processes: int, device: str, model: str, work: Callable[..., None], *arguments: Any) -> Iterator[None]:
    """Lead `processes` processes that train together; the others do `work(*arguments)`, with this one's messages on standard error.

    Raises:
        InputError: The user's network cannot be sent to another process.
        AutoqError: One of the others ended early.
    """
    if processes == 1:
        yield
        return
    user_code = UserCode.of(model)
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as end:
        meeting = Path(folder) / "meeting"
        others = []
        for rank in range(1, processes):
            other = subprocess.Popen([sys.executable, "-c", START], stdin=subprocess.PIPE, stdout=subprocess.DEVNULL)
            end.callback(_end, other)
            others.append(other)
            assert other.stdin is not None
            pickle.dump(user_code, other.stdin)
            pickle.dump(((meeting, rank, processes, device), work, arguments), other.stdin)
            other.stdin.close()
        try:
            with joined(meeting, 0, processes, device):
                yield
        except RuntimeError as error:  # of a connection; failures of the training have other types
            if all(other.poll() in (None, 0) for other in others):
                raise
            raise AutoqError("a process of the training ended, with its message above; to continue, repeat the command") from error


def _end(process: subprocess.Popen[bytes]) -> None:
    process.kill()
    process.wait()


def take_part() -> None:
    """Do what `leading` sends on standard input, as one of its processes."""
    user_code = pickle.load(sys.stdin.buffer)
    user_code.enter()
    place, work, arguments = pickle.load(sys.stdin.buffer)
    with joined(*place):
        work(*arguments)
