"""The supernet in miniature, and what the script makes of a table."""

import itertools
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from autoq.pixels import to_input
from autoq.policy import Policy
from autoq.quantize import Quantized, quantize
from autoq.workbench import Workbench, prepare, simulated
from benchmarks.supernet import Supernet, near_front, policies, rung, spec

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "supernet.py"


@pytest.fixture(scope="module")
def bench() -> Workbench:
    return prepare(spec(0))


@pytest.fixture(scope="module")
def some() -> list[Policy]:
    return list(itertools.islice(policies(), 1, 6))


def output(bench: Workbench, quantized: Quantized) -> torch.Tensor:
    return torch.from_numpy(simulated(bench, quantized)(to_input(bench.pairs[0].low)))


def test_untrained_members_are_what_quantizing_alone_gives(bench: Workbench, some: list[Policy]) -> None:
    for policy, member in zip(some, Supernet(bench, some, 4).networks, strict=True):
        alone = quantize(bench.traced, policy, bench.statistics, bench.execution)
        assert torch.equal(output(bench, member), output(bench, alone))


def test_members_share_weights_and_keep_their_own_scales_and_biases(bench: Workbench, some: list[Policy]) -> None:
    supernet = Supernet(bench, some, 4)
    first, *others = (dict(network.module.named_parameters()) for network in supernet.networks)
    weights = [name for name in first if name.endswith("weight")]
    assert weights
    assert all(other[name] is first[name] for other in others for name in weights)
    supernet.random.randrange = lambda _: supernet.coarsest  # type: ignore[method-assign]
    before = {key: parameter.detach().clone() for key, parameter in _all(supernet).items()}
    supernet.advance(2)
    changed = {key for key, parameter in _all(supernet).items() if not torch.equal(parameter, before[key])}
    trained = {id(parameter) for parameter in supernet.networks[supernet.coarsest].module.parameters()}
    assert changed == trained, "a step moves all parameters of its policy and no others"


def _all(supernet: Supernet) -> dict[int, torch.nn.Parameter]:
    return {id(each): each for network in supernet.networks for each in network.module.parameters()}


def test_scoring_one_policy_changes_no_other(bench: Workbench, some: list[Policy]) -> None:
    supernet = Supernet(bench, some, 3)
    supernet.advance(3)
    first = output(bench, supernet.networks[0])
    output(bench, supernet.networks[1])
    assert torch.equal(output(bench, supernet.networks[0]), first)
    assert not torch.equal(first, output(bench, quantize(bench.traced, some[0], bench.statistics, bench.execution)))


def test_a_rung_that_knows_the_truth_keeps_the_front_and_one_that_has_it_upside_down_does_not() -> None:
    random = np.random.default_rng(0)
    truth = random.random((60, 3))
    right, wrong = (rung(scores, truth, [1.1, 1.1, 1.1])[0] for scores in (truth, 1 - truth))
    assert right > 0.4, "of a cohort only one goes on, however many of it are on the front"
    assert wrong < 0.5 * right


def test_near_the_front() -> None:
    values = np.array([[10, 10, 30.0], [10, 10, 29.9], [12, 12, 29.0], [9, 12, 28.0]])  # size, bit operations, PSNR
    assert near_front(values, 0.0) == [0, 3]
    assert near_front(values, 0.2) == [0, 1, 3]
    assert near_front(values, 2.0) == [0, 1, 2, 3]


def test_a_table_is_measured_and_judged(tmp_path: Path) -> None:
    table = str(tmp_path / "t.csv")
    options = ["--measure", "--seed", "0", "--policies", "6", "--lengths", "0", "2", "--table", table, "--json"]
    done = subprocess.run([sys.executable, str(SCRIPT), *options], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    figures = json.loads(done.stdout)["figures"]
    assert figures["policies"] == 6
    assert abs(figures["spearman_supernet_0"] - figures["spearman_ptq"]) < 0.1, "0 steps are no training"
    assert (figures["steps_ptq"], figures["steps_trial_8"], figures["steps_supernet_2"]) == (0, 48, 2)
    assert figures["supernet_wins"] == all(
        figures["spearman_supernet_2"] > figures[f"spearman_{rival}"] for rival in ("ptq", "additive", "trial_4")
    )
    assert figures["lead_low"] <= figures["lead"] <= figures["lead_high"]
