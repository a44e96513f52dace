import re
import shutil
from pathlib import Path

import pytest

from stepalign import config
from stepalign.config.migrate import KEYS, VALUES, migrate
from stepalign.config.recipe import Recipe
from stepalign.config.registry import nested
from stepalign.errors import StepalignError

REPOSITORY = Path(__file__).parents[2]
VERSION_1 = Path(__file__).parent / "version1"
"""The recipes of the last release that wrote format 1."""
FILES = sorted(file.relative_to(VERSION_1) for file in VERSION_1.rglob("*.toml"))

OLD = """# top
version= 1   # format
name   = "x"
objective.kind = "grpo"
objective.clip = 0.3     # dotted
"adapter" = { 'rank' = 8, alpha=16 } # inline

[critic]
kind = "program"
checks.max_echo = 0.5

[problems.train]
source="sums"
[model]
path = "steps = 3"
[critic . policy] # apart from its table
case = "drop"
withheld = 'fail'

[[prompts.examples]]
problem = '''objective.clip = 3
steps = 4'''
solution = "s"

[training]
steps = 3 # s

# between
group = 2
[distribution]
engine = 'replicated'
"""
NEW = """# top
version= 2   # format
name   = "x"
algorithm.kind = "grpo"
algorithm.epsilon = 0.3     # dotted
"lora" = { 'r' = 8, lora_alpha=16 } # inline

[critic]
kind = "program"
checks.max_reference_overlap = 0.5

[problems.train]
source="sums"
[model]
name_or_path = "steps = 3"
[critic . validation] # apart from its table
case = "drop"
error_not_quoted = 'fail'

[[prompts.examples]]
problem = '''objective.clip = 3
steps = 4'''
solution = "s"

[training]
max_steps = 3 # s

# between
num_generations = 2
[distributed]
strategy = "data_parallel"
"""


@pytest.fixture(scope="module")
def migrated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("migrated") / "version1"
    shutil.copytree(VERSION_1, folder)
    for file in FILES:
        migrate(folder / file)
    return folder


@pytest.mark.parametrize("file", FILES, ids=str)
def test_every_recipe_of_format_1_migrates_to_todays(file: Path, migrated: Path) -> None:
    assert config.load(migrated / file) == config.load(REPOSITORY / file)


def test_comments_layout_and_texts_stay_and_everything_else_is_renamed(tmp_path: Path) -> None:
    (tmp_path / "old.toml").write_text(OLD)
    renamed = migrate(tmp_path / "old.toml", tmp_path / "new.toml")
    assert (tmp_path / "new.toml").read_text() == NEW
    assert (tmp_path / "old.toml").read_text() == OLD
    assert ("objective.clip", "algorithm.epsilon") in renamed
    assert ("critic.policy", "critic.validation") in renamed
    assert config.load(tmp_path / "new.toml").training.num_generations == 2
    assert migrate(tmp_path / "new.toml") == []
    assert (tmp_path / "new.toml").read_text() == NEW


def test_the_two_types_of_clip_become_two_keys(tmp_path: Path) -> None:
    file = tmp_path / "r.toml"
    file.write_text('[objective]\nclip = "token"\nclip_at = 1.0\nnormalize = "token"\nhorizon = "first_error"')
    migrate(file)
    assert file.read_text() == (
        '[algorithm]\nclip_mode = "token"\nclip_value = 1.0\nloss_agg_mode = "token-mean"\n'
        'loss_span = "until_first_error"'
    )


@pytest.mark.parametrize("version", ["version = 1\n", ""])
def test_a_recipe_of_format_1_is_refused_with_each_old_key_and_the_command(tmp_path: Path, version: str) -> None:
    file = tmp_path / "r.toml"
    file.write_text(version + OLD.partition("\n")[2].partition("\n")[2])
    with pytest.raises(StepalignError) as caught:
        config.load(file)
    message = str(caught.value)
    assert f"{file}: a recipe of format 1; `stepalign migrate {file}` rewrites it" in message
    for line in ("objective.clip is now algorithm.epsilon", "adapter.rank is now lora.r", "training.group is now"):
        assert f"\n  {line}" in message


def test_format_1_is_refused_where_no_key_changed_and_in_what_a_recipe_extends(tmp_path: Path) -> None:
    base, file = tmp_path / "base.toml", tmp_path / "r.toml"
    base.write_text('version = 1\nname = "x"')
    file.write_text('extends = "base.toml"')
    with pytest.raises(StepalignError, match=rf"{base}: a recipe of format 1; `stepalign migrate {base}`"):
        config.load(file)
    assert migrate(base) == []
    assert base.read_text() == 'version = 2\nname = "x"'


def test_an_override_of_format_1_is_refused_with_its_new_name() -> None:
    with pytest.raises(StepalignError, match=r"training\.steps is now training\.max_steps"):
        config.load(REPOSITORY / "recipes" / "quickstart.toml", ["training.steps=1"])


def test_a_file_that_cannot_be_migrated_is_named(tmp_path: Path) -> None:
    with pytest.raises(StepalignError, match=r"gone\.toml: No such file"):
        migrate(tmp_path / "gone.toml")
    (tmp_path / "bad.toml").write_text("name = ")
    with pytest.raises(StepalignError, match=r"bad\.toml: not valid TOML"):
        migrate(tmp_path / "bad.toml")


@pytest.mark.parametrize("table", [table for table in KEYS if table])
def test_every_new_name_is_a_key_and_no_old_name_is(table: str) -> None:
    tables = [Recipe]
    for part in table.split("."):
        family, inner = nested(tables[0], part, {})
        tables = list(family.tables.values()) if family else [inner] if inner else []
    keys = {key for each in tables for key in each.model_fields}
    assert set(KEYS[table].values()) <= keys
    assert not KEYS[table].keys() & keys


def test_the_page_on_migrating_has_every_key_and_value() -> None:
    page = (REPOSITORY / "docs" / "migrating.md").read_text()
    for table, keys in KEYS.items():
        for old, new in keys.items():
            line = next(line for line in page.splitlines() if re.search(rf"\| `\[?([\w.]+\.)?{new}\]?` \|$", line))
            assert f"{old}" in line, (table, old)
    for path, values in VALUES.items():
        for old, new in values.items():
            assert f'| `{path} = "{old}"` | `"{new}"` |' in page
