"""What a checkpoint is, read from its headers and JSON files alone: no weight is loaded."""

from __future__ import annotations

from collections.abc import Iterable

from ..errors import BadConfig
from .description import Description, TokenizerSummary, bytes_by_type, count_parts
from .loading.plan import make_plan
from .resolve import Checkpoint, read_config
from .safetensors_.header import SafetensorsHeader, read_header

_TOKENIZER = "tokenizer.json"
_TEMPLATE = "chat_template.jinja"


def describe(checkpoint: Checkpoint) -> Description:
    """Reads and checks what can be without the weights. Raises as `load_model` does."""
    if checkpoint.kind == "gguf":
        return _describe_gguf(checkpoint)
    config = read_config(checkpoint)
    headers = [read_header(path) for path in checkpoint.files]
    plan = make_plan(checkpoint, headers, config)
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
    """What a checkpoint's weights are stored as: a GGUF file's type ("Q4_K_M"), else the
    type of most bytes ("BF16")."""
    if checkpoint.kind == "gguf":
        from .gguf.describe import file_type

        return file_type(checkpoint.files[0])
    return next(iter(_stored(map(read_header, checkpoint.files))), "")


def _stored(headers: Iterable[SafetensorsHeader]) -> dict[str, int]:
    return bytes_by_type((info.dtype, info.nbytes) for header in headers for info in header.tensors.values())


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


__all__ = ["describe", "format_of"]
