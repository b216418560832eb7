"""How near to the float network finetuning brings uniform policies, on public test images.

python benchmarks/finetuned.py --data BSDS200 --test-data Set5 Set14 BSD100

SRResNet x4 from the bundled weights, on one thread. What a stopped training needs is kept in --states, so it goes on from its last
validation; finished policies are lines of the table.
"""

from __future__ import annotations

import argparse
import csv
import dataclasses
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, get_args

sys.path.insert(0, str(Path(__file__).parents[1]))

from autoq.config.events import Progress, TrainingEvents
from autoq.config.options import LossName
from autoq.config.policy import uniform
from autoq.config.spec import TrialSpec
from autoq.costs.size import packed_bytes
from autoq.export.onnx import export_graph
from autoq.graph.inference import upscale
from autoq.graph.trace import roles_by_stage
from autoq.images.crops import decided, held_out
from autoq.images.data import to_pixels
from autoq.system.device import channels_last
from autoq.trial.context import TrialContext, prepare
from autoq.trial.finetune import BATCH, PATCHES, Finetuning, with_steps, with_weights
from autoq.tuning.baselines import BASELINE_QUANTIZER
from benchmarks.documents import reserve_output
from benchmarks.runs import BUNDLED, absolute, file_quality

TABLE = Path(__file__).parent / "tables" / "finetuned-srresnet-x4.csv"
MODEL, FLOAT = "srresnet", "32/32/32"


@dataclass(frozen=True)
class Plan:
    """A policy and its finetuning.

    Attributes:
        steps: Of eight patches; only the last ones, towards originals, where the network starts near to the float one.
        clipping: The policy's range estimator.
        policy: By stage (`LAYERS`), where the name is not the policy.
    """

    steps: int
    clipping: str
    policy: str = ""


LAYERS = {
    "head": ("head.*",), "first": ("body.0.*",), "early": ("body.[123].*",), "late": ("body.[4-9].*", "body.1?.*"),
    "fuse": ("fuse.*",), "up": ("up.*",), "tail": ("tail",),
}  # fmt: skip
"""SRResNet's stages, finer than its own: its head, its tail and its upsampling suffer from 3 bits, its blocks hardly."""

NARROW = "head=8/8,first=4/8/8,early=3/8/8,late={}/8/8,fuse=4/8/8,up=5/8,tail=8/8"
PLANS = {
    "8/8/8": Plan(1000, "minmax"),
    "6/6/8": Plan(5000, "minmax"),
    "4/4/8": Plan(4000, "mse"),
    "88%": Plan(2000, "mse", NARROW.format(3)),
    "90%": Plan(2000, "mse", NARROW.format(2)),
}
"""Policies by name; a percentage is that of the float network's bytes which the policy's package saves."""

PUBLISHED = {
    ("8/8/8", "Set5"): 0.338, ("8/8/8", "Set14"): 0.264, ("8/8/8", "BSD100"): 0.146,
    ("6/6/8", "Set5"): 0.163, ("6/6/8", "Set14"): 0.154, ("6/6/8", "BSD100"): 0.072,
    ("4/4/8", "Set5"): -0.722, ("4/4/8", "Set14"): -0.390, ("4/4/8", "BSD100"): -0.290,
}  # fmt: skip
"""FQSR's PSNR (dB) of SRResNet x4 less that of its float network: Wang et al. 2021, table 2."""


class Line(NamedTuple):
    """A policy on one set of images; size: bytes of its package. loss, data: what it learned from, empty for the float network."""

    model: str
    bits: str
    size: int
    loss: str
    data: str
    steps: int
    best: int
    images: str
    psnr: float
    fidelity: float
    seconds: float


class Printed(TrainingEvents):
    """Validations, as lines on standard error."""

    def validated(self, progress: Progress) -> None:
        print(f"step {progress.step} of {progress.steps}: {progress.value:.3f} dB, {progress.seconds:.0f} s", file=sys.stderr)


def learned(bits: str, options: argparse.Namespace) -> tuple[str, str, int]:
    """Loss, training images and steps of a policy's finetuning; the float network has none."""
    data = options.data.name if options.data else BUNDLED
    return ("", "", 0) if bits == FLOAT else (options.loss, data, options.steps or PLANS[bits].steps)


