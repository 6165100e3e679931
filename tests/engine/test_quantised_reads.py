"""What the causal reader says of prompts with quantised weights: that of the same weights unpacked, as near
as 8-bit activations allow, and the same bits from a packed file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from canvaslm.ops import cpu
from canvaslm.types import TokenRead
from canvaslm.weights.gguf.load import load_gguf, load_quantised
from canvaslm.weights.packed.write import write_packed
from tests.tiny import tiny_model, write_tiny_gguf

from .test_reader import asked, causal_logits, run

SIZES = {"vocab_size": 1024, "hidden_size": 256, "intermediate_size": 160, "moe_intermediate_size": 96}
PROMPT = tuple(int(t) for t in torch.randint(10, 900, (300,), generator=torch.Generator().manual_seed(1)))
# Of the spread of log-probabilities: measured 0.047 (Q4_K_M) and 0.029 (Q8_0) at most, 0.009 and 0.006 in the
# mean. Where there are no native kernels the unpacked weights are multiplied, and little is left.
FURTHEST, MEAN = 0.09, 0.02


def reads_of(model: object) -> list[TokenRead]:
    ((_, end),) = run(model, [asked(prompt=PROMPT, prompt_logprobs=0, prompt_only=True)])
    return [read for read in end.prompt_reads if read is not None]


@pytest.mark.parametrize("kind", ["Q4_K_M", "Q8_0"])
def test_prompts_are_read_as_the_unpacked_weights_read_them(kind: str, tmp_path: Path) -> None:
    path = write_tiny_gguf(
        tiny_model(canvas_length=16, sliding_window=24, **SIZES), tmp_path / "m.gguf", kind
    )
    reads = reads_of(load_quantised(path).model)
    said = torch.tensor([read.logprob for read in reads])
    unpacked: Any = load_gguf(path, dtype=torch.float32).model
    logits = causal_logits(unpacked, list(PROMPT))
    plain = logits.log_softmax(-1)[:-1].gather(-1, torch.tensor(PROMPT[1:])[:, None])[:, 0]
    apart = (said - plain).abs() / plain.std()
    assert float(apart.max()) < FURTHEST
    assert float(apart.mean()) < MEAN
    if cpu.available():
        write_packed(path)
        loaded = load_quantised(path)
        assert "mapped from" in loaded.notes[-1]
        assert reads_of(loaded.model) == reads
