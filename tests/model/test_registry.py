"""The registry: which family a file's words name, who has a word that two claim, what is told of one."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import fields, replace
from typing import Any

import pytest
import torch

from canvaslm.errors import BadConfig
from canvaslm.families import ChatMarkers, ModelFacts
from canvaslm.model import registry
from canvaslm.model.diffusion_gemma import DiffusionGemma, entry
from canvaslm.model.diffusion_gemma.shapes import SHAPES
from tests.second_family import FAMILY, HoleConfig, HoleModel, registered
from tests.tiny import tiny_config

FIRST = "diffusion_gemma"


@pytest.fixture(autouse=True)
def as_before() -> Iterator[None]:
    before = registry.families()
    yield
    assert registry.families() == before


def test_a_family_is_found_by_each_of_its_words() -> None:
    family = registry.family_of(tiny_config())
    assert family.name == FIRST and registry.families() == (family,)
    assert registry.family_of_type("diffusion_gemma") is family
    for word in ("diffusion-gemma", "diffusion_gemma"):
        assert registry.family_of_architecture(word) is family


@pytest.mark.parametrize("word", ["llama", "", "DIFFUSION_GEMMA", "diffusion_gemma_text", None, 3, ["x"], {}])
def test_an_unknown_type_is_named_with_what_there_is(word: object) -> None:
    with pytest.raises(BadConfig, match="canvaslm runs 'diffusion_gemma' checkpoints") as caught:
        registry.read_config({"model_type": word})
    assert f"model_type is {word!a}" in str(caught.value)


def test_an_unknown_type_is_cut_and_escaped() -> None:
    with pytest.raises(BadConfig) as caught:
        registry.family_of_type("\x1b[2J" + "x" * 10_000)
    assert len(str(caught.value)) < 250 and str(caught.value).isprintable()


def test_an_unknown_architecture_is_none() -> None:
    assert registry.family_of_architecture("llama") is None
    with registered():  # a family without GGUF files claims none
        assert registry.family_of_architecture("holes") is None


def test_with_a_second_family_each_has_its_own() -> None:
    with registered():
        assert [family.name for family in registry.families()] == [FIRST, "holes"]
        config = registry.read_config(HoleConfig(hidden_size=64).to_dict())
        assert config == HoleConfig(hidden_size=64) and registry.family_of(config) is FAMILY
        assert isinstance(registry.build(config), HoleModel)
        assert isinstance(registry.build(tiny_config(), device="meta"), DiffusionGemma)
        with pytest.raises(BadConfig, match="canvaslm runs 'diffusion_gemma', 'holes' checkpoints"):
            registry.family_of_type("llama")


def test_of_two_that_claim_a_word_the_first_has_it() -> None:
    """Nobody takes a file from a family that was there before."""
    rival = replace(FAMILY, name="rival", model_types=("diffusion_gemma", "rival"))
    registry.register(rival)
    try:
        assert registry.family_of_type("diffusion_gemma").name == FIRST
        assert registry.family_of_type("rival") is rival
    finally:
        registry.unregister("rival")


def test_a_name_is_taken_over_by_whoever_registers_last() -> None:
    with registered():
        registry.register(replace(FAMILY, model_types=("other",)))
        assert len(registry.families()) == 2
        assert registry.family_of(HoleConfig()).model_types == ("other",)
        with pytest.raises(BadConfig):
            registry.family_of_type("holes")


def test_unregistering_what_is_not_there_is_an_error() -> None:
    with pytest.raises(KeyError):
        registry.unregister("holes")
    with pytest.raises(KeyError):
        registry.family_of(HoleConfig())


@pytest.mark.parametrize("data", [None, [], "diffusion_gemma", 7])
def test_a_config_that_is_no_object(data: Any) -> None:
    with pytest.raises(BadConfig, match="the top level is not an object"):
        registry.read_config(data)


def test_what_is_built_has_the_type_and_place_asked_for() -> None:
    model = registry.build(tiny_config(), "meta", torch.bfloat16)
    assert {(t.device.type, t.dtype) for t in model.state_dict().values()} == {("meta", torch.bfloat16)}
    assert registry.build(tiny_config()).dtype == torch.float32


def test_the_entry_names_fields_of_a_family() -> None:
    assert set(entry.ENTRY) <= {field.name for field in fields(registry.Family)}
    family = registry.family_of(tiny_config())
    assert family.markers == ChatMarkers() and tiny_config().facts == ModelFacts()
    assert set(family.shapes) == {"26b", "small"}


class TestSummary:
    """What a person is told."""

    def test_the_released_model(self) -> None:
        assert registry.family_of(SHAPES["26b"]).summary(SHAPES["26b"]) == [
            ("type", "diffusion_gemma (block diffusion, mixture of experts)"),
            ("layers", "30: 25 sliding (window 1,024), 5 full"),
            ("hidden size", "2,816"),
            ("sliding attention", "16 heads of 256, 8 for keys and values"),
            ("full attention", "16 heads of 512, 2 for keys (values are keys)"),
            ("feed-forward", "dense 2,112"),
            ("experts", "128 of 704, 8 active"),
        ]

    def test_a_family_without_words_of_its_own(self) -> None:
        assert FAMILY.summary(HoleConfig(hidden_size=2048)) == [
            ("type", "holes (block diffusion)"),
            ("layers", "2"),
            ("hidden size", "2,048"),
            ("attention", "2 heads of 16, 1 for keys"),
        ]
