"""Checkpoints as transformers writes them, made once a session: tiny, random, in every layout."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.tiny import hf_model, save_hf, tiny_config


@pytest.fixture(scope="session")
def tied(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    """(folder, transformers' model): one file, embeddings tied."""
    return _saved(tmp_path_factory.mktemp("tied"), hf_model(tiny_config(), seed=1))


@pytest.fixture(scope="session")
def untied(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    """Untied: a head of its own, and the encoder's weights stored again, equal to the decoder's."""
    return _saved(tmp_path_factory.mktemp("untied"), hf_model(tiny_config(tie_word_embeddings=False), seed=2))


@pytest.fixture(scope="session")
def sharded(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    """Tied, in shards of at most 100 kB."""
    return _saved(tmp_path_factory.mktemp("sharded"), hf_model(tiny_config(), seed=3), max_shard_size="100KB")


def _saved(folder: Path, model: Any, **options: Any) -> tuple[Path, Any]:
    return save_hf(model, folder, **options), model
