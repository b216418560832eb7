"""What the commands do, as functions: `search` a network's policies, `open_study`, `write_report`.

import autoq

study = autoq.search("srgan", budget=50)
study.front  # a pandas DataFrame
"""

from __future__ import annotations

import datetime
import re
import shlex
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from autoq.config import schedule
from autoq.config.constraints import parse_all
from autoq.config.events import Events
from autoq.config.space import read_space, space_layers
from autoq.config.spec import StudySpec, TrialSpec
from autoq.errors import InputError, StudyError
from autoq.networks import bundled_record, is_custom, is_given, model_info
from autoq.study.storage import check_free
from autoq.study.study import Study, new_folder, study_folder
from autoq.system.processor import available_cores
from autoq.targets import check_usable
from autoq.tuning.options import (
    GRANULARITIES,
    absolute,
    check_measurable,
    check_originals,
    default_objectives,
    default_quality,
    default_scale,
    fields_of,
    model_name,
    resolve_device,
    space_by,
    weights_path,
)

if TYPE_CHECKING:
    from autoq.networks import Own

MAX_WORKERS = 4

ABOUT_MODEL = ("model", "scale", "weights", "target")
TRIAL_OPTIONS = (
    *ABOUT_MODEL, "data", "eval_data", "test_data", "images", "eval_crops", "steps", "seed", "threads", "device", "sampling", "sqcl",
)  # fmt: skip
"""Options that are fields of TrialSpec; the others are fields of StudySpec."""

DEFAULT_BUDGET: int = StudySpec.model_fields["budget"].default
DEFAULT_CONFIRM = 3
DEFAULT_STEPS: int = TrialSpec.model_fields["steps"].default


