"""Search strategies compared on the exhaustive table: hypervolume against seconds of trial work, over many seeds.

python benchmarks/search.py             autoq's default, its parts, Optuna's samplers started cold, random, uniform
python benchmarks/search.py --plot curves.png     also draws them: share of the hypervolume against seconds

Every strategy pays for preparing (network, calibration); autoq also for looking at the stages one at a time. Objectives
are size, bit operations and PSNR after full training; the reference point is that of a study.
"""

from __future__ import annotations

import argparse
import csv
import functools
import math
import statistics
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import optuna

sys.path.insert(0, str(Path(__file__).parent))

from curves import MOMENTS, curve_table, curves_of, draw, volume_at
from documents import reserve_output
from exhaustive import RUNGS, TABLES, space

from autoq.config import schedule
from autoq.config.objectives import Direction, reference_value
from autoq.config.policy import Policy, StageQuant
from autoq.study import pareto
from autoq.study.storage import make_sampler
from autoq.tuning import additive, successive_halving

FULL = RUNGS[-1]
RAY = "Ray's OptunaSearch"
COLD = ("random", "tpe", "gp", "nsga2", RAY)
SHARES = (0.90, 0.95, 0.99)
OBJECTIVES = ("size", "bops", "psnr")
DIRECTIONS: list[Direction] = ["minimize", "minimize", "maximize"]


@dataclass(frozen=True)
class Table:
    """What exhaustive.py measured with one seed: of every policy its costs, and PSNR and seconds at every rung."""

    policies: list[Policy]
    costs: np.ndarray
    psnr: dict[int, np.ndarray]
    seconds: dict[int, np.ndarray]
    losses: dict[str, dict[StageQuant, float]]
    preparing: float
    probing: float
    reference: list[float]
    float_psnr: float

    @classmethod
    def read(cls, seed: int, folder: Path) -> Table:
        name = f"xlsr-x3-seed{seed}.csv"
        with (folder / name).open() as file:
            lines = {line["policy"]: line for line in csv.DictReader(file)}
        everything = space()
        known = [policy for policy in everything.enumerate() if policy.label in lines]
        rows = [lines[policy.label] for policy in known]
        exact = next(line for line in lines.values() if set(line["policy"].split()) == {"32"})
        with (folder / f"probes-{name}").open() as file:
            measured = {(line["stage"], line["label"]): line for line in csv.DictReader(file)}
        preparing, probing = (float(measured.pop(("", label))["seconds"]) for label in ("preparing", "probing"))
        return cls(
            policies=known,
            costs=np.array([[float(row["size"]), float(row["bops"])] for row in rows]),
            psnr={rung: np.array([float(row[f"psnr_{rung}"]) for row in rows]) for rung in RUNGS},
            seconds={rung: np.array([float(row[f"seconds_{rung}"]) for row in rows]) for rung in RUNGS},
            losses={
                stage: {quant: float(measured[stage, quant.label]["loss"]) for quant in additive.probes(everything, stage)}
                for stage in everything.choices
            },
            preparing=preparing,
            probing=probing,
            reference=[
                reference_value(name, float(value))
                for name, value in zip(OBJECTIVES, (exact["size"], exact["bops"], exact[f"psnr_{FULL}"]), strict=True)
            ],
            float_psnr=float(exact[f"psnr_{FULL}"]),
        )

    def values(self, indices: list[int], rung: int = FULL) -> np.ndarray:
        """[points, objectives], NaN qualities (a training that diverged) as the worst."""
        psnr = np.nan_to_num(self.psnr[rung][indices], nan=0.0)
        return np.column_stack([self.costs[indices], psnr])

    @property
    def float_mse(self) -> float:
        return float(10 ** (-self.float_psnr / 10))

    def hypervolume(self, indices: list[int]) -> float:
        return pareto.hypervolume(self.values(indices), DIRECTIONS, self.reference) if indices else 0.0

    @functools.cached_property
    def whole(self) -> float:
        """Hypervolume of all policies: what a search can reach at most."""
        return self.hypervolume(list(range(len(self.policies))))


@dataclass
class Run:
    """A strategy at work on a table: what it spent, and what it has fully trained. curve: (seconds, hypervolume).

    target: hypervolume with which it is done, once it has worked for all MOMENTS.
    """

    table: Table
    seed: int
    budget: int
    seconds: float = 0.0
    steps: int = 0
    found: list[int] = field(default_factory=list)
    curve: list[tuple[float, float]] = field(default_factory=list)
    target: float = math.inf

    def train(self, index: int, after: int | None, until: int) -> None:
        """Train a policy from a rung (None: from nothing) to another, and look at it there."""
        before = 0.0 if after is None else self.table.seconds[after][index]
        looked = 0.0 if after is None else self.table.seconds[0][index]  # evaluation is paid at every rung
        self.seconds += self.table.seconds[until][index] - before + looked
        self.steps += until - (after or 0)
        if until == FULL:
            self.found.append(index)
            self.curve.append((self.seconds, self.table.hypervolume(self.found)))

    def losses(self, indices: list[int], rung: int) -> np.ndarray:
        """[points, objectives] at a rung, minimized."""
        return pareto.losses(self.table.values(indices, rung), DIRECTIONS)

    @property
    def reference(self) -> list[float]:
        """The reference point, minimized."""
        return list(pareto.losses([self.table.reference], DIRECTIONS)[0])

    @property
    def done(self) -> bool:
        return bool(self.curve) and self.curve[-1][1] >= self.target and self.seconds >= MOMENTS[-1]


