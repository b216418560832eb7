"""Networks in no table: a user's `package.module:factory`, whose stages a space file gives, and checkpoints that spandrel knows."""

from __future__ import annotations

import copy
import importlib
import importlib.util
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import autoq
from autoq.api.networks import cost, space_file
from autoq.api.studies import _create, check_inputs
from autoq.config.options import SearchOptions
from autoq.config.policy import uniform
from autoq.config.spec import TrialSpec
from autoq.errors import InputError, StudyError, WeightsError
from autoq.graph.loading import load
from autoq.graph.quantize import collect, quantize
from autoq.graph.trace import roles_by_stage, trace
from autoq.networks import staged_model
from autoq.system.compat import allow_torchvision
from autoq.training.kernels.rewrite import quicker
from autoq.trial.context import execution_on, prepare
from autoq.tuning.options import search_space
from tests.cli.test_bad_input import FIT, Refused, case
from tests.cli.test_cli import run
from tests.conftest import small_image
from tests.searching import in_process

EVERY_LAYER = {"all": ("*",)}
ROLES = "roles: {weight: {bits: [4, 8]}, activation: {bits: 8}, skip: {bits: 8}}\n"
LAYERS = "{first: head, rest: ['body.*', tail]}"
PATHS = "head, body.0, body.2, tail"
PRODUCTS = 9 * (3 * 8 + 2 * 8 * 8 + 8 * 12)  # 3 x 3 convolutions from 3 to 8, twice from 8 to 8, from 8 to 12 channels
PARAMETERS = PRODUCTS + 3 * 8 + 12 + 1  # biases, and PReLU's slope
MODULE = """
import torch
from torch import nn
from torch.nn.utils import parametrizations

class Net(nn.Module):
    def __init__(self, scale=2, channels=3, head=None):
        super().__init__()
        torch.manual_seed(0)
        self.head, self.act = head or nn.Conv2d(channels, 8, 3, padding=1), nn.PReLU()
        self.body = nn.Sequential(nn.Conv2d(8, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 8, 3, padding=1))
        self.tail, self.shuffle = nn.Conv2d(8, channels * scale**2, 3, padding=1), nn.PixelShuffle(scale)
    def join(self, x, y):
        return x + y
    def forward(self, x):
        x = self.act(self.head(x))
        return self.shuffle(self.tail(self.join(x, self.body(x))))

class Wide(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.head, self.act, self.body = nn.Conv2d(3, 64, 3, padding=1), nn.ReLU(inplace=True), nn.Conv2d(64, 64, 3, padding=1)
        self.tail, self.shuffle = nn.Conv2d(64, 12, 3, padding=1), nn.PixelShuffle(2)
    def forward(self, x):
        x = self.act(self.head(x))
        y = self.act(self.body(x))
        y += x
        return self.act(self.shuffle(self.tail(y)))

def variant(**methods):
    return type("Variant", (Net,), methods)
def raises():
    raise ValueError("no such\\nfile")

make, scaled = lambda: Net(), lambda scale: Net(scale)
by_keyword = lambda *, scale=3: Net(scale)
needs = lambda depth: Net()
number, nothing, gray, triple = 3, lambda: None, lambda: Net(channels=1), lambda: Net(3)
Flow = variant(forward=lambda self, x: Net.forward(self, x if x.mean() > 0 else -x))
Length = variant(forward=lambda self, x: Net.forward(self, x * len(x)))
Named = variant(forward=lambda self, x: self.shuffle(self.tail(self.body(self.head(input=x)))))
Joined = variant(join=lambda self, x, y: torch.cat(tensors=[x[:, :4], y[:, 4:]], dim=1))
Scaled = variant(join=lambda self, x, y: torch.add(x, y, alpha=0.2))
InPlace = variant(join=lambda self, x, y: y.add_(x))
Less = variant(join=lambda self, x, y: x - 0.1 * y)
Reflected = lambda: Net(head=nn.Conv2d(3, 8, 3, padding=1, padding_mode="reflect"))
Normed = lambda: Net(head=parametrizations.weight_norm(nn.Conv2d(3, 8, 3, padding=1)))
"""
UNUSUAL = ["Length", "Named", "Joined", "Scaled", "InPlace", "Less", "Reflected", "Normed", "Wide"]


