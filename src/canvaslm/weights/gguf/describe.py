"""What a GGUF checkpoint is, from its header alone: for `canvaslm show`. Torch-free."""

from __future__ import annotations

from pathlib import Path

from ..description import Description, TokenizerSummary, bytes_by_type, count_parts
from ..generation import METADATA
from ..loading.memory import gigabytes
from ..packed.file import Unusable, find_packed, unused_note
from ..resolve import Checkpoint
from .fields import BYTE_TOKEN, read_gguf_config, read_gguf_generation, read_tokenizer
from .file import GGUFFile
from .places import place_weights

__all__ = ["describe_gguf", "file_type"]

# llama.cpp's numbers for `general.file_type` (`LlamaFileType` in its gguf-py).
_FILE_TYPES = {
    0: "F32", 1: "F16", 2: "Q4_0", 3: "Q4_1", 7: "Q8_0", 8: "Q5_0", 9: "Q5_1", 10: "Q2_K", 11: "Q3_K_S",
    12: "Q3_K_M", 13: "Q3_K_L", 14: "Q4_K_S", 15: "Q4_K_M", 16: "Q5_K_S", 17: "Q5_K_M", 18: "Q6_K",
    19: "IQ2_XXS", 20: "IQ2_XS", 21: "Q2_K_S", 22: "IQ3_XS", 23: "IQ3_XXS", 24: "IQ1_S", 25: "IQ4_NL",
    26: "IQ3_S", 27: "IQ3_M", 28: "IQ2_S", 29: "IQ2_M", 30: "IQ4_XS", 31: "IQ1_M", 32: "BF16", 36: "TQ1_0",
    37: "TQ2_0", 38: "MXFP4_MOE",
}  # fmt: skip


def describe_gguf(checkpoint: Checkpoint) -> Description:
    """Reads and checks header and vocabulary, no weights. Raises NotFound and
    BadModelFile as `load_gguf` does."""
    with GGUFFile(checkpoint.files[0]) as file:
        config = read_gguf_config(file)
        places = place_weights(file, config)
        return Description(
            source=checkpoint.source,
            kind="gguf",
            files=tuple((path.name, path.stat().st_size) for path in file.paths),
            config=config,
            parts=count_parts(config),
            stored=_stored(file),
            tokenizer=_tokenizer(file),
            generation=read_gguf_generation(file),
            notes=[*places.notes, *_packed_notes(file)],
        )


def file_type(path: Path) -> str:
    """The type a GGUF file says it is ("Q4_K_M"); where it does not say, the format of most bytes
    ("Q4_K")."""
    with GGUFFile(path) as file:
        number = file.metadata.get("general.file_type")
        if isinstance(number, int) and number in _FILE_TYPES:
            return _FILE_TYPES[number]
        return next(iter(_stored(file)), "")


def _stored(file: GGUFFile) -> dict[str, int]:
    return bytes_by_type((info.format, info.nbytes) for info in file.tensors.values())


def _packed_notes(file: GGUFFile) -> list[str]:
    """About the packed file beside the model, if there is one. Whether its weights suit
    this machine loading tells."""
    try:
        header = find_packed(file)
    except Unusable as problem:
        return [unused_note(file.path, problem)]
    if header is None:
        return []
    size = gigabytes(sum(info.nbytes for info in header.tensors.values()))
    return [f"packed for quick opening in {header.path.name} ({size})"]


def _tokenizer(file: GGUFFile) -> TokenizerSummary | None:
    if "tokenizer.ggml.model" not in file.metadata:
        return None
    fields = read_tokenizer(file)
    special = sum(kind in (2, 3, 4) for kind in fields.types)
    kind = "BPE with byte fallback" if any(map(BYTE_TOKEN.fullmatch, fields.tokens)) else "BPE"
    template = "tokenizer.chat_template" if fields.chat_template else None
    return TokenizerSummary(kind, len(fields.tokens), special, template, METADATA)
