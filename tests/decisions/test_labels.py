"""Labels in tokens, and the tree that several of them make."""

from __future__ import annotations

import math

import pytest

from canvaslm.decisions.labels import LabelTree, Letters, Tokens, chosen, values
from canvaslm.demo.config import MODEL_FOLDER
from canvaslm.errors import UsageError
from canvaslm.text.tokenizer import Tokenizer


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.from_folder(MODEL_FOLDER)


@pytest.mark.parametrize(
    ("count", "first", "deep"), [(2, "A", 1), (26, "A", 1), (27, "AA", 2), (255, "AA", 2)]
)
def test_letters_are_as_many_as_there_are_options(
    tokenizer: Tokenizer, count: int, first: str, deep: int
) -> None:
    made = Letters(tokenizer).labels(count)
    assert len({label.text for label in made}) == count and made[0].text == first
    for label in made:
        for tokens in label.spellings:
            assert len(tokens) == deep and tokenizer.decode(tokens).strip() == label.text
    tree = LabelTree.of([label.spellings for label in made])
    partings = list(tree.partings())
    assert partings[0][0] == () and len(partings) <= 11


class WithSpaces:
    """A vocabulary with a letter in two spellings, as large ones have, and pairs of letters."""

    def encode(self, text: str) -> list[int]:
        if len(text.strip()) <= 2 and text.strip().isupper():
            return [int.from_bytes(text.encode(), "big")]
        return list(text.encode())


def test_both_spellings_count() -> None:
    made = Letters(WithSpaces()).labels(27)  # type: ignore[arg-type]
    assert made[0].spellings == ((0x4141,), (0x204141,))
    tree = LabelTree.of([made[0].spellings, made[1].spellings])
    row = {0x4141: math.log(0.1), 0x204141: math.log(0.2), 0x4142: math.log(0.2), 0x204142: -math.inf}
    said: dict[Tokens, dict[int, float]] = {(): row}
    assert [math.exp(x) for x in tree.log_shares(said, 2)] == pytest.approx([0.6, 0.4])


def test_labels_that_begin_alike_are_chains_of_shares() -> None:
    tree = LabelTree.of([[(1, 2, 9)], [(1, 3, 9)], [(4, 9)], [(1, 9)]])
    assert list(tree.partings()) == [((), (1, 4)), ((1,), (2, 3, 9))]
    said = {
        (): {1: math.log(0.3), 4: math.log(0.1)},
        (1,): {2: math.log(0.02), 3: math.log(0.05), 9: math.log(0.03)},
    }
    shares = [math.exp(x) for x in tree.log_shares(said, 4)]
    assert shares == pytest.approx([0.75 * 0.2, 0.75 * 0.5, 0.25, 0.75 * 0.3])
    assert sum(shares) == pytest.approx(1)


def test_one_label_is_read_all_the_same() -> None:
    tree = LabelTree.of([[(5, 6)]])
    assert list(tree.partings()) == [((), (5,))]
    assert tree.log_shares({(): {5: -3.0}}, 1) == [0.0]


def test_what_cannot_be_told_apart_is_refused(tokenizer: Tokenizer) -> None:
    alike = values(tokenizer, ["true", "true"], 6)
    with pytest.raises(UsageError, match="options 1 and 2 read alike"):
        LabelTree.of([label.spellings for label in alike])
    with pytest.raises(UsageError, match="without text"):
        values(tokenizer, [""], 6)
    with pytest.raises(UsageError, match="'AB' is no single token"):
        chosen(tokenizer, ("A", "AB"), 2)
    with pytest.raises(UsageError, match="1 labels for 2 options"):
        chosen(tokenizer, ("A",), 2)
