"""The Optuna storage of a study: its trials with their states, and the sampler's next suggestion.

Every suggestion comes from a new sampler, seeded from (study seed, trial number), on a copy of the trials in memory. So a
suggestion depends on the earlier trials alone, not on state of a sampler, and it is stored in one step: after any
interruption, asking again gives the same suggestion.
"""

from __future__ import annotations

import errno
import functools
import hashlib
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ParamSpec, TypeVar

import optuna
from optuna.trial import TrialState
from sqlalchemy.exc import SQLAlchemyError

from autoq.config.objectives import FIDELITY, FIDELITY_FLOOR, OBJECTIVES
from autoq.config.policy import ROLES, Policy
from autoq.config.schedule import bracket
from autoq.config.space import SearchSpace
from autoq.config.spec import Record, StudySpec
from autoq.errors import InputError, StudyError
from autoq.study.database import cause_of, is_own_file
from autoq.study.folder import DATABASE

P = ParamSpec("P")
R = TypeVar("R")

ATTEMPTS = "attempts"
MOST_REPEATS = 10
"""Attempts of a sampler that suggests policies which trials already have; the second half of them is random. Then few
policies are left, and the first untried one of the space is taken.
"""

STATES = {"failed": TrialState.FAIL, "pruned": TrialState.PRUNED, "complete": TrialState.COMPLETE}


@dataclass(frozen=True)
class Asked:
    """A running trial, with its number of starts."""

    number: int
    policy: Policy
    attempts: int


def _at_work(method: Callable[P, R]) -> Callable[P, R]:
    """Turn errors of a database while a search runs (it is full, or gone) into OSError, as for a file."""

    @functools.wraps(method)
    def call(*arguments: P.args, **named: P.kwargs) -> R:
        try:
            return method(*arguments, **named)
        except (SQLAlchemyError, optuna.exceptions.StorageInternalError) as error:
            backend = arguments[0].backend  # type: ignore[attr-defined]
            raise OSError(errno.EIO, cause_of(error), getattr(backend, "url", None)) from error

    return call


