"""Stages that nobody says: found as the table has them where it does, and sensibly in networks of other shapes."""

from __future__ import annotations

import fnmatch
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from autoq.config.spec import TrialSpec
from autoq.graph.loading import load
from autoq.graph.stages import EVERYTHING, find_stages, patterns_of
from autoq.graph.trace import trace
from autoq.networks import MODELS, fresh_model
from autoq.networks.stages import StagePatterns, assign
from autoq.tuning.options import search_space

FE, BODY, UP, REC = "feature_extraction", "body", "upsampling", "reconstruction"
SMALL = {"blocks": 2}
DEEP = ("srresnet", "srgan", "srresnet-msr", "esrgan", "esrgan-6", "edsr", "edsr-full", "wdsr", "imdn")


def stages_of(network: nn.Module) -> StagePatterns:
    return find_stages(trace(network.eval(), EVERYTHING))


@pytest.mark.parametrize("name", MODELS)
def test_networks_of_the_table(name: str) -> None:
    """Every layer at the beginning and at the end is where the table has it; the table calls some of those between otherwise."""
    info = MODELS[name]
    traced = trace(fresh_model(name, info.scales[-1], **SMALL if name in DEEP else {}).eval(), EVERYTHING)
    paths = [layer.path for layer in traced.layers]
    table, found = assign(paths, info.patterns), assign(paths, find_stages(traced))
    assert {path for path in paths if found[path] == FE} == {path for path in paths if table[path] == FE}
    last = [*info.patterns][-1]
    assert {table[path] for path in paths if found[path] == REC} == {last}
    differing = {(table[path], found[path]) for path in paths if table[path] != found[path]}
    assert differing <= {(UP, REC), (REC, UP), (REC, BODY)}, differing


