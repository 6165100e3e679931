"""The terminal itself: what it can do, and how a block of lines is redrawn in place without harm.

The screen is asked for nothing: no cursor queries, no alternate screen. A frame is drawn below the text
before it, and the next one climbs up and writes over it.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TextIO

from .canvas_view import SHADES, Line, Style, StyledText
from .glyphs import cell_width

_CSI = "\x1b["
_SHOW_CURSOR, _HIDE_CURSOR = f"{_CSI}?25h", f"{_CSI}?25l"
_WRAP_ON, _WRAP_OFF = f"{_CSI}?7h", f"{_CSI}?7l"
# Terminals that know it show the frame at once; the others ignore it.
_BEGIN_FRAME, _END_FRAME = f"{_CSI}?2026h", f"{_CSI}?2026l"
_RESET = f"{_CSI}0m"
_CLEAR_LINE, _CLEAR_BELOW = f"{_CSI}K", f"{_CSI}J"
# Greys of the 256-colour table from faint to strong, legible on black and on white.
_GREYS = (240, 242, 244, 246, 248)
# Of the levels of doubt: yellow, orange, red, dark enough for white; and the nearest that 16 colours have.
_DOUBT, _DOUBT_16 = ("38;5;178", "38;5;208", "38;5;196"), ("33", "35", "31")


@dataclass(frozen=True)
class Abilities:
    """What may be sent. `live`: cursor movement; `colors`: 0, 16 or 256; `reflows`:
    wraps old lines on resize."""

    live: bool = False
    colors: int = 0
    unicode: bool = True
    reflows: bool = True
    light: bool = False


def abilities(stream: TextIO, environment: Mapping[str, str], color: str = "auto") -> Abilities:
    """Reads TERM, COLORTERM, NO_COLOR, COLORFGBG and the stream. `color`: auto, always or never.

    A stream that is no terminal, and TERM=dumb, get neither movement nor (unless `always`) colour.
    """
    term = environment.get("TERM", "")
    live = stream.isatty() and term not in ("dumb", "")
    wanted = color == "always" or (color == "auto" and live and not environment.get("NO_COLOR"))
    rich = "256" in term or bool(environment.get("COLORTERM")) or color == "always"
    multiplexed = "TMUX" in environment
    still = (
        "XTERM_VERSION" in environment or term == "linux" or (term.startswith("screen") and not multiplexed)
    )
    background = environment.get("COLORFGBG", "").rpartition(";")[2]
    encoding = (getattr(stream, "encoding", None) or "").lower().replace("-", "")
    return Abilities(
        live=live,
        colors=(256 if rich else 16) if wanted else 0,
        unicode=encoding.startswith("utf"),
        reflows=not still,
        light=background in ("7", "15"),
    )


def paint(span: StyledText, able: Abilities) -> str:
    """The span with its escape sequences; the text itself must be `visible` already."""
    codes = _codes(span.style, able)
    return f"{_CSI}{';'.join(codes)}m{span.text}{_RESET}" if codes else span.text


def _codes(style: Style, able: Abilities) -> list[str]:
    attributes = ((style.bold, "1"), (style.dim, "2"), (style.italic, "3"), (style.underline, "4"))
    codes = [code for on, code in attributes if on]
    if style.doubt and able.colors:
        codes.append((_DOUBT if able.colors >= 256 else _DOUBT_16)[style.doubt - 1])
    if style.shade and able.colors >= 256:
        rank = len(SHADES) - style.shade  # 0 for the faintest
        codes.append(f"38;5;{_GREYS[-1 - rank if able.light else rank]}")
    elif style.shade > len(SHADES) // 2 and able.colors:
        codes.append("90")
    return codes


def terminal_size(stream: TextIO) -> tuple[int, int]:
    """(columns, lines) of the terminal behind the stream, 80 x 24 where none says."""
    try:
        size = os.get_terminal_size(stream.fileno())
    except (OSError, ValueError):
        size = shutil.get_terminal_size()
    return size.columns or 80, size.lines or 24


class Screen:
    """A block of lines at the bottom of the output, redrawn in place.

    `write_above` puts lasting text where the block was; the block then follows it. Not thread-safe.
    """

    def __init__(
        self, stream: TextIO, able: Abilities, size: Callable[[], tuple[int, int]] | None = None
    ) -> None:
        self._stream, self.able = stream, able
        self.size = size or (lambda: terminal_size(stream))
        self._drawn: list[int] = []  # width in cells of each line of the block

    def open(self) -> None:
        """Hides the cursor."""
        self._send(_HIDE_CURSOR)

    def close(self) -> None:
        """Gives the terminal back as it was: cursor shown, colours and wrapping reset. Safe to call twice."""
        self._send(_RESET + _WRAP_ON + _SHOW_CURSOR)

    def draw(self, lines: list[Line]) -> None:
        """Replaces the block. Lines must not be wider than the terminal; wrapping is
        off, so they cannot wrap."""
        columns = self.size()[0]
        widths = [sum(cell_width(span.text) for span in line) for line in lines]
        body = "\r\n".join(
            "".join(paint(span, self.able) for span in line)
            # After a full line the cursor is still on its last cell, which clearing would take away.
            + ("" if width >= columns else _CLEAR_BELOW if line is lines[-1] else _CLEAR_LINE)
            for line, width in zip(lines, widths, strict=True)
        )
        self._send(_BEGIN_FRAME + self._climb() + _WRAP_OFF + body + _WRAP_ON + _END_FRAME)
        self._drawn = widths

    def erase(self) -> None:
        """Removes the block; the cursor stands where it began."""
        if self._drawn:
            self._send(self._climb() + _CLEAR_BELOW)
            self._drawn = []

    def write_above(self, *parts: tuple[str, Style]) -> None:
        """Erases the block and writes parts of text that stay. The terminal wraps them, so they can be copied
        as they are."""
        self.erase()
        if parts:
            self._send("".join(paint_lines(text, style, self.able) for text, style in parts))

    def leave(self) -> None:
        """Keeps what is drawn as ordinary output and stands below it."""
        if self._drawn:
            self._send("\r\n")
            self._drawn = []

    def _climb(self) -> str:
        """To the first cell of the block: the cursor stands in its last line."""
        if not self._drawn:
            return "\r"
        columns = max(self.size()[0], 1)
        heights = [max(1, -(-cells // columns)) if self.able.reflows else 1 for cells in self._drawn]
        up = sum(heights) - 1
        return f"\r{_CSI}{up}A" if up else "\r"

    def _send(self, text: str) -> None:
        self._stream.write(text)
        self._stream.flush()


def paint_lines(text: str, style: Style, able: Abilities) -> str:
    """Text of several lines in one style, each line closed by itself so that a pager or a copy stays
    clean."""
    return "\n".join(paint(StyledText(line, style), able) if line else "" for line in text.split("\n"))


__all__ = ["Abilities", "Screen", "abilities", "paint", "paint_lines", "terminal_size"]
