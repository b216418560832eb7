"""Options applied to the definition of a study, and their defaults where these depend on the network or the machine."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any, get_args

from autoq.config import schedule
from autoq.config.constraints import parse_all
from autoq.config.objectives import FIDELITY, OBJECTIVES
from autoq.config.options import Device, DeviceChoice, Granularity, SearchOptions, StudyOptions
from autoq.config.space import SearchSpace
from autoq.config.space_file import bundled_space, parse_space, read_space, space_layers
from autoq.config.spec import StudySpec, TrialSpec
from autoq.errors import InputError, suggest
from autoq.networks import is_custom, is_file, is_given, model_info
from autoq.networks.published import REQUEST, published_file
from autoq.networks.stages import StagePatterns
from autoq.study.database import check_url
from autoq.study.study import Study, space_facts, study_folder
from autoq.system.limits import can_bound_memory
from autoq.targets import target_info

DEFAULT_SCALE = 4
GRANULARITIES: tuple[str, ...] = get_args(Granularity)
"""What may have a format of its own, the coarsest first."""


def search_space(trial: TrialSpec, path: Path | None = None, layers: StagePatterns | None = None) -> SearchSpace:
    """The space in `path`, or the bundled one, for a network on a target. layers: instead of those the file has.

    A network in no table is built and traced to find its stages' roles, and so is one whose layers are given. Stages that
    nobody says are found.
    """
    path = path or bundled_space(trial.model)
    data = read_space(path, trial.model)
    if layers:
        data = {**data, "layers": {stage: list(patterns) for stage, patterns in layers.items()}}
    layers = space_layers(data, str(path))
    stages = None
    if layers or is_custom(trial.model):
        from autoq.graph.loading import load

        loaded = load(trial.model, trial.scale, trial.weights, layers)
        stages = loaded.roles
        if loaded.automatic:
            data = {**data, "layers": {stage: list(patterns) for stage, patterns in loaded.patterns.items()}}
    return parse_space(data, space_facts(trial.model, trial.target, stages), str(path))


def space_by(
    trial: TrialSpec, path: Path | None = None, by: str = GRANULARITIES[0], layers: StagePatterns | None = None
) -> SearchSpace:
    """`search_space` with these stages, or with blocks or single layers as stages. Raises InputError."""
    if by not in GRANULARITIES:
        raise InputError(f"--by '{by}': expected one of {', '.join(GRANULARITIES)}{suggest(by, GRANULARITIES)}")
    found = search_space(trial, path, layers)
    if by == "stage":
        return found
    if path is not None and read_space(path, trial.model).get("stages"):
        raise InputError(f"{path}: stages: --by {by} takes their place; leave them out, or leave --by out")
    from autoq.trial.run import regrouped

    return search_space(trial, path, regrouped(trial.model, trial.scale, trial.weights, found.layers, by))


def default_scale(model: str) -> int:
    """x4, or the nearest scale a network has: the one its bundled weights are for, if any; of a user's own its output says it."""
    if is_custom(model):
        from autoq.networks.custom import own_scale

        return own_scale(model, is_file(model))
    info = model_info(model)
    return DEFAULT_SCALE if not info.scales or DEFAULT_SCALE in info.bundled or not info.bundled else next(iter(info.bundled))


def applied(options: SearchOptions, spec: StudySpec) -> StudySpec:
    """A definition with the options that were given in it, each checked. Raises InputError."""
    given = options.model_fields_set
    trial = spec.trial.model_copy(update=options.given(TrialSpec))
    model_info(trial.model)
    target_info(trial.target)
    if "weights" in given:
        trial = trial.model_copy(update={"weights": weights_path(trial.model, trial.scale, options.weights)})
    if "device" in given:
        trial = trial.model_copy(update={"device": resolve_device(options.device)})
    found = spec.model_copy(update={**options.given(StudyOptions), "trial": trial})
    if "stopping" in given:
        found = found.model_copy(update={"rungs": schedule.rungs(trial.steps) if options.stopping else ()})
    if options.warm_start is not None:
        found = found.model_copy(update={"warm_start": _front_of(options.warm_start)})
    if options.space is not None or options.stages is not None:
        layers = None if options.stages is None else space_layers({"layers": options.stages}, "stages")
        found = found.model_copy(update={"space": space_by(trial, options.space, found.by, layers).to_dict()})
    asked = [*options.objectives, *(each.objective for each in parse_all(options.constraints))]
    check_measurable(asked)
    check_offered(asked, trial.target)
    if options.storage is not None:
        check_url(options.storage)
    if options.memory is not None and not can_bound_memory():
        raise InputError(f"--memory '{options.memory:g}': memory limits need Linux; omit --memory")
    return found


