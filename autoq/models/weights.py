"""Checkpoints: read without running code, recognized by their keys, loaded strictly."""

from __future__ import annotations

import pickle
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from autoq.errors import WeightsError

StateDict = dict[str, Tensor]
Layout = Callable[[StateDict], tuple[dict[str, Any], StateDict] | None]
"""A published key layout: state dict -> (constructor arguments, our state dict), or None if it is not that layout."""


def read_state_dict(path: Path) -> StateDict:
    """Tensors of a .safetensors or .pth / .pt file, float32. Never executes code from the file.

    Raises WeightsError when the file is missing, is a pickled module, or holds no state dict.
    """
    if not path.is_file():
        raise WeightsError(f"weights '{path}': no such file; give --weights a .safetensors or .pth file")
    try:
        loaded = load_file(path) if path.suffix == ".safetensors" else torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise WeightsError(
            f"weights '{path}': a pickled Python object, and loading it would run its code; expected a state dict;"
            " where you trust it, save torch.save(model.state_dict(), FILE) there and give that FILE"
        ) from error
    except (SafetensorError, RuntimeError, EOFError, ValueError) as error:
        raise WeightsError(f"weights '{path}': not a readable checkpoint ({str(error).splitlines()[0]})") from error
    for wrapper in ("params_ema", "params", "state_dict"):
        if isinstance(loaded, Mapping) and isinstance(loaded.get(wrapper), Mapping):
            loaded = loaded[wrapper]
            break
    if not isinstance(loaded, Mapping) or not all(isinstance(value, Tensor) for value in loaded.values()):
        raise WeightsError(f"weights '{path}': expected a state dict of tensors, found {type(loaded).__name__}")
    return {key: value.float() if value.is_floating_point() else value for key, value in loaded.items()}


def load_model(factory: Callable[..., nn.Module], arguments: Mapping[str, Any], path: Path, layouts: list[Layout]) -> nn.Module:
    """Build the network a checkpoint belongs to, with exactly its tensors.

    factory(**arguments) is the network in our own layout; `layouts` are tried first. BN's
    `num_batches_tracked` is not a weight and may be absent. Raises WeightsError that lists missing,
    extra and misshapen keys.
    """
    state = read_state_dict(path)
    arguments = dict(arguments)
    for layout in layouts:
        match = layout(state)
        if match is not None:
            overrides, state = match
            if overrides.get("scale", arguments.get("scale")) != arguments.get("scale"):
                raise WeightsError(
                    f"weights '{path}': a x{overrides['scale']} network, asked for x{arguments.get('scale')};"
                    f" type --scale {overrides['scale']}"
                )
            arguments.update(overrides)
            break
    model = factory(**arguments)
    expected = {key: value for key, value in model.state_dict().items() if not key.endswith("num_batches_tracked")}
    given = {key: value for key, value in state.items() if not key.endswith("num_batches_tracked")}
    problems = [
        f"{len(keys)} {what}: {', '.join(keys)}"
        for what, keys in (
            ("missing", [key for key in expected if key not in given]),
            ("unexpected", [key for key in given if key not in expected]),
            ("misshapen", [key for key in given if key in expected and given[key].shape != expected[key].shape]),
        )
        if keys
    ]
    if problems:
        network = f"{type(model).__name__}({_describe(arguments)})"
        raise WeightsError(f"weights '{path}' do not fit {network}: {'; '.join(problems)}")
    model.load_state_dict(given, strict=False)
    return model.eval()


def _describe(arguments: Mapping[str, Any]) -> str:
    return ", ".join(f"{key}={value}" for key, value in arguments.items())


def own_srresnet(state: StateDict) -> tuple[dict[str, Any], StateDict] | None:
    """Our own layout of SRResNet; scale, depth and width are read from the keys."""
    if "head.0.weight" not in state or "tail.weight" not in state:
        return None
    blocks = 1 + max((int(m[1]) for key in state if (m := re.match(r"body\.(\d+)\.", key))), default=-1)
    return {
        "scale": 4 if "up.3.weight" in state else 2,
        "blocks": blocks,
        "features": state["head.0.weight"].shape[0],
    }, state


def leftthomas_srgan(state: StateDict) -> tuple[dict[str, Any], StateDict] | None:
    """The public SRGAN of github.com/leftthomas/SRGAN: block1 is the head, then residual blocks, then fuse, upsampling, tail."""
    if "block1.0.weight" not in state or "block2.conv1.weight" not in state:
        return None
    numbers = sorted({int(m[1]) for key in state if (m := re.match(r"block(\d+)\.", key))})
    fuse, last = numbers[-2], numbers[-1]
    shuffles = len({m[1] for key in state if (m := re.match(rf"block{last}\.(\d+)\.conv\.weight", key))})
    renamed = {}
    for key, value in state.items():
        match = re.match(r"block(\d+)\.(.*)", key)
        if match is None:
            renamed[key] = value  # reported as unexpected
            continue
        number, rest = int(match[1]), match[2]
        if number == 1:
            renamed[f"head.{rest}"] = value
        elif number < fuse:
            renamed[f"body.{number - 2}.{rest.replace('prelu.', 'act.')}"] = value
        elif number == fuse:
            renamed[f"fuse.{rest}"] = value
        else:
            part = re.match(r"(\d+)\.(?:(conv|prelu)\.)?(.*)", rest)
            if part is None:
                renamed[key] = value  # reported as unexpected
                continue
            index, kind, name = int(part[1]), part[2], part[3]
            target = f"up.{3 * index + (0 if kind == 'conv' else 2)}" if kind else "tail"
            renamed[f"{target}.{name}"] = value
    return {
        "scale": 2**shuffles,
        "blocks": fuse - 2,
        "features": state["block1.0.weight"].shape[0],
        "fuse": "prelu",
        "output": "tanh",
    }, renamed
