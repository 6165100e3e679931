"""Packed files: the same bits as packing, never used when stale or damaged, written whole or not at all."""

from __future__ import annotations

import ctypes
import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import canvaslm
from canvaslm.cli.main import main
from canvaslm.errors import OutOfMemory, UsageError
from canvaslm.ops import cpu
from canvaslm.ops.cpu import repacked as packed
from canvaslm.ops.cpu.repacked import BorrowedMemory, RepackedExperts, RepackedMatrix
from canvaslm.ops.cpu.repacker import Repacker
from canvaslm.ops.formats.quant_tensor import QuantTensor
from canvaslm.weights.describe import describe
from canvaslm.weights.gguf import load as gguf_load
from canvaslm.weights.gguf.file import GGUFFile
from canvaslm.weights.gguf.load import load_quantised
from canvaslm.weights.packed import file as packed_file
from canvaslm.weights.packed.file import LAYOUT, packed_path
from canvaslm.weights.packed.write import write_packed
from canvaslm.weights.resolve import resolve
from canvaslm.weights.safetensors_.header import read_header
from tests.tiny import tiny_model, write_tiny_gguf

pytestmark = pytest.mark.skipif(not cpu.available(), reason="no native kernels here")

SIZES = {"vocab_size": 1024, "hidden_size": 256, "intermediate_size": 160, "moe_intermediate_size": 96}


