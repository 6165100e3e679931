"""A canvas as lines of styled text: a pure function from state to what a terminal shall show.

What the reader sees, apart from colour (NO_COLOR and monochrome terminals lose the shades only):

- an accepted place is plain text; a place that will be drawn anew is italic, and dim
  where there is no colour;
- a place whose token changed in the last step is underlined;
- a place whose token was given is bold;
- the darker the grey, the higher the entropy; certain text has the terminal's own colour;
- `·` is a place after the end of the answer; control tokens are shown by name.

Lines stay where they were as far as `layout` can manage, the region never shrinks while a canvas lasts, and
what exceeds the terminal's height is cut so that the first unsettled line can be seen.
"""

from __future__ import annotations

import codecs
from collections.abc import Collection
from dataclasses import dataclass, replace
from typing import Protocol

from ..types import Draft
from .glyphs import cell_width, cut, visible
from .layout import Layout, LayoutRow, lay_out, pieces

# Nats from which the next darker grey is used.
SHADES = (0.02, 0.1, 0.4, 1.0, 2.0)
_END = "·"
_TAIL = -1  # the place number of committed text that the canvas continues
_BAR_CELLS = 12


class TokenTexts(Protocol):
    """What the view needs of a tokenizer."""

    def token_bytes(self, token_id: int) -> bytes: ...

    def is_control(self, token_id: int) -> bool: ...


@dataclass(frozen=True)
class Style:
    """How text is told apart. `shade` 0 is the terminal's own colour, len(SHADES) the darkest grey;
    `doubt` is a level of doubt, which has a colour of its own."""

    dim: bool = False
    italic: bool = False
    underline: bool = False
    shade: int = 0
    bold: bool = False
    doubt: int = 0


@dataclass(frozen=True)
class StyledText:
    """Text without newlines or control characters, in one style."""

    text: str
    style: Style = Style()


Line = list[StyledText]


@dataclass(frozen=True)
class Cell:
    """One place of the canvas, ready to draw. `entropy` in nats."""

    text: str
    settled: bool
    changed: bool
    entropy: float
    control: bool = False
    given: bool = False


@dataclass(frozen=True)
class Status:
    """The figures under the canvas. `canvas` counts from 0, `step` from 1; `elapsed` is in seconds."""

    canvas: int
    step: int
    steps_max: int
    temperature: float
    mean_entropy: float
    accepted: int
    places: int
    elapsed: float = 0.0

    def parts(self) -> list[str]:
        """In the order in which a narrow terminal keeps them."""
        time = [f"{self.elapsed:.0f} s"] if self.elapsed >= 2 else []
        return [
            f"canvas {self.canvas + 1}",
            f"step {self.step:>{len(str(self.steps_max))}} of {self.steps_max}",
            *time,
            f"T {self.temperature:.2f}",
            f"mean entropy {self.mean_entropy:.2f}",
            f"{self.accepted:>{len(str(self.places))}}/{self.places} accepted",
        ]


@dataclass(frozen=True)
class FrameState:
    """All that one frame depends on, and what the frame before fixed.

    `tail`: committed text after its last newline, which the canvas continues. `note` replaces the status line
    while there is no draft. `width`, `breaks` and `floor` (rows) remember the last layout.
    """

    tail: str = ""
    cells: tuple[Cell, ...] = ()
    status: Status | None = None
    note: str = ""
    width: int = 0
    breaks: frozenset[int] = frozenset()
    floor: int = 0

    def drafted(
        self, draft: Draft, vocabulary: TokenTexts, ends: Collection[int], elapsed: float
    ) -> FrameState:
        """The state after one more step."""
        return replace(
            self, cells=cells_of(draft, vocabulary, ends), status=status_of(draft, elapsed), note=""
        )

    def committed(self, canvas: int) -> FrameState:
        """The state once canvas number `canvas` has become text; the caller sets the tail."""
        return FrameState(note=f"canvas {canvas + 2}: reading what is settled", width=self.width)

    def fitted(self, width: int) -> FrameState:
        """The state with its lines broken for `width`; the next frame keeps these breaks where it can."""
        return self.laid_out(width)[0]

    def laid_out(self, width: int) -> tuple[FrameState, Layout]:
        """The state as `fitted`, and its rows."""
        known = self if width == self.width else replace(self, width=width, breaks=frozenset(), floor=0)
        texts = [(_TAIL, visible(self.tail)), *((i, cell.text) for i, cell in enumerate(self.cells))]
        laid = lay_out(pieces(texts, width), width, known.breaks)
        rows = len(laid.rows) if self.cells or self.tail else 0
        return replace(known, breaks=laid.breaks, floor=max(known.floor, rows)), laid


