"""Constraints that every Pareto point must satisfy: `size<=400KiB`, `latency<=10ms`, `psnr_drop<=0.1`."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from autoq.config.objectives import OBJECTIVES
from autoq.errors import InputError, unknown

DROP = "_drop"
"""Suffix of a quality's name: how much worse it is than the float network's."""

UNITS = {"bytes": {"": 1.0, "B": 1.0, "KiB": 2.0**10, "MiB": 2.0**20, "kB": 1e3, "MB": 1e6}, "ms": {"": 1.0, "ms": 1.0, "s": 1e3}}


@dataclass(frozen=True)
class Constraint:
    """A bound in an objective's unit. name: the objective, or a quality with DROP. least: whether it is a lower bound."""

    text: str
    name: str
    bound: float
    least: bool

    @property
    def objective(self) -> str:
        return self.name.removesuffix(DROP)

    @property
    def exact(self) -> bool:
        """Whether it is independent of training."""
        return not OBJECTIVES[self.objective].quality

    def value(self, values: Mapping[str, float], float_values: Mapping[str, float]) -> float:
        """The bounded value."""
        if not self.name.endswith(DROP):
            return values[self.name]
        worse = values[self.objective] - float_values[self.objective]
        return worse if OBJECTIVES[self.objective].direction == "minimize" else -worse

    def violation(self, values: Mapping[str, float], float_values: Mapping[str, float]) -> float:
        """How far beyond the bound, as a fraction of it (of 1 if it is zero); not positive if the constraint holds."""
        beyond = self.value(values, float_values) - self.bound
        return (-beyond if self.least else beyond) / (abs(self.bound) or 1.0)


def parse(text: str) -> Constraint:
    """Read a constraint. Raises InputError unless it is a bound on an objective in its unit."""
    match = re.fullmatch(r"\s*([A-Za-z_]+)\s*(<=|>=)\s*([0-9]+(?:[.][0-9]+)?)\s*([A-Za-z]*)\s*", text)
    if match is None:
        raise InputError(
            f"--constraint '{text}': expected NAME<=VALUE or NAME>=VALUE, where NAME is an objective or a drop such as psnr_drop,"
            " for example --constraint 'size<=400KiB'"
        )
    name, sign, number, unit = match.groups()
    objective = name.removesuffix(DROP)
    if objective not in OBJECTIVES or (name != objective and not OBJECTIVES[objective].quality):
        drops = [f"{known}{DROP}" for known, info in OBJECTIVES.items() if info.quality]
        raise InputError(f"--constraint '{text}': {unknown('name', name, [*OBJECTIVES, *drops])}")
    info = OBJECTIVES[objective]
    units = UNITS.get(info.unit, {"": 1.0, info.unit: 1.0})
    if unit not in units:
        shown = info.unit if info.unit in units and info.unit != "bytes" else ""
        raise InputError(
            f"--constraint '{text}': {name} is measured in {info.unit or 'plain numbers'};"
            f" type --constraint '{name}{sign}{number}{shown}'"
        )
    return Constraint(re.sub(r"\s", "", text), name, float(number) * units[unit], sign == ">=")


def parse_all(texts: Iterable[str]) -> tuple[Constraint, ...]:
    """Read every constraint of a study."""
    return tuple(parse(text) for text in texts)
