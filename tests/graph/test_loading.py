"""The fingerprint of a user's network: the same in every process, another for every change that matters."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from autoq.config.spec import TrialSpec
from autoq.errors import InputError
from autoq.graph.loading import Loaded, load, load_for
from autoq.networks.given import give


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.head, self.act, self.tail = nn.Conv2d(3, 8, 3, padding=1), nn.LeakyReLU(0.2), nn.Conv2d(8, 12, 3, padding=1)
        self.register_buffer("gain", torch.ones(1, 8, 1, 1), persistent=False)
        self.mean, self.factor = torch.full((1, 3, 1, 1), 0.4), 0.3

    def forward(self, x: Tensor) -> Tensor:
        y = self.act(self.head(x - self.mean)) * self.gain
        return F.pixel_shuffle(self.factor * self.tail(y) + torch.tensor([0.5]), 2)


def fingerprint(change: Callable[[Net], object] = lambda network: None) -> str:
    network = Net()
    with torch.no_grad():
        change(network)
    return load(give(network), 2).fingerprint


@pytest.fixture(scope="module")
def plain() -> str:
    return fingerprint()


def test_it_is_the_same_however_the_network_is_wrapped(plain: str) -> None:
    assert fingerprint(lambda network: network.train().requires_grad_(False)) == plain
    assert load(give(nn.DataParallel(Net())), 2).fingerprint == plain


def add_one(tensor: Tensor) -> Tensor:
    return tensor.add_(1)


@pytest.mark.parametrize(
    "change",
    [
        lambda network: add_one(network.tail.weight[0, 0, 0, 0]),
        lambda network: add_one(network.gain),
        lambda network: add_one(network.mean),
        lambda network: setattr(network, "factor", 0.25),
        lambda network: setattr(network, "act", nn.LeakyReLU(0.1)),
        lambda network: setattr(network, "act", nn.ReLU()),
    ],
)
def test_every_change_is_seen(plain: str, change: Callable[[Net], object]) -> None:
    assert fingerprint(change) != plain


def test_layers_of_another_stage_are_no_other_network(plain: str) -> None:
    assert load(give(Net()), 2, layers={"all": ("*",)}).fingerprint == plain


def test_a_trial_refuses_another_network(plain: str) -> None:
    spec = TrialSpec(model=give(Net()), scale=2, fingerprint=plain)
    assert isinstance(load_for(spec), Loaded)
    changed = Net()
    changed.factor = 1.0
    give(changed)
    with pytest.raises(InputError) as error:
        load_for(spec)
    assert str(error.value) == (
        "model 'object:Net': the network has changed since the study began; restore it, or give another --study"
    )


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    yield tmp_path
    sys.modules.pop("edited", None)


def test_another_process_finds_the_same(folder: Path) -> None:
    source = Path(__file__).read_text()
    made = source[source.index("class Net") : source.index("def fingerprint")]
    (folder / "edited.py").write_text(f"import torch\nfrom torch import Tensor, nn\nimport torch.nn.functional as F\n\n{made}")
    found = subprocess.run(
        [sys.executable, "-c", "from autoq.graph.loading import load; print(load('edited:Net', 2).fingerprint)"],
        capture_output=True, text=True, check=True, cwd=folder,
    )  # fmt: skip
    assert found.stdout.strip() == load("edited:Net", 2).fingerprint
