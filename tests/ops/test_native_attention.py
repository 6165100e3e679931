"""Attention of the native kernels against a softmax written out in fp64."""

from __future__ import annotations

import pytest
import torch

from canvaslm.ops import native

from .test_native_products import error, isa  # noqa: F401  (isa is a fixture)

pytestmark = pytest.mark.skipif(not native.available(), reason=f"no native kernels: {native.problem()}")


def reference(q, k, v, mask=None):
    """q [heads, L, D]; k, v [kv_heads, N, D]; mask [L, N] or None -> [L, heads * D]."""
    repeat = q.shape[0] // k.shape[0]
    k, v = (t.double().repeat_interleave(repeat, 0) for t in (k, v))
    scores = q.double() @ k.transpose(1, 2)
    if mask is not None:
        scores = scores.masked_fill(~mask, -torch.inf)
    return (scores.softmax(-1).nan_to_num(0) @ v).transpose(0, 1).flatten(1)


def tensors(heads, kv_heads, length, keys, width, seed=0):
    g = torch.Generator().manual_seed(seed)
    q = torch.randn(heads, length, width, generator=g)
    k = torch.randn(kv_heads, keys, width, generator=g) * 3 / width**0.5
    return q, k, torch.randn(kv_heads, keys, width, generator=g)


@pytest.mark.parametrize(
    ("heads", "kv_heads", "length", "keys", "width"),
    [(4, 2, 33, 300, 256), (4, 1, 20, 100, 512), (2, 2, 7, 5, 32), (4, 2, 64, 700, 40), (1, 1, 1, 1, 2)],
)
def test_matches_fp64(isa, heads, kv_heads, length, keys, width):  # noqa: F811
    from canvaslm.ops.native.attention import attention

    q, k, v = tensors(heads, kv_heads, length, keys, width)
    assert error(attention(q, [(k, v)]), reference(q, k, v)) < 1e-3


def test_segments_are_one_sequence_in_any_stride_and_dtype(isa):  # noqa: F811
    from canvaslm.ops.native.attention import attention

    q, k, v = tensors(4, 2, 20, 400, 64)
    k, v = k.bfloat16(), v.bfloat16()
    by_token = [t.transpose(0, 1).contiguous().transpose(0, 1) for t in (k, v)]
    parts = [(by_token[0][:, :133], by_token[1][:, :133]), (k[:, 133:].float(), v[:, 133:].float())]
    q_by_token = q.transpose(0, 1).contiguous().transpose(0, 1)
    assert error(attention(q_by_token, parts), reference(q, k, v)) < 1e-3


@pytest.mark.parametrize("window", [None, 1, 50, 300])
def test_causal_and_sliding_masks(isa, window):  # noqa: F811
    from canvaslm.ops.native.attention import attention

    first = 210
    q, k, v = tensors(2, 1, 330, 540, 32)
    at, key = torch.arange(330)[:, None] + first, torch.arange(540)[None]
    mask = (key <= at) & (key > at - (window or 10_000))
    got = attention(q, [(k, v)], causal=True, first_query=first, window=window)
    assert error(got, reference(q, k, v, mask)) < 1e-3


def test_sharp_scores_and_outliers_stay_accurate(isa):  # noqa: F811
    from canvaslm.ops.native.attention import attention

    q, k, v = tensors(2, 1, 50, 600, 64)
    q, v = q * 10, v.clone()
    v[:, 17, 3] = 500.0
    k = k.clone()
    k[:, 5] = 0
    assert error(attention(q, [(k, v)]), reference(q, k, v)) < 3e-3


def test_nothing_to_see_gives_zeros():
    from canvaslm.ops.native.attention import attention

    q, k, v = tensors(2, 1, 3, 4, 32)
    assert torch.equal(attention(q, [(k[:, :0], v[:, :0])]), torch.zeros(3, 64))


def test_a_query_depends_on_no_other():
    from canvaslm.ops.native.attention import attention

    q, k, v = tensors(4, 2, 100, 300, 64)
    whole, before = attention(q, [(k, v)]), native.threads()
    try:
        for threads in (1, 3):
            native.set_threads(threads)
            assert torch.equal(attention(q[:, 31:40], [(k, v)]), whole[31:40])
    finally:
        native.set_threads(before)


def test_wrong_shapes_are_named():
    from canvaslm.ops.native.attention import attention

    q, k, v = tensors(4, 2, 3, 4, 32)
    with pytest.raises(ValueError, match="k, v: expected"):
        attention(q, [(k, v[:, :3])])
    with pytest.raises(ValueError, match="3 query heads"):
        attention(q[:3], [(k, v)])
    with pytest.raises(ValueError, match="q: expected"):
        attention(q.half(), [(k, v)])
