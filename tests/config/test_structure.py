"""Structures as data, in words, and as earlier versions stored them."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from autoq.config.structure import Structure

MIXED = Structure(stages=("head", "body", "up", "tail"), integer=("body", "up"), skips=("body",))


def test_words_are_for_reading_and_read_from_earlier_files() -> None:
    words = "head float, body int8+skip, up int8, tail float"
    assert MIXED.in_words(8) == words
    assert MIXED.in_words(16) == "head float, body int+skip, up int, tail float"
    assert Structure.model_validate(words) == Structure.model_validate(MIXED.in_words(16)) == MIXED
    assert Structure.model_validate("") == Structure()
    for broken in ("body", "body int8 float", "words of another kind"):
        with pytest.raises(ValidationError):
            Structure.model_validate(broken)


def test_changes_are_counted_in_the_order_of_the_stages() -> None:
    assert MIXED.changes() == 2
    assert MIXED.ordered(("body", "head", "up", "tail")).changes() == 3
    assert Structure(stages=MIXED.stages, integer=MIXED.stages).changes() == 0


def test_integer_skips_alone_are_not_the_float_network() -> None:
    assert Structure(stages=("body",)).is_float
    assert not Structure(stages=("body",), skips=("body",)).is_float
