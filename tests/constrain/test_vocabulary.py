"""What a vocabulary refuses, and which token stands for a byte."""

from __future__ import annotations

from typing import Any

import pytest

from canvaslm.constrain.vocabulary import SYMBOLS, Vocabulary
from canvaslm.errors import UsageError

from .words import EOS, vocabulary


def test_each_symbol_has_its_token() -> None:
    words = vocabulary(["a"])
    assert words.size == 8 + 256 + 1
    assert len(words.byte_ids) == SYMBOLS
    for symbol, token in enumerate(words.byte_ids.tolist()):
        assert token < 0 or tuple(words.token_bytes[token]) == (symbol,)
    assert words.byte_ids[ord("a")] == words.size - 1, "a letter's own token, not the byte's"
    assert words.byte_ids[ord("b")] == 8 + ord("b")
    assert (words.byte_ids[256 : 256 + 5] >= 0).all()
    assert (words.byte_ids[256 + 5 :] < 0).all()


FIELDS: dict[str, Any] = {
    "token_bytes": (b"", *(bytes((i,)) for i in range(256))),
    "controls": (0,),
    "names": (b"<eos>",) * 257,
    "ends": (0,),
    "pad": 0,
    "markers": {},
}


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"names": (b"",)}, "257 tokens and 1 names"),
        ({"ends": ()}, "one end at least"),
        ({"ends": (257,)}, "among the 257 tokens"),
        ({"markers": {"<x>": 255}}, "markers are the symbols 256"),
        ({"ends": (5,)}, "control token 5 must have no bytes"),
        ({"token_bytes": FIELDS["token_bytes"][:-20] + (b"aa",) * 20}, "no token for the byte 0xec"),
    ],
)
def test_what_contradicts_itself_is_refused(change: dict[str, Any], says: str) -> None:
    assert Vocabulary.of(**FIELDS).ends == (EOS - 1,)
    with pytest.raises(UsageError, match=says):
        Vocabulary.of(**{**FIELDS, **change})
