from __future__ import annotations

import contextlib
import functools
import itertools
import json
import operator
import sys
import threading
import time
from pathlib import Path
from random import Random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from canvaslm.errors import BadModelFile, NotFound, UsageError
from canvaslm.text.decoding import StreamDecoder
from canvaslm.text.markers import Special
from canvaslm.text.tokenizer import Tokenizer
from tests.text.tiny_text import MARKERS, NAMED, SAMPLES, tiny_backend, tiny_tokens, write_folder
from tests.waiting import HUNG

REFERENCE = tiny_backend()
IDS = {t: i for i, t in enumerate(tiny_tokens())}
HOSTILE = st.text(st.sampled_from([*'<|>"ab turnhelo\n', "é", "😀"]), max_size=30)
HOSTILE |= st.lists(st.sampled_from([*MARKERS, *NAMED, "hello", " ", "<", "|", ">"]), max_size=8).map("".join)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return Tokenizer.from_folder(write_folder(tmp_path_factory.mktemp("tok")))


def test_named_ids_and_markers(tokenizer: Tokenizer) -> None:
    assert (tokenizer.bos_id, tokenizer.eos_id, tokenizer.pad_id, tokenizer.unk_id) == (2, 1, 0, 3)
    assert tokenizer.vocab_size == len(tiny_tokens())
    assert [tokenizer.marker_id(m) for m in MARKERS] == [IDS[m] for m in MARKERS]
    assert tokenizer.marker_id("hello") is None
    assert tokenizer.eos_ids == (1, IDS["<turn|>"], IDS["<|tool_response>"])
    assert [i for i in range(tokenizer.vocab_size) if tokenizer.is_control(i)] == list(range(17))


@pytest.mark.parametrize("text", SAMPLES)
def test_plain_text_gets_the_library_s_ids(tokenizer: Tokenizer, text: str) -> None:
    assert tokenizer.encode(text) == REFERENCE.encode(text, add_special_tokens=False).ids


@pytest.mark.parametrize("text", ["hello <turn, ", "é😀\n", "a"])
def test_long_texts_get_the_same_ids_and_let_other_threads_run(tokenizer: Tokenizer, text: str) -> None:
    text *= 2**18 // len(text)
    turns, done = 0, threading.Event()

    def others() -> None:
        nonlocal turns
        while not done.is_set():
            turns += 1
            time.sleep(0.0001)

    thread = threading.Thread(target=others)
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1000.0)  # others run while this thread lets go of Python's lock, and only then
    try:
        thread.start()
        before = turns
        ids = tokenizer.encode(text)
        during = turns - before
    finally:
        done.set()
        sys.setswitchinterval(interval)
        thread.join(HUNG)
    assert ids == REFERENCE.encode(text, add_special_tokens=False).ids
    assert during > 2


@pytest.mark.parametrize("special", [True, False])
def test_markers_in_user_text_stay_text_however_the_file_marks_them(tmp_path: Path, special: bool) -> None:
    tokenizer = Tokenizer.from_folder(write_folder(tmp_path, special=special))
    for marker in (*MARKERS, *NAMED):
        ids = tokenizer.encode(f"a{marker}b")
        assert not any(map(tokenizer.is_control, ids))
        assert tokenizer.decode(ids) == f"a{marker}b"


@given(text=HOSTILE)
def test_no_text_encodes_to_a_control_id(tokenizer: Tokenizer, text: str) -> None:
    ids = tokenizer.encode(text)
    assert not any(map(tokenizer.is_control, ids))
    assert tokenizer.decode(ids) == text


def test_control_tokens_that_merges_can_spell_are_spelled_out(tmp_path: Path) -> None:
    folder = write_folder(tmp_path)
    spec = json.loads((folder / "tokenizer.json").read_text())
    spec["model"]["vocab"] |= {"<|x": len(IDS), "<|x|>": len(IDS) + 1}
    spec["model"]["merges"] += [["<|", "x"], ["<|x", "|>"]]
    (folder / "tokenizer.json").write_text(json.dumps(spec))
    tokenizer = Tokenizer.from_folder(folder)
    assert tokenizer.is_control(len(IDS) + 1)
    ids = tokenizer.encode("a<|x|>b")
    assert ids == [IDS[c] for c in "a<|x|>b"]


