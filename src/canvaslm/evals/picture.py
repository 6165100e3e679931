"""The curves of a sweep as one SVG picture: exact match over tokens per pass and over tokens a second, and
below a small panel for each task. Plain text on a white ground."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from html import escape

from .curves import Curve
from .score import Score

WIDTH, _MARGIN, _GAP = 900, 24, 56
_BIG, _SMALL = 260, 110  # heights of panels
_COLUMNS = 4
_COLORS = ("#2166ac", "#b2182b", "#1b7837", "#762a83", "#b35806", "#4d4d4d", "#01665e", "#c51b7d")
_STYLE = (
    "text{font:12px system-ui,sans-serif;fill:#222}.s{font-size:10px}.h{font-size:15px;font-weight:600}"
    ".b{font-weight:600}.m{text-anchor:middle}.e{text-anchor:end}.g{stroke:#ddd}.a{stroke:#888}"
)


@dataclass(frozen=True)
class Axis:
    """What a panel's points stand over: doubling ticks. `of` a score, 0 where it is not known."""

    title: str
    of: Callable[[Score], float]


PASSES = Axis("tokens per pass", lambda score: score.tokens_per_pass)
SPEED = Axis("tokens a second", lambda score: score.tokens_per_second)


@dataclass(frozen=True)
class _Box:
    """A panel's frame, in pixels, and the powers of two that its x axis reaches from and to."""

    left: float
    top: float
    width: float
    height: float
    low: int
    high: int

    def x(self, value: float) -> float:
        share = (math.log2(value) - self.low) / max(1, self.high - self.low)
        return round(self.left + share * self.width, 1)

    def y(self, share: float) -> float:
        return round(self.top + (1 - share) * self.height, 1)


def picture(curves: Sequence[Curve], title: str, note: str) -> str:
    """The SVG. `curves` as `curves.curves` makes them: of tasks, and of all tasks last. `note`: one line on
    what was run."""
    tasks = list(dict.fromkeys(curve.task for curve in curves))
    names = list(dict.fromkeys(curve.name for curve in curves))
    colors = {name: _COLORS[i % len(_COLORS)] for i, name in enumerate(names)}
    main = [curve for curve in curves if curve.task == tasks[-1]]
    parts = [
        f'<text class="h" x="{_MARGIN}" y="30">{escape(title)}</text>',
        f'<text x="{_MARGIN}" y="48">{escape(note)}</text>',
        *_legend(main, colors),
    ]
    top = 84 + 18 * len(main)
    axes = [axis for axis in (PASSES, SPEED) if any(axis.of(s) for c in main for s in c.scores)]
    width = (WIDTH - 2 * _MARGIN - _GAP * len(axes)) / max(1, len(axes))
    for number, axis in enumerate(axes):
        left = _MARGIN + _GAP / 2 + number * (width + _GAP)
        parts += _panel(main, colors, axis, (left, top, width, _BIG), labels=True)
    top += _BIG + 48
    small = [task for task in tasks if task != tasks[-1]]
    if small and axes:
        top += 28
        told = " (areas)" if any(curve.area is not None for curve in curves) else ""
        parts.append(
            f'<text class="b" x="{_MARGIN}" y="{top - 24}">Each task, over {axes[0].title}{told}</text>'
        )
        width = (WIDTH - 2 * _MARGIN - _GAP * _COLUMNS) / _COLUMNS
        for number, task in enumerate(small):
            row, column = divmod(number, _COLUMNS)
            left = _MARGIN + _GAP / 2 + column * (width + _GAP)
            mine = [curve for curve in curves if curve.task == task]
            frame = (left, top + row * (_SMALL + 50), width, float(_SMALL))
            parts += _panel(mine, colors, axes[0], frame, labels=False)
        top += math.ceil(len(small) / _COLUMNS) * (_SMALL + 50)
    return _document(parts, top)


def _document(parts: Sequence[str], height: float) -> str:
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height:g}" width="{WIDTH}" '
        f'height="{height:g}" role="img">'
    )
    ground = f'<rect width="{WIDTH}" height="{height:g}" fill="#fff"/>'
    return "\n".join([head, f"<style>{_STYLE}</style>", ground, *parts, "</svg>\n"])


