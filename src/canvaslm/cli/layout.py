"""Where each piece of a canvas stands: wrapping that keeps lines where they were.

A draft changes a few tokens a step. Wrapped afresh each time, one wider token near the top would
push every line below it about, and nothing could be read. So a place that began a line goes on
beginning one while it can:

- a line break made by wrapping is kept while the line before it fits the width and is at least half full;
- where it cannot be kept, wrapping goes on from there only until it meets a kept break again;
- a change therefore moves the places to its right in the same line, and other lines only when it must;
- a new width forgets all breaks (see `canvas_view.Canvas.fitted`).

New breaks fall before a word, if one begins in the last third of the line.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from .glyphs import cell_width, clusters


@dataclass(frozen=True)
class PlacedText:
    """Text of one place that stays on one line. `first`: no earlier piece of the place exists."""

    place: int
    text: str
    cells: int
    first: bool = True
    newline: bool = False  # ends its line; has no text

    @property
    def begins_word(self) -> bool:
        return self.text[:1].isspace() or (self.cells == 2 * len(self.text) and bool(self.text))


LayoutRow = tuple[PlacedText, ...]


@dataclass(frozen=True)
class Layout:
    """Rows of pieces, each at most the width; `breaks` are the places that begin a row by wrapping."""

    rows: tuple[LayoutRow, ...]
    breaks: frozenset[int]


def pieces(texts: Iterable[tuple[int, str]], width: int) -> list[PlacedText]:
    """Cuts (place, visible text) at newlines, and what is wider than `width` into parts that are not."""
    result: list[PlacedText] = []
    for place, text in texts:
        first = True
        for number, line in enumerate(text.split("\n")):
            if number:
                result.append(PlacedText(place, "", 0, first, newline=True))
                first = False
            for part in _parts(line, width):
                result.append(PlacedText(place, part, cell_width(part), first))
                first = False
    return result


def _parts(line: str, width: int) -> list[str]:
    if cell_width(line) <= width:
        return [line] if line else []
    parts, used = [""], 0
    for cluster in clusters(line):
        if used and used + cluster.cells > width:
            parts.append("")
            used = 0
        parts[-1] += cluster.text
        used += cluster.cells
    return parts


def lay_out(content: Sequence[PlacedText], width: int, breaks: frozenset[int] = frozenset()) -> Layout:
    """Wraps `content` (cut by `pieces` for the same width) at `width` cells, keeping `breaks` where it can.

    Laying out again with the breaks of the result gives the same result.
    """
    builder = _Builder(width, breaks)
    for piece in content:
        builder.add(piece)
    return builder.done()


class _Builder:
    def __init__(self, width: int, kept: frozenset[int]) -> None:
        self._width, self._kept = width, kept
        self._rows: list[LayoutRow] = []
        self._row: list[PlacedText] = []
        self._used = 0
        self._breaks: set[int] = set()
        self._wrapped = False  # the row at hand was begun by wrapping

    def add(self, piece: PlacedText) -> None:
        if piece.newline:
            self._close_row()
            return
        if self._row and piece.cells:
            if self._used + piece.cells > self._width:
                self._wrap(piece)
            elif piece.first and piece.place in self._kept and self._used >= self._width // 2:
                self._begin_row_with([piece])
                return
        self._put(piece)

    def done(self) -> Layout:
        self._close_row()
        return Layout(tuple(self._rows), frozenset(self._breaks))

    def _wrap(self, piece: PlacedText) -> None:
        """Makes room for a piece that does not fit: the word it continues goes to the next row with it."""
        start = None if piece.begins_word else self._word_start()
        carried = self._row[start:] if start is not None else []
        if carried and sum(p.cells for p in carried) + piece.cells <= self._width:
            del self._row[start:]
            self._begin_row_with(carried)
            return
        if piece.first:
            self._breaks.add(piece.place)
        self._close_row()
        self._wrapped = True

    def _word_start(self) -> int | None:
        """Index of the last piece in the row's last third that begins a word; None without one."""
        moved = 0
        for index in range(len(self._row) - 1, 0, -1):
            piece = self._row[index]
            moved += piece.cells
            if moved > self._width // 3:
                return None
            if piece.begins_word and piece.first:
                return index
        return None

    def _begin_row_with(self, carried: list[PlacedText]) -> None:
        self._breaks.add(carried[0].place)
        self._close_row()
        self._wrapped = True
        for piece in carried:
            self._put(piece)

    def _close_row(self) -> None:
        self._rows.append(tuple(self._row))
        self._row, self._used, self._wrapped = [], 0, False

    def _put(self, piece: PlacedText) -> None:
        if self._wrapped and not self._row:
            piece = _without_space(piece)
        self._row.append(piece)
        self._used += piece.cells


def _without_space(piece: PlacedText) -> PlacedText:
    """A word that wrapping put at the start of a row needs no space before it."""
    if not (piece.text.startswith(" ") and piece.text[1:].strip()):
        return piece
    return replace(piece, text=piece.text[1:], cells=piece.cells - 1)


__all__ = ["Layout", "LayoutRow", "PlacedText", "lay_out", "pieces"]
