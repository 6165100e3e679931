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
    allows,
    following,
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


def name(symbol: int) -> bytes:
    return bytes((symbol,)) if symbol < 256 else WORDS.names[MATCHERS.controls[symbol - 256]]


def names(mask: bytes) -> set[bytes]:
    symbols = np.arange(256 + len(MATCHERS.controls))
    assert [allows(mask, symbol) for symbol in symbols.tolist()] == allowed(mask, symbols).tolist()
    return {name(symbol) for symbol in symbols[allowed(mask, symbols)].tolist()}


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
    said = [name(symbol) for symbol in symbols]
    assert MATCHERS.tokens_of(symbols) == [*MATCHERS.split(b"true"), marker, *MATCHERS.split("é".encode())]
    assert said == [b"t", b"r", b"u", b"e", b"<|tool_call>", b"\xc3", b"\xa9"]


def test_every_token_that_may_follow_may() -> None:
    """Where text is forced too: a canvas splits it as it likes."""
    walker = SymbolWalker(MATCHERS, MATCHERS.matcher(grammar('start: "{\\"name\\":" /[a-z]+/')))
    every = range(WORDS.size)
    follows = which_follow(walker, every, walker.compute_bitmask())
    assert [WORDS.names[i] for i in every if follows[i]] == [b"{", b'{"']
    assert follows == [walker.validate_tokens([token]) == 1 for token in every]
    assert walker.forced() == b'{"name":'
    assert walker.forced(b'{"') == b'name":' and walker.forced(b"[") == b""
    assert takes(walker, MATCHERS.split(b'{"')) and WORDS.names[MATCHERS.split(b"name")[0]] == b"name"
    assert walker.validate_tokens([*MATCHERS.split(b"na"), *MATCHERS.split(b"me"), EOS]) == 4
    assert walker.validate_tokens([*MATCHERS.split(b"name"), PAD]) == 1
    assert walker.validate_tokens([PAD]) == walker.validate_tokens([]) == 0


def test_tokens_named_by_their_ids_are_named_by_their_symbols() -> None:
    """Not in texts, expressions and comments; what is no list of ids is left for llguidance's words."""
    marker, byte = WORDS.names.index(b"<|tool_call>"), int(WORDS.byte_ids[1])
    word = MATCHERS.split(b"true")[0]
    symbol = 256 + MATCHERS.controls.index(marker)
    lark = f'start: <[{marker}]> "<[{marker}]>" /<[{marker}]>\\//i <|x|> // <[{marker}]>\n'
    assert MATCHERS.in_symbols(lark) == lark.replace(f"<[{marker}]>", f"<[{symbol}]>", 1)
    assert MATCHERS.in_symbols(f"<[{marker}-{marker + 1},{byte}]>") == f"<[1,{symbol}-{symbol + 1}]>"
    assert MATCHERS.in_symbols(f"<[^{marker}]>") == f"<[^{symbol}]>"
    never = 256 + len(MATCHERS.controls)
    assert MATCHERS.in_symbols(f"<[{word}]>") == f"<[{never}]>", "a word is no symbol"
    for same in ("<[5-4]>", "<[*]>", "<[,]>", "<[-]>", "<[4-]>", f"<[{'9' * 5000}]>"):
        assert MATCHERS.in_symbols(same) == same
    with pytest.raises(UsageError, match="the token 99999, and the vocabulary ends at 277"):
        MATCHERS.in_symbols("<[99999]>")


@pytest.mark.parametrize(
    "text", ['\\"' * 32_000, '"' + '\\"' * 32_000 + "\\", "\\/" * 32_000, "/" * 64_000, "<[" * 32_000]
)
def test_what_is_not_closed_is_read_once(text: str) -> None:
    """With a step for each pair of signs it would take minutes."""
    assert MATCHERS.in_symbols(text) == text


def test_grammars_do_not_grow_without_bound() -> None:
    """A bracket of few bytes may name tokens whose symbols take many: they are counted."""
    with pytest.raises(UsageError, match="names too many tokens"):
        MATCHERS.in_symbols("<[5,7,9,11,13,17,19]>" * 6000)


def test_a_mask_is_small_however_large_the_vocabulary() -> None:
    large = Matchers.of(vocabulary([f"word {i}" for i in range(5000)]))
    assert len(large.matcher(grammar('start: "a"')).compute_bitmask()) < 64


def test_symbols_have_single_bytes_only() -> None:
    matcher = MATCHERS.matcher(grammar('start: "true" <|tool_call>'))
    assert names(matcher.compute_bitmask()) == {b"t"}
    assert takes(matcher, MATCHERS.symbols_of(MATCHERS.split(b"true")))
    assert names(matcher.compute_bitmask()) == {b"<|tool_call>"}


def test_all_ends_end_a_document() -> None:
    matcher = MATCHERS.matcher(grammar('start: "a"'))
    assert takes(matcher, list(b"a"))
    mask, accepting = following(matcher)
    assert accepting and names(mask) == {WORDS.names[EOS], WORDS.names[TURN_END]}


def test_a_forced_control_token_does_not_break_a_matcher() -> None:
    """`following` and what is forced, in any order, before every symbol."""
    matcher = MATCHERS.matcher(grammar('start: <|tool_call> "ab" <tool_call|>'))
    begin, end = (WORDS.names.index(name) for name in (b"<|tool_call>", b"<tool_call|>"))
    for symbol in MATCHERS.symbols_of([begin, *MATCHERS.split(b"ab"), end]):
        assert SymbolWalker(MATCHERS, matcher).forced() in (b"", b"ab", b"b")
        mask, accepting = following(matcher)
        assert names(mask) == {name(symbol)} and not accepting
        assert takes(matcher, [symbol])
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
