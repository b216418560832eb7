import csv
from pathlib import Path

import numpy as np
import pytest
import torch

from autoq import data
from autoq.errors import MetricUnavailable
from autoq.models import build_model
from autoq.objectives import quality


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
    quality._pyiqa_metric.cache_clear()
    folder = shared / "metrics" / "calibration"
    rows = list(csv.reader((folder / "results_official.csv").read_text().splitlines()))
    official = next(row for row in rows if row[0].strip().lower() == "niqe")
    for name, expected in list(zip(("I03", "I04"), official[1:], strict=False)):
        pixels = data.read_image(folder / "dist_dir" / f"{name}.bmp").pixels
        padded = np.pad(pixels, ((4, 4), (4, 4), (0, 0)))  # niqe cuts the border of `scale` off
        assert quality.niqe(padded, padded, 4) == pytest.approx(float(expected), rel=0.01)
    quality._pyiqa_metric.cache_clear()


def test_a_missing_model_is_named_and_nothing_is_fetched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    assert quality.available_metrics() == ["psnr", "ssim"]
    reason = quality.why_unavailable("pi")
    assert reason is not None
    assert f"pi needs niqe_modelparameters.mat and NRQM_model.mat in {tmp_path}/hub/pyiqa" in reason
    with pytest.raises(MetricUnavailable, match=r"niqe needs niqe_modelparameters\.mat"):
        quality.require("niqe")
