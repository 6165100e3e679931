"""Grammars and schemas through llguidance: what is committed is valid, whatever the model says."""

from __future__ import annotations

import json
import threading
from dataclasses import replace

import pytest
from llguidance import LLMatcher

from canvaslm.constrain.answers import Thought
from canvaslm.constrain.gbnf import gbnf_to_lark
from canvaslm.constrain.grammar import Grammar, gbnf, json_schema, lark
from canvaslm.constrain.vocabulary import Vocabulary
from canvaslm.errors import UsageError
from canvaslm.types import Readout

from .judge import accepts, accepts_json
from .random_schemas import TOP, answer, check_json, noise, whole
from .words import EOS, PAD, vocabulary, written

PLACES = 48
WORDS = vocabulary()

ARITHMETIC = r"""
root  ::= (expr "=" ws term "\n")+
expr  ::= term ([-+*/] term)*
term  ::= ident | num | "(" ws expr ")" ws
ident ::= [a-z] [a-z0-9_]* ws
num   ::= [0-9]+ ws
ws    ::= [ \t\n]*
"""
JSON = r"""
root   ::= object
value  ::= object | array | string | number | ("true" | "false" | "null") ws
object ::= "{" ws ( string ":" ws value ("," ws string ":" ws value)* )? "}" ws
array  ::= "[" ws ( value ("," ws value)* )? "]" ws
string ::= "\"" ( [^"\\\x7F\x00-\x1F] | "\\" (["\\bfnrt] | "u" [0-9a-fA-F]{4}) )* "\"" ws
number ::= ("-"? ([0-9] | [1-9] [0-9]{0,15})) ("." [0-9]+)? ([eE] [-+]? [0-9] [1-9]{0,15})? ws
ws     ::= | " " | "\n" [ \t]{0,20}
"""
LIST = r"""
root ::= item+
item ::= "- " [^\r\n\x0b\x0c\x85\u2028\u2029]+ "\n"
"""
TREE = r"""
start: node
node: "(" NAME node* ")"
NAME: /[a-z]{1,8}/
"""
PERSON = {
    "type": "object",
    "properties": {"name": {"type": "string"}, "old": {"type": "boolean"}},
    "required": ["name", "old"],
    "additionalProperties": False,
}


def sure(text: bytes, places: int = PLACES, room: int = 1000, given: frozenset[int] = frozenset()) -> Readout:
    """A canvas that says a text a byte a place, then its end, with the rest of its weight spread thin."""
    said = [int(WORDS.byte_ids[byte]) for byte in text]
    said += [EOS, *[PAD] * places][: places - len(said)]
    assert len(said) == places
    others = range(40, 40 + TOP)
    rows = tuple((token, *[other for other in others if other != token][: TOP - 1]) for token in said)
    logprobs = tuple((-0.01, *[-8.0 - i for i in range(TOP - 1)]) for _ in said)
    return Readout(tuple(said), tuple(i in given for i in range(places)), rows, logprobs, room)


def text_of(tokens: tuple[int, ...]) -> bytes:
    return written(tokens, WORDS)


@pytest.mark.parametrize("first", range(0, 200, 20))
def test_random_schemas_on_noise(first: int) -> None:
    """Valid by jsonschema's judgement and by llguidance's, on one to three canvases."""
    for seed in range(first, first + 20):
        schema = whole(seed)
        compiled = json_schema(schema, WORDS)
        budget = max(compiled.shortest, PLACES * (1 + seed % 3))
        text = text_of(answer(compiled, seed, WORDS, PLACES, budget))
        check_json(text, schema)
        assert accepts_json(schema, text), (seed, text)


@pytest.mark.parametrize("seed", range(30))
def test_the_shortest_budget_is_enough(seed: int) -> None:
    schema = whole(seed)
    compiled = json_schema(schema, WORDS)
    tokens = answer(compiled, seed, WORDS, PLACES, compiled.shortest)
    assert len(tokens) <= compiled.shortest
    check_json(text_of(tokens), schema)
    with pytest.raises(UsageError, match=f"needs {compiled.shortest} more tokens") as caught:
        compiled.project(compiled.start(), noise(0, PLACES, WORDS.size, compiled.shortest - 1))
    assert caught.value.param == "max_new_tokens"


