"""A study's folder: its definition, its Optuna storage, its finished trials. The only reader and writer of all three.

studies/<name>/study.yaml      definition and environment
               trials.jsonl    one finished trial or baseline a line, as it ends
               latency.json    the frozen latency table
               study.db        Optuna's storage (SQLite)
               graph.onnx      the float network with its sites marked
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import warnings
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import optuna
import yaml
from pydantic import ValidationError

from autoq import pareto
from autoq.errors import InputError, StudyError
from autoq.models import model_info
from autoq.objectives import OBJECTIVES, PSNR_TO_FLOAT, reference_value
from autoq.policy import Policy
from autoq.quantizers import CLIPPING_NAMES, QUANTIZERS
from autoq.space import SearchSpace, SpaceFacts, parse_space
from autoq.spec import Record, StudySpec, TrialResult
from autoq.targets import target_info

STUDIES = Path("studies")

QUALITY_GUARD_DB = 30.0
"""With a no-reference objective, a policy whose output is further than this from the float network's is infeasible."""

FLOAT_NAME = "float"


def study_folder(name: str) -> Path:
    """`studies/<name>` for a plain name, or an absolute path as it is. Raises StudyError for anything else."""
    path = Path(name)
    if path.is_absolute():
        return path
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", name):
        raise StudyError(f"study '{name}': expected a name of letters, digits, '.', '_' and '-', or an absolute path")
    return STUDIES / name


def space_facts(model: str, target: str) -> SpaceFacts:
    """What a search space for a model on a target is checked against."""
    return SpaceFacts(
        model=model,
        stages=model_info(model).stages,
        quantizers={name: info.bits for name, info in QUANTIZERS.items()},
        clippings=CLIPPING_NAMES,
        integer_bits=target_info(target).integer_bits,
        target=target,
    )


class Study:
    """An open study. `spec` is its definition, `environment` where and how it was started, `space` its search space."""

    def __init__(self, folder: Path, spec: StudySpec, environment: Mapping[str, Any]) -> None:
        self.folder = folder
        self.spec = spec
        self.environment = dict(environment)
        self.space: SearchSpace = parse_space(spec.space, space_facts(spec.trial.model, spec.trial.target), str(self._yaml))
        self._asked: dict[int, tuple[optuna.Trial, Policy]] = {}
        self._storage: optuna.Study | None = None

    @classmethod
    def create(cls, folder: Path, spec: StudySpec, environment: Mapping[str, Any]) -> Study:
        """Make the folder and its storage. Raises StudyError if there is a study already."""
        if any((folder / name).exists() for name in ("study.yaml", "study.db", "trials.jsonl")):
            raise StudyError(f"study '{folder}' exists already; give another --study NAME, or remove the folder")
        study = cls(folder, spec, environment)
        try:
            folder.mkdir(parents=True, exist_ok=True)
            study._yaml.write_text(
                yaml.safe_dump({"definition": spec.model_dump(mode="json"), "environment": study.environment}, sort_keys=False)
            )
        except OSError as error:
            raise StudyError(f"study '{folder}': cannot be written ({error.strerror}); give another --study") from error
        study._open_storage()
        return study

    @classmethod
    def open(cls, folder: Path) -> Study:
        """Read a study from its text files alone (no storage). Raises StudyError if it is none."""
        try:
            data = yaml.safe_load((folder / "study.yaml").read_text())
            return cls(folder, StudySpec.model_validate(data["definition"]), data["environment"])
        except OSError as error:
            raise StudyError(f"study '{folder}': no study.yaml there; type the name of a folder in {STUDIES}/") from error
        except (ValidationError, yaml.YAMLError, KeyError, TypeError) as error:
            raise StudyError(f"study '{folder}': study.yaml is not a study definition ({str(error).splitlines()[0]})") from error

    @property
    def name(self) -> str:
        return self.folder.name

    @property
    def _yaml(self) -> Path:
        return self.folder / "study.yaml"

    @property
    def latency_path(self) -> Path:
        return self.folder / "latency.json"

    @property
    def graph_path(self) -> Path:
        return self.folder / "graph.onnx"

    @property
    def trials_path(self) -> Path:
        return self.folder / "trials.jsonl"

    # -------------------------------------------------------- ask and tell

    def _open_storage(self) -> None:
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        directions = [OBJECTIVES[name].direction for name in self.spec.objectives]
        self._storage = optuna.create_study(
            storage=f"sqlite:///{(self.folder / 'study.db').resolve()}", study_name=self.name, directions=directions
        )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            self._storage.set_metric_names(list(self.spec.objectives))

    def ask(self) -> tuple[int, Policy]:
        """The next trial's number and policy. The sampler is seeded from (study seed, trial number)."""
        assert self._storage is not None
        number = len(self._storage.get_trials(deepcopy=False))
        self._storage.sampler = make_sampler(self.spec.sampler, self.spec.trial.seed, number, self.spec.budget)
        trial = self._storage.ask()
        policy = self.space.suggest(trial)
        trial.set_user_attr("policy", policy.label)
        self._asked[trial.number] = (trial, policy)
        return trial.number, policy

    def tell(self, number: int, result: TrialResult, structure: str) -> Record:
        """Store a finished trial: values to Optuna, a line to trials.jsonl."""
        assert self._storage is not None
        trial, policy = self._asked.pop(number)
        feasible = self.feasible(result)
        if result.state == "complete":
            if self._guarded:
                trial.set_constraint("quality_guard", QUALITY_GUARD_DB - result.values[PSNR_TO_FLOAT])
            for name, value in result.values.items():
                trial.set_user_attr(name, value)
            self._storage.tell(trial, [result.values[name] for name in self.spec.objectives])
        else:
            trial.set_user_attr("reason", result.reason)
            states = {"failed": optuna.trial.TrialState.FAIL, "pruned": optuna.trial.TrialState.PRUNED}
            self._storage.tell(trial, state=states[result.state])
        return self._append(_record(result, policy, structure, number=number, source="trial", feasible=feasible))

    def add_baseline(self, name: str, policy: Policy, result: TrialResult, structure: str) -> Record:
        """Store a finished baseline: a line in trials.jsonl. The sampler does not see it."""
        feasible = self.feasible(result)
        return self._append(_record(result, policy, structure, number=None, name=name, source="baseline", feasible=feasible))

    @property
    def _guarded(self) -> bool:
        return any(OBJECTIVES[name].perceptual for name in self.spec.objectives)

    def feasible(self, result: TrialResult) -> bool:
        """Whether a result may stand on the front: complete, and within the quality guard where that applies."""
        if result.state != "complete":
            return False
        return not self._guarded or result.values[PSNR_TO_FLOAT] >= QUALITY_GUARD_DB

    def _append(self, record: Record) -> Record:
        with self.trials_path.open("a") as lines:
            lines.write(record.model_dump_json() + "\n")
            lines.flush()
            os.fsync(lines.fileno())
        return record

    def records(self) -> list[Record]:
        """All finished trials and baselines, in the order they ended. Raises StudyError for a malformed line."""
        if not self.trials_path.is_file():
            return []
        records = []
        for number, line in enumerate(self.trials_path.read_text().splitlines(), 1):
            try:
                records.append(Record.model_validate_json(line))
            except ValidationError as error:
                raise StudyError(f"{self.trials_path}: line {number} is not a trial record; remove the line") from error
        return records


