"""From questions to rows of one batch, and from what these say to answers.

    plan = DecisionPlan(machine, task)
    outcomes = ...                          # run plan.requests together, `RowOutcome.add` every event
    plan.decisions(outcomes)

All rows share the state's tokens, which are encoded once; a row's canvas has noise where a label is to stand
and is given otherwise. A question has a row for each draw of noise, each order of its options and each place
where its labels part (see `labels`). Whoever runs engines runs the requests: the session, and the server.
"""

from __future__ import annotations

import hashlib
import itertools
import math
import struct
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace

from ..errors import UsageError
from ..text.tokenizer import Tokenizer
from ..text.transcript import ReplyBuilder
from ..types import MAX_WATCHED, AdapterUse, Committed, Event, Params, Request, Timings, Usage
from . import labels as labelling
from .answers import Decision, Decisions, LabelReading, decided, mass_of
from .calibration import LETTERS, VALUES, Calibration
from .labels import Label, LabelTree, Tokens
from .prompt import BETWEEN, joined, listed, single
from .questions import Question, QuestionOption

MOST_SAMPLES, MOST_STEPS, MOST_ORDERS = 16, 8, 16
MOST_ROWS, MOST_TOKENS = 4096, 2**25  # of one call


@dataclass(frozen=True)
class DecisionMachine:
    """What of a session a plan needs. `encode`: the tokens of a text that goes on where another ended."""

    tokenizer: Tokenizer
    encode: Callable[[str], tuple[int, ...]]
    canvas_length: int  # the shortest that the model may have
    canvas_longest: int
    block: int
    end: int  # stands behind a label
    pad: int
    params: Params


@dataclass(frozen=True)
class StatePrompt:
    """The tokens of a prompt before its question, the state's last, and those behind it."""

    before: tuple[int, ...]
    behind: tuple[int, ...]


@dataclass(frozen=True)
class DecisionTask:
    """What is asked, and how: draws of noise that are averaged, steps a canvas, orders of options that are
    averaged, whether questions stand on one canvas together."""

    prompt: StatePrompt
    questions: tuple[Question, ...]
    names: tuple[str, ...] = ()
    samples: int = 1
    steps: int = 1
    orders: int = 1
    joint: bool = False
    causal: bool = False  # the causal reader says what follows the prompt; there is no canvas
    labels: str | tuple[str, ...] = LETTERS
    calibration: Calibration = field(default_factory=Calibration)
    has_state: bool = True
    adapters: tuple[AdapterUse, ...] = ()


@dataclass
class RowOutcome(ReplyBuilder):
    """What became of one request."""

    watched: dict[int, tuple[float, ...]] = field(default_factory=dict)

    def add(self, event: Event) -> None:
        """Takes the next event. Raises what made the request fail."""
        super().add(event)
        if isinstance(event, Committed):
            self.watched |= event.watched


@dataclass(frozen=True)
class _Read:
    """One place of a row: what stands before it of the label of which question, in which draw."""

    question: int
    draw: int
    before: Tokens
    place: int


