"""Kill searches (SIGKILL) at random moments, resume them, and count what was lost.

    python benchmarks/survival.py --driver-kills 20 --worker-kills 20

A driver is killed and the study resumed until the kills are used up; then workers are killed while a driver runs, and
its study is resumed once more. Every study is real (Ray, training, OpenVINO) on a network of one block. Prints:
lost (finished trials no longer as they were), run_twice (trials and baselines with a second result), unfinished (trials
short of the budget), failed (trials that ended without values), orphans (Ray processes still alive a minute after the last
driver was killed).
"""

from __future__ import annotations

import argparse
import contextlib
import json
import random
import re
import subprocess
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import psutil
import torch
from safetensors.torch import save_file

sys.path.insert(0, str(Path(__file__).parents[1]))

from autoq.networks.srresnet import SRResNet
from benchmarks.documents import reserve_output

SPACE = """
roles:
  weight: {bits: [4, 8, 16], quantizer: [minmax, lsq], clipping: [minmax, mse]}
  activation: {bits: [4, 8], quantizer: lsq, clipping: minmax}
  skip: {bits: 8, quantizer: lsq, clipping: minmax}
"""
AUTOQ = [sys.executable, "-c", "from autoq.cli import main; main()"]
ORPHANS_AFTER = 60.0
DRIVER_LIVES = 16.0
"""A driver is killed within so many seconds: about half of them pass before its first trial runs."""
WORKER_LIVES = 3.0


@dataclass
class Trouble:
    """One study and what was seen of it."""

    folder: Path
    name: str
    budget: int
    steps: int
    workers: int
    seen: dict[str, str] = field(default_factory=dict)
    left_behind: list[psutil.Process] = field(default_factory=list)

    def command(self) -> list[str]:
        """What begins the study, or goes on with it."""
        if (self.folder / "studies" / self.name / "study.yaml").is_file():
            return ["search", "--study", self.name, "--quiet", "--resume"]
        return [
            "search", "--study", self.name, "--quiet", "--model", "srresnet", "--scale", "2", "--weights", "tiny.safetensors",
            "--space", "space.yaml", "--frame", "32x24", "--objectives", "size,latency,psnr", "--budget", str(self.budget),
            "--steps", str(self.steps), "--replications", "0", "--workers", str(self.workers),
        ]  # fmt: skip

    def start(self) -> subprocess.Popen[bytes]:
        with (self.folder / f"{self.name}.log").open("ab") as log:
            return subprocess.Popen([*AUTOQ, *self.command()], cwd=self.folder, stdout=log, stderr=log)

    def lines(self) -> list[str]:
        path = self.folder / "studies" / self.name / "trials.jsonl"
        return path.read_text().split("\n")[:-1] if path.is_file() else []

    def look(self) -> None:
        """Keep what has finished by now: it must never change again."""
        for line in self.lines():
            self.seen.setdefault(_name(line), line)

    def kill_driver(self, process: subprocess.Popen[bytes]) -> None:
        with contextlib.suppress(psutil.NoSuchProcess):
            children = psutil.Process(process.pid).children(recursive=True)
            self.look()
            process.kill()
            process.wait()
            self.left_behind += children

    def kill_worker(self, process: subprocess.Popen[bytes], choose: random.Random) -> bool:
        with contextlib.suppress(psutil.NoSuchProcess, psutil.AccessDenied):
            children = psutil.Process(process.pid).children(recursive=True)
            workers = [child for child in children if re.match("ray::.*Train", " ".join(child.cmdline()))]
            if workers:
                self.look()
                choose.choice(workers).kill()
                return True
        return False

    def finish(self) -> None:
        """Resume to the end. Raises RuntimeError, with the log, when a driver fails."""
        self.look()
        if self.start().wait() != 0:
            raise RuntimeError(f"{self.name}: the driver failed\n{(self.folder / f'{self.name}.log').read_text()[-2000:]}")

    def figures(self) -> Counter[str]:
        final = self.lines()
        trials = [record for record in map(json.loads, final) if record["source"] == "trial"]
        return Counter(
            lost=sum(line not in final for line in self.seen.values()),
            run_twice=len(final) - len({_name(line) for line in final}),
            unfinished=self.budget - len({trial["number"] for trial in trials}),
            failed=sum(trial["state"] == "failed" for trial in trials),
            trials=len(trials),
        )


def _name(line: str) -> str:
    record = json.loads(line)
    return str(record["name"] or record["number"])


def kill_drivers(trouble: Trouble, kills: int, choose: random.Random) -> int:
    """Kill and resume; returns the kills done before the study was complete."""
    for done in range(kills):
        process = trouble.start()
        try:
            process.wait(choose.uniform(0, DRIVER_LIVES))
        except subprocess.TimeoutExpired:
            trouble.kill_driver(process)
        else:
            return done
    trouble.finish()
    return kills


def kill_workers(trouble: Trouble, kills: int, choose: random.Random) -> int:
    """Kill workers while drivers run; returns the kills done before the study was complete."""
    process = trouble.start()
    done = 0
    while process.poll() is None and done < kills:
        time.sleep(choose.uniform(0, WORKER_LIVES))
        done += trouble.kill_worker(process, choose)
    process.wait()
    trouble.finish()
    return done


def prepare(folder: Path) -> None:
    """Write the network and the space."""
    torch.manual_seed(0)
    save_file(SRResNet(scale=2, blocks=1, features=8).state_dict(), folder / "tiny.safetensors")
    (folder / "space.yaml").write_text(SPACE)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--driver-kills", type=int, default=20)
    parser.add_argument("--worker-kills", type=int, default=20)
    parser.add_argument("--budget", type=int, default=24)
    parser.add_argument("--steps", type=int, default=150)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    tell = reserve_output(options.json)
    choose = random.Random(options.seed)
    figures: Counter[str] = Counter()
    left_behind: list[psutil.Process] = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        prepare(folder)
        for kind, wanted, kill in (
            ("driver", options.driver_kills, kill_drivers),
            ("worker", options.worker_kills, kill_workers),
        ):
            done = 0
            while done < wanted:
                study = f"{kind}-{figures['studies']}"
                trouble = Trouble(folder, study, options.budget, options.steps, options.workers)
                done += kill(trouble, wanted - done, choose)
                left_behind += trouble.left_behind
                figures.update({"studies": 1, **trouble.figures()})
                print(f"{study}: {done} of {wanted} kills, {dict(trouble.figures())}", file=sys.stderr)
            figures[f"{kind}_kills"] = done
    figures["orphans"] = len(psutil.wait_procs(left_behind, ORPHANS_AFTER)[1])
    keys = ("driver_kills", "worker_kills", "studies", "trials", "lost", "run_twice", "unfinished", "failed", "orphans")
    found = {key: figures[key] for key in keys}
    if options.json:
        tell({"bench": "survival", "figures": found})
    else:
        print("\n".join(f"{name:14}{value}" for name, value in found.items()))


if __name__ == "__main__":
    main()
