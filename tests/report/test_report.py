import dataclasses
import json
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path

import pytest

from stepalign import config, report
from stepalign.errors import StepalignError
from stepalign.io import read_jsonl, write_json
from stepalign.records import Rollout
from stepalign.report import display, figures
from stepalign.report.comparison import Comparison
from stepalign.report.run import read_run

pytestmark = pytest.mark.usefixtures("no_figures")

HOSTILE = (
    "### Step 1: Break out\n"
    "</pre></script><script>alert(1)</script><img src=x onerror=alert(1)> &amp; {{ 7 * 7 }}\n"
    "read \u202eexe.gnp\u202c \u200b\x07 and \u2066this\n" + "{" * 50_000 + "\n### Final Answer:\n\\boxed{4}"
)


class Page(HTMLParser):
    """A page as a browser takes it apart: tags with their attributes, and the text between them."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())

    def count(self, *names: str) -> int:
        return sum(tag in names for tag, _ in self.tags)


def html_of(folder: Path) -> str:
    """A run's page without its figures, which are what takes time."""
    return report.run_page(report.summarize(folder), {})


def text_of(folder: Path) -> str:
    return Page(html_of(folder)).text


def rewrite_metrics(folder: Path, change) -> None:
    path = folder / "metrics.jsonl"
    steps = [json.loads(line) for line in path.read_text().splitlines()]
    change(steps)
    path.write_text("".join(json.dumps(step) + "\n" for step in steps))


@pytest.fixture(scope="module")
def written(build_run_in, tmp_path_factory) -> Path:
    """A run whose rollouts are hostile, with its report."""

    def hostile(rollout: Rollout) -> Rollout:
        return dataclasses.replace(rollout, text=HOSTILE)

    folder = build_run_in(tmp_path_factory.mktemp("runs"), edit=hostile)
    interval = {"value": 0.1, "low": 0.0, "high": 0.2, "n": 3, "over": "problems"}
    probe = {"contexts": {"refsol": {"correct": interval, "at": interval}}, "baselines": {}, "resamples": 50}
    write_json(folder / "probe" / "step-000000.json", probe)
    assert report.write(report.summarize(folder)) == folder / "report.html"
    return folder


# ── the first screen ────────────────────────────────────────────────────────────────────────────────────────


def test_the_first_screen_says_what_ran_whether_it_helped_and_where_the_time_went(build_run) -> None:
    facts, _, rest = text_of(build_run(gain=0.3)).partition("Evaluation 20 problems, 6 samples each ")
    assert "models/SmolLM2-135M-Instruct" in facts
    assert "context stepalign, critic program" in facts
    assert "6 optimizer steps, 96 rollouts" in facts
    assert rest.startswith("Avg@6 rose from ")
    assert "points against step 0, 95 % interval +" in rest[:200]
    assert "paired over 20 problems." in rest[:200]
    assert "in 6 optimizer steps" in rest[:700]
    assert "sample 4" in rest[:700]


def test_a_run_without_a_teacher_says_so(build_run) -> None:
    folder = build_run()
    file = folder / "recipe.toml"
    grpo = config.load(file, ["algorithm.kind=grpo", "training.num_generations=8"])
    file.write_text(config.dump(grpo))
    text = text_of(folder)
    assert "Condition GRPO, 8 rollouts a problem" in text
    assert "critic program" not in text


def test_a_critic_that_was_not_asked_is_not_named(build_run) -> None:
    def unasked(steps: list[dict]) -> None:
        for step in steps:
            step |= {"cases": {}, "failures": {}}

    folder = build_run()
    rewrite_metrics(folder, unasked)
    assert "context stepalign, no critic" in text_of(folder)


def test_an_interval_that_includes_zero_is_said_to(build_run) -> None:
    text = text_of(build_run(gain=0.0))
    assert ": no difference is shown." in text
    assert "The interval includes zero." in text
    assert "rose from" not in text


def test_a_loss_is_called_a_loss(build_run) -> None:
    assert "Avg@6 fell from" in text_of(build_run(gain=-0.4))


def test_one_problem_never_makes_a_gain(build_run) -> None:
    html = html_of(build_run(problems=1, gain=0.9))
    assert "One problem shows no scatter to judge by." in html
    assert 'class="verdict open"' in html


def test_a_run_evaluated_once_makes_no_claim(build_run) -> None:
    text = text_of(build_run(steps=0))
    assert "A second evaluation will show whether training helps." in text
    assert "difference" not in text.partition("Intervals are 95 %")[0]


