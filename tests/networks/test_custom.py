"""Users' networks as their code has them: the network that is loaded computes what theirs does, or one line says why not."""

from __future__ import annotations

import argparse
import os
import runpy
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrizations, prune

from autoq import networks
from autoq.errors import InputError, WeightsError
from autoq.networks import staged_model
from autoq.networks.custom import own_scale
from autoq.networks.weights import load_own
from autoq.networks.wrappers import bare, fold
from autoq.tuning.options import default_scale, model_name

IMAGE = torch.rand(1, 3, 12, 10, generator=torch.Generator().manual_seed(0))


class Net(nn.Module):
    """Batch norm and dropout tell a network in train mode from one in eval mode."""

    def __init__(self, scale: int = 2) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.head, self.norm = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.body = nn.Sequential(nn.Conv2d(8, 8, 3, padding=1), nn.Dropout(0.5))
        self.tail, self.shuffle = nn.Conv2d(8, 3 * scale**2, 3, padding=1), nn.PixelShuffle(scale)
        self.register_buffer("order", torch.tensor([2, 1, 0]))

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.norm(self.head(x[:, self.order])))
        found: Tensor = self.shuffle(self.tail(y + self.body(y)))
        return found


def changed(**parts: Callable[[nn.Module], nn.Module]) -> Net:
    """A network with some of its parts wrapped."""
    network = Net()
    for name, wrap in parts.items():
        setattr(network, name, wrap(getattr(network, name)))
    return network


def compiled_in_place() -> Net:
    network = Net()
    network.compile()
    return network


def parallel() -> nn.Module:
    """Of a process group of this process alone, which is taken down again."""
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT="29511")
    torch.distributed.init_process_group("gloo", rank=0, world_size=1)
    try:
        return nn.parallel.DistributedDataParallel(Net())
    finally:
        torch.distributed.destroy_process_group()


KINDS: dict[str, Callable[[], Any]] = {
    "plain": Net,
    "DataParallel": lambda: nn.DataParallel(Net()),
    "DistributedDataParallel": parallel,
    "compiled": lambda: torch.compile(Net()),
    "compiled-parallel": lambda: nn.DataParallel(torch.compile(Net())),
    "compiled-in-place": compiled_in_place,
    "averaged": lambda: torch.optim.swa_utils.AveragedModel(Net()),
    "a-compiled-part": lambda: changed(body=torch.compile),
    "a-parallel-part": lambda: changed(body=nn.DataParallel, head=nn.DataParallel),
    "with-options": lambda: (Net(), {"scale": 2}),
    "in-a-dict": lambda: {"epoch": 3, "generator": Net()},
    "double": lambda: Net().double(),
    "weight-norm": lambda: changed(head=parametrizations.weight_norm),
    "old-weight-norm": lambda: changed(head=nn.utils.weight_norm),
    "trains": lambda: Net().train(),
    "no-gradients": lambda: Net().requires_grad_(False),
}


