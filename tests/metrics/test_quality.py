import csv
from pathlib import Path

import numpy as np
import pytest
import torch

from autoq.errors import MetricUnavailable
from autoq.images import data
from autoq.metrics import quality
from autoq.networks import build_model


def test_psnr_by_hand() -> None:
    grey = np.full((20, 20, 3), 100, dtype=np.uint8)
    # Y of grey g is 16 + 219/255 g: a step of 10 is 8.588 on Y
    expected = 20 * np.log10(255 / (219 / 255 * 10))
    assert quality.psnr(grey, grey + np.uint8(10), 4) == pytest.approx(expected, abs=1e-6)
    assert quality.psnr(grey, grey, 4) == float("inf")
    assert quality.ssim(grey, grey, 4) == pytest.approx(1.0)


def test_fidelity_by_hand() -> None:
    grey = np.full((20, 20, 3), 100, dtype=np.uint8)
    red = grey.copy()
    red[..., 0] = 94  # -6 in one channel of three, unsigned differences would wrap: a mean squared error of 12
    assert quality.fidelity(red, grey) == quality.fidelity(grey, red) == pytest.approx(10 * np.log10(255**2 / 12), abs=1e-9)
    assert quality.fidelity(grey, grey) == 100.0
    nearly = np.zeros((4000, 4000, 3), np.uint8)
    nearly[0, 0, 0] = 1  # 124.9 dB
    assert quality.fidelity(nearly, np.zeros_like(nearly)) == 100.0


def test_public_checkpoint_reproduces_its_published_psnr(shared: Path) -> None:
    model = build_model("srgan", 4, shared / "weights" / "srgan_5block_x4_leftthomas.pth")
    values = []
    for image in data.read_folder(shared / "test" / "Set5"):
        pair = data.make_pair(image, 4)
        with torch.no_grad():
            values.append(quality.psnr(data.to_pixels(model(data.to_tensor(pair.low))), pair.high, 4))
    assert np.mean(values) == pytest.approx(30.66, abs=0.05)


def test_niqe_gives_the_official_values(shared: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH_HOME", str(shared / "metrics"))
    folder = shared / "metrics" / "calibration"
    rows = {row[0]: row[1:] for row in csv.reader((folder / "calibration_summary.csv").read_text().splitlines())}
    for name, official, pyiqas in zip(rows["Method"], rows["niqe"], rows["niqe(ours)"], strict=True):
        pixels = data.read_image(folder / "dist_dir" / name).pixels
        padded = np.pad(pixels, ((4, 4), (4, 4), (0, 0)))  # niqe cuts the border of `scale` off
        found = quality.niqe(padded, padded, 4)
        assert found == pytest.approx(float(pyiqas), rel=2e-4)
        assert found == pytest.approx(float(official), abs=abs(float(pyiqas) - float(official)) + 0.003), "as near as pyiqa's"


def test_the_niqe_of_pi_is_on_luma_of_ycbcr_without_a_border_of_four(shared: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Known answers of pyiqa's NIQE with color_space ycbcr and crop_border 4, whatever border a trial has; NRQM stands still."""
    monkeypatch.setenv("TORCH_HOME", str(shared / "metrics"))
    monkeypatch.setattr(quality, "_regression", lambda file: file)
    monkeypatch.setattr(quality, "require", lambda name: None)
    monkeypatch.setattr("autoq.metrics.nrqm.nrqm", lambda pixels, space, regression: 10.0)
    known = {"I03": 15.344, "I04": 4.676, "I06": 4.116, "I08": 3.383, "I19": 11.556}
    for name, expected in known.items():
        pixels = data.read_image(shared / "metrics" / "calibration" / "dist_dir" / f"{name}.bmp").pixels
        assert 2 * quality.judged(["pi"], pixels, None, 2)["pi"] == pytest.approx(expected, abs=0.01)


def test_one_perfect_image_counts_with_a_hundred_decibels() -> None:
    assert quality.averaged([{"psnr": float("inf")}, {"psnr": 30.0}, {"psnr": 120.0}, {"psnr": 50.0}]) == {"psnr": 70.0}


def test_a_network_worse_than_bicubic_is_doubted() -> None:
    photograph = data.Image("any", data.train_images(None)[0].pixels[:96, :96])
    pair = data.make_pair(photograph, 2)
    assert pair.high is not None
    bicubic = data.resize(pair.low, 96, 96)
    low, high = (quality.psnr(image, pair.high, 2) for image in (bicubic // 2, bicubic))
    found = quality.doubt([bicubic // 2], [pair], 2)
    assert found is not None
    assert found.startswith(
        f"the float network reaches {low:.2f} dB, bicubic interpolation {high:.2f} dB: check the network's value range"
    )
    assert quality.doubt([bicubic], [pair], 2) is None
    assert quality.doubt([pair.high, bicubic // 2], [pair, pair], 2) is None, "the mean is above bicubic's, the first capped"
    assert quality.doubt([bicubic // 2], [data.low_resolution(photograph)], 2) is None
    assert quality.doubt([photograph.pixels // 2], [data.make_pair(photograph, 1)], 1) is None


def test_a_missing_model_is_named_and_nothing_is_fetched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    assert quality.available_metrics() == ["psnr", "ssim"]
    reason = quality.why_unavailable("pi")
    assert reason is not None
    assert f"pi needs niqe_modelparameters.mat and NRQM_model.mat in {tmp_path}/hub/pyiqa" in reason
    with pytest.raises(MetricUnavailable, match=r"niqe needs niqe_modelparameters\.mat"):
        quality.require("niqe")
