"""More small networks: what layers, norms, weights and ranges users' networks have."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import prune

from tests.contracts.user_networks import WIDTH, Net, conv, norm

# ---------------------------------------------------------------- ranges


class DeadChannels(Net):
    """A depthwise layer that pruning left one channel of, and a layer whose input is always zero."""

    def __init__(self) -> None:
        super().__init__()
        self.deep, self.never = conv(groups=WIDTH), conv()
        with torch.no_grad():
            self.deep.weight[1:] = 0
            self.deep.bias.fill_(0.7)

    def features(self, y: Tensor) -> Tensor:
        return self.deep(y) + self.never(F.relu(-y))


class ZeroWithBias(Net):
    """A whole layer of zeros, tiny ones and a bias."""

    def __init__(self) -> None:
        super().__init__()
        self.zero, self.tiny = conv(), conv()
        with torch.no_grad():
            self.zero.weight.zero_()
            self.zero.bias.fill_(1.5)
            self.tiny.weight.fill_(1e-42)
            self.tiny.bias.fill_(-0.5)

    def features(self, y: Tensor) -> Tensor:
        return y + self.zero(y) + self.tiny(y)


class MeanShift(nn.Conv2d):
    """EDSR's: subtracts the mean of photographs by a fixed 1x1 convolution."""

    def __init__(self, sign: int) -> None:
        super().__init__(3, 3, 1)
        self.weight.data = torch.eye(3).reshape(3, 3, 1, 1)
        self.bias.data = sign * torch.tensor([0.4488, 0.4371, 0.4040])
        self.requires_grad_(False)


class Shifted(Net):
    def __init__(self) -> None:
        super().__init__()
        self.less, self.more = MeanShift(-1), MeanShift(1)

    def forward(self, x: Tensor) -> Tensor:
        return self.more(super().forward(self.less(x)))


class Edges(Net):
    """A fixed filter in front, whose values are around zero."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("sobel", torch.tensor([[1.0, 0, -1], [2, 0, -2], [1, 0, -1]]).repeat(3, 1, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        found = F.conv2d(x, self.sobel, padding=1, groups=3)
        return F.pixel_shuffle(self.tail(F.relu(self.head(found))), 2)


class Normalised(Net):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor([0.45, 0.44, 0.4]).view(3, 1, 1))
        self.std = 0.25

    def forward(self, x: Tensor) -> Tensor:
        return super().forward((x - self.mean) / self.std) * self.std + torch.tensor([0.45, 0.44, 0.4]).view(1, 3, 1, 1)


# ---------------------------------------------------------------- linear layers


class FlatLinear(Net):
    """Three dimensions: a sequence of pixels."""

    def __init__(self) -> None:
        super().__init__()
        self.mix = nn.Sequential(nn.Linear(WIDTH, 16), nn.GELU(), nn.Linear(16, WIDTH, bias=False))

    def features(self, y: Tensor) -> Tensor:
        n, c, h, w = y.shape
        return y + self.mix(y.flatten(2).transpose(1, 2)).transpose(1, 2).reshape(n, c, h, w)


class FunctionalLinear(Net):
    def __init__(self) -> None:
        super().__init__()
        self.kernel, self.shift = nn.Parameter(torch.randn(WIDTH, WIDTH) / 3), nn.Parameter(torch.randn(WIDTH) / 3)

    def features(self, y: Tensor) -> Tensor:
        return F.linear(y.permute(0, 2, 3, 1), self.kernel, bias=self.shift).permute(0, 3, 1, 2)


class Products(Net):
    """Attention over channels by matmul and einsum: in float."""

    def features(self, y: Tensor) -> Tensor:
        n, c, h, w = y.shape
        flat = F.normalize(y.flatten(2), dim=-1)
        weights = torch.softmax(flat @ flat.transpose(1, 2), -1)
        return torch.einsum("nij,njp->nip", weights, y.flatten(2)).reshape(n, c, h, w) + y


# ---------------------------------------------------------------- parts of tensors


class ReversedParts(Net):
    def features(self, y: Tensor) -> Tensor:
        parts = torch.split(y, 2, dim=1)
        return torch.cat(parts[::-1], 1) + torch.cat(y.split([4, 4], 1), dim=1) + torch.cat(tensors=y.chunk(4, 1), dim=1)


class Unbound(Net):
    def features(self, y: Tensor) -> Tensor:
        first, *rest = y[:, :1], y[:, 1:4], y[:, 4:]
        return torch.concat([*rest, first], 1) + torch.stack(torch.unbind(y, 1)[::-1], 1)


class WithConstant(Net):
    """Features joined with a learned map and with coordinates that are a buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.learned = nn.Parameter(torch.randn(1, 2, 1, 1))
        self.body = conv(WIDTH + 2, WIDTH)

    def features(self, y: Tensor) -> Tensor:
        return self.body(torch.cat([y, self.learned * torch.ones_like(y[:, :2])], 1))


