"""A model's sizes in a GGUF file's metadata: out and in again unchanged, and what is wrong is named."""

from __future__ import annotations

import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from canvaslm.errors import BadConfig, BadModelFile
from canvaslm.model.diffusion_gemma import DiffusionGemmaConfig, gguf_fields
from canvaslm.model.diffusion_gemma.gguf_names import ROPE_FREQS
from canvaslm.model.names import Stored
from canvaslm.ops.rotary import rotary_frequencies
from canvaslm.weights.gguf.file import GGUFFile
from tests.tiny import tiny_config
from tests.weights.gguf_files import ARRAY, BOOL, F32, I32, STRING, U32, Raw, tensor, value

A = "diffusion-gemma"
S, F = "sliding_attention", "full_attention"
KINDS: dict[str, int] = {"string": STRING, "u32": U32, "f32": F32, "flag": BOOL}
IDS = {"padding": 0, "bos": 2}


def stored_bytes(stored: Stored) -> bytes:
    kind, content = stored
    if kind in ("bools", "i32s"):
        return value(ARRAY, (BOOL if kind == "bools" else I32, content))
    return value(KINDS[kind], content)


def write(
    folder: Path,
    config: DiffusionGemmaConfig,
    changes: Mapping[str, bytes | None] | None = None,
    *,
    name: str = A,
    factors: list[float] | None = None,
) -> Path:
    """A GGUF file of a model's sizes: its keys with `changes` (None: the key is left out), an embedding and,
    with `factors`, the table of frequencies. No weight is read, so none is there."""
    keys = {key: stored_bytes(stored) for key, stored in gguf_fields.config_metadata(config).items()}
    for key, content in (changes or {}).items():
        keys.pop(key, None)
        if content is not None:
            keys[key] = content
    renamed = [(key.replace(A, name), content) for key, content in keys.items()]
    parts = {"token_embd.weight": [0.0] * config.vocab_size}
    if factors is not None:
        parts[ROPE_FREQS] = factors
    if not config.tie_word_embeddings:
        parts["output.weight"] = [0.0]
    tensors, data = [], b""
    for name_, values in parts.items():
        shape = (1, len(values)) if name_ == "token_embd.weight" else (len(values),)
        tensors.append(tensor(name_, shape, 0, len(data)))
        data += struct.pack(f"<{len(values)}f", *values)
        data += bytes(-len(data) % 32)
    file = Raw([("general.architecture", value(STRING, name)), *renamed], tensors, data)
    return file.write(folder / "sizes.gguf")


def read(path: Path, config: DiffusionGemmaConfig) -> DiffusionGemmaConfig:
    ids = {"padding": config.pad_token_id}
    if config.bos_token_id is not None:
        ids["bos"] = config.bos_token_id
    with GGUFFile(path) as file:
        found = gguf_fields.read_config(file, ids, config.eos_token_ids)
    assert isinstance(found, DiffusionGemmaConfig)
    return found