@pytest.mark.parametrize("text", [ARITHMETIC, JSON, LIST], ids=["arithmetic", "json", "list"])
def test_grammars_of_llama_cpp_on_noise(text: str) -> None:
    words_apart = LLMatcher.grammar_from_lark(gbnf_to_lark(text)[1])
    compiled = gbnf(text, WORDS)
    for seed in range(25):
        budget = max(compiled.shortest, PLACES * (1 + seed % 3))
        said = text_of(answer(compiled, seed, WORDS, PLACES, budget))
        assert accepts(words_apart, said), (seed, said)
        if text == JSON:
            assert isinstance(json.loads(said), dict)


def test_a_lark_grammar_on_noise() -> None:
    compiled = lark(TREE, WORDS)
    for seed in range(25):
        said = text_of(answer(compiled, seed, WORDS, PLACES, PLACES * (1 + seed % 3)))
        assert accepts(LLMatcher.grammar_from_lark(TREE), said), (seed, said)


@pytest.mark.parametrize("text", [b'{"name": "Ada", "old": false}', b'{"name":"","old":true}'])
def test_a_valid_canvas_stays_as_it_is(text: bytes) -> None:
    compiled = json_schema(PERSON, WORDS)
    projection = compiled.project(compiled.start(), sure(text))
    assert text_of(projection.tokens) == text
    assert projection.ended and projection.places == tuple(range(len(text) + 1))


@pytest.mark.parametrize(
    ("said", "meant"),
    [
        (b'{"name": "Ada" "old": false}', b'{"name": "Ada", "old": false}'),  # no comma
        (b'{"name": "Ada",, "old": false}', b'{"name": "Ada", "old": false}'),
        (b'{"name": "Ada", "old": false', b'{"name": "Ada", "old": false}'),  # ends too early
        (b'{"name": "Ada", old": false}', b'{"name": "Ada", "old": false}'),
        (b'{"name": "Ada", "old": falsee}', b'{"name": "Ada", "old": false}'),
        (b'Sure: {"name": "Ada", "old": true}', b'{"name": "Ada", "old": true}'),
    ],
)
def test_small_damage_is_mended_in_place(said: bytes, meant: bytes) -> None:
    """Places are left out and bytes put in: what was right is not replaced."""
    compiled = json_schema(PERSON, WORDS)
    projection = compiled.project(compiled.start(), sure(said))
    assert json.loads(text_of(projection.tokens)) == json.loads(meant)
    assert len(text_of(projection.tokens)) == len(meant)


def test_a_long_answer_goes_on_and_ends_with_its_budget() -> None:
    """A string that never closes: as much of it as can be, cut where its end still fits."""
    compiled = json_schema(PERSON, WORDS)
    state, text, room = compiled.start(), b"", 110
    said = (b'{"name": "' + b"x" * 200)[:200]
    for begin in (0, PLACES, 2 * PLACES):
        projection = compiled.project(state, sure(said[begin : begin + PLACES], room=room))
        state, text, room = projection.state, text + text_of(projection.tokens), room - len(projection.tokens)
        assert projection.ended == (begin == 2 * PLACES)
    value = check_json(text, PERSON)
    assert room >= 0 and len(value["name"]) > 80


def test_a_readout_without_places_asks_for_the_end() -> None:
    compiled = json_schema(PERSON, WORDS)
    first = compiled.project(compiled.start(), sure((b'{"name": "' + b"x" * 60)[:PLACES]))
    assert not first.ended
    end = compiled.project(first.state, Readout((), (), (), (), len(first.state.completion) + 1))
    assert end.ended and set(end.places) == {None}
    assert check_json(text_of(first.tokens + end.tokens), PERSON)["name"].startswith("x" * 30)


def test_given_places_are_kept_where_they_can_be() -> None:
    """A given byte within a string stays though the model's own choice is another."""
    compiled = json_schema(PERSON, WORDS)
    text = b'{"name": "Ada", "old": false}'
    readout = sure(text, given=frozenset({11}))
    readout = replace(
        readout, tokens=(*readout.tokens[:11], int(WORDS.byte_ids[ord("m")]), *readout.tokens[12:])
    )
    projection = compiled.project(compiled.start(), readout)
    assert text_of(projection.tokens) == b'{"name": "Ama", "old": false}'


def test_places_before_the_answers_are_left_alone() -> None:
    """A first canvas may begin with the prompt's last tokens: the answer's places count from there."""
    compiled = json_schema(PERSON, WORDS)
    text, lead = b'{"name": "Ada", "old": false}', 5
    whole_canvas = sure(b"=====" + text)
    readout = replace(whole_canvas, tokens=whole_canvas.tokens[lead:])
    projection = compiled.project(compiled.start(), readout)
    assert text_of(projection.tokens) == text
    assert projection.places == tuple(range(lead, lead + len(text) + 1))


