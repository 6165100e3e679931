"""safetensors -> GGUF -> model, and back to a folder, with weights that transformers saved."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import gguf
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

from canvaslm.demo.build_tokenizer import build_tokenizer, tokenizer_config
from canvaslm.errors import BadModelFile, CanvasError, UsageError
from canvaslm.model.context import PlainContext
from canvaslm.model.diffusion_gemma.gguf_names import from_gguf, to_gguf
from canvaslm.model.diffusion_gemma.hf_names import weight_shapes
from canvaslm.model.protocol import Model
from canvaslm.weights.describe import describe
from canvaslm.weights.gguf.export import export_folder
from canvaslm.weights.gguf.fields import read_tokenizer
from canvaslm.weights.gguf.file import GGUFFile
from canvaslm.weights.gguf.quantize import write_gguf
from canvaslm.weights.gguf.source import GGUFSource, open_source
from canvaslm.weights.gguf.write import (
    GGUFWriter,
    PlannedTensor,
    bools,
    f32,
    string,
    u32,
)
from canvaslm.weights.loading.load import load_model
from canvaslm.weights.loading.loaded import Loaded
from canvaslm.weights.resolve import resolve
from canvaslm.weights.synth import plan_synth, write_synth
from tests.tiny import hf_model, save_hf, tiny_config

# All experts run for every token, so that a small error cannot choose another expert and become a large one.
SIZES = {
    "vocab_size": 1024,
    "hidden_size": 256,
    "intermediate_size": 256,
    "top_k_experts": 4,
    "eos_token_ids": (1, 6),
}
GENERATION = {
    "max_denoising_steps": 12,
    "t_min": 0.4,
    "t_max": 0.8,
    "stability_threshold": 2,
    "confidence_threshold": 0.005,
    "sampler_config": {"_cls_name": "EntropyBoundSamplerConfig", "entropy_bound": 0.1},
    "eos_token_id": [1, 6],
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint with tokenizer, template and sampling defaults, every number of it random."""
    path = tmp_path_factory.mktemp("hf") / "model"
    model = hf_model(tiny_config(**SIZES), seed=5)
    for i, layer in enumerate(model.model.encoder.language_model.layers):
        layer.layer_scalar.fill_(0.5 + i)
    save_hf(model, path)
    build_tokenizer().save(str(path / "tokenizer.json"))
    (path / "tokenizer_config.json").write_text(json.dumps(tokenizer_config()))
    (path / "generation_config.json").write_text(json.dumps(GENERATION))
    (path / "chat_template.jinja").write_text("{{ messages[0].content }}")
    return path


