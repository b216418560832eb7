"""The exceptions of autoq.

    AutoqError                 base class of all errors that a user can fix
    |- InputError              invalid option, file or value (exit code 2)
    |  |- PolicyError          a policy that the model or target does not support
    |  |- SpaceError           a search-space file
    |  |- WeightsError         a checkpoint
    |  |- DataError            an image or an image folder
    |  `- StudyError           a study folder or its storage
    |- MetricUnavailable       the model file of a metric is not installed
    `- TrialFailed             a trial without a result (it diverged); the study continues

A message is one line: what was given, what was expected, what to type.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class AutoqError(Exception):
    """Base class of all errors that a user can fix."""


class InputError(AutoqError):
    """An option, a file or a value is invalid."""


class PolicyError(InputError):
    """A policy does not match the model, or the target does not support it."""


class SpaceError(InputError):
    """A search-space file is malformed or contains an unknown name."""


class WeightsError(InputError):
    """A checkpoint is missing, unsafe, or does not match the network."""


class DataError(InputError):
    """An image or an image folder cannot be used."""


class StudyError(InputError):
    """A study folder is missing, already in use, or does not match."""


class MetricUnavailable(AutoqError):
    """The published model file of a quality metric is not installed."""


class TrialFailed(AutoqError):
    """A trial failed; the study records the reason and continues. steps: training steps completed before."""

    def __init__(self, message: str, steps: int) -> None:
        super().__init__(message, steps)
        self.message, self.steps = message, steps

    def __str__(self) -> str:
        """The message alone: torch.fx appends to the arguments of an exception that passes through a graph."""
        return self.message


def suggest(given: str, names: Iterable[str]) -> str:
    """` (did you mean 'x'?)` with the closest name; empty if none is close."""
    by_lowercase = {name.lower(): name for name in names}
    matches = difflib.get_close_matches(given.lower(), list(by_lowercase), n=1)
    return f" (did you mean '{by_lowercase[matches[0]]}'?)" if matches else ""


def unknown(kind: str, given: str, names: Iterable[str]) -> str:
    """A message for an unknown name, with a suggestion and the valid names."""
    names = sorted(names)
    return f"unknown {kind} '{given}'{suggest(given, names)}; type one of {', '.join(names)}"
