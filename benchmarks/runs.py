"""Trainings that a benchmark compares, kept line by line in a table: what was stopped goes on where it was."""

from __future__ import annotations

import argparse
import csv
import dataclasses
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from autoq.executed import as_executed
from autoq.policy import Policy
from autoq.spec import TrialSpec
from autoq.trial import evaluate, trained
from autoq.workbench import prepare

METRICS = ("psnr", "ssim")
KEYS = ("name", "policy", "seed", "steps", "batch", "sqcl", "exact_weight_bits", "data", "eval_data")
COLUMNS = (*KEYS, *METRICS, "seconds")
BUNDLED = "bundled"


@dataclass(frozen=True)
class Run:
    """One training, and what the benchmark calls it."""

    name: str
    spec: TrialSpec
    policy: Policy

    @property
    def key(self) -> dict[str, str]:
        """What tells it from other lines of a table."""
        spec = self.spec
        folders = {
            name: folder.name if folder else BUNDLED for name, folder in (("data", spec.data), ("eval_data", spec.eval_data))
        }
        numbers = {name: str(getattr(spec, name)) for name in ("seed", "steps", "batch", "sqcl", "exact_weight_bits")}
        return {"name": self.name, "policy": self.policy.hash, **numbers, **folders}

    def values(self) -> dict[str, float]:
        """METRICS after the training."""
        plain = prepare(self.spec.model_copy(update={"sqcl": 0.0}))  # the same bench for every loss
        bench = dataclasses.replace(plain, spec=self.spec, metrics=METRICS)
        steps = 0 if self.policy.is_float else self.spec.steps
        values = evaluate(bench, as_executed(trained(bench, self.policy, steps)))
        return {name: values[name] for name in METRICS}


def measured(table: Path, runs: Sequence[Run]) -> list[dict[str, float]]:
    """PSNR (dB) and SSIM of every run, in order; those that the table lacks are run and added to it, one line each."""
    known = read(table)
    with table.open("a", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS)
        if file.tell() == 0:
            writer.writeheader()
        for run in runs:
            if tuple(run.key.values()) in known:
                continue
            begun = time.process_time()
            values = run.values()
            seconds = round(time.process_time() - begun, 1)
            writer.writerow({**run.key, **{name: round(value, 4) for name, value in values.items()}, "seconds": seconds})
            file.flush()
            print(f"{run.name}, seed {run.spec.seed}: {values['psnr']:.3f} dB, {seconds} s", file=sys.stderr)
    known = read(table)
    return [known[tuple(run.key.values())] for run in runs]


def read(table: Path) -> dict[tuple[str, ...], dict[str, float]]:
    """Key -> metrics, of all whole lines of a table; empty where there is none."""
    if not table.is_file():
        return {}
    with table.open(newline="") as file:
        lines = [line for line in csv.DictReader(file) if line["seconds"]]
    return {tuple(line[key] for key in KEYS): {name: float(line[name]) for name in METRICS} for line in lines}


def add_options(parser: argparse.ArgumentParser, table: Path, steps: int, seeds: int) -> None:
    """Options of a benchmark that trains."""
    parser.add_argument("--model", default="srresnet")
    parser.add_argument("--scale", type=int, default=4)
    parser.add_argument("--weights", type=absolute, help="a checkpoint; bundled ones if absent")
    parser.add_argument("--data", type=absolute, help="folder of training images; bundled photographs if absent")
    parser.add_argument("--eval-data", type=absolute, help="folder of evaluation images; bundled photographs if absent")
    parser.add_argument("--steps", type=int, default=steps)
    parser.add_argument("--batch", type=int, default=TrialSpec.model_fields["batch"].default, help="patches a step")
    parser.add_argument("--seeds", type=int, default=seeds)
    parser.add_argument("--table", type=Path, default=table)
    parser.add_argument("--json", action="store_true")


def absolute(text: str) -> Path:
    """A path from the root."""
    return Path(text).resolve()


def spec_of(options: argparse.Namespace, seed: int) -> TrialSpec:
    """The options as a trial's."""
    return TrialSpec(
        model=options.model, scale=options.scale, weights=options.weights, data=options.data, eval_data=options.eval_data,
        steps=options.steps, batch=options.batch, seed=seed,
    )  # fmt: skip
