"""What is asked for: options of the commands checked and turned into fields of the specs, and their defaults."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal, get_args

from autoq.config import schedule
from autoq.config.constraints import parse_all
from autoq.config.objectives import FIDELITY, OBJECTIVES, OF_LATENCY, check_objectives
from autoq.config.space import SearchSpace, bundled_space, parse_space, read_space, space_layers
from autoq.config.spec import Device, Granularity, Images, SamplerName, Sampling, TrialSpec
from autoq.errors import InputError, unknown
from autoq.networks import is_custom, is_file, model_info
from autoq.networks.published import REQUEST, published_file
from autoq.networks.stages import StagePatterns
from autoq.study import results
from autoq.study.storage import check_url
from autoq.study.study import Study, space_facts, study_folder
from autoq.system.limits import can_bound_memory
from autoq.targets import target_info

SAMPLERS: tuple[str, ...] = get_args(SamplerName)
SAMPLINGS: tuple[str, ...] = get_args(Sampling)
IMAGES: tuple[str, ...] = get_args(Images)
DEVICES = ("auto", *get_args(Device))
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
        raise InputError(unknown("granularity", by, GRANULARITIES))
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


def fields_of(options: Mapping[str, Any], trial: TrialSpec, by: str = GRANULARITIES[0]) -> dict[str, Any]:
    """Options as fields of the specs, each checked. Raises InputError. trial, by: of the study, where it is one already."""
    fields = dict(options)
    model_info(options.get("model", trial.model))
    target = options.get("target", trial.target)
    target_info(target)
    if "sampling" in fields:
        check_sampling(fields["sampling"])
    if "images" in fields and fields["images"] not in IMAGES:
        raise InputError(unknown("kind of images", fields["images"], IMAGES))
    if "eval_crops" in fields:
        fields["eval_crops"] = parse_crops(str(fields["eval_crops"]))
    if "stopping" in fields:
        fields["rungs"] = schedule.rungs(fields.get("steps", trial.steps)) if fields.pop("stopping") else ()
    if "warm_start" in fields:
        earlier = Study.open(study_folder(fields["warm_start"]))
        front = results.front(earlier.records(), earlier.spec.objectives)
        fields["warm_start"] = tuple(record.policy for record in front if record.source == "trial")
        if not fields["warm_start"]:
            raise InputError(f"--warm-start '{earlier.name}': no trial of that study is on its front; give another study")
    if "sampler" in fields and fields["sampler"] not in SAMPLERS:
        raise InputError(unknown("sampler", fields["sampler"], SAMPLERS))
    if "frame" in fields:
        frame = fields["frame"]
        fields["frame"] = parse_frame(frame if isinstance(frame, str) else "x".join(map(str, frame)))
    if "by" in fields and fields["by"] not in GRANULARITIES:
        raise InputError(unknown("granularity", fields["by"], GRANULARITIES))
    stages = fields.pop("stages", None)
    if "space" in fields or stages is not None:
        path = Path(fields["space"]) if "space" in fields else None
        layers = None if stages is None else space_layers({"layers": stages}, "stages")
        fields["space"] = space_by(trial, path, fields.get("by", by), layers).to_dict()
    if "objectives" in fields:
        given = fields["objectives"]
        names = tuple(name.strip() for name in given.split(",")) if isinstance(given, str) else tuple(given)
        check_objectives(names)
        check_measurable(names)
        check_offered(names, target)
        fields["objectives"] = names
    if "constraints" in fields:
        given_bounds = fields["constraints"]
        bounds = parse_all([given_bounds] if isinstance(given_bounds, str) else given_bounds)
        check_measurable({each.objective for each in bounds})
        check_offered((each.objective for each in bounds), target)
        fields["constraints"] = tuple(each.text for each in bounds)
    if "storage" in fields:
        check_url(fields["storage"])
    if "memory" in fields and not can_bound_memory():
        raise InputError(f"--memory '{fields['memory']:g}': only Linux says how much a process holds; leave --memory out")
    if "device" in fields:
        fields["device"] = resolve_device(fields["device"])
    return fields


def default_objectives(trial: TrialSpec) -> tuple[str, ...]:
    """size, latency (bops where the target offers none), and the quality that suits the network: see `default_quality`."""
    return ("size", "latency" if target_info(trial.target).latency else "bops", default_quality(trial)[0])


def default_quality(trial: TrialSpec) -> tuple[str, str]:
    """The quality that a search optimizes if none is named, and why, in a few words.

    PSNR to an original rewards blur, so only networks trained for it are judged by it.
    """
    if trial.images == "lr":
        return FIDELITY, "low-resolution images have no originals to compare with"
    if is_custom(trial.model):
        return FIDELITY, "what this network was trained for is unknown; --objectives size,latency,psnr if for pixels"
    if model_info(trial.model).perceptual:
        return FIDELITY, f"{trial.model} is trained for looks, and PSNR to an original would reward blur"
    return "psnr", f"{trial.model} is trained for pixels"


def check_measurable(objectives: Iterable[str]) -> None:
    """Raise InputError for a quality whose model files are not here."""
    from autoq.metrics.quality import METRICS, why_unavailable

    for name in objectives:
        if OBJECTIVES[name].quality and name in METRICS and (reason := why_unavailable(name)):
            raise InputError(reason)


def check_offered(objectives: Iterable[str], target: str) -> None:
    """Raise InputError for what is made of a latency, on a target that offers none."""
    for name in objectives:
        if name in OF_LATENCY and not target_info(target).latency:
            raise InputError(f"objective '{name}': {target} offers no latency; take bops or ops, for example size,bops,psnr")


def check_originals(objectives: Iterable[str]) -> None:
    """Raise InputError for what compares with an original, where images have none."""
    for name in objectives:
        if OBJECTIVES[name].original:
            raise InputError(
                f"'{name}' needs originals, and --images lr has none; take {FIDELITY}, --objectives size,latency,{FIDELITY}"
            )


def check_sampling(name: str) -> None:
    """Raise InputError for a sampling of patches that does not exist."""
    if name not in SAMPLINGS:
        raise InputError(unknown("sampling", name, SAMPLINGS))


def parse_crops(text: str) -> int | Literal["all"]:
    """How many crops of evaluation images are looked at, or `all` for whole images. Raises InputError."""
    if text == "all":
        return "all"
    if not re.fullmatch("[1-9][0-9]{0,5}", text):
        raise InputError(f"--eval-crops '{text}': expected a whole number from 1 to 999999, or all; type --eval-crops 32")
    return int(text)


def resolve_device(name: str) -> str:
    if name not in DEVICES:
        raise InputError(unknown("device", name, DEVICES))
    if name == "cpu":
        return name
    from autoq.system.device import has_gpu

    if has_gpu():
        return "cuda"
    if name == "cuda":
        raise InputError("device 'cuda': torch sees no GPU here; type --device cpu, or autoq doctor to see why")
    return "cpu"


def parse_frame(text: str, option: str = "frame") -> tuple[int, int]:
    """`96x64` -> (96, 64). Raises InputError."""
    parts = text.lower().split("x")
    if len(parts) != 2 or not all(re.fullmatch("[0-9]{2,4}", part) and 16 <= int(part) <= 8192 for part in parts):
        raise InputError(f"{option} '{text}': expected WIDTHxHEIGHT, each 16 to 8192 pixels, for example 96x96")
    return int(parts[0]), int(parts[1])


def model_name(model: Any) -> str:
    """A model's name; where it is a file, from the root, as workers run in other folders; of a module, one that stands for it."""
    if not isinstance(model, str):
        from autoq.networks.given import give

        return give(model)
    if is_file(model):
        return str(Path(model).resolve())
    file, colon, factory = model.rpartition(":")
    return f"{Path(file).resolve()}:{factory}" if colon and file.endswith(".py") else model


def weights_path(model: str | None, scale: int | None, weights: str | Path | None) -> Path | None:
    """A checkpoint from the root; for `published` the authors', which is fetched where it is not there yet."""
    if model is not None and str(weights) == REQUEST:
        return published_file(model, scale or default_scale(model))
    return absolute(weights)


def absolute(path: str | Path | None) -> Path | None:
    return Path(path).resolve() if path else None