class TrialStorage:
    """The numbered trials of a study in an Optuna storage, `backend`. `initial`: the policies of the initial trials.

    Methods that a search calls raise OSError where the database cannot be read or written.
    """

    def __init__(
        self, storage: optuna.storages.BaseStorage, name: str, spec: StudySpec, space: SearchSpace, initial: Sequence[Policy] = ()
    ) -> None:
        self._spec, self._space, self.initial = spec, space, initial
        directions = [OBJECTIVES[objective].direction for objective in spec.objectives]
        self.backend = storage
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        self._stored = optuna.create_study(storage=storage, study_name=name, directions=directions, load_if_exists=True)
        if list(self._stored.directions) != [optuna.study.StudyDirection[direction.upper()] for direction in directions]:
            raise StudyError(f"study '{name}': the storage has another study of that name; give another --study or --storage")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            self._stored.set_metric_names([_with_unit(objective) for objective in spec.objectives])
        self._directions = directions
        self._read: list[optuna.trial.FrozenTrial] | None = None
        self._policies: dict[int, Policy] = {}

    @property
    @_at_work
    def count(self) -> int:
        """Trials asked for so far."""
        return len(self._trials())

    @property
    @_at_work
    def untried(self) -> int:
        """Number of policies of the space that no trial has."""
        return self._space.size() - len({self._policy(trial) for trial in self._trials()})

    def _trials(self) -> list[optuna.trial.FrozenTrial]:
        """All trials, read again only after this process, the only one that writes, has written."""
        if self._read is None:
            self._read = self._stored.get_trials(deepcopy=False)
        return self._read

    def _add(self, trial: optuna.trial.FrozenTrial) -> None:
        self._read = None
        self._stored.add_trial(trial)

    @_at_work
    def describe(self, attributes: Mapping[str, str]) -> None:
        """Store attributes of the study for readers of the storage."""
        for key, value in attributes.items():
            self._stored.set_user_attr(key, value)

    @_at_work
    def ask(self) -> Asked:
        """Suggest the next trial and store it as running."""
        number = self.count
        if number < len(self.initial):
            policy, how = self.initial[number], self._parameters(self.initial[number])
        else:
            policy, how = self._suggest(number)
        self._add(optuna.trial.create_trial(state=TrialState.RUNNING, user_attrs=self._readable(policy), **how))
        return Asked(number, policy, 0)

    def _suggest(self, number: int) -> tuple[Policy, dict[str, Any]]:
        """An untried policy from the sampler, and its form in Optuna. At least one policy must be untried.

        A bracket is asked for when the last one is compared at its first rung. So a sampler sees no results of its own bracket,
        and of the one before only the trials that stopped there, whenever it is asked.
        """
        trials = [trial if self._is_known(trial, number) else _not_ended(trial) for trial in self._trials()]
        taken = {self._policy(trial) for trial in self._trials()}
        for attempt in range(MOST_REPEATS):
            copy = optuna.create_study(directions=self._directions, sampler=self._sampler(number, attempt))
            copy.add_trials(trials)
            policy = self._space.suggest(copy.ask())
            if policy not in taken:
                asked = copy.get_trials(deepcopy=False)[number]
                return policy, {"params": asked.params, "distributions": asked.distributions, "system_attrs": asked.system_attrs}
        policy = next(policy for policy in self._space.enumerate() if policy not in taken)
        return policy, self._parameters(policy)

    def _is_known(self, trial: optuna.trial.FrozenTrial, number: int) -> bool:
        """Whether a trial has ended, as far as the suggestion of trial `number` is concerned."""
        together = bracket(number, len(self.initial), self._spec.rungs)
        before = bracket(together.start - 1, len(self.initial), self._spec.rungs)
        if trial.number in before and len(before) > 1:
            return trial.state == TrialState.PRUNED and trial.user_attrs["steps"] == self._spec.rungs[0]
        return trial.number not in together

    def _parameters(self, policy: Policy) -> dict[str, Any]:
        """A policy in the form that Optuna stores."""
        fixed = optuna.trial.FixedTrial(self._space.parameters(policy))
        self._space.suggest(fixed)
        return {"params": fixed.params, "distributions": fixed.distributions}

    def _sampler(self, number: int, attempt: int) -> optuna.samplers.BaseSampler:
        name = self._spec.sampler if attempt < MOST_REPEATS // 2 else "random"
        return make_sampler(name, self._spec.trial.seed, number, self._spec.budget, attempt)

    @_at_work
    def running(self) -> list[Asked]:
        """The trials that have not ended."""
        trials = [trial for trial in self._trials() if trial.state == TrialState.RUNNING]
        return [Asked(trial.number, self._policy(trial), trial.user_attrs.get(ATTEMPTS, 0)) for trial in trials]

    @_at_work
    def set_attempts(self, number: int, attempts: int) -> None:
        """Store the number of starts of a running trial."""
        self._running(number).set_user_attr(ATTEMPTS, attempts)

    @_at_work
    def tell(self, record: Record) -> None:
        """Store the end of a trial."""
        assert record.number is not None
        trial = self._running(record.number)
        for key, value in self._outcome(record).items():
            trial.set_user_attr(key, value)
        for key, value in self._violations(record).items():
            trial.set_constraint(key, value)
        values = self._values(record) if record.state == "complete" else None
        self._stored.tell(record.number, values, STATES[record.state])

    def load(self, records: Sequence[Record]) -> None:
        """Bring the storage to the state of the records of finished trials.

        Trials that it lacks are added from their records; trials that both lack, but later ones follow, are suggested anew.

        Raises:
            StudyError: The two contradict each other.
        """
        ended = {record.number: record for record in records if record.number is not None}
        stored = self._trials()
        for trial in stored:
            self._check(trial, ended.get(trial.number))
            if trial.number in ended and trial.state == TrialState.RUNNING:
                self.tell(ended[trial.number])
        for number in range(len(stored), 1 + max(ended, default=-1)):
            if number in ended:
                self._add(self._from_record(ended[number]))
            else:
                self.ask()

    def _check(self, trial: optuna.trial.FrozenTrial, record: Record | None) -> None:
        if record is None and trial.state.is_finished():
            raise StudyError(
                f"study '{self._stored.study_name}': its storage has trial {trial.number} as ended, trials.jsonl does not;"
                f" restore trials.jsonl, or {self._remove()} to run that trial again"
            )
        if record is not None and self._policy(trial) != Policy.from_dict(record.policy):
            raise StudyError(
                f"study '{self._stored.study_name}': trial {trial.number} has another policy in its storage than in trials.jsonl;"
                f" {self._remove()}: it is made again from trials.jsonl"
            )

    def _running(self, number: int) -> optuna.Trial:
        """A running trial, to be written to."""
        trial_id = self._trials()[number]._trial_id
        self._read = None
        return optuna.Trial(self._stored, trial_id)

    def _remove(self) -> str:
        """The advice that removes this study from the storage."""
        url = getattr(self.backend, "url", "")
        if is_own_file(url):
            return f"remove {DATABASE}"
        return f"type optuna delete-study --study-name {self._stored.study_name} --storage {url}"

    def _policy(self, trial: optuna.trial.FrozenTrial) -> Policy:
        if trial.number not in self._policies:
            self._policies[trial.number] = self._space.suggest(optuna.trial.FixedTrial(trial.params))
        return self._policies[trial.number]

    def _readable(self, policy: Policy) -> dict[str, str]:
        """A policy in words: bits of all stages, then each stage with quantizers and range estimators."""
        stages = {}
        for stage, quant in policy.stages:
            formats = [(role, quant.role(role)) for role in ROLES if not quant.role(role).is_float]
            words = [
                f"{role} {form.bits} {form.quantizer}+{form.clipping}"
                if form.bits <= self._space.facts.integer_bits
                else f"{role} {form.bits} (runs in float)"
                for role, form in formats
            ]
            stages[stage] = ", ".join(words) or "float"
        return {"policy": policy.label, **stages}

    def _from_record(self, record: Record) -> optuna.trial.FrozenTrial:
        policy = Policy.from_dict(record.policy)
        complete = record.state == "complete"
        return optuna.trial.create_trial(
            state=STATES[record.state],
            values=self._values(record) if complete else None,
            user_attrs={**self._readable(policy), **self._outcome(record)},
            constraints=self._violations(record),
            **self._parameters(policy),
        )

    def _violations(self, record: Record) -> dict[str, float]:
        """Violations of the constraints; records of earlier versions lack that of the quality guard."""
        if record.violations or record.state != "complete" or not guarded(self._spec):
            return record.violations
        return {"quality_guard": FIDELITY_FLOOR - record.values[FIDELITY]}

    def _outcome(self, record: Record) -> dict[str, str | float]:
        reason = {} if record.reason is None else {"reason": record.reason}
        structure = record.structure.in_words(self._space.facts.integer_bits)
        return {**record.values, **reason, "structure": structure, "steps": record.steps, "seconds": record.seconds}

    def _values(self, record: Record) -> list[float]:
        return [record.values[name] for name in self._spec.objectives]


