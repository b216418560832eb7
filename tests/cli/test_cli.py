import json
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from autoq import cli
from autoq.api import studies
from autoq.config.events import Events
from autoq.config.options import SearchOptions
from autoq.config.space_file import bundled_space, named_spaces
from autoq.targets import TARGETS


def run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, *arguments: str) -> tuple[int, str, str]:
    monkeypatch.setattr(sys, "argv", ["autoq", *arguments])
    with pytest.raises(SystemExit) as stop:
        cli.main()
    output = capsys.readouterr()
    return int(stop.value.code or 0), output.out, output.err


@pytest.mark.parametrize("command", [[], ["search"], ["space"], ["report"]])
def test_help_needs_neither_torch_nor_ray_nor_optuna(command: list[str]) -> None:
    code = (
        "import sys\n"
        "for name in ('torch', 'ray', 'optuna', 'numpy', 'openvino', 'onnx'): sys.modules[name] = None\n"
        f"sys.argv = ['autoq', *{command!r}, '--help']\n"
        "from autoq.cli import main; main()"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "Usage: autoq" in done.stdout


def test_without_a_command_help_is_shown(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    code, out, err = run(capsys, monkeypatch)
    assert (code, err) == (0, "")
    assert "Usage: autoq" in out


def test_every_command_is_documented_with_an_example() -> None:
    for command in cli.app.registered_commands:
        assert command.callback is not None
        assert "Example: autoq " in (command.callback.__doc__ or "")


def test_a_report_path_without_torch() -> None:
    code = (
        "import sys; sys.modules['torch'] = None\n"
        "import autoq.config.policy, autoq.config.space, autoq.config.spec, autoq.study.pareto, autoq.study.study, autoq.report.build, autoq.report.progress, autoq.cli.tables, autoq.api.studies"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_space_prints_a_file_that_can_be_used(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    code, out, _ = run(capsys, monkeypatch, "space", "srgan")
    assert code == 0
    assert yaml.safe_load(out)["roles"]["weight"]["bits"] == [4, 6, 8, 16]
    code, out, _ = run(capsys, monkeypatch, "space", "srgan", "--json")
    data = json.loads(out)
    # (3 widths x 6 x 19 activation formats + 1) stages but the head, body also x 7 skips; head 19 weights
    assert data["size"] == 19 * ((18 * 19 + 1) * 7) * (18 * 19 + 1) ** 2
    code, out, _ = run(capsys, monkeypatch, "space", "--list")
    assert {line for line in out.splitlines() if line[:1].strip()} == set(named_spaces())
    code, _, err = run(capsys, monkeypatch, "space")
    assert (code, err) == (2, "autoq: space: no network given; type `autoq space srgan`, or `autoq space --list` for the names\n")


def test_targets_are_listed_with_their_facts(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    code, out, _ = run(capsys, monkeypatch, "targets", "--json")
    assert code == 0
    found = {target["name"]: target for target in json.loads(out)}
    assert list(found) == list(TARGETS)
    openvino = found["openvino-cpu"]
    assert (openvino["usable"], openvino["reason"], openvino["integer_bits"]) == (True, None, 8)
    assert openvino["roles"]["weight"] == {"bits": [*range(1, 17), 32], "granularity": ["channel", "tensor"], "signed": [True]}
    monkeypatch.setattr("autoq.api.networks.why_unusable", lambda name: f"no {name} here")
    monkeypatch.setenv("COLUMNS", "200")
    code, out, _ = run(capsys, monkeypatch, "targets")
    assert code == 0
    assert "no: no onnxruntime-cpu here" in out
    assert "weight: 1-16 bits, float; per channel or tensor; symmetric" in out


def test_a_target_that_does_not_run_here_is_refused_before_anything_is_written(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    code, _, err = run(capsys, monkeypatch, "search", "--model", "xlsr", "--target", "onnxruntime-cpu")
    assert code == 2
    assert err == (
        "autoq: target 'onnxruntime-cpu': onnxruntime is not installed; type `pip install onnxruntime`,"
        " or choose a target from `autoq targets`\n"
    )
    assert not list(tmp_path.iterdir())


def test_a_metric_without_its_model_cannot_be_an_objective(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    code, _, err = run(capsys, monkeypatch, "search", "--model", "srgan", "--objectives", "size,niqe")
    assert code == 2
    assert err.startswith(f"autoq: niqe needs niqe_modelparameters.mat in {tmp_path}/hub/pyiqa")


def test_an_interrupt_is_heard_even_while_a_finalizer_runs() -> None:
    code = """
import signal, time
from autoq.cli import frame

class Finalized:
    def __del__(self):
        signal.raise_signal(signal.SIGINT)

frame._hear_signals()
try:
    Finalized()
    time.sleep(200)
except KeyboardInterrupt:
    print("heard", flush=True)
    signal.raise_signal(signal.SIGINT)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=100)
    assert done.stdout == "heard\n"
    assert done.returncode == 130, "the second one ends at once"


LOUD = """
import ctypes
import torch

print("imported")

class Network(torch.nn.Sequential):
    def forward(self, image):
        ctypes.CDLL(None).printf(b"running\\n")
        return super().forward(image)

def network(scale):
    print("made")
    torch.manual_seed(0)
    layers = torch.nn.Conv2d(3, 3 * scale**2, 3, padding=1), torch.nn.PixelShuffle(scale)
    return Network(*layers)
"""


def test_what_a_network_prints_does_not_get_into_the_document(tmp_path: Path) -> None:
    (tmp_path / "loud.py").write_text(LOUD)
    (tmp_path / "loud.yaml").write_text(f"{bundled_space('espcn').read_text()}\nlayers:\n  all: ['*']\n")
    code = "from autoq.cli import main; main()"
    arguments = ["cost", "--model", "loud:network", "--scale", "2", "--space", "loud.yaml", "--json"]
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=False, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["parameters"] == 12 * 27 + 12
    assert {"imported", "made", "running"} <= {*done.stderr.split()}


class Asked(Exception):
    """What a search was asked for, instead of searching."""

    def __init__(self, options: SearchOptions, command: str) -> None:
        self.options, self.command = options, command


@pytest.mark.parametrize(
    "call",
    [
        {},
        {"objectives": ["size", "latency", "psnr"]},
        {"objectives": iter(("size", "psnr"))},
        {"objectives": "size,psnr", "frame": (64, 48)},
        {"frame": [64, 48], "constraints": ["size<=400KiB", "psnr_drop <= 0.1", "latency<=10ms"]},
        {"constraints": "size<=400KiB", "stopping": False},
        {"stopping": True, "steps": 40, "seed": 7, "budget": 3, "initial_trials": 0, "max_steps": 100},
        {"data": Path("my photos"), "eval_data": "it's", "test_data": "$HOME; #x"},
        {"weights": Path("a b.pth"), "space": Path("my space.yaml"), "latency_table": "old one/latency.json"},
        {"study": "mine", "storage": "postgresql://me@host/data?connect_timeout=3"},
        {"study": "/tmp/what? a study", "sampler": "nsga2", "workers": 3, "threads": 2, "device": "cpu", "by": "block"},
        {"memory": 4, "timeout": 0.5, "sqcl": 0.3, "sampling": "uniform", "replications": 0, "target": "bits", "scale": 2},
    ],
    ids=lambda call: ",".join(call) or "model",
)
def test_the_command_of_a_python_call_does_the_same_when_it_is_pasted(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, call: dict[str, Any]
) -> None:
    def create(options: SearchOptions, events: Events, command: str) -> None:
        raise Asked(options, command)

    monkeypatch.chdir(tmp_path)
    Path("my space.yaml").write_bytes(bundled_space("srresnet").read_bytes())
    monkeypatch.setattr(studies, "_create", create)
    with pytest.raises(Asked) as called:
        studies.search("srresnet", **call)
    first = called.value
    words = shlex.split(first.command)
    assert words[:2] == ["autoq", "search"]
    with pytest.raises(Asked) as pasted:
        cli.app(words[1:], standalone_mode=False)
    assert pasted.value.options == first.options


def test_an_option_of_an_earlier_version_is_taken_with_one_line_of_notice() -> None:
    code = "from autoq.cli import main; main()"
    arguments = ["search", "--model", "srgan", "--seeds", "60", "--confirm", "0"]
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.splitlines() == [
        "--seeds is now called --initial-trials",
        "--confirm is now called --replications",
        "autoq: --initial-trials '60': expected at most the --budget of 50; type --initial-trials 50, or raise --budget",
    ]