def finetuned(context: TrialContext, bits: str, options: argparse.Namespace) -> Iterator[Line]:
    """A policy after its finetuning, on every set of test images."""
    loss, data, steps = learned(bits, options)
    plan = PLANS.get(bits, Plan(0, "minmax"))
    policy = uniform(plan.policy or bits, roles_by_stage(context.traced.sites), BASELINE_QUANTIZER, plan.clipping)
    options.states.mkdir(parents=True, exist_ok=True)
    state = options.states / f"{options.model}-{bits.replace('/', '-')}-{loss}-{data}-{steps}.state"
    graph = export_graph(context.traced)
    finetuning = Finetuning(with_steps(context, max(1, steps)), policy, graph, "psnr", options.loss, state)
    if steps:
        finetuning.run(Printed())
    else:
        finetuning.validate()
    assert finetuning.best is not None
    quantized = with_weights(context, policy, finetuning.best["weights"])
    for folder in options.test_data:
        values = file_quality(on_images(context, folder), quantized, finetuning.graph)
        found = round(values["psnr"], 3), round(values["fidelity"], 3), round(finetuning.seconds)
        best = finetuning.best["step"]
        yield Line(options.model, bits, packed_bytes(quantized.plan), *learned(bits, options), best, folder.name, *found)


def on_images(context: TrialContext, folder: Path) -> TrialContext:
    """The context with the whole images of a folder as evaluation images."""
    spec = context.spec.model_copy(update={"test_data": folder, "eval_crops": "all", "test_boxes": ()})
    network, pairs = channels_last(context.traced.module), held_out(spec, context.traced.multiple)
    outputs = tuple(to_pixels(upscale(network, pair.low, spec.device)) for pair in pairs)
    return dataclasses.replace(context, pairs=pairs, float_outputs=outputs, metrics=("psnr",))


def _key(line: Line) -> tuple[str, str, str, str, int]:
    return line.model, line.bits, line.loss, line.data, line.steps


def read(table: Path) -> list[Line]:
    """The lines of a table; none where there is none."""
    if not table.is_file():
        return []
    with table.open(newline="") as file:
        rows = [*csv.reader(file)][1:]
    return [
        Line(model, bits, int(size), loss, data, int(steps), int(best), images, float(psnr), float(fidelity), float(seconds))
        for model, bits, size, loss, data, steps, best, images, psnr, fidelity, seconds in rows
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=MODEL)
    parser.add_argument("--scale", type=int, default=4)
    parser.add_argument("--weights", type=absolute, help="a checkpoint; bundled ones if absent")
    parser.add_argument("--bits", nargs="+", default=[*PLANS], choices=PLANS, help="policies")
    parser.add_argument("--steps", type=int, help="of every policy, if not its own")
    for name, what in (("data", "training"), ("eval-data", "validation")):
        parser.add_argument(f"--{name}", type=absolute, help=f"folder of {what} images; bundled photographs if absent")
    parser.add_argument("--test-data", type=absolute, nargs="+", required=True, help="folders of test images")
    parser.add_argument("--loss", default="output", choices=get_args(LossName), help="what is minimized")
    parser.add_argument("--patches", type=int, default=PATCHES)
    parser.add_argument("--states", type=Path, default=Path("finetuned"), help="folder for what a stopped training needs")
    parser.add_argument("--table", type=Path, default=TABLE)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    tell = reserve_output(options.json)
    chosen = {(options.model, bits, *learned(bits, options)): bits for bits in (FLOAT, *options.bits)}
    done = {_key(line) for line in read(options.table)}
    wanted = [bits for key, bits in chosen.items() if key not in done]
    if wanted:
        spec = TrialSpec(
            model=options.model, scale=options.scale, weights=options.weights, data=options.data, eval_data=options.eval_data,
            test_data=options.test_data[0], batch=BATCH, patches=options.patches,
            steps=max(learned(bits, options)[-1] for bits in options.bits),
            layers=(*LAYERS.items(),) if options.model == MODEL else (),
        )  # fmt: skip
        context = prepare(decided(spec))
        for bits in wanted:
            lines = list(finetuned(context, bits, options))
            with options.table.open("a", newline="") as file:
                writer = csv.writer(file)
                if file.tell() == 0:
                    writer.writerow(Line._fields)
                writer.writerows(lines)
    found = [line for line in read(options.table) if _key(line) in chosen]
    exact = {line.images: line for line in found if line.bits == FLOAT}
    figures: dict[str, float] = {}
    for line in found:
        published = PUBLISHED.get((line.bits, line.images)) if (options.model, options.scale) == (MODEL, 4) else None
        loss = line.psnr - exact[line.images].psnr
        saved = 1 - line.size / exact[line.images].size
        figures |= {
            f"{line.bits}_{line.images}_{name}": getattr(line, name) for name in ("psnr", "fidelity", "seconds", "best", "size")
        }
        figures[f"{line.bits}_{line.images}_loss"] = round(loss, 3)
        if not options.json:
            beside = "" if published is None else f", FQSR {published:+.3f}"
            print(
                f"{line.bits:9} {line.images:8} {line.psnr:.3f} dB ({loss:+.3f}{beside})"
                f"  fidelity {line.fidelity:.2f} dB  {saved:.1%} fewer bytes"
                f"  step {line.best} of {line.steps}, {line.seconds:.0f} s"
            )
    if options.json:
        tell({"bench": "finetuned", "figures": figures})


if __name__ == "__main__":
    main()
