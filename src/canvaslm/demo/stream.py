"""The endless stream the demo model is trained on: example number `index` of `seed`, by random access.

Every example has its own generator, keyed by (seed, index), so a resumed run repeats it and no state is
saved. `python -m canvaslm.demo.stream` prints how many tokens prompts and answers have.
"""

from __future__ import annotations

from bisect import bisect
from collections.abc import Mapping
from dataclasses import replace
from functools import lru_cache
from itertools import accumulate
from pathlib import Path
from random import Random

from tokenizers import Tokenizer

from .config import BOS, CANVAS_LENGTH, MODEL_FOLDER
from .holes import with_holes
from .tasks import TASKS, Example, Split

WEIGHTS: Mapping[str, float] = {
    "sudoku": 0.35,
    "reverse": 0.09,
    "json": 0.08,
    "capitals": 0.08,
    "functions": 0.09,
    "blanks": 0.07,
    "sort": 0.08,
    "long": 0.09,
    "two_turns": 0.05,
    "small_talk": 0.02,
}
INFILL_SHARE = 0.125  # examples whose answer is given but for holes
SYSTEM_SHARE = 0.1
THINKING_SHARE = 0.04
SYSTEM_PROMPTS = (
    "You are a helpful assistant.",
    "You are kind.",
    "Answer in few words.",
    "Be brief.",
    "You are the demo model.",
)
# A thought is trained where the answer leaves room for it in one canvas.
THINKING_TASKS = frozenset({"sudoku", "reverse", "capitals", "sort", "blanks", "small_talk"})


def example_at(
    seed: int,
    index: int,
    weights: Mapping[str, float] = WEIGHTS,
    split: Split = "train",
    infill: float = INFILL_SHARE,
) -> Example:
    """Example `index` of the stream `seed`. `weights` are shares by task name; they need not add up to 1.

    `infill` is the share of examples with holes; the others are the same whatever it is.
    """
    rng = Random(f"{seed}/{index}")
    names, steps = tuple(weights), tuple(accumulate(weights.values()))
    name = names[bisect(steps, rng.random() * steps[-1], hi=len(steps) - 1)]
    example = TASKS[name].sample(rng, split)
    holes = Random(f"holes/{seed}/{index}")
    return with_holes(example, holes) if holes.random() < infill else dress(example, rng)


def dress(example: Example, rng: Random) -> Example:
    """Sometimes puts a system prompt in front, sometimes has the model think."""
    thinks = rng.random() < THINKING_SHARE
    if rng.random() < SYSTEM_SHARE and len(example.messages) == 1:
        system = {"role": "system", "content": rng.choice(SYSTEM_PROMPTS)}
        example = replace(example, messages=(system, *example.messages))
    if thinks and example.task in THINKING_TASKS:
        example = replace(example, thought=TASKS[example.task].thought)
    return example


class Encoder:
    """Token ids of conversations, as the chat template and the tokenizer would make them together.

    Pieces of the template are encoded once. That is exact because no merge of the demo
    tokenizer crosses a newline.
    """

    def __init__(self, folder: Path = MODEL_FOLDER) -> None:
        self.tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        vocab = self.tokenizer.get_vocab()
        self.start, self.end, self.think = vocab["<|turn>"], vocab["<turn|>"], vocab["<|think|>"]
        self.channel, self.channel_end = vocab["<|channel>"], vocab["<channel|>"]
        self.newline = self.text("\n")
        self.piece = lru_cache(maxsize=256)(self.text)

    def text(self, text: str) -> list[int]:
        """Ids of plain text."""
        ids: list[int] = self.tokenizer.encode(text, add_special_tokens=False).ids
        return ids

    def prompt(self, example: Example) -> list[int]:
        """`<bos>`, the turns, and the header of the model's turn."""
        ids = [BOS]
        system = example.messages[0]["content"] if example.messages[0]["role"] == "system" else None
        if system is not None or example.thought:
            ids += [self.start, *self.piece("system\n")]
            ids += [self.think, *self.newline] if example.thought else []
            ids += [*self.piece(system or ""), self.end, *self.newline]
        for message in example.messages[system is not None :]:
            role = "model\n" if message["role"] == "assistant" else "user\n"
            ids += [self.start, *self.piece(role), *self.text(message["content"]), self.end, *self.newline]
        return [*ids, self.start, *self.piece("model\n")]

    def response(self, example: Example) -> list[int]:
        """The thought in its channel when there is one, the answer, and `<turn|>`."""
        thought = []
        if example.thought:
            thought = [self.channel, *self.piece(f"thought\n{example.thought}\n"), self.channel_end]
        answer = [token for text, _ in example.pieces() for token in self.text(text)]
        return [*thought, *answer, self.end]

    def given(self, example: Example) -> list[bool]:
        """Per token of the response whether it is given; empty where the example has no holes."""
        if not example.holes:
            return []
        known = [given for text, given in example.pieces() for _ in self.text(text)]
        return [*known, example.closed]


def encode_example(example: Example, encoder: Encoder) -> tuple[list[int], list[int]]:
    """(prompt ids, response ids): the response is supervised, the prompt is context."""
    return encoder.prompt(example), encoder.response(example)


class DemoStream:
    """The stream as the trainer's source: `data.source =
    "canvaslm.demo.stream:DemoStream"`, `weights` and `infill` are options."""

    def __init__(
        self,
        weights: Mapping[str, float] = WEIGHTS,
        folder: str | Path = MODEL_FOLDER,
        infill: float = INFILL_SHARE,
    ) -> None:
        self.weights, self.infill = weights, infill
        self.encoder = Encoder(Path(folder))

    def example(self, seed: int, index: int) -> tuple[list[int], list[int], list[bool]]:
        """(prompt ids, response ids, which of them are given) of example `index`."""
        example = example_at(seed, index, self.weights, infill=self.infill)
        return (*encode_example(example, self.encoder), self.encoder.given(example))


def length_table(seed: int = 0, count: int = 20000) -> str:
    """Lengths in tokens over `count` examples of the stream, a line per task."""
    encoder = Encoder()
    lengths: dict[str, list[tuple[int, int]]] = {}
    for index in range(count):
        example = example_at(seed, index)
        prompt, response = encode_example(example, encoder)
        lengths.setdefault(example.task, []).append((len(prompt), len(response)))
    rows = [
        f"{'task':<12}{'share':>7}{'prompt min/mean/max':>22}{'response min/mean/max':>24}{'2 canvases':>12}"
    ]
    for name, pairs in lengths.items():
        prompts, responses = zip(*pairs, strict=True)
        two = sum(length > CANVAS_LENGTH for length in responses) / len(responses)
        rows.append(
            f"{name:<12}{len(pairs) / count:>7.3f}{_spread(prompts):>22}{_spread(responses):>24}{two:>12.2f}"
        )
    return "\n".join(rows)


def _spread(lengths: tuple[int, ...]) -> str:
    return f"{min(lengths)}/{sum(lengths) / len(lengths):.1f}/{max(lengths)}"


if __name__ == "__main__":
    print(length_table())

__all__ = [
    "INFILL_SHARE",
    "SYSTEM_PROMPTS",
    "WEIGHTS",
    "DemoStream",
    "Encoder",
    "dress",
    "encode_example",
    "example_at",
    "length_table",
]
