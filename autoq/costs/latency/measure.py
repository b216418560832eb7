"""Milliseconds a frame, measured once per structure of the exported graph, before any trial runs.

A table maps structures to latencies and is frozen before the first suggestion, so a repeated study sees identical latencies.
"""

from __future__ import annotations

import platform
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

import numpy as np

from autoq.config.structure import Structure
from autoq.costs.latency.table import WARM_UP, Entry
from autoq.system.processor import available_cores
from autoq.targets import Runner

ROUNDS = 6
"""Samples of every structure: the fewest whose range is a 95 % interval of the median."""

GROUP = 16
"""Structures measured in turn within one round, with the float network among them; bounds the memory in use."""

File = TypeVar("File")
"""A file for `measure`: anything that `load` takes."""


def measure(
    files: Mapping[str, Callable[[], File]],
    float_file: File,
    load: Callable[[File], Runner],
    frame: tuple[int, int],
    rounds: int = ROUNDS,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> tuple[list[float], dict[str, list[float]]]:
    """Measure the float network and every structure, alone on this machine.

    Within a group all structures and the float network run in turn. A sample is the structure's time over the float
    network's in the same round, times the float network's median, so a machine that speeds up or slows down between
    groups favours neither.

    Args:
        files: Structure key -> function that builds its file when its turn comes.
        float_file: The float network's file.
        load: Loads a file in the target's runtime.
        frame: (width, height) of the image.
        rounds: Samples of each structure.
        progress: Called after each group with the structures done and in all.

    Returns:
        Samples in milliseconds of the float network, and of every structure by key.
    """
    image = np.random.default_rng(0).random((1, 3, frame[1], frame[0]), dtype=np.float32)
    reference = load(float_file)
    float_times: list[float] = []
    ratios: dict[str, list[float]] = {}
    keys = list(files)
    for start in range(0, max(1, len(keys)), GROUP):  # without a file, too, the float network is measured
        group = keys[start : start + GROUP]
        with ThreadPoolExecutor(1) as loading:  # a file loads while the next one is built
            loaded = {key: loading.submit(load, files[key]()) for key in group}
        runners = {key: each.result() for key, each in loaded.items()}
        for number in range(WARM_UP + rounds):
            base = _milliseconds(reference, image)
            times = {key: _milliseconds(run, image) for key, run in runners.items()}
            if number >= WARM_UP:
                float_times.append(base)
                for key, spent in times.items():
                    ratios.setdefault(key, []).append(spent / base)
        progress(min(start + GROUP, len(keys)), len(keys))
    typical = statistics.median(float_times)
    return float_times, {key: [ratio * typical for ratio in values] for key, values in ratios.items()}


def _milliseconds(run: Runner, image: np.ndarray) -> float:
    start = time.perf_counter()
    run(image)
    return (time.perf_counter() - start) * 1e3


def machine() -> str:
    """The machine that latencies belong to: processor name and core count."""
    name = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.is_file():
        names = [line.partition(":")[2].strip() for line in info.read_text().splitlines() if line.startswith("model name")]
        name = names[0] if names else name
    return f"{name}, {available_cores()} cores"


def entries(samples: Mapping[str, tuple[Structure, Sequence[float]]]) -> dict[str, Entry]:
    """Entries of a table, by key, from the structures and their samples in milliseconds."""
    return {
        key: Entry(structure=structure, ms=round(statistics.median(values), 3), samples=tuple(round(value, 3) for value in values))
        for key, (structure, values) in samples.items()
    }
