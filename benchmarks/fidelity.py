"""Do short trials rank policies as long ones do? Policies of SRGAN after a few training steps against 100 of twice the patches.

python benchmarks/fidelity.py --measure --steps 100 --batch 4          eight minutes; goes on where it was stopped
python benchmarks/fidelity.py --measure --steps 0 3 8 16 24 32     ten; both write tables/fidelity-srgan-x4.csv
python benchmarks/fidelity.py                rank correlations of fidelity and of PSNR, with 95 % intervals, from the table
"""

from __future__ import annotations

import argparse
import csv
import itertools
import random
import statistics
import sys
import time
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))

from autoq.config.policy import Policy
from autoq.config.spec import TrialSpec
from autoq.errors import TrialFailed
from autoq.trial.run import trained
from autoq.tuning.options import default_scale, search_space
from benchmarks.documents import reserve_output
from benchmarks.runs import context_of, file_quality, float_graph, spearman_interval

STEPS = (0, 3, 8, 16, 24, 32)
POLICIES = 12
TABLE = Path(__file__).parent / "tables" / "fidelity-srgan-x4.csv"
COLUMNS = ("number", "label", "hash", "steps", "batch", "psnr", "fidelity", "seconds")
QUALITIES = ("fidelity", "psnr")
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
                context = context_of(TrialSpec(model=model, scale=default_scale(model), steps=until, batch=batch))
                begun = time.process_time()
                try:
                    values = file_quality(context, trained(context, policy, until), float_graph(context.spec))
                except TrialFailed:  # it diverged: last in rank
                    values = {"psnr": 0.0, "fidelity": 0.0}
                seconds = round(time.process_time() - begun, 2)
                writer.writerow(
                    {
                        "number": number,
                        "label": policy.label,
                        "hash": policy.hash,
                        "steps": until,
                        "batch": batch,
                        "psnr": round(values["psnr"], 4),
                        "fidelity": round(values["fidelity"], 4),
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
    lengths: dict[tuple[int, int], dict[str, dict[str, str]]] = {}
    for line in lines:
        lengths.setdefault((int(line["steps"]), int(line["batch"])), {})[line["number"]] = line
    longest = max(lengths)
    figures: dict[str, float] = {}
    for (steps, batch), short in sorted(lengths.items()):
        both = [number for number in short if number in lengths[longest]]
        if (steps, batch) == longest or len(both) < 3:
            continue
        length = str(steps) if steps == 0 or batch == default.batch else f"{steps}x{batch}"
        for quality in QUALITIES:
            pair = (np.array([float(of[number][quality]) for number in both]) for of in (short, lengths[longest]))
            names = (f"spearman_{quality}_{length}{end}" for end in ("", "_low", "_high"))
            figures |= {name: round(value, 3) for name, value in zip(names, spearman_interval(*pair), strict=True)}
        figures[f"policies_{length}"] = len(both)
        figures[f"seconds_{length}"] = round(statistics.median(float(line["seconds"]) for line in short.values()), 1)
    for name, length in (("ptq", "0"), ("default", str(default.steps))):
        if f"spearman_fidelity_{length}" in figures:
            figures[f"spearman_{name}"] = figures[f"spearman_fidelity_{length}"]
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
    tell = reserve_output(options.json)
    if options.measure:
        part, parts = map(int, options.part.split("/"))
        measure(options.table, options.model, tuple(options.steps), options.batch, options.policies, part, parts)
    figures = correlations(options.table)
    if options.json:
        tell({"bench": "fidelity", "figures": figures})
        return
    for length in [key.removeprefix("policies_") for key in figures if key.startswith("policies_")]:
        words = []
        for quality in QUALITIES:
            value, low, high = (figures[f"spearman_{quality}_{length}{end}"] for end in ("", "_low", "_high"))
            words.append(f"{quality} {value:.3f} [{low:.3f}, {high:.3f}]")
        about = f"{figures[f'policies_{length}']:.0f} policies, {figures[f'seconds_{length}']:.1f} s each"
        print(f"{length:>6} steps: {', '.join(words)} ({about})")


if __name__ == "__main__":
    main()
