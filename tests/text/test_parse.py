from __future__ import annotations

import itertools
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from canvaslm.families import ChatMarkers
from canvaslm.text.markers import MARKER, Special
from canvaslm.text.parse import Delta, ReplyParser
from canvaslm.text.tokenizer import Tokenizer
from canvaslm.types import ToolCall
from tests.text.tiny_text import MARKERS, gguf_fields, tiny_tokens, write_folder

TOKENIZER = Tokenizer.from_gguf(gguf_fields())


def ids_of(markup: str) -> list[int]:
    """Ids of text in which markers are control tokens, but not behind a backslash."""
    pieces: list[str] = []
    end = 0
    for match in MARKER.finditer(markup):
        if markup[match.start() - 1 : match.start()] == "\\":
            continue
        pieces += [markup[end : match.start()], Special(match[0])]
        end = match.end()
    return TOKENIZER.encode_pieces(
        [p if isinstance(p, Special) else p.replace("\\", "") for p in (*pieces, markup[end:])]
    )


def join(deltas: list[Delta]) -> Delta:
    calls = tuple(itertools.chain.from_iterable(d.tool_calls for d in deltas))
    unknown = tuple(itertools.chain.from_iterable(d.unknown for d in deltas))
    return Delta("".join(d.text for d in deltas), "".join(d.thinking for d in deltas), calls, unknown)


def parse(
    ids: list[int], *, thinking: bool = False, tools: tuple[str, ...] | None = None, cut: bool = False
) -> Delta:
    parser = ReplyParser(TOKENIZER, thinking=thinking, tools=tools)
    return join([parser.feed(ids), parser.close(cut=cut)])


@pytest.mark.parametrize(
    ("markup", "text", "thinking"),
    [
        ("hello", "hello", ""),
        ("<|channel>thought\nhmm\n<channel|>hello<turn|>", "hello", "hmm"),
        ("<|channel>thought\n<channel|>hello", "hello", ""),
        ("<|channel>thought<channel|>hello", "hello", ""),
        ("<|channel><channel|>hello", "hello", ""),
        ("<|channel>thought\na\n\nb\n\n<channel|>hello", "hello", "a\n\nb\n"),
        ("<|channel>thoughtful\nx<channel|>y", "y", "thoughtful\nx"),
        ("<|channel>final\nx<channel|>y", "y", "final\nx"),
        ("<|channel>thou", "", "thou"),
        ("<|channel>thought\nnever closed", "", "never closed"),
        ("<|channel>thought\nnever closed\n<turn|>x", "", "never closed"),
        ("a<|channel>thought\nb<channel|>c<|channel>thought\nd<channel|>e", "ace", "bd"),
        ("a<|channel>thought\nb<|channel>thought\nc<channel|>d", "ad", "bc"),
        ("a<channel|>b<tool_call|>c<|think|>d<pad>", "abcd<pad>", ""),
        ("hello<turn|>after<|channel>x", "hello", ""),
        ("hello<|tool_response>after", "hello", ""),
        ("hello<|turn>user\nafter", "hello", ""),
        ("\\<|channel>thought \\<turn|>", "<|channel>thought <turn|>", ""),
        ('say <|"|>hi<|"|>', 'say "hi"', ""),
        ("<|channel>thought\nhé 😀<channel|> 😀", " 😀", "hé 😀"),
        ("", "", ""),
    ],
)
def test_answer_and_thoughts(markup: str, text: str, thinking: str) -> None:
    assert parse(ids_of(markup)) == Delta(text, thinking)


def test_eos_ends_the_turn() -> None:
    parser = ReplyParser(TOKENIZER)
    assert parser.feed([*ids_of("a"), 1, *ids_of("b")]).text == "a"
    assert parser.ended
    assert not parser.feed(ids_of("c"))
    assert not parser.close()


def test_prompt_that_opened_the_thought() -> None:
    assert parse(ids_of("hmm\n<channel|>hello"), thinking=True) == Delta("hello", "hmm")


def test_another_familys_markers_part_thoughts_and_calls() -> None:
    markers = ChatMarkers(
        thought=("<|tool_call>", "<tool_call|>"), thought_name="plan", call=("<|tool>", "<tool|>")
    )
    parser = ReplyParser(Tokenizer.from_gguf(gguf_fields(), markers=markers))
    call = '<|tool>call:f{a:<|"|>x<|"|>}<tool|>'
    found = parser.feed(ids_of(f"<|tool_call>plan\nhm<tool_call|>hello<|channel>{call}<|tool>no<tool|>"))
    assert found == Delta("hello<|tool>no<tool|>", "hm", (ToolCall("f", {"a": "x"}),))


