"""`convert`, `quantize`, `synth` as a user types them, on tiny files."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from canvaslm.cli import convert, quantize, synth
from canvaslm.errors import UsageError
from canvaslm.weights.gguf.file import GGUFFile
from canvaslm.weights.synth import plan_synth, write_synth
from tests.tiny import tiny_config

APP = typer.Typer(pretty_exceptions_enable=False)
for module in (convert, quantize, synth):
    APP.command(module.__name__.rsplit(".", 1)[1])(module.command)


def run(*arguments: object, fails: type[Exception] | None = None) -> str:
    result = CliRunner().invoke(APP, [str(a) for a in arguments])
    if fails is not None:
        assert isinstance(result.exception, fails), result.exception
        return str(result.exception)
    assert result.exit_code == 0, result.exception
    return result.stdout


@pytest.fixture
def source(tmp_path: Path) -> Path:
    config = tiny_config(vocab_size=640, hidden_size=256, eos_token_ids=(1, 106))
    return write_synth(plan_synth(config, "BF16"), tmp_path / "source.gguf")


def test_quantize_reports_every_tensor(source: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.gguf"
    report = json.loads(run("quantize", source, out, "q4_k_m", "--json"))
    with GGUFFile(out) as file:
        assert {t["name"]: t["format"] for t in report["tensors"]} == {
            n: i.format for n, i in file.tensors.items()
        }
    errors = {t["format"]: t["relative_rmse"] for t in report["tensors"]}
    assert errors["F32"] == 0 < errors["Q6_K"] < errors["Q4_K"] < 0.1
    assert report["bytes"] == out.stat().st_size
    table = run("quantize", source, out, "Q4_K_M", "--force")
    assert "blk.1.attn_q.weight" in table
    assert "bits a weight" in table


def test_quantize_says_what_is_wrong(source: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.gguf"
    assert "type 'Q4' is not written" in run("quantize", source, out, "Q4", fails=UsageError)
    assert "is the input itself" in run("quantize", source, source, "Q8_0", "--force", fails=UsageError)
    run("quantize", source, out, "Q8_0")
    assert "--force" in run("quantize", source, out, "Q8_0", fails=UsageError)
    again = json.loads(run("quantize", out, tmp_path / "again.gguf", "Q4_0", "--json"))
    assert "quantised (Q8_0) already" in again["notes"][0]


def test_convert_goes_both_ways(source: Path, tmp_path: Path) -> None:
    folder, back = tmp_path / "folder", tmp_path / "back.gguf"
    run("convert", source, folder)
    assert (folder / "model.safetensors").exists()
    report = json.loads(run("convert", folder, back, "--json"))
    assert report["type"] == "BF16"
    with GGUFFile(source) as first, GGUFFile(back) as second:
        assert first.tensors.keys() == second.tensors.keys()
        for name in set(first.tensors) - {"rope_freqs.weight"}:
            a, b = first.tensor(name).dequantise(), second.tensor(name).dequantise()
            # The folder is bfloat16 throughout: fp32 vectors were rounded on the way.
            assert (a.bfloat16() == b.bfloat16()).all(), name
        assert first.raw_value("tokenizer.ggml.tokens") == second.raw_value("tokenizer.ggml.tokens")
        assert first.raw_value("tokenizer.ggml.merges") == second.raw_value("tokenizer.ggml.merges")
    assert "is safetensors already" in run("convert", folder, tmp_path / "other", fails=UsageError)


def test_synth_says_the_size_without_writing(tmp_path: Path) -> None:
    out = tmp_path / "m.gguf"
    assert "692 tensors, 16.8 GB" in run("synth", out, "--shape", "26b", "--dry-run")
    assert not out.exists()
