"""The page of an adapter on a hub: README.md, whose head says what it is of."""

from __future__ import annotations

import re

from ...model.adapters import Adapter

CARD = "README.md"
_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*/[A-Za-z0-9][A-Za-z0-9._-]*")


def base_of(*names: str | None) -> str | None:
    """The first of the names that is a hub id, and so can stand in a card."""
    return next((name for name in names if name and _ID.fullmatch(name)), None)


def card_of(adapter: Adapter, repository: str, base: str | None) -> str:
    """The page, with an example of use. `base`: a hub id, None where the base is on no hub."""
    head = ["---", *([f"base_model: {base}"] if base else []), "library_name: peft"]
    head += ["pipeline_tag: text-generation", "tags:", "- lora", "- canvaslm", "---"]
    ranks = sorted({delta.rank for side in (adapter.encode, adapter.denoise) for delta in side.values()})
    sides = {
        (True, True): "encoding and denoising",
        (True, False): "encoding alone",
        (False, True): "denoising alone",
    }[bool(adapter.encode), bool(adapter.denoise)]
    name = repository.rpartition("/")[2]
    model = f" -m {base}" if base else ""
    lines = [
        *head,
        "",
        f"# {name}",
        "",
        f"A LoRA adapter of {f'[{base}](https://huggingface.co/{base})' if base else 'a diffusion model'}: "
        f"{adapter.parameter_count:,} parameters, rank {', '.join(map(str, ranks))}, for {sides}.",
        "",
        "```sh",
        f'canvaslm run{model} --adapter {repository} -p "Hello"',
        f'canvaslm serve{model} --adapter {repository}      # `model: "{name}"` in requests selects it',
        "```",
        "",
    ]
    return "\n".join(lines)


__all__ = ["CARD", "base_of", "card_of"]
