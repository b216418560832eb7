"""Normalize a user's network: remove wrappers, tuples, half precision and weight parametrizations."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import UninitializedBuffer, UninitializedParameter
from torch.nn.utils import parametrize, prune
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm
from torch.optim.swa_utils import AveragedModel

from autoq.errors import InputError

WRAPPERS = (nn.DataParallel, nn.parallel.DistributedDataParallel, AveragedModel)


def brief(error: BaseException) -> str:
    """An exception in one line."""
    return f"{type(error).__name__}: {' '.join(str(error).split())}"


def bare(result: Any, name: str) -> nn.Module:
    """A copy of a network without wrappers, on the CPU, in float32 and eval mode. The original does not change.

    Args:
        result: A module, or a factory's result that contains one module.
        name: Name of the network, for messages.

    Raises:
        InputError: There is no module, or it cannot be read or copied.
    """
    network = unwrapped(_one_network(result, name))
    _check_readable(network, name)
    try:
        network = duplicate(network)
    except Exception as error:
        raise InputError(f"model '{name}' cannot be copied ({brief(error)}); give a network that supports copy.deepcopy") from error
    for module in list(network.modules()):
        for child, inner in module.named_children():
            if (core := unwrapped(inner)) is not inner:
                setattr(module, child, core)
    return network.cpu().float().requires_grad_(False)


def unwrapped(network: nn.Module) -> nn.Module:
    """The network inside DataParallel, DistributedDataParallel, AveragedModel and torch.compile."""
    while True:
        if isinstance(network, WRAPPERS):
            network = network.module
        elif "_orig_mod" in network._modules:
            network = network.get_submodule("_orig_mod")
        else:
            return network


def _one_network(result: Any, name: str) -> nn.Module:
    """The module itself, or the only module in a tuple, list or dict such as (network, configuration)."""
    items = [*result.values()] if isinstance(result, Mapping) else [*result] if isinstance(result, (tuple, list)) else [result]
    networks = [item for item in items if isinstance(item, nn.Module)]
    if isinstance(result, nn.Module):
        return result
    if len(networks) == 1:
        return networks[0]
    given = f"a result of type {type(result).__name__}"
    if networks:
        given += f" with {len(networks)} modules ({', '.join(type(network).__name__ for network in networks)})"
    raise InputError(f"model '{name}': got {given}, expected one torch.nn.Module; give a function that returns only the network")


def _check_readable(network: nn.Module, name: str) -> None:
    for path, module in network.named_modules():
        if isinstance(module, (torch.jit.ScriptModule, torch.jit.ScriptFunction)):
            where = f"its submodule '{path}' is TorchScript" if path else "the network is TorchScript"
            raise InputError(
                f"model '{name}': {where}, which torch.fx cannot trace; create the network from its Python class and load the"
                " tensors: network.load_state_dict(torch.jit.load(FILE).state_dict())"
            )
    for key, tensor in (*network.named_parameters(), *network.named_buffers()):
        if isinstance(tensor, (UninitializedParameter, UninitializedBuffer)):
            raise InputError(f"model '{name}': lazy parameter '{key}' is not initialized; run the network on an image first")
        if tensor.is_meta:
            raise InputError(f"model '{name}': '{key}' is on the meta device and has no values; create the network on the CPU")


@torch.enable_grad()
def fold(model: nn.Module) -> None:
    """Replace parametrized weights by their values, in place: weight norm, spectral norm, pruning, any parametrization."""
    for module in model.modules():
        if parametrize.is_parametrized(module):
            shared = type(module)  # copies of a network share this class, and remove_parametrizations changes it
            module.__class__ = type(shared.__name__, shared.__bases__, dict(vars(shared)))
            for name in list(module.parametrizations):  # type: ignore[arg-type]
                parametrize.remove_parametrizations(module, name)
                frozen = module._buffers.pop(name, None)  # a buffer if its sources need no gradient
                if frozen is not None:
                    module.register_parameter(name, nn.Parameter(frozen))
        for hook in list(module._forward_pre_hooks.values()):
            if isinstance(hook, WeightNorm):
                nn.utils.remove_weight_norm(module, hook.name)
            elif isinstance(hook, SpectralNorm):
                nn.utils.remove_spectral_norm(module, hook.name)
            elif isinstance(hook, prune.BasePruningMethod):
                prune.remove(module, hook._tensor_name)


def duplicate(model: nn.Module) -> nn.Module:
    """A copy in eval mode. Weights computed by hooks are detached first, as deepcopy accepts only leaves of autograd."""
    attributes = [value for module in model.modules() for value in vars(module).values()]
    computed = {id(value): value.detach().clone() for value in attributes if isinstance(value, Tensor) and not value.is_leaf}
    return copy.deepcopy(model, computed).eval()
