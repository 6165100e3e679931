from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from canvaslm.errors import UsageError
from canvaslm.text.stop import StopStrings

TEXT = st.text(st.sampled_from("abc"), max_size=30)


def _oracle(stops: list[str], text: str) -> tuple[str, str | None]:
    """Earliest start, then longest."""
    found = [(text.find(s), -len(s), s) for s in stops if s in text]
    return (text[: min(found)[0]], min(found)[2]) if found else (text, None)


@given(
    stops=st.lists(TEXT.filter(bool), min_size=1, max_size=4), text=TEXT, cuts=st.lists(st.integers(0, 30))
)
def test_any_cutting_gives_the_earliest_match(stops: list[str], text: str, cuts: list[int]) -> None:
    matcher = StopStrings(stops)
    edges = [0, *sorted(min(c, len(text)) for c in cuts), len(text)]
    seen = "".join(matcher.feed(text[a:b]) for a, b in itertools.pairwise(edges)) + matcher.close()
    assert (seen, matcher.matched) == _oracle(stops, text)


def test_only_what_may_become_a_match_is_held_back() -> None:
    matcher = StopStrings(["END"])
    assert [matcher.feed(t) for t in ("on E", "N", "T E", "N", "D x", "more")] == [
        "on ",
        "",
        "ENT ",
        "",
        "",
        "",
    ]
    assert matcher.matched == "END"
    assert matcher.close() == ""


def test_a_match_waits_for_an_earlier_one() -> None:
    matcher = StopStrings(["abcd", "bc"])
    assert matcher.feed("abc") == ""
    assert matcher.matched is None
    assert matcher.feed("x") == "a"
    assert matcher.matched == "bc"


def test_one_string_and_none() -> None:
    assert StopStrings("\n").feed("a\nb") == "a"
    assert StopStrings([]).feed("a\nb") == "a\nb"


@pytest.mark.parametrize("stops", ["", [""], ["a", ""], ["x"] * 65, ["x" * 1025], [3]])
def test_unreasonable_stops(stops: object) -> None:
    with pytest.raises(UsageError) as caught:
        StopStrings(stops)  # type: ignore[arg-type]
    assert caught.value.param == "stop"
