"""The sizes and switches of a DiffusionGemma model, read from and written to Hugging Face's `config.json`.

Reading is strict: a field that is unknown, missing or contradicts another raises `BadConfig` with the field's
name, since a wrong guess here gives a model that runs and writes nonsense.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar

from ...errors import BadConfig
from ...families import ModelFacts
from ..config import ConfigFields, check_tokens

# Sizes beyond these would cost memory before the weights' shapes can contradict them.
_MOST_LAYERS, _MOST_WIDE = 4096, 1 << 16

SLIDING = "sliding_attention"
FULL = "full_attention"

# Fields that change nothing in what we compute, whatever their value.
_IGNORED_TOP = {
    "architectures", "auto_map", "dtype", "torch_dtype", "transformers_version", "model_type",
    "initializer_range",
    "boi_token_id", "eoi_token_id", "image_token_id", "video_token_id", "audio_token_id", "boa_token_id",
    "eoa_token_id", "eoa_token_index", "vision_soft_tokens_per_image", "use_cache", "id2label", "label2id",
    "output_hidden_states", "output_attentions", "return_dict", "problem_type", "is_encoder_decoder",
    "chunk_size_feed_forward", "quantization_config", "bos_token_id", "eos_token_id", "pad_token_id",
}  # fmt: skip
_IGNORED_TEXT = _IGNORED_TOP | {"attention_dropout", "vocab_size_per_layer_input", "tie_word_embeddings"}
# Fields of related architectures, accepted only at the value that means "not used".
_NEUTRAL_TEXT: dict[str, tuple[Any, ...]] = {
    "attention_bias": (False,),
    "attention_k_eq_v": (True,),
    "hidden_activation": ("gelu_pytorch_tanh",),
    "use_bidirectional_attention": ("vision", None),
    "hidden_size_per_layer_input": (0, None),
    "num_kv_shared_layers": (0, None),
    "use_double_wide_mlp": (False, None),
    "enable_moe_block": (True,),
}
_USED_TEXT = {
    "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
    "num_key_value_heads", "head_dim", "global_head_dim", "num_global_key_value_heads", "per_layer_config",
    "layer_types", "sliding_window", "num_experts", "top_k_experts", "moe_intermediate_size", "rms_norm_eps",
    "final_logit_softcapping", "rope_parameters", "max_position_embeddings",
}  # fmt: skip
_USED_TOP = {"text_config", "vision_config", "canvas_length", "tie_word_embeddings", "audio_config"}


@dataclass(frozen=True)
class DiffusionGemmaConfig:
    """Everything that fixes the shapes and the arithmetic of one model.

    Sliding layers use `head_dim` and `num_kv_heads`, full layers `global_head_dim` and
    `num_global_kv_heads` and have no value projection. `eos_token_ids` end an answer; they come from the
    checkpoint, never from this code.
    """

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    num_global_kv_heads: int
    head_dim: int
    global_head_dim: int
    layer_types: tuple[str, ...]
    sliding_window: int
    num_experts: int
    top_k_experts: int
    moe_intermediate_size: int
    canvas_length: int
    rms_norm_eps: float = 1e-6
    softcap: float = 30.0
    rope_theta: float = 10_000.0
    global_rope_theta: float = 1_000_000.0
    partial_rotary_factor: float = 0.25
    max_position_embeddings: int = 131_072
    tie_word_embeddings: bool = True
    pad_token_id: int = 0
    bos_token_id: int | None = 2
    eos_token_ids: tuple[int, ...] = (1,)
    has_vision: bool = False

    family: ClassVar[str] = "diffusion_gemma"
    facts: ClassVar[ModelFacts] = ModelFacts()

    def __post_init__(self) -> None:
        _check_sizes(self)

    def is_sliding(self, layer: int) -> bool:
        return self.layer_types[layer] == SLIDING

    def head_dim_of(self, layer: int) -> int:
        return self.head_dim if self.is_sliding(layer) else self.global_head_dim

    def kv_heads_of(self, layer: int) -> int:
        return self.num_kv_heads if self.is_sliding(layer) else self.num_global_kv_heads

    def window_of(self, layer: int) -> int | None:
        """Tokens a sliding layer sees, itself included; None for a full layer."""
        return self.sliding_window if self.is_sliding(layer) else None

    def with_layers(self, count: int) -> DiffusionGemmaConfig:
        """The same model with only its first `count` layers, the last of them a full one."""
        return replace(self, num_layers=count, layer_types=(*self.layer_types[: count - 1], FULL))

    def active_experts(self) -> tuple[int, int]:
        """How many of how many experts take part in one token's pass."""
        return self.top_k_experts, self.num_experts

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> DiffusionGemmaConfig:
        """Reads the content of a `config.json`. Raises BadConfig naming the field at fault."""
        top = ConfigFields(data)
        if "text_config" not in top or not isinstance(data["text_config"], Mapping):
            raise BadConfig("config.json: text_config is missing")
        text = ConfigFields(data["text_config"], "text_config.")
        _refuse_unknown(top, text)
        return cls(**_read_text(text), **_read_top(top, text))

    def to_dict(self) -> dict[str, Any]:
        """The `config.json` that transformers reads back to the same model (without a vision tower)."""
        full_layer = {"head_dim": self.global_head_dim, "num_key_value_heads": self.num_global_kv_heads}
        text = {
            "model_type": "diffusion_gemma_text",
            "vocab_size": self.vocab_size,
            "hidden_size": self.hidden_size,
            "intermediate_size": self.intermediate_size,
            "num_hidden_layers": self.num_layers,
            "num_attention_heads": self.num_heads,
            "num_key_value_heads": self.num_kv_heads,
            "head_dim": self.head_dim,
            "per_layer_config": {str(i): full_layer for i, t in enumerate(self.layer_types) if t == FULL},
            "layer_types": list(self.layer_types),
            "sliding_window": self.sliding_window,
            "num_experts": self.num_experts,
            "top_k_experts": self.top_k_experts,
            "moe_intermediate_size": self.moe_intermediate_size,
            "rms_norm_eps": self.rms_norm_eps,
            "final_logit_softcapping": self.softcap,
            "hidden_activation": "gelu_pytorch_tanh",
            "max_position_embeddings": self.max_position_embeddings,
            "rope_parameters": {
                SLIDING: {"rope_type": "default", "rope_theta": self.rope_theta},
                FULL: {
                    "rope_type": "proportional",
                    "rope_theta": self.global_rope_theta,
                    "partial_rotary_factor": self.partial_rotary_factor,
                },
            },
            "use_bidirectional_attention": "vision",
            "attention_bias": False,
            "attention_dropout": 0.0,
            "pad_token_id": self.pad_token_id,
            "bos_token_id": self.bos_token_id,
            "eos_token_id": list(self.eos_token_ids),
            "tie_word_embeddings": self.tie_word_embeddings,
        }
        return {
            "architectures": ["DiffusionGemmaForBlockDiffusion"],
            "model_type": "diffusion_gemma",
            "canvas_length": self.canvas_length,
            "tie_word_embeddings": self.tie_word_embeddings,
            "text_config": text,
        }


