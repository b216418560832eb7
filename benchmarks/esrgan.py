"""A search over ESRGAN from a file in its authors' layout (random weights): how long it takes and how much memory.

python benchmarks/esrgan.py                 23 blocks, four trials without training
python benchmarks/esrgan.py --blocks 6 --budget 50 --steps 16 --full-space
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil
import torch

sys.path.insert(0, str(Path(__file__).parents[1]))

from autoq.networks import fresh_model
from autoq.system.processor import available_cores
from benchmarks.documents import reserve_output

AUTHORS = (
    (r"head\.", "conv_first."),
    (r"fuse\.", "conv_body."),
    (r"up(\d)\.0\.", r"conv_up\1."),
    (r"tail\.0\.", "conv_hr."),
    (r"tail\.2\.", "conv_last."),
    (r"body\.(\d+)\.blocks\.(\d)\.", lambda match: f"body.{match[1]}.rdb{int(match[2]) + 1}."),
)
"""Our keys, and BasicSR's."""

SMALL_SPACE = "roles:\n  weight: {bits: [4, 8]}\n  activation: {bits: 8}\n  skip: {bits: 8}\n"
GIB = 2**30


def authors_file(path: Path, blocks: int) -> Path:
    """RRDBNet with random weights under BasicSR's keys."""
    torch.manual_seed(0)
    state = fresh_model("esrgan", 4, blocks=blocks).state_dict()
    for pattern, replacement in AUTHORS:
        state = {re.sub(f"^{pattern}", replacement, key): value for key, value in state.items()}
    torch.save({"params_ema": state}, path)
    return path


def watch(command: list[str]) -> tuple[float, float, str]:
    """(seconds, peak GiB of the command and all its processes, standard output). Shared memory counts in each process."""
    start, peak = time.perf_counter(), 0
    with tempfile.TemporaryFile("w+") as out:
        process = subprocess.Popen(command, stdout=out, text=True)
        while process.poll() is None:
            for_all = 0
            for one in [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]:
                try:
                    for_all += one.memory_info().rss
                except psutil.NoSuchProcess:
                    continue
            peak = max(peak, for_all)
            time.sleep(0.5)
        if process.returncode:
            sys.exit(f"the search ended with exit code {process.returncode}")
        out.seek(0)
        return time.perf_counter() - start, peak / GIB, out.read()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--blocks", type=int, default=23)
    parser.add_argument("--budget", type=int, default=4)
    parser.add_argument("--steps", type=int, default=0)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--frame", default="32x32")
    parser.add_argument("--full-space", action="store_true", help="the bundled search space instead of a small one")
    parser.add_argument("--data", type=Path)
    parser.add_argument("--eval-data", type=Path)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    tell = reserve_output(options.json)
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        (work / "space.yaml").write_text(SMALL_SPACE)
        command = [
            sys.executable, "-c", "from autoq.cli import main; main()", "search", "--model", "esrgan", "--quiet", "--json",
            "--weights", str(authors_file(work / "RRDB.pth", options.blocks)), "--study", str(work / "study"),
            "--budget", str(options.budget), "--steps", str(options.steps), "--replications", "0",
            "--workers", str(options.workers),
            "--threads", str(max(1, available_cores() // options.workers)), "--frame", options.frame,
        ]  # fmt: skip
        for name, value in (("--data", options.data), ("--eval-data", options.eval_data)):
            command += [name, str(value.resolve())] if value else []
        command += [] if options.full_space else ["--space", str(work / "space.yaml")]
        os.chdir(work)
        seconds, memory, output = watch(command)
    found = json.loads(output)
    states = [trial["state"] for trial in found["trials"]]
    figures = {
        "blocks": options.blocks,
        "float_bytes": found["baselines"]["float"]["size"],
        "trials": len(states),
        "complete": states.count("complete"),
        "seconds": round(seconds, 1),
        "peak_gib": round(memory, 2),
    }
    if options.json:
        tell({"bench": "esrgan", "figures": figures})
    else:
        print("\n".join(f"{name:12} {value}" for name, value in figures.items()))


if __name__ == "__main__":
    main()
