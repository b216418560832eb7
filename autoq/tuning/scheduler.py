"""The scheduler of a search: which job runs next, and how its result is stored, between Ray Tune and the study.

The study suggests policies: initial trials first, then Optuna's. `successive_halving.py` decides which trials train on. A
trial goes to Ray once for every rung.
"""

from __future__ import annotations

import dataclasses
import functools
import re
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any, ParamSpec, TypeVar

from ray.tune.search import Searcher

from autoq.config.events import Events
from autoq.config.policy import Policy
from autoq.config.schedule import bracket
from autoq.config.spec import Replication, Rung, TrialResult
from autoq.config.structure import Structure
from autoq.errors import AutoqError
from autoq.study.replication import PlannedReplication, planned, replication_seeds
from autoq.study.results import FLOAT_NAME, point_name
from autoq.study.storage import Asked
from autoq.study.study import Study, resume_command
from autoq.tuning.successive_halving import promoted, slots

P = ParamSpec("P")
R = TypeVar("R")

MAX_ATTEMPTS = 3
"""Starts of a trial, at most, where its worker processes keep dying; then it counts as failed."""

MAX_ALIKE = 3
"""Failures in a row with one cause, of different trials, that end a search: the trials are not the cause."""

PAUSE = {"pause": 0.5}
"""A trial that only sleeps, in seconds, for a worker that has to wait for others. `suggest` may also return None, but Ray
keeps only one idle process for reuse (`_ObjectCache` of Ray 2.60): with two workers or more, each wait would end the others,
and a new process needs seconds of imports.
"""


@dataclass(frozen=True)
class Job:
    """A policy that Ray runs: a trial, a baseline, or a point of the front with another seed.

    Attributes:
        name: Name for the user.
        policy: The policy.
        until: Training steps after which it stops.
        number: The trial's number; None for a baseline and for a repeated training.
        attempts: Number of starts.
        seed: Seed of a repeated training, else None.
    """

    name: str
    policy: Policy
    until: int
    number: int | None = None
    attempts: int = 0
    seed: int | None = None

    @classmethod
    def of_trial(cls, asked: Asked, until: int) -> Job:
        return cls(f"trial {asked.number}", asked.policy, until, asked.number, asked.attempts)


def allowed(study: Study) -> int:
    """How many trials may be asked for in all.

    That is the budget, but no more than the space has policies, and no further ones after `max_steps` training steps.
    """
    spec, storage = study.spec, study.storage
    budget = spec.budget
    if study.space.size() < budget:
        budget = min(budget, storage.count + storage.untried)
    if spec.max_steps is None:
        return budget
    steps = {rung.number: spec.trial.steps for rung in study.rungs()}  # a trial that goes on trains fully, ended or not
    for record in study.records():
        if record.number is not None and (record.state == "pruned" or record.number not in steps):
            steps[record.number] = record.steps
    return min(storage.count, budget) if sum(steps.values()) >= spec.max_steps else budget


def kind(reason: str) -> str:
    """A reason without the parts that vary: addresses and numbers."""
    return re.sub(r"0x[0-9a-fA-F]+|[0-9]+([.][0-9]+)?", "#", reason)


class Abort(BaseException):
    """Carries an error out of Ray's loop, as its cause; Ray would only log the error itself."""


def _fatal(method: Callable[P, R]) -> Callable[P, R]:
    """Let every error of a method end the search."""

    @functools.wraps(method)
    def call(*arguments: P.args, **named: P.kwargs) -> R:
        try:
            return method(*arguments, **named)
        except Exception as error:
            raise Abort from error

    return call


