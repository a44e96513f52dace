"""Second turns and feedback modelling against plain float64 computations."""

import copy
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from algorithms.test_credit_grpo import PROBLEM, critique, group, plain_log_probs, rollout
from stepalign.algorithms.rltf_fm import RLTFFM, FeedbackExample
from stepalign.algorithms.rltf_sd import RLTFSD
from stepalign.chat import Chat, load_chat
from stepalign.config import Recipe, RLTFFMConfig, RLTFSDConfig
from stepalign.console import Console
from stepalign.distributed.strategy import DataParallel
from stepalign.errors import StepalignError
from stepalign.policy import Policy
from stepalign.prompts.conversation import SolverPrompt
from stepalign.records import CritiqueFailure, Grade, Rollout
from stepalign.trainer.accumulation import local_passes, update

MakeRecipe = Callable[..., Recipe]
SD = ("algorithm.kind=rltf-sd", "context.template=second-turn", "critic.on_failure=drop", "sampling.temperature=1.2")
FM = (
    "algorithm.kind=rltf-fm",
    "training.rollouts_per_step=4",
    "training.num_generations=4",
    "sampling.temperature=1.2",
    "algorithm.feedback_weight=0.3",
)


@pytest.fixture
def chat(make_recipe: MakeRecipe) -> Chat:
    return load_chat(make_recipe().model)


def built(kind: type, table: type, chat: Chat, settings: Recipe, limit: int | None = None) -> Any:
    assert isinstance(settings.algorithm, table)
    prompt = SolverPrompt(settings.prompts)
    return kind.from_config(settings.algorithm, recipe=settings, chat=chat, prompt=prompt, context_limit=limit)  # type: ignore[attr-defined]


def second(first: Rollout, turn: Rollout) -> Rollout:
    return replace(turn, id=f"{first.id}/second", turn=2, sample=first.sample, prompt_ids=(5, 6, 7))


def do_update(made: Any, policy: Policy, step: Any, mode: str) -> dict[str, float]:
    optimizer, strategy = torch.optim.SGD(policy.trainable(), lr=0.5), DataParallel()
    with Console(1) as console:
        return update(
            made, policy, strategy, optimizer, step, local_passes(strategy, step.examples, 3, None), console,
            loss_agg_mode=mode, max_grad_norm=1e9,
        )  # fmt: skip


def assert_same_update(policy: Policy, plain: Policy) -> None:
    for mine, wanted in zip(policy.trainable(), plain.trainable(), strict=True):
        assert wanted.grad is not None
        torch.testing.assert_close(mine.double(), wanted - 0.5 * wanted.grad, rtol=1e-3, atol=1e-5)


def test_the_gradient_is_on_the_first_prompt_with_the_second_turns_tokens(
    chat: Chat, policy: Policy, make_recipe: MakeRecipe
) -> None:
    settings = make_recipe(*SD)
    made = built(RLTFSD, RLTFSDConfig, chat, settings)
    first = group(chat)  # one of four is right
    turns = [
        second(first[0], rollout(chat, 0, 7, 7, correct=False)),
        second(first[1], rollout(chat, 1, 5, 9, correct=True)),
        second(first[3], rollout(chat, 3, 5, 99, correct=False)),
    ]
    answers: dict[str, Any] = {one.id: critique(one, False, True) for one in first}
    answers["r2"] = CritiqueFailure(rollout_id="r2", critic="c", reason="parse")
    plain = copy.deepcopy(policy).double().eval()
    losses = []
    for turn in turns:
        advantage = float(turn.correct) - 0.25
        log_probs = plain_log_probs(plain, first[0].prompt_ids, turn, 1.2)
        losses.append(-(advantage * log_probs).mean())
    total: Tensor = torch.stack(losses).mean()
    total.backward()

    step = made.build_examples([*first, *turns], {"p": PROBLEM}, answers)
    assert {one.rollout_id: one.advantage for one in step.examples} == {
        "r0/second": -0.25,
        "r1/second": 0.75,
        "r3/second": -0.25,
    }
    assert {one.student.prompt_ids for one in step.examples} == {first[0].prompt_ids}
    assert dict(step.outcomes) == {"trained": 3, "dropped": 1}
    assert dict(step.failures) == {"parse": 1}
    metrics = do_update(made, policy, step, settings.algorithm.loss_agg_mode)
    assert metrics["loss"] == pytest.approx(total.item(), rel=1e-4)
    assert_same_update(policy, plain)


