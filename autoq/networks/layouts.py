"""Layouts of published checkpoints: recognize them by their keys and convert them to autoq's layout.

A layout is a function: plain state dict -> (constructor arguments, state dict in autoq's layout), or None for another
layout. Unknown keys are kept and reported as unexpected by strict loading.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from autoq.networks.edsr import MEAN

StateDict = dict[str, Tensor]
Found = tuple[dict[str, Any], StateDict]
Layout = Callable[[StateDict], Found | None]

EDSR_RANGE = 255.0
"""BasicSR's EDSR has pixel values from 0 to 255."""

FULL_EDSR_FEATURES, FULL_EDSR_SCALING = 256, 0.1


WEIGHT_NORM = (("weight_g", "weight_v"), ("parametrizations.weight.original0", "parametrizations.weight.original1"))
"""torch's names of the magnitude and the direction, without and with parametrizations."""


def plain(state: StateDict) -> StateDict:
    """Fold weight norm: weight = g v / |v| (Salimans and Kingma 2016)."""
    folded = dict(state)
    for key in state:
        for gain, direction in WEIGHT_NORM:
            base = key.removesuffix(gain)
            if base == key or base + direction not in state or base + "weight" in state:
                continue
            length, v = state[key], state[base + direction]
            if v.dim() > 1 and length.numel() == len(v):
                shape = (-1, *[1] * (v.dim() - 1))
                folded[base + "weight"] = length.reshape(shape) * v / v.flatten(1).norm(dim=1).reshape(shape)
                del folded[key], folded[base + direction]
    return folded


Rule = tuple[str, str | Callable[[re.Match[str]], str]]
"""A pattern for the beginning of a key, and its replacement."""


def _renamed(state: StateDict, rules: Sequence[Rule]) -> StateDict:
    """Rename every key by the first matching rule. Keys stay unchanged if no rule matches or the new key already exists."""
    renamed = {}
    for key, value in state.items():
        candidates = (re.subn(f"^{pattern}", replacement, key) for pattern, replacement in rules)
        new = next((new for new, count in candidates if count), key)
        renamed[key if new in renamed or (new != key and new in state) else new] = value
    return renamed


def _count(state: StateDict, pattern: str) -> int:
    """Number of distinct first groups of a pattern in the keys."""
    return len({match[1] for key in state if (match := re.match(pattern, key))})


def _convolution(state: StateDict, key: str) -> tuple[int, ...] | None:
    """The shape of a convolution's weight; None if the key is missing or not a convolution."""
    return tuple(state[key].shape) if key in state and state[key].dim() == 4 and len(state[key]) else None


def own_blocks(state: StateDict) -> Found | None:
    """autoq's layout of a network of blocks; depth and width follow from the keys."""
    head = _convolution(state, "head.weight") or _convolution(state, "head.0.weight")
    blocks = _count(state, r"body\.(\d+)\.\w+\.")
    return ({"blocks": blocks, "features": head[0]}, state) if head and blocks else None


def own_edsr(state: StateDict) -> Found | None:
    """autoq's layout of EDSR."""
    match = own_blocks(state)
    return ({**_edsr_scaling(match[0]), "centred": "mean" in state}, state) if match else None


