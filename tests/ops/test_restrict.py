"""Biases and allowed tokens: the tiled prediction against whole logits, the native kernels against plain."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pytest
import torch

from canvaslm.errors import UsageError
from canvaslm.ops import cpu
from canvaslm.ops.predict import SAMPLE_TILE, Draw, Prediction, draw, predict, sample
from canvaslm.ops.restrict import allowed_tokens, bit_rows, restrict
from canvaslm.ops.top_k import keep_top

from ..present import present
from .test_top_k import agree, floats

CAP, HEATS, ROWS, PLACES, WIDTH = 30.0, [0.4, 0.8, 0.6], 3, 7, 32
NAMES = ("sampled", "argmax", "entropy", "logprob", "soft", "top_tokens", "top_logprobs")
VOCABS = [5, 70, 2 * SAMPLE_TILE, 4 * SAMPLE_TILE + 1, 9 * SAMPLE_TILE + 3]
needs_native = pytest.mark.skipif(not cpu.available(), reason=f"no native kernels: {cpu.problem()}")


@dataclass
class World:
    """Three rows: biases and bits, bits in some places, nothing at all."""

    hidden: torch.Tensor
    head: torch.Tensor
    biases: list[list[tuple[int, float]]]
    allowed: torch.Tensor
    bits: torch.Tensor
    draws: list[Draw]

    def options(self, ks: Sequence[int] = (0, 0, 0), top: int | Sequence[int] = 0) -> dict[str, Any]:
        return {
            "softcap": CAP, "temperature": HEATS, "draws": self.draws, "biases": self.biases,
            "allowed": self.allowed, "bits": self.bits, "top_k": ks, "tail_correction": [False] * ROWS,
            "top": top, "exact": True,
        }  # fmt: skip

    def logits(self, row: int) -> torch.Tensor:
        """Whole restricted logits of one row in float64, token by token."""
        made = torch.tanh(self.hidden[row].double() @ self.head.double().T / CAP) * CAP / HEATS[row]
        for token, value in self.biases[row]:
            made[:, token] += value
        for place, index in enumerate(self.allowed[row].tolist()):
            if index >= 0:
                words = self.bits[index].tolist()
                forbidden = [not words[t // 32] >> (t % 32) & 1 for t in range(made.shape[1])]
                made[place, torch.tensor(forbidden)] = -torch.inf
        return made


def world(vocab: int, tables: torch.Tensor | None = None) -> World:
    g = torch.Generator().manual_seed(vocab)
    hidden = torch.randn(ROWS, PLACES, WIDTH, generator=g)
    head = torch.randn(vocab, WIDTH, generator=g) / 3
    if tables is None:
        tables = torch.rand(3, vocab, generator=g) < torch.tensor([[0.5], [0.05], [0.9]])
        tables[:, -1] = True  # the last token, in a word that is not full
    allowed = torch.randint(-1, len(tables), (ROWS, PLACES), generator=g)
    allowed[2] = -1
    tokens = torch.randint(vocab - 1, (12,), generator=g).tolist()
    biases = [[(t, 3.0 * i - 9) for i, t in enumerate(tokens)] + [(tokens[0], -torch.inf)], [], []]
    draws = [draw(s, 0, 1, PLACES, vocab, "cpu") for s in range(ROWS)]
    return World(hidden, head, biases, allowed, bit_rows(tables), draws)


def check_row(w: World, out: Prediction, row: int, k: int, top: int) -> None:
    """One row against whole logits."""
    logits = w.logits(row)
    kept = keep_top(logits, k)
    logprobs = logits.log_softmax(-1)
    wanted = {
        "argmax": logits.argmax(-1),
        "entropy": torch.special.entr(kept.softmax(-1)).sum(-1),
        "logprob": logprobs.max(-1).values,
        "sampled": sample(kept.float(), w.draws[row]),
    }
    for name, want in wanted.items():
        got = getattr(out, name)[row]
        torch.testing.assert_close(got.to(want.dtype), want, atol=2e-4, rtol=1e-3, msg=f"{name} of row {row}")
    soft = kept.softmax(-1) @ w.head.double() * WIDTH**0.5
    assert float((present(out.soft)[row] - soft).norm() / soft.norm()) < 2e-3
    if not top:
        return
    values, tokens = logprobs.topk(min(top, logits.shape[1]))
    mine = out.row(row)
    torch.testing.assert_close(mine.top_logprobs.double(), values, atol=2e-4, rtol=1e-3)
    assert torch.equal(present(mine.top_tokens), tokens.masked_fill(values == -torch.inf, 0))


@pytest.mark.parametrize("vocab", VOCABS)
@pytest.mark.parametrize("ks", [(0, 0, 0), (3, 200, 4), (0, 4, 0)])
def test_everything_sees_the_restriction(vocab: int, ks: tuple[int, ...]) -> None:
    w = world(vocab)
    out = predict(w.hidden, w.head, w.head, **w.options(ks, top=5))
    for row in range(ROWS):
        check_row(w, out, row, ks[row], 5)
        assert torch.equal(restrict_row(w, row).isfinite(), w.logits(row).isfinite())


def restrict_row(w: World, row: int) -> torch.Tensor:
    logits = torch.tanh(w.hidden[row] @ w.head.T / CAP) * CAP / HEATS[row]
    return restrict(logits, w.biases[row], w.allowed[row], w.bits)


@needs_native
@pytest.mark.parametrize("vocab", VOCABS)
@pytest.mark.parametrize("ks", [(0, 0, 0), (3, 200, 4), (0, 4, 0)])
def test_native_kernels_agree(isa: str, vocab: int, ks: tuple[int, ...]) -> None:
    w, table = world(vocab), floats(world(vocab).head)
    mine, plain = (predict(w.hidden, h, h, **w.options(ks, top=5)) for h in (table, w.head))
    agree(mine, plain)
    assert torch.equal(present(mine.top_tokens), present(plain.top_tokens))
    torch.testing.assert_close(mine.top_logprobs, plain.top_logprobs, atol=1e-4, rtol=1e-4)
    for row in range(ROWS):
        check_row(w, mine, row, ks[row], 5)


def only(vocab: int, *spans: tuple[int, int]) -> torch.Tensor:
    tables = torch.zeros(1, vocab, dtype=torch.bool)
    for start, stop in spans:
        tables[:, start:stop] = True
    return tables


@pytest.mark.parametrize("native", [False, pytest.param(True, marks=needs_native)])
@pytest.mark.parametrize("k", [0, 50])
@pytest.mark.parametrize(
    "spans",
    [
        ((9000, 9010),),  # all tiles before are forbidden
        ((0, 3),),  # all tiles after
        ((5, 6), (9210, 9219)),  # those between
        ((4096, 8192),),  # one whole tile of the matrix product
        ((9218, 9219),),  # the last token alone
    ],
)
def test_forbidden_tiles_give_no_nan(spans: tuple[tuple[int, int], ...], k: int, native: bool) -> None:
    vocab = 9 * SAMPLE_TILE + 3
    w = world(vocab, only(vocab, *spans))
    w.allowed[:] = 0
    w.biases = [[], [], []]
    head = floats(w.head) if native else w.head
    out = predict(w.hidden, head, head, **w.options([k] * ROWS, top=20))
    for row in range(ROWS):
        check_row(w, out, row, k, 20)
    for name in ("entropy", "logprob", "soft"):
        assert getattr(out, name).isfinite().all(), name
    assert not out.top_logprobs.isnan().any()
    assert allowed_tokens(w.bits, 0, vocab)[0, out.sampled].all()


@pytest.mark.parametrize("native", [False, pytest.param(True, marks=needs_native)])
@pytest.mark.parametrize("ks", [(0, 0, 0), (4, 4, 4), (0, 4, 0)])
def test_a_place_with_nothing_allowed_is_named(ks: tuple[int, ...], native: bool) -> None:
    w = world(3000, torch.stack((torch.zeros(3000), torch.ones(3000))).bool())
    w.allowed[:] = 1
    w.allowed[1, 4] = 0
    head = floats(w.head) if native else w.head
    with pytest.raises(UsageError, match="row 1, place 4: every token is forbidden"):
        predict(w.hidden, head, head, **w.options(ks))
    left = predict(w.hidden, head, head, **w.options(ks), check=False)
    assert left.impossible.nonzero().tolist() == [[1, 4]]
    w.allowed[1, 4] = -1
    assert not predict(w.hidden, head, head, **w.options(ks)).impossible.any()
    nothing: Any = None
    w.allowed, w.bits = nothing, nothing
    w.biases = [[], [], [(token, -torch.inf) for token in range(3000)]]
    with pytest.raises(UsageError, match="row 2, place 0: every token is forbidden"):
        predict(w.hidden, head, head, **w.options(ks))


@pytest.mark.parametrize("native", [False, pytest.param(True, marks=needs_native)])
@pytest.mark.parametrize("ks", [(0, 0, 0), (3, 50, 4), (0, 4, 0)])
def test_rows_do_not_depend_on_their_batch(ks: tuple[int, ...], native: bool) -> None:
    """A row alone, and one without restrictions, are what they are in a crowd, to the last bit."""
    w = world(5000)
    head = floats(w.head) if native else w.head
    crowd = predict(w.hidden, head, head, **w.options(ks, top=[2, 0, 7]))
    free = {"biases": None, "allowed": None, "bits": None}
    for i in range(ROWS):
        one, options = slice(i, i + 1), w.options(ks, top=[2, 0, 7])
        each = ("temperature", "draws", "biases", "allowed", "top_k", "tail_correction", "top")
        options |= {name: options[name][one] for name in each}
        if i == 2:
            options |= free
        alone, mine = predict(w.hidden[one], head, head, **options).row(0), crowd.row(i)
        for name in NAMES:
            a, b = getattr(alone, name), getattr(mine, name)
            assert a is b is None or torch.equal(a, b), (i, name)
    assert crowd.row(1).top_tokens is None
    assert crowd.row(0).top_tokens.shape == (PLACES, 2)
    assert crowd.row(2).top_logprobs.shape == (PLACES, 7)


@pytest.mark.parametrize("vocab", [1, 31, 32, 33, 1000])
def test_bit_rows_hold_one_bit_a_token(vocab: int) -> None:
    tables = torch.rand(4, vocab, generator=torch.Generator().manual_seed(vocab)) < 0.5
    bits = bit_rows(tables)
    assert bits.shape == (4, -(-vocab // 32))
    assert bits.dtype == torch.int32
    assert torch.equal(allowed_tokens(bits, 0, vocab), tables)
    for start, stop in ((0, 1), (vocab // 2, vocab), (vocab // 3, vocab // 2)):
        assert torch.equal(allowed_tokens(bits, start, stop), tables[:, start:stop])


def test_values_for_one_token_add_up() -> None:
    w = world(70)
    w.biases = [[(3, 4.0), (3, 5.0)], [], []]
    twice = predict(w.hidden, w.head, w.head, **w.options())
    w.biases = [[(3, 9.0)], [], []]
    assert torch.equal(twice.entropy, predict(w.hidden, w.head, w.head, **w.options()).entropy)


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"biases": [[(70, 1.0)], [], []]}, UsageError, "token 70 of a bias is not in 0 .. 69"),
        ({"biases": [[(-1, 1.0)], [], []]}, UsageError, "token -1 of a bias"),
        ({"biases": [[(1, torch.nan)], [], []]}, UsageError, "bias of token 1 is nan"),
        ({"biases": [[(1, torch.inf)], [], []]}, UsageError, "bias of token 1 is inf"),
        ({"biases": [[]]}, ValueError, "biases: expected 3 lists, got 1"),
        ({"bits": None}, ValueError, "go together"),
        ({"bits": torch.zeros(2, 2, dtype=torch.int32)}, ValueError, r"bits: expected int32 \[rows, 3\]"),
        (
            {"allowed": torch.zeros(3, 6).long()},
            ValueError,
            r"allowed: expected integers \[3, 7\]",
        ),
    ],
)
def test_what_does_not_fit_is_refused(change: dict[str, Any], error: type[Exception], words: str) -> None:
    w = world(70)
    with pytest.raises(error, match=words):
        predict(w.hidden, w.head, w.head, **(w.options() | change))


@needs_native
@pytest.mark.parametrize("index", [-2, 1])
def test_native_kernels_read_no_row_that_is_not_there(index: int) -> None:
    w = world(70, only(70, (0, 70)))
    w.allowed[1, 1] = index
    with pytest.raises(ValueError, match=r"allowed: must lie in -1 .. 0"):
        predict(w.hidden, floats(w.head), floats(w.head), **w.options())


@pytest.mark.parametrize("ks", [(0, 0, 0), (3, 50, 4), (0, 4, 0)])
def test_nothing_is_read_back_to_the_host(ks: tuple[int, ...]) -> None:
    """Under fake tensors, which have no values: any read of one raises."""
    from torch._subclasses.fake_tensor import FakeTensorMode

    w = world(5000)
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        for restricted in (False, True):
            options = w.options(ks, top=3)
            options["draws"] = [
                Draw(mode.from_tensor(d.gumbel), mode.from_tensor(d.uniform)) for d in w.draws
            ]
            options |= {name: mode.from_tensor(options[name]) for name in ("allowed", "bits")}
            if not restricted:
                options |= {"biases": None, "allowed": None, "bits": None}
            hidden, head = mode.from_tensor(w.hidden), mode.from_tensor(w.head)
            out = predict(hidden, head, head, **options, check=not restricted)
            assert out.sampled.shape == (ROWS, PLACES)
