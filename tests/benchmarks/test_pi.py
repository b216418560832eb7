"""The benchmark of NIQE and NRQM, on small squares."""

from benchmarks import pi
from tests.benchmarks.conftest import RunBenchmark


def test_the_numbers_are_pyiqas(run_benchmark: RunBenchmark) -> None:
    document, _ = run_benchmark(pi, "--sides", "100", "128")
    figures = document["figures"]
    assert figures["nrqm_max_rel_error"] < 1e-6
    assert max(figures["niqe_difference_100"], figures["niqe_difference_128"]) < 1e-4
    assert figures["niqe_speedup"] == min(figures["niqe_speedup_100"], figures["niqe_speedup_128"])
    assert figures["nrqm_speedup_128"] > 1
