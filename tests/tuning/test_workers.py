"""Ray Tune's processes, without trials."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import pytest
from ray import tune
from ray.tune.search import Searcher

from autoq.tuning import workers
from autoq.tuning.scheduler import Abort
from autoq.tuning.workers import tuner

JOBS = 16


def worker() -> type[tune.Trainable]:
    """Of this function, so that Ray sends its code: other processes cannot import this file."""

    class Worker(tune.Trainable):
        """The first process is ready at once, the next one after many jobs."""

        def setup(self, config: dict[str, Any], folder: Path) -> None:  # type: ignore[override]
            try:
                (folder / "first").touch(exist_ok=False)
            except FileExistsError:
                time.sleep(2)

        def reset_config(self, new_config: dict[str, Any]) -> bool:
            return True

        def step(self) -> dict[str, Any]:
            time.sleep(0.2)
            return {"process": os.getpid(), "done": True}

    return Worker


class Jobs(Searcher):
    """Jobs without content; notes which process ended each."""

    def __init__(self, last: int | None = None) -> None:
        super().__init__()
        self.suggested, self.processes, self.last = 0, list[int](), last

    def suggest(self, trial_id: str) -> dict[str, Any] | str:  # type: ignore[override]
        self.suggested += 1
        return {} if self.suggested <= JOBS else Searcher.FINISHED

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        assert result is not None
        self.processes.append(result["process"])
        if len(self.processes) == self.last:
            raise Abort

    def save(self, checkpoint_path: str) -> None: ...

    def __getstate__(self) -> dict[str, Any]:
        return {}


def test_a_process_that_starts_slowly_is_not_ended_and_an_error_ends_all(tmp_path: Path) -> None:
    jobs = Jobs()
    with workers.local_ray(2, on_gpu=False, threads=1):
        trainable = tune.with_parameters(worker(), folder=tmp_path)
        tuner(tune.with_resources(trainable, {"cpu": 1}), jobs, 2, tmp_path / "ray").fit()
        ended = Jobs(last=2)
        with pytest.raises(Abort):
            tuner(tune.with_resources(trainable, {"cpu": 1}), ended, 2, tmp_path / "ray").fit()
    assert len(jobs.processes) == JOBS
    assert len(set(jobs.processes)) == 2
    assert len(ended.processes) == 2
