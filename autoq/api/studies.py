"""Studies: `search`, `open_study`, `write_report`."""

from __future__ import annotations

import datetime
import inspect
import re
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Any

from autoq.config import schedule
from autoq.config.constraints import parse_all
from autoq.config.events import Events
from autoq.config.options import RunOptions, SearchOptions
from autoq.config.space_file import read_space, space_layers
from autoq.config.spec import StudySpec, TrialSpec
from autoq.config.validators import flag
from autoq.errors import InputError, StudyError
from autoq.networks import bundled_record, is_custom, is_given, model_info
from autoq.study.database import check_free
from autoq.study.study import Study, check_unused, new_folder, study_folder
from autoq.system.processor import available_cores
from autoq.targets import check_usable
from autoq.tuning.options import (
    GRANULARITIES,
    applied,
    check_measurable,
    check_originals,
    default_objectives,
    default_quality,
    default_scale,
    model_name,
    resolve_device,
    space_by,
)

if TYPE_CHECKING:
    from autoq.networks import Own
    from autoq.trial.context import TrialContext

MAX_WORKERS = 4


def search(model: str | Own | None = None, *, events: Events | None = None, command: str | None = None, **options: Any) -> Study:
    """Search for the Pareto-optimal policies of a network.

    With `resume=True` the study continues where it stopped. Every option but `study` may then be omitted; one that is given
    must be what the study was started with.

    Args:
        model: A name of `autoq.models()`, `package.module:factory`, a checkpoint that spandrel knows, or a torch.nn.Module or
            a function that makes one. A study of a module needs the module again to resume and to export.
        events: Called while the search runs; see `autoq.Events`. By default a notebook shows progress, and elsewhere the logger
            `autoq` gets it at INFO.
        command: The command to record in the study; by default the one that does the same.
        options: The fields of `autoq.SearchOptions`, as `budget=50`; None means not given.

    Returns:
        The study. `study.front` is a pandas DataFrame.

    Raises:
        InputError: An option cannot be used. Nothing has been written then.
        AutoqError: Every trial failed.
        KeyboardInterrupt: The search was interrupted. Finished trials are kept, and `resume=True` continues it.
    """
    asked = SearchOptions.of(model=None if model is None else model_name(model), **options)
    from autoq.report.progress import listening

    with listening(events) as heard:
        try:
            opened, context = (_resume(asked), None) if asked.resume else _create(asked, heard, command or _call(asked))
        except OSError as error:
            raise InputError(f"cannot read or write '{error.filename}': {error.strerror}; give another path") from error
        from autoq.tuning.runner import search as run

        try:
            run(opened, heard, context)
        finally:
            opened.close()
    return opened


search.__signature__ = inspect.signature(search).replace(  # type: ignore[attr-defined]
    parameters=[
        *[each for each in inspect.signature(search).parameters.values() if each.kind is not each.VAR_KEYWORD],
        *[
            inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=field.annotation)
            for name, field in SearchOptions.model_fields.items()
            if name != "model"
        ],
    ]
)
"""What `help` and notebooks show."""


def open_study(study: str) -> Study:
    """Open an earlier study to read it.

    Args:
        study: Its name under studies/, or its absolute path.

    Returns:
        The study. `study.front` is a pandas DataFrame.

    Raises:
        StudyError: There is no study, or its files are damaged.
    """
    return Study.open(study_folder(study))


