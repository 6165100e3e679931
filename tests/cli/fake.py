"""A session without a model: canvases that settle from the left, made of whole words. No torch."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from types import SimpleNamespace
from typing import Any

from canvaslm.errors import PromptTooLong
from canvaslm.types import (
    CanvasReport,
    Committed,
    Draft,
    Event,
    Failed,
    Filled,
    Finished,
    Params,
    Timings,
    TokenLogprob,
    Usage,
)

END = 0


class FakeVocabulary:
    """Token ids are handed out as texts come; 0 is `<end>`, a control token."""

    def __init__(self) -> None:
        self._bytes = [b"<end>"]

    def id_of(self, text: str | bytes) -> int:
        data = text.encode() if isinstance(text, str) else text
        if data not in self._bytes:
            self._bytes.append(data)
        return self._bytes.index(data)

    def token_bytes(self, token_id: int) -> bytes:
        return self._bytes[token_id]

    def is_control(self, token_id: int) -> bool:
        return token_id == END


def words_of(text: str) -> list[str]:
    """Words with the space before them, newlines apart: joined they are the text."""
    words, word = [], ""
    for char in text:
        if char in " \n" and word:
            words.append(word)
            word = ""
        word += char
        if char == "\n":
            words.append(word)
            word = ""
    return words + [word] * bool(word)


@dataclass
class FakeSession:
    """Answers with `answers` in turn. `steps` denoise steps a canvas of `places`, `pause` seconds each."""

    answers: list[str] = field(default_factory=lambda: ["Hello there."])
    thought: str = ""
    places: int = 8
    steps: int = 4
    pause: float = 0.0
    limit: int = 10_000
    is_demo: bool = True
    name: str = "fake"
    notes: tuple[str, ...] = ()
    params: Params = field(default_factory=Params)
    eos_token_ids: tuple[int, ...] = (END,)
    tokenizer: FakeVocabulary = field(default_factory=FakeVocabulary)
    asked: list[tuple[Any, dict[str, Any]]] = field(default_factory=list)
    closed: int = 0
    causal: dict[str, float] = field(default_factory=dict)  # what the reader says of words; 0 of the others

    def merge(self, preset: str | None, params: dict[str, Any]) -> Params:
        return replace(self.params, **params)

    def stream(self, messages: Any, **options: Any) -> Iterator[Event]:
        self.asked.append((messages, options))
        prompt = messages if isinstance(messages, str) else messages[-1].content
        if len(prompt) > self.limit:
            yield Failed(0, PromptTooLong("the prompt has too many tokens: shorten it", "messages"))
            return
        text = self.answers[(len(self.asked) - 1) % len(self.answers)]
        try:
            yield from self._events(text, options)
        finally:
            self.closed += 1

    def stream_fill(self, template: str, **options: Any) -> Iterator[Draft | Filled]:
        """All of the text is the one hole."""
        for event in self.stream(template, **options, drafts=True):
            if isinstance(event, Draft):
                yield event
            if isinstance(event, Finished):
                text = self.answers[(len(self.asked) - 1) % len(self.answers)]
                yield Filled(
                    text, (text,), event.reason, event.usage, event.timings, event.seed, event.canvases
                )

    def stream_edit(self, text: str, spans: Any, wanted: str, **options: Any) -> Iterator[Draft | Filled]:
        return self.stream_fill(text, **options)

    def _events(self, text: str, options: dict[str, Any]) -> Iterator[Event]:
        words = words_of(text)
        parts = [words[i : i + self.places] for i in range(0, len(words), self.places)] or [[]]
        reports = []
        start = time.monotonic()
        for number, part in enumerate(parts):
            last = number == len(parts) - 1
            tokens = [self.tokenizer.id_of(word) for word in part] + [END] * last
            for step in range(1, self.steps + 1):
                time.sleep(self.pause)
                if options.get("drafts"):
                    yield self._draft(number, step, tokens)
            reports.append(CanvasReport(self.steps, "converged", 0.001))
            thinking = self.thought if number == 0 else ""
            yield Committed(
                0, number, tuple(tokens), reports[-1], "".join(part), thinking,
                token_logprobs=tuple(map(self._judged, part)) if options.get("doubt") else (),
            )  # fmt: skip
        count = len(words) + 1
        seed = options.get("seed")
        yield Finished(
            0,
            "stop",
            Usage(3, count),
            Timings(total=max(time.monotonic() - start, 0.001), denoise=0.001 * self.steps),
            1234 if seed in (None, -1) else seed,
            tuple(reports),
        )

    def _judged(self, word: str) -> TokenLogprob:
        return TokenLogprob(word, word.encode(), 0.0, (), self.causal.get(word.strip(), 0.0), 1)

    def _draft(self, canvas: int, step: int, tokens: list[int]) -> Draft:
        padded = tokens + [END] * (self.places - len(tokens))
        settled = len(padded) * step // self.steps
        noise = [self.tokenizer.id_of(f" ~{step}{place}") for place in range(len(padded))]
        shown = padded[:settled] + noise[settled:]
        return Draft(
            0, canvas, step, self.steps, 0.7,
            tuple(shown),
            tuple(0.0 if i < settled else 1.5 for i in range(len(shown))),
            tuple(i < settled for i in range(len(shown))),
            tuple(i >= settled for i in range(len(shown))),
        )  # fmt: skip


def install(session: FakeSession) -> None:
    """Makes `canvaslm.load` return the session, in this process and without torch."""
    import sys

    def load(source: str | None = None, **options: Any) -> FakeSession:
        if source is not None and source.startswith("missing"):
            from canvaslm.errors import NotFound

            raise NotFound(f"{source}: no such model")
        return session

    sys.modules["canvaslm.session"] = SimpleNamespace(load=load)  # type: ignore[assignment]


def main() -> int:
    """`python -m tests.cli.fake run ...`: the program with a fake session, whose
    fields FAKE gives as JSON."""
    import json
    import os

    from canvaslm.cli.main import main as program

    install(FakeSession(**json.loads(os.environ.get("FAKE", "{}"))))
    return program()


if __name__ == "__main__":
    raise SystemExit(main())
