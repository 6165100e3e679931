from __future__ import annotations

import pytest
from tokenizers import Tokenizer as Library
from tokenizers import decoders, models, pre_tokenizers

from canvaslm.text.decoding import Decoding, StreamDecoder, decoding_from_json, strip_spaces


class _World:
    """A vocabulary without control tokens."""

    def __init__(self, tokens: list[str], decoding: Decoding) -> None:
        self.tokens = tokens
        self.decoding = decoding

    def token_bytes(self, token_id: int) -> bytes:
        return self.decoding.to_bytes(self.tokens[token_id])

    def is_control(self, token_id: int) -> bool:
        return False


def test_byte_level_equals_the_library() -> None:
    tokens = sorted(pre_tokenizers.ByteLevel.alphabet())
    library = Library(models.BPE(vocab={t: i for i, t in enumerate(tokens)}, merges=[]))
    library.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    library.decoder = decoders.ByteLevel()
    text = "é漢 😀\n\x00 a"
    world = _World(tokens, decoding_from_json({"type": "ByteLevel"}))
    assert (
        StreamDecoder(world).feed(library.encode(text).ids)
        == library.decode(library.encode(text).ids)
        == text
    )


@pytest.mark.parametrize(
    ("token", "data"), [("<0x41>", b"A"), ("<0xff>", b"\xff"), ("<0x4>", b"<0x4>"), ("▁a▁", b" a ")]
)
def test_byte_fallback_tokens(token: str, data: bytes) -> None:
    assert Decoding((("▁", " "),), byte_fallback=True).to_bytes(token) == data


def test_metaspace_strips_the_space_it_put_in_front() -> None:
    decoding = decoding_from_json({"type": "Metaspace", "replacement": "▁", "prepend_scheme": "first"})
    decoder = StreamDecoder(_World(["▁a", "▁b"], decoding))
    assert decoder.feed([0]) + decoder.feed([1, 0]) == "a b a"


@pytest.mark.parametrize(
    "spec", [None, {"type": "CTC"}, {"type": "Sequence", "decoders": [{"type": "WordPiece"}]}]
)
def test_other_decoders_are_named(spec: dict[str, object] | None) -> None:
    with pytest.raises(ValueError, match="decoder"):
        decoding_from_json(spec)


@pytest.mark.parametrize(
    ("text", "limit", "left"), [("  a", 1, " a"), ("  a", 5, "a"), ("a ", 1, "a "), ("", 1, "")]
)
def test_strip_spaces(text: str, limit: int, left: str) -> None:
    assert strip_spaces(text, limit) == left


def test_copies_go_their_own_ways() -> None:
    decoder = StreamDecoder(_World(["<0xC3>", "<0xA9>", "x"], Decoding(byte_fallback=True)))
    decoder.feed([0])
    twin = decoder.copy()
    assert twin.feed([2]) == "\ufffdx"
    assert decoder.feed([1]) == "é"
