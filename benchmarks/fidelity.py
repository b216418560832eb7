"""Do short trials tell the truth? Policies of SRGAN after a few training steps, ranked against 2,000 steps.

python benchmarks/fidelity.py --measure --steps 2000 --batch 4     hours; goes on where it was stopped
python benchmarks/fidelity.py --measure      the short ones; both write tables/fidelity-srgan-x4.csv
python benchmarks/fidelity.py                rank correlations with 95 % intervals, from the table
"""

from __future__ import annotations

import argparse
import csv
import itertools
import json
import random
import statistics
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

STEPS = (0, 25, 50, 100, 200)
POLICIES = 24
TABLE = Path(__file__).parent / "tables" / "fidelity-srgan-x4.csv"
COLUMNS = ("number", "label", "hash", "steps", "batch", "psnr", "psnr_to_float", "seconds")
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


def measure(path: Path, model: str, steps: tuple[int, ...], batch: int, count: int, part: int, parts: int) -> None:
    """Add to the table what it lacks: every policy after every number of steps, each a training of its own."""
    done: set[tuple[str, ...]] = set()
    if path.is_file():
        with path.open() as file:
            done = {(line["number"], line["steps"], line["batch"]) for line in csv.DictReader(file)}
    with path.open("a", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS)
        if not done and file.tell() == 0:
            writer.writeheader()
        own = list(enumerate(policies(model, count)))[part::parts]
        for start, until in itertools.product(range(0, len(own), GROUP), steps):
            for number, policy in own[start : start + GROUP]:
                if (str(number), str(until), str(batch)) in done:
                    continue
                bench = prepare(TrialSpec(model=model, scale=default_scale(model), steps=until, batch=batch))
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
                        "batch": batch,
                        "psnr": round(values["psnr"], 4),
                        "psnr_to_float": round(values["psnr_to_float"], 4),
                        "seconds": seconds,
                    }
                )
                file.flush()
                print(f"policy {number} after {until} steps: {values['psnr']:.2f} dB, {seconds} s", file=sys.stderr)


def correlations(path: Path) -> dict[str, float]:
    """Rank correlations of every length of training with the longest, over the policies that have both.

    A length is its steps, with the patches a step behind them where they are not those of a trial: `100`, `100x4`.
    """
    with path.open() as file:
        lines = list(csv.DictReader(file))
    default = TrialSpec(model="srgan")
    found: dict[tuple[int, int], dict[str, float]] = {}
    seconds: dict[tuple[int, int], list[float]] = {}
    for line in lines:
        seconds.setdefault((int(line["steps"]), int(line["batch"])), []).append(float(line["seconds"]))
        found.setdefault((int(line["steps"]), int(line["batch"])), {})[line["number"]] = float(line["psnr"])
    longest = max(found)
    resample = np.random.default_rng(0)
    figures: dict[str, float] = {}
    for (steps, batch), values in sorted(found.items()):
        both = [number for number in values if number in found[longest]]
        if (steps, batch) == longest or len(both) < 3:
            continue
        length = str(steps) if steps == 0 or batch == default.batch else f"{steps}x{batch}"
        short = np.array([values[number] for number in both])
        long = np.array([found[longest][number] for number in both])
        for name, measure_of in (("spearman", spearmanr), ("kendall", kendalltau)):
            draws = resample.integers(0, len(both), (RESAMPLES, len(both)))
            spread = [measure_of(short[draw], long[draw])[0] for draw in draws if len(set(short[draw])) > 1]
            low, high = np.percentile(spread, [2.5, 97.5])
            figures |= {
                f"{name}_{length}": round(float(measure_of(short, long)[0]), 3),
                f"{name}_{length}_low": round(float(low), 3),
                f"{name}_{length}_high": round(float(high), 3),
            }
        figures[f"policies_{length}"] = len(both)
        figures[f"seconds_{length}"] = round(statistics.median(seconds[steps, batch]), 1)
    figures["spearman_ptq"] = figures.get("spearman_0", float("nan"))
    if f"spearman_{default.steps}" in figures:
        figures["spearman_default"] = figures[f"spearman_{default.steps}"]
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--measure", action="store_true")
    parser.add_argument("--table", type=Path, default=TABLE)
    parser.add_argument("--model", default="srgan")
    parser.add_argument("--steps", type=int, nargs="+", default=list(STEPS))
    parser.add_argument("--batch", type=int, default=TrialSpec(model="srgan").batch, help="patches a step")
    parser.add_argument("--policies", type=int, default=POLICIES)
    parser.add_argument("--part", default="0/1", help="which share of the policies this process measures, as 0/2 and 1/2")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    if options.measure:
        part, parts = map(int, options.part.split("/"))
        measure(options.table, options.model, tuple(options.steps), options.batch, options.policies, part, parts)
    figures = correlations(options.table)
    if options.json:
        print(json.dumps({"bench": "fidelity", "figures": figures}, indent=2))
        return
    for length in [key.removeprefix("policies_") for key in figures if key.startswith("policies_")]:
        words = []
        for name in ("spearman", "kendall"):
            value, low, high = (figures[f"{name}_{length}{end}"] for end in ("", "_low", "_high"))
            words.append(f"{name} {value:.3f} [{low:.3f}, {high:.3f}]")
        about = f"{figures[f'policies_{length}']:.0f} policies, {figures[f'seconds_{length}']:.1f} s each"
        print(f"{length:>6} steps: {', '.join(words)} ({about})")


if __name__ == "__main__":
    main()
