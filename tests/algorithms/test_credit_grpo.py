"""Token advantages in the loop: credit under contexts, contrast and verdicts against a plain float64 computation."""

import copy
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from stepalign import contexts, models
from stepalign.algorithms.credit_grpo import CreditExample, CreditGRPO
from stepalign.chat import Chat, load_chat
from stepalign.collate import collate
from stepalign.config import CreditGRPOConfig, Recipe, TemplateContextConfig
from stepalign.console import Console
from stepalign.contexts import ContextInput
from stepalign.distributed.strategy import DataParallel
from stepalign.errors import StepalignError
from stepalign.losses.advantages import Modulation, modulate
from stepalign.losses.log_probs import scores
from stepalign.policy import Policy
from stepalign.prompts.conversation import SolverPrompt, Turn
from stepalign.records import Critique, CritiqueFailure, Grade, Problem, Rollout, Verdict
from stepalign.trace import parse, token_span
from stepalign.trainer.accumulation import local_passes, update
from stepalign.views import View

MakeRecipe = Callable[..., Recipe]

PROBLEM = Problem(id="p", statement="Compute 2 + 3 + 4.", answer="9", solution="Nine in all.")
KEYS = (
    "algorithm.kind=credit-grpo",
    "algorithm.credit_clip=0.9",
    "context.template=refsol",
    "training.rollouts_per_step=4",
    "training.num_generations=4",
    "sampling.temperature=1.2",
    "optimizer.max_grad_norm=1e9",
)


@pytest.fixture
def chat(make_recipe: MakeRecipe) -> Chat:
    return load_chat(make_recipe().model)


def algorithm(chat: Chat, settings: Recipe) -> CreditGRPO:
    assert isinstance(settings.algorithm, CreditGRPOConfig)
    prompt = SolverPrompt(settings.prompts)
    return CreditGRPO.from_config(settings.algorithm, recipe=settings, chat=chat, prompt=prompt, context_limit=None)


def rollout(chat: Chat, number: int, first: int, second: int, *, correct: bool) -> Rollout:
    text = f"So:\n### Step 1: Add\n2 + 3 = {first}\n\n### Final Answer:\n\n\\boxed{{{second}}}"
    ids = (*chat.encode_text(text), min(chat.eos_ids))
    decoded, starts = chat.decode(ids)
    return Rollout(
        id=f"r{number}",
        problem_id="p",
        sample=number,
        prompt_ids=chat.prompt_ids([Turn("user", PROBLEM.statement)]),
        completion_ids=ids,
        text=decoded,
        token_starts=starts,
        finish="stop",
        grade=Grade(correct=correct, outcome="correct" if correct else "wrong", final_answer=str(second)),
    )


def group(chat: Chat) -> list[Rollout]:
    return [
        rollout(chat, 0, 5, 9, correct=True),
        rollout(chat, 1, 6, 10, correct=False),
        rollout(chat, 2, 5, 8, correct=False),
        rollout(chat, 3, 55, 99, correct=False),
    ]


def critique(rollout: Rollout, *correct: bool) -> Critique:
    verdicts = tuple(Verdict(step=k, correct=right) for k, right in enumerate(correct, start=1))
    case: Any = "A" if all(correct) else "D"
    return Critique(rollout_id=rollout.id, critic="c", case=case, verdicts=verdicts, correct_part="", text="t")


def plain_log_probs(policy: Policy, prompt_ids: tuple[int, ...], rollout: Rollout, temperature: float = 1.0) -> Tensor:
    ids = torch.tensor([[*prompt_ids, *rollout.completion_ids]])
    logits = policy.model(ids).logits[0, len(prompt_ids) - 1 : -1] / temperature
    return logits.log_softmax(-1).gather(-1, torch.tensor(rollout.completion_ids)[:, None])[:, 0]


def plain_teacher(policy: Policy, chat: Chat, rollout: Rollout, problem: Problem) -> Tensor:
    message = contexts.load("refsol").render(ContextInput(problem=problem, rollout=rollout))
    with torch.no_grad(), policy.model.disable_adapter():
        return plain_log_probs(policy, chat.prompt_ids([Turn("user", message)]), rollout)


