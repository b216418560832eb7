"""Published checkpoints: loaded from the authors' keys, a network gives what the authors' own forward pass gives."""

import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from autoq.errors import WeightsError
from autoq.networks import build_model

State = dict[str, Tensor]
Forward = Callable[[State, Tensor], Tensor]


@pytest.fixture(autouse=True)
def _seeded_on_one_thread() -> Iterator[None]:
    """The networks here are too small to gain from threads."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    yield
    torch.set_num_threads(threads)


def conv(state: State, key: str, x: Tensor, outputs: int, kernel: int = 3, groups: int = 1) -> Tensor:
    """A convolution of the authors' network; one that the state dict does not have yet is put there with random weights."""
    if f"{key}.weight" not in state:
        inputs = x.shape[1] // groups
        state[f"{key}.weight"] = torch.randn(outputs, inputs, kernel, kernel, device=x.device) / (inputs * kernel**2) ** 0.5
        state[f"{key}.bias"] = torch.randn(outputs, device=x.device) * 0.1
    return F.conv2d(x, state[f"{key}.weight"], state[f"{key}.bias"], padding=kernel // 2, groups=groups)


def residual(state: State, key: str, x: Tensor, scaling: float = 1.0, width: int = 1) -> Tensor:
    features = x.shape[1]
    branch = conv(state, f"{key}.conv2", F.relu(conv(state, f"{key}.conv1", x, width * features)), features)
    return x + branch * scaling


def shuffled(state: State, key: str, x: Tensor, outputs: int, factor: int) -> Tensor:
    return F.pixel_shuffle(conv(state, key, x, outputs * factor**2), factor)


def state_of(forward: Forward) -> State:
    state: State = {}
    forward(state, torch.rand(1, 3, 4, 4))
    return state


def saved(state: State, folder: Path, wrapper: str | None = None) -> Path:
    torch.save({wrapper: state} if wrapper else state, folder / "published.pth")
    return folder / "published.pth"


def compared(name: str, scale: int, file: Path, state: State, forward: Forward) -> nn.Module:
    """The network that a file is loaded as, once its output is seen to be that of the authors' forward pass."""
    model = build_model(name, scale, file)
    image = torch.rand(1, 3, 9, 11)
    with torch.no_grad():
        output = model(image)
    assert output.shape == (1, 3, 9 * scale, 11 * scale)
    torch.testing.assert_close(output, forward(state, image), rtol=0, atol=1e-5)
    return model


ESRGAN_KEYS = {
    "2018": ("model.0", "model.1.sub.{}.RDB{}.conv{}.0", "model.1.sub.{}", "model.3", "model.6", "model.8", "model.10"),
    "2019": ("conv_first", "RRDB_trunk.{}.RDB{}.conv{}", "trunk_conv", "upconv1", "upconv2", "HRconv", "conv_last"),
    "basicsr": ("conv_first", "body.{}.rdb{}.conv{}", "conv_body", "conv_up1", "conv_up2", "conv_hr", "conv_last"),
}


def esrgan(state: State, image: Tensor, keys: str, blocks: int = 2, features: int = 8, growth: int = 4) -> Tensor:
    head, dense, fuse, up1, up2, hr, last = ESRGAN_KEYS[keys]
    first = trunk = conv(state, head, image, features)
    for block in range(blocks):
        x = trunk
        for number in (1, 2, 3):
            known = [x]
            for n in (1, 2, 3, 4):
                known.append(F.leaky_relu(conv(state, dense.format(block, number, n), torch.cat(known, 1), growth), 0.2))
            x = conv(state, dense.format(block, number, 5), torch.cat(known, 1), features) * 0.2 + x
        trunk = x * 0.2 + trunk
    x = first + conv(state, fuse.format(blocks), trunk, features)
    for key in (up1, up2):
        x = F.leaky_relu(conv(state, key, x.repeat_interleave(2, 2).repeat_interleave(2, 3), features), 0.2)
    return conv(state, last, F.leaky_relu(conv(state, hr, x, features), 0.2), 3)


@pytest.mark.parametrize(("keys", "wrapper"), [("2018", None), ("2019", None), ("basicsr", "params"), ("basicsr", "params_ema")])
def test_esrgan(keys: str, wrapper: str | None, tmp_path: Path) -> None:
    forward = partial(esrgan, keys=keys)
    state = state_of(forward)
    model = compared("esrgan", 4, saved(state, tmp_path, wrapper), state, forward)
    assert (len(model.body), model.head.out_channels, model.body[0].blocks[0].conv1.out_channels) == (2, 8, 4)


@pytest.mark.parametrize("keys", ESRGAN_KEYS)
def test_the_published_size_of_esrgan_is_read_from_the_keys(keys: str, tmp_path: Path) -> None:
    sizes: State = {}
    esrgan(sizes, torch.rand(1, 3, 4, 4, device="meta"), keys, blocks=23, features=64, growth=32)
    one_number_each = {key: torch.zeros(1).expand(value.shape) for key, value in sizes.items()}  # not 67 MB
    model = build_model("esrgan-6", 4, saved(one_number_each, tmp_path))
    assert len(model.body) == 23
    assert sum(parameter.numel() for parameter in model.parameters()) == 16_697_987


def msrresnet(state: State, image: Tensor, scale: int, trunk: str = "body", hr: str = "conv_hr", features: int = 8) -> Tensor:
    x = F.leaky_relu(conv(state, "conv_first", image, features), 0.1)
    for block in range(2):
        x = residual(state, f"{trunk}.{block}", x)
    x = F.leaky_relu(shuffled(state, "upconv1", x, features, 3 if scale == 3 else 2), 0.1)
    if scale == 4:
        x = F.leaky_relu(shuffled(state, "upconv2", x, features, 2), 0.1)
    detail = conv(state, "conv_last", F.leaky_relu(conv(state, hr, x, features), 0.1), 3)
    return detail + F.interpolate(image, scale_factor=scale, mode="bilinear", align_corners=False)


@pytest.mark.parametrize(("trunk", "hr"), [("body", "conv_hr"), ("recon_trunk", "HRconv")], ids=["basicsr", "mmsr"])
@pytest.mark.parametrize("scale", [2, 3, 4])
def test_msrresnet(scale: int, trunk: str, hr: str, tmp_path: Path) -> None:
    forward = partial(msrresnet, scale=scale, trunk=trunk, hr=hr)
    state = state_of(forward)
    model = compared("srresnet-msr", scale, saved(state, tmp_path), state, forward)
    assert (len(model.body), model.head[0].out_channels) == (2, 8)


def edsr(state: State, image: Tensor, scale: int, features: int = 8, scaling: float = 1.0) -> Tensor:
    mean = torch.tensor([0.4488, 0.4371, 0.4040]).reshape(1, 3, 1, 1)
    first = x = conv(state, "conv_first", (image - mean) * 255, features)
    for block in range(2):
        x = residual(state, f"body.{block}", x, scaling)
    x = conv(state, "conv_after_body", x, features) + first
    x = shuffled(state, "upsample.0", x, features, 3 if scale == 3 else 2)
    if scale == 4:
        x = shuffled(state, "upsample.2", x, features, 2)
    return conv(state, "conv_last", x, 3) / 255 + mean


@pytest.mark.parametrize(
    ("name", "scale", "features", "scaling"),
    [("edsr", 2, 8, 1.0), ("edsr", 3, 8, 1.0), ("edsr", 4, 8, 1.0), ("edsr", 2, 256, 0.1), ("edsr-full", 2, 8, 1.0)],
)
def test_edsr(name: str, scale: int, features: int, scaling: float, tmp_path: Path) -> None:
    forward = partial(edsr, scale=scale, features=features, scaling=scaling)
    sized = {"bias": 100, "weight": 1}  # biases that count beside pixel values of up to 255
    state = {key: value * sized[key.rpartition(".")[2]] for key, value in state_of(forward).items()}
    model = compared(name, scale, saved(state, tmp_path, "params"), state, forward)
    assert (len(model.body), model.head.out_channels) == (2, features)


def imdn(state: State, image: Tensor, scale: int, module: str = "module.", features: int = 16) -> Tensor:
    kept, rest = features // 4, features - features // 4
    first = x = conv(state, f"{module}fea_conv", image, features)
    outputs = []
    for block in (f"{module}IMDB1", f"{module}IMDB2"):
        parts, onward = [], x
        for n in (1, 2, 3):
            part, onward = F.leaky_relu(conv(state, f"{block}.c{n}", onward, features), 0.05).split([kept, rest], 1)
            parts.append(part)
        every = torch.cat([*parts, conv(state, f"{block}.c4", onward, kept)], 1)
        contrast = every.std((2, 3), correction=0, keepdim=True) + every.mean((2, 3), keepdim=True)
        squeezed = F.relu(conv(state, f"{block}.cca.conv_du.0", contrast, features // 16, 1))
        attention = torch.sigmoid(conv(state, f"{block}.cca.conv_du.2", squeezed, features, 1))
        x = conv(state, f"{block}.c5", every * attention, features, 1) + x
        outputs.append(x)
    collected = F.leaky_relu(conv(state, f"{module}c.0", torch.cat(outputs, 1), features, 1), 0.05)
    return shuffled(state, f"{module}upsampler.0", conv(state, f"{module}LR_conv", collected, features) + first, 3, scale)


@pytest.mark.parametrize(("scale", "module", "features"), [(2, "module.", 16), (3, "", 16), (4, "module.", 64)])
def test_imdn(scale: int, module: str, features: int, tmp_path: Path) -> None:
    forward = partial(imdn, scale=scale, module=module, features=features)
    state = state_of(forward)
    model = compared("imdn", scale, saved(state, tmp_path), state, forward)
    assert (len(model.body), model.head.out_channels) == (2, features)


def xlsr(state: State, image: Tensor, scale: int, blocks: int = 1, features: int = 16) -> Tensor:
    x = torch.cat([F.relu(conv(state, f"conv0_{n}.conv", image, features // 4)) for n in range(4)], 1)
    x = conv(state, "conv2", x, features, 1)
    for block in range(blocks):
        x = conv(state, f"Gblocks.{block}.conv1", F.relu(conv(state, f"Gblocks.{block}.conv0", x, features, 3, 4)), features, 1)
    x = torch.cat([x, conv(state, "conv1", image, features // 2)], 1)
    return shuffled(state, "conv4", F.relu(conv(state, "conv3.conv", x, features, 1)), 3, scale).clamp(0, 1)


@pytest.mark.parametrize("scale", [2, 3, 4])
def test_xlsr(scale: int, tmp_path: Path) -> None:
    forward = partial(xlsr, scale=scale)
    state = state_of(forward)
    model = compared("xlsr", scale, saved(state, tmp_path), state, forward)
    assert (len(model.body), model.head[0].out_channels) == (1, 16)


def test_the_public_xlsr(shared: Path) -> None:
    file = shared / "weights" / "xlsr_x3_cxzhou95.pt"
    state = torch.load(file, map_location="cpu", weights_only=True)
    model = compared("xlsr", 3, file, state, partial(xlsr, scale=3, blocks=3, features=32))
    assert sum(parameter.numel() for parameter in model.parameters()) == 21_947
    with pytest.raises(WeightsError, match=r"type --scale 3$"):
        build_model("xlsr", 2, file)


def wdsr(state: State, image: Tensor) -> Tensor:
    x = conv(state, "head", image, 8)
    for block in range(2):
        x = residual(state, f"body.{block}", x, width=4)
    return F.pixel_shuffle(conv(state, "tail", x, 12) + conv(state, "skip", image, 12, 5), 2)


@pytest.mark.parametrize(
    ("gain", "direction"),
    [("weight_g", "weight_v"), ("parametrizations.weight.original0", "parametrizations.weight.original1")],
    ids=["weight_norm", "parametrization"],
)
def test_weight_norm_of_wdsr_is_folded(gain: str, direction: str, tmp_path: Path) -> None:
    state, pairs = state_of(wdsr), {}
    for key, value in state.items():
        layer, _, kind = key.rpartition(".")
        if kind == "bias":
            pairs[key] = value
            continue
        g = torch.randn(len(value), 1, 1, 1)
        pairs |= {f"{layer}.{gain}": g, f"{layer}.{direction}": value}
        state[key] = torch.stack([length * v / (v * v).sum().sqrt() for length, v in zip(g, value, strict=True)])
    model = compared("wdsr", 2, saved(pairs, tmp_path), state, wdsr)
    assert (len(model.body), model.head.out_channels) == (2, 8)


PUBLISHED: dict[str, tuple[str, int, Forward]] = {
    **{f"esrgan-{keys}": ("esrgan", 4, partial(esrgan, keys=keys)) for keys in ESRGAN_KEYS},
    "msrresnet": ("srresnet-msr", 4, partial(msrresnet, scale=4)),
    "edsr": ("edsr", 3, partial(edsr, scale=3)),
    "imdn": ("imdn", 2, partial(imdn, scale=2)),
    "xlsr": ("xlsr", 2, partial(xlsr, scale=2)),
}


@pytest.mark.parametrize(
    ("published", "key", "ours"),
    [
        ("esrgan-2018", "model.1.sub.1.RDB2.conv3.0.bias", "body.1.blocks.1.conv3.bias"),
        ("esrgan-2019", "HRconv.bias", "tail.0.bias"),
        ("esrgan-basicsr", "conv_body.weight", "fuse.weight"),
        ("msrresnet", "upconv2.bias", "up.3.bias"),
        ("edsr", "conv_after_body.bias", "fuse.bias"),
        ("imdn", "module.IMDB2.cca.conv_du.2.weight", "body.1.attention.weigh.2.weight"),
        ("xlsr", "Gblocks.0.conv1.bias", "body.0.conv2.bias"),
    ],
)
def test_a_missing_key_is_named_as_ours(published: str, key: str, ours: str, tmp_path: Path) -> None:
    name, scale, forward = PUBLISHED[published]
    state = state_of(forward)
    del state[key]
    with pytest.raises(WeightsError, match=rf"do not match \w+\(.*\): 1 missing: {ours}; give matching --weights"):
        build_model(name, scale, saved(state, tmp_path))


@pytest.mark.parametrize(
    ("published", "key", "ours"),
    [
        ("esrgan-2018", "model.1.sub.0.RDB4.conv1.0.bias", "body.0.blocks.3.conv1.bias"),
        ("msrresnet", "HRconv.2.bias", "tail.0.2.bias"),
        ("edsr", "conv_last.2.bias", "tail.2.bias"),
        ("imdn", "module.IMDB1.c6.bias", "IMDB1.c6.bias"),
        ("xlsr", "conv5.bias", "conv5.bias"),
    ],
)
def test_an_extra_key_is_named(published: str, key: str, ours: str, tmp_path: Path) -> None:
    name, scale, forward = PUBLISHED[published]
    with pytest.raises(WeightsError, match=rf"do not match \w+\(.*\): 1 unexpected: {ours}; give matching --weights"):
        build_model(name, scale, saved(state_of(forward) | {key: torch.zeros(1)}, tmp_path))


@pytest.mark.parametrize(("published", "asked"), [("msrresnet", 2), ("edsr", 4), ("imdn", 3), ("xlsr", 3)])
def test_another_scale_says_what_to_type(published: str, asked: int, tmp_path: Path) -> None:
    name, scale, forward = PUBLISHED[published]
    with pytest.raises(WeightsError, match=f"a x{scale} network, but --scale is {asked}; type --scale {scale}$"):
        build_model(name, asked, saved(state_of(forward), tmp_path))


@pytest.mark.parametrize("published", PUBLISHED)
def test_the_layouts_need_no_spandrel(published: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "spandrel", None)  # importing it is an error now
    name, scale, forward = PUBLISHED[published]
    state = state_of(forward)
    compared(name, scale, saved(state, tmp_path), state, forward)
