"""The search: baselines and suggested policies through Ray Tune, one frozen latency table before them.

The only importer of ray. Seeds and Optuna decide what to try (study.py), `run_trial` what it is worth, halving.py what
trains on; here is the traffic between them. A trial goes to Ray once for every rung it is trained to.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import io
import logging
import os
import re
import shutil
import sys
import time
import warnings
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

import ray
from ray import tune
from ray.tune.search import Searcher

from autoq import findings
from autoq.errors import AutoqError, TrialFailed
from autoq.events import Events
from autoq.export.onnx import Graph, export_graph, load_graph, save_graph
from autoq.files import write_whole
from autoq.findings import FLOAT_NAME
from autoq.halving import cohort, limit, promoted
from autoq.limits import limits
from autoq.measuring import baselines, check_table, measure_latencies
from autoq.objectives import PSNR_TO_FLOAT
from autoq.objectives import latency as latencies
from autoq.policy import Policy
from autoq.quantize import place
from autoq.sensitivity import find_seeds
from autoq.spec import Rung, StudySpec, TrialResult
from autoq.storage import Asked
from autoq.study import Study
from autoq.trial import run_trial
from autoq.workbench import prepare

P = ParamSpec("P")
R = TypeVar("R")

MAX_ATTEMPTS = 3
"""Times a trial is begun before it counts as failed, when the processes it runs in keep dying."""


PAUSE = {"pause": 0.5}
"""Seconds that a worker does nothing where it has to wait for others: without a trial Ray would end its process."""


@dataclass(frozen=True)
class Job:
    """A policy on its way through Ray: a trial, or a baseline (number is None). until: the training steps it stops at.

    attempts: how often it was begun.
    """

    name: str
    policy: Policy
    until: int
    number: int | None = None
    attempts: int = 0

    @classmethod
    def of_trial(cls, asked: Asked, until: int) -> Job:
        return cls(f"trial {asked.number}", asked.policy, until, asked.number, asked.attempts)


def environment(command: str) -> dict[str, Any]:
    """Where and how a study was started: versions, processor, command."""
    packages = ("autoq", "torch", "optuna", "ray", "openvino", "onnx", "numpy", "pyiqa")
    return {
        "command": command,
        "python": sys.version.split()[0],
        "machine": latencies.machine(),
        "versions": {name: metadata.version(name) for name in packages},
    }


def search(study: Study, events: Events | None = None) -> None:
    """Run a study, new or taken up again, to the end of its budget: latency table, baselines, trials.

    Latencies are the study's frozen ones where it has them, else measured now, alone on the machine. Trials that were
    running when the study was interrupted run again first. Raises AutoqError when every trial failed or no point keeps the
    constraints, KeyboardInterrupt when interrupted.
    """
    events = events or Events()
    spec = study.spec
    earlier = study.records()
    events.begin(study.folder, spec, earlier)
    done = {record.name for record in earlier if record.state == "complete"}
    jobs = [
        Job(name, policy, spec.trial.steps)
        for name, policy in baselines(study.space.facts.stages, spec.hand_rule).items()
        if name not in done
    ]
    if jobs or study.storage.running() or study.storage.count < spec.budget:
        events.phase("preparing the float network")
        graph = _write_graph(study)
        if study.latency_path.is_file():
            table = latencies.read_table(study.latency_path)
            check_table(table, spec)
        else:
            table = measure_latencies(study, graph, events)
            write_whole(study.latency_path, table.model_dump_json(indent=1))
        if spec.seeds and study.sensitivity() is None:
            events.phase("quantizing the stages one at a time")
            bench = prepare(spec.trial)
            study.set_seeds(find_seeds(bench, study.space, spec.objectives, table, spec.seeds, study.constraints, study.warm_start))
        run_jobs(StudySearcher(study, jobs, events), study, table)
        shutil.rmtree(study.states_path, ignore_errors=True)
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
            or f"{PSNR_TO_FLOAT} {closest.values[PSNR_TO_FLOAT]:.1f} dB"
        )
        bounds = ", ".join(spec.constraints) or "the bound on quality"
        raise AutoqError(
            f"study '{study.name}': no point keeps {bounds}; the closest, {findings.point_name(closest)}, reaches {reached}"
        )


def _write_graph(study: Study) -> Graph:
    graph = export_graph(prepare(study.spec.trial).traced)
    save_graph(graph, study.graph_path)
    return graph


# ------------------------------------------------------------ Ray


class Abort(BaseException):
    """An error within Ray's loop, which would be logged and lost: carried past it as the cause of this."""


