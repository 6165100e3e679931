"""Events to text: stop strings across canvases, drafts, log-probabilities."""

from __future__ import annotations

import pytest

from canvaslm.demo.config import MODEL_FOLDER
from canvaslm.text.logprobs import AnswerLogprobs
from canvaslm.text.tokenizer import Tokenizer
from canvaslm.text.transcript import Transcript
from canvaslm.types import (
    CanvasReport,
    Committed,
    Draft,
    Event,
    Finished,
    Settled,
    Timings,
    Usage,
)

TOKENIZER = Tokenizer.from_folder(MODEL_FOLDER)
REPORT = CanvasReport(1, "converged", 0.0)
END = Finished(0, "length", Usage(1, 9), Timings(), 0, (REPORT,))


def commit(ids: list[int]) -> Committed:
    return Committed(0, 0, tuple(ids), REPORT, logprobs=tuple(-float(i) for i in range(len(ids))))


def draft(ids: list[int]) -> Draft:
    flags = (True,) * len(ids)
    return Draft(0, 0, 1, 9, 1.0, tuple(ids), (0.0,) * len(ids), flags, flags)


def read_all(reader: Transcript, text: str, size: int) -> list[Event]:
    ids = TOKENIZER.encode(text)
    events: list[Event] = [commit(ids[i : i + size]) for i in range(0, len(ids), size)]
    return [reader.read(event) for event in [*events, END]]


TEXT = "one two three STOP four five"


@pytest.mark.parametrize("size", [1, 2, 3, 50])
@pytest.mark.parametrize("raw", [False, True])
def test_stop_strings_do_not_care_where_canvases_end(size: int, raw: bool) -> None:
    reader = Transcript(TOKENIZER, stop=["STOP", "never"], raw=raw)
    pieces = read_all(reader, TEXT, size)
    assert "".join(piece.text for piece in pieces) == "one two three "
    assert reader.stopped and reader.stop_string == "STOP"
    assert isinstance(pieces[-1], Finished) and pieces[-1].reason == "stop"


@pytest.mark.parametrize("size", [1, 2, 50])
def test_what_only_began_like_a_stop_string_is_sent(size: int) -> None:
    pieces = read_all(Transcript(TOKENIZER, stop="five!"), TEXT, size)
    assert "".join(piece.text for piece in pieces) == TEXT
    assert isinstance(pieces[-1], Finished) and pieces[-1].reason == "length"


@pytest.mark.parametrize("size", [1, 3, 50])
def test_log_probabilities_go_as_far_as_the_text(size: int) -> None:
    pieces = read_all(Transcript(TOKENIZER, stop="STOP", logprobs=True), TEXT, size)
    tokens = [token for piece in pieces for token in piece.token_logprobs]
    data = b"".join(token.data for token in tokens)
    assert data.startswith(b"one two three") and b"four" not in data
    full = [
        t
        for piece in read_all(Transcript(TOKENIZER, logprobs=True), TEXT, size)
        for t in piece.token_logprobs
    ]
    assert b"".join(token.data for token in full).decode() == TEXT


def test_a_draft_shows_all_text_and_changes_nothing() -> None:
    reader = Transcript(TOKENIZER, stop="three four")
    ids = TOKENIZER.encode("one two three")
    reader.read(commit(ids))
    for wanted in (" five", " four", " five"):
        assert reader.read(draft(TOKENIZER.encode(wanted))).text == "one two three" + wanted
    assert reader.read(commit(TOKENIZER.encode(" five"))).text.endswith(" five")
    assert not reader.stopped


def test_tokens_sent_early_have_their_log_probabilities_later() -> None:
    reader = AnswerLogprobs(TOKENIZER)
    ids = TOKENIZER.encode("one two three four")
    reader.feed(Settled(0, 0, tuple(ids[:2])))
    assert reader.take(None) == ()
    reader.feed(Committed(0, 0, tuple(ids[2:]), REPORT, logprobs=tuple(-float(i) for i in range(len(ids)))))
    tokens = reader.take(None)
    assert [token.logprob for token in tokens] == [-float(i) for i in range(len(ids))]
    assert b"".join(token.data for token in tokens) == b"one two three four"
