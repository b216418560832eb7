"""Do short trials tell the truth? Policies of SRGAN after a few training steps, ranked against 2,000 steps.

python benchmarks/fidelity.py --measure      hours; goes on where it was stopped; writes tables/fidelity-srgan-x4.csv
python benchmarks/fidelity.py                rank correlations with 95 % intervals, from the table
"""

from __future__ import annotations

import argparse
import csv
import itertools
import json
import random
import sys
import time
from pathlib import Path

import numpy as np
import torch
from scipy.stats import kendalltau, spearmanr

from autoq.errors import TrialFailed
from autoq.executed import as_executed
from autoq.options import default_scale, search_space
from autoq.policy import Policy
from autoq.qat import Training
from autoq.quantize import quantize
from autoq.spec import TrialSpec
from autoq.trial import evaluate
from autoq.workbench import prepare

STEPS = (0, 16, 25, 50, 100, 200, 2000)
POLICIES = 24
TABLE = Path(__file__).parent / "tables" / "fidelity-srgan-x4.csv"
COLUMNS = ("number", "label", "hash", "steps", "psnr", "psnr_to_float", "seconds")
RESAMPLES = 2000
GROUP = 3
"""Policies that are taken through all numbers of steps before the next ones: preparing is done once for each number."""


def policies(model: str, count: int) -> list[Policy]:
    """Policies spread over the bundled space: of many drawn at random, each the farthest in bits from the earlier."""
    space = search_space(TrialSpec(model=model, scale=default_scale(model)))
    draw = random.Random(0)
    stages = {stage: list(space.stage_quants(stage)) for stage in space.choices}
    drawn = [Policy(tuple((stage, draw.choice(quants)) for stage, quants in stages.items())) for _ in range(1000)]
    places = np.array(
        [[min(quant.role(role).bits, 16) for _, quant in policy.stages for role in ("weight", "activation")] for policy in drawn]
    )
    chosen = [0]
    while len(chosen) < count:
        distances = np.abs(np.log2(places[:, None] / places[chosen][None])).sum(2).min(1)
        chosen.append(int(distances.argmax()))
    return [drawn[index] for index in chosen]


def measure(path: Path, model: str, steps: tuple[int, ...], count: int, part: int, parts: int) -> None:
    """Add to the table what it lacks: every policy after every number of steps, each a training of its own."""
    done: set[tuple[str, str]] = set()
    if path.is_file():
        with path.open() as file:
            done = {(line["number"], line["steps"]) for line in csv.DictReader(file)}
    with path.open("a", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS)
        if not done and file.tell() == 0:
            writer.writeheader()
        own = list(enumerate(policies(model, count)))[part::parts]
        for start, until in itertools.product(range(0, len(own), GROUP), steps):
            for number, policy in own[start : start + GROUP]:
                if (str(number), str(until)) in done:
                    continue
                bench = prepare(TrialSpec(model=model, scale=default_scale(model), steps=until))
                begun = time.process_time()
                torch.manual_seed(0)
                training = Training(bench, quantize(bench.traced, policy, bench.statistics, bench.execution))
                try:
                    training.advance(until)
                    values = evaluate(bench, as_executed(training.quantized))
                except TrialFailed:  # it diverged: last in rank
                    values = {"psnr": 0.0, "psnr_to_float": 0.0}
                seconds = round(time.process_time() - begun, 2)
                writer.writerow(
                    {
                        "number": number,
                        "label": policy.label,
                        "hash": policy.hash,
                        "steps": until,
                        "psnr": round(values["psnr"], 4),
                        "psnr_to_float": round(values["psnr_to_float"], 4),
                        "seconds": seconds,
                    }
                )
                file.flush()
                print(f"policy {number} after {until} steps: {values['psnr']:.2f} dB, {seconds} s", file=sys.stderr)


def correlations(path: Path) -> dict[str, float]:
    """Rank correlations of every number of steps with the largest, over the policies that have both."""
    with path.open() as file:
        lines = list(csv.DictReader(file))
    found: dict[int, dict[str, float]] = {}
    for line in lines:
        found.setdefault(int(line["steps"]), {})[line["number"]] = float(line["psnr"])
    longest = max(found)
    resample = np.random.default_rng(0)
    figures: dict[str, float] = {}
    for steps, values in sorted(found.items()):
        both = [number for number in values if number in found[longest]]
        if steps == longest or len(both) < 3:
            continue
        short = np.array([values[number] for number in both])
        long = np.array([found[longest][number] for number in both])
        for name, measure_of in (("spearman", spearmanr), ("kendall", kendalltau)):
            draws = resample.integers(0, len(both), (RESAMPLES, len(both)))
            spread = [measure_of(short[draw], long[draw])[0] for draw in draws if len(set(short[draw])) > 1]
            low, high = np.percentile(spread, [2.5, 97.5])
            figures |= {
                f"{name}_{steps}": round(float(measure_of(short, long)[0]), 3),
                f"{name}_{steps}_low": round(float(low), 3),
                f"{name}_{steps}_high": round(float(high), 3),
            }
        figures[f"policies_{steps}"] = len(both)
    default = TrialSpec(model="srgan").steps
    figures["spearman_ptq"] = figures.get("spearman_0", float("nan"))
    if f"spearman_{default}" in figures:
        figures["spearman_default"] = figures[f"spearman_{default}"]
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--measure", action="store_true")
    parser.add_argument("--table", type=Path, default=TABLE)
    parser.add_argument("--model", default="srgan")
    parser.add_argument("--steps", type=int, nargs="+", default=list(STEPS))
    parser.add_argument("--policies", type=int, default=POLICIES)
    parser.add_argument("--part", default="0/1", help="which share of the policies this process measures, as 0/2 and 1/2")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    if options.measure:
        part, parts = map(int, options.part.split("/"))
        measure(options.table, options.model, tuple(options.steps), options.policies, part, parts)
    figures = correlations(options.table)
    if options.json:
        print(json.dumps({"bench": "fidelity", "figures": figures}, indent=2))
        return
    for steps in sorted(int(key.removeprefix("policies_")) for key in figures if key.startswith("policies_")):
        words = [
            f"{name} {figures[f'{name}_{steps}']:.3f} [{figures[f'{name}_{steps}_low']:.3f}, {figures[f'{name}_{steps}_high']:.3f}]"
            for name in ("spearman", "kendall")
        ]
        print(f"{steps:5} steps: {', '.join(words)} ({figures[f'policies_{steps}']:.0f} policies)")


if __name__ == "__main__":
    main()