CALL = '<|tool_call>call:f{a:<|"|>x<|"|>,b:[1,true]}<tool_call|>'


def test_tool_calls() -> None:
    call = ToolCall("f", {"a": "x", "b": [1, True]})
    assert parse(ids_of(f"hello {CALL}{CALL}<|tool_response>")) == Delta("hello ", "", (call, call))
    assert parse(ids_of(f"<|channel>thought\nhm{CALL}")) == Delta("", "hm", (call,))
    assert parse(ids_of(CALL.removesuffix("<tool_call|>"))) == Delta("", "", (replace(call, healed=True),))


def test_damaged_calls_are_healed_where_they_stand() -> None:
    open_brace = ids_of('a<|tool_call>call:f{a:[1,{b:<|"|>x<|"|><tool_call|>b')
    healed = ToolCall("f", {"a": [1, {"b": "x"}]}, healed=True)
    assert parse(open_brace) == Delta("ab", "", (healed,))
    whole = ToolCall("f", {"a": "x", "b": [1, True]})
    bare = CALL.removesuffix("<tool_call|>")
    two = Delta("y", "", (replace(whole, healed=True), whole))
    assert parse(ids_of(f"{bare}{CALL}y")) == two
    assert parse(ids_of(f"{bare}<|channel>thought\nx<channel|>{CALL}y")) == replace(two, thinking="x")


def test_a_call_that_is_cut_off_is_no_call_unless_only_its_marker_is_missing() -> None:
    """At the token limit an argument may be half of what it was to be."""
    short = 'a<|tool_call>call:f{a:<|"|>x'
    assert parse(ids_of(short)).tool_calls == (ToolCall("f", {"a": "x"}, healed=True),)
    assert parse(ids_of(short), cut=True) == Delta(short)
    unmarked = parse(ids_of(CALL.removesuffix("<tool_call|>")), cut=True)
    assert unmarked.tool_calls == (ToolCall("f", {"a": "x", "b": [1, True]}, healed=True),)


def test_calls_of_unknown_tools_are_text_and_named() -> None:
    known, other = ToolCall("f", {"a": "x", "b": [1, True]}), "<|tool_call>call:g{a:1}<tool_call|>"
    assert parse(ids_of(f"x{CALL}{other}y"), tools=("f",)) == Delta(f"x{other}y", "", (known,), ("g",))
    assert parse(ids_of(CALL), tools=()) == Delta(CALL, "", (), ("f",))
    damaged = other.replace("}", "")
    assert parse(ids_of(damaged), tools=("f",)) == Delta(damaged, "", (), ("g",))


def test_a_call_is_emitted_when_it_closes() -> None:
    parser = ReplyParser(TOKENIZER)
    deltas = [parser.feed([i]) for i in ids_of(CALL)]
    assert [bool(d) for d in deltas] == [False] * (len(deltas) - 1) + [True]


@pytest.mark.parametrize(
    ("markup", "text"),
    [
        ("<|tool_call>nonsense<tool_call|>.", "<|tool_call>nonsense<tool_call|>."),
        ("<|tool_call>call:f{a:}<tool_call|>", "<|tool_call>call:f{a:}<tool_call|>"),
        ("a<|tool_call>call:f{", "a<|tool_call>call:f{"),
        ("a<|tool_call>call:f{<turn|>b", "a<|tool_call>call:f{"),
        ("<|tool_call>call:f{<|channel>thought\nx<channel|>y", "<|tool_call>call:f{y"),
        (f"<|tool_call>call:{CALL}", "<|tool_call>call:"),
    ],
)
def test_malformed_calls_are_text(markup: str, text: str) -> None:
    assert parse(ids_of(markup)).text == text


def test_nothing_is_held_back_longer_than_needed() -> None:
    parser = ReplyParser(TOKENIZER)
    steps = ["<|channel>", "thought", "\n", "a", "\n", "b", "\n", "<channel|>", "c", "\n"]
    deltas = [parser.feed(ids_of(s)) for s in steps]
    assert [d.thinking for d in deltas] == ["", "", "", "a", "", "\nb", "", "", "", ""]
    assert [d.text for d in deltas] == [""] * 8 + ["c", "\n"]


