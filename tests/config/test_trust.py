"""What a recipe of unknown origin may read."""

import re
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from stepalign import config, prompts
from stepalign.config.registry import Table
from stepalign.errors import StepalignError

RECIPE = """
name = "n"
model.name_or_path = "a/model"
problems.train.source = "sums"
critic = { kind = "openai", base_url = "http://localhost/v1", model = "m" }
"""
TEMPLATE_KEYS = ["critic.prompt", "context.template", "context.fallback_template", "prompts.solver",
                 "model.chat_template_path", "probe.contexts", "algorithm.feedback_template",
                 "locator.contexts"]  # fmt: skip
Load = Callable[..., config.Recipe]


@pytest.fixture
def load(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Load:
    """A function: the recipe in `recipes/`, from the working directory `work/`, with these overrides."""
    for folder in ("recipes", "work", "elsewhere"):
        (tmp_path / folder).mkdir()
    (tmp_path / "recipes" / "recipe.toml").write_text(RECIPE)
    (tmp_path / "elsewhere" / "secret.txt").write_text("{{ problem }}")
    monkeypatch.chdir(tmp_path / "work")

    def load(*overrides: str, **options: bool) -> config.Recipe:
        return config.load(tmp_path / "recipes" / "recipe.toml", overrides, **options)

    return load


def naming(key: str, path: Path | str) -> list[str]:
    """Overrides that name a file under a key, of the kind of table that has the key."""
    kind = {
        "algorithm.feedback_template": ["algorithm.kind=rltf-fm", "training.num_generations=2"],
        "locator.contexts": ["locator.kind=credit"],
    }
    return [*kind.get(key, ()), f"{key}=['{path}']" if key.endswith(".contexts") else f"{key}='{path}'"]


def tables(base: type[Table]) -> Iterator[type[Table]]:
    yield base
    for table in base.__subclasses__():
        yield from tables(table)


def test_every_key_that_names_a_template_is_marked() -> None:
    keys: dict[str, bool] = {}
    for table in tables(Table):
        for name, info in table.model_fields.items():
            is_text = table is config.ColumnsConfig  # the template itself, and not its file
            if re.search(r"template(_path)?$|^(contexts|prompt|solver)$", name) and not is_text:
                extra = info.json_schema_extra
                keys[f"{table.__name__}.{name}"] = isinstance(extra, dict) and bool(extra.get("template"))
    assert {key.partition(".")[2] for key in keys} == {key.partition(".")[2] for key in TEMPLATE_KEYS}
    assert all(keys.values()), keys


@pytest.mark.parametrize("key", TEMPLATE_KEYS)
def test_a_template_elsewhere_needs_trust(key: str, load: Load, tmp_path: Path) -> None:
    (tmp_path / "work" / "link.txt").symlink_to(tmp_path / "elsewhere" / "secret.txt")
    (tmp_path / "work" / "folder").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "recipes" / ".hidden.txt").write_text("")
    (tmp_path / "work" / ".ssh").mkdir()
    (tmp_path / "work" / ".ssh" / "id_rsa").write_text("")
    for path in ("/proc/self/environ", "/dev/stdin", tmp_path / "elsewhere" / "secret.txt", "../elsewhere/secret.txt",
                 "link.txt", "folder/secret.txt", tmp_path / "recipes" / ".hidden.txt", ".ssh/id_rsa", "/etc",
                 "../../../../../../../../etc/passwd"):  # fmt: skip
        if Path(path).exists():
            with pytest.raises(StepalignError, match=rf"{key} = .*neither in the recipe's folder .* give --trust"):
                load(*naming(key, path))
            load(*naming(key, path), trust=True)


def test_a_template_elsewhere_needs_trust_in_a_list_of_tables_as_well(load: Load, tmp_path: Path) -> None:
    prompt = tmp_path / "elsewhere" / "secret.txt"
    locators = f"[{{kind = 'equations'}}, {{kind = 'verdicts', prompt = '{prompt}'}}]"
    override = f"critic={{kind = 'locate-mend', locator = {{kind = 'combined', locators = {locators}}}}}"
    with pytest.raises(StepalignError, match=r"critic\.locator\.locators\.1\.prompt = .*neither in the recipe's"):
        load(override)
    load(override, trust=True)


@pytest.mark.parametrize("key", TEMPLATE_KEYS)
def test_a_template_near_the_recipe_needs_none(key: str, load: Load, tmp_path: Path) -> None:
    (tmp_path / "work" / "prompts").mkdir()
    for path in (tmp_path / "recipes" / "mine.txt", tmp_path / "work" / "prompts" / "mine.txt"):
        path.write_text("")
        load(*naming(key, path))
    (tmp_path / "work" / "link.txt").symlink_to(tmp_path / "recipes" / "mine.txt")
    for name in (
        "prompts/mine.txt",
        "link.txt",
        "refsol",
        "lab/refsol",
        "gone.txt",
        "x" * 5000,
        Path(prompts.__file__),
    ):
        load(*naming(key, name))


def test_the_root_is_near_nothing(load: Load, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir("/")
    with pytest.raises(StepalignError, match=r"critic\.prompt"):
        load("critic.prompt=/proc/self/environ")
    load("critic.prompt=critic")


def test_a_name_is_no_way_out_of_the_package(tmp_path: Path) -> None:
    (tmp_path / "secret.txt").write_text("")
    with pytest.raises(StepalignError, match="no template"):
        prompts.load(str(tmp_path / "secret"), frozenset())


@pytest.mark.parametrize(
    "text",
    ["{% include 'link.txt' %}", "{% include '.env' %}", "{% include '../secret.txt' %}", "{% include problem %}",
     "{% extends 'link.txt' %}", "{% import 'link.txt' as x %}", "{% include '/etc/passwd' %}"]
)  # fmt: skip
def test_an_include_is_no_way_out_of_a_folder(text: str, tmp_path: Path) -> None:
    (tmp_path / "secret.txt").write_text("")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "link.txt").symlink_to(tmp_path / "secret.txt")
    (tmp_path / "mine" / ".env").write_text("")
    (tmp_path / "mine" / "mine.txt").write_text(text)
    with pytest.raises(StepalignError, match=r"mine\.txt: not a valid template"):
        prompts.load(str(tmp_path / "mine" / "mine.txt"), frozenset({"problem"}))


@pytest.mark.parametrize(
    "name",
    ["HOME", "AWS_PROFILE", "DATABASE_URL", "", "KEY=1", "A_API_KEY\n", "HF_TOKEN", "AWS_SECRET_ACCESS_KEY",
     "my_secret", "WANDB_API_KEY"],
)  # fmt: skip
def test_a_variable_that_is_no_key_s_needs_trust(name: str, load: Load) -> None:
    text = name.replace("\n", "\\n")
    with pytest.raises(StepalignError, match=r"critic\.api_key_env = .*begin with STEPALIGN_ or end in _API_KEY"):
        load(f'critic.api_key_env="{text}"')
    with pytest.raises(StepalignError, match=r"sampler\.api_key_env"):
        load("sampler.kind=vllm-server", f'sampler.api_key_env="{text}"')
    load(f'critic.api_key_env="{text}"', trust=True)


@pytest.mark.parametrize("name", ["OPENAI_API_KEY", "MY_API_KEY", "STEPALIGN_CRITIC_API_KEY", "STEPALIGN_TOKEN"])
def test_a_variable_of_a_key_needs_none(name: str, load: Load) -> None:
    load(f"critic.api_key_env={name}")
