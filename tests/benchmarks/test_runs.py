"""What benchmarks share, against a trial and against scipy."""

from pathlib import Path

import numpy as np
import pytest
from scipy.stats import spearmanr

from autoq.config.policy import uniform
from autoq.config.spec import TrialSpec
from autoq.costs.latency.table import LatencyTable
from autoq.export.onnx import export_graph
from autoq.networks import model_info
from autoq.trial.context import prepare
from autoq.trial.run import run_trial, trained
from benchmarks.runs import file_quality, float_graph, spearman, spearman_interval
from tests.conftest import small_image


def test_quality_is_a_trials(tmp_path: Path) -> None:
    images = {name: small_image(tmp_path / name, seed) for seed, name in enumerate(("data", "eval_data", "test_data"))}
    spec = TrialSpec(model="espcn", scale=3, steps=1, batch=1, **images)
    context, policy = prepare(spec), uniform("4/4/8", model_info("espcn").stages)
    facts = {"model": spec.model, "target": spec.target, "runtime": "", "machine": ""}
    unmeasured = LatencyTable(frame=(32, 32), threads=1, entries={}, **facts)
    trial = run_trial(context, policy, unmeasured, export_graph(context.traced))
    found = file_quality(context, trained(context, policy, 1), float_graph(spec))
    assert found
    assert found == {name: trial.values[name] for name in found}


def test_spearman_is_scipys() -> None:
    random = np.random.default_rng(1)
    a, b = random.integers(0, 9, (2, 5, 12)).astype(float)
    expected = [spearmanr(*pair).statistic for pair in zip(a, b, strict=True)]
    np.testing.assert_allclose(spearman(a, b), expected)
    assert np.isnan(spearman(np.ones(4), np.arange(4.0)))


def test_the_interval_of_a_correlation() -> None:
    """Against Fisher's interval for normal data: atanh(r) +- 1.96 sqrt(1.06 / (n - 3)) (Fieller et al. 1957)."""
    random = np.random.default_rng(0)
    a, b = random.multivariate_normal([0, 0], [[1, 0.7], [0.7, 1]], 400).T
    value, low, high = spearman_interval(a, b)
    half = 1.96 * np.sqrt(1.06 / (400 - 3))
    assert [low, high] == pytest.approx([np.tanh(np.arctanh(value) - half), np.tanh(np.arctanh(value) + half)], abs=0.02)
