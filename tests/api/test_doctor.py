import json
import subprocess
import sys

import pytest

from autoq.api import doctor
from autoq.api.doctor import Check

WANTED = {
    "python", "torch", "openvino", "ray", "optuna", "pyiqa", "optuna-dashboard", "metric psnr", "metric ssim", "metric niqe", "metric pi",
    "processor", "avx512_vnni", "avx512_bf16", "gpu", "disk", "memory",
}  # fmt: skip


def examined(before: str = "pass") -> tuple[int, dict[str, Check]]:
    """Exit code and findings of a doctor in a process of its own, `before` which something was done."""
    code = f"import sys; {before}; sys.argv = ['autoq', 'doctor', '--json']; from autoq.cli import main; main()"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stderr == ""
    return done.returncode, {entry["name"]: Check(**entry) for entry in json.loads(done.stdout)}


@pytest.fixture(scope="module")
def found() -> dict[str, Check]:
    code, checks = examined()
    assert code == 0
    return checks


def test_everything_a_search_stands_on_is_looked_at(found: dict[str, Check]) -> None:
    assert set(found) == WANTED
    assert all(found[name].state == "ok" for name in ("torch", "openvino", "ray", "optuna", "optuna-dashboard"))
    assert found["torch"].found.startswith("2.")
    assert all(check.cost for check in found.values() if check.state != "ok" and check.name != "processor features")


def test_a_missing_metric_model_says_where_and_how(monkeypatch: pytest.MonkeyPatch, tmp_path: object) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    metrics = {check.name: check for check in doctor._metrics()}
    assert metrics["metric pi"].state == "absent"
    assert metrics["metric pi"].found.startswith(f"pi needs niqe_modelparameters.mat and NRQM_model.mat in {tmp_path}/hub/pyiqa;")
    assert metrics["metric psnr"] == Check(name="metric psnr", state="ok", found="built in")


@pytest.mark.parametrize(
    ("flags", "vnni", "bfloat16"),
    [("fma avx_vnni amx_bf16", "ok", "ok"), ("avx512_vnni", "ok", "absent"), ("sse", "absent", "absent")],
)
def test_processor_features(flags: str, vnni: str, bfloat16: str) -> None:
    checks = {check.name: check for check in doctor._processor(lambda: {"model name": "x", "flags": flags})}
    assert (checks["avx512_vnni"].state, checks["avx512_bf16"].state) == (vnni, bfloat16)


def test_the_doctor_stands_on_nothing_it_looks_for() -> None:
    packages = ["torch", "optuna", "openvino", "ray"]
    code, found = examined(f"sys.modules.update(dict.fromkeys({packages}))")
    assert code == 1
    assert [found[package].state for package in packages] == ["broken"] * 4
    assert found["python"].state == "ok"


def test_exit_code_and_json(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    from autoq import cli

    for state, code in (("absent", 0), ("broken", 1)):
        monkeypatch.setattr(doctor, "examine", lambda state=state: [Check(name="ray", state=state, found="no", cost="dear")])
        monkeypatch.setattr(sys, "argv", ["autoq", "doctor", "--json"])
        with pytest.raises(SystemExit) as stop:
            cli.main()
        assert stop.value.code == code
        assert json.loads(capsys.readouterr().out) == [{"name": "ray", "state": state, "found": "no", "cost": "dear"}]
