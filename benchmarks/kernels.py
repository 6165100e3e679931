#!/usr/bin/env python
"""Speed of each native kernel at the shapes of the 26B-A4B model, against this machine's int8
ceiling: a Markdown table.

    python benchmarks/kernels.py                     # all threads the process may use, about 6 GB of memory
    python benchmarks/kernels.py --threads 1 --cpu   # one thread, in processor time: fair beside other work
    python benchmarks/kernels.py --isa avx2 --only experts,head

GOPS count a multiply and an add as two. The ceiling is measured around every line with the kernels' own
instructions on data in the first-level cache, so the last column holds whatever else the machine is doing.
Weights are random bytes (scales are sane): speed does not depend on values.
"""

from __future__ import annotations

import argparse
import ctypes
import statistics
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np
import torch

from canvaslm.ops import cpu
from canvaslm.ops.cpu import elementwise, products
from canvaslm.ops.cpu.attention import BLOCK, KeyBlocks, append_blocks, attention, block_bytes
from canvaslm.ops.cpu.head import SoftTable, head, soft_embed
from canvaslm.ops.cpu.loader import library
from canvaslm.ops.cpu.memory import MemoryBlock
from canvaslm.ops.cpu.repacked import RepackedExperts, RepackedMatrix, RowTable
from canvaslm.ops.predict import draw

HIDDEN, INNER, EXPERTS, TOP, DENSE, VOCABULARY = 2816, 704, 128, 8, 2112, 262_144
PLACES = 256
Case = tuple[str, float, Callable[[], object]]


def randomise(packed: RepackedMatrix | RepackedExperts) -> None:
    """Bytes below 60: small fp16 and fp32 scales whatever they mean."""
    view = (ctypes.c_uint8 * packed.nbytes).from_address(packed.data)
    whole = torch.frombuffer(view, dtype=torch.uint8)
    pattern = torch.randint(0, 60, (1 << 20,), dtype=torch.uint8)
    for start in range(0, packed.nbytes, 1 << 20):
        piece = whole[start : start + (1 << 20)]
        piece.copy_(pattern[: len(piece)])


def matrix(kind: str, n: int, k: int) -> RepackedMatrix:
    made = RepackedMatrix(kind, n, k)
    randomise(made)
    return made


def product_cases() -> Iterator[Case]:
    shapes = (("q_proj", 4096, HIDDEN), ("o_proj", HIDDEN, 4096), ("dense down", HIDDEN, DENSE))
    for name, n, k in shapes:
        for kind in ("Q4_K", "Q5_K", "Q6_K", "Q5_0", "Q8_0", "INT8", "BF16"):
            if k % 256 and kind.endswith("_K"):
                continue
            weight, x, out = matrix(kind, n, k), torch.randn(PLACES, k), torch.empty(PLACES, n)
            work = 2 * PLACES * n * k
            yield f"{name} {kind}", work, partial(products.matmul, weight, x, out)


def mixtures() -> Iterator[Case]:
    index = torch.rand(PLACES, EXPERTS).topk(TOP).indices
    weights, x = torch.full((PLACES, TOP), 1 / TOP), torch.randn(PLACES, HIDDEN)
    gate_up = RepackedExperts("Q4_K", EXPERTS, 2 * INNER, HIDDEN)
    randomise(gate_up)
    for kind in ("Q5_0", "Q8_0"):
        down = RepackedExperts(kind, EXPERTS, HIDDEN, INNER)
        randomise(down)
        work = 2 * PLACES * TOP * 3 * INNER * HIDDEN
        yield f"experts Q4_K + {kind}", work, partial(products.experts, x, index, weights, gate_up, down)


def dense_mlp() -> Iterator[Case]:
    gate_up, down = RepackedExperts("Q4_K", 1, 2 * DENSE, HIDDEN), RepackedExperts("Q5_0", 1, HIDDEN, DENSE)
    randomise(gate_up)
    randomise(down)
    x = torch.randn(PLACES, HIDDEN)
    yield (
        "dense MLP Q4_K + Q5_0",
        2 * PLACES * 3 * DENSE * HIDDEN,
        lambda: products.gated_mlp(x, gate_up, down),
    )


def attentions() -> Iterator[Case]:
    for kv_heads, width, name, contexts in (
        (8, 256, "sliding", (512, 1023)),
        (2, 512, "full", (512, 4096, 16384)),
    ):
        q = torch.randn(16, PLACES, width)
        own = (torch.randn(kv_heads, PLACES, width) * 0.06, torch.randn(kv_heads, PLACES, width))
        for dtype in (torch.int16, torch.int8):
            for context in contexts:
                keys = packed_keys(kv_heads, width, context, dtype)
                work = 4 * 16 * PLACES * (context + PLACES) * width
                label = f"attention {name}, {context} {str(dtype)[6:]} keys and the canvas"
                yield label, work, partial(attention, q, keys, own)
    fresh = torch.randn(2, 8, 512, 256)
    keys = packed_keys(8, 256, 512, torch.int16)
    yield (
        "packing 512 tokens, sliding",
        0,
        partial(append_blocks, fresh[0], fresh[1], keys.dtype, keys.table, 0),
    )


