"""The options of a search, each declared once: name, type, default and the words of its help.

The command line, `autoq.search`, the stored definitions of studies and the reference in the documentation follow from these
fields. An option that was not given is absent from `model_fields_set`.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self, get_args

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from autoq.config.datasets import image_folder
from autoq.config.objectives import OBJECTIVES
from autoq.config.validators import MANY, bounds, crops, flag, frame_size, number, objective_names, whole
from autoq.errors import InputError, suggest, unknown

MOST_SEED = 2**32 - 1
MOST_PROCESSES = 1024
MOST_SCALE = 16

Device = Literal["cpu", "cuda"]
DeviceChoice = Literal["auto", "cpu", "cuda"]
Sampling = Literal["uniform", "proportional", "threshold"]
Images = Literal["hr", "lr"]
LossName = Literal["output", "originals", "gradient", "frequency", "features"]
SamplerName = Literal["auto", "tpe", "gp", "nsga2", "nsga3", "random"]
Granularity = Literal["stage", "block", "layer"]

RENAMED = {"seeds": "initial_trials", "confirm": "replications"}
"""Options by their names in earlier versions, which still work."""


@dataclass(frozen=True)
class Option:
    """How an option is shown.

    Args:
        help: What it means, in a sentence.
        default: Its default in words, where that is no constant.
        metavar: Its value in the help of the command line, where the type does not say it.
    """

    help: str
    default: str = ""
    metavar: str = ""


DeviceOption = Annotated[DeviceChoice, Option("Device to train on.")]
SamplingOption = Annotated[
    Sampling,
    Option(
        "How training patches are sampled: uniform, proportional or threshold (the last two prefer complex patches).",
        metavar="NAME",
    ),
]


class Options(BaseModel):
    """Options that belong together. Frozen; a name that is none of them is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    title: ClassVar[str] = "Options"

    @classmethod
    def of(cls, **given: Any) -> Self:
        """Options by name, each checked; None means not given. Raises InputError."""
        options = {}
        for name, value in given.items():
            if value is None:
                continue
            if name in RENAMED:
                logging.getLogger("autoq").warning(f"{flag(name)} is now called {flag(RENAMED[name])}")
            options[RENAMED.get(name, name)] = value
        for name in options:
            if name not in cls.model_fields:
                raise InputError(unknown("option", name, cls.model_fields))
        try:
            return cls(**options)
        except ValidationError as error:
            problem = error.errors()[0]
            name, found = str(problem["loc"][0]), problem["input"]
            choices = get_args(cls.model_fields[name].annotation)
            words = f"expected one of {', '.join(choices)}{suggest(str(found), choices)}"
            raise InputError(
                f"{flag(name)} '{found}': {words if problem['type'] == 'literal_error' else problem['msg']}"
            ) from error

    def given(self, *kinds: type[BaseModel]) -> dict[str, Any]:
        """The options that were given, in the order of their declaration. kinds: those of these models alone."""
        known = {name for kind in kinds or (type(self),) for name in kind.model_fields}
        return {name: getattr(self, name) for name in type(self).model_fields if name in self.model_fields_set & known}


class NetworkOptions(Options):
    """Which network."""

    title = "Network and target"

    model: Annotated[
        str,
        Option(
            "Network: a name (see `autoq models`), package.module:factory (a function that returns the network), or a .pth "
            "file whose architecture spandrel recognizes.",
            metavar="MODEL",
        ),
    ] = ""
    scale: Annotated[
        int,
        whole(1, MOST_SCALE, 4),
        Option("Upscaling factor.", "4, or the scale that weights are bundled for; for your own network, its own", "N"),
    ] = 4
    weights: Annotated[
        Path | None,
        Option(
            "Checkpoint (.safetensors or .pth), or `published` to download the weights that the network's authors released.",
            "bundled weights, or those of your own network",
            "FILE",
        ),
    ] = None


class DeploymentOptions(NetworkOptions):
    """Which network, and where it will run."""

    target: Annotated[str, Option("Deployment target (see `autoq targets`).", metavar="NAME")] = "openvino-cpu"


class FolderOptions(Options):
    """Where images are."""

    title = "Images"

    data_root: Annotated[
        Path | None, Option("Folder of image sets that are given by name, such as set5.", "that in AUTOQ_DATA", "DIR")
    ] = Field(default=None, exclude=True)

    @model_validator(mode="before")
    @classmethod
    def _by_name(cls, given: dict[str, Any]) -> dict[str, Any]:
        """Folders instead of the names of sets."""
        root = given.get("data_root")
        folders = {name: image_folder(given[name], root) for name in ("data", "eval_data", "test_data") if given.get(name)}
        return {**{name: value for name, value in given.items() if name != "data_root"}, **folders}


