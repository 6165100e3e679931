from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from canvaslm.errors import UsageError
from canvaslm.text.escaping import Escaper, cut, usable_specials
from canvaslm.text.markers import Special

PLAIN = st.recursive(
    st.none() | st.integers() | st.text(), lambda x: st.lists(x) | st.dictionaries(st.text(), x), max_leaves=8
)
SPECIALS = ["<|turn>", "<turn|>", "</s>", "[BOS]", '<|"|>']


@given(data=PLAIN)
def test_show_undoes_hide(data: Any) -> None:
    escaper = Escaper(SPECIALS, data)
    assert escaper.show(escaper.hide(data)) == data


@given(text=st.lists(st.sampled_from([*'<|>[]/"tsurnBOS \u4dc0\u4dc1', *SPECIALS])).map("".join))
def test_hidden_text_has_no_marker_and_keeps_its_shape(text: str) -> None:
    hidden = Escaper(SPECIALS, text).hide(text)
    assert len(hidden) == len(text)
    assert not set("<|>[]") & set(hidden)
    assert [c for c in hidden if c.isspace() or c.isalnum()] == [
        c for c in text if c.isspace() or c.isalnum()
    ]


def test_quotes_are_left_alone() -> None:
    assert Escaper(SPECIALS, "").hide('"x"') == '"x"'


def test_stand_ins_occur_nowhere_in_the_input() -> None:
    text = "<" + "".join(map(chr, range(0x4DC0, 0x4E00)))
    hidden = Escaper([], text).hide(text)
    assert hidden[0] not in text
    assert hidden[1:] == text[1:]


def test_an_input_that_uses_every_stand_in_is_refused() -> None:
    blocks = (
        (0x2800, 0x4E00),
        (0x1F000, 0x1F100),
        (0xE000, 0xF900),
        (0xF0000, 0xFFFFE),
        (0x100000, 0x10FFFE),
    )
    with pytest.raises(UsageError, match="stand in"):
        Escaper([], "<" + "".join(chr(c) for a, b in blocks for c in range(a, b)))


@pytest.mark.parametrize("data", [object(), [b"x"], {"a": {1, 2}}])
def test_only_plain_data(data: Any) -> None:
    with pytest.raises(UsageError, match="plain data"):
        Escaper([], data)


def test_depth_is_limited() -> None:
    data: list[Any] = []
    for _ in range(200):
        data = [data]
    with pytest.raises(UsageError, match="deep"):
        Escaper([], data)


def test_cut_takes_the_longest() -> None:
    pieces = cut("a<|image|>b<|image>", ["<|image", "<|image|>", "<|image>"])
    assert pieces == ["a", "<|image|>", "b", "<|image>"]
    assert [isinstance(p, Special) for p in pieces] == [False, True, False, True]
    assert cut("", ["x"]) == []
    assert cut("ab", []) == ["ab"]


def test_specials_without_signs_cannot_be_protected() -> None:
    assert usable_specials(["EOS", "<s>", "[X]", "eos_1"]) == ["<s>", "[X]"]
