"""A step reads the device once: flags, steps and means of all rows together. Drafts and commits are
copies of their own.

Whatever would make a host wait for an accelerator is counted while the engine steps: values taken out of
tensors, and operations whose result's size depends on values. Counted on the CPU with plain torch, where
experts are few enough for the dense way; `ops.grouped`, for many experts, reads how many tokens each expert
has, and is not covered here.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from canvaslm.engine import Engine
from canvaslm.model.diffusion_gemma import DiffusionGemma
from canvaslm.types import Committed, Event, Finished, Params, Request, Settled
from tests.tiny import tiny_model

# Methods that hand values to Python, and operations that must know values before they can make their result.
_METHODS = {
    getattr(torch.Tensor, name): name
    for name in (
        "tolist", "item", "numpy", "cpu", "__bool__", "__int__", "__float__", "__index__", "__contains__",
        "__array__", "is_nonzero", "nonzero", "equal", "allclose", "unique", "masked_select",
    )
}  # fmt: skip
_OPERATIONS = {
    torch.ops.aten._local_scalar_dense.default,
    torch.ops.aten.nonzero.default,
    torch.ops.aten.masked_select.default,
    torch.ops.aten.equal.default,
    torch.ops.aten.is_nonzero.default,
    torch.ops.aten._unique2.default,
    torch.ops.aten.repeat_interleave.Tensor,
}
_INDEXING = {
    torch.ops.aten.index.Tensor,
    torch.ops.aten.index_put.default,
    torch.ops.aten.index_put_.default,
}


class _Functions(TorchFunctionMode):
    def __init__(self, reads: list[str]) -> None:
        super().__init__()
        self.reads = reads

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in _METHODS:
            self.reads.append(_METHODS[func])
            with torch._C.DisableTorchFunction():
                return func(*args, **(kwargs or {}))
        return func(*args, **(kwargs or {}))


class _Dispatches(TorchDispatchMode):
    def __init__(self, reads: list[str]) -> None:
        super().__init__()
        self.reads = reads

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        chooses = func in _INDEXING and any(i is not None and i.dtype == torch.bool for i in args[1])
        if func in _OPERATIONS or chooses:
            self.reads.append(str(func))
        return func(*args, **(kwargs or {}))


@contextmanager
def counted_reads() -> Iterator[list[str]]:
    """What was read meanwhile. A method that is made of operations counts once for each of both."""
    reads: list[str] = []
    with _Dispatches(reads), _Functions(reads):
        yield reads


@pytest.fixture(scope="module")
def model() -> DiffusionGemma:
    return tiny_model(canvas_length=16)


def request(number: int, **changes: Any) -> Request:
    """One that needs all its steps."""
    sampler = ("entropy_bound", "probability_threshold", "ancestral")[number % 3]
    values = {"max_new_tokens": 16, "max_denoising_steps": 30, "confidence_threshold": 0.0, "seed": number}
    params = Params(**{**values, "sampler": sampler, **changes})
    return Request(tuple(range(3, 9 + 7 * number)), params, (1, 2))


@pytest.mark.parametrize("top_k", [False, True])
def test_a_step_of_many_rows_reads_once(model: DiffusionGemma, top_k: bool) -> None:
    engine = Engine(model)
    kinds: list[dict[str, Any]] = [
        {},
        {"eos_aware_stopping": True},
        {"temperature": 0.0},
        {"settle_steps": 20},
    ]
    if top_k:
        kinds = [*kinds, {"top_k": 5}, {"top_k_start": 9, "top_k_end": 2, "top_k_tail_correction": True}]
    for number, kind in enumerate(kinds):  # one more row each step, so that all are at different ones
        engine.submit(request(number, **kind))
        with counted_reads() as reads:
            events = engine.step()
        assert reads == ["tolist"]
        assert not events
    steps = [row.progress.step for row in engine.scheduler.denoising()]
    assert steps == list(range(len(kinds), 0, -1))


def test_only_what_is_wanted_is_copied(model: DiffusionGemma) -> None:
    """A draft is four columns, what settles and what is committed one each; other rows cost nothing more."""
    engine = Engine(model)
    for number in range(3):
        engine.submit(request(number))
    engine.submit(request(5, max_denoising_steps=2, settle_steps=1, settle_entropy=1e6))
    read: list[list[str]] = []
    events: list[list[Event]] = []
    for _ in range(2):
        with counted_reads() as reads:
            events.append(engine.step())
        read.append(reads)
    assert [type(e) for e in events[0]] == [Settled]
    assert read[0] == ["tolist"] * 2
    assert [type(e) for e in events[1]] == [Committed, Finished]
    assert read[1].count("tolist") == 2


@pytest.mark.parametrize(
    "read",
    [
        lambda x: x.tolist(), lambda x: bool(x.any()), lambda x: float(x.sum()), lambda x: int(x[0]),
        lambda x: x.sum().item(), lambda x: x[x > 0], lambda x: x.nonzero(), lambda x: x.numpy(),
        lambda x: torch.equal(x, x), lambda x: x.cpu(), lambda x: [x for _ in range(x[1])], lambda x: 3 in x,
        lambda x: torch.unique(x), lambda x: x.masked_select(x > 0), lambda x: 1 if x.any() else 0,
    ],
)  # fmt: skip
def test_a_read_is_noticed(read: Any) -> None:
    with counted_reads() as reads:
        read(torch.arange(3))
    assert reads