def test_reasoning_tokens_leave_out_the_channel_s_name() -> None:
    parser = ReplyParser(TOKENIZER)
    ids = ids_of("<|channel>thought\nhello\n<channel|>hello<turn|>")
    parser.feed([*ids, 9, 9])
    assert parser.counts.reasoning_tokens == 2  # "hello" and the line break
    assert parser.counts.tokens == len(ids)
    empty = ReplyParser(TOKENIZER)
    empty.feed(ids_of("<|channel>thought\n<channel|>hello"))
    assert empty.counts.reasoning_tokens == 0


ANY_IDS = st.lists(
    st.integers(0, TOKENIZER.vocab_size - 1)
    | st.sampled_from([tiny_tokens().index(m) for m in MARKERS if m not in ("<turn|>", "<|turn>")]),
    max_size=50,
)
SCRIPT = st.lists(
    st.sampled_from(
        [*MARKERS, "thought\n", "thought", "\n", "hello", "😀", "call:f{", "a:", "1", ",", "}", CALL]
    ),
    max_size=20,
).map(lambda parts: ids_of("".join(parts)))


TOOLS = st.sampled_from([None, (), ("f",)])


@given(ids=ANY_IDS | SCRIPT, cuts=st.lists(st.integers(0, 50), max_size=10), tools=TOOLS, cut=st.booleans())
def test_any_cutting_gives_the_same(
    ids: list[int], cuts: list[int], tools: tuple[str, ...] | None, cut: bool
) -> None:
    edges = [0, *sorted(min(c, len(ids)) for c in cuts), len(ids)]
    parser = ReplyParser(TOKENIZER, tools=tools)
    deltas = [parser.feed(ids[a:b]) for a, b in itertools.pairwise(edges)] + [parser.close(cut=cut)]
    assert join(deltas) == parse(ids, tools=tools, cut=cut)


# Pieces of calls, whole and broken, without thoughts: what is not a call must come out as it is.
PLAIN = ("hello", "😀", "call:f{", "a:", "1", ",", "}", "{", "[", "]", ":", "b", " ", '"')
WRECKS = st.lists(st.sampled_from(["<|tool_call>", "<tool_call|>", '<|"|>', CALL, *PLAIN]), max_size=25)


@given(parts=WRECKS, cut=st.booleans())
def test_nothing_is_lost_of_what_is_no_call(parts: list[str], cut: bool) -> None:
    """Where no tool is known, the text has every character of every call; only closing markers that close
    nothing are dropped, and quote markers outside of calls are quotes."""
    written, inside = "", False
    for part in parts:
        inside = inside or part == "<|tool_call>"
        if part == "<tool_call|>" and not inside:
            continue
        written += '"' if part == '<|"|>' and not inside else part
        inside = inside and part not in ("<tool_call|>", CALL)
    assert parse(ids_of("".join(parts)), tools=(), cut=cut).text == written


@given(parts=WRECKS)
def test_healing_keeps_every_letter_and_digit(parts: list[str]) -> None:
    found = parse(ids_of("".join(["<|tool_call>call:f{", *parts])))
    kept = "".join([found.text, *(f"call{call.name}{call.arguments}" for call in found.tool_calls)])
    markup = "".join(["call:f{", *parts])
    assert Counter(filter(str.isalnum, kept.replace("True", "true").replace("tool_call", ""))) == Counter(
        filter(str.isalnum, markup.replace("tool_call", "").replace("True", "true"))
    )


@given(ids=SCRIPT, cut=st.integers(0, 50))
def test_a_copy_does_not_disturb(ids: list[int], cut: int) -> None:
    parser = ReplyParser(TOKENIZER)
    first = parser.feed(ids[:cut])
    twin = parser.copy()
    twin.feed(ids_of("<|channel>thought\nxyz" + CALL))
    twin.close()
    assert join([first, parser.feed(ids[cut:]), parser.close()]) == parse(ids)


def test_a_vocabulary_without_markers_gives_plain_text(tmp_path: Path) -> None:
    fields = gguf_fields(
        tokens=[t.replace("|", "!") if t in MARKERS else t for t in tiny_tokens()], token_type=None
    )
    tokenizer = Tokenizer.from_gguf(fields)
    parser = ReplyParser(tokenizer)
    assert parser.feed(tokenizer.encode("<|channel>thought hello")).text == "<|channel>thought hello"
    assert Tokenizer.from_folder(write_folder(tmp_path)).marker_id("<|channel>") is not None
