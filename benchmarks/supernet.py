"""Would one network with shared weights judge policies better than no training, or than a short trial of each?

python benchmarks/supernet.py --measure      a quarter of an hour a seed; writes tables/supernet-xlsr-x3-seed*.csv
python benchmarks/supernet.py                rank correlations with 64 steps of training, from the tables, in seconds

All 729 policies of exhaustive.py on one set of weights: every training step takes one of them at random, then all are scored
as they stand. Compared with it are no training (ptq), the errors of stages quantized alone, summed (additive), a few steps of
training each (trial), and 64 steps with the other seed's patches and calibration, which says how far any of them can get.

spearman    with PSNR after 64 steps, all policies; beside it the 95 % interval over policies
near        the same, only policies that no other of their size and bit operations or less beats by more than NEAR dB
front       the same, only the true front in size, bit operations and PSNR
kept        of TRIALS random policies' true front, the share that a study's rule lets train on from a rung with these scores
promoted    of all of them, the share that trains on
steps       of training until every policy has its score, together
seconds     of a processor until then, evaluation included. Of ptq, additive and trials as in exhaustive.py's tables;
            supernet_0 is ptq again, timed where the supernets were
study       seconds until TRIALS policies have their score: a supernet is built and trained all the same

Found: at 4 steps for each of 50 trials (200) the supernet ranks all policies better than what costs no more with seed 0 (0.95;
ptq 0.87, additive 0.89, 4 steps each 0.93), and worse with seed 1 (0.89; 0.87, 0.90, 0.93): no win. Near the front, where a
search decides, 4 steps each rank better and additive, which trains nothing, keeps more of the front, with both seeds. From 200
to 400 steps coarse policies gain and fine ones lose (seed 0). In a study of 50 trials it takes more seconds. Seed 1 was
measured with `--lengths 200` only, and the own biases (see Supernet) were chosen looking at seed 0.
"""

from __future__ import annotations

import argparse
import csv
import dataclasses
import itertools
import random
import sys
import time
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).parent))

from documents import reserve_output
from exhaustive import RUNGS, TABLES, policies, space, spec, write
from runs import file_quality, float_graph, spearman
from search import DIRECTIONS, FULL, Table

from autoq import additive, halving, pareto
from autoq.errors import TrialFailed
from autoq.policy import Policy
from autoq.qat import Training
from autoq.quantize import Quantized, quantize
from autoq.workbench import Workbench, prepare

LENGTHS = (0, 50, 100, 200, 400)
"""Training steps of the supernets, each a training of its own: the schedule depends on its end."""

SEEDS = (0, 1)
TRIALS = 50
"""Of a study: what a supernet's steps are shared among, and what goes through a rung together."""

NEAR = 0.2
DRAWS = 40
RESAMPLES = 1000
TRAINING = "training"
"""The line of the table that says what building and training the supernets took."""


# ------------------------------------------------------------ measuring


class Supernet(Training):
    """A trial's training, of many policies on shared parameters: each step is another policy's.

    Weights are everybody's. A scale belongs to a tensor, its stage and its format. A bias belongs to a layer and its weight's
    format: it takes back what rounding the weights shifts, which every width does differently.

    Tried on 150 policies of seed 0, Spearman after 400 passes through the network, this one 0.94 and 0.95 (two orders of
    policies): one bias for all widths 0.92 and 0.92, and mean PSNR 0.3 dB less; with it all rates times 0.3 or 3, 0.91 or 0.90.
    The widest and the narrowest policy in every step beside one at random (sandwich rule) 0.91, four at random 0.94; the
    weights' rate times 3 0.94, the biases' 0.95.
    """

    def __init__(self, bench: Workbench, policies: Sequence[Policy], steps: int) -> None:
        bench = dataclasses.replace(bench, spec=bench.spec.model_copy(update={"steps": steps}))
        shared: dict[Hashable, nn.Parameter] = {}
        self.networks = [share(bench, policy, shared) for policy in policies]
        self.coarsest = min(range(len(policies)), key=lambda index: bits(policies[index]))
        self.random = random.Random(bench.spec.seed)
        super().__init__(bench, Quantized(nn.ModuleList(network.module for network in self.networks), [], ()))
        self.module.train()

    def _network(self) -> nn.Module:
        return self.module

    def _loss(self, chosen: Tensor) -> Tensor:
        """The loss of one policy. The coarsest comes first, as the first loss sets by how much the rates shrink."""
        index = self.random.randrange(len(self.networks)) if self.step else self.coarsest
        self.network = self.networks[index].module
        return super()._loss(chosen)


