"""Adapters through PEFT's files: what PEFT writes we read, what we write PEFT reads, both compute alike."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from canvaslm.model.adapters import Adapter, WeightDelta
from canvaslm.model.diffusion_gemma import DiffusionGemma
from canvaslm.weights.adapters.peft import CONFIG as CONFIG_FILE
from canvaslm.weights.adapters.peft import TENSORS, read_peft
from canvaslm.weights.adapters.peft_write import write_peft
from canvaslm.weights.loading.load import load_model
from canvaslm.weights.safetensors_.file import load_file, save_file
from tests.tiny import hf_model, save_hf

from .made import CONFIG, deltas, logits, same

peft = pytest.importorskip("peft")

BOTH_TREES = r"model\.(encoder\.language_model|decoder)\.layers\.\d+"
TRL = BOTH_TREES + r"\.(self_attn\.[qkvo]_proj|mlp\.(gate|up|down)_proj)"
EXPERTS = ["experts.gate_up_proj", "experts.down_proj"]

# One line a world: what PEFT is asked to adapt.
WORLDS: dict[str, dict[str, Any]] = {
    "attention and MLP": {"target_modules": TRL},
    "all": {
        "target_modules": TRL + rf"|{BOTH_TREES}\.router\.proj|model\.decoder\.self_conditioning\.\w+_proj",
        "target_parameters": EXPERTS,
    },
    "one tree": {"target_modules": r"model\.decoder\.layers\.\d+\.self_attn\.[qkvo]_proj"},
    "experts alone": {"target_modules": [], "target_parameters": EXPERTS},
    "experts, the other order": {"target_modules": [], "target_parameters": EXPERTS[::-1]},
    "gate_up alone": {"target_modules": [], "target_parameters": EXPERTS[:1]},
    "down alone": {"target_modules": [], "target_parameters": EXPERTS[1:]},
    "down of one tree, gate_up of both": {
        "target_modules": [],
        "target_parameters": ["experts.gate_up_proj", "model.decoder.layers.1.experts.down_proj"],
    },
    "rsLoRA": {"target_modules": TRL, "target_parameters": EXPERTS, "use_rslora": True},
    "patterns": {
        "target_modules": TRL,
        "target_parameters": EXPERTS,
        "rank_pattern": {"q_proj": 5, r"layers\.1\.mlp\.up_proj": 3, r"experts\.down_proj": 1},
        "alpha_pattern": {"k_proj": 7, r"decoder\.layers\.0\..*gate_up_proj": 24, "o_proj": 0.5},
    },
}  # fmt: skip


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, DiffusionGemma]:
    """transformers' model as a folder, and ours of the same weights."""
    folder = save_hf(hf_model(CONFIG, seed=4, scale=0.3), tmp_path_factory.mktemp("base"))
    model = load_model(folder, dtype=torch.float32).model
    assert isinstance(model, DiffusionGemma)
    return folder, model


def their_model(base: tuple[Path, DiffusionGemma]) -> Any:
    from transformers import DiffusionGemmaForBlockDiffusion

    return DiffusionGemmaForBlockDiffusion.from_pretrained(base[0], dtype=torch.float32).eval()


def quietly(make: Callable[[], Any]) -> Any:
    """PEFT warns of tied weights and of models whose configuration it cannot find; of missing keys too."""
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        made = make()
    assert not [w for w in said if "missing" in str(w.message) or "unexpected" in str(w.message)]
    return made


def trained(model: Any) -> Any:
    """With random tensors of a weight's size in the place of zeros, so that the trees differ."""
    torch.manual_seed(5)
    with torch.no_grad():
        for name, tensor in model.named_parameters():
            if "lora_" in name:
                tensor.normal_(std=0.5 * tensor.shape[-1] ** -0.5)
    return model.eval()


def written_by_peft(base: tuple[Path, DiffusionGemma], folder: Path, **options: Any) -> Any:
    settings = peft.LoraConfig(**{"r": 2, "lora_alpha": 6, "lora_dropout": 0.0, **options})
    model = quietly(lambda: trained(peft.get_peft_model(their_model(base), settings)))
    quietly(lambda: model.save_pretrained(folder))
    return model


