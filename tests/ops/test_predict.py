"""The tiled prediction against whole logits: statistics, samples, soft embedding, memory."""

from __future__ import annotations

import math
import subprocess
import sys

import pytest
import torch

from canvaslm.ops import predict as module
from canvaslm.ops.predict import SAMPLE_TILE, draw, predict, sample


def whole_logits(hidden: torch.Tensor, head: torch.Tensor, softcap: float, heat: float) -> torch.Tensor:
    return torch.tanh(hidden.double() @ head.double().T / softcap) * softcap / heat


@pytest.mark.parametrize(
    "vocab", [5, 64, SAMPLE_TILE, SAMPLE_TILE + 1, 3 * SAMPLE_TILE - 7, 9 * SAMPLE_TILE + 3]
)
def test_statistics_equal_those_of_whole_logits(vocab: int) -> None:
    torch.manual_seed(vocab)
    hidden, head = torch.randn(2, 6, 16), torch.randn(vocab, 16)
    heats = [0.4, 0.8]
    draws = [draw(s, 0, 0, 6, vocab, "cpu") for s in (1, 2)]
    out = predict(hidden, head, head, softcap=30.0, temperature=heats, draws=draws)
    for row, heat in enumerate(heats):
        logits = whole_logits(hidden[row], head, 30.0, heat)
        logprobs = logits.log_softmax(-1)
        torch.testing.assert_close(
            out.entropy[row].double(), -(logprobs.exp() * logprobs).sum(-1), atol=2e-5, rtol=1e-4
        )
        torch.testing.assert_close(out.logprob[row].double(), logprobs.max(-1).values, atol=2e-5, rtol=1e-4)
        assert torch.equal(out.argmax[row], logits.argmax(-1))
        assert torch.equal(out.sampled[row], sample(logits.float(), draws[row]))
        expected = logits.softmax(-1) @ head.double() * 4.0  # sqrt(16)
        assert out.soft is not None
        torch.testing.assert_close(out.soft[row].double(), expected, atol=1e-4, rtol=1e-4)


def test_an_untied_embedding_makes_the_soft_embedding() -> None:
    hidden, head, table = torch.randn(1, 3, 8), torch.randn(50, 8), torch.randn(50, 8)
    out = predict(hidden, head, table, softcap=30.0, temperature=[1.0], draws=[draw(0, 0, 0, 3, 50, "cpu")])
    expected = whole_logits(hidden[0], head, 30.0, 1.0).softmax(-1).float() @ table * 8**0.5
    assert out.soft is not None
    torch.testing.assert_close(out.soft[0], expected, atol=1e-4, rtol=1e-4)


def test_without_soft_nothing_is_embedded() -> None:
    hidden, head = torch.randn(1, 3, 8), torch.randn(50, 8)
    draws = [draw(0, 0, 0, 3, 50, "cpu")]
    assert predict(hidden, head, head, softcap=30.0, temperature=[1.0], draws=draws, soft=False).soft is None


@pytest.mark.parametrize("vocab", [40, 2 * SAMPLE_TILE + 40])
def test_the_sampled_distribution_is_right(vocab: int) -> None:
    """Chi-square over 40,000 draws, pooled into 20 cells of similar probability."""
    torch.manual_seed(1)
    places = 40_000
    logits = torch.randn(vocab) * 2
    drawn = sample(logits.expand(places, -1), draw(77, 0, 3, places, vocab, "cpu"))
    probabilities = logits.double().softmax(-1)
    order = torch.randperm(vocab)
    cell = torch.empty(vocab, dtype=torch.long)
    cell[order] = torch.arange(vocab) % 20
    expected = torch.zeros(20, dtype=torch.double).index_add(0, cell, probabilities) * places
    counts = cell[drawn].bincount(minlength=20).double()
    assert ((counts - expected) ** 2 / expected).sum().item() < 55  # 19 degrees of freedom: p < 2e-5 beyond