def write_report(study: Study, folder: str | Path = "reports", compare: Study | None = None) -> tuple[Path, Path]:
    """Write a study's report: an HTML page that needs no other file, and the front as PNG.

    Args:
        study: The study, of `search` or `open_study`.
        folder: Folder to write to.
        compare: Another study of the same network, to show both fronts in one report.

    Returns:
        The paths of the HTML page and of the PNG.

    Raises:
        StudyError: The two studies cannot be compared.
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
        ("kind of images", other.spec.trial.images, study.spec.trial.images),
        ("number of evaluation crops", len(other.spec.trial.eval_boxes), len(study.spec.trial.eval_boxes)),
        *((what, other.spec.inputs.get(what), study.spec.inputs.get(what)) for what in ("weights", "eval-data")),
    ):
        if found != wanted:
            raise StudyError(
                f"study '{other.name}' cannot be compared with '{study.name}': {what} is {found} there and {wanted} here"
            )


def _create(options: SearchOptions, events: Events, command: str) -> tuple[Study, TrialContext]:
    spec = _defined(options)
    if is_custom(spec.trial.model):
        spec = _known(spec, options, events)

    from autoq.costs.latency.table import read_table
    from autoq.images.crops import check_held_out, decided
    from autoq.images.data import unread
    from autoq.metrics.quality import doubt
    from autoq.trial.context import input_hashes, prepare
    from autoq.tuning.latency_pass import check_table
    from autoq.tuning.runner import environment

    usual = _usual_name(spec.trial)
    folder = study_folder(usual if options.study is None else options.study)
    check_unused(folder)
    table = read_table(options.latency_table) if options.latency_table else None
    spec = spec.model_copy(update={"trial": decided(spec.trial)})
    context = prepare(spec.trial, spec.latency_threads)  # bad weights and images end here, before a study exists
    check_held_out(spec.trial)
    spec = spec.model_copy(update={"inputs": input_hashes(spec.trial), "float_layers": context.traced.float_layers})
    if table:
        check_table(table, spec, context)
    if spec.storage:
        check_free(spec.storage, folder.name)
    folder = new_folder(usual) if options.study is None else folder
    study = Study.create(folder, spec, environment(command), table.model_dump_json(indent=1) if table else None)
    trial = spec.trial
    if (name := _other_network(trial)) is not None:
        events.note(f"the bundled weights of {trial.model} x{trial.scale} are those of {name}; --weights takes another checkpoint")
    for images in (trial.data, trial.eval_data, trial.test_data):
        if images and (left_out := unread(images)):
            events.note(left_out)
    if trial.images == "lr" and None in (trial.data, trial.eval_data, trial.test_data):
        events.note("bundled photographs serve as low-resolution inputs where no folder is given")
    if doubtful := doubt(context.float_outputs, context.pairs, trial.scale):
        events.note(doubtful)
    if not options.objectives:
        events.note("quality is {}: {}".format(*default_quality(trial)))
    return study, context


def _defined(options: SearchOptions) -> StudySpec:
    """The definition that options describe, defaults of this machine and network filled in. Raises InputError."""
    given = options.model_fields_set
    if "model" not in given:
        raise InputError(
            "no model given; type `--model NAME` with a name from `autoq models`; for your own network, give package.module:factory or the path of a .pth file"
        )
    cores = available_cores()
    plain = StudySpec(
        trial=TrialSpec(model=options.model, scale=options.scale if "scale" in given else default_scale(options.model)),
        space={},
        objectives=(),
        replications=options.replications,
        first_last_16=True,
        workers=min(cores, MAX_WORKERS),
        latency_threads=cores,
    )
    spec = applied(options, plain)
    check_usable(spec.trial.target)
    if spec.by != GRANULARITIES[0] and "peak_memory" in spec.objectives:
        raise InputError(f"--by {spec.by}: peak_memory is computed from the network's own stages; omit one of them")
    trial = spec.trial
    if "threads" not in given:
        trial = trial.model_copy(update={"threads": max(1, cores // spec.workers)})
    if "device" not in given:
        trial = trial.model_copy(update={"device": resolve_device("auto")})
    space = spec.space or space_by(trial, by=spec.by).to_dict()
    trial = trial.model_copy(update={"layers": tuple(space_layers(space, "space").items())})
    spec = spec.model_copy(
        update={
            "trial": trial,
            "space": space,
            "objectives": spec.objectives or default_objectives(trial),
            "initial_trials": spec.initial_trials if "initial_trials" in given else schedule.initial_trials(spec.budget),
            "rungs": spec.rungs if "stopping" in given else schedule.rungs(trial.steps),
        }
    )
    _check_together(spec)
    return spec


def _usual_name(trial: TrialSpec) -> str:
    """The default name of a study: network, scale and time."""
    plain = re.sub("[^A-Za-z0-9]+", "-", Path(trial.model).stem if is_custom(trial.model) else trial.model).strip("-")
    return f"{plain[:60] or 'network'}-x{trial.scale}-{datetime.datetime.now():%Y%m%d-%H%M%S}"


def _known(spec: StudySpec, options: SearchOptions, events: Events) -> StudySpec:
    """A study that will recognize the user's own network. Notes which stages were detected where they were not given."""
    from autoq.graph.loading import load_for

    trial = spec.trial
    loaded = load_for(trial)
    space = options.space
    told = options.stages is not None or (space is not None and space_layers(read_space(space, trial.model), str(space)))
    if trial.layers and spec.by == GRANULARITIES[0] and not told:
        shown = f"autoq space {trial.model} --scale {trial.scale} prints them, --space FILE overrides"
        shown = "stages=... overrides" if is_given(trial.model) else shown
        events.note(f"stages found in the network: {loaded.stages}; {shown}")
    return spec.model_copy(update={"trial": trial.model_copy(update={"fingerprint": loaded.fingerprint})})


def _check_together(spec: StudySpec) -> None:
    """Raise InputError for options that do not go together."""
    if spec.initial_trials > spec.budget:
        raise InputError(
            f"--initial-trials '{spec.initial_trials}': expected at most the --budget of {spec.budget}; type --initial-trials {spec.budget}, or raise --budget"
        )
    if spec.warm_start and spec.initial_trials < 2:
        raise InputError(
            f"--warm-start: needs at least 2 initial trials, found {spec.initial_trials}, for example --initial-trials 8"
        )
    if spec.trial.images == "lr":
        check_originals([*spec.objectives, *(each.objective for each in parse_all(spec.constraints))])
    known = {stage for policy in spec.warm_start for stage in policy["stages"]}
    if known and not known & {*spec.space["stages"], *model_info(spec.trial.model).patterns}:
        raise InputError("--warm-start: that study and this one have no stage in common; give a study with the same --by")


