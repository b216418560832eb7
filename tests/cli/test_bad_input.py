"""Whatever is typed wrongly ends in one line that says what to type, with exit code 2, and leaves nothing behind."""

from __future__ import annotations

import copy
import io
import json
import random
import shutil
import sqlite3
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import PIL.Image
import pytest
import torch
import yaml
from safetensors.torch import save_file
from torch import Tensor

from autoq.config.space_file import bundled_space, load_space, parse_space
from autoq.config.spec import StudySpec, TrialResult, TrialSpec
from autoq.config.structure import Structure
from autoq.errors import SpaceError
from autoq.networks import MODELS
from autoq.networks.srresnet import SRResNet
from autoq.quantizers import QUANTIZERS
from autoq.quantizers.range_estimators import CLIPPINGS
from autoq.study.study import Study, space_facts
from autoq.system.processor import available_cores
from autoq.targets import TARGETS
from tests.cli.test_cli import run

SUFFIXES = ".bmp, .jpeg, .jpg, .png, .tif, .tiff or .webp"
ASK_WEIGHTS = "give a .safetensors or .pth file of tensors"
MODEL_NAMES = (
    f"type one of {', '.join(sorted(MODELS))}; for your own network, give package.module:factory or the path of a .pth file"
)
FACTS = space_facts("srresnet", "openvino-cpu")
MODEL = ["search", "--model", "srresnet"]
RESUME = ["search", "--resume", "--study"]

Refused = Callable[[list[str], str], None]


