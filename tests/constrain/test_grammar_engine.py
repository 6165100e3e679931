"""Grammars in the real engine, and what happens where the context ends before the budget does."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import pytest
from llguidance import LLMatcher

from canvaslm.constrain import answers
from canvaslm.constrain.grammar import gbnf, json_schema, lark
from canvaslm.engine import Driver, Engine
from canvaslm.errors import UsageError
from canvaslm.model.diffusion_gemma import DiffusionGemma
from canvaslm.types import Committed, Constraint, Event, Failed, Finished, Params, Request
from tests.tiny import tiny_model

from .judge import accepts
from .random_schemas import check_json, whole
from .words import EOS, TURN_END, vocabulary, written

WORDS, PLACES = vocabulary(), 16
TREE = 'start: node\nnode: "(" NAME node* ")"\nNAME: /[a-z]{1,8}/'
SUM = 'root ::= num ("+" num)* "=" num\nnum ::= [0-9]{1,3}'
PERSON = {
    "type": "object",
    "properties": {"name": {"type": "string"}, "tags": {"type": "array", "items": {"type": "string"}}},
    "required": ["name", "tags"],
    "additionalProperties": False,
}


@pytest.fixture(scope="module")
def model() -> DiffusionGemma:
    return tiny_model(vocab_size=WORDS.size, canvas_length=PLACES)


@pytest.fixture(scope="module")
def engine(model: DiffusionGemma) -> Engine:
    return Engine(model)


def request(constraint: Constraint, seed: int, steps: int = 4, budget: int = 60, **changes: Any) -> Request:
    params = Params(max_new_tokens=budget, max_denoising_steps=steps, confidence_threshold=0.02, seed=seed)
    fields: dict[str, Any] = {"params": params, "eos_token_ids": (EOS, TURN_END), "constraint": constraint}
    return Request(tuple(range(9, 30 + seed)), **{**fields, **changes})


def tokens_of(events: Sequence[Event]) -> list[int]:
    end = events[-1]
    assert isinstance(end, Finished), end
    assert end.reason == "stop"
    found = [token for event in events if isinstance(event, Committed) for token in event.tokens]
    assert found[-1] in (EOS, TURN_END)
    assert end.usage.completion_tokens == len(found)
    return found


@pytest.mark.parametrize("steps", [1, 8])
def test_every_answer_is_of_the_language(engine: Engine, steps: int) -> None:
    tree, arithmetic = lark(TREE, WORDS), gbnf(SUM, WORDS)
    theirs = LLMatcher.grammar_from_lark(TREE)
    for seed in range(4):
        said = written(tokens_of(list(Driver(engine).events(request(tree, seed, steps)))), WORDS)
        assert accepts(theirs, said)
        said = written(tokens_of(list(Driver(engine).events(request(arithmetic, seed, steps)))), WORDS)
        assert set(said) <= set(b"0123456789+=") and said.count(b"=") == 1


@pytest.mark.parametrize("seed", range(6))
def test_every_answer_is_a_document_in_its_budget(engine: Engine, seed: int) -> None:
    schema = whole(seed)
    constraint = json_schema(schema, WORDS)
    for budget in (constraint.shortest, constraint.shortest + 40):
        found = tokens_of(list(Driver(engine).events(request(constraint, seed, budget=budget))))
        assert len(found) <= budget
        check_json(written(found, WORDS), schema)


def test_it_is_the_same_alone_and_in_a_crowd(model: DiffusionGemma) -> None:
    tree, person = lark(TREE, WORDS), json_schema(PERSON, WORDS)
    requests = [request(constraint, seed) for seed in range(3) for constraint in (tree, person)]
    crowd = Engine(model)
    events: list[Event] = []
    ids = [crowd.submit(each) for each in requests]
    while crowd.has_work:
        events += crowd.step()
    for request_id, each in zip(ids, requests, strict=True):
        alone = tokens_of(list(Driver(Engine(model)).events(each)))
        assert tokens_of([event for event in events if event.request_id == request_id]) == alone


@pytest.mark.parametrize("made", [answers.schema, json_schema], ids=["automaton", "grammar"])
@pytest.mark.parametrize("seed", range(4))
def test_the_end_of_the_context_ends_the_document_too(model: DiffusionGemma, made: Any, seed: int) -> None:
    """Canvases that commit less than they hold leave room that no further canvas fits: what is missing is
    added to the last one."""
    constraint = made(PERSON, WORDS)
    small = Engine(model, max_context=21 + seed + 3 * PLACES + 5)
    events = list(Driver(small).events(request(constraint, seed, budget=1000)))
    value = json.loads(written(tokens_of(events), WORDS))
    assert set(value) == {"name", "tags"}


def test_what_is_too_slow_fails_alone(model: DiffusionGemma, monkeypatch: pytest.MonkeyPatch) -> None:
    """No time is left for a canvas of a grammar; beside it a schema read by its automaton goes on."""
    both, events = Engine(model), list[Event]()
    slow, well = (both.submit(request(made(PERSON, WORDS), 1)) for made in (json_schema, answers.schema))
    monkeypatch.setattr("canvaslm.constrain.grammar.SLOWEST", -1.0)
    while both.has_work:
        events += both.step()
    (error,) = [event.error for event in events if isinstance(event, Failed)]
    assert isinstance(error, UsageError) and error.param == "schema" and "too slow to follow" in str(error)
    tokens_of([event for event in events if event.request_id == well])
    assert [event.request_id for event in events if isinstance(event, Failed)] == [slow]


def test_a_budget_below_the_shortest_is_refused(engine: Engine) -> None:
    constraint = json_schema(PERSON, WORDS)
    with pytest.raises(UsageError, match=f"has {constraint.shortest} tokens"):
        engine.submit(request(constraint, 0, budget=constraint.shortest - 1))