def _fatal(method: Callable[P, R]) -> Callable[P, R]:
    """Whatever a method raises ends the search."""

    @functools.wraps(method)
    def call(*arguments: P.args, **named: P.kwargs) -> R:
        try:
            return method(*arguments, **named)
        except Exception as error:
            raise Abort from error

    return call


class StudySearcher(Searcher):
    """Ray asks here for the next policy and reports here how it ended: first `jobs`, then trials, cohort by cohort.

    The trials of a cohort are asked for together, run to a rung, and are compared there; who goes on follows from what is
    stored, so a search that was interrupted decides again what it had decided. Seeds are cohorts of one: all train fully.
    """

    def __init__(self, study: Study, jobs: Sequence[Job], events: Events) -> None:
        super().__init__()
        self.study, self.events = study, events
        self.waiting = list(jobs)
        self.running: dict[str, Job] = {}
        self.rungs = study.spec.rungs or (study.spec.trial.steps,)
        self.reached: dict[int, dict[int, TrialResult]] = {}
        self.policies: dict[int, str] = {}
        for rung in study.rungs():
            self._note(rung)

    @_fatal
    def suggest(self, trial_id: str) -> dict[str, Any] | str | None:  # type: ignore[override]
        if any(job.name == FLOAT_NAME for job in self.running.values()):
            return dict(PAUSE)  # what others are worth is judged by it
        while self.waiting or self._plan():
            job = self._begin()
            if job.attempts > MAX_ATTEMPTS:
                self._end(job, TrialResult(state="failed", reason=f"interrupted {MAX_ATTEMPTS} times while it ran"))
                continue
            self.running[trial_id] = job
            self.events.started(job.name, job.policy.label)
            spent = self._spent(job.number)
            return {"policy": job.policy.to_dict(), "until": job.until, "number": job.number, "spent": spent}
        return dict(PAUSE) if self.running else Searcher.FINISHED  # what runs may have to run again

    def _note(self, rung: Rung) -> None:
        """What a trial reached; rungs of another policy under its number (the storage was lost) are forgotten."""
        if self.policies.setdefault(rung.number, rung.policy) != rung.policy:
            self.reached.pop(rung.number, None)
            self.policies[rung.number] = rung.policy
        self.reached.setdefault(rung.number, {})[rung.until] = rung.result

    def _has(self, asked: Asked, rung: int) -> bool:
        return self.policies.get(asked.number) == asked.policy.hash and rung in self.reached[asked.number]

    def _begin(self) -> Job:
        """The next job that waits, begun once more."""
        job = self.waiting.pop(0)
        job = dataclasses.replace(job, attempts=job.attempts + 1)
        if job.number is not None:
            self.study.storage.set_attempts(job.number, job.attempts)
        return job

    def _plan(self) -> bool:
        """Fill `waiting` with what has to run next; False where there is nothing, or what runs must end first."""
        storage, budget = self.study.storage, self._budget()
        while not self.waiting:
            at_work = {job.number for job in self.running.values()}
            open_trials = [asked for asked in storage.running() if asked.number not in at_work]
            number = open_trials[0].number if open_trials else storage.count
            together = self._cohort(number)
            if number >= budget or (len(together) > 1 and self.running):
                return False
            while storage.count < min(together.stop, budget):
                open_trials.append(self.study.ask())
            self.waiting = self._to_rung([asked for asked in open_trials if asked.number in together], together)
        return True

    def _budget(self) -> int:
        """How many trials may be asked for: no more than there are, once they have trained for all the steps allowed."""
        spec = self.study.spec
        if spec.max_steps is None:
            return spec.budget
        steps = {number: max(reached) for number, reached in self.reached.items()}
        steps |= {record.number: record.steps for record in self.study.records() if record.number is not None}
        return min(self.study.storage.count, spec.budget) if sum(steps.values()) >= spec.max_steps else spec.budget

    def _cohort(self, number: int) -> range:
        return cohort(number, len(self.study.storage.seeds), self.rungs)

    def _to_rung(self, trials: Sequence[Asked], together: range) -> list[Job]:
        """The jobs that bring a cohort to the lowest rung it has not reached; who does not go on ends on the way."""
        members = {asked.number: asked for asked in trials}
        for rung in self.rungs:
            missing = [asked for asked in members.values() if not self._has(asked, rung)]
            if missing:
                return [Job.of_trial(asked, rung) for asked in missing]
            going = self._promoted(together, rung)
            for number in [number for number in members if number not in going]:
                self._stop(members.pop(number), rung)
        return []

    def _promoted(self, together: range, rung: int) -> Collection[int]:
        """Which trials of a cohort go on from a rung; all that are alone, or where there is no float network.

        Rivals are earlier trials that keep all bounds there and did not fail later. Places that no trial within the bounds
        takes go to those that break bounds on quality least.
        """
        study, records = self.study, self.study.records()
        reference = findings.reference_point(records, study.spec.objectives)
        if reference is None or len(together) == 1:
            return together
        failed = {record.number for record in records if record.state == "failed"}
        here = {number: reached[rung] for number, reached in self.reached.items() if rung in reached and number not in failed}
        beyond = {number: max(study.violations(result).values(), default=0.0) for number, result in here.items()}
        losses = {number: findings.losses(here[number].values, study.spec.objectives) for number in here if beyond[number] <= 0}
        numbers = sorted(number for number in here if number in together)
        within = [number for number in numbers if number in losses]
        rivals = [losses[number] for number in sorted(losses) if number < together.start]
        places = limit(len(numbers))
        corner = findings.minimized(reference, study.spec.objectives)
        going = [within[index] for index in promoted([losses[number] for number in within], rivals, corner, places)]
        others = [number for number in numbers if number not in losses and study.affordable(here[number].values)]
        return {*going, *sorted(others, key=beyond.__getitem__)[: places - len(going)]}

    def _stop(self, asked: Asked, rung: int) -> None:
        """A trial does not go on."""
        values = self.reached[asked.number][rung].values
        why = "others are better there" if self.study.affordable(values) else "it costs more than the bounds allow"
        reason = f"stopped after {rung} of {self.study.spec.trial.steps} steps: {why}"
        self._end(Job.of_trial(asked, rung), TrialResult(state="pruned", values=values, steps=rung, reason=reason))

    @_fatal
    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        job = self.running.pop(trial_id, None)
        if job is None:  # a pause; or Ray, which reports some deaths twice
            return
        if result and "result" in result and not error:
            self._end(job, TrialResult.model_validate_json(result["result"]))
        elif job.attempts < MAX_ATTEMPTS:
            self.events.note(f"{job.name}: its worker process died; it runs again")
            self.waiting.insert(0, job)
        else:
            hung = ", or hung beyond --timeout" if self.study.spec.timeout else ""
            reason = f"its worker process died {MAX_ATTEMPTS} times: killed, out of memory (fewer --workers need less){hung}"
            self._end(job, TrialResult(state="failed", reason=reason))

    def interrupted(self) -> None:
        """The user stops the search: that is not the fault of the trials that run."""
        for job in self.running.values():
            if job.number is not None:
                self.study.storage.set_attempts(job.number, job.attempts - 1)

    def _end(self, job: Job, outcome: TrialResult) -> None:
        if job.number is None:
            structure = self._structure(job.policy)
            self.events.finished(self.study.add_baseline(job.name, job.policy, outcome, structure))
            return
        if outcome.state == "complete" and job.until < self.rungs[-1]:
            rung = Rung(number=job.number, policy=job.policy.hash, until=job.until, result=outcome)
            self.study.add_rung(rung)
            self.study.storage.set_attempts(job.number, 0)
            self._note(rung)
            self.events.paused(job.name)
            return
        outcome = outcome.model_copy(update={"seconds": round(outcome.seconds + self._spent(job.number), 3)})
        record = self.study.tell(job.number, job.policy, outcome, self._structure(job.policy))
        self.study.state_path(job.number, job.policy).unlink(missing_ok=True)
        self.events.finished(record)

    def _spent(self, number: int | None) -> float:
        """Seconds of work on a trial up to the rung it stands at."""
        return sum(result.seconds for result in self.reached.get(-1 if number is None else number, {}).values())

    def _structure(self, policy: Policy) -> str:
        bench = prepare(self.study.spec.trial)
        return latencies.describe(bench.traced, place(bench.traced, policy, bench.execution), bench.execution)

    def save(self, checkpoint_path: str) -> None:
        """Ray asks for checkpoints of the searcher; the study's storage is the state."""

    def __getstate__(self) -> dict[str, Any]:
        """Ray pickles its whole configuration; nothing of the searcher is needed elsewhere."""
        return {}


