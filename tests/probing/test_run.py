"""The whole stage on tiny models: what it writes, what its numbers are, and how it goes on."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

import stepalign
from stepalign import config
from stepalign.chat import Chat, load_chat
from stepalign.config import Recipe
from stepalign.errors import StepalignError
from stepalign.io import read_jsonl, write_jsonl
from stepalign.probing import folder, inputs
from stepalign.probing.credit import CreditScorer
from stepalign.probing.folder import Probe
from stepalign.prompts.conversation import Turn
from stepalign.records import Credit, CritiqueFailure, Grade, Problem, Rollout

pytestmark = pytest.mark.usefixtures("no_figures")

MakeRecipe = Callable[..., Recipe]
CONTEXTS = ("refsol", "stepalign", "quoted", "verdicts")
SMOLLM2 = Path("models/SmolLM2-135M-Instruct")


@pytest.fixture
def settings(make_recipe: MakeRecipe) -> Recipe:
    return make_recipe()


_DONE: list[tuple[Probe, Path]] = []


@pytest.fixture
def probed(settings: Recipe, planted: Path, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Probe:
    """A probe that is made once; each test gets a copy of its folder."""
    if not _DONE:
        folder = tmp_path_factory.mktemp("probed") / "probe"
        found = stepalign.probe(settings, folder, rollouts=planted, contexts=CONTEXTS, top=3)
        _DONE.append((found, folder))
    found, folder = _DONE[0]
    shutil.copytree(folder, tmp_path / "probe")
    return found


@torch.no_grad()
def plain(model: torch.nn.Module, prompt_ids: tuple[int, ...], rollout: Rollout) -> list[float]:
    ids = torch.tensor([[*prompt_ids, *rollout.completion_ids]])
    log_probs = model(ids).logits[0, len(prompt_ids) - 1 : -1].log_softmax(-1)
    return log_probs.gather(-1, torch.tensor(rollout.completion_ids)[:, None]).squeeze(-1).tolist()


def equals_a_plain_computation(found: Probe, model: torch.nn.Module, chat: Chat, contexts: tuple[str, ...]) -> None:
    rollouts = {rollout.id: rollout for rollout in found.rollouts}
    assert {credit.context for credit in found.credits} == set(contexts)
    for credit in found.credits:
        rollout = rollouts[credit.rollout_id]
        teacher = plain(model, chat.prompt_ids([Turn("user", credit.prompt)]), rollout)
        student = plain(model, rollout.prompt_ids, rollout)
        expected = [t - s for t, s in zip(teacher, student, strict=True)]
        assert credit.values == pytest.approx(expected, abs=1e-4)


def test_credit_is_that_of_a_plain_computation_in_double_precision(probed: Probe, tiny_llama: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(tiny_llama).double()
    equals_a_plain_computation(probed, model, load_chat(config.ModelConfig(name_or_path=str(tiny_llama))), CONTEXTS)
    assert len(probed.credits) == 8 * 4


@pytest.mark.slow
def test_the_same_on_a_real_model(make_recipe: MakeRecipe, planted: Path, tmp_path: Path) -> None:
    if not SMOLLM2.exists():
        pytest.skip(f"{SMOLLM2} is not there")
    # The planted rollouts' ids are another tokenizer's: to this model they are text of its own, as good as any.
    settings = make_recipe(f"model.name_or_path={SMOLLM2}")
    found = stepalign.probe(settings, tmp_path / "probe", rollouts=planted, contexts=("stepalign",), limit=3)
    model = AutoModelForCausalLM.from_pretrained(SMOLLM2, dtype=torch.float64)
    equals_a_plain_computation(found, model, load_chat(config.ModelConfig(name_or_path=str(SMOLLM2))), ("stepalign",))


def test_the_folder_holds_what_python_returns(probed: Probe, tmp_path: Path) -> None:
    read = folder.read(tmp_path / "probe")
    assert replace(read, manifest={}) == replace(probed, manifest={})
    assert read.contexts == CONTEXTS
    assert len(read.marks) == 4
    assert set(read.measures.contexts) == set(CONTEXTS)
    assert read.measures.contexts["stepalign"]["at"].n == 4
    sampled = {token for rollout in read.rollouts for token in rollout.completion_ids}
    listed = {token for credit in read.credits for top in credit.teacher_top for token, _ in top}
    assert sampled | listed <= set(read.tokens)
    assert all(len(top) == 3 for credit in read.credits for top in credit.student_top)


def test_a_stopped_probe_goes_on_to_the_same_numbers_and_reads_nothing_twice(
    probed: Probe, settings: Recipe, planted: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "probe" / "credits.jsonl"
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join(lines[:20]) + lines[20][:100])
    made: list[Credit] = []
    run = CreditScorer.run

    def counted(*arguments: object) -> object:
        for credits in run(*arguments):  # type: ignore[arg-type]
            made.extend(credits)
            yield credits

    monkeypatch.setattr(CreditScorer, "run", counted)
    again = stepalign.probe(settings, tmp_path / "probe", rollouts=planted, contexts=CONTEXTS, top=3)
    assert len(made) == len(lines) - 20
    for credit, before in zip(again.credits, probed.credits, strict=True):
        assert (credit.rollout_id, credit.context) == (before.rollout_id, before.context)
        assert credit.values == pytest.approx(before.values, abs=1e-4)


def test_contexts_may_be_added_but_nothing_else_may_change(
    probed: Probe, settings: Recipe, planted: Path, tmp_path: Path
) -> None:
    out = tmp_path / "probe"
    more = stepalign.probe(settings, out, rollouts=planted, contexts=(*CONTEXTS, "prefix"), top=3)
    assert [credit for credit in more.credits if credit.context != "prefix"] == list(probed.credits)
    assert "prefix" in more.measures.contexts
    with pytest.raises(StepalignError, match=r"holds another probe .*; what differs:\n  top: 3 → 5"):
        stepalign.probe(settings, out, rollouts=planted, contexts=CONTEXTS, top=5)


def critic_a(problem: Problem, rollout: Rollout) -> None:
    """No critique."""


def critic_b(problem: Problem, rollout: Rollout) -> None:
    """None either, in other words."""


def test_another_critic_or_grader_is_refused(
    probed: Probe, make_recipe: MakeRecipe, planted: Path, tmp_path: Path
) -> None:
    assert probed.manifest["asked"]["critic"]["kind"] == "program"
    for override in ("critic.checks.min_fidelity=0.5", "grader.timeout_s=9.0"):
        with pytest.raises(StepalignError, match=override.partition("=")[0]):
            stepalign.probe(make_recipe(override), tmp_path / "probe", rollouts=planted, contexts=CONTEXTS, top=3)
    settings = make_recipe("critic.max_failed_steps=9", "grader.num_workers=3")
    again = stepalign.probe(settings, tmp_path / "probe", rollouts=planted, contexts=CONTEXTS, top=3)
    assert again.credits == probed.credits


def test_other_words_of_a_critic_or_other_rollouts_in_the_same_file_are_refused(
    settings: Recipe, planted: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, given = tmp_path / "probe", shutil.copytree(planted, tmp_path / "given")
    monkeypatch.setattr(critic_b, "__name__", "critic_a")
    monkeypatch.setattr(critic_b, "__qualname__", "critic_a")
    stepalign.probe(settings, out, rollouts=given, contexts="refsol", limit=1, critic=critic_a)
    with pytest.raises(StepalignError, match=r"words\..*critic_a\.py: "):
        stepalign.probe(settings, out, rollouts=given, contexts="refsol", limit=1, critic=critic_b)
    write_jsonl(given / "rollouts.jsonl", read_jsonl(given / "rollouts.jsonl", Rollout)[::-1])
    with pytest.raises(StepalignError, match="rollouts_sha256: "):
        stepalign.probe(settings, out, rollouts=given, contexts="refsol", limit=1, critic=critic_a)


def test_two_contexts_of_one_name_are_refused(make_recipe: MakeRecipe, tmp_path: Path) -> None:
    designs = [lambda problem, solution: f"One: {solution}", lambda problem, solution: f"Another: {solution}"]
    with pytest.raises(StepalignError, match=r"contexts: two are named '.*<lambda>'"):
        stepalign.probe(make_recipe(), tmp_path, contexts=designs)
    assert not list(tmp_path.glob("*.json*"))


def test_credit_of_contexts_that_are_not_asked_for_again_stays_with_its_words_and_cost(
    settings: Recipe, planted: Path, tmp_path: Path
) -> None:
    mine, out = tmp_path / "mine.txt", tmp_path / "probe"
    mine.write_text("{{ problem }} {{ sibling }}")
    first = stepalign.probe(settings, out, rollouts=planted, contexts=str(mine), limit=3)
    more = stepalign.probe(settings, out, rollouts=planted, contexts="refsol", limit=3)
    assert more.contexts == ("refsol", *first.contexts)
    assert [credit for credit in more.credits if credit.context != "refsol"] == list(first.credits)
    assert set(more.measures.contexts) == set(more.contexts)
    assert more.manifest["skipped"] == first.manifest["skipped"] == {f"{mine}: no sibling": 2}
    again = stepalign.probe(settings, out, rollouts=planted, contexts="refsol", limit=3)
    assert again.manifest["cost"] == more.manifest["cost"]
    assert more.manifest["cost"]["tokens"] > first.manifest["cost"]["tokens"] > 0
    (out / "manifest.json").unlink()  # stopped before its end
    mine.write_text("{{ problem }} {{ critique.case }}")
    with pytest.raises(StepalignError, match=r"contexts\..*mine\.txt: "):
        stepalign.probe(settings, out, rollouts=planted, contexts=(str(mine), "refsol"), limit=3)


def test_grades_stay_and_what_a_server_did_not_answer_is_asked_again(
    settings: Recipe, planted: Path, tmp_path: Path
) -> None:
    given = shutil.copytree(planted, tmp_path / "given")
    first, second, *rest = read_jsonl(given / "rollouts.jsonl", Rollout)
    graded = replace(first, grade=Grade(correct=True, outcome="correct", feedback="by hand"))
    write_jsonl(given / "rollouts.jsonl", [graded, replace(second, grade=None), *rest])
    results: list[object] = list(inputs.read(planted).critic_results)
    results[:2] = [
        CritiqueFailure(rollout_id=one.id, critic="program", reason=reason)
        for one, reason in ((first, "timeout"), (second, "parse"))
    ]
    write_jsonl(given / "critiques.jsonl", results)
    found = stepalign.probe(settings, tmp_path / "probe", rollouts=given, contexts="refsol", limit=3)
    assert found.rollouts[0].grade == graded.grade
    assert found.rollouts[1].grade is not None
    assert found.rollouts[1].grade.outcome == "wrong"
    assert first.id in found.critiques
    assert second.id not in found.critiques


def num_tokens(settings: Recipe, found: Probe) -> list[int]:
    """The teacher's tokens for each credit."""
    chat, rollouts = load_chat(settings.model), {rollout.id: rollout for rollout in found.rollouts}
    return [
        len(chat.prompt_ids([Turn("user", credit.prompt)])) + len(rollouts[credit.rollout_id].completion_ids)
        for credit in found.credits
    ]


