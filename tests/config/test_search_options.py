"""An option is declared once: the command line, `autoq.search` and the stored definitions follow from it."""

from __future__ import annotations

import inspect
import logging
from pathlib import Path
from typing import Any

import pytest

import autoq
from autoq.config.options import PretrainOptions, SearchOptions, option_of
from autoq.config.schedule import INITIAL
from autoq.config.spec import StudySpec, TrialSpec
from autoq.config.validators import flag
from autoq.errors import InputError
from autoq.images import crops


def test_options_are_read_from_text_and_from_values_alike() -> None:
    text = SearchOptions.of(
        budget="7", frame="96x64", objectives="size, psnr", constraints="size <= 4KiB", sqcl="0.5", eval_crops="9"
    )
    values = SearchOptions.of(
        budget=7, frame=(96, 64), objectives=["size", "psnr"], constraints=("size<=4KiB",), sqcl=0.5, eval_crops=9
    )
    assert text == values
    assert (values.budget, values.frame, values.objectives) == (7, (96, 64), ("size", "psnr"))
    assert (values.constraints, values.sqcl, values.eval_crops) == (("size<=4KiB",), 0.5, 9)


def test_what_is_given_is_known_from_what_is_not() -> None:
    options = SearchOptions.of(model="srgan", seed=0, steps=None, data="x")
    assert options.given() == {"model": "srgan", "data": Path("x").resolve(), "seed": 0}
    assert options.given(StudySpec) == {}
    assert options.steps == TrialSpec(model="srgan").steps == 24


def test_ptq_trains_nothing() -> None:
    assert SearchOptions.of(ptq=True).given(TrialSpec) == SearchOptions.of(ptq=True, steps=0).given(TrialSpec) == {"steps": 0}
    assert SearchOptions.of(ptq=False).given(TrialSpec) == {}


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"budget": 0}, "--budget '0': expected a whole number from 1 to 1000000, for example --budget 50"),
        ({"budget": True}, "--budget 'True': expected a whole number from 1 to 1000000, for example --budget 50"),
        ({"max_steps": 2.5}, "--max-steps '2.5': expected a whole number from 1 to 1000000, for example --max-steps 2000"),
        ({"memory": "4GB"}, "--memory '4GB': expected GiB, from 0.001 to 1000000, for example --memory 4"),
        (
            {"eval_crops": "none"},
            "--eval-crops 'none': expected a whole number from 1 to 999999, or `all`, for example --eval-crops 32",
        ),
        ({"ptq": True, "steps": "24"}, "--ptq: nothing is trained; omit --steps, or --ptq"),
        ({"images": "sr"}, "--images 'sr': expected one of hr, lr"),
        ({"stopping": "perhaps"}, "--stopping 'perhaps': Input should be a valid boolean, unable to interpret input"),
    ],
)
def test_a_value_that_cannot_be_used_is_refused(given: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError) as error:
        SearchOptions.of(**given)
    assert str(error.value) == message


def test_a_name_that_is_no_option_is_refused_with_the_nearest() -> None:
    with pytest.raises(InputError, match=r"unknown option 'bugdet' \(did you mean 'budget'\?\); type one of "):
        autoq.search("srgan", bugdet=3)


@pytest.mark.parametrize(("old", "new"), [("seeds", "initial_trials"), ("confirm", "replications")])
def test_names_of_earlier_versions_still_work(caplog: pytest.LogCaptureFixture, old: str, new: str) -> None:
    with caplog.at_level(logging.WARNING, "autoq"):
        assert SearchOptions.of(**{old: 2}) == SearchOptions.of(**{new: 2})
    assert caplog.messages == [f"--{old} is now called {flag(new)}"]


def test_the_signature_of_search_names_every_option() -> None:
    names = set(inspect.signature(autoq.search).parameters)
    assert names == {*SearchOptions.model_fields, "events", "command"}


@pytest.mark.parametrize("model", [SearchOptions, PretrainOptions])
def test_every_option_has_a_help_that_is_a_sentence(model: type[SearchOptions] | type[PretrainOptions]) -> None:
    for name in set(model.model_fields) - {"stages"}:
        words = option_of(name, model).help
        assert words[0].isupper(), name
        assert words[-1] == ".", name


def test_defaults_in_words_say_what_happens() -> None:
    assert option_of("initial_trials").default == f"half the budget, at most {INITIAL}"
    assert option_of("replications").default == "3"
    assert (
        option_of("eval_crops").default
        == f"all if the images have at most {crops.WHOLE_PIXELS:,} pixels in total, otherwise {crops.CROPS}"
    )
    assert option_of("steps").default == str(TrialSpec(model="srgan").steps)
    assert option_of("sampling").default == TrialSpec(model="srgan").sampling