def own_wdsr(state: StateDict) -> Found | None:
    """autoq's layout of WDSR."""
    match, wide = own_blocks(state), _convolution(state, "body.0.conv1.weight")
    if not match or not wide:
        return None
    return {**match[0], "expansion": max(1, wide[0] // wide[1]), "centred": "mean" in state}, state


def own_esrgan(state: StateDict) -> Found | None:
    """autoq's layout of RRDBNet."""
    match, growth = own_blocks(state), _convolution(state, "body.0.blocks.0.conv1.weight")
    return ({**match[0], "growth": growth[0]}, state) if match and growth else None


def _edsr_scaling(arguments: dict[str, Any]) -> dict[str, Any]:
    """Add residual scaling for the full network (Lim et al. 2017, section 3.3)."""
    return {**arguments, "scaling": FULL_EDSR_SCALING if arguments["features"] == FULL_EDSR_FEATURES else 1.0}


def own_srresnet(state: StateDict) -> Found | None:
    """autoq's layout of SRResNet; scale, depth and width follow from the keys."""
    features = _features(state, "head.0.weight")
    if features is None or "tail.weight" not in state:
        return None
    blocks = {m[1] for key in state if (m := re.match(r"body\.(\d+)\.", key))}
    return {
        "scale": 4 if "up.3.weight" in state else 2,
        "blocks": len(blocks),
        "features": features,
    }, state


def _features(state: StateDict, key: str) -> int | None:
    """Output channels of the first layer if it is a 9x9 convolution of RGB, otherwise None."""
    if key not in state or state[key].shape[1:] != (3, 9, 9) or not len(state[key]):
        return None
    return len(state[key])


def leftthomas_srgan(state: StateDict) -> Found | None:
    """The public SRGAN of github.com/leftthomas/SRGAN: block1 is the head, then residual blocks, then fuse, upsampling, tail."""
    features = _features(state, "block1.0.weight")
    numbers = sorted({int(m[1]) for key in state if (m := re.match(r"block(\d+)\.", key))})
    if features is None or len(numbers) < 4 or numbers != list(range(1, len(numbers) + 1)):
        return None
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
        "features": features,
        "fuse": "prelu",
        "output": "tanh",
    }, renamed


def cxzhou95_xlsr(state: StateDict) -> Found | None:
    """XLSR of github.com/cxzhou95/XLSR: the four output groups of the first layer are separate convolutions."""
    first = [f"conv0_{number}.conv" for number in range(4)]
    if _convolution(state, "conv0_0.conv.weight") is None or _convolution(state, "conv4.weight") is None:
        return None
    renamed = _renamed(
        state,
        [(r"conv1\.", "skip."), (r"conv2\.", "mix."), (r"Gblocks\.(\d+)\.conv0\.", r"body.\1.conv1."),
         (r"Gblocks\.(\d+)\.conv1\.", r"body.\1.conv2."), (r"conv3\.conv\.", "fuse.0."), (r"conv4\.", "tail.0.")],
    )  # fmt: skip
    for name in ("weight", "bias"):
        keys = [f"{conv}.{name}" for conv in first]
        shapes = {tuple(state[key].shape) if key in state else () for key in keys}
        if len(shapes) == 1 and () not in shapes:
            renamed[f"head.0.{name}"] = torch.cat([renamed.pop(key) for key in keys])
    arguments = {"blocks": _count(state, r"Gblocks\.(\d+)\."), "features": 4 * len(state["conv0_0.conv.weight"])}
    return {"scale": round((len(state["conv4.weight"]) / 3) ** 0.5), **arguments}, renamed


def xinntao_esrgan(state: StateDict) -> Found | None:
    """RRDBNet of the ESRGAN authors: the layout of 2018 (`model.1.sub`), of 2019 (`RRDB_trunk`) and of BasicSR (`rdb1`)."""
    first = _convolution(state, "model.0.weight") or _convolution(state, "conv_first.weight")
    if first is None:
        return None
    if (blocks := _count(state, r"model\.1\.sub\.(\d+)\.RDB1\.")) > 0:
        rules: list[Rule] = [(r"model\.0\.", "head."), (r"model\.1\.sub\.(\d+)\.RDB(\d)\.conv(\d)\.0\.", _dense),
                 (rf"model\.1\.sub\.{blocks}\.", "fuse."), (r"model\.3\.", "up1.0."), (r"model\.6\.", "up2.0."),
                 (r"model\.8\.", "tail.0."), (r"model\.10\.", "tail.2.")]  # fmt: skip
    elif (blocks := _count(state, r"(?:RRDB_trunk|body)\.(\d+)\.(?:RDB|rdb)1\.")) > 0:
        rules = [(r"conv_first\.", "head."), (r"(?:RRDB_trunk|body)\.(\d+)\.(?:RDB|rdb)(\d)\.conv(\d)\.", _dense),
                 (r"(?:trunk_conv|conv_body)\.", "fuse."), (r"(?:upconv1|conv_up1)\.", "up1.0."),
                 (r"(?:upconv2|conv_up2)\.", "up2.0."), (r"(?:HRconv|conv_hr)\.", "tail.0."),
                 (r"conv_last\.", "tail.2.")]  # fmt: skip
    else:
        return None
    renamed = _renamed(state, rules)
    growth = _convolution(renamed, "body.0.blocks.0.conv1.weight")
    return {"blocks": blocks, "features": first[0], **({"growth": growth[0]} if growth else {})}, renamed


def _dense(match: re.Match[str]) -> str:
    return f"body.{match[1]}.blocks.{int(match[2]) - 1}.conv{match[3]}."


def basicsr_msrresnet(state: StateDict) -> Found | None:
    """MSRResNet of BasicSR, and of its forerunner MMSR (`recon_trunk`)."""
    first = _convolution(state, "conv_first.weight")
    blocks = _count(state, r"(?:recon_trunk|body)\.(\d+)\.conv1\.")
    upsampling = _convolution(state, "upconv1.weight")
    if first is None or upsampling is None or not blocks:
        return None
    scale = {4: 2, 9: 3}.get(upsampling[0] // first[0], 2) * (2 if "upconv2.weight" in state else 1)
    renamed = _renamed(
        state,
        [(r"conv_first\.", "head.0."), (r"recon_trunk\.", "body."), (r"upconv1\.", "up.0."), (r"upconv2\.", "up.3."),
         (r"(?:HRconv|conv_hr)\.", "tail.0."), (r"conv_last\.", "tail.2.")],
    )  # fmt: skip
    return {"scale": scale, "blocks": blocks, "features": first[0]}, renamed


def _edsr_shape(state: StateDict, head: str, blocks: int, upsampling: str) -> dict[str, Any] | None:
    """The build options of an EDSR whose convolutions before each pixel shuffle are `upsampling`.0 and .2; None if it is none."""
    first, up = _convolution(state, head), _convolution(state, f"{upsampling}.0.weight")
    if first is None or up is None or not blocks:
        return None
    scale = 4 if f"{upsampling}.2.weight" in state else round((up[0] / first[0]) ** 0.5)
    return {"scale": scale, "centred": True, **_edsr_scaling({"blocks": blocks, "features": first[0]})}


def basicsr_edsr(state: StateDict) -> Found | None:
    """BasicSR's EDSR, with pixel values from 0 to 255 and DIV2K's mean subtracted; see `_unit_range`."""
    blocks = _count(state, r"body\.(\d+)\.conv1\.")
    shape = _edsr_shape(state, "conv_first.weight", blocks, "upsample")
    if shape is None or "conv_after_body.weight" not in state:
        return None
    renamed = _renamed(
        state,
        [(r"conv_first\.", "head."), (r"conv_after_body\.", "fuse."), (r"upsample\.", "up."), (r"conv_last\.", "tail.")],
    )
    return shape, _unit_range(renamed)


def authors_edsr(state: StateDict) -> Found | None:
    """EDSR of github.com/sanghyun-son/EDSR-PyTorch: as BasicSR's, with the mean as two fixed 1x1 convolutions."""
    blocks = _count(state, r"body\.(\d+)\.body\.0\.")
    shape = _edsr_shape(state, "head.0.weight", blocks, "tail.0")
    if shape is None or "sub_mean.weight" not in state:
        return None
    shifts = ("sub_mean.weight", "sub_mean.bias", "add_mean.weight", "add_mean.bias")
    renamed = _renamed(
        {key: value for key, value in state.items() if key not in shifts},
        [(r"head\.0\.", "head."), (r"body\.(\d+)\.body\.0\.", r"body.\1.conv1."), (r"body\.(\d+)\.body\.2\.", r"body.\1.conv2."),
         (rf"body\.{blocks}\.", "fuse."), (r"tail\.0\.", "up."), (r"tail\.1\.", "tail.")],
    )  # fmt: skip
    return shape, _unit_range(renamed)


def _unit_range(state: StateDict) -> StateDict:
    """Convert EDSR's weights to pixel values from 0 to 1: fold the range into the first and last layer."""
    state = {**state, "head.weight": state["head.weight"] * EDSR_RANGE, "mean": torch.tensor(MEAN).reshape(1, 3, 1, 1)}
    for name, shift in (("tail.weight", torch.zeros(1)), ("tail.bias", torch.tensor(MEAN))):
        if name in state and (name == "tail.weight" or state[name].shape == shift.shape):
            state[name] = state[name] / EDSR_RANGE + shift
    return state


def authors_imdn(state: StateDict) -> Found | None:
    """IMDN of github.com/Zheng222/IMDN: `IMDB1` to `IMDB6`."""
    first, last = _convolution(state, "fea_conv.weight"), _convolution(state, "upsampler.0.weight")
    if first is None or last is None:
        return None
    renamed = _renamed(
        state,
        [(r"fea_conv\.", "head."), (r"IMDB(\d+)\.c([1-4])\.", lambda m: f"body.{int(m[1]) - 1}.conv{m[2]}."),
         (r"IMDB(\d+)\.c5\.", lambda m: f"body.{int(m[1]) - 1}.mix."),
         (r"IMDB(\d+)\.cca\.conv_du\.", lambda m: f"body.{int(m[1]) - 1}.attention.weigh."),
         (r"c\.0\.", "collect.0."), (r"LR_conv\.", "fuse."), (r"upsampler\.0\.", "up.0.")],
    )  # fmt: skip
    arguments = {"blocks": _count(state, r"IMDB(\d+)\."), "features": first[0]}
    return {"scale": round((last[0] / 3) ** 0.5), **arguments}, renamed
