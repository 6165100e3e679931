"""What callers say of single tokens becomes the engine's rules, or a clear error."""

from __future__ import annotations

import math
from typing import Any

import pytest

from canvaslm.errors import UsageError
from canvaslm.text.token_rules import rules_of
from canvaslm.types import TokenRules


def test_minus_a_hundred_forbids() -> None:
    rules = rules_of({3: -100, 4: -99.5, 5: 2, 6: -math.inf}, [7, 8])
    assert rules == TokenRules(((3, -math.inf), (4, -99.5), (5, 2.0), (6, -math.inf)), (7, 8))
    assert rules_of(None, None) == rules_of({}, None) == TokenRules()


@pytest.mark.parametrize(
    ("bias", "allowed", "param", "words"),
    [
        ([5], None, "logit_bias", "should be a table"),
        ({"5": 1.0}, None, "logit_bias", "'5' should be a token id"),
        ({True: 1.0}, None, "logit_bias", "True should be a token id"),
        ({5: "1"}, None, "logit_bias", "of token 5 should be a number"),
        (None, "abc", "allowed_token_ids", "should be a list"),
        (None, [1, "2"], "allowed_token_ids", "should be a list"),
        (None, 5, "allowed_token_ids", "should be a list"),
    ],
)
def test_what_is_no_rule_is_refused_by_name(bias: Any, allowed: Any, param: str, words: str) -> None:
    with pytest.raises(UsageError, match=words) as caught:
        rules_of(bias, allowed)
    assert caught.value.param == param
