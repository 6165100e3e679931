"""Patterns: Python's `re` is the judge of what matches; what is refused is refused with its place."""

from __future__ import annotations

import random
import re

import pytest

from canvaslm.constrain.automaton import Automaton, TooLarge, compile_expression
from canvaslm.constrain.pattern import alternatives, escaped, parse
from canvaslm.errors import UsageError


def automaton(pattern: str) -> Automaton:
    return compile_expression(parse(pattern), "regex")


ATOMS = [
    "a", "b", "ab", ".", "[ab]", "[^a]", "[a-c]", "é", "[à-ö]", "[^é]", "世", "\\d", "\\w", "\\s", "\\D",
    "\\W", "\\S", "\\n", "\\x61", "\\u00e9", "\\.", "[\\d\\-]", "[]a]", "[^]a]", "\\\\", "-", "", "[a\\]]",
    "{", "a{,b",
]  # fmt: skip
ALPHABET = "abc1 é世\n-.]\\{,ö_"


def pattern(rng: random.Random, depth: int = 0) -> str:
    kind = rng.choice(["atom"] * 3 + ["series", "either", "repeat", "group"] * (depth < 4))
    if kind == "atom":
        return rng.choice(ATOMS)
    inner = pattern(rng, depth + 1)
    if kind == "series":
        return inner + pattern(rng, depth + 1)
    if kind == "either":
        return f"(?:{inner}|{pattern(rng, depth + 1)})"
    if kind == "group":
        return (
            rng.choice(["({})", "(?P<x{}>{})"])
            .replace("{}", str(rng.randrange(10**9)), 1)
            .replace("{}", inner)
        )
    low = rng.randrange(3)
    counts = ["*", "+", "?", f"{{{low}}}", f"{{{low},}}", f"{{{low},{low + 2}}}", f"{{,{low}}}"]
    return f"(?:{inner}){rng.choice(counts)}{rng.choice(['', '?'])}"


@pytest.mark.parametrize("seed", range(150))
def test_it_matches_what_re_matches(seed: int) -> None:
    rng = random.Random(seed)
    made = pattern(rng)
    found, judge = automaton(made), re.compile(made, re.ASCII)
    texts = ["", *("".join(rng.choices(ALPHABET, k=rng.randrange(1, 6))) for _ in range(150))]
    for text in texts:
        assert found.accepts(text.encode()) == (judge.fullmatch(text) is not None), (made, text)


def test_all_of_unicode_is_told_apart() -> None:
    found = automaton("[^\\x00-\\u00ff\\u{1f600}-\\U0010FFFF]")
    for text, wanted in (
        ("ÿ", False),
        ("Ā", True),
        ("\U0001f5ff", True),
        ("😀", False),
        ("\U0010ffff", False),
    ):
        assert found.accepts(text.encode()) == wanted, text
    assert not found.accepts(b"\xed\xa0\x80"), "a surrogate is no character"
    assert automaton("\\ud83d\\ude00").accepts("😀".encode())


def test_private_characters_are_no_markers() -> None:
    found = automaton("[\ue000-\ue00f]+|.")
    assert found.accepts("\ue000".encode())
    assert (found.next[:, 256:] == found.states).all()


def test_anchors_belong_to_alternatives() -> None:
    assert [(a.start, a.end) for a in alternatives("^a|b$|c|^d$")] == [
        (True, False), (False, True), (False, False), (True, True),
    ]  # fmt: skip
    assert automaton("^a$|^b").accepts(b"b")


def test_an_escaped_text_matches_itself_alone() -> None:
    text = r"\d+.[a](b|c)*?{2}^$ é"
    assert automaton(escaped(text)).accepts(text.encode())
    assert not automaton(escaped(text)).accepts(text.replace("+", "d").encode())


@pytest.mark.parametrize(
    ("made", "place", "says"),
    [
        ("a(?=b)", 2, "lookahead"), ("(?<!b)a", 1, "lookbehind"), ("(a)\\1", 4, "backreference"),
        ("(?P<x>a)(?P=x)", 9, "backreference"), ("a\\b", 2, "word boundary"), ("(?i)a", 1, "flags"),
        ("a**", 2, "repetition is repeated"), ("a{2}{3}", 2, "repetition is repeated"),
        ("a++", 3, "possessive"),
        ("*a", 1, "nothing stands before"), ("(a", 1, "never closed"), ("a)", 2, "closes nothing"),
        ("[a", 1, "never closed"), ("a^", 2, "behind the start"), ("(^a)", 2, "behind the start"),
        ("a$b", 2, "before the end"), ("(a$)", 3, "before the end"), ("a{3,2}", 2, "cannot repeat"),
        ("[b-a]", 2, "backwards"), ("[a-\\d]", 2, "ends in a class"), ("\\p{L}", 1, "Unicode classes"),
        ("\\q", 1, "no escape"), ("\\x4", 1, "names no character"), ("\\u{110000}", 1, "names no character"),
        ("\\ud800", 1, "surrogate"), ("\\ud83d\\u0041", 1, "surrogate"), ("a\\", 3, "ends too early"),
        ("[^\\x00-\\U0010ffff]", 1, "empty"), ("[[:alpha:]]", 2, "named classes"), ("(?>a)", 1, "atomic"),
        ("(?(1)a)", 1, "conditional"), ("(?<1>a)", 1, "name"), ("a{9999999}", 2, "repetitions"),
        ("(" * 101 + ")" * 101, 101, "nest deeper"),
    ],
)  # fmt: skip
def test_what_is_not_regular_is_refused_with_its_place(made: str, place: int, says: str) -> None:
    with pytest.raises(UsageError, match=says) as error:
        parse(made)
    assert f"character {place} " in str(error.value)
    assert error.value.param == "regex"


def test_building_takes_counted_steps() -> None:
    """Few states, each of many nodes: the same limit on every machine, whatever its clock says."""
    wide = parse("(a?){300}")
    with pytest.raises(TooLarge, match="more than 100,000 steps to build"):
        compile_expression(wide, most_steps=100_000)
    assert compile_expression(wide, most_steps=1_000_000).states == 301


@pytest.mark.parametrize(
    "made",
    [
        "(a{1000}){1000}", "(a|b)*a(a|b){30}", "((((((((a{10}){10}){10}){10}){10}){10}){10}){10})",
        "(|a){1000000}", "((){1000}){1000}", "(.{0,200}){200}", ".*a.{25}", "(a?){500}" * 30,
    ],
)  # fmt: skip
def test_what_is_too_large_is_refused_soon(made: str) -> None:
    with pytest.raises(TooLarge, match="too large to guarantee") as error:
        automaton(made)
    assert error.value.param == "regex"


def test_a_pattern_has_a_greatest_length() -> None:
    with pytest.raises(UsageError, match="20000 are the most"):
        parse("a" * 20_001)
