"""Networks as users write them: computed as they are by the traced graph, in 8 bits and in the written file; or the one line."""

from __future__ import annotations

import importlib.util
import inspect
import os
import runpy
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import cast

import numpy as np
import onnx
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from autoq.config.policy import uniform
from autoq.costs.operations import costs
from autoq.costs.size import packed_bytes
from autoq.deploy.upscale import Network
from autoq.errors import InputError
from autoq.export.onnx import export_graph, for_runtime, weight_widths, write_plain
from autoq.export.packed import pack
from autoq.export.packed import payload_bytes as packed_payload_bytes
from autoq.graph.quantize import Execution, Quantized, collect, quantize
from autoq.graph.trace import Traced, check_integers_only, roles_by_stage, trace
from autoq.targets import load_target
from tests.conftest import SHARED
from tests.contracts import user_layers, user_networks
from tests.contracts.user_networks import Net

STAGES = {"all": ("*",)}
INT8 = Execution(integer_bits=8, fused_sums=True, weight_bits=8)
CALIBRATION_IMAGES = 4
AGREEMENT, NEARNESS = 40, 45
"""dB: least of the file to the fake-quantized network, and of that to the float network."""


def smooth(height: int, width: int, seed: int) -> Tensor:
    """An 8-bit image without noise."""
    coarse = torch.rand(1, 3, height // 8 + 1, width // 8 + 1, generator=torch.Generator().manual_seed(seed))
    image = F.interpolate(coarse, size=(height, width), mode="bicubic", align_corners=False)
    return image.clamp(0, 1).mul(255).round().div(255)


def decibels(found: np.ndarray | Tensor, expected: Tensor) -> float:
    """PSNR, with the largest magnitude expected as the peak where that is more than 1."""
    error = np.mean((np.asarray(found, np.float64) - expected.numpy()) ** 2)
    return float(-10 * np.log10(error / max(1.0, expected.abs().max().item()) ** 2 + 1e-20))


class Case:
    """A network, traced, in 8 bits, and on an image of other sides than those of calibration."""

    def __init__(self, network: nn.Module) -> None:
        self.network = network.eval()
        self.traced: Traced = trace(network, STAGES)
        side = self.traced.fitted(32)
        images = [smooth(side, side, seed) for seed in range(CALIBRATION_IMAGES)]
        self.policy = uniform("8/8/8", roles_by_stage(self.traced.sites))
        self.quantized: Quantized = quantize(self.traced, self.policy, collect(self.traced, images), INT8)
        self.image = smooth(side + self.traced.multiple, side, 99)
        with torch.no_grad():
            self.exact = network(self.image.clone())
            self.simulated = self.quantized.module.eval()(self.image.clone())

    def check(self, nearness: float = NEARNESS) -> None:
        """The traced graph is the network, all of its layers are integers, and near it."""
        with torch.no_grad():
            found = self.traced.module(self.image.clone())
        torch.testing.assert_close(found, self.exact, rtol=0, atol=1e-4 * max(1.0, self.exact.abs().max().item()))
        assert len(self.quantized.integer_layers) == len(self.traced.layers)
        assert decibels(self.simulated, self.exact) >= nearness
        side = self.traced.fitted(32)
        assert costs(self.quantized.plan, (side, side)).macs > 0

    def check_file(self) -> onnx.ModelProto:
        """What the runtime computes from the file is that network, and the package is as large as was said."""
        graph = export_graph(self.traced)
        plain = write_plain(graph, self.quantized)
        package = pack(plain, weight_widths(self.quantized), self.policy)
        assert packed_payload_bytes(package) == packed_bytes(self.quantized.plan)
        model = for_runtime(plain, weight_widths(self.quantized))
        found = load_target("openvino-cpu").load(model.SerializeToString(), threads=1)(self.image.numpy())
        assert found.shape == self.exact.shape
        assert decibels(found, self.simulated) >= AGREEMENT
        return model


NETWORKS = {
    name: kind
    for home in (user_networks, user_layers)
    for name, kind in vars(home).items()
    if inspect.isclass(kind) and issubclass(kind, nn.Module) and kind.__module__ == home.__name__ and kind not in user_layers.PARTS
}


def network(name: str) -> Net:
    torch.manual_seed(0)
    return cast(Net, NETWORKS[name]())


REFUSED = {
    "Asks": "model Asks: forward requires 'noise' besides the image; give the argument a default",
    "TwoOutputs": "model TwoOutputs: forward returns a tuple, expected one image; return only the image",
    "Branches": "model Branches: torch.fx cannot trace it: symbolically traced variables cannot be used as inputs to control flow",
    "Noisy": "model Noisy: two runs on the same image differ; remove random operations and internal state from forward",
    "Remembers": "model Remembers: two runs on the same image differ; remove random operations and internal state from forward",
    "NoLayers": "model NoLayers: no layer to quantize, expected convolutions or linear layers; give another network",
    "Named": "model Named: attribute 'code' is reserved by torch.fx; rename it",
    "PartOfChunk": "model PartOfChunk: 'mul_' changes a view of 'relu' in place, and 'add' reads 'relu' later; create a new tensor instead",
}
IN_FLOAT = {
    "SharedThrice": ("one", "two"), "SharedNorm": ("norm", "other"), "TiedWithNorm": ("norm",), "WithConstant": ("learned",),
    "WeightStandardized": ("body",), "LooseNorms": ("image", "norm", "plain"), "OtherNorms": ("group", "instance", "layer"),
    "NormOfTransposed": ("norms.0", "norms.2"), "Attention": ("norm", "attention"), "Scales": ("gain", "beta", "shifts"),
    "Volume": ("line", "volume"), "Hooked": ("body",),
}  # fmt: skip
MULTIPLES = {"Windows": 7, "UShape": 4, "Unshuffled": 4}
NOISE = {"OtherNorms": 30, "a18": 30}
"""Norms by what an image holds make flat parts as large as others, and a18 rounds to whole numbers: 8 bits are less near there."""

KINDS = [name for name in NETWORKS if name not in REFUSED and name != "Aware"]
WRITTEN = {
    "SharedThrice", "WindowReshape", "InPlaceItem", "ZeroWithBias", "ReversedParts", "OtherNorms",
    "NormOfTransposed", "Resized", "Padded", "Unshuffled", "Attention",
}  # fmt: skip
"""Those whose files hold what the others' do not."""


@pytest.mark.parametrize("name", KINDS)
def test_a_network_is_computed_as_it_is(name: str) -> None:
    case = Case(network(name))
    assert case.traced.float_layers == IN_FLOAT.get(name, ())
    assert case.traced.multiple == MULTIPLES.get(name, 1)
    case.check(NOISE.get(name, NEARNESS))
    if name in WRITTEN:
        case.check_file()


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_computed_is_refused_in_one_line(name: str) -> None:
    with pytest.raises(InputError) as error:
        trace(network(name), STAGES)
    assert str(error.value) == REFUSED[name]


def test_a_difference_names_the_first_node() -> None:
    message = "model Aware: the traced network differs from the eager one by 0[.][0-9]+ of the largest output value, first at 'tail'; replace"
    with pytest.raises(InputError, match=message):
        trace(network("Aware"), STAGES)


def test_a_network_is_not_changed_by_tracing() -> None:
    for name in ("Parametrized", "WeightNormOld", "InPlaceFunctions", "SharedWithNorm"):
        made = network(name).eval()
        image = smooth(17, 18, 0)
        with torch.no_grad():
            before = made(image.clone())
            trace(made, STAGES)
            assert torch.equal(made(image.clone()), before)


def test_tied_and_shared_weights_are_held_once() -> None:
    names = {name for name, _ in trace(network("TiedWithNorm"), STAGES).module.named_parameters() if "weight" in name}
    assert names == {"head.weight", "one.weight", "norm.weight", "tail.weight"}
    traced = trace(network("SharedThrice"), STAGES)
    assert [layer.path for layer in traced.layers] == ["head", "body", "body", "body", "tail"]
    assert [site.node for site in traced.sites if site.role == "weight"] == ["head", "body", "tail"]


def test_a_part_that_nobody_reads_is_no_layer() -> None:
    assert [layer.path for layer in trace(network("Idle"), STAGES).layers] == ["head", "tail"]


def test_a_bias_without_weights_stays_within_int32() -> None:
    case = Case(network("ZeroWithBias"))
    integers = [
        quantizer.to_integer(case.quantized.module.get_parameter(str(node.args[0].target)))
        for node in case.quantized.module.graph.nodes
        if node.op == "call_module" and hasattr(quantizer := case.quantized.module.get_submodule(node.target), "channels")
    ]
    assert len(integers) == 4
    assert max(int(each.abs().max()) for each in integers) <= 2**30


def test_only_the_image_is_on_its_grid() -> None:
    """A filter's values are calibrated; an unshuffled image is still the image."""
    for name, images in (("Edges", 0), ("Normalised", 0), ("Unshuffled", 1), ("Net", 1)):
        quantizers = [
            part
            for path, part in Case(network(name)).quantized.module.named_modules()
            if path.startswith("quantizers.") and "bias" not in path
        ]
        grids = [part for part in quantizers if hasattr(part, "quant") and torch.equal(part.scale, torch.tensor([1 / 255]))]
        assert len(grids) == images, name


def test_layers_in_float_are_refused_where_integers_are_all_there_is() -> None:
    message = "target 'npu-uint8': 'norm' of this network always runs in float, but the target has only integers"
    with pytest.raises(InputError, match=message):
        check_integers_only(trace(network("Attention"), STAGES), "npu-uint8")
    check_integers_only(trace(network("Unshuffled"), STAGES), "npu-uint8")


def test_a_file_says_what_sides_its_images_have_and_is_used_at_any(tmp_path: Path) -> None:
    case = Case(network("Windows"))
    model = case.check_file()
    assert {each.key: each.value for each in model.metadata_props} == {"multiple": "7"}
    onnx.save(model, tmp_path / "x.onnx")
    image = smooth(33, 30, 5)
    found = Network(tmp_path / "x.onnx", "openvino-cpu", 1)(image.numpy())
    with torch.no_grad():
        expected = case.quantized.module(F.pad(image, (0, 5, 0, 2), "reflect"))[:, :, :66, :60]
    assert found.shape == (1, 3, 66, 60)
    assert decibels(found, expected) >= AGREEMENT


def test_an_operation_that_cannot_be_written_is_named_in_one_line() -> None:
    traced = trace(network("Unwritable"), STAGES)
    with pytest.raises(InputError, match=r"^model: torch.onnx cannot export this network \(.*bessel_j0.*\); replace that") as error:
        export_graph(traced)
    assert "\n" not in str(error.value)


# ---------------------------------------------------------------- networks that failed, from the shared folder

SCRIPTS = SHARED / "cases" / "networks"
GRAPHS = (
    "a01", "a03", "a04", "a05", "a06", "a07", "a08", "a10", "a11", "a12", "a13", "a14", "a15", "a16", "a17", "a18", "a20", "a22", "a23",
    "a24", "a29", "a30", "a31",
)  # fmt: skip
EVERY_FILE = {"a07", "a15", "a16", "a20", "a22", "a30"}


@pytest.fixture
def made(shared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The current folder, in which a script may write."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    yield tmp_path
    sys.modules.pop("mynet", None)


@pytest.mark.parametrize("number", GRAPHS)
def test_a_network_that_failed(number: str, made: Path) -> None:
    (script,) = SCRIPTS.glob(f"{number}_*.py")
    runpy.run_path(os.fspath(script))
    spec = importlib.util.spec_from_file_location("mynet", made / "mynet.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    case = Case(module.make())
    case.check(NOISE.get(number, NEARNESS))
    assert case.traced.multiple == (2 if number == "a14" else 1)
    if number in EVERY_FILE:
        case.check_file()