@pytest.fixture
def refused(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Refused:
    """Check in an own folder that a command line is refused with one line, and that no file comes or goes."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("autoq.system.device.has_gpu", lambda: False)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "no-metrics"))

    def check(arguments: list[str], message: str) -> None:
        before = sorted(tmp_path.rglob("*"))
        assert run(capsys, monkeypatch, *arguments) == (2, "", f"autoq: {message}\n")
        assert sorted(tmp_path.rglob("*")) == before

    return check


def case(name: str, *values: Any) -> Any:
    return pytest.param(*values, id=name)


def whole(option: str, text: str, span: str, example: int) -> Any:
    """A case: --option text is no whole number of its span."""
    message = f"--{option} '{text}': expected a whole number from {span}, for example --{option} {example}"
    arguments = ["dashboard", "s"] if option == "port" else MODEL
    return case(f"{option}-{text[:8] or 'empty'}", [*arguments, f"--{option}", text], message)


def number(option: str, text: str, unit: str, example: float, least: float = 0.001) -> Any:
    """A case: --option text is no number that can be waited for, held or weighed with."""
    message = f"--{option} '{text}': expected {unit}, from {least} to 1000000, for example --{option} {example}"
    return case(f"{option}-{text or 'empty'}", [*MODEL, f"--{option}", text], message)


# ------------------------------------------------------------ the command line

PARSING = [
    case("command-near", ["serch"], "no such command 'serch'. Did you mean 'search'? Type `autoq --help` for the commands"),
    case("command-far", ["zzz"], "no such command 'zzz'; type `autoq --help` for the commands"),
    case(
        "option-near",
        [*MODEL, "--budgt", "3"],
        "no such option '--budgt' (did you mean '--budget'?); type `autoq search --help` for the options",
    ),
    case("option-far", [*MODEL, "--zzz"], "no such option '--zzz'; type `autoq search --help` for the options"),
    case(
        "option-of-an-argument",
        ["space", "--model", "srgan"],
        "autoq space has no option '--model'; give the value without it: `autoq space MODEL`",
    ),
    case("option-short", [*MODEL, "-x"], "no such option: -x; type `autoq search --help` for the options"),
    case(
        "option-of-a-flag",
        [*MODEL, "--json=1"],
        "option '--json' does not take a value; type `autoq search --help` for the options",
    ),
    case(
        "value-missing", [*MODEL, "--budget"], "option '--budget' requires an argument; type `autoq search --help` for the options"
    ),
    case("argument-missing", ["report"], "report: STUDY is missing; type `autoq report STUDY`"),
    case(
        "argument-extra", [*MODEL, "extra"], "got unexpected extra argument(s) (extra); type `autoq search --help` for the options"
    ),
    case(
        "newline",
        [*MODEL, "--budget", "5\n6"],
        "--budget '5 6': expected a whole number from 1 to 1000000, for example --budget 50",
    ),
    case(
        "control-characters",
        [*MODEL, "--sampler", "tpe\x1b[31m\x07"],
        "--sampler 'tpe\\x1b[31m\\x07': expected one of auto, tpe, gp, nsga2, nsga3, random",
    ),
    case(
        "newline-in-an-option",
        [*MODEL, "--bud\nget"],
        "no such option '--bud get' (did you mean '--budget'?); type `autoq search --help` for the options",
    ),
    *(whole("budget", text, "1 to 1000000", 50) for text in ("x", "0", "-1", "1.5", "", "1000001", "9" * 5000)),
    *(whole("steps", text, "0 to 1000000", 24) for text in ("x", "-1", "1.5", "9" * 30)),
    *(whole("workers", text, "1 to 1024", 2) for text in ("0", "-2", "9999")),
    *(whole("threads", text, "1 to 1024", 2) for text in ("0", "two", "9999")),
    *(whole("seed", text, "0 to 4294967295", 0) for text in ("-1", "0x10", "4294967296")),
    *(whole("scale", text, "1 to 16", 4) for text in ("0", "4.0", "99")),
    *(whole("port", text, "0 to 65535", 8080) for text in ("-1", "http", "65536")),
    *(number("memory", text, "GiB", 4) for text in ("4GB", "0", "-1", "nan", "inf", "1e300")),
    *(number("timeout", text, "seconds", 600) for text in ("", "0", "-1", "1e-9", "1e400")),
    *(number("sqcl", text, "a weight", 0.3, 0) for text in ("", "-0.3", "nan", "inf")),
]

OPTIONS = [
    case("no-model", ["search"], "no model given; type `--model NAME` with a name from `autoq models`; for your own network, give package.module:factory or the path of a .pth file"),
    case("model-near", ["search", "--model", "sragn"], f"unknown model 'sragn' (did you mean 'srgan'?); {MODEL_NAMES}"),
    case("model-far", ["space", "bicubic"], f"unknown model 'bicubic'; {MODEL_NAMES}"),
    case("model-empty", ["search", "--model", ""], f"unknown model ''; {MODEL_NAMES}"),
    case("scale-of-no-network", [*MODEL, "--scale", "3"], "--scale '3': model 'srresnet' supports 2 and 4, for example --scale 4"),
    case("scale-without-weights", [*MODEL, "--scale", "2"], "no weights are bundled for srresnet x2, only for x4; type --weights FILE"),
    case("warm-start", [*MODEL, "--warm-start", "mine"], "study 'studies/mine': there is no such study, and none in studies/ here; go to the folder where you searched, or type `autoq search --model srgan` to start one"),
    case("initial-trials", [*MODEL, "--budget", "4", "--initial-trials", "5"], "--initial-trials '5': expected at most the --budget of 4; type --initial-trials 4, or raise --budget"),
    case("by", [*MODEL, "--by", "row"], "--by 'row': expected one of stage, block, layer"),
    case("by-memory", [*MODEL, "--by", "layer", "--objectives", "size,peak_memory"], "--by layer: peak_memory is computed from the network's own stages; omit one of them"),
    case("replications", [*MODEL, "--replications", "-1"], "--replications '-1': expected a whole number from 0 to 1000000, for example --replications 3"),
    case("constraint", [*MODEL, "--constraint", "small"], "--constraint 'small': expected NAME<=VALUE or NAME>=VALUE, where NAME is an objective or a drop such as psnr_drop, for example --constraint 'size<=400KiB'"),
    case("constraint-unit", [*MODEL, "--constraint", "latency<=10KiB"], "--constraint 'latency<=10KiB': latency is measured in ms; type --constraint 'latency<=10ms'"),
    case("latency-of-bits", [*MODEL, "--target", "bits", "--objectives", "size,latency"],
         "objective 'latency': bits offers no latency; type --objectives size,bops,psnr"),
    case("bound-of-bits", [*MODEL, "--target", "bits", "--constraint", "latency<=5ms"],
         "objective 'latency': bits offers no latency; type --objectives size,bops,psnr"),
    case("target", [*MODEL, "--target", "openvino"], f"unknown target 'openvino' (did you mean 'openvino-cpu'?); type one of {', '.join(sorted(TARGETS))}"),
    case(
        "objective",
        [*MODEL, "--objectives", "size,psn"],
        "--objectives 'size,psn': unknown objective 'psn' (did you mean 'psnr'?); type one of bops, fidelity, latency, niqe, ops, peak_memory, pi, psnr, size, size_runtime, ssim",
    ),
    case(
        "objective-empty",
        [*MODEL, "--objectives", ""],
        "--objectives '': unknown objective ''; type one of bops, fidelity, latency, niqe, ops, peak_memory, pi, psnr, size, size_runtime, ssim",
    ),
    *(
        case(
            f"objectives-{given}",
            [*MODEL, "--objectives", given],
            f"--objectives '{given}': expected two or more different names, for example --objectives size,latency,psnr",
        )
        for given in ("size", "size,size")
    ),
    case("sampler", [*MODEL, "--sampler", "tp"], "--sampler 'tp': expected one of auto, tpe, gp, nsga2, nsga3, random (did you mean 'tpe'?)"),
    case("device", [*MODEL, "--device", "gpu"], "--device 'gpu': expected one of auto, cpu, cuda (did you mean 'cpu'?)"),
    case("no-gpu", [*MODEL, "--device", "cuda"], "--device 'cuda': torch sees no GPU here; type `--device cpu`, or `autoq doctor` to see why"),
    *(
        case(
            f"frame-{given[:9]}",
            [*MODEL, "--frame", given],
            f"--frame '{given}': expected WIDTHxHEIGHT, each from 16 to 8192 pixels, for example --frame 96x96",
        )
        for given in ("96", "8x96", "9000x96", "96*96", "9" * 5000 + "x96")
    ),
    *(
        case(
            f"study-{given or 'empty'}",
            [*MODEL, "--study", given],
            f"study '{given}': expected a name of up to 100 letters, digits, '.', '_' and '-', or an absolute path",
        )
        for given in ("../x", "a b", "", ".hidden")
    ),
    case("study-of-a-report", ["report", "../x"], "study '../x': expected a name of up to 100 letters, digits, '.', '_' and '-', or an absolute path"),
    *(
        case(
            f"storage-{given}",
            [*MODEL, "--storage", given],
            f"--storage '{given}': not a database URL; type --storage sqlite:////absolute/path.db or postgresql://user@host/database",
        )
        for given in ("shared.db", "postgresql://user@host:port/database")
    ),
    case(
        "storage-password",
        [*MODEL, "--storage", "postgresql://user:secret@host/d"],
        "--storage 'postgresql://user:***@host/d': contains a password, which the study would store; leave it out and set PGPASSWORD",
    ),
    case(
        "storage-password-in-query",
        [*MODEL, "--storage", "postgresql://user@host/d?password=secret"],
        "--storage 'postgresql://user@host/d': contains a password, which the study would store; leave it out and set PGPASSWORD",
    ),
    case("sensitivity-of-what", ["sensitivity"], "no model given; type `--model NAME` with a name from `autoq models`, or `--study NAME` for a study's network"),
    case("resume-what", ["search", "--resume"], "--resume: no study given; type `--study NAME`, where NAME is a folder in studies/"),
    case(
        "no-studies",
        [*RESUME, "mine"],
        "study 'studies/mine': there is no such study, and none in studies/ here; go to the folder where you searched, or type `autoq search --model srgan` to start one",
    ),
]  # fmt: skip


@pytest.mark.parametrize(("arguments", "message"), [*PARSING, *OPTIONS])
def test_command_line(refused: Refused, arguments: list[str], message: str) -> None:
    refused(arguments, message)


# ------------------------------------------------------------ spaces

ROLES = "roles: {weight: {bits: 8}, activation: {bits: 8}, skip: {bits: 8}}\n"
BITS = "expected whole numbers, 1 to 16, or 32 for float"
NOT_YAML = "type `autoq space srresnet` for a file to start from"
FIELDS = "bits, quantizer, clipping, granularity, signed"


def body(fields: str) -> str:
    """A whole space whose body's weight has these fields."""
    return f"{ROLES}stages: {{body: {{weight: {fields}}}}}"


SPACES = [
    case("empty", "", "file: found nothing, expected a mapping with model, layers, roles, stages, output"),
    case("list", "[1, 2]", "file: found '[1, 2]', expected a mapping with model, layers, roles, stages, output"),
    case("text", "srresnet", "file: found 'srresnet', expected a mapping with model, layers, roles, stages, output"),
    case("broken", "roles: [", f"not YAML (line 1: expected the node content, but found '<stream end>'); {NOT_YAML}"),
    case("binary", b"\x89PNG\r\n", f"not YAML ('utf-8' codec can't decode byte 0x89 in position 0: invalid start byte); {NOT_YAML}"),
    case("zero-byte", "\0", f"not YAML (unacceptable character #x0000: special characters are not allowed); {NOT_YAML}"),
    case("key-twice", "roles: {weight: {bits: 8, bits: 4}}", f"not YAML (line 1: key 'bits' is given twice); {NOT_YAML}"),
    case("section-twice", ROLES + ROLES, f"not YAML (line 2: key 'roles' is given twice); {NOT_YAML}"),
    case("no-bool", "roles: !!bool maybe", f"not YAML ('maybe'); {NOT_YAML}"),
    case("no-date", "roles: 2026-13-45", f"not YAML (month must be in 1..12); {NOT_YAML}"),
    case("key", ROLES + "stage: {}", "stage: unknown key 'stage' (did you mean 'stages'?); known: model, layers, roles, stages, output"),
    case("key-null", ROLES + "null: 1", "None: unknown key 'None'; known: model, layers, roles, stages, output"),
    case(
        "stage",
        ROLES + "stages: {bdoy: {}}",
        "stages.bdoy: srresnet has no stage 'bdoy' (did you mean 'body'?); known: feature_extraction, body, upsampling, reconstruction",
    ),
    case(
        "role-of-a-stage",
        ROLES + "stages: {body: {wieght: {}}}",
        "stages.body.wieght: stage 'body' of srresnet has no role 'wieght' (did you mean 'weight'?); known: weight, activation, skip",
    ),
    case("role", "roles: {wieght: {}}", "roles.wieght: unknown key 'wieght' (did you mean 'weight'?); known: weight, activation, skip"),
    case("field", "roles: {skip: {bit: 8}}", f"roles.skip.bit: unknown key 'bit' (did you mean 'bits'?); known: {FIELDS}"),
    case("roles-zero", "roles: 0", "roles: found '0', expected a mapping with weight, activation, skip"),
    case("stages-false", ROLES + "stages: false",
         "stages: found 'False', expected a mapping with feature_extraction, body, upsampling, reconstruction"),
    case("stage-list", ROLES + "stages: {body: [8]}", "stages.body: found '[8]', expected a mapping with weight, activation, skip"),
    case("role-number", body("8"), f"stages.body.weight: found '8', expected a mapping with {FIELDS}"),
    case("roles-role-number", "roles: {weight: 8}", f"roles.weight: found '8', expected a mapping with {FIELDS}"),
    case("bits-missing", "roles: {weight: {bits: 8}}", "body.activation: no bits; give bits: [4, 8] or bits: 8"),
    case("bits-word", body("{bits: eight}"), f"body.weight.bits: 'eight': {BITS}"),
    case("bits-float", body("{bits: [4, 8.0]}"), f"body.weight.bits: '8.0': {BITS}"),
    case("bits-true", body("{bits: true}"), f"body.weight.bits: 'True': {BITS}"),
    case("bits-nothing", body("{bits: }"), f"body.weight.bits: 'None': {BITS}"),
    case("bits-nested", body("{bits: [[4]]}"), f"body.weight.bits: '[4]': {BITS}"),
    case("bits-deep", body("{bits: " + "[" * 40 + "]" * 40 + "}"), f"body.weight.bits: '[[[[[[[...]]]]]]]': {BITS}"),
    case("bits-0", body("{bits: 0}"), "body.weight.bits: bits 0: expected 1 to 16, or 32 for float"),
    case("bits-17", body("{bits: 17}"), "body.weight.bits: bits 17: expected 1 to 16, or 32 for float"),
    case("bits-of-no-quantizer", body("{bits: 1}"), "body.weight.bits: 1: quantizer 'minmax' supports 2 to 16 bits"),
    case("bits-none", body("{bits: []}"), "body.weight.bits: empty list; give at least one value"),
    case("bits-twice", body("{bits: [4, 4]}"), "body.weight.bits: '4' is listed twice; list it once"),
    case("quantizer", body("{quantizer: lqs}"),
         f"body.weight.quantizer: unknown quantizer 'lqs' (did you mean 'lsq'?); type one of {', '.join(sorted(QUANTIZERS))}"),
    case("quantizer-mapping", body("{quantizer: {a: 1}}"),
         f"body.weight.quantizer: unknown quantizer '{{'a': 1}}'; type one of {', '.join(sorted(QUANTIZERS))}"),
    case("quantizer-none", body("{quantizer: []}"), "body.weight.quantizer: empty list; give at least one value"),
    case("quantizer-twice", body("{quantizer: [lsq, lsq]}"), "body.weight.quantizer: 'lsq' is listed twice; list it once"),
    case("clipping", body("{clipping: msee}"),
         f"body.weight.clipping: unknown clipping 'msee' (did you mean 'mse'?); type one of {', '.join(sorted(CLIPPINGS))}"),
    case("granularity", body("{granularity: layer}"),
         "body.weight.granularity: openvino-cpu executes only channel or tensor, found 'layer'; type granularity: channel"),
    case("signed-1", body("{signed: 1}"), "body.weight.signed: openvino-cpu executes only true, found '1'; type signed: true"),
    case("granularity-several", body("{granularity: [tensor, channel]}"),
         "body.weight.granularity: channel and tensor are listed, expected only one; type granularity: channel"),
    case("model", ROLES + "model: edsr", "model: this space is for 'edsr', but the network is 'srresnet'; give another --space"),
    case("output", ROLES + "output: int8", "output: 'int8': openvino-cpu outputs float; type output: float"),
]  # fmt: skip


@pytest.mark.parametrize(("text", "message"), SPACES)
def test_space(refused: Refused, tmp_path: Path, text: str | bytes, message: str) -> None:
    (tmp_path / "my.yaml").write_bytes(text if isinstance(text, bytes) else text.encode())
    refused([*MODEL, "--space", "my.yaml"], f"my.yaml: {message}")


@pytest.mark.parametrize(
    ("name", "reason"), [case("missing", "none.yaml", "No such file or directory"), case("folder", "sub", "Is a directory")]
)
def test_space_that_is_no_file(refused: Refused, tmp_path: Path, name: str, reason: str) -> None:
    (tmp_path / "sub").mkdir()
    refused(
        [*MODEL, "--space", name],
        f"cannot read '{name}': {reason}; type --space with the path of a YAML file or a name from `autoq space --list`",
    )


def test_a_yaml_file_nested_without_end(tmp_path: Path) -> None:
    (tmp_path / "deep.yaml").write_text("roles: " + "[" * 5000)
    with pytest.raises(SpaceError, match=r"deep\.yaml: not YAML \(maximum recursion depth exceeded"):
        load_space(tmp_path / "deep.yaml", FACTS)


VALID: list[Any] = [8, 32, [4, 8], "minmax", ["lsq", "minmax"], True]
NODES: list[Any] = [
    *VALID, None, False, 0, -1, 3.5, float("nan"), 10**30, "x", "", b"x", [], [[4]], {}, {"a": 1}, {1: 2}, [None], [8, "x"],
]  # fmt: skip


def places(node: Any) -> list[tuple[Any, Any]]:
    """Every (container, key) below a node."""
    keys = list(node) if isinstance(node, dict) else list(range(len(node))) if isinstance(node, list) else []
    return [(node, key) for key in keys] + [place for key in keys for place in places(node[key])]


def test_a_space_mutated_at_random_is_parsed_or_refused_in_one_line() -> None:
    valid = load_space(bundled_space("srresnet"), FACTS).to_dict() | {"roles": {"weight": {"bits": [4, 8]}, "skip": None}}
    generator = random.Random(0)
    refusals = []
    for _ in range(500):
        mutated = copy.deepcopy(valid)
        for _ in range(generator.randint(1, 2)):
            container, key = generator.choice(places(mutated))
            if isinstance(container, dict) and generator.random() < 0.2:
                container[generator.choice(["x", 1, None, True, (1, 2)])] = container.pop(key)
            else:
                container[key] = copy.deepcopy(generator.choice(NODES))
        try:
            parse_space(mutated, FACTS, "my.yaml")
        except SpaceError as error:
            refusals.append(str(error))
    assert 300 < len(refusals) < 500, "both happen"
    assert all(message.startswith("my.yaml: ") and "\n" not in message for message in refusals)


# ------------------------------------------------------------ weights


def saved(**changes: Any) -> Callable[[Path, dict[str, Tensor]], None]:
    """The tiny network's checkpoint with other tensors under some keys (`_` for `.`), or without them (None)."""

    def make(path: Path, state: dict[str, Tensor]) -> None:
        changed = {**state, **{key.replace("_", "."): value for key, value in changes.items()}}
        torch.save({key: value for key, value in changed.items() if value is not None}, path)

    return make


def holding(content: Any) -> Callable[[Path, dict[str, Tensor]], None]:
    """A file of these bytes, or of what torch.save makes of something."""

    def make(path: Path, state: dict[str, Tensor]) -> None:
        if isinstance(content, bytes):
            path.write_bytes(content)
        else:
            torch.save(content, path)

    return make


def truncated(path: Path, state: dict[str, Tensor]) -> None:
    save_file(state, path)
    path.write_bytes(path.read_bytes()[:-100])


TINY = "SRResNet(scale=2, blocks=1, features=8)"
FIT = "give matching --weights, or another --model"
FLOATS = "expected finite float values; give another checkpoint"
HEAD = "head.0.weight, head.0.bias, head.1.weight"
WEIGHTS = [
    case("missing", "w.pth", None, f": no such file; {ASK_WEIGHTS}"),
    case("folder", "w.pth", lambda path, state: path.mkdir(), f": is a folder; {ASK_WEIGHTS}"),
    case("truncated", "w.safetensors", truncated,
         ": cannot read the checkpoint (SafetensorError: Error while deserializing header: incomplete metadata, file not fully covered);"
         f" {ASK_WEIGHTS}"),
    case("text", "w.pth", holding(b"<html>not found</html>"), f": not a file that torch.save or safetensors wrote; {ASK_WEIGHTS}"),
    case("empty", "w.pth", holding(b""), f": not a file that torch.save or safetensors wrote; {ASK_WEIGHTS}"),
    case("broken-zip", "w.pth", holding(b"PK\x03\x04" + bytes(300)),
         ": cannot read the checkpoint (RuntimeError: PytorchStreamReader failed reading zip archive: failed finding central directory);"
         f" {ASK_WEIGHTS}"),
    case("list", "w.pth", holding([1, 2]), f": found list, expected a state dict of tensors; {ASK_WEIGHTS}"),
    case("numbers", "w.pth", holding({"state_dict": {"epoch": 3}}),
         f": found int under 'epoch', expected a state dict of tensors; {ASK_WEIGHTS}"),
    case("numbered-keys", "w.pth", holding({1: torch.zeros(1)}),
         f": found Tensor under '1', expected a state dict of tensors; {ASK_WEIGHTS}"),
    case("foreign", "w.pth", holding({f"layer.{index}": torch.zeros(1) for index in range(30)}),
         f" do not match SRResNet(scale=2): 222 missing: {HEAD} and 219 more;"
         f" 30 unexpected: layer.0, layer.1, layer.2 and 27 more; {FIT}"),
    case("no-tensors", "w.pth", holding({}), f" do not match SRResNet(scale=2): 222 missing: {HEAD} and 219 more; {FIT}"),
    case("key-missing", "w.pth", saved(tail_bias=None), f" do not match {TINY}: 1 missing: tail.bias; {FIT}"),
    case("misshapen", "w.pth", saved(tail_bias=torch.zeros(4)), f" do not match {TINY}: 1 with another shape: tail.bias; {FIT}"),
    case("scalar", "w.pth", holding({"head.0.weight": torch.zeros(()), "tail.weight": torch.zeros(())}),
         " do not match SRResNet(scale=2): 220 missing: head.0.bias, head.1.weight, body.0.conv1.weight and 217 more;"
         f" 2 with another shape: head.0.weight, tail.weight; {FIT}"),
    case("a-million-blocks", "w.pth", saved(**{"body_1000000_x": torch.zeros(1)}),
         " do not match SRResNet(scale=2, blocks=2, features=8): 13 missing: body.1.conv1.weight, body.1.conv1.bias,"
         f" body.1.bn1.weight and 10 more; 1 unexpected: body.1000000.x; {FIT}"),
    case("nan", "w.pth", saved(tail_bias=torch.tensor([0, float("nan"), 0])), f": tensor 'tail.bias' contains NaN or infinity, {FLOATS}"),
    case("infinity", "w.pth", saved(tail_bias=torch.tensor([0, 0, float("inf")])), f": tensor 'tail.bias' contains NaN or infinity, {FLOATS}"),
    case("whole-numbers", "w.pth", saved(tail_bias=torch.zeros(3, dtype=torch.int8)),
         f": tensor 'tail.bias' contains torch.int8 (torch.strided), {FLOATS}"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "make", "message"), WEIGHTS)
def test_weights(refused: Refused, tmp_path: Path, tiny_model: SRResNet, name: str, make: Any, message: str) -> None:
    if make is not None:
        make(tmp_path / name, tiny_model.state_dict())
    refused([*MODEL, "--scale", "2", "--weights", name], f"weights '{tmp_path / name}'{message}")


def test_weights_of_another_scale(refused: Refused, tiny_weights: Path) -> None:
    message = f"weights '{tiny_weights}': a x2 network, but --scale is 4; type --scale 2"
    refused(["search", "--model", "srgan", "--weights", str(tiny_weights)], message)


def test_a_pickled_module_is_refused_and_not_run(refused: Refused, shared: Path) -> None:
    path = shared / "weights" / "vdsr_pickled_module_twtygqyy.pth"
    refused(
        [*MODEL, "--weights", str(path)],
        f"weights '{path.resolve()}': a pickled Python object, which can run arbitrary code when loaded, expected a state dict;"
        " if you trust it, load it yourself, type `torch.save(model.state_dict(), FILE)` and give FILE",
    )


def test_a_path_too_long(refused: Refused, tmp_path: Path) -> None:
    path = tmp_path / ("x" * 300)
    refused([*MODEL, "--weights", path.name], f"cannot read or write '{path}': File name too long; give another path")


# ------------------------------------------------------------ images


def picture(mode: str = "RGB", side: int = 96, seed: int = 0) -> PIL.Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (side, side, 3), dtype=np.uint8)
    return PIL.Image.fromarray(pixels).convert(mode)


