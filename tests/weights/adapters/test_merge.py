"""Adapters merged into a model's files: the changed tensors are the sum, all else is what it was."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from canvaslm.errors import BadModelFile, UsageError
from canvaslm.model.adapters import Adapter, WeightDelta
from canvaslm.ops.formats.table import FORMATS
from canvaslm.weights.adapters.base import base_config, expert_scales
from canvaslm.weights.adapters.merge import change_rows, merge_adapter
from canvaslm.weights.adapters.modules import modules_of
from canvaslm.weights.adapters.sides import both_sides
from canvaslm.weights.gguf.file import GGUFFile
from canvaslm.weights.gguf.places import gguf_names
from canvaslm.weights.gguf.write import GGUFWriter, PlannedTensor
from canvaslm.weights.loading.load import load_model
from canvaslm.weights.resolve import resolve
from canvaslm.weights.safetensors_.file import load_file
from canvaslm.weights.safetensors_.header import read_header
from canvaslm.weights.synth import plan_synth, write_synth
from tests.tiny import hf_model, save_hf, tiny_config

from .made import CONFIG, MODULES, adapter_of, deltas

EVERYTHING = ("self_attn", "mlp", "router", "experts", "self_conditioning")
ADAPTER = both_sides(deltas(*EVERYTHING), MODULES)
WIDE = tiny_config(vocab_size=640, hidden_size=256, moe_intermediate_size=256, eos_token_ids=(1, 106))

HEADS: dict[str, Any] = {"tied": {}, "untied": {"tie_word_embeddings": False}}


def assert_summed(merged: Any, base: Any, adapter: Adapter, tolerance: float) -> None:
    """Two models' weights: what the adapter changes, and what it does not."""
    after, before = merged.state_dict(), base.state_dict()
    changes = {MODULES.weight(name): change.matrix() for name, change in adapter.denoise.items()}
    assert len(changes) > 20
    for name, values in before.items():
        expected = values + changes[name] if name in changes else values
        assert (after[name] - expected).abs().max() <= (tolerance if name in changes else 0), name


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("shard", [None, "40KB"])
def test_a_folder_is_the_sum(head: str, shard: str | None, tmp_path: Path) -> None:
    options = {"max_shard_size": shard} if shard else {}
    model = hf_model(tiny_config(**HEADS[head]), seed=1)
    folder = save_hf(model, tmp_path / "base", **options)
    (folder / "adapter_config.json").write_text("{}")
    (folder / "chat_template.jinja").write_text("hello")
    seen: list[tuple[str, int, int]] = []
    merge_adapter(ADAPTER, resolve(folder), tmp_path / "out", progress=lambda *told: seen.append(told))
    # The loader holds copies of weights to be equal, so an untied encoder was changed as well.
    merged, base = (load_model(path, dtype=torch.float32).model for path in (tmp_path / "out", folder))
    assert_summed(merged, base, ADAPTER, 1e-6)
    assert (tmp_path / "out" / "chat_template.jinja").read_text() == "hello"
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert names == {path.name for path in folder.iterdir()} - {"adapter_config.json"}
    assert seen[-1][1] == seen[-1][2] == sum(
        info.nbytes for path in resolve(folder).files for info in read_header(path).tensors.values()
    )  # fmt: skip
    assert len(seen) > 50


def test_bf16_is_rounded_once(tmp_path: Path) -> None:
    folder = save_hf(hf_model(CONFIG, seed=1).bfloat16(), tmp_path / "base")
    merge_adapter(ADAPTER, resolve(folder), tmp_path / "out")
    before, after = (load_file(path / "model.safetensors") for path in (folder, tmp_path / "out"))
    name = "layers.1.experts.down_proj"
    old, new = before[f"model.decoder.{name}"], after[f"model.decoder.{name}"]
    assert new.dtype == torch.bfloat16
    assert torch.equal(new, (old.float() + ADAPTER.denoise[name].matrix()).bfloat16())
    # Among them the vision tower, of which canvaslm reads nothing.
    vision = [name for name in before if "vision" in name]
    assert vision and all(torch.equal(before[name], after[name]) for name in vision)


def test_slices_end_anywhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tensors are read in pieces that begin and end within rows."""
    from canvaslm.weights.safetensors_ import file

    folder = save_hf(hf_model(CONFIG, seed=1), tmp_path / "base")
    base = load_model(folder, dtype=torch.float32).model
    monkeypatch.setattr(file, "SLICE_BYTES", 4 * 37)
    merge_adapter(ADAPTER, resolve(folder), tmp_path / "out")
    monkeypatch.undo()
    assert_summed(load_model(tmp_path / "out", dtype=torch.float32).model, base, ADAPTER, 1e-6)


def test_rows_of_a_change() -> None:
    for name in ("layers.0.mlp.up_proj", "layers.0.experts.gate_up_proj"):
        change = ADAPTER.denoise[name]
        whole = change.matrix().flatten(0, -2)
        for start, stop in ((0, len(whole)), (3, 5), (60, 70), (64, 96), (1, len(whole) - 1)):
            assert torch.allclose(change_rows(change, start, stop), whole[start:stop], atol=1e-6)


def wide_adapter() -> Adapter:
    """Of all but a layer's MLP."""
    return adapter_of(WIDE, "layers.1", "layers.0.self", "layers.0.router", "layers.0.exp", "self_cond")


