"""Which tensor gets which format, and the stream that packs them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from canvaslm.errors import BadModelFile, UsageError
from canvaslm.model.diffusion_gemma.gguf_names import ROPE_FREQS, gguf_order, to_gguf
from canvaslm.model.diffusion_gemma.hf_names import weight_shapes
from canvaslm.ops.formats.quant_tensor import FORMATS
from canvaslm.weights.gguf import quantize
from canvaslm.weights.gguf.file import GGUFFile
from canvaslm.weights.gguf.quantize import FILE_TYPES, choose_formats, write_gguf
from canvaslm.weights.gguf.write import string
from canvaslm.weights.synth import SYNTH_SHAPES


def full_size() -> dict[str, tuple[int, ...]]:
    shapes = weight_shapes(SYNTH_SHAPES["26b"])
    return {to_gguf(name): shapes[name] for name in sorted(shapes, key=gguf_order)} | {ROPE_FREQS: (256,)}


# Counts of the published Q4_K_M file, and the sizes of the published ladder in GB.
PUBLISHED = {"BF16": 50.5, "Q8_0": 26.9, "Q6_K": 22.6, "Q5_K_M": 19.1, "Q4_K_M": 16.8}
COUNTS = {"F32": 423, "Q4_K": 194, "Q5_0": 33, "Q8_0": 28, "Q6_K": 14}


@pytest.mark.parametrize("kind", PUBLISHED)
def test_sizes_are_those_of_the_published_files(kind: str) -> None:
    shapes = full_size()
    formats = choose_formats(shapes, kind)
    total = sum(FORMATS[formats[name]].tensor_bytes(shape) for name, shape in shapes.items())
    assert round(total / 1e9, 1) == PUBLISHED[kind]


def test_q4_k_m_mixes_as_the_published_file() -> None:
    formats = choose_formats(full_size(), "Q4_K_M")
    assert Counter(formats.values()) == COUNTS
    assert formats["token_embd.weight"] == "Q6_K"
    assert formats["self_cond_down.weight"] == "Q5_0"
    assert [i for i in range(30) if formats[f"blk.{i}.ffn_down_exps.weight"] == "Q8_0"] == [
        0, 1, 2, 5, 8, 11, 14, 17, 20, 23, 26, 27, 28, 29,
    ]  # fmt: skip
    more = [name for name, format in formats.items() if format == "Q6_K" and "attn_v" in name]
    # Full layers have no values, so the rule counts the 25 that have: 0 1 2 5 8 11 14 17 20 21 22 23 24.
    assert [int(name.split(".")[1]) for name in more] == [0, 1, 2, 6, 9, 13, 16, 20, 24, 25, 26, 27, 28]


def test_rows_that_no_block_divides() -> None:
    shapes = {
        "token_embd.weight": (10, 320),
        "blk.0.attn_q.weight": (8, 320),
        "blk.0.attn_k.weight": (8, 40),
        "blk.0.ffn_gate_inp.weight": (4, 320),
        "blk.0.attn_norm.weight": (320,),
    }
    assert choose_formats(shapes, "Q4_K_M") == {
        "token_embd.weight": "Q8_0",
        "blk.0.attn_q.weight": "Q5_0",
        "blk.0.attn_k.weight": "F16",
        "blk.0.ffn_gate_inp.weight": "F32",
        "blk.0.attn_norm.weight": "F32",
    }
    assert choose_formats(shapes, "Q5_K_M")["blk.0.attn_q.weight"] == "Q5_1"
    assert choose_formats(shapes, "Q6_K")["blk.0.attn_q.weight"] == "Q8_0"
    assert choose_formats(shapes, "Q4_0")["blk.0.attn_q.weight"] == "Q4_0"


def test_an_untied_head_takes_the_bits() -> None:
    shapes = {"token_embd.weight": (10, 256), "output.weight": (10, 256)}
    assert choose_formats(shapes, "Q4_K_M") == {"token_embd.weight": "Q4_K", "output.weight": "Q6_K"}
    assert choose_formats(shapes, "Q8_0") == {"token_embd.weight": "Q8_0", "output.weight": "Q8_0"}


def test_unknown_types_are_named() -> None:
    with pytest.raises(UsageError, match="type 'Q3_K' is not written; known: F32, BF16"):
        choose_formats({}, "Q3_K")


class Memory:
    """A source of tensors in memory that counts how much is asked for at a time."""

    def __init__(self, tensors: dict[str, torch.Tensor]) -> None:
        self.tensors = tensors
        self.shapes: dict[str, tuple[int, ...]] = {
            name: tuple(tensor.shape) for name, tensor in tensors.items()
        }
        self.metadata = {"general.architecture": string("x")}
        self.paths: tuple[Path, ...] = (Path("memory"),)
        self.largest = 0

    def packed(self, name: str, format: str) -> Iterator[memoryview] | None:
        return None

    def slices(self, name: str, rows: int) -> Iterator[torch.Tensor]:
        for piece in self.tensors[name].reshape(-1, self.shapes[name][-1]).split(rows):
            self.largest = max(self.largest, piece.numel())
            yield piece


def test_tensors_pass_in_slices(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quantize, "SLICE_ROWS_BYTES", 4 * 256 * 3)
    tensors = {
        "blk.0.ffn_gate_up_exps.weight": torch.randn(4, 5, 256),
        "blk.0.ffn_down_exps.scale": torch.ones(4),
    }
    source = Memory(tensors)
    seen: list[tuple[str, int, int]] = []
    out = tmp_path / "m.gguf"
    written = write_gguf(source, out, "Q4_0", progress=lambda *report: seen.append(report))
    assert source.largest == 3 * 256
    assert seen[-1][1] == seen[-1][2] == sum(t.nbytes for t in written.tensors)
    with GGUFFile(out) as file:
        values = file.tensor("blk.0.ffn_gate_up_exps.weight").dequantise()
        assert values.shape == (4, 5, 256)
        error = (values - tensors["blk.0.ffn_gate_up_exps.weight"]).norm() / values.norm()
        assert written.tensors[0].error == pytest.approx(float(error), rel=0.02)
        assert file.integer("general.file_type") == FILE_TYPES["Q4_0"].file_type
    assert written.bits_per_weight == pytest.approx(4.5, abs=0.05)


@pytest.mark.parametrize(
    ("values", "kind", "message"),
    [
        (float("nan"), "Q8_0", "holds NaN"),
        (float("inf"), "F32", "holds NaN"),
        (1e6, "F16", "too large for F16"),
    ],
)
def test_weights_that_cannot_be_packed(values: float, kind: str, message: str, tmp_path: Path) -> None:
    source = Memory({"blk.0.attn_q.weight": torch.full((4, 256), values)})
    with pytest.raises(BadModelFile, match=f"tensor blk.0.attn_q.weight: .*{message}"):
        write_gguf(source, tmp_path / "m.gguf", kind)
    assert list(tmp_path.iterdir()) == []