def turning_of(config: DiffusionGemmaConfig) -> int:
    return int(config.partial_rotary_factor * (config.global_head_dim // 2))


@st.composite
def configs(draw: st.DrawFn) -> DiffusionGemmaConfig:
    """Any sizes that fit together; decimals as people write them."""
    layers = draw(st.integers(1, 8))
    kinds = [*draw(st.lists(st.sampled_from([S, F]), min_size=layers - 1, max_size=layers - 1)), F]
    groups, kv_heads = draw(st.integers(1, 4)), draw(st.integers(1, 4))
    experts, pairs = draw(st.integers(1, 300)), draw(st.integers(1, 300))
    sizes = st.integers(1, 100_000)
    decimals = st.integers(1, 999_999).map(lambda n: n / 1000)
    return DiffusionGemmaConfig(
        vocab_size=draw(st.integers(4, 200)),
        hidden_size=draw(sizes),
        intermediate_size=draw(sizes),
        num_layers=layers,
        num_heads=groups * kv_heads,
        # With no sliding layer GGUF has no place for their number: it is the full layers'.
        num_kv_heads=kv_heads if S in kinds else groups,
        num_global_kv_heads=groups,
        head_dim=2 * draw(st.integers(1, 300)),
        global_head_dim=2 * pairs,
        layer_types=tuple(kinds),
        sliding_window=draw(st.integers(2, 5000)),
        num_experts=experts,
        top_k_experts=draw(st.integers(1, experts)),
        moe_intermediate_size=draw(sizes),
        canvas_length=draw(st.integers(1, 5000)),
        rms_norm_eps=draw(st.sampled_from([1e-6, 1e-5, 0.1, 3e-7])),
        softcap=draw(decimals),
        rope_theta=draw(decimals),
        global_rope_theta=draw(decimals),
        partial_rotary_factor=min(1.0, (draw(st.integers(1, pairs)) + 0.5) / pairs),
        max_position_embeddings=draw(sizes),
        tie_word_embeddings=draw(st.booleans()),
        pad_token_id=draw(st.integers(0, 3)),
        bos_token_id=draw(st.none() | st.integers(0, 3)),
        eos_token_ids=tuple(draw(st.lists(st.integers(0, 3), max_size=3))),
    )


@settings(max_examples=150, deadline=None)
@given(configs())
def test_sizes_go_out_and_come_in_unchanged(
    tmp_path_factory: pytest.TempPathFactory, config: DiffusionGemmaConfig
) -> None:
    (factors,) = gguf_fields.tables(config).values()
    path = write(tmp_path_factory.mktemp("sizes"), config, factors=factors)
    again = read(path, config)
    # How many pairs turn is what counts, and what the table holds: the share is cut to whole pairs.
    assert turning_of(again) == turning_of(config)
    changes = {"partial_rotary_factor": config.partial_rotary_factor}
    assert DiffusionGemmaConfig(**{**again.__dict__, **changes}) == config


@pytest.mark.parametrize("pairs", [1, 2, 16, 49, 98, 103, 107, 128, 256])
def test_every_share_of_turning_pairs_survives(pairs: int, tmp_path: Path) -> None:
    """The shares of 49 pairs do not multiply back to whole numbers in floating point (1/49 * 49 < 1)."""
    config = tiny_config(global_head_dim=2 * pairs, num_global_kv_heads=1)
    for turning in {1, 2, 3, pairs // 3, pairs // 2, pairs - 1, pairs} & set(range(1, pairs + 1)):
        factors = [1.0] * turning + [1e30] * (pairs - turning)
        found = read(write(tmp_path, config, factors=factors), config)
        frequencies = rotary_frequencies(found.global_head_dim, 1e6, found.partial_rotary_factor)
        assert int((frequencies > 0).sum()) == turning
        assert gguf_fields.tables(found) == {ROPE_FREQS: factors}


def test_without_a_table_a_quarter_turns(tmp_path: Path) -> None:
    assert read(write(tmp_path, tiny_config(partial_rotary_factor=1.0)), tiny_config()) == tiny_config()


def test_infinities_of_any_size_mean_no_turning(tmp_path: Path) -> None:
    factors = [1.0, 1.0, 1e20, 3e38, float("inf"), *[1e30] * 11]
    assert (
        read(write(tmp_path, tiny_config(), factors=factors), tiny_config()).partial_rotary_factor == 2 / 16
    )


def test_the_other_spelling_of_the_architecture_is_read(tmp_path: Path) -> None:
    path = write(tmp_path, tiny_config(), name="diffusion_gemma")
    assert read(path, tiny_config()) == tiny_config()
    assert gguf_fields.ARCHITECTURES == (A, "diffusion_gemma")


def test_numbers_for_all_layers_may_stand_alone(tmp_path: Path) -> None:
    config = tiny_config(num_kv_heads=2, num_global_kv_heads=2)
    path = write(tmp_path, config, {f"{A}.attention.head_count_kv": value(U32, 2)})
    assert read(path, config) == config


def test_what_may_be_left_out(tmp_path: Path) -> None:
    """Values' width and the number of turning components follow the keys' width; others have defaults."""
    optional = [
        "attention.value_length", "attention.value_length_swa", "rope.dimension_count",
        "rope.dimension_count_swa", "attention.causal", "attention.shared_kv_layers",
        "embedding_length_per_layer_input", "attention.layer_norm_rms_epsilon", "final_logit_softcapping",
        "rope.freq_base", "rope.freq_base_swa",
    ]  # fmt: skip
    path = write(tmp_path, tiny_config(), {f"{A}.{key}": None for key in optional})
    assert read(path, tiny_config()) == tiny_config()


REQUIRED = [
    "block_count", "context_length", "embedding_length", "feed_forward_length", "expert_count",
    "expert_used_count", "expert_feed_forward_length", "attention.head_count", "attention.head_count_kv",
    "attention.key_length", "attention.key_length_swa", "attention.sliding_window",
    "attention.sliding_window_pattern",
]  # fmt: skip


@pytest.mark.parametrize("key", [*(f"{A}.{key}" for key in REQUIRED), "diffusion.canvas_length"])
def test_a_missing_key_is_named(key: str, tmp_path: Path) -> None:
    with pytest.raises(BadModelFile, match=f"sizes.gguf.*{key}' is missing"):
        read(write(tmp_path, tiny_config(), {key: None}), tiny_config())


@pytest.mark.parametrize("key", [*(f"{A}.{key}" for key in REQUIRED[:-1]), "diffusion.canvas_length"])
def test_a_text_where_a_number_belongs_is_named(key: str, tmp_path: Path) -> None:
    with pytest.raises(BadModelFile, match=f"{key}' should be a whole number, found 'many'"):
        read(write(tmp_path, tiny_config(), {key: value(STRING, "many")}), tiny_config())


@pytest.mark.parametrize(
    ("key", "stored", "message"),
    [
        ("attention.shared_kv_layers", value(U32, 2), "shared_kv_layers' = 2 is not supported (only 0)"),
        ("attention.causal", value(BOOL, True), "causal' = True is not supported (only False)"),
        ("attention.causal", value(STRING, "é"), "causal' = '\\xe9' is not supported (only False)"),
        ("embedding_length_per_layer_input", value(U32, 256), "per_layer_input' = 256 is not supported"),
        ("block_count", value(U32, 0), "block_count' = 0 is out of range (1 .. 4096)"),
        ("block_count", value(U32, 4097), "block_count' = 4097 is out of range (1 .. 4096)"),
        ("block_count", value(I32, -1), "block_count' = -1 is out of range (1 .. 4096)"),
        (
            "attention.sliding_window_pattern",
            value(ARRAY, (BOOL, [True, True, False])),
            "sliding_window_pattern' has 3 entries for 2 layers",
        ),
        ("attention.value_length", value(U32, 16), "key_length' and 'diffusion-gemma.attention.value_length"),
        ("rope.dimension_count_swa", value(U32, 8), "rope.dimension_count_swa' must equal"),
        (
            "attention.head_count_kv",
            value(ARRAY, (F32, [2.0, 1.0])),
            "differs among layers of one kind: [2.0",
        ),
        ("rope.freq_base", value(F32, float("inf")), "rope.freq_base' should be a finite number"),
    ],
)
def test_what_is_not_supported_is_named(key: str, stored: bytes, message: str, tmp_path: Path) -> None:
    with pytest.raises(BadModelFile) as caught:
        read(write(tmp_path, tiny_config(), {f"{A}.{key}": stored}), tiny_config())
    assert message in str(caught.value)
    assert "sizes.gguf" in str(caught.value)


def test_layers_of_one_kind_share_a_number_of_heads(tmp_path: Path) -> None:
    config = tiny_config(num_layers=3, layer_types=(S, S, F))
    heads = value(ARRAY, (I32, [2, 4, 1]))
    with pytest.raises(BadModelFile, match=r"head_count_kv differs among layers of one kind: \[2, 4\]"):
        read(write(tmp_path, config, {f"{A}.attention.head_count_kv": heads}), config)


@pytest.mark.parametrize(
    ("factors", "message"),
    [
        ([1.0] * 8, "should be 16 F32 values"),
        ([1e30] * 16, "not ones followed by 1e30"),
        ([1e30] * 15 + [1.0], "not ones followed by 1e30"),
        ([1.0] * 8 + [8.0] * 8, "not ones followed by 1e30"),
        ([1.0] * 8 + [float("nan")] * 8, "not ones followed by 1e30"),
        ([1.0] * 4 + [1e30] * 4 + [1.0] * 8, "not ones followed by 1e30"),
    ],
)
def test_other_scalings_of_the_rotary_embedding_are_refused(
    factors: list[float], message: str, tmp_path: Path
) -> None:
    with pytest.raises(BadModelFile, match=f"{ROPE_FREQS}.*{message}"):
        read(write(tmp_path, tiny_config(), factors=factors), tiny_config())


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({f"{A}.attention.head_count": value(U32, 3)}, "num_kv_heads"),
        ({f"{A}.expert_used_count": value(U32, 9)}, "top_k_experts"),
        ({f"{A}.embedding_length": value(U32, 0)}, "hidden_size"),
        ({f"{A}.attention.sliding_window": value(U32, 1)}, "sliding_window"),
        ({f"{A}.attention.sliding_window_pattern": value(ARRAY, (BOOL, [False, True]))}, "full_attention"),
        ({f"{A}.final_logit_softcapping": value(F32, 0.0)}, "final_logit_softcapping"),
    ],
)
def test_sizes_that_contradict_each_other(changes: dict[str, bytes], field: str, tmp_path: Path) -> None:
    with pytest.raises(BadConfig, match=field):
        read(write(tmp_path, tiny_config(), changes), tiny_config())


def test_a_files_ids_are_the_models(tmp_path: Path) -> None:
    with GGUFFile(write(tmp_path, tiny_config())) as file:
        found: Any = gguf_fields.read_config(file, IDS, (1, 7))
        bare: Any = gguf_fields.read_config(file, {}, ())
    assert (found.pad_token_id, found.bos_token_id, found.eos_token_ids) == (0, 2, (1, 7))
    assert (bare.pad_token_id, bare.bos_token_id, bare.eos_token_ids) == (0, None, ())
