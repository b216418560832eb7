"""Fixtures: where the shared test data are, and a tiny network that makes a whole search a matter of seconds."""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # on tiny networks a second thread waits more than it works; torch reads it once

import copy
import functools
import hashlib
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import onnx
import PIL.Image
import pytest
import torch
import torch.fx
import typer.main
from safetensors.torch import save_file

import autoq.tuning  # noqa: F401 - before Ray is imported it says how Ray is to listen
from autoq.config.spec import Analysis, Question
from autoq.graph.quantize import Quantized
from autoq.graph.trace import Traced, trace
from autoq.networks import model_info
from autoq.networks.srresnet import SRResNet

SHARED = Path(os.environ.get("AUTOQ_SHARED") or Path(__file__).parents[2] / "shared")


SLOW = (
    "tests/tuning/test_runner.py",
    "tests/contracts/test_models.py",
    "tests/test_docs.py",
    "tests/tuning/test_scheduler.py",
    "tests/contracts/test_user_networks.py",
    "tests/contracts/test_targets.py",
    "tests/tuning/",
    "tests/report/test_dashboard.py",
    "tests/test_given.py",
    "tests/test_own_models.py",
    "tests/benchmarks/",
    "tests/export/test_onnx.py",
    "tests/export/test_qonnx.py",
    "tests/study/",
    "tests/deploy/",
    "tests/trial/",
    "tests/test_npu_uint8.py",
    "tests/costs/test_cost.py",
    "tests/graph/test_full_quantization.py",
    "tests/training/test_pretrain.py",
    "tests/system/test_limits.py",
    "tests/api/test_doctor.py",
)
"""Files and folders that take longest: searches, trainings, runtimes. Marked `slow`, which `make check` leaves out.

They run first, so that no process is left alone with one of them at the end.
"""


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "slow: takes long; make check leaves it out")
    torch.onnx.export = exported_once(torch.onnx.export)  # half of the tests' time is the export of equal small networks
    typer.main.get_command = functools.cache(typer.main.get_command)  # a parser holds no state


class Exported(NamedTuple):
    """What torch.onnx.export returns, as far as it is used."""

    serialized: bytes

    @property
    def model_proto(self) -> onnx.ModelProto:
        return onnx.load_from_string(self.serialized)


def exported_once(export: Callable[..., Any]) -> Callable[..., Any]:
    """torch.onnx.export that gives the same again for a module with the same code, settings and tensors."""
    known: dict[str, Exported] = {}

    def exported(module: torch.nn.Module, images: tuple[torch.Tensor], **options: Any) -> Any:
        assert isinstance(module, torch.fx.GraphModule)
        key = f"{_content(module)} {tuple(images[0].shape)} {options}"
        if not known:
            _keep_operators()
        if key not in known:
            known[key] = Exported(export(module, images, **options).model_proto.SerializeToString())
        return known[key]

    return exported


def _content(module: torch.fx.GraphModule) -> str:
    """A hash of what a graph computes, and of the names in it."""
    digest = hashlib.sha256()
    for node in module.graph.nodes:
        digest.update(f"{node.op} {node.name} {node.target} {node.args} {node.kwargs}\n".encode())
    for path, part in module.named_modules():
        settings = {name: value for name, value in vars(part).items() if not name.startswith("_")} if path else {}
        digest.update(f"{path} {type(part).__qualname__} {settings}\n".encode())
        constants = {name: value for name, value in vars(part).items() if isinstance(value, torch.Tensor)}
        tensors = (*part.named_parameters(recurse=False), *part.named_buffers(recurse=False), *constants.items())
        for name, tensor in tensors:
            digest.update(
                f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode() + tensor.detach().contiguous().numpy().tobytes()
            )
    return digest.hexdigest()


def _keep_operators() -> None:
    """Build the exporter's table of operators once; it builds it anew for every export, in a third of the time."""
    from torch.onnx._internal.exporter._registration import ONNXRegistry

    ONNXRegistry.from_torchlib = staticmethod(functools.cache(ONNXRegistry.from_torchlib))  # type: ignore[method-assign]


