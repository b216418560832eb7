"""The search: baselines and suggested policies through Ray Tune, one frozen latency table before them.

The only importer of ray. Optuna decides what to try (study.py), `run_trial` what it is worth; here is the
traffic between them. Early stopping belongs in a scheduler given to `tune.TuneConfig` below, seeds in front of
the first `study.ask()` in `StudySearcher.suggest`.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import os
import shutil
import sys
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import ray
from ray import tune
from ray.tune.search import Searcher

from autoq.errors import AutoqError, InputError
from autoq.export.onnx import Graph, export_graph, load_graph, save_graph, write_qdq
from autoq.models import model_info
from autoq.objectives import latency as latencies
from autoq.policy import Policy, uniform
from autoq.quantize import Execution, place, quantize
from autoq.space import SearchSpace
from autoq.spec import Record, StudySpec, TrialResult, TrialSpec
from autoq.study import FLOAT_NAME, Study
from autoq.targets import load_target
from autoq.trial import prepare, run_trial

BASELINES = {FLOAT_NAME: "32/32/32", "8/8/8": "8/8/8", "6/6/8": "6/6/8", "4/4/8": "4/4/8"}
BASELINE_QUANTIZER, BASELINE_CLIPPING = "lsq", "mse"


@dataclass
class Events:
    """What a caller may listen to: a phase begins, a baseline or trial ends."""

    phase: Callable[[str], None] = lambda text: None
    finished: Callable[[Record], None] = lambda record: None


@dataclass
class Job:
    """A policy on its way through Ray. name: a baseline's; number: a trial's."""

    policy: Policy
    name: str | None = None
    number: int | None = None


def baselines(model: str) -> list[Job]:
    """The policies every study measures besides its trials: float first, then uniform ones."""
    stages = model_info(model).stages
    return [Job(uniform(bits, stages, BASELINE_QUANTIZER, BASELINE_CLIPPING), name=name) for name, bits in BASELINES.items()]


def environment(command: str) -> dict[str, Any]:
    """Where and how a study was started: versions, processor, command."""
    packages = ("autoq", "torch", "optuna", "ray", "openvino", "onnx", "numpy", "pyiqa")
    return {
        "command": command,
        "python": sys.version.split()[0],
        "machine": latencies.machine(),
        "versions": {name: metadata.version(name) for name in packages},
    }


def search(study: Study, table: latencies.LatencyTable | None = None, events: Events | None = None) -> None:
    """Run a new study to the end of its budget: latency table, baselines, trials.

    table: a frozen table of an earlier study, else one is measured now, alone on the machine. Raises
    AutoqError when every trial failed.
    """
    events = events or Events()
    spec = study.spec
    events.phase("preparing the float network")
    graph = _write_graph(study)
    table = table or measure_latencies(study, graph, events)
    study.latency_path.write_text(table.model_dump_json(indent=1))
    events.phase(f"running {len(BASELINES)} baselines and {spec.budget} trials of {spec.trial.steps} steps")
    jobs = baselines(spec.trial.model)
    run_jobs(StudySearcher(study, jobs, events), study, table, len(jobs) + spec.budget)
    trials = [record for record in study.records() if record.source == "trial"]
    if not any(record.state == "complete" for record in trials):
        raise AutoqError(
            f"study '{study.name}': all {len(trials)} trials failed; the last: {trials[-1].reason if trials else 'none ran'}"
        )


def _write_graph(study: Study) -> Graph:
    with quiet():
        graph = export_graph(prepare(study.spec.trial).traced)
    save_graph(graph, study.graph_path)
    return graph


def _structures(spec: StudySpec, space: SearchSpace) -> dict[str, Policy]:
    """Every structure a study's baselines and space can produce; the float network's comes first."""
    bench = prepare(spec.trial)
    return latencies.structures(bench.traced, space, bench.execution, [job.policy for job in baselines(spec.trial.model)])


def check_table(table: latencies.LatencyTable, spec: StudySpec, space: SearchSpace) -> None:
    """Raise InputError if an earlier study's table does not serve this one."""
    table.check(spec.trial.model, spec.trial.target, spec.frame, spec.latency_threads)
    missing = [key for key in _structures(spec, space) if key not in table.entries]
    if missing:
        what = f"lacks {len(missing)} structures of this network and space"
        raise InputError(f"latency table: {what}; measure again without --latency-table")


def measure_latencies(study: Study, graph: Graph, events: Events) -> latencies.LatencyTable:
    """Measure every structure the study can produce, alone, before anything else runs."""
    spec = study.spec
    bench = prepare(spec.trial)
    execution: Execution = bench.execution
    policies = _structures(spec, study.space)
    events.phase(f"measuring the latency of {len(policies)} graph structures")
    target = load_target(spec.trial.target)

    def file(policy: Policy) -> bytes:
        model = write_qdq(graph, quantize(bench.traced, policy, bench.statistics, execution))
        return bytes(model.SerializeToString())

    float_key, *keys = policies  # the float baseline comes first
    float_samples, samples = latencies.measure(
        {key: functools.partial(file, policies[key]) for key in keys},
        file(policies[float_key]),
        lambda data: target.load(data, spec.latency_threads),
        spec.frame,
        progress=lambda done, total: events.phase(f"measured {done} of {total} graph structures"),
    )
    return latencies.table_document(
        model=spec.trial.model,
        target=spec.trial.target,
        runtime=target.version(),
        frame=spec.frame,
        threads=spec.latency_threads,
        machine=latencies.machine(),
        samples={
            key: (latencies.describe(bench.traced, place(bench.traced, policies[key], execution), execution), values)
            for key, values in {float_key: float_samples, **samples}.items()
        },
    )