def png(image: PIL.Image.Image, kind: str = "PNG") -> bytes:
    file = io.BytesIO()
    image.save(file, kind)
    return file.getvalue()


DAMAGED = "not an image, or damaged; give an existing .bmp, .jpeg, .jpg, .png, .tif, .tiff or .webp file"
MODES = "RGB, grey or palette, with or without transparency"
ORIGINALS = "'{0}' needs high-resolution originals, and --images lr has none; replace '{0}' with fidelity, for example --objectives size,latency,fidelity"
PARTS = {"--data": "training", "--eval-data": "evaluation"}
IMAGES = [
    case("empty-folder", {}, f"{{part}} image folder '{{folder}}': no image files; give a folder of {SUFFIXES} files"),
    case("other-files", {"a.gif": b"GIF89a"}, f"{{part}} image folder '{{folder}}': no image files; give a folder of {SUFFIXES} files"),
    case("hidden", {"._a.png": png(picture())}, f"{{part}} image folder '{{folder}}': no image files; give a folder of {SUFFIXES} files"),
    case("no-image", {"a.png": b"text"}, f"cannot read image '{{folder}}/a.png': {DAMAGED}"),
    case("truncated", {"a.png": png(picture())[:2000]}, f"cannot read image '{{folder}}/a.png': {DAMAGED}"),
    case("CMYK", {"a.jpg": png(picture("CMYK"), "JPEG")}, f"image '{{folder}}/a.jpg': mode CMYK, expected {MODES}; convert the image"),
    case("too-small", {"a.png": png(picture(side=10))}, "image 'a': 10x10 pixels, expected at least 16x16 for x2; remove the image"),
]  # fmt: skip


