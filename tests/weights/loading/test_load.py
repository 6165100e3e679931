"""Whole checkpoints: transformers' weights arrive in our model, attacks and gaps do not."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from canvaslm.errors import BadConfig, BadModelFile, NotFound, OutOfMemory, UsageError
from canvaslm.model.diffusion_gemma.hf_names import place_of
from canvaslm.weights.loading.load import load_model
from canvaslm.weights.safetensors_ import load as load_module
from canvaslm.weights.safetensors_.file import load_file, save_file
from tests.tiny import hf_model, save_hf, tiny_config

Tensors = dict[str, torch.Tensor]


@pytest.fixture
def copy(tied: tuple[Path, Any], tmp_path: Path) -> Path:
    """A tied checkpoint to break."""
    return Path(shutil.copytree(tied[0], tmp_path / "model"))


def edit(folder: Path, change: Any) -> Path:
    """Rewrites the single file of a checkpoint after `change(tensors)`."""
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(folder / "model.safetensors", tensors)
    return folder


def edit_config(folder: Path, **changes: Any) -> Path:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **changes}))
    return folder


def assert_equal_weights(ours: torch.nn.Module, reference: Any) -> None:
    """Every weight of ours is the one transformers has under the matching name."""
    stored = reference.state_dict()
    wanted = {place_of(name).name: name for name in stored if place_of(name).role == "weight"}
    for name, tensor in ours.state_dict().items():
        assert torch.equal(tensor, stored[wanted[name]]), name


@pytest.mark.parametrize("layout", ["tied", "untied", "sharded"])
def test_layouts_of_transformers(layout: str, request: pytest.FixtureRequest) -> None:
    folder, reference = request.getfixturevalue(layout)
    assert len(list(folder.glob("*.safetensors"))) == (1 if layout != "sharded" else 8)
    loaded = load_model(folder)
    assert_equal_weights(loaded.model, reference)
    assert loaded.folder == folder
    assert not loaded.model.training
    assert [note.partition(" (")[0] for note in loaded.notes] == ["vision tower skipped"]
    # Encoder and decoder scalars differ in these checkpoints: both arrived.
    layer: Any = loaded.model.layers[0]
    assert not torch.equal(layer.layer_scalar, layer.encoder_layer_scalar)


def test_a_single_file(tied: tuple[Path, Any]) -> None:
    assert_equal_weights(load_model(tied[0] / "model.safetensors").model, tied[1])


def test_shards_without_their_index(sharded: tuple[Path, Any], tmp_path: Path) -> None:
    folder = Path(shutil.copytree(sharded[0], tmp_path / "m"))
    (folder / "model.safetensors.index.json").unlink()
    assert_equal_weights(load_model(folder).model, sharded[1])


def test_the_encoders_scalars_may_be_absent(copy: Path) -> None:
    edit(
        copy, lambda t: [t.pop(name) for name in list(t) if name.startswith("model.encoder.language_model.")]
    )
    loaded = load_model(copy)
    layers: Any = loaded.model.layers
    assert all(torch.equal(layer.layer_scalar, layer.encoder_layer_scalar) for layer in layers)
    assert "decoder's are used" in loaded.notes[-1]


def test_tied_copies_may_be_present_if_they_are_equal(copy: Path) -> None:
    def repeat(tensors: Tensors) -> None:
        for name in [n for n in tensors if n.startswith("model.decoder.") and not n.endswith("layer_scalar")]:
            if "self_conditioning" not in name:
                tensors[name.replace("model.decoder.", "model.encoder.language_model.")] = tensors[name]
        tensors["lm_head.weight"] = tensors["model.decoder.embed_tokens.weight"]

    before = load_model(copy).model.state_dict()
    after = load_model(edit(copy, repeat)).model.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_the_encoder_alone_may_hold_a_tied_weight(copy: Path) -> None:
    name, twin = "model.decoder.norm.weight", "model.encoder.language_model.norm.weight"
    model: Any = load_model(copy).model
    wanted = model.norm.weight
    edit(copy, lambda t: t.update({twin: t.pop(name)}))
    model = load_model(copy).model
    assert torch.equal(model.norm.weight, wanted)


def test_a_head_that_contradicts_the_tie(copy: Path) -> None:
    edit(copy, lambda t: t.update({"lm_head.weight": t["model.decoder.embed_tokens.weight"] + 1}))
    with pytest.raises(
        BadModelFile, match=r"lm_head.weight differs from .*embed_tokens.* tie_word_embeddings"
    ):
        load_model(copy)


def test_an_encoder_of_its_own_cannot_be_represented(tmp_path: Path) -> None:
    reference = hf_model(tiny_config(tie_word_embeddings=False))
    with torch.no_grad():  # the very last value of one weight: the whole of it is compared
        reference.model.encoder.language_model.layers[1].mlp.down_proj.weight[-1, -1] += 1
    save_hf(reference, tmp_path)
    with pytest.raises(BadModelFile, match=r"layers.1.mlp.down_proj.weight differs .* encoder of its own"):
        load_model(tmp_path)


def test_one_error_lists_everything(copy: Path) -> None:
    def spoil(tensors: Tensors) -> None:
        layer = "model.decoder.layers.0."
        del tensors[layer + "router.scale"]
        tensors["model.decoder.norm.weight"] = torch.ones(65)
        tensors[layer + "mlp.up_proj.weight"] = tensors[layer + "mlp.up_proj.weight"].to(torch.int8)
        tensors["model.decoder.layers.7.layer_scalar"] = torch.ones(1)
        tensors["model.decoder.layers.0.self_attn.q_proj.weight_scale"] = torch.ones(1)

    with pytest.raises(BadModelFile) as caught:
        load_model(edit(copy, spoil))
    lines = str(caught.value).splitlines()[1:]
    assert sorted(line.strip() for line in lines) == [
        "'model.decoder.layers.0.self_attn.q_proj.weight_scale': left over, the model has no such weight",
        "'model.decoder.layers.7.layer_scalar': left over, the model has no such weight",
        "model.decoder.layers.0.mlp.up_proj.weight: dtype I8, expected one of F64, F32, BF16, F16",
        "model.decoder.layers.0.router.scale: missing (shape [64])",
        "model.decoder.norm.weight: shape [65], config.json says [64]",
    ]


def test_a_long_list_is_cut(copy: Path) -> None:
    edit(copy, lambda t: [t.pop(name) for name in list(t) if name.startswith("model.decoder.layers.")])
    with pytest.raises(BadModelFile, match="and 23 more") as caught:
        load_model(copy)
    assert len(str(caught.value).splitlines()) == 22


def test_a_quantised_checkpoint_is_named_as_such(copy: Path) -> None:
    edit_config(copy, quantization_config={"quant_method": "gptq"})
    edit(copy, lambda t: t.update({"model.decoder.norm.qweight": torch.ones(2)}))
    with pytest.raises(BadModelFile, match=r"it is quantised \('gptq'\)"):
        load_model(copy)


def test_one_weight_in_two_shards(sharded: tuple[Path, Any], tmp_path: Path) -> None:
    folder = Path(shutil.copytree(sharded[0], tmp_path / "m"))
    shards = sorted(folder.glob("*.safetensors"))
    first, last = load_file(shards[0]), load_file(shards[-1])
    name = next(iter(first))
    save_file(shards[-1], {**last, name: first[name]})
    with pytest.raises(
        BadModelFile, match=f"{re.escape(name)}: in both {shards[0].name} and {shards[-1].name}"
    ):
        load_model(folder)


def test_an_index_that_lies(sharded: tuple[Path, Any], tmp_path: Path) -> None:
    folder = Path(shutil.copytree(sharded[0], tmp_path / "m"))
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    index["weight_map"]["model.decoder.phantom"] = next(iter(index["weight_map"].values()))
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(BadModelFile, match=r"'model.decoder.phantom': the index says"):
        load_model(folder)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite(copy: Path, value: float) -> None:
    name = "model.decoder.layers.1.experts.gate_up_proj"
    edit(copy, lambda t: t[name][3].__setitem__((2, 1), value))
    with pytest.raises(BadModelFile, match=f"tensor '{name}': element .* is {value}"):
        load_model(copy)
    assert load_model(copy, check_finite=False).model is not None


def test_nothing_in_a_checkpoint_runs(copy: Path, tmp_path: Path) -> None:
    trace = tmp_path / "trace"
    (copy / "modeling_evil.py").write_text(f"open({str(trace)!r}, 'w')")
    (copy / "pytorch_model.bin").write_bytes(b"\x80\x02cposix\nsystem\n(X\x05\x00\x00\x00touchtR.")
    edit_config(copy, auto_map={"AutoModel": "modeling_evil.Evil"}, trust_remote_code=True)
    with pytest.raises(BadConfig, match="trust_remote_code"):
        load_model(copy)
    config = json.loads((copy / "config.json").read_text())
    del config["trust_remote_code"]
    (copy / "config.json").write_text(json.dumps(config))
    load_model(copy)
    assert not trace.exists()
    assert "modeling_evil" not in sys.modules


@pytest.mark.parametrize(
    "change",
    [
        {"num_hidden_layers": 2**30},
        {"head_dim": 2**30},
        {"num_hidden_layers": 10**30},
        {"hidden_size": 2**31 - 2},
    ],
)
def test_sizes_that_would_fill_the_memory(copy: Path, change: dict[str, int]) -> None:
    text = json.loads((copy / "config.json").read_text())["text_config"]
    text = {name: value for name, value in text.items() if name not in ("layer_types", "per_layer_config")}
    edit_config(copy, text_config={**text, **change})
    with pytest.raises(BadModelFile):
        load_model(copy)


def test_without_a_config(copy: Path) -> None:
    (copy / "config.json").unlink()
    with pytest.raises(NotFound, match=r"no config.json"):
        load_model(copy)


@pytest.mark.parametrize("text", ["{", "[]", '{"model_type": "llama"}', "\xff", "[" * 100_000])
def test_a_config_that_is_none(copy: Path, text: str) -> None:
    (copy / "config.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(BadConfig, match=r"config.json"):
        load_model(copy)


def test_dtypes(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def dtype(**options: Any) -> torch.dtype:
        model: Any = load_model(copy, **options).model
        found: torch.dtype = model.embed_tokens.weight.dtype
        return found

    edit(copy, lambda t: t.update({name: tensor.bfloat16() for name, tensor in t.items()}))
    assert dtype() == torch.float32  # small, on a CPU
    assert dtype(dtype="bf16") == dtype(dtype=torch.bfloat16) == torch.bfloat16
    assert dtype(dtype="float16") == torch.float16
    monkeypatch.setattr(load_module, "SMALL_MODEL", 0)
    assert dtype() == torch.bfloat16  # the checkpoint's own
    for bad in ("int8", torch.int8, torch.float8_e4m3fn):
        with pytest.raises(UsageError, match="dtype"):
            dtype(dtype=bad)


def test_every_weight_has_the_wanted_dtype(tied: tuple[Path, Any]) -> None:
    state = load_model(tied[0], dtype="bfloat16").model.state_dict()
    assert {tensor.dtype for tensor in state.values()} == {torch.bfloat16}
    assert {tensor.device.type for tensor in state.values()} == {"cpu"}


def test_devices(copy: Path) -> None:
    with pytest.raises(UsageError, match="device 'gpu'"):
        load_model(copy, device="gpu")
    if not torch.cuda.is_available():
        with pytest.raises(UsageError, match="no CUDA GPU"):
            load_model(copy, device="cuda")


def test_too_little_memory_is_said_before_anything_is_read(
    copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(load_module, "available_memory", lambda device: 10_000_000)
    monkeypatch.setattr(load_module, "_read", lambda *_: pytest.fail("read"))
    with pytest.raises(OutOfMemory, match=r"need 17.3 MB in float32, but only 10.0 MB are free on cpu"):
        load_model(copy)


def test_progress_counts_the_bytes_read(sharded: tuple[Path, Any]) -> None:
    seen: list[tuple[int, int]] = []
    loaded = load_model(sharded[0], progress=lambda done, total: seen.append((done, total)))
    size = sum(tensor.nbytes for tensor in loaded.model.state_dict().values())
    assert seen[-1] == (size, size)
    assert seen == sorted(seen)


PEAK = """
import sys, torch
from pathlib import Path
from canvaslm.weights.loading.load import load_model

