"""The structures that calls of the kernels take, as csrc/kernels.h, kv.h and layout.h declare them.

The library is asked for the size of each when it is opened (`loader`), so that a field added on one side
alone is found before anything is called.
"""

from __future__ import annotations

import ctypes

_p, _i, _l = ctypes.c_void_p, ctypes.c_int, ctypes.c_int64


class Matrix(ctypes.Structure):
    _fields_ = (("kind", _i), ("n", _i), ("k", _i), ("data", _p))


class RestrictionCall(ctypes.Structure):
    _fields_ = (
        ("bias_span", _p), ("bias_token", _p), ("bias_value", _p), ("allowed", _p), ("bits", _p),
        ("bit_words", _i),
    )  # fmt: skip


class HeadCall(ctypes.Structure):
    _fields_ = (
        ("head", Matrix), ("hidden", _p), ("rows", _i), ("softcap", ctypes.c_float), ("temperature", _p),
        ("restriction", RestrictionCall), ("gumbel", _p), ("uniform", _p), ("store", _p), ("tile_peak", _p),
        ("tile_mass", _p),
        ("sampled", _p), ("argmax", _p), ("entropy", _p), ("logprob", _p), ("lse", _p),
        ("top_k", _p), ("top_k_entropy", _p), ("named", _i), ("top_tokens", _p), ("top_logprobs", _p),
        ("target", _p), ("target_logprob", _p), ("target_rank", _p),
    )  # fmt: skip


class SoftCall(ctypes.Structure):
    _fields_ = (
        ("store", _p), ("tile_peak", _p), ("tile_mass", _p), ("lse", _p), ("entropy", _p), ("top_k", _p),
        ("rows", _i), ("vocabulary", _i), ("width", _i), ("format", _i), ("table", _p),
        ("transposed", Matrix), ("drop", ctypes.c_float), ("out", _p), ("gathered", _p), ("dense_rows", _p),
    )  # fmt: skip


class FreshKeyValues(ctypes.Structure):
    _fields_ = (
        ("k", _p),
        ("v", _p),
        ("k_token", _l),
        ("k_head", _l),
        ("v_token", _l),
        ("v_head", _l),
        ("count", _i),
    )


class AppendCall(ctypes.Structure):
    _fields_ = (
        ("fresh", FreshKeyValues),
        ("kv_heads", _i),
        ("width", _i),
        ("kind", _i),
        ("blocks", _p),
        ("first", _i),
        ("places", _p),
    )


class AttentionCall(ctypes.Structure):
    _fields_ = (
        ("q", _p), ("q_token", _l), ("q_head", _l), ("tokens", _i), ("heads", _i), ("kv_heads", _i),
        ("width", _i),
        ("blocks", _p), ("kind", _i), ("from_", _i), ("to", _i), ("own", FreshKeyValues),
        ("own_blocks", _p), ("first_query", _i),
        ("causal", _i),
        ("window", _i), ("out", _p), ("out_token", _l), ("out_head", _l),
    )  # fmt: skip


STRUCTURES: tuple[type[ctypes.Structure], ...] = (
    Matrix, RestrictionCall, HeadCall, SoftCall, FreshKeyValues, AppendCall, AttentionCall,
)  # fmt: skip

__all__ = [
    "STRUCTURES",
    "AppendCall",
    "AttentionCall",
    "FreshKeyValues",
    "HeadCall",
    "Matrix",
    "RestrictionCall",
    "SoftCall",
]
