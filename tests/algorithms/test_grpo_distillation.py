"""Distillation and reward in one loss against a plain float64 computation."""

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from algorithms.test_credit_grpo import PROBLEM, critique, group, plain_log_probs
from stepalign import contexts
from stepalign.algorithms.grpo_distillation import GRPODistillation
from stepalign.chat import Chat, load_chat
from stepalign.config import GRPODistillationConfig, Recipe
from stepalign.console import Console
from stepalign.contexts import ContextInput
from stepalign.distributed.strategy import DataParallel
from stepalign.errors import StepalignError
from stepalign.policy import Policy
from stepalign.prompts.conversation import SolverPrompt, Turn
from stepalign.records import Rollout
from stepalign.trainer.accumulation import local_passes, update

MakeRecipe = Callable[..., Recipe]
KEYS = (
    "algorithm.kind=grpo-distillation",
    "context.template=sibling",
    "training.rollouts_per_step=4",
    "training.num_generations=4",
    "sampling.temperature=1.2",
    "algorithm.num_loss_tokens_to_skip=3",
)


@pytest.fixture
def chat(make_recipe: MakeRecipe) -> Chat:
    return load_chat(make_recipe().model)


def algorithm(chat: Chat, settings: Recipe) -> GRPODistillation:
    assert isinstance(settings.algorithm, GRPODistillationConfig)
    prompt = SolverPrompt(settings.prompts)
    return GRPODistillation.from_config(
        settings.algorithm, recipe=settings, chat=chat, prompt=prompt, context_limit=None
    )


def logits(policy: Policy, prompt_ids: tuple[int, ...], one: Rollout) -> Tensor:
    ids = torch.tensor([[*prompt_ids, *one.completion_ids]])
    return policy.model(ids).logits[0, len(prompt_ids) - 1 : -1].log_softmax(-1)  # type: ignore[no-any-return]


@pytest.mark.parametrize("mode", ["token-mean", "seq-mean-token-mean"])
@pytest.mark.parametrize(("distillation", "reward"), [(1.0, 1.0), (0.3, 2.0), (1.0, 0.0), (0.0, 1.0)])
def test_each_term_is_the_mean_over_its_own_tokens(
    mode: str, distillation: float, reward: float, chat: Chat, policy: Policy, make_recipe: MakeRecipe
) -> None:
    settings = make_recipe(
        *KEYS,
        f"algorithm.loss_agg_mode={mode}",
        f"algorithm.distillation_weight={distillation}",
        f"algorithm.reward_weight={reward}",
    )
    rollouts, made = group(chat), algorithm(chat, settings)
    plain = copy.deepcopy(policy).double().eval()
    rewards = torch.tensor([float(one.correct) for one in rollouts], dtype=torch.float64)
    advantages = (rewards - rewards.mean()) / (rewards.std() + 1e-4)
    gained = [
        -(now - now.detach()).exp() * advantage
        for one, advantage in zip(rollouts, advantages, strict=True)
        for now in [plain_log_probs(plain, one.prompt_ids, one, 1.2)]
    ]
    taught, kls = [], []
    for one in rollouts[1:]:  # the only right one has no sibling
        source = ContextInput(problem=PROBLEM, rollout=one, sibling=rollouts[0])
        prompt = chat.prompt_ids([Turn("user", contexts.load("sibling").render(source))])
        with torch.no_grad(), plain.model.disable_adapter():
            teacher = logits(plain, prompt, one)[3:]
        student = logits(plain, one.prompt_ids, one)[3:]
        taught.append((teacher.exp() * (teacher - student)).sum(-1))
        kls.append(taught[-1].detach())
    if mode == "token-mean":
        terms = [torch.cat(part).mean() for part in (taught, gained)]
    else:
        terms = [torch.stack([one.mean() for one in part]).mean() for part in (taught, gained)]
    total = distillation * terms[0] + reward * terms[1]
    total.backward()
    norm = torch.cat([p.grad.flatten() for p in plain.trainable() if p.grad is not None]).norm().item()

    step = made.build_examples(rollouts, {"p": PROBLEM}, {})
    assert step.outcomes["trained"] == step.outcomes["rewarded"] == 4
    assert step.outcomes["distilled"] == 3
    assert step.outcomes["masked"] == 1
    optimizer, strategy = torch.optim.SGD(policy.trainable(), lr=0.5), DataParallel()
    with Console(1) as console:
        metrics = update(
            made, policy, strategy, optimizer, step, local_passes(strategy, step.examples, 3, None), console,
            loss_agg_mode=mode, max_grad_norm=1e9,
        )  # fmt: skip
    assert metrics["loss"] == pytest.approx(total.item(), rel=1e-4, abs=1e-6)
    assert metrics["grad_norm"] == pytest.approx(norm, rel=1e-3)
    if distillation:
        assert metrics["kl"] == pytest.approx(torch.cat(kls).mean().item(), rel=1e-4), "over the distilled tokens"
        first = torch.stack([kl[0] for kl in kls]).mean().item()
        assert metrics["first_token_kl"] == pytest.approx(first, rel=1e-4), "of those that are not skipped"
    for mine, wanted in zip(policy.trainable(), plain.trainable(), strict=True):
        assert wanted.grad is not None
        torch.testing.assert_close(mine.double(), wanted - 0.5 * wanted.grad, rtol=1e-3, atol=1e-5)


def test_a_group_of_equal_rewards_is_distilled_and_one_without_anything_is_dropped(
    chat: Chat, make_recipe: MakeRecipe
) -> None:
    made = algorithm(chat, make_recipe(*KEYS, "context.template=stepalign", "critic.on_failure=drop"))
    wrong = group(chat)[1:]
    step = made.build_examples(wrong, {"p": PROBLEM}, {"r1": critique(wrong[0], False, True)})
    assert [example.rollout_id for example in step.examples] == ["r1"]
    assert step.examples[0].advantage == 0
    assert step.outcomes["distilled"] == 1
    assert step.outcomes["rewarded"] == 0
    assert step.outcomes["dropped"] == len(step.zero_gradient) == 2
    assert step.failures["zero-variance group"] == 3


def test_a_kl_to_the_base_is_refused(make_recipe: MakeRecipe) -> None:
    with pytest.raises(StepalignError, match=r"kl_coef = 0\.1: the pass without gradients is the teacher's"):
        make_recipe(*KEYS, "algorithm.kl_coef=0.1")