def cells_of(draft: Draft, vocabulary: TokenTexts, ends: Collection[int] = ()) -> tuple[Cell, ...]:
    """The draft's places as text. A character made of several byte tokens stands at the last of them."""
    utf8 = codecs.getincrementaldecoder("utf-8")(errors="replace")
    cells: list[Cell] = []
    ended = False
    given = draft.given or (False,) * len(draft.tokens)
    for token, entropy, accepted, changed, fixed in zip(
        draft.tokens, draft.entropy, draft.accepted, draft.changed, given, strict=True
    ):
        control = vocabulary.is_control(token)
        text = utf8.decode(vocabulary.token_bytes(token), final=control)
        if control and (ended or token in ends):
            ended, text = True, _END
        cells.append(Cell(visible(text), accepted, changed, entropy, control, fixed))
    if left := utf8.decode(b"", final=True):
        cells[-1] = replace(cells[-1], text=cells[-1].text + left)
    return tuple(cells)


def status_of(draft: Draft, elapsed: float = 0.0) -> Status:
    """The figures of one step."""
    places = len(draft.tokens)
    return Status(
        draft.canvas,
        draft.step,
        draft.steps_max,
        draft.temperature,
        sum(draft.entropy) / max(places, 1),
        sum(draft.accepted),
        places,
        elapsed,
    )


def render(
    state: FrameState, width: int, height: int, color: bool = True, unicode: bool = True
) -> list[Line]:
    """The frame: at most `height` lines of at most `width` cells, the last of them the status line.

    `color` False uses attributes only; `unicode` False keeps the bar and the rule to ASCII.
    """
    width, height = max(width, 4), max(height, 2)
    state, laid = state.laid_out(width)
    rows = list(laid.rows) if state.cells or state.tail else []
    lines = [_line(row, state.cells, color) for row in rows]
    lines += [[] for _ in range(min(state.floor, height - 1) - len(lines))]
    first_open = _first_open(rows, state.cells)
    return [*_clip(lines, height - 1, first_open, width, color), status_line(state, width, color, unicode)]


def style_of(cell: Cell, color: bool) -> Style:
    """The look of a place; see the module's head."""
    shade = sum(cell.entropy >= limit for limit in SHADES) if color else 0
    if cell.control:
        return Style(dim=not color, shade=len(SHADES) if color else 0)
    if cell.given:
        return Style(bold=True)
    return Style(
        dim=not cell.settled and not color, italic=not cell.settled, underline=cell.changed, shade=shade
    )


def _line(row: LayoutRow, cells: tuple[Cell, ...], color: bool) -> Line:
    """Spans of a row, neighbours of one style joined."""
    line: Line = []
    for piece in row:
        style = Style() if piece.place == _TAIL else style_of(cells[piece.place], color)
        if line and line[-1].style == style:
            line[-1] = StyledText(line[-1].text + piece.text, style)
        else:
            line.append(StyledText(piece.text, style))
    return line


def _first_open(rows: list[LayoutRow], cells: tuple[Cell, ...]) -> int:
    """Index of the first row with a place that is not settled; the last row without one."""
    for index, row in enumerate(rows):
        if any(p.place != _TAIL and not cells[p.place].settled for p in row):
            return index
    return max(len(rows) - 1, 0)


def _clip(lines: list[Line], height: int, target: int, width: int, color: bool) -> list[Line]:
    """`height` lines around `target`, with a line that counts what is cut off above or below."""
    if len(lines) <= height:
        return lines
    if height < 3:
        start = min(target, len(lines) - height)
        return lines[start : start + height]
    faint = Style(dim=not color, shade=len(SHADES) if color else 0)
    start = min(max(target - height // 3, 0), len(lines) - height)
    shown = lines[start : start + height]
    if start:
        shown[0] = [StyledText(cut(f"... {start + 1} lines above", width), faint)]
    if below := len(lines) - start - height:
        shown[-1] = [StyledText(cut(f"... {below + 1} lines below", width), faint)]
    return shown


def status_line(state: FrameState, width: int, color: bool, unicode: bool) -> Line:
    """The figures, as many as fit, after a bar of the steps where there is room for one."""
    faint = Style(dim=not color, shade=len(SHADES) // 2 if color else 0)
    if state.note or state.status is None:
        return [StyledText(cut(state.note, width), faint)]
    text = ""
    for part in state.status.parts():
        longer = f"{text}{' · ' if unicode else ' - '}{part}" if text else part
        if cell_width(longer) > width:
            break
        text = longer
    room = min(width - cell_width(text) - 1, _BAR_CELLS)
    bar = _bar(state.status, room, unicode) + " " if room >= _BAR_CELLS // 2 else ""
    return [StyledText(cut(bar + text, width), faint)]


def _bar(status: Status, cells: int, unicode: bool) -> str:
    full, empty = ("━", "╌") if unicode else ("#", ".")
    filled = min(cells, round(cells * status.step / max(status.steps_max, 1)))
    return full * filled + empty * (cells - filled)


__all__ = [
    "SHADES",
    "Cell",
    "FrameState",
    "Line",
    "Status",
    "Style",
    "StyledText",
    "TokenTexts",
    "cells_of",
    "render",
    "status_line",
    "status_of",
    "style_of",
]
