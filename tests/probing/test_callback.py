"""A run that looks at the same rollouts at every checkpoint."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

import stepalign
from stepalign import report
from stepalign.config import Recipe
from stepalign.errors import StepalignError
from stepalign.evaluation.metrics import CreditMeasures
from stepalign.io import read_json
from stepalign.launch import train
from stepalign.probing import callback, inputs
from stepalign.report import figures
from stepalign.scoring import score_views

pytestmark = pytest.mark.usefixtures("no_figures")

MakeRecipe = Callable[..., Recipe]
CONTEXTS = 'probe.contexts=["stepalign", "refsol"]'


_DONE: list[Path] = []


@pytest.fixture
def watched(make_recipe: MakeRecipe, planted: Path, tmp_path_factory: pytest.TempPathFactory) -> Recipe:
    """A run that is made once; each test gets a copy of its folder."""
    settings = make_recipe(CONTEXTS, f"probe.rollouts={planted}", "probe.num_rollouts=6", "training.eval_steps=0")
    if not _DONE:
        train(settings)
        _DONE.append(shutil.copytree(settings.folder, tmp_path_factory.mktemp("watched") / "run"))
        return settings
    shutil.copytree(_DONE[0], settings.folder)
    return settings


def measures(settings: Recipe, step: int) -> CreditMeasures:
    return read_json(settings.folder / "probe" / f"step-{step:06d}.json", CreditMeasures)


def same(one: CreditMeasures, other: CreditMeasures) -> None:
    assert one.contexts.keys() == other.contexts.keys()
    for context, found in one.contexts.items():
        for name, estimate in found.items():
            assert estimate.value == pytest.approx(other.contexts[context][name].value, abs=1e-4), (context, name)


def test_every_checkpoint_is_measured_as_the_stage_would_measure_it(watched: Recipe, tmp_path: Path) -> None:
    folder = watched.folder / "probe"
    assert sorted(path.name for path in folder.glob("step-*")) == [f"step-00000{step}.json" for step in (0, 2, 4)]
    assert len(inputs.read(folder).rollouts) == 6
    for step in (0, 4):
        adapter = watched.folder / "checkpoints" / f"step-{step:06d}" if step else None
        looked = stepalign.probe(
            watched, tmp_path / str(step), rollouts=folder, contexts=("stepalign", "refsol"), adapter=adapter
        )
        same(measures(watched, step), looked.measures)
    before, after = (measures(watched, step).contexts["stepalign"]["correct"].value for step in (0, 4))
    assert before != pytest.approx(after, abs=1e-3)


@pytest.mark.parametrize("teacher", [pytest.param("live", marks=pytest.mark.slow), "ema"])
def test_the_teacher_of_a_look_is_the_recipes(
    teacher: str, make_recipe: MakeRecipe, planted: Path, tmp_path: Path
) -> None:
    """As it is at each checkpoint, and not the base."""
    keys = (
        CONTEXTS,
        f"probe.rollouts={planted}",
        "probe.num_rollouts=4",
        "training.eval_steps=0",
        "training.max_steps=2",
    )
    settings = make_recipe(*keys, f"teacher.kind={teacher}")
    train(settings)
    looks = {}
    for kind in (teacher, "base"):
        looks[kind] = stepalign.probe(
            make_recipe(*keys, f"teacher.kind={kind}"),
            tmp_path / kind,
            rollouts=settings.folder / "probe",
            contexts=("stepalign", "refsol"),
            adapter=settings.folder / "checkpoints" / "step-000002",
        ).measures
    same(measures(settings, 2), looks[teacher])
    with pytest.raises(AssertionError):
        same(measures(settings, 2), looks["base"])


def test_a_probe_of_a_moving_average_needs_a_checkpoint(
    make_recipe: MakeRecipe, finished_run: Recipe, planted: Path, tmp_path: Path
) -> None:
    adapter = finished_run.folder / "checkpoints" / "step-000004"
    with pytest.raises(
        StepalignError, match=r"teacher\.kind = 'ema': its state is in a run's checkpoint, and .* has none"
    ):
        stepalign.probe(
            make_recipe("teacher.kind=ema"), tmp_path / "probe", rollouts=planted, contexts=("refsol",), adapter=adapter
        )


def test_a_look_that_is_missing_is_taken_again_and_the_base_is_not_asked_twice(watched: Recipe) -> None:
    folder = watched.folder / "probe"
    kept, credits = measures(watched, 4), (folder / "credits.jsonl").stat().st_mtime_ns
    (folder / "step-000004.json").unlink()
    train(watched)
    assert measures(watched, 4) == kept
    assert (folder / "credits.jsonl").stat().st_mtime_ns == credits


def test_watching_changes_nothing_about_what_is_learnt(watched: Recipe, finished_run: Recipe) -> None:
    mine, theirs = (
        (settings.folder / "checkpoints" / "step-000004" / "adapter_model.safetensors").read_bytes()
        for settings in (watched, finished_run)
    )
    assert mine == theirs


def test_the_runs_page_shows_how_the_signal_changes(
    watched: Recipe, finished_run: Recipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.undo()  # with figures
    summary = report.summarize(watched.folder)
    panels = figures.probe_panels(summary.run.probes)
    assert len(panels) == 4
    assert "Credit of a fixed set of rollouts" in report.run_page(summary, {"probe": panels[:1]})
    assert "Credit of a fixed set of rollouts" not in (finished_run.folder / "report.html").read_text()


def test_without_rollouts_of_its_own_the_base_draws_the_set(
    make_recipe: MakeRecipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    scored = []
    monkeypatch.setattr(callback, "score_views", lambda *views: scored.append(views) or score_views(*views))
    settings = make_recipe("probe.num_rollouts=3", "training.max_steps=2", "training.eval_steps=0")
    train(settings)
    rollouts = inputs.read(settings.folder / "probe").rollouts
    assert [rollout.policy_step for rollout in rollouts] == [0, 0, 0]
    assert set(measures(settings, 2).contexts) == {"stepalign"}
    assert len(scored) == 1, "at step 2; at step 0 the student is scored with the teacher"


def test_a_probe_that_shows_critiques_needs_a_critic(make_recipe: MakeRecipe) -> None:
    settings = make_recipe("context.template=refsol", 'probe.contexts=["verdicts"]').model_copy(update={"critic": None})
    with pytest.raises(StepalignError, match=r"probe\.contexts: 'verdicts' shows a critique, but the recipe has no"):
        train(settings)


def test_what_the_set_lacks_is_said_and_a_context_without_any_credit_refused(
    make_recipe: MakeRecipe, planted: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("problems", "rollouts", "critiques"):
        lines = (planted / f"{name}.jsonl").read_text().splitlines(keepends=True)
        (tmp_path / f"{name}.jsonl").write_text("".join(lines[1:] if name == "critiques" else lines))
    keys = ("context.template=refsol", f"probe.rollouts={tmp_path}", "training.max_steps=1", "training.eval_steps=0")
    settings = make_recipe(*keys, 'probe.contexts=["verdicts"]').model_copy(update={"critic": None})
    train(settings)
    assert "probe: verdicts: no critique (1)" in capsys.readouterr().err
    (tmp_path / "critiques.jsonl").unlink()
    message = r"no rollout of the probe has credit under 'verdicts'; verdicts: no critique \(8\)"
    with pytest.raises(StepalignError, match=message):
        train(settings.model_copy(update={"name": "without"}))
