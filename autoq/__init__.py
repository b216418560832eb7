"""autoq finds the Pareto-optimal ways to quantize a super-resolution network for a deployment target.

study = autoq.search("srgan", budget=50)
study.front                     # a pandas DataFrame
autoq.write_report(study)       # reports/<name>.html
autoq.open_study("srgan-x4")    # an earlier study, to read
autoq.finetune(study, pick="compromise")                    # trains a point for long, and adds the result to the study
autoq.export_point(study, "compromise", pick="compromise")  # a point of the front, as files that run
autoq.upscale("compromise/model.onnx", "photo.png", "large.png")
autoq.evaluate("compromise/model.onnx", data="Set5")
autoq.sensitivity("srgan")      # how much quality each stage loses when quantized alone
autoq.cost("srgan", policy="8/8/8")
autoq.models()                  # the networks and their weights
autoq.fetch_metrics("pi")       # downloads the model files of a metric
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from autoq.api.deployment import export_point, unpack
    from autoq.api.finetuning import finetune
    from autoq.api.metrics import fetch_metrics
    from autoq.api.networks import cost, models, pretrain, sensitivity
    from autoq.api.studies import open_study, search, write_report
    from autoq.config.events import Events, TrainingEvents
    from autoq.config.options import FinetuneOptions, PretrainOptions, SearchOptions
    from autoq.config.spec import Record
    from autoq.deploy.evaluate import evaluate
    from autoq.deploy.upscale import upscale
    from autoq.errors import AutoqError, InputError
    from autoq.study.study import Study

__all__ = [
    "AutoqError", "Events", "FinetuneOptions", "InputError", "PretrainOptions", "Record", "SearchOptions", "Study",
    "TrainingEvents", "__version__", "cost", "evaluate", "export_point", "fetch_metrics", "finetune", "models", "open_study",
    "pretrain", "search", "sensitivity", "unpack", "upscale", "write_report",
]  # fmt: skip

_HOMES = {
    "AutoqError": "errors", "Events": "config.events", "FinetuneOptions": "config.options", "InputError": "errors",
    "PretrainOptions": "config.options", "Record": "config.spec", "SearchOptions": "config.options", "Study": "study.study",
    "TrainingEvents": "config.events", "cost": "api.networks", "evaluate": "deploy.evaluate",
    "export_point": "api.deployment", "fetch_metrics": "api.metrics", "finetune": "api.finetuning", "models": "api.networks",
    "open_study": "api.studies",
    "pretrain": "api.networks", "search": "api.studies", "sensitivity": "api.networks", "unpack": "api.deployment",
    "upscale": "deploy.upscale", "write_report": "api.studies",
}  # fmt: skip

logging.getLogger("autoq").addHandler(logging.NullHandler())  # records go where the application sends them, by default nowhere


def __getattr__(name: str) -> Any:
    """Public names are imported when first used: the command line starts without torch, ray and optuna."""
    import importlib

    if name not in _HOMES:
        raise AttributeError(f"module 'autoq' has no attribute {name!r}")
    return getattr(importlib.import_module(f"autoq.{_HOMES[name]}"), name)
