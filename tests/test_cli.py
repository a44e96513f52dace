import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import typer

import stepalign
from stepalign import __version__, cli, config

HEAVY = {"torch", "transformers", "datasets", "matplotlib", "aiohttp", "peft", "accelerate", "numpy"}
LIGHT = [
    "cli",
    "contexts",
    "critics.arithmetic.critic",
    "critics.schema",
    "errors",
    "prompts",
    "config",
    "records",
    "seeding",
    "trace",
]

COMMANDS = list(typer.main.get_command(cli.app).commands)  # type: ignore[attr-defined]

Cli = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run_cli(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Cli:
    """A function: the command line with these arguments, its exit status, standard output and error."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["stepalign", *arguments])
        with pytest.raises(SystemExit) as stopped:
            cli.main()
        printed = capsys.readouterr()
        return int(stopped.value.code or 0), printed.out, printed.err

    return run


@pytest.fixture
def file(tmp_path: Path) -> Path:
    file = tmp_path / "recipe.toml"
    file.write_text(
        'name = "small"\nseed = 1\nmodel = { name_or_path = "a/model" }\nproblems = { train = { source = "sums" } }\n'
        "training = { max_steps = 3 }\n"
    )
    return file


def imported_by(code: str) -> set[str]:
    program = f"import sys\n{code}\nprint('imported:', *{{name.partition('.')[0] for name in sys.modules}})"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    return set(done.stdout.rpartition("imported:")[2].split())


def test_help_lists_the_commands_and_imports_nothing_heavy() -> None:
    program = "from stepalign.cli import app\ntry: app(['--help'])\nexcept SystemExit: pass"
    assert not imported_by(program) & HEAVY
    done = subprocess.run([sys.executable, "-m", "stepalign.cli", "--help"], capture_output=True, text=True, check=True)
    for command in COMMANDS:
        assert f" {command} " in done.stdout


def test_every_command_is_a_function_of_the_package() -> None:
    functions = {
        "report": "write_report",
        "lab": "run_lab",
        "version": "__version__",
        "quickstart": "train",
        "recipes": "copy_recipe",
    }
    names = {functions.get(command, command.replace("-", "_")) for command in COMMANDS}
    classes = {name for name in stepalign.__all__ if name[0].isupper()}
    assert {*names, "load_recipe", "check_critiques", "process_bench", "export_dataset"} == set(
        stepalign.__all__
    ) - classes
    assert names <= set(dir(stepalign))
    for name in names - {"__version__"}:
        assert callable(getattr(stepalign, name)), name
    assert not imported_by("import stepalign; dir(stepalign); stepalign.load_recipe; stepalign.migrate") & HEAVY
    with pytest.raises(AttributeError, match="no attribute 'trian'"):
        _ = stepalign.trian


def test_the_light_modules_import_nothing_heavy() -> None:
    modules = imported_by("import stepalign, " + ", ".join(f"stepalign.{name}" for name in LIGHT))
    assert "stepalign" in modules
    assert not modules & HEAVY


def test_a_dry_run_prints_a_recipe_that_loads_as_the_same(run_cli: Cli, file: Path, tmp_path: Path) -> None:
    overrides = ["optimizer.lr=1e-4", "context.template=stepalign", "critic.kind=program"]
    status, printed, complaints = run_cli("train", str(file), *overrides, "--dry-run")
    assert (status, complaints) == (0, "")
    again = tmp_path / "again.toml"
    again.write_text(printed)
    assert config.load(again) == config.load(file, overrides)
    assert not (tmp_path / "runs").exists()


def test_the_last_override_wins(run_cli: Cli, file: Path) -> None:
    assert "seed = 1\n" in run_cli("train", str(file), "--dry-run")[1]
    assert "seed = 3\n" in run_cli("train", str(file), "seed=2", "seed=3", "--dry-run")[1]


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["train", "gone.toml"], "gone.toml: no such recipe"),
        (["train", "recipe.toml", "optimizer.lrr=1", "--dry-run"], "optimizer.lrr: unknown key; did you mean lr?"),
        (["train", "recipe.toml", "steps"], "override 'steps': key=value is wanted"),
        (["evaluate", "recipe.toml", "sampling.top_p=2"], "sampling.top_p: "),
        (["evaluate", "recipe.toml", "--adapter", "runs/gone"], "adapter 'runs/gone': no such folder"),
        (["compare", "gone.json", "recipe.toml"], "gone.json: No such file"),
        (["compare", "recipe.toml"], "compare needs two or more files, each once; it was given recipe.toml"),
        (["compare", "recipe.toml", "recipe.toml"], "each once; it was given recipe.toml, recipe.toml"),
        (["sample", "gone.toml"], "gone.toml: no such recipe"),
        (["select", "gone.toml"], "gone.toml: no such recipe"),
        (["critique", "recipe.toml", "gone.jsonl", "critic.kind=program"], "gone.jsonl: No such file"),
        (["probe", "gone.toml"], "gone.toml: no such recipe"),
        (["probe", "recipe.toml", "--context", "stepalin"], "no template 'stepalin'"),
        (["critique", "recipe.toml", "gone.jsonl", "--problems", "gone.jsonl"], "gone.jsonl: No such file"),
        (["critic-bench", "recipe.toml", "gone", "critic.kind=program"], "gone/rollouts.jsonl: No such file"),
        (["critic-bench", "recipe.toml", "recipe.toml", "critic.kind=program"], "a file ending in .jsonl or .parquet"),
        (["step-values", "recipe.toml", "gone.jsonl"], "gone.jsonl: No such file"),
        (["plant", "gone.jsonl", "--model", "a/model"], "model.name_or_path = 'a/model': no tokenizer there"),
        (["plant", "gsm_symbolic", "--model", "a/model", "--kind", "typo"], "no kind of slip 'typo'"),
        (["report", "gone"], "gone"),
    ],
)
def test_bad_input_is_one_error_and_no_traceback(run_cli: Cli, file: Path, arguments: list[str], expected: str) -> None:
    status, printed, complaints = run_cli(*arguments)
    assert status == 2
    assert printed == ""
    assert complaints.startswith("error: ")
    assert complaints.count("error:") == 1
    assert expected in complaints
    assert "Traceback" not in complaints


def test_the_console_command_exits_with_2_on_bad_input(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "stepalign.cli", "train", "gone.toml"],
        check=False,
        capture_output=True,
        text=True,
        cwd=tmp_path,
    )
    assert (done.returncode, done.stdout, done.stderr) == (2, "", "error: gone.toml: no such recipe\n")


def test_an_interrupt_says_how_to_go_on(run_cli: Cli, file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(settings: config.Recipe) -> Path:
        raise KeyboardInterrupt

    monkeypatch.setattr("stepalign.launch.train", interrupted)
    status, _, complaints = run_cli("train", str(file))
    assert status == 130
    assert f"the same command goes on from {Path('runs/small')}" in complaints


@pytest.mark.parametrize(
    ("command", "function", "said"),
    [
        (["select", "recipe.toml"], "api.select", "the same command goes on from selection"),
        (["lab"], "lab.running.run_lab", "the same command goes on from runs/lab"),
        (["critique", "recipe.toml", "r.jsonl"], "api.critique", "the same command goes on from critiques.jsonl"),
        (["critic-bench", "recipe.toml", "f"], "api.critic_bench", "the same command goes on from critic-bench"),
        (["probe", "recipe.toml"], "probing.run.probe", "the same command goes on from probe"),
        (
            ["step-values", "recipe.toml", "r.jsonl"],
            "process_supervision.run.step_values",
            "the same command goes on from step-values.jsonl",
        ),
        (["plan", "recipe.toml"], "planning.plan", "nothing was written"),
        (["evaluate", "recipe.toml"], "api.evaluate", "nothing was written"),
        (["sample", "recipe.toml"], "api.sample", "nothing was written"),
    ],
)
def test_an_interrupt_exits_with_130_and_says_what_is_kept(
    command: list[str], function: str, said: str, run_cli: Cli, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(f"stepalign.{function}", interrupted)
    status, _, complaints = run_cli(*command)
    assert status == 130
    assert complaints == f"\nstopped; {said}\n"


def test_planted_slips_are_critiqued_checked_and_measured(
    run_cli: Cli, file: Path, tiny_llama: Path, tmp_path: Path
) -> None:
    solution = "2*17 = 34 pens\n34+18 = 52\nA: 52"
    row = {
        "question": "Two boxes of 17 pens and 18 more?",
        "ground_truth": solution,
        "model": {"is_correct": True, "solution": solution},
    }
    (tmp_path / "solutions.jsonl").write_text(json.dumps(row) + "\n")
    status, printed, _ = run_cli("plant", "solutions.jsonl", "--model", str(tiny_llama), "--kind", "arithmetic")
    assert (status, printed) == (0, "planted: 1 slips; not planted: {}\n")
    with_problems = ["recipe.toml", "planted/rollouts.jsonl", "--problems", "planted/problems.jsonl"]
    status, printed, _ = run_cli("critique", *with_problems, "critic.kind=program", "--prices", "1", "2.5")
    assert status == 0
    assert "critiques     2  (1 A, 1 D)" in printed
    assert "cost 0.0000" in printed
    assert printed.endswith("critiques.jsonl, critiques-report.json\n")
    status, printed, _ = run_cli("critique", *with_problems, "--check", "critiques.jsonl", "--prices", "1", "2.5")
    assert status == 0
    assert "cost 0.0000" in printed
    limited = run_cli("critique", *with_problems, "critic.kind=program", "--limit", "1", "--out", "first.jsonl")
    assert (limited[0], len((tmp_path / "first.jsonl").read_text().splitlines())) == (0, 1)
    lines = (tmp_path / "critiques.jsonl").read_text().splitlines(keepends=True)
    (tmp_path / "critiques.jsonl").write_text(lines[0])
    status, printed, _ = run_cli("critique", *with_problems, "--check", "critiques.jsonl")
    assert status == 1
    assert "failures      1  (1 missing)" in printed
    status, printed, _ = run_cli("critic-bench", "recipe.toml", "planted", "critic.kind=program")
    assert status == 0
    assert "planted, F1                      100.0%" in printed
    assert (tmp_path / "critic-bench" / "benchmark.json").exists()


def test_a_file_of_processbench_is_measured_and_its_steps_are_valued(
    run_cli: Cli, file: Path, tiny_llama: Path, tmp_path: Path
) -> None:
    model = f"model.name_or_path={tiny_llama}"
    row = {"id": "a", "problem": "2*3?", "steps": ["2*3 = 7", "\\boxed{7}"], "final_answer_correct": False, "label": 0}
    right = {**row, "id": "b", "steps": ["2*3 = 6", "\\boxed{6}"], "final_answer_correct": True, "label": -1}
    (tmp_path / "bench.jsonl").write_text(f"{json.dumps(row)}\n{json.dumps(right)}\n")
    source = 'problems.train={source = "processbench", path = "bench.jsonl"}'
    assert "--prices: " in run_cli("critic-bench", "recipe.toml", "bench.jsonl", "--prices", "1", "2.5")[2]
    for kind in ("critic", "equations"):
        bench = [
            "critic-bench",
            "recipe.toml",
            "bench.jsonl",
            source,
            "problems.holdout=0",
            model,
            f"locator.kind={kind}",
        ]
        status, printed, _ = run_cli(*bench, "critic.kind=program", "--out", kind)
        assert status == 0
        assert "F1          100.0%" in printed
    with_problems = ["critic/traces/rollouts.jsonl", "--problems", "critic/traces/problems.jsonl"]
    status, printed, _ = run_cli("step-values", "recipe.toml", *with_problems, model, "sampling.max_new_tokens=4")
    assert status == 0
    assert printed.startswith("step-values.jsonl: 4 steps of 2 rollouts, ")
    refused = run_cli("step-values", "recipe.toml", *with_problems, model, "sampling.max_new_tokens=5")
    assert refused[0] == 2
    assert "sampling.max_new_tokens: 4 → 5" in refused[2]


def test_the_version_is_the_packages(run_cli: Cli) -> None:
    assert run_cli("version") == (0, f"{__version__}\n", "")


def test_a_recipe_of_format_1_is_migrated_with_each_key_named(run_cli: Cli, tmp_path: Path) -> None:
    old = tmp_path / "old.toml"
    old.write_text('name = "a"  # mine\n[training]\nsteps = 3\n')
    status, _, complaints = run_cli("train", "old.toml", "--dry-run")
    assert status == 2
    assert "`stepalign migrate old.toml`" in complaints
    assert run_cli("migrate", "old.toml", "--out", "new.toml") == (
        0,
        "training.steps → training.max_steps\nnew.toml\n",
        "",
    )
    assert (tmp_path / "new.toml").read_text() == 'name = "a"  # mine\n[training]\nmax_steps = 3\n'
    assert run_cli("migrate", "old.toml")[:2] == (0, "training.steps → training.max_steps\nold.toml\n")
    assert old.read_text() == (tmp_path / "new.toml").read_text()
