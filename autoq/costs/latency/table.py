"""The table of latencies that a study measured; readable without torch."""

from __future__ import annotations

from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from autoq.config.policy import Policy
from autoq.config.space import SearchSpace
from autoq.config.structure import Structure
from autoq.costs.latency.predict import AdditiveLatency, fit
from autoq.errors import InputError

WARM_UP = 1
"""Runs of every network before the first that counts."""


class Entry(BaseModel):
    """One measured structure: its median and all samples in milliseconds, corrected for drift by the float network's."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    structure: Structure
    ms: float = Field(gt=0, allow_inf_nan=False)
    samples: tuple[float, ...]


class LatencyTable(BaseModel):
    """Frozen latencies of one network on one target, frame size, thread count and machine; empty where the target offers none.

    Attributes:
        frame: (width, height) in low-resolution pixels.
        warm_up: Runs of each structure before its samples.
        entries: Measured structures by key.
        rest: Predicts structures that are not among the entries, where those are a sample.
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
        """Milliseconds of a policy.

        Args:
            key: Key of the policy's structure.
            policy: The policy, for a prediction.

        Raises:
            InputError: The table lacks the structure and predicts none.
        """
        if key in self.entries:
            return self.entries[key].ms
        if self.rest is not None:
            return self.rest.ms(policy)
        raise InputError(
            f"latency table has no structure {key} (it has {len(self.entries)}); measure again without --latency-table"
        )

    def check(self, model: str, scale: int, target: str, frame: tuple[int, int], threads: int) -> None:
        """Raise InputError if the table was measured for another study. Older tables do not state their scale."""
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


def of_images(space: SearchSpace) -> tuple[str, ...]:
    """The stages that read only the image: they have no activation of their own."""
    return tuple(stage for stage, roles in space.choices.items() if "activation" not in roles)


def float_entry(table: LatencyTable) -> Entry | None:
    """The entry of the float network, where there is one."""
    return next((entry for entry in table.entries.values() if entry.structure.is_float), None)


def with_prediction(table: LatencyTable, space: SearchSpace, integer_bits: int) -> LatencyTable:
    """The table with a prediction, fitted to its entries, for all other structures."""
    float_network = float_entry(table)
    assert float_network is not None
    measured = [entry for entry in table.entries.values() if entry is not float_network]
    structures, ms = [entry.structure for entry in measured], [entry.ms for entry in measured]
    rest = fit(list(space.choices), structures, ms, float_network.ms, integer_bits, of_images(space))
    return table.model_copy(update={"rest": rest})
