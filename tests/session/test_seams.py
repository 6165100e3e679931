"""Tokens by how their bytes begin and end, and which tokens of a given text a hole may take."""

from __future__ import annotations

import pytest

from canvaslm.demo.config import MODEL_FOLDER
from canvaslm.session.seams import DEEPEST, Seams, bits_of
from canvaslm.text.tokenizer import Tokenizer

TOKENIZER = Tokenizer.from_folder(MODEL_FOLDER)
SEAMS = Seams(TOKENIZER)


def _texts(bits: bytes) -> set[bytes]:
    tokens = [t for t in range(TOKENIZER.vocab_size) if t // 8 < len(bits) and bits[t // 8] >> t % 8 & 1]
    return {TOKENIZER.token_bytes(t) for t in tokens}


@pytest.mark.parametrize("text", ["    ret", "def trip", " ", "capital of Fr", "é", "😀 va", "x = 1"])
def test_seams_before_a_hole_are_all_tokens_that_go_on(text: str) -> None:
    given = SEAMS.read(text)
    every = [TOKENIZER.token_bytes(t) for t in range(TOKENIZER.vocab_size) if not TOKENIZER.is_control(t)]
    found = {seam.count: _texts(seam.tokens) for seam in SEAMS.before(given)}
    for count in range(1, min(DEEPEST, len(given.tokens)) + 1):
        edge = given.end(count)
        assert text.encode().endswith(edge)
        wanted = {data for data in every if data.startswith(edge) and data != edge}
        assert found.get(count, set()) == wanted


@pytest.mark.parametrize("text", ["urn x", "turn x + 1", "e", "lue):\n", " 3", ")"])
def test_seams_behind_a_hole_leave_a_token(text: str) -> None:
    given = SEAMS.read(text)
    for seam in SEAMS.behind(given):
        assert seam.count < len(given.tokens)
        edge = given.start(seam.count)
        assert all(data.endswith(edge) and data != edge for data in _texts(seam.tokens))


def test_a_token_may_be_both_edges() -> None:
    before, behind = SEAMS.read("    re"), SEAMS.read("urn x")
    seams = SEAMS.before(before), SEAMS.behind(behind)
    joined = SEAMS.joined(before, behind, seams)
    assert any(b" return" in _texts(bits) for bits in joined.values())
    for (one, other), bits in joined.items():
        start, end = before.end(one), behind.start(other)
        assert all(d.startswith(start) and d.endswith(end) for d in _texts(bits))
        assert all(len(d) >= len(start) + len(end) for d in _texts(bits))


def test_control_tokens_are_no_text() -> None:
    assert not _texts(SEAMS.text) & {b"<turn|>", b"<eos>"}
    assert b"\n" in _texts(SEAMS.text)
    assert bits_of([0, 9]) == b"\x01\x02"