@pytest.mark.parametrize("kind", ["F32", "BF16", "Q8_0", "Q4_K_M", "Q4_0"])
def test_a_gguf_file_keeps_every_tensors_format(kind: str, tmp_path: Path) -> None:
    path = write_synth(plan_synth(WIDE, kind), tmp_path / "base.gguf")
    adapter, modules = wide_adapter(), modules_of(WIDE)
    reports = merge_adapter(adapter, resolve(path), tmp_path / "out.gguf")
    changed = {
        gguf_names(WIDE).to_gguf(modules.weight(name)): change for name, change in adapter.denoise.items()
    }
    with GGUFFile(path) as before, GGUFFile(tmp_path / "out.gguf") as after:
        assert {n: i.format for n, i in before.tensors.items()} == {
            n: i.format for n, i in after.tensors.items()
        }
        assert list(before.metadata) and {k: before.raw_value(k) for k in before.metadata} == {
            k: after.raw_value(k) for k in after.metadata
        }
        for name in before.tensors:
            if name not in changed:
                assert before.raw_tensor(name) == after.raw_tensor(name), name
                continue
            expected = before.tensor(name).dequantise() + changed[name].matrix()
            error = (after.tensor(name).dequantise() - expected).square().mean() / expected.square().mean()
            assert error.sqrt() < (0.12 if FORMATS[before.info(name).format].block > 1 else 0.005), name
    assert {report.name for report in reports if report.error > 0} <= set(changed)
    assert len(changed) == 19


def test_gate_and_up_stored_apart(tmp_path: Path) -> None:
    whole = write_synth(plan_synth(WIDE, "F32"), tmp_path / "whole.gguf")
    halves = split_gate_up(whole, tmp_path / "halves.gguf")
    for path in (whole, halves):
        merge_adapter(wide_adapter(), resolve(path), path.with_suffix(".out.gguf"))
    one, other = (
        load_model(path.with_suffix(".out.gguf"), dtype=torch.float32).model for path in (whole, halves)
    )
    for (name, a), b in zip(one.state_dict().items(), other.state_dict().values(), strict=True):
        assert torch.allclose(a, b, atol=1e-6), name


def split_gate_up(source: Path, out: Path) -> Path:
    """The same file with the experts' gate and up projections as tensors of their own."""
    tensors: dict[str, torch.Tensor] = {}
    with GGUFFile(source) as file:
        for name in file.tensors:
            values = file.tensor(name).dequantise().clone()
            if name.endswith("ffn_gate_up_exps.weight"):
                layer = name.removesuffix("ffn_gate_up_exps.weight")
                for half, part in zip(("gate", "up"), values.chunk(2, dim=1), strict=True):
                    tensors[f"{layer}ffn_{half}_exps.weight"] = part.contiguous()
            else:
                tensors[name] = values
        metadata = {key: file.raw_value(key) for key in file.metadata}
    plan = [PlannedTensor(name, tuple(t.shape), "F32") for name, t in tensors.items()]
    with GGUFWriter(out, metadata, plan) as writer:
        for values in tensors.values():
            writer.write(values.numpy().data)
    return out


def test_what_the_base_says(tmp_path: Path) -> None:
    gguf = resolve(write_synth(plan_synth(WIDE, "Q8_0"), tmp_path / "base.gguf"))
    folder = resolve(save_hf(hf_model(CONFIG, seed=1), tmp_path / "base"))
    for checkpoint, config in ((gguf, WIDE), (folder, CONFIG)):
        assert base_config(checkpoint).hidden_size == config.hidden_size
        state = load_model(checkpoint, dtype=torch.float32).model.state_dict()
        scales = expert_scales(checkpoint, base_config(checkpoint))
        assert len(scales) == 2
        assert all(torch.equal(state[name], scale) for name, scale in scales.items())


def test_nothing_is_written_of_what_cannot_be(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = resolve(save_hf(hf_model(CONFIG, seed=1), tmp_path / "base"))
    gguf = resolve(write_synth(plan_synth(WIDE, "Q8_0"), tmp_path / "base.gguf"))
    out = tmp_path / "out"

    def refuses(says: str, adapter: Adapter, checkpoint: Any, path: Path, **options: Any) -> None:
        with pytest.raises(UsageError, match=says):
            merge_adapter(adapter, checkpoint, path, **options)

    apart = Adapter(deltas("q_proj"), deltas("q_proj", seed=1))
    refuses("encodes and denoises with different changes", apart, folder, out)
    refuses("does not fit this model", ADAPTER, gguf, tmp_path / "out.gguf")
    refuses("into a folder", ADAPTER, folder, tmp_path / "out.gguf")
    refuses("ending with .gguf", wide_adapter(), gguf, out)
    refuses("is the input itself", wide_adapter(), gguf, gguf.files[0], force=True)
    refuses("is the model itself", ADAPTER, folder, folder.folder, force=True)
    refuses("is there already", ADAPTER, folder, folder.folder)
    monkeypatch.setitem(FORMATS, "Q8_0", replace(FORMATS["Q8_0"], writable=False))
    refuses("has weights in Q8_0, which canvaslm reads", wide_adapter(), gguf, tmp_path / "out.gguf")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["base", "base.gguf"]


def test_a_sum_that_does_not_fit_its_type(tmp_path: Path) -> None:
    folder = resolve(save_hf(hf_model(CONFIG, seed=1).half(), tmp_path / "base"))
    huge = {name: WeightDelta(d.a, d.b, 1e6) for name, d in deltas("layers.1.mlp.up").items()}
    with pytest.raises(
        BadModelFile, match=r"layers\.1\.mlp\.up_proj\.weight: holds NaN .* too large for F16"
    ):
        merge_adapter(both_sides(huge, MODULES), folder, tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["base"]
    assert json.loads((tmp_path / "base" / "config.json").read_text())
