"""Every policy of a small space, trained and evaluated: the table that search strategies are compared on.

XLSR x3, three stages, every role of 4, 6 or 8 bits (three weights, two activations, one skip): 729 policies. Each is
evaluated without training, and after every rung up to full fidelity, with the processor seconds it took until then.

python benchmarks/exhaustive.py --seed 0        hours; goes on where it was stopped; writes tables/xlsr-x3-seed0.csv,
                                                and probes-xlsr-x3-seed0.csv: each stage quantized alone
"""

from __future__ import annotations

import argparse
import csv
import itertools
import random
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[1]))

from autoq.config.policy import Policy, uniform
from autoq.config.space import SearchSpace
from autoq.config.space_file import parse_space
from autoq.config.spec import TrialSpec
from autoq.costs.operations import costs
from autoq.costs.size import packed_bytes
from autoq.errors import TrialFailed
from autoq.export.onnx import Graph, export_graph
from autoq.study.study import space_facts
from autoq.training.qat import Training
from autoq.trial.context import TrialContext, prepare
from autoq.tuning.additive import probes
from autoq.tuning.sensitivity import alone, measure
from benchmarks.runs import file_quality, float_graph

RUNGS = (0, 8, 32)
"""QAT steps after which a policy is evaluated: without training, at a rung, and fully trained."""

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
PROBE_COLUMNS = ("stage", "label", "loss", "seconds")
TABLES = Path(__file__).parent / "tables"


def spec(seed: int) -> TrialSpec:
    """What every policy of the table is trained and evaluated on: the photographs inside scikit-image's wheel."""
    return TrialSpec(model="xlsr", scale=3, seed=seed, steps=RUNGS[-1])


def space() -> SearchSpace:
    """The space the table holds every policy of."""
    return parse_space(SPACE, space_facts("xlsr", "openvino-cpu"), "table")


def row(context: TrialContext, graph: Graph, policy: Policy) -> dict[str, object]:
    """A policy's line: its size (bytes), bit operations, PSNR (dB) and processor seconds at every rung."""
    start = time.process_time()
    torch.manual_seed(context.spec.seed)
    quantized = context.quantized(policy)
    size, bops = packed_bytes(quantized.plan), costs(quantized.plan, FRAME).bops
    training = Training(context, quantized)
    psnrs, seconds, before = {}, {}, start
    evaluation = 0.0  # of lower rungs: a training that was not looked at on the way does not pay for it
    for rung in RUNGS:
        try:
            training.advance(0 if policy.is_float else rung)
            before = time.process_time()
            psnr = file_quality(context, quantized, graph)["psnr"]
        except TrialFailed:
            psnr = float("nan")
        seconds[f"seconds_{rung}"] = round(time.process_time() - start - evaluation, 4)
        evaluation += time.process_time() - before
        psnrs[f"psnr_{rung}"] = round(psnr, 4)
    return {"policy": policy.label, "size": size, "bops": bops, **psnrs, **seconds}


def probe_rows(seed: int) -> Iterator[dict[str, object]]:
    """First what preparing (images, calibration, the float network's outputs and graph; no imports) and what looking at the
    stages one at a time took; then the mean squared error of each stage quantized alone.
    """
    start = time.process_time()
    context = prepare(spec(seed))
    graph = export_graph(context.traced)
    yield {"stage": "", "label": "preparing", "loss": 0.0, "seconds": round(time.process_time() - start, 4)}
    wanted = [(stage, quant) for stage in space().choices for quant in probes(space(), stage)]
    start = time.process_time()
    found = measure(context, graph, [alone(space().choices, stage, quant) for stage, quant in wanted], ())
    yield {"stage": "", "label": "probing", "loss": 0.0, "seconds": round(time.process_time() - start, 4)}
    for (stage, quant), probe in zip(wanted, found, strict=True):
        yield {"stage": stage, "label": quant.label, "loss": probe.loss, "seconds": 0.0}


def write(path: Path, columns: Sequence[str], rows: Iterable[dict[str, object]]) -> None:
    """Add lines to a table, one by one."""
    fresh = not path.is_file()
    with path.open("a", newline="") as file:
        writer = csv.DictWriter(file, columns)
        if fresh:
            writer.writeheader()
        for each in rows:
            writer.writerow(each)
            file.flush()


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
    name = f"xlsr-x3-seed{options.seed}.csv"
    path = options.folder / name
    done: set[str] = set()
    if path.is_file():
        with path.open() as file:
            done = {line["policy"] for line in csv.DictReader(file)}
    context, graph = prepare(spec(options.seed)), float_graph(spec(options.seed))
    if not (options.folder / f"probes-{name}").is_file():
        write(options.folder / f"probes-{name}", PROBE_COLUMNS, list(probe_rows(options.seed)))
    left = [policy for policy in itertools.islice(policies(), options.policies) if policy.label not in done]
    print(f"{name}: {len(left)} policies to go", file=sys.stderr)
    write(path, COLUMNS, (row(context, graph, policy) for policy in left))


if __name__ == "__main__":
    main()
