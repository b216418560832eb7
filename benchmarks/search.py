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
import tempfile
import unittest.mock
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import optuna

sys.path.insert(0, str(Path(__file__).parents[1]))

from autoq.config import schedule
from autoq.config.events import Events
from autoq.config.objectives import Direction, reference_value
from autoq.config.policy import Policy, StageQuant, all_float
from autoq.config.spec import Sensitivity, StudySpec, TrialResult, TrialSpec
from autoq.config.structure import Structure
from autoq.study import database, pareto, storage
from autoq.study.results import FLOAT_NAME
from autoq.study.study import Study
from autoq.tuning import additive
from autoq.tuning.scheduler import StudySearcher
from benchmarks.curves import MOMENTS, curve_table, curves_of, draw, volume_at
from benchmarks.documents import reserve_output
from benchmarks.exhaustive import RUNGS, TABLES, space

FULL = RUNGS[-1]
RAY = "Ray's OptunaSearch"
COLD = ("random", "tpe", "gp", "nsga2", RAY)
SHARES = (0.90, 0.95, 0.99)
OBJECTIVES = ("size", "bops", "psnr")
DIRECTIONS: list[Direction] = ["minimize", "minimize", "maximize"]


@dataclass(frozen=True)
class Table:
    """What exhaustive.py measured with one seed: of every policy its costs, and PSNR and seconds at every rung.

    exact: the objectives of the float network.
    """

    policies: list[Policy]
    costs: np.ndarray
    psnr: dict[int, np.ndarray]
    seconds: dict[int, np.ndarray]
    losses: dict[str, dict[StageQuant, float]]
    preparing: float
    probing: float
    exact: dict[str, float]

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
            exact={name: float(exact[column]) for name, column in zip(OBJECTIVES, ("size", "bops", f"psnr_{FULL}"), strict=True)},
        )

    @property
    def reference(self) -> list[float]:
        """The reference point of a study, from the float network."""
        return [reference_value(name, value) for name, value in self.exact.items()]

    @functools.cached_property
    def index(self) -> dict[Policy, int]:
        """Policy -> its row."""
        return {policy: index for index, policy in enumerate(self.policies)}

    def values(self, indices: list[int], rung: int = FULL) -> np.ndarray:
        """[points, objectives], NaN qualities (a training that diverged) as the worst."""
        psnr = np.nan_to_num(self.psnr[rung][indices], nan=0.0)
        return np.column_stack([self.costs[indices], psnr])

    def result(self, index: int, rung: int) -> TrialResult:
        """What a trial of the policy ends with at a rung."""
        values = dict(zip(OBJECTIVES, (*self.costs[index].tolist(), float(self.psnr[rung][index])), strict=True))
        if math.isnan(values["psnr"]):
            return TrialResult(state="failed", reason="training diverged", steps=rung)
        return TrialResult(state="complete", values=values, steps=rung)

    @property
    def float_mse(self) -> float:
        return float(10 ** (-self.exact["psnr"] / 10))

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

    @property
    def done(self) -> bool:
        return bool(self.curve) and self.curve[-1][1] >= self.target and self.seconds >= MOMENTS[-1]


Strategy = Callable[[Run], None]


# ------------------------------------------------------------ strategies


def cold(sampler: str) -> Strategy:
    """An Optuna sampler from nothing, made anew for every trial as in a study; every trial fully trained."""

    def strategy(run: Run) -> None:
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        run.seconds += run.table.preparing
        everything, study = space(), optuna.create_study(directions=DIRECTIONS)
        for number in range(run.budget):
            if run.done:
                return
            study.sampler = storage.make_sampler(sampler, run.seed, number, run.budget)
            trial = study.ask()
            index = run.table.index[everything.suggest(trial)]
            run.train(index, None, FULL)
            study.tell(trial, run.table.values([index])[0].tolist())

    return strategy


