"""The processes that a search's jobs run in, and Ray Tune, which hands the jobs out. Ray listens on 127.0.0.1 only."""

from __future__ import annotations

import contextlib
import io
import logging
import os
import re
import shutil
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import ray
from ray import cloudpickle, tune
from ray.tune.experiment import Trial
from ray.tune.schedulers import FIFOScheduler
from ray.tune.search import Searcher

from autoq.config.events import Events
from autoq.config.policy import Policy
from autoq.config.spec import Replication, StudySpec, TrialResult
from autoq.costs.latency.table import LatencyTable
from autoq.errors import AutoqError, InputError, TrialFailed
from autoq.export.onnx import load_graph
from autoq.networks import is_given
from autoq.networks.given import given, keep
from autoq.study.study import Study
from autoq.system.limits import limits, private_memory
from autoq.trial.context import TrialContext, adopt, portable
from autoq.trial.run import replicate, run_trial
from autoq.tuning import LOOPBACK_ONLY
from autoq.tuning.scheduler import Abort, StudySearcher

R = TypeVar("R")

HOST = "127.0.0.1"


class RayOutput(io.TextIOBase):
    """Standard output while Ray runs, where only results belong: the first sentence of each line becomes a note."""

    def __init__(self, events: Events) -> None:
        self.events = events

    def write(self, text: str) -> int:
        for line in re.sub(r"\x1b\[[0-9;]*m", "", text).splitlines():
            sentence = line.split(". ")[0].strip()
            if sentence:
                self.events.note(f"Ray: {sentence}")
        return len(text)


@dataclass(frozen=True)
class UserCode:
    """The working folder and module paths of a user's own code, and a network given from Python, pickled in memory."""

    folder: Path
    paths: tuple[str, ...]
    model: str
    network: bytes | None = None

    @classmethod
    def of(cls, model: str) -> UserCode:
        """Raises InputError where the network cannot be sent to a worker process."""
        where = Path.cwd(), tuple(str(Path(path).resolve()) for path in sys.path)
        if not is_given(model):
            return cls(*where, model)
        try:
            return cls(*where, model, cloudpickle.dumps(given(model)))  # type: ignore[no-untyped-call]
        except Exception as error:
            raise InputError(
                f"model '{model}': it cannot be sent to worker processes ({_in_one_line(error)}); give a network that pickles"
            ) from error

    def enter(self) -> None:
        """Make this the working folder and module path of the process."""
        os.chdir(self.folder)
        sys.path[:0] = [path for path in self.paths if path not in sys.path]
        if self.network is not None:
            keep(self.model, cloudpickle.loads(self.network))


class TrialActor(tune.Trainable):
    """A worker process: one `step` brings a trial to one rung. Reused from trial to trial, it keeps only the context.

    A failure that is not the trial's own (TrialFailed) leaves an unreliable process: out of memory, without its GPU, or
    never ready. The process reports the failure, and its next `step` raises, so that Ray replaces it.
    """

    def setup(  # type: ignore[override]
        self, config: dict[str, Any], spec: StudySpec, table: LatencyTable, folder: Path, user_code: UserCode, context: TrialContext
    ) -> None:
        self.spec, self.table, self.leaving = spec, table, False
        self.unready: str | None = None
        try:
            user_code.enter()
            self.study = Study.open(folder)
            self.graph = load_graph(self.study.graph_path)
            self.context = adopt(context)
        except Exception as error:  # noqa: BLE001 - raised here it would be lost
            self.unready = _in_one_line(error)

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        self.config = new_config
        return True

    def step(self) -> dict[str, Any]:
        if self.leaving:
            raise RuntimeError("this process makes way for a new one")
        if "pause" in self.config:
            time.sleep(self.config["pause"])
            return {"done": True}
        report = self._report()
        self.leaving = "broken" in report or self._is_swollen()
        return {**report, "done": not self.leaving}

    def _report(self) -> dict[str, Any]:
        """The result of a trial as text, since Ray flattens nested results; or the failure that broke the process."""
        if self.unready is not None:
            return {"broken": self.unready, "began": False}
        try:
            if self.config["seed"] is not None:
                return {"replication": self._replicate(self.config["seed"]).model_dump_json()}
            return {"result": self._run().model_dump_json()}
        except Exception as error:  # noqa: BLE001 - a new process shows whether it occurs again
            return {"broken": _in_one_line(error)}

    def _is_swollen(self) -> bool:
        """Whether the process still holds more memory than its bound, so that the next trial would fail."""
        return self.spec.memory is not None and private_memory() > self.spec.memory

    def _run(self) -> TrialResult:
        policy, until, number = Policy.from_dict(self.config["policy"]), self.config["until"], self.config["number"]
        self.context = self.context.with_seed(self.spec.trial.seed)
        state = None if number is None else self.study.state_path(number, policy)

        def work() -> TrialResult:
            with self._limits():
                return run_trial(self.context, policy, self.table, self.graph, until, state)

        return _tried(work)

    def _replicate(self, seed: int) -> Replication:
        policy = Policy.from_dict(self.config["policy"])

        def work() -> Replication:
            self.context = self.context.with_seed(seed)  # shared by all points, so it does not count in a point's time limit
            with self._limits():
                return replicate(self.context, policy, self.graph)

        found = _tried(work)
        return found if isinstance(found, Replication) else Replication(policy=policy.hash, seed=seed, result=found)

    def _limits(self) -> contextlib.AbstractContextManager[None]:
        return limits(self.spec.timeout, self.spec.memory, self.config["spent"])


