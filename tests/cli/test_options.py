from __future__ import annotations

import inspect
from dataclasses import fields
from typing import Annotated, Any, get_type_hints

import pytest
import typer

from canvaslm.cli.options import Loading, Sampling, Truncation, grouped, translated
from canvaslm.errors import UsageError


def names_in(options: Any) -> set[str]:
    return {field.name for field in fields(options)}


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [
        (["--diffusion-visual"], ["--live"]),
        (["--diffusion-eb-t-max", "0.9"], ["--t-max", "0.9"]),
        (["--diffusion-eb-t-max=0.9"], ["--t-max=0.9"]),
        (["--diffusion-kv-cache", "-n", "4"], ["-n", "4"]),
        (["-sys", "be brief"], ["--system", "be brief"]),
        (["-p", "x", "--", "--diffusion-visual"], ["-p", "x", "--", "--diffusion-visual"]),
        ([], []),
    ],
)
def test_flags_of_llama_cpp(theirs: list[str], ours: list[str]) -> None:
    assert translated(theirs) == ours


def test_groups_become_flags_of_their_own() -> None:
    @grouped
    def command(loading: Loading, name: Annotated[str, typer.Option("--name")] = "x") -> None: ...

    assert list(inspect.signature(command).parameters) == [
        "ctx",
        "model",
        "device",
        "dtype",
        "threads",
        "kv_type",
        "self_conditioning",
        "deterministic",
        "name",
    ]
    assert get_type_hints(command)["device"] is str


def test_sampling_names_are_those_of_params() -> None:
    from canvaslm.types import Params

    assert names_in(Sampling) - {"preset", "from_environment"} == names_in(Params)


def test_a_truncation_is_part_of_sampling_and_checked() -> None:
    assert names_in(Truncation) <= names_in(Sampling)
    assert Truncation().chosen() == {}
    assert Truncation(top_k=0, top_k_tail_correction=False).chosen() == {
        "top_k": 0,
        "top_k_tail_correction": False,
    }
    with pytest.raises(UsageError, match="top_k_start = 64 needs top_k_end > 0 as well"):
        Truncation(top_k_start=64).chosen()


def test_only_what_was_set_is_chosen() -> None:
    assert Sampling().chosen() == {}
    assert Sampling(seed=-1, t_min=0.0).chosen() == {"seed": -1, "t_min": 0.0}
