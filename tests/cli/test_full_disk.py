"""A disk that takes no more, in the middle of every file that a command writes: nothing half-written is left,
what was there stays, and one line names the file and the remedy.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from canvaslm.cli.main import main
from canvaslm.demo.config import MODEL_FOLDER
from canvaslm.ops import cpu
from canvaslm.weights.adapters.peft_write import write_peft
from canvaslm.weights.synth import plan_synth, write_synth
from tests.full_disk import full_disk
from tests.tiny import tiny_config
from tests.weights.adapters.made import adapter_of

COMMANDS = {
    "quantize": ["quantize", "{model}", "{out}.gguf", "Q4_0", "--force"],
    "convert to gguf": ["convert", str(MODEL_FOLDER), "{out}.gguf", "--force"],
    "convert to folder": ["convert", "{model}", "{out}", "--force"],
    "synth": ["synth", "{out}.gguf", "--layers", "1", "--force"],
    "adapter merge": ["adapter", "merge", "{adapter}", "{out}.gguf", "-m", "{model}", "--force"],
    "adapter convert to gguf": ["adapter", "convert", "{adapter}", "{out}.gguf", "-m", "{model}", "--force"],
    "adapter convert to folder": ["adapter", "convert", "{adapter}", "{out}", "-m", "{model}", "--force"],
    "pack": ["pack", "{model}", "-o", "{out}.gguf", "--force"],
}


@pytest.fixture
def model(tmp_path: Path) -> Path:
    config = tiny_config(vocab_size=640, hidden_size=256, eos_token_ids=(1, 106))
    (tmp_path / "model").mkdir()
    write_peft(adapter_of(config), tmp_path / "model" / "adapter", config)
    return write_synth(plan_synth(config, "Q8_0"), tmp_path / "model" / "model.gguf")


@pytest.mark.parametrize("there", [False, True])
@pytest.mark.parametrize("command", COMMANDS)
def test_a_full_disk_leaves_what_was_there_and_nothing_else(
    command: str, there: bool, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if command == "pack" and not cpu.available():
        pytest.skip("no native kernels here")
    folder = tmp_path / "folder"
    folder.mkdir()
    if there:
        old = folder / "out.gguf"
        if command.endswith("to folder"):
            (folder / "out").mkdir()
            old = folder / "out" / ("adapter_config.json" if command.startswith("adapter") else "config.json")
        old.write_text("old")
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    places = {"model": model, "adapter": model.parent / "adapter", "out": folder / "out"}
    arguments = [word.format(**places) for word in COMMANDS[command]]
    capsys.readouterr()
    with full_disk():
        code = main(arguments)
    said = capsys.readouterr().err
    assert code == 1, said
    name = "out" if command.endswith("to folder") else "out.gguf"
    assert said.startswith(f"canvaslm: error: {folder / name}: cannot be written (File too large); raise the")
    assert said.count("\n") == 1
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before


def test_a_document_that_does_not_fit_leaves_the_old_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from canvaslm.errors import WriteFailed
    from canvaslm.evals.report import write

    out = tmp_path / "scores.json"
    write(out, {"scores": []})
    with full_disk(100), pytest.raises(WriteFailed, match=r"scores\.json: cannot be written"):
        write(out, {"scores": ["x" * 1000]})
    assert out.read_text() == '{\n  "scores": []\n}\n'
    assert list(tmp_path.iterdir()) == [out]
