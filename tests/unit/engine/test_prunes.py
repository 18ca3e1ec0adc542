"""Filters of prune, and ps's filters by name, by docker's rules."""

from __future__ import annotations

import pytest

from knarr.engine import prunes
from knarr.model.errors import Invalid

MOMENT = {"then": 100}


def parse(*texts: str) -> prunes.Filters:
    return prunes.parse(list(texts), lambda _, text: MOMENT[text])


@pytest.mark.parametrize(
    ("filters", "found"),
    [
        ((), True),
        (("until=then",), True),
        (("label=a",), True),
        (("label=a=1",), True),
        (("label=a=2",), False),
        (("label=a", "label=b"), False),
        (("label!=b",), True),
        (("label!=a=2",), True),
        (("label!=a",), False),
    ],
)
def test_filters_of_prune(filters: tuple[str, ...], found: bool) -> None:
    assert parse(*filters).match(99, {"a": "1"}) is found


def test_what_is_as_young_as_the_limit_stays() -> None:
    assert not parse("until=then").match(100, {})


@pytest.mark.parametrize("text", ["colour=red", "until", "label=", "label"])
def test_unknown_filters_are_refused(text: str) -> None:
    with pytest.raises(Invalid):
        parse(text)