def test_teacher_prompts_that_are_cut_are_counted(make_recipe: MakeRecipe, planted: Path, tmp_path: Path) -> None:
    whole = stepalign.probe(make_recipe(), tmp_path / "whole", rollouts=planted, contexts="stepalign", limit=2)
    assert whole.manifest["cut"] == {}
    settings = make_recipe(f"teacher.max_length={min(num_tokens(make_recipe(), whole)) - 20}")
    for _ in range(2):  # the second reads the folder
        found = stepalign.probe(settings, tmp_path / "cut", rollouts=planted, contexts="stepalign", limit=2)
        assert found.manifest["cut"] == {"stepalign": 2}
    assert "stepalign: teacher prompt cut (2)" in (tmp_path / "cut" / "probe.html").read_text()


def test_a_wrong_context_that_does_not_fit_leaves_the_others(
    make_recipe: MakeRecipe, planted: Path, tmp_path: Path
) -> None:
    """The second rollout's wrong answer is long, the third's short."""
    given, mine = shutil.copytree(planted, tmp_path / "given"), tmp_path / "mine.txt"
    mine.write_text("{{ problem }} {{ answer }}")
    right, wrong, _, other, *_ = read_jsonl(given / "rollouts.jsonl", Rollout)
    long, short = (Grade(correct=False, outcome="wrong", final_answer=answer) for answer in ("9" * 300, "9"))
    third = replace(other, id="third", problem_id=wrong.problem_id, grade=short)
    write_jsonl(given / "rollouts.jsonl", [right, replace(wrong, grade=long), third])
    whole = stepalign.probe(make_recipe(), tmp_path / "whole", rollouts=given, contexts=str(mine))
    settings = make_recipe(f"teacher.max_length={max(num_tokens(make_recipe(), whole)) + 20}")
    for _ in range(2):  # the second reads the folder
        found = stepalign.probe(settings, tmp_path / "probe", rollouts=given, contexts=str(mine), contrast=2)
        assert [bool(credit.wrong) for credit in found.credits] == [True, True, False]
        assert found.manifest["skipped"] == {f"{mine}: wrong context too long": 1}