def _resume(options: SearchOptions) -> Study:
    if options.study is None:
        raise InputError("--resume: no study given; type `--study NAME`, where NAME is a folder in studies/")
    study = Study.open(study_folder(options.study))
    spec = study.spec
    if options.latency_table is not None:
        raise StudyError(f"study '{options.study}' has its own latency table; omit --latency-table {options.latency_table}")
    resolve_device(spec.trial.device)
    check_measurable(spec.objectives)
    check_options(options.study, spec, options, "to continue it")
    check_inputs(options.study, spec)
    study.begin()
    return study


def check_options(name: str, spec: StudySpec, options: SearchOptions, purpose: str) -> None:
    """Raise StudyError for an option that differs from what a study was started with. purpose: of omitting it."""
    given = {
        name for name in options.given() if name not in RunOptions.model_fields and (name, options.device) != ("device", "auto")
    }
    asked = applied(SearchOptions(**options.model_dump(include=given)), spec)
    if "stopping" in given and options.stopping != bool(spec.rungs):
        was = "--stopping" if spec.rungs else "--no-stopping"
        raise StudyError(f"study '{name}' was started with {was}; omit it {purpose}, or give another --study")
    for option in options.given():
        field = "space" if option == "stages" else option
        if option not in given or option == "stopping":
            continue
        stored, value = (getattr(found.trial if field in TrialSpec.model_fields else found, field) for found in (spec, asked))
        if value != stored:
            was, now = _difference(stored, value)
            started = f"with {flag(field)} {was}" if stored not in (None, ()) else f"without {flag(field)}"
            raise StudyError(
                f"study '{name}' was started {started}, given {now}; omit {flag(field)} {purpose}, or give another --study"
            )


def check_inputs(name: str, spec: StudySpec) -> None:
    """Raise StudyError if weights, images or a user's own network have changed since a study began."""
    from autoq.networks.given import is_held
    from autoq.trial.context import input_hashes

    if is_given(spec.trial.model) and not is_held(spec.trial.model):
        raise StudyError(
            f"study '{name}': its network was given from Python; call autoq.search(model=net, study='{name}', resume=True),"
            f" or autoq.export_point('{name}', FOLDER, model=net, ...)"
        )

    for what, digest in input_hashes(spec.trial).items():
        if spec.inputs and spec.inputs.get(what) != digest:
            raise StudyError(f"study '{name}': --{what} has changed since the study began; restore it, or give another --study")
    if spec.trial.fingerprint is not None:
        from autoq.graph.loading import CHANGED, load_for

        now = load_for(spec.trial.model_copy(update={"fingerprint": None})).fingerprint
        if now != spec.trial.fingerprint:
            raise StudyError(f"study '{name}': {CHANGED}")


def _other_network(trial: TrialSpec) -> str | None:
    """The name of the network that the bundled weights belong to, if it is not the one asked for."""
    info = model_info(trial.model)
    if trial.weights is not None or trial.scale not in info.bundled:
        return None
    name: str = bundled_record(info.bundled[trial.scale]).get("model", trial.model)
    return name if name != trial.model else None


def _difference(before: Any, after: Any, path: str = "") -> tuple[str, str]:
    """Both values as text; for nested values, the first place where they differ."""
    if isinstance(before, dict) and isinstance(after, dict):
        for key in {**before, **after}:
            if before.get(key) != after.get(key):
                return _difference(before.get(key), after.get(key), f"{path}.{key}" if path else str(key))
    was, given = (f"{path}: {value}" if path else _typed(value) for value in (before, after))
    return was, given


def _typed(value: Any) -> str:
    """A value as it is typed: `size,psnr`, `96x96`."""
    if not isinstance(value, tuple):
        return str(value)
    return ("," if value and isinstance(value[0], str) else "x").join(map(str, value))


def _call(options: SearchOptions) -> str:
    """The command that does what a call of `search` did; the call itself where the network is an object."""
    if is_given(options.model):
        given = {name: value for name, value in options.given().items() if name != "model"}
        words = [f"{name}={(str(value) if isinstance(value, Path) else value)!r}" for name, value in given.items()]
        return f"autoq.search(net, {', '.join(words)})"
    words = []
    for name, value in options.given().items():
        if name == "resume":
            continue
        if isinstance(value, bool):
            words.append(flag(name) if value else flag(name).replace("--", "--no-", 1))
        elif name == "constraints":
            words += [word for bound in value for word in (flag(name), bound)]
        else:
            words += [flag(name), _typed(value)]
    return shlex.join(["autoq", "search", *words])
