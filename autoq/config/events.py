"""Callbacks of a search and of a float training. The base classes do nothing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from autoq.config.spec import Record, StudySpec


class Events:
    """Callbacks of a search; override the ones you need. They run in the search's own process, one at a time.

    folder: the study's folder, once it exists.
    """

    folder: Path | None = None

    def phase(self, text: str) -> None:
        """A phase begins or advances: preparing, measuring latency, running."""

    def note(self, text: str) -> None:
        """A notice that stops nothing: a missing metric, a worker that died."""

    def begin(self, folder: Path, spec: StudySpec, records: Sequence[Record]) -> None:
        """A study begins or continues. records: the results of an earlier run."""
        self.folder = folder

    def started(self, name: str, label: str) -> None:
        """A baseline (`8/8/8`) or trial (`trial 7`) starts. label: its bits by stage."""

    def paused(self, name: str) -> None:
        """A trial waits at a rung until its whole bracket has reached it."""

    def finished(self, record: Record) -> None:
        """A baseline or trial ended."""

    def replicated(self, name: str, done: int, total: int) -> None:
        """A replication of a Pareto point has finished: `done` of `total`."""


@dataclass(frozen=True)
class Progress:
    """State of a training after `step` of `steps`: mean loss since the last one, value of a quality, seconds in total."""

    step: int
    steps: int
    loss: float
    value: float
    seconds: float
    quality: str = "psnr"


class TrainingEvents:
    """Callbacks of a float training or a finetuning. begun: whether there is a training to continue."""

    begun = False

    def begin(self, step: int, steps: int) -> None:
        """Training begins or continues after `step` of `steps`."""
        self.begun = True

    def stepped(self, step: int) -> None:
        """One more step is done."""

    def validated(self, progress: Progress) -> None:
        """The network was validated and the state saved."""