def test_a_template_that_was_reworded_is_not_mixed_with_what_was_seen_before(
    settings: Recipe, planted: Path, tmp_path: Path
) -> None:
    mine = tmp_path / "mine.txt"
    mine.write_text("{{ problem }} {{ critique.case }}")
    stepalign.probe(settings, tmp_path / "probe", rollouts=planted, contexts=[str(mine)], limit=2)
    mine.write_text("{{ problem }} {{ critique.text }}")
    with pytest.raises(StepalignError, match=r"contexts\..*mine\.txt: "):
        stepalign.probe(settings, tmp_path / "probe", rollouts=planted, contexts=[str(mine)], limit=2)


def test_with_an_adapter_the_student_has_it_and_the_teacher_is_the_base(
    probed: Probe, settings: Recipe, planted: Path, tmp_path: Path, finished_run: Recipe
) -> None:
    adapter = finished_run.folder / "checkpoints" / "step-000004"
    adapted = stepalign.probe(
        settings, tmp_path / "adapted", rollouts=planted, contexts=("stepalign",), adapter=adapter
    )
    before = {credit.rollout_id: credit for credit in probed.credits if credit.context == "stepalign"}
    for credit in adapted.credits:
        assert credit.teacher == pytest.approx(before[credit.rollout_id].teacher, abs=1e-4)
        assert credit.student != pytest.approx(before[credit.rollout_id].student, abs=1e-3)


