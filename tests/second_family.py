"""A second family of models, all of it here: nothing in `src` knows it.

Mask noise, accepted places stay, no self-conditioning, blocks that see themselves when committed, an untied
head without a soft-cap, logits of place i computed at place i - 1, another tokenizer and other markers than
Gemma's.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from canvaslm.families import ChatMarkers, ModelFacts
from canvaslm.model import Context, Model, ModelConfig, registry
from canvaslm.model.config import ConfigFields, check_tokens
from canvaslm.model.context import attend_context
from canvaslm.model.names import Place, WeightNames
from canvaslm.model.protocol import RouterLog
from canvaslm.ops.linear import Linear
from canvaslm.ops.norm import RMSNorm
from canvaslm.ops.rotary import rotary_frequencies, rotary_table, rotate
from canvaslm.weights.safetensors_.export import save_folder

SPECIALS = ("<pad>", "<end>", "<hole>", "[ASK]", "[SAY]", "[OVER]")
PAD, END, HOLE, ASK, SAY, OVER = range(len(SPECIALS))
VOCAB = len(SPECIALS) + 256
FACTS = ModelFacts(
    mask_token_id=HOLE,
    keeps_accepted=True,
    self_conditioning=False,
    commit_attention="block",
    logit_shift=1,
)


@dataclass(frozen=True)
class HoleConfig:
    """Sizes; every layer is a full one. A config.json holds just these fields."""

    vocab_size: int = VOCAB
    hidden_size: int = 32
    num_layers: int = 2
    num_heads: int = 2
    num_kv_heads: int = 1
    head_dim: int = 16
    canvas_length: int = 16
    max_position_embeddings: int = 512
    pad_token_id: int = PAD
    bos_token_id: int | None = None
    eos_token_ids: tuple[int, ...] = (END, OVER)

    family: ClassVar[str] = "holes"
    facts: ClassVar[ModelFacts] = FACTS
    softcap: ClassVar[float] = 0.0
    sliding_window: ClassVar[int] = 1
    tie_word_embeddings: ClassVar[bool] = False

    def is_sliding(self, layer: int) -> bool:
        return False

    def head_dim_of(self, layer: int) -> int:
        return self.head_dim

    def kv_heads_of(self, layer: int) -> int:
        return self.num_kv_heads

    def window_of(self, layer: int) -> int | None:
        return None

    def active_experts(self) -> tuple[int, int]:
        return 1, 1

    def with_layers(self, count: int) -> HoleConfig:
        return replace(self, num_layers=count)

    def to_dict(self) -> dict[str, Any]:
        return {"model_type": self.family, **asdict(self)}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> HoleConfig:
        fields = ConfigFields(data)
        fields.refuse_unknown({*asdict(cls()), "model_type", "dtype"})
        whole = ("vocab_size", "hidden_size", "num_layers", "num_heads", "num_kv_heads", "head_dim",
                 "canvas_length", "max_position_embeddings")  # fmt: skip
        ends = fields.tokens("eos_token_ids", ())
        check_tokens(fields.integer("vocab_size"), ends)
        return cls(**{name: fields.integer(name) for name in whole}, eos_token_ids=ends)


class HoleLayer(nn.Module):
    """Attention, then a gated MLP with SiLU."""

    def __init__(self, config: HoleConfig, layer: int, **factory: Any) -> None:
        super().__init__()
        self.layer, self.width, hidden = layer, config.head_dim, config.hidden_size
        queries, keys = config.num_heads * self.width, config.num_kv_heads * self.width
        self.first_norm, self.second_norm = RMSNorm(hidden, 1e-6, **factory), RMSNorm(hidden, 1e-6, **factory)
        self.q, self.k, self.v = (Linear(hidden, n, **factory) for n in (queries, keys, keys))
        self.o = Linear(queries, hidden, **factory)
        self.gate, self.up = Linear(hidden, 2 * hidden, **factory), Linear(hidden, 2 * hidden, **factory)
        self.down = Linear(2 * hidden, hidden, **factory)

    def project(self, x: Tensor, rope: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        normed = self.first_norm(x)
        q, k, v = (
            p(normed).unflatten(-1, (-1, self.width)).transpose(1, 2) for p in (self.q, self.k, self.v)
        )
        return rotate(q, rope) * self.width**-0.5, rotate(k, rope), v

    def finish(self, x: Tensor, seen: Tensor) -> Tensor:
        x = x + self.o(seen)
        normed = self.second_norm(x)
        return x + self.down(F.silu(self.gate(normed)) * self.up(normed))


class HoleModel(Model):
    """The smallest transformer that has all these facts."""

    def __init__(self, config: HoleConfig, device: Any = None, dtype: Any = None) -> None:
        super().__init__()
        factory = {"device": device, "dtype": dtype}
        self.config, self.self_conditioning = config, None
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size, **factory)
        self.layers = nn.ModuleList(HoleLayer(config, i, **factory) for i in range(config.num_layers))
        self.norm = RMSNorm(config.hidden_size, 1e-6, **factory)
        self.lm_head = Linear(config.hidden_size, config.vocab_size, **factory)
        self.frequencies = rotary_frequencies(config.head_dim, 10_000.0)

    def forward(
        self,
        tokens: Tensor,
        positions: Tensor,
        context: Context,
        encoded: int,
        soft: Tensor | None = None,
        *,
        states: bool = False,
        router_log: RouterLog | None = None,
    ) -> Tensor:
        assert soft is None
        x, rope = self.embed_tokens(tokens), rotary_table(positions, self.frequencies, self.dtype)
        for layer in self.layers:
            assert isinstance(layer, HoleLayer)
            x = layer.finish(
                x, attend_context(context, layer.layer, *layer.project(x, rope), positions, encoded)
            )
        return self.norm(x if states else x[:, encoded:])


def shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    assert isinstance(config, HoleConfig)
    return {n: tuple(t.shape) for n, t in HoleModel(config, device="meta").state_dict().items()}


NAMES = WeightNames(
    weight_shapes=shapes,
    place_of=lambda name: (
        Place("weight", name.removeprefix("holes.")) if name.startswith("holes.") else Place("unknown")
    ),
    to_hf=lambda name: f"holes.{name}",
    part_of=lambda name: "norms" if "norm" in name else "attention",
    embedding="embed_tokens.weight",
    head="lm_head.weight",
)


def build(config: ModelConfig, device: Any, dtype: Any) -> HoleModel:
    assert isinstance(config, HoleConfig)
    return HoleModel(config, device, dtype)


FAMILY = registry.Family(
    name="holes",
    model_types=("holes",),
    read_config=HoleConfig.from_dict,
    build=build,
    names=NAMES,
    markers=ChatMarkers(turn_end="[OVER]", ends=("[OVER]",), control=SPECIALS),
)


@contextmanager
def registered() -> Iterator[None]:
    """The family is known inside."""
    registry.register(FAMILY)
    try:
        yield
    finally:
        registry.unregister(FAMILY.name)


def hole_model(seed: int = 0) -> HoleModel:
    """A random model whose answers depend on everything they should."""
    torch.manual_seed(seed)
    model = HoleModel(HoleConfig()).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" not in name:
                parameter.normal_(std=(1.0 if "embed" in name else 2.0 * parameter.shape[-1] ** -0.5))
    return model


def write_folder(folder: Path) -> Path:
    """The family's model as a checkpoint: safetensors, config.json, a byte-level tokenizer, a template."""
    with registered():
        save_folder(hole_model(), HoleConfig(), folder, generation={"eos_token_id": [END, OVER]})
    (folder / "tokenizer.json").write_text(json.dumps(_tokenizer()))
    settings = {"eos_token": "<end>", "pad_token": "<pad>", "add_bos_token": False}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    (folder / "chat_template.jinja").write_text(
        "{% for m in messages %}[ASK]{{ m.content }}[OVER]{% endfor %}"
        "{% if add_generation_prompt %}[SAY]{% endif %}"
    )
    return folder


def _tokenizer() -> dict[str, Any]:
    """Every byte a token; the special ones are not marked as such, nor do they look it."""
    from tokenizers.pre_tokenizers import ByteLevel

    letters = sorted(ByteLevel.alphabet())
    vocab = {token: i for i, token in enumerate([*SPECIALS, *letters])}
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    return {
        "version": "1.0", "truncation": None, "padding": None, "added_tokens": [], "normalizer": None,
        "pre_tokenizer": byte_level, "post_processor": None, "decoder": byte_level,
        "model": {"type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": None,
                  "end_of_word_suffix": None, "fuse_unk": False, "byte_fallback": False, "vocab": vocab,
                  "merges": []},
    }  # fmt: skip


__all__ = [
    "ASK", "END", "FACTS", "FAMILY", "HOLE", "OVER", "PAD", "SAY", "SPECIALS", "VOCAB", "HoleConfig",
    "HoleLayer", "HoleModel", "hole_model", "registered", "write_folder",
]  # fmt: skip
