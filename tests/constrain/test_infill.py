"""Lengths of holes by score, against brute force; what a canvas shows of a text with holes."""

from __future__ import annotations

import itertools
import math
from random import Random

import pytest

from canvaslm.constrain.holes import TokenHole, TokenTemplate, Window, lay_out, window
from canvaslm.constrain.infill import Named, PlaceLogprobs, close, lengths_by_score
from canvaslm.errors import UsageError

VOCABULARY, END = 6, 0


def _named(rng: Random, places: int) -> list[Named]:
    """Distributions over all tokens but one, which has what is left."""
    made: list[Named] = []
    for _ in range(places):
        weights = [rng.random() ** 3 + 1e-3 for _ in range(VOCABULARY)]
        ranked = sorted(((w / sum(weights), t) for t, w in enumerate(weights)), reverse=True)
        made.append([(t, math.log(p)) for p, t in ranked[:-1]])
    return made


def _brute(template: TokenTemplate, shown: Window, reading: PlaceLogprobs) -> dict[tuple[int, ...], float]:
    """The score of every choice of lengths."""
    scores = {}
    places = len(reading)
    for lengths in itertools.product(range(places + 1), repeat=len(shown.texts)):
        holes = template.holes[shown.first : shown.last]
        bounds = [(h.least, places if h.most is None else h.most) for h in holes]
        if any(not a <= n <= b for n, (a, b) in zip(lengths, bounds, strict=True)):
            continue
        place, score = shown.left, 0.0
        for length, text in zip(lengths, shown.texts, strict=True):
            if place + length > places:
                break
            score += sum(reading.best[place : place + length])
            place += length
            score += sum(reading.of(place + i, t) for i, t in enumerate(text) if place + i < places)
            place += len(text)
        else:
            if place + shown.closes <= places:
                tail = range(place, places)
                score += sum(reading.of(p, END) if shown.closes else reading.best[p] for p in tail)
                scores[lengths] = score
    return scores


@pytest.mark.parametrize("seed", range(40))
def test_the_best_lengths_are_those_of_brute_force(seed: int) -> None:
    rng = Random(seed)
    count, places = rng.choice([1, 1, 2, 3]), rng.randint(6, 9)
    texts = tuple(tuple(rng.randrange(1, VOCABULARY) for _ in range(rng.randint(1, 2))) for _ in range(count))
    holes = tuple(TokenHole(rng.randint(0, 1), rng.choice([None, 3])) for _ in range(count))
    template = TokenTemplate(((1,), *texts), holes, open=False)
    shown = Window(1, 0, count, texts, rng.random() < 0.7, False, places)
    reading = PlaceLogprobs(_named(rng, places), VOCABULARY)
    # The last text is to be whole on the canvas, as brute force has it.
    ranked = lengths_by_score(template, shown, reading, [END], anchor=9)
    wanted = _brute(template, shown, reading)
    assert ranked or not wanted
    if wanted:
        best = max(wanted.values())
        assert ranked[0].score == pytest.approx(best)
        assert wanted[ranked[0].lengths] == pytest.approx(best)
        by_first = {n: max(v for k, v in wanted.items() if k[0] == n) for n in {k[0] for k in wanted}}
        assert {r.lengths[0]: r.score for r in ranked} == pytest.approx(by_first)
        assert close(ranked, 1.0, 3) == [r for r in ranked[:3] if r.score >= best - 1.0]


def test_what_no_place_names_has_what_is_left() -> None:
    reading = PlaceLogprobs([[(1, math.log(0.5)), (2, math.log(0.2))]], 5)
    assert reading.of(0, 4) == pytest.approx(math.log(0.1))  # 0.3 for three tokens
    assert reading.mean({0: 2}) == pytest.approx(math.log(0.2))


def _template(*sizes: int, open: bool = False, most: int | None = None) -> TokenTemplate:
    """Given texts of these sizes, holes between."""
    given = tuple((1,) * size for size in sizes)
    return TokenTemplate(given, (TokenHole(0, most, most),) * (len(sizes) - 1), open)


def test_a_text_that_fits_is_all_on_the_canvas() -> None:
    shown = window(_template(5, 6), 0, 5, 64)
    assert (shown.left, shown.texts, shown.closes) == (5, ((1,) * 6,), True)
    shown = window(_template(5, 6, 7), 0, 5, 64)
    assert (shown.last, shown.closes) == (2, True)


@pytest.mark.parametrize(
    ("before", "behind", "wish"), list(itertools.product([0, 9, 70], [1, 30, 90], [None, 4, 40]))
)
def test_holes_get_their_places_then_the_text_behind_then_that_before(
    before: int, behind: int, wish: int | None
) -> None:
    template = TokenTemplate(((1,) * before, (1,) * behind), (TokenHole(0, wish, wish),), open=False)
    shown = window(template, 0, before, 64)
    kept = 16 if wish is None else wish
    right = len(shown.texts[0]) + shown.closes
    assert shown.left + kept + right <= 64
    assert right >= min(behind + 1, 16, 64 - kept)
    assert shown.left == min(before, 64 - kept - min(behind + 1, 16, 64 - kept))


def test_holes_that_do_not_fit_wait_for_the_next_canvas() -> None:
    template = _template(10, 10, 10, most=30)
    assert window(template, 0, 10, 64).last == 1
    assert window(template, 1, 30, 64).last == 2


def test_a_hole_with_text_behind_it_is_refused_beyond_a_canvas() -> None:
    with pytest.raises(UsageError, match=r"hole 1 may have 61 tokens.*at most 60.*canvas of 64"):
        window(_template(3, 9, most=61), 0, 3, 64)
    assert window(_template(3, 0, open=True, most=61), 0, 3, 64).open


def test_places_of_a_hole_take_what_its_edges_say() -> None:
    hole = TokenHole(2, None, None, first=b"\x02", last=b"\x04", between=b"\x0e")
    template = TokenTemplate(((5, 5), (4,)), (hole,), open=False)
    shown = window(template, 0, 2, 16)
    layout = lay_out(template, shown, (5, 5), (4,), END)
    assert layout.given == {0: 5, 1: 5, 6: 4, 7: END}
    assert layout.allowed == {2: b"\x02", 3: b"\x0e", 4: b"\x0e", 5: b"\x04"}
    assert layout.spans == ((2, 6),)
