import tomllib
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest
from pydantic import ValidationError

from stepalign import config
from stepalign.config.recipe import Recipe
from stepalign.config.registry import FAMILIES, Table, nested
from stepalign.errors import StepalignError
from stepalign.io import differences
from stepalign.prompts.conversation import SolverPrompt

RECIPES = Path(__file__).parents[2] / "recipes"

SMALLEST = """
name = "smallest"
model = { name_or_path = "a/model" }
problems = { train = { source = "sums" } }
"""

Write = Callable[..., Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def write(text: str = SMALLEST, name: str = "recipe.toml") -> Path:
        file = tmp_path / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text, encoding="utf-8")
        return file

    return write


def refused(file: Path, *overrides: str) -> str:
    with pytest.raises(StepalignError) as caught:
        config.load(file, overrides)
    assert str(file) in str(caught.value)
    return str(caught.value)


# ── files and what they extend ────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("file", sorted(RECIPES.rglob("*.toml")), ids=lambda file: str(file.relative_to(RECIPES)))
def test_every_shipped_recipe_loads_and_its_solver_prompt_exists(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(RECIPES.parent)
    SolverPrompt(config.load(file).prompts)


def test_the_probe_s_recipes_look_at_a_pretrained_model(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(RECIPES.parent)
    gsm8k, sums = (config.load(RECIPES / "probe" / f"{name}.toml") for name in ("gsm8k", "sums"))
    assert gsm8k.model == sums.model == config.ModelConfig(name_or_path="models/SmolLM2-135M-Instruct")
    assert len(sums.prompts.examples) == 2, "what docs/probe.md says of its rollouts"


def test_a_recipe_need_say_nothing_but_name_model_and_problems(write: Write) -> None:
    settings = config.load(write())
    assert settings.folder == Path("runs/smallest")
    assert settings.version == config.VERSION
    assert settings.algorithm.beta == 0
    assert settings.critic is None


def test_a_chain_of_extends_is_laid_over_from_the_bottom_up(write: Write) -> None:
    write(SMALLEST + "seed = 3\noptimizer = { lr = 1e-3, eps = 1e-6, warmup_steps = 7 }", "base/bottom.toml")
    write('extends = "bottom.toml"\nname = "middle"\n[optimizer]\nlr = 2e-3\neps = 1e-7', "base/middle.toml")
    top = write('extends = "base/middle.toml"\n[optimizer]\nlr = 3e-3', "top.toml")
    settings = config.load(top)
    assert settings.name == "middle"
    assert settings.seed == 3
    optimizer = settings.optimizer
    assert (optimizer.lr, optimizer.eps, optimizer.warmup_steps) == (3e-3, 1e-7, 7)


def test_a_recipe_that_extends_itself_by_way_of_another_is_refused(write: Write) -> None:
    write('extends = "b.toml"', "a.toml")
    file = write('extends = "a.toml"', "b.toml")
    with pytest.raises(StepalignError, match=r"b\.toml: extends itself by way of .*b\.toml, .*a\.toml"):
        config.load(file)


def test_a_missing_recipe_and_a_missing_base_are_named_with_who_wanted_them(write: Write, tmp_path: Path) -> None:
    with pytest.raises(StepalignError, match=r"nowhere\.toml: no such recipe$"):
        config.load(tmp_path / "nowhere.toml")
    with pytest.raises(StepalignError, match=r"gone\.toml: no such recipe \(extended by .*recipe\.toml\)"):
        config.load(write('extends = "gone.toml"'))
    with pytest.raises(StepalignError, match="a folder, not a recipe file"):
        config.load(tmp_path)


@pytest.mark.parametrize("text", ["name = ", "name = 'a'\nname = 'b'", "[model\npath = 'a'"])
def test_a_file_that_is_not_toml_is_refused_with_the_place(write: Write, text: str) -> None:
    assert "not valid TOML" in (message := refused(write(text)))
    assert "(at " in message


def test_a_file_that_is_not_text_is_refused(write: Write, tmp_path: Path) -> None:
    file = tmp_path / "binary.toml"
    file.write_bytes(b"name = '\xff\xfe'")
    assert "not valid TOML" in refused(file)


def test_extends_must_be_a_path(write: Write) -> None:
    assert "extends: a recipe's path as a string is wanted, found 3" in refused(write("extends = 3"))


def test_a_recipe_of_a_newer_release_says_to_upgrade(write: Write) -> None:
    message = refused(write(f"version = {config.VERSION + 1}\nwhatever = true" + SMALLEST))
    assert f"version = {config.VERSION + 1}" in message
    assert "upgrade stepalign" in message
    assert "whatever" not in message


# ── overrides ─────────────────────────────────────────────────────────────────────────────────────────────────


def test_overrides_keep_their_toml_types_and_bare_words_are_text(write: Write) -> None:
    settings = config.load(
        write(),
        [
            "optimizer.lr=1e-5",
            "optimizer.betas=[0.8, 0.95]",
            "training.gradient_checkpointing=true",
            "model.name_or_path=org/some-model",
            'prompts.system="two words = one"',
            "evaluation.sampling.max_new_tokens=77",
            "lora.target_modules=['q_proj']",
            "tracking={report_to=['tensorboard']}",
            "model.revision=",
        ],
    )
    assert settings.optimizer.lr == 1e-5
    assert settings.optimizer.betas == (0.8, 0.95)
    assert settings.training.gradient_checkpointing is True
    assert settings.model.name_or_path == "org/some-model"
    assert settings.prompts.system == "two words = one"
    assert settings.evaluation.sampling.max_new_tokens == 77
    assert settings.lora.target_modules == ("q_proj",)
    assert settings.tracking.report_to == ("tensorboard",)
    assert settings.model.revision == ""


def test_an_override_beats_the_file_and_a_later_override_an_earlier_one(write: Write) -> None:
    file = write(SMALLEST + "seed = 1")
    assert config.load(file).seed == 1
    assert config.load(file, ["seed=2"]).seed == 2
    assert config.load(file, ["seed=2", "seed=3"]).seed == 3


@pytest.mark.parametrize("override", ["lr", "=3", "optimizer.=3", ".lr=3", "optimizer..lr=3"])
def test_what_is_not_key_and_value_is_refused(write: Write, override: str) -> None:
    with pytest.raises(StepalignError, match="key=value is wanted") as caught:
        config.load(write(), [override])
    assert repr(override) in str(caught.value)


def test_a_table_that_names_another_kind_replaces_the_inherited_one_whole(write: Write) -> None:
    base = SMALLEST + '[critic]\nkind = "openai"\nbase_url = "http://here"\nmodel = "m"\nmax_tokens = 9'
    write(base, "base.toml")
    same = config.load(write('extends = "base.toml"\n[critic]\nkind = "openai"\nmodel = "other"', "same.toml"))
    assert same.critic == config.OpenAICriticConfig(base_url="http://here", model="other", max_tokens=9)
    other = config.load(write('extends = "base.toml"\n[critic]\nkind = "program"', "other.toml"))
    assert other.critic == config.ProgramCriticConfig()
    assert config.load(write(base), ["critic.kind=program"]).critic == config.ProgramCriticConfig()


def test_an_inherited_kind_is_replaced_whole_in_every_family(write: Write) -> None:
    def loaded(base: str, *overrides: str) -> config.Recipe:
        write(SMALLEST + base, "base.toml")
        return config.load(write('extends = "base.toml"', "child.toml"), overrides)

    vllm = '[sampler]\nkind = "vllm"\ngpu_memory_utilization = 0.5'
    assert loaded(vllm, "sampler.kind=transformers").sampler == config.TransformersConfig()
    assert loaded(vllm, "sampler.enforce_eager=true").sampler == config.VllmConfig(
        gpu_memory_utilization=0.5, enforce_eager=True
    )
    implied = "[sampler]\nmax_num_seqs = 7"
    assert loaded(implied, "sampler.kind=vllm").sampler == config.VllmConfig()
    assert loaded(implied, "sampler.kind=transformers").sampler == config.TransformersConfig(max_num_seqs=7)
    assert loaded("[grader]\nnum_workers = 3", "grader.kind=math").grader == config.MathGraderConfig(num_workers=3)
    assert loaded("[distributed]\nnum_processes = 4", "distributed.strategy=fsdp2").distributed.num_processes == 4


def test_the_order_of_overrides_does_not_matter_where_one_names_the_kind(write: Write) -> None:
    url, kind = "sampler.base_url=http://here/v1", "sampler.kind=vllm-server"
    expected = config.VllmServerConfig(base_url=("http://here/v1",))
    assert config.load(write(), [kind, url]).sampler == config.load(write(), [url, kind]).sampler == expected


def test_a_critic_has_one_endpoint_or_several_and_a_policy_for_each_check(write: Write) -> None:
    critic = '[critic]\nkind = "openai"\nmodel = "m"\n'
    one = config.load(write(SMALLEST + critic + 'base_url = "http://a/v1"')).critic
    two = config.load(
        write(SMALLEST + critic + 'base_url = ["http://a/v1", "http://b/v1"]'), ["critic.validation.final_answer=drop"]
    )
    assert isinstance(one, config.OpenAICriticConfig)
    assert isinstance(two.critic, config.OpenAICriticConfig)
    assert (one.base_url, two.critic.base_url) == (("http://a/v1",), ("http://a/v1", "http://b/v1"))
    assert (one.fallbacks, two.critic.fallbacks) == ({"refsol"}, {"refsol", "drop"})
    assert config.load(write(config.dump(two))) == two


def test_an_objective_without_a_kind_is_distillation(write: Write) -> None:
    base = SMALLEST + "[algorithm]\nbeta = 0.5\n[training]\nnum_generations = 8"
    write(base, "base.toml")
    same = config.load(
        write('extends = "base.toml"\n[algorithm]\nkind = "distillation"\nnum_loss_tokens_to_skip = 2', "same.toml")
    )
    assert same.algorithm == config.DistillationConfig(beta=0.5, num_loss_tokens_to_skip=2)
    assert config.load(write(base), ["algorithm.kind=grpo"]).algorithm == config.GRPOConfig(kind="grpo")


def test_a_teacher_of_another_kind_keeps_the_prompts_keys_and_drops_the_rest(write: Write) -> None:
    write(
        SMALLEST + "[teacher]\nkind = 'ema'\nupdate_rate = 0.5\nenable_thinking = true\nmax_length = 99", "below.toml"
    )
    teacher = config.load(write("extends = 'below.toml'\nteacher.kind = 'scaled'")).teacher
    assert teacher == config.ScaledTeacherConfig(enable_thinking=True, max_length=99)
    assert config.load(write("extends = 'below.toml'"), ["teacher.kind=live"]).teacher.max_length == 99


def test_a_source_of_another_name_replaces_the_inherited_one_whole(write: Write) -> None:
    file = write(SMALLEST.replace('"sums"', '"sums", count = 5, terms = 3'))
    assert config.load(file, ["problems.train.count=6"]).problems.train == config.SumsConfig(count=6, terms=3)
    assert config.load(file, ["problems.train.source=gsm_symbolic"]).problems.train == config.GsmSymbolicConfig()


# ── what is refused ───────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("optimizer.lrr=1", "optimizer.lrr: unknown key; did you mean lr?"),
        ("trainig.steps=1", "trainig: unknown key; did you mean training?"),
        ("evaluation.sampling.temprature=1", "evaluation.sampling.temprature: unknown key; did you mean temperature?"),
        ("problems.train.term=3", "problems.train.term: unknown key; did you mean terms?"),
        ("algorithm.bet=1", "algorithm.bet: unknown key; did you mean beta?"),
        ('algorithm={kind="grpo", epsilon_hi=1}', "algorithm.epsilon_hi: unknown key; did you mean epsilon_high?"),
        ("tracking.zzz=1", "tracking.zzz: unknown key; allowed: report_to, project"),
        ("sums=1", "sums: unknown key; allowed: version, name,"),
        ("training.lr=1", "training.lr: unknown key; did you mean optimizer.lr?"),
        ("temperature=1", "unknown key; did you mean sampling.temperature or evaluation.sampling.temperature?"),
        ("optimizer.beta=0.9", "optimizer.beta: unknown key; did you mean betas?"),
        ("sampler.max_model_len=9", "sampler.max_model_len: unknown key; kind = 'vllm' has it"),
        ("sampling.max_completion_length=9", "TRL's name; here it is sampling.max_new_tokens (found 9)"),
    ],
)
def test_an_unknown_key_is_named_with_what_was_likely_meant(write: Write, override: str, expected: str) -> None:
    assert expected in refused(write(), override)