def test_without_rollouts_the_recipes_problems_are_attempted_graded_and_critiqued(
    settings: Recipe, tmp_path: Path
) -> None:
    found = stepalign.probe(settings, tmp_path / "probe", contexts=("refsol", "stepalign"))
    assert len(found.rollouts) == 9
    assert all(rollout.grade is not None for rollout in found.rollouts)
    assert len(found.critic_results) == 9
    again = stepalign.probe(settings, tmp_path / "probe", contexts=("refsol", "stepalign"))
    assert again.rollouts == found.rollouts


def test_what_has_no_critique_is_left_out_and_counted(make_recipe: MakeRecipe, planted: Path, tmp_path: Path) -> None:
    settings = make_recipe("problems.holdout=0").model_copy(update={"critic": None})
    (tmp_path / "alone").mkdir()
    for name in ("problems", "rollouts"):
        (tmp_path / "alone" / f"{name}.jsonl").write_text((planted / f"{name}.jsonl").read_text())
    found = stepalign.probe(settings, tmp_path / "probe", rollouts=tmp_path / "alone", contexts=("refsol", "stepalign"))
    assert found.contexts == ("refsol",)
    assert found.manifest["skipped"] == {"stepalign: no critique": 8}


def test_what_was_refused_before_anything_was_looked_at_may_be_mended(
    settings: Recipe, planted: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.undo()
    with pytest.raises(StepalignError, match=r"gone\.jsonl: No such file"):
        stepalign.probe(settings, tmp_path / "probe", rollouts=tmp_path / "gone.jsonl")
    with pytest.raises(StepalignError, match=r"no problem 'solutions-"):  # the recipe's problems are others
        stepalign.probe(settings, tmp_path / "probe", rollouts=planted / "rollouts.jsonl")
    assert stepalign.probe(settings, tmp_path / "probe", rollouts=planted, limit=1).credits
    assert "rollout-1.png" in {path.name for path in (tmp_path / "probe" / "figures").iterdir()}
    assert "<svg" in (tmp_path / "probe" / "probe.html").read_text()


def test_another_models_rollouts_are_refused(settings: Recipe, planted: Path, tmp_path: Path) -> None:
    rollouts = read_jsonl(planted / "rollouts.jsonl", Rollout)
    write_jsonl(tmp_path / "rollouts.jsonl", [replace(rollouts[0], completion_ids=(49_000,), token_starts=(0,))])
    for name in ("problems", "critiques"):
        shutil.copy(planted / f"{name}.jsonl", tmp_path)
    with pytest.raises(
        StepalignError, match=r"token 49000, but the tokenizer has \d+: these are another model's rollouts"
    ):
        stepalign.probe(settings, tmp_path / "probe", rollouts=tmp_path)


def test_a_folder_of_something_else_is_left_alone(settings: Recipe, planted: Path, tmp_path: Path) -> None:
    (tmp_path / "manifest.json").write_text(json.dumps({"source": "planted"}))
    with pytest.raises(StepalignError, match=r"holds something else than a probe"):
        stepalign.probe(settings, tmp_path, rollouts=planted)
    assert read_jsonl(planted / "rollouts.jsonl", Rollout)


def test_the_function_stays_a_function_once_its_room_is_imported() -> None:
    import stepalign.probing.run

    assert callable(stepalign.probe)
    assert stepalign.probe is stepalign.probing.run.probe


# ── contexts from more than one rollout ───────────────────────────────────────────────────────────────────────


def test_a_context_with_siblings_samples_groups_and_counts_who_has_none(
    make_recipe: MakeRecipe, tmp_path: Path
) -> None:
    settings = make_recipe("training.rollouts_per_step=3", "training.num_generations=3")
    found = stepalign.probe(settings, tmp_path / "probe", contexts=("sibling", "feedback", "refsol"), limit=5)
    assert [rollout.sample for rollout in found.rollouts] == [0, 1, 2, 0, 1, 2]
    assert {credit.context for credit in found.credits} == {"feedback", "refsol"}, "nobody solves anything"
    assert found.manifest["skipped"] == {"sibling: no sibling": 6}


def test_given_rollouts_are_each_others_siblings(settings: Recipe, planted: Path, tmp_path: Path) -> None:
    """Each planted solution has a correct one beside it, and that one has no other."""
    found = stepalign.probe(settings, tmp_path / "probe", rollouts=planted, contexts=("sibling",))
    rollouts = {rollout.id: rollout for rollout in found.rollouts}
    assert {credit.rollout_id for credit in found.credits} == {r.id for r in found.rollouts if not r.correct}
    for credit in found.credits:
        own = rollouts[credit.rollout_id]
        (sibling,) = (r for r in found.rollouts if r.problem_id == own.problem_id and r.id != own.id)
        assert sibling.text in credit.prompt
        assert own.text not in credit.prompt


def test_siblings_need_groups(make_recipe: MakeRecipe, tmp_path: Path) -> None:
    with pytest.raises(StepalignError, match=r"'sdpo' shows another rollout .*training\.num_generations = 1"):
        stepalign.probe(make_recipe("training.num_generations=1"), tmp_path / "probe", contexts=("sdpo",))


@pytest.mark.slow
def test_a_contrast_is_the_teachers_own_under_the_right_context_minus_wrong_ones(
    settings: Recipe, planted: Path, tmp_path: Path, tiny_llama: Path
) -> None:
    found = stepalign.probe(
        settings, tmp_path / "probe", rollouts=planted, contexts=("refsol", "stepalign"), contrast=2
    )
    chat = load_chat(config.ModelConfig(name_or_path=str(tiny_llama)))
    model = AutoModelForCausalLM.from_pretrained(tiny_llama).double()
    rollouts, problems = ({one.id: one for one in each} for each in (found.rollouts, found.problems))
    order = [rollout.id for rollout in found.rollouts]
    contrasted = {"refsol": 0, "stepalign": 0}
    for credit in found.credits:
        own = rollouts[credit.rollout_id]
        texts = []
        if credit.context == "refsol":  # a failed sibling in the solution's place
            shown = problems[own.problem_id].solution
            texts = [
                o.text for o in found.rollouts if o.problem_id == own.problem_id and o.id != own.id and not o.correct
            ]
        else:  # the next two critiques of other problems
            shown = found.critiques[own.id].text
            after = [*order[order.index(own.id) + 1 :], *order[: order.index(own.id)]]
            texts = [found.critiques[n].text for n in after if rollouts[n].problem_id != own.problem_id][:2]
        contrasted[credit.context] += bool(credit.wrong)
        assert bool(credit.wrong) == bool(texts)
        if texts:
            prompts = [chat.prompt_ids([Turn("user", credit.prompt.replace(shown, text))]) for text in texts]
            wrong = (
                torch.tensor([plain(model, prompt, own) for prompt in prompts], dtype=torch.float64).exp().mean(0).log()
            )
            assert credit.wrong == pytest.approx(wrong.tolist(), abs=1e-4)
    assert contrasted == {"refsol": 4, "stepalign": 8}
    again = stepalign.probe(
        settings, tmp_path / "probe", rollouts=planted, contexts=("refsol", "stepalign"), contrast=2
    )
    assert again.manifest["skipped"] == found.manifest["skipped"] == {"refsol: no wrong context": 4}
    assert set(found.measures.contexts) == {"refsol", "refsol − wrong", "stepalign", "stepalign − wrong"}
    assert found.measures.contexts["stepalign − wrong"]["at"].n == 4
    assert folder.read(tmp_path / "probe").credits == found.credits
    with pytest.raises(StepalignError, match="--contrast contrasts a context"):
        stepalign.probe(settings, tmp_path / "other", rollouts=planted, contexts=("feedback",), contrast=1)