Strategy = Callable[[Run], None]


# ------------------------------------------------------------ strategies


def cold(sampler: str) -> Strategy:
    """An Optuna sampler from nothing, every trial fully trained."""

    def strategy(run: Run) -> None:
        run.seconds += run.table.preparing
        asker = Asker(run, sampler)
        for _ in range(run.budget):
            if run.done:
                return
            number, index = asker.ask()
            run.train(index, None, FULL)
            asker.tell(number, index)

    return strategy


def ray_optuna(run: Run) -> None:
    """Ray's own OptunaSearch, as its documentation uses it for several objectives: every trial fully trained."""
    from ray.tune.search.optuna import OptunaSearch

    run.seconds += run.table.preparing
    everything = space()
    index = {policy: number for number, policy in enumerate(run.table.policies)}
    probe = optuna.create_study().ask()
    everything.suggest(probe)
    modes = [direction[:3] for direction in DIRECTIONS]
    search = OptunaSearch(space=dict(probe.distributions), metric=list(OBJECTIVES), mode=modes, seed=run.seed)
    for number in range(run.budget):
        if run.done:
            return
        policy = everything.suggest(optuna.trial.FixedTrial(search.suggest(str(number))))
        run.train(index[policy], None, FULL)
        values = run.table.values([index[policy]])[0].tolist()
        search.on_trial_complete(str(number), dict(zip(OBJECTIVES, values, strict=True)))


class Asker:
    """Optuna, seeded as in a study: a sampler made anew for every trial."""

    def __init__(self, run: Run, sampler: str) -> None:
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        self.run, self.sampler = run, sampler
        self.study = optuna.create_study(directions=DIRECTIONS)
        self.space = space()
        self.index = {policy: index for index, policy in enumerate(run.table.policies)}
        self.trials: list[optuna.Trial] = []

    def ask(self, policy: Policy | None = None) -> tuple[int, int]:
        """(number, index in the table) of the next trial: a given policy, or what the sampler suggests."""
        number = len(self.trials)
        if policy is not None:
            self.study.enqueue_trial(self.space.parameters(policy))
        self.study.sampler = make_sampler(self.sampler, self.run.seed, number, self.run.budget)
        trial = self.study.ask()
        self.trials.append(trial)
        return number, self.index[self.space.suggest(trial)]

    def tell(self, number: int, index: int, stopped: bool = False) -> None:
        if stopped:
            self.study.tell(self.trials[number], state=optuna.trial.TrialState.PRUNED)
        else:
            self.study.tell(self.trials[number], self.run.table.values([index])[0].tolist())


def predicted(run: Run, count: int) -> list[Policy]:
    """The front that the additive model predicts, in the order its policies are worth trying."""
    table = run.table
    run.seconds += table.probing
    known = dict(zip(table.policies, table.costs.tolist(), strict=True))
    front = additive.predicted_front(additive.options(space(), table.losses, known.__getitem__))
    return [each.policy for each in additive.by_worth(front, additive.lost_psnr(table.float_mse), table.reference[:-1], count)]


def seeds_alone(run: Run) -> None:
    """The seeds of a study, fully trained, and nothing else."""
    run.seconds += run.table.preparing
    index = {policy: number for number, policy in enumerate(run.table.policies)}
    for policy in predicted(run, schedule.initial_trials(run.budget)):
        run.train(index[policy], None, FULL)


def uniform_only(run: Run) -> None:
    """Every role at 8, 6, 4 bits."""
    run.seconds += run.table.preparing
    for number, policy in enumerate(run.table.policies):
        if len(set(policy.label.replace("/", " ").split())) == 1:
            run.train(number, None, FULL)


