"""Engines to measure: of the same model and kind as one that is there, with nothing in them."""

from __future__ import annotations

from ..engine import Engine


def fresh(engine: Engine, *, rows: int, prefix_cache: bool = False, mixed: bool = True) -> Engine:
    """An empty engine on the same model, keys and values of the same type, and so on;
    `rows` canvases at once."""
    runner = engine.runner
    return Engine(
        runner.model,
        max_rows=rows,
        max_context=engine.max_context,
        prefix_memory=engine.prefixes.limit if prefix_cache else 0,
        kv_memory=engine.scheduler.kv_memory,
        deterministic=runner.deterministic,
        kv_type=runner.kv_type,
        exact=runner.exact,
        mixed=mixed and runner.mixed,
    )


__all__ = ["fresh"]
