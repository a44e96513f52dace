"""One whole SDPO step beside that of TRL's `SDPOTrainer`: the same solver, rollouts, rewards and settings."""

from pathlib import Path

import pytest
import torch

from stepalign import launch
from stepalign.algorithms.teacher_context import TeacherContext
from stepalign.config import Recipe
from stepalign.contexts.others import groups
from stepalign.io import read_jsonl
from stepalign.lab.running import settings_of
from stepalign.records import Problem, Rollout
from stepalign.trainer.checkpoints import load_algorithm_state

Weights = dict[str, torch.Tensor]
SETTINGS = [
    "training.max_steps=1",
    "training.save_steps=1",
    "problems.train.terms=5",
    "training.rollouts_per_step=16",
    "training.micro_batch_size=16",
    "algorithm.loss_agg_mode=seq-mean-token-mean",  # TRL's alone
    "optimizer.max_grad_norm=0.0",
    "optimizer.weight_decay=0.0",
    "problems.evaluation.count=1",
    "evaluation.num_samples=1",
    "probe.num_rollouts=1",
]


def weights(model: torch.nn.Module) -> Weights:
    return {name: parameter.detach() for name, parameter in model.named_parameters()}


def distance(ours: Weights, theirs: Weights, before: Weights) -> float:
    """The distance of two updates over the norm of the second."""
    update = torch.cat([(theirs[name] - before[name]).flatten() for name in before])
    apart = torch.cat([(ours[name] - theirs[name]).flatten() for name in before])
    assert update.norm() > 0
    return float(apart.norm() / update.norm())


def trl_step(
    recipe: Recipe, rollouts: list[Rollout], problems: dict[str, Problem], folder: Path
) -> tuple[torch.nn.Module, torch.nn.Module]:
    """The policy and the teacher after one step of TRL's on these rollouts. Sampling alone is replaced."""
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from trl.experimental.sdpo import SDPOConfig, SDPOTrainer

    by_ids = {one.completion_ids: float(one.correct) for one in rollouts}
    arguments = SDPOConfig(
        output_dir=str(folder),
        use_cpu=True,
        bf16=False,
        gradient_checkpointing=False,
        per_device_train_batch_size=len(rollouts),
        gradient_accumulation_steps=1,
        num_generations=recipe.training.num_generations,
        max_steps=1,
        shuffle_dataset=False,
        learning_rate=recipe.optimizer.lr,
        adam_epsilon=recipe.optimizer.eps,
        lr_scheduler_type="constant",
        max_grad_norm=0.0,
        weight_decay=0.0,
        max_prompt_length=None,
        max_completion_length=recipe.sampling.max_new_tokens,
        chat_template_kwargs={"enable_thinking": False},
        distillation_mode="topk_logits",
        distillation_topk=recipe.algorithm.top_k,
        distillation_alpha=recipe.algorithm.beta,
        distillation_add_tail=True,
        distillation_is_clip=recipe.algorithm.importance_sampling_cap,
        teacher_model_kind="ema",
        teacher_update_rate=recipe.teacher.update_rate,
        reprompt_template="{prompt}{solution}",  # the text of lab/sibling
        solution_template="\nReference:\n{successful_previous_attempt}",
        save_strategy="no",
        report_to=[],
    )
    statements = [problems[name].statement for name in groups(rollouts)]
    trainer = SDPOTrainer(
        model=AutoModelForCausalLM.from_pretrained(recipe.model.location),
        args=arguments,
        train_dataset=Dataset.from_list([{"prompt": [{"role": "user", "content": text}]} for text in statements]),
        processing_class=AutoTokenizer.from_pretrained(recipe.model.location),
        reward_funcs=lambda completion_ids, **_: [by_ids[tuple(ids)] for ids in completion_ids],
    )

    def sampled(prompt_ids: list[list[int]]) -> tuple[list[list[int]], list[list[int]]]:
        assert prompt_ids == [list(one.prompt_ids) for one in rollouts], "the same prompts"
        return prompt_ids, [list(one.completion_ids) for one in rollouts]

    trainer._generate = sampled
    trainer.train()
    return trainer.model, trainer.teacher_model


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_a_steps_update_of_policy_and_teacher_is_that_of_trl(tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    pytest.importorskip("trl")
    recipe = settings_of("sdpo", 0, tmp_path, SETTINGS)
    launch.train(recipe)
    rollouts = list(read_jsonl(recipe.folder / "rollouts" / "step-000001.jsonl", Rollout))
    problems = {one.id: one for one in read_jsonl(recipe.folder / "problems" / "train.jsonl", Problem)}
    context = TeacherContext.of(recipe)
    for one, chosen in context.choose(rollouts, problems, {}):
        # TRL counts masked rollouts in its mean, and takes a sibling of the same text.
        first = next(other for other in groups(rollouts)[one.problem_id] if other.correct and other.id != one.id)
        assert not isinstance(chosen, str)
        assert chosen.source.sibling == first
    checkpoint = recipe.folder / "checkpoints" / "step-000001"
    before, after = (
        weights(AutoModelForCausalLM.from_pretrained(folder)) for folder in (recipe.model.location, checkpoint)
    )
    policy, teacher = map(weights, trl_step(recipe, rollouts, problems, tmp_path / "trl"))
    average = {name.removeprefix("ema.model."): tensor for name, tensor in load_algorithm_state(checkpoint).items()}
    assert distance(after, policy, before) < 2e-3
    assert distance(average, teacher, before) < 5e-3  # a twentieth of the update, in float32