@pytest.fixture(scope="module")
def exact(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder as an F32 file."""
    out = tmp_path_factory.mktemp("gguf") / "f32.gguf"
    write_gguf(open_source(folder), out, "F32")
    return out


def weights(loaded: Loaded) -> dict[str, torch.Tensor]:
    return {name: tensor.float() for name, tensor in loaded.model.state_dict().items()}


def forward(model: Model) -> torch.Tensor:
    context, prompt = PlainContext(model.config), torch.arange(5)[None] + 20
    with torch.no_grad():
        model.encode(prompt, torch.arange(5)[None], context)
        canvas = torch.arange(8)[None] + 30
        soft = torch.randn(1, 8, model.config.hidden_size, generator=torch.Generator().manual_seed(0))
        return model.logits(model.denoise(canvas, torch.arange(5, 13)[None], context, soft))


def relative(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a - b).norm() / a.norm())


def test_f32_gives_the_same_model(folder: Path, exact: Path) -> None:
    ours, theirs = load_model(folder), load_model(exact)
    assert theirs.notes == []
    assert theirs.folder is None
    for name, tensor in weights(ours).items():
        assert torch.equal(tensor, weights(theirs)[name]), name
    assert torch.equal(forward(ours.model), forward(theirs.model))
    assert replace(ours.config, eos_token_ids=(1, 6), has_vision=False) == theirs.config
    assert theirs.generation == {**GENERATION, "bos_token_id": 2, "pad_token_id": 0}


def test_bf16_gives_the_rounded_weights(folder: Path, tmp_path: Path) -> None:
    write_gguf(open_source(folder), tmp_path / "m.gguf", "BF16")
    reference, loaded = weights(load_model(folder)), weights(load_model(tmp_path / "m.gguf"))
    for name, tensor in reference.items():
        kept = tensor.ndim < 2 or "router" in name
        assert torch.equal(tensor if kept else tensor.bfloat16().float(), loaded[name]), name


# Bounds are twice the relative error of the logits that this random model showed.
@pytest.mark.parametrize(
    ("kind", "bound"),
    [("F16", 0.003), ("Q8_0", 0.08), ("Q6_K", 0.28), ("Q5_K_M", 0.45), ("Q4_K_M", 0.55), ("Q4_0", 0.8)],
)
def test_quantised_types_stay_close(
    kind: str, bound: float, folder: Path, exact: Path, tmp_path: Path
) -> None:
    written = write_gguf(open_source(exact), tmp_path / "m.gguf", kind)
    loaded = load_model(tmp_path / "m.gguf", dtype="float32")
    reference = weights(load_model(folder))
    errors = {to_gguf(name): relative(tensor, weights(loaded)[name]) for name, tensor in reference.items()}
    for report in written.tensors:
        if report.name in errors:
            assert report.error == pytest.approx(errors[report.name], rel=1e-3, abs=1e-7), report.name
    logits = relative(forward(load_model(folder).model), forward(loaded.model))
    assert 0 < logits < bound


def test_the_gguf_package_reads_our_files(exact: Path) -> None:
    reader = gguf.GGUFReader(exact)
    assert reader.fields["general.architecture"].contents() == "diffusion-gemma"
    assert reader.fields["diffusion-gemma.attention.head_count_kv"].contents() == [2, 1]
    assert reader.fields["diffusion-gemma.attention.sliding_window_pattern"].contents() == [True, False]
    assert reader.fields["diffusion.eb_max_steps"].contents() == 12
    assert reader.fields["diffusion.canvas_length"].contents() == 8
    by_name = {tensor.name: tensor for tensor in reader.tensors}
    assert by_name["blk.0.ffn_gate_up_exps.weight"].shape.tolist() == [256, 64, 4]
    assert by_name["rope_freqs.weight"].data.tolist() == pytest.approx([1.0] * 4 + [1e30] * 12)
    with GGUFFile(exact) as file:
        for tensor in reader.tensors:
            assert torch.equal(
                file.tensor(tensor.name).dequantise().flatten(),
                torch.from_numpy(tensor.data.copy()).flatten(),
            )


def test_back_to_a_folder_that_transformers_reads(folder: Path, exact: Path, tmp_path: Path) -> None:
    out = export_folder(exact, tmp_path / "back", shard_bytes=2_000_000)
    assert len(list(out.glob("*.safetensors"))) > 1
    first, again = load_model(folder), load_model(out)
    assert weights(first).keys() == weights(again).keys()
    assert all(torch.equal(tensor, weights(again)[name]) for name, tensor in weights(first).items())
    assert json.loads((out / "generation_config.json").read_text()) == {
        **GENERATION,
        "bos_token_id": 2,
        "pad_token_id": 0,
    }
    assert (out / "chat_template.jinja").read_text() == "{{ messages[0].content }}"
    from transformers import DiffusionGemmaForBlockDiffusion

    family: Any = DiffusionGemmaForBlockDiffusion
    model, info = family.from_pretrained(out, output_loading_info=True)
    assert not info["unexpected_keys"]
    assert {name for name in info["missing_keys"] if "vision" not in name} == set()
    first_embedding: Any = first.model.embed_tokens
    assert torch.equal(model.model.decoder.embed_tokens.weight, first_embedding.weight)
    with pytest.raises(UsageError, match="is there already"):
        export_folder(exact, out)
    assert export_folder(exact, out, kind="BF16", force=True) == out
    assert load_model(out, dtype="bfloat16").model.embed_tokens.weight.dtype == torch.bfloat16
    assert len(list(out.glob("*.safetensors"))) == 1


def test_untied_checkpoints_keep_their_head(tmp_path: Path, folder: Path) -> None:
    path = tmp_path / "untied"
    save_hf(hf_model(tiny_config(tie_word_embeddings=False, **SIZES), seed=6), path)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(folder / name, path / name)
    write_gguf(open_source(path), tmp_path / "m.gguf", "F32")
    ours, theirs = load_model(path), load_model(tmp_path / "m.gguf")
    assert not theirs.config.tie_word_embeddings
    head = ours.model.head
    assert isinstance(head, torch.Tensor) and isinstance(theirs.model.head, torch.Tensor)
    assert torch.equal(head, theirs.model.head)
    again = load_model(export_folder(tmp_path / "m.gguf", tmp_path / "back"))
    assert isinstance(again.model.head, torch.Tensor)
    assert torch.equal(again.model.head, head)


def test_the_vocabulary_survives_both_ways(folder: Path, exact: Path, tmp_path: Path) -> None:
    before = Tokenizer.from_file(str(folder / "tokenizer.json"))
    export_folder(exact, tmp_path / "back")
    after = Tokenizer.from_file(str(tmp_path / "back" / "tokenizer.json"))
    for text in (
        "Hello, world!",
        "  two  spaces",
        "naïve Ωmega 漢字 🎉\n\t<|turn>user\n",
        "",
        "1234 = {a: b}",
    ):
        assert before.encode(text).ids == after.encode(text).ids
        assert after.decode(after.encode(text).ids) == before.decode(before.encode(text).ids)
    with GGUFFile(exact) as file:
        fields = read_tokenizer(file)
    assert fields.types[:5] == [3] * 5
    assert {fields.tokens[i] for i, kind in enumerate(fields.types) if kind == 4} >= {"<|channel>", '<|"|>'}
    assert sum(kind == 6 for kind in fields.types) == 256
    assert fields.chat_template == "{{ messages[0].content }}"


def test_describe_reads_no_weights(exact: Path) -> None:
    seen = describe(resolve(str(exact)))
    assert seen.kind == "gguf"
    assert set(seen.stored) == {"F32"}
    assert seen.parameters == sum(tensor.numel() for tensor in load_model(exact).model.state_dict().values())
    assert seen.generation["max_denoising_steps"] == 12
    assert seen.tokenizer is not None
    assert (seen.tokenizer.vocabulary, seen.tokenizer.template) == (1024, "tokenizer.chat_template")


# -- other makers' files -------------------------------------------------------------------------------------


def rewrite(
    source: Path,
    out: Path,
    *,
    rename: Mapping[str, str] | None = None,
    drop: tuple[str, ...] = (),
    change: Mapping[str, bytes] | None = None,
    replace_tensors: Mapping[str, dict[str, torch.Tensor]] | None = None,
) -> Path:
    """The file with tensors renamed, dropped or replaced and keys changed, all of it F32."""
    opened = GGUFSource(source)
    tensors: dict[str, torch.Tensor] = {}
    for name in opened.shapes:
        if name in drop:
            continue
        values = opened.file.tensor(name).dequantise()
        tensors.update((replace_tensors or {}).get(name, {(rename or {}).get(name, name): values}))
    metadata = {key: raw for key, raw in (opened.metadata | dict(change or {})).items() if key not in drop}
    plan = [PlannedTensor(name, tuple(values.shape), "F32") for name, values in tensors.items()]
    with GGUFWriter(out, metadata, plan) as writer:
        for values in tensors.values():
            writer.write(values.contiguous().view(torch.uint8).numpy().data.cast("B"))
    return out


def test_the_other_pull_requests_names_and_split_experts(exact: Path, tmp_path: Path) -> None:
    with GGUFFile(exact) as file:
        fused = file.tensor("blk.0.ffn_gate_up_exps.weight").dequantise().clone()
    gate, up = fused.chunk(2, dim=1)
    halves = {"blk.0.ffn_up_exps.weight": up, "blk.0.ffn_gate_exps.weight": gate}
    path = rewrite(
        exact,
        tmp_path / "m.gguf",
        rename={"self_cond_pre_norm.weight": "self_cond_norm.weight"},
        replace_tensors={"blk.0.ffn_gate_up_exps.weight": halves},
    )
    expected, loaded = weights(load_model(exact)), weights(load_model(path))
    assert all(torch.equal(tensor, loaded[name]) for name, tensor in expected.items())
    packed = write_gguf(open_source(path), tmp_path / "q8.gguf", "Q8_0")
    assert {t.format for t in packed.tensors if "exps.weight" in t.name} == {"Q8_0"}
    assert torch.equal(
        weights(load_model(export_folder(path, tmp_path / "back")))["norm.weight"], expected["norm.weight"]
    )


def test_without_encoder_scalars_the_decoders_are_used(exact: Path, tmp_path: Path) -> None:
    drop = tuple(f"blk.{i}.enc_layer_output_scale.weight" for i in range(2))
    loaded = load_model(rewrite(exact, tmp_path / "m.gguf", drop=drop))
    state = weights(loaded)
    assert torch.equal(state["layers.1.encoder_layer_scalar"], state["layers.1.layer_scalar"])
    assert loaded.notes == ["no separate layer scalars for the encoder in the file: the decoder's are used"]


A = "diffusion-gemma"
BROKEN: dict[str, tuple[dict[str, Any], str]] = {
    "architecture": ({"change": {"general.architecture": string("llama")}},
        "architecture 'llama' is not supported"),
    "vision tower": ({"change": {"general.architecture": string("clip")}}, "it is a vision tower"),
    "no architecture": ({"drop": ("general.architecture",)}, "'general.architecture' is missing"),
    "no canvas": ({"drop": ("diffusion.canvas_length",)}, "'diffusion.canvas_length' is missing"),
    "canvas 0": ({"change": {"diffusion.canvas_length": u32(0)}}, "contradict each other: canvas_length = 0"),
    "layers": ({"change": {f"{A}.block_count": u32(3)}},
        "head_count_kv' has 2 entries for 3 layers|pattern' has 2 entries"),
    "layer bomb": ({"change": {f"{A}.block_count": u32(2**31)}}, "out of range"),
    "pattern": ({"change": {f"{A}.attention.sliding_window_pattern": bools([False, True])}},
        "must end with|head_count_kv"),
    "shared kv": ({"change": {f"{A}.attention.shared_kv_layers": u32(2)}},
        "shared_kv_layers' = 2 is not supported"),
    "heads text": ({"change": {f"{A}.attention.head_count": string("4")}},
        "head_count' should be a whole number"),
    "value length": ({"change": {f"{A}.attention.value_length": u32(64)}},
        "differ; canvaslm needs them equal"),
    "eps": ({"change": {f"{A}.attention.layer_norm_rms_epsilon": f32(float("nan"))}},
        "should be a finite number"),
    "hidden bomb": ({"change": {f"{A}.embedding_length": u32(2**30)}}, "do not fit the metadata"),
    "missing tensor": ({"drop": ("blk.1.attn_k.weight",)},
        r"blk.1.attn_k.weight: missing \(shape \[32, 256\]\)"),
    "left over": ({"rename": {"blk.1.attn_k.weight": "blk.9.attn_k.weight"}},
        "'blk.9.attn_k.weight': left over"),
    "strange name": ({"rename": {"output_norm.weight": "x.__class__"}}, "'x.__class__': left over"),
    "shape": (
        {"replace_tensors": {"output_norm.weight": {"output_norm.weight": torch.ones(128)}}},
        r"output_norm.weight: shape \[128\], the metadata says \[256\]",
    ),
    "half an expert": (
        {"rename": {"blk.0.ffn_gate_up_exps.weight": "blk.0.ffn_gate_exps.weight"}},
        r"ffn_gate_exps.weight: shape|ffn_gate_up_exps.weight: missing",
    ),
    "both norms": (
        {"replace_tensors": {"output_norm.weight": {"output_norm.weight": torch.ones(256),
            "self_cond_norm.weight": torch.ones(256)}}},
        "a second tensor for the same weight",
    ),
    "rope factors": (
        {"replace_tensors": {"rope_freqs.weight": {"rope_freqs.weight": torch.full((16,), 2.0)}}},
        "not ones followed by 1e30",
    ),
    "NaN": (
        {"replace_tensors": {"output_norm.weight": {"output_norm.weight": torch.full((256,), float("nan"))}}},
        "output_norm.weight holds NaN",
    ),
    "eos beyond": ({"change": {"tokenizer.ggml.eos_token_id": u32(1024)}},
        "eos_token_id' = 1024 lies outside"),
    "steps text": ({"change": {"diffusion.eb_max_steps": string("48")}},
        "eb_max_steps' should be a whole number"),
}  # fmt: skip


@pytest.mark.parametrize("name", BROKEN)
def test_what_does_not_fit_is_named(name: str, exact: Path, tmp_path: Path) -> None:
    changes, message = BROKEN[name]
    path = rewrite(exact, tmp_path / "m.gguf", **changes)
    with pytest.raises(BadModelFile, match=message) as caught:
        load_model(path)
    assert str(path) in str(caught.value)


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """A whole model of 640 tokens in the fewest bytes."""
    config = tiny_config(vocab_size=640, eos_token_ids=(1, 106))
    return write_synth(plan_synth(config, "Q4_0"), tmp_path_factory.mktemp("s") / "m.gguf").read_bytes()


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_mutated_models_load_or_are_refused(data: st.DataObject, small: bytes, tmp_path: Path) -> None:
    """Bytes changed in the metadata, the vocabulary or the tensor table: loading ends
    well or in one clean error."""
    sizes, table = small.index(b"tokenizer.ggml.tokens"), small.index(b"rope_freqs.weight")
    regions = [(0, sizes), (sizes, table), (table, table + 2500)]
    raw = bytearray(small)
    for _ in range(data.draw(st.integers(1, 3))):
        start, stop = data.draw(st.sampled_from(regions))
        at = data.draw(st.integers(start, stop - 8))
        patch = st.one_of(
            st.binary(min_size=1, max_size=4), st.sampled_from([b"\0" * 8, b"\xff" * 8, b"\0\0\0\x80"])
        )
        change = data.draw(patch)
        raw[at : at + len(change)] = change
    path = tmp_path / "m.gguf"
    path.write_bytes(raw)
    message = ""
    try:
        load_model(path)
        with GGUFFile(path) as file:
            read_tokenizer(file)
        describe(resolve(str(path)))
    except CanvasError as error:
        message = str(error)
    assert message == "" or str(path) in message


def test_a_vocabulary_alone_is_no_model(exact: Path, tmp_path: Path) -> None:
    path = rewrite(exact, tmp_path / "m.gguf", drop=tuple(GGUFSource(exact).shapes))
    with pytest.raises(BadModelFile, match=r"tensor 'token_embd\.weight' is missing"):
        load_model(path)


def test_a_folder_of_parts_is_one_model(exact: Path, tmp_path: Path) -> None:
    """A split file is found by its folder, and loads like the whole."""
    whole = GGUFSource(exact)
    names = list(whole.shapes)
    for no, part in enumerate((names[:20], names[20:])):
        metadata = (whole.metadata if no == 0 else {}) | {"split.no": u32(no), "split.count": u32(2)}
        plan = [PlannedTensor(name, whole.shapes[name], "F32") for name in part]
        with GGUFWriter(tmp_path / f"m-0000{no + 1}-of-00002.gguf", metadata, plan) as writer:
            for name in part:
                writer.write(whole.file.tensor(name).raw.numpy().data)
    expected, loaded = weights(load_model(exact)), weights(load_model(tmp_path))
    assert all(torch.equal(tensor, loaded[name]) for name, tensor in expected.items())
    assert len(describe(resolve(str(tmp_path))).files) == 2


def test_names_map_both_ways() -> None:
    shapes = weight_shapes(tiny_config(tie_word_embeddings=False))
    assert {from_gguf(to_gguf(name)) for name in shapes} == {(name, None) for name in shapes}
    assert from_gguf("blk.01.attn_q.weight") is None
    assert from_gguf("blk.0.attn_q.bias") is None


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        ({"normalizer": None}, "normalizer None cannot be written"),
        ({"model": {"type": "Unigram"}}, "only byte-pair encoding"),
        ({"added_tokens": [{"id": 99_999, "content": "x"}]}, "has no place among 1024 tokens"),
    ],
)
def test_other_tokenizers_are_not_converted(
    edit: dict[str, Any], message: str, folder: Path, tmp_path: Path
) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    document = json.loads((copy / "tokenizer.json").read_text())
    (copy / "tokenizer.json").write_text(json.dumps({**document, **edit}))
    with pytest.raises(BadModelFile, match=message):
        open_source(copy)


def test_a_missing_tokenizer_is_said(folder: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    (copy / "tokenizer.json").unlink()
    with pytest.raises(CanvasError, match=r"no tokenizer\.json"):
        open_source(copy)