def test_pieces_equal_the_library_reading_specials(tokenizer: Tokenizer) -> None:
    pieces = [Special("<bos>"), Special("<|turn>"), "user\n", "hello ", "hello", Special("<turn|>"), "\n"]
    assert tokenizer.encode_pieces(pieces) == REFERENCE.encode("".join(pieces), add_special_tokens=False).ids


def test_text_pieces_are_joined_before_encoding(tokenizer: Tokenizer) -> None:
    assert tokenizer.encode_pieces(["he", "llo"]) == [IDS["hello"]]


def test_unknown_special_is_text(tokenizer: Tokenizer) -> None:
    assert tokenizer.encode_pieces(["h", Special("<|no>"), "e"]) == tokenizer.encode("h<|no>e")


def test_plain_piece_that_is_a_marker_is_text(tokenizer: Tokenizer) -> None:
    assert not any(map(tokenizer.is_control, tokenizer.encode_pieces(["<turn|>"])))


def test_lone_surrogates_become_replacement_characters(tokenizer: Tokenizer) -> None:
    assert tokenizer.decode(tokenizer.encode("a\ud800b😀")) == "a\ufffdb😀"


def test_decode_skips_or_shows_control_tokens(tokenizer: Tokenizer) -> None:
    ids = [2, *tokenizer.encode("hello"), IDS["<turn|>"], 1]
    assert tokenizer.decode(ids) == "hello"
    assert tokenizer.decode(ids, skip_special=False) == "<bos>hello<turn|><eos>"
    assert tokenizer.decode_bytes(ids) == b"hello"


@pytest.mark.parametrize("text", SAMPLES)
def test_decode_equals_the_library(tokenizer: Tokenizer, text: str) -> None:
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == REFERENCE.decode(ids) == text.replace("▁", " ")


@given(ids=st.lists(st.integers(0, len(IDS) - 1), max_size=40), cuts=st.lists(st.integers(0, 40)))
def test_stream_equals_whole_however_it_is_cut(tokenizer: Tokenizer, ids: list[int], cuts: list[int]) -> None:
    decoder = StreamDecoder(tokenizer)
    edges = [0, *sorted(min(c, len(ids)) for c in cuts), len(ids)]
    parts = [decoder.feed(ids[a:b]) for a, b in itertools.pairwise(edges)]
    assert "".join(parts) + decoder.close() == tokenizer.decode(ids)


def test_stream_holds_back_half_a_character_only(tokenizer: Tokenizer) -> None:
    decoder = StreamDecoder(tokenizer)
    emoji = [IDS[f"<0x{b:02X}>"] for b in "😀".encode()]
    assert [decoder.feed([i]) for i in [*emoji, IDS["h"]]] == ["", "", "", "😀", "h"]
    assert decoder.feed(emoji[:2]) == ""
    assert decoder.close() == "\ufffd"


def test_token_text_and_unknown_ids(tokenizer: Tokenizer) -> None:
    assert tokenizer.token_text(IDS["▁hello"]) == "▁hello"
    assert tokenizer.token_bytes(10**6) == b""
    with pytest.raises(UsageError, match="1000000"):
        tokenizer.token_text(10**6)


# -- broken and hostile files --------------------------------------------------------------------------------


def _edited(folder: Path, **changes: Any) -> Path:
    path = write_folder(folder) / "tokenizer.json"
    spec = json.loads(path.read_text())
    path.write_text(json.dumps(spec | changes))
    return folder


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match=r"tokenizer\.json"):
        Tokenizer.from_folder(tmp_path)


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"[1]", b"{}", b"\xff\xfe", b"[" * 100_000, b'{"model": {"type": "Evil"}}', b'{"model": 3}'],
)
def test_broken_json(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "tokenizer.json").write_bytes(content)
    with pytest.raises(BadModelFile, match=r"tokenizer\.json"):
        Tokenizer.from_folder(tmp_path)


