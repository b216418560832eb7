"""Device features (GPU, bfloat16), reproducibility settings, and memory layout of networks."""

from __future__ import annotations

import functools
from typing import TypeVar

import torch
from torch import nn

M = TypeVar("M", bound=nn.Module)


def has_gpu() -> bool:
    """Whether a GPU is available."""
    return torch.cuda.is_available()


def gpus() -> int:
    """How many GPUs there are."""
    return torch.cuda.device_count()


def make_cuda_repeatable() -> None:
    """Make results on a GPU reproducible: no TF32, deterministic kernels. No effect on a CPU."""
    torch.backends.cudnn.deterministic = True
    torch.backends.cudnn.benchmark = False
    torch.backends.cudnn.allow_tf32 = False
    torch.backends.cuda.matmul.allow_tf32 = False


def channels_last(module: M) -> M:
    """Convert a module to channels-last layout, which oneDNN's fast kernels need, in place."""
    module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return module


@functools.cache
def native_bfloat16(device: str) -> bool:
    """Whether a device has bfloat16 instructions; emulated bfloat16 is slower than float32."""
    if device == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    capabilities = torch.cpu.get_capabilities()
    return bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16"))