@pytest.mark.parametrize("option", ["--data", "--eval-data"])
@pytest.mark.parametrize(("files", "message"), IMAGES)
def test_images(refused: Refused, tmp_path: Path, tiny_weights: Path, option: str, files: dict[str, bytes], message: str) -> None:
    folder = tmp_path / "images"
    folder.mkdir()
    for name, content in files.items():
        (folder / name).write_bytes(content)
    refused(
        [*MODEL, "--scale", "2", "--weights", str(tiny_weights), option, "images"],
        message.format(folder=folder, part=PARTS[option]),
    )


@pytest.mark.parametrize(("name", "reason"), [case("missing", "none", "no such folder"), case("file", "a.png", "not a folder")])
@pytest.mark.parametrize("option", ["--data", "--eval-data"])
def test_image_folder(refused: Refused, tmp_path: Path, tiny_weights: Path, option: str, name: str, reason: str) -> None:
    picture().save(tmp_path / "a.png")
    message = f"{PARTS[option]} image folder '{tmp_path / name}': {reason}; give a folder of {SUFFIXES} files"
    refused([*MODEL, "--scale", "2", "--weights", str(tiny_weights), option, name], message)


def test_training_images_without_a_patch(refused: Refused, tmp_path: Path, tiny_weights: Path) -> None:
    picture(side=40).save(tmp_path / "a.png")
    refused(
        [*MODEL, "--scale", "2", "--weights", str(tiny_weights), "--data", "."],
        "training images 'a': smaller than a patch of 24x24 low-resolution pixels; give larger images with --data",
    )