class Reordered(Net):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("order", torch.randperm(WIDTH))
        self.register_buffer("mask", torch.arange(WIDTH).reshape(1, -1, 1, 1) % 2 == 0)

    def features(self, y: Tensor) -> Tensor:
        return torch.index_select(y, 1, self.order) * self.mask + y[:, self.order]


# ---------------------------------------------------------------- reparametrized weights


class WeightNormOld(Net):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.utils.weight_norm(conv())

    def features(self, y: Tensor) -> Tensor:
        return self.body(y)


class Parametrized(Net):
    """Weight norm, spectral norm and an orthogonal linear layer as parametrizations."""

    def __init__(self) -> None:
        super().__init__()
        parametrized = nn.utils.parametrizations
        self.one, self.two = parametrized.weight_norm(conv()), parametrized.spectral_norm(conv(), n_power_iterations=20)
        self.mix = parametrized.orthogonal(nn.Linear(WIDTH, WIDTH))

    def features(self, y: Tensor) -> Tensor:
        return self.two(self.one(y)) + self.mix(y.transpose(1, -1)).transpose(1, -1)


class SpectralTransposed(Net):
    def __init__(self) -> None:
        super().__init__()
        self.up = nn.utils.spectral_norm(nn.ConvTranspose2d(WIDTH, WIDTH, 3, padding=1), n_power_iterations=20)

    def features(self, y: Tensor) -> Tensor:
        return self.up(y)


class Pruned(Net):
    def __init__(self) -> None:
        super().__init__()
        self.body = conv()
        prune.ln_structured(self.body, "weight", amount=0.5, n=2, dim=0)

    def features(self, y: Tensor) -> Tensor:
        return self.body(y)


class Standardized(nn.Conv2d):
    """Computes its weight from its parameter at every call."""

    def forward(self, x: Tensor) -> Tensor:
        weight = self.weight - self.weight.mean((1, 2, 3), keepdim=True)
        return F.conv2d(x, weight / (weight.std((1, 2, 3), keepdim=True) + 1e-5), self.bias, padding=1)


class WeightStandardized(Net):
    def __init__(self) -> None:
        super().__init__()
        self.body = Standardized(WIDTH, WIDTH, 3)

    def features(self, y: Tensor) -> Tensor:
        return 0.1 * self.body(y)


# ---------------------------------------------------------------- norms


class LooseNorms(Net):
    """A norm of the image, one behind an activation, one without parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.image, self.norm, self.plain = nn.BatchNorm2d(3), norm(0.5, 0.1, 2.0), nn.BatchNorm2d(WIDTH, affine=False)
        nn.init.constant_(self.plain.running_mean, 0.2)

    def features(self, y: Tensor) -> Tensor:
        return self.plain(F.relu(self.norm(y)))

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(self.image(x))


class OtherNorms(Net):
    def __init__(self) -> None:
        super().__init__()
        self.group, self.instance = nn.GroupNorm(2, WIDTH), nn.InstanceNorm2d(WIDTH, affine=True)
        self.layer, self.without = nn.LayerNorm(WIDTH), nn.BatchNorm2d(WIDTH, affine=False, track_running_stats=False)

    def features(self, y: Tensor) -> Tensor:
        y = self.instance(self.group(y)) + self.without(y)
        return self.layer(y.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class MyNorm(nn.BatchNorm2d):
    """Inherits all."""


class SubclassedNorm(Net):
    def __init__(self) -> None:
        super().__init__()
        self.body, self.norm = conv(), MyNorm(WIDTH)
        nn.init.constant_(self.norm.running_mean, 0.3)

    def features(self, y: Tensor) -> Tensor:
        return self.norm(self.body(y))


class NormOfTransposed(Net):
    """Grouped and plain transposed convolutions, each with a norm."""

    def __init__(self) -> None:
        super().__init__()
        self.one = nn.ConvTranspose2d(WIDTH, WIDTH, 3, padding=1, groups=2)
        self.two = nn.ConvTranspose2d(WIDTH, WIDTH, 3, padding=1)
        self.three = nn.ConvTranspose2d(WIDTH, WIDTH, 3, padding=1, groups=WIDTH, bias=False)
        self.norms = nn.ModuleList(norm(0.5 + number, 0.1, 2.0) for number in range(3))

    def features(self, y: Tensor) -> Tensor:
        for layer, normed in zip((self.one, self.two, self.three), self.norms, strict=True):
            y = F.relu(normed(layer(y)))
        return y


# ---------------------------------------------------------------- resizing and padding


class Resized(Net):
    """Interpolations with options by position and in every mode, antialiased ones among them."""

    def features(self, y: Tensor) -> Tensor:
        a = F.interpolate(y, None, 2.0, "nearest")
        b = F.interpolate(y, None, (2, 2), "bicubic", True)
        c = F.interpolate(input=y, scale_factor=2, mode="bilinear", antialias=True)
        d = nn.Upsample(None, 2, "bicubic")(y)
        return F.avg_pool2d(a + b * 0.5 + c + d, 2)


class NearestExact(Net):
    def features(self, y: Tensor) -> Tensor:
        return F.max_pool2d(F.interpolate(y, scale_factor=2, mode="nearest-exact"), 2)


class Padded(Net):
    """Layers that pad by reflecting, repeating or wrapping the image."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(conv(padding_mode=mode) for mode in ("reflect", "replicate", "circular"))
        self.same = conv(padding="same", padding_mode="reflect", dilation=2)
        self.even = nn.Conv2d(WIDTH, WIDTH, 4, padding="same")

    def features(self, y: Tensor) -> Tensor:
        for layer in self.layers:
            y = F.relu(layer(y))
        return self.even(self.same(y))


