"""Sampling from the k largest logits: the plain code against whole logits, the native
kernels against the plain code."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import pytest
import torch

from canvaslm.ops import cpu
from canvaslm.ops.cpu import predict as packed_predict
from canvaslm.ops.formats.quant_tensor import QuantTensor
from canvaslm.ops.predict import SAMPLE_TILE, Prediction, draw, predict, sample
from canvaslm.ops.restrict import bit_rows
from canvaslm.ops.top_k import RunningTopK, keep_top, largest

from ..present import present
from .cpu.test_products import quantised

if TYPE_CHECKING:
    from canvaslm.ops.cpu.layers import RepackedVocabulary

CAP, HEATS = 30.0, [0.4, 0.8]
NAMES = ("sampled", "argmax", "entropy", "logprob", "soft")
needs_native = pytest.mark.skipif(not cpu.available(), reason=f"no native kernels: {cpu.problem()}")


def world(vocab: int, places: int = 6, width: int = 16, rows: int = 2) -> tuple[torch.Tensor, torch.Tensor]:
    g = torch.Generator().manual_seed(vocab)
    return torch.randn(rows, places, width, generator=g), torch.randn(vocab, width, generator=g)


def plainly(
    hidden: torch.Tensor,
    head: torch.Tensor | RepackedVocabulary,
    ks: Sequence[int],
    tails: Sequence[bool],
    **options: Any,
) -> Prediction:
    draws = [draw(s, 0, 0, hidden.shape[1], head.shape[0], "cpu") for s in range(len(ks))]
    options = {"temperature": [HEATS[i % 2] for i in range(len(ks))], "draws": draws, **options}
    return predict(
        hidden, head, options.pop("embedding", head), softcap=CAP, top_k=ks, tail_correction=tails, **options
    )


def expected(
    hidden: torch.Tensor, head: torch.Tensor, heat: float, k: int, tail: bool, seed: int
) -> dict[str, torch.Tensor]:
    """One row by brute force in float64, by sorting."""
    logits = torch.tanh(hidden.double() @ head.double().T / CAP) * CAP / heat
    order = logits.argsort(dim=-1, descending=True, stable=True)
    k = k or logits.shape[-1]
    kept = torch.full_like(logits, -torch.inf).scatter(-1, order[:, :k], logits.gather(-1, order[:, :k]))
    judged = logits if tail else kept
    entropy = torch.special.entr(judged.softmax(-1)).sum(-1)
    one = draw(seed, 0, 0, len(logits), logits.shape[-1], "cpu")
    return {
        "sampled": sample(kept.float(), one),
        "argmax": order[:, 0],
        "entropy": entropy,
        "logprob": logits.log_softmax(-1).max(-1).values,
        "soft": kept.softmax(-1) @ head.double() * head.shape[1] ** 0.5,
    }


def test_ties_go_to_the_lower_token() -> None:
    logits = torch.tensor([[1.0, 3, 2, 2, 2, 3], [0, 0, 0, 0, 0, 0]])
    assert largest(logits, 3).int().tolist() == [[0, 1, 1, 0, 0, 1], [1, 1, 1, 0, 0, 0]]
    assert keep_top(logits, 0) is logits
    assert keep_top(logits, 6) is logits
    forbidden = torch.tensor([[-torch.inf, -torch.inf, 5.0]])
    assert largest(forbidden, 2).int().tolist() == [[1, 0, 1]]
    assert keep_top(forbidden, 2).isfinite().sum() == 1


@pytest.mark.parametrize("count", [1, 3, 7, 40])
def test_what_is_kept_does_not_depend_on_the_tiles(count: int) -> None:
    logits = torch.randint(0, 9, (50, 100), generator=torch.Generator().manual_seed(count)).float()
    kept = RunningTopK(50, count, logits.device)
    for start in range(0, 100, 16):
        kept.add(logits[:, start : start + 16], start)
    whole = logits.masked_fill(~largest(logits, count), -torch.inf)
    rebuilt = torch.full_like(logits, -torch.inf).scatter(1, kept.tokens, kept.values)
    assert torch.equal(whole, rebuilt)
    tokens, values = kept.best(count)
    order = logits.argsort(dim=-1, descending=True, stable=True)[:, :count]
    assert torch.equal(tokens, order)
    assert torch.equal(values, logits.gather(1, order))


@pytest.mark.parametrize("vocab", [64, SAMPLE_TILE + 1, 9 * SAMPLE_TILE + 3])
@pytest.mark.parametrize("ks", [(1, 5), (0, 64), (63, 7), (200, 0)])
def test_statistics_equal_those_of_whole_logits(vocab: int, ks: tuple[int, int]) -> None:
    hidden, head = world(vocab)
    for tails in ((False, True), (True, False)):
        out = plainly(hidden, head, ks, tails)
        for row in range(2):
            want = expected(hidden[row], head, HEATS[row], ks[row], tails[row], row)
            for name, value in want.items():
                mine = getattr(out, name)[row]
                torch.testing.assert_close(mine.to(value.dtype), value, atol=1e-4, rtol=1e-4, msg=name)


@pytest.mark.parametrize("k", [70, 71, 1 << 24])
def test_the_whole_vocabulary_is_no_top_k(k: int) -> None:
    hidden, head = world(70)
    whole, mine = plainly(hidden, head, [0, 0], [False, False]), plainly(hidden, head, [k, k], [True, False])
    for name in NAMES:
        assert torch.equal(getattr(whole, name), getattr(mine, name)), name


def test_almost_the_whole_vocabulary_draws_almost_the_same() -> None:
    """What is left out by k = V - 1 is one token that is hardly ever drawn."""
    hidden, head = world(3000, places=64)
    whole, mine = plainly(hidden, head, [0, 0], [False] * 2), plainly(hidden, head, [2999] * 2, [False] * 2)
    assert torch.equal(whole.sampled, mine.sampled)


def test_one_token_is_the_argmax() -> None:
    hidden, head = world(2500)
    out = plainly(hidden, head, [1, 1], [False, True])
    assert torch.equal(out.sampled, out.argmax)
    assert out.entropy[0].abs().max() == 0
    assert out.entropy[1].min() > 0
    torch.testing.assert_close(out.soft, head[out.argmax] * 4)


def test_named_tokens_are_of_the_whole_distribution() -> None:
    """More may be named than are kept: log-probabilities are the model's opinion, not the truncation's."""
    hidden, head = world(5000)
    cut, whole = (plainly(hidden, head, ks, [False] * 2, top=5) for ks in ([2, 9], [0, 0]))
    assert torch.equal(present(cut.top_tokens), present(whole.top_tokens))
    torch.testing.assert_close(cut.top_logprobs, whole.top_logprobs)
    assert torch.equal(cut.logprob, whole.logprob)


def test_the_sampled_distribution_is_right() -> None:
    """Chi-square over 40,000 draws from 20 of 3000 tokens, in three tiles."""
    places, vocab, k = 40_000, 3000, 20
    logits = torch.randn(vocab, generator=torch.Generator().manual_seed(3)) * 2
    drawn = sample(logits.expand(places, -1), draw(77, 0, 3, places, vocab, "cpu"), k)
    chances = keep_top(logits.double(), k).softmax(-1)
    counts = drawn.bincount(minlength=vocab).double()
    kept = chances > 0
    assert kept.sum() == k
    assert counts[~kept].sum() == 0
    worth = chances[kept] * places
    assert ((counts[kept] - worth) ** 2 / worth).sum().item() < 55  # 19 degrees of freedom: p < 2e-5 beyond


def test_rows_do_not_depend_on_their_batch() -> None:
    hidden, head = world(3000, places=16, width=32, rows=5)
    ks, tails = [0, 3, 500, 0, 3], [False, True, False, True, False]
    draws = [draw(i, 0, 0, 16, 3000, "cpu") for i in range(5)]
    heats = [0.4, 0.5, 0.6, 0.7, 0.8]
    options: dict[str, Any] = {"top": 2, "softcap": CAP}
    crowd = predict(
        hidden, head, head, temperature=heats, draws=draws, top_k=ks, tail_correction=tails, **options
    )
    for i in range(5):
        one = slice(i, i + 1)
        alone = predict(
            hidden[one], head, head, temperature=heats[one], draws=draws[one], top_k=ks[one],
            tail_correction=tails[one], **options,
        )  # fmt: skip
        for name in (*NAMES, "top_tokens", "top_logprobs"):
            assert torch.equal(getattr(alone.row(0), name), getattr(crowd.row(i), name)), name


# Native kernels.


def table_of(kind: str, raw: torch.Tensor, vocab: int, width: int) -> RepackedVocabulary:
    from canvaslm.ops.cpu.layers import RepackedVocabulary
    from canvaslm.ops.cpu.repacker import Repacker

    return RepackedVocabulary("table", QuantTensor(kind, (vocab, width), raw), Repacker())


def floats(values: torch.Tensor) -> RepackedVocabulary:
    """A packed table of fp32: both sides compute with the same weights and activations."""
    return table_of("F32", values.view(torch.uint8).flatten(), *values.shape)


def packed(vocab: int, width: int = 64) -> tuple[RepackedVocabulary, torch.Tensor]:
    """(packed table, its values)"""
    values = torch.randn(vocab, width, generator=torch.Generator().manual_seed(vocab)) / 4
    return floats(values), values


def packed_q8(vocab: int, width: int) -> tuple[RepackedVocabulary, torch.Tensor]:
    raw, values = quantised("Q8_0", vocab, width)
    return table_of("Q8_0", raw, vocab, width), values


def agree(mine: Prediction, plain: Prediction, atol: float = 1e-4) -> None:
    for name in ("sampled", "argmax"):
        assert torch.equal(getattr(mine, name), getattr(plain, name)), name
    for name in ("entropy", "logprob"):
        torch.testing.assert_close(getattr(mine, name), getattr(plain, name), atol=atol, rtol=1e-4, msg=name)
    assert float((mine.soft - plain.soft).norm() / plain.soft.norm()) < 2e-3


@needs_native
@pytest.mark.parametrize("vocab", [70, 1000, 2500, 5000])
@pytest.mark.parametrize("ks", [(1, 64), (0, 5), (40, 2), (2000, 0), (1024, 1023)])
def test_native_kernels_agree(isa: str, vocab: int, ks: tuple[int, int]) -> None:
    table, values = packed(vocab)
    hidden, _ = world(vocab, places=9, width=64)
    for tails in ([False, True], [True, False]):
        mine, plain = (plainly(hidden, head, ks, tails, exact=True) for head in (table, values))
        agree(mine, plain)


@needs_native
@pytest.mark.parametrize("k", [1, 3, 1500, 2999])
def test_native_ties_go_to_the_lower_token(isa: str, k: int) -> None:
    """A head of zeros ties all tokens; one whose rows repeat ties every token with another, tiles away."""
    hidden, _ = world(3000, places=5, width=64)
    rows = torch.randn(1500, 64, generator=torch.Generator().manual_seed(1))
    for values in (torch.zeros(3000, 64), rows.repeat(2, 1)):
        mine, plain = (
            plainly(hidden, head, [k, k], [False, True], exact=True) for head in (floats(values), values)
        )
        if values.any():
            agree(mine, plain)
        else:
            assert torch.equal(mine.sampled, plain.sampled)
            assert mine.sampled.max() < k


@needs_native
def test_native_names_are_of_the_whole_distribution(isa: str) -> None:
    table, values = packed(5000)
    hidden, _ = world(5000, width=64)
    mine, plain = (plainly(hidden, head, [2, 30], [False] * 2, top=5) for head in (table, values))
    assert torch.equal(present(mine.top_tokens), present(plain.top_tokens))
    torch.testing.assert_close(mine.top_logprobs, plain.top_logprobs, atol=1e-4, rtol=1e-4)
    agree(mine, plain)


@needs_native
@pytest.mark.parametrize("threads", [1, 3])
def test_threads_share_a_shortlist(threads: int) -> None:
    """Ascending logits are the worst order: every token is a candidate when it comes."""
    from canvaslm.ops.cpu.head import head
    from canvaslm.ops.cpu.repacked import RepackedMatrix

    before, vocab = cpu.threads(), 20_000
    values = torch.arange(vocab).float()[:, None].repeat(1, 32) / vocab
    one = draw(0, 0, 0, 40, vocab, "cpu")
    try:
        cpu.set_threads(threads)
        for k in (1, 100, 3000):
            got = head(
                torch.ones(40, 32), RepackedMatrix.from_float(values), softcap=0.0,
                temperature=torch.ones(40),
                gumbel=one.gumbel, uniform=one.uniform, top_k=torch.full((40,), k, dtype=torch.int32),
                named=3,
            )  # fmt: skip
            assert got.sampled.min() >= vocab - k
            assert got.top_tokens.tolist() == [[vocab - 1, vocab - 2, vocab - 3]] * 40
    finally:
        cpu.set_threads(before)


@needs_native
def test_forbidden_tokens_are_never_kept(isa: str) -> None:
    from canvaslm.ops.cpu.head import RowRestriction, head
    from canvaslm.ops.cpu.repacked import RepackedMatrix

    values, one = torch.zeros(2500, 32), draw(0, 0, 0, 20, 2500, "cpu")
    tokens = torch.zeros(1, 2500, dtype=torch.bool)
    tokens[:, [3, 2000]] = True
    only = RowRestriction(allowed=torch.zeros(20, dtype=torch.int32), bits=bit_rows(tokens))
    got = head(
        torch.ones(20, 32), RepackedMatrix.from_float(values), softcap=0.0, temperature=torch.ones(20),
        restriction=only,
        gumbel=one.gumbel, uniform=one.uniform, top_k=torch.full((20,), 10, dtype=torch.int32), named=4,
    )  # fmt: skip
    assert set(got.sampled.tolist()) == {3, 2000}
    assert got.top_k_entropy.allclose(torch.tensor(2.0).log())
    assert got.top_tokens[:, :2].tolist() == [[3, 2000]] * 20
    assert bool((got.top_logprobs[:, 2:] == -torch.inf).all())


@needs_native
def test_a_wrong_top_k_is_refused() -> None:
    from canvaslm.ops.cpu.head import head
    from canvaslm.ops.cpu.repacked import RepackedMatrix

    one = draw(0, 0, 0, 2, 50, "cpu")
    options: dict[str, Any] = {
        "softcap": 0.0,
        "temperature": torch.ones(2),
        "gumbel": one.gumbel,
        "uniform": one.uniform,
    }
    weight = RepackedMatrix.from_float(torch.zeros(50, 32))
    for k in (0, 50):
        with pytest.raises(ValueError, match="top_k: must lie between 1 and 49"):
            head(torch.ones(2, 32), weight, top_k=torch.tensor([1, k], dtype=torch.int32), **options)
    with pytest.raises(ValueError, match="named = 51"):
        head(torch.ones(2, 32), weight, named=51, **options)


@needs_native
@pytest.mark.parametrize("exact", [True, False])
@pytest.mark.parametrize("ks", [(0, 0), (64, 3000), (0, 17)])
def test_pieces_change_no_bit(monkeypatch: pytest.MonkeyPatch, exact: bool, ks: tuple[int, int]) -> None:
    """Q8_0: int8 activations, int8 columns and the drop rule, all of which must not see the batch."""
    table, _ = packed_q8(6000, 256)
    hidden = torch.randn(2, 150, 256, generator=torch.Generator().manual_seed(0))
    hidden[:, ::3] *= 20  # sharp places among flat ones
    options: dict[str, Any] = {"exact": exact, "top": 2}
    whole = plainly(hidden, table, ks, [True, False], **options)
    for size in (64, 299):
        monkeypatch.setattr(packed_predict, "PLACES", size)
        pieces = plainly(hidden, table, ks, [True, False], **options)
        for name in (*NAMES, "top_tokens", "top_logprobs"):
            assert torch.equal(getattr(whole, name), getattr(pieces, name)), name


@needs_native
def test_the_store_of_a_crowd_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    from canvaslm.ops.cpu import head as module

    stores = module._SpareStore()
    monkeypatch.setattr(module, "_spare_store", stores)
    monkeypatch.setattr(packed_predict, "PLACES", 64)
    table, _ = packed(3000, 64)
    hidden, _ = world(3000, places=64, width=64, rows=8)
    plainly(hidden, table, [0] * 8, [False] * 8)
    assert stores._spare.numel() == 64 * 3 * SAMPLE_TILE
    assert packed_predict.PLACES == 64


@needs_native
@pytest.mark.parametrize(("k", "dense"), [(300, 0), (2400, 0), (2401, 20), (5999, 20)])
def test_what_a_small_top_k_kept_is_summed_one_by_one(k: int, dense: int) -> None:
    from canvaslm.ops.cpu.head import SoftTable, head, soft_embed
    from canvaslm.ops.cpu.repacked import RepackedMatrix, RowTable

    raw, values = quantised("Q8_0", 6000, 256)
    states = torch.randn(20, 256, generator=torch.Generator().manual_seed(0))
    one = draw(0, 0, 0, 20, 6000, "cpu")
    got = head(
        states, RepackedMatrix.from_float(values, "F32"), softcap=0.0, temperature=torch.ones(20),
        gumbel=one.gumbel,
        uniform=one.uniform, top_k=torch.full((20,), k, dtype=torch.int32),
    )  # fmt: skip
    table = SoftTable.build(RowTable("Q8_0", raw, 6000, 256))
    want = keep_top(states @ values.T, k).double().softmax(-1) @ values.double()
    for drop, bound in ((0.0, 1e-3), (5e-4, 3e-3)):
        soft, work = soft_embed(present(got.logits), table, drop=drop)
        assert work.dense == dense
        assert float((soft - want).norm() / want.norm()) < (0.012 if dense else bound)
