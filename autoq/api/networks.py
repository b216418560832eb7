"""Networks and targets: `models`, `targets`, `cost`, `sensitivity`, `pretrain`, `space_file`."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from autoq.api.studies import check_inputs, check_options, open_study
from autoq.config.events import Events, TrainingEvents
from autoq.config.objectives import OBJECTIVES
from autoq.config.options import PretrainOptions, SearchOptions
from autoq.config.policy import uniform
from autoq.config.space import SearchSpace
from autoq.config.space_file import bundled_space
from autoq.config.spec import Analysis, PretrainSpec, Question, TrialSpec
from autoq.config.validators import frame_size
from autoq.errors import InputError, unknown
from autoq.networks import MODELS, ModelInfo, bundled_record, is_custom, model_info, parameter_count
from autoq.report.progress import listening, listening_to_training
from autoq.study.study import Study
from autoq.system.processor import available_cores
from autoq.targets import TARGETS, why_unusable
from autoq.tuning.options import (
    GRANULARITIES,
    check_measurable,
    default_scale,
    model_name,
    resolve_device,
    search_space,
    space_by,
    weights_path,
)

if TYPE_CHECKING:
    from autoq.networks import Own

MIB = 2**20
FLOAT_BYTES = 4


def models() -> list[dict[str, Any]]:
    """List the networks of the table.

    Returns:
        For every network its `name`, `scales`, `stages` with their roles, `parameters` and `float_mib` by scale, and the
        `bundled` weights by scale: file, PSNR (dB) and training.
    """
    found = []
    for name, info in MODELS.items():
        parameters = {scale: parameter_count(name, scale) for scale in info.scales}
        found.append(
            {
                "name": name,
                "scales": list(info.scales),
                "stages": {stage: list(roles) for stage, roles in info.stages.items()},
                "parameters": parameters,
                "float_mib": {scale: round(count * FLOAT_BYTES / MIB, 3) for scale, count in parameters.items()},
                "bundled": bundled_weights(info),
            }
        )
    return found


def bundled_weights(info: ModelInfo) -> dict[int, dict[str, Any]]:
    """scale -> file and its record: PSNR, training steps, data, origin."""
    return {scale: {"file": file, **bundled_record(file)} for scale, file in info.bundled.items()}


def targets() -> list[dict[str, Any]]:
    """List the deployment targets.

    Returns:
        For every target its `name` and `meaning`, the number formats of each role (`roles`), what runs on integers, how
        `latency` is measured, the `file` it loads, and whether it is `usable` on this machine (else the `reason`).
    """
    found = []
    for name, info in TARGETS.items():
        reason = why_unusable(name)
        found.append(
            {
                "name": name,
                "meaning": info.meaning,
                "usable": reason is None,
                "reason": reason,
                "roles": {role: asdict(formats) for role, formats in info.formats.items()},
                "integer_bits": info.integer_bits,
                "integers": info.integers,
                "size_only": info.size_only,
                "latency": info.latency or None,
                "file": info.file,
            }
        )
    return found


def cost(
    model: str | Own,
    *,
    scale: int | None = None,
    weights: str | Path | None = None,
    policy: str = "8/8/8",
    frame: str = "96x96",
    target: str = "openvino-cpu",
    space: str | Path | None = None,
) -> dict[str, Any]:
    """Compute what a policy costs on one image, without any image: operations, feature-map memory, weight bytes.

    Args:
        model: As for `search`.
        scale: Upscaling factor; by default 4, or the scale of the bundled weights.
        weights: Checkpoint of a network whose depth or width differs from the table's.
        policy: Bits of weights/activations/skips, as `8/8/8`, or `stage=w/a/s` for every stage, separated by commas.
        frame: WIDTHxHEIGHT of the low-resolution image, in pixels.
        target: Deployment target.
        space: YAML file with the layers of every stage, for a network of your own.

    Returns:
        `parameters`, `macs`, `ops` (32 x 32 bits), `bops`, `peak_memory`, `peak_memory_liveness`, `size` and `size_runtime`
        (bytes), `float_layers`, and `latency_modelled` (ms) where the target has a model of it.

    Raises:
        InputError: An option cannot be used.
    """
    size = frame_size(frame)
    trial = _trial(model, scale, weights, target)
    found = search_space(trial, Path(space) if space else None)
    from autoq.trial.run import price

    trial = trial.model_copy(update={"layers": tuple(found.layers.items())})
    return price(trial, uniform(policy, found.facts.stages, formats=found.facts.formats, output=found.output), size)


YAML_WIDTH = 120
"""Width of a space file, in characters."""

MOST_IN_PAIRS = 16
"""Stages, at most, of which all pairs and triples are measured."""


def sensitivity(
    model: str | Own | None = None,
    *,
    study: str | None = None,
    by: str = "stage",
    metric: str = "psnr",
    steps: int = 0,
    pairs: bool = False,
    events: Events | None = None,
    **options: Any,
) -> dict[str, Any]:
    """Measure how much quality each stage loses when quantized alone, and what that saves.

    Args:
        model: As for `search`.
        study: A study instead of a model. It then gives all other options; its folder keeps the answer, which is read from
            there when the same is asked again.
        by: Unit that is quantized alone: stage, block or layer.
        metric: psnr, ssim, fidelity, niqe or pi.
        steps: Training steps after quantization (0: none).
        pairs: Whether pairs and triples of stages are measured, too.
        events: Called while it runs; see `autoq.Events`.
        options: scale, weights, target, space, data, eval_data, seed and frame, as for `search`.

    Returns:
        `float` (values of the float network), `ranking` (most sensitive stage first), `entries` (stages, bits, change of the
        metric, bytes and ms saved), `roles`, and `stability` of the ranking (rank correlation with 95 % interval).

    Raises:
        InputError: An option cannot be used.
    """
    measurable = [name for name, info in OBJECTIVES.items() if info.quality]
    if metric not in measurable:
        raise InputError(unknown("metric", metric, measurable))
    name = None if model is None else model_name(model)
    asked = SearchOptions.of(model=name, **options)
    opened = None if study is None else open_study(study)
    subject = _described(asked, by) if opened is None else _studied(opened, asked, by)
    if pairs and len(subject.space.choices) > MOST_IN_PAIRS:
        coarser = "" if by == GRANULARITIES[0] else f", or type --by {GRANULARITIES[0]}"
        raise InputError(f"--pairs: {len(subject.space.choices)} {by}s have too many combinations; omit it{coarser}")
    question = Question(
        metric=metric, steps=steps, widths=_widths(subject), pairs=pairs, by=by, frame=subject.frame, threads=subject.threads
    )
    with listening(events) as heard:
        found = _measured(subject, question, heard) if opened is None else _remembered(opened, subject, question, heard)
    return found.to_json()


@dataclass(frozen=True)
class _Subject:
    """Whose stages are quantized. frame, threads: for latency."""

    trial: TrialSpec
    space: SearchSpace
    frame: tuple[int, int]
    threads: int


def _described(options: SearchOptions, by: str) -> _Subject:
    """A network as options describe it."""
    if "model" not in options.model_fields_set:
        raise InputError(
            "no model given; type `--model NAME` with a name from `autoq models`, or `--study NAME` for a study's network"
        )
    cores = available_cores()
    trial = _trial(options.model, options.given().get("scale"), options.weights, options.target)
    trial = trial.model_copy(update={"data": options.data, "eval_data": options.eval_data, "seed": options.seed, "threads": cores})
    found = space_by(trial, options.space, by)
    trial = trial.model_copy(update={"layers": tuple((stage, tuple(patterns)) for stage, patterns in found.layers.items())})
    return _Subject(trial, found, options.frame, cores)


def _studied(study: Study, options: SearchOptions, by: str) -> _Subject:
    """The network of a study, on the CPU. Raises StudyError for an option that is not what the study has."""
    trial = study.spec.trial
    check_options(study.name, study.spec, options, "to ask about it")
    if by != GRANULARITIES[0]:
        raise InputError(
            f"--by {by}: study '{study.name}' has its own stages ({', '.join(study.space.choices)});"
            f" omit --by, or type --model {trial.model} instead of --study"
        )
    trial = trial.model_copy(update={"threads": available_cores(), "device": "cpu"})
    return _Subject(trial, study.space, study.spec.frame, study.spec.latency_threads)


def _widths(subject: _Subject) -> tuple[int, ...]:
    """The weight widths of a space that run on integers."""
    space = subject.space
    widths = {bits for roles in space.choices.values() for bits in roles["weight"].bits if bits <= space.facts.integer_bits}
    if not widths:
        target = subject.trial.target
        raise InputError(
            f"space: {target} runs none of the listed weight widths on integers; list one that it does, for example bits: [4, 8]"
        )
    return tuple(sorted(widths))


def _measured(subject: _Subject, question: Question, events: Events) -> Analysis:
    check_measurable((question.metric,))
    from autoq.tuning.sensitivity import analyse

    return analyse(subject.trial, subject.space, question, events.phase)


def _remembered(study: Study, subject: _Subject, question: Question, events: Events) -> Analysis:
    """A study's answer to a question: stored, or measured and stored now. An answer that cannot be stored is still returned."""
    known = study.answer(question)
    if known is not None:
        events.note(f"read from {study.answers_path}; remove the file to measure again")
        return known
    check_inputs(study.name, study.spec)
    found = _measured(subject, question, events)
    try:
        study.add_answer(question, found)
    except OSError as error:
        events.note(f"{study.answers_path}: cannot be written ({error.strerror}), so the answer is not kept")
    return found


