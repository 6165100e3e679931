#!/usr/bin/env python
"""Times one encode and one denoise step on random weights of a real shape, against
transformers on the same weights.

    python benchmarks/gpu_step.py # full size on a GPU, bf16 (about 52 GB of weights) python
    benchmarks/gpu_step.py --compile --graph # also torch.compile and a CUDA graph python
    benchmarks/gpu_step.py --shape slice --device cpu # one layer at real widths: fits 8 GiB of memory python
    benchmarks/gpu_step.py --shape tiny --device cpu --compare

Weights are made on the device. Reports milliseconds (median over repeats), the share of the time
that reading the weights once would take at `--bandwidth`, peak memory, and how far one step's logits
are from the reference's.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch

from canvaslm.cache import DenoiseContext, EncodeContext, KVCache
from canvaslm.model.diffusion_gemma import DiffusionGemma, DiffusionGemmaConfig
from canvaslm.ops.predict import draw, predict
from canvaslm.weights.synth import SYNTH_SHAPES

FULL: Any = SYNTH_SHAPES["26b"]
SHAPES = {
    "full": FULL,
    "slice": replace(FULL, num_layers=1, layer_types=("full_attention",)),
    "tiny": replace(
        FULL, vocab_size=512, hidden_size=64, intermediate_size=96, num_layers=2, num_heads=4, num_kv_heads=2,
        num_global_kv_heads=1, head_dim=16, global_head_dim=32,
        layer_types=("sliding_attention", "full_attention"),
        sliding_window=32, num_experts=8, top_k_experts=2, moe_intermediate_size=32, canvas_length=32,
    ),
}  # fmt: skip


def make_model(config: DiffusionGemmaConfig, device: str, dtype: torch.dtype) -> DiffusionGemma:
    """A model whose random weights were drawn on the device."""
    model = DiffusionGemma(config, device="meta").to(dtype).to_empty(device=device)
    torch.manual_seed(0)
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            if tensor.ndim == 1:
                tensor.fill_(1.0)
            elif name.startswith("embed_tokens"):
                tensor.normal_()
            else:
                tensor.normal_(std=tensor.shape[-1] ** -0.5)
    return model.eval().requires_grad_(False)


def synchronise(device: str) -> None:
    if device.startswith("cuda"):
        torch.cuda.synchronize()


def median_ms(work: Callable[[], Any], device: str, repeats: int) -> float:
    """Median wall-clock milliseconds of `repeats` runs, after two that are not counted."""
    times = []
    for i in range(repeats + 2):
        synchronise(device)
        begin = time.perf_counter()
        work()
        synchronise(device)
        if i >= 2:
            times.append(1000 * (time.perf_counter() - begin))
    return statistics.median(times)


def active_bytes(model: DiffusionGemma, tokens: int) -> int:
    """Bytes of weights that a step of `tokens` tokens reads once: with few tokens,
    not every expert is needed."""
    config: Any = model.config
    whole = sum(p.numel() * p.element_size() for n, p in model.named_parameters() if ".experts." not in n)
    experts = sum(p.numel() * p.element_size() for n, p in model.named_parameters() if ".experts." in n)
    missed = (1 - config.top_k_experts / config.num_experts) ** tokens
    return int(whole + experts * (1 - missed))


class Ours:
    """A context of random tokens and the canvas that follows it."""

    def __init__(self, model: DiffusionGemma, length: int, device: str) -> None:
        self.model, self.device, self.length = model, device, length
        config = model.config
        generator = torch.Generator().manual_seed(1)
        self.prompt = torch.randint(config.vocab_size, (1, length), generator=generator).to(device)
        self.canvas = torch.randint(config.vocab_size, (1, config.canvas_length), generator=generator).to(
            device
        )
        self.cache = KVCache(config, device, model.dtype)
        self.positions = length + torch.arange(config.canvas_length, device=device)[None]
        self.draws = [draw(1, 0, 0, config.canvas_length, config.vocab_size, device)]
        self.soft = torch.randn(1, config.canvas_length, config.hidden_size, device=device).to(
            self.cache.dtype
        )

    def encode(self) -> None:
        cache = KVCache(self.model.config, self.device, self.cache.dtype)
        positions = torch.arange(self.length, device=self.device)[None]
        self.model.encode(self.prompt, positions, EncodeContext(cache))
        cache.advance(self.length)
        self.cache = cache

    def hidden(self, soft: bool = True) -> torch.Tensor:
        return self.model.denoise(
            self.canvas, self.positions, DenoiseContext(self.cache), self.soft if soft else None
        )

    def denoise(self) -> None:
        weight = self.model.embedding
        predict(
            self.hidden(),
            self.model.head,
            weight,
            softcap=self.model.config.softcap,
            temperature=[0.7],
            draws=self.draws,
        )


def reference_of(model: DiffusionGemma, device: str) -> Any:
    """transformers' model over the very same tensors (no copy)."""
    from transformers import DiffusionGemmaConfig, DiffusionGemmaForBlockDiffusion

    data = model.config.to_dict()
    data.pop("architectures")
    vision = {
        "model_type": "gemma4_vision", "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1,
        "num_attention_heads": 2, "num_key_value_heads": 2, "head_dim": 8, "position_embedding_size": 16,
    }  # fmt: skip
    with torch.device("meta"):
        theirs = DiffusionGemmaForBlockDiffusion(DiffusionGemmaConfig(**{**data, "vision_config": vision}))
    ours = model.state_dict()
    for prefix in ("model.decoder.", "model.encoder.language_model."):
        mine = {k: v for k, v in ours.items() if not k.endswith("encoder_layer_scalar")}
        theirs.get_submodule(prefix.rstrip(".")).load_state_dict(mine, strict=False, assign=True)
    assert isinstance(model.head, torch.Tensor)
    theirs.lm_head.weight = torch.nn.Parameter(model.head, requires_grad=False)
    for name, module in theirs.named_modules():
        if name.endswith("rotary_emb") and "vision" not in name:
            fresh = type(module)(module.config)
            module.load_state_dict({}, strict=False)
            for key, buffer in fresh.named_buffers():
                setattr(module, key, buffer.to(device))
        if name.endswith("embed_tokens"):
            module.embed_scale = torch.tensor(model.config.hidden_size**0.5, device=device)
    return theirs.eval()  # type: ignore[no-untyped-call]


