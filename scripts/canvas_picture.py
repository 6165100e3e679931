#!/usr/bin/env python3
"""Draws docs/canvas.svg anew: the demo model solving a Sudoku, after some of its denoise steps.

A test checks that the picture is what the model does. Only tokens and accept flags are drawn, no entropies,
so that the last bits of another processor's sums do not change it.
"""

from __future__ import annotations

from pathlib import Path

import canvaslm
from canvaslm.demo.puzzle import Puzzle, random_puzzle
from canvaslm.types import Draft

TARGET = Path(__file__).resolve().parent.parent / "docs" / "canvas.svg"
SEED = 11
SHOWN = (1, 2, 3, 5)  # denoise steps
SIDE, CELL, GAP, TOP = 4, 34, 40, 30  # cells a row; pixels of a cell, between boards, above them
BOARD = SIDE * CELL


def picture() -> str:
    """The SVG, from a run of the demo model."""
    session = canvaslm.load()
    puzzle = random_puzzle(SEED)
    events = session.stream(puzzle.prompt, seed=SEED, drafts=True)
    drafts = {event.step: event for event in events if isinstance(event, Draft)}
    boards = [_board(0, "the puzzle", [(digit, "given") for digit in puzzle.grid])]
    for place, step in enumerate(SHOWN, 1):
        cells = _cells(session, drafts[step], puzzle)
        boards.append(_board(place, f"after step {step} of {max(drafts)}", cells))
    return _page("\n".join(boards), len(boards))


def _cells(session: canvaslm.Session, draft: Draft, puzzle: Puzzle) -> list[tuple[str, str]]:
    """(digit, class) of the 16 cells: the draft's one-digit tokens in their order."""
    tokens = [session.tokenizer.token_bytes(token).decode() for token in draft.tokens]
    digits = [(text, held) for text, held in zip(tokens, draft.accepted, strict=True) if text.isdigit()]
    assert len(digits) == SIDE * SIDE, "the draft is no grid"
    return [
        (digit, "given" if given == digit else "kept" if held else "noise")
        for given, (digit, held) in zip(puzzle.grid, digits, strict=True)
    ]


def _board(place: int, title: str, cells: list[tuple[str, str]]) -> str:
    left = GAP / 2 + place * (BOARD + GAP)
    lines = [f'<text class="title" x="{left + BOARD / 2:g}" y="{TOP - 10}">{title}</text>']
    for number, (digit, kind) in enumerate(cells):
        x, y = left + number % SIDE * CELL, TOP + number // SIDE * CELL
        lines.append(f'<rect class="{kind}" x="{x:g}" y="{y:g}" width="{CELL}" height="{CELL}"/>')
        shown = "" if digit == "." else digit
        lines.append(f'<text class="{kind}" x="{x + CELL / 2:g}" y="{y + CELL / 2 + 7:g}">{shown}</text>')
    return "\n".join(lines)


def _page(boards: str, count: int) -> str:
    width, height = count * (BOARD + GAP), TOP + BOARD + 40
    legend = (
        '<tspan class="given">given</tspan> · <tspan class="kept">accepted by this step</tspan> · '
        '<tspan class="noise">drawn anew in the next</tspan>'
    )
    return f"""<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" role="img">
<title>A canvas while it is denoised: a Sudoku solved in parallel</title>
<!-- Drawn by scripts/canvas_picture.py from a run of the demo model, seed {SEED}. -->
<style>
text {{ font: 18px ui-monospace, monospace; text-anchor: middle; fill: #1f2328 }}
text.title, text.legend {{ font-size: 13px; fill: #57606a }}
rect {{ stroke: #8c959f; fill: #ffffff }}
rect.given {{ fill: #eaeef2 }}
rect.noise {{ fill: #fff1d6 }}
text.kept, tspan.kept {{ fill: #116329; font-weight: bold }}
text.noise, tspan.noise {{ fill: #bc4c00; font-style: italic }}
</style>
<rect width="{width}" height="{height}" style="stroke: none"/>
{boards}
<text class="legend" x="{width / 2:g}" y="{height - 14}">{legend}</text>
</svg>
"""


if __name__ == "__main__":
    TARGET.write_text(picture(), encoding="utf-8")
    print(TARGET)


__all__ = ["TARGET", "picture"]
