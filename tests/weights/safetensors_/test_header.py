"""Headers of safetensors files: honest ones are read, every known lie is refused with its place."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from canvaslm.errors import BadModelFile, NotFound
from canvaslm.weights.safetensors_.header import MAX_HEADER_BYTES, read_header

from ..files import entry, write

A = {"a": entry()}
TWO = {"a": entry(), "b": entry(offsets=(8, 16))}


def test_an_honest_file(tmp_path: Path) -> None:
    header = {"__metadata__": {"format": "pt"}, "b": entry("BF16", (2, 1), (8, 12)), "a": entry()}
    found = read_header(write(tmp_path / "m.safetensors", header, bytes(12)))
    base = 8 + len(json.dumps(header))
    assert found.metadata == {"format": "pt"}
    assert [(i.name, i.dtype, i.shape, i.start, i.end) for i in found.tensors.values()] == [
        ("a", "F32", (2,), base, base + 8),
        ("b", "BF16", (2, 1), base + 8, base + 12),
    ]


def test_empty_and_scalar_tensors(tmp_path: Path) -> None:
    header = {"e": entry(shape=(0, 3), offsets=(0, 0)), "s": entry("F64", (), (0, 8))}
    found = read_header(write(tmp_path / "m.safetensors", header))
    assert {name: info.count for name, info in found.tensors.items()} == {"e": 0, "s": 1}


LIES: dict[str, tuple[Any, bytes, int | None, str]] = {
    # name: header, data, claimed header length, what the error says
    "length 2^63": (A, bytes(8), 2**63, "header length is 9223372036854775808"),
    "length 2^64-1": (A, bytes(8), 2**64 - 1, "header length is"),
    "length above the cap": (A, bytes(8), MAX_HEADER_BYTES + 1, "byte 0"),
    "length beyond the file": (A, bytes(8), 1000, "but the file has"),
    "length 0": (A, bytes(8), 0, "not a JSON object"),
    "not an object": (b"[1, 2]", b"", None, "not a JSON object"),
    "not JSON": (b"{'a': 1}", b"", None, "byte 9: the header is not JSON"),
    "not UTF-8": (b'{"\xff\xfe": 1}', b"", None, "byte 10: the header is not UTF-8"),
    "nested too deep": (b'{"a":' + b"[" * 200_000, b"", None, "byte 8"),
    "endless number": (b'{"a":' + b"9" * 10_000 + b"}", b"", None, "byte 8"),
    "key twice": (
        b'{"a":' + json.dumps(entry()).encode() + b',"a":' + json.dumps(entry()).encode() + b"}",
        bytes(8),
        None,
        "key 'a' twice",
    ),
    "field twice": (
        b'{"a":{"dtype":"F32","dtype":"F16","shape":[2],"data_offsets":[0,8]}}',
        bytes(8),
        None,
        "'dtype' twice",
    ),
    "overlap": ({"a": entry(), "b": entry(offsets=(4, 12))}, bytes(12), None,
        "'b': starts at byte .* overlaps 'a'"),
    "same bytes twice": ({"a": entry(), "b": entry()}, bytes(8), None, "overlaps"),
    "gap": ({"a": entry(), "b": entry(offsets=(12, 20))}, bytes(20), None, "'b': .* leaves a gap after 'a'"),
    "gap at the start": ({"a": entry(offsets=(4, 12))}, bytes(12), None, "leaves a gap after the header"),
    "bytes left over": (A, bytes(9), None, "1 bytes follow"),
    "out of range": ({"a": entry(offsets=(8, 16))}, bytes(8), None, "'a': its data ends at byte .*truncated"),
    "truncated": (TWO, bytes(15), None, "'b': its data ends at byte"),
    "descending": ({"a": entry(offsets=(8, 0))}, bytes(8), None, "'a': data_offsets .* run backwards"),
    "negative offset": ({"a": entry(offsets=(-8, 0))}, bytes(8), None, "'a': bad data_offsets"),
    "three offsets": ({"a": entry(offsets=(0, 4, 8))}, bytes(8), None, "bad data_offsets"),
    "offsets as floats": ({"a": entry(offsets=(0.0, 8.0))}, bytes(8), None, "bad data_offsets"),
    "offset 2^63": ({"a": entry(offsets=(0, 2**63))}, bytes(8), None, "bad data_offsets"),
    "dtype and size differ": ({"a": entry("F16")}, bytes(8), None, "'a': F16 of shape .* takes 4 bytes"),
    "shape and size differ": ({"a": entry(shape=(3,))}, bytes(8), None, "takes 12 bytes"),
    "negative dimension": ({"a": entry(shape=(-2,))}, bytes(8), None, "'a': bad shape"),
    "dimensions that overflow": ({"a": entry(shape=(2**62, 4, 2**62))}, bytes(8), None,
        "takes 34028236692093846346"),
    "dimensions that wrap to the size": ({"a": entry("U8", (2**32, 2**32, 2))}, bytes(0), None, "'a'"),
    "dimension 2^63": ({"a": entry(shape=(2**63, 0))}, bytes(0), None, "bad shape"),
    "true as a dimension": ({"a": entry(shape=(True, 2))}, bytes(8), None, "bad shape"),
    "rank 9": ({"a": entry(shape=(1,) * 8 + (2,))}, bytes(8), None, "bad shape"),
    "shape as text": ({"a": {"dtype": "F32", "shape": "2", "data_offsets": [0, 8]}}, bytes(8), None,
        "bad shape"),
    "unknown dtype": ({"a": entry("F31")}, bytes(8), None, "unknown dtype 'F31'"),
    "dtype as a list": ({"a": {**entry(), "dtype": []}}, bytes(8), None, "unknown dtype"),
    "another field": ({"a": entry(loader="os.system")}, bytes(8), None, "nothing else"),
    "a field missing": ({"a": {"dtype": "F32", "shape": [2]}}, bytes(8), None, "nothing else"),
    "entry is a number": ({"a": 3}, bytes(8), None, "nothing else"),
    "metadata is a list": ({"__metadata__": [], "a": entry()}, bytes(8), None, "__metadata__"),
    "metadata of numbers": ({"__metadata__": {"x": 1}, "a": entry()}, bytes(8), None, "__metadata__"),
}  # fmt: skip


@pytest.mark.parametrize("name", LIES)
def test_lies(tmp_path: Path, name: str) -> None:
    header, data, length, message = LIES[name]
    path = write(tmp_path / "m.safetensors", header, data, length)
    with pytest.raises(BadModelFile, match=message) as caught:
        read_header(path)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize(
    "name",
    ["x.__class__", "__dict__", "a.__init__.b", "__builtins__/x", "a..b", "", ".a", "a.", "../a", "a b",
     "a\x1b[2J", "a" * 600],
)  # fmt: skip
def test_names_that_are_no_weights(tmp_path: Path, name: str) -> None:
    with pytest.raises(BadModelFile, match="not a name of a weight") as caught:
        read_header(write(tmp_path / "m.safetensors", {name: entry()}))
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 600


def test_too_many_tensors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("canvaslm.weights.safetensors_.header.MAX_TENSORS", 1)
    with pytest.raises(BadModelFile, match="lists 2 tensors"):
        read_header(write(tmp_path / "m.safetensors", TWO, bytes(16)))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "too short"),
        (b"\x01\x02", "too short"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 12\n", "git lfs pull"),
        (b"PK\x03\x04" + bytes(30), "never loads pickle"),
        (b"\x80\x02}q\x00" + bytes(30), "never loads pickle"),
        (b"GGUF" + bytes(30), "GGUF"),
    ],
)
def test_other_kinds_of_files(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "m.safetensors"
    path.write_bytes(content)
    with pytest.raises(BadModelFile, match=message):
        read_header(path)


def test_paths_that_are_no_files(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match="no such file"):
        read_header(tmp_path / "none.safetensors")
    with pytest.raises(BadModelFile, match="not a regular file"):
        read_header(tmp_path)
    os.mkfifo(tmp_path / "pipe.safetensors")  # opening it would wait for ever
    with pytest.raises(BadModelFile, match="not a regular file"):
        read_header(tmp_path / "pipe.safetensors")


QUIET = settings(deadline=None, max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture])
GOOD = json.dumps({"__metadata__": {"format": "pt"}, **TWO}).encode()


def _read_or_refuse(path: Path) -> None:
    """Whatever the bytes: a header, or one of our errors."""
    try:
        header = read_header(path)
    except (BadModelFile, NotFound) as error:
        assert re.search(r"\S", str(error))  # noqa: PT017
    else:
        assert all(info.end <= path.stat().st_size for info in header.tensors.values())


@QUIET
@given(content=st.binary(max_size=200))
def test_fuzz_any_bytes(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "m.safetensors"
    path.write_bytes(content)
    _read_or_refuse(path)


@QUIET
@given(
    edits=st.lists(st.tuples(st.integers(0, 8 + len(GOOD) + 15), st.integers(0, 255)), min_size=1, max_size=6)
)
def test_fuzz_flipped_bytes(tmp_path: Path, edits: list[tuple[int, int]]) -> None:
    content = bytearray(len(GOOD).to_bytes(8, "little") + GOOD + bytes(16))
    for at, value in edits:
        content[at] = value
    path = tmp_path / "m.safetensors"
    path.write_bytes(content)
    _read_or_refuse(path)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)
ENTRY = st.fixed_dictionaries(
    {
        "dtype": st.sampled_from(["F32", "BF16", "I8"]) | JSON,
        "shape": st.lists(st.integers(-1, 4) | st.integers(), max_size=3) | JSON,
        "data_offsets": st.lists(st.integers(0, 24) | st.integers(), min_size=2, max_size=2) | JSON,
    }
)


@QUIET
@given(
    header=st.dictionaries(
        st.sampled_from(["a", "b", "c.weight"]) | st.text(max_size=6), ENTRY | JSON, max_size=3
    )
)
def test_fuzz_structure(tmp_path: Path, header: dict[str, Any]) -> None:
    _read_or_refuse(write(tmp_path / "m.safetensors", header, bytes(16)))


def test_a_header_as_long_as_a_pickles_first_bytes_is_none(tmp_path: Path) -> None:
    """640 is 80 02 in bytes, as a pickle begins."""
    raw = json.dumps({"w": entry()}).encode()
    path = write(tmp_path / "model.safetensors", raw + b" " * (640 - len(raw)))
    assert path.read_bytes().startswith(b"\x80\x02")
    assert list(read_header(path).tensors) == ["w"]