def plain_credit(policy: Policy, chat: Chat, kind: str, rollouts: list[Rollout], one: Rollout) -> Tensor:
    right = plain_teacher(policy, chat, one, PROBLEM)
    if kind == "context":
        with torch.no_grad():
            return right - plain_log_probs(policy, one.prompt_ids, one)
    wrong = [
        plain_teacher(policy, chat, one, replace(PROBLEM, solution=other.text))
        for other in rollouts
        if not other.correct and other.id != one.id
    ]
    return right - torch.stack(wrong).exp().mean(0).log()


def by_steps(one: Rollout, credit: Tensor) -> Tensor:
    """Each step's mean, steps found by the text alone."""
    starts = [token_span(one, one.text.index(mark), len(one.text))[0] for mark in ("### Step 1", "### Final")]
    bounds = [0, *starts, len(credit)]
    return torch.cat([credit[a:b].mean().expand(b - a) for a, b in pairwise(bounds) if b > a])


@pytest.mark.parametrize(
    ("kind", "gather", "keys"),
    [
        ("context", "token", ()),
        ("context", "step_mean", ("algorithm.modulation=add", "algorithm.num_iterations=2")),
        ("contrast", "token", ("training.max_tokens_per_micro_batch=64",)),
        ("contrast", "step_mean", ("algorithm.conserve=true", "algorithm.kl_coef=0.3")),
    ],
)
def test_updates_equal_the_plain_computation(
    kind: str, gather: str, keys: tuple[str, ...], chat: Chat, policy: Policy, make_recipe: MakeRecipe
) -> None:
    settings = make_recipe(*KEYS, f"algorithm.credit={kind}", f"algorithm.gather={gather}", *keys)
    assert isinstance(settings.algorithm, CreditGRPOConfig)
    rollouts, made = group(chat), algorithm(chat, settings)
    plain = copy.deepcopy(policy).double().eval()
    modulation = Modulation(
        mode=settings.algorithm.modulation,
        weight=settings.algorithm.credit_weight,
        clip=settings.algorithm.credit_clip,
        min_advantage=settings.algorithm.min_advantage,
    )
    rewards = torch.tensor([float(one.correct) for one in rollouts], dtype=torch.float64)
    group_advantages = (rewards - rewards.mean()) / (rewards.std() + 1e-4)
    token_advantages = []
    for one, advantage in zip(rollouts, group_advantages, strict=True):
        credit = plain_credit(plain, chat, kind, rollouts, one)
        credit = by_steps(one, credit) if gather == "step_mean" else credit
        moved = modulate(advantage.expand(len(credit)), credit, modulation)
        token_advantages.append(moved * advantage / moved.mean() if settings.algorithm.conserve else moved)
    descent, expected, first = torch.optim.SGD(plain.trainable(), lr=0.5), [], []
    for _ in range(settings.algorithm.num_iterations):
        losses = []
        for number, (one, advantage) in enumerate(zip(rollouts, token_advantages, strict=True)):
            now = plain_log_probs(plain, one.prompt_ids, one, 1.2)
            with torch.no_grad(), plain.model.disable_adapter():
                base = plain_log_probs(plain, one.prompt_ids, one, 1.2)
            if len(first) <= number:
                first.append(now.detach())
            ratio, gap = (now - first[number]).exp(), base - now
            loss = -torch.minimum(ratio * advantage, ratio.clamp(0.8, 1.2) * advantage)
            losses.append((loss + settings.algorithm.kl_coef * (gap.exp() - gap - 1)).mean())
        total = torch.stack(losses).mean()
        descent.zero_grad()
        total.backward()
        descent.step()
        expected.append(total.item())

    step = made.build_examples(rollouts, {"p": PROBLEM}, {})
    assert dict(+step.outcomes) == {"trained": 4}
    strategy, found, read = DataParallel(), [], []
    optimizer = torch.optim.SGD(policy.trainable(), lr=0.5)
    with Console(1) as console:
        for _ in range(settings.algorithm.num_iterations):
            metrics = update(
                made, policy, strategy, optimizer, step, local_passes(strategy, step.examples, 3, None), console,
                loss_agg_mode=settings.algorithm.loss_agg_mode, max_grad_norm=1e9,
            )  # fmt: skip
            made.after_update(policy)
            found.append(metrics["loss"])
            read.append((metrics.get("teacher_tokens", 0), metrics.get("base_tokens", 0)))
    assert found == pytest.approx(expected, rel=1e-4, abs=1e-6)
    shown = sum(len(view.input_ids) for example in step.examples for view in example.teachers)  # type: ignore[attr-defined]
    base = metrics["student_tokens"] if settings.algorithm.kl_coef else 0
    assert read == [(shown, base), (0, base)][: settings.algorithm.num_iterations], "credit is made once a step"
    for mine, wanted in zip(policy.trainable(), plain.trainable(), strict=True):
        torch.testing.assert_close(mine.double(), wanted, rtol=1e-3, atol=1e-5)
    views = {"context": 1, "contrast": 4}[kind]
    assert {len(example.teachers) for example in step.examples} <= {views, views - 1}  # type: ignore[attr-defined]
    made.after_step(policy)
    assert not made._credit


