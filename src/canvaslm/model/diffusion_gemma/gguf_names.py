"""The names of weights in DiffusionGemma GGUF files, and which of our weights each fills. Torch-free.

Names: the converter and loader of llama.cpp's pull requests 24423 and 24427, which differ in one tensor
(`self_cond_pre_norm` and `self_cond_norm`); both are read, the first is written.
"""

from __future__ import annotations

import re

# Dividing factors of the full layers' rotary frequencies: a table, not a weight.
ROPE_FREQS = "rope_freqs.weight"

_WHOLE = {
    "embed_tokens.weight": "token_embd.weight",
    "lm_head.weight": "output.weight",
    "norm.weight": "output_norm.weight",
    "self_conditioning.pre_norm.weight": "self_cond_pre_norm.weight",
    "self_conditioning.gate_proj.weight": "self_cond_gate.weight",
    "self_conditioning.up_proj.weight": "self_cond_up.weight",
    "self_conditioning.down_proj.weight": "self_cond_down.weight",
}
# In the order llama.cpp's converter writes a layer.
_LAYER = {
    "input_layernorm.weight": "attn_norm.weight",
    "self_attn.q_proj.weight": "attn_q.weight",
    "self_attn.q_norm.weight": "attn_q_norm.weight",
    "self_attn.k_proj.weight": "attn_k.weight",
    "self_attn.k_norm.weight": "attn_k_norm.weight",
    "self_attn.v_proj.weight": "attn_v.weight",
    "self_attn.o_proj.weight": "attn_output.weight",
    "post_attention_layernorm.weight": "post_attention_norm.weight",
    "pre_feedforward_layernorm.weight": "ffn_norm.weight",
    "mlp.gate_proj.weight": "ffn_gate.weight",
    "mlp.up_proj.weight": "ffn_up.weight",
    "mlp.down_proj.weight": "ffn_down.weight",
    "post_feedforward_layernorm_1.weight": "post_ffw_norm_1.weight",
    "router.scale": "ffn_gate_inp.scale",
    "router.proj.weight": "ffn_gate_inp.weight",
    "pre_feedforward_layernorm_2.weight": "pre_ffw_norm_2.weight",
    "experts.gate_up_proj": "ffn_gate_up_exps.weight",
    "experts.down_proj": "ffn_down_exps.weight",
    "router.per_expert_scale": "ffn_down_exps.scale",
    "post_feedforward_layernorm_2.weight": "post_ffw_norm_2.weight",
    "post_feedforward_layernorm.weight": "post_ffw_norm.weight",
    "layer_scalar": "layer_output_scale.weight",
    "encoder_layer_scalar": "enc_layer_output_scale.weight",
}
_WHOLE_BACK = {gguf: ours for ours, gguf in _WHOLE.items()} | {
    "self_cond_norm.weight": "self_conditioning.pre_norm.weight"
}
_LAYER_BACK = {gguf: ours for ours, gguf in _LAYER.items()}
# Experts whose gate and up halves are stored apart: which half of `experts.gate_up_proj` each is.
_HALVES = {"ffn_gate_exps.weight": 0, "ffn_up_exps.weight": 1}

_OURS = re.compile(r"layers\.(0|[1-9]\d{0,4})\.(.+)")
_GGUF = re.compile(r"blk\.(0|[1-9]\d{0,4})\.(.+)")


def to_gguf(name: str) -> str:
    """The GGUF name of one of our weights. Raises KeyError for a name that is none of ours."""
    match = _OURS.fullmatch(name)
    return f"blk.{match[1]}.{_LAYER[match[2]]}" if match else _WHOLE[name]


def from_gguf(name: str) -> tuple[str, int | None] | None:
    """Our name of a GGUF tensor, and which half of it the tensor is (None: all);
    None for a name not known."""
    match = _GGUF.fullmatch(name)
    if match is None:
        whole = _WHOLE_BACK.get(name)
        return (whole, None) if whole else None
    number, rest = match.groups()
    if rest in _HALVES:
        return f"layers.{number}.experts.gate_up_proj", _HALVES[rest]
    inner = _LAYER_BACK.get(rest)
    return (f"layers.{number}.{inner}", None) if inner else None


def gguf_order(name: str) -> tuple[int, int]:
    """Sort key of one of our names: whole-model tensors first, then layers as the converter writes them."""
    match = _OURS.fullmatch(name)
    if match is None:
        return -1, list(_WHOLE).index(name)
    return int(match[1]), list(_LAYER).index(match[2])


__all__ = ["ROPE_FREQS", "from_gguf", "gguf_order", "to_gguf"]