def _refuse_unknown(top: ConfigFields, text: ConfigFields) -> None:
    """Names the first field whose effect on the computation is not known."""
    top.refuse_unknown(_IGNORED_TOP | _USED_TOP)
    text.refuse_unknown(_IGNORED_TEXT | _USED_TEXT | set(_NEUTRAL_TEXT))
    for name, allowed in _NEUTRAL_TEXT.items():
        if name in text and text.fields[name] not in allowed:
            raise BadConfig(
                f"config.json: text_config.{name} = {text.fields[name]!a:.120} is not supported (only "
                f"{allowed[0]!r})"
            )
    if top.fields.get("audio_config"):
        raise BadConfig("config.json: audio_config is set; audio input is not supported")


def _read_top(top: ConfigFields, text: ConfigFields) -> dict[str, Any]:
    def where(name: str) -> ConfigFields:
        """The text's own token ids come first."""
        return text if name in text else top

    return {
        "canvas_length": top.integer("canvas_length", 256),
        "tie_word_embeddings": top.flag("tie_word_embeddings", True),
        "pad_token_id": where("pad_token_id").token("pad_token_id", 0) or 0,
        "bos_token_id": where("bos_token_id").token("bos_token_id", 2),
        "eos_token_ids": where("eos_token_id").tokens("eos_token_id", (1,)),
        "has_vision": top.fields.get("vision_config") is not None,
    }


