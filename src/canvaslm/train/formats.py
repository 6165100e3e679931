"""From rows of a table to training examples: forms of chat data, told apart by their columns.

| form | columns |
|---|---|
| chat | `messages`, and `tools` |
| ShareGPT | `conversations`, of `from` and `value` |
| Alpaca | `instruction`, `output`, and `input` |
| pairs | `prompt`, `completion` (texts, or lists of messages) |
| questions | `question`, `answer` |
| preferences | `prompt`, `chosen`, `rejected`; or without prompt, where both are whole conversations |
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ..errors import UsageError
from .data import Pair, TrainingExample, cut
from .tables import TableRow

FORMS: dict[str, tuple[str, ...]] = {
    "chat": ("messages",),
    "ShareGPT": ("conversations",),
    "preferences": ("chosen", "rejected"),
    "pairs": ("prompt", "completion"),
    "Alpaca": ("instruction", "output"),
    "questions": ("question", "answer"),
}
_SPEAKERS = {
    "human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant", "model": "assistant",
    "system": "system", "tool": "tool", "function": "tool", "observation": "tool", "developer": "system",
}  # fmt: skip
_THOUGHTS = ("reasoning_content", "reasoning", "thinking")


@dataclass(frozen=True)
class DataRow:
    """Messages of one row, and its tools. `rejected`: the answer that is worse than the last message."""

    where: str
    messages: tuple[dict[str, Any], ...]
    tools: tuple[Any, ...] = ()
    rejected: dict[str, Any] | None = None


@dataclass
class DataReport:
    """What became of the rows. `cut`: answers that were cut for length; `dropped`: how many, by reason."""

    rows: int = 0
    examples: int = 0
    cut: int = 0
    dropped: Counter[str] = field(default_factory=Counter)
    longest: int = 0  # tokens of prompt and answer together

    def text(self) -> str:
        lost = ", ".join(f"{count} dropped: {reason}" for reason, count in sorted(self.dropped.items()))
        parts = [f"{self.rows:,} rows", f"{self.examples:,} examples, the longest of {self.longest:,} tokens"]
        if self.cut:
            parts.append(f"{self.cut:,} answers cut for length")
        return "; ".join([*parts, *([lost] if lost else [])])


def form_of(
    row: TableRow, columns: Mapping[str, str], *, preferences: bool = False
) -> tuple[str, dict[str, Any]]:
    """The row's form, and its values by the form's names. `columns`: {name here: name in the file}. Of forms
    that fit, preferences are meant where they are wanted, else the one whose columns were named.

    Raises UsageError naming the columns that are there, and the forms that are known.
    """
    for ours, theirs in columns.items():
        if theirs not in row.values:
            raise UsageError(
                f"data: {row.where}: no column {theirs!r} (asked for as {ours}); "
                f"there are: {', '.join(map(str, row.values))}",
                param="columns",
            )
    values = {**row.values, **{ours: row.values[theirs] for ours, theirs in columns.items()}}
    fitting = [form for form, names in FORMS.items() if all(values.get(name) is not None for name in names)]
    if fitting:
        if preferences and "preferences" in fitting:
            return "preferences", values
        return max(fitting, key=lambda form: len(set(columns) & set(FORMS[form]))), values
    known = "; ".join(f"{form}: {', '.join(names)}" for form, names in FORMS.items())
    raise UsageError(
        f"data: {row.where}: the columns {', '.join(map(str, row.values)) or '(none)'} are of no known form "
        f"({known}); --columns messages=... names them",
        param="data",
    )


def conversation(
    row: TableRow, columns: Mapping[str, str] | None = None, *, preferences: bool = False
) -> DataRow:
    """Raises UsageError with the row for what is malformed, and where it is of preferences and they are not
    wanted, or the other way round."""
    form, values = form_of(row, columns or {}, preferences=preferences)
    if (form == "preferences") != preferences:
        raise UsageError(f"data: {row.where}: {_other_objective(row, preferences)}", param="data")
    rejected = None
    if form == "chat":
        messages = _messages(values["messages"], row)
    elif form == "ShareGPT":
        messages = _messages(values["conversations"], row)
    elif form == "Alpaca":
        asked = _text(values["instruction"], "instruction", row)
        more = values.get("input")
        asked += f"\n\n{_text(more, 'input', row)}" if more else ""
        messages = [_user(asked), _assistant(_text(values["output"], "output", row))]
    elif form == "questions":
        question, answer = (_text(values[name], name, row) for name in ("question", "answer"))
        messages = [_user(question), _assistant(answer)]
    elif form == "preferences":
        messages, rejected = _preference(values, row)
    else:
        messages = [
            *_turns(values["prompt"], "prompt", row),
            *_turns(values["completion"], "completion", row),
        ]
    tools = values.get("tools") or ()
    if isinstance(tools, str):
        tools = _json_text(tools, "tools", row)
    if not any(message["role"] == "assistant" for message in messages):
        raise UsageError(
            f"data: {row.where}: no turn of the assistant, which is what is trained", param="data"
        )
    return DataRow(row.where, tuple(messages), tuple(tools), rejected)


def _other_objective(row: TableRow, preferences: bool) -> str:
    if preferences:
        return (
            "--objective dpo compares two answers to a prompt, in the columns prompt, chosen, rejected; here "
            f"are {', '.join(map(str, row.values))} (--columns chosen=... names them; --objective sft trains "
            "on answers)"
        )
    return (
        "preferences (chosen, rejected) are trained on with --objective dpo; or name the better answer as "
        "completion, which is trained on alone: --columns completion=chosen"
    )


def _messages(found: Any, row: TableRow) -> list[dict[str, Any]]:
    if isinstance(found, str):  # as tables without lists hold them
        found = _json_text(found, "messages", row)
    if not isinstance(found, list) or not found or not all(isinstance(m, dict) for m in found):
        raise UsageError(f"data: {row.where}: messages should be a list of objects with a role", param="data")
    return [_message(message, row) for message in found]


def _message(message: dict[str, Any], row: TableRow) -> dict[str, Any]:
    speaker = message.get("role", message.get("from"))
    role = _SPEAKERS.get(str(speaker).lower())
    if role is None:
        raise UsageError(
            f"data: {row.where}: a message's role is {speaker!r}; known: {', '.join(sorted(_SPEAKERS))}",
            param="data",
        )
    rest = {k: v for k, v in message.items() if k not in ("role", "from", "value") and v is not None}
    content = message.get("content", message.get("value"))
    if content is None and not rest.get("tool_calls"):
        raise UsageError(f"data: {row.where}: a message of {role} has no content", param="data")
    return {**rest, "role": role, "content": content or ""}


def _turns(found: Any, name: str, row: TableRow) -> list[dict[str, Any]]:
    """A text as one turn, or a list of messages."""
    if isinstance(found, str):
        return [_user(found) if name == "prompt" else _assistant(found)]
    return _messages(found, row)


def _preference(values: dict[str, Any], row: TableRow) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """(the conversation up to the better answer, the worse answer). The answers stand alone, as texts or
    messages, or with the conversation before them, which is then not asked for."""
    chosen, rejected = (_turns(values[name], name, row) for name in ("chosen", "rejected"))
    if chosen[0]["role"] == rejected[0]["role"] == "assistant":
        if values.get("prompt") is None:
            raise UsageError(
                f"data: {row.where}: no prompt to the answers chosen and rejected; name its column: "
                "--columns prompt=...",
                param="columns",
            )
        asked = _turns(values["prompt"], "prompt", row)
        chosen, rejected = [*asked, *chosen], [*asked, *rejected]
    if chosen[:-1] != rejected[:-1] or not chosen[-1]["role"] == rejected[-1]["role"] == "assistant":
        raise UsageError(
            f"data: {row.where}: chosen and rejected should be two answers of the assistant to the same "
            "turns",
            param="data",
        )
    return chosen, rejected[-1]


def _user(text: str) -> dict[str, Any]:
    return {"role": "user", "content": text}


def _assistant(text: str) -> dict[str, Any]:
    return {"role": "assistant", "content": text}


def _text(found: Any, name: str, row: TableRow) -> str:
    if not isinstance(found, str | int | float) or isinstance(found, bool):
        raise UsageError(
            f"data: {row.where}: {name} should be text, found {type(found).__name__}", param="data"
        )
    return str(found)


def _json_text(text: str, name: str, row: TableRow) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise UsageError(
            f"data: {row.where}: {name} is text, and not JSON: {error.msg}", param="data"
        ) from error


@dataclass(frozen=True)
class Renderer:
    """Conversations as token ids. `turn_end` closes a turn, and is part of the answer."""

    tokenizer: Any
    template: Any
    turn_end: int
    keep_thinking: bool = True
    every_turn: bool = False

    def examples(self, talk: DataRow) -> Iterator[TrainingExample]:
        """One for the last turn of the assistant, or one for each."""
        turns = [i for i, message in enumerate(talk.messages) if message["role"] == "assistant"]
        for at in turns if self.every_turn else turns[-1:]:
            yield self.example(talk, talk.messages[:at], talk.messages[at])

    def pair(self, talk: DataRow) -> Pair:
        """Both answers of a preference. Where one of them thinks, the prompt asks both to."""
        assert talk.rejected is not None
        before, *answers = talk.messages[:-1], talk.messages[-1], talk.rejected
        thinking = any(self._thinks(answer) for answer in answers)
        better, worse = (self.example(talk, before, answer, thinking=thinking) for answer in answers)
        return Pair(better, worse)

    def example(
        self,
        talk: DataRow,
        before: tuple[dict[str, Any], ...],
        answer: dict[str, Any],
        *,
        thinking: bool = False,
    ) -> TrainingExample:
        """thinking: the prompt asks for thoughts, also where there are none.

        Raises UsageError naming the row where the template writes the turns before an answer differently once
        it is there."""
        asked, answer = [self._shown(m) for m in before], self._shown(answer)
        tools = list(talk.tools) or None
        thinking = thinking or any(self._thinks(message) for message in (*asked, answer))
        prompt = self.template.render(asked, tools, thinking, add_generation_prompt=True)
        if answer.get("tool_calls") or thinking:
            whole = self.template.render([*asked, answer], tools, thinking, add_generation_prompt=False)
            response = self._behind(prompt, whole, talk)
        else:
            response = [*self.tokenizer.encode(_plain(answer["content"], talk)), self.turn_end]
        return TrainingExample(tuple(self.tokenizer.encode_pieces(prompt)), tuple(response))

    def _behind(self, prompt: list[str], whole: list[str], talk: DataRow) -> list[int]:
        """Ids of what the whole has behind the prompt, up to the end of the turn."""
        start, rest, seen = len("".join(prompt)), list[str](), 0
        if not "".join(whole).startswith("".join(prompt)):
            raise UsageError(
                f"data: {talk.where}: the chat template writes the turns before this answer differently once "
                "it is there, so that no prompt leads to it; drop the thinking (--thinking drop)",
                param="data",
            )
        for piece in whole:
            if seen + len(piece) > start:
                inside = max(0, start - seen)
                rest.append(piece[inside:] if inside else piece)
            seen += len(piece)
        ids = list(self.tokenizer.encode_pieces(rest))
        while ids and ids[-1] != self.turn_end:
            ids.pop()
        return ids

    def _thinks(self, message: dict[str, Any]) -> bool:
        return any(self._shown(message).get(name) for name in _THOUGHTS)

    def _shown(self, message: dict[str, Any]) -> dict[str, Any]:
        if self.keep_thinking:
            return message
        return {name: value for name, value in message.items() if name not in _THOUGHTS}


def _plain(content: Any, talk: DataRow) -> str:
    if isinstance(content, str):
        return content
    if isinstance(content, list) and all(isinstance(p, dict) and p.get("type") == "text" for p in content):
        return "".join(str(part["text"]) for part in content)
    raise UsageError(f"data: {talk.where}: an answer should be text", param="data")


@dataclass
class Examples:
    """Examples by the conversations that they come from, and what was lost."""

    examples: list[TrainingExample] = field(default_factory=list)
    pairs: list[Pair] = field(default_factory=list)
    keys: list[str] = field(default_factory=list)  # of the example's or pair's conversation
    report: DataReport = field(default_factory=DataReport)

    @property
    def items(self) -> list[TrainingExample | Pair]:
        """What is trained on: the pairs, or the examples."""
        return [*self.pairs, *self.examples]


def make_examples(
    rows: Iterable[TableRow],
    renderer: Renderer,
    *,
    columns: Mapping[str, str] | None = None,
    max_length: int,
    preferences: bool = False,
) -> Examples:
    """All rows as examples, or as pairs where `preferences` are wanted; those without room for an answer are
    dropped, and answers cut to `max_length`.

    Raises UsageError with the row for what is malformed, for preferences where answers are wanted and the
    other way round, and when nothing is left.
    """
    made = Examples()
    report = made.report
    for row in rows:
        report.rows += 1
        talk = conversation(row, columns, preferences=preferences)
        if talk.rejected is not None:
            pair = renderer.pair(talk)
            fitted = _fitted((pair.chosen, pair.rejected), max_length, report)
            if fitted:
                made.pairs.append(Pair(*fitted))
                made.keys.append(_key(talk.messages[:-1]))  # pairs of one prompt go together
            continue
        for example in renderer.examples(talk):
            fitted = _fitted((example,), max_length, report)
            made.examples += fitted
            made.keys += [_key((talk.messages, None))] * len(fitted)
    if not made.keys:
        raise UsageError(f"data: nothing to train on: {report.text()}", param="data")
    return made


def _key(said: tuple[Any, ...]) -> str:
    return hashlib.blake2b(repr(said).encode(), digest_size=8).hexdigest()


def _fitted(answers: Sequence[TrainingExample], max_length: int, report: DataReport) -> list[TrainingExample]:
    """The answers of one example, cut where they are too long; none, which is counted, where one of them
    leaves nothing to train on."""
    cut_answers = [cut(one, max_length) for one in answers]
    fitted = [one for one in cut_answers if one is not None]
    if any(len(one.response) < 2 for one in answers):
        report.dropped["the answer is empty"] += 1
    elif len(fitted) < len(answers):
        report.dropped[f"the prompt alone has {max_length} tokens or more"] += 1
    elif len(set(fitted)) < len(fitted):
        report.dropped["both answers are the same"] += 1
    else:
        report.examples += 1
        report.cut += sum(one.truncated for one in fitted)
        report.longest = max(report.longest, *(len(one.prompt) + len(one.response) for one in fitted))
        return fitted
    return []


def held_out(
    made: Examples, share: float
) -> tuple[list[TrainingExample | Pair], list[TrainingExample | Pair]]:
    """(for training, held out): which are which hangs on the conversation alone, not on their order, and all
    turns of one go together. share: 0 to 1."""
    kept: list[TrainingExample | Pair] = []
    apart: list[TrainingExample | Pair] = []
    for example, key in zip(made.items, made.keys, strict=True):
        (apart if int(key, 16) < share * 2**64 else kept).append(example)
    return kept, apart


__all__ = [
    "FORMS",
    "DataReport",
    "DataRow",
    "Examples",
    "Renderer",
    "conversation",
    "form_of",
    "held_out",
    "make_examples",
]  # fmt: skip
