"""What lets other packages work together that would not by themselves."""

from __future__ import annotations

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
