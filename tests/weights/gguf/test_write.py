"""The writer's promises: all or nothing, never over something by accident, never onto a full disk."""

from __future__ import annotations

import shutil
from collections import namedtuple
from pathlib import Path

import pytest

from canvaslm.errors import UsageError
from canvaslm.weights.gguf.file import GGUFFile
from canvaslm.weights.gguf.write import GGUFWriter, PlannedTensor, planned_size, string, u32

PLAN = [PlannedTensor("a", (3,), "F32"), PlannedTensor("b", (2, 32), "Q8_0")]
METADATA = {"general.architecture": string("x"), "n": u32(5)}


def write(path: Path, *, force: bool = False, stop: type[BaseException] | None = None) -> None:
    with GGUFWriter(path, METADATA, PLAN, force=force) as writer:
        writer.write(bytes(12))
        if stop:
            raise stop
        writer.write(bytes(range(34)))
        writer.write(bytes(34))


def test_the_file_is_as_planned(tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    write(path)
    assert path.stat().st_size == planned_size(METADATA, PLAN)
    assert [p.name for p in tmp_path.iterdir()] == ["m.gguf"]
    with GGUFFile(path) as file:
        assert file.integer("n") == 5
        assert file.tensor("b").raw[:34].tolist() == list(range(34))
        assert all(info.start % 32 == 0 for info in file.tensors.values())


def test_nothing_is_replaced_without_force(tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    path.write_text("mine")
    with pytest.raises(UsageError, match="is there already; --force replaces it"):
        write(path)
    assert path.read_text() == "mine"
    write(path, force=True)
    assert GGUFFile(path).integer("n") == 5


def test_the_input_is_never_the_output(tmp_path: Path) -> None:
    path, link = tmp_path / "m.gguf", tmp_path / "link.gguf"
    write(path)
    link.symlink_to(path)
    with pytest.raises(UsageError, match="is the input itself"):
        GGUFWriter(link, METADATA, PLAN, force=True, sources=[path])


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_a_stop_halfway_leaves_nothing(error: type[BaseException], tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    path.write_text("mine")
    with pytest.raises(error):
        write(path, force=True, stop=error)
    assert path.read_text() == "mine"
    assert len(list(tmp_path.iterdir())) == 1


def test_a_plan_not_kept_is_a_bug(tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    with (
        pytest.raises(ValueError, match="tensor b is incomplete"),
        GGUFWriter(path, METADATA, PLAN) as writer,
    ):
        writer.write(bytes(12))
    with (
        pytest.raises(ValueError, match="more bytes than planned"),
        GGUFWriter(path, METADATA, PLAN) as writer,
    ):
        writer.write(bytes(16))
    assert not path.exists()


def test_a_full_disk_is_seen_before_writing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(10, 10, 100))
    with pytest.raises(UsageError, match=r"would take .* and only 100 B are free"):
        write(tmp_path / "m.gguf")
    with pytest.raises(UsageError, match="no such folder"):
        write(tmp_path / "none" / "m.gguf")
    assert list(tmp_path.iterdir()) == []