def assert_equal_logits(theirs: Any, ours: DiffusionGemma, adapter: Adapter) -> None:
    torch.manual_seed(6)
    prompt, canvas = torch.randint(0, 64, (2, 11)), torch.randint(0, 64, (2, 8))
    with torch.no_grad():
        first = theirs(input_ids=prompt, decoder_input_ids=canvas)
        behind = {"self_conditioning_logits": first.logits, "past_key_values": first.past_key_values}
        second = theirs(decoder_input_ids=canvas, **behind)
    for soft, expected in ((False, first.logits), (True, second.logits)):
        found = logits(ours, adapter, prompt, canvas, soft)
        assert (found - expected).abs().max() < 1e-5 * expected.abs().max()
        # And the adapter is felt.
        assert (logits(ours, Adapter(), prompt, canvas, soft) - expected).abs().max() > 1e-2


@pytest.mark.parametrize("world", WORLDS)
def test_what_peft_writes_is_read(world: str, base: tuple[Path, DiffusionGemma], tmp_path: Path) -> None:
    theirs = written_by_peft(base, tmp_path, **WORLDS[world])
    assert_equal_logits(theirs, base[1], read_peft(tmp_path, CONFIG))


@pytest.mark.parametrize("world", WORLDS)
def test_and_written_again_peft_reads_it(
    world: str, base: tuple[Path, DiffusionGemma], tmp_path: Path
) -> None:
    written_by_peft(base, tmp_path / "theirs", **WORLDS[world])
    adapter = read_peft(tmp_path / "theirs", CONFIG)
    write_peft(adapter, tmp_path / "ours", CONFIG, base="org/name")
    theirs = quietly(lambda: peft.PeftModel.from_pretrained(their_model(base), tmp_path / "ours"))
    assert_equal_logits(theirs, base[1], adapter)
    again = read_peft(tmp_path / "ours", CONFIG)
    assert same(again.encode, adapter.encode, 1e-6)
    assert same(again.denoise, adapter.denoise, 1e-6)
    # Every module that PEFT made has its tensors: none was left at zero.
    assert all(bool(t.any()) for name, t in theirs.named_parameters() if "lora_" in name)


def test_one_stack_is_written_to_both_trees(base: tuple[Path, DiffusionGemma], tmp_path: Path) -> None:
    side = deltas("self_attn", "mlp", "router", "experts", "self_conditioning")
    adapter = Adapter(side, side)
    write_peft(adapter, tmp_path / "out", CONFIG)
    theirs = quietly(lambda: peft.PeftModel.from_pretrained(their_model(base), tmp_path / "out"))
    assert_equal_logits(theirs, base[1], adapter)
    again = read_peft(tmp_path / "out", CONFIG)
    assert again.parameter_count == adapter.parameter_count  # held once
    assert all(again.encode[name] is again.denoise[name] for name in again.encode)


def test_the_configuration_that_is_written(tmp_path: Path) -> None:
    side = deltas("self_attn", "experts")
    write_peft(Adapter(side, side), tmp_path / "out", CONFIG, base="org/name")
    settings = json.loads((tmp_path / "out" / CONFIG_FILE).read_text())
    assert settings["base_model_name_or_path"] == "org/name"
    assert settings["target_modules"] == (
        r"(model\.decoder|model\.encoder\.language_model)\.layers\.(0)\.(self_attn\.v_proj)|"
        r"(model\.decoder|model\.encoder\.language_model)\.layers\.(0|1)\."
        r"(self_attn\.k_proj|self_attn\.o_proj|self_attn\.q_proj)"
    )
    assert len(settings["target_parameters"]) == 8
    assert (settings["r"], settings["lora_alpha"], settings["rank_pattern"]) == (2, 3, {})
    tensors = load_file(tmp_path / "out" / TENSORS)
    name = "base_model.model.model.decoder.layers.0.experts.base_layer.lora_A.weight"
    assert list(tensors[name].shape) == [8, 64]


