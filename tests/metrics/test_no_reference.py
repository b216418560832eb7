"""NIQE and NRQM against pyiqa's functions, on photographs of several sizes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.io
import torch

from autoq.images.data import eval_images
from autoq.metrics import filters, niqe, nrqm
from autoq.metrics.generalized_gaussian import table
from autoq.metrics.quality import import_pyiqa

SIZES = [(97, 143), (192, 100), (128, 128)]
"""Heights and widths: odd, even and not square ones."""

NODES, TREES = 31, 7


@pytest.fixture(scope="module", autouse=True)
def pyiqa() -> None:
    import_pyiqa()


@pytest.fixture(scope="module", params=range(len(SIZES)), ids=str)
def photograph(request: pytest.FixtureRequest) -> np.ndarray:
    """uint8 RGB of one of SIZES, each from another image."""
    height, width = SIZES[request.param]
    pixels = eval_images(None)[request.param].pixels
    top, left = (size // 3 for size in pixels.shape[:2])
    return pixels[top : top + height, left : left + width]


def as_tensor(pixels: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(pixels.copy()).permute(2, 0, 1)[None].float() / 255


def differs(found: np.ndarray, expected: torch.Tensor) -> float:
    """The largest relative difference."""
    exact = expected.double().numpy().ravel()
    assert found.shape == exact.shape
    return float(np.max(np.abs(found - exact) / np.maximum(np.abs(exact), 1e-12)))


@pytest.mark.parametrize("space", ["yiq", "ycbcr"])
def test_luma_is_pyiqas_pixel_for_pixel(photograph: np.ndarray, space: filters.Space) -> None:
    from pyiqa.utils.color_util import to_y_channel

    expected = to_y_channel(as_tensor(photograph), 255, space)[0, 0].numpy()
    assert np.array_equal(filters.rounded_luma(photograph, space), expected)


def test_features_of_nrqm(photograph: np.ndarray) -> None:
    from pyiqa.archs import nrqm_arch as oracle

    luma = filters.rounded_luma(photograph, "ycbcr")
    image = torch.from_numpy(luma)[None, None]
    levels = oracle.get_gauss_pyramid(image / 255)
    expected = (
        torch.cat([oracle.block_dct(level) for level in levels], 1),
        oracle.global_gsm(image),
        torch.cat([torch.linalg.svdvals(oracle.im2col(level, 5, "distinct")) for level in levels], 1),
    )
    found = nrqm.features(luma)
    assert [len(group) for group in found] == [18, 45, 75]
    for group, exact in zip(found, expected, strict=True):
        assert differs(group, exact) < 1e-6


def test_features_of_niqe(photograph: np.ndarray) -> None:
    from pyiqa.archs import niqe_arch as oracle
    from pyiqa.matlab_utils import blockproc, imresize

    luma = filters.rounded_luma(photograph, "yiq")
    height, width = (size // 96 * 96 for size in luma.shape)
    image, expected = torch.from_numpy(luma)[None, None, :height, :width], []
    for side in (96, 48):
        expected.append(
            blockproc(oracle.normalize_img_with_gauss(image, padding="replicate"), [side, side], fun=oracle.compute_feature)
        )
        image = imresize(image / 255, scale=0.5, antialiasing=True) * 255
    assert differs(niqe.features(luma).ravel(), torch.cat(expected, -1)) < 1e-6


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Model files of both metrics in their published formats, with random content."""
    folder, random = tmp_path_factory.mktemp("models"), np.random.default_rng(0)
    pristine = random.normal(size=(200, 36))
    scipy.io.savemat(folder / "niqe.mat", {"mu_prisparam": pristine.mean(0)[None], "cov_prisparam": np.cov(pristine, rowvar=False)})
    forests = np.empty((1, 3), object)
    for group, count in enumerate((18, 45, 75)):
        forests[0, group] = random_forest(random, count)
    scipy.io.savemat(folder / "nrqm.mat", {"model": {"linear": np.array([[0.4], [0.2], [0.5], [0.3]]), "rf": forests}})
    return folder


def random_forest(random: np.random.Generator, features: int) -> dict[str, Any]:
    """Whole binary trees [nodes, trees]; some inner nodes are leaves."""
    nodes = np.arange(1, NODES + 1)
    left = np.where(2 * nodes + 1 <= NODES, 2 * nodes, 0)[:, None].repeat(TREES, 1)
    left[1:, :] *= random.random((NODES - 1, TREES)) > 0.2
    unused = np.zeros((NODES, TREES))
    return {
        "ldau": left.astype(np.int32),
        "rdau": np.where(left > 0, left + 1, 0).astype(np.int32),
        "unused": unused,
        "unused2": unused,
        "threshold": random.exponential(size=(NODES, TREES)),
        "value": random.uniform(1, 9, (NODES, TREES)),
        "attribute": random.integers(1, features + 1, (NODES, TREES)).astype(np.int32),
    }


def test_scores_from_model_files(photograph: np.ndarray, models: Path) -> None:
    from pyiqa.archs.niqe_arch import NIQE
    from pyiqa.archs.nrqm_arch import NRQM

    image = as_tensor(photograph)
    expected = NRQM(color_space="ycbcr", pretrained_model_path=str(models / "nrqm.mat"))(image).item()
    assert nrqm.nrqm(photograph, "ycbcr", nrqm.Regression.read(models / "nrqm.mat")) == pytest.approx(expected, abs=1e-4)
    expected = NIQE(pretrained_model_path=str(models / "niqe.mat"))(image).item()
    assert niqe.niqe(photograph, "yiq", niqe.Pristine.read(models / "niqe.mat")) == pytest.approx(expected, abs=1e-4)


def test_a_shape_is_the_nearest_of_the_table() -> None:
    shapes = table(0.03)
    wanted = np.concatenate([np.geomspace(1.2, 60, 5000), shapes.ratios[::97], [0.0, 1e9, np.nan]])
    expected = [0 if np.isnan(value) else np.abs(value - shapes.ratios).argmin() for value in wanted]
    assert np.array_equal(shapes.by_ratio(wanted), shapes.shapes[expected])
    assert np.array_equal(
        shapes.by_inverse(1 / wanted[:5000]), shapes.shapes[[np.abs(1 / v - shapes.inverses).argmin() for v in wanted[:5000]]]
    )
