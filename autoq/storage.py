"""Optuna's side of a study: what was asked for, what runs, how it ended, and the sampler's next suggestion.

The sampler sees a copy in memory and is made anew for every suggestion, seeded from (study seed, trial number). A
suggestion depends on nothing else than the trials before it, and reaches the storage in one piece: whatever
interrupts a search, asking again gives the same answer.
"""

from __future__ import annotations

import contextlib
import hashlib
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import optuna
from optuna.trial import TrialState
from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError, NoSuchModuleError, SQLAlchemyError

from autoq.errors import InputError, StudyError
from autoq.objectives import OBJECTIVES, PSNR_TO_FLOAT
from autoq.policy import ROLES, Policy
from autoq.space import SearchSpace
from autoq.spec import Record, StudySpec

ATTEMPTS = "attempts"
SQLITE_PATIENCE = 60
"""Seconds to wait for a reader, such as a dashboard, to let go of the database file."""

QUALITY_GUARD_DB = 30.0
"""With a no-reference objective, a policy whose output is further than this from the float network's is infeasible."""

STATES = {"failed": TrialState.FAIL, "pruned": TrialState.PRUNED, "complete": TrialState.COMPLETE}


@dataclass(frozen=True)
class Asked:
    """A trial on its way. attempts: how often it was begun."""

    number: int
    policy: Policy
    attempts: int


class TrialStorage:
    """Numbered trials in an Optuna storage, and their copy in memory that the sampler looks at."""

    def __init__(self, storage: optuna.storages.BaseStorage, name: str, spec: StudySpec, space: SearchSpace) -> None:
        self._spec, self._space = spec, space
        directions = [OBJECTIVES[objective].direction for objective in spec.objectives]
        self.backend = storage
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        self._stored = optuna.create_study(storage=storage, study_name=name, directions=directions, load_if_exists=True)
        if list(self._stored.directions) != [optuna.study.StudyDirection[direction.upper()] for direction in directions]:
            raise StudyError(f"study '{name}': the storage has another study of that name; give another --study or --storage")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            self._stored.set_metric_names([_with_unit(objective) for objective in spec.objectives])
        self._memory = optuna.create_study(storage=optuna.storages.InMemoryStorage(), study_name=name, directions=directions)

    @property
    def count(self) -> int:
        """Trials asked for so far."""
        return len(self._memory.get_trials(deepcopy=False))

    def describe(self, attributes: Mapping[str, str]) -> None:
        """What a reader of the storage should know of the study."""
        for key, value in attributes.items():
            self._stored.set_user_attr(key, value)

    def ask(self) -> Asked:
        """The next trial: number, policy; stored as running."""
        number = self.count
        self._memory.sampler = make_sampler(self._spec.sampler, self._spec.trial.seed, number, self._spec.budget)
        trial = self._memory.ask()
        policy = self._space.suggest(trial)
        asked = self._memory.get_trials(deepcopy=False)[number]
        self._stored.add_trial(
            optuna.trial.create_trial(
                state=TrialState.RUNNING,
                params=asked.params,
                distributions=asked.distributions,
                system_attrs=asked.system_attrs,
                user_attrs=self._readable(policy),
            )
        )
        return Asked(number, policy, 1)

    def running(self) -> list[Asked]:
        """Trials that were begun and have not ended."""
        trials = [trial for trial in self._stored.get_trials(deepcopy=False) if trial.state == TrialState.RUNNING]
        return [Asked(trial.number, self._policy(trial), trial.user_attrs.get(ATTEMPTS, 1)) for trial in trials]

    def set_attempts(self, number: int, attempts: int) -> None:
        """Note how often a running trial was begun."""
        _trial(self._stored, number).set_user_attr(ATTEMPTS, attempts)

    def tell(self, record: Record) -> None:
        """A trial ended."""
        for study in (self._memory, self._stored):
            self._finish(study, record)

    def load(self, records: Sequence[Record]) -> None:
        """Bring storage and memory to where the finished trials' records say the study is.

        Trials the storage lacks are added from their record; trials that neither has, but later ones follow, are
        suggested anew. Raises StudyError when the two contradict each other.
        """
        ended = {record.number: record for record in records if record.number is not None}
        stored = self._stored.get_trials(deepcopy=False)
        for number in range(max(len(stored), 1 + max(ended, default=-1))):
            record = ended.get(number)
            if number >= len(stored) and record is None:
                self.ask()
                continue
            if number >= len(stored):
                assert record is not None
                self._stored.add_trial(self._from_record(record))
            else:
                self._check(stored[number], record)
            if record is not None and self._state(number) == TrialState.RUNNING:
                self._finish(self._stored, record)
            self._memory.add_trial(self._stored.get_trials(deepcopy=False)[number])

    def _state(self, number: int) -> TrialState:
        return self._stored.get_trials(deepcopy=False)[number].state

    def _check(self, trial: optuna.trial.FrozenTrial, record: Record | None) -> None:
        if record is None and trial.state.is_finished():
            raise StudyError(
                f"study '{self._stored.study_name}': its storage has trial {trial.number} as ended, trials.jsonl does not;"
                " restore trials.jsonl, or remove study.db to run that trial again"
            )
        if record is not None and self._policy(trial) != Policy.from_dict(record.policy):
            raise StudyError(
                f"study '{self._stored.study_name}': trial {trial.number} has another policy in its storage than in trials.jsonl;"
                " remove study.db: it is made again from trials.jsonl"
            )

    def _policy(self, trial: optuna.trial.FrozenTrial) -> Policy:
        return self._space.suggest(optuna.trial.FixedTrial(trial.params))

    def _readable(self, policy: Policy) -> dict[str, str]:
        """A policy as a person reads it: bits of all stages, then each stage with quantizers and clipping rules."""
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
        fixed = optuna.trial.FixedTrial(self._space.parameters(policy))
        self._space.suggest(fixed)
        complete = record.state == "complete"
        return optuna.trial.create_trial(
            state=STATES[record.state],
            values=self._values(record) if complete else None,
            params=fixed.params,
            distributions=fixed.distributions,
            user_attrs={**self._readable(policy), **_outcome(record)},
            constraints=self._constraints(record),
        )

    def _finish(self, study: optuna.Study, record: Record) -> None:
        assert record.number is not None
        trial = _trial(study, record.number)
        for key, value in _outcome(record).items():
            trial.set_user_attr(key, value)
        for key, value in self._constraints(record).items():
            trial.set_constraint(key, value)
        if record.state == "complete":
            study.tell(record.number, self._values(record))
        else:
            study.tell(record.number, state=STATES[record.state])

    def _values(self, record: Record) -> list[float]:
        return [record.values[name] for name in self._spec.objectives]

    def _constraints(self, record: Record) -> dict[str, float]:
        if record.state != "complete" or not guarded(self._spec):
            return {}
        return {"quality_guard": QUALITY_GUARD_DB - record.values[PSNR_TO_FLOAT]}