def renamed(folder: Path, change: Callable[[str], str | None]) -> None:
    """The file with its keys changed; None leaves a tensor out."""
    tensors = load_file(folder / TENSORS)
    kept = {new: t for name, t in tensors.items() if (new := change(name)) is not None}
    save_file(folder / TENSORS, kept, {"format": "pt"})


def test_keys_without_a_tree_stand_for_both(tmp_path: Path) -> None:
    adapter = Adapter({}, deltas("self_attn", "mlp", "experts", "self_conditioning"))
    folder = write_peft(adapter, tmp_path / "out", CONFIG)
    renamed(folder, lambda name: name.replace("model.decoder.", "model."))
    again = read_peft(folder, CONFIG)
    assert same(again.denoise, adapter.denoise)
    layers = {name: delta for name, delta in adapter.denoise.items() if name.startswith("layers")}
    assert same(again.encode, layers)


def old_form(folder: Path, version: str | None) -> None:
    """The experts as PEFT up to 0.18 wrote them: in and out change places, and the change is transposed."""
    tensors, count = load_file(folder / TENSORS), CONFIG.num_experts
    for name in [name for name in tensors if ".experts." in name and "lora_A" in name]:
        other = name.replace("lora_A", "lora_B")
        a, b = tensors[name], tensors[other]
        rank = len(a) // count
        # Of each expert, lora_A becomes B transposed, and lora_B A transposed.
        each_b = b.view(len(b), rank, count)
        tensors[name] = torch.cat([each_b[:, :, e].T for e in range(count)])
        each_a = a.view(count, rank, -1)
        tensors[other] = torch.stack([each_a[e].T for e in range(count)], dim=2).flatten(1)
    save_file(folder / TENSORS, tensors, {"format": "pt"})
    settings = json.loads((folder / CONFIG_FILE).read_text())
    settings.pop("peft_version")
    if version is not None:
        settings["peft_version"] = version
    (folder / CONFIG_FILE).write_text(json.dumps(settings))


@pytest.mark.parametrize("words", [("experts",), ("experts.down",)])
def test_the_older_layout_of_experts_is_told_by_shape(words: tuple[str, ...], tmp_path: Path) -> None:
    adapter = Adapter(deltas(*words, seed=1), deltas(*words, seed=2))
    folder = write_peft(adapter, tmp_path / "out", CONFIG)
    old_form(folder, None)
    a = load_file(folder / TENSORS)["base_model.model.model.decoder.layers.0.experts.lora_A.weight"]
    assert list(a.shape) == [8, 64]  # down_proj's output
    again = read_peft(folder, CONFIG)
    assert same(again.encode, adapter.encode, 1e-6)
    assert same(again.denoise, adapter.denoise, 1e-6)


def test_square_experts_need_the_version(tmp_path: Path) -> None:
    """The tiny model's gate_up is 64 x 64, and so is its change transposed."""
    adapter = Adapter({}, deltas("experts.gate_up"))
    folder = write_peft(adapter, tmp_path / "out", CONFIG)
    assert same(read_peft(folder, CONFIG).denoise, adapter.denoise)
    old_form(folder, "0.18.1")
    assert same(read_peft(folder, CONFIG).denoise, adapter.denoise, 1e-6)
    old_form(folder, None)
    with pytest.raises(Exception, match=r"adapter_config\.json, as peft_version"):
        read_peft(folder, CONFIG)


def test_scales_that_are_no_whole_alpha_come_back(tmp_path: Path) -> None:
    changes = deltas("q_proj", "mlp").items()
    side = {
        name: WeightDelta(change.a, change.b, scale)
        for (name, change), scale in zip(changes, [0.1, 1 / 3, 2.0, 7.7] * 2, strict=True)
    }
    write_peft(Adapter(side, {}), tmp_path / "out", CONFIG)
    again = read_peft(tmp_path / "out", CONFIG)
    assert {name: pytest.approx(delta.scale) for name, delta in again.encode.items()} == {
        name: delta.scale for name, delta in side.items()
    }
    assert again.denoise == {}