class DecisionPlan:
    """The rows of one call. `requests` are to be run together."""

    def __init__(self, machine: DecisionMachine, task: DecisionTask) -> None:
        """Raises UsageError for what cannot be asked."""
        self._machine, self._task = machine, task
        self._letters = labelling.Letters(machine.tokenizer)
        self._questions = [self._worded(question) for question in task.questions]
        self._orders = [self._rotations(question) for question in self._questions]
        self._labels = [self._label(question) for question in self._questions]
        self._trees = [
            [LabelTree.of(_in_order(labels, order)) for order in orders]
            for labels, orders in zip(self._labels, self._orders, strict=True)
        ]
        self._check_rows()
        self._reads: list[list[_Read]] = []
        requests: list[Request] = []
        for request, reads in self._joint_rows() if task.joint else self._rows():
            requests.append(request)
            self._reads.append(reads)
        self.requests = tuple(requests)

    def decisions(self, outcomes: Sequence[RowOutcome]) -> Decisions:
        """The answers, once every request has ended."""
        said: dict[tuple[int, int], dict[Tokens, dict[int, float]]] = {}
        hits: dict[tuple[int, int], bool] = {}
        for request, reads, outcome in zip(self.requests, self._reads, outcomes, strict=True):
            for read in reads:
                tokens = request.watched[read.place]
                row = dict(zip(tokens, outcome.watched[read.place], strict=True))
                said.setdefault((read.question, read.draw), {})[read.before] = row
                hits.setdefault((read.question, read.draw), outcome.tokens[read.place] in tokens)
        answers = tuple(self._decide(i, said, hits) for i in range(len(self._questions)))
        return Decisions(answers, self._task.names, self._usage(outcomes), _timings(outcomes), len(outcomes))

    def _decide(
        self,
        number: int,
        said: dict[tuple[int, int], dict[Tokens, dict[int, float]]],
        hits: dict[tuple[int, int], bool],
    ) -> Decision:
        question, readings = self._questions[number], []
        for draw in range(self._draws(number)):
            found = said[number, draw]
            tree = self._trees[number][draw // self._task.samples]
            first = next(iter(found.values()))
            readings.append(
                LabelReading(
                    tree.log_shares(found, len(question.options)),
                    mass_of(first, tuple(first)),
                    hits[number, draw],
                )
            )
        return decided(question, readings, self._task.calibration.heat(question.kind))

    def _check_rows(self) -> None:
        """Raises UsageError for more than can be held at once."""
        rows = sum(
            self._task.samples * sum(len(list(tree.partings())) for tree in trees) for trees in self._trees
        )
        prompts = sum(map(len, self._orders)) * len(self._task.prompt.before)
        if rows > MOST_ROWS or prompts > MOST_TOKENS:
            raise UsageError(
                f"the questions make {rows} rows behind {len(self._task.prompt.before)} tokens each: at most "
                f"{MOST_ROWS} rows, and {MOST_TOKENS} tokens of all prompts; ask fewer at once, or with "
                "fewer samples and orders",
                "questions",
            )

    # -- wording ---------------------------------------------------------------------------------------------

    def _worded(self, question: Question) -> Question:
        """With a predicate's true and false as the checkpoint has them."""
        if question.kind != "predicate":
            return question
        texts = self._task.calibration.noul_options
        options = (
            QuestionOption(o.value, text, o.description)
            for o, text in zip(question.options, texts, strict=True)
        )
        return replace(question, options=tuple(options))

    def _rotations(self, question: Question) -> list[list[int]]:
        """The orders in which its options are shown, evenly spread over all rotations."""
        count = len(question.options)
        wanted = 1 if self._task.labels == VALUES else min(self._task.orders, count)
        starts = [turn * count // wanted for turn in range(wanted)]
        return [[(start + i) % count for i in range(count)] for start in starts]

    def _label(self, question: Question) -> list[Label]:
        """The labels of its first, second ... option as shown."""
        kind, count, tokenizer = self._task.labels, len(question.options), self._machine.tokenizer
        if kind == LETTERS:
            return self._letters.labels(count)
        if kind == VALUES:
            texts = [option.text for option in question.options]
            return labelling.values(tokenizer, texts, self._machine.end)
        return labelling.chosen(tokenizer, tuple(kind), count)

    def _draws(self, number: int) -> int:
        return len(self._orders[number]) * self._task.samples

    # -- rows ------------------------------------------------------------------------------------------------

    def _rows(self) -> Iterator[tuple[Request, list[_Read]]]:
        """A row for every question, draw, and place where labels part."""
        for number, question in enumerate(self._questions):
            texts = [label.text for label in self._labels[number]]
            for turn, order in enumerate(self._orders[number]):
                tree = self._trees[number][turn]
                deepest = max(len(s) for label in self._labels[number] for s in label.spellings)
                own = self._task.labels == VALUES  # such labels have the end in them, each where it is
                prompt = self._prompt(question.instructions if own else single(question, order, texts))
                behind = {} if own else {deepest: self._machine.end}
                for sample in range(self._task.samples):
                    draw = turn * self._task.samples + sample
                    for before, tokens in tree.partings():
                        if self._task.causal:
                            read = _Read(number, draw, before, 0)
                            yield self._causal_request((*prompt, *before), tokens), [read]
                            continue
                        given = {**dict(enumerate(before)), **behind}
                        read = _Read(number, draw, before, len(before))
                        yield self._request(prompt, sample, given, {read.place: tokens}, deepest), [read]

    def _joint_rows(self) -> Iterator[tuple[Request, list[_Read]]]:
        """A row for every group of questions and draw: lines of number and label on one canvas."""
        if self._task.labels == VALUES:
            raise UsageError('joint answers have letters for labels: leave out labels="values"', "joint")
        if any(len(s) > 1 for labels in self._labels for label in labels for s in label.spellings):
            raise UsageError("joint answers have labels of one token: ask about fewer options", "joint")
        turns = max(len(orders) for orders in self._orders)
        for group in self._groups():
            for turn in range(turns):
                orders = {n: turn % len(self._orders[n]) for n in group}
                asked = [
                    listed(self._questions[n], self._orders[n][orders[n]], [x.text for x in self._labels[n]])
                    for n in group
                ]
                prompt, (given, places) = self._prompt(joined(asked)), self._lines(group)
                for sample in range(self._task.samples):
                    reads, watched = [], {}
                    for n, place in zip(group, places, strict=True):
                        ((_, tokens),) = self._trees[n][orders[n]].partings()
                        watched[place] = tokens
                        if turn < len(self._orders[n]):
                            reads.append(_Read(n, turn * self._task.samples + sample, (), place))
                    yield self._request(prompt, sample, given, watched, len(given) + len(places)), reads

    def _groups(self) -> Iterator[list[int]]:
        """The fewest groups, as even as can be, that each fit on a canvas with a place of padding."""
        count, longest = len(self._questions), self._room(self._machine.canvas_longest, 0)
        for groups in range(1, count + 1):
            edges = [i * count // groups for i in range(groups + 1)]
            parts = [list(range(a, b)) for a, b in itertools.pairwise(edges)]
            if all(self._fits(part, longest) for part in parts):
                yield from parts
                return
        raise UsageError(f"a canvas of {longest} places has no room for a joint answer", "joint")

    def _fits(self, group: list[int], longest: int) -> bool:
        given, places = self._lines(group)
        tokens = sum(len(label.spellings) for n in group for label in self._labels[n])
        return len(given) + len(places) + 1 <= longest and tokens <= MAX_WATCHED

    def _lines(self, group: list[int]) -> tuple[dict[int, int], list[int]]:
        """What is given of a joint answer, its end included, and the places of its labels."""
        given: dict[int, int] = {}
        places, at = [], 0
        for number in range(1, len(group) + 1):
            text = f"{number}:" if number == 1 else f"\n{number}:"
            for token in self._machine.encode(text):
                given[at] = token
                at += 1
            places.append(at)
            at += 1
        given[at] = self._machine.end
        return given, places

    def _prompt(self, text: str) -> tuple[int, ...]:
        """The prompt that ends in a text behind the state."""
        state = self._task.prompt
        lead = BETWEEN if self._task.has_state and text else ""
        return (*state.before, *self._machine.encode(lead + text), *state.behind)

    def _room(self, length: int, prompt: int) -> int:
        """Places of a canvas that are the answer's: where contexts are whole blocks, the end of the prompt
        that is none takes places of the canvas."""
        return length - (prompt % self._machine.block if prompt else self._machine.block - 1)

    def _request(
        self,
        prompt: tuple[int, ...],
        sample: int,
        given: dict[int, int],
        watched: dict[int, tuple[int, ...]],
        used: int,
    ) -> Request:
        """A row whose noise follows from its prompt and the number of the draw alone."""
        machine, shared = self._machine, self._task.prompt.before
        length = min(machine.canvas_longest, -(-(used + 1) // 16) * 16)
        length = max(length, machine.canvas_length)
        room = self._room(length, len(prompt))
        if used > room:
            raise UsageError(
                f"a label has {used} tokens, and a canvas of this model {room} places for it: ask with "
                "letters as labels",
                "labels",
            )
        if machine.end in given.values():
            given = {**given, **dict.fromkeys(range(max(given) + 1, room), machine.pad)}
        params = replace(
            machine.params,
            seed=_seed(prompt, sample),
            canvas_length=length,
            max_new_tokens=room,
            max_denoising_steps=self._task.steps,
            settle_steps=0,
            min_new_tokens=0,
        )
        return Request(
            prompt,
            params,
            given={place: token for place, token in given.items() if place < room},
            shared=len(shared),
            identity=f"decisions:{_digest(shared).hex()}",
            watched=watched,
            adapters=self._task.adapters,
        )

    def _causal_request(self, prompt: tuple[int, ...], tokens: tuple[int, ...]) -> Request:
        """A row that reads what follows the prompt. A label's first tokens stand at the prompt's end, so that
        the probability of a label of several is the exact product."""
        shared = self._task.prompt.before
        params = replace(
            self._machine.params, seed=0, decoding="causal", temperature=0.0, max_new_tokens=1,
            min_new_tokens=0, settle_steps=0, verify="off",
        )  # fmt: skip
        return Request(
            prompt, params, shared=len(shared), identity=f"decisions:{_digest(shared).hex()}",
            watched={0: tokens}, adapters=self._task.adapters,
        )  # fmt: skip

    def _usage(self, outcomes: Sequence[RowOutcome]) -> Usage:
        """The state once, and what each row has behind it."""
        shared = len(self._task.prompt.before)
        tokens = shared + sum(len(request.tokens) - shared for request in self.requests)
        first = outcomes[0].end
        return Usage(tokens, 0, first.usage.cached_tokens if first is not None else 0)


def _in_order(labels: Sequence[Label], order: Sequence[int]) -> list[tuple[Tokens, ...]]:
    """The spellings of each option's label, where options are shown in an order."""
    made: list[tuple[Tokens, ...]] = [()] * len(labels)
    for label, option in zip(labels, order, strict=True):
        made[option] = label.spellings
    return made


def _digest(tokens: Sequence[int], salt: int = 0) -> bytes:
    data = struct.pack(f"<{len(tokens) + 1}q", salt, *tokens)
    return hashlib.blake2b(data, digest_size=16).digest()


def _seed(prompt: Sequence[int], sample: int) -> int:
    return int.from_bytes(_digest(prompt, sample)[:8], "little") >> 1


def _timings(outcomes: Sequence[RowOutcome]) -> Timings:
    ends = [outcome.end.timings for outcome in outcomes if outcome.end is not None]
    return Timings(
        max((end.total for end in ends), default=0.0),
        min((end.queued for end in ends), default=0.0),
        math.fsum(end.encode for end in ends),
        math.fsum(end.denoise for end in ends),
    )


__all__ = [
    "MOST_ORDERS", "MOST_ROWS", "MOST_SAMPLES", "MOST_STEPS", "MOST_TOKENS", "DecisionMachine",
    "DecisionPlan", "DecisionTask", "RowOutcome", "StatePrompt",
]  # fmt: skip