def _trial(study: optuna.Study, number: int) -> optuna.Trial:
    """A handle on a trial that runs."""
    return optuna.Trial(study, study.get_trials(deepcopy=False)[number]._trial_id)


def guarded(spec: StudySpec) -> bool:
    """Whether the quality guard applies: a no-reference metric is among the objectives."""
    return any(OBJECTIVES[name].perceptual for name in spec.objectives)


def _with_unit(objective: str) -> str:
    unit = OBJECTIVES[objective].unit
    return f"{objective} ({unit})" if unit else objective


def _outcome(record: Record) -> dict[str, str | float]:
    reason = {} if record.reason is None else {"reason": record.reason}
    return {**record.values, **reason, "structure": record.structure, "steps": record.steps, "seconds": record.seconds}


def make_sampler(name: str, seed: int, number: int, budget: int) -> optuna.samplers.BaseSampler:
    """A sampler whose randomness depends on the study's seed and the trial's number alone. `auto` is TPE.

    The first fifth of the budget, at most ten trials, is drawn at random.
    """
    own = int.from_bytes(hashlib.sha256(f"{seed}/{number}".encode()).digest()[:4], "big")
    startup = max(1, min(10, budget // 5))
    if name in ("auto", "tpe"):
        return optuna.samplers.TPESampler(seed=own, n_startup_trials=startup)
    if name == "gp":
        return optuna.samplers.GPSampler(seed=own, n_startup_trials=startup)
    if name == "nsga2":
        return optuna.samplers.NSGAIISampler(seed=own, population_size=max(4, startup))
    if name == "random":
        return optuna.samplers.RandomSampler(seed=own)
    raise InputError(f"sampler '{name}': expected auto, tpe, gp, nsga2 or random")


# ------------------------------------------------------------ where trials are stored


def check_url(url: str) -> None:
    """Raise StudyError if text is no database URL, or one with a password in it: it would be written to files."""
    try:
        parsed = make_url(url)
    except ArgumentError as error:
        raise StudyError(
            f"storage '{url}': not a database URL; type --storage sqlite:////absolute/path.db or postgresql://user@host/database"
        ) from error
    if parsed.password is not None:
        shown = parsed.render_as_string(hide_password=True)
        raise StudyError(f"storage '{shown}': has a password in it, which a study would write down; set PGPASSWORD instead")


def file_url(path: Path) -> str:
    """The URL of a SQLite file."""
    return f"sqlite:///{path.resolve()}"


@contextlib.contextmanager
def _explained(url: str) -> Iterator[None]:
    try:
        yield
    except (ModuleNotFoundError, NoSuchModuleError) as error:
        driver = getattr(error, "name", None) or make_url(url).drivername
        raise StudyError(f"storage '{url}': needs the Python package for '{driver}'; type pip install {driver}") from error
    except (SQLAlchemyError, optuna.exceptions.StorageInternalError) as error:
        cause = str(getattr(error, "orig", None) or error.__cause__ or error).splitlines()[0]
        raise StudyError(
            f"storage '{url}': {cause}; give a reachable --storage, or remove a broken file: finished trials are in trials.jsonl"
        ) from error


def in_memory() -> optuna.storages.BaseStorage:
    """A storage that goes with the process."""
    return optuna.storages.InMemoryStorage()


def connect(url: str) -> optuna.storages.BaseStorage:
    """Open a database. Raises StudyError with its reason."""
    patience = {"connect_args": {"timeout": SQLITE_PATIENCE}} if url.startswith("sqlite") else None
    with _explained(url):
        return optuna.storages.RDBStorage(url, engine_kwargs=patience)
