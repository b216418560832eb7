"""The published model files of metrics: where they lie, and where they come from when they are asked for."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from autoq.system.download import download

ADDRESS = "https://huggingface.co/chaofengc/IQA-PyTorch-Weights/resolve/main"
"""Where pyiqa publishes them."""


@dataclass(frozen=True)
class ModelFile:
    """A published file. checksum: its SHA-256, where it is known; otherwise the server says it."""

    name: str
    checksum: str | None = None

    @property
    def path(self) -> Path:
        """Where it lies, whether it is there or not."""
        return metrics_folder() / self.name

    def fetch(self, progress: Callable[[int, int], None]) -> None:
        """Download it. Raises AutoqError where that fails."""
        download(f"{ADDRESS}/{self.name}", self.path, self.checksum, progress)


MODEL_FILES = {
    "niqe": ModelFile("niqe_modelparameters.mat", "fa2aa4d12dd9595c3fb6bf8b4e1a15c79d5d1469238d0901c88dead195be578d"),
    "nrqm": ModelFile("NRQM_model.mat"),
}
"""Model -> its file."""


def metrics_folder() -> Path:
    """The folder of the files, where pyiqa has them: `hub/pyiqa` in torch's home."""
    return Path(torch.hub.get_dir()) / "pyiqa"
