"""Regular constraints in the real engine: every answer is valid, whatever the model and its steps."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Unpack

import jsonschema
import pytest

import canvaslm
from canvaslm.constrain import answers
from canvaslm.constrain.regular import Regular
from canvaslm.constrain.vocabulary import Vocabulary
from canvaslm.engine import Driver, Engine
from canvaslm.options import StreamOptions
from canvaslm.types import Committed, Event, Finished, Params, Request
from tests.tiny import tiny_model

from .words import EOS, TURN_END, vocabulary, written

WORDS, PLACES = vocabulary(), 16
PATTERNS = ["[a-z]+@[a-z]+\\.(com|org)", "(true|false|null)( (true|false|null)){2,}", "(?:世界|é)+\\d{3}"]
SCHEMA = {
    "type": "object",
    "properties": {
        "name": {"type": "string"},
        "n": {"type": "integer", "minimum": 3},
        "ok": {"enum": [True]},
    },
    "required": ["name", "n"],
}


@pytest.fixture(scope="module")
def engine() -> Engine:
    return Engine(tiny_model(vocab_size=WORDS.size, canvas_length=PLACES))


def request(constraint: Regular, steps: int, seed: int, **changes: Any) -> Request:
    params = Params(max_new_tokens=60, max_denoising_steps=steps, confidence_threshold=0.02, seed=seed)
    fields: dict[str, Any] = {"params": params, "eos_token_ids": (EOS, TURN_END), "constraint": constraint}
    return Request(tuple(range(9, 30 + seed)), **{**fields, **changes})


def tokens_of(events: Sequence[Event]) -> list[int]:
    end = events[-1]
    assert isinstance(end, Finished), end
    assert end.reason == "stop"
    return [token for event in events if isinstance(event, Committed) for token in event.tokens]


@pytest.mark.parametrize("steps", [1, 8, 48])
def test_every_answer_matches_its_pattern(engine: Engine, steps: int) -> None:
    for pattern in PATTERNS:
        constraint = answers.regex(pattern, WORDS)
        for seed in range(4):
            found = tokens_of(list(Driver(engine).events(request(constraint, steps, seed))))
            assert found[-1] in (EOS, TURN_END)
            assert re.fullmatch(pattern, written(found, WORDS).decode(), re.ASCII)


@pytest.mark.parametrize("steps", [1, 8])
def test_every_answer_is_a_document(engine: Engine, steps: int) -> None:
    constraint = answers.schema(SCHEMA, WORDS)
    for seed, budget in enumerate([constraint.shortest, constraint.shortest + 1, 40, 100]):
        asked = request(constraint, steps, seed)
        asked = replace(asked, params=replace(asked.params, max_new_tokens=budget))
        found = tokens_of(list(Driver(engine).events(asked)))
        assert len(found) <= budget
        jsonschema.validate(json.loads(written(found, WORDS).decode()), SCHEMA)


def test_it_is_the_same_alone_and_in_a_crowd(engine: Engine) -> None:
    constraint = answers.schema(SCHEMA, WORDS)
    requests = [
        request(answers.regex(PATTERNS[0], WORDS), 6, 0),
        *(request(constraint, 6, s) for s in range(3)),
    ]
    ids, events = [engine.submit(asked) for asked in requests], list[Event]()
    while engine.has_work:
        events += engine.step()
    for number, asked in zip(ids, requests, strict=True):
        alone = tokens_of(list(Driver(engine).events(asked)))
        assert tokens_of([event for event in events if event.request_id == number]) == alone


def test_given_places_are_kept(engine: Engine) -> None:
    letters = {2: "q", 5: "x", PLACES - 1: "z"}
    given = {place: int(WORDS.byte_ids[ord(letter)]) for place, letter in letters.items()}
    constraint = answers.regex("[a-z]{20,30}", WORDS)
    found = tokens_of(list(Driver(engine).events(request(constraint, 4, 1, given=given))))
    assert all(found[place] == token for place, token in given.items())
    assert re.fullmatch("[a-z]{20,30}", written(found, WORDS).decode())


@pytest.fixture(scope="module")
def session() -> canvaslm.Session:
    return canvaslm.load()


def demo_words(session: canvaslm.Session) -> Vocabulary:
    tokenizer = session.tokenizer
    size, pad = session.engine.config.vocab_size, tokenizer.pad_id or 0
    names = [tokenizer.token_bytes(token) for token in range(size)]
    controls = [token for token in range(size) if tokenizer.is_control(token)]
    data = [b"" if token in controls else name for token, name in enumerate(names)]
    return Vocabulary.of(data, controls, names, session.eos_token_ids, pad, {})


def answer_of(
    session: canvaslm.Session, prompt: str, constraint: Regular, **options: Unpack[StreamOptions]
) -> str:
    asked = replace(session._request(prompt, options)[0], constraint=constraint)
    found = tokens_of(list(session.driver.events(asked)))
    return session.tokenizer.decode(found)


DEMO_PROMPT = "JSON: name=Ada, age=36"


def demo_schema(properties: Mapping[str, Any]) -> dict[str, Any]:
    return {"type": "object", "properties": dict(properties), "required": list(properties)}


@pytest.mark.parametrize("steps", [1, 8, 48])
def test_the_demo_model_answers_in_the_schema(session: canvaslm.Session, steps: int) -> None:
    words = demo_words(session)
    wanted = demo_schema({"full_name": {"type": "string"}, "age": {"type": "integer"}, "x": {"type": "null"}})
    for seed in range(3):
        text = answer_of(
            session, DEMO_PROMPT, answers.schema(wanted, words), seed=seed, max_denoising_steps=steps
        )
        jsonschema.validate(json.loads(text), wanted)


def test_a_right_answer_is_left_as_it_is(session: canvaslm.Session) -> None:
    words = demo_words(session)
    wanted = demo_schema({"name": {"type": "string"}, "age": {"type": "integer"}})
    free = session.generate(DEMO_PROMPT, seed=0).text
    assert json.loads(free).keys() == {"name", "age"}
    assert answer_of(session, DEMO_PROMPT, answers.schema(wanted, words), seed=0) == free


def test_the_values_survive_other_keys(session: canvaslm.Session) -> None:
    words = demo_words(session)
    wanted = demo_schema({"first_name": {"type": "string"}, "years": {"type": "integer"}})
    free = json.loads(session.generate(DEMO_PROMPT, seed=0).text)
    text = answer_of(session, DEMO_PROMPT, answers.schema(wanted, words), seed=0)
    assert list(json.loads(text).values()) == list(free.values())
