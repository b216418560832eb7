"""What a step of quantization-aware training costs: forward, loss, backward and optimizer, of one network, autoq and its rivals.

python benchmarks/qat_step.py --eval-data Set5     SRResNet x4, bundled weights, eight patches of 24x24; see contenders.py

wall, CPU    milliseconds a step: of the clock, and of the processor's time over all threads; medians and their 95 % intervals.
             Contenders take one step each in turn, round by round, another one first each time.
ratio        of a contender's step to float32's in the same round, the median
begin        seconds of the first two steps, with what is compiled, or set up, for them
memory       MiB: how far the resident set grows, at its peak in two steps, from before the contender is built (Linux)
PSNR         after --steps steps from the same weights on the same patches, by the same rates: autoq's default (its file in
             the target's runtime) and Brevitas (in torch)

A busy machine shifts wall times more than CPU times. A rival whose interface fails is listed with its error.
"""

from __future__ import annotations

import argparse
import ctypes
import dataclasses
import gc
import importlib.metadata
import statistics
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).parents[1]))

from autoq.config.spec import TrialSpec
from autoq.costs.latency.measure import machine
from autoq.errors import InputError
from autoq.study.intervals import Interval, median_interval
from autoq.system.processor import available_cores
from autoq.trial.context import prepare
from autoq.trial.run import evaluate, trained
from benchmarks.contenders import CONTENDERS, Given, PlainTraining, Steps, given, load, own_policy, remark
from benchmarks.documents import reserve_output
from benchmarks.runs import absolute, file_quality, float_graph, in_torch

FLOAT, OWN, BREVITAS = "float32", "autoq", "brevitas"
WARM_UP = 2
"""Steps before those that are timed, the ones whose memory is measured."""

FAILURES = (RuntimeError, ValueError, TypeError, AttributeError, LookupError, AssertionError)
"""What a rival's tools raise for a network that they cannot train: a result, too."""

MiB = 2**20


@dataclass
class Row:
    """A contender's samples, round by round, in milliseconds. begin: seconds. memory: MiB."""

    name: str
    begin: float = 0.0
    memory: float = 0.0
    wall: list[float] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)


# ---------------------------------------------------------------- measuring


def measured(start: Given, names: Sequence[str], rounds: int) -> tuple[list[Row], dict[str, str]]:
    """Rows of the contenders, and of those that failed the error."""
    trainings: dict[str, Steps] = {}
    rows, failed = {}, {}
    for name in names:
        note(f"building {name}")
        try:
            trainings[name], seconds, memory = warmed_up(start, name)
        except FAILURES as error:
            failed[name] = f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"
            continue
        rows[name] = Row(name, seconds, memory)
    order = list(trainings)
    for number in range(rounds):
        note(f"round {number + 1} of {rounds}")
        first = number % max(1, len(order))
        for name in order[first:] + order[:first]:
            wall, cpu = time.perf_counter(), time.process_time()
            trainings[name].advance(trainings[name].step + 1)
            rows[name].wall.append(1e3 * (time.perf_counter() - wall))
            rows[name].cpu.append(1e3 * (time.process_time() - cpu))
    return list(rows.values()), failed


def warmed_up(start: Given, name: str) -> tuple[Steps, float, float]:
    """A training after WARM_UP steps, the seconds they took, and the MiB at their peak, with what was built for them."""
    torch.manual_seed(start.context.spec.seed)
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    before = resident("VmRSS")
    training = CONTENDERS[name].build(start)
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")  # the peak counts from here
    begun = time.perf_counter()
    training.advance(WARM_UP)
    return training, time.perf_counter() - begun, (resident("VmHWM") - before) / MiB


def resident(kind: str) -> int:
    """Bytes of this process in memory: now (VmRSS), or at the peak (VmHWM)."""
    lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return 1024 * int(lines[kind].split()[0])


def qualities(start: Given, names: Sequence[str]) -> dict[str, float]:
    """PSNR (dB) of autoq's default and of Brevitas, where they take part, after the bench's steps."""
    context, found = start.context, {}
    if OWN in names:
        note(f"training {OWN}: {context.spec.steps} steps")
        quantized = trained(context, own_policy(start), context.spec.steps)
        found[OWN] = file_quality(context, quantized, float_graph(context.spec))["psnr"]
    if BREVITAS in names:
        note(f"training {BREVITAS}: {context.spec.steps} steps")
        torch.manual_seed(context.spec.seed)
        training = CONTENDERS[BREVITAS].build(start)
        assert isinstance(training, PlainTraining)
        training.advance(context.spec.steps)
        found[BREVITAS] = evaluate(context, in_torch(training.network))["psnr"]
    return found


# ---------------------------------------------------------------- what is said


def ratio(rows: Mapping[str, Row], name: str, other: str, clock: str = "wall") -> Interval | None:
    """The median of a contender's time over another's in the same round; None where one was not timed or counts in no ratio."""
    if name not in rows or other not in rows or remark(name) or remark(other):
        return None
    pairs = zip(getattr(rows[name], clock), getattr(rows[other], clock), strict=True)
    return median_interval([own / its for own, its in pairs])


