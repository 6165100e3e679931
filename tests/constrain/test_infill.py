"""Lengths of holes by score, against brute force; what a canvas shows of a text with holes."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from random import Random

import pytest

from canvaslm.constrain.holes import (
    HoleSpan,
    Seam,
    TokenHole,
    TokenTemplate,
    Window,
    check_holes,
    lay_out,
    longest,
    window,
)
from canvaslm.constrain.infill import (
    Named,
    PlaceLogprobs,
    close,
    left_seam,
    lengths_by_score,
    misfit,
)
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


def _bits(*tokens: int) -> bytes:
    return bytes([sum(1 << token for token in tokens)])


def _spans(
    template: TokenTemplate, shown: Window, before: int, places: int
) -> Iterator[tuple[HoleSpan, ...]]:
    """Every way to place the holes so that all that is to be there fits on the canvas."""

    def place(number: int, start: int, before: int) -> Iterator[tuple[HoleSpan, ...]]:
        if number == len(shown.texts):
            if start + shown.closes <= places:
                yield ()
            return
        hole, text = template.holes[number], shown.texts[number]
        for stop, behind in itertools.product(range(start, places + 1), (0, *(s.count for s in hole.behind))):
            edges = bool(before) + bool(behind)
            joins = edges == 2 and stop == start + 1 and (before, behind) in hole.joined
            most = places if hole.most is None else hole.most + edges
            if not (joins or edges <= stop - start <= most):
                continue
            last = number + 1 == len(shown.texts)
            for taken in (0,) if last else (0, *(s.count for s in template.holes[number + 1].before)):
                if behind + taken <= len(text):
                    for rest in place(number + 1, stop + len(text) - behind - taken, taken):
                        yield HoleSpan(start, stop, before, behind), *rest

    return place(0, shown.left - before, before)


def _score(
    template: TokenTemplate, shown: Window, reading: PlaceLogprobs, spans: tuple[HoleSpan, ...]
) -> float:
    """Of a canvas as it is laid out: what is allowed at a place, or given, or anything."""
    layout = lay_out(template, shown, (1,) * shown.left, spans, END)
    held = {place: token for place, token in layout.given.items() if place >= spans[0].start}
    last = spans[-1].stop + len(shown.texts[-1]) - spans[-1].behind
    score = 0.0
    for place in range(spans[0].start, len(reading)):
        if shown.closes and place >= last:
            score += reading.of(place, END)
        elif place in held:
            score += reading.of(place, held[place])
        elif place in layout.allowed:
            score += float(reading.of_allowed(layout.allowed[place])[place])
        else:
            score += float(reading.best[place])
    return score


@pytest.mark.parametrize("seed", range(60))
def test_the_best_places_are_those_of_brute_force(seed: int) -> None:
    rng = Random(seed)
    count, places = rng.choice([1, 1, 2, 3]), rng.randint(6, 9)
    texts = tuple(tuple(rng.randrange(1, VOCABULARY) for _ in range(rng.randint(1, 3))) for _ in range(count))
    holes = tuple(
        TokenHole(
            rng.choice([None, 3]),
            before=(Seam(1, _bits(3, 4)),) if i == 0 or rng.random() < 0.6 else (),
            behind=(Seam(1, _bits(1, 5)),) if len(text) > 1 and rng.random() < 0.7 else (),
            joined={(1, 1): _bits(5)} if rng.random() < 0.5 else {},
        )
        for i, text in enumerate(texts)
    )
    template = TokenTemplate(((1, 1), *texts), holes, open=False)
    shown = Window(2, 0, count, texts, rng.random() < 0.7, False, places)
    reading, before = PlaceLogprobs(_named(rng, places), VOCABULARY), rng.choice([0, 1])
    # The last text is to be whole on the canvas, as brute force has it.
    ranked = lengths_by_score(template, shown, reading, [END], 9, before)
    wanted = {s: _score(template, shown, reading, s) for s in _spans(template, shown, before, places)}
    assert bool(ranked) == bool(wanted)
    if ranked:
        assert ranked[0].score == pytest.approx(max(wanted.values()))
        best: dict[int, float] = {}
        for spans, score in wanted.items():
            best[spans[0].stop] = max(score, best.get(spans[0].stop, -math.inf))
        assert {each.spans[0].stop: each.score for each in ranked} == pytest.approx(best)
        assert all(wanted[each.spans] == pytest.approx(each.score) for each in ranked)
        assert close(ranked, 1.0, 3) == [r for r in ranked[:3] if r.score >= ranked[0].score - 1.0]


@pytest.mark.parametrize(
    ("likely", "count"), [([1, 1, 1], 0), ([3, 1, 1], 2), ([1, 4, 1], 1), ([5, 5, 1], 0), ([3, 4, 1], 2)]
)
def test_a_seam_is_where_a_token_that_goes_on_is_likelier(likely: list[int], count: int) -> None:
    hole = TokenHole(before=(Seam(1, _bits(4)), Seam(2, _bits(3))))
    reading = PlaceLogprobs([[(token, math.log(0.9))] for token in likely], VOCABULARY)
    assert left_seam(hole, (1, 1), reading) == count


def test_what_no_place_names_has_what_is_left() -> None:
    reading = PlaceLogprobs([[(1, math.log(0.5)), (2, math.log(0.2))]], 5)
    assert reading.of(0, 4) == pytest.approx(math.log(0.1))  # 0.3 for three tokens
    assert reading.mean({0: 2}) == pytest.approx(math.log(0.2))


def _template(*sizes: int, open: bool = False, most: int | None = None) -> TokenTemplate:
    """Given texts of these sizes, holes between."""
    given = tuple((1,) * size for size in sizes)
    return TokenTemplate(given, (TokenHole(most, most),) * (len(sizes) - 1), open)


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
    template = TokenTemplate(((1,) * before, (1,) * behind), (TokenHole(wish, wish),), open=False)
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


def test_a_hole_with_text_behind_it_is_refused_beyond_its_canvases() -> None:
    with pytest.raises(
        UsageError, match=r"hole 1 may have 253 tokens.*at most 252, as 4 canvases of 64 hold"
    ):
        check_holes(_template(3, 9, most=253), 64)
    check_holes(_template(3, 9, most=252), 64)
    check_holes(_template(3, 0, open=True, most=253), 64)
    assert longest(_template(3, 1), 0, 64) == 255


def test_a_hole_that_may_have_more_than_a_canvas_leaves_room_for_the_texts_around_it() -> None:
    shown = window(_template(40, 40, most=200), 0, 40, 64)
    assert shown.left == 32 and len(shown.texts[0]) == 16
    assert window(_template(5, 6, 7), 0, 5, 64, alone=True).last == 1


def test_how_far_given_text_is_from_what_its_places_say() -> None:
    likely = [[(token, math.log(0.8)), (5, math.log(0.1))] for token in (1, 2, 3, END)]
    reading = PlaceLogprobs(likely, VOCABULARY)
    fits, other = Window(1, 0, 1, ((3,),), True, False, 4), Window(1, 0, 1, ((5,),), True, False, 4)
    template = TokenTemplate(((1,), (3,)), (TokenHole(),), open=False)
    (best, *_) = lengths_by_score(template, fits, reading, [END], 9)
    assert best.spans[0] == HoleSpan(1, 2)
    assert misfit(best, fits, reading) == pytest.approx(0)
    (best, *_) = lengths_by_score(template, other, reading, [END], 9)
    # Two places are given, of which the text is one.
    assert misfit(best, other, reading) == pytest.approx(reading.best[2] - reading.of(2, 5))


def test_places_of_a_hole_take_what_its_seams_say() -> None:
    hole = TokenHole(
        between=_bits(1, 2, 3),
        before=(Seam(1, _bits(1)),),
        behind=(Seam(1, _bits(2)), Seam(2, _bits(3))),
        joined={(1, 2): _bits(5)},
    )
    template = TokenTemplate(((5, 5), (4, 4, 4)), (hole,), open=False)
    shown = window(template, 0, 2, 16)
    layout = lay_out(template, shown, (5, 5), [HoleSpan(1, 4, 1, 2)], END)
    assert layout.given == {0: 5, 4: 4, 5: END}
    assert layout.allowed == {1: _bits(1), 2: _bits(1, 2, 3), 3: _bits(3)}
    layout = lay_out(template, shown, (5, 5), [HoleSpan(1, 2, 1, 2)], END)
    assert layout.given == {0: 5, 2: 4, 3: END} and layout.allowed == {1: _bits(5)}
    layout = lay_out(template, shown, (5, 5), [HoleSpan(2, 2)], END)
    assert layout.given == {0: 5, 1: 5, 2: 4, 3: 4, 4: 4, 5: END} and layout.allowed == {}