def _read_text(text: ConfigFields) -> dict[str, Any]:
    layers = text.integer("num_hidden_layers", most=_MOST_LAYERS)
    types = text.words("layer_types") or _default_layer_types(layers)
    if len(types) != layers:
        raise BadConfig(
            f"config.json: text_config.layer_types has {len(types)} entries, num_hidden_layers is {layers}"
        )
    kv_heads = text.integer("num_key_value_heads")
    full_dim, full_kv = _full_layer_sizes(text, types, kv_heads)
    experts = {name: text.integer(name) for name in ("num_experts", "top_k_experts", "moe_intermediate_size")}
    return {
        "vocab_size": text.integer("vocab_size"),
        "hidden_size": text.integer("hidden_size"),
        "intermediate_size": text.integer("intermediate_size"),
        "num_layers": layers,
        "num_heads": text.integer("num_attention_heads"),
        "num_kv_heads": kv_heads,
        "num_global_kv_heads": full_kv,
        "head_dim": text.integer("head_dim", 256, most=_MOST_WIDE),
        "global_head_dim": full_dim,
        "layer_types": tuple(types),
        "sliding_window": text.integer("sliding_window", 512),
        **experts,
        "rms_norm_eps": text.number("rms_norm_eps", 1e-6),
        "softcap": text.number("final_logit_softcapping", 30.0),
        "max_position_embeddings": text.integer("max_position_embeddings", 131_072),
        **_read_rope(text.inner("rope_parameters")),
    }


def _default_layer_types(layers: int) -> list[str]:
    """Five sliding layers to one full one; the last is always full (transformers' default)."""
    types = [FULL if (i + 1) % 6 == 0 else SLIDING for i in range(layers)]
    return [*types[:-1], FULL]


def _full_layer_sizes(text: ConfigFields, types: list[str], kv_heads: int) -> tuple[int, int]:
    """(head_dim, kv heads) of the full layers: from per_layer_config (transformers 5.23)
    or the older two fields."""
    per_layer = text.inner("per_layer_config")
    if per_layer is None:
        return (
            text.integer("global_head_dim", 512, most=_MOST_WIDE),
            text.integer("num_global_key_value_heads", kv_heads),
        )
    # JSON's keys are texts; transformers' own dictionaries have numbers.
    per_layer = ConfigFields({str(key): value for key, value in per_layer.fields.items()}, per_layer.path)
    head_dim = text.integer("head_dim", 256, most=_MOST_WIDE)
    seen: set[tuple[int, int]] = set()
    for i, kind in enumerate(types):
        entry = per_layer.inner(str(i))
        if entry is not None and (
            set(entry.fields) - {"head_dim", "num_key_value_heads"} or (kind == SLIDING and entry.fields)
        ):
            raise BadConfig(
                f"config.json: text_config.per_layer_config.{i} has unsupported overrides "
                f"{entry.fields!a:.120}"
            )
        if kind == FULL:
            entry = entry or ConfigFields({})
            width = entry.integer("head_dim", head_dim, most=_MOST_WIDE)
            seen.add((width, entry.integer("num_key_value_heads", kv_heads)))
    if len(seen) > 1:
        raise BadConfig(
            f"config.json: text_config.per_layer_config gives full layers different sizes: {seen}"
        )
    return next(iter(seen), (text.integer("global_head_dim", 512, most=_MOST_WIDE), kv_heads))