def packed_keys(kv_heads: int, width: int, tokens: int, dtype: torch.dtype) -> KeyBlocks:
    size = block_bytes(dtype, kv_heads, width)
    blocks = [MemoryBlock(size) for _ in range(-(-tokens // BLOCK))]
    table = np.array([block.address for block in blocks], np.uint64)
    k, v = torch.randn(2, kv_heads, tokens, width)
    append_blocks(k * 0.06, v, dtype, table, 0)
    return KeyBlocks(table, dtype, kv_heads, width, 0, tokens, blocks)


def vocabulary(columns: int) -> Iterator[Case]:
    drawn = draw(1, 0, 1, PLACES, columns, "cpu")
    options: dict[str, Any] = {
        "softcap": 30.0, "temperature": torch.full((PLACES,), 0.7), "gumbel": drawn.gumbel,
        "uniform": drawn.uniform,
    }  # fmt: skip
    states = torch.randn(PLACES, HIDDEN)
    work = 2 * PLACES * columns * HIDDEN
    for kind in ("Q6_K", "INT8"):
        weight = matrix(kind, columns, HIDDEN)
        yield f"head {kind} [{columns}]", work, partial(head, states, weight, **options)
    top_k = torch.full((PLACES,), 256, dtype=torch.int32)
    yield f"head {kind}, top-k 256 [{columns}]", work, lambda: head(states, weight, top_k=top_k, **options)
    raw = torch.randint(0, 60, (columns * 2310,), dtype=torch.uint8)
    table = SoftTable.build(RowTable("Q6_K", raw, columns, HIDDEN))
    for name, sharp, cut in (("flat", 1e-3, None), ("peaked", 0.3, None), ("flat, top-k 256", 1e-3, top_k)):
        logits = head(states * sharp, weight, top_k=cut, **options).logits
        assert logits is not None
        _, how = soft_embed(logits, table)
        label = f"soft embedding, {name}: {how.dense} dense rows, {how.gathered} tokens [{columns}]"
        yield label, work if how.dense else 0, partial(soft_embed, logits, table)


def elementwise_steps() -> Iterator[Case]:
    x, weight, eps = torch.randn(PLACES, HIDDEN), torch.ones(HIDDEN), 1e-6
    heads, table = torch.randn(PLACES, 16, 256), (torch.ones(PLACES, 128), torch.zeros(PLACES, 128))
    proj, each = RepackedMatrix.from_float(torch.randn(EXPERTS, HIDDEN) * 0.02), torch.ones(EXPERTS)
    yield "rms norm with residual", 0, lambda: elementwise.rms_norm(x, weight, eps, residual=x)
    yield (
        "three norms of a layer's end",
        0,
        lambda: elementwise.join_feed_forward(x, weight, x, weight, weight, x, 1.0, eps),
    )
    yield "norm and rotation of q", 0, lambda: elementwise.norm_rope(heads, torch.ones(256), eps, table)
    yield "router", 2 * PLACES * EXPERTS * HIDDEN, lambda: elementwise.route(x, weight, proj, each, TOP, eps)


def measure(run: Callable[[], object], clock: Callable[[], float], repeats: int) -> float:
    """Median seconds."""
    run()
    times = []
    for _ in range(repeats):
        start = clock()
        run()
        times.append(clock() - start)
    return statistics.median(times)


def ceiling(clock: Callable[[], float]) -> float:
    """GOPS of all threads, the best of five short bursts."""
    best = 0.0
    for _ in range(5):
        start = clock()
        work = library().canvas_ceiling(3000)
        best = max(best, 2 * work / (clock() - start) / 1e9)
    return best


GROUPS: dict[str, Callable[[int], Iterator[Case]]] = {
    "products": lambda columns: product_cases(),
    "experts": lambda columns: mixtures(),
    "dense": lambda columns: dense_mlp(),
    "attention": lambda columns: attentions(),
    "head": vocabulary,
    "elementwise": lambda columns: elementwise_steps(),
}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--threads", type=int)
    parser.add_argument("--isa", help="avx512, avx2, neon or plain; default: the best this machine has")
    parser.add_argument("--cpu", action="store_true", help="count processor time (one thread only)")
    parser.add_argument("--only", default=",".join(GROUPS), help=f"groups: {', '.join(GROUPS)}")
    parser.add_argument("--vocabulary", type=int, default=VOCABULARY, help="columns of the head")
    parser.add_argument("--repeats", type=int, default=7)
    options = parser.parse_args()
    if not cpu.available():
        parser.exit(1, f"no native kernels: {cpu.problem()}\n")
    if options.isa:
        cpu.use_isa(options.isa)
    if options.threads:
        cpu.set_threads(options.threads)
    if options.cpu and cpu.threads() != 1:
        parser.error("--cpu needs --threads 1")
    clock = time.thread_time if options.cpu else time.perf_counter
    print(f"{cpu.isa()}, {cpu.threads()} threads, {PLACES} places, ceiling {ceiling(clock):.0f} GOPS\n")
    print("| kernel | ms | GOPS | of the ceiling |\n|---|---|---|---|")
    for group in options.only.split(","):
        for name, work, run in GROUPS[group](options.vocabulary):
            before = ceiling(clock)
            seconds = measure(run, clock, options.repeats)
            speed, top = work / seconds / 1e9, (before + ceiling(clock)) / 2
            share = f"{speed:.0f} | {speed / top:.0%}" if work else "- | -"
            print(f"| {name} | {seconds * 1e3:.2f} | {share} |", flush=True)


if __name__ == "__main__":
    main()
