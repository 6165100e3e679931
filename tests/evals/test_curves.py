"""Curves of a sweep: the area below them by hand, its interval, and the picture."""

from __future__ import annotations

from collections.abc import Sequence
from xml.etree import ElementTree

import numpy as np
import pytest

from canvaslm.evals.answers import Answer
from canvaslm.evals.curves import Curve, area, curves
from canvaslm.evals.picture import picture
from canvaslm.evals.points import grid, read_sweep
from canvaslm.evals.report import area_table, document, table
from canvaslm.evals.score import ALL, Score, pooled, wilson


def of(speeds: Sequence[float], exact: Sequence[float], most: float = 16.0) -> float:
    return area(np.array(speeds, dtype=float), np.array(exact, dtype=float), most)


@pytest.mark.parametrize(
    ("speeds", "exact", "wanted"),
    [
        ([1, 16], [1, 1], 1.0),
        ([1, 16], [1, 0], 0.5),
        ([1, 4, 16], [1, 1, 0], 0.75),
        ([2, 16], [0.5, 0.5], 0.5),  # level to the left of the slowest
        ([4], [0.8], 0.4),  # nothing to the right of the fastest
        (
            [0.25, 4],
            [1, 0.5],
            (0.75 + 0.5) / 2 / 2,
        ),  # what is slower than a token a pass only gives the slope
        ([0.5, 1], [1, 1], 0.0),
        ([0, 0], [1, 1], 0.0),  # no passes are known
    ],
)
def test_areas_by_hand(speeds: list[float], exact: list[float], wanted: float) -> None:
    assert of(speeds, exact) == pytest.approx(wanted)


def test_a_point_that_another_beats_changes_nothing_and_order_does_not_either() -> None:
    plain = of([1, 4, 16], [0.9, 0.7, 0.2])
    assert of([1, 4, 16, 3], [0.9, 0.7, 0.2, 0.6]) == plain
    assert of([16, 1, 4, 4], [0.2, 0.9, 0.7, 0.1]) == plain
    assert of([1, 4, 16], [0.9, 0.9, 0.2]) > plain


def swept(
    task: str, rights: Sequence[Sequence[int]], steps: Sequence[int] = (1, 4), seeds: int = 2
) -> list[Score]:
    """Scores of answers of 16 tokens; `rights` says of each point how many of an item's answers are right."""
    scores = []
    for point, mine, each in zip(
        grid([read_sweep(f"steps={','.join(map(str, steps))}")]), rights, steps, strict=True
    ):
        score = Score(task, point.label, point=point, seeds=seeds, seconds=2.0)
        for place, right in enumerate(mine):
            for seed in range(seeds):
                score.add(place, Answer("", 16, (each,)), seed < right)
        scores.append(score)
    return scores


def test_seeds_do_not_make_an_interval_narrower() -> None:
    one, two = (
        swept("t", [[1] * 6 + [0] * 4], steps=(1,), seeds=1)[0],
        swept("t", [[2] * 6 + [0] * 4], (1,))[0],
    )
    assert (one.share, two.share) == (0.6, 0.6)
    assert one.interval == two.interval == pytest.approx(wilson(6, 10))
    assert (two.items, two.count, two.passes, two.tokens_per_second) == (10, 20, 1.0, 160.0)
    assert two.to_dict()["right"] == [2] * 6 + [0] * 4


def test_curves_of_tasks_and_of_all() -> None:
    scores = [
        *swept("a", [[1] * 8 + [0] * 2, [2] * 10]),
        *swept("b", [[0] * 10, [2] * 5 + [0] * 5]),
    ]
    a, b, whole = curves(scores)
    assert (a.task, b.task, whole.task) == ("a", "b", ALL)
    assert a.most == b.most == 16.0
    assert a.area == pytest.approx(((0.4 + 1) / 2 * 2 + 1 * 2) / 4)
    assert whole.area == pytest.approx((a.area + b.area) / 2)
    assert [score.share for score in whole.scores] == [0.2, 0.75]
    assert [score.items for score in whole.scores] == [20, 20]
    for curve in (a, b, whole):
        assert curve.area is not None and curve.interval is not None
        low, high = curve.interval
        assert 0 <= low < curve.area < high <= 1
    assert curves(scores)[2].interval == whole.interval, "the same for ever"
    told = document("e", scores, {}, [a, b, whole], complete=False)
    assert told["complete"] is False
    assert told["curves"][0]["points"][1]["mode"] == "steps=4"
    assert told["scores"][1]["params"] == {"max_denoising_steps": 4}
    assert table(scores, "t").row_count == 4
    assert area_table([a, b, whole]).row_count == 3


def test_items_that_all_answers_share_make_an_interval_of_a_point() -> None:
    (curve,) = curves(swept("t", [[1] * 5, [2] * 5]))
    assert curve.interval == pytest.approx((curve.area, curve.area))


def test_tasks_that_are_not_done_make_no_curve() -> None:
    whole, cut = swept("a", [[1] * 4, [2] * 4]), swept("b", [[1] * 4, [2] * 4])[:1]
    assert [curve.task for curve in curves([*whole, *cut])] == ["a"]
    assert curves(cut) == []
    assert curves([Score("a", "refined", 4, 2)]) == [], "no sweep"


def test_without_steps_there_is_no_area_and_the_picture_is_over_time() -> None:
    scores = swept("a", [[1] * 4, [2] * 4])
    for score in scores:
        score.steps = score.canvases = 0
    (curve,) = curves(scores)
    assert (curve.area, curve.interval) == (None, None)
    svg = picture([curve], "t", "n")
    assert "tokens a second" in svg
    assert "tokens per pass" not in svg
    assert table(scores, "t").row_count == 2


def test_the_picture_is_whole_and_its_texts_are_escaped() -> None:
    found = curves([*swept("a<b", [[1] * 4, [2] * 4]), *swept("c", [[0] * 4, [2] * 4])])
    svg = picture(found, "m & n", "note")
    root = ElementTree.fromstring(svg)
    texts = ["".join(node.itertext()) for node in root.iter("{http://www.w3.org/2000/svg}text")]
    assert texts[:2] == ["m & n", "note"]
    assert any(text.startswith("all tasks: area 0.") for text in texts)
    assert any(text.startswith("a<b (") for text in texts)
    lines = list(root.iter("{http://www.w3.org/2000/svg}polyline"))
    assert len(lines) == 4, "two big panels, a small one for each task"
    assert picture(found, "m & n", "note") == svg


def test_pooled_scores_add_up() -> None:
    a, b = swept("a", [[1] * 3], (1,))[0], swept("b", [[2] * 5], (1,))[0]
    whole = pooled([a, b])
    assert (whole.count, whole.correct, whole.items, whole.tokens) == (16, 13, 8, 256)
    assert whole.share == 13 / 16
    assert whole.seconds == 4.0
    assert isinstance(curves([a, b]), list) and not any(isinstance(c, Curve) for c in curves([a, b]))