def test_an_unknown_key_of_a_critic_is_looked_up_in_that_critic(write: Write) -> None:
    critic = 'critic={kind="openai", base_url="u", model="m", max_token=3}'
    assert "critic.max_token: unknown key; did you mean max_tokens?" in refused(write(), critic)


@pytest.mark.parametrize(
    ("override", "key", "found"),
    [
        ("optimizer.lr=fast", "optimizer.lr:", "'fast'"),
        ("version=0", "version: Input should be 2", "0"),
        ("grader={kind='python', function='m:f', threshold=1.5}", "grader.threshold:", "1.5"),
        ("optimizer.lr=-1", "optimizer.lr:", "-1"),
        ("optimizer=3", "optimizer:", "3"),
        ("optimizer.betas=[0.9]", "optimizer.betas.1: missing", ""),
        ("training.max_steps=2.5", "training.max_steps:", "2.5"),
        ("training.max_steps=0", "training.max_steps:", "0"),
        ("sampling.top_p=1.5", "sampling.top_p:", "1.5"),
        ("sampling.enable_thinking=maybe", "sampling.enable_thinking:", "'maybe'"),
        ("name=../elsewhere", "name:", "'../elsewhere'"),
        ("model.dtype=int8", "model.dtype:", "'int8'"),
        ("problems.train.terms=99", "problems.train.terms:", "99"),
        (
            "problems.train.source=nowhere",
            "problems.train.source: unknown kind; allowed: openmath,",
            "'nowhere'",
        ),
        ("problems.train.source=3", "problems.train.source: unknown kind", "3"),
        (
            "critic.kind=opnai",
            "critic.kind: unknown kind; did you mean openai?; allowed: program,",
            "'opnai'",
        ),
        ("critic.max_tokens=9", "critic.kind: missing; allowed: program,", ""),
        ("distributed.strategy=zero3", "distributed.strategy: unknown kind; did you mean zero2?", "'zero3'"),
        ("teacher.kind=lve", "teacher.kind: unknown kind; did you mean live?", "'lve'"),
        ("grader={kind='math', timeout_s=0}", "grader.timeout_s:", "0"),
        ("critic={kind='program', validation={final_answer='repair'}}", "critic.validation.final_answer:", "'repair'"),
        ("critic={kind='program', checks={max_reference_overlap=2}}", "critic.checks.max_reference_overlap:", "2"),
        ("critic={kind='openai', model='m', base_url=[]}", "critic.base_url:", "[]"),
        ("algorithm.kind=ppo", "algorithm.kind: unknown kind; allowed: distillation, grpo", "'ppo'"),
        ("prompts.examples=[{problem='p'}]", "prompts.examples.0.solution: missing", ""),
        ("lora.target_modules='q_proj'", "lora.target_modules: a list is wanted", "'q_proj'"),
        ("output_dir=5", "output_dir: a path, as a string, is wanted", "5"),
        ('output_dir="a\\u0000b"', "output_dir: a path", r"'a\x00b'"),
        ("training=[1]", "training: a table is wanted", "[1]"),
        ("name=2020-01-01", "name: Input should be a valid string", "datetime.date(2020, 1, 1)"),
    ],
)
def test_a_wrong_value_is_named_with_its_full_key(write: Write, override: str, key: str, found: str) -> None:
    message = refused(write(), override)
    line = next(line for line in message.splitlines() if line.startswith(f"  {key}"))
    assert not found or f"(found {found})" in line