def test_verdicts_blame_the_wrong_step_and_spare_the_right_one(
    chat: Chat, policy: Policy, make_recipe: MakeRecipe
) -> None:
    settings = make_recipe(*KEYS, "algorithm.credit=verdicts", "algorithm.conserve=true")
    rollouts, made = group(chat), algorithm(chat, settings)
    assert made.needs_critique
    answers = {
        "r0": critique(rollouts[0], True, True),
        "r1": critique(rollouts[1], False, False),
        "r2": critique(rollouts[2], True, False, False),  # a verdict on a section that was never written
        "r3": CritiqueFailure(rollout_id="r3", critic="c", reason="parse"),
    }
    step = made.build_examples(rollouts, {"p": PROBLEM}, answers)
    assert dict(step.outcomes) == {"trained": 4, "without credit": 1}
    assert dict(step.failures) == {"parse": 1}
    assert dict(step.cases) == {"A": 1, "D": 2}
    by_id = {example.rollout_id: example for example in step.examples}
    found = by_id["r2"]
    assert isinstance(found, CreditExample)
    assert not found.teachers
    answer = token_span(rollouts[2], rollouts[2].text.index("### Final"), len(rollouts[2].text))[0]
    begin = token_span(rollouts[2], rollouts[2].text.index("### Step"), len(rollouts[2].text))[0]
    length = len(rollouts[2].completion_ids)
    assert found.verdicts == (0.0,) * begin + (1.0,) * (answer - begin) + (-1.0,) * (length - answer)
    assert parse(rollouts[2].text).steps

    collected = {}

    def keep(hidden: Any, base: Any, head: Any, examples: Any, batch: Any, weights: Any, advantage: Tensor) -> Any:
        lengths = [example.student.num_loss_tokens for example in examples]
        collected.update(zip([e.rollout_id for e in examples], torch.split(advantage, lengths), strict=True))
        return hidden.sum() * 0, {}

    made.policy_gradient = keep  # type: ignore[method-assign]
    with Console(1) as console:
        strategy = DataParallel()
        passes = local_passes(strategy, step.examples, 4, None)
        optimizer = torch.optim.SGD(policy.trainable(), lr=0.0)
        update(
            made, policy, strategy, optimizer, step, passes, console,
            loss_agg_mode="token-mean", max_grad_norm=1e9,
        )  # fmt: skip
    for name, example in by_id.items():
        assert collected[name].mean().item() == pytest.approx(example.advantage, rel=1e-5), "nothing is added"
        assert (collected[name].sign() == (1 if example.advantage > 0 else -1)).all()
    spread = collected["r2"]
    assert spread[answer] < spread[begin] < 0, "the wrong step is blamed more"
    assert collected["r3"].unique().numel() == 1, "without a critique the advantage is plain"


def test_a_rollout_without_a_context_keeps_its_plain_advantage_and_is_counted(
    chat: Chat, make_recipe: MakeRecipe
) -> None:
    settings = make_recipe(*KEYS, "algorithm.credit=contrast", "context.template=sibling")
    pair = group(chat)[:2]
    step = algorithm(chat, settings).build_examples(pair, {"p": PROBLEM}, {})
    # The right one has no other success to show, and the wrong one no other failure.
    assert dict(step.failures) == {"nothing to show: no sibling": 1, "no wrong context": 1}
    assert dict(step.outcomes) == {"trained": 2, "without credit": 2}
    assert [example.advantage > 0 for example in step.examples] == [True, False]