def _trial(model: str | Own, scale: int | None, weights: str | Path | None, target: str) -> TrialSpec:
    name = model_name(model)
    return TrialSpec(model=name, scale=scale or default_scale(name), target=target, weights=weights_path(name, scale, weights))


def space_file(
    model: str, *, target: str = "openvino-cpu", scale: int | None = None, weights: str | Path | None = None
) -> tuple[str, SearchSpace]:
    """The text of a space file to start one's own from, and that space. Stages are detected where nothing names them."""
    trial = _trial(model, scale, weights, target)
    text = bundled_space(trial.model).read_text()
    if not is_custom(trial.model):
        return f"model: {model}\n{text}", search_space(trial)
    from autoq.graph.loading import load

    loaded = load(trial.model, trial.scale, trial.weights)
    head = {"model": trial.model, "layers": {stage: list(patterns) for stage, patterns in loaded.patterns.items()}}
    comments = f"# stages{' found' if loaded.automatic else ''}: {loaded.stages}\n# its layers: {', '.join(loaded.paths)}\n"
    body = yaml.safe_dump(head, sort_keys=False, default_flow_style=None, width=YAML_WIDTH)
    return body + comments + text, search_space(trial, layers=loaded.patterns)


def pretrain(
    model: str,
    *,
    output: str | Path | None = None,
    resume: bool = False,
    events: TrainingEvents | None = None,
    **options: Any,
) -> tuple[Path, dict[str, Any]]:
    """Train a network of the table in float, by its paper's recipe.

    Args:
        model: A name of `autoq.models()`.
        output: Folder of the training; `pretrained/<model>-x<scale>` by default.
        resume: Whether the training in `output` continues.
        events: Called while it trains.
        options: The fields of `autoq.PretrainOptions`, as `steps=20000`; None means not given.

    Returns:
        The folder, and the record of the training: PSNR, steps, data.

    Raises:
        InputError: An option cannot be used.
        KeyboardInterrupt: The training was interrupted; `resume=True` continues it.
    """
    if is_custom(model):
        raise InputError(f"model '{model}': autoq trains only the networks it lists ({', '.join(MODELS)}); train yours yourself")
    recipe = model_info(model).recipe
    asked = PretrainOptions.of(model=model, **options)
    given = asked.model_fields_set
    if asked.adversarial_steps and not recipe.adversarial:
        raise InputError(f"--adversarial-steps {asked.adversarial_steps}: {model} is trained on pixels alone; omit it")
    default_steps = 0 if asked.weights and recipe.adversarial else recipe.steps
    scale = asked.scale if "scale" in given else default_scale(model)
    spec = PretrainSpec(
        **{
            **asked.given(),
            "scale": scale,
            "weights": weights_path(model, scale, asked.weights),
            "steps": asked.steps if "steps" in given else default_steps,
            "adversarial_steps": asked.adversarial_steps if "adversarial_steps" in given else recipe.adversarial_steps,
            "threads": asked.threads if "threads" in given else available_cores(),
            "device": resolve_device(asked.device),
        }
    )
    if spec.steps + spec.adversarial_steps == 0:
        raise InputError("--steps 0: nothing to train, expected 1 or more, for example --steps 24")
    folder = Path(output) if output else Path("pretrained") / f"{model}-x{spec.scale}"
    from autoq.training.pretrain import pretrain as run

    with listening_to_training(events) as heard:
        return folder, run(spec, folder, resume, heard)
