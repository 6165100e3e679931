"""Tensors in and out of files: equal to the safetensors library's, streamed, checked, written atomically."""

from __future__ import annotations

from pathlib import Path

import pytest
import safetensors.torch
import torch

from canvaslm.errors import BadModelFile
from canvaslm.weights.safetensors_ import file as ours
from canvaslm.weights.safetensors_.file import TensorFile, load_file, save_file
from canvaslm.weights.safetensors_.header import read_header

from ..files import entry, write


def some_tensors() -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    return {
        "a.weight": torch.randn(5, 7),
        "b": torch.randn(3, 2, 4).bfloat16(),
        "c": torch.randn(9).half(),
        "d": torch.arange(6),
        "e": torch.randn(4, 4).t(),  # not contiguous
        "f": torch.tensor(2.5),
        "g": torch.empty(0, 3),
        "h": torch.tensor([True, False]),
        "i": torch.randn(8).to(torch.float8_e4m3fn),
    }


@pytest.fixture
def small_slices(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ours, "SLICE_BYTES", 24)
    monkeypatch.setattr(ours, "_CHECKED_AT_ONCE", 4)


def equal(a: torch.Tensor, b: torch.Tensor) -> bool:
    same = a.dtype == b.dtype and a.shape == b.shape
    return same and torch.equal(
        a.contiguous().view(-1).view(torch.uint8), b.contiguous().view(-1).view(torch.uint8)
    )


def test_the_library_reads_what_we_write(tmp_path: Path) -> None:
    save_file(tmp_path / "m.safetensors", some_tensors(), {"format": "pt"})
    found = safetensors.torch.load_file(tmp_path / "m.safetensors")
    assert found.keys() == some_tensors().keys()
    assert all(equal(found[name], tensor) for name, tensor in some_tensors().items())
    assert read_header(tmp_path / "m.safetensors").metadata == {"format": "pt"}


@pytest.mark.usefixtures("small_slices")
def test_we_read_what_the_library_writes_slice_by_slice(tmp_path: Path) -> None:
    wanted = {name: tensor.contiguous() for name, tensor in some_tensors().items()}
    safetensors.torch.save_file(wanted, tmp_path / "m.safetensors")
    found = load_file(tmp_path / "m.safetensors")
    assert found.keys() == wanted.keys()
    assert all(equal(found[name], tensor) for name, tensor in wanted.items())


@pytest.mark.usefixtures("small_slices")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_conversion_while_reading_equals_torch(tmp_path: Path, dtype: torch.dtype) -> None:
    source = torch.randn(11, 5)
    save_file(tmp_path / "m.safetensors", {"w": source})
    target = torch.empty(11, 5, dtype=dtype)
    counted: list[int] = []
    with TensorFile(tmp_path / "m.safetensors") as file:
        file.read_into("w", target, on_bytes=counted.append)
    assert torch.equal(target, source.to(dtype))
    assert sum(counted) == source.nbytes
    assert max(counted) <= 24


@pytest.mark.usefixtures("small_slices")
def test_conversion_while_writing_equals_torch(tmp_path: Path) -> None:
    tensors = {"w": torch.randn(11, 5), "ids": torch.arange(3)}
    save_file(tmp_path / "m.safetensors", tensors, dtype=torch.bfloat16)
    found = load_file(tmp_path / "m.safetensors")
    assert torch.equal(found["w"], tensors["w"].bfloat16())
    assert torch.equal(found["ids"], tensors["ids"])  # whole numbers stay


def test_data_is_aligned_to_its_elements(tmp_path: Path) -> None:
    save_file(
        tmp_path / "m.safetensors",
        {"a": torch.zeros(3, dtype=torch.int8), "b": torch.zeros(2, dtype=torch.float64)},
    )
    tensors = read_header(tmp_path / "m.safetensors").tensors
    assert tensors["b"].start % 8 == 0


@pytest.mark.usefixtures("small_slices")
@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_values_that_are_not_finite(tmp_path: Path, value: float, dtype: torch.dtype) -> None:
    tensor = torch.zeros(40, dtype=dtype)
    tensor[33] = value
    path = tmp_path / "m.safetensors"
    save_file(path, {"ok": torch.ones(2), "w": tensor})
    offset = read_header(path).tensors["w"].start + 33 * dtype.itemsize
    with TensorFile(path) as file:
        with pytest.raises(BadModelFile, match=rf"tensor 'w': element 33 \(byte {offset}\) is {value}"):
            file.read_into("w", torch.empty(40))
        target = torch.empty(40)
        file.read_into("w", target, finite="none")
    assert not torch.isfinite(target[33])


def test_sampling_sees_small_tensors_whole_and_large_ones_at_their_heads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ours, "ALWAYS_CHECKED", 10_000)
    small, large, head = torch.zeros(10_000), torch.zeros(20_000), torch.zeros(20_000)
    small[9_999] = large[9_999] = head[5] = float("nan")
    save_file(tmp_path / "m.safetensors", {"small": small, "large": large, "head": head})
    with TensorFile(tmp_path / "m.safetensors") as file:
        file.read_into("large", torch.empty(20_000), finite="sampled")  # not seen: the price of sampling
        for name, size in (("small", 10_000), ("head", 20_000)):
            with pytest.raises(BadModelFile, match=f"tensor '{name}'"):
                file.read_into(name, torch.empty(size), finite="sampled")


def test_values_too_large_for_float16(tmp_path: Path) -> None:
    save_file(tmp_path / "m.safetensors", {"w": torch.tensor([1.0, 1e6])})
    with TensorFile(tmp_path / "m.safetensors") as file:
        with pytest.raises(BadModelFile, match=r"element 1 .* float16 cannot hold"):
            file.read_into("w", torch.empty(2, dtype=torch.float16))
        file.read_into("w", torch.empty(2, dtype=torch.bfloat16))


def test_a_file_that_shrinks_while_it_is_read(tmp_path: Path) -> None:
    path = write(tmp_path / "m.safetensors", {"a": entry()})
    with TensorFile(path) as file:
        with path.open("r+b") as other:
            other.truncate(path.stat().st_size - 3)
        with pytest.raises(BadModelFile, match="tensor 'a': the file ended at byte"):
            file.read("a")


def test_types_we_measure_but_do_not_read(tmp_path: Path) -> None:
    path = write(tmp_path / "m.safetensors", {"a": entry("F8_E8M0", (8,))})
    with TensorFile(path) as file, pytest.raises(BadModelFile, match="F8_E8M0 is not read"):
        file.read("a")


def test_a_failed_write_leaves_the_old_file_and_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "m.safetensors"
    save_file(path, {"a": torch.ones(2)})
    before = path.read_bytes()

    def fail(*_: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(ours, "_pieces", fail)
    with pytest.raises(OSError, match="disk full"):
        save_file(path, {"a": torch.zeros(2)})
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["m.safetensors"]


def test_names_we_would_not_read_are_not_written(tmp_path: Path) -> None:
    with pytest.raises(BadModelFile, match="__class__"):
        save_file(tmp_path / "m.safetensors", {"x.__class__": torch.ones(1)})
    assert not list(tmp_path.iterdir())
