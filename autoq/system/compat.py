"""Workarounds for other packages, and isolation of user code."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator

import torch

SCHEMAS = (
    "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
)
_KEPT: list[torch.library.Library] = []


def allow_torchvision() -> None:
    """Make torchvision importable if its compiled operators do not load, for example with a CPU-only torch.

    The operators are not used here, but their schemas must exist when torchvision is imported.
    """
    library = torch.library.Library("torchvision", "FRAGMENT")
    for schema in SCHEMAS:
        if not hasattr(torch.ops.torchvision, schema.partition("(")[0]):
            library.define(schema)
    _KEPT.append(library)  # the schemas live as long as the library object


@contextlib.contextmanager
def guest_code() -> Iterator[None]:
    """Context for running user code: its output goes to standard error, and `sys.argv` has no arguments.

    Standard output is reserved for a command's result, and a module may parse `sys.argv` when imported.
    """
    arguments = sys.argv
    sys.argv = arguments[:1]
    try:
        with contextlib.redirect_stdout(sys.stderr):
            yield
    finally:
        sys.argv = arguments