def write_model(path: Path, kind: str, seed: int = 2) -> Path:
    return write_tiny_gguf(tiny_model(seed=seed, **SIZES), path, kind)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A model in two types, each with its packed file."""
    root = tmp_path_factory.mktemp("sources")
    made = {kind: write_model(root / f"{kind}.gguf", kind) for kind in ("Q4_K_M", "Q8_0")}
    for path in made.values():
        write_packed(path)
    return made


@pytest.fixture
def model(files: dict[str, Path], tmp_path: Path) -> Path:
    """A copy of the Q4_K_M model with its packed file, for a test to spoil."""
    path = tmp_path / "model.gguf"
    shutil.copy(files["Q4_K_M"], path)
    shutil.copy(packed_path(files["Q4_K_M"]), packed_path(path))
    return path


def packed_weights(model: torch.nn.Module) -> dict[str, RepackedMatrix | RepackedExperts]:
    """Every packed weight that a model holds, by where it hangs."""
    found = {}
    for path, module in model.named_modules():
        for name, value in vars(module).items():
            if isinstance(value, RepackedMatrix | RepackedExperts):
                found[f"{path}.{name}"] = value
        if (table := getattr(module, "soft_table", None)) is not None:
            found[f"{path}.soft"] = table.transposed
    return found


def contents(weight: RepackedMatrix | RepackedExperts) -> bytes:
    return ctypes.string_at(weight.data, weight.nbytes)


def is_used(path: Path) -> bool:
    notes = load_quantised(path).notes
    used = f"mapped from {packed_path(path).name}" in notes[-1]
    # Either way the user is told: how it runs, or what is wrong and what to do.
    assert used or f"`canvaslm pack {path} --force`" in notes[-2]
    return used


@pytest.mark.parametrize("kind", ["Q4_K_M", "Q8_0"])
def test_mapped_weights_are_bit_for_bit_the_packed_ones(
    kind: str, files: dict[str, Path], tmp_path: Path
) -> None:
    alone = tmp_path / "alone.gguf"
    shutil.copy(files[kind], alone)
    mapped, packed_here = load_quantised(files[kind]), load_quantised(alone)
    assert "mapped from" in mapped.notes[-1]
    assert "mapped from" not in packed_here.notes[-1]
    ours, theirs = packed_weights(mapped.model), packed_weights(packed_here.model)
    assert ours.keys() == theirs.keys()
    assert sum(weight.memory is not None for weight in ours.values()) > 10
    for name, weight in ours.items():
        assert (weight.kind, weight.n, weight.k) == (theirs[name].kind, theirs[name].n, theirs[name].k)
        assert contents(weight) == contents(theirs[name]), name
    state, other = mapped.model.state_dict(), packed_here.model.state_dict()
    assert state.keys() == other.keys()
    assert all(torch.equal(state[name], other[name]) for name in state)


def test_a_session_answers_the_same_tokens_with_and_without(model: Path) -> None:
    options: dict[str, Any] = {"seed": 3, "max_new_tokens": 16, "max_denoising_steps": 4, "raw": True}
    with_file = canvaslm.load(model)
    assert any("mapped from" in note for note in with_file.notes)
    answer = with_file.generate("ABC", **options)
    packed_path(model).unlink()
    assert canvaslm.load(model).generate("ABC", **options).tokens == answer.tokens


def test_the_layout_of_the_file(files: dict[str, Path]) -> None:
    header = read_header(packed_path(files["Q4_K_M"]))
    starts = [info.start for info in header.tensors.values()]
    assert starts[0] % 4096 == 0
    assert all(start % 64 == 0 for start in starts)
    assert {info.dtype for info in header.tensors.values()} == {"U8"}
    assert header.metadata["layers.0.experts.down"].endswith(" 4x256x96")
    assert header.metadata["layout"] == LAYOUT


def test_a_change_of_the_kernels_layout_needs_a_new_layout_version() -> None:
    """Files packed before the change must not be read after it: raise LAYOUT, then note the new hash here.

    Comments and spaces do not count, so that formatting the header makes no file stale.
    """
    text = (Path(cpu.__file__).parent / "csrc" / "layout.h").read_text()
    code = re.sub(r"\s", "", re.sub(r"//.*", "", text))
    known = {"1": "7370967558ad29f18c5aee8a087c2a87c268b6cd6402e8bb9e13d414ea0aac8b"}
    assert known[LAYOUT] == hashlib.sha256(code.encode()).hexdigest()


def test_another_model_of_the_same_sizes_makes_it_stale(model: Path, tmp_path: Path) -> None:
    assert is_used(model)
    other = write_model(tmp_path / "other.gguf", "Q4_K_M", seed=5)
    assert other.stat().st_size == model.stat().st_size
    shutil.copy(other, model)
    assert not is_used(model)
    assert "was made from another model.gguf" in load_quantised(model).notes[-2]
    write_packed(model, force=True)
    assert is_used(model)


def test_a_copy_with_another_time_of_change_is_not_stale(model: Path) -> None:
    os.utime(model, (1, 1))
    assert is_used(model)


def test_other_kinds_make_it_stale(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from canvaslm.ops.cpu import layers as layers

    other = "INT8" if packed.dense_kind("Q5_0") != "INT8" else "Q5_0"
    monkeypatch.setattr(layers, "dense_kind", lambda format: other if format == "Q5_0" else format)
    assert not is_used(model)
    assert "packed otherwise" in load_quantised(model).notes[-2]


def rewrite(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Changes the header of a packed file, and keeps its length."""
    data = path.read_bytes()
    length = int.from_bytes(data[:8], "little")
    entries = json.loads(data[8 : 8 + length])
    change(entries)
    head = json.dumps(entries, separators=(",", ":")).encode().ljust(length)
    assert len(head) == length
    path.write_bytes(data[:8] + head + data[8 + length :])


def _said(name: str, value: str) -> Callable[[dict[str, Any]], object]:
    return lambda entries: entries["__metadata__"].__setitem__(name, value)


def _swap(entries: dict[str, Any]) -> None:
    """Two weights of one size change places: nothing but the header tells."""
    a, b = "layers.0.self_attn.k_proj", "layers.0.self_attn.v_proj"
    entries[a], entries[b] = entries[b], entries[a]