def test_a_run_that_stopped_early_says_how_far_it_came(build_run) -> None:
    assert "4 optimizer steps of 6, 64 rollouts" in text_of(build_run(steps=4))


def test_rates_count_only_the_steps_that_spent_time_on_the_stage(build_run) -> None:
    def resume(steps) -> None:
        steps[0] |= {"completion_tokens": 1000, "seconds": {"sample": 10.0}}
        steps[1] |= {"completion_tokens": 1000, "seconds": {"optimizer": 1.0}}  # its rollouts were on disk

    folder = build_run(steps=2)
    rewrite_metrics(folder, resume)
    assert "10 s, 100 tokens/s" in text_of(folder)


# ── what was taught, and what a model wrote ─────────────────────────────────────────────────────────────────


def test_what_was_taught_dropped_and_fell_back_is_counted(build_run) -> None:
    folder = build_run()
    steps = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    failed = sum(step["failures"].get("parse", 0) for step in steps)
    text = text_of(folder)
    assert failed > 0
    assert "trained on 96 carry loss" in text
    assert f"fell back {failed} " in text
    assert f"failed: parse {failed} " in text
    assert f"critiques of case D {sum(step['cases']['D'] for step in steps)} incorrect answer" in text
    assert "left out: duplicate 3 problems" in text


def test_checks_are_counted_over_all_steps_in_their_order(build_run) -> None:
    def checked(steps) -> None:
        steps[0]["checks"] = {"parse": {"fell back": 3}, "exact_copy": {"passed": 1000, "repaired": 7}}
        steps[1]["checks"] = {"case": {"passed": 16, "retried": 2, "ignored": 1}, "exact_copy": {"passed": 300}}
        for step in steps:
            step["critic_tokens"] = {"read": 600, "written": 40}

    folder = build_run(steps=2)
    rewrite_metrics(folder, checked)
    text = text_of(folder)
    assert "passed repaired retried ignored fell back case 16 2 1 exact_copy 1,300 7 parse 3 " in text
    assert "critic's tokens: written 80 " in text
    assert "Checks of the critiques" not in text_of(build_run(steps=1))


def test_the_first_wrong_step_is_marked_in_the_rollout(build_run) -> None:
    marked = html_of(build_run()).partition("<mark>")[2].partition("</mark>")[0]
    assert marked.startswith("### Step 1: Count the marbles that she buys")
    assert "### Step 2" not in marked


def test_a_critique_of_steps_that_the_rollout_does_not_have_marks_nothing(build_run) -> None:
    def stepless(rollout: Rollout) -> Rollout:
        return dataclasses.replace(rollout, text="No steps here.")

    html = html_of(build_run(edit=stepless))
    assert "No steps here." in html
    assert "<mark>" not in html


def test_what_a_model_wrote_stays_text(written: Path) -> None:
    html = (written / "report.html").read_text()
    read_back = Page(html)
    assert read_back.count("script", "img") == 0
    assert "</pre></script><script>alert(1)</script><img src=x onerror=alert(1)> &amp; {{ 7 * 7 }}" in read_back.text
    assert not set("\u202e\u202c\u200b\x07\u2066") & set(html)
    assert {"U+202E", "U+202C", "U+200B", "U+0007", "U+2066"} <= set(read_back.words)
    assert "more characters" in read_back.text  # of fifty thousand braces
    assert len(html) < 1_500_000


def test_hostile_names_and_reasons_stay_text(build_run) -> None:
    def hostile(steps) -> None:
        steps[-1] |= {
            "failures": {"<em>bad</em>": 2},
            "checks": {"<b>odd</b>": {"passed": 1}},
            "seconds": {"<var>slow</var>": 1000.0},
        }

    folder = build_run()
    rewrite_metrics(folder, hostile)
    (folder / "recipe.toml").write_text('name = "<script>x</script>"\n[model]\nname_or_path = "<img src=x>"\n')
    read_back = Page(html_of(folder))
    assert read_back.count("script", "img", "em", "var") == 0
    for foreign in ("<em>bad</em>", "<b>odd</b>", "<var>slow</var>", "<script>x</script>", "<img src=x>"):
        assert foreign in read_back.text


# ── the page and its figures ────────────────────────────────────────────────────────────────────────────────