def share(bench: Workbench, policy: Policy, shared: dict[Hashable, nn.Parameter]) -> Quantized:
    """A policy's network, with the parameters of `shared` where they are the same; what is new is added there."""
    quantized = quantize(bench.traced, policy, bench.statistics, bench.execution)
    placements = {placed.quantizer: placed.placement for placed in quantized.placed}
    stages = {layer.path: layer.stage for layer in bench.traced.layers}
    for path, parameter in list(quantized.module.named_parameters()):
        owner, _, name = path.rpartition(".")
        key: Hashable = path
        if owner in placements:
            placement = placements[owner]
            key = (placement.source, placement.sites[0].stage, placement.quant)
        elif name == "bias":
            key = (path, policy.stage(stages[owner]).weight)
        setattr(quantized.module.get_submodule(owner), name, shared.setdefault(key, parameter))
    return quantized


def bits(policy: Policy) -> int:
    """Of all roles of all stages, summed."""
    return sum(quant.role(role).bits for stage, quant in policy.stages for role in space().choices[stage])


def measure(seed: int, scored: Sequence[Policy], lengths: Sequence[int]) -> Iterator[dict[str, object]]:
    """Seconds of training, then a line for every policy: PSNR (dB) and seconds of scoring, for supernets of these lengths."""
    bench, graph = prepare(spec(seed)), float_graph(spec(seed))
    training: dict[str, object] = {"policy": TRAINING}
    lines: list[dict[str, object]] = [{"policy": policy.label} for policy in scored]
    for length in lengths:
        start = time.process_time()
        supernet = Supernet(bench, scored, length)
        supernet.advance(length)
        training |= {f"psnr_{length}": "", f"seconds_{length}": round(time.process_time() - start, 2)}
        print(f"{length} steps: {training[f'seconds_{length}']} s, with building {len(scored)} networks", file=sys.stderr)
        for line, network in zip(lines, supernet.networks, strict=True):
            start = time.process_time()
            try:
                psnr = file_quality(bench, network, graph)["psnr"]
            except TrialFailed:
                psnr = float("nan")
            line |= {f"psnr_{length}": round(psnr, 4), f"seconds_{length}": round(time.process_time() - start, 4)}
    yield training
    yield from lines


def columns(lengths: Sequence[int]) -> list[str]:
    return ["policy", *(f"psnr_{length}" for length in lengths), *(f"seconds_{length}" for length in lengths)]


# ------------------------------------------------------------ what comes of it


@dataclass(frozen=True)
class Contestant:
    """A way to score policies: PSNR of each (dB), training steps for all, seconds for however many (once) and for one."""

    psnr: np.ndarray
    steps: int = 0
    once: float = 0.0
    each: float = 0.0

    def seconds(self, policies: int) -> float:
        return self.once + self.each * policies


def contestants(table: Table, other: Table, lines: dict[str, dict[str, str]], known: list[int]) -> dict[str, Contestant]:
    """Who competes. other: the table of another seed; lines: the supernets'; known: the policies of `table` they have."""
    timed = lines[TRAINING]
    chosen = [table.policies[index] for index in known]

    def trial(of: Table, steps: int) -> Contestant:
        psnr = np.nan_to_num(of.psnr[steps][known], nan=0.0)
        return Contestant(psnr, steps * len(known), 0.0, float(of.seconds[steps][known].mean()))

    added = np.array([additive.policy_loss(space(), table.losses, policy) for policy in chosen])
    found = {
        "ptq": trial(table, 0),
        "additive": Contestant(-10 * np.log10(table.float_mse + added), 0, table.probing),
        **{f"trial_{steps}": trial(table, steps) for steps in RUNGS[1:-1]},
        "other_seed": trial(other, FULL),
    }
    for column in timed:
        if column.startswith("psnr_"):
            steps = column.removeprefix("psnr_")
            psnr = [float(lines[policy.label][column]) for policy in chosen]
            seconds = [float(lines[policy.label][f"seconds_{steps}"]) for policy in chosen]
            once = float(timed[f"seconds_{steps}"])
            found[f"supernet_{steps}"] = Contestant(np.nan_to_num(psnr, nan=0.0), int(steps), once, float(np.mean(seconds)))
    return found