def _front_of(study: str) -> tuple[dict[str, Any], ...]:
    """The policies of the trials on an earlier study's front."""
    earlier = Study.open(study_folder(study))
    found = tuple(record.policy for record in earlier.results().front if record.source == "trial")
    if not found:
        raise InputError(f"--warm-start '{earlier.name}': the front of that study has no trial; give another study")
    return found


def default_objectives(trial: TrialSpec) -> tuple[str, ...]:
    """size, latency (bops where the target offers none), and the quality that suits the network: see `default_quality`."""
    return ("size", "latency" if target_info(trial.target).latency else "bops", default_quality(trial)[0])


def default_quality(trial: TrialSpec) -> tuple[str, str]:
    """The quality that a search optimizes if none is named, and why, in a few words.

    PSNR against an original rewards blur, so only networks trained for it are judged by it.
    """
    if trial.images == "lr":
        return FIDELITY, "low-resolution images have no originals to compare with"
    if is_custom(trial.model):
        return FIDELITY, "what this network was trained for is unknown; --objectives size,latency,psnr if for pixels"
    if model_info(trial.model).perceptual:
        return FIDELITY, f"{trial.model} is trained for perceptual quality, and PSNR against an original would reward blur"
    return "psnr", f"{trial.model} is trained for pixels"


def check_measurable(objectives: Iterable[str]) -> None:
    """Raise InputError for a quality whose model files are not here."""
    from autoq.metrics.quality import METRICS, why_unavailable

    for name in objectives:
        if OBJECTIVES[name].quality and name in METRICS and (reason := why_unavailable(name)):
            raise InputError(reason)


def check_offered(objectives: Iterable[str], target: str) -> None:
    """Raise InputError for latency on a target that offers none."""
    for name in objectives:
        if name == "latency" and not target_info(target).latency:
            raise InputError(f"objective '{name}': {target} offers no latency; type --objectives size,bops,psnr")


def check_originals(objectives: Iterable[str]) -> None:
    """Raise InputError for what compares with an original, where images have none."""
    for name in objectives:
        if OBJECTIVES[name].original:
            raise InputError(
                f"'{name}' needs high-resolution originals, and --images lr has none; replace '{name}' with {FIDELITY},"
                f" for example --objectives size,latency,{FIDELITY}"
            )


def resolve_device(name: DeviceChoice) -> Device:
    """`auto` is the GPU where there is one. Raises InputError for a GPU that is not there."""
    if name == "cpu":
        return name
    from autoq.system.device import has_gpu

    if has_gpu():
        return "cuda"
    if name == "cuda":
        raise InputError("--device 'cuda': torch sees no GPU here; type `--device cpu`, or `autoq doctor` to see why")
    return "cpu"


def model_name(model: Any) -> str:
    """A model's name; where it is a file, from the root, as workers run in other folders; of a module, one that stands for it."""
    if not isinstance(model, str):
        from autoq.networks.given import give

        return give(model)
    if is_file(model):
        return str(Path(model).resolve())
    file, colon, factory = model.rpartition(":")
    return f"{Path(file).resolve()}:{factory}" if colon and file.endswith(".py") else model


def weights_path(model: str, scale: int | None, weights: str | Path | None) -> Path | None:
    """A checkpoint from the root; for `published` the authors', which is fetched where it is not there yet."""
    if str(weights) == REQUEST and not is_given(model):
        return published_file(model, scale or default_scale(model))
    return Path(weights).resolve() if weights else None
