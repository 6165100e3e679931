"""What a terminal may be sent: model text made harmless, cut into clusters, measured in cells.

A model can write any character, so none of its text reaches a terminal unfiltered: an escape sequence could
retitle the window or fake a prompt, a bidirectional override could reorder a line.
"""

from __future__ import annotations

import unicodedata
from dataclasses import dataclass
from functools import lru_cache

from rich.cells import get_character_cell_size

_JOINER = "\u200d"
_EMOJI_STYLE = "\ufe0f"
# Format characters that languages and emoji need; all others reorder or hide text.
_HARMLESS_FORMAT = frozenset("\u200c\u200d\u00ad")
_TAB = "    "


@dataclass(frozen=True)
class Cluster:
    """What the reader sees as one character: its text and the terminal cells it takes (0, 1 or 2)."""

    text: str
    cells: int


def visible(text: str, *, tabs: bool = True) -> str:
    """`text` with control and reordering characters shown instead of sent; newlines stay.

    Escape becomes `␛`, a C1 control `\\x9b`, a bidirectional override `\\u202e`. With `tabs`, a tab becomes
    four spaces (a place of the canvas has no column to align to); without, it stays.
    """
    if text.isascii() and text.isprintable():
        return text
    return "".join(_show(char, tabs) for char in text)


def _show(char: str, tabs: bool) -> str:
    if char == "\n" or char.isprintable() or char in _HARMLESS_FORMAT:
        return char
    if char == "\t":
        return _TAB if tabs else char
    return _show_hidden(char)


@lru_cache(maxsize=1024)
def _show_hidden(char: str) -> str:
    code = ord(char)
    if code < 0x20:
        return chr(0x2400 + code)
    if code == 0x7F:
        return "\u2421"
    kind = unicodedata.category(char)
    if kind in ("Zs", "Co", "Cn"):  # typographic spaces, private use, emoji newer than Python's tables
        return char
    if kind == "Cs":  # half of a surrogate pair cannot be encoded
        return "\ufffd"
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


def clusters(text: str) -> list[Cluster]:
    """Cut `text` (made `visible` before) into clusters: combining marks and joined
    emoji stay with their base."""
    if text.isascii():
        return [Cluster(char, 1) for char in text]
    result: list[Cluster] = []
    for char in text:
        cells = get_character_cell_size(char)
        if result and _continues(result[-1].text, char, cells):
            result[-1] = Cluster(result[-1].text + char, _joined_cells(result[-1].cells, char))
        else:
            result.append(Cluster(char, cells))
    return result


def _continues(before: str, char: str, cells: int) -> bool:
    if cells == 0 or before.endswith(_JOINER):
        return True
    if "\U0001f3fb" <= char <= "\U0001f3ff":  # skin tone
        return get_character_cell_size(before[0]) == 2
    return _is_flag_letter(char) and len(before) == 1 and _is_flag_letter(before)


def _is_flag_letter(char: str) -> bool:
    return "\U0001f1e6" <= char <= "\U0001f1ff"


def _joined_cells(cells: int, char: str) -> int:
    return 2 if char == _EMOJI_STYLE or _is_flag_letter(char) else cells


def cell_width(text: str) -> int:
    """Terminal cells that one line of `visible` text takes."""
    return len(text) if text.isascii() else sum(cluster.cells for cluster in clusters(text))


def cut(text: str, width: int) -> str:
    """The longest start of `text` that fits `width` cells; a wide character is never halved."""
    if cell_width(text) <= width:
        return text
    kept, used = [], 0
    for cluster in clusters(text):
        used += cluster.cells
        if used > width:
            break
        kept.append(cluster.text)
    return "".join(kept)


__all__ = ["Cluster", "cell_width", "clusters", "cut", "visible"]
