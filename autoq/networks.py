"""What the commands about networks do, as functions: `models`, `cost`, `sensitivity`, `pretrain`, `space_file`."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import yaml

from autoq.errors import InputError, unknown
from autoq.events import Events, TrainingEvents
from autoq.models import MODELS, ModelInfo, bundled_record, is_custom, is_file, model_info, parameter_count, weights_file
from autoq.objectives import OBJECTIVES
from autoq.options import (
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
from autoq.policy import uniform
from autoq.space import SearchSpace, bundled_space
from autoq.spec import PretrainSpec, TrialSpec

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
    from autoq.trial import price

    trial = trial.model_copy(update={"layers": tuple(found.layers.items())})
    return price(trial, uniform(policy, found.facts.stages), frame)


MOST_IN_PAIRS = 16
"""Stages of which all twos and threes are looked at."""


def sensitivity(
    model: str,
    *,
    scale: int | None = None,
    weights: str | Path | None = None,
    target: str = "openvino-cpu",
    space: str | Path | None = None,
    data: str | Path | None = None,
    eval_data: str | Path | None = None,
    by: str = "stage",
    metric: str = "psnr",
    steps: int = 0,
    pairs: bool = False,
    seed: int = 0,
    frame: str = "96x96",
    events: Events | None = None,
) -> dict[str, Any]:
    """How much each stage suffers from being quantized alone, what it saves, which suffers most, and how sure that is.

    by: stage, block or layer. metric: psnr, ssim, niqe or pi. steps: of training after quantizing (0: none). pairs: two
    and three stages together, too. frame: what latency is measured at. Raises InputError.
    """
    measurable = [name for name, info in OBJECTIVES.items() if info.quality and not info.relative]
    if metric not in measurable:
        raise InputError(unknown("metric", metric, measurable))
    check_measurable((metric,))
    size = parse_frame(frame)
    cores = os.cpu_count() or 1
    trial = _trial(model, scale, weights, target).model_copy(
        update={"data": absolute(data), "eval_data": absolute(eval_data), "seed": seed, "threads": cores}
    )
    from autoq.sensitivity import Question, analyse

    found = space_by(trial, Path(space) if space else None, by)
    if pairs and len(found.choices) > MOST_IN_PAIRS:
        raise InputError(f"--pairs: {len(found.choices)} {by}s combine to too many; leave it out, or type --by stage")
    trial = trial.model_copy(update={"layers": tuple((stage, tuple(patterns)) for stage, patterns in found.layers.items())})
    widths = sorted({bits for roles in found.choices.values() for bits in roles["weight"].bits if bits <= found.facts.integer_bits})
    if not widths:
        raise InputError(f"space: no weight has a width that {target} runs on integers; list one, for example bits: [4, 8]")
    question = Question(metric=metric, steps=steps, widths=tuple(widths), pairs=pairs, frame=size, threads=cores)
    return {**analyse(trial, found, question, (events or Events()).phase), "by": by}


def _trial(model: str, scale: int | None, weights: str | Path | None, target: str) -> TrialSpec:
    name, found = model_name(model), weights_path(model, scale, weights)
    return TrialSpec(model=name, scale=scale or default_scale(name), target=target, weights=found)


def space_file(
    model: str, *, target: str = "openvino-cpu", scale: int | None = None, weights: str | Path | None = None
) -> tuple[str, SearchSpace]:
    """The text of a space file to start one's own from, and that space. A network of unknown stages gets one, `body`."""
    trial = _trial(model, scale, weights, target)
    text = bundled_space(trial.model).read_text()
    if not is_custom(trial.model):
        return f"model: {model}\n{text}", search_space(trial)
    from autoq.models import custom
    from autoq.tracing import trace

    weights_file(trial.model, trial.scale, trial.weights)
    network, known = custom.build(trial.model, trial.scale, trial.weights, is_file(trial.model))
    layers = known or {"body": ("*",)}
    paths = [layer.path for layer in trace(network, layers).layers]
    head = {"model": trial.model, "layers": {stage: list(patterns) for stage, patterns in layers.items()}}
    listed = f"# its layers: {', '.join(paths)}\n"
    return yaml.safe_dump(head, sort_keys=False, default_flow_style=None) + listed + text, search_space(trial, layers=layers)


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
    eval_data: image folders; photographs inside scikit-image's wheel if None. steps, adversarial_steps: the recipe's if
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
        threads=threads or os.cpu_count() or 1,
        device=resolve_device(device),  # type: ignore[arg-type]
    )
    if spec.steps + spec.adversarial_steps == 0:
        raise InputError("--steps 0: nothing to train; type --steps N")
    folder = Path(output) if output else Path("pretrained") / f"{model}-x{spec.scale}"
    from autoq.pretrain import pretrain as run

    return folder, run(spec, folder, resume, events or TrainingEvents())