def ray_optuna(run: Run) -> None:
    """Ray's own OptunaSearch, as its documentation uses it for several objectives: every trial fully trained."""
    from ray.tune.search.optuna import OptunaSearch

    run.seconds += run.table.preparing
    everything = space()
    probe = optuna.create_study().ask()
    everything.suggest(probe)
    modes = [direction[:3] for direction in DIRECTIONS]
    search = OptunaSearch(space=dict(probe.distributions), metric=list(OBJECTIVES), mode=modes, seed=run.seed)
    for number in range(run.budget):
        if run.done:
            return
        suggested = search.suggest(str(number))
        assert suggested is not None, "without a limit of concurrency there is always a next one"
        policy = everything.suggest(optuna.trial.FixedTrial(suggested))
        index = run.table.index[policy]
        run.train(index, None, FULL)
        values = run.table.values([index])[0].tolist()
        search.on_trial_complete(str(number), dict(zip(OBJECTIVES, values, strict=True)))


def predicted(run: Run, count: int) -> list[Policy]:
    """The front that the additive model predicts, in the order its policies are worth trying."""
    table = run.table
    run.seconds += table.probing
    known = dict(zip(table.policies, table.costs.tolist(), strict=True))
    front = additive.predicted_front(additive.options(space(), table.losses, known.__getitem__))
    return [each.policy for each in additive.by_worth(front, additive.lost_psnr(table.float_mse), table.reference[:-1], count)]


def initial_trials_alone(run: Run) -> None:
    """The seeds of a study, fully trained, and nothing else."""
    run.seconds += run.table.preparing
    for policy in predicted(run, schedule.initial_trials(run.budget)):
        run.train(run.table.index[policy], None, FULL)


def uniform_only(run: Run) -> None:
    """Every role at 8, 6, 4 bits."""
    run.seconds += run.table.preparing
    for number, policy in enumerate(run.table.policies):
        if len(set(policy.label.replace("/", " ").split())) == 1:
            run.train(number, None, FULL)


def autoq(run: Run, stopping: bool = True) -> None:
    """A study, with one worker that looks its trials up. Its trials are stored in memory: files would only take longer."""
    run.seconds += run.table.preparing
    in_memory = unittest.mock.patch("autoq.study.study.connect", return_value=database.in_memory())
    with in_memory, tempfile.TemporaryDirectory() as folder:
        study = begun(run, Path(folder), stopping)
        searcher = StudySearcher(study, [], Events(), lambda policy: Structure())
        while isinstance(config := searcher.suggest("trial"), dict):
            index, until = run.table.index[Policy.from_dict(config["policy"])], config["until"]
            below = [rung for rung in searcher.rungs if rung < until]
            run.train(index, below[-1] if below else None, until)
            searcher.on_trial_complete("trial", {"result": run.table.result(index, until).model_dump_json()})
        study.close()


def begun(run: Run, folder: Path, stopping: bool) -> Study:
    """A study of the table's space with its initial trials and the float network."""
    spec = StudySpec(
        trial=TrialSpec(model="xlsr", scale=3, seed=run.seed, steps=FULL), space=space().to_dict(), objectives=OBJECTIVES,
        budget=run.budget, initial_trials=schedule.initial_trials(run.budget), rungs=RUNGS[1:] if stopping else (),
    )  # fmt: skip
    study = Study.create(folder, spec, {"command": "", "python": "", "machine": "", "versions": {}})
    seeds = predicted(run, spec.initial_trials)
    study.set_initial_trials(
        Sensitivity(probes=(), initial_trials=tuple(policy.to_dict() for policy in seeds), predicted=(0.0,) * len(seeds))
    )
    study.add_baseline(
        FLOAT_NAME, all_float(study.space.facts.stages), TrialResult(state="complete", values=run.table.exact), Structure()
    )
    return study


STRATEGIES: dict[str, Strategy] = {
    "autoq": autoq,
    "autoq, no stopping": functools.partial(autoq, stopping=False),
    "seeds alone": initial_trials_alone,
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
            both = zip(runs["autoq"], runs["seeds alone"], strict=True)
            ends = [(volume_at(a, math.inf), volume_at(b, math.inf)) for a, b in both]
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
