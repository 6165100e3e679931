"""Tables of chats in their forms, and one clear error for each that is broken."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import canvaslm
from canvaslm.errors import NotFound, UsageError
from canvaslm.session import Session
from canvaslm.train.finetune import DataChoice, read_data, shown
from canvaslm.train.formats import Examples, Renderer, held_out, make_examples
from canvaslm.train.tables import TableRow, read_table

ASKED, ANSWER = "Sort: 3 1", "1 3"
USER = {"role": "user", "content": ASKED}
SAID = {"role": "assistant", "content": ANSWER}


@pytest.fixture(scope="module")
def session() -> Iterator[Session]:
    with canvaslm.load() as opened:
        yield opened


def renderer(session: Session, **options: Any) -> Renderer:
    turn_end = session.tokenizer.marker_id(session.tokenizer.markers.turn_end)
    assert turn_end is not None
    return Renderer(session.tokenizer, session.template, turn_end, **options)


def made(session: Session, *rows: dict[str, Any], **options: Any) -> Examples:
    table = [TableRow(f"row {i}", row) for i, row in enumerate(rows)]
    length = options.pop("max_length", 200)
    columns, preferences = options.pop("columns", None), options.pop("preferences", False)
    return make_examples(
        table, renderer(session, **options), columns=columns, max_length=length, preferences=preferences
    )


FORMS: list[dict[str, Any]] = [
    {"messages": [USER, SAID]},
    {"messages": json.dumps([USER, SAID])},
    {"conversations": [{"from": "human", "value": ASKED}, {"from": "gpt", "value": ANSWER}]},
    {"instruction": ASKED, "input": "", "output": ANSWER},
    {"prompt": ASKED, "completion": ANSWER},
    {"prompt": [USER], "completion": [SAID]},
    {"question": ASKED, "answer": ANSWER},
]


@pytest.mark.parametrize("row", FORMS)
def test_every_form_is_the_same_example(session: Session, row: dict[str, Any]) -> None:
    (example,) = made(session, row).examples
    prompt = session.template.render([USER], add_generation_prompt=True)
    assert example.prompt == tuple(session.tokenizer.encode_pieces(prompt))
    assert session.tokenizer.decode(example.response) == ANSWER
    assert session.tokenizer.decode(example.response, skip_special=False).endswith("<turn|>")


def test_columns_can_be_named(session: Session) -> None:
    row = {"q": ASKED, "a": ANSWER, "prompt": "x"}
    (example,) = made(session, row, columns={"question": "q", "answer": "a"}).examples
    assert session.tokenizer.decode(example.response) == ANSWER
    with pytest.raises(UsageError, match=r"row 0: no column 'z' \(asked for as prompt\); there are: q, a"):
        made(session, row, columns={"prompt": "z"})


def test_the_last_turn_is_trained_or_every_one(session: Session) -> None:
    talk = {
        "messages": [
            USER,
            SAID,
            {"role": "user", "content": "More: 2"},
            {"role": "assistant", "content": "1 2 3"},
        ]
    }
    (last,) = made(session, talk).examples
    assert session.tokenizer.decode(last.response) == "1 2 3"
    both = made(session, talk, every_turn=True).examples
    assert [session.tokenizer.decode(one.response) for one in both] == [ANSWER, "1 2 3"]
    assert both[1] == last


PREFERENCES: list[dict[str, Any]] = [
    {"prompt": ASKED, "chosen": ANSWER, "rejected": "3 1"},
    {"prompt": [USER], "chosen": [SAID], "rejected": [{**SAID, "content": "3 1"}]},
    {"chosen": [USER, SAID], "rejected": [USER, {**SAID, "content": "3 1"}]},
    {  # as in UltraFeedback: everything at once
        "prompt": ASKED, "messages": [USER, SAID],
        "chosen": [USER, SAID], "rejected": [USER, {**SAID, "content": "3 1"}],
    },
]  # fmt: skip


@pytest.mark.parametrize("row", PREFERENCES)
def test_preferences_are_pairs_with_one_prompt(session: Session, row: dict[str, Any]) -> None:
    found = made(session, row, preferences=True)
    (pair,) = found.pairs
    (plain,) = made(session, FORMS[0]).examples
    assert pair.chosen == plain
    assert pair.chosen.prompt == pair.rejected.prompt == pair.prompt
    assert session.tokenizer.decode(pair.rejected.response) == "3 1"
    assert (found.report.rows, found.report.examples) == (1, 1)
    assert found.items == [pair]


def test_preferences_or_answers_are_wanted_and_each_error_names_both_remedies(session: Session) -> None:
    with pytest.raises(UsageError, match=r"row 1: .* --objective dpo; or .* --columns completion=chosen"):
        made(session, FORMS[0], PREFERENCES[0])
    with pytest.raises(UsageError, match=r"columns prompt, chosen, rejected; here are question, answer"):
        made(session, FORMS[-1], preferences=True)
    (better,) = made(session, PREFERENCES[0], columns={"completion": "chosen"}).examples
    assert session.tokenizer.decode(better.response) == ANSWER
    assert made(session, PREFERENCES[3]).examples == [better]  # it has messages too


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"prompt": None}, "no prompt to the answers chosen and rejected"),
        ({"rejected": [USER, SAID]}, "two answers of the assistant to the same turns"),
        ({"chosen": [USER, SAID], "rejected": [SAID, USER]}, "two answers of the assistant"),
        ({"rejected": ANSWER}, "nothing to train on: 1 rows.*1 dropped: both answers are the same"),
        ({"rejected": ""}, "1 dropped: the answer is empty"),
    ],
)
def test_a_broken_preference_is_named(session: Session, changes: dict[str, Any], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        made(session, PREFERENCES[0] | changes, preferences=True)


def test_both_answers_have_one_prompt_also_where_one_thinks(session: Session) -> None:
    thinks = {**SAID, "reasoning_content": "1 is less than 3"}
    row = {"prompt": [USER], "chosen": [thinks], "rejected": [{**SAID, "content": "3 1"}]}
    (pair,) = made(session, row, preferences=True).pairs
    assert pair.chosen.prompt == pair.rejected.prompt
    (dropped,) = made(session, row, preferences=True, keep_thinking=False).pairs
    assert dropped.chosen.prompt == dropped.rejected.prompt != pair.prompt


def test_pairs_of_one_prompt_are_held_out_together(session: Session) -> None:
    rows = [
        {"prompt": f"Sort: {i}", "chosen": str(i), "rejected": wrong} for i in range(40) for wrong in "xyz"
    ]
    train, apart = held_out(made(session, *rows, preferences=True), 0.3)
    assert len(train) + len(apart) == 120
    assert apart
    assert not {one.prompt for one in train} & {one.prompt for one in apart}


def test_what_is_too_long_is_counted(session: Session) -> None:
    long = {"question": ASKED, "answer": "9 " * 300}
    found = made(session, FORMS[0], long, {"question": "x " * 400, "answer": "y"}, max_length=60)
    assert (found.report.rows, found.report.examples, found.report.cut) == (3, 2, 1)
    assert sum(found.report.dropped.values()) == 1
    assert found.examples[1].truncated
    assert (
        "1 answers cut for length; 1 dropped: the prompt alone has 60 tokens or more" in found.report.text()
    )


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(answer=st.text(min_size=1, max_size=30))
def test_any_text_is_trained_as_it_is(session: Session, answer: str) -> None:
    (example,) = made(session, {"prompt": "x", "completion": answer}, max_length=500).examples
    assert example.response[:-1] == tuple(session.tokenizer.encode(answer))


BROKEN: list[tuple[str, str, str]] = [
    ("a.jsonl", '{"messages": []}\n', r"a.jsonl:1: messages should be a list"),
    ("a.jsonl", '{"question": "x", "answer": "y"}\n{"quest', r"a.jsonl:2: not JSON at column"),
    ("a.jsonl", '{"text": "x"}\n', r"a.jsonl:1: the columns text are of no known form \(chat: messages; "),
    ("a.jsonl", "[1]\n", r"a.jsonl:1: should be an object with columns, found list"),
    ("a.jsonl", '{"messages": [{"role": "robot", "content": "x"}]}\n', r"role is 'robot'; known: assistant"),
    ("a.jsonl", '{"messages": [{"role": "user", "content": "x"}]}\n', r"no turn of the assistant"),
    ("a.jsonl", '{"question": "x", "answer": ["y"]}\n', r"answer should be text, found list"),
    ("a.jsonl", '{"question": "x", "answer": ""}\n', r"nothing to train on: 1 rows.*the answer is empty"),
    ("a.jsonl", "", r"nothing to train on: 0 rows"),
    ("a.json", '{"a": 1}', r"a.json: should be a list of objects"),
    ("a.json", '[\n{"a": 1},\n]', r"a.json: not JSON at line 3, column 1"),
    ("a.csv", "question,answer\nx\n", r"a.csv:2: has not as many cells"),
    ("a.csv", "question,answer\nx,y,z\n", r"a.csv:2: has not as many cells"),
    ("a.csv", "name,text\nx,y\n", r"a.csv:2: the columns name, text are of no known form"),
    ("a.jsonl", "[" * 100_000, r"a.jsonl:1: (is nested too deeply|not JSON)"),
    ("a.jsonl", '{"question": null, "answer": "x"}\n', r"a.jsonl:1: the columns question, answer are of no"),
    ("a.jsonl", '{"messages": "hello"}\n', r"a.jsonl:1: messages is text, and not JSON"),
    ("a.txt", "x", r"a.txt: should end in one of .jsonl"),
]


@pytest.mark.parametrize(("name", "text", "said"), BROKEN)
def test_a_broken_table_is_one_clear_error(
    session: Session, tmp_path: Path, name: str, text: str, said: str
) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(UsageError, match=said):
        read_data(DataChoice(str(tmp_path / name)), renderer(session))


def test_bytes_that_are_no_text(session: Session, tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(b'{"question": "\xff"}')
    with pytest.raises(UsageError, match=r"a.jsonl:1: not UTF-8 at byte 14 of the line \(0xff\)"):
        read_data(DataChoice(str(tmp_path / "a.jsonl")), renderer(session))
    with pytest.raises(NotFound, match="no such file"):
        read_data(DataChoice(str(tmp_path / "b.jsonl")), renderer(session))


def test_marks_of_byte_order_ends_of_lines_and_long_cells(session: Session, tmp_path: Path) -> None:
    row = json.dumps(FORMS[0])
    long = f"{ASKED}{'z' * 200_000}"  # beyond the csv module's own limit
    files = {
        "a.jsonl": f"\ufeff{row}\r\n\r\n{row}\r\n", "a.json": f"\ufeff[{row}]",
        "a.csv": f"\ufeffquestion,answer\r\n{ASKED},{ANSWER}\r\n{long},{ANSWER}\r\n",
    }  # fmt: skip
    for name, text in files.items():
        (tmp_path / name).write_bytes(text.encode())
        rows = list(read_table(tmp_path / name))
        assert make_examples(rows[:1], renderer(session), max_length=500).report.examples == 1
    assert len(rows[1].values["question"]) > 200_000
    (tmp_path / "b.csv").write_bytes(b"question,answer\r\nx,y\r\nx,\xe9\r\n")
    with pytest.raises(UsageError, match=r"b.csv:3: not UTF-8 at byte 2 of the line \(0xe9\)"):
        list(read_table(tmp_path / "b.csv"))


def test_csv_json_and_folders(session: Session, tmp_path: Path) -> None:
    (tmp_path / "train.csv").write_text(f"question,answer\n{ASKED},{ANSWER}\n")
    (tmp_path / "valid.json").write_text(json.dumps({"data": [FORMS[0]]}))
    found = read_data(DataChoice(str(tmp_path)), renderer(session))
    assert found.train == found.valid
    assert len(found.train) == 1
    (tmp_path / "train.csv").unlink()
    with pytest.raises(NotFound, match=r"no file whose name begins with train.*valid.json"):
        read_data(DataChoice(str(tmp_path)), renderer(session))


def test_parquet(session: Session, tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow", reason="pyarrow is not installed")
    parquet = pytest.importorskip("pyarrow.parquet")
    parquet.write_table(pyarrow.Table.from_pylist([FORMS[0]]), tmp_path / "a.parquet")
    (row,) = read_table(tmp_path / "a.parquet")
    assert row.values["messages"] == [USER, SAID]


def test_a_share_is_held_out_whatever_the_order(session: Session, tmp_path: Path) -> None:
    rows = [{"question": f"Sort: {i}", "answer": str(i)} for i in range(60)]
    for name, order in (("a", rows), ("b", rows[::-1])):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in order))
    one, two = (
        read_data(DataChoice(str(tmp_path / f"{name}.jsonl"), "20%"), renderer(session)) for name in "ab"
    )
    assert set(one.valid) == set(two.valid)
    assert 4 < len(one.valid) < 22
    assert not set(one.valid) & set(one.train)
    for share in ("0%", "x%", "100%"):
        with pytest.raises(UsageError, match="no share between"):
            read_data(DataChoice(str(tmp_path / "a.jsonl"), share), renderer(session))


def test_examples_are_shown_as_the_model_reads_them(session: Session) -> None:
    (one,) = shown(made(session, FORMS[0]).examples, session.tokenizer)
    assert one.prompt.endswith("<|turn>model\n")
    assert one.answer == "1 3<turn|>"
    (two,) = shown(made(session, PREFERENCES[0], preferences=True).items, session.tokenizer)
    assert (two.prompt, two.answer, two.rejected) == (one.prompt, one.answer, "3 1<turn|>")