def test_a_model_with_more_tokens_than_its_tokenizer() -> None:
    compiled = json_schema(PERSON, WORDS)
    for seed in range(5):
        projection = compiled.project(compiled.start(), noise(seed, PLACES, WORDS.size + 300, PLACES))
        assert all(token < WORDS.size for token in projection.tokens)
        assert projection.ended or projection.state.completion


CHANNEL = Thought("<|channel>", "<channel|>", "thought")


@pytest.mark.parametrize("before", [b"", b"thought\nWho?\n"])
def test_a_thought_may_stand_before_the_answer(before: bytes) -> None:
    compiled = json_schema(PERSON, WORDS, thought=CHANNEL)
    marker = {text: i for i, text in enumerate(WORDS.names) if text in (b"<|channel>", b"<channel|>")}
    said = sure(b"\1" * bool(before) + before + b"\2" * bool(before) + b'{"name": "A", "old": true}', 64)
    swap = {
        int(WORDS.byte_ids[1]): marker[b"<|channel>"], int(WORDS.byte_ids[2]): marker[b"<channel|>"]
    }  # fmt: skip
    rows = tuple((swap.get(row[0], row[0]), *row[1:]) for row in said.top_tokens)
    said = replace(said, tokens=tuple(row[0] for row in rows), top_tokens=rows)
    projection = compiled.project(compiled.start(), said)
    text = b"<|channel>" + before + b"<channel|>" if before else b""
    assert text_of(projection.tokens) == text + b'{"name": "A", "old": true}'


def test_no_text_becomes_a_marker() -> None:
    """The bytes of a marker's name, inside a thought, are text, and the thought goes on."""
    compiled = json_schema(PERSON, WORDS, thought=CHANNEL)
    for seed in range(20):
        tokens = answer(compiled, seed, WORDS, PLACES, PLACES * 2)
        text = text_of(tokens)
        begins = [token for token in tokens if WORDS.names[token] == b"<|channel>"]
        ends = [token for token in tokens if WORDS.names[token] == b"<channel|>"]
        assert len(begins) == len(ends) <= 1
        check_json(text.rpartition(b"<channel|>")[2] if ends else text, PERSON)


def test_lark_names_control_tokens() -> None:
    index = WORDS.names.index(b"<tool_call|>")
    compiled = lark(f'start: <|tool_call> "call:f" <[{index}]>', WORDS)
    tokens = answer(compiled, 0, WORDS, PLACES, PLACES)
    assert text_of(tokens) == b"<|tool_call>call:f<tool_call|>"


def test_two_requests_share_a_grammar() -> None:
    """Interleaved, and from several threads at once: each answer is what it is alone."""
    compiled = json_schema(whole(7), WORDS)
    budget = max(compiled.shortest, 2 * PLACES)
    alone = [answer(compiled, seed, WORDS, PLACES, budget) for seed in range(6)]
    found: dict[int, tuple[int, ...]] = {}

    def run(seed: int) -> None:
        found[seed] = answer(compiled, seed, WORDS, PLACES, budget)

    threads = [threading.Thread(target=run, args=(seed,)) for seed in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [found[seed] for seed in range(6)] == alone
    assert answer(json_schema(whole(7), WORDS), 3, WORDS, PLACES, budget) == alone[3]


def test_a_state_is_data() -> None:
    """A canvas can be projected again from its state, with the same result."""
    compiled = json_schema(whole(3), WORDS)
    state = compiled.project(compiled.start(), noise(1, PLACES, WORDS.size, 10 * PLACES)).state
    readout = noise(2, PLACES, WORDS.size, 9 * PLACES)
    assert compiled.project(state, readout) == compiled.project(state, readout)


def test_compiling_stops_when_it_is_told_to() -> None:
    with pytest.raises(UsageError, match="took too long"):
        json_schema(PERSON, WORDS, stopped=lambda: True)
    asked = iter([False] * 3)  # then it says True
    with pytest.raises(UsageError, match="took too long"):
        lark(TREE, WORDS, stopped=lambda: next(asked, True))


def test_the_vocabulary_of_a_grammar_is_prepared_once(tokenizers_made: list[int]) -> None:
    words: Vocabulary = vocabulary()
    compiled: Grammar = json_schema(PERSON, words)
    lark(TREE, words)
    assert len(tokenizers_made) == 1
    assert compiled.top == TOP