def _tried(work: Callable[[], R]) -> R | TrialResult:
    """The result of the work; where the trial fails, a result with the cause."""
    try:
        return work()
    except TrialFailed as error:
        return TrialResult(state="failed", reason=str(error))


def _in_one_line(error: Exception) -> str:
    return " ".join([f"{type(error).__name__}:", *str(error).split()]).rstrip(":")


def run_jobs(searcher: StudySearcher, context: TrialContext, table: LatencyTable) -> None:
    """Run the searcher's jobs on `workers` processes of this machine; Ray listens on 127.0.0.1 only.

    A job whose process dies runs again, MAX_ATTEMPTS times in all. Raises AutoqError where Ray cannot start.
    """
    study, spec = searcher.study, searcher.study.spec
    on_gpu, user_code = spec.trial.device == "cuda", UserCode.of(spec.trial.model)
    scratch = (study.folder / "ray").resolve()
    shutil.rmtree(scratch, ignore_errors=True)  # of a search that was killed
    with contextlib.ExitStack() as end:
        end.callback(shutil.rmtree, scratch, ignore_errors=True)
        end.enter_context(local_ray(spec.workers, on_gpu, spec.trial.threads))
        end.enter_context(contextlib.redirect_stdout(RayOutput(searcher.events)))
        try:
            trainable = tune.with_parameters(
                TrialActor, spec=spec, table=table, folder=study.folder.resolve(), user_code=user_code, context=portable(context)
            )
            tuner(
                tune.with_resources(trainable, {"cpu": 1, "gpu": 1 / spec.workers if on_gpu else 0}),
                searcher,
                spec.workers,
                scratch,
            ).fit()
        except KeyboardInterrupt:
            searcher.interrupted()
            raise
        except Abort as abort:
            with contextlib.suppress(OSError):  # the disk may be full
                searcher.interrupted()
            raise abort.__cause__ or abort from None


class NewTrialsFirst(FIFOScheduler):
    """Gives an idle process to a trial that has none yet.

    Ray's own order gives it to a trial whose process is still starting, and ends that one. With jobs shorter than a start,
    all but one process then start in vain, over and over.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.chosen: set[str] = set()

    def choose_trial_to_run(self, tune_controller: Any) -> Trial | None:
        new = (each for each in tune_controller.get_trials() if each.status == Trial.PENDING and each.trial_id not in self.chosen)
        trial = next(new, None)
        if trial is not None:
            self.chosen.add(trial.trial_id)
        return trial


def tuner(trainable: Any, searcher: Searcher, workers: int, scratch: Path) -> tune.Tuner:
    """Runs what a searcher suggests on processes that are reused, until it has nothing more to suggest."""
    return tune.Tuner(
        trainable,
        tune_config=tune.TuneConfig(
            search_alg=searcher, scheduler=NewTrialsFirst(), num_samples=-1, max_concurrent_trials=workers, reuse_actors=True
        ),
        run_config=tune.RunConfig(
            name="trials",
            storage_path=str(scratch),
            verbose=0,
            progress_reporter=tune.CLIReporter(),  # silent; Ray's reporter for notebooks clears the cell
            checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=False),  # saving could fail after the trial
        ),
    )


@contextlib.contextmanager
def local_ray(workers: int, on_gpu: bool, threads: int) -> Iterator[None]:
    """Ray for a while, on this machine alone, without its output. Raises AutoqError where it cannot start.

    Args:
        workers: Most processes at once.
        on_gpu: Whether they share the GPU.
        threads: Threads of each process.
    """
    if ray.util.get_node_ip_address() != HOST:
        raise AutoqError(
            "Ray was imported before the search and would listen on the network; start Python anew, or set"
            f" {LOOPBACK_ONLY}=0 before ray is imported"
        )
    environment = {
        "RAY_USAGE_STATS_ENABLED": "0",
        "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
        "TUNE_DISABLE_SIGINT_HANDLER": "1",
        "TUNE_PRINT_ALL_TRIAL_ERRORS": "0",
        "RAY_AIR_NEW_OUTPUT": "0",
        "RAY_CHDIR_TO_TRIAL_DIR": "0",
        "TUNE_GLOBAL_CHECKPOINT_S": "1e9",  # Ray's own state is never read: the study holds everything
        "OMP_NUM_THREADS": str(threads),  # of the processes; with a runtime_env they would start seconds later
    }
    logging.getLogger("ray.tune").setLevel(logging.CRITICAL)  # a process that was replaced is an error to Ray
    with quiet(), _set(environment):
        try:
            ray.init(
                address="local",
                num_cpus=workers,
                num_gpus=1 if on_gpu else 0,
                include_dashboard=False,
                log_to_driver=False,
                logging_level=logging.ERROR,
                _node_ip_address=HOST,
            )
        except (RuntimeError, OSError, ValueError) as error:
            raise AutoqError(f"Ray did not start: {' '.join(str(error).split())}; autoq doctor says what is missing") from error
        try:
            yield
        finally:
            ray.shutdown()


@contextlib.contextmanager
def _set(environment: Mapping[str, str]) -> Iterator[None]:
    """Environment variables for a while, of this process and of those that it starts."""
    kept = {name: os.environ.get(name) for name in environment}
    os.environ.update(environment)
    try:
        yield
    finally:
        for name, value in kept.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Hide warnings of torch's exporter and of Ray; errors still come through."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
