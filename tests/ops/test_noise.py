"""Counter-based randomness: pure functions, good enough to sample with."""

from __future__ import annotations

import torch

from canvaslm.ops import noise


def test_the_stream_key_is_a_pure_function_of_its_parts() -> None:
    keys = {noise.stream(s, c, t, p) for s in range(6) for c in range(6) for t in range(6) for p in range(5)}
    assert len(keys) == 6 * 6 * 6 * 5
    assert noise.stream(7, 1, 2, 3) == noise.stream(7, 1, 2, 3)
    assert noise.stream(2**63 - 1, 0, 0, 0) != noise.stream(0, 0, 0, 0)


def test_a_longer_draw_begins_like_a_shorter_one() -> None:
    key = noise.stream(1, 0, 0, noise.START)
    assert torch.equal(noise.bits(key, 100)[:10], noise.bits(key, 10))


def test_bits_are_balanced() -> None:
    drawn = noise.bits(noise.stream(5, 0, 0, 0), 200_000)
    for bit in range(64):
        ones = ((drawn >> bit) & 1).float().mean().item()
        assert abs(ones - 0.5) < 0.006, bit  # five standard deviations


def test_uniforms_are_uniform() -> None:
    u = noise.uniforms(noise.stream(11, 0, 0, 0), 100_000)
    assert u.min() >= 0
    assert u.max() < 1
    counts = torch.histc(u.float(), 100, 0, 1)
    chi_square = ((counts - 1000) ** 2 / 1000).sum().item()
    assert chi_square < 170  # 99 degrees of freedom: p < 1e-5 beyond


def test_tokens_cover_the_whole_vocabulary_evenly() -> None:
    drawn = noise.tokens(noise.stream(3, 0, 0, noise.RENOISE), 256_000, 64)
    counts = drawn.bincount(minlength=64)
    assert len(counts) == 64
    assert ((counts - 4000.0) ** 2 / 4000).sum().item() < 130  # 63 degrees of freedom


def test_gumbels_have_mean_and_variance_of_the_gumbel_distribution() -> None:
    g = noise.gumbels(noise.stream(9, 0, 0, noise.TILE), 400_000).double()
    assert abs(g.mean().item() - 0.57722) < 0.01
    assert abs(g.var().item() - 1.64493) < 0.03


def test_neighbouring_places_are_uncorrelated() -> None:
    u = noise.uniforms(noise.stream(4, 0, 0, 0), 100_000) - 0.5
    assert abs((u[1:] * u[:-1]).mean().item()) < 0.002