NEEDS = {
    "shared": (SHARED.is_dir(), f"needs the public test data; set AUTOQ_SHARED to their folder ({SHARED} is none)"),
    "chromium": (shutil.which("chromium") is not None, "needs the browser chromium"),
    "gpu": (torch.cuda.is_available(), "needs a GPU"),
}
"""Fixtures that stand for things that a machine may lack: whether this one has them, and why a test without them is skipped."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip tests of things that this machine lacks. With AUTOQ_REQUIRE_ALL they fail instead, except for the GPU."""
    demanded = {"shared", "chromium"} if os.environ.get("AUTOQ_REQUIRE_ALL") else set()
    for item in items:
        if item.nodeid.startswith(SLOW):
            item.add_marker(pytest.mark.slow)
        for name, (available, reason) in NEEDS.items():
            if name in getattr(item, "fixturenames", ()) and not available and name not in demanded:
                item.add_marker(pytest.mark.skip(reason=reason))
    items.sort(key=_rank)


def _rank(item: pytest.Item) -> int:
    """The place of its file among the slow ones; others come after."""
    return next((rank for rank, start in enumerate(SLOW) if item.nodeid.startswith(start)), len(SLOW))


@pytest.fixture(scope="session")
def gpu() -> str:
    """torch's name for it."""
    return "cuda"


@pytest.fixture(scope="session")
def chromium() -> str:
    """The browser's path."""
    found = shutil.which("chromium")
    assert found, "chromium is missing; install it"
    return found


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder with public test images and checkpoints."""
    assert SHARED.is_dir(), f"test data missing: {SHARED}; set AUTOQ_SHARED"
    return SHARED / "data"


@pytest.fixture(scope="session")
def tiny_model() -> SRResNet:
    """An untrained SRResNet of one block and eight features whose BN statistics are not the identity."""
    torch.manual_seed(0)
    model = SRResNet(scale=2, blocks=1, features=8)
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.uniform_(-0.2, 0.2)
            module.running_var.uniform_(0.5, 2.0)
            module.weight.data.uniform_(0.5, 1.5)
            module.bias.data.uniform_(-0.2, 0.2)
    return model.eval()


@pytest.fixture(scope="session")
def tiny_weights(tiny_model: SRResNet, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny network as a checkpoint in our own layout."""
    path = tmp_path_factory.mktemp("weights") / "tiny.safetensors"
    save_file(tiny_model.state_dict(), path)
    return path


@pytest.fixture(scope="session")
def tiny_traced(tiny_model: SRResNet) -> Traced:
    return trace(tiny_model, model_info("srresnet").patterns)


@pytest.fixture(scope="session")
def small_images(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Folders with one small image each, as a TrialSpec takes them: on these a trial is a matter of tenths of a second."""
    folder = tmp_path_factory.mktemp("images")
    return {name: small_image(folder / name, seed) for seed, name in enumerate(("data", "eval_data", "test_data"))}


def made_up(question: Question, stages: tuple[str, ...]) -> Analysis:
    """An answer of plausible shape: the first stage suffers most, the last least."""
    found = {
        "model": "srresnet", "scale": 2, "target": "openvino-cpu", "metric": question.metric, "steps": question.steps,
        "by": question.by, "float": {question.metric: 30.0, "size": 8192.0, "latency": 4.0}, "ranking": stages,
        "most_sensitive": stages[0], "least_sensitive": stages[-1], "roles": [], "seconds": 1.0,
        "entries": [
            {"stages": [stage], "bits": bits, "change": round(-0.1 * (len(stages) - rank) * 8 / bits, 4), "mse": 1e-4,
             "size_saved": 1024.0 * (9 - bits), "time_saved": 0.25}
            for rank, stage in enumerate(stages) for bits in question.widths
        ],
        "stability": {"images": {"spearman": 0.9, "low": 0.5, "high": 1.0}, "seeds": None},
    }  # fmt: skip
    return Analysis.model_validate(found)


@torch.no_grad()
def simulated(quantized: Quantized, image: torch.Tensor) -> np.ndarray:
    """The output of a fake-quantized network as training computes it, in evaluation mode."""
    output: np.ndarray = copy.deepcopy(quantized.module).eval()(image).numpy()
    return output


def decibels(found: np.ndarray, expected: np.ndarray, peak: float = 1.0) -> float:
    """PSNR between two outputs, at most 200 dB."""
    return float(-10 * np.log10(np.mean((found.astype(float) - expected) ** 2) / peak**2 + 1e-20))


def small_image(folder: Path, seed: int, side: int = 96) -> Path:
    """A folder with one small image of smooth noise; other seeds, other images."""
    folder.mkdir()
    random = np.random.default_rng(seed)
    coarse = random.integers(0, 256, (side // 8, side // 8, 3), dtype=np.uint8)
    PIL.Image.fromarray(coarse).resize((side, side), PIL.Image.Resampling.BICUBIC).save(folder / f"{seed}.png")
    return folder
