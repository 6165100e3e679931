"""Head, sampling and soft embedding of the native kernels against `ops.predict`, their plain twin."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch

from canvaslm.ops import cpu
from canvaslm.ops import predict as twin
from canvaslm.ops.formats import quant_tensor as formats
from canvaslm.ops.restrict import bit_rows, restrict

from ...present import present
from .test_products import error, quantised

if TYPE_CHECKING:
    from canvaslm.ops.cpu.head import RowRestriction, Statistics
    from canvaslm.ops.cpu.repacked import RepackedMatrix

pytestmark = pytest.mark.skipif(not cpu.available(), reason=f"no native kernels: {cpu.problem()}")

CAP = 30.0


def world(
    vocab: int, hidden: int, rows: int, sharp: float
) -> tuple[torch.Tensor, torch.Tensor, RepackedMatrix]:
    """(hidden states, table values in fp32, their packed F32 head) with logits of about +-sharp."""
    from canvaslm.ops.cpu.repacked import RepackedMatrix

    g = torch.Generator().manual_seed(7)
    table = torch.randn(vocab, hidden, generator=g)
    states = torch.randn(rows, hidden, generator=g) * sharp / hidden**0.5
    return states, table, RepackedMatrix.from_float(table)


def both(
    vocab: int = 2500,
    hidden: int = 64,
    rows: int = 20,
    sharp: float = 4.0,
    temperature: float = 0.7,
    restriction: RowRestriction | None = None,
    cap: float = CAP,
) -> tuple[Statistics, torch.Tensor, twin.Draw, torch.Tensor]:
    from canvaslm.ops.cpu.head import head

    states, table, packed = world(vocab, hidden, rows, sharp)
    draw = twin.draw(5, 0, 1, rows, vocab, "cpu")
    got = head(
        states, packed, softcap=cap, temperature=torch.full((rows,), temperature), gumbel=draw.gumbel,
        uniform=draw.uniform, restriction=restriction,
    )  # fmt: skip
    logits = states @ table.T
    logits = (torch.tanh(logits / cap) * cap if cap else logits) / temperature
    return got, logits, draw, table


@pytest.mark.parametrize("vocab", [64, 1000, 1024, 2500, 5000])
def test_head_agrees_with_the_twin(isa: str, vocab: int) -> None:
    got, logits, draw, _ = both(vocab)
    logp = logits.double().log_softmax(-1)
    assert torch.equal(got.argmax, logits.argmax(-1))
    assert torch.equal(got.sampled, twin.sample(logits, draw))
    assert torch.allclose(got.entropy.double(), -(logp.exp() * logp).sum(-1), atol=2e-5)
    assert torch.allclose(got.logprob.double(), logp.max(-1).values, atol=2e-5)
    assert torch.allclose(present(got.logits).lse.double(), logits.double().logsumexp(-1), atol=2e-5)


def test_head_without_softcap_and_with_extreme_logits(isa: str) -> None:
    got, logits, draw, _ = both(sharp=300.0, cap=0.0, temperature=0.01)
    assert torch.equal(got.sampled, twin.sample(logits, draw))
    assert torch.isfinite(got.entropy).all()
    assert torch.isfinite(got.logprob).all()


def test_forbidden_tokens_are_never_drawn(isa: str) -> None:
    from canvaslm.ops.cpu.head import RowRestriction

    tokens = torch.zeros(1, 2500, dtype=torch.bool)
    tokens[:, 1500:1510] = True
    allowed = torch.zeros(20, dtype=torch.int32)
    allowed[3] = -1
    got, logits, draw, _ = both(restriction=RowRestriction(allowed=allowed, bits=bit_rows(tokens)))
    logits = restrict(logits, allowed=allowed, bits=bit_rows(tokens))
    logp = logits.double().log_softmax(-1)
    assert torch.equal(got.sampled, twin.sample(logits, draw))
    others = torch.arange(20) != 3
    assert bool(((got.sampled >= 1500) & (got.sampled < 1510))[others].all())
    entropy = -(logp.exp() * logp.clamp(min=-1e30)).sum(-1)
    assert torch.allclose(got.entropy.double(), entropy, atol=2e-5)


def test_rows_keep_their_own_temperature() -> None:
    from canvaslm.ops.cpu.head import head

    states, _, packed = world(2500, 64, 2, 4.0)
    draw = twin.draw(5, 0, 1, 1, 2500, "cpu")
    states[1] = states[0]
    heat = torch.tensor([0.5, 2.0])
    shared: dict[str, Any] = {
        "softcap": CAP,
        "gumbel": draw.gumbel.expand(2, -1),
        "uniform": draw.uniform.expand(2),
    }
    got = head(states, packed, temperature=heat, **shared)
    assert float(got.entropy[0]) < float(got.entropy[1])
    alone = head(
        states[1:], packed, softcap=CAP, temperature=heat[1:], gumbel=draw.gumbel, uniform=draw.uniform
    )
    assert torch.equal(got.sampled[1:], alone.sampled)
    assert torch.equal(got.entropy[1:], alone.entropy)
    with pytest.raises(ValueError, match="temperature: must be positive"):
        head(states, packed, temperature=torch.tensor([0.5, 0.0]), **shared)


def test_statistics_do_not_depend_on_batch_or_threads() -> None:
    from canvaslm.ops.cpu.head import head

    states, _, packed = world(5000, 64, 300, 4.0)
    draw = twin.draw(5, 0, 1, 300, 5000, "cpu")

    def of(rows: slice) -> Statistics:
        return head(
            states[rows], packed, softcap=CAP, temperature=torch.full((300,), 0.8)[rows],
            gumbel=draw.gumbel[rows], uniform=draw.uniform[rows],
        )  # fmt: skip

    whole, before = of(slice(None)), cpu.threads()
    try:
        for threads in (1, 3):
            cpu.set_threads(threads)
            part = of(slice(250, 262))
            for name in ("sampled", "argmax", "entropy", "logprob"):
                assert torch.equal(getattr(part, name), getattr(whole, name)[250:262])
    finally:
        cpu.set_threads(before)


def soft_of(logits: torch.Tensor, table: torch.Tensor) -> torch.Tensor:
    return logits.double().softmax(-1) @ table.double()


@pytest.mark.parametrize("sharp", [0.5, 4.0, 40.0])
def test_soft_embedding_with_float_columns(isa: str, sharp: float) -> None:
    from canvaslm.ops.cpu.head import SoftTable, soft_embed
    from canvaslm.ops.cpu.repacked import RowTable

    got, logits, _, table = both(sharp=sharp)
    soft_table = SoftTable.build(RowTable.from_float(table))
    for drop in (0.0, 1e-3):
        soft, _ = soft_embed(present(got.logits), soft_table, drop=drop)
        assert error(soft, soft_of(logits, table)) < 1e-3 + 3 * drop
    soft, _ = soft_embed(present(got.logits), SoftTable(RowTable.from_float(table)))
    assert error(soft, soft_of(logits, table)) < 1e-3


@pytest.mark.parametrize(("sharp", "dense"), [(0.5, True), (300.0, False)])
def test_soft_embedding_of_a_quantised_table(isa: str, sharp: float, dense: bool) -> None:
    from canvaslm.ops.cpu.head import SoftTable, head, soft_embed
    from canvaslm.ops.cpu.repacked import RepackedMatrix, RowTable

    rows, vocab, width = 20, 6000, 256
    raw, values = quantised("Q6_K", vocab, width)
    states = torch.randn(rows, width) * sharp
    draw = twin.draw(5, 0, 1, rows, vocab, "cpu")
    packed = RepackedMatrix.from_float(values, "F32")
    got = head(
        states, packed, softcap=CAP, temperature=torch.ones(rows), gumbel=draw.gumbel, uniform=draw.uniform
    )
    want = soft_of(torch.tanh(states @ values.T / CAP) * CAP, values)
    table = SoftTable.build(RowTable("Q6_K", raw, vocab, width))
    assert table.transposed.kind == "INT8"
    soft, work = soft_embed(present(got.logits), table)
    assert (work.dense > 0) == dense
    assert error(soft, want) < 0.015
    exact, work = soft_embed(present(got.logits), table, drop=0.0)
    assert work.dense == rows
    assert error(exact, want) < 0.012


def test_a_peak_among_flat_tokens_keeps_both(isa: str) -> None:
    """One token with half the mass, the rest spread: int8 alone would round one of the two away."""
    from canvaslm.ops.cpu.head import SoftTable, StoredLogits, soft_embed
    from canvaslm.ops.cpu.repacked import RowTable

    vocab, width = 4096, 64
    raw, values = quantised("Q8_0", vocab, width)
    logits = torch.zeros(1, vocab)
    logits[0, 2000] = torch.tensor(float(vocab)).log()
    tiles = logits.view(1, -1, 1024)
    peak = tiles.amax(-1)
    below = tiles - peak[..., None]
    kept = below.half().view(torch.int16).flatten(1)
    entropy = torch.distributions.Categorical(logits=logits).entropy()
    state = StoredLogits(kept, peak, below.exp().sum(-1), logits.logsumexp(-1), entropy, vocab)
    soft, work = soft_embed(state, SoftTable.build(RowTable("Q8_0", raw, vocab, width)))
    assert (work.dense, work.gathered) == (0, 1) or work.dense == 1
    assert error(soft, soft_of(logits, values)) < 0.01


def test_soft_embedding_refuses_another_vocabulary() -> None:
    from canvaslm.ops.cpu.head import SoftTable, soft_embed
    from canvaslm.ops.cpu.repacked import RowTable

    got, *_ = both(vocab=1000)
    table = SoftTable(RowTable.from_float(torch.zeros(999, 64)))
    with pytest.raises(ValueError, match="999 rows, the logits 1000 columns"):
        soft_embed(present(got.logits), table)


def test_tiles_are_the_twins() -> None:
    from canvaslm.ops.cpu import head as predict

    assert predict.SAMPLE_TILE == twin.SAMPLE_TILE
    assert formats.FORMATS["Q6_K"].type_id == 14


def test_logits_memory_is_used_again_only_when_they_are_gone() -> None:
    first, *_ = both()
    kept = first.logits.store.clone()
    address = first.logits.store.data_ptr()
    second, *_ = both(rows=10)
    assert second.logits.store.data_ptr() != address
    assert torch.equal(first.logits.store, kept)
    del first
    third, *_ = both(rows=15)
    assert third.logits.store.data_ptr() == address


@pytest.mark.parametrize("vocab", [64, 1000, 2500])
@pytest.mark.parametrize("restricted", [False, True])
def test_targets_agree_with_the_twin(isa: str, vocab: int, restricted: bool) -> None:
    from canvaslm.ops.cpu.head import RowRestriction, head

    rows = 20
    states, table, packed = world(vocab, 64, rows, 4.0)
    draw = twin.draw(5, 0, 1, rows, vocab, "cpu")
    targets = torch.randint(-1, vocab, (rows,), generator=torch.Generator().manual_seed(1))
    targets[3] = (states[3] @ table.T).argmax()
    bits = bit_rows(torch.arange(vocab)[None] % 3 > 0)
    few, some = torch.zeros(rows, dtype=torch.int32), torch.tensor([2, 3, 11])
    restriction = RowRestriction(allowed=few, bits=bits) if restricted else RowRestriction()
    how: dict[str, Any] = {"allowed": torch.zeros(1, rows, dtype=torch.int64), "bits": bits}
    got = head(
        states, packed, softcap=CAP, temperature=torch.full((rows,), 0.7), gumbel=draw.gumbel,
        uniform=draw.uniform, targets=targets, restriction=restriction,
    )  # fmt: skip
    plain = twin.predict(
        states[None], table, table, softcap=CAP, temperature=[0.7], draws=[draw], soft=False,
        targets=[targets.tolist()], **(how if restricted else {}),
    )  # fmt: skip
    assert torch.equal(got.target_rank, present(plain.target_rank)[0])
    assert torch.allclose(got.target_logprob, present(plain.target_logprob)[0], atol=2e-5)
    alone = head(
        states[some], packed, softcap=CAP, temperature=torch.full((3,), 0.7), gumbel=draw.gumbel[some],
        uniform=draw.uniform[some], targets=targets[some],
        restriction=RowRestriction(allowed=few[:3], bits=bits) if restricted else None,
    )  # fmt: skip
    assert torch.equal(alone.target_logprob, got.target_logprob[some]), "the same bits in any company"


def test_targets_outside_the_vocabulary_are_refused() -> None:
    from canvaslm.ops.cpu.head import head

    states, _, packed = world(64, 64, 1, 4.0)
    draw = twin.draw(5, 0, 1, 1, 64, "cpu")
    with pytest.raises(ValueError, match=r"targets: must lie in -1 \.\. 63"):
        head(
            states, packed, softcap=CAP, temperature=torch.ones(1), gumbel=draw.gumbel, uniform=draw.uniform,
            targets=torch.tensor([64]),
        )  # fmt: skip
