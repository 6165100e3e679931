"""Answers that have to be something, asked of a session; schemas of Python types."""

from __future__ import annotations

import re
from collections.abc import Iterator
from enum import Enum
from typing import Annotated, Any, Literal, NotRequired, TypedDict

import pytest

import canvaslm
from canvaslm import Session
from canvaslm.errors import UsageError
from canvaslm.session.schemas import read_answer, schema_of
from canvaslm.session.structures import structure_of


@pytest.fixture(scope="module")
def session() -> Iterator[Session]:
    with canvaslm.load() as session:
        yield session


def test_a_regex_and_a_choice_hold_for_any_seed(session: Session) -> None:
    for seed in range(4):
        text = session.generate("capital of France", regex="[A-Z]{2}-[0-9]{1,3}", seed=seed).text
        assert re.fullmatch("[A-Z]{2}-[0-9]{1,3}", text)
        assert session.generate("capital of France", choice=["Rome", "Oslo"], seed=seed).text in (
            "Rome",
            "Oslo",
        )


def test_a_right_answer_that_fits_is_left_alone(session: Session) -> None:
    free = session.generate("capital of France", seed=0)
    assert session.generate("capital of France", seed=0, regex="[A-Z][a-z]+").tokens == free.tokens


def test_what_was_compiled_is_kept(session: Session) -> None:
    first = session.prepare("x", regex="[a-f]{4}").constraint
    assert first is not None
    assert session.prepare("y", regex="[a-f]{4}").constraint is first
    assert session.prepare("y", regex="[a-f]{4}", thinking=True).constraint is not first


@pytest.mark.parametrize(
    ("options", "param", "words"),
    [
        ({"regex": "(a"}, "regex", "never closed"),
        ({"regex": 5}, "regex", "should be a text"),
        ({"choice": "yes"}, "choice", "should be a list of texts"),
        ({"choice": []}, "choice", "one text at least"),
        ({"bad_words": [""]}, "bad_words", "one character at least"),
        ({"bad_words": "no"}, "bad_words", "should be a list of texts"),
        ({"regex": "a", "choice": ["a"]}, "choice", "cannot both hold"),
        ({"regex": "a{50}", "max_new_tokens": 9}, "max_new_tokens", "has 51 tokens, and there is room for 9"),
        ({"regex": "a" * 70_000}, "regex", "65536 are the most"),
        ({"schema": 5}, "schema", "a JSON schema, a pydantic model or a TypedDict"),
        ({"schema": {"enum": [{1, 2}]}}, "schema", "should be plain JSON"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_refused_by_name(
    session: Session, options: dict[str, Any], param: str, words: str
) -> None:
    with pytest.raises(UsageError, match=words) as caught:
        session.generate("x", **options)
    assert caught.value.param == param


class Colour(Enum):
    RED = "red"
    BLUE = "blue"


class Point(TypedDict):
    x: int
    y: float


class Drawing(TypedDict):
    name: str
    colour: Colour
    kind: Literal["open", 3]
    points: list[Point]
    size: tuple[int, int]
    note: NotRequired[str | None]
    tags: Annotated[dict[str, bool], "free"]


def test_typed_dicts_become_schemas() -> None:
    point = {"type": "object", "properties": {"x": {"type": "integer"}, "y": {"type": "number"}},
             "required": ["x", "y"], "additionalProperties": False}  # fmt: skip
    whole = {"type": "integer"}
    assert schema_of(Drawing) == {
        "type": "object",
        "properties": {
            "name": {"type": "string"},
            "colour": {"enum": ["red", "blue"]},
            "kind": {"enum": ["open", 3]},
            "points": {"type": "array", "items": point},
            "size": {"type": "array", "prefixItems": [whole, whole], "items": False, "minItems": 2},
            "note": {"anyOf": [{"type": "string"}, {"type": "null"}]},
            "tags": {"type": "object", "additionalProperties": {"type": "boolean"}},
        },
        "required": ["name", "colour", "kind", "points", "size", "tags"],
        "additionalProperties": False,
    }


class Chain(TypedDict):
    next: Chain | None


class Odd(TypedDict):
    when: complex


@pytest.mark.parametrize("kind", [Chain, Odd, int, list[int], "object"])
def test_types_without_a_schema_are_refused(kind: Any) -> None:
    with pytest.raises(UsageError, match="schema"):
        schema_of(kind)


def test_answers_are_read_back() -> None:
    pydantic = pytest.importorskip("pydantic")
    model = pydantic.create_model("Model", name=(str, ...), year=(int, 3))
    assert read_answer(model, '{"name": "a"}') == model(name="a", year=3)
    assert read_answer(Point, '{"x": 1, "y": 2.5}') == {"x": 1, "y": 2.5}
    assert read_answer({}, "[1, 2") is None
    structure = structure_of({"schema": model})
    assert structure is not None
    assert '"year"' in structure.source


def test_a_validator_that_refuses_an_answer_is_told_with_its_field(session: Session) -> None:
    pydantic = pytest.importorskip("pydantic")

    class City(pydantic.BaseModel):  # type: ignore[misc, name-defined]
        name: Literal["Paris"]

        @pydantic.field_validator("name")  # type: ignore[untyped-decorator]
        @classmethod
        def _never(cls, value: str) -> str:
            raise ValueError("no town of mine")

        @pydantic.model_validator(mode="before")  # type: ignore[untyped-decorator]
        @classmethod
        def _whole(cls, value: Any) -> Any:
            if value == {"name": "whole"}:
                raise ValueError("not like this")
            return value

    words = r"validator of City refuses it: name: Value error, no town of mine\..*\"Paris\""
    with pytest.raises(UsageError, match=words) as caught:
        session.generate("capital of France", schema=City, seed=0)
    assert caught.value.param == "schema" and isinstance(caught.value.__cause__, pydantic.ValidationError)
    with pytest.raises(UsageError, match="the whole: Value error, not like this"):
        read_answer(City, '{"name": "whole"}')


def test_a_schema_of_a_type_comes_back_as_one(session: Session) -> None:
    pydantic = pytest.importorskip("pydantic")
    city = pydantic.create_model("City", name=(str, ...), country=(Literal["France", "Japan"], ...))
    for seed in range(3):
        reply = session.generate("capital of France", schema=city, seed=seed)
        assert isinstance(reply.parsed, city)
        assert session.generate("capital of France", schema=Point, seed=seed).parsed.keys() == {"x", "y"}
    (many,) = session.generate_many(["capital of France"], schema=city, seed=0)
    assert isinstance(many.parsed, city)
    assert session.generate("capital of France", seed=0).parsed is None


def test_beyond_the_automaton_llguidance_takes_over(session: Session) -> None:
    pytest.importorskip("llguidance")
    assert session.generate("x", schema={"type": "integer", "multipleOf": 5}, seed=1).parsed % 5 == 0
    assert re.fullmatch(
        "a(b|c)+z", session.generate("x", grammar='root ::= "a" ("b" | "c")+ "z"', seed=1).text
    )
    nested = session.generate("x", grammar='start: "a" start "b" | "x"', seed=1).text
    assert re.fullmatch("a*xb*", nested)
    assert nested.count("a") == nested.count("b")


def test_what_nothing_can_see_to_is_refused_with_both_reasons(session: Session) -> None:
    with pytest.raises(UsageError, match=r"uniqueItems.*nor by way of a grammar") as caught:
        session.generate("x", schema={"type": "array", "uniqueItems": True})
    assert caught.value.param == "schema"
