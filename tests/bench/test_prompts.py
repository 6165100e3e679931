from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from canvaslm.bench.prompts import demo_prompts, general_prompts, read_prompts
from canvaslm.demo.tasks import TASKS
from canvaslm.errors import NotFound, UsageError


def jsonl(path: Path, *entries: Any) -> Path:
    path.write_text("\n".join(json.dumps(entry) for entry in entries), encoding="utf-8")
    return path


def test_text_holds_a_prompt_a_line(tmp_path: Path) -> None:
    file = tmp_path / "some.txt"
    file.write_text("First?\r\n\n  Zweite: schön?  \n", encoding="utf-8")
    assert [p.messages[0]["content"] for p in read_prompts([file])] == ["First?", "Zweite: schön?"]


def test_jsonl_holds_strings_prompts_and_conversations(tmp_path: Path) -> None:
    turns = [
        {"role": "user", "content": "a"},
        {"role": "assistant", "content": "b"},
        {"role": "user", "content": "c"},
    ]
    file = jsonl(
        tmp_path / "some.jsonl",
        "one",
        {"prompt": "two", "max_tokens": 7},
        {"messages": turns, "system": "short", "max_new_tokens": 9},
    )
    one, two, three = read_prompts([file])
    assert one.messages == ({"role": "user", "content": "one"},)
    assert (two.messages[0]["content"], two.max_new_tokens) == ("two", 7)
    assert three.messages == ({"role": "system", "content": "short"}, *turns)
    assert three.max_new_tokens == 9


@pytest.mark.parametrize(
    ("entry", "says"),
    [
        ({"text": "x"}, "needs prompt"),
        ({"messages": []}, "needs prompt"),
        ({"messages": [{"content": "x"}]}, "needs prompt"),
        ([1], "string or an object"),
        ({"prompt": "x", "max_tokens": 0}, "max_new_tokens"),
        ({"prompt": "x", "max_tokens": True}, "max_new_tokens"),
        ({"prompt": "x", "system": 1}, "system"),
    ],
)
def test_a_wrong_line_is_named(tmp_path: Path, entry: Any, says: str) -> None:
    file = jsonl(tmp_path / "some.jsonl", "fine", entry)
    with pytest.raises(UsageError, match=f"line 2.*{says}"):
        read_prompts([file])


def test_files_that_are_none(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match="missing"):
        read_prompts([tmp_path / "missing.txt"])
    empty = tmp_path / "empty.txt"
    empty.write_text("\n \n")
    with pytest.raises(UsageError, match="no prompt"):
        read_prompts([empty])
    broken = tmp_path / "broken.jsonl"
    broken.write_text("{")
    with pytest.raises(UsageError, match="not JSON"):
        read_prompts([broken])


def test_the_default_sets_are_the_same_every_time() -> None:
    assert demo_prompts(2) == demo_prompts(2)
    assert demo_prompts(seed=1) != demo_prompts(seed=2)
    assert len(demo_prompts(2)) == 2 * sum(task.evaluated for task in TASKS.values())
    assert len({p.messages[0]["content"] for p in general_prompts()}) == len(general_prompts()) >= 4