def near_front(values: np.ndarray, slack: float) -> list[int]:
    """Points (size, bit operations, PSNR) that would be on the front of the others with `slack` dB more."""
    cheaper = (values[:, None, :2] <= values[None, :, :2]).all(2)
    better = values[:, None, 2] > values[None, :, 2] + slack
    return np.flatnonzero(~(cheaper & better).any(0)).tolist()


def rung(scores: np.ndarray, truth: np.ndarray, reference: Sequence[float]) -> tuple[float, float]:
    """(of the true front of TRIALS random policies, the share that goes on; the same of all), over DRAWS of them.

    scores, truth: losses [policies, objectives], all minimized. Cohorts are judged against those before, as in a study.
    """
    choose = np.random.default_rng(0)
    shares = []
    for _ in range(DRAWS):
        drawn = choose.permutation(len(truth))[:TRIALS]
        kept: set[int] = set()
        for start in range(0, len(drawn), halving.COHORT):
            cohort = drawn[start : start + halving.COHORT]
            places = halving.limit(len(cohort))
            kept.update(cohort[halving.promoted(list(scores[cohort]), list(scores[drawn[:start]]), reference, places)].tolist())
        front = drawn[pareto.front(truth[drawn], ["minimize"] * truth.shape[1])].tolist()
        shares.append((len(kept.intersection(front)) / len(front), len(kept) / len(drawn)))
    kept_share, promoted = np.mean(shares, axis=0)
    return float(kept_share), float(promoted)


def figures_of(table: Table, found: dict[str, Contestant], known: list[int]) -> dict[str, float | bool | str]:
    """Everything that is printed, and the verdict. known: the policies of the table that the contestants have scored."""
    values = table.values(known)
    truth, reference = pareto.losses(values, DIRECTIONS), list(pareto.losses([table.reference], DIRECTIONS)[0])
    subsets = {"near": near_front(values, NEAR), "front": pareto.front(values, DIRECTIONS).tolist()}
    draws = np.random.default_rng(0).integers(0, len(known), (RESAMPLES, len(known)))
    spread = {name: spearman(each.psnr[draws], values[draws, 2]) for name, each in found.items()}
    figures: dict[str, float | bool | str] = {"policies": len(known), **{key: len(each) for key, each in subsets.items()}}
    for name, each in found.items():
        figures[f"spearman_{name}"] = round(float(spearman(each.psnr, values[:, 2])), 4)
        low, high = np.nanpercentile(spread[name], [2.5, 97.5])
        figures |= {f"spearman_{name}_low": round(float(low), 4), f"spearman_{name}_high": round(float(high), 4)}
        for key, subset in subsets.items():
            figures[f"{key}_{name}"] = round(float(spearman(each.psnr[subset], values[subset, 2])), 4)
        scores = pareto.losses(np.column_stack([values[:, :2], each.psnr]), DIRECTIONS)
        kept, promoted = rung(scores, truth, reference)
        figures |= {f"kept_{name}": round(kept, 3), f"promoted_{name}": round(promoted, 3)}
        figures |= {f"steps_{name}": each.steps, f"seconds_{name}": round(each.seconds(len(known)), 1)}
        figures[f"study_{name}"] = round(each.seconds(TRIALS), 1)
    first = f"trial_{halving.rungs(FULL)[0]}"
    affordable = [name for name in found if name.startswith("supernet_") and found[name].steps <= halving.rungs(FULL)[0] * TRIALS]
    own = max(affordable, key=lambda name: found[name].steps)
    rivals = ("ptq", "additive", first)
    best = max(rivals, key=lambda name: figures[f"spearman_{name}"])
    low, high = np.nanpercentile(spread[own] - spread[best], [2.5, 97.5])
    leader = {key: max((own, *rivals), key=lambda name: figures[f"{key}_{name}"]) for key in ("near", "kept")}
    wins = all(figures[f"spearman_{own}"] > figures[f"spearman_{rival}"] for rival in rivals)
    return figures | {
        "supernet_wins": wins,
        "lead": round(figures[f"spearman_{own}"] - figures[f"spearman_{best}"], 4),
        "lead_low": round(float(low), 4),
        "lead_high": round(float(high), 4),
        "verdict": f"{own} {'beats' if wins else 'does not beat'} {', '.join(rivals)} over all policies; "
        f"of these four, {leader['near']} ranks best near the front and {leader['kept']} keeps most of it",
    }


