"""What the commands about networks do, as functions: `models`, `targets`, `cost`, `sensitivity`, `pretrain`, `space_file`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import yaml

from autoq.api.studies import check_inputs, check_options, open_study
from autoq.config.events import Events, TrainingEvents
from autoq.config.objectives import OBJECTIVES
from autoq.config.policy import uniform
from autoq.config.space import SearchSpace, bundled_space
from autoq.config.spec import Analysis, PretrainSpec, Question, TrialSpec
from autoq.errors import InputError, unknown
from autoq.networks import MODELS, ModelInfo, bundled_record, is_custom, model_info, parameter_count
from autoq.study.study import Study
from autoq.system.processor import available_cores
from autoq.targets import TARGETS, why_unusable
from autoq.tuning.options import (
    GRANULARITIES,
    absolute,
    check_measurable,
    check_sampling,
    default_scale,
    model_name,
    parse_frame,
    resolve_device,
    search_space,
    space_by,
    weights_path,
)

MIB = 2**20
FLOAT_BYTES = 4


def models() -> list[dict[str, Any]]:
    """Every network of the table: scales, stages with their roles, parameters and float size, bundled weights."""
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
    """scale -> file and what its record says: PSNR, training steps, data, how it was made."""
    return {scale: {"file": file, **bundled_record(file)} for scale, file in info.bundled.items()}


def targets() -> list[dict[str, Any]]:
    """Every target of the table: what each role may be there, what runs on integers, how latency is measured, what file it
    loads, and whether it runs here.
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
    model: str,
    *,
    scale: int | None = None,
    weights: str | Path | None = None,
    policy: str = "8/8/8",
    input: str = "96x96",
    target: str = "openvino-cpu",
    space: str | Path | None = None,
) -> dict[str, Any]:
    """What a policy costs on one image: operations, bytes of feature maps, and bytes of weights, without any image.

    policy: `w/a/s`, or stage=w/a/s for every stage. input: WIDTHxHEIGHT in low-resolution pixels. weights: of a network
    of another depth than the table's. Raises InputError.
    """
    frame = parse_frame(input, "--input")
    trial = _trial(model, scale, weights, target)
    found = search_space(trial, Path(space) if space else None)
    from autoq.trial.run import price

    trial = trial.model_copy(update={"layers": tuple(found.layers.items())})
    return price(trial, uniform(policy, found.facts.stages, formats=found.facts.formats, output=found.output), frame)


YAML_WIDTH = 120
"""Columns of a space file."""

MOST_IN_PAIRS = 16
"""Stages of which all twos and threes are looked at."""


def sensitivity(
    model: str | None = None,
    *,
    study: str | None = None,
    scale: int | None = None,
    weights: str | Path | None = None,
    target: str | None = None,
    space: str | Path | None = None,
    data: str | Path | None = None,
    eval_data: str | Path | None = None,
    by: str = "stage",
    metric: str = "psnr",
    steps: int = 0,
    pairs: bool = False,
    seed: int | None = None,
    frame: str | None = None,
    events: Events | None = None,
) -> dict[str, Any]:
    """How much each stage suffers from being quantized alone, what it saves, which suffers most, and how sure that is.

    study: a study of `search`, which then says all that follows up to eval_data, seed and frame; the answer is kept in its
    folder, and read from there when the same is asked again. by: stage, block or layer. metric: psnr, ssim, fidelity, niqe or pi.
    steps: of training after quantizing (0: none). pairs: two and three stages together, too. seed: of calibration (0).
    frame: what latency is measured at (96x96). Raises InputError.
    """
    measurable = [name for name, info in OBJECTIVES.items() if info.quality and not info.relative]
    if metric not in measurable:
        raise InputError(unknown("metric", metric, measurable))
    events = events or Events()
    options = {
        name: value
        for name, value in {
            "model": model, "scale": scale, "weights": weights, "target": target, "space": space, "data": absolute(data),
            "eval_data": absolute(eval_data), "seed": seed, "frame": frame,
        }.items()
        if value is not None
    }  # fmt: skip
    opened = None if study is None else open_study(study)
    subject = _described(options, by) if opened is None else _studied(opened, options, by)
    if pairs and len(subject.space.choices) > MOST_IN_PAIRS:
        coarser = "" if by == GRANULARITIES[0] else f", or type --by {GRANULARITIES[0]}"
        raise InputError(f"--pairs: {len(subject.space.choices)} {by}s combine to too many; leave it out{coarser}")
    question = Question(
        metric=metric, steps=steps, widths=_widths(subject), pairs=pairs, by=by, frame=subject.frame, threads=subject.threads
    )
    if opened is None:
        return _measured(subject, question, events).to_json()
    return _remembered(opened, subject, question, events).to_json()


@dataclass(frozen=True)
class _Subject:
    """Whose stages are quantized. frame, threads: what latency is measured at."""

    trial: TrialSpec
    space: SearchSpace
    frame: tuple[int, int]
    threads: int


