"""What a GGUF checkpoint is, from its header alone: for `canvaslm show`. Torch-free."""

from __future__ import annotations

from collections import Counter

from .describe import Description, TokenizerSummary, count_parts
from .gguf import GGUFFile
from .gguf_fields import BYTE_TOKEN, read_gguf_config, read_gguf_generation, read_tokenizer
from .gguf_names import place_weights
from .names import weight_shapes
from .resolve import Checkpoint

__all__ = ["describe_gguf"]


def describe_gguf(checkpoint: Checkpoint) -> Description:
    """Reads and checks header and vocabulary, no weights. Raises NotFound and BadModelFile as `load_gguf` does."""
    with GGUFFile(checkpoint.files[0]) as file:
        config = read_gguf_config(file)
        places = place_weights(file, weight_shapes(config))
        stored: Counter[str] = Counter()
        for info in file.tensors.values():
            stored[info.format] += info.nbytes
        return Description(
            source=checkpoint.source,
            kind="gguf",
            files=tuple((path.name, path.stat().st_size) for path in file.paths),
            config=config,
            parts=count_parts(config),
            stored=dict(stored.most_common()),
            tokenizer=_tokenizer(file),
            generation=read_gguf_generation(file),
            notes=places.notes,
        )


def _tokenizer(file: GGUFFile) -> TokenizerSummary | None:
    if "tokenizer.ggml.model" not in file.metadata:
        return None
    fields = read_tokenizer(file)
    special = sum(kind in (2, 3, 4) for kind in fields.types)
    kind = "BPE with byte fallback" if any(map(BYTE_TOKEN.fullmatch, fields.tokens)) else "BPE"
    template = "tokenizer.chat_template" if fields.chat_template else None
    return TokenizerSummary(kind, len(fields.tokens), special, template)
