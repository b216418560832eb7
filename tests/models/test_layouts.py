"""Published checkpoints: loaded from the authors' keys, each network gives what the authors' own forward pass gives."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from autoq.errors import WeightsError
from autoq.models import build_model

State = dict[str, Tensor]
Reference = Callable[[State, Tensor], Tensor]
Shapes = dict[str, tuple[int, int, int]]
"""Key of a convolution -> outputs, inputs, kernel size."""


@pytest.fixture(autouse=True)
def _seeded_on_one_thread() -> Iterator[None]:
    """The networks here are too small to gain from threads."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    yield
    torch.set_num_threads(threads)


def random_state(shapes: Shapes) -> State:
    state = {}
    for key, (outputs, inputs, kernel) in shapes.items():
        state[f"{key}.weight"] = torch.randn(outputs, inputs, kernel, kernel) / (inputs * kernel**2) ** 0.5
        state[f"{key}.bias"] = torch.randn(outputs) * 0.1
    return state


def conv(state: State, key: str, x: Tensor, groups: int = 1) -> Tensor:
    weight = state[f"{key}.weight"]
    return F.conv2d(x, weight, state[f"{key}.bias"], padding=weight.shape[-1] // 2, groups=groups)


def saved(state: State, folder: Path, wrapper: str | None = None) -> Path:
    """A file as the authors saved it; BasicSR puts the state dict under a name."""
    torch.save({wrapper: state} if wrapper else state, folder / "published.pth")
    return folder / "published.pth"


def loaded(name: str, scale: int, file: Path, state: State, reference: Reference) -> nn.Module:
    """The network of a file, after its output was compared with the reference."""
    model = build_model(name, scale, file)
    image = torch.rand(1, 3, 9, 11)
    with torch.no_grad():
        output, expected = model(image), reference(state, image)
    assert output.shape == (1, 3, 9 * scale, 11 * scale)
    torch.testing.assert_close(output, expected, rtol=0, atol=1e-5)
    return model


class EsrganKeys(NamedTuple):
    first: str
    dense: str
    fuse: str
    up1: str
    up2: str
    hr: str
    last: str


ESRGAN_KEYS = {
    "2018": EsrganKeys(
        "model.0", "model.1.sub.{}.RDB{}.conv{}.0", "model.1.sub.{blocks}", "model.3", "model.6", "model.8", "model.10"
    ),
    "2019": EsrganKeys("conv_first", "RRDB_trunk.{}.RDB{}.conv{}", "trunk_conv", "upconv1", "upconv2", "HRconv", "conv_last"),
    "basicsr": EsrganKeys("conv_first", "body.{}.rdb{}.conv{}", "conv_body", "conv_up1", "conv_up2", "conv_hr", "conv_last"),
}


def esrgan_shapes(layout: str, blocks: int = 2, features: int = 8, growth: int = 4) -> Shapes:
    keys = ESRGAN_KEYS[layout]
    shapes = {keys.first: (features, 3, 3)}
    for block in range(blocks):
        for dense in (1, 2, 3):
            for n in range(1, 6):
                shapes[keys.dense.format(block, dense, n)] = (growth if n < 5 else features, features + (n - 1) * growth, 3)
    for key in (keys.fuse.format(blocks=blocks), keys.up1, keys.up2, keys.hr):
        shapes[key] = (features, features, 3)
    return {**shapes, keys.last: (3, features, 3)}


def esrgan_forward(layout: str, blocks: int = 2) -> Reference:
    keys = ESRGAN_KEYS[layout]

    def forward(state: State, image: Tensor) -> Tensor:
        first = trunk = conv(state, keys.first, image)
        for block in range(blocks):
            x = trunk
            for dense in (1, 2, 3):
                known = [x]
                for n in range(1, 5):
                    known.append(F.leaky_relu(conv(state, keys.dense.format(block, dense, n), torch.cat(known, 1)), 0.2))
                x = conv(state, keys.dense.format(block, dense, 5), torch.cat(known, 1)) * 0.2 + x
            trunk = x * 0.2 + trunk
        x = first + conv(state, keys.fuse.format(blocks=blocks), trunk)
        for key in (keys.up1, keys.up2):
            x = F.leaky_relu(conv(state, key, x.repeat_interleave(2, 2).repeat_interleave(2, 3)), 0.2)
        return conv(state, keys.last, F.leaky_relu(conv(state, keys.hr, x), 0.2))

    return forward


@pytest.mark.parametrize(("layout", "wrapper"), [("2018", None), ("2019", None), ("basicsr", "params"), ("basicsr", "params_ema")])
def test_esrgan(layout: str, wrapper: str | None, tmp_path: Path) -> None:
    state = random_state(esrgan_shapes(layout))
    model = loaded("esrgan", 4, saved(state, tmp_path, wrapper), state, esrgan_forward(layout))
    assert (len(model.body), model.head.out_channels, model.body[0].blocks[0].conv1.out_channels) == (2, 8, 4)


def test_the_published_depth_of_esrgan_is_read_from_the_keys(tmp_path: Path) -> None:
    state = {}
    for key, (outputs, inputs, kernel) in esrgan_shapes("2018", blocks=23, features=64, growth=32).items():
        # one stored number each: the file of 67 MB takes kilobytes
        state[f"{key}.weight"] = torch.zeros(1).expand(outputs, inputs, kernel, kernel)
        state[f"{key}.bias"] = torch.zeros(1).expand(outputs)
    model = build_model("esrgan-6", 4, saved(state, tmp_path))
    assert len(model.body) == 23
    assert sum(parameter.numel() for parameter in model.parameters()) == 16_697_987


MSRRESNET_KEYS = {"basicsr": ("body", "conv_hr"), "mmsr": ("recon_trunk", "HRconv")}


def residual_shapes(trunk: str, blocks: int, features: int) -> Shapes:
    return {f"{trunk}.{block}.conv{n}": (features, features, 3) for block in range(blocks) for n in (1, 2)}


def residual(state: State, key: str, x: Tensor, scaling: float = 1.0) -> Tensor:
    return x + conv(state, f"{key}.conv2", F.relu(conv(state, f"{key}.conv1", x))) * scaling


def msrresnet_shapes(layout: str, scale: int, blocks: int = 2, features: int = 8) -> Shapes:
    trunk, hr = MSRRESNET_KEYS[layout]
    shapes = {"conv_first": (features, 3, 3), **residual_shapes(trunk, blocks, features)}
    shapes["upconv1"] = (features * (9 if scale == 3 else 4), features, 3)
    if scale == 4:
        shapes["upconv2"] = shapes["upconv1"]
    return {**shapes, hr: (features, features, 3), "conv_last": (3, features, 3)}


def msrresnet_forward(layout: str, scale: int, blocks: int = 2) -> Reference:
    trunk, hr = MSRRESNET_KEYS[layout]

    def forward(state: State, image: Tensor) -> Tensor:
        x = F.leaky_relu(conv(state, "conv_first", image), 0.1)
        for block in range(blocks):
            x = residual(state, f"{trunk}.{block}", x)
        for key in ("upconv1", "upconv2") if scale == 4 else ("upconv1",):
            x = F.leaky_relu(F.pixel_shuffle(conv(state, key, x), 3 if scale == 3 else 2), 0.1)
        x = conv(state, "conv_last", F.leaky_relu(conv(state, hr, x), 0.1))
        return x + F.interpolate(image, scale_factor=scale, mode="bilinear", align_corners=False)

    return forward


@pytest.mark.parametrize("layout", ["basicsr", "mmsr"])
@pytest.mark.parametrize("scale", [2, 3, 4])
def test_msrresnet(layout: str, scale: int, tmp_path: Path) -> None:
    state = random_state(msrresnet_shapes(layout, scale))
    model = loaded("srresnet-msr", scale, saved(state, tmp_path), state, msrresnet_forward(layout, scale))
    assert (len(model.body), model.head[0].out_channels) == (2, 8)


def edsr_shapes(scale: int, blocks: int = 2, features: int = 8) -> Shapes:
    shapes = {"conv_first": (features, 3, 3), **residual_shapes("body", blocks, features)}
    shapes["conv_after_body"] = (features, features, 3)
    shapes["upsample.0"] = (features * (9 if scale == 3 else 4), features, 3)
    if scale == 4:
        shapes["upsample.2"] = shapes["upsample.0"]
    return {**shapes, "conv_last": (3, features, 3)}


def edsr_forward(scale: int, blocks: int = 2, scaling: float = 1.0) -> Reference:
    def forward(state: State, image: Tensor) -> Tensor:
        mean = torch.tensor([0.4488, 0.4371, 0.4040]).reshape(1, 3, 1, 1)
        first = x = conv(state, "conv_first", (image - mean) * 255)
        for block in range(blocks):
            x = residual(state, f"body.{block}", x, scaling)
        x = conv(state, "conv_after_body", x) + first
        for key in ("upsample.0", "upsample.2") if scale == 4 else ("upsample.0",):
            x = F.pixel_shuffle(conv(state, key, x), 3 if scale == 3 else 2)
        return conv(state, "conv_last", x) / 255 + mean

    return forward


@pytest.mark.parametrize("scale", [2, 3, 4])
def test_edsr(scale: int, tmp_path: Path) -> None:
    state = random_state(edsr_shapes(scale))
    model = loaded("edsr", scale, saved(state, tmp_path, "params"), state, edsr_forward(scale))
    assert (len(model.body), model.head.out_channels) == (2, 8)


@pytest.mark.parametrize(("name", "features", "scaling"), [("edsr", 256, 0.1), ("edsr-full", 8, 1.0)])
def test_edsr_scales_its_residuals_by_the_width_of_the_file(name: str, features: int, scaling: float, tmp_path: Path) -> None:
    state = random_state(edsr_shapes(2, blocks=1, features=features))
    loaded(name, 2, saved(state, tmp_path), state, edsr_forward(2, blocks=1, scaling=scaling))


def imdn_shapes(scale: int, prefix: str = "module.", blocks: int = 2, features: int = 16) -> Shapes:
    kept = features // 4
    rest = features - kept
    shapes = {"fea_conv": (features, 3, 3)}
    for block in (f"IMDB{number}" for number in range(1, blocks + 1)):
        shapes |= {f"{block}.c1": (features, features, 3), f"{block}.c2": (features, rest, 3), f"{block}.c3": (features, rest, 3)}
        shapes |= {f"{block}.c4": (kept, rest, 3), f"{block}.c5": (features, features, 1)}
        shapes |= {f"{block}.cca.conv_du.0": (features // 16, features, 1), f"{block}.cca.conv_du.2": (features, features // 16, 1)}
    shapes |= {
        "c.0": (features, features * blocks, 1),
        "LR_conv": (features, features, 3),
        "upsampler.0": (3 * scale**2, features, 3),
    }
    return {prefix + key: shape for key, shape in shapes.items()}


def imdn_forward(scale: int, prefix: str, blocks: int = 2, features: int = 16) -> Reference:
    def forward(state: State, image: Tensor) -> Tensor:
        first = x = conv(state, f"{prefix}fea_conv", image)
        outputs = []
        for block in (f"{prefix}IMDB{number}" for number in range(1, blocks + 1)):
            kept, rest = [], x
            for n in (1, 2, 3):
                rest = F.leaky_relu(conv(state, f"{block}.c{n}", rest), 0.05)
                kept.append(rest[:, : features // 4])
                rest = rest[:, features // 4 :]
            every = torch.cat([*kept, conv(state, f"{block}.c4", rest)], 1)
            contrast = every.std((2, 3), correction=0, keepdim=True) + every.mean((2, 3), keepdim=True)
            weight = torch.sigmoid(conv(state, f"{block}.cca.conv_du.2", F.relu(conv(state, f"{block}.cca.conv_du.0", contrast))))
            x = conv(state, f"{block}.c5", every * weight) + x
            outputs.append(x)
        x = conv(state, f"{prefix}LR_conv", F.leaky_relu(conv(state, f"{prefix}c.0", torch.cat(outputs, 1)), 0.05)) + first
        return F.pixel_shuffle(conv(state, f"{prefix}upsampler.0", x), scale)

    return forward


@pytest.mark.parametrize(("scale", "prefix", "features"), [(2, "module.", 16), (3, "", 16), (4, "module.", 64)])
def test_imdn(scale: int, prefix: str, features: int, tmp_path: Path) -> None:
    state = random_state(imdn_shapes(scale, prefix, features=features))
    model = loaded("imdn", scale, saved(state, tmp_path), state, imdn_forward(scale, prefix, features=features))
    assert (len(model.body), model.head.out_channels) == (2, features)


def xlsr_shapes(scale: int, blocks: int = 1, features: int = 16) -> Shapes:
    shapes = {f"conv0_{n}.conv": (features // 4, 3, 3) for n in range(4)}
    shapes |= {"conv1": (features // 2, 3, 3), "conv2": (features, features, 1), "conv3.conv": (features, features * 3 // 2, 1)}
    for block in range(blocks):
        shapes |= {f"Gblocks.{block}.conv0": (features, features // 4, 3), f"Gblocks.{block}.conv1": (features, features, 1)}
    return {**shapes, "conv4": (3 * scale**2, features, 3)}


def xlsr_forward(scale: int, blocks: int = 1) -> Reference:
    def forward(state: State, image: Tensor) -> Tensor:
        x = conv(state, "conv2", torch.cat([F.relu(conv(state, f"conv0_{n}.conv", image)) for n in range(4)], 1))
        for block in range(blocks):
            x = conv(state, f"Gblocks.{block}.conv1", F.relu(conv(state, f"Gblocks.{block}.conv0", x, groups=4)))
        x = F.relu(conv(state, "conv3.conv", torch.cat([x, conv(state, "conv1", image)], 1)))
        return F.pixel_shuffle(conv(state, "conv4", x).clamp(0, 1), scale)

    return forward


@pytest.mark.parametrize("scale", [2, 3, 4])
def test_xlsr(scale: int, tmp_path: Path) -> None:
    state = random_state(xlsr_shapes(scale))
    model = loaded("xlsr", scale, saved(state, tmp_path), state, xlsr_forward(scale))
    assert (len(model.body), model.head[0].out_channels) == (1, 16)


def test_the_public_xlsr(shared: Path) -> None:
    file = shared / "weights" / "xlsr_x3_cxzhou95.pt"
    model = loaded("xlsr", 3, file, torch.load(file, weights_only=True), xlsr_forward(3, blocks=3))
    assert sum(parameter.numel() for parameter in model.parameters()) == 21_947
    with pytest.raises(WeightsError, match=r"type --scale 3$"):
        build_model("xlsr", 2, file)


@pytest.mark.parametrize(
    "pair", [("weight_g", "weight_v"), ("parametrizations.weight.original0", "parametrizations.weight.original1")]
)
def test_weight_norm_of_wdsr_is_folded(pair: tuple[str, str], tmp_path: Path) -> None:
    shapes: Shapes = {"head": (8, 3, 3), "tail": (12, 8, 3), "skip": (12, 3, 5)}
    for block in range(2):
        shapes |= {f"body.{block}.conv1": (32, 8, 3), f"body.{block}.conv2": (8, 32, 3)}
    normed, folded = {}, random_state(shapes)
    for key in shapes:
        gain, direction = torch.randn(shapes[key][0], 1, 1, 1), folded[f"{key}.weight"]
        normed |= {f"{key}.{pair[0]}": gain, f"{key}.{pair[1]}": direction, f"{key}.bias": folded[f"{key}.bias"]}
        folded[f"{key}.weight"] = torch.stack([g * v / (v * v).sum().sqrt() for g, v in zip(gain, direction, strict=True)])

    def forward(state: State, image: Tensor) -> Tensor:
        x = conv(state, "head", image)
        for block in range(2):
            x = residual(state, f"body.{block}", x)
        return F.pixel_shuffle(conv(state, "tail", x) + conv(state, "skip", image), 2)

    assert len(loaded("wdsr", 2, saved(normed, tmp_path), folded, forward).body) == 2


PUBLISHED: dict[str, tuple[str, int, Shapes]] = {
    "esrgan-2018": ("esrgan", 4, esrgan_shapes("2018")),
    "esrgan-2019": ("esrgan", 4, esrgan_shapes("2019")),
    "esrgan-basicsr": ("esrgan", 4, esrgan_shapes("basicsr")),
    "msrresnet": ("srresnet-msr", 4, msrresnet_shapes("basicsr", 4)),
    "edsr": ("edsr", 3, edsr_shapes(3)),
    "imdn": ("imdn", 2, imdn_shapes(2)),
    "xlsr": ("xlsr", 2, xlsr_shapes(2)),
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
    name, scale, shapes = PUBLISHED[published]
    state = random_state(shapes)
    del state[key]
    with pytest.raises(WeightsError, match=rf"do not fit \w+\(.*\): 1 missing: {ours}; give --weights"):
        build_model(name, scale, saved(state, tmp_path))


@pytest.mark.parametrize(
    ("published", "key", "ours"),
    [
        ("esrgan-2018", "model.1.sub.0.RDB4.conv1.0.bias", "body.0.blocks.3.conv1.bias"),
        ("msrresnet", "body.0.conv3.bias", "body.0.conv3.bias"),
        ("edsr", "conv_last.2.bias", "tail.2.bias"),
        ("imdn", "module.IMDB1.cca.conv_du.4.bias", "body.0.attention.weigh.4.bias"),
        ("xlsr", "conv5.bias", "conv5.bias"),
    ],
)
def test_an_extra_key_is_named_as_ours(published: str, key: str, ours: str, tmp_path: Path) -> None:
    name, scale, shapes = PUBLISHED[published]
    with pytest.raises(WeightsError, match=rf"do not fit \w+\(.*\): 1 unexpected: {ours}; give --weights"):
        build_model(name, scale, saved(random_state(shapes) | {key: torch.zeros(1)}, tmp_path))


@pytest.mark.parametrize(("published", "asked"), [("msrresnet", 2), ("edsr", 4), ("imdn", 3), ("xlsr", 3)])
def test_another_scale_says_what_to_type(published: str, asked: int, tmp_path: Path) -> None:
    name, scale, shapes = PUBLISHED[published]
    with pytest.raises(WeightsError, match=f"a x{scale} network, asked for x{asked}; type --scale {scale}$"):
        build_model(name, asked, saved(random_state(shapes), tmp_path))
