"""The search from end to end: latency table, initial trials, then Ray Tune and its worker processes.

`scheduler.py` decides which job runs next; `run_trial` evaluates a policy.
"""

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
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from importlib import metadata
from pathlib import Path
from typing import Any, TypeVar

import ray
import torch
from ray import cloudpickle, tune

from autoq.config.events import Events
from autoq.config.objectives import FIDELITY
from autoq.config.policy import Policy
from autoq.config.spec import Replication, StudySpec, TrialResult
from autoq.costs.latency import measure as latencies
from autoq.costs.latency.structure import structure_of
from autoq.costs.latency.table import LatencyTable, read_table
from autoq.errors import AutoqError, InputError, TrialFailed
from autoq.export.onnx import export_graph, load_graph, save_graph
from autoq.networks import is_given
from autoq.networks.given import given, keep
from autoq.study.replication import planned, replication_seeds
from autoq.study.results import point_name
from autoq.study.study import Study
from autoq.system.files import atomic_write_text
from autoq.system.limits import limits, private_memory
from autoq.trial.context import TrialContext, adopt, portable, prepare
from autoq.trial.run import replicate, run_trial
from autoq.tuning import LOOPBACK_ONLY
from autoq.tuning.baselines import baselines
from autoq.tuning.initial_trials import probe, propose_initial_trials
from autoq.tuning.latency_pass import LatencyPass, check_table
from autoq.tuning.scheduler import Abort, Job, StudySearcher, allowed

R = TypeVar("R")

HOST = "127.0.0.1"

CHOICES = 4
"""Times that initial trials are proposed, at most, where latency is predicted: each time their latencies are then measured."""


def environment(command: str) -> dict[str, Any]:
    """The environment of a study: versions, processor, command."""
    packages = ("autoq", "torch", "optuna", "ray", "openvino", "onnx", "numpy", "pyiqa")
    return {
        "command": command,
        "python": sys.version.split()[0],
        "machine": latencies.machine(),
        "versions": {name: metadata.version(name) for name in packages},
    }


def search(study: Study, events: Events | None = None, context: TrialContext | None = None) -> None:
    """Run a study, new or resumed, to its end: latency table, initial trials, all other trials, then the replication of the front.

    Latencies are the study's frozen ones where it has them, else they are measured first, alone on the machine. Trials that
    were running when the study was interrupted run again first.

    Args:
        study: The study, created or resumed.
        events: Listener for progress.
        context: The context of its trials, where it is prepared already.

    Raises:
        AutoqError: Every trial failed, or no point satisfies the constraints.
        KeyboardInterrupt: The search was interrupted.
    """
    events = events or Events()
    spec = study.spec
    earlier = study.records()
    events.begin(study.folder, spec, earlier)
    if _is_open(study):
        if (size := study.space.size()) < spec.budget:
            events.note(f"the space holds {size} policies, fewer than the budget of {spec.budget}: the search ends with the last")
        _run(study, events, context)
    else:
        events.note(f"study '{study.name}' is complete: nothing is left to run")
    trials = [record for record in study.records() if record.source == "trial"]
    if all(record.state == "failed" for record in trials):
        raise AutoqError(
            f"study '{study.name}': all {len(trials)} trials failed; the last: {trials[-1].reason if trials else 'none ran'}"
        )
    complete = [record for record in study.records() if record.state == "complete"]
    if not any(record.feasible for record in complete):
        closest = min(complete, key=lambda record: max(record.violations.values()))
        reached = (
            ", ".join(f"{each.name} {each.value(closest.values, study.float_values):.6g}" for each in study.constraints)
            or f"{FIDELITY} {closest.values[FIDELITY]:.1f} dB"
        )
        bounds = ", ".join(spec.constraints) or "the bound on quality"
        raise AutoqError(f"study '{study.name}': no point keeps {bounds}; the closest, {point_name(closest)}, reaches {reached}")


def _jobs(study: Study) -> list[Job]:
    """The baselines that have not ended, measured or failed."""
    done = {record.name for record in study.records()}
    wanted = baselines(study.space.facts, study.spec.first_last_16)
    return [Job(name, policy, study.spec.trial.steps) for name, policy in wanted.items() if name not in done]


def _is_open(study: Study) -> bool:
    """Whether anything is left to run or to measure."""
    if _jobs(study) or study.storage.running() or study.storage.count < allowed(study):
        return True
    wanted = {(each.policy.hash, each.seed) for each in planned(study.results(), replication_seeds(study.spec))}
    repeated = {(each.policy, each.seed) for each in study.replications()}
    return not (wanted <= repeated and {policy for policy, _ in wanted} <= study.remeasured().samples.keys())