class StudySearcher(Searcher):
    """Gives Ray the next job and stores its result.

    The float network runs first, then trials, bracket by bracket, with baselines in between; last the front again, with
    other seeds. The trials of a bracket are asked for together, run to a rung, and are compared there. Which of them train
    on follows from stored results, so a resumed search repeats its decisions. Initial trials are brackets of one: all train
    fully.
    """

    def __init__(self, study: Study, jobs: Sequence[Job], events: Events, structure: Callable[[Policy], Structure]) -> None:
        super().__init__()
        self.study, self.events, self.structure = study, events, structure
        self.waiting = [job for job in jobs if job.name == FLOAT_NAME]
        self.baselines = [job for job in jobs if job.name != FLOAT_NAME]
        self.running: dict[str, Job] = {}
        self.rungs = study.spec.rungs or (study.spec.trial.steps,)
        self.reached: dict[int, dict[int, TrialResult]] = {}
        self.policies: dict[int, str] = {}
        self.replicating: list[PlannedReplication] = []
        self.reports: dict[str, dict[str, Any]] = {}
        self.alike: tuple[str, dict[str, Job]] = ("", {})
        for rung in study.rungs():
            self._note(rung)

    @_fatal
    def suggest(self, trial_id: str) -> dict[str, Any] | str | None:  # type: ignore[override]
        if any(job.name == FLOAT_NAME for job in self.running.values()):
            return dict(PAUSE)  # others are judged against the float network
        while self.waiting or self._plan() or self._plan_baseline() or self._plan_replications():
            job = self._begin()
            if job.attempts > MAX_ATTEMPTS:
                self._end(job, TrialResult(state="failed", reason=f"interrupted {MAX_ATTEMPTS} times while it ran"))
                continue
            self.running[trial_id] = job
            self.events.started(job.name, job.policy.label)
            spent = self._spent(job.number)
            where = {"until": job.until, "number": job.number, "spent": spent, "seed": job.seed}
            return {"policy": job.policy.to_dict(), **where}
        return dict(PAUSE) if self.running else Searcher.FINISHED  # running jobs may have to run again

    def _note(self, rung: Rung) -> None:
        """Note a rung that a trial reached; drop those of another policy with its number, of a storage that was lost."""
        if self.policies.setdefault(rung.number, rung.policy) != rung.policy:
            self.reached.pop(rung.number, None)
            self.policies[rung.number] = rung.policy
        self.reached.setdefault(rung.number, {})[rung.until] = rung.result

    def _has(self, asked: Asked, rung: int) -> bool:
        return self.policies.get(asked.number) == asked.policy.hash and rung in self.reached[asked.number]

    def _begin(self) -> Job:
        """Start the next waiting job."""
        job = self.waiting.pop(0)
        job = dataclasses.replace(job, attempts=job.attempts + 1)
        if job.number is not None:
            self.study.storage.set_attempts(job.number, job.attempts)
        return job

    def _plan(self) -> bool:
        """Fill `waiting` with the next jobs; False where there are none, or running ones must end first."""
        storage = self.study.storage
        while not self.waiting:
            count = storage.count
            if count > self._bracket(count).start:
                self._ask()  # the rest of a bracket: a search was killed while it asked for it
            unended = storage.running()
            ready = self._ready(unended)
            if ready is not None:
                self.waiting = self._to_rung([asked for asked in unended if asked.number in ready], ready)
            elif not self._may_begin(self._bracket(count), unended) or not self._ask():
                return False
        return True

    def _bracket(self, number: int) -> range:
        return bracket(number, len(self.study.storage.initial), self.rungs)

    def _ask(self) -> int:
        """Ask for the trials of the next bracket, or for those of it that are missing, within the budget. Returns their number."""
        count = self.study.storage.count
        missing = range(count, min(self._bracket(count).stop, allowed(self.study)))
        for _ in missing:
            self.study.ask()
        return len(missing)

    def _ready(self, unended: Sequence[Asked]) -> range | None:
        """The first bracket that can go on: none of its trials is at work, and what a decision follows from is complete."""
        at_work = {job.number for job in self.running.values()}
        for together in dict.fromkeys(self._bracket(asked.number) for asked in unended):
            members = [asked for asked in unended if asked.number in together]
            decides = len(together) > 1 and all(self._has(asked, self.rungs[0]) for asked in members)
            if at_work.isdisjoint(together) and not (decides and unended[0].number < together.start):
                return together
        return None

    def _may_begin(self, together: range, unended: Sequence[Asked]) -> bool:
        """Whether a bracket may be asked for: of all earlier ones, only trials of the last may still train, promoted ones.

        Else a worker would wait while they train. The sampler does not see how they end (`TrialStorage.ask`).
        """
        before = self._bracket(together.start - 1)
        return len(together) == 1 or all(
            len(before) > 1 and asked.number in before and self._has(asked, self.rungs[0]) for asked in unended
        )

    def _plan_baseline(self) -> bool:
        """Fill `waiting` with a baseline, to run while a bracket's last trials run; False where none is left."""
        if self.baselines:
            self.waiting.append(self.baselines.pop(0))
        return bool(self.waiting)

    def _plan_replications(self) -> bool:
        """Fill `waiting` with the trainings that are still to be repeated, seed by seed; False where there are none."""
        spec = self.study.spec
        if self.running or not spec.replications:
            return False
        done = {(each.policy, each.seed) for each in self.study.replications()}
        self.replicating = planned(self.study.results(), replication_seeds(spec))
        self.waiting = [
            Job(f"{point_name(record)} again", policy, spec.trial.steps, seed=seed)
            for record, policy, seed in self.replicating
            if (policy.hash, seed) not in done
        ]
        return bool(self.waiting)

    def _to_rung(self, trials: Sequence[Asked], together: range) -> list[Job]:
        """The jobs that bring a bracket to the lowest rung it has not reached; trials that are not promoted end here."""
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
        """The trials of a bracket that train on from a rung: all in a bracket of one, or without a float network.

        Rivals are earlier trials that satisfied all constraints there and did not fail later. Slots that no feasible trial
        takes go to those that violate constraints on quality least.
        """
        study, results = self.study, self.study.results()
        if results.reference_point is None or len(together) == 1:
            return together
        failed = {record.number for record in results.records if record.state == "failed"}
        here = {number: reached[rung] for number, reached in self.reached.items() if rung in reached and number not in failed}
        beyond = {number: max(study.violations(result).values(), default=0.0) for number, result in here.items()}
        losses = {number: results.losses(here[number].values) for number in here if beyond[number] <= 0}
        numbers = sorted(number for number in here if number in together)
        within = [number for number in numbers if number in losses]
        rivals = [losses[number] for number in sorted(losses) if number < together.start]
        limit = slots(len(numbers))
        corner = results.minimized(results.reference_point)
        going = [within[index] for index in promoted([losses[number] for number in within], rivals, corner, limit)]
        others = [number for number in numbers if number not in losses and study.affordable(here[number].values)]
        return {*going, *sorted(others, key=beyond.__getitem__)[: limit - len(going)]}

    def _stop(self, asked: Asked, rung: int) -> None:
        """End a trial at a rung."""
        values = self.reached[asked.number][rung].values
        why = "others are better there" if self.study.affordable(values) else "it costs more than the bounds allow"
        reason = f"stopped after {rung} of {self.study.spec.trial.steps} steps: {why}"
        self._end(Job.of_trial(asked, rung), TrialResult(state="pruned", values=values, steps=rung, reason=reason))

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        """Keep the report of a worker whose process ends."""
        self.reports[trial_id] = result

    @_fatal
    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        job = self.running.pop(trial_id, None)
        report = self.reports.pop(trial_id, {}) if error else result or {}
        if job is None:  # a pause, or a death that Ray reports twice
            return
        if "replication" in report:
            self.alike = ("", {})
            self._replicate(job, Replication.model_validate_json(report["replication"]))
        elif "result" in report:
            self.alike = ("", {})
            self._end(job, TrialResult.model_validate_json(report["result"]))
        else:
            self._lost(job, report.get("broken"), began=report.get("began", True))

    def _lost(self, job: Job, cause: str | None, began: bool) -> None:
        """Run a job again in a new process; it failed without a result.

        It waits behind the other jobs, which show meanwhile whether the failure is its own.

        Args:
            job: The job.
            cause: The error; None where the process just died.
            began: Whether the worker could start the job; if not, the failure is not the job's.
        """
        last = job.attempts >= MAX_ATTEMPTS
        hung = ", or hung beyond --timeout" if self.study.spec.timeout else ""
        died = f"its worker process died {MAX_ATTEMPTS} times: killed, out of memory (fewer --workers need less){hung}"
        if cause is not None or last:
            self._blame(job, cause or died, its_own=began and job.name != FLOAT_NAME)
        if last:
            self._end(job, TrialResult(state="failed", reason=cause or died))
            return
        self.events.note(f"{job.name}: {cause or 'its worker process died'}; it runs again in a new process")
        self.waiting.insert(0 if job.name == FLOAT_NAME else len(self.waiting), job)

    def _blame(self, job: Job, reason: str, its_own: bool) -> None:
        """Raise AutoqError after MAX_ALIKE failures in a row with one cause, of different jobs where it may be their own.

        Their starts are not counted when the search is resumed.
        """
        before, jobs = self.alike
        jobs = jobs if before == kind(reason) else {}
        self.alike = (kind(reason), {**jobs, job.name if its_own else f"{job.name}, {job.attempts}": job})
        jobs = self.alike[1]
        if len(jobs) < MAX_ALIKE:
            return
        for asked in self.study.storage.running():
            if asked.number in {each.number for each in jobs.values()}:
                self.study.storage.set_attempts(asked.number, 0)
        raise AutoqError(
            f"study '{self.study.name}': failed {MAX_ALIKE} times in a row with one cause: {reason}; what has finished is kept,"
            f" remove the cause and type {resume_command(self.study.folder)}"
        )

    def interrupted(self) -> None:
        """Do not count the starts of running trials: the user stopped the search."""
        for job in self.running.values():
            if job.number is not None:
                self.study.storage.set_attempts(job.number, job.attempts - 1)

    def _replicate(self, job: Job, found: Replication) -> None:
        self.study.add_replication(found)
        wanted = {(policy.hash, seed) for _, policy, seed in self.replicating}
        done = sum((each.policy, each.seed) in wanted for each in self.study.replications())
        self.events.replicated(job.name, done, len(wanted))

    def _end(self, job: Job, outcome: TrialResult) -> None:
        if job.seed is not None:
            self._replicate(job, Replication(policy=job.policy.hash, seed=job.seed, result=outcome))
            return
        if job.number is None:
            structure = self.structure(job.policy)
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
        record = self.study.tell(job.number, job.policy, outcome, self.structure(job.policy))
        self.study.state_path(job.number, job.policy).unlink(missing_ok=True)
        self.events.finished(record)

    def _spent(self, number: int | None) -> float:
        """Seconds of work on a trial up to its last rung."""
        return sum(result.seconds for result in self.reached.get(-1 if number is None else number, {}).values())

    def save(self, checkpoint_path: str) -> None:
        """Store nothing: the state is in the study's storage."""

    def __getstate__(self) -> dict[str, Any]:
        """Nothing: Ray pickles its whole configuration, but needs no searcher elsewhere."""
        return {}
