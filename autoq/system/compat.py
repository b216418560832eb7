"""What lets other packages work together that would not by themselves."""

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
    """Let torchvision be imported where its compiled operators do not load, as beside a CPU-only torch.

    Nothing used here needs them; their schemas must exist for torchvision to import.
    """
    library = torch.library.Library("torchvision", "FRAGMENT")
    for schema in SCHEMAS:
        if not hasattr(torch.ops.torchvision, schema.partition("(")[0]):
            library.define(schema)
    _KEPT.append(library)  # the schemas go with the library object


@contextlib.contextmanager
def guest_code() -> Iterator[None]:
    """Run code of a user's own: what it prints goes to standard error, and it does not see autoq's command line.

    Standard output belongs to a command's result, and a module may parse `sys.argv` while it is imported.
    """
    arguments = sys.argv
    sys.argv = arguments[:1]
    try:
        with contextlib.redirect_stdout(sys.stderr):
            yield
    finally:
        sys.argv = arguments