def _run(study: Study, events: Events, context: TrialContext | None) -> None:
    """Latency table, initial trials, everything that trains, and the front's latencies again."""
    spec = study.spec
    events.phase("preparing the float network")
    context = context or prepare(spec.trial)
    if study.graph_path.is_file():
        graph = load_graph(study.graph_path)
    else:
        graph = export_graph(context.traced)
        save_graph(graph, study.graph_path)
    latency = LatencyPass(context, spec, study.space, graph, events)
    if study.latency_path.is_file():
        table = read_table(study.latency_path)
        check_table(table, spec, context)
    else:
        table = latency.measure()
        atomic_write_text(study.latency_path, table.model_dump_json(indent=1))
    if spec.initial_trials and study.sensitivity() is None:
        table = _propose(study, latency, table)
    run_jobs(
        StudySearcher(study, _jobs(study), events, lambda policy: structure_of(latency.context.plan_for(policy))), context, table
    )
    shutil.rmtree(study.states_path, ignore_errors=True)
    points = list(dict.fromkeys(each.policy for each in planned(study.results(), replication_seeds(spec))))
    if not study.remeasured().samples.keys() >= {policy.hash for policy in points}:
        study.set_remeasured(latency.remeasure(points))


def _propose(study: Study, latency: LatencyPass, table: LatencyTable) -> LatencyTable:
    """Propose and store the initial trials. Returns the table, with the latencies of all of them measured.

    A policy chosen by a predicted latency is often one whose latency is predicted too low. So where the table predicts, the
    chosen policies are measured, the prediction is fitted again, and the choice is repeated.
    """
    spec, events = study.spec, latency.events
    events.phase("quantizing the stages one at a time")
    torch.set_num_threads(spec.latency_threads)  # nothing else runs yet
    context = replace(latency.context, spec=spec.trial.model_copy(update={"threads": spec.latency_threads}))
    probes = probe(context, latency.graph, study.space, events.phase)
    for _ in range(CHOICES):
        proposed = propose_initial_trials(
            context, study.space, spec.objectives, table, spec.initial_trials, probes, study.constraints, study.warm_start
        )
        fuller = latency.add(table, [Policy.from_dict(policy) for policy in proposed.initial_trials])
        if fuller is table:
            break
        table = fuller
        atomic_write_text(study.latency_path, table.model_dump_json(indent=1))
    study.set_initial_trials(proposed)
    return table


# ------------------------------------------------------------ Ray


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
    os.environ.update(
        RAY_USAGE_STATS_ENABLED="0",
        TUNE_DISABLE_AUTO_CALLBACK_LOGGERS="1",
        TUNE_DISABLE_SIGINT_HANDLER="1",
        TUNE_PRINT_ALL_TRIAL_ERRORS="0",
        RAY_AIR_NEW_OUTPUT="0",
        RAY_CHDIR_TO_TRIAL_DIR="0",
        TUNE_GLOBAL_CHECKPOINT_S="1e9",  # Ray's own state is never read: the study holds everything
    )
    with quiet(), contextlib.redirect_stdout(RayOutput(searcher.events)):
        _start_ray(spec.workers, on_gpu, spec.trial.threads)
        try:
            trainable = tune.with_parameters(
                TrialActor, spec=spec, table=table, folder=study.folder.resolve(), user_code=user_code, context=portable(context)
            )
            tune.Tuner(
                tune.with_resources(trainable, {"cpu": 1, "gpu": 1 / spec.workers if on_gpu else 0}),
                tune_config=tune.TuneConfig(
                    search_alg=searcher, num_samples=-1, max_concurrent_trials=spec.workers, reuse_actors=True
                ),
                run_config=tune.RunConfig(
                    name="trials",
                    storage_path=str(scratch),
                    verbose=0,
                    progress_reporter=tune.CLIReporter(),  # silent; Ray's reporter for notebooks clears the cell
                    checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=False),  # saving could fail after the trial
                ),
            ).fit()
        except KeyboardInterrupt:
            searcher.interrupted()
            raise
        except Abort as abort:
            with contextlib.suppress(OSError):  # the disk may be full
                searcher.interrupted()
            raise abort.__cause__ or abort from None
        finally:
            ray.shutdown()
            shutil.rmtree(scratch, ignore_errors=True)


def _start_ray(workers: int, on_gpu: bool, threads: int) -> None:
    if ray.util.get_node_ip_address() != HOST:  # type: ignore[no-untyped-call]
        raise AutoqError(
            "Ray was imported before the search and would listen on the network; start Python anew, or set"
            f" {LOOPBACK_ONLY}=0 before ray is imported"
        )
    try:
        ray.init(
            address="local",
            num_cpus=workers,
            num_gpus=1 if on_gpu else 0,
            include_dashboard=False,
            log_to_driver=False,
            logging_level=logging.ERROR,
            _node_ip_address=HOST,
            runtime_env={"env_vars": {"OMP_NUM_THREADS": str(threads)}},
        )
    except (RuntimeError, OSError, ValueError) as error:
        raise AutoqError(f"Ray did not start: {' '.join(str(error).split())}; autoq doctor says what is missing") from error


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Hide warnings of torch's exporter and of Ray; errors still come through."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
