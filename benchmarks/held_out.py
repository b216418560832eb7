"""Does a study's front hold on images that its search did not use? And what did the check cost?

python benchmarks/held_out.py STUDY     STUDY: a finished search, by name or by absolute path

spearman_held_out      rank correlation of the study's first quality on the search's images with that on held-out images, over
                       all fully trained trials and baselines but the float network
front_points           trials and baselines on the front, the float network left out
front_kept             the share of them that no fully trained point beats on the held-out images, with all constraints kept
front_trials           how many of them are trials
search_seconds         work on trials and baselines, all workers together
replication_seconds    work on training points of the front again with other seeds
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence

from autoq.api.studies import open_study
from autoq.config.spec import Replication
from autoq.errors import InputError
from autoq.study.replication import ReplicatedPoint, rank_agreement, replicated_qualities
from autoq.study.results import FLOAT_NAME, Results


def figures_of(
    results: Results, replications: Sequence[Replication], replicated: Sequence[ReplicatedPoint]
) -> dict[str, float | None]:
    """What is printed. A figure is null where there is nothing to compute it from.

    replicated: the front's points, as `autoq.study.replication.replicated_points` gives them.
    """
    agreement = rank_agreement(results.records, replicated_qualities(results.objectives)[0])
    front = [record for record in results.front if record.name != FLOAT_NAME]
    judged = [point for point in replicated if point.record.name != FLOAT_NAME]
    return {
        "spearman_held_out": None if agreement is None else round(agreement, 3),
        "front_points": len(front),
        "front_kept": round(sum(point.stays for point in judged) / len(judged), 3) if judged else None,
        "front_trials": sum(record.source == "trial" for record in front),
        "search_seconds": round(sum(record.seconds for record in results.records), 1),
        "replication_seconds": round(sum(each.result.seconds for each in replications), 1),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("study", help="name under studies/, or an absolute path")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    try:
        study = open_study(options.study)
        figures = figures_of(study.results(), study.replications(), study.replicated_points)
    except InputError as error:
        parser.exit(2, f"error: {error}\n")
    if options.json:
        print(json.dumps({"bench": "held_out", "figures": figures}, indent=2))
    else:
        print("\n".join(f"{name:20} {'-' if value is None else value}" for name, value in figures.items()))


if __name__ == "__main__":
    main()
