"""Sweeps: any parameter of the table by its names, grids, and what is refused."""

from __future__ import annotations

import pytest

from canvaslm.diffusion import PARAMETERS
from canvaslm.errors import UsageError
from canvaslm.evals.points import MAX_POINTS, grid, read_sweep
from canvaslm.evals.run import EvalOptions


@pytest.mark.parametrize("name", [name for name in PARAMETERS if name != "seed"])
def test_every_parameter_of_the_table_can_be_swept(name: str) -> None:
    about = PARAMETERS[name]
    values = {bool: "true,off", str: ",".join(about.choices)}.get(about.kind, f"{about.low},{about.high}")
    sweep = read_sweep(f"{name.replace('_', '-')}={values}")
    assert sweep.name == name
    for value in sweep.values:
        about.check(value)


@pytest.mark.parametrize(
    ("text", "name", "values", "labels"),
    [
        ("steps=1,2, 48", "max_denoising_steps", (1, 2, 48), ["steps=1", "steps=2", "steps=48"]),
        ("temp=0,0.5", "temperature", (0.0, 0.5), ["temp=0", "temp=0.5"]),
        ("eos-aware-stopping=on,off", "eos_aware_stopping", (True, False), None),
        ("sampler=confidence_threshold", "sampler", ("probability_threshold",), None),
    ],
)
def test_names_are_those_of_flags_too(
    text: str, name: str, values: tuple[object, ...], labels: list[str] | None
) -> None:
    sweep = read_sweep(text)
    assert (sweep.name, sweep.values) == (name, values)
    assert labels is None or sweep.labels() == labels


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("steps", "should look like steps=1,2,4"),
        ("=1", "should look like steps=1,2,4"),
        ("stepz=1", "no parameter stepz: did you mean steps"),
        ("zzz=1", r"no parameter zzz: docs/sampling\.md"),
        ("seed=1,2", "--seeds N answers"),
        ("steps=", "'': should be a whole number"),
        ("steps=1,two", "'two': should be a whole number"),
        ("steps=0", "out of range: 1 to 10000"),
        ("sampler=best", "choose one of entropy_bound"),
        ("steps=4,4", "twice"),
    ],
)
def test_what_no_sweep_can_be_is_told(text: str, says: str) -> None:
    with pytest.raises(UsageError, match=says) as caught:
        read_sweep(text)
    assert caught.value.param == "sweep"


def test_the_first_sweep_makes_curves_and_the_others_tell_them_apart() -> None:
    points = grid([read_sweep("steps=1,2"), read_sweep("top_k=0,5"), read_sweep("temp=1")])
    assert [(p.label, p.curve, p.at) for p in points] == [
        ("steps=1, top_k=0, temp=1", "top_k=0, temp=1", "steps=1"),
        ("steps=2, top_k=0, temp=1", "top_k=0, temp=1", "steps=2"),
        ("steps=1, top_k=5, temp=1", "top_k=5, temp=1", "steps=1"),
        ("steps=2, top_k=5, temp=1", "top_k=5, temp=1", "steps=2"),
    ]
    assert points[3].params == {"max_denoising_steps": 2, "top_k": 5, "temperature": 1.0}
    assert points[0].with_form().curve == "top_k=0, temp=1, schema"
    (alone,) = grid([read_sweep("steps=3")])
    assert (alone.curve, alone.with_form().curve) == ("", "schema")


def test_a_grid_has_an_end() -> None:
    eight = read_sweep("steps=1,2,3,4,5,6,7,8")
    assert len(grid([eight, read_sweep("top_k=0,1,2,3,4,5,6,7")])) == MAX_POINTS
    with pytest.raises(UsageError, match="8 x 9 makes 72 points, and 64 are the most"):
        grid([eight, read_sweep("top_k=0,1,2,3,4,5,6,7,8")])
    with pytest.raises(UsageError, match="max_denoising_steps is swept twice"):
        grid([eight, read_sweep("max_denoising_steps=9")])


def test_a_swept_parameter_is_not_set_besides() -> None:
    options = EvalOptions(steps=4, sweeps=(read_sweep("steps=1,2"),))
    with pytest.raises(UsageError, match="both say how many"):
        _ = options.points
    options = EvalOptions(steps=4, sampling={"top_k": 3}, sweeps=(read_sweep("top_k=5,6"),))
    assert [options.params(point) for point in options.points] == [
        {"top_k": 5, "max_denoising_steps": 4},
        {"top_k": 6, "max_denoising_steps": 4},
    ]
