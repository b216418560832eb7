"""An exported file on images of any size and kind: tiled as in one piece, in bounded memory, whole or not at all."""

from __future__ import annotations

import errno
import io
import json
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import onnx
import PIL.Image
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

import autoq
from autoq.config.policy import uniform
from autoq.deploy import upscale
from autoq.deploy.tiling import Tiling, upscaled
from autoq.errors import AutoqError, DataError, InputError
from autoq.export.geometry import Geometry
from autoq.export.onnx import export_graph, write_qdq
from autoq.graph.quantize import collect, quantize
from autoq.graph.trace import Traced, trace
from autoq.networks import model_info
from autoq.networks.srresnet import SRResNet
from autoq.targets import TARGETS
from autoq.trial.context import execution_on
from tests.cli.test_cli import run

INFO = model_info("srresnet")


def exported(traced: Traced, bits: str, path: Path) -> Path:
    batches = [torch.rand(1, 3, 24, 24, generator=torch.Generator().manual_seed(1))]
    network = quantize(traced, uniform(bits, INFO.stages), collect(traced, batches), execution_on("openvino-cpu"))
    path.write_bytes(write_qdq(export_graph(traced), network).SerializeToString())
    return path


@pytest.fixture(scope="module", params=["32/32/32", "8/8/8"])
def srresnet(request: pytest.FixtureRequest, tiny_traced: Traced, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return exported(tiny_traced, request.param, tmp_path_factory.mktemp("networks") / "tiny.onnx")


@pytest.fixture
def doubling(tmp_path: Path) -> Path:
    """A network that repeats every pixel: what it gives is known without running it."""
    values = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 3, None, None]) for name in ("input", "output")
    ]  # fmt: skip
    node = helper.make_node(
        "Resize", ["input", "", "scales"], ["output"], mode="nearest",
        coordinate_transformation_mode="asymmetric", nearest_mode="floor",
    )  # fmt: skip
    scales = numpy_helper.from_array(np.array([1, 1, 2, 2], np.float32), "scales")
    graph = helper.make_graph([node], "doubling", values[:1], values[1:], [scales])
    path = tmp_path / "doubling.onnx"
    path.write_bytes(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10).SerializeToString()
    )  # fmt: skip
    return path


def doubled(pixels: np.ndarray) -> np.ndarray:
    return pixels.repeat(2, 0).repeat(2, 1)