class RayOutput(io.TextIOBase):
    """What Ray prints to standard output, where only results belong: the first sentence of each line becomes a note."""

    def __init__(self, events: Events) -> None:
        self.events = events

    def write(self, text: str) -> int:
        for line in re.sub(r"\x1b\[[0-9;]*m", "", text).splitlines():
            sentence = line.split(". ")[0].strip()
            if sentence:
                self.events.note(f"Ray: {sentence}")
        return len(text)


class TrialActor(tune.Trainable):
    """A worker process: one `step` brings a trial to one rung. Reused from trial to trial, it keeps only the workbench."""

    def setup(  # type: ignore[override]
        self, config: dict[str, Any], spec: StudySpec, table: latencies.LatencyTable, folder: Path
    ) -> None:
        self.spec, self.table, self.study = spec, table, Study.open(folder)
        self.broken: str | None = None
        try:
            self.graph = load_graph(self.study.graph_path)
            prepare(spec.trial)  # shared by all trials of this process, so no trial's time limit pays for it
        except Exception as error:  # noqa: BLE001 - the process lives, and its trials say why they cannot run
            self.broken = _in_one_line(error)

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        self.config = new_config
        return True

    def step(self) -> dict[str, Any]:
        if "pause" in self.config:
            time.sleep(self.config["pause"])
            return {"done": True}
        result = TrialResult(state="failed", reason=self.broken) if self.broken else self._run()
        return {"result": result.model_dump_json(), "done": True}  # as text: Ray flattens nested results

    def _run(self) -> TrialResult:
        policy, until, number = Policy.from_dict(self.config["policy"]), self.config["until"], self.config["number"]
        state = None if number is None else self.study.state_path(number, policy)
        try:
            with limits(self.spec.timeout, self.spec.memory, self.config["spent"]):
                return run_trial(self.spec.trial, policy, self.table, self.graph, until, state)
        except TrialFailed as error:
            return TrialResult(state="failed", reason=str(error))
        except Exception as error:  # noqa: BLE001 - one broken trial must not end a study; its cause is recorded
            return TrialResult(state="failed", reason=_in_one_line(error))


