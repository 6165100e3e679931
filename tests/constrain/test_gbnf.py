"""llama.cpp's grammars as Lark: what the converter gets wrong by itself, and what is refused."""

from __future__ import annotations

import pytest
from llguidance import LLMatcher

from canvaslm.constrain.gbnf import gbnf_to_lark
from canvaslm.constrain.limits import GRAMMAR_RULES
from canvaslm.errors import UsageError

from .judge import accepts

NAMES = 'Ex ::= "1"\nex ::= "2"\ne-x ::= "3"\ne_x ::= "4"\nstart ::= "5"'


@pytest.mark.parametrize(
    ("text", "yes", "no"),
    [
        (r'root ::= "\u00e9\x41\U0001F600"', "éA😀", "éA"),
        (r"root ::= [\u0400-\u04ff]+", "жук", "bug"),
        (r'root ::= "\[x\]" "/" "\t\n\r\"\\"', '[x]/\t\n\r"\\', "[x]/"),
        (r"root ::= [\]a\-z^]+", "]a-z^", "b"),
        (r'root ::= [^"\\\x7F\x00-\x1F]+', "a[/&~é", 'a"'),
        (r"root ::= [/a-c&&~~-]+", "/a&~-b", "d"),
        ('root ::= Ex ex e-x e_x start\n' + NAMES, "12345", "12344"),
        ('# a "comment\nroot ::= ("a" # another (\n | "b"){2,3} # last', "aba", "a"),
        ('root ::= "a" | b*\nb ::= "b" root?', "bba", "ab"),
        ('root ::= "" | "x"', "", "y"),
        ('root ::= root "a" | "a"', "aaa", ""),
        ("root ::= . .", "éx", "x"),
    ],
)  # fmt: skip
def test_it_means_the_same(text: str, yes: str, no: str) -> None:
    for lark in gbnf_to_lark(text):
        grammar = LLMatcher.grammar_from_lark(lark)
        assert accepts(grammar, yes.encode())
        assert not accepts(grammar, no.encode())


def test_the_second_reading_has_no_words() -> None:
    """Of `ws "\\n"` with line breaks in `ws` nothing is left where `ws` is a word."""
    first, second = gbnf_to_lark('root ::= "A" ws "\\n"\nws ::= [ \\n]*')
    assert not accepts(LLMatcher.grammar_from_lark(first), b"A \n")
    assert accepts(LLMatcher.grammar_from_lark(second), b"A \n")
    assert '"A"' in second


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("root ::= x", "Rule 'x' not found"),
        ('x ::= "a"', "No 'root' rule"),
        ('root ::= "', "end of input"),
        ('root = "a"', "Expected ::="),
        ("root ::= <think>", "Expected name"),
        ('root ::= "a"{²}', "no GBNF"),
        ('root ::= "a"{' + "9" * 5000 + "}", "no GBNF"),
        ('root ::= "\\q"', "unknown escape"),
        ('root ::= "\\ud800"', "no character U\\+D800"),
        ('root ::= "\\UFFFFFFFF"', "no character"),
        ("root ::= " + "(" * 65 + '"a"' + ")" * 65, "nested"),
        ("root ::= " + "(" * 5000, "nested"),
        ('root ::= "a"\n' + "".join(f'a{i} ::= "a"\n' for i in range(GRAMMAR_RULES)), "more than 1000 rules"),
        ("", "empty"),
        ("x" * 70_000, "65,536"),
        (None, "must be a text"),
    ],
)  # fmt: skip
def test_what_is_none_is_refused_with_words(text: str, words: str) -> None:
    with pytest.raises(UsageError, match=words) as caught:
        gbnf_to_lark(text)
    assert caught.value.param == "grammar"
    assert len(str(caught.value)) < 300