CHANGES: dict[str, Callable[[dict[str, Any]], object]] = {
    "format": _said("format", "2"),
    "layout": _said("layout", "0"),
    "source": _said("source", "0" * 64),
    "data": _said("data", "0" * 64),
    "sizes": _said("layers.0.experts.down", "Q4_K 400x256x96"),
    "exchanged": _swap,
    "missing": lambda entries: entries.pop("layers.1.self_attn.q_proj"),
    "no metadata": lambda entries: entries.pop("__metadata__"),
    "another type": lambda entries: entries["layers.0.mlp.down"].__setitem__("dtype", "I8"),
    "out of bounds": lambda entries: entries["layers.0.mlp.down"].__setitem__("data_offsets", [0, 1 << 40]),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_a_header_that_says_otherwise_is_not_believed(
    change: Callable[[dict[str, Any]], object], model: Path
) -> None:
    rewrite(packed_path(model), change)
    assert not is_used(model)


def test_sizes_are_checked_against_what_the_kernels_read(model: Path) -> None:
    """A weight with fewer bytes than its kind takes, in a file that is consistent in itself."""
    path = packed_path(model)
    header = read_header(path)
    data, spans, offset = path.read_bytes(), {}, 0
    pieces = []
    for info in header.tensors.values():
        size = info.nbytes - 64 if info.name == "layers.0.experts.down" else info.nbytes
        spans[info.name] = {"dtype": "U8", "shape": [size], "data_offsets": [offset, offset + size]}
        pieces.append(data[info.start : info.start + size])
        offset += size

    def head(digest: str) -> bytes:
        entries = {"__metadata__": header.metadata | {"data": digest}, **spans}
        raw = json.dumps(entries).encode()
        raw += b" " * (-(8 + len(raw)) % 4096)
        return len(raw).to_bytes(8, "little") + raw

    path.write_bytes(head("0" * 64) + b"".join(pieces))
    path.write_bytes(head(packed_file._data_digest(read_header(path))) + b"".join(pieces))
    assert not is_used(model)
    assert "is damaged (layers.0.experts.down has" in load_quantised(model).notes[-2]


@pytest.mark.parametrize("size", [0, 7, 8, 4000, -64, -1])
def test_truncated(size: int, model: Path) -> None:
    path = packed_path(model)
    os.truncate(path, size if size >= 0 else path.stat().st_size + size)
    assert not is_used(model)


def test_overwritten_data_are_noticed(model: Path) -> None:
    path = packed_path(model)
    start = read_header(path).tensors["layers.1.experts.down"].start
    with path.open("r+b") as file:
        file.seek(start)
        file.write(bytes(4096))
    assert not is_used(model)


def test_fuzzed_headers_never_break_loading(model: Path) -> None:
    """Random bytes in the header: the file is refused, or is what it was."""
    path = packed_path(model)
    good = path.read_bytes()
    length = int.from_bytes(good[:8], "little")
    random = torch.Generator().manual_seed(0)
    with GGUFFile(model) as file:
        for _ in range(150):
            bad = bytearray(good)
            for _ in range(int(torch.randint(1, 4, (1,), generator=random))):
                at = int(torch.randint(0, 8 + length, (1,), generator=random))
                bad[at] = int(torch.randint(0, 256, (1,), generator=random))
            path.write_bytes(bad)
            try:
                header = packed_file.find_packed(file)
            except packed_file.Unusable:
                continue
            assert header is not None
    path.write_bytes(good)
    assert is_used(model)


def test_a_link_out_of_the_folder_is_not_followed(model: Path, tmp_path: Path) -> None:
    away = tmp_path / "away"
    away.mkdir()
    packed_path(model).rename(away / "elsewhere")
    packed_path(model).symlink_to(away / "elsewhere")
    assert not is_used(model)


def test_a_folder_in_its_place(model: Path) -> None:
    packed_path(model).unlink()
    packed_path(model).mkdir()
    assert not is_used(model)


def test_replacing_it_leaves_running_models_alone(model: Path) -> None:
    """The new file is another one under the same name: a map of the old one stays what it was."""
    running = packed_weights(load_quantised(model).model)
    before = {name: contents(weight) for name, weight in running.items()}
    write_packed(model, force=True)
    packed_path(model).unlink()
    assert all(contents(weight) == before[name] for name, weight in running.items())


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError("full")])
def test_an_interrupted_packing_leaves_what_was_there(
    error: BaseException | type[BaseException], model: Path
) -> None:
    before, names = packed_path(model).read_bytes(), sorted(os.listdir(model.parent))

    def stop(name: str, done: int, total: int) -> None:
        if done > total // 2:
            raise error

    with pytest.raises((KeyboardInterrupt, OSError)):
        write_packed(model, force=True, progress=stop)
    assert packed_path(model).read_bytes() == before
    assert sorted(os.listdir(model.parent)) == names


