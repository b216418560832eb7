"""Every policy of a small space, trained and evaluated: the table that search strategies are compared on.

XLSR x3, three stages, every role of 4, 6 or 8 bits (three weights, two activations, one skip): 729 policies. Each is
evaluated without training, and after every rung up to full fidelity, with the processor seconds it took until then.

python benchmarks/exhaustive.py --seed 0        hours; goes on where it was stopped; writes tables/xlsr-x3-seed0.csv
"""

from __future__ import annotations

import argparse
import csv
import random
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import torch

from autoq.errors import TrialFailed
from autoq.executed import as_executed
from autoq.objectives.cost import costs
from autoq.objectives.size import packed_bytes
from autoq.policy import Policy, uniform
from autoq.qat import Training
from autoq.quantize import quantize
from autoq.space import SearchSpace, parse_space
from autoq.spec import TrialSpec
from autoq.study import space_facts
from autoq.trial import evaluate
from autoq.workbench import Workbench, prepare

RUNGS = (0, 4, 8, 16, 32, 64)
"""QAT steps after which a policy is evaluated; the last is full fidelity."""

FRAME = (96, 96)
FORMAT = {"quantizer": "lsq", "clipping": "mse"}
SPACE = {
    "model": "xlsr",
    "roles": {
        "weight": {"bits": [4, 6, 8], **FORMAT},
        "activation": {"bits": [4, 6, 8], **FORMAT},
        "skip": {"bits": [4, 6, 8], **FORMAT},
    },
}
COLUMNS = ("policy", "size", "bops", *(f"psnr_{rung}" for rung in RUNGS), *(f"seconds_{rung}" for rung in RUNGS))
TABLES = Path(__file__).parent / "tables"


def spec(seed: int) -> TrialSpec:
    """What every policy of the table is trained and evaluated on: the photographs inside scikit-image's wheel."""
    return TrialSpec(model="xlsr", scale=3, steps=RUNGS[-1], seed=seed)


def space() -> SearchSpace:
    """The space the table holds every policy of."""
    return parse_space(SPACE, space_facts("xlsr", "openvino-cpu"), "table")


def row(bench: Workbench, policy: Policy) -> dict[str, object]:
    """A policy's line: its size (bytes), bit operations, PSNR (dB) and processor seconds at every rung."""
    start = time.process_time()
    torch.manual_seed(bench.spec.seed)
    quantized = quantize(bench.traced, policy, bench.statistics, bench.execution)
    placements = [placed.placement for placed in quantized.placed]
    size = packed_bytes(bench.traced, placements, bench.execution)
    bops = costs(bench.traced, policy, bench.execution, FRAME).bops
    training = Training(bench, quantized)
    psnrs, seconds, before = {}, {}, start
    evaluation = 0.0  # of lower rungs: a training that was not looked at on the way does not pay for it
    for rung in RUNGS:
        try:
            training.advance(0 if policy.is_float else rung)
            before = time.process_time()
            psnr = evaluate(bench, as_executed(quantized))["psnr"]
        except TrialFailed:
            psnr = float("nan")
        seconds[f"seconds_{rung}"] = round(time.process_time() - start - evaluation, 4)
        evaluation += time.process_time() - before
        psnrs[f"psnr_{rung}"] = round(psnr, 4)
    return {"policy": policy.label, "size": size, "bops": bops, **psnrs, **seconds}


def policies() -> Iterator[Policy]:
    """Float, then the whole space, shuffled: a table that is not finished is a fair sample."""
    found = list(space().enumerate())
    random.Random(0).shuffle(found)
    yield uniform("32/32/32", space().facts.stages)
    yield from found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--policies", type=int, help="stop after so many (all)")
    parser.add_argument("--folder", type=Path, default=TABLES)
    options = parser.parse_args()
    path = options.folder / f"xlsr-x3-seed{options.seed}.csv"
    done: set[str] = set()
    if path.is_file():
        with path.open() as file:
            done = {line["policy"] for line in csv.DictReader(file)}
    before = time.process_time()
    bench = prepare(spec(options.seed))
    print(f"preparing took {time.process_time() - before:.2f} processor seconds", file=sys.stderr)
    with path.open("a", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS)
        if not done:
            writer.writeheader()
        for number, policy in enumerate(policies()):
            if options.policies is not None and number >= options.policies:
                break
            if policy.label not in done:
                writer.writerow(row(bench, policy))
                file.flush()
                print(f"{number + 1}: {policy.label}", file=sys.stderr)


if __name__ == "__main__":
    main()
