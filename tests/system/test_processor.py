"""What depends on the processor, and that what 8-bit weights become there is what its runtimes compute."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import yaml

from autoq.config.policy import TensorQuant, weight_quant
from autoq.config.spec import StudyFile
from autoq.quantizers import QUANTIZERS, within
from autoq.system import processor
from autoq.system.processor import available_cores


@pytest.mark.parametrize(
    ("machine", "flags", "bits"),
    [
        ("x86_64", "avx2 avx512_vnni", 8),
        ("AMD64", "avx2 avx_vnni", 8),
        ("x86_64", "avx2 avx512f", 7),
        ("aarch64", "", 8),
    ],
)
def test_weights_that_do_not_overflow(machine: str, flags: str, bits: int) -> None:
    assert processor.exact_weight_bits(machine, {"flags": flags}) == bits


def test_the_sum_of_two_products_fits_16_bits() -> None:
    """The largest uint8 times the largest weights of symmetric 7 and 8 bits."""
    most = np.iinfo(np.int16).max
    assert 2 * 255 * 63 <= most < 2 * 255 * 127


def test_an_unknown_x86_processor_gets_what_is_exact_everywhere(tmp_path: Path) -> None:
    assert processor.facts(tmp_path / "cpuinfo") is None
    assert processor.exact_weight_bits("x86_64", {}) == 7


def test_facts_are_the_first_cores(tmp_path: Path) -> None:
    (tmp_path / "cpuinfo").write_text("processor\t: 0\nflags\t\t: a b\n\nprocessor\t: 1\nflags\t\t: c\n")
    assert processor.facts(tmp_path / "cpuinfo") == {"processor": "0", "flags": "a b"}


def test_a_study_that_does_not_say_has_all_levels() -> None:
    """Whatever the processor that reads it: its weights were trained with them."""
    found = yaml.safe_load((Path(__file__).parents[2] / "studies" / "srgan-x4" / "study.yaml").read_text())
    del found["definition"]["trial"]["exact_weight_bits"]
    assert StudyFile.model_validate(found).definition.trial.exact_weight_bits == 8
    found["definition"]["trial"]["exact_weight_bits"] = 7
    assert StudyFile.model_validate(found).definition.trial.exact_weight_bits == 7


@pytest.mark.parametrize("quantizer", [name for name, info in QUANTIZERS.items() if "weight" in info.serves])
@pytest.mark.parametrize("limit", [7, 8])
def test_a_format_within_a_limit_is_the_widest_whose_integers_are(quantizer: str, limit: int) -> None:
    info = QUANTIZERS[quantizer]
    for bits in (width for width in info.bits if info.weight_integers(width) <= 8):
        quant = dataclasses.replace(weight_quant(8), quantizer=quantizer, bits=bits)
        found = within(quant, limit)
        assert info.weight_integers(found.bits) <= limit
        assert found.bits == bits or info.weight_integers(found.bits + 1) > limit
        assert dataclasses.replace(found, bits=bits) == quant


def test_a_narrow_format_stays() -> None:
    assert within(TensorQuant(4, signed=True), 7) == TensorQuant(4, signed=True)


def group(root: Path, files: dict[str, str], cgroup: str) -> Path:
    """A machine's /proc and /sys as far as control groups need them."""
    for name, text in {"proc/self/cgroup": cgroup, **{f"sys/fs/cgroup/{name}": text for name, text in files.items()}}.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


@pytest.mark.parametrize(
    ("files", "cgroup", "cores"),
    [
        ({}, "0::/\n", 64),
        ({"cpu.max": "max 100000\n"}, "0::/\n", 64),
        ({"cpu.max": "400000 100000\n"}, "0::/\n", 4),
        ({"cpu.max": "250000 100000\n"}, "0::/\n", 2),
        ({"cpu.max": "50000 100000\n"}, "0::/\n", 1),
        ({"cpu.max": "6400000 50000\n"}, "0::/\n", 64),
        ({"a/cpu.max": "300000 100000\n", "a/b/cpu.max": "max 100000\n"}, "0::/a/b\n", 3),
        ({"a/cpu.max": "300000 100000\n", "a/b/cpu.max": "200000 100000\n"}, "0::/a/b\n", 2),
        ({"cpu.max": "500000 100000\n"}, "0::/docker/0123\n", 5),
        (
            {"cpu,cpuacct/cpu.cfs_quota_us": "150000\n", "cpu,cpuacct/cpu.cfs_period_us": "50000\n"},
            "12:memory:/\n4:cpu,cpuacct:/docker/0123\n0::/\n", 3,
        ),
        ({"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, "1:name=systemd:/\n1:cpu:/\n", 64),
        ({"cpuset/cpu.cfs_quota_us": "100000\n", "cpuset/cpu.cfs_period_us": "100000\n"}, "3:cpuset:/\n", 64),
    ],
)  # fmt: skip
def test_cores_are_bounded_by_every_control_group_around(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, files: dict[str, str], cgroup: str, cores: int
) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda process: set(range(64)))
    assert available_cores(group(tmp_path, files, cgroup)) == cores


def test_cores_are_those_the_process_may_run_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda process: {3, 5, 7})
    assert available_cores(tmp_path) == 3
    monkeypatch.delattr("os.sched_getaffinity")
    monkeypatch.setattr("os.cpu_count", lambda: 8)
    assert available_cores(tmp_path) == 8