def test_a_wrong_key_in_a_list_of_kinds_is_looked_up_in_its_own_kind(write: Write) -> None:
    critic = "critic={{kind='locate-mend', locator={{kind='combined', locators=[{{kind='equations'}}, {}]}}}}"
    message = refused(write(), critic.format("{kind='verdicts', threshhold=-1.5}"))
    assert message.splitlines()[1:] == [
        "  critic.locator.locators.1.threshhold: unknown key; did you mean threshold? (found -1.5)"
    ]
    assert "locators: Tuple should have at least 2 items" in refused(write(), critic.format("").replace(", ]", "]"))


def test_every_fault_of_a_recipe_is_listed_at_once(write: Write) -> None:
    message = refused(write("seed = -1"))
    for key in ("name: missing", "model: missing", "problems: missing", "seed: "):
        assert f"\n  {key}" in message


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (["algorithm.clip_mode=token"], "clip_mode = 'token' with clip_value = None"),
        (["algorithm.clip_value=1.0"], "clip_mode = 'none' with clip_value = 1.0"),
        (
            ["problems.holdout=3", "problems.evaluation={source='sums'}"],
            "`holdout` and `evaluation` exclude each other",
        ),
        (["algorithm.kind=grpo"], "compares a problem's rollouts: training.num_generations = 1, set 2 or more"),
        (
            ["algorithm.kind=grpo", "training.num_generations=4", "sampling.temperature=0"],
            "needs rollouts that differ: sampling.temperature = 0 is greedy",
        ),
        (
            [
                "algorithm={ kind = 'grpo', num_iterations = 2 }",
                "training.num_generations=2",
                "lora.lora_dropout=0.1",
            ],
            "the old log-probabilities would come from another dropout mask; set lora_dropout = 0",
        ),
        (["algorithm.support=topk-student"], "support = 'topk-student' needs top_k"),
        (["algorithm.top_k=5"], "support = 'full' has no use for top_k = 5"),
        (
            ["algorithm.support=topk-teacher", "algorithm.top_k=5", "algorithm.add_tail=false"],
            "add_tail = false: without the tail top-k is no divergence",
        ),
        (["algorithm.support=sampled"], "support = 'sampled' with beta = 0.0: the sampled token estimates reverse KL"),
        (
            ["algorithm={support='sampled', beta=1.0, clip_mode='entry', clip_value=1.0}"],
            "clip_mode = 'entry': its advantage is a token's",
        ),
        (["algorithm.discount=0.5"], "support = 'full' has no use for discount = 0.5"),
        (
            ["algorithm.importance_sampling_level=token", "lora.lora_dropout=0.1"],
            "the student's pass has a dropout mask that the sampler has not",
        ),
        (
            ["algorithm.importance_sampling_level=token", "sampler.kind=vllm", "sampling.temperature=1.2"],
            "the sampler's log-probabilities are those at temperature 1",
        ),
        (
            ["algorithm.importance_sampling_level=sequence", "sampling.temperature=1.2"],
            "the ratio would not be that of the policy that sampled; set both alike",
        ),
        (
            ["training.rollouts_per_step=6", "training.num_generations=4"],
            "rollouts_per_step = 6 is not a multiple of num_generations = 4",
        ),
    ],
)
def test_settings_that_exclude_each_other_are_refused(write: Write, overrides: list[str], expected: str) -> None:
    assert expected in refused(write(), *overrides)


