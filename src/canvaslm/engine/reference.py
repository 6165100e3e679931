"""The oracle: generation written out plainly, without cache, batch, tiles or
scheduler. Slow and easy to check.

The engine must give exactly these tokens; the tests compare both with this file and
this file with transformers.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch

from ..diffusion import (
    Canvas,
    RowParams,
    advance,
    progress,
    settle,
    start_canvas,
    temperature,
    top_k,
)
from ..model import Model, PlainContext
from ..ops.predict import Prediction, draws_of, sample
from ..ops.restrict import Biases
from ..ops.top_k import keep_top
from ..types import CanvasReport, Params, TokenRules


def predict_plainly(
    model: Model,
    hidden: torch.Tensor,
    params: Params,
    canvas: Canvas,
    step: int,
    biases: Biases = (),
    possible: torch.Tensor | None = None,
) -> Prediction:
    """Prediction [1, C] for one canvas's hidden states [C, H] at its 0-based step, from
    its whole logits [C, V]. possible: bool [C, V], which tokens each place may take."""
    facts = model.config.facts
    logits = model.logits(hidden) / temperature(params, step)
    if facts.mask_token_id is not None:
        logits[:, facts.mask_token_id] = -torch.inf
    for token, value in biases:
        logits[:, token] += value
    if possible is not None:
        logits[~possible] = -torch.inf
    kept = keep_top(logits, top_k(params, step))
    (random,) = draws_of(canvas.key, canvas.step, *logits.shape)
    judged = logits if params.top_k_tail_correction else kept
    entropy = -(judged.softmax(-1) * judged.log_softmax(-1).clamp(min=-1e30)).sum(-1)
    argmax = logits.argmax(-1)
    logprob = logits.log_softmax(-1).gather(-1, argmax[:, None]).squeeze(-1)
    soft = model.soft_embedding(kept.softmax(-1))[None] if facts.self_conditioning else None
    sampled = sample(kept, random)
    return Prediction(sampled[None], argmax[None], entropy[None], logprob[None], soft)


@torch.no_grad()
def generate(
    model: Model,
    prompt: Sequence[int],
    params: Params,
    eos_token_ids: Sequence[int] = (),
    *,
    given: Mapping[int, int] | None = None,
    rules: TokenRules = TokenRules(),
) -> tuple[list[int], list[CanvasReport]]:
    """Committed tokens (cut after the first EOS) and one report per canvas.

    `params` must have a seed and a limit. `given`, `rules`: as in `Request`. For families whose context is
    encoded causally, and whose logits are not shifted.
    """
    assert params.seed is not None and params.max_new_tokens > 0
    places, device = params.canvas_length or model.config.canvas_length, model.device
    row = RowParams.of(params, eos_token_ids, device)
    context, output, reports = list(prompt), [], []
    for index in range(math.ceil(params.max_new_tokens / places)):
        fixed = {p - index * places: t for p, t in (given or {}).items() if p // places == index}
        canvas = start_canvas(
            params.seed,
            index,
            places,
            model.config.vocab_size,
            device,
            fixed,
            model.config.facts.mask_token_id,
        )
        possible = _possible(model, params, eos_token_ids, rules, index * places)
        draft, report = _denoise(model, context, canvas, params, row, rules.biases, possible)
        reports.append(report)
        ends = [i for i, token in enumerate(draft) if token in eos_token_ids]
        output += draft[: ends[0] + 1] if ends else draft
        if ends:
            break
        context += draft
    return output[: params.max_new_tokens], reports


def _possible(
    model: Model, params: Params, ends: Sequence[int], rules: TokenRules, written: int
) -> torch.Tensor:
    """Bool [C, V]: the tokens that each place of the canvas may take, of an answer with `written` tokens."""
    vocabulary, endings = model.config.vocab_size, [*ends, model.config.pad_token_id]
    rows = []
    for place in range(written, written + (params.canvas_length or model.config.canvas_length)):
        row = torch.full((vocabulary,), rules.allowed is None)
        row[list(rules.allowed or ())] = True
        row[endings] = place >= max(params.min_new_tokens, rules.allowed is not None)
        rows.append(row)
    return torch.stack(rows).to(model.device)


def _denoise(
    model: Model,
    context: list[int],
    canvas: Canvas,
    params: Params,
    row: RowParams,
    biases: Biases,
    possible: torch.Tensor,
) -> tuple[list[int], CanvasReport]:
    """One canvas, from noise to its end: the tokens of all places, and how it went."""
    memory, device = PlainContext(model.config), canvas.tokens.device
    model.encode(
        torch.tensor([context], device=device), torch.arange(len(context), device=device)[None], memory
    )
    positions = len(context) + torch.arange(canvas.tokens.shape[1], device=device)[None]
    step = 0
    while True:
        hidden = model.denoise(canvas.tokens, positions, memory, canvas.soft)[0]
        prediction = predict_plainly(model, hidden, params, canvas, step, biases, possible)
        canvas = settle(advance(canvas, prediction, row, model.config.vocab_size, model.config.facts), row)
        (known,) = progress(canvas)
        step = known.step
        if known.stop is not None:
            return canvas.argmax[0].tolist(), CanvasReport(
                step, known.stop, known.mean_entropy, positions.shape[1], 0, step * positions.shape[1]
            )


__all__ = ["generate", "predict_plainly"]