def compare(report: dict[str, Any], ours: Ours, device: str, repeats: int) -> None:
    """Times transformers on the same weights, and measures how far apart one step's logits are."""
    from transformers import DynamicCache

    theirs = reference_of(ours.model, device)
    cache = DynamicCache(config=theirs.config.get_text_config(decoder=True))
    theirs.model.encoder.language_model(input_ids=ours.prompt, past_key_values=cache)
    expected = theirs(decoder_input_ids=ours.canvas, past_key_values=cache).logits
    logits = ours.model.logits(ours.hidden(soft=False))
    report["logit_error_mean"] = float((logits - expected).abs().mean())
    report["logit_std"] = float(expected.std())
    report["argmax_agreement"] = float((logits.argmax(-1) == expected.argmax(-1)).float().mean())

    def encode() -> None:
        fresh = DynamicCache(config=theirs.config.get_text_config(decoder=True))
        theirs.model.encoder.language_model(input_ids=ours.prompt, past_key_values=fresh)

    def step() -> None:
        logits = theirs(
            decoder_input_ids=ours.canvas, past_key_values=cache, self_conditioning_logits=expected
        ).logits
        probabilities = torch.softmax(logits / 0.7, dim=-1, dtype=torch.float32)
        torch.multinomial(probabilities.view(-1, probabilities.shape[-1]), 1)
        torch.distributions.Categorical(logits=logits / 0.7).entropy()  # type: ignore[no-untyped-call]

    report["reference_encode_ms"] = median_ms(encode, device, repeats)
    report["reference_denoise_ms"] = median_ms(step, device, repeats)
    report["denoise_speedup"] = report["reference_denoise_ms"] / report["denoise_ms"]


def graphed(ours: Ours) -> Callable[[], None]:
    """The denoise step captured as a CUDA graph."""
    stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    with torch.cuda.stream(stream):
        for _ in range(3):
            ours.hidden()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        ours.hidden()
    return graph.replay


@torch.inference_mode()
def measure(args: argparse.Namespace) -> dict[str, Any]:
    config, dtype = SHAPES[args.shape], getattr(torch, args.dtype)
    model = make_model(config, args.device, dtype)
    ours = Ours(model, args.context, args.device)
    ours.encode()
    report: dict[str, Any] = {
        "shape": args.shape,
        "dtype": args.dtype,
        "device": args.device,
        "context": args.context,
    }
    report["parameters"] = sum(p.numel() for p in model.parameters())
    report["encode_ms"] = median_ms(ours.encode, args.device, args.repeats)
    report["denoise_ms"] = median_ms(ours.denoise, args.device, args.repeats)
    report["denoise_without_head_ms"] = median_ms(lambda: ours.hidden(), args.device, args.repeats)
    floor = 1000 * active_bytes(model, config.canvas_length) / (args.bandwidth * 1e9)
    report["roofline_ms"], report["roofline_share"] = floor, floor / report["denoise_ms"]
    if args.compile:
        compiled = torch.compile(ours.hidden)
        report["denoise_compiled_without_head_ms"] = median_ms(lambda: compiled(), args.device, args.repeats)
    if args.graph:
        report["denoise_graph_without_head_ms"] = median_ms(graphed(ours), args.device, args.repeats)
    if args.compare:
        compare(report, ours, args.device, args.repeats)
    cuda = args.device.startswith("cuda")
    peak = (
        torch.cuda.max_memory_allocated()
        if cuda
        else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    )
    report["peak_memory_gib"] = peak / 2**30
    return report


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--shape", choices=SHAPES, default="full")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--dtype", default="bfloat16", choices=["bfloat16", "float16", "float32"])
    parser.add_argument("--context", type=int, default=512, help="tokens of context")
    parser.add_argument("--repeats", type=int, default=10)
    parser.add_argument(
        "--bandwidth", type=float, default=4800.0, help="memory bandwidth in GB/s (an H200 has 4800)"
    )
    parser.add_argument("--compare", action="store_true", help="also run transformers on the same weights")
    parser.add_argument("--compile", action="store_true", help="also time torch.compile")
    parser.add_argument("--graph", action="store_true", help="also time a CUDA graph (CUDA only)")
    args = parser.parse_args()
    if args.device.startswith("cuda") and not torch.cuda.is_available():
        sys.exit("no CUDA device here; try --shape slice --device cpu")
    print(json.dumps(measure(args), indent=2))


if __name__ == "__main__":
    main()