def test_a_loaded_recipe_cannot_be_changed(write: Write) -> None:
    settings = config.load(write())
    with pytest.raises(ValueError, match="frozen"):
        settings.optimizer.lr = 1.0


# ── writing and comparing ─────────────────────────────────────────────────────────────────────────────────────


def test_what_is_dumped_loads_as_the_same_recipe(write: Write) -> None:
    settings = config.load(
        write(),
        [
            "critic={kind='openai', base_url='http://here/v1', model='m'}",
            "model.chat_template_path=some/where.jinja",
            'prompts.examples=[{problem="a \\"quoted\\" one", solution="line\\n\\\\boxed{1} × ÷"}]',
            "algorithm.clip_mode=entry",
            "algorithm.clip_value=0.05",
            "problems.evaluation={source='file', path='x.jsonl', columns={id='key'}}",
        ],
    )
    assert config.load(write(config.dump(settings), "again.toml")) == settings


def test_differences_are_exactly_the_keys_that_differ(write: Write) -> None:
    def values(*overrides: str) -> dict[str, object]:
        return tomllib.loads(config.dump(config.load(write(), overrides)))

    assert not list(differences(values(), values()))
    assert list(differences(values("seed=1"), values("context.template=stepalign", "seed=1"))) == [
        ("context.template", "refsol", "stepalign")
    ]
    assert list(differences(values(), values("optimizer.lr=1.0", "selection.num_attempts=8"))) == [
        ("optimizer.lr", 5e-06, 1.0),
        ("selection.num_attempts", 16, 8),
    ]