# ------------------------------------------------------------ Ray


class StudySearcher(Searcher):
    """Ray asks here for the next policy and reports here how it ended. Baselines go first, then what Optuna suggests."""

    def __init__(self, study: Study, jobs: list[Job], events: Events) -> None:
        super().__init__()
        self.study, self.events = study, events
        self.waiting = list(jobs)
        self.running: dict[str, Job] = {}

    def suggest(self, trial_id: str) -> dict[str, Any] | None:
        if self.waiting:
            job = self.waiting.pop(0)
        else:
            number, policy = self.study.ask()
            job = Job(policy, number=number)
        self.running[trial_id] = job
        return {"policy": job.policy.to_dict()}

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        job = self.running.pop(trial_id)
        if error or not result or "result" not in result:
            outcome = TrialResult(state="failed", reason="the worker process stopped with an error")
        else:
            outcome = TrialResult.model_validate_json(result["result"])
        structure = self._structure(job.policy)
        if job.number is None:
            assert job.name is not None
            record = self.study.add_baseline(job.name, job.policy, outcome, structure)
        else:
            record = self.study.tell(job.number, outcome, structure)
        self.events.finished(record)

    def _structure(self, policy: Policy) -> str:
        bench = prepare(self.study.spec.trial)
        return latencies.describe(bench.traced, place(bench.traced, policy, bench.execution), bench.execution)

    def save(self, checkpoint_path: str) -> None:
        """Ray asks for checkpoints of the searcher; the study's storage is the state."""

    def __getstate__(self) -> dict[str, Any]:
        """Ray pickles its whole configuration; nothing of the searcher is needed elsewhere."""
        return {}


class TrialActor(tune.Trainable):
    """A worker process: one `step` is one whole trial. Reused from trial to trial, it keeps only the workbench."""

    def setup(  # type: ignore[override]
        self, config: dict[str, Any], spec: TrialSpec, table: latencies.LatencyTable, graph_path: Path
    ) -> None:
        self.spec, self.table = spec, table
        self.graph = load_graph(graph_path)

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        self.config = new_config
        return True

    def step(self) -> dict[str, Any]:
        try:
            result = run_trial(self.spec, Policy.from_dict(self.config["policy"]), self.table, self.graph)
        except Exception as error:  # noqa: BLE001 - one broken trial must not end a study; its cause is recorded
            result = TrialResult(state="failed", reason=f"{type(error).__name__}: {' '.join(str(error).split())}")
        return {"result": result.model_dump_json(), "done": True}  # as text: Ray flattens nested results

    def save_checkpoint(self, checkpoint_dir: str) -> dict[str, Any]:
        """Ray saves every trial as it ends; a finished trial's result is all there is."""
        return {}

    def load_checkpoint(self, checkpoint: Any) -> None:
        """See `save_checkpoint`."""


def run_jobs(searcher: StudySearcher, study: Study, table: latencies.LatencyTable, count: int) -> None:
    """Run `count` jobs on `workers` processes of this machine; Ray listens on 127.0.0.1 only."""
    spec = study.spec
    scratch = (study.folder / "ray").resolve()
    os.environ.update(RAY_USAGE_STATS_ENABLED="0", TUNE_DISABLE_AUTO_CALLBACK_LOGGERS="1", RAY_AIR_NEW_OUTPUT="0")
    with quiet():
        ray.init(
            address="local",
            num_cpus=spec.workers,
            include_dashboard=False,
            log_to_driver=False,
            logging_level=logging.ERROR,
            _node_ip_address="127.0.0.1",
            runtime_env={"env_vars": {"OMP_NUM_THREADS": str(spec.trial.threads)}},
        )
        try:
            trainable = tune.with_parameters(TrialActor, spec=spec.trial, table=table, graph_path=study.graph_path.resolve())
            tune.Tuner(
                tune.with_resources(trainable, {"cpu": 1}),
                tune_config=tune.TuneConfig(
                    search_alg=searcher, num_samples=count, max_concurrent_trials=spec.workers, reuse_actors=True
                ),
                run_config=tune.RunConfig(name="trials", storage_path=str(scratch), verbose=0),
            ).fit()
        finally:
            ray.shutdown()
    shutil.rmtree(scratch, ignore_errors=True)
    if len(study.records()) < count:  # Ray turns Ctrl-C into an early return
        raise KeyboardInterrupt


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keep the chatter of torch's exporter and of Ray from the user; errors still come through."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