def _legend(curves: Sequence[Curve], colors: dict[str, str]) -> Iterator[str]:
    """A line for each curve: its name, and the area below it."""
    for number, curve in enumerate(curves):
        y = 70 + 18 * number
        yield f'<circle cx="{_MARGIN + 5}" cy="{y - 4}" r="4" fill="{colors[curve.name]}"/>'
        yield f'<text x="{_MARGIN + 16}" y="{y}">{escape(_told(curve, len(curves)))}</text>'


def _told(curve: Curve, among: int) -> str:
    name = curve.name or ("plain" if among > 1 else curve.task)
    if curve.area is None or curve.interval is None:
        return name
    low, high = curve.interval
    area = f"area {curve.area:.3f} (95 %: {low:.3f} to {high:.3f})"
    return f"{name}: {area}, from 1 to {curve.most:.1f} tokens a step"


def _panel(
    curves: Sequence[Curve],
    colors: dict[str, str],
    axis: Axis,
    frame: tuple[float, float, float, float],
    *,
    labels: bool,
) -> Iterator[str]:
    values = [value for curve in curves for score in curve.scores if (value := axis.of(score)) > 0]
    if not values:
        return
    low, high = math.floor(math.log2(min(values))), math.ceil(math.log2(max(values)))
    box = _Box(*frame, low, max(high, low + 1))
    yield from _grid(box, fine=labels)
    if labels:
        middle = box.left + box.width / 2
        yield f'<text class="m" x="{middle:g}" y="{box.top + box.height + 34:g}">{axis.title}</text>'
        yield f'<text class="s" x="{box.left - 22:g}" y="{box.top - 10:g}">exact match</text>'
    else:
        sizes = ", ".join(f"{curve.area:.2f}" for curve in curves if curve.area is not None)
        title = f"{curves[0].task}{f' ({sizes})' if sizes else ''}"
        yield f'<text class="s b" x="{box.left:g}" y="{box.top - 6:g}">{escape(title)}</text>'
    for number, curve in enumerate(curves):
        yield from _line(box, curve, axis, colors[curve.name], labels=labels, above=number % 2 == 0)


def _grid(box: _Box, *, fine: bool) -> Iterator[str]:
    right, bottom = box.left + box.width, box.top + box.height
    for share in (0, 0.25, 0.5, 0.75, 1) if fine else (0, 0.5, 1):
        y = box.y(share)
        yield f'<line class="{"g" if share else "a"}" x1="{box.left:g}" y1="{y}" x2="{right:g}" y2="{y}"/>'
        yield f'<text class="s e" x="{box.left - 4:g}" y="{y + 3:g}">{share:g}</text>'
    stride = max(1, math.ceil((box.high - box.low) / (8 if fine else 4)))
    for power in range(box.low, box.high + 1, stride):
        x = box.x(2.0**power)
        yield f'<line class="g" x1="{x}" y1="{box.top:g}" x2="{x}" y2="{bottom:g}"/>'
        yield f'<text class="s m" x="{x}" y="{bottom + 14:g}">{2.0**power:g}</text>'


def _line(
    box: _Box, curve: Curve, axis: Axis, color: str, *, labels: bool, above: bool = True
) -> Iterator[str]:
    """The curve in the order of its sweep, with each point's 95 % interval, and its value in the sweep."""
    known = [score for score in curve.scores if axis.of(score) > 0]
    path = " ".join(f"{box.x(axis.of(score))},{box.y(score.share)}" for score in known)
    yield f'<polyline points="{path}" fill="none" stroke="{color}" stroke-width="{2 if labels else 1.5}"/>'
    for score in known:
        x, (low, high) = box.x(axis.of(score)), score.interval
        yield f'<line x1="{x}" y1="{box.y(low)}" x2="{x}" y2="{box.y(high)}" stroke="{color}" opacity=".45"/>'
        yield f'<circle cx="{x}" cy="{box.y(score.share)}" r="{3.5 if labels else 2}" fill="{color}"/>'
        if labels:
            told, side = escape(score.point.at.partition("=")[2]), -7 if above else 15
            place = f'x="{x + 5:g}" y="{box.y(score.share) + side:g}"'
            yield f'<text class="s" {place} style="fill:{color}">{told}</text>'


__all__ = ["PASSES", "SPEED", "WIDTH", "Axis", "picture"]