def test_an_evaluation_image_that_is_a_training_image(refused: Refused, tmp_path: Path, tiny_weights: Path) -> None:
    for folder, name in (("train", "one"), ("eval", "two")):
        (tmp_path / folder).mkdir()
        picture().save(tmp_path / folder / f"{name}.png")
    refused(
        [*MODEL, "--scale", "2", "--weights", str(tiny_weights), "--data", "train", "--eval-data", "eval"],
        "evaluation image 'two' is the same as training image 'one':"
        " trials must be evaluated on images that are not in the training set; give another --eval-data",
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        case("psnr", ["--objectives", "size,latency,psnr"], ORIGINALS.format("psnr")),
        case("bound", ["--constraint", "ssim_drop<=0.1"], ORIGINALS.format("ssim")),
        case("other", ["--images", "rl"], "--images 'rl': expected one of hr, lr"),
        case(
            "crops",
            ["--eval-crops", "0"],
            "--eval-crops '0': expected a whole number from 1 to 999999, or `all`, for example --eval-crops 32",
        ),
    ],
)
def test_low_resolution_images(refused: Refused, tiny_weights: Path, options: list[str], message: str) -> None:
    refused([*MODEL, "--scale", "2", "--weights", str(tiny_weights), "--images", "lr", *options], message)