def search(
    model: str | Own | None = None,
    *,
    scale: int | None = None,
    weights: str | Path | None = None,
    target: str | None = None,
    space: str | Path | None = None,
    stages: Mapping[str, str | Sequence[str]] | None = None,
    by: str | None = None,
    objectives: str | Iterable[str] | None = None,
    constraints: Iterable[str] | None = None,
    data: str | Path | None = None,
    eval_data: str | Path | None = None,
    test_data: str | Path | None = None,
    images: str | None = None,
    eval_crops: str | int | None = None,
    study: str | None = None,
    storage: str | None = None,
    sampler: str | None = None,
    budget: int | None = None,
    max_steps: int | None = None,
    seeds: int | None = None,
    warm_start: str | None = None,
    stopping: bool | None = None,
    steps: int | None = None,
    workers: int | None = None,
    threads: int | None = None,
    memory: float | None = None,
    timeout: float | None = None,
    device: str | None = None,
    sampling: str | None = None,
    sqcl: float | None = None,
    seed: int | None = None,
    frame: str | tuple[int, int] | None = None,
    confirm: int | None = None,
    latency_table: str | Path | None = None,
    resume: bool = False,
    command: str | None = None,
    events: Events | None = None,
) -> Study:
    """Search for the Pareto-best policies of a network. Returns the study; its `.front` is a pandas DataFrame.

    model: a name of `autoq models`, `package.module:factory`, a checkpoint that spandrel knows, or a torch.nn.Module or a
    function that makes one (such a study takes it again to resume or to export). scale: upscaling factor (4, or what weights
    are bundled for; of a network of one's own its output says it). weights: a checkpoint, or `published` for the authors' own;
    bundled ones if None.
    target: where the result will run (`openvino-cpu`). space: a YAML file of what may vary; the model's bundled one if
    None. stages: stage -> patterns of module paths, as {"body": ["body.*"]}, instead of the space's or the model's; of a
    network of which nobody says them they are found. by: what gets formats of its own: stage, block or layer (stage).
    objectives: two or more names; size, latency and the best quality this machine can measure if None.
    constraints: bounds that points on the front keep, as `size<=400KiB`,
    `latency<=10ms` or `psnr_drop<=0.1` (worse than float). data, eval_data: image folders; photographs inside
    installed packages if None. test_data: images that no trial is judged on, for the confirmation of the front. images: `hr`
    where folders hold originals, which are reduced (hr), `lr` where they hold inputs of the network. eval_crops: how many crops
    of evaluation and test images are looked at, or `all` for whole images (whole images of a small folder, else 32). study: a
    name under studies/ or an absolute path; from model and time if None. storage: URL of a database for Optuna; a file in
    the study if None. sampler: auto, tpe, gp, nsga2, nsga3 or random. budget: policies to try (50). max_steps: training
    steps of all trials after which no new one begins. seeds: of the budget, those that the sensitivity of the stages
    proposes, first (half, at most 16). warm_start: an earlier study, whose front up to half of the seeds are like.
    stopping: whether trials that others beat on the way stop there (yes). steps: training steps of a trial (32). workers:
    trials at once (one a core, at most 4). threads: of each trial (cores / workers). memory: GiB a worker may hold;
    timeout: seconds a trial may take (no limits). device: auto, cpu or cuda. sampling: where training patches are cut:
    uniform, proportional to their complexity, or above a threshold of it. sqcl: weight of FQSR's calibration loss in training
    (0: without). seed: of patches, training and sampler (0).
    frame: (width, height) or `96x96`, what latency is measured at. confirm: seeds that the front is trained again with at
    the end (3). latency_table: latency.json of an earlier study, instead of measuring. events: what to tell while it runs.

    With `resume` the study is taken up where it was left; every option but `study` may be left out, and must be
    what it was otherwise.

    Raises InputError before anything is written when an option cannot be used, AutoqError when every trial failed,
    KeyboardInterrupt when interrupted; what has finished stays, and `resume` continues it.
    """
    options = {
        name: value
        for name, value in {
            "model": None if model is None else model_name(model), "scale": scale, "weights": weights_path(model if isinstance(model, str) else None, scale, weights), "target": target, "space": space, "stages": stages, "by": by,
            "objectives": _listed(objectives), "constraints": _listed(constraints), "data": absolute(data), "eval_data": absolute(eval_data), "test_data": absolute(test_data), "images": images, "eval_crops": eval_crops, "storage": storage,
            "sampler": sampler, "budget": budget, "max_steps": max_steps, "seeds": seeds, "warm_start": warm_start, "stopping": stopping, "steps": steps, "workers": workers, "threads": threads, "memory": memory,
            "timeout": timeout, "device": device, "sampling": sampling, "sqcl": sqcl, "seed": seed, "frame": _listed(frame), "confirm": confirm,
        }.items()
        if value is not None
    }  # fmt: skip
    events = events or Events()
    table = Path(latency_table) if latency_table else None
    call = command or _call(options, {"study": study, "latency_table": table})
    try:
        opened = _resume(study, options, table) if resume else _create(study, options, table, events, call)
    except OSError as error:
        raise InputError(f"cannot read or write '{error.filename}': {error.strerror}; give another path") from error
    from autoq.tuning.runner import search as drive

    try:
        drive(opened, events=events)
    finally:
        opened.close()
    return opened


def open_study(study: str) -> Study:
    """A study by its name under studies/ or its absolute path, to be read. Raises StudyError if it is none."""
    return Study.open(study_folder(study))


def write_report(study: Study, folder: str | Path = "reports", compare: Study | None = None) -> tuple[Path, Path]:
    """Write a study's HTML page, one offline file, and its front as PNG, from its text files alone. Returns both paths.

    compare: another study of the network, whose front is drawn and weighed against this one's. Raises StudyError where the
    two cannot be compared.
    """
    from autoq.report.build import build_report

    if compare is not None:
        _check_comparable(study, compare)
    return build_report(study, Path(folder), compare)


