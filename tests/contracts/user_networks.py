"""Small networks as users write them: one class for each kind of thing that a tracer could compute otherwise than it is."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

WIDTH = 8
Module = Callable[[], nn.Module]


def conv(inputs: int = WIDTH, outputs: int = WIDTH, size: int = 3, **options: Any) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, size, padding=options.pop("padding", size // 2), **options)


def norm(scale: float, mean: float, variance: float) -> nn.BatchNorm2d:
    """A batch norm that is not the identity."""
    made = nn.BatchNorm2d(WIDTH)
    nn.init.constant_(made.weight, scale)
    nn.init.constant_(made.bias, 0.1)
    nn.init.constant_(made.running_mean, mean)
    nn.init.constant_(made.running_var, variance)
    return made


class Net(nn.Module):
    """A convolution, what a subclass does with its features, a convolution, and a pixel shuffle on top of the resized image."""

    def __init__(self) -> None:
        super().__init__()
        self.head, self.tail = conv(3), conv(WIDTH, 12)

    def features(self, y: Tensor) -> Tensor:
        return y

    def forward(self, x: Tensor) -> Tensor:
        y = self.features(F.relu(self.head(x)))
        base = F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=False)
        return base + 0.3 * F.pixel_shuffle(self.tail(y), 2)


# ---------------------------------------------------------------- layers that are called or held several times


class SharedThrice(Net):
    """One convolution, three calls, a norm of its own behind two of them."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.one, self.two = conv(), norm(0.5, 0.1, 2.0), norm(1.5, -0.2, 0.5)

    def features(self, y: Tensor) -> Tensor:
        y = F.relu(self.one(self.body(y)))
        y = F.relu(self.body(y))
        return F.relu(self.two(self.body(y)))


class SharedWithNorm(Net):
    """One sequence of convolution and norm, applied twice."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(conv(), norm(0.5, 0.1, 2.0), nn.ReLU(inplace=True))

    def features(self, y: Tensor) -> Tensor:
        return self.body(self.body(y))


class SharedNorm(Net):
    """One norm behind two convolutions, and one convolution of which two norms read."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two, self.norm, self.other = conv(), conv(bias=False), norm(0.5, 0.1, 2.0), norm(1.5, -0.2, 0.5)

    def features(self, y: Tensor) -> Tensor:
        y = self.norm(self.two(self.norm(self.one(y))))
        y = self.one(y)
        return self.norm(y) + self.other(y)


class TiedWithNorm(Net):
    """Two convolutions that hold one weight, a norm behind the second."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two, self.norm = conv(), conv(), norm(0.5, 0.1, 2.0)
        self.two.weight = self.one.weight

    def features(self, y: Tensor) -> Tensor:
        return self.norm(self.two(F.relu(self.one(y))))


class TiedTransposed(Net):
    """A convolution and the transposed convolution that mirrors it, with one weight and one bias."""

    def __init__(self) -> None:
        super().__init__()
        self.down, self.up = conv(), nn.ConvTranspose2d(WIDTH, WIDTH, 3, padding=1)
        self.up.weight, self.up.bias = self.down.weight, self.down.bias

    def features(self, y: Tensor) -> Tensor:
        return self.up(F.relu(self.down(y)))


class TiedFunctional(Net):
    """A layer's weight read by the function, too."""

    def __init__(self) -> None:
        super().__init__()
        self.body = conv()

    def features(self, y: Tensor) -> Tensor:
        return 0.5 * self.body(y) + F.conv2d(y, self.body.weight, padding=1)


class ScaledShared(Net):
    """A layer called twice, scaled in one of the calls."""

    def __init__(self) -> None:
        super().__init__()
        self.body = conv()

    def features(self, y: Tensor) -> Tensor:
        return y + 0.1 * self.body(F.relu(self.body(y)))


# ---------------------------------------------------------------- arguments of forward


class KeywordOnly(Net):
    def forward(self, x: Tensor, *, scale: float = 0.5, mode: str = "nearest") -> Tensor:
        y = self.tail(F.relu(self.head(x)))
        if mode != "nearest":
            y = y * 2
        return F.interpolate(x, scale_factor=2, mode=mode) + scale * F.pixel_shuffle(y, 2)


class Variadic(Net):
    def forward(self, *inputs: Tensor, **options: Any) -> Tensor:
        return super().forward(inputs[0]) * options.get("gain", 1.0)


class Options(Net):
    def forward(self, x: Tensor, options: dict[str, Any] | None = None, steps: tuple[int, ...] = (1, 2)) -> Tensor:
        options = options or {"residual": True}
        y = super().forward(x)
        return y + len(steps) * 0.01 if options["residual"] else y


# ---------------------------------------------------------------- sizes


class WindowReshape(Net):
    """Windows of 4x4 pixels, mixed by a linear layer, of an image padded to a multiple of 4 and cut again."""

    def __init__(self) -> None:
        super().__init__()
        self.mix = nn.Linear(16, 16)

    def features(self, y: Tensor) -> Tensor:
        n, c, h, w = y.size()
        y = F.pad(y, (0, (4 - w % 4) % 4, 0, (4 - h % 4) % 4), "reflect")
        high, wide = y.shape[-2] // 4, y.shape[-1] // 4
        windows = y.view(n, c, high, 4, wide, 4).permute(0, 2, 4, 1, 3, 5).reshape(n, high * wide, c, 16)
        y = self.mix(windows).reshape(n, high, wide, c, 4, 4).permute(0, 3, 1, 4, 2, 5).reshape(n, c, high * 4, wide * 4)
        return y[..., :h, :w]


