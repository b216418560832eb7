"""What a study and a trial are, as data. Validated by pydantic; stored in a study's study.yaml."""

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
from autoq.system.processor import exact_weight_bits

Box = tuple[str, int, int, int, int]
"""Part of an image: name, left, top, width, height."""

RENAMED_FIELDS = {**RENAMED, "hand_rule": "first_last_16"}
"""Fields of definitions by their names in earlier versions."""

RENAMED_BASELINES = {"hand rule": "first-last-16"}
"""Baselines by their names in earlier versions."""

State = Literal["complete", "pruned", "failed"]


def _current_names(found: Any) -> Any:
    """Values as earlier versions named them: fidelity was psnr_to_float."""
    if isinstance(found, dict) and "psnr_to_float" in found:
        found = {"fidelity" if name == "psnr_to_float" else name: value for name, value in found.items()}
    return found


Values = Annotated[dict[str, float], BeforeValidator(_current_names)]
"""What was measured, by name."""


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
    """What study.yaml holds."""

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
    """What a trial found. values: every metric measured, objective or not; simulation_agreement_db among them, which says how
    near training's network was to the file. held_out: qualities on images that no suggestion depends on, of full trials.
    reason: why it failed or stopped, else None.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    state: State
    values: Values = {}
    held_out: Values = {}
    steps: int = 0
    seconds: float = 0.0
    reason: str | None = None


class Rung(BaseModel):
    """One line of rungs.jsonl: what a trial was worth after `until` steps. policy: a hash. result.seconds: since the rung below."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    number: int
    policy: str
    until: int
    result: TrialResult


class Confirmation(BaseModel):
    """One line of confirmed.jsonl: a point of the front trained again with a seed that the search did not use. policy: a hash."""

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
    """Latencies (ms) of the front measured once more, alone, after all training: samples by policy hash."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    samples: dict[str, tuple[float, ...]]


class Probe(BaseModel):
    """Some stages quantized, the rest float. mse: of the output to the float network's, of 1, by evaluation image.

    values: the metrics asked for. size: bytes of the packed package. seconds: of work.
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
    """The stages of a study quantized one at a time without training, and the policies to try first because of it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    probes: tuple[Probe, ...]
    initial_trials: tuple[dict[str, Any], ...] = Field(validation_alias=AliasChoices("initial_trials", "seeds"))
    predicted: tuple[float, ...]


class Question(BaseModel):
    """What the stages are asked. metric: of quality. steps: of training (0: none). widths: bits of all roles of a stage.

    pairs: also two and three stages together. by: stage, block or layer. seeds: calibrations that the ranking's stability
    is judged by. frame, threads: what latency is measured at.
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
    """Some stages at so many bits, the rest float. change: of the metric. size_saved: bytes.

    time_saved: ms a frame, None where the target offers no latency.
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
    """What the stages answered. exact: the float network's values. ranking: the most sensitive stage first.

    entries: single stages before twos and threes, in the order of the ranking, then by width. stability: of the ranking over
    images and over seeds; None where it cannot be said.
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
    """A question, and what came of it."""

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
    """What stages.json holds: every question once, in the order they were asked."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    answers: tuple[Answer, ...] = ()


class Record(BaseModel):
    """One line of trials.jsonl: a trial or a baseline, finished. number: the trial's, None for a baseline.

    name: the baseline's (`float`, `8/8/8`), None for a trial. structure: the latency structure in words.
    feasible: whether it may stand on the front. violations: of every bound it has to keep, how far it is beyond, as a share
    of the bound; negative where it keeps it.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    number: int | None
    name: Annotated[str | None, BeforeValidator(lambda name: RENAMED_BASELINES.get(name, name))] = None
    source: Literal["trial", "baseline"]
    state: State
    policy: dict[str, Any]
    label: str
    structure: str = ""
    values: Values = {}
    held_out: Values = {}
    steps: int = 0
    seconds: float = 0.0
    reason: str | None = None
    feasible: bool = True
    violations: dict[str, float] = {}