def _record(result: TrialResult, policy: Policy, structure: str, **where: Any) -> Record:
    return Record(policy=policy.to_dict(), label=policy.label, structure=structure, **where, **result.model_dump())


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


# ------------------------------------------------------------ what was found


def front(records: Sequence[Record], objectives: Sequence[str]) -> list[Record]:
    """Non-dominated feasible trials and baselines, by the first objective."""
    candidates = [record for record in records if record.state == "complete" and record.feasible]
    values = [[record.values[name] for name in objectives] for record in candidates]
    return [candidates[index] for index in pareto.front(values, [OBJECTIVES[name].direction for name in objectives])]


def reference_point(records: Iterable[Record], objectives: Sequence[str]) -> list[float] | None:
    """The hypervolume's reference: a little worse than the float baseline. None while that is not measured."""
    reference = float_baseline(records)
    return None if reference is None else [reference_value(name, reference.values[name]) for name in objectives]


def float_baseline(records: Iterable[Record]) -> Record | None:
    """The float network's record, where it was measured."""
    return next((record for record in records if record.name == FLOAT_NAME and record.state == "complete"), None)


def baselines_alone(records: Sequence[Record], objectives: Sequence[str]) -> float | None:
    """Hypervolume without any trial: what the search has to beat."""
    return hypervolume([record for record in records if record.source == "baseline"], objectives)


def hypervolume(records: Sequence[Record], objectives: Sequence[str]) -> float | None:
    """Share-like volume of the front of `records`, against the float baseline among them."""
    reference = reference_point(records, objectives)
    if reference is None:
        return None
    values = [[record.values[name] for name in objectives] for record in front(records, objectives)]
    return pareto.hypervolume(values, [OBJECTIVES[name].direction for name in objectives], reference)


def document(study: Study, seconds: float) -> dict[str, Any]:
    """The JSON document of a search: definition, trials, front, baselines, hypervolume."""
    objectives = study.spec.objectives
    records = study.records()
    trials = sorted((record for record in records if record.source == "trial"), key=lambda record: record.number or 0)
    return {
        "study": study.name,
        "seed": study.spec.trial.seed,
        "target": study.spec.trial.target,
        "seconds": round(seconds, 1),
        "objectives": [
            {"name": name, "direction": OBJECTIVES[name].direction, "unit": OBJECTIVES[name].unit} for name in objectives
        ],
        "trials": [_entry(record) for record in trials],
        "front": [_entry(record) for record in front(records, objectives)],
        "baselines": {record.name: record.values for record in records if record.source == "baseline"},
        "seeds_alone": None,
        "hypervolume": hypervolume(records, objectives),
        "reference_point": reference_point(records, objectives),
    }


def _entry(record: Record) -> dict[str, Any]:
    entry = {name: getattr(record, name) for name in ("number", "state", "source", "policy", "values", "steps", "seconds")}
    for name in ("name", "reason"):
        if getattr(record, name) is not None:
            entry[name] = getattr(record, name)
    return entry


def to_json(data: Any) -> str:
    """Strict JSON: no NaN, no infinity."""
    return json.dumps(data, indent=2, allow_nan=False)