def test_a_context_of_the_fallback_a_cut_one_and_an_empty_one_are_counted(
    chat: Chat, make_recipe: MakeRecipe, tmp_path: Path
) -> None:
    rollouts = group(chat)
    answers: dict[str, Any] = {one.id: replace(critique(one, False, True), text="CARE " * 400) for one in rollouts}
    answers["r3"] = CritiqueFailure(rollout_id="r3", critic="c", reason="parse")
    keys = ("context.template=second-turn", "critic.on_failure=refsol", "teacher.max_length=600")
    step = algorithm(chat, make_recipe(*KEYS, *keys)).build_examples(rollouts, {"p": PROBLEM}, answers)
    assert dict(step.outcomes) == {"trained": 4, "without credit": 0, "fallback": 1, "cut": 3}
    assert dict(step.failures) == {"parse": 1}

    (tmp_path / "empty.txt").write_text("{% if correct %}{{ problem }} {{ attempt }}{% endif %}")
    settings = make_recipe(*KEYS).model_copy(
        update={"context": TemplateContextConfig(template=str(tmp_path / "empty.txt"), fallback_template="refsol")}
    )
    step = algorithm(chat, settings).build_examples(rollouts, {"p": PROBLEM}, {})
    assert dict(+step.outcomes) == {"trained": 4, "without credit": 3}
    assert dict(step.failures) == {"nothing to show": 3}


def test_log_probs_of_a_half_precision_model_are_not_rounded_to_it(
    chat: Chat, policy: Policy, make_recipe: MakeRecipe
) -> None:
    made = algorithm(chat, make_recipe(*KEYS, "algorithm.kl_coef=0.1"))
    (example, *_) = made.build_examples(group(chat), {"p": PROBLEM}, {}).examples
    assert isinstance(example, CreditExample)
    half = policy.to(torch.bfloat16)
    found = made.reference_forward(half, [example], collate([example.student]))
    teacher = collate(list(example.teachers))
    expected = scores(half.forward_base(teacher), half.head, teacher.targets).log_probs
    assert found.dtype == torch.float32
    assert torch.equal(found[0], expected)


def test_the_base_of_the_kl_is_kept_before_training_beside_any_teacher(chat: Chat, make_recipe: MakeRecipe) -> None:
    settings = make_recipe(*KEYS, "algorithm.kl_coef=0.1", "teacher.kind=live", "training.use_peft=false")
    policy = models.load_policy(settings.model, settings.adapter, 0, torch.device("cpu"))
    made, batch = algorithm(chat, settings), collate([View.whole((5, 6), (7, 8))])
    before = policy.forward_base(batch)
    made.begin(policy)
    with torch.no_grad():
        for parameter in policy.trainable():
            parameter.mul_(1.5)
    assert torch.equal(policy.forward_base(batch), before)
    assert not torch.allclose(policy(batch), before)


def test_verdicts_build_no_teacher(chat: Chat, policy: Policy, make_recipe: MakeRecipe) -> None:
    settings = make_recipe(*KEYS, "algorithm.credit=verdicts", "teacher.kind=ema")
    made = algorithm(chat, settings)
    made.begin(policy)
    made.after_update(policy)
    made.after_step(policy)
    assert not made.state_dict(policy)
    assert not made.metrics()


def test_what_cannot_be_contrasted_or_has_no_critique_is_refused(chat: Chat, make_recipe: MakeRecipe) -> None:
    for keys, message in (
        (("algorithm.credit=contrast", "context.template=feedback"), "'feedback' shows none of critique"),
        (("algorithm.credit=verdicts", "critic="), "algorithm.credit = 'verdicts' needs a critique"),
    ):
        settings = make_recipe(*KEYS, *(key for key in keys if key != "critic="))
        settings = settings.model_copy(update={"critic": None} if "critic=" in keys else {})
        with pytest.raises(StepalignError, match=message):
            algorithm(chat, settings)
    with pytest.raises(StepalignError, match=r"credit_weight = 1\.5 with modulation = 'multiply'"):
        make_recipe(*KEYS, "algorithm.credit_weight=1.5")
