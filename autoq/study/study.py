"""A study: its definition, its finished trials, its Optuna storage. With folder.py the only reader and writer of its folder.

Every file is written completely or not at all, and a line of trials.jsonl is on the disk before the storage is updated. So
a search continues from these files, whenever it was killed.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import re
import shlex
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml
from pydantic import ValidationError

from autoq.config.constraints import parse_all
from autoq.config.objectives import FIDELITY, FIDELITY_FLOOR, check_objectives
from autoq.config.policy import Policy, Role
from autoq.config.space import SearchSpace, SpaceFacts
from autoq.config.space_file import parse_space, stored_stages
from autoq.config.spec import Record, Replication, Sensitivity, StudyFile, StudySpec, TrialResult
from autoq.config.structure import Structure
from autoq.errors import InputError, StudyError, suggest
from autoq.networks import is_custom, model_info
from autoq.quantizers import CLIPPING_NAMES, QUANTIZERS
from autoq.study.database import connect, explained, file_url, in_memory
from autoq.study.folder import DATABASE, StudyFolder
from autoq.study.replication import ReplicatedPoint, replicated_points, replicated_qualities
from autoq.study.results import Results, finetuned_name, in_words, table
from autoq.study.storage import Asked, TrialStorage, guarded
from autoq.system.files import append_line, atomic_write_text, cut_torn_line, read_lines
from autoq.targets import target_info

if TYPE_CHECKING:
    import pandas as pd

STUDIES = Path("studies")


def study_folder(name: str) -> Path:
    """`studies/<name>` for a plain name or this very path, an absolute path as it is. Raises StudyError for anything else."""
    path = Path(name)
    if path.is_absolute():
        return path
    if path.parent == STUDIES:  # as printed, or completed by a shell
        name = path.name
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}", name):
        raise StudyError(f"study '{name}': expected a name of up to 100 letters, digits, '.', '_' and '-', or an absolute path")
    return STUDIES / name


def new_folder(name: str) -> Path:
    """Make `studies/<name>`, or the first of `<name>-2`, `<name>-3`, ... that does not exist."""
    for number in itertools.count(1):
        folder = study_folder(name if number == 1 else f"{name}-{number}")
        with contextlib.suppress(FileExistsError):
            folder.mkdir(parents=True)
            return folder
    raise AssertionError


def check_unused(folder: Path) -> None:
    """Raise StudyError if a folder holds a study or other files."""
    if any((folder / name).exists() for name in ("study.yaml", DATABASE, "trials.jsonl")):
        raise StudyError(f"study '{folder}' exists already; add --resume to continue it, or give another --study NAME")
    if folder.is_dir() and any(folder.iterdir()):
        raise StudyError(f"study '{folder}': the folder holds other files; give another --study NAME, or an empty folder")


def resume_command(folder: Path) -> str:
    """The command that continues a study."""
    return f"autoq search --resume --study {shlex.quote(folder.name if folder.parent == STUDIES else str(folder))}"


def space_facts(model: str, target: str, stages: Mapping[str, tuple[Role, ...]] | None = None) -> SpaceFacts:
    """The facts that a search space for a model on a target is checked against; `stages` overrides those of the table."""
    return SpaceFacts(
        model=model,
        stages=stages or model_info(model).stages,
        quantizers=QUANTIZERS,
        clippings=CLIPPING_NAMES,
        formats=target_info(target).formats,
        integer_bits=target_info(target).integer_bits,
        target=target,
        output=target_info(target).output,
    )


def study_facts(spec: StudySpec) -> SpaceFacts:
    """`space_facts` of a study; the stages of a user's own network are those of its stored space."""
    own = spec.trial.layers or is_custom(spec.trial.model)
    return space_facts(spec.trial.model, spec.trial.target, stored_stages(spec.space) if own else None)


