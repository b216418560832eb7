"""Contexts of trials for tests: prepared once for several tests in a row."""

from __future__ import annotations

import functools

from autoq.config.events import Events
from autoq.config.spec import TrialSpec
from autoq.export.onnx import export_graph
from autoq.study.study import Study
from autoq.trial.context import TrialContext, prepare
from autoq.tuning.latency_pass import LatencyPass


@functools.lru_cache(maxsize=1)
def prepared(spec: TrialSpec) -> TrialContext:
    """The context of a definition; tests that follow with the same one share it."""
    return prepare(spec)


def latency_pass(study: Study, events: Events | None = None) -> LatencyPass:
    """The latency pass of a study."""
    context = prepared(study.spec.trial)
    return LatencyPass(context, study.spec, study.space, export_graph(context.traced), events or Events())