def status(key):
    return next(int(line.split()[1]) * 1024 for line in open("/proc/self/status") if line.startswith(key))

load_model(sys.argv[2])  # whatever the first load imports and caches is not the weights'
# A machine that takes idle pages away makes one reading too low before a load, or in it: several loads.
for _ in range(4):
    Path("/proc/self/clear_refs").write_text("5")  # resets the high-water mark
    before = status("VmRSS:")
    model = load_model(sys.argv[1], dtype=sys.argv[3]).model
    weights = sum(t.nbytes for t in model.state_dict().values())
    print(weights, status("VmHWM:") - before)
    del model
"""


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="needs Linux's /proc")
@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_peak_memory_is_the_weights_plus_one_slice(large: Path, tied: tuple[Path, Any], dtype: str) -> None:
    command = [sys.executable, "-c", PEAK, str(large), str(tied[0]), dtype]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    read = [tuple(map(int, line.split())) for line in done.stdout.splitlines()]
    weights, peaks = read[0][0], [peak for _, peak in read]
    assert weights > 130e6
    # One slice is 16 MiB; the rest is what the allocator and the check of a part of it take.
    assert min(peaks) < weights + 24 * 2**20
    assert max(peaks) > weights * 0.98


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """About 140 MB in bf16, more than half of it one tensor."""
    from canvaslm.model.diffusion_gemma import DiffusionGemma
    from canvaslm.weights.safetensors_.export import save_folder

    config = tiny_config(vocab_size=20_000, hidden_size=2048, moe_intermediate_size=512)
    model = DiffusionGemma(config, device="meta").bfloat16().to_empty(device="cpu")
    with torch.no_grad():
        for tensor in model.state_dict().values():
            tensor.fill_(0.01)
    return save_folder(model, config, tmp_path_factory.mktemp("large") / "m")
