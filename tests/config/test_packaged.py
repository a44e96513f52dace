"""Recipes by name: listed, loaded and copied without a clone."""

from pathlib import Path

import pytest

from stepalign import config
from stepalign.config import packaged
from stepalign.errors import StepalignError


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A working directory without recipes."""
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize("name", packaged.names())
def test_a_copy_says_what_the_recipe_says(name: str) -> None:
    copied = packaged.copy(name, Path("mine.toml"))
    if not name.endswith("base"):  # a part of other recipes
        assert config.load(copied) == config.load(name)
    assert len(packaged.summary(copied)) > 20
    with pytest.raises(StepalignError, match=r"mine\.toml: exists"):
        packaged.copy(name, Path("mine.toml"))


def test_a_file_comes_before_a_shipped_recipe_of_its_name() -> None:
    Path("quickstart").write_text('extends = "quickstart"\nname = "mine"\n')
    with pytest.raises(StepalignError, match="extends itself"):
        config.load("quickstart")
    Path("mine.toml").write_text('extends = "paper/refsol"\nname = "mine"\n')
    assert config.load("mine.toml").context.template == "refsol"


def test_a_folder_of_a_recipe_s_name_is_passed_over() -> None:
    Path("quickstart").mkdir()
    Path("paper/refsol").mkdir(parents=True)
    assert config.load("quickstart").name == "quickstart"
    Path("mine.toml").write_text('extends = "paper/refsol"\nname = "mine"\n')
    assert config.load("mine.toml").context.template == "refsol"


def test_a_copy_makes_its_folder_and_one_that_cannot_be_written_is_an_error() -> None:
    assert packaged.copy("quickstart", Path("new/folder/mine.toml")).exists()
    Path("file").write_text("")
    with pytest.raises(StepalignError, match=r"mine\.toml: could not be written"):
        packaged.copy("quickstart", Path("file/mine.toml"))


def test_an_unknown_name_is_an_error_that_helps() -> None:
    with pytest.raises(StepalignError, match="did you mean quickstart"):
        packaged.copy("quickstrat", Path("mine.toml"))
    with pytest.raises(StepalignError, match="nothing: no such recipe; `stepalign recipes` lists"):
        config.load("nothing")
    Path("mine.toml").write_text('extends = "nothing"\n')
    with pytest.raises(StepalignError, match=r"nothing: no such recipe \(extended by"):
        config.load("mine.toml")
