"""An exported file or a float network on a folder of images: the numbers of a trial's evaluation."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
from skimage.metrics import peak_signal_noise_ratio

import autoq
from autoq.config.policy import all_float, uniform
from autoq.config.spec import TrialSpec
from autoq.errors import DataError, InputError
from autoq.export.onnx import export_graph
from autoq.graph.quantize import quantize
from autoq.images import crops
from autoq.images.data import make_pair, read_folder
from autoq.metrics import quality
from autoq.networks import model_info
from autoq.trial.context import prepare, runtime_file, runtime_model, shipped, simulated
from autoq.trial.run import evaluate as judged
from tests.cli.test_cli import run
from tests.conftest import small_image

STAGES = model_info("srresnet").stages


@pytest.fixture(scope="module")
def spec(tiny_weights: Path, tmp_path_factory: pytest.TempPathFactory) -> TrialSpec:
    folder = tmp_path_factory.mktemp("images")
    data, evaluation = small_image(folder / "train", 1), small_image(folder / "set", 2)
    (small_image(folder / "more", 3, side=120) / "3.png").rename(evaluation / "3.png")
    return TrialSpec(model="srresnet", scale=2, weights=tiny_weights, data=data, eval_data=evaluation, steps=0, threads=1)


@pytest.fixture(scope="module")
def network(spec: TrialSpec, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """8/8/8, as the target loads it."""
    path, context = tmp_path_factory.mktemp("networks") / "tiny.onnx", prepare(spec)
    path.write_bytes(runtime_file(context, export_graph(context.traced), uniform("8/8/8", STAGES)))
    return path


def test_a_file_gets_what_its_trial_got(spec: TrialSpec, network: Path) -> None:
    context = prepare(spec)
    policy = uniform("8/8/8", STAGES)
    quantized = context.quantized(policy)
    model = runtime_model(spec.target, export_graph(context.traced), quantized)
    expected = judged(context, shipped(context, quantized, model))
    found = autoq.evaluate(network, data=spec.eval_data, threads=1)
    assert (found["file"], found["data"], found["images"]) == (str(network), str(spec.eval_data), 2)
    assert found["metrics"] == {name: pytest.approx(expected[name], abs=1e-3) for name in ("psnr", "ssim")}
    for name, mean in found["metrics"].items():
        assert mean == pytest.approx(np.mean([image[name] for image in found["each"]]))


def test_a_float_network_gets_what_its_trial_got(spec: TrialSpec) -> None:
    context = prepare(spec)
    expected = judged(context, simulated(context, quantize(context.traced, all_float(STAGES), {}, context.execution)))
    found = autoq.evaluate(model="srresnet", scale=2, weights=spec.weights, data=spec.eval_data, threads=1)
    assert found["file"] == str(spec.weights)
    assert found["metrics"] == {name: pytest.approx(expected[name], abs=1e-3) for name in ("psnr", "ssim")}
    assert [image["image"] for image in found["each"]] == ["2", "3"]


def test_the_border_is_what_is_not_looked_at(spec: TrialSpec, network: Path) -> None:
    """Luma and PSNR by another library, of what the command that upscales writes."""
    image = read_folder(spec.eval_data)[0]
    pair = make_pair(image, 2)
    folder = network.parent
    PIL.Image.fromarray(pair.low).save(folder / "low.png")
    autoq.upscale(network, folder / "low.png", folder / "high.png", threads=1)
    with PIL.Image.open(folder / "high.png") as file:
        high = np.asarray(file)
    for border in (0, 2, 9):
        found = autoq.evaluate(network, data=spec.eval_data, metrics="psnr", border=border, threads=1)
        inside = slice(border, 96 - border)
        lumas = [pixels[inside, inside].astype(float) @ [65.481, 128.553, 24.966] / 255 for pixels in (high, pair.high)]
        assert found["each"][0]["psnr"] == pytest.approx(peak_signal_noise_ratio(*lumas, data_range=255), abs=1e-6)
    assert (
        autoq.evaluate(network, data=spec.eval_data, metrics=["psnr"], threads=1)["each"]
        == (autoq.evaluate(network, data=spec.eval_data, metrics="psnr", border=2, threads=1)["each"])
    )


def test_equal_images_get_the_ceiling(spec: TrialSpec, tmp_path: Path) -> None:
    grey = np.full((64, 64, 3), 100, np.uint8)
    assert quality.averaged([quality.judged(["psnr"], grey, grey, 0)]) == {"psnr": quality.PSNR_CEILING}
    assert quality.psnr(grey, grey + np.uint8(10), 0) == pytest.approx(20 * np.log10(255 / (219 / 255 * 10)))


def test_niqe_of_a_file(shared: Path, network: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH_HOME", str(shared / "metrics"))
    folder = small_image(tmp_path / "set", 4, side=112)
    PIL.Image.fromarray(make_pair(read_folder(folder)[0], 2).low).save(tmp_path / "low.png")
    autoq.upscale(network, tmp_path / "low.png", tmp_path / "high.png", threads=1)
    with PIL.Image.open(tmp_path / "high.png") as file:
        high = np.asarray(file)
    found = autoq.evaluate(network, data=folder, metrics="niqe", threads=1)
    assert found["metrics"] == {"niqe": pytest.approx(quality.niqe(high, high, 2))}
    with pytest.raises(DataError, match="112x112 pixels, expected at least 116x116 for niqe with a border of 10"):
        autoq.evaluate(network, data=folder, metrics="psnr,niqe", border=10)


def test_the_command(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, spec: TrialSpec, network: Path) -> None:
    arguments = ["evaluate", str(network), "--data", str(spec.eval_data), "--threads", "1"]
    code, out, err = run(capsys, monkeypatch, *arguments, "--metrics", "ssim,psnr", "--json")
    assert (code, err) == (0, "")
    found = json.loads(out)
    assert set(found) == {"file", "data", "images", "metrics"}
    assert list(found["metrics"]) == ["ssim", "psnr"]
    code, out, err = run(capsys, monkeypatch, *arguments)
    assert (code, err) == (0, "")
    rows = [line.split() for line in out.splitlines()]
    assert [row[0] for row in rows if row and row[0] in ("2", "3", "mean")] == ["2", "3", "mean"]
    mean = next(row for row in rows if row[:1] == ["mean"])
    assert [float(value) for value in mean[-2:]] == pytest.approx([found["metrics"]["psnr"], found["metrics"]["ssim"]], rel=1e-3)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "expected either an .onnx file or --model NAME; type `autoq evaluate FILE` or `autoq evaluate --model NAME`"),
        (["NET", "--model", "srgan"], "expected either an .onnx file or --model NAME; type `autoq evaluate FILE` or `autoq evaluate --model NAME`"),
        (["NET", "--metrics", "psnr,niqe"], "niqe needs niqe_modelparameters.mat in HERE/hub/pyiqa; to download, type autoq fetch-metrics niqe"),
        (["NET", "--metrics", "psrn"], "unknown metric 'psrn' (did you mean 'psnr'?); type one of niqe, pi, psnr, ssim"),
        (["NET", "--metrics", ""], "unknown metric ''; type one of niqe, pi, psnr, ssim"),
        (["NET", "--scale", "4"], "--scale 4: 'NET' is a x2 network; type --scale 2"),
        (["NET", "--weights", "w.pth"], "--weights 'w.pth': 'NET' includes its weights; leave out --weights"),
        (["NET", "--data", "HERE/none"], "evaluation image folder 'HERE/none': no such folder; give a folder of .bmp, .jpeg, .jpg, .png, .tif, .tiff or .webp files"),
        (["NET", "--data", "HERE/set", "--border", "43"], "image '5': 96x96 pixels, expected at least 97x97 for ssim with a border of 43; remove the image, or leave ssim out of --metrics"),
        (["w.pth"], "'w.pth' is a checkpoint, expected an .onnx file; type --model NAME --weights w.pth"),
        (["none.onnx"], "cannot read 'none.onnx': No such file or directory; give an .onnx file exported by autoq"),
        (["--model", "srgan", "--target", "openvino-cpu"], "--target openvino-cpu: a float network runs in torch; leave out --target, or give an .onnx file"),
        (["--model", "srgna"], "unknown model 'srgna' (did you mean 'srgan'?); type one of "),
        (["--model", "vdsr", "--scale", "3"], "no weights are bundled for vdsr (see `autoq models`); type --weights FILE"),
        (["NET", "--border", "-1"], "--border '-1': expected a whole number from 0 to 256, for example --border 4"),
    ],
)  # fmt: skip
def test_bad_input(
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    network: Path,
    tmp_path: Path,
    arguments: list[str],
    message: str,
) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    small_image(tmp_path / "set", 5)
    real = {"NET": str(network), "HERE": str(tmp_path)}
    for name, value in real.items():
        arguments = [argument.replace(name, value) for argument in arguments]
        message = message.replace(name, value)
    code, out, err = run(capsys, monkeypatch, "evaluate", *arguments)
    assert (code, out) == (2, "")
    assert err.startswith(f"autoq: {message}")
    assert err.count("\n") == 1


def test_without_a_folder_the_crops_of_trials_are_looked_at(tiny_weights: Path) -> None:
    """The tiny network is untrained, and told to be worse than bicubic interpolation."""
    found = autoq.evaluate(model="srresnet", scale=2, weights=tiny_weights, metrics="psnr", threads=1)
    assert [image["image"] for image in found["each"]] == [pair.name for pair in crops.bundled(2)]
    (note,) = found["notes"]
    assert note.startswith(f"the float network reaches {found['metrics']['psnr']:.2f} dB, bicubic interpolation ")


def test_metrics_of_nothing_are_refused(network: Path) -> None:
    with pytest.raises(InputError, match="--metrics is empty"):
        autoq.evaluate(network, metrics=[])