def test_draws_depend_on_every_part_of_the_key() -> None:
    logits = torch.zeros(64, 4096)
    base = sample(logits, draw(1, 2, 3, 64, 4096, "cpu"))
    assert torch.equal(base, sample(logits, draw(1, 2, 3, 64, 4096, "cpu")))
    for key in ((9, 2, 3), (1, 9, 3), (1, 2, 9)):
        assert (base != sample(logits, draw(*key, 64, 4096, "cpu"))).sum() > 55


def test_a_forbidden_token_is_never_drawn() -> None:
    logits = torch.full((5000, 2100), -torch.inf)
    logits[:, 1500], logits[:, 2050] = 0.0, 0.0
    drawn = sample(logits, draw(0, 0, 0, 5000, 2100, "cpu"))
    assert set(drawn.tolist()) == {1500, 2050}


def test_rows_do_not_depend_on_their_batch() -> None:
    hidden, head = torch.randn(4, 16, 32), torch.randn(3000, 32)
    draws = [draw(i, 0, 0, 16, 3000, "cpu") for i in range(4)]
    heats = [0.4, 0.5, 0.6, 0.7]
    crowd = predict(hidden, head, head, softcap=30.0, temperature=heats, draws=draws)
    for i in range(4):
        alone = predict(
            hidden[i : i + 1], head, head, softcap=30.0, temperature=heats[i : i + 1], draws=draws[i : i + 1]
        )
        mine, theirs = alone.row(0), crowd.row(i)
        for name in ("sampled", "argmax", "entropy", "logprob", "soft"):
            assert torch.equal(getattr(mine, name), getattr(theirs, name)), name


PEAK = """
import resource, torch
from canvaslm.ops.predict import draw, predict
torch.set_num_threads(1)
places, vocab, width = 256, 262_144, 16
head, hidden = torch.randn(vocab, width), torch.randn(1, places, width)
draws = [draw(0, 0, 0, places, vocab, "cpu")]
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
predict(hidden, head, head, softcap=30.0, temperature=[0.7], draws=draws)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


def test_the_logits_never_exist_whole() -> None:
    """256 places x 262,144 tokens in fp32 would be 268 MB; the peak stays below a fifth of that."""
    out = subprocess.run([sys.executable, "-c", PEAK], capture_output=True, text=True, check=True)
    grown = int(out.stdout) * 1024  # ru_maxrss is in KiB on Linux
    assert grown < 256 * 262_144 * 4 / 5
    assert module.GEMM_TILE % SAMPLE_TILE == 0


@pytest.mark.parametrize("restricted", [False, True])
def test_targets_are_those_of_the_whole_logits(restricted: bool) -> None:
    vocabulary, places = 9000, 12
    g = torch.Generator().manual_seed(3)
    hidden, head = torch.randn(1, places, 16, generator=g), torch.randn(vocabulary, 16, generator=g)
    targets = [*torch.randint(0, vocabulary, (places - 1,), generator=g).tolist(), -1]
    biases = [[(targets[0], 1.5), (targets[1], -math.inf)]]
    made = predict(
        hidden, head, head, softcap=30.0, temperature=[0.7], draws=[draw(1, 0, 0, places, vocabulary, "cpu")],
        targets=[targets], biases=biases if restricted else None,
    )  # fmt: skip
    logits = torch.tanh(hidden[0] @ head.T / 30) * 30 / 0.7
    if restricted:
        logits[:, targets[0]] += 1.5
        logits[:, targets[1]] = -math.inf
    logprobs = logits.log_softmax(-1)
    assert made.target_logprob is not None
    assert made.target_rank is not None
    for place, token in enumerate(targets[:-1]):
        torch.testing.assert_close(made.target_logprob[0, place], logprobs[place, token], atol=1e-5, rtol=0)
        assert int(made.target_rank[0, place]) == 1 + int((logits[place] > logits[place, token]).sum())
    assert made.target_logprob[0, -1] == made.target_rank[0, -1] == 0
