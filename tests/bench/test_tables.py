from __future__ import annotations

import pytest

from canvaslm.bench.tables import number, plain, share


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (None, "-"), (0, "0"), (0.00123, "0.0012"), (0.5, "0.50"), (9.876, "9.88"), (12.34, "12.3"),
        (123.4, "123"), (1234.5, "1,234"), (1e6, "1,000,000"),
    ],
)  # fmt: skip
def test_numbers_have_two_or_three_figures(value: float | None, shown: str) -> None:
    assert number(value) == shown


def test_shares_and_names() -> None:
    assert (share(None), share(0.126), share(1.5)) == ("-", "13 %", "150 %")
    assert plain("model.gguf") == "model.gguf"
    assert "\x1b" not in plain("a\x1b[31m")
