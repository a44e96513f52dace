"""Files, folders and packages that a recipe needs are found missing at once, by every command that uses them."""

import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import stepalign
from stepalign import chat, cli, data, models
from stepalign.config import Recipe, machine
from stepalign.errors import StepalignError

MakeRecipe = Callable[..., Recipe]


def refuse(*_: object, **__: object) -> None:
    raise AssertionError("long work began")


COMMANDS: dict[str, Callable[[Recipe, Path], object]] = {
    "train": lambda recipe, out: stepalign.train(recipe),
    "sample": lambda recipe, out: stepalign.sample(recipe),
    "evaluate": lambda recipe, out: stepalign.evaluate(recipe),
    "select": stepalign.select,
    "probe": stepalign.probe,
    "preflight": stepalign.preflight,
    "preview": lambda recipe, out: stepalign.preview(recipe),
    "step_values": lambda recipe, out: stepalign.step_values(recipe, out / "r.jsonl", out / "v.jsonl"),
}


@pytest.fixture
def no_long_work(monkeypatch: pytest.MonkeyPatch) -> None:
    for module, name in ((chat.AutoTokenizer, "from_pretrained"), (models, "load_base")):
        monkeypatch.setattr(module, name, refuse)


@pytest.mark.usefixtures("no_long_work")
@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("name", ["./modles/x", "/nope/qwen", "~/nope", "../nope", "a/b/c"])
def test_a_missing_model_is_refused_at_once(command: str, name: str, make_recipe: MakeRecipe, tmp_path: Path) -> None:
    recipe = make_recipe(f"model.name_or_path={name}")
    with pytest.raises(StepalignError, match=rf"^model\.name_or_path = '{name}': no such folder$"):
        COMMANDS[command](recipe, tmp_path)
    assert not recipe.folder.exists()


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (
            ['problems.train={source = "hub", dataset = "./nope"}'],
            r"problems\.train\.dataset = '\./nope': no such folder",
        ),
        (
            ['problems.train={source = "openmath", dataset = "/no/pe"}'],
            r"problems\.train\.dataset = '/no/pe': no such folder",
        ),
        (['problems.train={source = "file", path = "nope.jsonl"}'], r"problems\.train\.path = 'nope\.jsonl': no such"),
        (
            ["problems.holdout=0", 'problems.evaluation={source = "gsm8k", path = "no/pe.jsonl"}'],
            r"problems\.evaluation\.path = 'no/pe\.jsonl': no such file",
        ),
        (["teacher={kind = 'model', model = {name_or_path = './t'}}"], r"teacher\.model\.name_or_path = '\./t': no"),
        (["critic={kind = 'replay', path = 'c.jsonl'}"], r"critic\.path = 'c\.jsonl': no such file"),
        (["probe.rollouts='r.jsonl'"], r"probe\.rollouts = 'r\.jsonl': no such file"),
        (["model.chat_template_path='t.jinja'"], r"model\.chat_template_path = 't\.jinja': no such file"),
        (
            [
                "critic={kind='locate-mend', locator={kind='combined', locators=[{kind='equations'}, "
                "{kind='verdicts', model={name_or_path='/no/pe'}}]}}"
            ],
            r"critic\.locator\.locators\.1\.model\.name_or_path = '/no/pe': no such folder",
        ),
    ],
)
def test_what_a_run_would_read_is_named_by_key_and_value(
    overrides: list[str], said: str, make_recipe: MakeRecipe
) -> None:
    recipe = make_recipe(*overrides)
    with pytest.raises(StepalignError, match=f"^{said}"):
        machine.check(recipe, *machine.TRAINING)


def test_a_command_looks_at_what_it_uses_alone(make_recipe: MakeRecipe, tiny_llama: Path) -> None:
    overrides = ["problems.train={source = 'file', path = 'nope.jsonl'}", "problems.holdout=0"]
    recipe = make_recipe(*overrides, "problems.evaluation={source = 'sums', count = 2}", "teacher.kind=live")
    assert len(stepalign.evaluate(recipe).problem_ids) == 2
    names = make_recipe("problems.train={source = 'hub', dataset = 'owner/name'}")
    machine.check(names, *machine.TRAINING)  # of the hub


def test_a_tilde_is_the_home_folder(make_recipe: MakeRecipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    rows = tmp_path / "home" / "rows" / "train.jsonl"
    rows.parent.mkdir(parents=True)
    rows.write_text('{"statement": "What is 1 + 1?", "answer": "2"}\n')
    for table in (
        '{source = "file", path = "~/rows/train.jsonl"}',
        '{source = "hub", dataset = "~/rows", split = "train"}',
    ):
        recipe = make_recipe(f"problems.train={table}")
        machine.check(recipe, *machine.TRAINING)
        assert [problem.answer for problem in data.load(recipe.problems.train).problems] == ["2"]
    assert make_recipe("output_dir=~/runs").output_dir == tmp_path / "home" / "runs"
    assert make_recipe("output_dir=~nobody-of-this-name/runs").output_dir == Path("~nobody-of-this-name/runs")


PACKAGES = {
    "vllm": ("sampler.kind=vllm", "vllm", r"sampler\.kind = 'vllm': vllm"),
    "qlora": ("model.load_in_4bit=true", "bitsandbytes", r"model\.load_in_4bit = true: bitsandbytes"),
    "reasoning-gym": (
        "problems.train={source = 'gsm_symbolic'}",
        "reasoning_gym",
        r"problems\.train\.source = 'gsm_symbolic': reasoning_gym",
    ),
}


@pytest.mark.usefixtures("no_long_work")
@pytest.mark.parametrize("command", ["train", "sample", "evaluate"])
@pytest.mark.parametrize("extra", PACKAGES)
def test_a_missing_package_is_named_before_long_work(
    command: str, extra: str, make_recipe: MakeRecipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    override, module, said = PACKAGES[extra]
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(StepalignError, match=rf'^{said} is not installed: pip install "stepalign\[{extra}\]"$'):
        COMMANDS[command](make_recipe(override), tmp_path)


def test_a_dry_run_warns_of_a_package_and_refuses_a_file(
    make_recipe: MakeRecipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    make_recipe()  # writes recipe.toml
    monkeypatch.setitem(sys.modules, "vllm", None)

    def dry_run(*overrides: str) -> tuple[int, str, str]:
        arguments = ["train", str(tmp_path / "recipe.toml"), "model.name_or_path=lab", *overrides, "--dry-run"]
        monkeypatch.setattr(sys, "argv", ["stepalign", *arguments])
        with pytest.raises(SystemExit) as stopped:
            cli.main()
        printed = capsys.readouterr()
        return int(stopped.value.code or 0), printed.out, printed.err

    code, printed, warned = dry_run("sampler.kind=vllm")
    assert (code, 'kind = "vllm"' in printed) == (0, True)
    assert warned == "warning: sampler.kind = 'vllm': vllm is not installed: pip install \"stepalign[vllm]\"\n"
    code, printed, refused = dry_run("problems.train={source = 'file', path = 'gone.jsonl'}")
    assert (code, printed) == (2, "")
    assert refused == "error: problems.train.path = 'gone.jsonl': no such file or folder\n"
