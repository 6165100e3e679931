"""From examples to padded batches: blocks, EOS fill, what is supervised, and which block a step trains.

An example is prompt `p` (up to and including the header of the model's turn) and response `r` (its text plus
the marker that closes the turn). Blocks of `C` places start at the first response token; the last one is
filled up with EOS. A step trains one block of each example, drawn uniformly.

Where preferences are trained on, an example is a pair of answers to one prompt, and a row of each goes into
the same micro-batch, the better one first: of n blocks the one that stands as far down as in the other
answer.

Places of a response may be given, as they are to a model that fills holes: they stay clean on the canvas and
have no loss. A block without an open place is never trained.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch

from ..errors import UsageError

IGNORE = -100


@dataclass(frozen=True)
class TrainingExample:
    """Token ids of one prompt and its response. `truncated`: the response was cut for length.

    `given` says of every token of the response whether it is given; empty when none is. The fill is given
    where the response's last token is.
    """

    prompt: tuple[int, ...]
    response: tuple[int, ...]
    truncated: bool = False
    given: tuple[bool, ...] = ()


@dataclass(frozen=True)
class Pair:
    """The better and the worse answer to one prompt."""

    chosen: TrainingExample
    rejected: TrainingExample

    @property
    def prompt(self) -> tuple[int, ...]:
        return self.chosen.prompt


class Source(Protocol):
    """Random access to examples: the same (seed, index) gives the same example, in any order."""

    def example(self, seed: int, index: int) -> Any:
        """An Example, or anything with `prompt` and `response` (and `given`), or a pair of id sequences, or
        those and `given`. For preferences: a Pair, or anything with `chosen` and `rejected`, each of them
        such an example.
        """


@dataclass(frozen=True)
class TrainingRow:
    """One block of one example. `tokens` = p + r + fill; `end` = first token that is not supervised.

    `given` says of every token after the prompt whether it is given; empty when none is.
    """

    tokens: tuple[int, ...]
    prompt_length: int
    response_length: int
    block: int
    end: int
    given: tuple[bool, ...] = ()


@dataclass(frozen=True)
class Batch:
    """One micro-batch, B rows. Padding rows have positions -1 and nothing supervised.

    tokens, positions [B, L] int64 (position -1 = padding): what the encoder reads.
    encoder_places, encoder_targets [B, R] int64: places in [0, L) and the token after each (IGNORE = no
    target). clean, canvas_positions [B, C] int64 and supervised, given [B, C] bool: the block. What is given
    is not supervised.
    """

    tokens: torch.Tensor
    positions: torch.Tensor
    encoder_places: torch.Tensor
    encoder_targets: torch.Tensor
    clean: torch.Tensor
    canvas_positions: torch.Tensor
    supervised: torch.Tensor
    given: torch.Tensor

    def to(self, device: torch.device | str) -> Batch:
        """The same batch on another device."""
        return Batch(**{name: value.to(device) for name, value in vars(self).items()})

    @property
    def canvas_count(self) -> int:
        """Supervised places of the blocks."""
        return int(self.supervised.sum())

    @property
    def encoder_count(self) -> int:
        """Supervised next tokens of the encoder."""
        return int((self.encoder_targets != IGNORE).sum())

    @property
    def token_count(self) -> int:
        """Tokens the model reads, padding not counted: encoder plus canvas."""
        return int((self.positions >= 0).sum()) + self.row_count * self.clean.shape[1]

    @property
    def row_count(self) -> int:
        """Rows that are not padding."""
        return int((self.positions[:, 0] >= 0).sum())


def as_example(item: Any) -> TrainingExample:
    """Accepts an Example, an object with `prompt` and `response`, or a pair, or a pair and what is given.

    Raises UsageError where `given` is not as long as the response.
    """
    if isinstance(item, TrainingExample):
        return item
    if hasattr(item, "prompt") and hasattr(item, "response"):
        prompt, response, given = item.prompt, item.response, getattr(item, "given", ())
    else:
        prompt, response, given = item if len(item) == 3 else (*item, ())
    if given and len(given) != len(response):
        raise UsageError(
            f"data.source: an example's given has {len(given)} places, its response {len(response)}",
            param="data.source",
        )
    truncated = bool(getattr(item, "truncated", False))
    return TrainingExample(tuple(prompt), tuple(response), truncated, tuple(map(bool, given)))


def answers_of(item: Any, count: int) -> tuple[TrainingExample, ...]:
    """The answers of an example that has `count`: 1, or the 2 of a Pair, the better one first.

    Raises UsageError where a pair is wanted and there is none.
    """
    if count == 1:
        return (as_example(item),)
    if not (hasattr(item, "chosen") and hasattr(item, "rejected")):
        raise UsageError(
            "data.source: an example has no chosen and rejected, the two answers that objective.kind = dpo "
            "compares",
            param="data.source",
        )
    return as_example(item.chosen), as_example(item.rejected)


def cut(example: TrainingExample, max_length: int) -> TrainingExample | None:
    """Cuts the response so that prompt and response fit; None when no response token is left to supervise."""
    room = max_length - len(example.prompt)
    if room < 1 or not example.response or not example.prompt:
        return None
    if len(example.response) <= room:
        return example
    return replace(example, response=example.response[:room], given=example.given[:room], truncated=True)


def count_blocks(example: TrainingExample, canvas_length: int) -> int:
    """ceil(len(r) / C)."""
    return -(-len(example.response) // canvas_length)


def open_blocks(example: TrainingExample, canvas_length: int) -> list[int]:
    """The blocks with a place that is not given, in order; the fill is given where the last token is."""
    blocks = range(count_blocks(example, canvas_length))
    if not example.given:
        return list(blocks)
    return [b for b in blocks if not all(example.given[b * canvas_length : (b + 1) * canvas_length])]


def make_row(example: TrainingExample, block: int, canvas_length: int, eos: int) -> TrainingRow:
    """Block `block` of an example, EOS-filled. The fill is supervised unless the response was cut."""
    fill = -len(example.response) % canvas_length
    tokens = example.prompt + example.response + (eos,) * fill
    end = len(tokens) - (fill if example.truncated else 0)
    given = example.given and example.given + (example.given[-1],) * fill
    return TrainingRow(tokens, len(example.prompt), len(example.response), block, end, given)


def make_batch(
    rows: Sequence[TrainingRow],
    canvas_length: int,
    *,
    multiple: int = 1,
    size: int = 0,
    encode_fill: bool = True,
) -> Batch:
    """Pads rows to one batch: lengths up to a multiple of `multiple`, the count up
    to `size` with empty rows."""
    encoded = [_encoded_length(row, encode_fill) for row in rows]
    length = _round_up(max(encoded, default=1), multiple)
    places = [range(row.prompt_length - 1, min(n, row.end - 1)) for row, n in zip(rows, encoded, strict=True)]
    width = _round_up(max((len(p) for p in places), default=1), multiple)
    batch = _empty_batch(max(len(rows), size), length, width, canvas_length)
    for i, (row, n, where) in enumerate(zip(rows, encoded, places, strict=True)):
        _fill_row(batch, i, row, n, where, canvas_length)
    return batch


def _encoded_length(row: TrainingRow, encode_fill: bool) -> int:
    return len(row.tokens) if encode_fill else row.prompt_length + row.response_length


def _round_up(n: int, multiple: int) -> int:
    return max(1, -(-n // multiple)) * multiple


def _empty_batch(size: int, length: int, width: int, canvas_length: int) -> Batch:
    def whole(columns: int, value: int) -> torch.Tensor:
        return torch.full((size, columns), value, dtype=torch.int64)

    # Empty rows get canvas positions from 0 on: they see no context, only themselves, so nothing becomes NaN.
    return Batch(
        tokens=whole(length, 0),
        positions=whole(length, -1),
        encoder_places=whole(width, 0),
        encoder_targets=whole(width, IGNORE),
        clean=whole(canvas_length, 0),
        canvas_positions=torch.arange(canvas_length).repeat(size, 1),
        supervised=torch.zeros(size, canvas_length, dtype=torch.bool),
        given=torch.zeros(size, canvas_length, dtype=torch.bool),
    )


def _fill_row(
    batch: Batch, i: int, row: TrainingRow, encoded: int, places: range, canvas_length: int
) -> None:
    start = row.prompt_length + row.block * canvas_length
    batch.tokens[i, :encoded] = torch.tensor(row.tokens[:encoded])
    batch.positions[i, :encoded] = torch.arange(encoded)
    if places:
        batch.encoder_places[i, : len(places)] = torch.arange(places.start, places.stop)
        batch.encoder_targets[i, : len(places)] = torch.tensor(row.tokens[places.start + 1 : places.stop + 1])
    batch.clean[i] = torch.tensor(row.tokens[start : start + canvas_length])
    batch.canvas_positions[i] = torch.arange(start, start + canvas_length)
    batch.supervised[i] = torch.arange(start, start + canvas_length) < row.end
    if row.given:
        _take_given(batch, i, row, places, canvas_length)


def _take_given(batch: Batch, i: int, row: TrainingRow, places: range, canvas_length: int) -> None:
    """Marks what is given of row `i`, and takes it out of both losses."""
    given = torch.tensor(row.given)
    batch.given[i] = given[row.block * canvas_length : (row.block + 1) * canvas_length]
    batch.supervised[i] &= ~batch.given[i]
    next_given = given[: len(places)]  # the target of the first place is the response's first token
    batch.encoder_targets[i, : len(places)].masked_fill_(next_given, IGNORE)


@dataclass(frozen=True)
class Batcher:
    """Makes the micro-batches of any step from (seed, step) alone, so that a resumed run repeats them.

    The examples of a step are sorted by length before they are split, so that a micro-batch holds little
    padding. `answers`: rows of an example, 2 for pairs; they lie next to each other.
    """

    source: Source
    seed: int
    batch: int
    micro_batch: int
    canvas_length: int
    eos: int
    max_length: int
    multiple: int = 1
    encode_fill: bool = True
    answers: int = 1

    def rows(self, step: int) -> list[TrainingRow]:
        """The rows of a step, unsorted; examples with nothing to supervise are dropped."""
        return [row for group in self._groups(step) for row in group]

    def _groups(self, step: int) -> list[tuple[TrainingRow, ...]]:
        """The rows of a step, those of an example together."""
        indices = range(step * self.batch, (step + 1) * self.batch)
        return [group for index in indices if (group := self._group(index))]

    def _group(self, index: int) -> tuple[TrainingRow, ...]:
        """The rows of an example: one block of each answer, equally far down. None where an answer has
        nothing to supervise."""
        where, rows = random.Random(f"block/{self.seed}/{index}").random(), []
        for answer in answers_of(self.source.example(self.seed, index), self.answers):
            example = cut(answer, self.max_length)
            blocks = open_blocks(example, self.canvas_length) if example else []
            if example is None or not blocks:
                return ()
            rows.append(make_row(example, blocks[int(where * len(blocks))], self.canvas_length, self.eos))
        return tuple(rows)

    def step(self, step: int) -> list[Batch]:
        """The micro-batches of a step; every one has the rows of `micro_batch` examples, the last padded with
        empty ones."""
        groups = sorted(self._groups(step), key=self._length)
        if not groups:
            raise UsageError(
                f"data.max_length: all {self.batch} examples of step {step} have a prompt longer than "
                f"{self.max_length} tokens or an empty response; raise it or shorten the prompts",
                param="data.max_length",
            )
        size = min(self.micro_batch, self.batch)
        chunks = [groups[i : i + size] for i in range(0, len(groups), size)]
        return [
            make_batch(
                [row for group in chunk for row in group],
                self.canvas_length,
                multiple=self.multiple,
                size=size * self.answers,
                encode_fill=self.encode_fill,
            )
            for chunk in chunks
        ]

    def _length(self, group: tuple[TrainingRow, ...]) -> int:
        return max(_encoded_length(row, self.encode_fill) for row in group)


@dataclass(frozen=True)
class Shuffled:
    """A finite list of examples as an endless Source: a new permutation for each pass over the data."""

    examples: Sequence[TrainingExample | Pair]

    def example(self, seed: int, index: int) -> TrainingExample | Pair:
        """Example `index` of the endless stream of this seed."""
        epoch, place = divmod(index, len(self.examples))
        return self.examples[_permutation(seed, epoch, len(self.examples))[place]]


_permutations: dict[tuple[int, int, int], list[int]] = {}


def _permutation(seed: int, epoch: int, n: int) -> list[int]:
    """The order of one pass. The last two are kept: a batch may straddle two passes."""
    key = (seed, epoch, n)
    if key not in _permutations:
        while len(_permutations) > 1:
            _permutations.pop(next(iter(_permutations)))
        order = list(range(n))
        random.Random(f"order/{seed}/{epoch}").shuffle(order)
        _permutations[key] = order
    return _permutations[key]


__all__ = [
    "IGNORE",
    "Batch",
    "Batcher",
    "Pair",
    "Shuffled",
    "Source",
    "TrainingExample",
    "TrainingRow",
    "answers_of",
    "as_example",
    "count_blocks",
    "cut",
    "make_batch",
    "make_row",
    "open_blocks",
]