def conv(inside: int, out: int, side: int = 3, **more: Any) -> nn.Conv2d:
    return nn.Conv2d(inside, out, side, padding=side // 2, **more)


class UNet(nn.Module):
    """Smaller inside: what restores the image's own size is no upsampling of it."""

    def __init__(self) -> None:
        super().__init__()
        self.enter, self.down, self.deep = conv(3, 8), conv(8, 16, stride=2), conv(16, 16)
        self.up, self.join, self.leave = nn.ConvTranspose2d(16, 8, 2, stride=2), conv(16, 8), conv(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        wide = F.relu(self.enter(x))
        deep = self.up(F.relu(self.deep(self.down(wide))))
        return x + self.leave(F.relu(self.join(torch.cat([wide, deep], 1))))


class MeanShifted(nn.Module):
    """As EDSR's authors write it: the mean is taken off and put back by 1x1 convolutions."""

    def __init__(self) -> None:
        super().__init__()
        self.sub_mean, self.add_mean = conv(3, 3, 1), conv(3, 3, 1)
        self.head, self.body = nn.Sequential(conv(3, 8)), nn.Sequential(conv(8, 8), nn.ReLU(), conv(8, 8))
        self.tail = nn.Sequential(nn.Sequential(conv(8, 32), nn.PixelShuffle(2)), conv(8, 3))

    def forward(self, x: Tensor) -> Tensor:
        x = self.head(self.sub_mean(x))
        return self.add_mean(self.tail(x + self.body(x)))


class Branches(nn.Module):
    """Two branches from the image, two to the output, attention on either side of the upsampling."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = conv(3, 8), conv(3, 8, 5)
        self.mix, self.weigh = conv(16, 16, 1), conv(16, 16, 1)
        self.spread, self.fine, self.weigh_fine = conv(16, 32), conv(8, 8), conv(8, 8, 1)
        self.texture, self.colour = conv(8, 3), conv(8, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.mix(torch.cat([F.relu(self.left(x)), F.relu(self.right(x))], 1))
        y = y * torch.sigmoid(self.weigh(F.adaptive_avg_pool2d(y, 1)))
        y = F.relu(F.pixel_shuffle(self.spread(y), 2))
        y = F.relu(self.fine(y))
        y = y * torch.sigmoid(self.weigh_fine(F.adaptive_avg_pool2d(y, 1)))
        base = F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=False)
        return base + self.texture(y) + self.colour(y)


class Unshuffled(nn.Module):
    """Real-ESRGAN x2: the image packed into channels first, then features enlarged by nearest neighbours."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.trunk, self.up1, self.up2, self.last = conv(12, 8), conv(8, 8), conv(8, 8), conv(8, 8), conv(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        y = self.trunk(self.first(F.pixel_unshuffle(x, 2)))
        y = F.relu(self.up1(F.interpolate(y, scale_factor=2)))
        return self.last(F.relu(self.up2(F.interpolate(y, scale_factor=2))))


class ByHand(nn.Module):
    """A pixel shuffle written with reshapes, and an upscaled image that the last layer reads beside the features."""

    def __init__(self) -> None:
        super().__init__()
        self.head, self.wide, self.refine, self.tail = conv(3, 8), conv(8, 32), conv(8, 8), conv(11, 3)

    def forward(self, x: Tensor) -> Tensor:
        y = self.wide(F.relu(self.head(x)))
        n, _, h, w = y.shape
        y = y.view(n, 8, 2, 2, h, w).permute(0, 1, 4, 2, 5, 3).reshape(n, 8, 2 * h, 2 * w)
        return self.tail(torch.cat([self.refine(y), F.interpolate(x, scale_factor=2)], 1))


class Shared(nn.Module):
    """One convolution for all passes of a recursive network."""

    def __init__(self) -> None:
        super().__init__()
        self.head, self.step, self.tail = conv(3, 8), conv(8, 8), conv(8, 12)

    def forward(self, x: Tensor) -> Tensor:
        y = self.head(x)
        for _ in range(3):
            y = y + F.relu(self.step(y))
        return F.pixel_shuffle(self.tail(y), 2)


ODD: list[tuple[nn.Module, dict[str, tuple[str, ...]]]] = [
    (UNet(), {FE: ("enter",), BODY: ("down", "deep", "up", "join"), REC: ("leave",)}),
    (MeanShifted(), {FE: ("sub_mean", "head.*"), BODY: ("body.*",), UP: ("tail.0.*",), REC: ("tail.1", "add_mean")}),
    (
        Branches(),
        {FE: ("left", "right"), BODY: ("mix", "weigh"), UP: ("spread", "fine", "weigh_fine"), REC: ("texture", "colour")},
    ),
    (Unshuffled(), {FE: ("first",), BODY: ("trunk",), UP: ("up1", "up2"), REC: ("last",)}),
    (ByHand(), {FE: ("head",), BODY: ("wide",), UP: ("refine",), REC: ("tail",)}),
    (Shared(), {FE: ("head",), BODY: ("step",), REC: ("tail",)}),
    (nn.Sequential(conv(3, 12), nn.PixelShuffle(2)), {FE: ("0",)}),
    (nn.Sequential(conv(3, 8), nn.ReLU(), nn.ConvTranspose2d(8, 3, 4, 2, 1)), {FE: ("0",), REC: ("2",)}),
    (nn.Sequential(nn.Upsample(scale_factor=2), conv(3, 8), nn.ReLU(), conv(8, 8), conv(8, 3)), {FE: ("1",), BODY: ("3",), REC: ("4",)}),
]  # fmt: skip


@pytest.mark.parametrize(("network", "stages"), ODD, ids=[type(network).__name__ for network, _ in ODD])
def test_networks_of_other_shapes(network: nn.Module, stages: StagePatterns) -> None:
    found = stages_of(network)
    assert {stage: {*patterns} for stage, patterns in found.items()} == {stage: {*patterns} for stage, patterns in stages.items()}
    assert [*found] == [*stages]


@pytest.mark.parametrize(
    ("chosen", "every", "patterns"),
    [
        (["a.0", "a.1"], ["a.0", "a.1", "b"], ("a.*",)),
        (["a.0.x", "a.1.x"], ["a.0.x", "a.1.x", "a.2.x"], ("a.0.*", "a.1.*")),
        (["a"], ["a", "a.inner"], ("a",)),
        (["a", "a.inner"], ["a", "a.inner", "ab"], ("a", "a.*")),
        (["a.1"], ["a.1", "a.10"], ("a.1",)),
        (["odd[1]"], ["odd[1]", "odd1"], ("odd[[]1]",)),
        (["b.c", "b.d.e"], ["a", "b.c", "b.d.e", "b.d.f"], ("b.c", "b.d.e")),
    ],
)
def test_patterns_match_the_chosen_paths_alone(chosen: list[str], every: list[str], patterns: tuple[str, ...]) -> None:
    found = patterns_of(chosen, every)
    assert found == patterns
    assert [path for path in every if any(fnmatch.fnmatchcase(path, pattern) for pattern in found)] == chosen


def test_a_space_has_the_stages_that_were_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("autoq.networks.given._GIVEN", {"object:UNet": UNet().eval()})
    space = search_space(TrialSpec(model="object:UNet", scale=1))
    assert space.layers == {FE: ("enter",), BODY: ("down", "deep", "up", "join"), REC: ("leave",)}
    assert [*space.choices] == [FE, BODY, REC]
    loaded = load("object:UNet", 1)
    assert (loaded.automatic, loaded.stages) == (True, "feature_extraction (1 layer), body (4 layers), reconstruction (1 layer)")
    told = load("object:UNet", 1, layers={"all": ("*",)})
    assert (told.automatic, told.stages) == (False, "all (6 layers)")
