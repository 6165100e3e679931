from __future__ import annotations

import contextlib
import itertools
from random import Random
from typing import Any

import numpy as np
import pytest

from canvaslm.errors import BadModelFile
from canvaslm.text.markers import Special
from canvaslm.text.tokenizer import Tokenizer
from tests.text.gguf_metadata import read_metadata
from tests.text.tiny_text import MARKERS, SAMPLES, fixture, gguf_fields, tiny_backend, tiny_tokens
from tests.work import calls_of

# -- the tiny vocabulary -------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", SAMPLES)
def test_same_ids_as_from_tokenizer_json(text: str) -> None:
    assert Tokenizer.from_gguf(gguf_fields()).encode(text) == tiny_backend().encode(text).ids


def test_user_defined_markers_are_control_tokens() -> None:
    tokenizer = Tokenizer.from_gguf(gguf_fields())
    assert all(tokenizer.is_control(tiny_tokens().index(m)) for m in MARKERS)
    assert tokenizer.eos_ids == (1, tokenizer.marker_id("<turn|>"), tokenizer.marker_id("<|tool_response>"))


def test_user_defined_tokens_are_taken_whole() -> None:
    fields = gguf_fields(tokens=[*tiny_tokens(), "éé h"], token_type=None, scores=None)
    fields["tokenizer.ggml.token_type"] = [*gguf_fields()["tokenizer.ggml.token_type"], 4]
    tokenizer = Tokenizer.from_gguf(fields)
    assert len(tiny_tokens()) in tokenizer.encode("aéé hb")


def test_space_prefix() -> None:
    tokenizer = Tokenizer.from_gguf(gguf_fields(add_space_prefix=True))
    ids = tokenizer.encode("hello hello")
    assert ids == [tiny_tokens().index("▁hello")] * 2
    assert tokenizer.decode(ids) == "hello hello"


def test_without_optional_fields() -> None:
    fields = gguf_fields(scores=None, token_type=None, mask_token_id=None, add_bos_token=None)
    tokenizer = Tokenizer.from_gguf(fields)
    assert tokenizer.mask_id is None
    assert tokenizer.adds_bos


T = tiny_tokens()
KINDS = gguf_fields()["tokenizer.ggml.token_type"]


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"model": "llama"}, "'llama'"),
        ({"model": None}, "only 'gemma4'"),
        ({"tokens": []}, "0 tokens"),
        ({"tokens": [*T[:-1], T[0]]}, "'<pad>' has two ids"),
        ({"tokens": [*T[:-1], ""]}, "token 377"),
        ({"tokens": [*T[:-1], "x" * 5000]}, "token 377"),
        ({"tokens": [*T[:-1], 7]}, "token 377"),
        ({"token_type": KINDS[:-1]}, "token_type has 377"),
        ({"token_type": [*KINDS, 1]}, "token_type has 379"),
        ({"scores": [0.0]}, "scores has 1"),
        ({"token_type": [*KINDS[:-1], 9]}, "type 9"),
        ({"token_type": [*KINDS[:-1], 6]}, "byte token 377"),
        ({"tokens": [t.replace("<0x41>", "<0xZZ>") for t in T]}, "'<0xZZ>'"),
        ({"tokens": [t.replace("<0x41>", "<0x141>") for t in T]}, "<0x141>"),
        ({"token_type": [1 if t == "<0x41>" else k for t, k in zip(T, KINDS, strict=True)]}, "255 of 256"),
        ({"tokens": 5}, "tokens is no list"),
        ({"tokens": "abc"}, "tokens is no list"),
        ({"merges": True}, "merges is no list"),
        ({"merges": ["h"]}, "merge 0"),
        ({"merges": ["h e l"]}, "merge 0"),
        ({"merges": [" "]}, "merge 0"),
        ({"merges": [""]}, "merge 0"),
        ({"merges": ["h e", "h zz"]}, "merge 1"),
        ({"merges": ["e h"]}, "merge 0"),
        ({"merges": ["h " + "e" * 100_000]}, "merge 0"),
        ({"merges": [3]}, "merge 0"),
        ({"bos_token_id": len(T)}, "bos_token_id"),
        ({"eos_token_id": -1}, "eos_token_id"),
        ({"unknown_token_id": 2**32 - 1}, "unknown_token_id"),
        ({"padding_token_id": "0"}, "padding_token_id"),
        ({"mask_token_id": True}, "mask_token_id"),
    ],
)
def test_hostile_metadata(changes: dict[str, Any], match: str) -> None:
    with pytest.raises(BadModelFile, match=match):
        Tokenizer.from_gguf(gguf_fields(**changes), source="evil.gguf")


def test_numpy_values_are_welcome() -> None:
    kinds = np.array(KINDS, dtype=np.int32)
    scores = np.zeros(len(T), dtype=np.float32)
    fields = gguf_fields(token_type=kinds, scores=scores, bos_token_id=np.uint32(2))
    assert Tokenizer.from_gguf(fields).bos_id == 2


def test_random_damage_ends_in_clean_errors() -> None:
    random = Random(0)
    values: list[Any] = [None, 0, -1, 2**40, "", "x", b"x", [], {}, [[]], True, 1.5, "\ud800", ["a"] * 378]
    for _ in range(300):
        fields = gguf_fields()
        key = random.choice(list(fields))
        if isinstance(fields[key], list) and random.random() < 0.7:
            fields[key] = list(fields[key])
            fields[key][random.randrange(len(fields[key]))] = random.choice(values)
        else:
            fields[key] = random.choice(values)
        with contextlib.suppress(BadModelFile):
            tokenizer = Tokenizer.from_gguf(fields)
            tokenizer.decode(tokenizer.encode("hello <|turn> é 😀"))


