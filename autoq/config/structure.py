"""How the stages of an exported graph run, as data: what its latency depends on."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

from pydantic import BaseModel, ConfigDict, model_validator


class Structure(BaseModel):
    """Which stages run on integers, and which have integer skips.

    Attributes:
        stages: All stages of the network, in its order.
        integer: The stages whose layers all run on integers.
        skips: The stages whose skips are integers.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    stages: tuple[str, ...] = ()
    integer: tuple[str, ...] = ()
    skips: tuple[str, ...] = ()

    @model_validator(mode="before")
    @classmethod
    def _from_words(cls, found: Any) -> Any:
        """Earlier versions stored words: `body int8+skip, upsampling float`."""
        if not isinstance(found, str):
            return found
        runs = dict(part.split(" ") for part in found.split(", ")) if found else {}
        return {
            "stages": list(runs),
            "integer": [stage for stage, run in runs.items() if run.startswith("int")],
            "skips": [stage for stage, run in runs.items() if run.endswith("+skip")],
        }

    @property
    def is_float(self) -> bool:
        """Whether nothing runs on integers."""
        return not self.integer and not self.skips

    def changes(self) -> int:
        """How often a stage on integers meets one in float."""
        return sum((a in self.integer) != (b in self.integer) for a, b in itertools.pairwise(self.stages))

    def in_words(self, integer_bits: int) -> str:
        """Stage by stage `int8`, `int8+skip` or `float`; `int` where the target's integers are wider than 8 bits."""
        name = "int8" if integer_bits == 8 else "int"
        return ", ".join(
            f"{stage} {name if stage in self.integer else 'float'}{'+skip' if stage in self.skips else ''}" for stage in self.stages
        )

    def ordered(self, stages: Sequence[str]) -> Structure:
        """The same structure with its stages in another order."""
        return self.model_copy(update={"stages": tuple(stages)})
