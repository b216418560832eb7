"""The files in a study's folder: their paths, and reading and writing of all but the definition and the trials.

studies/<name>/study.yaml      definition and environment; locked while a search runs
               trials.jsonl    finished trials and baselines, one a line, as they end: the study's results
               rungs.jsonl     results of trials at rungs below full training, one a line
               latency.json    the frozen latency table
               sensitivity.json  the stages quantized one at a time, and the initial trials that follow
               replications.jsonl  the front trained again with other seeds, one training a line
               latency_again.json  the front's latencies measured once more, alone
               stages.json     analyses of `autoq sensitivity` about the study
               states/         trainings that wait at a rung
               finetuned.jsonl  finetuned points, one a line; a later line of a point replaces an earlier one
               finetuned/      their weights, and the states of finetunings that have not ended
               study.db        Optuna's storage (SQLite), unless the study has another
               graph.onnx      the float network with its sites marked

"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TypeVar

from pydantic import BaseModel, ValidationError

from autoq.config.policy import Policy
from autoq.config.spec import Analysis, Answer, Answers, Question, Record, Remeasured, Replication, Rung, Sensitivity
from autoq.costs.latency.table import LatencyTable
from autoq.errors import StudyError
from autoq.system.files import append_line, atomic_write_text, cut_torn_line, read_lines

M = TypeVar("M", bound=BaseModel)

DATABASE = "study.db"
"""The database in a study's folder, where it has no other one."""


class StudyFolder:
    """Files of a study. Reading raises StudyError for a damaged file."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.name = folder.name
        self.definition_path = folder / "study.yaml"
        self.trials_path = folder / "trials.jsonl"
        self.rungs_path = folder / "rungs.jsonl"
        self.latency_path = folder / "latency.json"
        self.sensitivity_path = folder / "sensitivity.json"
        self.replications_path = _renamed(folder / "replications.jsonl", "confirmed.jsonl")
        self.latency_again_path = folder / "latency_again.json"
        self.answers_path = folder / "stages.json"
        self.states_path = folder / "states"
        self.finetuned_path = folder / "finetuned.jsonl"
        self.finetuned_folder = folder / "finetuned"
        self.database_path = folder / DATABASE
        self.graph_path = folder / "graph.onnx"

    def state_path(self, number: int, policy: Policy) -> Path:
        """The file of a training that waits at a rung."""
        return self.states_path / f"{number}-{policy.hash}.pt"

    def weights_path(self, policy: Policy, steps: int) -> Path:
        """The file of the weights of a policy that was finetuned for so many steps."""
        return self.finetuned_folder / f"{policy.hash}-{steps}.pt"

    def picture_path(self, policy: Policy, steps: int) -> Path:
        """The picture of what a policy that was finetuned for so many steps changed."""
        return self.finetuned_folder / f"{policy.hash}-{steps}.png"

    def finetuning_path(self, policy: Policy, length: str) -> Path:
        """The file of a finetuning that has not ended. length: in steps or time."""
        return self.finetuned_folder / f"{policy.hash}-{length}-state.pt"

    def cut_torn_lines(self) -> None:
        """Remove an incomplete last line, left by a killed process."""
        cut_torn_line(self.trials_path, Record)
        cut_torn_line(self.rungs_path, Rung)
        cut_torn_line(self.replications_path, Replication)
        cut_torn_line(self.finetuned_path, Record)

    def add_rung(self, rung: Rung) -> None:
        """Store a trial's result at a rung below full training: a line in rungs.jsonl."""
        append_line(self.rungs_path, rung)

    def rungs(self) -> list[Rung]:
        """Results at rungs below full training, in order of time. Raises StudyError for a malformed line."""
        return read_lines(self.rungs_path, Rung)

    def add_replication(self, replication: Replication) -> None:
        """Store a training of a front point with another seed: a line in replications.jsonl."""
        append_line(self.replications_path, replication)

    def set_remeasured(self, found: Remeasured) -> None:
        """Store the front's latencies, measured again."""
        atomic_write_text(self.latency_again_path, found.model_dump_json(indent=1))

    def remeasured(self) -> Remeasured:
        """The front's latencies measured again; empty before that. Raises StudyError for a damaged file."""
        return _read(self.latency_again_path, Remeasured, "measured latencies") or Remeasured(samples={})

    def latency_table(self) -> LatencyTable | None:
        """The frozen latencies; None before they are measured. Raises StudyError for a damaged file."""
        return _read(self.latency_path, LatencyTable, "a latency table")

    def set_sensitivity(self, sensitivity: Sensitivity) -> None:
        """Store the stages' sensitivity."""
        atomic_write_text(self.sensitivity_path, sensitivity.model_dump_json(indent=1))

    def sensitivity(self) -> Sensitivity | None:
        """The sensitivity of the stages, where the study has it. Raises StudyError for a damaged file."""
        return _read(self.sensitivity_path, Sensitivity, "a sensitivity file")

    def answers(self) -> tuple[Answer, ...]:
        """The analyses of `autoq sensitivity`, in order of time. Raises StudyError for a damaged file."""
        found = _read(self.answers_path, Answers, "a file of answers")
        return found.answers if found else ()

    def answer(self, question: Question) -> Analysis | None:
        """The stored analysis for a question, or None."""
        return next((each.analysis for each in self.answers() if each.question == question), None)

    def add_answer(self, question: Question, analysis: Analysis) -> None:
        """Store an analysis; the study may be running, or closed."""
        others = (each for each in self.answers() if each.question != question)
        answers = Answers(answers=(*others, Answer(question=question, analysis=analysis)))
        atomic_write_text(self.answers_path, answers.model_dump_json(indent=1, by_alias=True))


def _read(path: Path, kind: type[M], what: str) -> M | None:
    """The content of a file; None where there is no file."""
    if not path.is_file():
        return None
    try:
        return kind.model_validate_json(path.read_text())
    except (ValidationError, UnicodeDecodeError) as error:
        raise StudyError(f"{path}: not {what}; remove the file, autoq creates it again") from error


def _renamed(path: Path, old: str) -> Path:
    """The path of a file; where only the one by its name in earlier versions is there, that of it, with a notice."""
    earlier = path.with_name(old)
    if path.exists() or not earlier.exists():
        return path
    logging.getLogger("autoq").warning(f"study of an earlier version: {old} is now {path.name}")
    return earlier