def test_the_page_asks_nothing_of_the_network_and_runs_nothing(written: Path) -> None:
    html = (written / "report.html").read_text()
    read_back = Page(html)
    assert read_back.count("script", "img", "iframe", "object", "embed") == 0
    for _, attributes in read_back.tags:
        for name, value in attributes.items():
            assert not name.startswith("on")
            if name in ("href", "src", "xlink:href", "srcset", "data"):
                assert (value or "").startswith(("#", "data:"))
    assert "@import" not in html
    assert "url(http" not in html
    assert "default-src 'none'" in html


def test_the_figures_are_png_files_and_inside_the_page(written: Path) -> None:
    read_back = Page((written / "report.html").read_text())
    assert sorted(path.name for path in (written / "figures").iterdir()) == [
        "evaluation.png",
        "probe.png",
        "training.png",
    ]
    for path in (written / "figures").iterdir():
        assert path.read_bytes().startswith(b"\x89PNG")
    assert read_back.count("svg") == 10
    assert {"Avg@6", "Maj@6", "Pass@6", "Mean answer length", "optimizer step"} <= set(read_back.words)


def test_the_same_folder_gives_the_same_bytes(written: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()  # with figures
    files = [written / "report.html", written / "figures" / "evaluation.png"]
    first = [path.read_bytes() for path in files]
    report.write(report.summarize(written))
    assert [path.read_bytes() for path in files] == first


# ── folders that a killed run left behind ───────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    "kept",
    [
        ("recipe.toml",),
        ("manifest.json",),
        ("metrics.jsonl",),
        ("evaluations",),
        ("rollouts",),
        ("recipe.toml", "manifest.json", "problems", "rollouts", "critiques"),
        ("recipe.toml", "metrics.jsonl", "rollouts"),
    ],
)
def test_whatever_a_killed_run_left_is_reported(build_run, kept: tuple[str, ...]) -> None:
    folder = build_run()
    for path in folder.iterdir():
        if path.name not in kept:
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    text = Page(report.write(report.summarize(folder)).read_text()).text
    assert ("Not evaluated yet." in text) == ("evaluations" not in kept)
    assert ("6 optimizer steps, 96 rollouts" in text) == ("metrics.jsonl" in kept)


def test_a_single_step_can_be_drawn(build_run) -> None:
    run = report.summarize(build_run(steps=1, evaluate_every=5)).run
    panels = [*figures.evaluation_panels({run.name: run.evaluations}), *figures.training_panels(run.steps)]
    assert len(panels) == 8
    assert figures.raster(figures.draw_panels(panels, 2))


def test_a_half_written_last_line_of_metrics_is_left_out(build_run) -> None:
    folder = build_run(steps=4)
    with (folder / "metrics.jsonl").open("a") as file:
        file.write('{"step": 5, "lo')
    assert "4 optimizer steps of 6, 64 rollouts" in text_of(folder)


def test_a_step_done_twice_counts_once(build_run) -> None:
    folder = build_run(steps=4)
    rewrite_metrics(folder, lambda steps: steps.append(steps[-1]))
    assert "4 optimizer steps of 6, 64 rollouts" in text_of(folder)


def test_metrics_that_are_missing_or_infinite_leave_gaps(build_run) -> None:
    def spoil(steps) -> None:
        del steps[0]["loss"]
        steps[1] |= {"loss": float("nan"), "kl": float("inf")}
        steps[2] = {"step": 3, "rollouts": 16}  # a step without a lesson

    folder = build_run(steps=3)
    shutil.rmtree(folder / "evaluations")
    rewrite_metrics(folder, spoil)
    assert "3 optimizer steps of 6, 48 rollouts" in text_of(folder)
    panels = figures.training_panels(report.summarize(folder).run.steps)
    assert figures.raster(figures.draw_panels(panels, 2))


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("recipe.toml", "name = ", r"recipe\.toml: not valid TOML"),
        ("manifest.json", "{", r"manifest\.json: not a valid Manifest: the whole: Invalid JSON"),
        ("metrics.jsonl", "{}\n{}\n", r"metrics\.jsonl, line 1: not a step's: '{}'"),
        ("evaluations/step-000000.json", "{}", r"step-000000\.json: not a valid Evaluation: step"),
    ],
)
def test_a_broken_file_is_named(build_run, name: str, content: str, message: str) -> None:
    folder = build_run(steps=2)
    (folder / name).write_text(content)
    with pytest.raises(StepalignError, match=message):
        report.write(report.summarize(folder))


def test_a_folder_without_a_run_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(StepalignError, match="no run there"):
        report.write(report.summarize(tmp_path))
    with pytest.raises(StepalignError, match="no run there"):
        report.write(report.summarize(tmp_path / "nothing"))


