"""Evals, and the demo's, with answerers that know everything, nothing, or half."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from canvaslm.demo.tasks import TASKS, held_out
from canvaslm.errors import UsageError
from canvaslm.evals.answers import Answer, Conversation, Pieces
from canvaslm.evals.demo import heldout_items
from canvaslm.evals.report import document, markdown, table, write
from canvaslm.evals.run import MISSES_KEPT, EvalOptions, evaluate
from canvaslm.evals.score import Score, wilson

SEED = 3


class Oracle:
    """Looks the answers up; `right` says of a place in the list whether to tell. Notes the
    parameters it was given."""

    def __init__(self, options: EvalOptions, right: Callable[[int], bool] = lambda place: True) -> None:
        items = [item for task in options.chosen() for item in task.items(options.count, options.seed)]
        self.answers = {_question(i.messages, i.pieces() if i.holes else None): i.answer for i in items}
        self.right = right
        self.calls: list[dict[str, Any]] = []

    def __call__(
        self,
        conversations: Sequence[Conversation],
        seeds: Sequence[int],
        *,
        pieces: Sequence[Pieces] | None = None,
        structures: Sequence[Mapping[str, Any]] | None = None,
        **params: Any,
    ) -> Iterator[tuple[int, Answer]]:
        assert len(set(seeds)) == len(conversations)
        self.calls.append(params if structures is None else {**params, "structures": structures})
        for place in reversed(range(len(conversations))):
            question = _question(conversations[place], None if pieces is None else pieces[place])
            yield place, Answer(self.answers[question] if self.right(place) else "", tokens=10, steps=(3, 2))


def _question(conversation: Conversation, pieces: Pieces | None) -> str:
    shown = [text if given else len(text) for text, given in pieces or ()]
    return f"{conversation}{shown}"


def test_perfect_answers_score_one() -> None:
    options = EvalOptions(count=20, seed=SEED)
    scores = evaluate(Oracle(options), options)
    tasks = [t.name for t in TASKS.values() if t.evaluated]
    assert [s.task for s in scores[::2]] == [*tasks, "infill", "infill_bare"]
    assert {(s.count, s.share) for s in scores} == {(20, 1.0)}
    assert {s.steps_per_canvas for s in scores} == {2.5}
    assert {s.tokens_per_pass for s in scores} == {2.0}


def test_empty_answers_score_zero_and_a_few_are_kept() -> None:
    options = EvalOptions(count=8, tasks=("sort",), one_shot=False, seed=SEED)
    (score,) = evaluate(Oracle(options, right=lambda place: False), options)
    assert (score.correct, score.count, len(score.misses)) == (0, 8, MISSES_KEPT)
    prompt, wanted, got = score.misses[0]
    assert sorted(wanted.split()) == sorted(prompt.split(":")[1].split())
    assert got == ""


def test_answers_in_any_order_meet_their_items() -> None:
    options = EvalOptions(count=10, tasks=("json",), one_shot=False, seed=SEED)
    (score,) = evaluate(Oracle(options, right=lambda place: place % 5 == 0), options)
    assert score.correct == 2


def test_modes_differ_in_steps_alone() -> None:
    options = EvalOptions(count=2, tasks=("sudoku",), steps=7, seed=SEED)
    oracle, ticks = Oracle(options), []
    evaluate(oracle, options, lambda task, mode: ticks.append((task, mode)))
    assert [call["max_denoising_steps"] for call in oracle.calls] == [7, 1]
    assert oracle.calls[0]["max_new_tokens"] == oracle.calls[1]["max_new_tokens"] == 128
    assert ticks == [("sudoku", "refined")] * 2 + [("sudoku", "one shot")] * 2


def test_items_are_distinct_held_out_and_repeatable() -> None:
    task = TASKS["reverse"]
    items = heldout_items(task, 100, 0)
    assert len({item.key for item in items}) == 100
    assert all(held_out(item.key, task.one_in) for item in items)
    assert items == heldout_items(task, 100, 0)
    assert items != heldout_items(task, 100, 1)
    assert items[:10] == heldout_items(task, 10, 0)


def test_a_small_universe_gives_what_it_has() -> None:
    assert 500 <= len(heldout_items(TASKS["capitals"], 2000, 0)) < 600


def test_unknown_names_and_counts_are_refused() -> None:
    with pytest.raises(UsageError, match=r"no eval or task is called 'mmlu'; demo has sudoku.* are lists"):
        EvalOptions(tasks=("mmlu",)).chosen()
    with pytest.raises(UsageError, match="did you mean sudoku"):
        EvalOptions(tasks=("soduku",)).chosen()
    with pytest.raises(UsageError, match="'small_talk'"):
        EvalOptions(tasks=("small_talk",)).chosen()
    with pytest.raises(UsageError, match="no task is called 'coppy': did you mean copy"):
        EvalOptions(tasks=("lists:coppy",)).chosen()
    with pytest.raises(UsageError, match="no eval is called 'mmlu'; there are demo, lists"):
        EvalOptions(tasks=("mmlu:law",)).chosen()
    with pytest.raises(UsageError, match="at least one"):
        EvalOptions(count=0).chosen()
    with pytest.raises(UsageError, match="at least one"):
        EvalOptions(seeds=0).chosen()


@pytest.mark.parametrize(
    ("correct", "count", "low", "high"), [(0, 0, 0, 1), (50, 100, 0.4038, 0.5962), (500, 500, 0.9924, 1)]
)
def test_wilson_interval(correct: int, count: int, low: float, high: float) -> None:
    assert wilson(correct, count) == pytest.approx((low, high), abs=1e-4)


def test_reports_say_the_same(tmp_path: Path) -> None:
    scores = [Score("sort", "refined", 4, 3, 4, 10, 50), Score("sort", "one shot", 4, 1, 4, 4, 50)]
    content = document("demo", scores, {"seed": 0})
    write(tmp_path / "out.json", content)
    read = json.loads((tmp_path / "out.json").read_text())
    assert read["settings"] == {"seed": 0}
    assert [s["exact_match"] for s in read["scores"]] == [0.75, 0.25]
    assert read["scores"][0]["steps_per_canvas"] == 2.5
    assert read["scores"][0]["tokens_per_pass"] == 5.0
    row = markdown(scores).splitlines()[2]
    assert row.startswith("| sort | 4 | 0.750 |")
    assert "| 0.250 |" in row
    assert table(scores, "t").row_count == 1
    with pytest.raises(UsageError, match="no such folder"):
        write(tmp_path / "no" / "out.json", content)


def test_forms_are_asked_for_and_their_answers_judged() -> None:
    options = EvalOptions(count=6, structure=True, seed=SEED)
    oracle = Oracle(options, right=lambda place: place % 2 == 0)
    scores = evaluate(oracle, options)
    assert [s.task for s in scores[::4]] == ["sudoku", "json"]
    assert [s.mode for s in scores[:4]] == ["refined", "refined, schema", "one shot", "one shot, schema"]
    assert {(s.correct, s.valid) for s in scores} == {(3, 3)}, "an empty answer has no form"
    assert ["structures" in call for call in oracle.calls] == [False, True] * 4
    (schema,) = oracle.calls[5]["structures"][0].values()
    assert schema["type"] == "object"
    assert set(schema["required"]) == set(schema["properties"])
    assert document("demo", scores, {})["scores"][0]["valid"] == 3
    assert markdown(scores).count("valid") == 4
    assert table(scores, "x").row_count == 8
    with pytest.raises(UsageError, match="sort: its answers have no form"):
        EvalOptions(tasks=("sort",), structure=True).chosen()


def test_an_answer_of_another_form_is_right_of_no_schema() -> None:
    task = TASKS["json"]
    (item,) = heldout_items(task, 1, 0)
    pairs = json.loads(item.answer)
    assert task.valid(item, json.dumps(pairs, indent=1))
    assert not task.valid(item, json.dumps({**pairs, "more": 1}))
    assert not task.valid(item, json.dumps(dict.fromkeys(pairs)))
    assert not task.valid(item, "[]")
    assert not task.valid(item, item.answer[:-1])
