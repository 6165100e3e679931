"""Settings: every mistake names the key and the remedy."""

from __future__ import annotations

from pathlib import Path

import pytest

from canvaslm.errors import NotFound, UsageError
from canvaslm.train.settings import read_settings, settings_from_dict, settings_to_dict

GOOD = """
[run]
folder = "out"
steps = 10
[model]
config = "model"
[data]
source = "module:thing"
"""


def written(tmp_path: Path, text: str = GOOD) -> Path:
    file = tmp_path / "run.toml"
    file.write_text(text)
    return file


def test_defaults_and_overrides(tmp_path: Path) -> None:
    settings = read_settings(
        written(tmp_path), ["optim.lr=1", "run.folder=else where", "data.options.n=[1, 2]"]
    )
    assert settings.optim.lr == 1.0
    assert settings.run.folder == "else where"
    assert settings.data.options == {"n": [1, 2]}
    assert settings.run.steps == 10
    assert settings_from_dict(settings_to_dict(settings)) == settings


def test_paths_beside_the_file_become_absolute(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    settings = read_settings(written(tmp_path))
    assert settings.model.config == str(tmp_path / "model")
    assert settings.run.folder == "out"
    assert read_settings(written(tmp_path), ["model.config=org/name"]).model.config == "org/name"


@pytest.mark.parametrize(
    ("override", "key", "remedy"),
    [
        ("optim.lrr=1", "optim.lrr", "did you mean optim.lr"),
        ("optimm.lr=1", "optimm", "did you mean optim"),
        ("optim.lr=fast", "optim.lr", "should be a float"),
        ("run.steps=true", "run.steps", "should be a int"),
        ("run.steps=-1", "run.steps", "not in 0"),
        ("run.steps=0", "run.steps", "max_minutes"),
        ("run.folder=''", "run.folder", "name the folder"),
        ("run.autocast=fp8", "run.autocast", "none, bf16"),
        ("model.base=x", "model.base", "either"),
        ("data.source=''", "data.files", "either"),
        ("data.micro_batch=7", "data.micro_batch", "divide"),
        ("optim.betas=[0.9]", "optim.betas", "two numbers"),
        ("optim.betas=['a', 'b']", "optim.betas", "should be a float"),
        ("objective.self_conditioning=1.5", "objective.self_conditioning", "0 .. 1"),
    ],
)
def test_a_wrong_key_is_named_with_the_remedy(tmp_path: Path, override: str, key: str, remedy: str) -> None:
    with pytest.raises(UsageError) as error:
        read_settings(written(tmp_path), [override])
    assert error.value.param == key
    assert str(error.value).startswith(f"{key}:")
    assert remedy in str(error.value)


def test_overrides_need_a_section_and_a_value(tmp_path: Path) -> None:
    for text in ("lr=1", "optim.lr", "run.steps.more=1"):
        with pytest.raises(UsageError, match="--set"):
            read_settings(written(tmp_path), [text])


def test_files_that_are_missing_or_no_toml(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match="no such training configuration"):
        read_settings(tmp_path / "none.toml")
    with pytest.raises(UsageError, match="not valid TOML"):
        read_settings(written(tmp_path, "[run"))
    with pytest.raises(UsageError, match="should be a section"):
        read_settings(written(tmp_path, "run = 3"))


def test_the_demos_recipe_is_valid() -> None:
    import canvaslm.demo

    settings = read_settings(Path(canvaslm.demo.__file__).parent / "recipe.toml")
    assert Path(settings.model.config, "config.json").is_file()