def test_a_second_turn_as_good_as_the_first_ones_counts_in_the_mean_and_costs_no_pass(
    chat: Chat, make_recipe: MakeRecipe
) -> None:
    made = built(RLTFSD, RLTFSDConfig, chat, make_recipe(*SD))
    wrong = group(chat)[1:]
    turns = [second(wrong[0], wrong[1]), second(wrong[1], rollout(chat, 8, 5, 9, correct=True))]
    step = made.build_examples([*wrong[:2], *turns], {"p": PROBLEM}, {})
    assert step.outcomes["fallback"] == 1, "its second turn read no critique"
    assert [(one.rollout_id, one.advantage) for one in step.examples] == [("r2/second", 1.0)]
    assert len(step.zero_gradient) == step.outcomes["dropped"] == step.failures["as good as the first turns"] == 1


def test_rewards_without_an_exact_mean_are_compared_as_they_are(chat: Chat, make_recipe: MakeRecipe) -> None:
    tenth = Grade(correct=False, outcome="wrong", score=0.1)  # (0.1 + 0.1 + 0.1) / 3 is not 0.1
    first = [replace(one, grade=tenth) for one in group(chat)[:3]]
    turns = [replace(second(one, one), grade=tenth) for one in first]
    step = built(RLTFSD, RLTFSDConfig, chat, make_recipe(*SD)).build_examples([*first, *turns], {"p": PROBLEM}, {})
    assert not step.examples
    assert step.failures["as good as the first turns"] == 3


def test_the_second_prompt_shows_attempt_and_critique_and_leaves_room(chat: Chat, make_recipe: MakeRecipe) -> None:
    settings = make_recipe(*SD, "sampling.max_new_tokens=100")
    first = group(chat)
    answers = {one.id: replace(critique(one, False, True), text="TAKE CARE " * 40) for one in first[:3]}
    prompts = built(RLTFSD, RLTFSDConfig, chat, settings).second_turn(first, {"p": PROBLEM}, answers)
    assert list(prompts) == ["r0", "r1", "r2"], "without a critique there is no second turn"
    shown = chat.tokenizer.decode(prompts["r1"])
    assert first[1].text in shown
    assert "TAKE CARE" in shown
    assert len(prompts["r1"]) > 500
    cut = built(RLTFSD, RLTFSDConfig, chat, settings, 600).second_turn(first, {"p": PROBLEM}, answers)
    assert 400 < len(cut["r1"]) <= 500, "prompt and completion fit the model's context"
    engine = make_recipe(*SD, "sampling.max_new_tokens=100", "sampler={ kind = 'vllm', max_model_len = 600 }")
    assert built(RLTFSD, RLTFSDConfig, chat, engine).second_turn(first, {"p": PROBLEM}, answers) == cut
    none = built(RLTFSD, RLTFSDConfig, chat, settings, 110)
    assert not none.second_turn(first, {"p": PROBLEM}, answers)
    step = none.build_examples(first, {"p": PROBLEM}, answers)
    assert step.failures["second turn's prompt too long"] == 3
    assert step.outcomes["dropped"] == 4


def test_the_reason_why_a_second_turn_is_missing_considers_all_siblings(chat: Chat, make_recipe: MakeRecipe) -> None:
    settings = make_recipe(*SD[:1], "context.template=sibling", "sampling.max_new_tokens=100")
    first = group(chat)
    assert first[0].correct
    made = built(RLTFSD, RLTFSDConfig, chat, settings, 110)
    step = made.build_examples([*first[:2], second(first[0], first[1])], {"p": PROBLEM}, {})
    assert step.failures == {"second turn's prompt too long": 1}


