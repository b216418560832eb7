"""Whether XLSR's clipped output makes it robust to uint8: both variants trained alike, then quantized without training.

python benchmarks/clipped_output.py --eval-data Set14     typed again it goes on where it stopped

Ayazoglu 2021, table 2, after 5000 epochs on DIV2K: 5.39 dB lost without the clip, 0.28 dB with it.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from autoq.config.events import TrainingEvents
from autoq.config.policy import uniform
from autoq.config.spec import PretrainSpec, TrialSpec
from autoq.networks import MODELS
from autoq.system.processor import available_cores
from autoq.targets import target_info
from autoq.training.pretrain import pretrain
from autoq.trial.context import prepare
from autoq.trial.run import evaluate
from benchmarks.documents import reserve_output
from benchmarks.runs import file_quality, float_graph, in_torch

TARGET = "npu-uint8"
VARIANTS = {"clipped": {}, "linear": {"clipped": False}}
"""Name -> what of the network differs from the paper's."""

PAPER_LOSS = {"clipped": 0.28, "linear": 5.39}
LARGE = 1.0
"""dB that a network loses, at least, of which one would say that it is not robust: the paper's linear output loses 5."""


def trained(variant: str, options: argparse.Namespace) -> Path:
    """The weights of a variant, trained from scratch, or further where its training stopped."""
    folder = options.work / variant
    spec = PretrainSpec(
        model=f"xlsr-{variant}", scale=3, data=options.data, steps=options.steps, seed=options.seed, threads=options.threads
    )
    pretrain(spec, folder, resume=(folder / "state.pt").exists(), events=TrainingEvents())
    return folder / "weights.safetensors"


def psnrs(variant: str, weights: Path, options: argparse.Namespace) -> tuple[float, float]:
    """PSNR (dB) in float and in uint8 per tensor, quantized from the extremes of the tensors, as the paper's converter does."""
    spec = TrialSpec(
        model=f"xlsr-{variant}", scale=3, weights=weights, target=TARGET, data=options.data,
        eval_data=options.eval_data, test_data=options.eval_data,
        steps=0, threads=options.threads,
    )  # fmt: skip
    context, info = prepare(spec), target_info(TARGET)
    policy = replace(uniform("8/8/8", MODELS["xlsr"].stages, formats=info.formats), output=info.output)
    quantized = context.quantized(policy)
    exact = evaluate(context, in_torch(context.traced.module))["psnr"]
    return exact, file_quality(context, quantized, float_graph(spec))["psnr"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=Path("clipped_output"), help="where the trainings are kept")
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=available_cores())
    parser.add_argument("--data", type=lambda text: Path(text).resolve())
    parser.add_argument("--eval-data", type=lambda text: Path(text).resolve())
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    tell = reserve_output(options.json)
    figures: dict[str, float | str] = {"steps": options.steps}
    losses = {}
    for variant, arguments in VARIANTS.items():
        MODELS[f"xlsr-{variant}"] = replace(MODELS["xlsr"], arguments=arguments, bundled={})
        exact, found = psnrs(variant, trained(variant, options), options)
        losses[variant] = exact - found
        figures |= {f"{variant}_float": round(exact, 3), f"{variant}_uint8": round(found, 3)}
        figures |= {f"{variant}_loss": round(losses[variant], 3), f"{variant}_loss_paper": PAPER_LOSS[variant]}
        if not options.json:
            print(
                f"{variant:8} float {exact:.3f} dB, uint8 {found:.3f} dB: {losses[variant]:.3f} lost (paper {PAPER_LOSS[variant]})"
            )
    # the paper's two statements: which loses more, and that the one does not bear uint8 while the other does
    figures["order"] = "agrees" if losses["linear"] > losses["clipped"] else "differs"
    figures["robustness"] = "agrees" if losses["linear"] >= LARGE > losses["clipped"] else "differs"
    if options.json:
        tell({"bench": "clipped_output", "figures": figures})
    else:
        print(f"the clipped output loses less: {figures['order']}; without it uint8 does not do: {figures['robustness']}")


if __name__ == "__main__":
    main()
