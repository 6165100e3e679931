"""Every command that writes: what is there and is no regular file is refused, with and without --force."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from canvaslm.cli.main import main
from canvaslm.demo.config import MODEL_FOLDER
from canvaslm.weights.adapters.peft_write import write_peft
from canvaslm.weights.safetensors_.export import save_folder
from canvaslm.weights.synth import plan_synth, write_synth
from tests.tiny import tiny_config, tiny_model
from tests.weights.adapters.made import adapter_of

from .conftest import Program

CONFIG = tiny_config(vocab_size=640, hidden_size=256, eos_token_ids=(1, 106))
Arguments = Callable[[Path, Path], list[str]]


def recipe(place: Path, folder: Path) -> str:
    """A training run into `folder`."""
    path = place / "recipe.toml"
    path.write_text(
        f'[run]\nfolder = {json.dumps(str(folder))}\nsteps = 1\n[model]\nbase = "{MODEL_FOLDER}"\n'
        '[data]\nsource = "canvaslm.demo.stream:DemoStream"\n'
    )
    return str(path)


def adapting(action: str, model: Path, out: Path) -> list[str]:
    """With an adapter of the model, beside it."""
    adapter = model.parent / "adapter"
    if not adapter.exists():
        write_peft(adapter_of(CONFIG), adapter, CONFIG)
    return ["adapter", action, str(adapter), str(out), "-m", str(model)]


# The arguments for a model file and an output.
COMMANDS: dict[str, Arguments] = {
    "quantize": lambda model, out: ["quantize", str(model), str(out), "Q8_0"],
    "quantize --force": lambda model, out: ["quantize", str(model), str(out), "Q8_0", "--force"],
    "convert to gguf": lambda model, out: ["convert", str(MODEL_FOLDER), str(out), "--force"],
    "convert to folder": lambda model, out: ["convert", str(model), str(out.with_suffix("")), "--force"],
    "synth": lambda model, out: ["synth", str(out), "--layers", "1"],
    "synth --force": lambda model, out: ["synth", str(out), "--layers", "1", "--force"],
    "pack": lambda model, out: ["pack", str(model), "-o", str(out)],
    "pack --force": lambda model, out: ["pack", str(model), "-o", str(out), "--force"],
    "eval": lambda model, out: ["eval", "demo", "-n", "1", "--json", str(out)],
    "bench": lambda model, out: ["bench", "--json", str(out)],
    "train": lambda model, out: ["train", recipe(out.parent, out)],
    "adapter merge": lambda model, out: adapting("merge", model, out),
    "adapter convert --force": lambda model, out: [*adapting("convert", model, out), "--force"],
}  # fmt: skip


@pytest.fixture
def model(tmp_path: Path) -> Path:
    (tmp_path / "model").mkdir()
    return write_synth(plan_synth(CONFIG, "Q8_0"), tmp_path / "model" / "model.gguf")


@pytest.mark.parametrize("kind", ["fifo", "link to a fifo"])
@pytest.mark.parametrize("command", COMMANDS)
def test_nothing_is_written_over_what_is_no_file(
    command: str, kind: str, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    reader = os.open(fifo, os.O_RDWR | os.O_NONBLOCK)  # so that a writer would not wait, and we could read
    out = tmp_path / ("out" if command == "convert to folder" else "out.gguf")
    out.symlink_to(fifo) if kind.startswith("link") else fifo.rename(out)
    before = sorted(path.name for path in tmp_path.iterdir())
    try:
        code = main(COMMANDS[command](model, out.with_suffix(".gguf") if out.suffix else out))
        with pytest.raises(BlockingIOError):
            os.read(reader, 1)
    finally:
        os.close(reader)
    assert code == 2
    said = capsys.readouterr().err
    assert str(out) in said
    assert len(said.splitlines()) == 1
    assert out.is_fifo()
    assert out.is_symlink() == kind.startswith("link")
    assert sorted({path.name for path in tmp_path.iterdir()} - {"recipe.toml"}) == before


@pytest.mark.parametrize("command", ["quantize", "synth", "pack"])
def test_a_link_to_a_file_needs_force_and_is_replaced_itself(
    command: str, model: Path, tmp_path: Path
) -> None:
    precious, out = tmp_path / "precious", tmp_path / "out.gguf"
    precious.write_text("precious")
    out.symlink_to(precious)
    arguments = COMMANDS[command](model, out)
    assert main(arguments) == 2
    assert out.is_symlink()
    if command != "synth":  # which would write 200 MB
        assert main([*arguments, "--force"]) == 0
        assert not out.is_symlink()
    assert precious.read_text() == "precious"


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "model-00009-of-00009.safetensors"])
def test_a_folder_with_a_fifo_in_a_files_place_is_refused_before_anything_moves(
    name: str, model: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    out.mkdir()
    os.mkfifo(out / name)
    assert main(["convert", str(model), str(out), "--force"]) == 2
    assert [path.name for path in out.iterdir()] == [name]
    assert (out / name).is_fifo()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model", "out"]


def test_a_fifo_under_an_unexpected_name_stops_the_move_too(tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    os.mkfifo(out / "card.md")
    model = tiny_model()
    with pytest.raises(Exception, match="is a FIFO"):
        save_folder(model, model.config, out, files={"card.md": b"x"}, overwrite=True)
    assert [path.name for path in out.iterdir()] == ["card.md"]


def test_a_chat_is_not_saved_over_what_is_no_file(program: Program, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "link").symlink_to(tmp_path / "nothing")
    for name, says in (("fifo", "is a FIFO"), ("link", "exists already")):
        shown = program("chat", stdin=f"a\n/save {tmp_path / name}\n")
        assert shown.code == 2
        assert says in shown.err
    assert not (tmp_path / "nothing").exists()


def test_metrics_are_not_appended_to_what_is_no_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    os.mkfifo(folder / "metrics.jsonl")
    assert main(["train", recipe(tmp_path, folder)]) == 2
    assert "metrics.jsonl: is a FIFO" in capsys.readouterr().err