def _not_ended(trial: optuna.trial.FrozenTrial) -> optuna.trial.FrozenTrial:
    """A trial as it was before it ended."""
    return optuna.trial.create_trial(
        state=TrialState.RUNNING, params=trial.params, distributions=trial.distributions, system_attrs=trial.system_attrs
    )


def guarded(spec: StudySpec) -> bool:
    """Whether the quality guard applies: a no-reference metric is among the objectives."""
    return any(OBJECTIVES[name].perceptual for name in spec.objectives)


def _with_unit(objective: str) -> str:
    unit = OBJECTIVES[objective].unit
    return f"{objective} ({unit})" if unit else objective


def make_sampler(name: str, seed: int, number: int, budget: int, attempt: int = 0) -> optuna.samplers.BaseSampler:
    """A sampler whose randomness depends on the study's seed, the trial's number and the attempt alone. `auto` is TPE.

    The first fifth of the budget is random, at most ten trials.
    """
    own = int.from_bytes(hashlib.sha256(f"{seed}/{number}{f'/{attempt}' if attempt else ''}".encode()).digest()[:4], "big")
    startup = max(1, min(10, budget // 5))
    if name in ("auto", "tpe"):
        return optuna.samplers.TPESampler(seed=own, n_startup_trials=startup)
    if name == "gp":
        return optuna.samplers.GPSampler(seed=own, n_startup_trials=startup)
    if name == "nsga2":
        return optuna.samplers.NSGAIISampler(seed=own, population_size=max(4, startup))
    if name == "nsga3":
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            return optuna.samplers.NSGAIIISampler(seed=own, population_size=max(4, startup))
    if name == "random":
        return optuna.samplers.RandomSampler(seed=own)
    raise InputError(f"--sampler '{name}': expected one of auto, tpe, gp, nsga2, nsga3, random")
