"""Every command and every Python example of the documentation is run.

Commands of `autoq` run at a desk that holds what a reader has. Expensive ones get a smaller budget (SMALLER); further searches are
followed until the study is created (CREATED). Arguments of benchmarks are parsed by the benchmarks' own parsers, because
tests/benchmarks runs them.
"""

from __future__ import annotations

import argparse
import os
import re
import runpy
import shlex
import shutil
import signal
import subprocess
import sys
import textwrap
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest
import skimage
import torch
import yaml
from torch import nn

import autoq
from autoq.cli import app
from autoq.config.policy import TensorQuant
from autoq.config.space_file import named_spaces, parse_space
from autoq.networks import MODELS
from autoq.networks.srresnet import SRResNet
from autoq.quantizers import CLIPPING_NAMES, QUANTIZERS, QuantizerInfo
from autoq.quantizers.range_estimators import Statistics
from autoq.study.results import point_name
from autoq.study.study import Study, space_facts
from autoq.system.compat import allow_torchvision
from autoq.targets import TARGETS
from tests.contracts import equations
from tests.contracts import test_quantizers as contracts
from tests.searching import no_ray

ROOT = Path(__file__).parents[1]
README, CONTRIBUTING = ROOT / "README.md", ROOT / "CONTRIBUTING.md"
DOCS = sorted((ROOT / "docs").glob("**/*.md"))
PAGES = [README, CONTRIBUTING, *DOCS]

IMAGES = "--data train --eval-data Set5"
TINY = f"--weights generator.pth {IMAGES}"
SMALLER = {
    "autoq search --model srgan --weights generator.pth --data train/ --eval-data Set5/ --study mine --budget 6 --steps 4": (
        "--budget 3 --initial-trials 0 --replications 1 --workers 1 --frame 16x16"
    ),
    "autoq cost --model srresnet --scale 2 --policy 8/8/8 --frame 1020x678": "--weights x2.pth",
    "autoq sensitivity --model srgan": f"{TINY} --frame 16x16",
    "autoq finetune mine --trial 0 --steps 400": "--steps 2",
    "autoq finetune mine --pick compromise --steps 2000": "--steps 2",
    "autoq pretrain --model espcn --scale 3 --data train/ --eval-data Set5/ --steps 50": "--steps 2",
    "autoq evaluate --model srgan --data Set5/": "--weights generator.pth",
}
"""Command -> options that make it cheap: the last of equal options wins."""

CREATED = {
    "autoq search --model srgan --budget 50": TINY,
    "autoq search --model mypackage.networks:make --scale 2 --space mine.yaml": IMAGES,
    "autoq search --model path/to/net.py:make": IMAGES,
    "autoq search --model RealESRGAN_x4plus.pth": IMAGES,
    "autoq search --model srgan --weights generator.pth --space my_space.yaml --study again"
    " --latency-table studies/mine/latency.json --budget 4": f"{IMAGES} --frame 16x16",
    "autoq search --model srgan --constraint 'size<=1MiB' --constraint 'fidelity>=40' --study constrained": TINY,
    "autoq search --model srgan --constraint 'latency<=30ms' --frame 96x96 --study fast": TINY,
}
"""Searches that need not run: everything before the first trial does, with these options in addition."""

NETWORK = """
from collections import OrderedDict
import torch
from torch import nn

def make(scale=2):
    torch.manual_seed(0)
    return nn.Sequential(OrderedDict(
        head=nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU()),
        body=nn.Sequential(nn.Conv2d(8, 8, 3, padding=1), nn.ReLU()),
        fuse=nn.Conv2d(8, 8, 1),
        tail=nn.Sequential(nn.Conv2d(8, 3 * scale**2, 3, padding=1), nn.PixelShuffle(scale)),
    ))
"""


def blocks(page: Path, language: str) -> list[str]:
    """Fenced code of a language, also within lists."""
    found = re.findall(rf"^( *)```{language}\n(.*?)^\1```", page.read_text(), flags=re.DOTALL | re.MULTILINE)
    return [textwrap.dedent(code) for _, code in found]


def commands(page: Path) -> list[str]:
    lines = [line.partition(" #")[0].strip() for block in blocks(page, "sh") for line in block.splitlines()]
    return [line for line in lines if line]


def all_commands(start: str) -> list[str]:
    """Those of all pages, the README's first, each once."""
    return list(dict.fromkeys(command for page in PAGES for command in commands(page) if command.startswith(start)))


class Created(Exception):
    """A study was created and its search would begin."""


class Parsed(Exception):
    """A benchmark accepted its arguments."""


