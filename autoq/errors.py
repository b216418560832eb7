"""Every error autoq raises on purpose.

    AutoqError                 something a person can act on; one line: given -> expected -> what to type
    |- InputError              bad input: option, file, value (exit code 2)
    |  |- PolicyError          a policy that no model or target can realize
    |  |- SpaceError           a search-space file
    |  |- WeightsError         a checkpoint
    |  |- DataError            an image or an image folder
    |  `- StudyError           a study folder or its storage
    |- MetricUnavailable       a metric's published model file is not on this machine
    `- TrialFailed             one trial cannot give a result (it diverged); the study goes on

Messages are one line. `suggest` adds "Did you mean 'x'?" where a known name is near.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class AutoqError(Exception):
    """Base of all errors a person can act on."""


class InputError(AutoqError):
    """What was typed or pointed at cannot be used."""


class PolicyError(InputError):
    """A policy names what the model lacks, or asks what the target cannot do."""


class SpaceError(InputError):
    """A search-space file is malformed or names something unknown."""


class WeightsError(InputError):
    """A checkpoint is missing, unsafe, or does not fit the network."""


class DataError(InputError):
    """An image or image folder cannot be used."""


class StudyError(InputError):
    """A study folder is missing, taken, or does not match."""


class MetricUnavailable(AutoqError):
    """A quality metric's published model file is not on this machine."""


class TrialFailed(AutoqError):
    """A trial has no result, and this is why. The study records it and goes on. steps: training steps it had done."""

    def __init__(self, message: str, steps: int) -> None:
        super().__init__(message)
        self.steps = steps


def suggest(given: str, known: Iterable[str]) -> str:
    """` Did you mean 'x'?` for the nearest known name, or an empty string."""
    names = {name.lower(): name for name in known}
    near = difflib.get_close_matches(given.lower(), list(names), n=1)
    return f" Did you mean '{names[near[0]]}'?" if near else ""


def unknown(what: str, given: str, known: Iterable[str]) -> str:
    """One line for a name that is in no table: what it is, what there is, what was probably meant."""
    names = sorted(known)
    return f"unknown {what} '{given}' (known: {', '.join(names)}).{suggest(given, names)}"
