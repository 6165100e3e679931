"""The table of sampling parameters: what it says, and that values are held to it."""

from __future__ import annotations

from dataclasses import fields, replace
from typing import Any, get_type_hints

import pytest

from canvaslm.diffusion import PARAMETERS, PRESETS, SAMPLERS, Params, check_params
from canvaslm.diffusion.options import SamplingOptions
from canvaslm.diffusion.params import check_preset, nearest, old_names
from canvaslm.errors import UsageError


def test_the_table_has_every_field_with_its_type_and_default() -> None:
    assert list(PARAMETERS) == [f.name for f in fields(Params)]
    for name, about in PARAMETERS.items():
        assert about.default == getattr(Params(), name)
        assert about.kind in (bool, int, float, str)
        assert about.default is None or isinstance(about.default, about.kind)
        assert about.help and about.explained("`{}`".format)
        numeric = about.kind in (int, float)
        assert numeric == (about.low is not None) == (about.high is not None)
    assert PARAMETERS["seed"].kind is int


def test_typed_options_are_the_fields() -> None:
    assert get_type_hints(SamplingOptions) == {name: about.kind | None for name, about in PARAMETERS.items()}


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("top_k", "64", 64), ("seed", "-1", -1), ("t_max", "1", 1.0), ("eos_aware_stopping", "0", False),
        ("eos_aware_stopping", "Yes", True), ("sampler", "ancestral", "ancestral"),
        ("sampler", "confidence_threshold", "probability_threshold"),
    ],
)  # fmt: skip
def test_texts_are_read(name: str, text: str, value: object) -> None:
    found = PARAMETERS[name].read(text)
    assert (found, type(found)) == (value, type(value))


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("top_k", "6.5", "should be a whole number"), ("t_max", "warm", "should be a number"),
        ("eos_aware_stopping", "maybe", "should be true or false"), ("t_max", "nan", "out of range: 0.001"),
        ("top_k", "-1", "top_k = -1 is out of range: 0 to 1000000"), ("sampler", "x", "unknown sampler 'x'"),
    ],
)  # fmt: skip
def test_texts_that_stand_for_nothing(name: str, text: str, message: str) -> None:
    with pytest.raises(UsageError, match=message) as caught:
        PARAMETERS[name].read(text)
    assert caught.value.param == name


def test_only_numbers_have_a_range() -> None:
    assert PARAMETERS["t_min"].range == "0.001 to 100"
    assert PARAMETERS["sampler"].range == PARAMETERS["eos_aware_stopping"].range == ""


def test_defaults_are_allowed() -> None:
    assert check_params(Params()) == Params()


def test_samplers_are_those_of_the_table() -> None:
    assert PARAMETERS["sampler"].choices == tuple(SAMPLERS)


def test_presets_say_what_they_set() -> None:
    assert PRESETS == {
        "quality": {"max_denoising_steps": 48},
        "fast": {"max_denoising_steps": 16, "stability_threshold": 0},
        "balanced": {"stability_threshold": 0},
        "causal": {"decoding": "causal", "temperature": 0.0},
        "draft": {"verify": "threshold", "verify_steps": 2},
        "checked": {"verify": "checked"},
        "lean": {"stability_threshold": 0, "first_places": -1, "keep_steps": 2},
    }
    for name, values in PRESETS.items():
        check_params(replace(Params(), **values))
        assert check_preset(name) == values
    with pytest.raises(UsageError, match="unknown preset 'best': choose one of quality, fast, causal"):
        check_preset("best")


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("max_new_tokens", 0, "max_new_tokens = 0 is out of range: 1 to 16777216, or -1"),
        ("seed", -2, "seed = -2 is out of range: -1 to 9223372036854775807"),
        ("t_min", 0, "t_min = 0 is out of range: 0.001 to 100"),
        ("entropy_bound", -1, "entropy_bound = -1 is out of range: 0 to 1000000"),
        ("top_k", 1.0, "top_k should be a whole number, found 1.0"),
        ("t_max", "warm", "t_max should be a number, found 'warm'"),
        ("eos_aware_stopping", 1, "eos_aware_stopping should be true or false, found 1"),
        (
            "sampler",
            ["x"],
            "unknown sampler ['x']: choose one of entropy_bound, probability_threshold, ancestral",
        ),
        ("t_min", None, "t_min should be a number, found None"),
    ],
)
def test_messages_name_value_and_remedy(name: str, value: Any, message: str) -> None:
    with pytest.raises(UsageError) as caught:
        check_params(replace(Params(), **{name: value}))
    assert (str(caught.value), caught.value.param) == (message, name)


def test_numbers_too_large_for_a_float_are_out_of_range() -> None:
    for name in ("max_new_tokens", "temperature", "seed"):
        huge: Any = {name: 10**400}
        with pytest.raises(UsageError, match=f"{name} = 1000.* is out of range"):
            check_params(replace(Params(), **huge))


def test_the_old_name_of_a_sampler_still_works_and_is_told() -> None:
    old = Params(sampler="confidence_threshold", confidence_threshold=0.1)
    assert check_params(old) == Params(sampler="probability_threshold", confidence_threshold=0.1)
    assert old_names({"sampler": "confidence_threshold", "seed": 1, "preset": "fast"}) == {
        "sampler": "the sampler confidence_threshold is called probability_threshold now; the old name works"
    }
    assert old_names({"sampler": "ancestral"}) == {}


def test_the_nearest_name() -> None:
    assert nearest("temprature") == "temperature"
    assert nearest("max_tokens") == "max_new_tokens"
    assert nearest("colour") is None
    assert nearest("sytem", ["system", "thinking"]) == "system"