def written(folder: Path) -> Path:
    """The folder, with mynet.py and a space for it."""
    (folder / "mynet.py").write_text(MODULE)
    (folder / "my.yaml").write_text(f"layers: {LAYERS}\n{ROLES}")
    return folder


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The current folder, with the user's files."""
    monkeypatch.chdir(written(tmp_path))
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "no-metrics"))
    yield tmp_path
    sys.modules.pop("mynet", None)


@pytest.fixture
def refused(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, folder: Path) -> Refused:
    """Check that a command line is refused with one line, and that no file comes or goes."""

    def check(arguments: list[str], message: str) -> None:
        before = sorted(folder.rglob("*"))
        assert run(capsys, monkeypatch, *arguments) == (2, "", f"autoq: {message}\n")
        assert sorted(folder.rglob("*")) == before

    return check


def check_works(network: nn.Module, stages: Any) -> None:
    """Tracing keeps the numbers, and the 8-bit network is near them."""
    image = torch.rand(1, 3, 13, 19, generator=torch.Generator().manual_seed(1))
    traced = trace(network, stages)
    policy, int8 = uniform("8/8/8", roles_by_stage(traced.sites)), execution_on("openvino-cpu")
    statistics = collect(traced, [image])
    quantized = quantize(traced, policy, statistics, int8)
    assert len(quantized.integer_layers) == len(traced.layers)
    with torch.no_grad():
        real, fake = network(image), copy.deepcopy(quantized.module).eval()(image)
        torch.testing.assert_close(traced.module(image), real, rtol=0, atol=1e-5)
    assert 0 < (fake - real).square().mean() < 2e-3 * real.var()
    quantized.module.train()
    plain, quick = (gradients(network, image) for network in (quantized.module, quicker(quantized.module)))
    for one, other in zip(plain, quick, strict=True):
        torch.testing.assert_close(one, other, rtol=0.02, atol=0.02 * max(1e-3, float(one.abs().max())))


def gradients(network: nn.Module, image: torch.Tensor) -> list[torch.Tensor]:
    """Of all parameters, as a step of training finds them."""
    network.zero_grad()
    network(image).square().mean().backward()
    return [parameter.grad.clone() for _, parameter in sorted(network.named_parameters()) if parameter.grad is not None]


OPTIONS = [
    "--model", "mynet:make", "--scale", "2", "--space", "my.yaml", "--steps", "1", "--budget", "2", "--workers", "1",
    "--threads", "1", "--frame", "32x24", "--data", "train", "--eval-data", "eval", "--test-data", "test",
    "--replications", "0",
]  # fmt: skip
Found = tuple[Path, subprocess.CompletedProcess[str]]


@pytest.fixture(scope="module")
def searched(tmp_path_factory: pytest.TempPathFactory) -> Found:
    """A finished search of mynet:make, and the folder it ran in."""
    folder = written(tmp_path_factory.mktemp("own"))
    small_image(folder / "train", 0)
    small_image(folder / "eval", 1)
    small_image(folder / "test", 2)
    return folder, searching(folder, *OPTIONS, "--study", str(folder / "study"), "--json")


