"""A user's network taken out of what it came in: wrappers, tuples, half precision, re-parametrized weights."""

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


def bare(found: Any, name: str) -> nn.Module:
    """A copy of a network as it computes: without wrappers, on the CPU, in float32, in eval mode. `found` stays as it is.

    Raises InputError for what is no module, or one that cannot be taken apart.
    """
    network = unwrapped(_one_network(found, name))
    _check_readable(network, name)
    try:
        network = duplicate(network)
    except Exception as error:
        raise InputError(
            f"model '{name}': it cannot be copied ({brief(error)}); give a network that copy.deepcopy copies"
        ) from error
    for module in list(network.modules()):
        for child, inner in module.named_children():
            if (core := unwrapped(inner)) is not inner:
                setattr(module, child, core)
    return network.cpu().float().requires_grad_(False)


def unwrapped(network: nn.Module) -> nn.Module:
    """What DataParallel, DistributedDataParallel, AveragedModel and torch.compile wrap."""
    while True:
        if isinstance(network, WRAPPERS):
            network = network.module
        elif "_orig_mod" in network._modules:
            network = network.get_submodule("_orig_mod")
        else:
            return network


def _one_network(found: Any, name: str) -> nn.Module:
    """The module itself, or the only one in what a factory gave: (network, configuration)."""
    inside = [*found.values()] if isinstance(found, Mapping) else [*found] if isinstance(found, (tuple, list)) else [found]
    networks = [each for each in inside if isinstance(each, nn.Module)]
    if isinstance(found, nn.Module):
        return found
    if len(networks) == 1:
        return networks[0]
    gave = f"a {type(found).__name__}"
    if networks:
        gave += f" with {len(networks)} of them ({', '.join(type(each).__name__ for each in networks)})"
    raise InputError(
        f"model '{name}': expected one torch.nn.Module, it gave {gave}; give a function that returns the network alone"
    )


def _check_readable(network: nn.Module, name: str) -> None:
    for path, module in network.named_modules():
        if isinstance(module, (torch.jit.ScriptModule, torch.jit.ScriptFunction)):
            where = f"its part '{path}' is TorchScript" if path else "a TorchScript module"
            raise InputError(
                f"model '{name}': {where}, whose operations torch.fx cannot read; give the Python class it was made of, with"
                " its tensors: network.load_state_dict(torch.jit.load(FILE).state_dict())"
            )
    for key, tensor in (*network.named_parameters(), *network.named_buffers()):
        if isinstance(tensor, (UninitializedParameter, UninitializedBuffer)):
            raise InputError(f"model '{name}': '{key}' of a lazy layer has no values yet; run an image through the network once")
        if tensor.is_meta:
            raise InputError(f"model '{name}': '{key}' is on the meta device, without values; make the network on the CPU")


@torch.enable_grad()
def fold(model: nn.Module) -> None:
    """Weights as they are computed, instead of what they are computed from: weight and spectral norm, pruning, any
    parametrization. In place.
    """
    for module in model.modules():
        if parametrize.is_parametrized(module):
            made = type(module)  # copies of a network share it, and what follows changes it
            module.__class__ = type(made.__name__, made.__bases__, dict(vars(made)))
            for name in list(module.parametrizations):  # type: ignore[arg-type]
                parametrize.remove_parametrizations(module, name)
                frozen = module._buffers.pop(name, None)  # a buffer, where what it was computed from needs no gradient
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
    """A copy in eval mode; weights that hooks compute are no leaves of autograd, which deepcopy alone refuses."""
    held = [value for module in model.modules() for value in vars(module).values()]
    computed = {id(value): value.detach().clone() for value in held if isinstance(value, Tensor) and not value.is_leaf}
    return copy.deepcopy(model, computed).eval()
