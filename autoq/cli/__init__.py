"""The command line: translates, one library call per command."""

from autoq.cli import deployment, files, networks, studies
from autoq.cli.frame import app, main

__all__ = ["app", "deployment", "files", "main", "networks", "studies"]

ORDER = (
    "search", "report", "dashboard", "finetune", "export", "unpack", "evaluate", "upscale", "sensitivity", "cost", "space", "models", "targets",
    "pretrain", "fetch_metrics", "doctor",
)  # fmt: skip
"""The commands as the help lists them."""

app.registered_commands.sort(key=lambda command: ORDER.index(command.callback.__name__) if command.callback else 0)
