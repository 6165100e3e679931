"""Strings of a JSON schema: lengths, patterns and formats, as expressions over a string's characters."""

from __future__ import annotations

from functools import cache

from .expression import ANY_CHARACTER, ANY_TEXT, Expression, choice, repeat, sequence
from .pattern import alternatives, parse

MAX_LENGTH = 500  # of a string whose length is bounded: each character has states of its own

_HEX = "[0-9a-fA-F]"
_YEAR = "[1-9][0-9]{3}"
_LEAP = "(?:[1-9][0-9](?:0[48]|[2468][048]|[13579][26])|(?:[2468][048]|[13579][26])00)"
_DATE = (
    f"(?:{_YEAR}-(?:(?:0[13578]|1[02])-(?:0[1-9]|[12][0-9]|3[01])|(?:0[469]|11)-(?:0[1-9]|[12][0-9]|30)"
    f"|02-(?:0[1-9]|1[0-9]|2[0-8]))|{_LEAP}-02-29)"
)
_CLOCK = "(?:[01][0-9]|2[0-3]):[0-5][0-9]"
_TIME = f"{_CLOCK}:[0-5][0-9](?:\\.[0-9]{{1,6}})?(?:Z|[+-]{_CLOCK})"
_BYTE = "(?:25[0-5]|2[0-4][0-9]|1[0-9]{2}|[1-9]?[0-9])"
_IPV4 = f"(?:{_BYTE}\\.){{3}}{_BYTE}"
_LABEL = "[A-Za-z0-9](?:[A-Za-z0-9-]{0,20}[A-Za-z0-9])?"
_HOST = f"{_LABEL}(?:\\.{_LABEL}){{0,4}}"
_PATH = f"(?:[A-Za-z0-9._~!$&'()*+,;=:@-]|%{_HEX}{{2}})"


def _ipv6() -> str:
    """Eight groups, or fewer with one `::` in place of the others."""
    group = f"{_HEX}{{1,4}}"
    whole = f"(?:{group}:){{7}}{group}"
    short = [
        f"(?:{group}(?::{group}){{0,{before - 1}}})?::(?:{group}(?::{group}){{0,{6 - before}}})?"
        for before in range(1, 7)
    ]
    return "|".join([whole, *short])


FORMATS = {
    "date": _DATE,
    "time": _TIME,
    "date-time": f"{_DATE}T{_TIME}",
    "uuid": "-".join(f"{_HEX}{{{count}}}" for count in (8, 4, 4, 4, 12)),
    "ipv4": _IPV4,
    "ipv6": _ipv6(),
    "email": f"[A-Za-z0-9_+-]{{1,40}}(?:\\.[A-Za-z0-9_+-]{{1,20}}){{0,3}}@{_LABEL}(?:\\.{_LABEL}){{1,4}}",
    "hostname": _HOST,
    "uri": f"[a-z][a-z0-9+.-]*://{_HOST}(?::[0-9]{{1,5}})?(?:/{_PATH}*)*(?:\\?{_PATH}*)?(?:#{_PATH}*)?",
}
# Of the standard, and not written above; other names mean nothing and are no condition.
OTHER_FORMATS = frozenset((
    "duration", "idn-email", "idn-hostname", "iri", "iri-reference", "json-pointer", "regex",
    "relative-json-pointer", "uri-reference", "uri-template",
))  # fmt: skip


@cache
def of_format(name: str) -> Expression:
    """The strings of a format in FORMATS; not all there are, but common ones."""
    return parse(FORMATS[name])


def of_length(low: int, high: int | None) -> Expression:
    """Strings of so many characters."""
    return repeat(ANY_CHARACTER, low, high)


def of_pattern(pattern: str, param: str | None = None) -> Expression:
    """Strings in which a pattern is found. Raises UsageError as `pattern.parse` does."""
    found = []
    for part in alternatives(pattern, param or "schema", narrow=True):
        before = () if part.start else (ANY_TEXT,)
        found.append(sequence(*before, part.body, *(() if part.end else (ANY_TEXT,))))
    return choice(*found)


__all__ = ["FORMATS", "MAX_LENGTH", "OTHER_FORMATS", "of_format", "of_length", "of_pattern"]