def _in_one_line(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())}"


def run_jobs(searcher: StudySearcher, study: Study, table: latencies.LatencyTable) -> None:
    """Run the searcher's jobs on `workers` processes of this machine; Ray listens on 127.0.0.1 only.

    A job whose process dies runs again, MAX_ATTEMPTS times in all. Raises AutoqError where Ray cannot start.
    """
    spec = study.spec
    on_gpu = spec.trial.device == "cuda"
    scratch = (study.folder / "ray").resolve()
    shutil.rmtree(scratch, ignore_errors=True)  # of a search that was killed
    os.environ.update(
        RAY_USAGE_STATS_ENABLED="0",
        TUNE_DISABLE_AUTO_CALLBACK_LOGGERS="1",
        TUNE_DISABLE_SIGINT_HANDLER="1",
        TUNE_PRINT_ALL_TRIAL_ERRORS="0",
        RAY_AIR_NEW_OUTPUT="0",
    )
    with quiet(), contextlib.redirect_stdout(RayOutput(searcher.events)):
        _start_ray(spec.workers, on_gpu, spec.trial.threads)
        try:
            trainable = tune.with_parameters(TrialActor, spec=spec, table=table, folder=study.folder.resolve())
            tune.Tuner(
                tune.with_resources(trainable, {"cpu": 1, "gpu": 1 / spec.workers if on_gpu else 0}),
                tune_config=tune.TuneConfig(
                    search_alg=searcher, num_samples=-1, max_concurrent_trials=spec.workers, reuse_actors=True
                ),
                run_config=tune.RunConfig(
                    name="trials",
                    storage_path=str(scratch),
                    verbose=0,
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
    try:
        ray.init(
            address="local",
            num_cpus=workers,
            num_gpus=1 if on_gpu else 0,
            include_dashboard=False,
            log_to_driver=False,
            logging_level=logging.ERROR,
            _node_ip_address="127.0.0.1",
            runtime_env={"env_vars": {"OMP_NUM_THREADS": str(threads)}},
        )
    except (RuntimeError, OSError, ValueError) as error:
        raise AutoqError(f"Ray did not start: {' '.join(str(error).split())}; autoq doctor says what is missing") from error


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keep the chatter of torch's exporter and of Ray from the user; errors still come through."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
