"""Builds the demo model's folder but for weights and chat template.

To run it: `python -m canvaslm.demo.build_tokenizer`.

The tokenizer has 1024 entries and is organised as Gemma 4's: byte-level fallback, spaces as U+2581, no space
put in front, no pre-tokeniser that matters. Merges are learnt inside boundaries (see `BOUNDARIES`) and so
never cross one; shipping them alone is enough: digits, newlines and letters of a word in capitals are always
tokens of their own. Learnt on seeded samples, so a rebuild gives the same bytes.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from random import Random
from typing import Any

from tokenizers import (
    AddedToken,
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)

from ..files import write_text
from .config import (
    BOS,
    EOS,
    MODEL_FOLDER,
    PAD,
    UNK,
    VOCAB_SIZE,
    config,
    generation_config,
)
from .tasks import TASKS

SPACE = "\u2581"
CONTROL = ("<pad>", "<eos>", "<bos>", "<unk>", "<mask>")
MARKERS = (
    "<|turn>",
    "<turn|>",
    "<|think|>",
    "<|channel>",
    "<channel|>",
    "<|tool_call>",
    "<tool_call|>",
    "<|tool_response>",
    "<tool_response|>",
    "<|tool>",
    "<tool|>",
    '<|"|>',
    "<|image>",
    "<image|>",
    "<|image|>",
)
BYTES = tuple(f"<0x{value:02X}>" for value in range(256))
# Every single character that is a token by itself; all others are spelt in bytes.
ALPHABET = ("\n", "\t", SPACE, *(chr(code) for code in range(33, 127)))
# What merges stay inside of: a digit, a newline, one mark of punctuation, a word in which a capital can only
# come first. The last space before a lower-case word or a mark belongs to it.
BOUNDARIES = rf"[0-9]|\n|[A-Z][a-z]*|{SPACE}?[a-z]+|{SPACE}?[^A-Za-z0-9\s{SPACE}]|{SPACE}"
SAMPLES_PER_TASK = 4000
SEED = 2026


def corpus(seed: int = SEED, samples: int = SAMPLES_PER_TASK) -> Iterator[str]:
    """Texts of the tasks (train split) and the words the chat template adds."""
    for name, task in TASKS.items():
        rng = Random(f"tokenizer/{seed}/{name}")
        yield from (task.thought, "user\n", "model\n", "system\n", "thought\n") * (samples // 100)
        for _ in range(samples):
            example = task.sample(rng)
            yield from (message["content"] for message in example.messages)
            yield example.answer


def learn_merges(count: int) -> list[tuple[str, str]]:
    """The first `count` merges of byte-pair encoding on `corpus()`; fewer when the
    corpus has no more pairs."""
    learner = Tokenizer(models.BPE())
    learner.normalizer = normalizers.Replace(" ", SPACE)
    learner.pre_tokenizer = pre_tokenizers.Split(Regex(BOUNDARIES), "isolated")
    trainer = trainers.BpeTrainer(
        vocab_size=len(ALPHABET) + count,
        initial_alphabet=list(ALPHABET),
        min_frequency=2,
        show_progress=False,
    )
    learner.train_from_iterator(corpus(), trainer)
    merges = json.loads(learner.to_str())["model"]["merges"]
    return [(left, right) for left, right in merges][:count]


def build_tokenizer() -> Tokenizer:
    """The demo tokenizer; unused places at the end of the vocabulary are called
    <unused0> and so on, as in Gemma."""
    fixed = (*CONTROL, *MARKERS, *BYTES, *ALPHABET)
    merges = learn_merges(VOCAB_SIZE - len(fixed))
    tokens = [*fixed, *dict.fromkeys(left + right for left, right in merges)]
    tokens += [f"<unused{i}>" for i in range(VOCAB_SIZE - len(tokens))]
    vocab = {token: i for i, token in enumerate(tokens)}
    tokenizer = Tokenizer(models.BPE(vocab, merges, unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    tokenizer.normalizer = normalizers.Replace(" ", SPACE)
    tokenizer.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<bos> $A", pair="<bos> $A <bos> $B", special_tokens=[("<bos>", BOS)]
    )
    tokenizer.add_special_tokens(
        [AddedToken(token, special=True, normalized=False) for token in (*CONTROL, *MARKERS)]
    )
    return tokenizer


def tokenizer_config() -> dict[str, Any]:
    """What transformers reads beside tokenizer.json. The names of the markers are Gemma 4's."""
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": CONTROL[BOS],
        "eos_token": CONTROL[EOS],
        "pad_token": CONTROL[PAD],
        "unk_token": CONTROL[UNK],
        "mask_token": "<mask>",
        "add_bos_token": True,
        "add_prefix_space": False,
        "clean_up_tokenization_spaces": False,
        "model_max_length": 4096,
        "padding_side": "left",
        "eot_token": "<turn|>",
        "sot_token": "<|turn>",
        "think_token": "<|think|>",
        "soc_token": "<|channel>",
        "eoc_token": "<channel|>",
        "escape_token": '<|"|>',
    }


def build(folder: Path) -> None:
    """Writes the tokenizer and the configurations into `folder`, which is made if need be."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = build_tokenizer()
    write_text(folder / "tokenizer.json", tokenizer.to_str(pretty=True))
    end_of_turn = tokenizer.get_vocab()["<turn|>"]
    documents = {
        "tokenizer_config.json": tokenizer_config(),
        "config.json": config(end_of_turn),
        "generation_config.json": generation_config(end_of_turn),
    }
    for name, document in documents.items():
        write_text(folder / name, json.dumps(document, indent=2) + "\n")


if __name__ == "__main__":
    build(MODEL_FOLDER)

__all__ = [
    "ALPHABET",
    "BYTES",
    "CONTROL",
    "MARKERS",
    "build",
    "build_tokenizer",
    "corpus",
    "tokenizer_config",
]