def together(every: dict[int, dict[str, float | bool | str]]) -> dict[str, float | bool | str]:
    """The first seed's figures under their names, the others' with the seed behind; to win is to win with every seed."""
    first, *others = every
    figures = dict(every[first])
    for seed in others:
        figures |= {f"{name}_seed{seed}": value for name, value in every[seed].items()}
    figures["supernet_wins"] = all(each["supernet_wins"] for each in every.values())
    figures["verdict"] = "; ".join(f"seed {seed}: {each['verdict']}" for seed, each in every.items())
    return figures


def read(path: Path) -> dict[str, dict[str, str]]:
    """A supernet's table, by policy label."""
    with path.open() as file:
        return {line["policy"]: line for line in csv.DictReader(file)}


def show(figures: dict[str, float | bool | str]) -> str:
    """The figures as a table, a line for each contestant."""
    names = [key.removeprefix("steps_") for key in figures if key.startswith("steps_")]
    text = [f"{figures['policies']} policies, {figures['near']} near the front, {figures['front']} on it"]
    text.append(f"{'':13}spearman                  near   front    kept promoted  steps seconds   study")
    for name in names:
        interval = f"[{figures[f'spearman_{name}_low']:.3f}, {figures[f'spearman_{name}_high']:.3f}]"
        text.append(
            f"{name:13}{figures[f'spearman_{name}']:.3f} {interval:16}"
            + "".join(f"{figures[f'{key}_{name}']:8.3f}" for key in ("near", "front", "kept", "promoted"))
            + f"{figures[f'steps_{name}']:7}{figures[f'seconds_{name}']:8.1f}{figures[f'study_{name}']:8.1f}"
        )
    lead = f"{figures['lead']:+.3f} [{figures['lead_low']:+.3f}, {figures['lead_high']:+.3f}]"
    return "\n".join([*text, str(figures["verdict"]), f"lead in spearman over the best of the three: {lead}"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--measure", action="store_true")
    parser.add_argument("--seed", type=int, choices=SEEDS, help="only this one (both)")
    parser.add_argument("--lengths", type=int, nargs="+", default=list(LENGTHS))
    parser.add_argument("--policies", type=int, help="train and score so many, drawn at random (all)")
    parser.add_argument("--table", type=Path, help="of the supernets (tables/supernet-xlsr-x3-seedN.csv)")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    tell = reserve_output(options.json)
    if options.table and options.seed is None:
        parser.error("--table is of one seed; add --seed 0")
    if min(options.lengths) > halving.rungs(FULL)[0] * TRIALS:
        parser.error(f"--lengths: one of {halving.rungs(FULL)[0] * TRIALS} steps at most is needed for the verdict")
    tables = {seed: Table.read(seed, TABLES) for seed in SEEDS}
    every: dict[int, dict[str, float | bool | str]] = {}
    for seed in SEEDS if options.seed is None else (options.seed,):
        path = options.table or TABLES / f"supernet-xlsr-x3-seed{seed}.csv"
        if options.measure:
            scored = list(itertools.islice((policy for policy in policies() if not policy.is_float), options.policies))
            rows = list(measure(seed, scored, options.lengths))
            path.unlink(missing_ok=True)
            write(path, columns(options.lengths), rows)
        lines = read(path)
        known = [index for index, policy in enumerate(tables[seed].policies) if policy.label in lines]
        (other,) = (tables[each] for each in SEEDS if each != seed)
        every[seed] = figures_of(tables[seed], contestants(tables[seed], other, lines, known), known)
    figures = together(every)
    if options.json:
        finite = {name: None if value != value else value for name, value in figures.items()}  # NaN is no JSON
        tell({"bench": "supernet", "figures": finite})
    else:
        print("\n\n".join(f"seed {seed}: {show(each)}" for seed, each in every.items()))
        print(f"\nsupernet wins: {figures['supernet_wins']}")


if __name__ == "__main__":
    main()