# ------------------------------------------------------------ latency tables, storages

TABLE = {
    "model": "srresnet", "target": "openvino-cpu", "runtime": "r", "frame": [96, 96], "threads": available_cores(),
    "machine": "m", "entries": {},
}  # fmt: skip
AGAIN = "measure again without --latency-table"
NO_TABLE = "latency table 'table.json': not a latency table; give a study's latency.json"
TABLES = [
    case("empty", "", NO_TABLE),
    case("binary", b"\xff\xfe", NO_TABLE),
    case("other-keys", json.dumps({**TABLE, "more": 1}), NO_TABLE),
    case("no-time", json.dumps({**TABLE, "entries": {"a": {"structure": "s", "ms": 0, "samples": [0]}}}), NO_TABLE),
    case("model", json.dumps({**TABLE, "model": "srgan"}), f"latency table: measured for model srgan, this study has srresnet; {AGAIN}"),
    case("frame", json.dumps({**TABLE, "frame": [32, 24]}), f"latency table: measured for frame 32x24, this study has 96x96; {AGAIN}"),
    case("structures", json.dumps(TABLE), f"latency table: lacks 40 structures of this network and space; {AGAIN}"),
]  # fmt: skip


@pytest.mark.parametrize(("content", "message"), TABLES)
def test_latency_table(refused: Refused, tmp_path: Path, tiny_weights: Path, content: str | bytes, message: str) -> None:
    (tmp_path / "table.json").write_bytes(content if isinstance(content, bytes) else content.encode())
    refused([*MODEL, "--scale", "2", "--weights", str(tiny_weights), "--latency-table", "table.json"], message)


@pytest.mark.parametrize(
    ("name", "reason"), [case("missing", "none.json", "No such file or directory"), case("folder", "sub", "Is a directory")]
)
def test_latency_table_that_is_no_file(refused: Refused, tmp_path: Path, name: str, reason: str) -> None:
    (tmp_path / "sub").mkdir()
    refused([*MODEL, "--latency-table", name], f"latency table '{name}': {reason}; give a study's latency.json")


REACHABLE = "make it reachable, or give another --storage, for example sqlite:////absolute/path.db"
STORAGES = [
    case("dialect", "postgres://user@host/d", "unknown database 'postgres' (did you mean 'postgresql'?); type one of mysql, postgresql, sqlite"),
    case("driver", "postgresql+psycopg2://user@host/d", "needs the Python module 'psycopg2'; type pip install psycopg2-binary"),
    case("unreachable", "sqlite:////none/x.db", f"unable to open database file; {REACHABLE}"),
    case("no-database", "sqlite:///{tmp}/text.db", f"file is not a database; {REACHABLE}"),
    case("braces", "sqlite:///{{tmp}}/{{x}}.db", "Optuna replaces text in braces; type --storage sqlite:///%7Btmp%7D/%7Bx%7D.db"),
    case("relative", "sqlite:///x.db", "expected an absolute path; type --storage sqlite:///{tmp}/x.db"),
    case("taken", "sqlite:///{tmp}/shared.db", "already has a study 'mine'; give another --study or --storage"),
]  # fmt: skip


@pytest.mark.parametrize(("url", "message"), STORAGES)
def test_storage(
    refused: Refused, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, tiny_weights: Path, url: str, message: str
) -> None:
    monkeypatch.setitem(sys.modules, "psycopg2", None)
    (tmp_path / "text.db").write_text("no database" * 100)
    if "shared" in url:
        optuna.create_study(storage=f"sqlite:///{tmp_path}/shared.db", study_name="mine", directions=["minimize"] * 2)
    url = url.format(tmp=tmp_path)
    arguments = [*MODEL, "--scale", "2", "--weights", str(tiny_weights), "--study", "mine", "--storage", url]
    refused(arguments, f"--storage '{url}': {message.format(tmp=tmp_path)}")


