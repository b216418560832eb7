"""Definitions of studies and trials, and the records of their results. Validated by pydantic; stored in a study's folder."""

from __future__ import annotations

import logging
from typing import Annotated, Any, Literal

from pydantic import AliasChoices, BaseModel, BeforeValidator, ConfigDict, Field, NonNegativeInt, PositiveInt, model_validator

from autoq.config.options import (
    RENAMED,
    DeploymentOptions,
    Device,
    ImageOptions,
    PretrainOptions,
    StudyOptions,
    TrainingOptions,
)
from autoq.config.structure import Structure
from autoq.system.processor import exact_weight_bits

Box = tuple[str, int, int, int, int]
"""Part of an image: name, left, top, width, height."""

RENAMED_FIELDS = {**RENAMED, "hand_rule": "first_last_16"}
"""Fields of definitions by their names in earlier versions."""

RENAMED_BASELINES = {"hand rule": "first-last-16"}
"""Baselines by their names in earlier versions."""

State = Literal["complete", "pruned", "failed"]


def _current_names(found: Any) -> Any:
    """Values by their current names: fidelity was psnr_to_float in earlier versions."""
    if isinstance(found, dict) and "psnr_to_float" in found:
        found = {"fidelity" if name == "psnr_to_float" else name: value for name, value in found.items()}
    return found


Values = Annotated[dict[str, float], BeforeValidator(_current_names)]
"""Measured values by name."""


class TrialSpec(TrainingOptions, ImageOptions, DeploymentOptions):
    """Everything a trial needs besides its policy: network, images, target, training. The same for every trial of a study.

    layers: stage -> patterns of module paths, where the space gives them; otherwise the network's own stages.
    eval_boxes, test_boxes: the crops of the images; empty until they are chosen. threads: of the trial, not of the latency
    table. patches: distinct training patches; batch: patches per step; patch: low-resolution side in pixels.
    exact_weight_bits: see `processor.exact_weight_bits`, of the processor that the study began on. fingerprint: of a user's
    own network when the study began, see `loading.Loaded`.
    """

    model: str
    layers: tuple[tuple[str, tuple[str, ...]], ...] = ()
    eval_boxes: tuple[Box, ...] = ()
    test_boxes: tuple[Box, ...] = ()
    device: Device = "cpu"
    patches: PositiveInt = 256
    batch: PositiveInt = 2
    patch: PositiveInt = 24
    exact_weight_bits: PositiveInt = Field(default_factory=exact_weight_bits)
    fingerprint: str | None = None


class PretrainSpec(PretrainOptions):
    """A float training: `steps` on pixels, then `adversarial_steps` against a discriminator."""

    model: str
    scale: PositiveInt
    steps: int = Field(ge=0)
    device: Device = "cpu"


class StudySpec(StudyOptions):
    """The definition of a study: equal definitions give equal suggestions and values (with one worker).

    space: the search space with every default written out. warm_start: policies of an earlier study, the first of the
    initial trials. rungs: training steps after which the trials of a bracket are compared and some stop; empty where all
    train fully. first_last_16: whether that baseline is measured, too. frame: (width, height) in low-resolution pixels.
    latency_threads: threads of the runtime while latency is measured. inputs: hashes of the files of weights and images.
    float_layers: layers that always run in float.
    """

    trial: TrialSpec
    space: dict[str, Any]
    objectives: tuple[str, ...]
    constraints: tuple[str, ...] = ()
    replications: int = Field(default=0, ge=0)
    warm_start: tuple[dict[str, Any], ...] = ()
    rungs: tuple[NonNegativeInt, ...] = ()
    first_last_16: bool = False
    latency_threads: PositiveInt = 1
    inputs: dict[str, str] = Field(default_factory=dict)
    float_layers: tuple[str, ...] = ()


class Environment(BaseModel):
    """Where and how a study was started. machine: processor and cores; versions: of the packages that matter."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    command: str
    python: str
    machine: str
    versions: dict[str, str]


class StudyFile(BaseModel):
    """Content of study.yaml."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    definition: StudySpec
    environment: Environment

    @model_validator(mode="before")
    @classmethod
    def _older(cls, found: Any) -> Any:
        """Definitions of earlier versions, in the names of this one."""
        definition = found.get("definition") if isinstance(found, dict) else None
        if not isinstance(definition, dict):
            return found
        if isinstance(trial := definition.get("trial"), dict):
            trial.setdefault("exact_weight_bits", 8)
        old = {name: new for name, new in RENAMED_FIELDS.items() if name in definition}
        if old:
            definition = {old.get(name, name): value for name, value in definition.items()}
            names = ", ".join(f"{name} is now {new}" for name, new in old.items())
            logging.getLogger("autoq").warning(f"study of an earlier version: {names}")
        return {**found, "definition": definition}


class TrialResult(BaseModel):
    """The result of a trial. values: every metric measured, objective or not, among them simulation_agreement_db: how close the
    trained network is to the file. held_out: qualities of full trials on held-out images. reason: why it failed or stopped.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    state: State
    values: Values = {}
    held_out: Values = {}
    steps: int = 0
    seconds: float = 0.0
    reason: str | None = None


class Rung(BaseModel):
    """One line of rungs.jsonl: the result of a trial after `until` steps. policy: a hash. result.seconds: since the rung below."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    number: int
    policy: str
    until: int
    result: TrialResult