def test_huge_file_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("canvaslm.text.tokenizer_files.MAX_TOKENIZER_BYTES", 1 << 20)
    with (tmp_path / "tokenizer.json").open("wb") as file:
        file.truncate(1 << 40)  # sparse
    with pytest.raises(BadModelFile, match="larger than 1 MiB"):
        Tokenizer.from_folder(tmp_path)


BPE: dict[str, Any] = {"type": "BPE", "merges": [], "byte_fallback": True}
ADDED = {"special": True, "single_word": False, "lstrip": False, "rstrip": False, "normalized": False}


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"model": BPE | {"vocab": {"<bos>": 0, "<eos>": 1, "a": 1}}, "added_tokens": []}, "used twice"),
        (
            {"model": BPE | {"vocab": {"a": 4_000_000_000, "<bos>": 0, "<eos>": 1}}, "added_tokens": []},
            "out of range",
        ),
        ({"model": BPE | {"vocab": {"a": -1}}}, "refuses"),
        ({"model": BPE | {"vocab": {"a": 2**40}}}, "refuses"),
        ({"model": BPE | {"vocab": {}}, "added_tokens": []}, "empty|bos"),
        ({"model": BPE | {"vocab": {"a": 0}, "merges": [["a", "zz"]]}}, "refuses"),
        ({"added_tokens": [ADDED | {"id": 9999, "content": "<|far>"}]}, "claims id 9999"),
        ({"added_tokens": [ADDED | {"id": 1, "content": "<|stolen>"}]}, "claims id 1"),
        ({"decoder": {"type": "WordPiece", "prefix": "##", "cleanup": True}}, "WordPiece"),
        ({"decoder": None}, "decoder"),
    ],
)
def test_hostile_vocabulary(tmp_path: Path, changes: dict[str, Any], match: str) -> None:
    with pytest.raises(BadModelFile, match=match):
        Tokenizer.from_folder(_edited(tmp_path, **changes))


@pytest.mark.parametrize(
    "config", [{"bos_token": 7}, {"eos_token": "<absent>"}, {"bos_token": {"content": [1]}}]
)
def test_bad_named_tokens(tmp_path: Path, config: dict[str, Any]) -> None:
    with pytest.raises(BadModelFile):
        Tokenizer.from_folder(write_folder(tmp_path, config))


def test_remote_code_entries_are_ignored(tmp_path: Path) -> None:
    config = {"auto_map": {"AutoTokenizer": ["evil.Tokenizer", None]}, "trust_remote_code": True}
    assert Tokenizer.from_folder(write_folder(tmp_path, config)).bos_id == 2


def _places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Paths to everything in a JSON value, of long lists and objects to the first 20."""
    keys = (
        list(value)[:20]
        if isinstance(value, dict)
        else range(min(20, len(value)))
        if isinstance(value, list)
        else ()
    )
    return [path, *itertools.chain.from_iterable(_places(value[k], (*path, k)) for k in keys)]


def test_random_damage_ends_in_clean_errors(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Whatever is changed in a tokenizer.json, it loads and works, or is refused as a bad file."""
    path = write_folder(tmp_path) / "tokenizer.json"
    whole = path.read_text()
    random = Random(0)
    places = _places(json.loads(whole))[1:]
    values: list[Any] = [None, 0, -1, 2**31, 2**63, "", "x", "<|turn>", [], {}, [[]], True, 1.5, "a" * 1000]
    for _ in range(300):
        spec = json.loads(whole)
        place = random.choice(places)
        owner = functools.reduce(operator.getitem, place[:-1], spec)
        if random.random() < 0.3:
            del owner[place[-1]]
        else:
            owner[place[-1]] = random.choice(values)
        path.write_text(json.dumps(spec))
        with contextlib.suppress(BadModelFile):
            tokenizer = Tokenizer.from_folder(tmp_path)
            tokenizer.decode(tokenizer.encode("hello <|turn> é 😀"))
    capfd.readouterr()  # panics of the library, which become BadModelFile, leave a trace on stderr