def test_packing_is_repeatable_and_reports_its_progress(model: Path) -> None:
    seen: list[tuple[str, int, int]] = []
    before = packed_path(model).read_bytes()
    written = write_packed(model, force=True, progress=lambda *now: seen.append(now))
    assert packed_path(model).read_bytes() == before
    assert written.size == len(before)
    assert seen[-1][1] == seen[-1][2] <= written.size
    assert len({name for name, _, _ in seen}) == written.weights


def test_refusals(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UsageError, match="--force replaces it"):
        write_packed(model)
    with pytest.raises(UsageError, match="is the input itself"):
        write_packed(model, model, force=True)
    plain = write_model(tmp_path / "plain.gguf", "F16")
    with pytest.raises(UsageError, match="no quantised weights"):
        write_packed(plain)
    monkeypatch.setattr("canvaslm.weights.packed.write.os.access", lambda path, mode: False)
    with pytest.raises(UsageError, match="link the model into a folder of yours"):
        write_packed(model, force=True)
    monkeypatch.setattr("canvaslm.weights.packed.write.cpu.available", lambda: False)
    with pytest.raises(UsageError, match="needs the native kernels"):
        write_packed(model, force=True)


def test_a_full_disk_is_told_first(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10**9, 0, 10**4))
    with pytest.raises(UsageError, match=r"would take .* MB, and only 10.0 kB are free"):
        write_packed(model, force=True)


def test_foreign_memory_must_fit() -> None:
    with pytest.raises(ValueError, match="cannot hold"):
        RepackedMatrix("Q8_0", 32, 32, BorrowedMemory(4096, 64, None))
    with pytest.raises(ValueError, match="cannot hold"):
        RepackedExperts(
            "Q8_0", 2, 32, 32, BorrowedMemory(32, 2 * packed.repacked_bytes("Q8_0", (32, 32)), None)
        )


def test_without_kernels_it_is_not_looked_at(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu, "available", lambda: False)
    assert not any("packed" in note for note in load_quantised(model).notes)


def test_show_tells_of_it(model: Path) -> None:
    def last() -> str:
        return describe(resolve(model)).notes[-1]

    assert "packed for quick opening in model.gguf.packed" in last()
    os.truncate(packed_path(model), 5000)
    assert "is damaged" in last()


def test_the_command(files: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "model.gguf"
    shutil.copy(files["Q8_0"], path)
    assert main(["pack", str(path)]) == 0
    assert f"{path}.packed: " in capsys.readouterr().out
    assert is_used(path)
    assert main(["pack", str(path)]) == UsageError.exit_code
    assert "--force replaces it" in capsys.readouterr().err
    assert main(["pack", str(path), "-o", str(tmp_path / "x")]) == 0
    assert "once it lies beside the model" in capsys.readouterr().out
    assert (tmp_path / "x").read_bytes() == packed_path(path).read_bytes()


@pytest.mark.parametrize("rows", [64, 48])
def test_experts_packed_in_one_go_are_those_packed_one_by_one(rows: int) -> None:
    raw = torch.randint(0, 256, (5 * rows * 2 * 34,), dtype=torch.uint8)
    weight = QuantTensor("Q8_0", (5, rows, 64), raw)
    at_once = Repacker().stacked("experts", (weight,))
    assert contents(at_once) == contents(RepackedExperts.repack("Q8_0", raw, 5, rows, 64))


def test_memory_is_asked_for_as_packed_weights_take_it(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Packed matrices may be larger than the file: what counts is what will be taken, told before reading."""
    weights = sum(weight.nbytes for weight in packed_weights(load_quantised(model).model).values())
    monkeypatch.setattr(gguf_load, "available_memory", lambda device: weights)
    for _ in range(2):  # mapped, then packed here
        with pytest.raises(OutOfMemory, match="the weights need"):
            load_quantised(model)
        packed_path(model).unlink(missing_ok=True)
