"""Inference with a network in torch."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from autoq.images.data import to_tensor


def upscale(module: nn.Module, low: np.ndarray, device: str) -> Tensor:
    """Upscale an image: uint8 RGB [h, w, 3] -> float32 [1, 3, scale h, scale w] on the CPU."""
    return apply(module, to_tensor(low), device)


@torch.no_grad()
def apply(module: nn.Module, image: Tensor, device: str) -> Tensor:
    """Run a network on float32 [n, 3, h, w] on `device`; the output is moved to the CPU."""
    output: Tensor = module(image.to(device).contiguous(memory_format=torch.channels_last))
    return output.cpu()
