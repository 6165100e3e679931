"""Blocks, fill, supervision, batches and sources: exact claims on a handful of tokens. C = 8, EOS = 1."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from canvaslm.errors import NotFound, UsageError
from canvaslm.train.data import (
    IGNORE,
    Batcher,
    Shuffled,
    Source,
    TrainingExample,
    as_example,
    count_blocks,
    cut,
    make_batch,
    make_row,
    open_blocks,
)
from canvaslm.train.sources import chat_encoder, load_source, read_chats

C, EOS = 8, 1


def answer(length: int, truncated: bool = False) -> TrainingExample:
    return TrainingExample((40, 41, 42), tuple(range(10, 10 + length)), truncated)


class Counting:
    """Example i has a prompt of one token and a response of i + 1 tokens."""

    def example(self, seed: int, index: int) -> tuple[list[int], list[int]]:
        return [seed + 2], [3] * (index + 1)


def batcher(source: Source | None = None, **changes: Any) -> Batcher:
    fields = {"seed": 0, "batch": 4, "micro_batch": 2, "canvas_length": C, "eos": EOS, "max_length": 100}
    return Batcher(source or Counting(), **{**fields, **changes})


@pytest.mark.parametrize(("length", "blocks"), [(1, 1), (C - 1, 1), (C, 1), (C + 1, 2), (2 * C, 2)])
def test_blocks_are_the_response_in_canvases(length: int, blocks: int) -> None:
    assert count_blocks(answer(length), C) == blocks


def holed(given: Sequence[bool], truncated: bool = False) -> TrainingExample:
    """A response as long as `given`."""
    return replace(answer(len(given), truncated), given=tuple(given))


def test_what_is_given_has_no_loss_on_the_canvas_and_none_in_the_encoder() -> None:
    given = [True, True, False, False, True, True, False, False, True, False]
    for block, places in ((0, given[:8]), (1, [*given[8:], *[False] * 6])):
        batch = make_batch([make_row(holed(given), block, C, EOS), make_row(answer(3), 0, C, EOS)], C)
        assert batch.given[0].tolist() == places
        assert batch.supervised[0].tolist() == [not known for known in places]
        targets = [IGNORE if known else token for known, token in zip(given, range(10, 20), strict=True)]
        assert batch.encoder_targets[0, :10].tolist() == targets
        assert batch.encoder_targets[0, 10:16].tolist() == [EOS] * 6
        assert not batch.given[1].any()
        assert batch.supervised[1].all()


def test_the_fill_is_given_with_the_last_token_unless_the_response_was_cut() -> None:
    closed = make_batch([make_row(holed([False, True, True]), 0, C, EOS)], C)
    assert closed.given.tolist() == [[False, *[True] * 7]]
    assert closed.canvas_count == closed.encoder_count == 1
    short = make_batch([make_row(holed([True, False, True], truncated=True), 0, C, EOS)], C)
    assert short.supervised.tolist() == [[False, True, *[False] * 6]]


def test_a_block_without_a_hole_is_never_trained() -> None:
    given = [True] * C + [False] + [True] * (2 * C - 1)
    assert open_blocks(holed(given), C) == [1]
    assert open_blocks(answer(2 * C + 1), C) == [0, 1, 2]

    class Holed:
        def example(self, seed: int, index: int) -> tuple[list[int], list[int], list[bool]]:
            return [2], list(range(10, 10 + len(given))), given if index % 2 else [True] * len(given)

    rows = [row for step in range(4) for row in batcher(Holed()).rows(step)]
    assert [row.block for row in rows] == [1] * 8


def test_a_response_that_is_cut_keeps_what_is_given_of_the_rest() -> None:
    cut_short = cut(holed([True, False, True, True]), 5)
    assert cut_short is not None
    assert cut_short.given == (True, False)
    assert cut_short.truncated


def test_as_many_places_are_given_as_the_response_has() -> None:
    assert as_example(([2], [3, 4], [True, False])).given == (True, False)
    assert as_example(([2], [3, 4])).given == ()
    with pytest.raises(UsageError, match="given has 1 places, its response 2") as caught:
        as_example(([2], [3, 4], [True]))
    assert caught.value.param == "data.source"


def test_an_exact_canvas_has_no_fill() -> None:
    row = make_row(answer(C), 0, C, EOS)
    assert row.tokens == (40, 41, 42, *range(10, 18))
    assert make_batch([row], C).supervised.all()


def test_one_token_more_makes_a_second_block_of_eos_that_is_supervised() -> None:
    batch = make_batch([make_row(answer(C + 1), 1, C, EOS)], C)
    assert batch.clean.tolist() == [[18, *[EOS] * 7]]
    assert batch.canvas_positions.tolist() == [list(range(11, 19))]
    assert batch.supervised.all()
    assert batch.tokens.tolist() == [[40, 41, 42, *range(10, 19), *[EOS] * 7]]


def test_the_encoder_predicts_the_response_and_its_fill_but_not_the_prompt() -> None:
    batch = make_batch([make_row(answer(3), 0, C, EOS)], C)
    assert batch.encoder_places.tolist() == [[2, 3, 4, 5, 6, 7, 8, 9]]
    assert batch.encoder_targets.tolist() == [[10, 11, 12, *[EOS] * 5]]


def test_a_cut_response_does_not_supervise_its_fill() -> None:
    batch = make_batch([make_row(answer(3, truncated=True), 0, C, EOS)], C)
    assert batch.supervised.tolist() == [[True] * 3 + [False] * 5]
    assert [t for t in batch.encoder_targets[0].tolist() if t != IGNORE] == [10, 11, 12]
    assert batch.clean.tolist() == [[10, 11, 12, *[EOS] * 5]]  # still attended and corrupted


def test_without_encoded_fill_the_encoder_stops_at_the_response() -> None:
    batch = make_batch([make_row(answer(3), 0, C, EOS)], C, encode_fill=False)
    assert batch.tokens.tolist() == [[40, 41, 42, 10, 11, 12]]
    assert batch.encoder_targets.tolist() == [[10, 11, 12, EOS]]


def test_cutting_keeps_what_fits_and_drops_what_leaves_nothing() -> None:
    assert cut(answer(5), 8) == answer(5)
    assert cut(answer(5), 7) == answer(4, truncated=True)
    assert cut(answer(5), 3) is None
    assert cut(answer(0), 9) is None


def test_padding_rows_and_columns_are_marked() -> None:
    rows = [make_row(answer(1), 0, C, EOS), make_row(answer(C + 1), 0, C, EOS)]
    batch = make_batch(rows, C, multiple=16, size=3)
    assert batch.tokens.shape == (3, 32)
    assert (batch.positions >= 0).sum(1).tolist() == [11, 19, 0]
    assert batch.row_count == 2
    assert batch.canvas_count == 2 * C
    assert not batch.supervised[2].any()
    assert (batch.encoder_targets[2] == IGNORE).all()


def test_rows_with_nothing_to_supervise_are_dropped() -> None:
    class Mixed:
        def example(self, seed: int, index: int) -> TrainingExample:
            return answer(index % 2)

    batches = batcher(Mixed()).step(0)
    assert sum(batch.row_count for batch in batches) == 2
    with pytest.raises(UsageError, match="max_length"):
        batcher(Mixed(), max_length=3).step(0)


def test_a_step_repeats_and_another_seed_differs() -> None:
    first, again, other = (batcher(seed=seed).rows(20) for seed in (0, 0, 1))
    assert first == again
    assert [r.block for r in first] != [r.block for r in other]
    assert [len(r.tokens) for r in first] == [len(r.tokens) for r in other]


def test_all_blocks_of_a_long_answer_are_drawn_alike() -> None:
    class Long:
        def example(self, seed: int, index: int) -> TrainingExample:
            return answer(4 * C)

    blocks = [row.block for row in batcher(Long(), batch=800).rows(0)]
    counts = [blocks.count(b) for b in range(4)]
    # chi-square, 3 degrees of freedom: 16.3 is the 0.1 % point
    assert sum((n - 200) ** 2 / 200 for n in counts) < 16.3


def test_rows_of_a_step_are_sorted_into_micro_batches() -> None:
    lengths = [(batch.positions >= 0).sum(1).tolist() for batch in batcher().step(1)]
    assert lengths == [[1 + C, 1 + C], [1 + C, 1 + C]]
    widths = [batch.tokens.shape[1] for batch in batcher(encode_fill=False).step(1)]
    assert widths == [7, 9]


def test_shuffling_shows_everything_once_a_pass() -> None:
    source = Shuffled([answer(n) for n in range(1, 8)])
    passes = [[len(source.example(3, i).response) for i in range(start, start + 7)] for start in (0, 7)]
    assert [sorted(p) for p in passes] == [list(range(1, 8))] * 2
    assert passes[0] != passes[1]
    assert len(source.example(3, 2).response) == passes[0][2]


def test_chats_supervise_the_last_answer_and_its_marker(tmp_path: Path) -> None:
    class Text:
        def encode(self, text: str) -> list[int]:
            return [ord(c) for c in text]

        def encode_pieces(self, pieces: Sequence[str]) -> list[int]:
            return [ord(c) for c in "".join(pieces)]

    class Template:
        def render(self, messages: list[dict[str, str]], add_generation_prompt: bool) -> list[str]:
            assert add_generation_prompt
            return [m["content"] for m in messages] + ["|"]

    def say(role: str, content: str) -> dict[str, str]:
        return {"role": role, "content": content}

    chats = [
        [say("user", "a"), say("assistant", "b"), say("user", "c"), say("assistant", "d"), say("user", "e")]
    ]
    chats.append([say("user", "nothing to learn")])
    file = tmp_path / "chats.jsonl"
    file.write_text("\n\n".join(json.dumps({"messages": chat}) for chat in chats))
    source = read_chats([file], chat_encoder(Text(), Template(), turn_end=7))
    assert source.examples == [TrainingExample(tuple(map(ord, "abc|")), (ord("d"), 7))]


def test_broken_chat_files_name_file_and_line(tmp_path: Path) -> None:
    file = tmp_path / "chats.jsonl"
    for content in ("{}", "[1]", "no", '{"messages": [3]}'):
        file.write_text("\n" + content)
        with pytest.raises(UsageError, match=r"chats\.jsonl:2"):
            read_chats([file], lambda messages: None)
    file.write_text("")
    with pytest.raises(UsageError, match="no usable conversation"):
        read_chats([file], lambda messages: None)
    with pytest.raises(NotFound, match="no such file"):
        read_chats([tmp_path / "other.jsonl"], lambda messages: None)


def test_sources_by_name() -> None:
    assert load_source(f"{__name__}:Counting", {}).example(1, 0) == ([3], [3])
    with pytest.raises(NotFound, match="cannot import"):
        load_source("no.such.module", {})
    with pytest.raises(UsageError, match="no example"):
        load_source("json", {})
    with pytest.raises(UsageError, match=r"data\.options"):
        load_source(f"{__name__}:Counting", {"colour": 1})