class ImageOptions(FolderOptions):
    """Images that a network is trained and judged on."""

    title = "Images"

    data: Annotated[Path | None, Option("Folder of images to train and calibrate on.", "bundled photographs", "DIR")] = None
    eval_data: Annotated[Path | None, Option("Folder of images to evaluate trials on.", "other bundled photographs", "DIR")] = None
    test_data: Annotated[
        Path | None, Option("Folder of held-out images, on which the front is evaluated again.", "other bundled photographs", "DIR")
    ] = None
    images: Annotated[
        Images,
        Option(
            "What these folders hold: high-resolution originals (hr), or low-resolution inputs (lr), for which psnr and ssim "
            "are not available."
        ),
    ] = "hr"
    eval_crops: Annotated[
        int | Literal["all"] | None,
        BeforeValidator(crops),
        Option(
            "Number of crops to evaluate on, or `all` for whole images.",
            "all if the images have at most 1,500,000 pixels in total, otherwise 32",
            "all|N",
        ),
    ] = None


class TrainingOptions(Options):
    """How a trial trains."""

    title = "Training"

    steps: Annotated[
        int, whole(0, MANY, 24), Option("Training steps per trial; 0 means post-training quantization.", metavar="N")
    ] = 24
    seed: Annotated[int, whole(0, MOST_SEED, 0), Option("Random seed for patches, training and the sampler.", metavar="N")] = 0
    threads: Annotated[int, whole(1, MOST_PROCESSES, 2), Option("Threads per trial.", "cores divided by workers", "N")] = 1
    device: DeviceOption = "auto"
    sampling: SamplingOption = "proportional"
    sqcl: Annotated[
        float,
        number("a weight", 0.3, least=0),
        Option(
            "Weight of SQCL, the calibration loss of the FQSR paper, which penalizes the error of every quantizer.",
            "0 (off)",
            "WEIGHT",
        ),
    ] = 0.0


class StudyOptions(Options):
    """What a study searches, and how."""

    title = "Search"

    by: Annotated[
        Granularity, Option("Parts of the network that each get their own bit widths, quantizer and range estimator.")
    ] = "stage"
    objectives: Annotated[
        tuple[str, ...],
        BeforeValidator(objective_names),
        Option(
            f"Two or more of {', '.join(OBJECTIVES)}, separated by commas. size: tensors at their own bit"
            " widths. size_runtime: as the runtime stores them. fidelity: PSNR against the float network's output.",
            "size,latency,psnr; for GANs, your own networks and `--images lr`, fidelity instead of psnr",
            "NAMES",
        ),
    ] = ()
    constraints: Annotated[
        tuple[str, ...],
        BeforeValidator(bounds),
        Option(
            "Bound that every Pareto point must satisfy, on one of the objectives above or on a drop in quality: 'size<=400KiB', "
            "'latency<=10ms', 'psnr_drop<=0.1' (at most 0.1 dB below float). Repeatable.",
            metavar="BOUND",
        ),
    ] = ()
    sampler: Annotated[SamplerName, Option(f"Optuna sampler: {', '.join(get_args(SamplerName))}. auto: TPE.", metavar="NAME")] = (
        "auto"
    )
    budget: Annotated[int, whole(1, MANY, 50), Option("Number of trials.", metavar="N")] = 50
    max_steps: Annotated[
        int | None, whole(1, MANY, 2000), Option("Total training steps after which no new trial starts.", "no limit", "N")
    ] = None
    initial_trials: Annotated[
        int,
        whole(0, MANY, 12),
        Option(
            "Number of trials that run first, with policies derived from a sensitivity analysis; they count toward the budget.",
            "half the budget, at most 12",
            "N",
        ),
    ] = 0
    replications: Annotated[
        int,
        whole(0, MANY, 3),
        Option(
            "At the end, train points of the front again with this number of other random seeds, recommended points (smallest, "
            "fastest, compromise) first, for at most an eighth of the time that the trials took.",
            metavar="N",
        ),
    ] = 3
    finetune: Annotated[
        int,
        whole(0, MANY, 3),
        Option(
            "Number of points to finetune at the end, recommended points first; together they get as much time as the trials took.",
            "0 (off)",
            "N",
        ),
    ] = 0
    workers: Annotated[
        int,
        whole(1, MOST_PROCESSES, 2),
        Option("Number of trials that run at once, each in its own process.", "one per core, at most 4", "N"),
    ] = 1
    frame: Annotated[
        tuple[int, int],
        BeforeValidator(frame_size),
        Option("Input size that latency is measured at.", "96x96", "WxH"),
    ] = (96, 96)
    timeout: Annotated[
        float | None, number("seconds", 600), Option("Time limit per trial; a slower trial fails.", "no limit", "SECONDS")
    ] = None
    memory: Annotated[
        float | None, number("GiB", 4), Option("Memory limit per worker; a trial that exceeds it fails.", "no limit", "GIB")
    ] = None
    storage: Annotated[
        str | None,
        Option(
            "Database URL for Optuna's trials. Leave out the password; for PostgreSQL, set PGPASSWORD in the environment.",
            "a file in the study's folder",
            "URL",
        ),
    ] = None


