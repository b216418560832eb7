"""Every command and example of the README and of docs/ is run: here, or where RUN_ELSEWHERE says."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import types
from pathlib import Path

import PIL.Image
import pytest
import skimage
import torch
import yaml

from autoq.config.policy import TensorQuant
from autoq.config.space_file import parse_space
from autoq.networks.srresnet import SRResNet
from autoq.quantizers import CLIPPING_NAMES, QUANTIZERS
from autoq.study.study import space_facts
from tests.contracts import test_quantizers as contracts

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]

RUN_ELSEWHERE = {
    "make search": (".ci/run", "make search"),
    "make test": (".ci/run", "make test"),
    "export PIP_EXTRA_INDEX_URL=https://download.pytorch.org/whl/cpu": ("README.md", "before the first `make`"),
    "autoq search --model srgan --budget 50": ("Makefile", "$(BIN)/autoq search --model srgan --budget 50"),
    "python -m pytest -q tests/contracts": ("Makefile", "$(BIN)/python -m pytest"),
    "autoq search --model mypackage.networks:make --scale 2 --space mine.yaml": ("tests/test_own_models.py", "mynet:make"),
    "autoq search --model RealESRGAN_x4plus.pth": ("tests/test_own_models.py", "def test_a_checkpoint"),
    "python benchmarks/sampling.py --steps 16": ("tests/benchmarks/test_sampling.py", "sampling.py"),
    "python benchmarks/ablation.py --eval-data Set5": ("tests/benchmarks/test_qat.py", "ablation.py"),
    "python benchmarks/qat_gain.py --eval-data Set5": ("tests/benchmarks/test_qat.py", "qat_gain.py"),
    "python benchmarks/qat_step.py --eval-data Set5": ("tests/benchmarks/test_qat_step.py", "qat_step.main()"),
    "python benchmarks/ptq.py --models srresnet srgan --clippings minmax --bits 8/8/8 4/4/8 --eval-data Set5": (
        "tests/benchmarks/test_ptq.py",
        "ptq.py",
    ),
    "python benchmarks/fidelity.py": ("tests/benchmarks/test_search.py", "fidelity.py"),
    "python benchmarks/held_out.py srgan-x4": ("tests/benchmarks/test_held_out.py", "figures_of("),
    "python benchmarks/search.py": ("tests/benchmarks/test_search.py", "search.py"),
    "autoq sensitivity --model srgan": ("tests/tuning/test_sensitivity.py", '"sensitivity"'),
    "autoq upscale compromise/model.onnx photo.png large.png": (
        "tests/deploy/test_upscale.py",
        '"upscale", "doubling.onnx", "photo.png"',
    ),
    "autoq upscale compromise/model.onnx photo.png large.png --tile 128 --threads 1": (
        "tests/deploy/test_upscale.py",
        '"--tile", "64", "--threads"',
    ),
    "autoq evaluate compromise/model.onnx --data Set5/ --metrics psnr,ssim": (
        "tests/deploy/test_evaluate.py",
        '"evaluate", str(network), "--data"',
    ),
    "autoq evaluate compromise/model.onnx --data Set5/ --metrics psnr,ssim,niqe --border 4 --json": (
        "tests/deploy/test_evaluate.py",
        '"--json"',
    ),
    "autoq evaluate --model srgan --data Set5/": ("tests/deploy/test_evaluate.py", "autoq.evaluate(model="),
    "autoq evaluate --model srgan --weights generator.pth --data Set5/": ("tests/deploy/test_evaluate.py", "weights=spec.weights"),
    "autoq report layerwise --compare stagewise": ("tests/tuning/test_runner.py", '"--compare"'),
    "autoq export srgan-x4 --pick compromise -o compromise": ("tests/deploy/test_pipeline.py", '"export"'),
    "autoq export mine --pick compromise -o compromise": ("tests/deploy/test_pipeline.py", '"export"'),
    "autoq export mine --pick compromise --format packed -o small": ("tests/deploy/test_pipeline.py", 'format="packed"'),
    "autoq unpack small/model.safetensors -o runtime": ("tests/deploy/test_pipeline.py", "unpack(packed.file"),
    "autoq cost --model xlsr --target npu-uint8 --input 640x360": ("tests/costs/test_modelled.py", "44.85"),
    "python benchmarks/clipped_output.py --eval-data Set14": ("tests/benchmarks/test_clipped_output.py", "clipped_output"),
    "python benchmarks/exports.py srgan-x4 --points 10": ("tests/benchmarks/test_exports.py", '"--points"'),
    "python -m pytest tests/export/test_nibbles.py": ("Makefile", "$(BIN)/python -m pytest"),
    "python benchmarks/deploy.py srresnet-x4 --eval-data Set5/": ("tests/benchmarks/test_deploy.py", "deploy.main()"),
    "python benchmarks/esrgan.py": ("tests/benchmarks/test_esrgan.py", "esrgan.py"),
    "python benchmarks/weights.py Set5 Set14": ("tests/benchmarks/test_bundled_weights.py", "benchmarks.weights"),
    "python benchmarks/survival.py --driver-kills 20 --worker-kills 20": ("tests/benchmarks/test_survival.py", "survival.py"),
}
"""Command -> the file that runs it (or a smaller version of it), and the text that shows it."""


def blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", page.read_text(), flags=re.DOTALL | re.MULTILINE)


def commands(page: Path) -> list[str]:
    lines = [line.partition(" #")[0].strip() for block in blocks(page, "sh") for line in block.splitlines()]
    return [line for line in lines if line]


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with what the README's reader has: a checkpoint of their own (here a tiny one) and folders of images."""
    folder = tmp_path_factory.mktemp("desk")
    torch.manual_seed(0)
    torch.save(SRResNet(scale=4, blocks=1, features=8).state_dict(), folder / "generator.pth")
    for name, image in (("train", "astronaut.png"), ("Set5", "chelsea.png")):
        (folder / name).mkdir()
        with PIL.Image.open(Path(skimage.__file__).parent / "data" / image) as photograph:
            photograph.convert("RGB").crop((0, 0, 256, 256)).save(folder / name / "photo.png")
    return folder


