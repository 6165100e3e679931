"""`canvaslm adapter` as a user types it, on the demo model and tiny files."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from canvaslm.cli.main import main
from canvaslm.demo.config import MODEL_FOLDER
from canvaslm.model.adapters import Adapter
from canvaslm.weights.adapters.base import base_config
from canvaslm.weights.adapters.peft_write import write_peft
from canvaslm.weights.adapters.read import read_adapter
from canvaslm.weights.gguf.file import GGUFFile
from canvaslm.weights.loading.load import load_model
from canvaslm.weights.resolve import resolve
from canvaslm.weights.synth import plan_synth, write_synth
from tests.tiny import tiny_config
from tests.weights.adapters.made import adapter_of

from .conftest import Outcome, Program

CONFIG = tiny_config(vocab_size=640, hidden_size=256, eos_token_ids=(1, 106))


@pytest.fixture
def gguf(tmp_path: Path) -> Path:
    return write_synth(plan_synth(CONFIG, "Q8_0"), tmp_path / "model.gguf")


@pytest.fixture
def adapter(tmp_path: Path) -> Path:
    """Of equal sides, for the GGUF model."""
    return write_peft(adapter_of(CONFIG), tmp_path / "adapter", CONFIG, base="org/name")


def well(outcome: Outcome) -> str:
    assert outcome.code == 0, outcome.err
    return outcome.out


def refused(outcome: Outcome, code: int = 2) -> str:
    assert outcome.code == code, outcome.out
    assert outcome.err.startswith("canvaslm: error: ")
    return outcome.err


def test_show_tells_what_an_adapter_is(program: Program, gguf: Path, adapter: Path) -> None:
    said = well(program("adapter", "show", str(adapter), "-m", str(gguf)))
    assert "(PEFT folder)" in said
    assert "trained for   org/name" in said
    assert "sides         equal: it can be merged and converted" in said
    assert "self_attn.q_proj            rank 2    scale 0.5      in 2 layers" in said
    assert "self_attn.v_proj            rank 2    scale 0.5      in 1 layer\n" in said
    assert "self_conditioning.up_proj   rank 2    scale 0.5\n" in said + "\n"
    facts = program("adapter", "show", str(adapter), "-m", str(gguf), "--json").object
    assert facts["equal_sides"] is True
    assert facts["denoise"]["modules"]["layers.0.router.proj"] == {"shape": [4, 256], "rank": 2, "scale": 0.5}
    assert len(facts["denoise"]["digest"]) == 16


def test_show_of_one_side_for_the_demo_model(program: Program, tmp_path: Path) -> None:
    config = base_config(resolve("demo"))
    side = adapter_of(config, "q_proj").denoise  # type: ignore[arg-type]
    write_peft(Adapter({}, side), tmp_path / "one", config)
    said = well(program("adapter", "show", str(tmp_path / "one")))
    assert "encode: 0 matrices\n" in said
    assert "encoding and denoising differ: it is served beside its model, not merged" in said
    for action in ("merge", "convert"):
        said = refused(program("adapter", action, str(tmp_path / "one"), str(tmp_path / "out.gguf")))
        assert "out.gguf" in said or "encodes and denoises with different changes" in said
    said = refused(program("adapter", "merge", str(tmp_path / "one"), str(tmp_path / "out")))
    assert "encodes and denoises with different changes" in said


def test_convert_there_and_back(program: Program, gguf: Path, adapter: Path, tmp_path: Path) -> None:
    there, back = tmp_path / "a.gguf", tmp_path / "back"
    base = ["-m", str(gguf)]
    well(program("adapter", "convert", str(adapter), str(there), *base))
    with GGUFFile(there) as file:
        assert file.text("general.type") == "adapter"
    facts = program("adapter", "show", str(there), *base, "--json").object
    assert (facts["kind"], facts["trained_for"], facts["equal_sides"]) == ("gguf", None, True)
    assert well(program("adapter", "convert", str(there), str(back), *base)).startswith(f"{back}: ")
    one, other = (read_adapter(path, CONFIG).denoise for path in (adapter, back))
    assert one.keys() == other.keys()
    for name in one:
        assert torch.allclose(one[name].matrix(), other[name].matrix(), atol=1e-6), name
    assert json.loads((back / "adapter_config.json").read_text())["base_model_name_or_path"] == str(gguf)
    assert "--force" in refused(program("adapter", "convert", str(adapter), str(there), *base))
    assert "is the input itself" in refused(
        program("adapter", "convert", str(there), str(there), *base, "--force")
    )
    said = refused(program("adapter", "convert", str(adapter), str(adapter), *base, "--force"))
    assert "is the adapter itself" in said


def test_merge_into_a_gguf_file(program: Program, gguf: Path, adapter: Path, tmp_path: Path) -> None:
    out = tmp_path / "merged.gguf"
    said = well(program("adapter", "merge", str(adapter), str(out), "-m", str(gguf)))
    assert said.startswith(f"{out}: ")
    assert "packing again changed blk." in said or "packing again changed self_cond" in said
    report = program("adapter", "merge", str(adapter), str(out), "-m", str(gguf), "--force", "--json").object
    assert report["bytes"] == out.stat().st_size == gguf.stat().st_size
    assert report["relative_rmse"]["blk.0.attn_q.weight"] < 0.01


def test_merge_into_a_folder_that_runs(program: Program, tmp_path: Path) -> None:
    config = base_config(resolve("demo"))
    adapter = adapter_of(config, "mlp", "experts")  # type: ignore[arg-type]
    write_peft(adapter, tmp_path / "a", config)
    well(program("adapter", "merge", str(tmp_path / "a"), str(tmp_path / "out")))
    merged, base = (
        load_model(place, dtype=torch.float32).model.state_dict() for place in (tmp_path / "out", None)
    )
    name = "layers.0.experts.down_proj"
    expected = base[name] + adapter.denoise[name].matrix()
    assert (merged[name] - expected).abs().max() < 0.01 * expected.abs().max()
    assert {path.name for path in MODEL_FOLDER.iterdir() if path.suffix == ".json"} <= {
        path.name for path in (tmp_path / "out").iterdir()
    }
    assert main(["show", str(tmp_path / "out")]) == 0


def test_what_is_wrong_is_said_in_one_line(
    program: Program, gguf: Path, adapter: Path, tmp_path: Path
) -> None:
    base = ["-m", str(gguf)]
    assert "needs OUT" in refused(program("adapter", "merge", str(adapter), *base))
    assert "leave OUT out" in refused(program("adapter", "show", str(adapter), "x", *base))
    assert "is not one of" in refused(program("adapter", "pull", str(adapter), *base))
    assert "no such file or folder" in refused(program("adapter", "show", str(tmp_path / "no"), *base), 3)
    # The demo model's sizes are others.
    said = refused(program("adapter", "show", str(adapter)), 6)
    assert "adapter_model.safetensors: the adapter does not fit this model" in said
    assert said.endswith("own with -m, for instance -m org/name, which it says it was trained for\n")
    (adapter / "adapter_config.json").write_text('{"lora_alpha": 2, "use_dora": true}')
    said = refused(program("adapter", "show", str(adapter), *base), 6)
    assert "use_dora: DoRA is not supported" in said
    assert len(said.splitlines()) == 1


def test_an_adapter_in_a_models_place_is_told(
    program: Program, gguf: Path, adapter: Path, tmp_path: Path
) -> None:
    said = refused(program("show", str(adapter)))
    assert "adapter: holds an adapter, not a model" in said
    well(program("adapter", "convert", str(adapter), str(tmp_path / "a.gguf"), "-m", str(gguf)))
    said = refused(program("show", str(tmp_path / "a.gguf")), 6)
    assert "a.gguf: is an adapter, not a model" in said
    said = refused(program("adapter", "show", str(gguf), "-m", str(gguf)), 6)
    assert "it is a model, not an adapter" in said