def own_network() -> nn.Module:
    """The network of the README's Python example."""
    return nn.Sequential(nn.Conv2d(3, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 12, 3, padding=1), nn.PixelShuffle(2))


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with what a reader has: checkpoints (here tiny ones), networks, folders of images and a photograph."""
    allow_torchvision()
    from spandrel.architectures.Compact import Compact

    folder = tmp_path_factory.mktemp("desk")
    torch.manual_seed(0)
    torch.save(SRResNet(scale=4, blocks=1, features=8).state_dict(), folder / "generator.pth")
    torch.save(SRResNet(scale=2, blocks=1, features=8).state_dict(), folder / "x2.pth")
    torch.save(own_network().state_dict(), folder / "net.pth")
    torch.save(Compact(num_conv=1, num_feat=8, upscale=4).state_dict(), folder / "RealESRGAN_x4plus.pth")
    for name in ("mypackage/networks.py", "path/to/net.py"):
        (folder / name).parent.mkdir(parents=True)
        (folder / name).write_text(NETWORK)
    (folder / "mine.yaml").write_text(blocks(ROOT / "docs" / "reference" / "search-spaces.md", "yaml")[1])
    for name, image, side in (("train", "astronaut.png", 256), ("Set5", "chelsea.png", 128), ("Set14", "moon.png", 64)):
        (folder / name).mkdir()
        with PIL.Image.open(Path(skimage.__file__).parent / "data" / image) as photograph:
            photograph.convert("RGB").crop((0, 0, side, side)).save(folder / name / "photo.png")
    with PIL.Image.open(folder / "Set5" / "photo.png") as photograph:
        photograph.resize((48, 40)).save(folder / "photo.png")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.syspath_prepend(folder)
        patch.setenv("TORCH_HOME", str(folder / "no-metrics"))
        yield folder


def run(command: str, more: str = "") -> None:
    """Run a command of autoq in this process, a search without Ray's workers."""
    words = [*shlex.split(command)[1:], *shlex.split(more)]
    with pytest.MonkeyPatch.context() as patch, no_ray():
        patch.setattr(sys, "argv", ["autoq", *words])
        app(words, prog_name="autoq", standalone_mode=False)


def installed(desk: Path, command: str, until: str | None = None) -> None:
    """Run a command in a shell. until: what a server prints when it is up; then it is interrupted."""
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    environment = {**os.environ, "PATH": path, "PYTHONPATH": str(ROOT)}
    with subprocess.Popen(
        ["bash", "-c", f"exec {command}"], cwd=desk, env=environment, stderr=subprocess.PIPE, text=True, start_new_session=True
    ) as process:
        if until:
            assert process.stderr is not None
            assert until in process.stderr.readline()
            os.killpg(process.pid, signal.SIGINT)
        _, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors


