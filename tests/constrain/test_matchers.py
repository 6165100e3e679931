"""llguidance's matchers of our vocabularies."""

from __future__ import annotations

import gc
import json
import subprocess
import sys
import threading
import weakref

import numpy as np
import pytest

from canvaslm.constrain.grammar import gbnf, json_schema
from canvaslm.constrain.matchers import (
    Matchers,
    SymbolWalker,
    allowed,
    following,
    forced,
    short_message,
    takes,
    which_follow,
)
from canvaslm.errors import UsageError

from .words import EOS, PAD, TURN_END, vocabulary

WORDS = vocabulary()
MATCHERS = Matchers.of(WORDS)


def grammar(lark: str) -> str:
    outer = '%llguidance {"no_forcing": true}\nstart: @answer'
    return json.dumps({"grammars": [{"lark_grammar": outer}, {"name": "answer", "lark_grammar": lark}]})


def names(mask: bytes) -> set[bytes]:
    ids = np.arange(WORDS.size)
    return {WORDS.names[token] for token in ids[allowed(mask, ids)].tolist()}


@pytest.mark.parametrize("text", ["", "true the é世界", "<|channel>", "x\0y\xff", "😀"])
def test_text_is_split_into_tokens_that_say_it(text: str) -> None:
    tokens = MATCHERS.split(text.encode())
    assert b"".join(WORDS.names[token] for token in tokens) == text.encode()
    assert not set(tokens) & set(WORDS.controls)


def test_broken_text_is_split_too() -> None:
    """The end of a character first, and the beginning of one last."""
    for text in (b"\x96\x8c the", b"the \xe4", b"\x96", b"\xff\xfe"):
        assert b"".join(WORDS.names[token] for token in MATCHERS.split(text)) == text
    assert len(MATCHERS.split(b"\x96\x8c the")) == 3


def test_tokens_as_symbols() -> None:
    marker = WORDS.names.index(b"<|tool_call>")
    symbols = MATCHERS.symbols_of([*MATCHERS.split(b"true"), marker, *MATCHERS.split("é".encode())])
    said = [WORDS.names[token] for token in symbols]
    assert said == [b"t", b"r", b"u", b"e", b"<|tool_call>", b"\xc3", b"\xa9"]


def test_every_token_that_may_follow_may() -> None:
    """Where text is forced too: a canvas splits it as it likes."""
    walker = SymbolWalker(MATCHERS, MATCHERS.matcher(grammar('start: "{\\"name\\":" /[a-z]+/')))
    every = range(WORDS.size)
    follow = [WORDS.names[i] for i in every if which_follow(walker, every)[i]]
    assert follow == [b"{", b'{"']
    assert forced(walker) == b'{"name":'
    assert takes(walker, MATCHERS.split(b'{"')) and WORDS.names[MATCHERS.split(b"name")[0]] == b"name"
    assert walker.validate_tokens([*MATCHERS.split(b"na"), *MATCHERS.split(b"me"), EOS]) == 4
    assert walker.validate_tokens([*MATCHERS.split(b"name"), PAD]) == 1
    assert walker.validate_tokens([PAD]) == walker.validate_tokens([]) == 0


def test_symbols_have_single_bytes_only() -> None:
    matcher = MATCHERS.matcher(grammar('start: "true" <|tool_call>'))
    assert names(matcher.compute_bitmask()) == {b"t"}
    assert takes(matcher, MATCHERS.symbols_of(MATCHERS.split(b"true")))
    assert names(matcher.compute_bitmask()) == {b"<|tool_call>"}


def test_all_ends_end_a_document() -> None:
    matcher = MATCHERS.matcher(grammar('start: "a"'))
    assert takes(matcher, MATCHERS.split(b"a"))
    mask, accepting = following(matcher)
    assert accepting and names(mask) == {WORDS.names[EOS], WORDS.names[TURN_END]}


def test_a_forced_control_token_does_not_break_a_matcher() -> None:
    """`following` and `forced`, in any order, before every symbol."""
    matcher = MATCHERS.matcher(grammar('start: <|tool_call> "ab" <tool_call|>'))
    begin, end = (WORDS.names.index(name) for name in (b"<|tool_call>", b"<tool_call|>"))
    for token in (begin, *MATCHERS.symbols_of(MATCHERS.split(b"ab")), end):
        assert forced(matcher) in (b"", b"ab", b"b")
        mask, accepting = following(matcher)
        assert names(mask) == {WORDS.names[token]} and not accepting
        assert takes(matcher, [token])
    assert following(matcher)[1]


def test_llguidances_words_are_passed_on_in_short() -> None:
    with pytest.raises(UsageError, match='unknown name: "missing"') as caught:
        MATCHERS.matcher(grammar("start: missing"))
    assert caught.value.param == "grammar"
    assert "\n" not in str(caught.value)
    assert len(short_message("word " * 200)) == 240


def test_a_vocabulary_has_its_matchers_as_long_as_it_lives() -> None:
    words = vocabulary()
    assert Matchers.of(words) is Matchers.of(words)
    assert Matchers.of(words) is not MATCHERS
    gone = weakref.ref(Matchers.of(words))
    del words
    gc.collect()
    assert gone() is None


def test_tokenizers_are_made_once_by_any_number_of_threads(tokenizers_made: list[int]) -> None:
    matchers = Matchers.of(vocabulary())
    threads = [threading.Thread(target=lambda: matchers.matcher(grammar('start: "a"'))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(tokenizers_made) == 1


def test_without_llguidance_the_message_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "llguidance", None)
    with pytest.raises(UsageError, match=r"pip install 'canvaslm\[constrain\]'"):
        json_schema({"type": "string"}, vocabulary())
    with pytest.raises(UsageError, match=r"pip install 'canvaslm\[constrain\]'"):
        gbnf('root ::= "a"', vocabulary())


def test_importing_loads_no_llguidance() -> None:
    code = (
        "import sys, canvaslm, canvaslm.constrain.grammar, canvaslm.constrain.gbnf;"
        "assert 'llguidance' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