def run(desk: Path, command: list[str], until: str | None = None) -> str:
    """Run a command at the desk; `until` is what a server prints when it is up: then it is interrupted."""
    environment = {
        **os.environ,
        "TORCH_HOME": str(desk / "no-metrics"),
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
    }
    with subprocess.Popen(
        command, cwd=desk, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    ) as process:
        if until:
            assert process.stderr is not None
            assert until in process.stderr.readline()
            os.killpg(process.pid, signal.SIGINT)
        out, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    return out


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_command_is_run_somewhere(page: Path) -> None:
    known = ("autoq ", "make ", "python ", "export ")
    for command in commands(page):
        assert command.startswith(known), command
        if command in RUN_ELSEWHERE:
            file, text = RUN_ELSEWHERE[command]
            assert text in (ROOT / file).read_text()
        else:
            assert page.name == "README.md", f"{command}: commands of {page.name} are not run"
            assert command.startswith("autoq "), command


def test_the_readme_s_commands(desk: Path) -> None:
    outputs = {}
    for command in commands(PAGES[0]):
        if command not in RUN_ELSEWHERE:
            until = "http://127.0.0.1:8080/dashboard" if command.startswith("autoq dashboard") else None
            outputs[command] = run(desk, ["bash", "-c", f"exec {command}"], until)
    assert sum(command.startswith("autoq search") for command in outputs) == 3
    assert (desk / "reports" / "mine.html").is_file()
    assert yaml.safe_load((desk / "my_space.yaml").read_text())["model"] == "srgan"
    assert len((desk / "studies" / "mine" / "trials.jsonl").read_text().splitlines()) == 5 + 6


def test_the_readme_s_python(desk: Path) -> None:
    (code,) = blocks(PAGES[0], "python")
    assert "trial" in run(desk, [sys.executable, "-c", code])
    assert (desk / "reports" / "from-python.html").is_file()


def test_the_quantizer_that_is_added(monkeypatch: pytest.MonkeyPatch) -> None:
    page = ROOT / "docs" / "extend.md"
    implementation, line = blocks(page, "python")
    module = types.ModuleType("autoq.quantizers.power_of_two")
    exec(implementation, module.__dict__)
    monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.delitem(QUANTIZERS, "power_of_two", raising=False)
    exec(line, {})
    try:
        for bits, granularity, signed in ((4, "channel", True), (8, "tensor", False)):
            contracts.test_contract(TensorQuant(bits, "power_of_two", "mse", granularity, signed))
        contracts.test_state_dict_round_trip_and_gradients("power_of_two")
        (space,) = blocks(page, "yaml")
        parsed = parse_space(yaml.safe_load(space), space_facts("srgan", "openvino-cpu"), page.name)
        assert parsed.choices["body"]["weight"].quantizer == ("lsq", "power_of_two")
    finally:
        del QUANTIZERS["power_of_two"]


def test_every_quantizer_and_clipping_rule_is_in_the_table() -> None:
    lines = (ROOT / "docs" / "quantizers.md").read_text().splitlines()
    tables: dict[int, dict[str, list[str]]] = {}
    for cells in (line.split("|") for line in lines if line.startswith("| `")):
        tables.setdefault(len(cells), {})[cells[1].strip(" `")] = cells
    clippings, rows = (tables[width] for width in sorted(tables))
    assert set(clippings) == set(CLIPPING_NAMES)
    assert set(rows) == set(QUANTIZERS)
    for name, info in QUANTIZERS.items():
        first, last = info.bits[0], info.bits[-1]
        assert rows[name][-2].strip() == (f"{first}-{last}" if first < last else f"{first}")
        assert info.source.split(",")[0] in rows[name][2]
        assert ("nothing" not in rows[name][4]) is info.learned
        assert ("everything" in rows[name][5]) is (len(info.serves) == 3)
        assert "everything" in rows[name][5] or ("weights" in rows[name][5]) is ("weight" in info.serves)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    for link in re.findall(r"\]\(([^)#]+)\)", page.read_text()):
        if not link.startswith("http"):
            assert (page.parent / link).exists(), link


def test_options_of_the_table_are_the_command_s() -> None:
    done = subprocess.run(
        [sys.executable, "-c", "from autoq.cli import main; main()", "search", "--help"],
        capture_output=True, text=True, check=True, env={**os.environ, "COLUMNS": "200"},
    )  # fmt: skip
    offered = set(re.findall(r"--[a-z-]+", done.stdout)) - {"--help"}
    table = PAGES[0].read_text().partition("| option of `autoq search`")[2].partition("\n\n")[0]
    assert set(re.findall(r"`(--[a-z-]+)", table)) == offered


def test_files_that_the_docs_name_exist() -> None:
    for page in PAGES:
        for name in re.findall(r"`((?:autoq|benchmarks|docs|tests|search_spaces)/[a-z_/]+\.(?:py|yaml|md))`", page.read_text()):
            assert (ROOT / name).exists(), f"{page.name}: {name}"
