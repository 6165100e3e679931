"""The reader: what honest files say, and how hostile ones are refused."""

from __future__ import annotations

import os
import resource
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from canvaslm.errors import BadModelFile, NotFound
from canvaslm.weights.gguf.file import Array, GGUFFile, part_paths

from ...tiny import tiny_model, write_tiny_gguf
from ...work import calls_of
from ..gguf_files import (
    ARRAY,
    BOOL,
    F32,
    F64,
    I32,
    STRING,
    U8,
    U32,
    U64,
    Raw,
    one_tensor,
    tensor,
    text,
    value,
)


def test_reads_what_was_written(tmp_path: Path) -> None:
    keys = [
        ("a.int", value(U32, 7)),
        ("a.float", value(F32, 0.5)),
        ("a.bool", value(BOOL, True)),
        ("a.text", value(STRING, "grün")),
        ("a.strings", value(ARRAY, (STRING, ["x", "", "▁y"]))),
        ("a.numbers", value(ARRAY, (I32, [-1, 2]))),
        ("a.flags", value(ARRAY, (BOOL, [True, False]))),
    ]
    path = one_tensor(keys=keys).write(tmp_path / "m.gguf")
    with GGUFFile(path) as file:
        assert file.integer("a.int") == 7
        assert file.number("a.float") == 0.5
        assert file.metadata["a.bool"] is True
        assert file.text("a.text") == "grün"
        assert file.plain("a.")["a.strings"] == ["x", "", "▁y"]
        assert file.plain("a.n") == {"a.numbers": [-1, 2]}
        assert file.plain("a.fl")["a.flags"] == [True, False]
        assert file.raw_value("a.text") == value(STRING, "grün")
        packed = file.tensor("w")
        assert (packed.format, packed.shape) == ("F32", (2, 4))
        assert packed.dequantise().tolist() == [[0, 1, 2, 3], [4, 5, 6, 7]]


