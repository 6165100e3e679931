from __future__ import annotations

import io

import pytest

from canvaslm.cli.canvas_view import SHADES, Style, StyledText
from canvaslm.cli.terminal import Abilities, Screen, abilities, paint, paint_lines

pyte = pytest.importorskip("pyte", reason="pyte interprets the escape sequences")


class Tty(io.StringIO):
    encoding = "utf-8"

    def isatty(self) -> bool:
        return True


class Emulator(io.StringIO):
    """A terminal in memory: what is written is interpreted at once."""

    def __init__(self, columns: int, lines: int) -> None:
        super().__init__()
        self.screen = pyte.Screen(columns, lines)
        self.screen.set_mode(pyte.modes.LNM)  # as the kernel does: a newline also returns
        self._stream = pyte.Stream(self.screen)

    def write(self, text: str) -> int:
        self._stream.feed(text)
        return len(text)

    def size(self) -> tuple[int, int]:
        return self.screen.columns, self.screen.lines

    @property
    def rows(self) -> list[str]:
        return [row.rstrip() for row in self.screen.display]


@pytest.mark.parametrize(
    ("environment", "color", "expected"),
    [
        ({"TERM": "xterm-256color"}, "auto", Abilities(live=True, colors=256)),
        ({"TERM": "xterm"}, "auto", Abilities(live=True, colors=16)),
        ({"TERM": "xterm", "COLORTERM": "truecolor"}, "auto", Abilities(live=True, colors=256)),
        ({"TERM": "xterm-256color", "NO_COLOR": "1"}, "auto", Abilities(live=True, colors=0)),
        ({"TERM": "xterm-256color", "NO_COLOR": "1"}, "always", Abilities(live=True, colors=256)),
        ({"TERM": "xterm-256color"}, "never", Abilities(live=True, colors=0)),
        ({"TERM": "dumb"}, "auto", Abilities()),
        ({}, "auto", Abilities()),
        ({"TERM": "linux"}, "auto", Abilities(live=True, colors=16, reflows=False)),
        (
            {"TERM": "xterm", "XTERM_VERSION": "XTerm(379)"},
            "auto",
            Abilities(live=True, colors=16, reflows=False),
        ),
        ({"TERM": "screen", "TMUX": "x"}, "auto", Abilities(live=True, colors=16)),
        ({"TERM": "xterm", "COLORFGBG": "0;15"}, "auto", Abilities(live=True, colors=16, light=True)),
    ],
)
def test_abilities(environment: dict[str, str], color: str, expected: Abilities) -> None:
    assert abilities(Tty(), environment, color) == expected


def test_a_pipe_can_do_nothing() -> None:
    assert abilities(io.StringIO(), {"TERM": "xterm-256color"}) == Abilities(unicode=False)


def test_an_ascii_terminal_gets_no_unicode() -> None:
    stream = Tty()
    stream.encoding = "ANSI_X3.4-1968"
    assert not abilities(stream, {"TERM": "xterm"}).unicode


def test_paint_closes_what_it_opens_and_plain_text_stays_plain() -> None:
    able = Abilities(live=True, colors=256)
    assert paint(StyledText("a"), able) == "a"
    assert paint(StyledText("a", Style(italic=True, underline=True)), able) == "\x1b[3;4ma\x1b[0m"
    assert paint(StyledText("a", Style(shade=len(SHADES))), able) == "\x1b[38;5;240ma\x1b[0m"
    assert paint_lines("a\n\nb", Style(dim=True), able) == "\x1b[2ma\x1b[0m\n\n\x1b[2mb\x1b[0m"


def test_shades_fall_from_strong_to_faint_on_both_backgrounds() -> None:
    def greys(able: Abilities) -> list[int]:
        painted = (paint(StyledText("a", Style(shade=shade)), able) for shade in range(1, len(SHADES) + 1))
        return [int(text.split(";")[2].split("m")[0]) for text in painted]

    dark = greys(Abilities(colors=256))
    assert dark == sorted(dark, reverse=True)
    assert greys(Abilities(colors=256, light=True)) == sorted(dark)


def test_sixteen_colours_have_one_shade_and_none_has_attributes_only() -> None:
    faint = StyledText("a", Style(shade=len(SHADES)))
    assert paint(faint, Abilities(colors=16)) == "\x1b[90ma\x1b[0m"
    assert paint(StyledText("a", Style(shade=1)), Abilities(colors=16)) == "a"
    assert paint(faint, Abilities(colors=0)) == "a"


def test_a_frame_is_drawn_over_the_one_before() -> None:
    out = Emulator(20, 8)
    out.write("$ before\n")
    screen = Screen(out, Abilities(live=True), out.size)
    screen.draw([[StyledText("one")], [StyledText("two")], [StyledText("three")]])
    assert out.rows[:4] == ["$ before", "one", "two", "three"]
    screen.draw([[StyledText("1")], [StyledText("status")]])
    assert out.rows[:4] == ["$ before", "1", "status", ""]
    screen.erase()
    assert out.rows[:2] == ["$ before", ""]
    assert (out.screen.cursor.y, out.screen.cursor.x) == (1, 0)


def test_lasting_text_pushes_the_block_down() -> None:
    out = Emulator(20, 6)
    screen = Screen(out, Abilities(live=True), out.size)
    screen.draw([[StyledText("draft")], [StyledText("status")]])
    screen.write_above(("sett", Style()), ("led\n", Style()))
    screen.draw([[StyledText("next")], [StyledText("status")]])
    assert out.rows[:3] == ["settled", "next", "status"]


def test_a_full_line_keeps_its_last_cell_and_wraps_nothing() -> None:
    out = Emulator(10, 5)
    screen = Screen(out, Abilities(live=True), out.size)
    for _ in range(2):
        screen.draw([[StyledText("x" * 10)], [StyledText("y" * 10)]])
    assert out.rows[:3] == ["x" * 10, "y" * 10, ""]


def test_at_the_bottom_of_the_terminal_the_block_scrolls_once() -> None:
    out = Emulator(10, 3)
    out.write("a\nb\n")
    screen = Screen(out, Abilities(live=True), out.size)
    for number in range(3):
        screen.draw([[StyledText(f"draft {number}")], [StyledText("status")]])
    assert out.rows == ["b", "draft 2", "status"]


def test_a_terminal_that_reflows_is_climbed_by_the_wrapped_rows() -> None:
    sizes = [(20, 8)]
    out = io.StringIO()
    screen = Screen(out, Abilities(live=True), lambda: sizes[-1])
    screen.draw([[StyledText("x" * 20)], [StyledText("short")]])
    sizes.append((10, 8))
    out.truncate(0)
    screen.erase()
    assert "\x1b[2A" in out.getvalue()  # two rows for the long line, one for the short


def test_closing_gives_the_terminal_back() -> None:
    out = Emulator(10, 3)
    screen = Screen(out, Abilities(live=True), out.size)
    screen.open()
    assert out.screen.cursor.hidden
    screen.draw([[StyledText("a", Style(italic=True))]])
    screen.close()
    assert not out.screen.cursor.hidden
    assert pyte.modes.DECAWM in out.screen.mode