FILLED = {
    "name": "a",
    "name_or_path": "a/model",
    "train": {"source": "sums"},
    "path": "a",
    "model": "m",
    "base_url": "u",
}
TABLES = {type(table.model_construct()) for family in FAMILIES.values() for table in family.tables.values()}
TABLES |= {nested(Recipe, name, {})[1] for name in Recipe.model_fields} - {None}


@pytest.mark.parametrize("table", sorted(TABLES, key=lambda table: table.__name__), ids=lambda table: table.__name__)
def test_no_value_of_another_type_is_converted(table: type[Table]) -> None:
    """Of any key of any kind: `lr = true` is no 1.0, `"5"` no number, 1 no truth value."""
    filled = {
        name: FILLED[name] for name, field in table.model_fields.items() if field.is_required() and name in FILLED
    }
    refusals = 0
    for name in table.model_fields.keys() - {"kind", "source", "strategy"}:
        for value in (True, 1, 5.0, "5", "true", "0.5"):
            read: object = None
            with suppress(ValidationError):
                read = getattr(table.model_validate(filled | {name: value}), name)
            refusals += read is None
            natural = (type(None), type(value), {int: float, str: Path}.get(type(value), type(value)))
            same = isinstance(read, natural) and isinstance(read, bool) <= isinstance(value, bool)
            assert same or (name == "base_url" and read == (value,)), f"{name} = {value!r} → {read!r}"
    assert refusals > 3 or not table.model_fields.keys() - {"kind"}


def test_flash_attention_in_float32_is_refused() -> None:
    message = "attn_implementation = 'flash_attention_2' with dtype = 'float32': FlashAttention takes half precision"
    with pytest.raises(StepalignError, match=message):
        config.ModelConfig(name_or_path="lab", dtype="float32", attn_implementation="flash_attention_2")
