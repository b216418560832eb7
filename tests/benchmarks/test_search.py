"""The benchmarks of the search, tiny: search.py on the committed table, and exhaustive.py and fidelity.py, which make such tables."""

import csv
import functools
import types
from pathlib import Path

import PIL.Image
import pytest
from scipy.stats import spearmanr

from autoq.config.spec import TrialSpec
from benchmarks import curves, exhaustive, fidelity, search
from tests.benchmarks.conftest import RunBenchmark
from tests.conftest import small_image


def test_the_default_beats_random_search_on_the_table(run_benchmark: RunBenchmark, tmp_path: Path) -> None:
    strategies = ["autoq", "autoq, no stopping", "seeds alone", "random", "tpe", "uniform"]
    options = ["--seeds", "2", "--budget", "40", "--plot", str(tmp_path / "curves.png")]
    found, _ = run_benchmark(search, *options, "--strategies", *strategies)
    figures, by_name = found["figures"], found["curves"]
    assert figures["seconds_ratio_random_95"] < 0.3
    assert figures["seconds_ratio_best_cold_95"] < 0.5
    assert figures["worse_than_seeds_alone"] == 0
    assert figures["steps_saved_by_stopping"] > 0.25
    assert figures["hypervolume_lost_by_stopping"] < 0.01
    assert list(by_name) == strategies
    for curve in by_name.values():
        seconds, shares = zip(*curve, strict=True)
        assert seconds == (1, 2, 5, 10, 20, 50, 100)
        assert list(shares) == sorted(shares)
        assert shares[0] == 0, "nothing is trained within a second"
        assert shares[-1] <= 100
    assert by_name["autoq"][3][1] > by_name["random"][4][1] > 0, "more after 10 s than at random after 20"
    with PIL.Image.open(tmp_path / "curves.png") as picture:
        assert picture.size == (1350, 825)


@pytest.mark.parametrize("file", ["curves.txt", "none/curves.png"])
def test_a_picture_that_cannot_be_drawn_is_refused_first(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, file: str
) -> None:
    monkeypatch.setattr("sys.argv", ["search.py", "--plot", str(tmp_path / file)])
    with pytest.raises(SystemExit) as ended:
        search.main()
    assert ended.value.code == 2
    said = f"--plot '{tmp_path / file}': expected a .png file in a folder that exists; type --plot curves.png\n"
    assert capsys.readouterr().err.endswith(said)


def test_a_curve_is_the_median_over_seeds_of_what_was_reached() -> None:
    table = types.SimpleNamespace(whole=4.0)
    courses = ([(1.5, 1.0), (60.0, 3.0)], [(1.0, 2.0)], [(4.0, 4.0)])
    runs = [types.SimpleNamespace(table=table, curve=course) for course in courses]
    found = curves.curves_of({"some": runs})  # type: ignore[dict-item]
    assert found == {"some": [[1, 0], [2, 25], [5, 50], [10, 50], [20, 50], [50, 50], [100, 75]]}
    head, row = curves.curve_table(found).splitlines()
    assert head.split()[-2:] == ["100", "s"]
    assert row.split() == ["some", "0.0", "25.0", "50.0", "50.0", "50.0", "50.0", "75.0"]


def test_a_table_is_gone_on_with(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for policies in ("1", "2"):
        monkeypatch.setattr("sys.argv", ["exhaustive.py", "--policies", policies, "--folder", str(tmp_path)])
        exhaustive.main()
    with (tmp_path / "xlsr-x3-seed0.csv").open() as made, (exhaustive.TABLES / "xlsr-x3-seed0.csv").open() as kept:
        first, second = csv.DictReader(made)
        known = {line["policy"]: line for line in csv.DictReader(kept)}
    assert first["policy"] == "32 32/32/32 32/32" or set(first["policy"].split()) == {"32"}
    for line in (first, second):
        assert line["size"] == known[line["policy"]]["size"]
        assert line["bops"] == known[line["policy"]]["bops"]
        assert abs(float(line["psnr_0"]) - float(known[line["policy"]]["psnr_0"])) < 0.3


def test_rank_correlations_with_a_longer_training(
    run_benchmark: RunBenchmark, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    images = {name: small_image(tmp_path / name, seed) for seed, name in enumerate(("data", "eval_data", "test_data"))}
    monkeypatch.setattr(fidelity, "TrialSpec", functools.partial(TrialSpec, **images))
    options = ["--measure", "--model", "espcn", "--policies", "4", "--steps", "0", "1", "3", "--table", str(tmp_path / "t.csv")]
    figures = run_benchmark(fidelity, *options)[0]["figures"]
    assert figures["policies_0"] == figures["policies_1"] == 4
    lines = list(csv.DictReader((tmp_path / "t.csv").read_text().splitlines()))
    for quality in ("fidelity", "psnr"):
        short, long = ([float(line[quality]) for line in lines if line["steps"] == steps] for steps in ("1", "3"))
        value, low, high = (figures[f"spearman_{quality}_1{end}"] for end in ("", "_low", "_high"))
        assert value == round(float(spearmanr(short, long).statistic), 3)
        assert -1 <= low <= value <= high <= 1
    assert figures["spearman_ptq"] == figures["spearman_fidelity_0"]
    before = (tmp_path / "t.csv").read_text()
    assert run_benchmark(fidelity, *options)[0]["figures"] == figures
    assert (tmp_path / "t.csv").read_text() == before, "what is there is not measured again"
