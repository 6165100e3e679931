"""What a checkpoint is, read from its headers and JSON files alone: no weight is loaded."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from math import prod
from typing import TYPE_CHECKING, Any

from ..errors import BadConfig
from .loading.plan import make_plan
from .names import Part, part_of, weight_shapes
from .resolve import Checkpoint, read_config
from .safetensors_.header import Header, read_header

if TYPE_CHECKING:
    from ..model.config import ModelConfig

_TOKENIZER = "tokenizer.json"
_TEMPLATE = "chat_template.jinja"


@dataclass(frozen=True)
class TokenizerSummary:
    """`kind` as the file calls it (BPE, Unigram); `special` counts the markers; `template` is the template's origin.

    `source` is where the vocabulary was read from.
    """

    kind: str
    vocabulary: int
    special: int
    template: str | None
    source: str = _TOKENIZER


@dataclass(frozen=True)
class Description:
    """A checkpoint without its weights. Sizes in bytes, counts in parameters."""

    source: str
    kind: str  # "folder", "file" or "gguf"
    files: tuple[tuple[str, int], ...]  # (name, size) of the weight files
    config: ModelConfig
    parts: dict[Part, int]  # parameters of each part; their sum is the model
    stored: dict[str, int]  # bytes in the files by stored type ("BF16", "Q4_K", ...), the vision tower's too
    tokenizer: TokenizerSummary | None
    generation: dict[
        str, Any
    ]  # what generation_config.json or a GGUF file's metadata sets, by the former's names
    vision_parameters: int = 0
    notes: list[str] = field(default_factory=list)

    @property
    def parameters(self) -> int:
        return sum(self.parts.values())

    @property
    def active_parameters(self) -> int:
        """Parameters that take part in one token's pass: only the routed experts of each layer."""
        experts = self.parts.get("experts", 0)
        return self.parameters - experts + experts * self.config.top_k_experts // self.config.num_experts

    def weight_bytes(self, bits: float) -> int:
        """Memory of the weights at `bits` per parameter, vision tower left out."""
        return int(self.parameters * bits / 8)

    def context_bytes(self, tokens: int, width: int) -> int:
        """Memory of the keys and values of `tokens` tokens at `width` bytes each: sliding layers stop at their window."""
        total = 0
        for i in range(self.config.num_layers):
            window = self.config.window_of(i)
            kept = tokens if window is None else min(tokens, window)
            total += kept * 2 * self.config.kv_heads_of(i) * self.config.head_dim_of(i)
        return total * width


def describe(checkpoint: Checkpoint) -> Description:
    """Reads and checks what can be without the weights. Raises as `load_model` does."""
    if checkpoint.kind == "gguf":
        return _describe_gguf(checkpoint)
    config = read_config(checkpoint)
    headers = [read_header(path) for path in checkpoint.files]
    shapes = weight_shapes(config)
    plan = make_plan(checkpoint, headers, shapes)
    return Description(
        source=checkpoint.source,
        kind=checkpoint.kind,
        files=tuple((path.name, path.stat().st_size) for path in checkpoint.files),
        config=config,
        parts=count_parts(config),
        stored=_stored(headers),
        tokenizer=_tokenizer(checkpoint),
        generation=checkpoint.read_json("generation_config.json") or {},
        vision_parameters=sum(info.count for info in plan.vision),
        notes=plan.notes,
    )


def format_of(checkpoint: Checkpoint) -> str:
    """What a checkpoint's weights are stored as: a GGUF file's type ("Q4_K_M"), else the type of most bytes ("BF16")."""
    if checkpoint.kind == "gguf":
        from .gguf.describe import file_type

        return file_type(checkpoint.files[0])
    return next(iter(_stored(map(read_header, checkpoint.files))), "")


def _stored(headers: Iterable[Header]) -> dict[str, int]:
    return bytes_by_type((info.dtype, info.nbytes) for header in headers for info in header.tensors.values())


def bytes_by_type(tensors: Iterable[tuple[str, int]]) -> dict[str, int]:
    """Bytes of each stored type, the one with most first, from (type, bytes) of tensors."""
    stored: Counter[str] = Counter()
    for kind, nbytes in tensors:
        stored[kind] += nbytes
    return dict(stored.most_common())


def count_parts(config: ModelConfig) -> dict[Part, int]:
    """Parameters of each part of a model, largest first."""
    parts: Counter[Part] = Counter()
    for name, shape in weight_shapes(config).items():
        parts[part_of(name)] += prod(shape)
    return dict(parts.most_common())


def _describe_gguf(checkpoint: Checkpoint) -> Description:
    from .gguf.describe import describe_gguf

    return describe_gguf(checkpoint)


def _tokenizer(checkpoint: Checkpoint) -> TokenizerSummary | None:
    data = checkpoint.read_json(_TOKENIZER)
    if data is None:
        return None
    model = data.get("model")
    if not isinstance(model, dict) or not isinstance(model.get("vocab"), dict | list):
        raise BadConfig(f"{checkpoint.folder / _TOKENIZER}: model.vocab is missing")
    added = [entry for entry in data.get("added_tokens") or [] if isinstance(entry, dict)]
    # BPE and WordPiece hold {token: id}, Unigram a list of [token, score].
    known = {token if isinstance(token, str) else str(token[0]) for token in model["vocab"]}
    return TokenizerSummary(
        kind=str(model.get("type")),
        vocabulary=len(known | {str(entry.get("content")) for entry in added}),
        special=sum(bool(entry.get("special")) for entry in added),
        template=_template(checkpoint),
    )


def _template(checkpoint: Checkpoint) -> str | None:
    if checkpoint.path(_TEMPLATE) is not None:
        return _TEMPLATE
    settings = checkpoint.read_json("tokenizer_config.json") or {}
    return "tokenizer_config.json" if settings.get("chat_template") else None


__all__ = ["Description", "TokenizerSummary", "bytes_by_type", "count_parts", "describe", "format_of"]
