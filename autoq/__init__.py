"""autoq finds the Pareto-best ways to quantize a super-resolution network for a target.

study = autoq.search("srgan", budget=50)
study.front                     # a pandas DataFrame
autoq.write_report(study)       # reports/<name>.html
autoq.open_study("srgan-x4")    # a study of earlier, to be read
autoq.export_point(study, "compromise", pick="compromise")  # a point as files that run
autoq.upscale("compromise/model.onnx", "photo.png", "large.png")
autoq.evaluate("compromise/model.onnx", data="Set5")
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from autoq.api.deployment import export_point, unpack
    from autoq.api.studies import open_study, search, write_report
    from autoq.config.events import Events
    from autoq.deploy.evaluate import evaluate
    from autoq.deploy.upscale import upscale
    from autoq.errors import AutoqError, InputError
    from autoq.study.study import Study

__all__ = [
    "AutoqError", "Events", "InputError", "Study", "__version__",
    "evaluate", "export_point", "open_study", "search", "unpack", "upscale", "write_report",
]  # fmt: skip

_HOMES = {
    "AutoqError": "errors", "Events": "config.events", "InputError": "errors", "Study": "study.study",
    "evaluate": "deploy.evaluate", "export_point": "api.deployment", "open_study": "api.studies", "search": "api.studies",
    "unpack": "api.deployment", "upscale": "deploy.upscale", "write_report": "api.studies",
}  # fmt: skip


def __getattr__(name: str) -> Any:
    """Public names are imported when first used: the command line starts without torch, ray and optuna."""
    import importlib

    if name not in _HOMES:
        raise AttributeError(f"module 'autoq' has no attribute {name!r}")
    return getattr(importlib.import_module(f"autoq.{_HOMES[name]}"), name)
