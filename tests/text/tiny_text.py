"""A tiny Gemma-like vocabulary: bytes, a few merges, the markers of Gemma 4."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers

MARKERS = (
    *("<|turn>", "<turn|>", "<|channel>", "<channel|>", "<|think|>", "<|tool>", "<tool|>", '<|"|>'),
    *("<|tool_call>", "<tool_call|>", "<|tool_response>", "<tool_response|>"),
)
NAMED = ("<pad>", "<eos>", "<bos>", "<unk>", "<mask>")
LETTERS = [chr(c) for c in range(0x21, 0x7F)] + ["▁", "\n", "é"]
MERGES = [
    ("h", "e"),
    ("l", "l"),
    ("he", "ll"),
    ("hell", "o"),
    ("▁", "hello"),
    ("▁", "▁"),
    ("<", "|"),
    ("|", ">"),
]


def tiny_tokens() -> list[str]:
    """The token texts in the order of their ids."""
    byte_tokens = [f"<0x{b:02X}>" for b in range(256)]
    return [*NAMED, *MARKERS, *byte_tokens, *LETTERS, *(a + b for a, b in MERGES)]


def tiny_backend(*, special: bool = True) -> Tokenizer:
    """As transformers builds Gemma's; `special=False` leaves the markers unmarked."""
    vocab = {token: index for index, token in enumerate(tiny_tokens())}
    model = models.BPE(vocab=vocab, merges=MERGES, unk_token="<unk>", fuse_unk=True, byte_fallback=True)
    backend = Tokenizer(model)
    backend.normalizer = normalizers.Replace(" ", "▁")
    backend.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
    backend.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    backend.add_special_tokens([AddedToken(t, special=True, normalized=False) for t in NAMED])
    backend.add_tokens([AddedToken(t, special=special, normalized=False) for t in MARKERS])
    return backend


def write_folder(folder: Path, config: dict[str, Any] | None = None, *, special: bool = True) -> Path:
    """A checkpoint folder's tokenizer files."""
    tiny_backend(special=special).save(str(folder / "tokenizer.json"))
    named = {"bos_token": "<bos>", "eos_token": {"content": "<eos>"}, "pad_token": "<pad>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(named | (config or {})))
    return folder


def gguf_fields(**changes: Any) -> dict[str, Any]:
    """The same vocabulary as GGUF metadata, markers typed as llama.cpp's converter types them."""
    tokens = tiny_tokens()
    kinds = [3 if t in NAMED else 6 if t.startswith("<0x") else 4 if t in MARKERS else 1 for t in tokens]
    fields = {
        "model": "gemma4",
        "tokens": tokens,
        "scores": [-1000.0] * len(tokens),
        "token_type": kinds,
        "merges": [f"{a} {b}" for a, b in MERGES],
        "bos_token_id": 2,
        "eos_token_id": 1,
        "unknown_token_id": 3,
        "padding_token_id": 0,
        "mask_token_id": 4,
        "add_bos_token": True,
        "add_space_prefix": False,
    }
    return {f"tokenizer.ggml.{k}": v for k, v in (fields | changes).items() if v is not None}


def fixture(name: str) -> Path:
    """A file of `CANVASLM_FIXTURES`; skips the test without it."""
    folder = os.environ.get("CANVASLM_FIXTURES")
    if not folder:
        pytest.skip("CANVASLM_FIXTURES is not set")
    path = Path(folder) / name
    if not path.exists():
        pytest.skip(f"{name} is not in CANVASLM_FIXTURES")
    return path


# Many scripts, code, emoji with joiners, all kinds of space, what normalisers like to change.
SAMPLES = (
    "Hello, world! It's 3.14159 o'clock on 2024-02-29; e-mail: a.b+c@example.org",
    "Größe, naïve café, Ærøskøbing, İstanbul, Łódź, Čeština, ﬁ ligature, ＦＵＬＬ ｗｉｄｔｈ, ½ ² ①",
    "Привет, мир! Ελληνικά με τόνους. Հայերեն ქართული ᎣᏏᏲ",
    "مرحبا بالعالم، שָׁלוֹם עוֹלָם، سلام دنیا ۱۲۳",
    "नमस्ते दुनिया। বাংলা தமிழ் తెలుగు ಕನ್ನಡ മലയാളം සිංහල ไทยไม่มีวรรค ລາວ မြန်မာ ខ្មែរ བོད",
    "你好，世界！東京特許許可局 안녕하세요 𠮷野家 ㄅㄆㄇ ｶﾞｷﾞ",
    "👩‍👩‍👧‍👦 🏳️‍🌈 🇩🇪 👍🏽 ☃︎ ☃️ 🫠 𓀀 𝔘𝔫𝔦𝔠𝔬𝔡𝔢 \U0001f9ff",
    "def f(x: int) -> int:\n    return x << 1 | 0xFF  # ok?\n\n\tif x >= 1 and y != {}: pass\r\n",
    '<html><body class="a">&amp;<br/></body></html> <!-- --> {"a": [1, -2.5e-3, null]}',
    "  two   three    four     \t\ttabs \n\n\n newlines \u00a0nbsp \u2003em \u3000ideographic \u200bzero",
    "a\u0301 vs \u00e1, \ufeffBOM, \x00\x01\x7f control, \ufffd, ▁ lower block, \ue000 private, \U0010ffff",
    " " * 65 + "\n" * 40 + "\t" * 33 + "=" * 70 + "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa",
    "SELECT * FROM t WHERE a||b <> '|>' -- <| |> <|| ||> <0x0A> <unused0> [multimodal]",
    "∀x∈ℝ: ⌈x⌉ = −⌊−x⌋, ∑_{i=0}^n i² → ∞; H₂O ≠ H²O; \\frac{a}{b} $x^2$",
)
