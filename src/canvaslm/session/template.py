"""Texts with holes: the strings of `fill`, and the escape for a text that says `<hole>` itself."""

from __future__ import annotations

import re
from dataclasses import dataclass

from ..errors import UsageError

# Backslashes belong to the escape only where they stand directly before what looks like a hole: two are one
# of them, and an odd one makes the hole text.
_HOLE = re.compile(r"(\\*)(<hole(?:[ \t]+max=([0-9]+))?[ \t]*>)")
MOST_HOLES = 256


@dataclass(frozen=True)
class Hole:
    """Of a template. `most`: tokens that it may have, None for no limit of its own. `draft`: a guess."""

    most: int | None = None
    draft: str | None = None


@dataclass(frozen=True)
class Template:
    """`given[0]`, hole, `given[1]` ... `given[-1]`: one text more than there are holes."""

    given: tuple[str, ...]
    holes: tuple[Hole, ...]

    def whole(self, holes: tuple[str, ...]) -> str:
        """The text with these in its holes."""
        return self.given[0] + "".join(h + g for h, g in zip(holes, self.given[1:], strict=True))

    @property
    def written(self) -> str:
        """As `parse` reads it."""
        marks = ["<hole>" if h.most is None else f"<hole max={h.most}>" for h in self.holes]
        before = (
            escape(text, before_hole=True) + mark for text, mark in zip(self.given, marks, strict=False)
        )
        return "".join(before) + escape(self.given[-1])

    def check(self) -> None:
        """Raises UsageError for what cannot be encoded, or no hole at all."""
        if not 1 <= len(self.holes) <= MOST_HOLES:
            raise UsageError(
                f"the template has {len(self.holes)} holes: write <hole> or <hole max=40> where text is "
                f"wanted, 1 to {MOST_HOLES} times",
                "template",
            )
        for number, hole in enumerate(self.holes, 1):
            if hole.most is not None and hole.most < 1:
                raise UsageError(f"hole {number} has max={hole.most}: give it one token at least", "template")
        for text in (*self.given, *(hole.draft or "" for hole in self.holes)):
            check_text(text)


def check_text(text: str, name: str = "template") -> None:
    """Raises UsageError for what is not text: lone halves of surrogate pairs cannot come back as they are."""
    if not isinstance(text, str):
        raise UsageError(f"{name} should be a text, found {type(text).__name__}", name)
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise UsageError(
            f"{name} has half a surrogate pair at character {error.start}: that is no text", name
        ) from None


def parse(text: str) -> Template:
    """Reads `<hole>` and `<hole max=40>`; `\\<hole>` is the text `<hole>`. Raises UsageError without a hole.

    >>> parse("a <hole>, b <hole max=5>").given
    ('a ', ', b ', '')
    """
    check_text(text)
    given, holes, at = [""], list[Hole](), 0
    for match in _HOLE.finditer(text):
        backslashes, written, most = match.groups()
        given[-1] += text[at : match.start()] + "\\" * (len(backslashes) // 2)
        at = match.end()
        if len(backslashes) % 2:
            given[-1] += written
            continue
        holes.append(Hole(None if most is None else int(most[:9])))
        given.append("")
    given[-1] += text[at:]
    template = Template(tuple(given), tuple(holes))
    template.check()
    return template


def infill_template(prefix: str, suffix: str) -> Template:
    """One hole between two texts, which are not checked here."""
    return Template((prefix, suffix), (Hole(),))


def escape(text: str, *, before_hole: bool = False) -> str:
    """A text as it must be written in a template to come back as it is; before a hole, backslashes at its end
    are doubled as well.

    >>> escape("write <hole> here")
    'write \\\\<hole> here'
    """
    escaped = _HOLE.sub(lambda match: match[1] * 2 + "\\" + match[2], text)
    tail = len(escaped) - len(escaped.rstrip("\\"))
    return escaped + "\\" * tail * before_hole


__all__ = ["MOST_HOLES", "Hole", "Template", "check_text", "escape", "infill_template", "parse"]