# ── several runs ────────────────────────────────────────────────────────────────────────────────────────────


def test_a_comparison_shows_every_run_and_what_differs(
    build_run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.undo()
    refsol = build_run("refsol", template="refsol", critic=False, gain=0.0)
    stepalign = build_run("stepalign", gain=0.3)
    out = tmp_path / "pages" / "comparison.html"
    assert report.write_comparison([refsol, stepalign], out) == out
    read_back = Page(out.read_text())
    assert "stepalign reaches Avg@6" in read_back.text
    assert read_back.text.index("Avg@6 rises under") < read_back.text.index("reaches Avg@6")
    assert "points against refsol (step 6 against step 6), 95 % interval +" in read_back.text
    assert "context.template refsol stepalign" in read_back.text
    assert "critic.kind – program" in read_back.text
    assert "optimizer.lr" not in read_back.text  # equal in both
    assert (tmp_path / "pages" / "comparison-figures" / "evaluation.png").exists()
    assert read_back.count("svg") == 4


def test_the_best_of_a_column_is_bold_and_the_base_is_no_checkpoint(build_run, tmp_path: Path) -> None:
    worse, better = build_run("worse", gain=-0.5), build_run("better", gain=0.3)
    html = report.write_comparison([worse, better], tmp_path / "out.html").read_text()
    table = html.partition("Best checkpoint, metric by metric")[2].partition("</table>")[0]
    first, second = (row.split("<td") for row in table.split("<tr>") if "<bdi>" in row)
    assert "<strong>" not in first[1]
    assert "<strong>" in second[1]
    assert "at step 0" not in table


def test_a_comparison_leads_with_each_condition_against_its_own_base(build_run, tmp_path: Path) -> None:
    runs = {name: [read_run(build_run(name, gain=gain))] for name, gain in (("up", 0.3), ("down", -0.4), ("same", 0.0))}
    comparison = Comparison(runs)
    verdict = comparison.verdict
    assert verdict is not None
    assert re.fullmatch(r"Avg@6 rises under up \(\+[\d.]+\), falls under down \(−[\d.]+\), shows no .* same \(.*\)\.",
                        verdict.headline)  # fmt: skip
    assert verdict.tone == "open"
    assert Comparison({"up": runs["up"]}).verdict.tone == "better"
    rows = dict(comparison.gains.rows)
    change = comparison.against["down"].differences["avg"]
    assert rows["down"][3] == display.difference_cell("avg", change)
    assert str(rows["up"][3]) == "–"
    once = Comparison({"once": [read_run(build_run("once", steps=1, evaluate_every=5))]})
    assert once.verdict is None or len(once.summaries["once"].run.evaluations) > 1


def test_a_narrow_window_finds_the_columns_name_in_each_cell(build_run, tmp_path: Path) -> None:
    first, second = build_run("first"), build_run("second")
    recipe = first / "recipe.toml"
    recipe.write_text(recipe.read_text().replace('name = "first"', 'name = "a\u202eb"'))
    html = report.write_comparison([first, second], tmp_path / "out.html").read_text()
    for table in re.findall(r"<thead>.*?</table>", html, re.DOTALL):
        cells = re.findall(r"<td[^>]*>", table)
        assert cells
        assert all('data-label="' in cell or "colspan" in cell for cell in cells)
    assert 'data-label="against a&lt;U+202E&gt;b"' in html


def test_a_difference_that_seeds_do_not_agree_on_is_not_shown(build_run, tmp_path: Path) -> None:
    low, high = (read_run(build_run(name=name, gain=gain)) for name, gain in (("low", 0.0), ("high", 0.3)))
    (sure,) = Comparison({"low": [low], "high": [high]}).against.values()
    assert sure.tone == "better"
    assert sure.detail.endswith("paired over 20 problems.")
    (agreed,) = Comparison({"low": [low, low], "high": [high, high]}).against.values()
    assert agreed.tone == "better"
    assert agreed.detail.endswith("paired over 20 problems, over 2 seeds each.")
    (uneven,) = Comparison({"low": [low], "high": [high, high]}).against.values()
    assert uneven.detail.endswith("paired over 20 problems, over 2 seeds of high and 1 seed of low.")
    for runs, is_said in (([high], False), ([high, high], True)):
        page = report.write_conditions(Comparison({"low": [low], "high": runs}), tmp_path / "page.html").read_text()
        assert ("intervals and differences are over seeds and problems" in page) == is_said
    (open_,) = Comparison({"low": [low, low], "high": [high, low]}).against.values()
    assert open_.tone == "open"
    assert open_.differences["avg"].includes_zero


def test_runs_on_other_problems_or_not_evaluated_are_not_compared(build_run, tmp_path: Path) -> None:
    first, others = build_run("first"), build_run("others", first_problem=500)
    waiting = build_run("waiting", steps=3)
    shutil.rmtree(waiting / "evaluations")
    html = report.write_comparison([first, others, waiting], tmp_path / "out.html").read_text()
    assert "others and first were evaluated on different problems." in html
    assert "waiting has not been evaluated." in html
    assert "points against" not in html


def test_runs_of_one_name_are_told_apart_by_their_paths(build_run, tmp_path: Path) -> None:
    first = build_run("same")
    second = tmp_path / "elsewhere" / "_$same_数"
    shutil.copytree(first, second)
    html = report.write_comparison([first, second], tmp_path / "out.html").read_text()
    assert f"{second} reaches Avg@6" in html


def test_hostile_names_stay_text_in_a_comparison(build_run, tmp_path: Path) -> None:
    folders = [build_run("a"), build_run("b")]
    for folder in folders:
        recipe = (folder / "recipe.toml").read_text().splitlines()
        recipe[1] = f'name = "<script>{folder.name}</script>"'
        (folder / "recipe.toml").write_text("\n".join(recipe))
    read_back = Page(report.write_comparison(folders, tmp_path / "out.html").read_text())
    assert "<script>b</script> reaches Avg@6" in read_back.text
    assert read_back.count("script") == 0


@pytest.mark.parametrize("times", [1, 2])
def test_a_comparison_needs_two_runs(build_run, tmp_path: Path, times: int) -> None:
    with pytest.raises(StepalignError, match="two or more different runs"):
        report.write_comparison([build_run()] * times, tmp_path / "out.html")


def test_a_comparison_of_different_n_is_refused(build_run, tmp_path: Path) -> None:
    folders = [build_run("four", samples=4), build_run("six", samples=6)]
    with pytest.raises(StepalignError, match=r"four: n = 4, six: n = 6"):
        report.write_comparison(folders, tmp_path / "out.html")


def test_the_built_folder_holds_real_records(build_run) -> None:
    rollouts = read_jsonl(build_run() / "rollouts" / "step-000006.jsonl", Rollout)
    assert len(rollouts) == 16
    assert {rollout.correct for rollout in rollouts} == {True, False}


def test_a_protection_that_the_grader_lacks_is_said_at_the_head(build_run) -> None:
    folder = build_run("run", steps=1)
    assert "Warning:" not in html_of(folder)
    path = folder / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"warning": "programs run without <bubblewrap>"}))
    assert '</h1>\n<p class="shortfall">Warning: programs run without &lt;bubblewrap&gt;.</p>' in html_of(folder)


