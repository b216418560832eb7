"""What a study and a trial are, as data. Validated by pydantic; stored in a study's study.yaml."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, NonNegativeInt, PositiveInt, model_validator

from autoq.system.processor import exact_weight_bits

Device = Literal["cpu", "cuda"]
Sampling = Literal["uniform", "proportional", "threshold"]
Images = Literal["hr", "lr"]
SamplerName = Literal["auto", "tpe", "gp", "nsga2", "nsga3", "random"]
Granularity = Literal["stage", "block", "layer"]
Box = tuple[str, int, int, int, int]
"""Part of an image: name, left, top, width, height."""

State = Literal["complete", "pruned", "failed"]


def _current_names(found: Any) -> Any:
    """Values as earlier versions named them: fidelity was psnr_to_float."""
    if isinstance(found, dict) and "psnr_to_float" in found:
        found = {"fidelity" if name == "psnr_to_float" else name: value for name, value in found.items()}
    return found


Values = Annotated[dict[str, float], BeforeValidator(_current_names)]
"""What was measured, by name."""


class TrialSpec(BaseModel):
    """All a trial needs besides its policy: network, images, target, training. The same for every trial of a study.

    layers: stage -> patterns of module paths, where the space says them; else the model's own stages. images: whether the
    folders hold high-resolution originals or low-resolution inputs. test_data: held-out images, which no suggestion depends on.
    eval_crops: how many of evaluation and test images, `all` for whole ones; None is by their size, see `crops`. eval_boxes,
    test_boxes: what that came to, empty before it is decided. steps: QAT steps (0 = PTQ). threads: of this trial, not of the
    latency table. device: where it trains. sampling: where patches are cut, see `data.PatchSampler`. exact_weight_bits: see
    `processor.exact_weight_bits`, of the processor that the study began on. sqcl: weight of the calibration loss in training,
    see `sqcl.CalibrationLoss`; 0 is without. patches: distinct training patches; batch: patches a step; patch: low-resolution
    side in pixels. fingerprint: of a user's own network when the study began, see `loading.Loaded`.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    model: str
    scale: int = 4
    weights: Path | None = None
    layers: tuple[tuple[str, tuple[str, ...]], ...] = ()
    target: str = "openvino-cpu"
    images: Images = "hr"
    data: Path | None = None
    eval_data: Path | None = None
    test_data: Path | None = None
    eval_crops: Literal["all"] | PositiveInt | None = None
    eval_boxes: tuple[Box, ...] = ()
    test_boxes: tuple[Box, ...] = ()
    steps: int = Field(default=32, ge=0)
    seed: int = Field(default=0, ge=0)
    threads: PositiveInt = 1
    device: Device = "cpu"
    sampling: Sampling = "proportional"
    sqcl: float = Field(default=0.0, ge=0, allow_inf_nan=False)
    patches: PositiveInt = 256
    batch: PositiveInt = 2
    patch: PositiveInt = 24
    exact_weight_bits: PositiveInt = Field(default_factory=exact_weight_bits)
    fingerprint: str | None = None


class PretrainSpec(BaseModel):
    """A float training. weights: to start from, None for a fresh network. steps: of the pixel stage, then
    adversarial_steps against a discriminator. sampling: where patches are cut, see `data.PatchSampler`.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    model: str
    scale: PositiveInt
    weights: Path | None = None
    data: Path | None = None
    eval_data: Path | None = None
    steps: int = Field(ge=0)
    adversarial_steps: int = Field(default=0, ge=0)
    sampling: Sampling = "uniform"
    seed: int = Field(default=0, ge=0)
    threads: PositiveInt = 1
    device: Device = "cpu"


class StudySpec(BaseModel):
    """The definition of a study: equal definitions give equal suggestions and values (one worker).

    max_steps: training steps of all trials after which no new one begins. warm_start: policies of an earlier study, the
    first of the seeds. hand_rule: whether that baseline is measured, too. space: the search space with every default
    written out. by: what has formats of its own. seeds: trials that the stages' sensitivity proposes, first. rungs:
    training steps after which the trials of a bracket are compared and some stop; none: all train fully. constraints: as
    `size<=400KiB`, what points on the front must keep. confirm: seeds that the front is trained again with at the end.
    frame: (width, height) in low-resolution pixels that latency is measured at. latency_threads: of the runtime while it is
    measured. timeout: seconds a trial may take; memory: GiB a worker may hold; None is no limit. storage: URL of Optuna's
    storage, None for a file in the study's folder. inputs: hashes of the files that weights and images were read from.
    float_layers: what of the network always runs in float.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    trial: TrialSpec
    space: dict[str, Any]
    by: Granularity = "stage"
    objectives: tuple[str, ...]
    sampler: SamplerName = "auto"
    budget: PositiveInt = 50
    max_steps: PositiveInt | None = None
    seeds: int = Field(default=0, ge=0)
    warm_start: tuple[dict[str, Any], ...] = ()
    rungs: tuple[NonNegativeInt, ...] = ()
    hand_rule: bool = False
    constraints: tuple[str, ...] = ()
    confirm: int = Field(default=0, ge=0)
    workers: PositiveInt = 1
    frame: tuple[PositiveInt, PositiveInt] = (96, 96)
    latency_threads: PositiveInt = 1
    timeout: float | None = Field(default=None, gt=0)
    memory: float | None = Field(default=None, gt=0)
    storage: str | None = None
    inputs: dict[str, str] = {}
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
        """Studies that do not say how wide their weights' levels are have all of them."""
        if isinstance(found, dict) and isinstance(trial := (found.get("definition") or {}).get("trial"), dict):
            trial.setdefault("exact_weight_bits", 8)
        return found


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
    seeds: tuple[dict[str, Any], ...]
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
    name: str | None = None
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
