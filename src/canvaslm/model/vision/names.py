"""Names of the vision tower's weights: Hugging Face's and the mmproj GGUF's -> `VisionTower`'s own.

Source: transformers' `modeling_gemma4.py`; llama.cpp's converter for Gemma 4 (`gemma4v` projectors).
"""

from __future__ import annotations

import re

TOWER, EMBEDDER = "model.encoder.vision_tower.", "model.encoder.embed_vision."

_MMPROJ = {
    "v.patch_embd.weight": "patch_embedder.input_proj.weight",
    "v.position_embd.weight": "patch_embedder.position_embedding_table",
    "v.std_bias": "std_bias",
    "v.std_scale": "std_scale",
    "mm.input_projection.weight": "embedding_projection.weight",
}
_MMPROJ_LAYER = re.compile(r"v\.blk\.(\d{1,4})\.(\w+)\.(weight|(?:in|out)put_(?:min|max))")
_PRODUCTS = {
    "attn_q": "self_attn.q_proj", "attn_k": "self_attn.k_proj", "attn_v": "self_attn.v_proj",
    "attn_out": "self_attn.o_proj", "ffn_gate": "mlp.gate_proj", "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}  # fmt: skip
_NORMS = {
    "attn_q_norm": "self_attn.q_norm", "attn_k_norm": "self_attn.k_norm", "ln1": "input_layernorm",
    "attn_post_norm": "post_attention_layernorm", "ln2": "pre_feedforward_layernorm",
    "ffn_post_norm": "post_feedforward_layernorm",
}  # fmt: skip


def from_hf(name: str) -> str | None:
    """Our name of a tensor of a Hugging Face checkpoint; None if it is not of the tower."""
    if name.startswith(EMBEDDER):
        return name.removeprefix(EMBEDDER)
    if name.startswith(TOWER):
        return name.removeprefix(TOWER).removeprefix("encoder.")
    return None


def from_mmproj(name: str) -> str | None:
    """Our name of a tensor of an mmproj file; None for one that is not known."""
    match = _MMPROJ_LAYER.fullmatch(name)
    if match is None:
        return _MMPROJ.get(name)
    layer, part, which = match.groups()
    if part in _PRODUCTS:
        return f"layers.{layer}.{_PRODUCTS[part]}.{'linear.weight' if which == 'weight' else which}"
    if part in _NORMS and which == "weight":
        return f"layers.{layer}.{_NORMS[part]}.weight"
    return None


__all__ = ["EMBEDDER", "TOWER", "from_hf", "from_mmproj"]