@pytest.mark.parametrize(
    ("outcomes", "failures", "said"),
    [
        ({"failed": 3, "fallback": 2, "dropped": 1}, {"parse": 2, "timeout": 1},
         "3 of 8 critiques failed, 2 of 16 rollouts fell back, 1 of 16 rollouts dropped out (2 parse, 1 timeout)."),
        ({"dropped": 1}, {"teacher prompt too long": 1}, "1 of 16 rollouts dropped out (1 teacher prompt too long)."),
        ({"cut": 2, "without credit": 4}, {"no wrong context": 4},
         "2 of 16 rollouts had a shortened teacher prompt, 4 of 16 rollouts got no credit (4 no wrong context)."),
        ({"failed": 0, "mended by program": 3}, {},
         "3 of 16 rollouts were corrected by the program after the mender failed."),
        ({"sandbox restarted": 2}, {}, "2 of 16 rollouts were graded by a sandbox that had to be restarted."),
        ({"failed": 0}, {}, "No failure among 5 critiques."),
    ],
)  # fmt: skip
def test_what_failed_fell_back_or_dropped_out_is_the_first_line(
    outcomes: dict[str, int], failures: dict[str, int], said: str, build_run
) -> None:
    folder = build_run("run", steps=1)
    new = {"outcomes": outcomes, "failures": failures, "cases": {"A": 5}, "rollouts": 16}
    rewrite_metrics(folder, lambda steps: steps[0].update(new))
    assert f'</h1>\n<p class="shortfall">{said}</p>' in html_of(folder)
    assert report.summarize(folder).shortfall == said
    rewrite_metrics(folder, lambda steps: steps[0].update(outcomes={}, failures={}, cases={}))
    assert report.summarize(folder).shortfall == ""