class PaddedApart(Net):
    def __init__(self) -> None:
        super().__init__()
        self.zero, self.replicate, self.constant = nn.ZeroPad2d(1), nn.ReplicationPad2d((1, 0, 2, 1)), nn.ConstantPad2d(1, 0.5)
        self.layers = nn.ModuleList(nn.Conv2d(WIDTH, WIDTH, 3) for _ in range(3))

    def features(self, y: Tensor) -> Tensor:
        y = self.layers[0](self.zero(y))
        y = self.layers[1](self.replicate(y)[:, :, 1:, :])
        y = F.pad(y, (1, 0, 0, 0))
        return self.layers[2](self.constant(y))


class Unshuffled(Net):
    """Begins with the inverse of a pixel shuffle: sides must be multiples of 4."""

    def __init__(self) -> None:
        super().__init__()
        self.head, self.tail, self.down = conv(48), conv(WIDTH, 192), nn.PixelUnshuffle(4)

    def forward(self, x: Tensor) -> Tensor:
        return F.pixel_shuffle(self.tail(F.relu(self.head(self.down(x)))), 8)


# ---------------------------------------------------------------- parameters and layers that stay in float


class Attention(Net):
    def __init__(self) -> None:
        super().__init__()
        self.attention, self.norm = nn.MultiheadAttention(WIDTH, 2, batch_first=True), nn.LayerNorm(WIDTH)

    def features(self, y: Tensor) -> Tensor:
        n, c, h, w = y.shape
        sequence = self.norm(y.flatten(2).transpose(1, 2))
        found, _ = self.attention(sequence, sequence, sequence, need_weights=False)
        return y + found.transpose(1, 2).reshape(n, c, h, w)


class Scales(Net):
    """A scalar parameter, one for each channel, a derived one, a slope by function, and parameters in a list."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.gain, self.beta = conv(), nn.Parameter(torch.tensor(0.7)), nn.Parameter(torch.rand(1, WIDTH, 1, 1))
        self.slope = nn.Parameter(torch.full((WIDTH,), 0.2))
        self.shifts = nn.ParameterList([nn.Parameter(torch.rand(WIDTH, 1, 1)) for _ in range(2)])

    def features(self, y: Tensor) -> Tensor:
        y = F.prelu(self.body(y) * self.gain, self.slope)
        return y * torch.sigmoid(self.beta) + (self.shifts[0] + self.shifts[1])


class Idle(Net):
    """Modules that do nothing, and a branch that nobody reads."""

    def __init__(self) -> None:
        super().__init__()
        self.nothing, self.drop, self.drop2d, self.unread = nn.Identity(), nn.Dropout(0.5, inplace=True), nn.Dropout2d(), conv()

    def features(self, y: Tensor) -> Tensor:
        self.unread(y)
        y = self.drop2d(self.nothing(y))
        return F.dropout(self.drop(y), 0.5, self.training) + y


class Volume(Net):
    def __init__(self) -> None:
        super().__init__()
        self.line, self.volume = nn.Conv1d(1, 1, 3, padding=1, bias=False), nn.Conv3d(1, 1, 3, padding=1)

    def features(self, y: Tensor) -> Tensor:
        weights = self.line(y.mean((2, 3)).unsqueeze(1)).transpose(1, 2).unsqueeze(-1)
        return self.volume((y * torch.sigmoid(weights)).unsqueeze(1)).squeeze(1)


PARTS = (MyNorm, MeanShift, Standardized)
"""What is a part of a network, not one."""