def _check_comparable(study: Study, other: Study) -> None:
    for what, found, wanted in (
        ("model", other.spec.trial.model, study.spec.trial.model),
        ("scale", other.spec.trial.scale, study.spec.trial.scale),
        ("target", other.spec.trial.target, study.spec.trial.target),
        ("objectives", ",".join(other.spec.objectives), ",".join(study.spec.objectives)),
        ("frame", "{}x{}".format(*other.spec.frame), "{}x{}".format(*study.spec.frame)),
        ("latency threads", other.spec.latency_threads, study.spec.latency_threads),
        ("images", other.spec.trial.images, study.spec.trial.images),
        ("number of evaluation crops", len(other.spec.trial.eval_boxes), len(study.spec.trial.eval_boxes)),
        *((what, other.spec.inputs.get(what), study.spec.inputs.get(what)) for what in ("weights", "eval-data")),
    ):
        if found != wanted:
            raise StudyError(f"study '{other.name}' cannot be compared with '{study.name}': its {what} {found}, here {wanted}")


def _create(name: str | None, options: Mapping[str, Any], table_path: Path | None, events: Events, command: str) -> Study:
    if "model" not in options:
        raise InputError("no model given; type --model srgan")
    trial = TrialSpec(
        **{"scale": default_scale(options["model"]), **{name: options[name] for name in ABOUT_MODEL if name in options}}
    )
    model = trial.model
    fields = {"scale": trial.scale, **fields_of(options, trial)}
    check_usable(trial.target)
    usual = _usual_name(trial)
    folder = study_folder(usual if name is None else name)
    if "objectives" not in fields:
        fields["objectives"] = default_objectives(trial.model_copy(update={"images": fields.get("images", trial.images)}))
    fields.setdefault("device", resolve_device("auto"))
    fields["hand_rule"] = True
    fields.setdefault("confirm", DEFAULT_CONFIRM)
    budget = fields.get("budget", DEFAULT_BUDGET)
    fields.setdefault("seeds", schedule.initial_trials(budget))
    fields.setdefault("rungs", schedule.rungs(fields.get("steps", DEFAULT_STEPS)))
    if fields["seeds"] > budget:
        raise InputError(f"--seeds '{fields['seeds']}': expected no more than the budget of {budget}")
    if fields.get("warm_start") and fields["seeds"] < 2:
        raise InputError(f"--warm-start: of {fields['seeds']} seeds none can be like an earlier study; type --seeds 8")
    cores = available_cores()
    workers = fields.setdefault("workers", min(cores, MAX_WORKERS))
    fields.setdefault("threads", max(1, cores // max(1, workers)))
    if "space" not in fields:
        fields["space"] = space_by(trial, by=fields.get("by", GRANULARITIES[0])).to_dict()
    _check_together(fields)
    settings = {name: fields.pop(name) for name in TRIAL_OPTIONS if name in fields}
    layers = tuple(space_layers(fields["space"], "space").items())
    try:
        spec = StudySpec(trial=TrialSpec(layers=layers, **settings), latency_threads=cores, **fields)
    except ValidationError as error:
        raise InputError(_first_problem(error)) from error

    from autoq.costs.latency.table import read_table
    from autoq.images.crops import check_held_out, decided
    from autoq.images.data import unread
    from autoq.metrics.quality import doubt
    from autoq.trial.context import input_hashes, prepare
    from autoq.tuning.latency_pass import check_table
    from autoq.tuning.runner import environment

    table = read_table(table_path) if table_path else None
    spec = spec.model_copy(update={"trial": decided(spec.trial)})
    if is_custom(model):
        spec = _known(spec, options, events)
    context = prepare(spec.trial, cores)  # bad weights and images end here, before a study exists
    check_held_out(spec.trial)
    spec = spec.model_copy(update={"inputs": input_hashes(spec.trial), "float_layers": context.traced.float_layers})
    if table:
        check_table(table, spec)
    if spec.storage:
        check_free(spec.storage, folder.name)
    folder = new_folder(usual) if name is None else folder
    study = Study.create(folder, spec, environment(command), table.model_dump_json(indent=1) if table else None)
    if (name := _other_network(spec.trial)) is not None:
        events.note(f"the bundled weights of {model} x{trial.scale} are of {name}; --weights takes a file of another depth")
    for images in (spec.trial.data, spec.trial.eval_data, spec.trial.test_data):
        if images and (left_out := unread(images)):
            events.note(left_out)
    if doubtful := doubt(context.float_outputs, context.pairs, trial.scale):
        events.note(doubtful)
    if "objectives" not in options:
        events.note("quality is {}: {}".format(*default_quality(spec.trial)))
    return study


def _usual_name(trial: TrialSpec) -> str:
    """What a study is called after: the network, its scale and the time."""
    plain = re.sub("[^A-Za-z0-9]+", "-", Path(trial.model).stem if is_custom(trial.model) else trial.model).strip("-")
    return f"{plain[:60] or 'network'}-x{trial.scale}-{datetime.datetime.now():%Y%m%d-%H%M%S}"


def _known(spec: StudySpec, options: Mapping[str, Any], events: Events) -> StudySpec:
    """A study that will know the user's own network again. Tells which stages were found where nobody says them."""
    from autoq.graph.loading import load_for

    trial = spec.trial
    loaded = load_for(trial)
    space = Path(options["space"]) if "space" in options else None
    told = "stages" in options or (space is not None and space_layers(read_space(space, trial.model), str(space)))
    if trial.layers and spec.by == GRANULARITIES[0] and not told:
        shown = f"autoq space {trial.model} --scale {trial.scale} prints them, --space FILE overrides"
        shown = "stages=... overrides" if is_given(trial.model) else shown
        events.note(f"stages found in the network: {loaded.stages}; {shown}")
    return spec.model_copy(update={"trial": trial.model_copy(update={"fingerprint": loaded.fingerprint})})


def _check_together(fields: Mapping[str, Any]) -> None:
    """Raise InputError for options that do not go together."""
    if fields.get("by", GRANULARITIES[0]) != GRANULARITIES[0] and "peak_memory" in fields["objectives"]:
        raise InputError(f"--by {fields['by']}: peak_memory counts by the network's own stages; leave one of them out")
    if fields.get("images") == "lr":
        check_originals([*fields["objectives"], *(each.objective for each in parse_all(fields.get("constraints", ())))])
    known = {stage for policy in fields.get("warm_start", ()) for stage in policy["stages"]}
    if known and not known & {*fields["space"]["stages"], *model_info(fields["model"]).patterns}:
        raise InputError("--warm-start: that study and this one share no stage; give one of the same --by")


def _resume(name: str | None, options: Mapping[str, Any], table_path: Path | None) -> Study:
    if name is None:
        raise InputError("--resume: which study? type --study NAME, a folder in studies/")
    folder = study_folder(name)
    found = Study.open(folder)
    if table_path is not None:
        raise StudyError(f"study '{name}' has its own frozen latencies; leave out --latency-table {table_path}")
    spec = found.spec
    options = {option: value for option, value in options.items() if (option, value) != ("device", "auto")}
    resolve_device(spec.trial.device)
    check_measurable(spec.objectives)
    if (stopping := options.pop("stopping", None)) is not None and stopping != bool(spec.rungs):
        was = "--stopping" if spec.rungs else "--no-stopping"
        raise StudyError(f"study '{name}' was started with {was}; leave it out to continue it, or give another --study")
    check_options(name, spec, options, "to continue it")
    check_inputs(name, spec)
    return Study.resume(folder)


def check_options(name: str, spec: StudySpec, options: Mapping[str, Any], purpose: str) -> None:
    """Raise StudyError for an option that is not what a study was started with; purpose: of leaving it out."""
    stored = {**dict(spec), **dict(spec.trial)}
    for option, value in fields_of(options, spec.trial, spec.by).items():
        if value != stored[option]:
            flag = "--constraint" if option == "constraints" else "--" + option.replace("_", "-")
            was, given = _difference(stored[option], value)
            started = f"with {flag} {was}" if stored[option] not in (None, ()) else f"without {flag}"
            raise StudyError(
                f"study '{name}' was started {started}, given {given}; leave {flag} out {purpose}, or give another --study"
            )


def check_inputs(name: str, spec: StudySpec) -> None:
    """Raise StudyError where weights, images or a user's own network are not what they were when a study began."""
    from autoq.networks.given import is_held
    from autoq.trial.context import input_hashes

    if is_given(spec.trial.model) and not is_held(spec.trial.model):
        raise StudyError(
            f"study '{name}': this study's network was given from Python; call autoq.search(model=net, study='{name}', resume=True),"
            f" or autoq.export_point('{name}', FOLDER, model=net, ...)"
        )

    for what, digest in input_hashes(spec.trial).items():
        if spec.inputs and spec.inputs.get(what) != digest:
            raise StudyError(
                f"study '{name}': --{what} is not what it was when the study began; put it back, or give another --study"
            )
    if spec.trial.fingerprint is not None:
        from autoq.graph.loading import CHANGED, load_for

        now = load_for(spec.trial.model_copy(update={"fingerprint": None})).fingerprint
        if now != spec.trial.fingerprint:
            raise StudyError(f"study '{name}': {CHANGED}")


def _other_network(trial: TrialSpec) -> str | None:
    """The name of the network that bundled weights are of, where it is not the one asked for."""
    info = model_info(trial.model)
    if trial.weights is not None or trial.scale not in info.bundled:
        return None
    name: str = bundled_record(info.bundled[trial.scale]).get("model", trial.model)
    return name if name != trial.model else None


def _difference(before: Any, after: Any, path: str = "") -> tuple[str, str]:
    """Both values as text; of nested ones the first place where they differ."""
    if isinstance(before, dict) and isinstance(after, dict):
        for key in {**before, **after}:
            if before.get(key) != after.get(key):
                return _difference(before.get(key), after.get(key), f"{path}.{key}" if path else str(key))
    was, given = (f"{path}: {value}" if path else _typed(value) for value in (before, after))
    return was, given


def _typed(value: Any) -> str:
    """An option's value as it is typed: `size,psnr`, `96x96`."""
    if not isinstance(value, tuple):
        return str(value)
    return ("," if value and isinstance(value[0], str) else "x").join(map(str, value))


def _first_problem(error: ValidationError) -> str:
    """The first complaint of pydantic in one line."""
    problem = error.errors()[0]
    return f"{'.'.join(map(str, problem['loc']))} '{problem['input']}': {problem['msg']}"


def _listed(value: Any) -> Any:
    """Several values as a tuple, for they are looked at more than once; one as it is."""
    return tuple(value) if isinstance(value, Iterable) and not isinstance(value, str) else value


def _call(options: Mapping[str, Any], others: Mapping[str, Any]) -> str:
    """The command that does what a call of `search` did; the call itself where the network is an object.

    others: options that are not of a study's definition, or None.
    """
    if is_given(str(options.get("model"))):
        given = {name: value for name, value in {**options, **others}.items() if name != "model" and value is not None}
        words = [f"{name}={(str(value) if isinstance(value, Path) else value)!r}" for name, value in given.items()]
        return f"autoq.search(net, {', '.join(words)})"
    words = []
    for name, value in {**options, **others}.items():
        flag = f"--{name.replace('_', '-')}"
        if isinstance(value, bool):
            words.append(flag if value else flag.replace("--", "--no-", 1))
        elif name == "constraints":
            words += [word for bound in ([value] if isinstance(value, str) else value) for word in ("--constraint", str(bound))]
        elif value is not None:
            words += [flag, _typed(value)]
    return shlex.join(["autoq", "search", *words])