# ------------------------------------------------------------ studies


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a study with three trials."""
    folder = tmp_path_factory.mktemp("study") / "mine"
    space = load_space(bundled_space("srgan"), space_facts("srgan", "openvino-cpu")).to_dict()
    spec = StudySpec(trial=TrialSpec(model="srgan"), space=space, objectives=("size", "latency", "psnr"), budget=30)
    made = Study.create(folder, spec, {"command": "autoq search", "python": "3", "machine": "m", "versions": {}})
    for number in range(3):
        asked = made.ask()
        values = {"size": 100.0 - number, "latency": 10.0, "psnr": 30.0, "fidelity": 40.0}
        made.tell(asked.number, asked.policy, TrialResult(state="complete", values=values), Structure())
    made.close()
    return folder


OTHER_SPACE = "roles: {weight: {bits: 8}, activation: {bits: 8}, skip: {bits: 8}}"


def changed(option: str, was: str, given: str, shown: str | None = None) -> Any:
    """A case: --resume with an option that the study was started without, or with another value of."""
    message = f"study 'mine' was started {was}, given {shown or given}; omit --{option} to continue it, or give another --study"
    return case(option, [*RESUME, "mine", f"--{option}", given], message)


def contradicted(option: str, was: str, given: str, shown: str | None = None) -> Any:
    """A case: a question about a study with an option that is not what the study has."""
    message = f"study 'mine' was started {was}, given {shown or given}; omit --{option} to ask about it, or give another --study"
    return case(f"sensitivity-{option}", ["sensitivity", "--study", "mine", f"--{option}", given], message)


KNOWN = "; type one of mine"
COMMANDS = [
    case("resume-near", [*RESUME, "mien"], f"study 'studies/mien': there is no such study (did you mean 'mine'?){KNOWN}"),
    case("resume-far", [*RESUME, "zzz"], f"study 'studies/zzz': there is no such study{KNOWN}"),
    case("report-near", ["report", "mein"], f"study 'studies/mein': there is no such study (did you mean 'mine'?){KNOWN}"),
    case("dashboard-near", ["dashboard", "mne"], f"study 'studies/mne': there is no such study (did you mean 'mine'?){KNOWN}"),
    changed("budget", "with --budget 30", "31"),
    changed("seed", "with --seed 0", "1"),
    changed("frame", "with --frame 96x96", "32x24"),
    changed("objectives", "with --objectives size,latency,psnr", "size,psnr"),
    changed("memory", "without --memory", "4", "4.0"),
    changed("sqcl", "with --sqcl 0.0", "0.3"),
    changed("storage", "without --storage", "sqlite:////x.db"),
    changed(
        "space",
        "with --space stages.feature_extraction.weight.bits: [4, 6, 8, 16]",
        "other.yaml",
        "stages.feature_extraction.weight.bits: 8",
    ),
    case(
        "latency-table",
        [*RESUME, "mine", "--latency-table", "t.json"],
        "study 'mine' has its own latency table; omit --latency-table t.json",
    ),
    case("sensitivity-near", ["sensitivity", "--study", "mien"],
         f"study 'studies/mien': there is no such study (did you mean 'mine'?){KNOWN}"),
    *(contradicted(*each) for each in (
        ("model", "with --model srgan", "espcn"),
        ("scale", "with --scale 4", "2"),
        ("seed", "with --seed 0", "1"),
        ("frame", "with --frame 96x96", "32x24"),
        ("weights", "without --weights", "/w.pth"),
        ("data", "without --data", "/images"),
        ("space", "with --space stages.feature_extraction.weight.bits: [4, 6, 8, 16]", "other.yaml",
         "stages.feature_extraction.weight.bits: 8"),
    )),
    case("sensitivity-model", ["sensitivity", "--study", "mine", "--model", "sragn"],
         f"unknown model 'sragn' (did you mean 'srgan'?); {MODEL_NAMES}"),
    case("sensitivity-by", ["sensitivity", "--study", "mine", "--by", "block"],
         "--by block: study 'mine' has its own stages (feature_extraction, body, upsampling, reconstruction); omit --by, or type --model srgan instead of --study"),
    case("output-file", ["report", "mine", "-o", "other.yaml"],
         "--output 'other.yaml': File exists; give a writable folder"),
    case("output-below-a-file", ["report", "mine", "-o", "other.yaml/x"],
         "--output 'other.yaml/x': Not a directory; give a writable folder"),
]  # fmt: skip


@pytest.mark.parametrize(("arguments", "message"), COMMANDS)
def test_study(refused: Refused, tmp_path: Path, study: Path, arguments: list[str], message: str) -> None:
    shutil.copytree(study, tmp_path / "studies" / "mine")
    (tmp_path / "other.yaml").write_text(OTHER_SPACE)
    refused(arguments, message)


def test_an_existing_study_is_not_begun_again(refused: Refused, tmp_path: Path, study: Path, tiny_weights: Path) -> None:
    shutil.copytree(study, tmp_path / "studies" / "mine")
    refused(
        [*MODEL, "--scale", "2", "--weights", str(tiny_weights), "--study", "mine"],
        "study 'studies/mine' exists already; add --resume to continue it, or give another --study NAME",
    )


def test_a_study_where_nothing_can_be_written(refused: Refused, tmp_path: Path, tiny_weights: Path) -> None:
    (tmp_path / "file").touch()
    refused(
        [*MODEL, "--scale", "2", "--weights", str(tiny_weights), "--study", f"{tmp_path}/file/mine"],
        f"study '{tmp_path}/file/mine': cannot be written (Not a directory); give another --study",
    )


def written(name: str, content: bytes) -> Callable[[Path], None]:
    """Another content of one of a study's files."""

    def write(folder: Path) -> None:
        (folder / name).write_bytes(content)

    return write


def added_line(folder: Path) -> None:
    with (folder / "trials.jsonl").open("a") as lines:
        lines.write("{half\n")