def test_agrees_with_the_gguf_package(tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    writer = gguf.GGUFWriter(path, "test")
    writer.add_uint32("a.n", 3)
    writer.add_array("a.list", ["one", "two"])
    rng = np.random.default_rng(0)
    f32 = rng.standard_normal((3, 5, 64)).astype(np.float32)
    q8 = gguf.quants.quantize(f32, gguf.GGMLQuantizationType.Q8_0)
    writer.add_tensor("plain", f32)
    writer.add_tensor("packed", q8, raw_dtype=gguf.GGMLQuantizationType.Q8_0)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with GGUFFile(path) as file:
        assert file.integer("a.n") == 3
        assert np.array_equal(file.tensor("plain").dequantise().numpy(), f32)
        assert file.tensor("packed").shape == (3, 5, 64)
        expected = gguf.quants.dequantize(q8, gguf.GGMLQuantizationType.Q8_0)
        assert np.array_equal(file.tensor("packed").dequantise().numpy(), expected)
        assert {name: info.start for name, info in file.tensors.items()} == {
            t.name: t.data_offset for t in gguf.GGUFReader(path).tensors
        }


def test_tensors_are_views_that_outlive_the_file(tmp_path: Path) -> None:
    path = one_tensor().write(tmp_path / "m.gguf")
    with GGUFFile(path) as file:
        first, second = file.tensor("w").raw, file.tensor("w").raw
        assert first.data_ptr() == second.data_ptr()
        file.release("w", cache=True)
    assert first.view(torch.float32).sum() == 28


def test_a_real_vocabulary_is_not_read_string_by_string() -> None:
    folder = os.environ.get("CANVASLM_FIXTURES")
    if folder is None:
        pytest.skip("CANVASLM_FIXTURES is not set: no Gemma vocabulary")
    strings: list[str] = []
    merges: list[Any] = []

    def read() -> None:
        with GGUFFile(Path(folder) / "gemma4-vocab.gguf") as file:
            tokens = file.metadata["tokenizer.ggml.tokens"]
            assert isinstance(tokens, Array)
            strings.extend(tokens.strings())
            read_merges: Any = file.plain("tokenizer.ggml.merges")["tokenizer.ggml.merges"]
            merges.extend(read_merges)

    assert calls_of(read) < 2000  # not one call a string: 553, measured
    assert (len(strings), len(merges), strings[106]) == (262_144, 514_906, "<turn|>")


def test_the_reader_imports_no_torch() -> None:
    code = "import sys, canvaslm.weights.gguf.file; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


# -- split files ---------------------------------------------------------------------------------------------


def part(no: int, count: int, name: str, **changes: Any) -> Raw:
    keys = [("split.no", value(U32, no)), ("split.count", value(U32, count))]
    if no == 0:
        keys += [("general.architecture", value(STRING, "test")), ("split.tensors.count", value(I32, count))]
    return one_tensor(keys=keys, tensors=[tensor(name, (4, 2), 0, 0)], **changes)


def test_any_part_opens_the_whole(tmp_path: Path) -> None:
    paths = [part(i, 3, f"w{i}").write(tmp_path / f"m-0000{i + 1}-of-00003.gguf") for i in range(3)]
    for path in paths:
        with GGUFFile(path) as file:
            assert list(file.tensors) == ["w0", "w1", "w2"]
            assert file.text("general.architecture") == "test"
            assert file.tensor("w2").dequantise()[1, 3] == 7
            assert file.size == sum(p.stat().st_size for p in paths)


def test_split_files_that_do_not_fit(tmp_path: Path) -> None:
    first = part(0, 2, "w0").write(tmp_path / "m-00001-of-00002.gguf")
    with pytest.raises(NotFound, match=r"m-00002-of-00002\.gguf"):
        GGUFFile(first)
    part(1, 2, "w0").write(tmp_path / "m-00002-of-00002.gguf")
    with pytest.raises(BadModelFile, match="'w0' is in an earlier part too"):
        GGUFFile(first)
    part(0, 2, "w1").write(tmp_path / "m-00002-of-00002.gguf")
    with pytest.raises(BadModelFile, match="says it is part 1 of 2, its name says 2 of 2"):
        GGUFFile(first)
    alone = part(0, 2, "w0").write(tmp_path / "renamed.gguf")
    with pytest.raises(BadModelFile, match="must keep the names"):
        GGUFFile(alone)
    with pytest.raises(BadModelFile, match="part 3 of 2"):
        part_paths(tmp_path / "m-00003-of-00002.gguf")


# -- attacks -------------------------------------------------------------------------------------------------

HUGE = 2**63
ATTACKS: dict[str, tuple[Raw, str]] = {
    "magic": (one_tensor(magic=b"GGML"), "not a GGUF file: it begins with b'GGML'"),
    "version": (one_tensor(version=4), "version 4 is not supported"),
    "big endian": (one_tensor(version=3 << 24), "big-endian"),
    "key count": (one_tensor(key_count=HUGE), "keys is more than canvaslm accepts"),
    "key count beyond the file": (one_tensor(key_count=60_000), "a list of 60000 keys needs 840000 bytes"),
    "tensor count": (one_tensor(tensor_count=HUGE), "tensors is more than"),
    "tensor count beyond the file": (one_tensor(tensor_count=100_000), "a list of 100000 tensors needs"),
    "key length": (Raw(key_count=1, tensors=[text("k", HUGE) + bytes(64)], tensor_count=0),
        "length of 9223372036854775808"),
    "key not UTF-8": (Raw(keys=[(b"\xff\xfe", value(U8, 1))]), "is not UTF-8"),
    "key twice": (Raw(keys=[("k", value(U8, 1)), ("k", value(U8, 2))]), "key 'k' appears twice"),
    "value type": (Raw(keys=[("k", struct.pack("<IQ", 13, 0))]), "'k' has the unknown value type 13"),
    "string length": (
        Raw(keys=[("k", struct.pack("<IQ", STRING, 2**40))]),
        "key 'k' has a length of 1099511627776; at most",
    ),
    "string beyond the file": (Raw(keys=[("k", struct.pack("<IQ", STRING, 4096))]),
        "key 'k' needs 4096 bytes"),
    "array count": (Raw(keys=[("k", struct.pack("<IIQ", ARRAY, U8, 2**64 - 1))]),
        "items of key 'k' is more than"),
    "array beyond the file": (
        Raw(keys=[("k", struct.pack("<IIQ", ARRAY, U64, 2**20))]),
        "a list of 1048576 items of key 'k' needs 8388608 bytes",
    ),
    "array string length": (
        Raw(keys=[("k", struct.pack("<IIQQQ", ARRAY, STRING, 2, HUGE, 0))]),
        "item 1 of 2 lies beyond the end",
    ),
    "array last string": (
        Raw(keys=[("k", struct.pack("<IIQQ", ARRAY, STRING, 1, HUGE))]),
        "its last item runs beyond the end",
    ),
    "nested array": (Raw(keys=[("k", struct.pack("<IIQ", ARRAY, ARRAY, 1))]), "'k' is an array of arrays"),
    "array type": (Raw(keys=[("k", struct.pack("<IIQ", ARRAY, 99, 1))]), "array of the unknown type 99"),
    "alignment 0": (one_tensor(keys=[("general.alignment", value(U32, 0))]), "must be a power of two"),
    "alignment 24": (one_tensor(keys=[("general.alignment", value(U32, 24))]), "'general.alignment' is 24"),
    "alignment float": (one_tensor(keys=[("general.alignment", value(F64, 32.0))]), "must be a power of two"),
    "tensor name": (one_tensor(tensors=[tensor("", (4, 2), 0, 0)]), "a tensor has no name"),
    "tensor twice": (
        one_tensor(tensors=[tensor("w", (4,), 0, 0), tensor("w", (4,), 0, 32)], data=bytes(64)),
        "tensor 'w' appears twice",
    ),
    "rank 0": (one_tensor(tensors=[tensor("w", (), 0, 0)]), "'w' has 0 dimensions"),
    "rank 5": (one_tensor(tensors=[tensor("w", (1,) * 5, 0, 0)]), "'w' has 5 dimensions"),
    "rank 2^32": (one_tensor(tensors=[tensor("w", (4, 2), 0, 0, rank=2**32 - 1)]), "4294967295 dimensions"),
    "dimension 0": (one_tensor(tensors=[tensor("w", (4, 0), 0, 0)]), "dimension of zero"),
    "dimensions that overflow to 0": (
        one_tensor(tensors=[tensor("w", (2**32, 2**32), 0, 0)]),
        "ends beyond the file's",
    ),
    "dimensions that overflow to 32": (
        one_tensor(tensors=[tensor("w", (2**61 + 1, 8), 0, 0)]),
        "ends beyond the file's",
    ),
    "type out of range": (one_tensor(tensors=[tensor("w", (4, 2), 1000, 0)]), "the unknown ggml type 1000"),
    "type not read": (one_tensor(tensors=[tensor("w", (256, 2), 19, 0)]),
        r"'w' is stored as IQ1_S \(ggml type 19\)"),
    "row not divided": (one_tensor(tensors=[tensor("w", (31, 2), 8, 0)]),
        "rows of 31 values do not divide into Q8_0"),
    "offset unaligned": (one_tensor(tensors=[tensor("w", (4,), 0, 8)]), "begins at offset 8, not a multiple"),
    "offset beyond": (one_tensor(tensors=[tensor("w", (4,), 0, 2**40)]), "ends beyond the file's"),
    "offset overflow": (one_tensor(tensors=[tensor("w", (4, 2), 0, 2**64 - 32)]), "ends beyond the file's"),
    "size lies": (one_tensor(tensors=[tensor("w", (4, 3), 0, 0)]), "of 48 bytes at byte 128 ends beyond"),
    "overlap": (
        one_tensor(tensors=[tensor("v", (16,), 0, 0), tensor("w", (8,), 0, 32)], data=bytes(64)),
        "tensors 'v' .* and 'w' overlap",
    ),
    "same place": (
        one_tensor(tensors=[tensor("v", (8,), 0, 0), tensor("w", (8,), 0, 0)], data=bytes(64)),
        "overlap",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", ATTACKS)
def test_attacks_are_refused_by_name_and_byte(name: str, tmp_path: Path) -> None:
    raw, message = ATTACKS[name]
    path = raw.write(tmp_path / "m.gguf")
    with pytest.raises(BadModelFile, match=message) as caught:
        GGUFFile(path)
    assert str(path) in str(caught.value)
    assert "byte " in str(caught.value)


def test_every_truncation_is_refused(tmp_path: Path) -> None:
    whole = one_tensor(keys=[("k", value(ARRAY, (STRING, ["a", "b"])))]).build()
    for length in range(len(whole)):
        path = tmp_path / "m.gguf"
        path.write_bytes(whole[:length])
        with pytest.raises(BadModelFile):
            GGUFFile(path)


def test_what_is_no_file_at_all(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match="no such file"):
        GGUFFile(tmp_path / "none.gguf")
    with pytest.raises(BadModelFile, match="not a regular file"):
        GGUFFile(tmp_path)
    os.mkfifo(tmp_path / "pipe.gguf")
    with pytest.raises(BadModelFile, match="not a regular file"):
        GGUFFile(tmp_path / "pipe.gguf")


def test_bad_items_are_named_when_they_are_read(tmp_path: Path) -> None:
    items = struct.pack("<IIQ", ARRAY, STRING, 2) + text("good") + text(b"\xc3\x28")
    path = Raw(keys=[("k", items)]).write(tmp_path / "m.gguf")
    array = GGUFFile(path).metadata["k"]
    assert isinstance(array, Array)
    with pytest.raises(BadModelFile, match="key 'k': item 1 at byte 69 is not UTF-8"):
        array.strings()
    with pytest.raises(BadModelFile, match="expected an array of numbers"):
        array.numbers()


def test_values_of_another_type_are_named(tmp_path: Path) -> None:
    keys: list[tuple[str | bytes, bytes]] = [
        ("text", value(STRING, "x")),
        ("nan", value(F32, float("nan"))),
        ("list", value(ARRAY, (U8, [1]))),
    ]
    file = GGUFFile(Raw(keys=keys).write(tmp_path / "m.gguf"))
    with pytest.raises(BadModelFile, match="key 'text' should be a whole number, found 'x'"):
        file.integer("text")
    with pytest.raises(BadModelFile, match="key 'nan' should be a finite number"):
        file.number("nan")
    with pytest.raises(BadModelFile, match="key 'list' should be a string, found an array"):
        file.text("list")
    with pytest.raises(BadModelFile, match="key 'text' should be an array"):
        file.array("text")
    with pytest.raises(BadModelFile, match="key 'none' is missing"):
        file.integer("none")
    with pytest.raises(BadModelFile, match="tensor 'w' is missing"):
        file.tensor("w")


def test_a_header_full_of_entries_costs_bounded_memory(tmp_path: Path) -> None:
    """A 12 MB file of the cheapest keys that can be packed into one: refused before they are held."""
    keys: list[tuple[str | bytes, bytes]] = [(f"{i:x}", value(U8, 0)) for i in range(70_000)]
    path = Raw(keys=keys).write(tmp_path / "m.gguf")
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(BadModelFile, match="70000 keys is more than"):
        GGUFFile(path)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 20_000


HONEST = one_tensor(
    keys=[
        ("general.architecture", value(STRING, "diffusion-gemma")),
        ("general.alignment", value(U32, 32)),
        ("tokenizer.ggml.tokens", value(ARRAY, (STRING, ["a", "bc", ""]))),
        ("tokenizer.ggml.scores", value(ARRAY, (F32, [0.0, 1.0]))),
    ],
    tensors=[tensor("v", (4, 2), 0, 0), tensor("w", (32, 2), 8, 32)],
    data=bytes(32 + 68),
).build()


@settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    edits=st.lists(
        st.tuples(
            st.integers(0, len(HONEST) - 1),
            st.one_of(
                st.binary(min_size=1, max_size=8),
                st.sampled_from([struct.pack("<Q", n) for n in (0, 1, 2**31, 2**32, 2**63, 2**64 - 1)]),
            ),
        ),
        min_size=1,
        max_size=4,
    ),
    cut=st.integers(0, len(HONEST)),
)
@example(edits=[(4, b"\x02")], cut=len(HONEST))
def test_mutated_files_open_or_are_refused(edits: list[tuple[int, bytes]], cut: int, tmp_path: Path) -> None:
    """Whatever is written over an honest file, reading all of it ends well or in
    BadModelFile; nothing else."""
    raw = bytearray(HONEST)
    for at, patch in edits:
        raw[at : at + len(patch)] = patch
    path = tmp_path / "m.gguf"
    path.write_bytes(raw[: max(cut, len(HONEST) // 2)])
    message = ""
    try:
        with GGUFFile(path) as file:
            file.plain("")
            for name in file.tensors:
                packed = file.tensor(name)
                assert packed.nbytes == file.tensors[name].nbytes
                packed.dequantise()
    except BadModelFile as error:
        message = str(error)
    assert not message or str(path) in message


def test_a_file_cut_short_after_it_was_opened_is_refused_not_touched(tmp_path: Path) -> None:
    """Touching what is gone would kill the process. A new file under the old name harms nothing."""
    path = write_tiny_gguf(tiny_model(vocab_size=1024), tmp_path / "m.gguf", "F32")
    with GGUFFile(path) as file:
        name = next(iter(file.tensors))
        key, whole = next(iter(file.metadata)), file.raw_tensor(name)
        other = tmp_path / "other"
        other.write_bytes(b"short")
        kept = tmp_path / "kept.gguf"
        kept.hardlink_to(path)
        other.replace(path)
        assert file.raw_tensor(name) == whole
        os.truncate(kept, 4096)
        for read in (file.tensor, file.raw_tensor):
            with pytest.raises(BadModelFile, match="was cut short after it was opened"):
                read(name)
        with pytest.raises(BadModelFile, match="was cut short after it was opened"):
            file.raw_value(key)