def _read_rope(rope: ConfigFields | None) -> dict[str, Any]:
    if rope is None:
        return {}
    kinds = [(kind, rope.inner(kind) or ConfigFields({}, f"{rope.path}{kind}.")) for kind in (SLIDING, FULL)]
    known = {"rope_type", "rope_theta", "partial_rotary_factor"}
    for kind, fields in kinds:
        stray = sorted(map(str, set(fields.fields) - known))
        if stray:
            raise BadConfig(f"config.json: text_config.rope_parameters.{kind}.{stray[0]} is not supported")
    (_, sliding), (_, full) = kinds
    whole = sliding.number("partial_rotary_factor", 1.0) == 1.0
    if sliding.word("rope_type", "default") != "default" or not whole:
        raise BadConfig(
            f"config.json: text_config.rope_parameters.{SLIDING}: "
            "only rope_type 'default' over the whole head"
        )
    if full.word("rope_type", "proportional") != "proportional":
        raise BadConfig(
            f"config.json: text_config.rope_parameters.{FULL}.rope_type: only 'proportional' is supported"
        )
    return {
        "rope_theta": sliding.number("rope_theta", 10_000.0),
        "global_rope_theta": full.number("rope_theta", 1_000_000.0),
        "partial_rotary_factor": full.number("partial_rotary_factor", 1.0 if full.fields else 0.25),
    }


def _check_sizes(c: DiffusionGemmaConfig) -> None:
    """Refuses sizes that cannot work together."""
    positive = ("vocab_size", "hidden_size", "intermediate_size", "num_layers", "num_heads", "num_kv_heads",
                "num_global_kv_heads", "head_dim", "global_head_dim", "sliding_window", "num_experts",
                "top_k_experts", "moe_intermediate_size", "canvas_length",
                "max_position_embeddings")  # fmt: skip
    for name in positive:
        if not 0 < getattr(c, name) < 2**31:
            raise BadConfig(f"config.json: {name} = {getattr(c, name)} is out of range (1 .. 2^31)")
    for kind in c.layer_types:
        if kind not in (SLIDING, FULL):
            raise BadConfig(f"config.json: layer_types holds {kind!r}; known are {SLIDING!r} and {FULL!r}")
    if c.layer_types[-1] != FULL:
        raise BadConfig("config.json: layer_types must end with 'full_attention'")
    for name in ("num_kv_heads", "num_global_kv_heads"):
        if c.num_heads % getattr(c, name):
            raise BadConfig(
                f"config.json: {name} = {getattr(c, name)} does not divide the {c.num_heads} heads"
            )
    for name in ("head_dim", "global_head_dim"):
        if getattr(c, name) % 2:
            raise BadConfig(f"config.json: {name} = {getattr(c, name)} is odd; rotary embedding needs pairs")
    if c.sliding_window < 2:
        # transformers keeps `-(window - 1):` of the cache, which at 1 is everything: no
        # defined meaning to follow.
        raise BadConfig("config.json: sliding_window = 1 leaves a canvas no context; the smallest is 2")
    if c.top_k_experts > c.num_experts:
        raise BadConfig(
            f"config.json: top_k_experts = {c.top_k_experts} exceeds num_experts = {c.num_experts}"
        )
    if not 0 < c.partial_rotary_factor <= 1:
        raise BadConfig(f"config.json: partial_rotary_factor = {c.partial_rotary_factor} is not in (0, 1]")
    if c.softcap <= 0 or c.rms_norm_eps <= 0:
        raise BadConfig("config.json: final_logit_softcapping and rms_norm_eps must be positive")
    check_tokens(c.vocab_size, (c.pad_token_id, c.bos_token_id, *c.eos_token_ids))


__all__ = ["FULL", "SLIDING", "DiffusionGemmaConfig"]
