"""Kill finetunings (SIGKILL) at random moments, repeat their commands, and compare the weights that they end with.

python benchmarks/killed_finetuning.py --kills 20

A point of a small study (one residual block, one thread) is finetuned without disturbance first. Then the same command is killed
once in each of as many copies of the study as there are kills, and repeated. Prints: kills; continued (repeated commands that went
on from a state which the killed one had saved); different (final weights that are not bit for bit the undisturbed ones).
"""

from __future__ import annotations

import argparse
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.documents import reserve_output
from benchmarks.survival import AUTOQ, prepare

SEARCH = (
    "search --study whole --quiet --model srresnet --scale 2 --weights tiny.safetensors --space space.yaml --frame 32x24"
    " --budget 1 --initial-trials 0 --steps 1 --replications 0 --workers 1"
)


def start(folder: Path, arguments: str) -> subprocess.Popen[bytes]:
    """Start autoq in a folder; what it says goes to a file."""
    with (folder / "log").open("ab") as log:
        return subprocess.Popen([*AUTOQ, *arguments.split()], cwd=folder, stdout=log, stderr=log)


def finish(folder: Path, arguments: str) -> None:
    """Run autoq to its end. Raises RuntimeError, with what it said, where it fails."""
    if start(folder, arguments).wait() != 0:
        raise RuntimeError(f"autoq {arguments}: failed\n{(folder / 'log').read_text()[-2000:]}")


def weights(study: Path) -> dict[str, torch.Tensor]:
    """The weights of a study's only finetuned point."""
    (path,) = study.glob("finetuned/*.pt")
    found: dict[str, torch.Tensor] = torch.load(path, weights_only=True)
    return found


def equal(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    """Whether all tensors are the same bit for bit."""
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    tell = reserve_output(options.json)
    choose = random.Random(options.seed)
    figures: Counter[str] = Counter(kills=0, continued=0, different=0)
    command = f"finetune {{}} --pick 4/4/8 --steps {options.steps} --threads 1 --quiet"
    with tempfile.TemporaryDirectory() as name:
        folder, studies = Path(name), Path(name) / "studies"
        prepare(folder)
        finish(folder, SEARCH)
        for kill in range(options.kills):
            shutil.copytree(studies / "whole", studies / f"cut{kill}")
        begun = time.perf_counter()
        finish(folder, command.format("whole"))
        seconds, expected = time.perf_counter() - begun, weights(studies / "whole")
        print(f"undisturbed: {seconds:.1f} s", file=sys.stderr)
        for kill in range(options.kills):
            study = studies / f"cut{kill}"
            process = start(folder, command.format(study.name))
            try:
                process.wait(choose.uniform(0, seconds))
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
                figures["kills"] += 1
            figures["continued"] += bool([*study.glob("finetuned/*-state.pt")])
            finish(folder, command.format(study.name))
            figures["different"] += not equal(weights(study), expected)
            print(f"{study.name}: {dict(figures)}", file=sys.stderr)
    if options.json:
        tell({"bench": "killed_finetuning", "figures": dict(figures)})
    else:
        print("\n".join(f"{name:11}{value}" for name, value in figures.items()))


if __name__ == "__main__":
    main()
