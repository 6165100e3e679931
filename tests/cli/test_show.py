"""`canvaslm show`: a page for people, an object for programs."""

from __future__ import annotations

import json
import shutil
from dataclasses import fields
from pathlib import Path

import pytest

from canvaslm.cli.show import command
from canvaslm.demo.config import MODEL_FOLDER
from canvaslm.errors import BadConfig, NotFound, UsageError
from canvaslm.ops import cpu
from canvaslm.types import Params
from canvaslm.weights.gguf.quantize import write_gguf
from canvaslm.weights.gguf.source import open_source
from canvaslm.weights.safetensors_.export import save_folder
from tests.tiny import tiny_model


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    model = tiny_model()
    generation = {"max_denoising_steps": 16, "t_max": 0.9, "eos_token_id": [1, 5]}
    return save_folder(model, model.config, tmp_path_factory.mktemp("show") / "m", generation=generation)


def rows(text: str) -> dict[str, str]:
    """label -> value of the indented lines."""
    return {line[2:24].strip(): line[24:] for line in text.splitlines() if line.startswith("  ")}


def test_the_page(folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CANVASLM_T_MIN", "0.25")
    command(str(folder))
    output = capsys.readouterr()
    page = rows(output.out)
    assert output.err == ""
    assert page["layers"] == "2: 1 sliding (window 8), 1 full"
    assert page["experts"].startswith("4 of 32, 2 active") or "%" in page["experts"]
    assert page["total"] == "141.04 k"
    assert page["active per token"] == "116.46 k"
    assert page["weights in float32"] == "564.1 kB"
    assert page["stop, pad, begin ids"] == "1, 5; 0; 2"
    assert page["max_denoising_steps"].split() == ["16", "generation_config.json"]
    assert page["t_min"].split() == ["0.25", "environment", "CANVASLM_T_MIN"]
    assert page["entropy_bound"].split() == ["0.1", "default"]
    assert page["seed"].split() == ["random", "default"]
    assert page["vision tower"] == "none in the checkpoint"


def test_what_a_gguf_file_says_is_not_said_to_be_in_files_it_does_not_have(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "demo.gguf"
    write_gguf(open_source(MODEL_FOLDER), file, "Q8_0")
    command(str(file))
    page = rows(capsys.readouterr().out)
    assert page["file"].startswith("GGUF metadata, BPE")
    assert page["t_max"].split()[1:] == ["GGUF", "metadata"]
    assert page["seed"].split() == ["random", "default"]
    command(str(file), json=True)
    data = json.loads(capsys.readouterr().out)
    assert data["sampling"]["t_max"]["from"] == data["tokenizer"]["source"] == "GGUF metadata"
    command(str(MODEL_FOLDER), json=True)
    data = json.loads(capsys.readouterr().out)
    assert data["sampling"]["t_max"]["from"] == "generation_config.json"
    assert data["tokenizer"]["source"] == "tokenizer.json"


def test_json(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command(str(folder), json=True)
    data = json.loads(capsys.readouterr().out)
    assert data["parameters"]["total"] == sum(data["parameters"]["parts"].values()) == 141_036
    assert data["sampling"]["t_max"] == {"value": 0.9, "from": "generation_config.json"}
    assert set(data["sampling"]) == {field.name for field in fields(Params)}
    assert data["stop_tokens"] == [1, 5]
    assert data["memory_bytes"]["weights"]["bfloat16"] == 2 * 141_036


def test_variables(folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("CANVASLM_PRESET", "quality")
    monkeypatch.setenv("CANVASLM_STABILITY_THRESHOLD", "3")
    command(str(folder), json=True)
    found = json.loads(capsys.readouterr().out)["sampling"]
    assert found["max_denoising_steps"] == {"value": 48, "from": "environment CANVASLM_PRESET (quality)"}
    assert found["stability_threshold"] == {"value": 3, "from": "environment CANVASLM_STABILITY_THRESHOLD"}
    monkeypatch.setenv("CANVASLM_EOS_AWARE_STOPPING", "0")
    command(str(folder), json=True)
    found = json.loads(capsys.readouterr().out)["sampling"]
    assert found["eos_aware_stopping"] == {"value": False, "from": "environment CANVASLM_EOS_AWARE_STOPPING"}
    for variable, value in (
        ("CANVASLM_T_MIN", "warm"),
        ("CANVASLM_T_MAX", "500"),
        ("CANVASLM_PRESET", "best"),
    ):
        monkeypatch.setenv(variable, value)
        with pytest.raises(UsageError, match=f"{variable}='{value}'"):
            command(str(folder))
        monkeypatch.delenv(variable)


def test_control_characters_stay_out_of_the_terminal(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    evil = Path(shutil.copytree(folder, tmp_path / "m\x1b[2Jm"))
    (evil / "model.safetensors").rename(evil / "w\x1b]0;x\x07.safetensors")
    command(str(evil))
    assert "\x1b" not in capsys.readouterr().out


def test_errors_carry_their_exit_codes(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(NotFound) as missing:
        command(str(tmp_path / "nothing"))
    assert missing.value.exit_code == 3
    broken = Path(shutil.copytree(folder, tmp_path / "m"))
    (broken / "config.json").write_text("{")
    with pytest.raises(BadConfig) as bad:
        command(str(broken))
    assert bad.value.exit_code == 6


@pytest.mark.skipif(not cpu.available(), reason="no native kernels here")
def test_kernels_of_this_machine(capsys: pytest.CaptureFixture[str]) -> None:
    command(kernels=True)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "Kernels on cpu"
    assert any(f"native kernels ({cpu.isa()}" in line for line in lines)
    table = {line.split()[0]: line for line in lines if line.startswith("  ") and line.strip()}
    assert table["format"].split() == ["format", "linear", "gated_mlp", "experts", "predict", "attention"]
    assert table["Q5_1"].split()[1:4] == ["cpu", "as", "Q8_0"]
    command(kernels=True, json=True)
    found = json.loads(capsys.readouterr().out)["devices"]["cpu"]
    assert found["formats"]["Q4_K"]["experts"] == {"backend": "cpu", "how": "as Q4_K"}


def test_kernels_without_native_ones(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cpu, "available", lambda: False)
    command(kernels=True, json=True)
    found = json.loads(capsys.readouterr().out)["devices"]["cpu"]
    assert found["backends"] == {"cpu": "not available here", "torch": "plain PyTorch"}
    assert found["formats"]["Q4_K"]["linear"] == {"backend": "torch", "how": ""}
    assert found["formats"]["Q4_K"]["gated_mlp"] is None


def test_kernels_are_no_models(folder: Path) -> None:
    with pytest.raises(UsageError, match="leave the model out"):
        command(str(folder), kernels=True)
