from __future__ import annotations

import io

from canvaslm.cli.output import PlainAnswer, canvas_steps, figures
from canvaslm.types import (
    CanvasReport,
    Committed,
    Finished,
    Reply,
    Timings,
    ToolCall,
    Usage,
)

REPORT = CanvasReport(4, "converged", 0.0)


def _reply(steps: list[int], tokens: int, total: float, denoise: float) -> Reply:
    canvases = tuple(CanvasReport(n, "max_steps", 0.0) for n in steps)
    return Reply("", "", (), "stop", Usage(9, tokens), Timings(total=total, denoise=denoise), 7, (), canvases)


def test_figures_count_committed_tokens_over_wall_time() -> None:
    assert figures(_reply([12, 8], 30, 2.0, 0.5)) == (
        "30 tokens in 2.00 s: 15.0 tokens/s · 25.0 ms/step · steps per canvas 12+8 · seed 7"
    )


def test_figures_of_nothing() -> None:
    assert figures(_reply([], 0, 0.0, 0.0)) == "0 tokens · seed 7"


def test_many_canvases_are_summed_up() -> None:
    assert canvas_steps(tuple([REPORT] * 9)) == "4.0 (mean of 9)"


def _plain(*events: Committed | Finished, harmless: bool) -> str:
    out = io.StringIO()
    answer = PlainAnswer(out, harmless=harmless)
    for event in events:
        answer.feed(event)
    return out.getvalue()


def test_plain_text_comes_as_it_settles_and_ends_with_a_newline() -> None:
    end = Finished(0, "stop", Usage(), Timings(), 1, (), text="!")
    assert (
        _plain(Committed(0, 0, (1,), REPORT, "a\n"), Committed(0, 1, (1,), REPORT, "b"), end, harmless=True)
        == "a\nb!\n"
    )


def test_a_terminal_gets_no_escapes_and_a_pipe_gets_all() -> None:
    end = Finished(0, "stop", Usage(), Timings(), 1, (), text="\x1b[1m\t")
    assert _plain(end, harmless=True) == "␛[1m\t\n"
    assert _plain(end, harmless=False) == "\x1b[1m\t\n"


def test_a_tool_call_is_a_line_of_json() -> None:
    call = ToolCall("weather", {"city": "Köln"})
    end = Finished(0, "tool_calls", Usage(), Timings(), 1, (), text="Let me see.", tool_calls=(call,))
    assert _plain(end, harmless=False) == 'Let me see.\n{"name": "weather", "arguments": {"city": "Köln"}}\n'