class Replication(BaseModel):
    """One line of replications.jsonl: a Pareto point trained again with another random seed. policy: a hash."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    policy: str
    seed: int
    result: TrialResult

    @model_validator(mode="before")
    @classmethod
    def _older(cls, found: Any) -> Any:
        """Earlier versions kept the qualities on held-out images beside the result."""
        if isinstance(found, dict) and "unseen" in found:
            result, held_out = dict(found["result"]), found["unseen"]
            found = {**{name: found[name] for name in ("policy", "seed")}, "result": {**result, "held_out": held_out}}
        return found


class Remeasured(BaseModel):
    """Latencies (ms) of the front, measured again after all training: samples by policy hash."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    samples: dict[str, tuple[float, ...]]


class Probe(BaseModel):
    """Some stages quantized, the rest float. mse: of the output to the float network's (full scale 1), by evaluation image.

    values: the metrics asked for. size: bytes of the packed file. seconds: of work.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    policy: dict[str, Any]
    stages: tuple[str, ...]
    label: str
    mse: tuple[float, ...]
    values: dict[str, float]
    size: float
    seconds: float

    @property
    def loss(self) -> float:
        """Mean squared error over the images."""
        return sum(self.mse) / len(self.mse)


class Sensitivity(BaseModel):
    """The stages of a study quantized one at a time without training, and the initial trials chosen from that."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    probes: tuple[Probe, ...]
    initial_trials: tuple[dict[str, Any], ...] = Field(validation_alias=AliasChoices("initial_trials", "seeds"))
    predicted: tuple[float, ...]


class Question(BaseModel):
    """A question about the sensitivity of stages. steps: of training (0: none). widths: bits of all roles of a stage.

    pairs: whether pairs and triples of stages are measured, too. by: stage, block or layer. seeds: random seeds of the
    calibrations that show how stable the ranking is. frame, threads: for latency.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    metric: str = "psnr"
    steps: int = 0
    widths: tuple[int, ...] = (4, 6, 8)
    pairs: bool = False
    by: str = "stage"
    seeds: int = 3
    frame: tuple[int, int] = (96, 96)
    threads: int = 1


class Change(BaseModel):
    """Some stages at `bits`, the rest float. change: of the metric. size_saved: bytes.

    time_saved: ms per frame, None if the target has no latency.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    stages: tuple[str, ...]
    bits: int
    change: float
    mse: float
    size_saved: float
    time_saved: float | None


class RoleChange(BaseModel):
    """`Change` of one role of a stage."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    stage: str
    role: str
    bits: int
    change: float
    mse: float
    size_saved: float


class Agreement(BaseModel):
    """A mean rank correlation and its 95 % interval."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    spearman: float
    low: float
    high: float


class Analysis(BaseModel):
    """The answer to a question. exact: the float network's values. ranking: the most sensitive stage first.

    entries: single stages before pairs and triples, in the order of the ranking, then by width. stability: of the ranking
    over images and over seeds; None if it cannot be computed.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    model: str
    scale: int
    target: str
    metric: str
    steps: int
    exact: dict[str, float] = Field(alias="float")
    ranking: tuple[str, ...]
    most_sensitive: str
    least_sensitive: str
    entries: tuple[Change, ...]
    roles: tuple[RoleChange, ...]
    stability: dict[str, Agreement | None]
    seconds: float
    by: str

    def to_json(self) -> dict[str, Any]:
        """As JSON data."""
        return self.model_dump(mode="json", by_alias=True)


class Answer(BaseModel):
    """A question and its answer."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    question: Question
    analysis: Analysis

    @model_validator(mode="after")
    def _about_the_question(self) -> Answer:
        found, widths = self.analysis, self.question.widths
        known = {(entry.stages, entry.bits) for entry in found.entries}
        alone = {((stage,), bits) for stage in (found.most_sensitive, found.least_sensitive) for bits in widths}
        if not widths or not alone <= known or self.question.metric not in found.exact:
            raise ValueError("the analysis does not answer the question")
        return self


class Answers(BaseModel):
    """Content of stages.json: every question once, in the order asked."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    answers: tuple[Answer, ...] = ()


class Record(BaseModel):
    """One line of trials.jsonl: a trial or a baseline that ended; or of finetuned.jsonl: one of them, finetuned.

    number: the trial's, None for others. name: the baseline's (`float`, `8/8/8`), or `trial 7, finetuned`; None for a trial.
    structure: how each stage runs. feasible: whether it may be on the front. violations: for every constraint, how far it is
    beyond the bound, as a fraction of it; negative if the constraint holds.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    number: int | None
    name: Annotated[str | None, BeforeValidator(lambda name: RENAMED_BASELINES.get(name, name))] = None
    source: Literal["trial", "baseline", "finetuned"]
    state: State
    policy: dict[str, Any]
    label: str
    structure: Structure = Structure()
    values: Values = {}
    held_out: Values = {}
    steps: int = 0
    seconds: float = 0.0
    reason: str | None = None
    feasible: bool = True
    violations: dict[str, float] = {}
