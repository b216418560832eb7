"""Training by several processes together (torch.distributed): each takes its share of every batch, and gradients are averaged.

Without `joined` a process is alone, and everything here does nothing.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor, nn
from torch import distributed as dist

T = TypeVar("T")

MEETING = timedelta(minutes=10)
"""Most time that processes wait for each other: preparing images takes a while."""


@contextlib.contextmanager
def joined(meeting: Path, rank: int, processes: int, device: str) -> Iterator[None]:
    """Be process `rank` of several on this machine; on GPUs each has its own.

    Args:
        meeting: A file that does not exist yet, the same for all.
        rank: 0 leads.
        processes: All of them.
        device: cpu or cuda.
    """
    for library in ("GLOO", "NCCL"):
        os.environ.setdefault(f"{library}_SOCKET_IFNAME", "lo")  # they listen on 127.0.0.1 alone
    if device == "cuda":
        torch.cuda.set_device(rank)
    backend = "nccl" if device == "cuda" else "gloo"
    dist.init_process_group(backend, init_method=f"file://{meeting}", rank=rank, world_size=processes, timeout=MEETING)
    try:
        yield
    finally:
        dist.destroy_process_group()


def leads() -> bool:
    """Whether this process is the one that judges and writes."""
    return not dist.is_initialized() or dist.get_rank() == 0


def told(value: T) -> T:
    """The leader's value."""
    if not dist.is_initialized():
        return value
    values = [value]
    dist.broadcast_object_list(values, 0)
    return values[0]


def share(batch: np.ndarray) -> np.ndarray:
    """This process's part of a batch, which divides by the number of processes."""
    return batch[dist.get_rank() :: dist.get_world_size()] if dist.is_initialized() else batch


def mean(value: Tensor) -> Tensor:
    """The mean over all processes of a value without a gradient."""
    if not dist.is_initialized():
        return value
    total = value.clone()
    dist.all_reduce(total)
    return total / dist.get_world_size()


@torch.no_grad()
def unite(module: nn.Module) -> None:
    """Average the gradients of a network over all processes, and give it the leader's buffers, which its observers change."""
    if not dist.is_initialized():
        return
    gradients = [parameter.grad for parameter in module.parameters() if parameter.grad is not None]
    _replace(gradients, mean(_flat(gradients)))
    buffers = [buffer for buffer in module.buffers() if buffer.is_floating_point()]
    if buffers:
        flat = _flat(buffers)
        dist.broadcast(flat, 0)
        _replace(buffers, flat)


def _flat(tensors: list[Tensor]) -> Tensor:
    return torch.cat([tensor.flatten().float() for tensor in tensors])


def _replace(tensors: list[Tensor], flat: Tensor) -> None:
    for tensor, part in zip(tensors, flat.split([tensor.numel() for tensor in tensors]), strict=True):
        tensor.copy_(part.view_as(tensor))