def searching(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """`autoq search` in this process, which forgets the module."""
    done = in_process(folder, "search", *arguments)
    sys.modules.pop("mynet", None)
    return done


def test_a_search(searched: Found) -> None:
    done = searched[1]
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert [(trial["state"], [*trial["policy"]["stages"]]) for trial in found["trials"]] == [("complete", ["first", "rest"])] * 2
    assert set(found["baselines"]) == {"float", "8/8/8", "6/6/8", "4/4/8", "first-last-16"}
    assert found["baselines"]["float"]["size"] == 4 * PARAMETERS


def test_it_is_resumed_and_reported_without_the_module(searched: Found, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, first = searched
    done = searching(folder, "--resume", "--model", "mynet:make", "--study", str(folder / "study"), "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["front"] == json.loads(first.stdout)["front"]
    monkeypatch.chdir(tmp_path)
    page, picture = autoq.write_report(autoq.open_study(str(folder / "study")), "again")
    assert "mynet:make" in page.read_text()
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert "mynet" not in sys.modules


@pytest.mark.parametrize(("factory", "scale"), [("make", 2), ("scaled", 2), ("scaled", 3), ("by_keyword", 4), ("Net", 3)])
def test_the_scale_is_given_where_it_is_taken(folder: Path, factory: str, scale: int) -> None:
    network, stages = staged_model(f"mynet:{factory}", scale, layers=EVERY_LAYER)
    assert network(torch.zeros(1, 3, 6, 7)).shape == (1, 3, 6 * scale, 7 * scale)
    assert (stages, network.training) == (EVERY_LAYER, False)


def test_weights_are_loaded_strictly(refused: Refused, folder: Path) -> None:
    fresh = staged_model("mynet:make", 2, None, EVERY_LAYER)[0].state_dict()
    path, state = folder / "w.pth", {key: torch.full_like(value, 0.01) for key, value in fresh.items()}
    torch.save(state, path)
    assert all(value.eq(0.01).all() for value in staged_model("mynet:make", 2, path, EVERY_LAYER)[0].state_dict().values())
    torch.save({**state, "more": torch.zeros(1)}, path)
    with pytest.raises(WeightsError, match=r"w\.pth' do not match mynet:make: 1 unexpected: more; give matching --weights"):
        staged_model("mynet:make", 2, path, EVERY_LAYER)
    torch.save({key: value for key, value in state.items() if key != "tail.bias"}, path)
    search = ["search", "--model", "mynet:make", "--scale", "2", "--space", "my.yaml", "--weights", "w.pth"]
    refused(search, f"weights '{path}' do not match mynet:make: 1 missing: tail.bias; {FIT}")


@pytest.mark.parametrize("model", ["x.pth", *(f"mynet:{name}" for name in UNUSUAL)])
def test_an_unusual_network_works_or_is_refused(folder: Path, model: str) -> None:
    """Never another network than the user's, and no other exception. x.pth packs 2 x 2 pixels into channels, as Real-ESRGAN x2."""
    saved(folder / "x.pth", "ESRGAN", in_nc=12, out_nc=3, scale=4, shuffle_factor=2)
    try:
        check_works(*staged_model(model, 2, layers=EVERY_LAYER))
    except InputError as error:
        assert "\n" not in str(error)  # noqa: PT017


FOUND = {"feature_extraction": ("head",), "body": ("body.*",), "reconstruction": ("tail",)}


@pytest.mark.parametrize("command", [["cost", "--model"], ["space"]])
def test_what_a_network_prints_is_not_in_the_document(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, command: list[str]
) -> None:
    runs = MODULE.replace("        x = self.act(", "        print('runs')\n        x = self.act(")
    (folder / "mynet.py").write_text(f"print('Loading mynet')\n{runs}")
    code, out, err = run(capsys, monkeypatch, *command, "mynet:make", "--scale", "2", "--json")
    assert (code, json.loads(out) is None) == (0, False)
    assert {"Loading mynet", "runs"} <= {*err.splitlines()}


def test_a_search_says_which_stages_it_found(folder: Path) -> None:
    small_image(folder / "train", 0)
    small_image(folder / "eval", 1)
    heard: list[str] = []
    events = autoq.Events()
    events.note = heard.append  # type: ignore[method-assign, assignment]
    options = {
        "model": "mynet:make",
        "data": folder / "train",
        "eval_data": folder / "eval",
        "replications": 0,
        "initial_trials": 0,
        "objectives": "size,bops,psnr",
    }
    study, _ = _create(SearchOptions.of(study=str(folder / "s"), **options), events, "here")
    study.close()
    assert study.spec.trial.layers == tuple(FOUND.items())
    assert study.spec.trial.scale == 2
    assert heard[0] == (
        "stages found in the network: feature_extraction (1 layer), body (2 layers), reconstruction (1 layer);"
        " autoq space mynet:make --scale 2 prints them, --space FILE overrides"
    )
    assert study.spec.trial.fingerprint == load("mynet:make", 2).fingerprint
    heard.clear()
    told, _ = _create(SearchOptions.of(study=str(folder / "t"), space=folder / "my.yaml", **options), events, "here")
    told.close()
    assert not any(text.startswith("stages found") for text in heard)
    assert [*told.space.choices] == ["first", "rest"]


def test_a_network_that_was_edited_is_refused(folder: Path) -> None:
    small_image(folder / "train", 0)
    small_image(folder / "eval", 1)
    options = {
        "model": "mynet:make",
        "data": folder / "train",
        "eval_data": folder / "eval",
        "replications": 0,
        "initial_trials": 0,
        "objectives": "size,bops,psnr",
    }
    study, _ = _create(SearchOptions.of(study=str(folder / "s"), **options), autoq.Events(), "here")
    study.close()
    check_inputs("s", study.spec)
    sys.modules.pop("mynet")
    (folder / "mynet.py").write_text(MODULE.replace("manual_seed(0)", "manual_seed(5)"))
    importlib.invalidate_caches()
    with pytest.raises(StudyError) as error:
        check_inputs("s", study.spec)
    assert str(error.value) == "study 's': the network has changed since the study began; restore it, or give another --study"
    with pytest.raises(InputError, match="model 'mynet:make': the network has changed"):
        prepare(study.spec.trial.model_copy(update={"threads": 2}))


def test_its_space_file_loads_again_and_has_a_cost(folder: Path) -> None:
    text, space = space_file("mynet:make", scale=2)
    assert f"# its layers: {PATHS}\n" in text
    (folder / "new.yaml").write_text(text)
    loaded = search_space(TrialSpec(model="mynet:make", scale=2), folder / "new.yaml")
    assert (loaded.layers, loaded.choices) == (FOUND, space.choices)
    assert "# stages found: feature_extraction (1 layer), body (2 layers), reconstruction (1 layer)\n" in text
    found = cost("mynet:make", scale=2, space=folder / "new.yaml", frame="32x24")
    assert (found["parameters"], found["macs"]) == (PARAMETERS, 32 * 24 * PRODUCTS)


FE, UP, REC = "feature_extraction", "upsampling", "reconstruction"
RRDB = {FE: ("model.0",), "body": ("model.1.*",)}
CHECKPOINTS = [
    case("x4", "ESRGAN", {"scale": 4}, 4, RRDB | {UP: ("model.3", "model.6", "model.8"), REC: ("model.10",)}),
    case("x2", "ESRGAN", {"scale": 2}, 2, RRDB | {UP: ("model.3", "model.5"), REC: ("model.7",)}),
    case("compact", "Compact", {"num_conv": 2, "upscale": 2}, 2, {FE: ("body.0",), "body": ("body.2", "body.4"), REC: ("body.6",)}),
]


def saved(path: Path, architecture: str, **arguments: int) -> nn.Module:
    """A network of spandrel's with random weights; its state dict is written to a file."""
    allow_torchvision()
    from spandrel.architectures.Compact import Compact
    from spandrel.architectures.ESRGAN import ESRGAN

    torch.manual_seed(0)
    compact = architecture == "Compact"
    network: nn.Module = Compact(num_feat=8, **arguments) if compact else ESRGAN(num_filters=8, num_blocks=1, **arguments)
    torch.save(network.state_dict(), path)
    return network.eval()


@pytest.mark.parametrize(("architecture", "arguments", "scale", "stages"), CHECKPOINTS)
def test_a_checkpoint(tmp_path: Path, architecture: str, arguments: Any, scale: int, stages: dict[str, tuple[str, ...]]) -> None:
    model, image = str(tmp_path / "own.pth"), torch.rand(1, 3, 13, 19)
    expected = saved(tmp_path / "own.pth", architecture, **arguments)
    loaded = load(model, scale)
    assert (loaded.patterns, list(loaded.patterns)) == (stages, list(stages))
    assert torch.equal(loaded.network(image), expected(image))
    check_works(loaded.network, stages)
    text, space = space_file(model, scale=scale)
    (tmp_path / "new.yaml").write_text(text)
    read = search_space(TrialSpec(model=model, scale=scale), tmp_path / "new.yaml")
    assert (read.layers, read.choices) == (stages, space.choices)


def factory(name: str, model: str, message: str) -> Any:
    return case(name, model, LAYERS, f"model '{model}': {message}")


FACTORY = "type --model package.module:factory"
ONE_STAGE = (
    "expected exactly one stage; change the patterns of the stages, `layers:` in --space FILE (of a built-in network: in `MODELS`)"
)
STAGES = 'expected stages with patterns, as body: ["body.*"]'
REFUSED = [
    factory("no-module", "nonet:make", "No module named 'nonet'; run autoq in the folder that holds the module, or add that folder to PYTHONPATH"),
    factory("no-attribute", "mynet:mkae", "mynet has no function or class 'mkae'; type --model mynet:FACTORY"),
    factory("no-function", "mynet:number", "mynet has no function or class 'number'; type --model mynet:FACTORY"),
    factory("raises", "mynet:raises", "the call raised ValueError: no such file; fix mynet"),
    factory("no-network", "mynet:nothing", "got a result of type NoneType, expected one torch.nn.Module; give a function that returns only the network"),
    factory("an-argument", "mynet:needs",
            "the factory requires depth, expected no required arguments except scale; write a function that calls it with these arguments"),
    factory("one-channel", "mynet:gray",
            "input [1, 3, 24, 24] raised RuntimeError: Given groups=1, weight of size [8, 1, 3, 3], expected"
            " input[1, 3, 24, 24] to have 1 channels, but got 3 channels instead; give a network of RGB images"),
    factory("another-scale", "mynet:triple", "a x3 network, but --scale is 2; type --scale 3"),
    case("control-flow", "mynet:Flow", LAYERS,
         "model Variant: torch.fx cannot trace it: symbolically traced variables cannot be used as inputs to control flow"),
    case("unmatched", "mynet:make", "{first: head, rest: 'body.*'}", f"layer 'tail' is in no stage, {ONE_STAGE}"),
    case("in-two", "mynet:make", "{first: head, rest: '*'}", f"layer 'head' is in stages first, rest, {ONE_STAGE}"),
    case("no-layer", "mynet:make", "{first: haed, rest: '*'}", f"stage 'first': pattern 'haed' matches no layer (layers: {PATHS})"),
    case("list", "mynet:make", "[head]", f"my.yaml: layers: found '['head']', {STAGES}"),
    case("empty", "mynet:make", "{}", f"my.yaml: layers: found '{{}}', {STAGES}"),
    case("number", "mynet:make", "3", f"my.yaml: layers: found '3', {STAGES}"),
    case("stage-empty", "mynet:make", "{first: []}", "my.yaml: layers.first: found '[]', expected module paths, as [\"body.*\"]"),
]  # fmt: skip


@pytest.mark.parametrize(("model", "layers", "message"), REFUSED)
def test_a_factory_or_its_layers(refused: Refused, folder: Path, model: str, layers: str, message: str) -> None:
    (folder / "my.yaml").write_text(f"layers: {layers}\n{ROLES}")
    refused(["search", "--model", model, "--scale", "2", "--space", "my.yaml"], message)


def test_a_pickled_module(refused: Refused, shared: Path) -> None:
    path = (shared / "weights" / "vdsr_pickled_module_twtygqyy.pth").resolve()
    found = "a pickled Python object, which can run arbitrary code when loaded, expected a state dict"
    trusting = "if you trust it, load it yourself, type `torch.save(model.state_dict(), FILE)` and give FILE"
    refused(["search", "--model", str(path)], f"weights '{path}': {found}; {trusting}")


def test_a_checkpoint_that_cannot_be_used(refused: Refused, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = folder / "own.pth"
    torch.save({"layer.weight": torch.zeros(1)}, path)
    search = ["search", "--model", "own.pth"]
    refused(search, f"model '{path}': spandrel does not recognize the architecture; {FACTORY} --weights {path}")
    saved(path, "Compact", num_conv=1, upscale=2)
    refused([*search, "--scale", "4"], f"model '{path}': a x2 network, but --scale is 4; type --scale 2")
    for command in (search, ["cost", "--model", "own.pth"], ["space", "own.pth"]):
        already = f"model '{path}' is already a checkpoint; leave out --weights"
        refused([*command, "--scale", "2", "--weights", "own.pth"], f"--weights '{path}': {already}")
    find, module = importlib.util.find_spec, "autoq.networks.custom.importlib.util"
    monkeypatch.setattr(f"{module}.find_spec", lambda name, *rest: None if name == "spandrel" else find(name, *rest))
    install = "type `pip install 'autoq[spandrel]'`, or `--model NAME --weights"
    refused(search, f"model '{path}': recognizing the architecture of a checkpoint needs spandrel; {install} {path}`")
