import sys
from pathlib import Path
from typing import Literal

import pytest

from stepalign import config
from stepalign.config.registry import FAMILIES, build, implementation, register
from stepalign.errors import StepalignError

RECIPE = """
name = "registered"
model = { name_or_path = "a/model" }
problems = { train = { source = "sums" } }
"""


class Parrot:
    """The implementation of the kind that these tests register."""

    def __init__(self, word: str, times: int) -> None:
        self.said = word * times

    @classmethod
    def from_config(cls, settings: "ParrotConfig", *, times: int) -> "Parrot":
        return cls(settings.word, times)


class ParrotConfig(config.CriticConfig):
    kind: Literal["parrot"] = "parrot"
    word: str = "hello"


@pytest.fixture
def parrot(monkeypatch: pytest.MonkeyPatch) -> None:
    critics = FAMILIES["critic"]
    monkeypatch.setattr(critics, "tables", dict(critics.tables))
    monkeypatch.setattr(critics, "implementations", dict(critics.implementations))
    register("critic", "parrot", implementation=f"{__name__}:Parrot")(ParrotConfig)


def load(tmp_path: Path, text: str, *overrides: str) -> config.Recipe:
    file = tmp_path / "recipe.toml"
    file.write_text(RECIPE + text)
    return config.load(file, overrides)


@pytest.mark.usefixtures("parrot")
def test_a_kind_registered_by_anybody_is_a_kind_of_recipes(tmp_path: Path) -> None:
    settings = load(tmp_path, '[critic]\nkind = "parrot"\nword = "a"', "critic.word=b", "critic.on_failure=drop")
    assert settings.critic == ParrotConfig(word="b", on_failure="drop")
    dumped = tmp_path / "dumped.toml"
    dumped.write_text(config.dump(settings))
    assert config.load(dumped) == settings
    assert (
        load(tmp_path, '[critic]\nkind = "program"\non_failure = "refsol"', "critic.kind=parrot").critic
        == ParrotConfig()
    )


@pytest.mark.usefixtures("parrot")
def test_errors_in_a_registered_kind_name_its_keys(tmp_path: Path) -> None:
    with pytest.raises(StepalignError, match=r"critic\.wrd: unknown key; did you mean word\?"):
        load(tmp_path, "", 'critic={kind="parrot", wrd="a"}')
    with pytest.raises(StepalignError, match=r"critic\.validation\.case: .*\(found 3\)"):
        load(tmp_path, "", 'critic={kind="parrot", validation={case=3}}')
    with pytest.raises(StepalignError, match=r"critic\.kind: unknown kind; did you mean parrot\?; allowed: .*parrot"):
        load(tmp_path, "", "critic.kind=parot")


@pytest.mark.usefixtures("parrot")
def test_a_registered_kind_is_built_from_its_table_and_the_given_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(FAMILIES["critic"].implementations, "parrot", "tests_parrot:Parrot")
    monkeypatch.setitem(sys.modules, "tests_parrot", sys.modules[Parrot.__module__])
    assert build(ParrotConfig(word="ab"), times=2).said == "abab"


def test_without_its_registration_the_kind_is_refused(tmp_path: Path) -> None:
    with pytest.raises(
        StepalignError, match=r"critic\.kind: unknown kind; allowed: program, unit-tests, replay, python, self, openai"
    ):
        load(tmp_path, "", "critic.kind=parrot")


@pytest.mark.parametrize(("family", "kind"), [(f.name, kind) for f in FAMILIES.values() for kind in f.tables])
def test_every_kind_s_implementation_exists_and_its_table_names_it(family: str, kind: str) -> None:
    built = implementation(family, kind)
    assert callable(getattr(built, "from_config", built))
    if family not in ("strategy", "teacher"):  # one table for all kinds
        table = FAMILIES[family].tables[kind]
        assert table.model_fields[FAMILIES[family].tag].default == kind