def autoq(run: Run, stopping: bool = True, sampler: str = "auto") -> None:
    """Seeds, then the sampler, in brackets that are compared at rungs."""
    run.seconds += run.table.preparing
    asker = Asker(run, sampler)
    seeds = predicted(run, schedule.initial_trials(run.budget))
    rungs = RUNGS[1:] if stopping else (FULL,)
    reached: dict[int, list[int]] = {rung: [] for rung in rungs}
    number = 0
    while number < run.budget:
        together = schedule.bracket(number, len(seeds), rungs)
        number = min(together.stop, run.budget)
        going = [asker.ask(seeds[each] if each < len(seeds) else None) for each in range(together.start, number)]
        before = None
        for rung in rungs:
            for _, index in going:
                run.train(index, before, rung)
            here = [index for _, index in going]
            kept = list(range(len(going)))
            if rung != FULL and len(together) > 1:
                kept = successive_halving.promoted(
                    list(run.losses(here, rung)),
                    list(run.losses(reached[rung], rung)),
                    run.reference,
                    successive_halving.slots(len(here)),
                )
            reached[rung] += here
            for position, (told, index) in enumerate(going):
                if position not in kept or rung == FULL:
                    asker.tell(told, index, stopped=position not in kept)
            going, before = [going[position] for position in kept], rung


STRATEGIES: dict[str, Strategy] = {
    "autoq": autoq,
    "autoq, no stopping": functools.partial(autoq, stopping=False),
    "seeds alone": seeds_alone,
    **{name: cold(name) for name in COLD if name != RAY},
    RAY: ray_optuna,
    "uniform": uniform_only,
}


# ------------------------------------------------------------ what comes of it


def seconds_until(run: Run, share: float) -> float:
    """Seconds of trial work until a share of the table's hypervolume was reached; infinite where it was not."""
    wanted = share * run.table.whole
    return next((seconds for seconds, volume in run.curve if volume >= wanted), math.inf)


def compare(tables: Sequence[Table], names: Iterable[str], seeds: int, budget: int) -> dict[str, list[Run]]:
    """Every strategy with every seed; tables in turn."""
    runs: dict[str, list[Run]] = {}
    for name in names:
        for seed in range(seeds):
            table = tables[seed % len(tables)]
            run = Run(table, seed, len(table.policies) if name == "random" else budget)
            if name in COLD:  # nothing more is asked of it
                run.target = SHARES[-1] * table.whole
            STRATEGIES[name](run)
            runs.setdefault(name, []).append(run)
        print(f"{name}: done", file=sys.stderr)
    return runs


def figures_of(runs: dict[str, list[Run]]) -> dict[str, float]:
    """Medians over seeds of the seconds until shares of the hypervolume, and how autoq compares."""
    figures: dict[str, float] = {}
    for name, found in runs.items():
        for share in SHARES:
            figures[f"seconds_{share:.2f}_{name}"] = round(statistics.median(seconds_until(run, share) for run in found), 2)
    if "autoq" in runs:
        own = figures["seconds_0.95_autoq"]
        if "random" in runs:
            figures["seconds_ratio_random_95"] = round(own / figures["seconds_0.95_random"], 3)
        cold_ones = [figures[f"seconds_0.95_{name}"] for name in COLD if name in runs and name != "random"]
        if cold_ones:
            figures["seconds_ratio_best_cold_95"] = round(own / min(cold_ones), 3)
        if "seeds alone" in runs:
            pairs = zip(runs["autoq"], runs["seeds alone"], strict=True)
            ends = [(volume_at(a, math.inf), volume_at(b, math.inf)) for a, b in pairs]
            figures["worse_than_seeds_alone"] = sum(a < b for a, b in ends)
            figures["no_better_than_seeds_alone"] = sum(a <= b for a, b in ends)
            figures["gain_over_seeds_alone"] = round(statistics.mean(a / b - 1 for a, b in ends), 4)
        if "autoq, no stopping" in runs:
            pairs = list(zip(runs["autoq"], runs["autoq, no stopping"], strict=True))
            figures["steps_saved_by_stopping"] = round(1 - statistics.mean(a.steps / b.steps for a, b in pairs), 3)
            lost = [1 - volume_at(a, math.inf) / volume_at(b, math.inf) for a, b in pairs]
            figures["hypervolume_lost_by_stopping"] = round(statistics.mean(lost), 4)
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--budget", type=int, default=50)
    parser.add_argument("--strategies", nargs="+", default=list(STRATEGIES), choices=list(STRATEGIES))
    parser.add_argument("--tables", type=Path, default=TABLES)
    parser.add_argument("--plot", type=Path, metavar="FILE.png", help="draw the curves")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    tell = reserve_output(options.json)
    if options.plot and (options.plot.suffix != ".png" or not options.plot.parent.is_dir()):
        parser.error(f"--plot '{options.plot}': expected a .png file in a folder that exists; type --plot curves.png")
    tables = [Table.read(seed, options.tables) for seed in (0, 1)]
    runs = compare(tables, options.strategies, options.seeds, options.budget)
    figures, curves = figures_of(runs), curves_of(runs)
    if options.plot:
        draw(runs, options.plot)
    if options.json:
        finite = {name: value if math.isfinite(value) else None for name, value in figures.items()}
        tell({"bench": "search", "figures": finite, "curves": curves})
    else:
        print("\n".join(f"{name:40} {value}" for name, value in figures.items()))
        print(f"\n{curve_table(curves)}")


if __name__ == "__main__":
    main()