def noise(height: int, width: int, channels: int = 3) -> np.ndarray:
    """Smooth in places, busy in others."""
    coarse = np.random.default_rng(0).integers(0, 256, (height // 6 + 1, width // 6 + 1, channels), dtype=np.uint8)
    return coarse.repeat(6, 0).repeat(6, 1)[:height, :width]


def saved(path: Path, pixels: np.ndarray, mode: str = "RGB", **options: object) -> Path:
    image = PIL.Image.fromarray(pixels)
    assert image.mode == mode
    image.save(path, **options)
    return path


def written(path: Path) -> np.ndarray:
    with PIL.Image.open(path) as image:
        return np.asarray(image)


# ---------------------------------------------------------------- tiles


def test_tiles_are_the_image_in_one_piece(srresnet: Path, tmp_path: Path) -> None:
    photo = saved(tmp_path / "photo.png", noise(75, 110))
    found = autoq.upscale(srresnet, photo, tmp_path / "tiled.png", tile=16, threads=1)
    whole = autoq.upscale(srresnet, photo, tmp_path / "whole.png", tile=512, threads=1)
    # 9x9 head 4, three layers of 3x3 3, one at x1 1, its shuffle .5, 9x9 tail at x2 2: 10.5
    assert (found["overlap"], found["exact"], found["scale"]) == (11, True, 2)
    assert (found["tiles"], whole["tiles"]) == (4 * 6, 1)
    tiled, expected = (written(tmp_path / f"{name}.png").astype(int) for name in ("tiled", "whole"))
    assert tiled.shape == (150, 220, 3)
    assert np.abs(tiled - expected).max() <= 1, "more than rounding"
    assert (tiled != expected).mean() < 1e-3


def test_a_smaller_overlap_shows(srresnet: Path) -> None:
    """The reach is not more than is needed: with half of it tiles differ from the whole."""
    network, pixels = upscale.Network(srresnet, "openvino-cpu", 1), noise(75, 110)
    (whole,) = (part for _, _, part in upscaled(network, pixels, 2, Tiling(512, 0)))
    for overlap, most, least in ((11, 1, 0), (5, 255, 2)):
        tiled = np.zeros_like(whole)
        for top, left, part in upscaled(network, pixels, 2, Tiling(16, overlap)):
            tiled[top : top + part.shape[0], left : left + part.shape[1]] = part
        assert least <= np.abs(tiled.astype(int) - whole).max() <= most


def test_a_network_that_sees_far_gets_a_bounded_overlap() -> None:
    assert upscale.tiling(Geometry(95, 1, 8192)).overlap == 48
    assert upscale.tiling(Geometry(None, 8, 8192)).overlap == 48
    assert upscale.tiling(Geometry(41, 1, 8192)) == Tiling(280, 41), "a window of 362^2 pixels of 8 KiB is 1 GiB"
    assert upscale.tiling(Geometry(3, 4, 10)) == Tiling(512, 4, 4)
    assert upscale.tiling(Geometry(3, 4, 10), tile=30) == Tiling(32, 4, 4)


@pytest.mark.parametrize("size", [(1, 1), (3, 5), (9, 200)])
def test_small_and_narrow_images(srresnet: Path, tmp_path: Path, size: tuple[int, int]) -> None:
    photo = saved(tmp_path / "photo.png", noise(*size))
    autoq.upscale(srresnet, photo, tmp_path / "large.png", tile=32, threads=1)
    assert written(tmp_path / "large.png").shape == (2 * size[0], 2 * size[1], 3)


def test_memory_is_that_of_a_tile(tmp_path: Path) -> None:
    torch.manual_seed(0)
    traced = trace(SRResNet(scale=2, blocks=1, features=16).eval(), INFO.patterns)
    network = exported(traced, "32/32/32", tmp_path / "wide.onnx")
    saved(tmp_path / "small.png", noise(80, 80))
    saved(tmp_path / "large.png", noise(700, 600))
    code = (
        "import sys, pathlib, autoq\n"
        "network, folder = sys.argv[1:]\n"
        "for photo, tile in (('small', 128), ('large', 128), ('large', 4096)):\n"
        "    autoq.upscale(network, f'{folder}/{photo}.png', f'{folder}/{photo}-2.png', tile=tile, threads=1)\n"
        "    lines = pathlib.Path('/proc/self/status').read_text().splitlines()\n"
        "    print(next(int(line.split()[1]) for line in lines if line.startswith('VmHWM')) / 1024)"
    )
    done = subprocess.run([sys.executable, "-c", code, str(network), str(tmp_path)], capture_output=True, text=True, check=True)
    start, tiled, whole = map(float, done.stdout.split())  # MiB at most in memory
    # in one piece two maps of 16 channels at twice the side, 512 bytes a pixel, take 205 MiB; the result alone 4 x 4 bytes: 6
    assert whole - start > 150
    assert tiled - start < 75


# ---------------------------------------------------------------- kinds of images


def chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def deep_png(path: Path, values: np.ndarray) -> Path:
    """A PNG file of 16 bits a channel, which Pillow does not write: [height, width, channels]."""
    height, width, channels = values.shape
    head = struct.pack(">IIBBBBB", width, height, 16, {1: 0, 3: 2, 4: 6}[channels], 0, 0, 0)
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    path.write_bytes(
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    )  # fmt: skip
    return path


def test_grey_and_palette_become_rgb(doubling: Path, tmp_path: Path) -> None:
    grey = noise(20, 30, 1)[..., 0]
    autoq.upscale(doubling, saved(tmp_path / "grey.png", grey, "L"), tmp_path / "1.png")
    assert (written(tmp_path / "1.png") == doubled(grey)[..., None].repeat(3, 2)).all()
    palette = PIL.Image.fromarray(noise(20, 30)).quantize(16)
    palette.save(tmp_path / "palette.png")
    autoq.upscale(doubling, tmp_path / "palette.png", tmp_path / "2.png")
    assert (written(tmp_path / "2.png") == doubled(np.asarray(palette.convert("RGB")))).all()


def test_transparency_is_upscaled_by_bicubic_interpolation(doubling: Path, tmp_path: Path) -> None:
    pixels = noise(20, 30, 4)
    autoq.upscale(doubling, saved(tmp_path / "clear.png", pixels, "RGBA"), tmp_path / "1.png", tile=16)
    found = written(tmp_path / "1.png")
    assert found.shape == (40, 60, 4)
    assert (found[..., :3] == doubled(pixels[..., :3])).all()
    alpha = PIL.Image.fromarray(np.ascontiguousarray(pixels[..., 3])).resize((60, 40), PIL.Image.Resampling.BICUBIC)
    assert (found[..., 3] == np.asarray(alpha)).all()
    saved(tmp_path / "one.png", pixels[..., :3], transparency=tuple(int(value) for value in pixels[0, 0, :3]))
    autoq.upscale(doubling, tmp_path / "one.png", tmp_path / "2.png")
    found = written(tmp_path / "2.png")
    assert found.shape == (40, 60, 4)
    assert found[0, 0, 3] == 0
    assert found[..., 3].max() == 255


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_16_bits_a_channel_are_read_as_their_upper_8(doubling: Path, tmp_path: Path, channels: int) -> None:
    pixels = noise(20, 30, channels)
    photo = deep_png(tmp_path / "deep.png", pixels.astype(np.uint16) * 256 + 77)
    found = autoq.upscale(doubling, photo, tmp_path / "out.png")
    assert found["note"] == f"'{photo}' has 16 bits per channel; only the upper 8 are used"
    expected = pixels[..., :3] if channels > 1 else pixels.repeat(3, 2)
    assert (written(tmp_path / "out.png")[..., :3] == doubled(expected)).all()


def test_an_image_is_turned_as_its_exif_says(doubling: Path, tmp_path: Path) -> None:
    exif = PIL.Image.Exif()
    exif[0x0112] = 6  # the camera was turned: rotate by 90 degrees clockwise to see it upright
    pixels = noise(20, 30)
    autoq.upscale(doubling, saved(tmp_path / "turned.png", pixels, exif=exif), tmp_path / "out.png")
    assert (written(tmp_path / "out.png") == doubled(np.rot90(pixels, -1))).all()
    with PIL.Image.open(tmp_path / "out.png") as image:
        assert image.getexif().get(0x0112, 1) == 1


def test_a_colour_profile_is_kept(doubling: Path, tmp_path: Path) -> None:
    saved(tmp_path / "photo.png", noise(20, 30), icc_profile=b"a profile")
    autoq.upscale(doubling, tmp_path / "photo.png", tmp_path / "out.png")
    with PIL.Image.open(tmp_path / "out.png") as image:
        assert image.info["icc_profile"] == b"a profile"


def test_an_image_too_large_for_memory(doubling: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(PIL.Image, "MAX_IMAGE_PIXELS", 500)
    for side in (30, 40):  # Pillow warns from one bound on, and refuses from twice it
        photo = saved(tmp_path / f"{side}.png", noise(20, side))
        with pytest.raises(DataError, match="too large, expected at most 500 pixels; split the image"):
            autoq.upscale(doubling, photo, tmp_path / "out.png")


# ---------------------------------------------------------------- the command


def test_the_command(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, doubling: Path, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    pixels = noise(100, 150)
    saved(tmp_path / "photo.png", pixels)
    code, out, err = run(
        capsys, monkeypatch, "upscale", "doubling.onnx", "photo.png", "large.png", "--tile", "64", "--threads", "1"
    )
    assert (code, err) == (0, "")
    assert out == "large.png: 300x200, x2, in 6 tiles that overlap by 1\n"
    assert (written(tmp_path / "large.png") == doubled(pixels)).all()
    code, out, _ = run(capsys, monkeypatch, "upscale", "doubling.onnx", "photo.png", "large.png", "--json")
    assert code == 0, "an older output is replaced"
    found = json.loads(out)
    assert (found["width"], found["height"], found["tiles"], found["exact"]) == (300, 200, 1, True)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["doubling.onnx", "large.png", "photo.png"]


ASK_FILE = "give an .onnx file exported by autoq"
ASK_IMAGE = "give an existing .bmp, .jpeg, .jpg, .png, .tif, .tiff or .webp file"


def gif() -> bytes:
    content = io.BytesIO()
    frames = [PIL.Image.fromarray(noise(20, 30)), PIL.Image.fromarray(255 - noise(20, 30))]
    frames[0].save(content, "GIF", save_all=True, append_images=frames[1:])
    return content.getvalue()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["none.onnx", "photo.png", "out.png"], f"cannot read 'none.onnx': No such file or directory; {ASK_FILE}"),
        (["photo.png", "photo.png", "out.png"], f"'photo.png': not an ONNX file, or damaged; {ASK_FILE}"),
        (["folder", "photo.png", "out.png"], f"cannot read 'folder': Is a directory; {ASK_FILE}"),
        (["doubling.onnx", "none.png", "out.png"], f"cannot read image 'none.png': no such file or directory; {ASK_IMAGE}"),
        (["doubling.onnx", "cut.png", "out.png"], f"cannot read image 'cut.png': not an image, or damaged; {ASK_IMAGE}"),
        (["doubling.onnx", "doubling.onnx", "out.png"], f"cannot read image 'doubling.onnx': not an image, or damaged; {ASK_IMAGE}"),
        (["doubling.onnx", "cmyk.jpg", "out.png"], "image 'cmyk.jpg': mode CMYK, expected RGB, grey or palette, with or without transparency; convert the image"),
        (["doubling.onnx", "moving.gif", "out.png"], "image 'moving.gif': 2 frames, expected one; save a single frame"),
        (["doubling.onnx", "photo.png", "photo.png"], "output 'photo.png' is an input file; give another name"),
        (["doubling.onnx", "photo.png", "link.png"], "output 'link.png' is an input file; give another name"),
        (["doubling.onnx", "photo.png", "folder/../photo.png"], "output 'folder/../photo.png' is an input file; give another name"),
        (["doubling.onnx", "photo.png", "doubling.onnx"], "output 'doubling.onnx': expected a .png file; type doubling.png"),
        (["doubling.onnx", "photo.png", "out.jpg"], "output 'out.jpg': expected a .png file; type out.png"),
        (["doubling.onnx", "photo.png", "none/out.png"], "output 'none/out.png': no such folder 'none'; create it, or give another path"),
        (["doubling.onnx", "photo.png", "folder.png"], "output 'folder.png' is a folder, expected a .png file; give a file name"),
        (["doubling.onnx", "photo.png", "out.png", "--target", "openvino"], f"unknown target 'openvino' (did you mean 'openvino-cpu'?); type one of {', '.join(sorted(TARGETS))}"),
        (["doubling.onnx", "photo.png", "out.png", "--tile", "8"], "--tile '8': expected a whole number from 16 to 8192, for example --tile 256"),
        (["doubling.onnx", "photo.png", "out.png", "--threads", "0"], "--threads '0': expected a whole number from 1 to 1024, for example --threads 2"),
    ],
)  # fmt: skip
def test_bad_input(
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    doubling: Path,
    tmp_path: Path,
    arguments: list[str],
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    saved(tmp_path / "photo.png", noise(20, 30))
    (tmp_path / "cut.png").write_bytes((tmp_path / "photo.png").read_bytes()[:80])
    PIL.Image.fromarray(noise(20, 30)).convert("CMYK").save(tmp_path / "cmyk.jpg")
    (tmp_path / "moving.gif").write_bytes(gif())
    (tmp_path / "link.png").symlink_to("photo.png")
    for folder in ("folder", "folder.png"):
        (tmp_path / folder).mkdir()
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir() if path.is_file()}
    assert run(capsys, monkeypatch, "upscale", *arguments) == (2, "", f"autoq: {message}\n")
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir() if path.is_file()} == before


