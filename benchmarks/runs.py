"""What benchmarks share: quality as a trial judges it, rank correlations, and trainings kept line by line in a table."""

from __future__ import annotations

import argparse
import csv
import dataclasses
import functools
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from scipy.stats import rankdata
from torch import nn

from autoq.config.policy import Policy
from autoq.config.spec import TrialSpec
from autoq.export.onnx import Graph, export_graph
from autoq.graph.quantize import Quantized
from autoq.graph.trace import trace
from autoq.images.data import Pair
from autoq.networks import staged_model
from autoq.targets import Runner
from autoq.trial.context import TrialContext, prepare, runtime_model, shipped
from autoq.trial.run import evaluate, trained

METRICS = ("psnr", "ssim")
KEYS = ("name", "policy", "seed", "steps", "batch", "sqcl", "exact_weight_bits", "data", "eval_data")
BUNDLED = "bundled"
RESAMPLES = 2000


# ---------------------------------------------------------------- quality


def float_graph(spec: TrialSpec) -> Graph:
    """The marked float graph of a trial's network; kept until that of another network is asked for."""
    return _float_graph(spec.model, spec.scale, spec.weights, spec.layers)


@functools.lru_cache(maxsize=1)
def _float_graph(model: str, scale: int, weights: Path | None, layers: tuple[tuple[str, tuple[str, ...]], ...]) -> Graph:
    return export_graph(trace(*staged_model(model, scale, weights, dict(layers))))


@functools.lru_cache(maxsize=1)
def context_of(spec: TrialSpec) -> TrialContext:
    """The context of trials; kept until another one is asked for."""
    return _any_seed(spec.model_copy(update={"seed": 0})).with_seed(spec.seed)


@functools.lru_cache(maxsize=1)
def _any_seed(spec: TrialSpec) -> TrialContext:
    return prepare(spec)


def file_quality(context: TrialContext, quantized: Quantized, graph: Graph) -> dict[str, float]:
    """Judge a quantized network as a trial does: by its written file in the target's runtime, on the bench's images.

    Args:
        context: The metrics, images and target.
        quantized: A network quantized from `context.traced`.
        graph: The marked float graph of `context.traced`.

    Returns:
        Every metric of the context, and fidelity.

    Raises:
        TrialFailed: The output or a metric is not finite.
    """
    return evaluate(context, shipped(context, quantized, runtime_model(context.spec.target, graph, quantized)))


def original(pair: Pair) -> np.ndarray:
    """The image that a pair was made of, uint8 RGB [height, width, 3]."""
    assert pair.high is not None, f"image '{pair.name}' has no original"
    return pair.high


def in_torch(network: nn.Module) -> Runner:
    """A network as a runtime's: for what no file holds."""
    network.eval()

    @torch.no_grad()
    def run(image: np.ndarray) -> np.ndarray:
        output: np.ndarray = network(torch.from_numpy(image)).numpy()
        return output

    return run


# ---------------------------------------------------------------- rank correlation


def spearman(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Spearman's correlation along the last axis; NaN where nothing differs."""
    ranks = [rankdata(values, axis=-1) for values in (a, b)]
    first, second = (values - values.mean(-1, keepdims=True) for values in ranks)
    with np.errstate(invalid="ignore"):
        correlation: np.ndarray = (first * second).sum(-1) / np.sqrt((first**2).sum(-1) * (second**2).sum(-1))
    return correlation


def spearman_interval(a: np.ndarray, b: np.ndarray) -> tuple[float, float, float]:
    """Spearman's correlation and the ends of its 95 % interval, by resampling pairs (percentile bootstrap)."""
    draws = np.random.default_rng(0).integers(0, len(a), (RESAMPLES, len(a)))
    low, high = np.nanpercentile(spearman(a[draws], b[draws]), [2.5, 97.5])
    return float(spearman(a, b)), float(low), float(high)


# ---------------------------------------------------------------- a table of trainings


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
        plain = context_of(self.spec.model_copy(update={"sqcl": 0.0}))  # the same context for every loss
        context = dataclasses.replace(plain, spec=self.spec, metrics=METRICS)
        steps = 0 if self.policy.is_float else self.spec.steps
        values = file_quality(context, trained(context, self.policy, steps), float_graph(self.spec))
        return {name: values[name] for name in METRICS}


def measured(table: Path, runs: Sequence[Run], metrics: Sequence[str] = METRICS) -> list[dict[str, float]]:
    """Metrics and seconds of every run, in order; those that the table lacks are run and added to it, one line each."""
    known = read(table, metrics)
    with table.open("a", newline="") as file:
        writer = csv.DictWriter(file, (*KEYS, *metrics, "seconds"))
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
    known = read(table, metrics)
    return [known[tuple(run.key.values())] for run in runs]


def read(table: Path, metrics: Sequence[str] = METRICS) -> dict[tuple[str, ...], dict[str, float]]:
    """Key -> metrics and seconds, of all whole lines of a table; empty where there is none."""
    if not table.is_file():
        return {}
    with table.open(newline="") as file:
        lines = [line for line in csv.DictReader(file) if line["seconds"]]
    return {tuple(line[key] for key in KEYS): {name: float(line[name]) for name in (*metrics, "seconds")} for line in lines}


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
    """The options as a trial's; nothing is held out, so no other images are read for that."""
    return TrialSpec(
        model=options.model, scale=options.scale, weights=options.weights, data=options.data,
        eval_data=options.eval_data, test_data=options.eval_data,
        steps=options.steps, batch=options.batch, seed=seed,
    )  # fmt: skip
