from __future__ import annotations

import pytest

from canvaslm.text.markers import Special, looks_like_marker, merge_text


@pytest.mark.parametrize(
    "token", ["<|turn>", "<turn|>", '<|"|>', "<|image|>", "<|im_start|>", "<|tool_call>"]
)
def test_markers_are_recognised(token: str) -> None:
    assert looks_like_marker(token)


@pytest.mark.parametrize("token", ["<|", "|>", "<||>", "<|>", "<eos>", "<| a|>", "a<|b>", "<b>", "<|b", ""])
def test_other_text_is_no_marker(token: str) -> None:
    assert not looks_like_marker(token)


def test_neighbouring_text_is_joined_and_specials_stay_apart() -> None:
    pieces = ["a", "b", Special("<|x>"), Special("<|x>"), "", "c", ""]
    assert merge_text(pieces) == ["ab", Special("<|x>"), Special("<|x>"), "c"]
    assert [isinstance(p, Special) for p in merge_text(pieces)] == [False, True, True, False]