def test_too_many_merges_are_not_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("canvaslm.text.gguf_tokenizer.MAX_MERGES", 3)
    with pytest.raises(BadModelFile, match="8 merges"):
        Tokenizer.from_gguf(gguf_fields())


# -- Gemma 4's vocabulary ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def metadata() -> dict[str, Any]:
    return read_metadata(fixture("gemma4-vocab.gguf"))


@pytest.fixture(scope="module")
def gemma(metadata: dict[str, Any]) -> Tokenizer:
    return Tokenizer.from_gguf(metadata, "gemma4-vocab.gguf")


@pytest.fixture(scope="module")
def reference(metadata: dict[str, Any]) -> Any:
    """transformers' Gemma tokenizer over the same vocabulary and merges."""
    transformers = pytest.importorskip("transformers")
    tokens = metadata["tokenizer.ggml.tokens"]
    merges = [tuple(m.split(" ")) for m in metadata["tokenizer.ggml.merges"]]
    kinds = metadata["tokenizer.ggml.token_type"]
    tokenizer = transformers.GemmaTokenizer(vocab={t: i for i, t in enumerate(tokens)}, merges=merges)
    special = [t for t, kind in zip(tokens, kinds, strict=True) if kind in (3, 4)]
    tokenizer.add_special_tokens({"additional_special_tokens": special})
    assert len(tokenizer) == len(tokens)
    return tokenizer


def test_loading_does_a_bounded_amount_of_work_a_token(metadata: dict[str, Any]) -> None:
    entries = len(metadata["tokenizer.ggml.tokens"]) + len(metadata["tokenizer.ggml.merges"])
    assert calls_of(lambda: Tokenizer.from_gguf(metadata)) < entries


@pytest.mark.parametrize("text", SAMPLES)
def test_gemma_ids_equal_transformers(gemma: Tokenizer, reference: Any, text: str) -> None:
    expected = reference(text, add_special_tokens=False)["input_ids"]
    assert gemma.encode(text) == expected
    assert gemma.decode(expected) == reference.decode(expected) == text.replace("▁", " ")


def test_gemma_prompt_equals_transformers(gemma: Tokenizer, reference: Any) -> None:
    pieces = ["<bos>", "<|turn>", "user\nGrüße  an\n\n\n", SAMPLES[7], "<turn|>", "\n", "<|turn>", "model\n"]
    marked = [Special(p) if gemma.marker_id(p) is not None else p for p in pieces]
    assert gemma.encode_pieces(marked) == reference("".join(pieces), add_special_tokens=False)["input_ids"]


def test_all_tokens_round_trip(gemma: Tokenizer, metadata: dict[str, Any]) -> None:
    """Every id -> text -> id where the text is the token's own, else -> the same text; markers as pieces."""
    tokens = metadata["tokenizer.ggml.tokens"]
    made_by_merges = {m.replace(" ", "", 1) for m in metadata["tokenizer.ggml.merges"]}
    assert gemma.vocab_size == len(tokens) == 262_144
    for index, token in enumerate(tokens):
        assert gemma.token_text(index) == token
        if gemma.is_control(index):
            assert gemma.encode_pieces([Special(token)]) == [index]
            continue
        text = gemma.decode([index])
        again = gemma.encode(text)
        if token in made_by_merges and again != [index]:
            assert gemma.decode(again) == text, (index, token)
        elif len(token) == 1:
            assert again == [index], (index, token)
    bytes_ = [gemma.token_bytes(tokens.index(f"<0x{b:02X}>")) for b in range(256)]
    assert bytes_ == [bytes([b]) for b in range(256)]


def test_gemma_control_tokens_are_the_24_known(gemma: Tokenizer) -> None:
    assert len(gemma.control_texts) == 24
    assert gemma.marker_id("<turn|>") == 106
    assert gemma.eos_ids == (1, 106, 50)
    assert not any(map(gemma.is_control, gemma.encode("".join(gemma.control_texts))))


@pytest.mark.parametrize("text", ["Hello wörld,  ok", "안녕 \n\n x", "🏳️‍🌈 𓀀é", "<|turn>x"])
def test_gemma_equals_textbook_bpe(gemma: Tokenizer, metadata: dict[str, Any], text: str) -> None:
    """Byte pair encoding written out, independent of any library."""
    vocab = {t: i for i, t in enumerate(metadata["tokenizer.ggml.tokens"])}
    ranks = {tuple(m.split(" ")): rank for rank, m in enumerate(metadata["tokenizer.ggml.merges"])}
    parts = list(text.replace(" ", "▁"))
    while True:
        pairs = [(ranks.get(pair, len(ranks)), i) for i, pair in enumerate(itertools.pairwise(parts))]
        rank, place = min(pairs, default=(len(ranks), 0))
        if rank == len(ranks):
            break
        parts[place : place + 2] = [parts[place] + parts[place + 1]]
    ids: list[int] = []
    for part in parts:
        ids += [vocab[part]] if part in vocab else [vocab[f"<0x{b:02X}>"] for b in part.encode()]
    assert gemma.encode(text) == ids
