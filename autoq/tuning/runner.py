"""The search from end to end: latency table, initial trials, then Ray Tune and its worker processes.

`scheduler.py` decides which job runs next; `run_trial` evaluates a policy.
"""

from __future__ import annotations

import shutil
import sys
from importlib import metadata
from typing import Any

from autoq.config.events import Events
from autoq.config.objectives import FIDELITY
from autoq.config.policy import Policy
from autoq.costs.latency import measure as latencies
from autoq.costs.latency.structure import structure_of
from autoq.costs.latency.table import LatencyTable, read_table
from autoq.errors import AutoqError
from autoq.export.onnx import export_graph, load_graph, save_graph
from autoq.study.replication import planned, replication_seeds
from autoq.study.results import point_name
from autoq.study.study import Study
from autoq.system.files import atomic_write_text
from autoq.trial.context import TrialContext, prepare
from autoq.tuning.baselines import baselines
from autoq.tuning.finetuning import finetune_front, left_to_finetune
from autoq.tuning.initial_trials import probe, propose_initial_trials
from autoq.tuning.latency_pass import LatencyPass, check_table
from autoq.tuning.scheduler import Job, StudySearcher, allowed
from autoq.tuning.workers import run_jobs

CHOICES = 4
"""Times that initial trials are proposed, at most, where latency is predicted: each time their latencies are then measured."""


def environment(command: str) -> dict[str, Any]:
    """The environment of a study: versions, processor, command."""
    packages = ("autoq", "torch", "optuna", "ray", "openvino", "onnx", "numpy", "pyiqa")
    return {
        "command": command,
        "python": sys.version.split()[0],
        "machine": latencies.machine(),
        "versions": {name: metadata.version(name) for name in packages},
    }


def search(study: Study, events: Events | None = None, context: TrialContext | None = None) -> None:
    """Run a study, new or resumed, to its end: latency table, initial trials, all other trials, then the replication of the front.

    Latencies are the study's frozen ones where it has them, else they are measured first, alone on the machine. Trials that
    were running when the study was interrupted run again first.

    Args:
        study: The study, created or resumed.
        events: Listener for progress.
        context: The context of its trials, where it is prepared already.

    Raises:
        AutoqError: Every trial failed, or no point satisfies the constraints.
        KeyboardInterrupt: The search was interrupted.
    """
    events = events or Events()
    spec = study.spec
    earlier = study.records()
    events.begin(study.folder, spec, earlier)
    if _is_open(study):
        if (size := study.space.size()) < spec.budget:
            events.note(f"the space holds {size} policies, fewer than the budget of {spec.budget}: the search ends with the last")
        _run(study, events, context)
    else:
        events.note(f"study '{study.name}' is complete: nothing is left to run")
    trials = [record for record in study.records() if record.source == "trial"]
    if all(record.state == "failed" for record in trials):
        raise AutoqError(
            f"study '{study.name}': all {len(trials)} trials failed; the last: {trials[-1].reason if trials else 'none ran'}"
        )
    complete = [record for record in study.records() if record.state == "complete"]
    if not any(record.feasible for record in complete):
        closest = min(complete, key=lambda record: max(record.violations.values()))
        reached = (
            ", ".join(f"{each.name} {each.value(closest.values, study.float_values):.6g}" for each in study.constraints)
            or f"{FIDELITY} {closest.values[FIDELITY]:.1f} dB"
        )
        bounds = ", ".join(spec.constraints) or "the bound on quality"
        raise AutoqError(f"study '{study.name}': no point keeps {bounds}; the closest, {point_name(closest)}, reaches {reached}")


def _jobs(study: Study) -> list[Job]:
    """The baselines that have not ended, measured or failed."""
    done = {record.name for record in study.records()}
    wanted = baselines(study.space.facts, study.spec.first_last_16)
    return [Job(name, policy, study.spec.trial.steps) for name, policy in wanted.items() if name not in done]


def _is_open(study: Study) -> bool:
    """Whether anything is left to run or to measure."""
    if left_to_finetune(study) or _jobs(study) or study.storage.running() or study.storage.count < allowed(study):
        return True
    wanted = {(each.policy.hash, each.seed) for each in planned(study.results(), replication_seeds(study.spec))}
    repeated = {(each.policy, each.seed) for each in study.replications()}
    return not (wanted <= repeated and {policy for policy, _ in wanted} <= study.remeasured().samples.keys())


def _run(study: Study, events: Events, context: TrialContext | None) -> None:
    """Latency table, initial trials, everything that trains, and the front's latencies again."""
    spec = study.spec
    events.phase("preparing the float network")
    context = context or prepare(spec.trial)
    if study.graph_path.is_file():
        graph = load_graph(study.graph_path)
    else:
        graph = export_graph(context.traced)
        save_graph(graph, study.graph_path)
    latency = LatencyPass(context, spec, study.space, graph, events)
    if study.latency_path.is_file():
        table = read_table(study.latency_path)
        check_table(table, spec, context)
    else:
        table = latency.measure()
        atomic_write_text(study.latency_path, table.model_dump_json(indent=1))
    if spec.initial_trials and study.sensitivity() is None:
        table = _propose(study, latency, table)
    run_jobs(
        StudySearcher(study, _jobs(study), events, lambda policy: structure_of(latency.context.plan_for(policy))), context, table
    )
    shutil.rmtree(study.states_path, ignore_errors=True)
    points = list(dict.fromkeys(each.policy for each in planned(study.results(), replication_seeds(spec))))
    if not study.remeasured().samples.keys() >= {policy.hash for policy in points}:
        study.set_remeasured(latency.remeasure(points))
    finetune_front(study, events)


def _propose(study: Study, latency: LatencyPass, table: LatencyTable) -> LatencyTable:
    """Propose and store the initial trials. Returns the table, with the latencies of all of them measured.

    A policy chosen by a predicted latency is often one whose latency is predicted too low. So where the table predicts, the
    chosen policies are measured, the prediction is fitted again, and the choice is repeated.
    """
    spec, events = study.spec, latency.events
    events.phase("quantizing the stages one at a time")
    context = latency.context
    probes = probe(context, latency.graph, study.space, events.phase)
    for _ in range(CHOICES):
        proposed = propose_initial_trials(
            context, study.space, spec.objectives, table, spec.initial_trials, probes, study.constraints, study.warm_start
        )
        fuller = latency.add(table, [Policy.from_dict(policy) for policy in proposed.initial_trials])
        if fuller is table:
            break
        table = fuller
        atomic_write_text(study.latency_path, table.model_dump_json(indent=1))
    study.set_initial_trials(proposed)
    return table