@pytest.mark.parametrize("mode", ["token-mean", "seq-mean-token-mean"])
def test_feedback_is_modelled_beside_the_policy_gradient(
    mode: str, chat: Chat, policy: Policy, make_recipe: MakeRecipe
) -> None:
    settings = make_recipe(*FM, f"algorithm.loss_agg_mode={mode}", "algorithm.kl_coef=0.2")
    made = built(RLTFFM, RLTFFMConfig, chat, settings)
    rollouts = group(chat)
    answers: dict[str, Any] = {
        one.id: replace(critique(one, False), text=f"Step {one.sample}.") for one in rollouts[1:]
    }
    answers["r2"] = CritiqueFailure(rollout_id="r2", critic="c", reason="parse")
    step = made.build_examples(rollouts, {"p": PROBLEM}, answers)
    assert step.outcomes["feedback"] == 2
    assert step.failures["parse"] == 1
    views = {
        one.rollout_id: one.student for one in step.examples if isinstance(one, FeedbackExample) and one.is_feedback
    }
    assert set(views) == {"r1/feedback", "r3/feedback"}
    for name, view in views.items():
        source = next(one for one in rollouts if name.startswith(one.id))
        prompt = chat.tokenizer.decode(view.prompt_ids)
        assert source.text in prompt
        assert f"Step {source.sample}." not in prompt, "the policy is to say it, not to read it"
        assert chat.decode(view.completion_ids)[0] == f"Step {source.sample}."
        assert view.completion_ids[-1] in chat.eos_ids

    plain = copy.deepcopy(policy).double().eval()
    rewards = torch.tensor([float(one.correct) for one in rollouts], dtype=torch.float64)
    gained, said = [], []
    for one, advantage in zip(rollouts, (rewards - rewards.mean()) / (rewards.std() + 1e-4), strict=True):
        now = plain_log_probs(plain, one.prompt_ids, one, 1.2)
        with torch.no_grad(), plain.model.disable_adapter():
            gap = plain_log_probs(plain, one.prompt_ids, one, 1.2)
        gap = gap - now
        gained.append(-(now - now.detach()).exp() * advantage + 0.2 * (gap.exp() - gap - 1))
    for view in views.values():
        ids = torch.tensor([[*view.prompt_ids, *view.completion_ids]])
        log_probs = plain.model(ids).logits[0, len(view.prompt_ids) - 1 : -1].log_softmax(-1)
        said.append(-log_probs.gather(-1, torch.tensor(view.completion_ids)[:, None])[:, 0])
    if mode == "token-mean":
        terms = [torch.cat(part).mean() for part in (gained, said)]
    else:
        terms = [torch.stack([one.mean() for one in part]).mean() for part in (gained, said)]
    total = terms[0] + 0.3 * terms[1]
    total.backward()
    metrics = do_update(made, policy, step, mode)
    assert metrics["loss"] == pytest.approx(total.item(), rel=1e-4, abs=1e-6)
    assert metrics["feedback_nll"] == pytest.approx(torch.cat(said).mean().item(), rel=1e-4)
    assert_same_update(policy, plain)


def test_feedback_ends_as_a_response_where_the_tokenizer_has_no_eos_of_its_own(
    chat: Chat, make_recipe: MakeRecipe
) -> None:
    made = built(RLTFFM, RLTFFMConfig, chat, make_recipe(*FM))
    rollouts = group(chat)
    chat.tokenizer.eos_token = None
    step = made.build_examples(rollouts, {"p": PROBLEM}, {one.id: critique(one, False) for one in rollouts})
    feedback = [one.student for one in step.examples if isinstance(one, FeedbackExample) and one.is_feedback]
    assert [view.completion_ids[-1] for view in feedback] == [min(chat.eos_ids)] * len(rollouts)


def test_feedback_without_a_critic_or_shown_to_its_writer_is_refused(chat: Chat, make_recipe: MakeRecipe) -> None:
    with pytest.raises(StepalignError, match="'rltf-fm' models critiques, but the recipe has no"):
        built(RLTFFM, RLTFFMConfig, chat, make_recipe(*FM).model_copy(update={"critic": None}))
    with pytest.raises(StepalignError, match="feedback_template = 'stepalign' shows critique"):
        built(RLTFFM, RLTFFMConfig, chat, make_recipe(*FM, "algorithm.feedback_template=stepalign"))
