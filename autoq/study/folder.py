"""The files in a study's folder: where they are, and all but the definition and the trials read and written.

studies/<name>/study.yaml      definition and environment; locked while a search runs
               trials.jsonl    one finished trial or baseline a line, as it ends: the truth about what was found
               rungs.jsonl     what trials reached at rungs below full training, one a line
               latency.json    the frozen latency table
               sensitivity.json  the stages quantized one at a time, and the seeds that follow
               confirmed.jsonl the front trained again with other seeds, one training a line
               latency_again.json  the front's latencies measured once more, alone
               stages.json     what `autoq sensitivity` was asked about the study, and its answers
               states/         trainings that stand at a rung
               study.db        Optuna's storage (SQLite), unless the study has another
               graph.onnx      the float network with its sites marked

"""

from __future__ import annotations

from pathlib import Path
from typing import TypeVar

from pydantic import BaseModel, ValidationError

from autoq.config.policy import Policy
from autoq.config.spec import Analysis, Answer, Answers, Confirmation, Question, Record, Remeasured, Rung, Sensitivity
from autoq.costs.latency.table import LatencyTable
from autoq.errors import StudyError
from autoq.system.files import append_line, cut_torn_line, read_lines, write_whole

M = TypeVar("M", bound=BaseModel)


class StudyFolder:
    """Files of a study. What reads them raises StudyError where one is not whole."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @property
    def name(self) -> str:
        return self.folder.name

    @property
    def definition_path(self) -> Path:
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

    @property
    def rungs_path(self) -> Path:
        return self.folder / "rungs.jsonl"

    @property
    def sensitivity_path(self) -> Path:
        return self.folder / "sensitivity.json"

    @property
    def confirmed_path(self) -> Path:
        return self.folder / "confirmed.jsonl"

    @property
    def latency_again_path(self) -> Path:
        return self.folder / "latency_again.json"

    @property
    def answers_path(self) -> Path:
        return self.folder / "stages.json"

    def state_path(self, number: int, policy: Policy) -> Path:
        """Where the training of a trial that stands at a rung is kept."""
        return self.states_path / f"{number}-{policy.hash}.pt"

    @property
    def states_path(self) -> Path:
        return self.folder / "states"

    @property
    def database_path(self) -> Path:
        return self.folder / "study.db"

    def cut_torn_lines(self) -> None:
        """Remove what a killed process left of a line."""
        cut_torn_line(self.trials_path, Record)
        cut_torn_line(self.rungs_path, Rung)
        cut_torn_line(self.confirmed_path, Confirmation)

    def add_rung(self, rung: Rung) -> None:
        """Store what a trial that is not at its end reached: a line in rungs.jsonl."""
        append_line(self.rungs_path, rung)

    def rungs(self) -> list[Rung]:
        """What trials reached below full training, in the order they did. Raises StudyError for a malformed line."""
        return read_lines(self.rungs_path, Rung)

    def add_confirmation(self, confirmation: Confirmation) -> None:
        """Store a training of a front point with another seed: a line in confirmed.jsonl."""
        append_line(self.confirmed_path, confirmation)

    def set_remeasured(self, found: Remeasured) -> None:
        """Store latencies that were measured again."""
        write_whole(self.latency_again_path, found.model_dump_json(indent=1))

    def remeasured(self) -> Remeasured:
        """The front's latencies measured again, as far as they were. Raises StudyError where the file is not whole."""
        return _read(self.latency_again_path, Remeasured, "measured latencies") or Remeasured(samples={})

    def latency_table(self) -> LatencyTable | None:
        """The frozen latencies, where they are measured already. Raises StudyError where the file is not whole."""
        return _read(self.latency_path, LatencyTable, "a latency table")

    def set_sensitivity(self, sensitivity: Sensitivity) -> None:
        """Store the stages' sensitivity."""
        write_whole(self.sensitivity_path, sensitivity.model_dump_json(indent=1))

    def sensitivity(self) -> Sensitivity | None:
        """What the study knows of its stages one at a time. Raises StudyError where the file is not whole."""
        return _read(self.sensitivity_path, Sensitivity, "a sensitivity file")

    def answers(self) -> tuple[Answer, ...]:
        """The questions that `autoq sensitivity` answered, in their order. Raises StudyError where the file is not whole."""
        found = _read(self.answers_path, Answers, "a file of answers")
        return found.answers if found else ()

    def answer(self, question: Question) -> Analysis | None:
        """What is known of a question; None where it was not asked yet."""
        return next((each.analysis for each in self.answers() if each.question == question), None)

    def add_answer(self, question: Question, analysis: Analysis) -> None:
        """Store what came of a question; the study may be running, or closed."""
        others = (each for each in self.answers() if each.question != question)
        answers = Answers(answers=(*others, Answer(question=question, analysis=analysis)))
        write_whole(self.answers_path, answers.model_dump_json(indent=1, by_alias=True))


def _read(path: Path, kind: type[M], what: str) -> M | None:
    """A whole file as a model; None where there is no file."""
    if not path.is_file():
        return None
    try:
        return kind.model_validate_json(path.read_text())
    except (ValidationError, UnicodeDecodeError) as error:
        raise StudyError(f"{path}: not {what}; remove it, it is made again") from error