def test_commands_of_autoq(desk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = all_commands("autoq ")
    assert {*SMALLER, *CREATED} <= set(wanted)
    created = []

    def create(study: Study, *rest: Any, **options: Any) -> None:
        created.append(study.name)
        raise Created

    for command in wanted:
        if command in CREATED:
            with monkeypatch.context() as patch:
                patch.setattr("autoq.tuning.runner.search", create)
                with pytest.raises(Created):
                    run(command, CREATED[command])
        elif command.startswith("autoq dashboard"):
            installed(desk, command, "http://127.0.0.1:8080/dashboard")
        elif ">" in command:
            installed(desk, command)
        else:
            if "--compare" in command:
                for name in ("layerwise", "stagewise"):
                    shutil.copytree(desk / "studies" / "mine", desk / "studies" / name, dirs_exist_ok=True)
            run(command, SMALLER.get(command, ""))
    assert len(created) == len(CREATED)
    assert len((desk / "studies" / "mine" / "trials.jsonl").read_text().splitlines()) == 5 + 3
    assert (desk / "reports" / "mine.html").is_file()
    assert yaml.safe_load((desk / "my_space.yaml").read_text())["model"] == "srgan"
    with PIL.Image.open(desk / "large.png") as large, PIL.Image.open(desk / "tiled.png") as tiled:
        assert large.size == tiled.size == (4 * 48, 4 * 40)
    exported, unpacked = (desk / name / "model.onnx" for name in ("compromise", "runtime"))
    assert exported.read_bytes() == unpacked.read_bytes()


def test_python_examples(desk: Path) -> None:
    (code,) = blocks(README, "python")
    names: dict[str, Any] = {}
    with no_ray():
        exec(code, names)
    assert names["page"].is_file()
    assert names["study"].front["fidelity"].max() == 100
    (more,) = blocks(ROOT / "docs" / "guide" / "quantize.md", "python")
    exec(more, names)
    assert (desk / "net-compromise" / "model.onnx").is_file()


def test_the_readme_s_figures_are_the_study_s() -> None:
    study = autoq.open_study(str(ROOT / "studies" / "srgan-x4"))
    values = {point_name(record): record.values for record in study.records() if record.state == "complete"}
    (mixed,) = {name for name in values if not name.startswith("trial")} - {"float", "8/8/8", "6/6/8", "4/4/8"}
    rows = [
        [cell.strip() for cell in line.split("|")[1:-1]] for line in README.read_text().splitlines() if re.match("[|] [^-]", line)
    ]
    assert len(rows) == 1 + 9
    for title, *figures in rows[1:]:
        name = next(
            name
            for name in (*values, "16 bits in the first and last stages")
            if name in re.split(r":\*\* |: | everywhere| \(|,", title)
        )
        point = values[mixed if name == "16 bits in the first and last stages" else name]
        assert (title.startswith("**front:**")) is (name in set(study.front["point"]) - {"float"})
        expected = [point["size"] / 1024, point["latency"], point["fidelity"]]
        ratios = [values["float"][cost] / point[cost] for cost in ("size", "latency")]
        printed = [re.findall(r"[0-9.]+", figure) for figure in figures]
        for found, value in zip([cell[0] for cell in printed if cell], expected, strict=False):
            assert found == f"{value:.{len(found.partition('.')[2])}f}", title
        assert name == "float" or [cell[1] for cell in printed[:2]] == [f"{ratio:.1f}" for ratio in ratios]
    assert re.findall(r"higher is better\) is ([0-9.]+);", README.read_text()) == [f"{study.hypervolume:.3f}"]


def test_there_are_no_other_commands() -> None:
    for page in PAGES:
        for command in commands(page):
            assert re.match("autoq |make |python benchmarks/|python -m pytest ", command), f"{page.name}: {command}"
        known = {README: 1, CONTRIBUTING: 4}.get(page, int(page.name == "quantize.md"))
        assert len(blocks(page, "python")) == known, page.name


def test_make_searches_by_the_documented_command() -> None:
    for command in all_commands("make "):
        done = subprocess.run(
            [*command.split(), "--dry-run", "--no-print-directory"], cwd=ROOT, capture_output=True, text=True, check=True
        )
        if command == "make search":
            assert done.stdout.splitlines()[-1] == ".venv/bin/autoq search --model srgan --budget 50"
            assert "autoq search --model srgan --budget 50" in all_commands("autoq ")


def test_the_picture(desk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Drawn for a small study and one point, which is exported and upscales the photograph."""
    monkeypatch.setattr(sys, "argv", ["picture.py", "mine", "--points", "compromise", "--output", "compared.png"])
    runpy.run_path(str(ROOT / "benchmarks" / "picture.py"))["main"]()
    with PIL.Image.open(desk / "compared.png") as picture:
        assert 0.7 < picture.width / picture.height < 1.1
    (command,) = re.findall("`(python benchmarks/[^`]+)`", README.read_text())
    assert command == "python benchmarks/picture.py srgan-x4"
    with PIL.Image.open(ROOT / "docs" / "images" / "compared.png") as committed:
        assert committed.width > 3 * committed.height


@pytest.mark.parametrize("command", all_commands("python benchmarks/"))
def test_arguments_of_benchmarks(command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    _, script, *arguments = shlex.split(command)
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    monkeypatch.setattr(sys, "argv", [script, *arguments])
    main = runpy.run_path(str(ROOT / script))["main"]
    parse = argparse.ArgumentParser.parse_args

    def parsed(parser: argparse.ArgumentParser) -> None:
        parse(parser)
        raise Parsed

    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", parsed)
    with pytest.raises(Parsed):
        main()


def test_documented_tests_exist() -> None:
    wanted = all_commands("python -m pytest ")
    wanted += re.findall("`(python -m pytest [^`]+)`", CONTRIBUTING.read_text())
    assert len(wanted) == 5
    every = [shlex.split(command.replace("NAME", "xlsr or bits").replace("three_sigma", "mse"))[3:] for command in wanted]
    code = f"import pytest, sys; sys.exit(max(pytest.main([*each, '--collect-only', '-qq']) for each in {every!r}))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def test_the_quantizer_that_is_added(monkeypatch: pytest.MonkeyPatch) -> None:
    implementation, line, equation, _ = blocks(CONTRIBUTING, "python")
    module = types.ModuleType("autoq.quantizers.power_of_two")
    exec(implementation, module.__dict__)
    monkeypatch.setitem(sys.modules, module.__name__, module)
    for name, info in eval(f"{{{line}}}", {"QuantizerInfo": QuantizerInfo}).items():
        monkeypatch.setitem(QUANTIZERS, name, info)
    names: dict[str, Any] = {}
    exec(equation, vars(equations), names)
    monkeypatch.setitem(equations.EQUATIONS, "power_of_two", names["power_of_two"])
    for bits, granularity, signed in ((4, "channel", True), (8, "tensor", False)):
        quant = TensorQuant(bits, "power_of_two", "minmax", granularity, signed)
        contracts.test_contract(quant)
        contracts.test_forward_is_the_paper_s_equation(quant, True)
    contracts.test_the_source_is_cited("power_of_two")
    contracts.test_state_dict_round_trip_and_gradients("power_of_two")


def test_the_range_estimator_that_is_added() -> None:
    names = {"Statistics": Statistics, "Tensor": torch.Tensor, "torch": torch}
    exec(blocks(CONTRIBUTING, "python")[3], names)
    values = torch.zeros(1, 100)
    values[0, 0], values[0, -1] = -10, 10
    low, high = names["three_sigma"](Statistics.of_tensor(values, per_channel=True), 8, True)
    np.testing.assert_allclose([low.item(), high.item()], [-3 * 2**0.5, 3 * 2**0.5], rtol=1e-6)


def test_search_spaces_of_the_reference() -> None:
    plain, layers = (yaml.safe_load(text) for text in blocks(ROOT / "docs" / "reference" / "search-spaces.md", "yaml"))
    parsed = parse_space(plain, space_facts("srgan", "openvino-cpu"), "search-spaces.md")
    assert parsed.choices["body"]["weight"].clipping == ("minmax", "mse")
    assert parsed.choices["feature_extraction"]["weight"].bits == (8,)
    assert set(layers) == {"layers", "roles"}


def names_in_table(page: str, heading: str) -> set[str]:
    """Names in the first column of the first table below a heading."""
    text = (ROOT / "docs" / "reference" / f"{page}.md").read_text().partition(f"# {heading}\n")[2]
    table = re.search(r"(?:^\|.*\n)+", text, flags=re.MULTILINE)
    assert table, f"{page}: {heading}"
    return {name for line in table[0].splitlines() for name in re.findall("`([^`]+)`", line.split("|")[1])}


def test_tables_of_the_reference_are_complete() -> None:
    assert names_in_table("quantizers", "Quantizers and range estimators") == set(QUANTIZERS)
    assert names_in_table("quantizers", "Range estimators") == set(CLIPPING_NAMES)
    assert names_in_table("targets", "Targets") == set(TARGETS)
    assert names_in_table("networks", "Networks") == set(MODELS)
    assert names_in_table("search-spaces", "Bundled spaces") == set(named_spaces())


def test_the_table_of_quantizers_says_what_they_are() -> None:
    lines = (ROOT / "docs" / "reference" / "quantizers.md").read_text().splitlines()
    rows = {cells[1].strip(" `"): cells for line in lines if len(cells := line.split("|")) == 8}
    assert rows.keys() >= QUANTIZERS.keys(), "a quantizer has no row"
    for name, info in QUANTIZERS.items():
        first, last = info.bits[0], info.bits[-1]
        assert rows[name][-2].strip() == (f"{first}-{last}" if first < last else f"{first}")
        assert info.source.split(",")[0] in rows[name][2]
        assert ("nothing" not in rows[name][4]) is info.learned, f"{name}: 'nothing' is learned, or what"
        assert ("everything" in rows[name][5]) is (len(info.serves) == 3), f"{name}: serves 'everything', or what"
        assert "everything" in rows[name][5] or ("weights" in rows[name][5]) is ("weight" in info.serves), name


def slugs(page: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub and mkdocs name them."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    for link in re.findall(r"\]\(([^)]+)\)", page.read_text()):
        file, _, anchor = link.partition("#")
        if not link.startswith("http") and file != "cli.md" and not file.endswith("/cli.md"):
            there = page.parent / file if file else page
            assert there.exists(), link
            assert not anchor or anchor in slugs(there), link


def test_files_that_the_docs_name_exist() -> None:
    for page in PAGES:
        for name in re.findall(r"`((?:autoq|benchmarks|docs|tests|search_spaces)/[a-z0-9_/.-]+)`", page.read_text()):
            if not name.endswith("power_of_two.py"):
                assert (ROOT / name).exists(), f"{page.name}: {name}"


def test_the_command_line_reference_has_every_command() -> None:
    hooks = runpy.run_path(str(ROOT / "docs" / "hooks.py"))
    page = hooks["reference"]()
    names = [each.callback.__name__.replace("_", "-") for each in app.registered_commands if each.callback]
    assert set(re.findall("^## autoq (.+)$", page, flags=re.MULTILINE)) == set(names)
    assert "| `--frame WxH` | Input size that latency is measured at. Default: 96x96. |" in page
    assert "| `--stopping` / `--no-stopping` | Stop dominated trials early. Default: on. |" in page
    assert "| `STUDY` | Name of a folder in studies/, or an absolute path. Required. |" in page


def test_the_python_reference_has_every_public_name() -> None:
    page = (ROOT / "docs" / "reference" / "python.md").read_text()
    assert set(re.findall(r"^::: autoq\.(\w+)$", page, flags=re.MULTILINE)) == set(autoq.__all__) - {"__version__"}
