"""GBNF, the grammars of llama.cpp, as Lark.

llguidance's converter does the work. It fails on some escapes, on names that differ by case or hyphens
only, and on a rule called `start`: these are written anew before it.

It makes words of rules without recursion, and a word takes all it can: of `[ \t\n]* "\n"` the first part
takes every line break, and nothing is left for the second. What comes of that is a part of the language, and
fast; where no document is left of it, rules that are no words are the other reading.
"""

from __future__ import annotations

import re

from ..errors import UsageError
from .limits import GRAMMAR_RULES, check_nesting, check_text
from .matchers import library

_PIECE = re.compile(
    r'"(?:[^"\\\n]|\\.)*"'  # a literal
    r"|\[(?:[^\]\\\n]|\\.)*\]"  # a set of characters
    r"|#[^\n]*"
    r"|[A-Za-z][A-Za-z0-9_-]*"  # a name
)
_ESCAPE = re.compile(r"\\(?:x([0-9A-Fa-f]{2})|u([0-9A-Fa-f]{4})|U([0-9A-Fa-f]{8})|(.))|(.)", re.DOTALL)
# Words of the converter's Lark have names in capitals; literals, expressions and comments are not names.
_LARK_PIECE = re.compile(r'"(?:[^"\\]|\\.)*"|/(?:[^/\\]|\\.)*/|//[^\n]*|\b([A-Z][A-Z0-9_]*)\b')
_CONTROLS = {"n": "\n", "r": "\r", "t": "\t"}
_SPECIAL_IN_SET = "\\[]^-/&~"


def gbnf_to_lark(text: str) -> tuple[str, str]:
    """The grammar in Lark, with rules that are words, and without.

    Raises UsageError for what is no GBNF or beyond the limits, and where llguidance is not installed.
    """
    check_text(text, "grammar")
    check_nesting(text, "grammar")
    if text.count("::=") > GRAMMAR_RULES:
        raise UsageError(f"the grammar has more than {GRAMMAR_RULES} rules", "grammar")
    library()
    from llguidance.gbnf_to_lark import gbnf_to_lark as converted

    try:
        lark: str = converted(_prepared(text))
    except Exception as error:  # it raises Exception itself, and what its code runs into
        raise UsageError(f"the grammar is no GBNF: {_words(error)}", "grammar") from None
    return lark, _LARK_PIECE.sub(lambda match: match.group().lower() if match[1] else match.group(), lark)


def _prepared(text: str) -> str:
    names = _names(text)

    def piece(match: re.Match[str]) -> str:
        found = match.group()
        if found.startswith("#"):
            return ""
        if found.startswith('"'):
            return '"' + "".join(_in_literal(c) for c in _characters(found[1:-1])) + '"'
        if found.startswith("["):
            return _set(found)
        return names[found]

    return _PIECE.sub(piece, text)


def _names(text: str) -> dict[str, str]:
    """{name: what it is called for the converter, which folds case and hyphens}; `root` stays."""
    found: dict[str, str] = {"root": "root"}
    taken = {"root", "start"}
    for match in _PIECE.finditer(text):
        name = match.group()
        if name in found or not name[0].isalpha():
            continue
        plain = name.lower().replace("_", "-")
        new, count = plain, 2
        while new in taken:
            new, count = f"{plain}-{count}", count + 1
        taken.add(new)
        found[name] = new
    return found


def _characters(body: str) -> list[tuple[str, bool]]:
    """(character, whether it was escaped) of what stands between quotes or brackets."""
    found = []
    for hexadecimal2, hexadecimal4, hexadecimal8, escaped, plain in _ESCAPE.findall(body):
        digits = hexadecimal2 or hexadecimal4 or hexadecimal8
        if digits:
            value = int(digits, 16)
            if value > 0x10FFFF or 0xD800 <= value < 0xE000:
                raise ValueError(f"there is no character U+{value:04X}")
            found.append((chr(value), True))
        elif escaped:
            if escaped not in 'nrt"\\[]-^/':
                raise ValueError(f"unknown escape \\{escaped}")
            found.append((_CONTROLS.get(escaped, escaped), True))
        else:
            found.append((plain, False))
    return found


def _in_literal(item: tuple[str, bool]) -> str:
    character = item[0]
    if character in '"\\':
        return "\\" + character
    return character if character >= " " and character != "\x7f" else f"\\x{ord(character):02x}"


def _set(text: str) -> str:
    """A set of characters; a `-` or `^` that was not escaped keeps its meaning."""
    body = text[1:-1]
    negated = body.startswith("^")
    written = "".join(_in_set(item) for item in _characters(body[negated:]))
    return f"[{'^' * negated}{written}]"


def _in_set(item: tuple[str, bool]) -> str:
    character, escaped = item
    if character == "-" and not escaped:
        return "-"
    if character < " " or character == "\x7f" or character in _SPECIAL_IN_SET:
        # The converter reads few escapes, but any \x.
        return f"\\x{ord(character):02x}"
    return character


def _words(error: Exception) -> str:
    line = " ".join(str(error).split()) or type(error).__name__
    return line if len(line) <= 200 else line[:197] + "..."


__all__ = ["gbnf_to_lark"]
