"""The benchmarks of the search, tiny: the committed table, and the scripts that make such tables."""

import csv
import json
import subprocess
import sys
from pathlib import Path

FOLDER = Path(__file__).parents[2] / "benchmarks"


def run(script: str, *options: str) -> str:
    done = subprocess.run([sys.executable, str(FOLDER / script), *options], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_default_beats_random_search_on_the_table() -> None:
    strategies = ["autoq", "autoq, no stopping", "seeds alone", "random", "tpe", "uniform"]
    figures = json.loads(run("search.py", "--seeds", "4", "--budget", "40", "--json", "--strategies", *strategies))["figures"]
    assert figures["seconds_ratio_random_95"] < 0.3
    assert figures["seconds_ratio_best_cold_95"] < 0.5
    assert figures["worse_than_seeds_alone"] == 0
    assert figures["steps_saved_by_stopping"] > 0.4
    assert figures["hypervolume_lost_by_stopping"] < 0.01


def test_a_table_is_gone_on_with(tmp_path: Path) -> None:
    for policies in ("1", "2"):
        run("exhaustive.py", "--policies", policies, "--folder", str(tmp_path))
    with (tmp_path / "xlsr-x3-seed0.csv").open() as made, (FOLDER / "tables" / "xlsr-x3-seed0.csv").open() as kept:
        first, second = csv.DictReader(made)
        known = {line["policy"]: line for line in csv.DictReader(kept)}
    assert first["policy"] == "32 32/32/32 32/32" or set(first["policy"].split()) == {"32"}
    for line in (first, second):
        assert line["size"] == known[line["policy"]]["size"]
        assert line["bops"] == known[line["policy"]]["bops"]
        assert abs(float(line["psnr_0"]) - float(known[line["policy"]]["psnr_0"])) < 0.3


def test_rank_correlations_with_a_longer_training(tmp_path: Path) -> None:
    options = [
        "--measure",
        "--model",
        "espcn",
        "--policies",
        "4",
        "--steps",
        "0",
        "1",
        "3",
        "--table",
        str(tmp_path / "t.csv"),
        "--json",
    ]
    figures = json.loads(run("fidelity.py", *options))["figures"]
    assert figures["policies_0"] == figures["policies_1"] == 4
    assert -1 <= figures["spearman_1_low"] <= figures["spearman_1"] <= figures["spearman_1_high"] <= 1
    assert figures["spearman_ptq"] == figures["spearman_0"]
    before = (tmp_path / "t.csv").read_text()
    assert json.loads(run("fidelity.py", *options))["figures"] == figures
    assert (tmp_path / "t.csv").read_text() == before, "what is there is not measured again"