def document(rows: Sequence[Row], failed: Mapping[str, str], psnr: Mapping[str, float], about: Mapping[str, Any]) -> dict[str, Any]:
    """All that was found, as JSON data. A figure that takes a contender that is not there is null."""
    known = {row.name: row for row in rows}
    step = {other: ratio(known, OWN, other) for other in (FLOAT, BREVITAS)}
    gap = psnr[OWN] - psnr[BREVITAS] if {OWN, BREVITAS} <= psnr.keys() else None
    figures = {
        "step_ratio_float32": middle(step[FLOAT]),
        "step_ratio_brevitas": middle(step[BREVITAS]),
        "psnr_gap": None if gap is None else round(gap, 3),
    }
    entries = [
        {
            "name": row.name,
            "wall_ms": rounded(median_interval(row.wall)),
            "cpu_ms": rounded(median_interval(row.cpu)),
            "begin_s": round(row.begin, 2),
            "memory_mib": round(row.memory, 1),
            "ratio_float32": {clock: rounded(ratio(known, row.name, FLOAT, clock)) for clock in ("wall", "cpu")},
            "ratio_brevitas": {clock: rounded(ratio(known, row.name, BREVITAS, clock)) for clock in ("wall", "cpu")},
            "remark": remark(row.name),
        }
        for row in rows
    ]
    return {"bench": "qat_step", "figures": figures, "psnr": psnr, "rows": entries, "failed": failed, **about}


def middle(interval: Interval | None) -> float | None:
    return None if interval is None else round(interval.middle, 3)


def rounded(interval: Interval | None) -> dict[str, float] | None:
    return None if interval is None else {name: round(value, 3) for name, value in dataclasses.asdict(interval).items()}


def table(rows: Sequence[Row], failed: Mapping[str, str]) -> list[str]:
    """A line for every contender."""
    known = {row.name: row for row in rows}
    lines = [f"{'':22} {'wall ms':>26} {'CPU ms':>8} {'ratio':>7} {'of CPU':>7} {'begin s':>7} {'MiB':>7}"]
    for row in rows:
        wall = median_interval(row.wall)
        ratios = [ratio(known, row.name, FLOAT, clock) for clock in ("wall", "cpu")]
        cells = " ".join(f"{'-' if each is None else f'{each.middle:.2f}':>7}" for each in ratios)
        spread = f"{wall.middle:.1f} [{wall.low:.1f}, {wall.high:.1f}]"
        ending = f"  {remark(row.name)}" if remark(row.name) else ""
        lines.append(
            f"{row.name:22} {spread:>26} {statistics.median(row.cpu):8.1f} {cells} {row.begin:7.1f} {row.memory:7.0f}{ending}"
        )
    return lines + [f"{name:22} failed: {error}" for name, error in failed.items()]


def note(words: str) -> None:
    """What is being done."""
    print(f"{time.strftime('%H:%M:%S')} {words}", file=sys.stderr, flush=True)


def version(requirement: str) -> str:
    """The installed version of a rival's package."""
    return importlib.metadata.version(requirement.partition("=")[0])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="srresnet")
    parser.add_argument("--scale", type=int, default=4)
    parser.add_argument("--weights", type=absolute, help="a checkpoint; bundled ones if absent")
    parser.add_argument("--data", type=absolute, help="folder of training images; bundled photographs if absent")
    parser.add_argument("--eval-data", type=absolute, help="folder of evaluation images; bundled photographs if absent")
    parser.add_argument("--bits", default="8/8/8", help="of weights, activations and skips, for autoq and Brevitas")
    parser.add_argument("--batch", type=int, default=8, help="patches a step")
    parser.add_argument("--rounds", type=int, default=25, help="timed steps of every contender")
    parser.add_argument("--steps", type=int, default=200, help="steps before PSNR is compared; 0 leaves that out")
    parser.add_argument("--threads", type=int, default=available_cores())
    parser.add_argument("--only", nargs="+", choices=CONTENDERS, default=list(CONTENDERS), metavar="NAME", help="contenders")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    tell = reserve_output(options.json)
    try:
        load(options.only)
        spec = TrialSpec(
            model=options.model, scale=options.scale, weights=options.weights, data=options.data,
            eval_data=options.eval_data, test_data=options.eval_data,
            steps=options.steps, batch=options.batch, threads=options.threads,
        )  # fmt: skip
        context = dataclasses.replace(prepare(spec), metrics=("psnr",))
        start = given(context, options.bits)
        own_policy(start)  # refuses widths that are none
    except InputError as error:
        parser.exit(2, f"error: {error}\n")
    timed = dataclasses.replace(context, spec=spec.model_copy(update={"steps": WARM_UP + options.rounds}))
    rows, failed = measured(dataclasses.replace(start, context=timed), options.only, options.rounds)
    psnr = qualities(start, [name for name in options.only if name not in failed]) if options.steps else {}
    packages = sorted({CONTENDERS[name].install for name in options.only} - {""})
    about = {
        "model": f"{spec.model} x{spec.scale}", "bits": options.bits, "batch": spec.batch, "rounds": options.rounds,
        "steps": spec.steps, "threads": spec.threads, "machine": machine(),
        "versions": {"torch": torch.__version__, **{name.partition("=")[0]: version(name) for name in packages}},
    }  # fmt: skip
    found = document(rows, failed, psnr, about)
    if options.json:
        tell(found)
        return
    print("\n".join([*(f"{name}: {value}" for name, value in about.items()), "", *table(rows, failed), ""]))
    print(", ".join(f"{name} {value:.3f} dB" for name, value in psnr.items()))
    print(", ".join(f"{name} {'-' if value is None else value}" for name, value in found["figures"].items()))


if __name__ == "__main__":
    main()
