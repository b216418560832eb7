import json
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from autoq import cli


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


def test_every_command_is_documented_with_an_example() -> None:
    for command in cli.app.registered_commands:
        assert command.callback is not None
        assert "Example: autoq " in (command.callback.__doc__ or "")


def test_a_report_path_without_torch() -> None:
    code = (
        "import sys; sys.modules['torch'] = None\n"
        "import autoq.policy, autoq.space, autoq.spec, autoq.pareto, autoq.study, autoq.report.build, autoq.terminal, autoq.api"
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


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["serch"], "autoq: No such command 'serch'. Did you mean 'search'?"),
        (["search"], "autoq: Missing option '--model'."),
        (
            ["search", "--model", "srgan", "--budget", "x"],
            "autoq: Invalid value for '--budget': Input should be a valid integer, unable to parse string as an integer",
        ),
        (
            ["search", "--model", "srgan", "--budget", "0"],
            "autoq: Invalid value for '--budget': Input should be greater than or equal to 1",
        ),
        (["search", "--model", "sragn"], "autoq: unknown model 'sragn' (known: srgan, srresnet). Did you mean 'srgan'?"),
        (
            ["search", "--model", "srgan", "--target", "openvino"],
            "autoq: unknown target 'openvino' (known: openvino-cpu). Did you mean 'openvino-cpu'?",
        ),
        (
            ["search", "--model", "srgan", "--sampler", "tp"],
            "autoq: unknown sampler 'tp' (known: auto, gp, nsga2, random, tpe). Did you mean 'tpe'?",
        ),
        (
            ["search", "--model", "srgan", "--objectives", "size,psn"],
            "autoq: unknown objective 'psn' (known: latency, niqe, pi, psnr, size, size_runtime, ssim). Did you mean 'psnr'?",
        ),
        (
            ["search", "--model", "srgan", "--objectives", "size"],
            "autoq: objectives 'size': expected two or more different names, for example size,latency,psnr",
        ),
        (
            ["search", "--model", "srresnet", "--frame", "96"],
            "autoq: frame '96': expected WIDTHxHEIGHT of 16 pixels or more, for example 96x96",
        ),
        (["search", "--model", "srresnet", "--scale", "3"], "autoq: model 'srresnet' has no x3 (scales: 2, 4); type --scale 4"),
        (
            ["search", "--model", "srresnet", "--eval-data", "/none"],
            "autoq: image folder '/none': no such folder; give a folder of .bmp, .jpeg, .jpg, .png, .tif, .tiff files",
        ),
        (
            ["search", "--model", "srresnet", "--latency-table", "/none"],
            "autoq: latency table '/none': No such file or directory; give a study's latency.json",
        ),
        (["report", "../x"], "autoq: study '../x': expected a name of letters, digits, '.', '_' and '-', or an absolute path"),
        (["report", "none"], "autoq: study 'studies/none': no study.yaml there; type the name of a folder in studies/"),
        (["space", "xlsr"], "autoq: unknown model 'xlsr' (known: srgan, srresnet)."),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, arguments: list[str], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    code, out, err = run(capsys, monkeypatch, *arguments)
    assert (code, out, err.strip()) == (2, "", message)
    assert not (tmp_path / "studies").exists()


def test_a_metric_without_its_model_cannot_be_an_objective(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    code, _, err = run(capsys, monkeypatch, "search", "--model", "srgan", "--objectives", "size,niqe")
    assert code == 2
    assert err.startswith(f"autoq: niqe needs niqe_modelparameters.mat in {tmp_path}/hub/pyiqa")
