"""The latencies that a study measured, as it keeps them: read without torch."""

from __future__ import annotations

from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from autoq.config.policy import Policy
from autoq.config.space import SearchSpace
from autoq.costs.latency.predict import AdditiveLatency, Run, fit
from autoq.errors import InputError

WARM_UP = 1
"""Runs of everything before the first that counts."""


class Entry(BaseModel):
    """One structure: its readable form, its median, and all samples (ms), corrected for drift by the float network's."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    structure: str
    ms: float = Field(gt=0, allow_inf_nan=False)
    samples: tuple[float, ...]


class LatencyTable(BaseModel):
    """Frozen latencies of one network on one target, frame size, thread count and machine; none where it offers none.

    rest: predicts the structures that are not among the entries, where those are a sample. warm_up: runs of each before
    those that are its samples.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    model: str
    scale: int | None = None
    target: str
    runtime: str
    frame: tuple[int, int]
    threads: int
    machine: str
    warm_up: int = WARM_UP
    entries: dict[str, Entry]
    rest: AdditiveLatency | None = None

    def ms(self, key: str, policy: Policy) -> float:
        """Milliseconds of a policy's structure. Raises InputError if the table lacks it and predicts none."""
        if key in self.entries:
            return self.entries[key].ms
        if self.rest is not None:
            return self.rest.ms(policy)
        raise InputError(
            f"latency table has no structure {key} (it has {len(self.entries)}); measure again without --latency-table"
        )

    def check(self, model: str, scale: int, target: str, frame: tuple[int, int], threads: int) -> None:
        """Raise InputError if the table was measured for something else. Older tables do not say their scale."""
        for name, found, wanted in (
            ("model", self.model, model),
            ("scale", self.scale or scale, scale),
            ("target", self.target, target),
            ("frame", "{}x{}".format(*self.frame), "{}x{}".format(*frame)),
            ("threads", self.threads, threads),
        ):
            if found != wanted:
                raise InputError(
                    f"latency table: measured for {name} {found}, this study has {wanted}; measure again without --latency-table"
                )


def read_table(path: Path) -> LatencyTable:
    """The latency.json of a study. Raises InputError if it is not one."""
    try:
        return LatencyTable.model_validate_json(path.read_text())
    except OSError as error:
        raise InputError(f"latency table '{path}': {error.strerror or error}; give a study's latency.json") from error
    except (ValidationError, UnicodeDecodeError) as error:
        raise InputError(f"latency table '{path}': not a latency table; give a study's latency.json") from error


def runs_of(words: str) -> dict[str, Run]:
    """stage -> how it runs, from a structure in words: the inverse of `latency.describe`."""
    found = {}
    for part in words.split(", "):
        stage, how = part.split(" ")
        found[stage] = (how.startswith("int8"), how.endswith("+skip"))
    return found


def of_images(space: SearchSpace) -> tuple[str, ...]:
    """The stages that read the image alone: they have no activation of their own."""
    return tuple(stage for stage, roles in space.choices.items() if "activation" not in roles)


def float_entry(table: LatencyTable) -> Entry | None:
    """The float network's: nothing in it runs on integers."""
    return next((entry for entry in table.entries.values() if not any(map(any, runs_of(entry.structure).values()))), None)


def with_prediction(table: LatencyTable, space: SearchSpace, integer_bits: int) -> LatencyTable:
    """A table that predicts from its entries what is not among them."""
    stages, exact = list(space.choices), float_entry(table)
    assert exact is not None
    measured = [entry for entry in table.entries.values() if entry is not exact]
    how = [runs_of(entry.structure) for entry in measured]
    rest = fit(
        stages,
        [[each[stage] for stage in stages] for each in how],
        [entry.ms for entry in measured],
        exact.ms,
        integer_bits,
        of_images(space),
    )
    return table.model_copy(update={"rest": rest})
