"""The baselines: policies that every study is compared with."""

from __future__ import annotations

import contextlib
from dataclasses import replace

from autoq.config.policy import Policy, uniform
from autoq.config.space import SpaceFacts
from autoq.errors import PolicyError
from autoq.study.results import FLOAT_NAME

UNIFORM = {FLOAT_NAME: "32/32/32", "8/8/8": "8/8/8", "6/6/8": "6/6/8", "4/4/8": "4/4/8"}


FIRST_LAST_16 = "first-last-16"


BASELINE_QUANTIZER = "lsq"


WIDE_CLIPPING, NARROW_CLIPPING = "minmax", "mse"
"""Range estimators of the baselines from 8 bits on, and below (benchmarks/qat_gain.py --start)."""


def baselines(facts: SpaceFacts, first_last_16: bool) -> dict[str, Policy]:
    """The policies that every study measures besides its trials: float first, then uniform ones.

    `first_last_16` adds the rule of Liu et al. 2021 (Super-Resolution Model Quantized in Multi-Precision): 16 bits for the first
    and the last stage, 8 in between. Policies with widths that the target lacks are left out.
    """
    names = list(facts.stages)
    by_hand = ",".join(f"{stage}={'16/16/16' if stage in (names[0], names[-1]) else '8/8/8'}" for stage in names)
    policies = {**UNIFORM, FIRST_LAST_16: by_hand} if first_last_16 else UNIFORM
    found = {}
    for name, bits in policies.items():
        with contextlib.suppress(PolicyError):
            found[name] = baseline(uniform(bits, facts.stages, BASELINE_QUANTIZER, formats=facts.formats, output=facts.output))
    return found


def baseline(policy: Policy) -> Policy:
    """The policy with the baselines' range estimator for every width."""
    return policy.mapped(lambda _, quant: replace(quant, clipping=NARROW_CLIPPING if quant.bits < 8 else WIDE_CLIPPING))