def test_a_network_of_no_whole_scale(tmp_path: Path) -> None:
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 3, None, None]) for name in ("input", "output")]
    weights = numpy_helper.from_array(np.ones((3, 3, 3, 3), np.float32), "w")
    graph = helper.make_graph(
        [helper.make_node("Conv", ["input", "w"], ["output"])], "shrinking", values[:1], values[1:], [weights]
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    (tmp_path / "shrinking.onnx").write_bytes(model.SerializeToString())
    photo = saved(tmp_path / "photo.png", noise(20, 30))
    with pytest.raises(
        AutoqError, match=r"input \[1, 3, 24, 24\] gives output \[1, 3, 22, 22\], expected \[1, 3, s \* 24, s \* 24\]"
    ):
        autoq.upscale(tmp_path / "shrinking.onnx", photo, tmp_path / "out.png")


@pytest.mark.parametrize("target", ["openvino-cpu", "onnxruntime-cpu"])
def test_a_file_that_the_target_does_not_run(doubling: Path, tmp_path: Path, target: str) -> None:
    model = onnx.load(doubling)
    model.graph.node[0].op_type, model.graph.node[0].domain = "Unheard", "of"
    model.opset_import.append(helper.make_opsetid("of", 1))
    onnx.save(model, tmp_path / "odd.onnx")
    photo = saved(tmp_path / "photo.png", noise(20, 30))
    with pytest.raises(
        InputError, match=rf"odd\.onnx': {target} cannot run this file \(.*Unheard.*\); give an \.onnx file exported"
    ):
        autoq.upscale(tmp_path / "odd.onnx", photo, tmp_path / "out.png", target=target)


def test_a_full_disk_leaves_nothing(doubling: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    photo, output = saved(tmp_path / "photo.png", noise(20, 30)), tmp_path / "out.png"

    def fill(image: PIL.Image.Image, path: Path, *rest: object, **options: object) -> None:
        path.write_bytes(b"half an image")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(PIL.Image.Image, "save", fill)
    with pytest.raises(AutoqError, match=r"cannot write '.*out\.png': No space left on device; free some space"):
        autoq.upscale(doubling, photo, output)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["doubling.onnx", "photo.png"]