class Study(StudyFolder):
    """A study. `open` reads it from its text files; `create` and `resume` also hold its lock and storage, until `close`.

    Attributes:
        spec: Its definition.
        environment: Command, machine and versions that it was started with.
        space: Its search space.
        constraints: Its constraints.
    """

    def __init__(self, folder: Path, spec: StudySpec, environment: Mapping[str, Any]) -> None:
        super().__init__(folder)
        self.spec = spec
        check_objectives(spec.objectives)
        self.constraints = parse_all(spec.constraints)
        self.environment = dict(environment)
        self.space: SearchSpace = parse_space(spec.space, study_facts(spec), str(self.definition_path))
        self._storage: TrialStorage | None = None
        self._open = contextlib.ExitStack()

    @classmethod
    def create(cls, folder: Path, spec: StudySpec, environment: Mapping[str, Any], latencies: str | None = None) -> Study:
        """Make the folder and its storage.

        Args:
            folder: The folder, empty or new.
            spec: The definition.
            environment: Command, machine and versions.
            latencies: The text of a latency.json to start with.

        Raises:
            StudyError: There is a study already, or the folder holds other files.
        """
        study = cls(folder, spec, environment)
        document = {"definition": spec.model_dump(mode="json"), "environment": study.environment}
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with _lock(folder, folder):
                check_unused(folder)
                if latencies is not None:
                    atomic_write_text(study.latency_path, latencies)
                atomic_write_text(
                    study.definition_path, yaml.safe_dump(document, sort_keys=False, default_flow_style=None, width=120)
                )
        except OSError as error:
            raise StudyError(f"study '{folder}': cannot be written ({error.strerror}); give another --study") from error
        study.begin()
        return study

    @classmethod
    def resume(cls, folder: Path) -> Study:
        """Continue a study. Raises StudyError if there is none, if it is running, or if its files contradict each other."""
        study = cls.open(folder)
        study.begin()
        return study

    @classmethod
    def open(cls, folder: Path) -> Study:
        """Read a study from its text files alone (no storage). Raises StudyError if there is none."""
        try:
            file = StudyFile.model_validate(yaml.safe_load((folder / "study.yaml").read_text()))
            return cls(folder, file.definition, file.environment.model_dump())
        except OSError as error:
            raise StudyError(f"study '{folder}': there is no such study{_known_studies(folder)}") from error
        except ValidationError as error:
            problem = f"{'.'.join(map(str, error.errors()[0]['loc'])) or 'file'}: {error.errors()[0]['msg']}"
        except (yaml.YAMLError, UnicodeDecodeError, InputError) as error:
            problem = str(error).splitlines()[0]
        raise StudyError(f"study '{folder}': study.yaml is not a study definition ({problem}); restore it, or give another study")

    @property
    def storage_url(self) -> str:
        return self.spec.storage or file_url(self.database_path)

    # -------------------------------------------------------- while a search runs

    def begin(self) -> None:
        """Lock an opened study and connect its storage, to continue it. Raises StudyError if it runs or its parts disagree."""
        try:
            self._open.enter_context(_lock(self.definition_path, self.folder))
            self.cut_torn_lines()
            with explained(self.storage_url):
                self._storage = TrialStorage(connect(self.storage_url), self.name, self.spec, self.space, self._initial())
                self._fill(self._storage)
        except BaseException:
            self.close()
            raise

    def locked(self) -> contextlib.AbstractContextManager[None]:
        """Context in which no other process searches or finetunes. Raises StudyError if one does."""
        return _lock(self.definition_path, self.folder)

    def close(self) -> None:
        """Release the lock: another process may resume the study."""
        self._open.close()

    @property
    def storage(self) -> TrialStorage:
        """The Optuna storage. Raises StudyError for a study that was opened for reading."""
        if self._storage is None:
            raise StudyError(f"study '{self.folder}' is open for reading only; use Study.resume to continue it")
        return self._storage

    def ask(self) -> Asked:
        """The next trial. The sampler is seeded from (study seed, trial number)."""
        return self.storage.ask()

    def tell(self, number: int, policy: Policy, result: TrialResult, structure: Structure) -> Record:
        """Store a finished trial: a line in trials.jsonl, then values in Optuna."""
        record = self._record(result, policy, structure, number=number, source="trial")
        self._check(record)
        append_line(self.trials_path, record)
        self.storage.tell(record)
        return record

    def add_baseline(self, name: str, policy: Policy, result: TrialResult, structure: Structure) -> Record:
        """Store a finished baseline: a line in trials.jsonl. The sampler does not see it."""
        record = self._record(result, policy, structure, number=None, name=name, source="baseline")
        append_line(self.trials_path, record)
        self.storage.describe({f"baseline {name}": in_words(record, self.spec.objectives)})
        return record

    def add_finetuned(self, point: Record, result: TrialResult) -> Record:
        """Store a finetuned point: a line in finetuned.jsonl. The search does not see it."""
        name = finetuned_name(point)
        record = self._record(result, Policy.from_dict(point.policy), point.structure, number=None, name=name, source="finetuned")
        cut_torn_line(self.finetuned_path, Record)
        append_line(self.finetuned_path, record)
        return record

    def _record(self, result: TrialResult, policy: Policy, structure: Structure, **where: Any) -> Record:
        violations = self.violations(result)
        feasible = result.state == "complete" and all(beyond <= 0 for beyond in violations.values())
        return Record(
            policy=policy.to_dict(),
            label=policy.label,
            structure=structure,
            feasible=feasible,
            violations=violations,
            **where,
            **result.model_dump(),
        )

    @property
    def warm_start(self) -> list[Policy]:
        """Policies of an earlier study, the first of the initial trials."""
        return [Policy.from_dict(policy) for policy in self.spec.warm_start]

    def violations(self, result: TrialResult) -> dict[str, float]:
        """How far a complete result is beyond each constraint. Before the float network is known, no quality is lost."""
        if result.state != "complete":
            return {}
        known = self.float_values or result.values
        found = {each.text: each.violation(result.values, known) for each in self.constraints}
        if guarded(self.spec):
            found["quality_guard"] = FIDELITY_FLOOR - result.values[FIDELITY]
        return found

    @property
    def float_values(self) -> dict[str, float]:
        """Values of the float network; empty before it is measured."""
        float_record = self.results().float_record
        return {} if float_record is None else float_record.values

    def affordable(self, values: Mapping[str, float]) -> bool:
        """Whether values satisfy the constraints that training cannot change."""
        return all(each.violation(values, values) <= 0 for each in self.constraints if each.exact)

    def set_initial_trials(self, sensitivity: Sensitivity) -> None:
        """Store the stages' sensitivity and with it the initial trials."""
        self.set_sensitivity(sensitivity)
        self.storage.initial = self._initial()

    def _initial(self) -> list[Policy]:
        found = self.sensitivity()
        return [] if found is None else [Policy.from_dict(seed) for seed in found.initial_trials]

    # -------------------------------------------------------- results

    def records(self) -> list[Record]:
        """All finished trials and baselines, in the order they ended. Raises StudyError for a malformed line.

        An incomplete last line is still being written and is left out.
        """
        return read_lines(self.trials_path, Record, self._check)

    def results(self) -> Results:
        """Finished trials and baselines, with their front and hypervolume: what the search sees."""
        return Results(self.records(), self.spec.objectives)

    def points(self) -> Results:
        """The results, and the finetuned points."""
        return Results([*self.records(), *self.finetuned()], self.spec.objectives)

    def finetuned(self) -> list[Record]:
        """The finetuned points, the latest of each. Raises StudyError for a malformed line."""
        return list({record.name: record for record in read_lines(self.finetuned_path, Record, self._check)}.values())

    def replications(self) -> list[Replication]:
        """The front trained again with other seeds. Raises StudyError for a malformed line."""
        needed = replicated_qualities(self.spec.objectives)

        def check(found: Replication) -> None:
            if found.result.state == "complete" and not {*needed} <= found.result.values.keys() & found.result.held_out.keys():
                raise ValueError("values are missing")

        return read_lines(self.replications_path, Replication, check)

    def _check(self, record: Record) -> None:
        """Raise ValueError or PolicyError for a record that this study cannot have written."""
        policy = Policy.from_dict(record.policy)
        if record.source == "trial":
            self.space.parameters(policy)
            if record.number is None or not 0 <= record.number < self.spec.budget:
                raise ValueError(f"number {record.number}: expected 0 to {self.spec.budget - 1}")
        needed = {*self.spec.objectives, *([FIDELITY] if guarded(self.spec) else [])}
        if record.state == "complete" and not needed <= record.values.keys():
            raise ValueError("values are missing")

    @property
    def replicated_points(self) -> list[ReplicatedPoint]:
        """The points of the front after replication: on held-out images, trained and measured again."""
        return replicated_points(self.points(), self.replications(), self.remeasured(), self.constraints)

    @property
    def front(self) -> pd.DataFrame:
        """The non-dominated points, one per row, by the first objective.

        Columns: point (`trial 7`, `8/8/8`, `trial 7, finetuned`), state, one for every value measured (bytes, ms, dB), bits,
        steps, seconds, reason, policy.
        """
        return table(self.points().front)

    @property
    def trials(self) -> pd.DataFrame:
        """Every finished trial and baseline, in the order they ended, with the columns of `front`."""
        return table(self.records())

    @property
    def hypervolume(self) -> float | None:
        """Hypervolume of the front, with a reference a little worse than the float network. None before that is measured."""
        return self.results().hypervolume

    def to_storage(self) -> TrialStorage:
        """The finished trials as an Optuna storage in memory, for a study without its database."""
        storage = TrialStorage(in_memory(), self.name, self.spec, self.space, self._initial())
        self._fill(storage)
        return storage

    def _fill(self, storage: TrialStorage) -> None:
        """Bring a storage to the state of the records."""
        records = self.records()
        storage.load(records)
        baselines = [record for record in records if record.name is not None]
        storage.describe({f"baseline {record.name}": in_words(record, self.spec.objectives) for record in baselines})


@contextlib.contextmanager
def _lock(path: Path, study: Path) -> Iterator[None]:
    """Lock a file or folder for this process; the kernel releases it when the process ends, however it ends."""
    import fcntl

    descriptor = os.open(path, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    except BlockingIOError as error:
        raise StudyError(
            f"study '{study}' is running in another process; wait for it, or watch it with `autoq dashboard {study.name}`"
        ) from error
    finally:
        os.close(descriptor)


def _known_studies(folder: Path) -> str:
    known = sorted(path.parent.name for path in STUDIES.glob("*/study.yaml"))
    if not known:
        return (
            f", and none in {STUDIES}/ here; go to the folder where you searched, or type `autoq search --model srgan` to start one"
        )
    return f"{suggest(folder.name, known)}; type one of {', '.join(known)}"
