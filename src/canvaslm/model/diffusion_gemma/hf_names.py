"""The names of DiffusionGemma's weights: in Hugging Face checkpoints, and in our model.

Ours are the decoder's without the prefix `model.decoder.`; the encoder shares every weight with it but one
scalar per layer, which we call `layers.N.encoder_layer_scalar`. Torch-free.
"""

from __future__ import annotations

import re

from ..config import ModelConfig
from ..names import Part, Place
from ..vision.names import EMBEDDER, TOWER
from .config import DiffusionGemmaConfig

DECODER = "model.decoder."
ENCODER = "model.encoder.language_model."
VISION = (TOWER, EMBEDDER)
HEAD = "lm_head.weight"
EMBEDDING = "embed_tokens.weight"

_ENCODER_SCALAR = re.compile(r"layers\.(\d+)\.encoder_layer_scalar")
_SCALAR = re.compile(r"layers\.(\d+)\.layer_scalar")
_DECODER_ONLY = ("self_conditioning.",)

_LAYER_NORMS = (
    "input_layernorm",
    "post_attention_layernorm",
    "pre_feedforward_layernorm",
    "pre_feedforward_layernorm_2",
    "post_feedforward_layernorm",
    "post_feedforward_layernorm_1",
    "post_feedforward_layernorm_2",
)


def place_of(hf_name: str) -> Place:
    """The place of a tensor of a checkpoint. The leading `model.` may be missing (a base model was saved)."""
    if hf_name == HEAD:
        return Place("weight", HEAD)
    name = hf_name if hf_name.startswith("model.") else f"model.{hf_name}"
    if name.startswith(VISION):
        return Place("vision")
    if name.startswith(DECODER):
        ours = name.removeprefix(DECODER)
        # Our own word for the encoder's scalar (and the head) must not be a second way in.
        return Place("unknown") if _ENCODER_SCALAR.fullmatch(ours) or ours == HEAD else Place("weight", ours)
    if name.startswith(ENCODER):
        ours = name.removeprefix(ENCODER)
        if match := _SCALAR.fullmatch(ours):
            return Place("weight", f"layers.{match[1]}.encoder_layer_scalar")
        return Place("unknown") if ours.startswith((*_DECODER_ONLY, HEAD)) else Place("copy", ours)
    return Place("unknown")


def to_hf(name: str) -> str:
    """The checkpoint's name of one of our weights."""
    if name == HEAD:
        return HEAD
    if match := _ENCODER_SCALAR.fullmatch(name):
        return f"{ENCODER}layers.{match[1]}.layer_scalar"
    return DECODER + name


def copies_of(name: str) -> tuple[str, ...]:
    """The further names that transformers wants for a weight when `tie_word_embeddings` is false.

    That switch undoes every tie, the encoder's too, so such a checkpoint holds the encoder's weights again.
    """
    if (
        name == HEAD
        or name.startswith(_DECODER_ONLY)
        or _SCALAR.fullmatch(name)
        or _ENCODER_SCALAR.fullmatch(name)
    ):
        return ()
    return (ENCODER + name,)


def weight_shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Shape of every weight of a model by our name: what
    `DiffusionGemma(config).state_dict()` has, without torch."""
    assert isinstance(config, DiffusionGemmaConfig)
    c = config
    hidden = c.hidden_size
    shapes: dict[str, tuple[int, ...]] = {EMBEDDING: (c.vocab_size, hidden), "norm.weight": (hidden,)}
    shapes |= _prefixed("self_conditioning.", {"pre_norm.weight": (hidden,)} | _gated(c))
    for i in range(c.num_layers):
        shapes |= _prefixed(f"layers.{i}.", _layer_shapes(c, i))
    if not c.tie_word_embeddings:
        shapes[HEAD] = (c.vocab_size, hidden)
    return shapes


def _layer_shapes(c: DiffusionGemmaConfig, layer: int) -> dict[str, tuple[int, ...]]:
    hidden, dim = c.hidden_size, c.head_dim_of(layer)
    query, key = c.num_heads * dim, c.kv_heads_of(layer) * dim
    shapes: dict[str, tuple[int, ...]] = {f"{norm}.weight": (hidden,) for norm in _LAYER_NORMS}
    shapes |= {"layer_scalar": (1,), "encoder_layer_scalar": (1,)}
    projections = {"q_proj": (query, hidden), "k_proj": (key, hidden), "o_proj": (hidden, query)}
    if c.is_sliding(layer):
        projections["v_proj"] = (key, hidden)
    for name, shape in (projections | {"q_norm": (dim,), "k_norm": (dim,)}).items():
        shapes[f"self_attn.{name}.weight"] = shape
    shapes |= _prefixed("mlp.", _gated(c))
    shapes |= {
        "router.proj.weight": (c.num_experts, hidden),
        "router.scale": (hidden,),
        "router.per_expert_scale": (c.num_experts,),
        "experts.gate_up_proj": (c.num_experts, 2 * c.moe_intermediate_size, hidden),
        "experts.down_proj": (c.num_experts, hidden, c.moe_intermediate_size),
    }
    return shapes


def _gated(c: DiffusionGemmaConfig) -> dict[str, tuple[int, ...]]:
    up, down = (c.intermediate_size, c.hidden_size), (c.hidden_size, c.intermediate_size)
    return {"gate_proj.weight": up, "up_proj.weight": up, "down_proj.weight": down}


def _prefixed(prefix: str, shapes: dict[str, tuple[int, ...]]) -> dict[str, tuple[int, ...]]:
    return {prefix + name: shape for name, shape in shapes.items()}


def stand_in(name: str) -> str | None:
    """The weight that fills another where a checkpoint has none: the encoder's
    scalar is then the decoder's."""
    return name.replace("encoder_layer_scalar", "layer_scalar") if _ENCODER_SCALAR.fullmatch(name) else None


def part_of(name: str) -> Part:
    """The part of the model one of our weights belongs to, for summaries."""
    if name == HEAD:
        return "head"
    if name == EMBEDDING:
        return "embedding"
    for word, part in _PARTS:
        if word in name:
            return part
    return "norms"


_PARTS: tuple[tuple[str, Part], ...] = (
    ("self_conditioning.", "self-conditioning"),
    (".self_attn.", "attention"),
    (".mlp.", "dense MLP"),
    (".router.", "router"),
    (".experts.", "experts"),
)

STAND_IN_NOTE = "no separate layer scalars for the encoder in the checkpoint: the decoder's are used"

__all__ = [
    "DECODER",
    "EMBEDDING",
    "ENCODER",
    "HEAD",
    "STAND_IN_NOTE",
    "VISION",
    "copies_of",
    "part_of",
    "place_of",
    "stand_in",
    "to_hf",
    "weight_shapes",
]