def _described(options: Mapping[str, Any], by: str) -> _Subject:
    """A network as options describe it."""
    if "model" not in options:
        raise InputError("no model given; type --model srgan, or --study NAME for that of a study")
    size = parse_frame(options.get("frame", "96x96"))
    cores = available_cores()
    trial = _trial(options["model"], options.get("scale"), options.get("weights"), options.get("target", "openvino-cpu"))
    trial = trial.model_copy(
        update={**{name: options[name] for name in ("data", "eval_data", "seed") if name in options}, "threads": cores}
    )
    found = space_by(trial, Path(options["space"]) if options.get("space") else None, by)
    trial = trial.model_copy(update={"layers": tuple((stage, tuple(patterns)) for stage, patterns in found.layers.items())})
    return _Subject(trial, found, size, cores)


def _studied(study: Study, options: Mapping[str, Any], by: str) -> _Subject:
    """The network of a study, on the CPU. Raises StudyError for an option that is not what the study has."""
    trial = study.spec.trial
    given = dict(options)
    if "model" in given:
        given["model"] = model_name(given["model"])
    if "weights" in given:
        given["weights"] = weights_path(trial.model, trial.scale, given["weights"])
    check_options(study.name, study.spec, given, "to ask about it")
    if by != GRANULARITIES[0]:
        raise InputError(
            f"--by {by}: study '{study.name}' has its own stages ({', '.join(study.space.choices)});"
            f" leave --by out, or type --model {trial.model} instead of --study"
        )
    trial = trial.model_copy(update={"threads": available_cores(), "device": "cpu"})
    return _Subject(trial, study.space, study.spec.frame, study.spec.latency_threads)


def _widths(subject: _Subject) -> tuple[int, ...]:
    """The widths of weights in a space that run on integers."""
    space = subject.space
    widths = {bits for roles in space.choices.values() for bits in roles["weight"].bits if bits <= space.facts.integer_bits}
    if not widths:
        target = subject.trial.target
        raise InputError(f"space: no weight has a width that {target} runs on integers; list one, for example bits: [4, 8]")
    return tuple(sorted(widths))


def _measured(subject: _Subject, question: Question, events: Events) -> Analysis:
    check_measurable((question.metric,))
    from autoq.tuning.sensitivity import analyse

    return analyse(subject.trial, subject.space, question, events.phase)


def _remembered(study: Study, subject: _Subject, question: Question, events: Events) -> Analysis:
    """What a study knows of a question; what it does not know is measured and stored. One that cannot be stored is still shown."""
    known = study.answer(question)
    if known is not None:
        events.note(f"from {study.answers_path}, where this was asked before; remove the file to measure again")
        return known
    check_inputs(study.name, study.spec)
    found = _measured(subject, question, events)
    try:
        study.add_answer(question, found)
    except OSError as error:
        events.note(f"{study.answers_path}: cannot be written ({error.strerror}); it is measured again when it is asked again")
    return found


def _trial(model: str, scale: int | None, weights: str | Path | None, target: str) -> TrialSpec:
    name, found = model_name(model), weights_path(model, scale, weights)
    return TrialSpec(model=name, scale=scale or default_scale(name), target=target, weights=found)


def space_file(
    model: str, *, target: str = "openvino-cpu", scale: int | None = None, weights: str | Path | None = None
) -> tuple[str, SearchSpace]:
    """The text of a space file to start one's own from, and that space. Stages that nobody says are found."""
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
    scale: int | None = None,
    weights: str | Path | None = None,
    data: str | Path | None = None,
    eval_data: str | Path | None = None,
    steps: int | None = None,
    adversarial_steps: int | None = None,
    sampling: str = "uniform",
    seed: int | None = None,
    threads: int | None = None,
    device: str = "auto",
    output: str | Path | None = None,
    resume: bool = False,
    events: TrainingEvents | None = None,
) -> tuple[Path, dict[str, Any]]:
    """Train a network of the table in float by its paper's recipe. Returns the folder and the record of the training.

    weights: to start from; a network that is trained against a discriminator then skips the pixel stage. data,
    eval_data: image folders; photographs inside installed packages if None. steps, adversarial_steps: the recipe's if
    None. sampling: where patches are cut (uniform, proportional, threshold). output: pretrained/<model>-x<scale> if None;
    with `resume` the training in it goes on. Raises InputError; KeyboardInterrupt when interrupted, what there is stays.
    """
    if is_custom(model):
        raise InputError(f"model '{model}': autoq trains the networks of its table ({', '.join(MODELS)}); train your own yourself")
    recipe = model_info(model).recipe
    check_sampling(sampling)
    if adversarial_steps and not recipe.adversarial:
        raise InputError(f"--adversarial-steps {adversarial_steps}: {model} is trained on pixels alone; leave it out")
    default_steps = 0 if weights and recipe.adversarial else recipe.steps
    spec = PretrainSpec(
        model=model,
        scale=scale or default_scale(model),
        weights=weights_path(model, scale, weights),
        data=absolute(data),
        eval_data=absolute(eval_data),
        steps=default_steps if steps is None else steps,
        adversarial_steps=recipe.adversarial_steps if adversarial_steps is None else adversarial_steps,
        sampling=sampling,  # type: ignore[arg-type]
        seed=seed or 0,
        threads=threads or available_cores(),
        device=resolve_device(device),  # type: ignore[arg-type]
    )
    if spec.steps + spec.adversarial_steps == 0:
        raise InputError("--steps 0: nothing to train; type --steps N")
    folder = Path(output) if output else Path("pretrained") / f"{model}-x{spec.scale}"
    from autoq.training.pretrain import pretrain as run

    return folder, run(spec, folder, resume, events or TrainingEvents())