@pytest.mark.filterwarnings("ignore:.*weight_norm.*deprecated:FutureWarning")
@pytest.mark.parametrize("kind", KINDS)
def test_a_network_out_of_what_it_came_in(kind: str) -> None:
    found = KINDS[kind]()
    network = bare(found, "net")
    fold(network)
    assert type(network).__name__ == "Net"
    assert not any(module.training for module in network.modules())
    assert {*network.state_dict()} == {*Net().state_dict()}
    assert {tensor.dtype for tensor in network.state_dict().values()} == {torch.float32, torch.int64}
    torch.testing.assert_close(network(IMAGE), Net().eval()(IMAGE), rtol=0, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_becomes_float32_with_the_same_weights(dtype: torch.dtype) -> None:
    half = Net().to(dtype)
    network = bare(half, "net")
    assert all(torch.equal(tensor, half.state_dict()[key].float()) for key, tensor in network.state_dict().items() if "." in key)
    assert network(IMAGE).dtype == torch.float32
    assert half.head.weight.dtype == dtype


@pytest.mark.filterwarnings("ignore:.*spectral_norm.*deprecated:FutureWarning")
@pytest.mark.parametrize("norm", [parametrizations.spectral_norm, nn.utils.spectral_norm])
def test_spectral_norm_is_folded_as_it_is_in_eval_mode(norm: Any) -> None:
    source = changed(head=norm).eval()
    expected = source(IMAGE)
    network = bare(source.train(), "net")
    fold(network)
    torch.testing.assert_close(network(IMAGE), expected, rtol=0, atol=1e-6)
    assert isinstance(network.head.weight, nn.Parameter)


def test_pruned_weights_are_zeros() -> None:
    source = Net().eval()
    prune.l1_unstructured(source.head, "weight", amount=0.5)
    network = bare(source, "net")
    fold(network)
    assert "head.weight" in network.state_dict()
    assert float((network.head.weight == 0).float().mean()) == pytest.approx(0.5, abs=0.01)
    torch.testing.assert_close(network(IMAGE), source(IMAGE), rtol=0, atol=0)


def test_what_the_user_gave_stays_as_it_was() -> None:
    source = changed(head=parametrizations.weight_norm).train().half()
    before = {key: value.clone() for key, value in source.state_dict().items()}
    fold(bare(nn.DataParallel(source), "net"))
    assert source.training
    assert {key: value.dtype for key, value in source.state_dict().items()} == {key: value.dtype for key, value in before.items()}
    assert all(torch.equal(value, before[key]) for key, value in source.state_dict().items())
    assert all(parameter.requires_grad for parameter in source.parameters())


@pytest.mark.parametrize("made", ["whole", "part"])
def test_torchscript_is_refused_with_what_to_do_instead(made: str) -> None:
    network = torch.jit.script(Net()) if made == "whole" else changed(body=torch.jit.script)
    where = "the network is TorchScript" if made == "whole" else "its submodule 'body' is TorchScript"
    with pytest.raises(InputError) as error:
        bare(network, "mynet:make")
    assert str(error.value) == (
        f"model 'mynet:make': {where}, which torch.fx cannot trace; create the network from its Python class and load the"
        " tensors: network.load_state_dict(torch.jit.load(FILE).state_dict())"
    )


def test_a_torchscript_file_is_no_checkpoint(tmp_path: Path) -> None:
    torch.jit.script(Net()).save(str(tmp_path / "net.pt"))
    with pytest.raises(WeightsError) as error:
        load_own(Net(), tmp_path / "net.pt", "net")
    assert str(error.value) == (
        f"weights '{tmp_path / 'net.pt'}': a TorchScript archive, expected a state dict; type"
        " `torch.save(torch.jit.load(FILE).state_dict(), NEW)` and give NEW"
    )


def test_options_and_numpy_numbers_beside_the_weights_are_read(tmp_path: Path) -> None:
    beside = {"args": argparse.Namespace(lr=1e-4), "best_psnr": np.float64(31.5), "epoch": np.int64(3)}
    torch.save({"state_dict": STATE, **beside}, tmp_path / "w.pth")
    network = Net()
    load_own(network, tmp_path / "w.pth", "net")
    assert torch.equal(network.head.weight, STATE["head.weight"])


def test_what_cannot_be_a_network_is_refused() -> None:
    lazy = changed(tail=lambda layer: nn.LazyConv2d(12, 3, padding=1))
    with pytest.raises(InputError, match=r"lazy parameter 'tail.weight' is not initialized; run the network on an image first"):
        bare(lazy, "net")
    with torch.device("meta"):
        empty = Net()
    with pytest.raises(InputError, match=r"'head.weight' is on the meta device and has no values; create the network on the CPU"):
        bare(empty, "net")
    with pytest.raises(
        InputError,
        match=r"got a result of type tuple with 2 modules \(Net, Conv2d\), expected one torch.nn.Module; give a function",
    ):
        bare((Net(), nn.Conv2d(3, 3, 1)), "net")
    with pytest.raises(InputError, match=r"got a result of type NoneType, expected one torch.nn.Module; give a function"):
        bare(None, "net")


# ---------------------------------------------------------------- factories

MODULE = """
import argparse, functools, sys
import torch
from pathlib import Path
from tests.networks.test_custom import Net
print("Loading mynet")
options = argparse.ArgumentParser().parse_args()
FILE = Path(__file__)

class Loud(Net):
    def forward(self, x):
        print("features", type(x).__name__)
        return super().forward(x)

class Makers:
    @staticmethod
    def make():
        return Net()

class Windows(Net):
    def forward(self, x):
        assert x.shape[2] % 32 == 0
        return super().forward(x)

network = Net(3)
make, loud, windows = (lambda: Net()), (lambda: Loud()), (lambda: Windows())
partial = functools.partial(Net, scale=3)
def needs_upscale(upscale): return Net(upscale)
def optional(scale_factor=3): return Net(scale_factor)
def relative():
    network = Net()
    network.load_state_dict(torch.load("weights/net.pth"))
    return network
def chance():
    torch.manual_seed(torch.seed() % 1000)
    return torch.nn.Sequential(torch.nn.Conv2d(3, 12, 3, padding=1), torch.nn.PixelShuffle(2))
def needs(depth, width, scale=2): return Net()
def normed():
    network = Net()
    torch.nn.utils.parametrizations.weight_norm(network.head)
    return network
def leaves(): sys.exit("no options")
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The user's folder, current: mynet.py, the package pack.net, weights/net.pth with other weights than mynet.Net's."""
    for name in ("mynet.py", "pack/net.py"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(MODULE)
    (tmp_path / "pack" / "__init__.py").write_text("")
    (tmp_path / "weights").mkdir()
    torch.save(
        {key: value * 2 for key, value in Net().state_dict().items() if key != "order"} | {"order": torch.arange(3)},
        tmp_path / "weights" / "net.pth",
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.setattr(sys, "argv", ["autoq", "search", "--model", "mynet:make"])
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    before = {*sys.modules}
    yield tmp_path
    for name in {*sys.modules} - before:
        if name.split(".")[0] in ("mynet", "pack") or "mynet" in name:
            del sys.modules[name]


@pytest.mark.parametrize(
    ("model", "scale"),
    [
        ("mynet:make", 2), ("pack.net:make", 2), ("mynet:Net", 2), ("mynet:Net", 4), ("mynet:Makers.make", 2), ("mynet:network", 3), ("mynet:partial", 3),
        ("mynet:needs_upscale", 3), ("mynet:optional", 3), ("mynet.py:make", 2), ("pack/net.py:Net", 3), ("mynet:windows", 2),
    ],
)  # fmt: skip
def test_a_factory_of_any_kind(folder: Path, model: str, scale: int) -> None:
    network = staged_model(model_name(model), scale)[0]
    image = torch.rand(1, 3, 32, 32)
    torch.testing.assert_close(network(image), Net(scale).eval()(image), rtol=0, atol=1e-6)


def test_a_file_is_named_from_the_root_and_found_from_elsewhere(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    name = model_name("pack/net.py:make")
    assert name == f"{folder / 'pack' / 'net.py'}:make"
    monkeypatch.chdir(folder / "weights")
    assert staged_model(name, 2)[0](IMAGE).shape == (1, 3, 24, 20)
    with pytest.raises(InputError, match=r"none\.py:make': no such file; type --model FILE\.py:factory with an existing file"):
        staged_model(model_name("none.py:make"), 2)


def test_weights_are_found_relative_to_the_users_folder(folder: Path) -> None:
    assert torch.equal(staged_model("mynet:relative", 2)[0].head.weight, 2 * Net().head.weight)


def test_what_a_module_prints_stays_out_of_standard_output(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    staged_model("mynet:loud", 2)
    out, err = capsys.readouterr()
    assert out == ""
    assert "Loading mynet\n" in err
    assert "features Tensor\n" in err
    assert sys.argv[1] == "search"


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ("mynet:needs", "model 'mynet:needs': the factory requires depth, width, expected no required arguments except scale; write a function that calls it with these arguments"),
        ("mynet:leaves", "model 'mynet:leaves': the call raised SystemExit: no options; fix mynet"),
        ("mynet:FILE", "model 'mynet:FILE': mynet has no function or class 'FILE'; type --model mynet:FACTORY"),
        ("mynet:Makers.mkae", "model 'mynet:Makers.mkae': mynet has no function or class 'Makers.mkae'; type --model mynet:FACTORY"),
        ("my net", "model 'my net': expected the form package.module:factory, for example --model mynet:make"),
        (
            "mynet:chance",
            "model 'mynet:chance': two calls give different weights ('0.weight'), probably random initialization; load a checkpoint"
            " in the factory, or give --weights FILE",
        ),
    ],
)  # fmt: skip
def test_a_factory_is_refused_in_one_line(folder: Path, model: str, message: str) -> None:
    with pytest.raises(InputError) as error:
        staged_model(model if ":" in model else f"{model}:", 2)
    assert str(error.value).replace("my net:", "my net") == message


def test_weights_left_to_chance_may_be_given(folder: Path) -> None:
    torch.manual_seed(1)
    state = {"0.weight": torch.randn(12, 3, 3, 3), "0.bias": torch.randn(12)}
    torch.save(state, "chance.pth")
    network = staged_model("mynet:chance", 2, folder / "chance.pth")[0]
    assert torch.equal(network.state_dict()["0.weight"], state["0.weight"])


@pytest.mark.parametrize(
    ("model", "scale"), [("mynet:make", 2), ("mynet:network", 3), ("mynet:Net", 2), ("mynet:needs_upscale", 4)]
)
def test_the_scale_is_found(folder: Path, model: str, scale: int) -> None:
    assert (own_scale(model, False), default_scale(model)) == (scale, scale)


# ---------------------------------------------------------------- checkpoints of a network of one's own

STATE = {key: value * 3 if value.is_floating_point() else value for key, value in Net().state_dict().items()}


def below(prefix: str, **more: Any) -> dict[str, Any]:
    return {prefix + key: value for key, value in STATE.items()} | more


OTHER = {f"discriminator.{key}": value for key, value in nn.Conv2d(3, 4, 3).state_dict().items()}
SAVED: dict[str, Any] = {
    "plain": STATE,
    "parallel": below("module."),
    "compiled": below("_orig_mod."),
    "both": below("module._orig_mod."),
    "averaged": below("module.", n_averaged=torch.tensor(7)),
    "a-compiled-part": {key.replace("body.", "body._orig_mod."): value for key, value in STATE.items()},
    "lightning": {"state_dict": below("model."), "epoch": 3},
    "lightning-with-a-discriminator": {"state_dict": below("generator.") | OTHER, "hyper_parameters": {"lr": 1e-4}},
    "compiled-lightning": {"state_dict": below("model._orig_mod.")},
    "nested": {"state_dict": {"params_ema": STATE}},
    **{f"under-{key}": {key: STATE, "optimizer": {"state": {}}} for key in ("model", "net", "params", "params_ema", "generator", "G", "my_network")},
    "ema-before-raw": {"params": {key: value * 0 for key, value in STATE.items()}, "params_ema": STATE},
    "ema-library": {**{f"online_model.{key}": value * 0 for key, value in STATE.items()}, **below("ema_model."), "step": torch.tensor(1), "initted": torch.tensor(True)},
}  # fmt: skip


@pytest.mark.parametrize("kind", SAVED)
def test_a_checkpoint_of_ones_own_network(tmp_path: Path, kind: str) -> None:
    torch.save(SAVED[kind], tmp_path / "w.pth")
    network = Net()
    load_own(network, tmp_path / "w.pth", "net")
    assert all(torch.equal(value, STATE[key]) for key, value in network.state_dict().items() if "num_batches" not in key)


def test_a_checkpoint_in_other_wrappers_than_the_network(tmp_path: Path) -> None:
    torch.save(below("module."), tmp_path / "w.pth")
    network = changed(body=nn.DataParallel)
    load_own(network, tmp_path / "w.pth", "net")
    assert torch.equal(network.body.module[0].weight, STATE["body.0.weight"])


@pytest.mark.parametrize(
    ("state", "message"),
    [
        (below("a.") | below("b."), "several copies of the network's tensors (prefixes a., b.); save only one of them"),
        (below("module.", extra=torch.zeros(1)), "do not match net: 1 unexpected: extra;"),
        ({"model": {key: value for key, value in below("x.").items() if key != "x.tail.bias"}}, "do not match net: 1 missing: tail.bias;"),
        ({"first": STATE, "second": STATE}, "several state dicts ('first', 'second'), expected one; save only the network's"),
        (STATE | {"head.weight": STATE["head.weight"].to(torch.int8)}, "tensor 'head.weight' contains torch.int8 (torch.strided), expected finite"),
        (STATE | {"order": torch.rand(3)}, "tensor 'order' contains torch.float32 (torch.strided), expected finite"),
    ],
)  # fmt: skip
def test_a_checkpoint_that_does_not_fit(tmp_path: Path, state: Any, message: str) -> None:
    torch.save(state, tmp_path / "w.pth")
    with pytest.raises(WeightsError) as error:
        load_own(Net(), tmp_path / "w.pth", "net")
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_weight_norm_on_one_side_alone(tmp_path: Path, folder: Path) -> None:
    normed = changed(head=parametrizations.weight_norm)
    torch.save(normed.state_dict(), tmp_path / "normed.pth")
    torch.testing.assert_close(staged_model("mynet:make", 2, tmp_path / "normed.pth")[0](IMAGE), Net().eval()(IMAGE))
    torch.save(STATE, tmp_path / "plain.pth")
    assert torch.equal(staged_model("mynet:normed", 2, tmp_path / "plain.pth")[0].head.weight, STATE["head.weight"])


# ---------------------------------------------------------------- the shared cases


@pytest.fixture
def case(shared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], None]]:
    """Run a script of the shared cases in an empty folder, which stays the current one."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    monkeypatch.setitem(sys.modules, "autoq.models", networks)  # as the scripts call the package
    sys.path_importer_cache.pop(".", None)  # the scripts import from there, each from another folder

    def run(name: str) -> None:
        runpy.run_path(str(shared.parent / "cases" / "networks" / f"{name}.py"))

    yield run
    sys.modules.pop("mynet", None)


def test_the_case_of_data_parallel(case: Callable[[str], None]) -> None:
    case("a27_data_parallel")
    assert [*staged_model("mynet:make", 2)[0]._modules] == ["head", "tail"]


def test_the_case_of_torchscript(case: Callable[[str], None]) -> None:
    case("a28_torchscript")
    with pytest.raises(
        InputError, match="the network is TorchScript, which torch.fx cannot trace; create the network from its Python class"
    ):
        staged_model("mynet:make", 2)


@pytest.mark.parametrize(("name", "model", "scale"), [("b01_prefixes", "mynet:make", 2), ("b02_srgan_prefixes", "espcn", 3)])
def test_the_cases_of_prefixes(case: Callable[[str], None], name: str, model: str, scale: int) -> None:
    case(name)
    expected = staged_model(model, scale, Path("plain.pth"))[0].state_dict()
    files = [path for path in sorted(Path().iterdir()) if path.suffix in (".pth", ".ckpt")]
    assert len(files) >= 7
    for path in files:
        found = staged_model(model, scale, path)[0].state_dict()
        for key, value in expected.items():
            torch.testing.assert_close(found[key], value, rtol=0 if path.stem != "bfloat16" else 2**-8, atol=0)


def test_the_case_of_an_integer_buffer(case: Callable[[str], None]) -> None:
    case("b03_integer_buffer")
    network = staged_model("mynet:make", 2, Path("w.pth"))[0]
    assert network.state_dict()["order"].tolist() == [2, 1, 0]