def added_line_without_database(folder: Path) -> None:
    added_line(folder)
    (folder / "study.db").unlink()


def line_lost(folder: Path) -> None:
    lines = (folder / "trials.jsonl").read_text().splitlines(keepends=True)
    (folder / "trials.jsonl").write_text("".join(lines[:2]))


def lines_swapped(folder: Path) -> None:
    records = [json.loads(line) for line in (folder / "trials.jsonl").read_text().splitlines()]
    records[0]["number"], records[1]["number"] = 1, 0
    (folder / "trials.jsonl").write_text("".join(f"{json.dumps(record)}\n" for record in records))


def database_cut(folder: Path) -> None:
    content = (folder / "study.db").read_bytes()
    (folder / "study.db").write_bytes(content[: len(content) // 2])


def database_of_another_optuna(folder: Path) -> None:
    connection = sqlite3.connect(folder / "study.db")
    connection.execute("update version_info set schema_version = 99, library_version = '99.0'")
    connection.execute("update alembic_version set version_num = 'v99'")
    connection.commit()
    connection.close()


def edited(change: Callable[[dict[str, Any]], None]) -> Callable[[Path], None]:
    """study.yaml changed by hand."""

    def damage(folder: Path) -> None:
        data = yaml.safe_load((folder / "study.yaml").read_text())
        change(data)
        (folder / "study.yaml").write_text(yaml.safe_dump(data))

    return damage


def record_with(**fields: Any) -> Callable[[Path], None]:
    """A line more, well-formed, that this study cannot have written."""

    def damage(folder: Path) -> None:
        record = json.loads((folder / "trials.jsonl").read_text().splitlines()[0])
        with (folder / "trials.jsonl").open("a") as lines:
            lines.write(json.dumps({**record, **fields}) + "\n")

    return damage


def definition(reason: str) -> str:
    return f"study 'studies/mine': study.yaml is not a study definition ({reason}); restore it, or give another study"


RESUMED, REPORTED, SHOWN = [*RESUME, "mine"], ["report", "mine"], ["dashboard", "mine", "--port", "0"]
LINE = "studies/mine/trials.jsonl: line 4 is not a valid record of this study; remove the line"
REMADE = "remove study.db: it is made again from trials.jsonl"
DATABASE = "--storage 'sqlite:///{tmp}/studies/mine/study.db': "
DAMAGES = [
    *(
        case(f"no-definition-{command[0]}", written("study.yaml", b"a: ["), command, definition("while parsing a flow node"))
        for command in (RESUMED, REPORTED, SHOWN)
    ),
    case("other-yaml", written("study.yaml", b"definition: {}"), REPORTED, definition("definition.objectives: Field required")),
    case("unknown-model", edited(lambda data: data["definition"]["trial"].update(model="srgam")), REPORTED,
         definition(f"unknown model 'srgam' (did you mean 'srgan'?); {MODEL_NAMES}")),
    case("unknown-objective", edited(lambda data: data["definition"].update(objectives=["size", "psn"])), REPORTED,
         definition("--objectives 'size,psn': unknown objective 'psn' (did you mean 'psnr'?); type one of bops, fidelity, latency, niqe, ops, peak_memory, pi, psnr, size, size_runtime, ssim")),
    case("no-objectives", edited(lambda data: data["definition"].update(objectives=[])), RESUMED,
         definition("--objectives '': expected two or more different names, for example --objectives size,latency,psnr")),
    case("no-versions", edited(lambda data: data["environment"].pop("versions")), REPORTED,
         definition("environment.versions: Field required")),
    case("record-of-no-policy", record_with(policy={"stages": {"body": {"wait": {}}}}), RESUMED, LINE),
    case("record-of-another-space", record_with(policy={"stages": {}}), REPORTED, LINE),
    case("record-without-values", record_with(values={}), REPORTED, LINE),
    case("record-numbered-beyond", record_with(number=10**9), RESUMED, LINE),
    case("record-numbered-below", record_with(number=-1), RESUMED, LINE),
    case("line-resume", added_line, RESUMED, LINE),
    case("line-report", added_line, REPORTED, LINE),
    case("line-dashboard", added_line_without_database, SHOWN, LINE),
    *(
        case(f"no-database-{command[0]}", written("study.db", b"no database" * 100), command, f"{DATABASE}file is not a database; {REMADE}")
        for command in (RESUMED, SHOWN)
    ),
    case("database-cut", database_cut, RESUMED, f"{DATABASE}database disk image is malformed; {REMADE}"),
    case("other-optuna", database_of_another_optuna, RESUMED,
         f"{DATABASE}The runtime optuna version {optuna.__version__} is no longer compatible with the table schema (set up by optuna"
         f" 99.0); {REMADE}"),
    *(
        case(f"answers-{name}", written("stages.json", content), command,
             "studies/mine/stages.json: not a file of answers; remove the file, autoq creates it again")
        for name, content in (("no-json", b"{half"), ("binary", b"\xff\xfe"), ("other-keys", b'{"questions": []}'),
                              ("torn", b'{"answers": [{"question": {}}]}'))
        for command in (REPORTED, ["sensitivity", "--study", "mine"])
    ),
    case("line-lost", line_lost, RESUMED,
         "study 'mine': its storage has trial 2 as ended, trials.jsonl does not;"
         " restore trials.jsonl, or remove study.db to run that trial again"),
    case("lines-swapped", lines_swapped, RESUMED,
         f"study 'mine': trial 0 has another policy in its storage than in trials.jsonl; {REMADE}"),
]  # fmt: skip


@pytest.mark.parametrize(("damage", "command", "message"), DAMAGES)
def test_damaged_study(
    refused: Refused, tmp_path: Path, study: Path, damage: Callable[[Path], None], command: list[str], message: str
) -> None:
    shutil.copytree(study, tmp_path / "studies" / "mine")
    damage(tmp_path / "studies" / "mine")
    refused(command, message.format(tmp=tmp_path))
