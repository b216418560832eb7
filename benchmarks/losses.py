"""What finetuning a network of a GAN gains from each loss, at equal steps.

python benchmarks/losses.py --eval-data Set5      SRGAN x4 from the bundled weights; goes on where it was stopped

Fidelity, NIQE and PSNR of the exported file on the evaluation images. The crops that differ most from the float network's output
are written to --pictures.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

import numpy as np
import PIL.Image

sys.path.insert(0, str(Path(__file__).parents[1]))

from autoq.config.objectives import FIDELITY
from autoq.config.options import LossName
from autoq.config.policy import uniform
from autoq.graph.loading import load
from autoq.metrics.quality import available_metrics
from autoq.trial.finetune import Finetuning
from autoq.tuning.baselines import BASELINE_QUANTIZER
from benchmarks.ablation import interval
from benchmarks.documents import reserve_output
from benchmarks.finetuned import Printed
from benchmarks.runs import Run, add_options, context_of, float_graph, measured, spec_of

TABLE = Path(__file__).parent / "tables" / "losses.csv"
METRICS = ("psnr", "niqe")
"""NIQE where its model file is."""


@dataclass(frozen=True)
class LossRun(Run):
    """The finetuning of a policy with a loss."""

    loss: LossName
    pictures: Path
    metrics: tuple[str, ...]

    def values(self) -> dict[str, float]:
        context, graph = dataclasses.replace(context_of(self.spec), metrics=self.metrics), float_graph(self.spec)
        finetuning = Finetuning(context, self.policy, graph, "fidelity", self.loss)
        finetuning.run(Printed())
        PIL.Image.fromarray(finetuning.picture()).save(self.pictures / f"{self.name.replace('/', '-')}-{self.spec.seed}.png")
        _, judged = finetuning.judged
        return {name: judged.values[name] for name in (*self.metrics, FIDELITY)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_options(parser, TABLE, steps=300, seeds=1)
    parser.set_defaults(model="srgan")
    parser.add_argument("--bits", default="4/4/8", help="policy")
    parser.add_argument("--losses", nargs="+", default=get_args(LossName), choices=get_args(LossName))
    parser.add_argument("--pictures", type=Path, default=Path("losses"), help="folder for crops")
    options = parser.parse_args()
    tell = reserve_output(options.json)
    options.pictures.mkdir(parents=True, exist_ok=True)
    network = options.weights.stem if options.weights else f"{options.model}-x{options.scale}"
    policy = uniform(options.bits, load(options.model, options.scale, options.weights).roles, BASELINE_QUANTIZER, "mse")
    metrics = tuple(name for name in METRICS if name in available_metrics())
    runs = [
        LossRun(f"{network} {options.bits} {loss}", spec_of(options, seed), policy, loss, options.pictures, metrics)
        for seed in range(options.seeds)
        for loss in options.losses
    ]
    found = measured(options.table, runs, (*metrics, FIDELITY))
    by_loss = {loss: [line for run, line in zip(runs, found, strict=True) if run.loss == loss] for loss in options.losses}
    figures: dict[str, float] = {}
    for loss, lines in by_loss.items():
        text = f"{loss:10}"
        for metric in (*metrics, FIDELITY):
            values = np.array([line[metric] for line in lines])
            gains = values - np.array([line[metric] for line in by_loss[options.losses[0]]])
            spread = " [{1:+.3f}, {2:+.3f}]".format(*interval(gains)) if len(gains) > 1 else ""
            text += f"  {metric} {values.mean():.3f} ({gains.mean():+.3f}{spread})"
            figures |= {f"{loss}_{metric}": round(float(values.mean()), 3), f"{loss}_{metric}_gain": round(float(gains.mean()), 3)}
        if not options.json:
            print(text)
    if options.json:
        tell({"bench": "losses", "figures": figures})


if __name__ == "__main__":
    main()
