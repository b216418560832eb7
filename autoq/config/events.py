"""What a caller may listen to while a search runs. The base class listens to nothing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from autoq.config.spec import Record, StudySpec


class Events:
    """Override what matters. Called in the search's own process, one call at a time. folder: the study's, once it exists."""

    folder: Path | None = None

    def phase(self, text: str) -> None:
        """A phase begins or advances: preparing, measuring latencies, running."""

    def note(self, text: str) -> None:
        """Something to know that stops nothing: a metric that is missing, a worker that died."""

    def begin(self, folder: Path, spec: StudySpec, records: Sequence[Record]) -> None:
        """A study begins or goes on. records: what an earlier run of it has finished."""
        self.folder = folder

    def started(self, name: str, label: str) -> None:
        """A baseline (`8/8/8`) or trial (`trial 7`) runs. label: its bits by stage."""

    def paused(self, name: str) -> None:
        """A trial stands at a rung; whether it goes on is decided when its whole bracket does."""

    def finished(self, record: Record) -> None:
        """A baseline or trial ended."""

    def confirmed(self, name: str, done: int, total: int) -> None:
        """A point of the front was trained again with another seed: `done` such trainings of `total` are over."""


@dataclass(frozen=True)
class Progress:
    """Where a float training is: after `step` of `steps`, the mean loss since the last time, PSNR (dB), seconds in all."""

    step: int
    steps: int
    loss: float
    psnr: float
    seconds: float


class TrainingEvents:
    """`Events` of a float training. begun: whether there is something to go on from."""

    begun = False

    def begin(self, step: int, steps: int) -> None:
        """Training begins, or goes on, after `step` of `steps`."""
        self.begun = True

    def stepped(self, step: int) -> None:
        """One more step is done."""

    def validated(self, progress: Progress) -> None:
        """The network was validated and the state saved."""