class RunOptions(Options):
    """Options that are no part of a study's definition."""

    title = "Study"

    latency_table: Annotated[
        Path | None, Option("Use the latency.json of an earlier study instead of measuring latency.", metavar="FILE")
    ] = None
    study: Annotated[
        str | None,
        Option("Name of the study's folder in studies/, or an absolute path.", "the network's name and the time", "NAME"),
    ] = None
    resume: Annotated[
        bool, Option("Continue the study given by --study from where it stopped, with the options it was started with.")
    ] = False


class SearchOptions(RunOptions, StudyOptions, TrainingOptions, ImageOptions, DeploymentOptions):
    """Every option of a search."""

    title = "Search"

    space: Annotated[
        Path | None,
        Option(
            "Search space: a YAML file, or the name of a bundled one (see `autoq space --list`).",
            "the network's bundled space",
            "FILE",
        ),
    ] = None
    stages: Any = None
    """From Python alone: stage -> patterns of module paths, instead of the space's or the network's own."""
    warm_start: Annotated[
        str | None, Option("Take up to half of the initial trials from the Pareto front of an earlier study.", metavar="STUDY")
    ] = None
    stopping: Annotated[bool, Option("Stop dominated trials early.", "on")] = True
    ptq: Annotated[bool, Option("Post-training quantization: the same as --steps 0. It takes minutes.")] = False

    @model_validator(mode="before")
    @classmethod
    def _untrained(cls, given: dict[str, Any]) -> dict[str, Any]:
        if not given.get("ptq"):
            return given
        if str(given.get("steps", 0)) != "0":
            raise InputError("--ptq: nothing is trained; omit --steps, or --ptq")
        return {**given, "steps": 0}


class PretrainOptions(NetworkOptions, FolderOptions):
    """Every option of a float training."""

    weights: Annotated[Path | None, Option("Checkpoint to start from.", "none: a new network", "FILE")] = None
    data: Annotated[Path | None, Option("Folder of training images.", "bundled photographs", "DIR")] = None
    eval_data: Annotated[Path | None, Option("Folder of evaluation images.", "bundled photographs", "DIR")] = None
    steps: Annotated[int, whole(0, MANY, 20000), Option("Training steps on pixels.", "the recipe's", "N")] = 0
    adversarial_steps: Annotated[
        int,
        whole(0, MANY, 4000),
        Option("Training steps against a discriminator after that (srgan, esrgan).", "the recipe's", "N"),
    ] = 0
    sampling: SamplingOption = "uniform"
    seed: Annotated[int, whole(0, MOST_SEED, 0), Option("Random seed for initial weights and patches.", metavar="N")] = 0
    threads: Annotated[int, whole(1, MOST_PROCESSES, 2), Option("Threads of the training.", "all cores", "N")] = 1
    device: DeviceOption = "auto"


class FinetuneOptions(Options):
    """Every option of a finetuning."""

    steps: Annotated[int, whole(1, MANY, 2000), Option("Training steps.", "2000, or what fits in --hours", "N")] = 2000
    hours: Annotated[float | None, number("hours", 2), Option("Time of the training, instead of steps.", metavar="H")] = None
    loss: Annotated[
        LossName,
        Option(
            "What is minimized: the distance to the float network's output (output), in the end that to the originals instead"
            " (originals), or the distance of pixel differences (gradient), Fourier magnitudes (frequency) or features between"
            " stages (features) in addition.",
            "originals for studies judged by psnr or ssim, otherwise output",
        ),
    ] = "output"
    processes: Annotated[
        int, whole(1, MOST_PROCESSES, 2), Option("Processes, each with 8 patches of a step; on GPUs each has its own.", metavar="N")
    ] = 1
    threads: Annotated[
        int, whole(1, MOST_PROCESSES, 2), Option("Threads of a process of the training.", "all cores, shared by the processes", "N")
    ] = 1
    device: DeviceOption = "auto"


def option_of(name: str, model: type[Options] = SearchOptions) -> Option:
    """How a field is shown, its default in words filled in."""
    field = model.model_fields[name]
    found = next(item for item in field.metadata if isinstance(item, Option))
    choices = get_args(field.annotation) if all(isinstance(each, str) for each in get_args(field.annotation)) else ()
    constant = "" if field.default is None or field.default is False or field.default in ("", ()) else str(field.default)
    return Option(found.help, found.default or constant, found.metavar or "|".join(choices))