class Windows(Net):
    """The same without padding: sides must be multiples of 7."""

    def features(self, y: Tensor) -> Tensor:
        n, c, h, w = y.shape
        windows = y.view(n, c, h // 7, 7, w // 7, 7)
        return (windows - windows.mean((3, 5), keepdim=True)).view(n, c, h, w)


class UShape(Net):
    """Two halvings and doublings with skips: sides must be multiples of 4."""

    def __init__(self) -> None:
        super().__init__()
        self.down, self.up = nn.ModuleList(conv(stride=2) for _ in range(2)), nn.ModuleList(conv() for _ in range(2))

    def features(self, y: Tensor) -> Tensor:
        kept = []
        for layer in self.down:
            kept.append(y)
            y = F.relu(layer(y))
        for layer in self.up:
            y = F.interpolate(layer(y), scale_factor=2) + kept.pop()
        return y


class SizedUp(Net):
    def features(self, y: Tensor) -> Tensor:
        h, w = y.shape[2:]
        y = F.interpolate(y, size=(h * 2, w * 2), mode="bilinear", align_corners=False)
        return F.avg_pool2d(y, 2) + F.interpolate(y, size=[h, w])


class CeilOfSizes(Net):
    def features(self, y: Tensor) -> Tensor:
        h, w = 1 * y.size(2), y.size(-1)
        more = math.ceil(h / 4) * 4 - h
        more += 0
        return F.pad(y, [0, 0, 0, more])[:, :, : h + 0, :w]


# ---------------------------------------------------------------- in place


class InPlaceMethods(Net):
    def features(self, y: Tensor) -> Tensor:
        first = y
        y.mul_(0.5).add_(0.1)
        y += first * 0.25
        return first.clamp_(max=2.0) + y


class InPlaceFunctions(Net):
    def features(self, y: Tensor) -> Tensor:
        kept = y
        z = F.leaky_relu(y - 0.2, 0.1, True)
        F.relu_(z)
        torch.add(y, z, out=y)
        return torch.relu_(z) + kept


class InPlaceImage(Net):
    def forward(self, x: Tensor) -> Tensor:
        x -= 0.1
        return super().forward(x)


class InPlaceOfChunk(Net):
    def features(self, y: Tensor) -> Tensor:
        a, b = y.chunk(2, 1)
        return torch.cat([a.mul_(0.5), b], 1)


class InPlacePart(Net):
    """Half of the features is changed, and all are read."""

    def features(self, y: Tensor) -> Tensor:
        y[:, :4].mul_(0.5)
        y[:, 2:] += 0.1
        return y


class PartOfChunk(Net):
    """The same of a half that is not taken by an index."""

    def features(self, y: Tensor) -> Tensor:
        half = y.chunk(2, 1)[0]
        half.mul_(0.5)
        return y + 0.1


class InPlaceItem(Net):
    def features(self, y: Tensor) -> Tensor:
        y[:, :4] = 0
        return y


class Copied(Net):
    def features(self, y: Tensor) -> Tensor:
        kept = torch.empty_like(y)
        kept.copy_(y * 2)
        return kept


# ---------------------------------------------------------------- what is refused


class Named(Net):
    def __init__(self) -> None:
        super().__init__()
        self.code = nn.Parameter(torch.rand(1))

    def features(self, y: Tensor) -> Tensor:
        return y * self.code


class Aware(Net):
    """Computes otherwise while it is traced."""

    def features(self, y: Tensor) -> Tensor:
        return y if isinstance(y, Tensor) else y * 2


class Asks(Net):
    def forward(self, x: Tensor, noise: Tensor) -> Tensor:  # type: ignore[override]
        return super().forward(x)


class TwoOutputs(Net):
    def forward(self, x: Tensor) -> Any:
        return super().forward(x), x


class Branches(Net):
    def features(self, y: Tensor) -> Tensor:
        return y * 2 if y.mean() > 0 else y


class Noisy(Net):
    def features(self, y: Tensor) -> Tensor:
        return y + 0.1 * torch.randn_like(y)


class Remembers(Net):
    """Counts its calls where fx does not see it."""

    def __init__(self) -> None:
        super().__init__()
        self.calls = 0

    def features(self, y: Tensor) -> Tensor:
        self.calls += 1
        return y * self.calls


class Hooked(Net):
    """A hook changes what a layer gives."""

    def __init__(self) -> None:
        super().__init__()
        self.body = conv()
        self.body.register_forward_hook(lambda module, inputs, output: output * 2)

    def features(self, y: Tensor) -> Tensor:
        return self.body(y)


class NoLayers(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return F.interpolate(x, scale_factor=2)


class Unwritable(Net):
    """Traced as any other; ONNX has no such function."""

    def features(self, y: Tensor) -> Tensor:
        return torch.special.bessel_j0(y)
