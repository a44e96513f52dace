"""Loss of self-distillation: teacher and student compared on a micro-batch (Eq. 3 of arXiv 2606.11173)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from stepalign import config
from stepalign.algorithms.old_log_probs import OldLogProbs, importance_of, sampler_log_probs
from stepalign.algorithms.teacher_state import WithTeacher
from stepalign.collate import Batch, collate, split_views
from stepalign.losses.divergence import divergence
from stepalign.losses.sampled_token import SampledToken
from stepalign.losses.support import FullVocabulary, Support
from stepalign.losses.top_k import TopK
from stepalign.policy import Policy
from stepalign.views import View


@dataclass(frozen=True, kw_only=True)
class DistillationExample:
    """Two views of one rollout. They differ in the prompt alone."""

    rollout_id: str
    student: View
    teacher: View
    message: str = ""
    """The text that the teacher reads."""
    cut: bool = False
    """True where the teacher's context was shortened."""
    sampler_logprobs: tuple[float, ...] | None = None
    """The sampler's own log-probabilities of the loss tokens; None where it gave none."""

    def __post_init__(self) -> None:
        student, teacher = (
            (view.completion_ids, view.loss_start, view.loss_stop) for view in (self.student, self.teacher)
        )
        if student != teacher:
            raise ValueError(f"rollout {self.rollout_id}: student and teacher see different completions")

    @property
    def max_input_len(self) -> int:
        """The tokens of the longer of both passes."""
        return max(len(self.student.input_ids), len(self.teacher.input_ids))


class DistillationLoss(WithTeacher):
    """Divergence of the teacher, which reads a context, and the student, which does not."""

    reference_stage = "teacher"

    def __init__(
        self,
        algorithm: config.DistillationConfig,
        *,
        teacher: config.TeacherConfig | None = None,
        max_tokens: int | None = None,
    ) -> None:
        """Take the recipe's table.

        Args:
            algorithm: divergence and its clip.
            teacher: the recipe's `[teacher]`; None is the base.
            max_tokens: padded tokens of one teacher pass, at most; None is no bound.
        """
        super().__init__(teacher)
        self.algorithm, self.max_tokens = algorithm, max_tokens
        self.support = support_of(algorithm)
        self.importance = importance_of(algorithm)
        self.old_log_probs = OldLogProbs()

    @torch.no_grad()
    def reference_forward(
        self, policy: Policy, examples: Sequence[DistillationExample], batch: Batch
    ) -> Float[Tensor, "tokens teacher_hidden"]:
        """Run the teacher on a micro-batch, in passes of at most `max_tokens` padded tokens."""
        teacher = self.teacher_of(policy)
        device, share = batch.input_ids.device, teacher.shares_prefixes
        views = [example.teacher for example in examples]
        return torch.cat(
            [
                teacher.forward(collate(part, share_prefixes=share).to(device))
                for part in split_views(views, self.max_tokens, share_prefixes=share)
            ]
        )

    def loss(
        self,
        hidden: Float[Tensor, "tokens hidden"],
        reference: Float[Tensor, "tokens teacher_hidden"] | None,
        head: Float[Tensor, "vocab hidden"],
        examples: Sequence[DistillationExample],
        batch: Batch,
        weights: Float[Tensor, " tokens"],
    ) -> tuple[Float[Tensor, ""], Mapping[str, Float[Tensor, " tokens"]]]:
        """Compute Σ_t weight_t · D_t over the micro-batch's tokens.

        The policy that sampled is the sampler's own, else the policy before the step's first update.
        """
        assert reference is not None
        assert self._teacher is not None, "its forward pass comes first"
        sampled = sampler_log_probs(examples, head.device) if self.importance else None
        loss, metrics = divergence(
            hidden,
            reference,
            head,
            weights,
            self.support,
            teacher_head=self._teacher.head,
            targets=batch.targets,
            lengths=[example.student.num_loss_tokens for example in examples],
            importance=self.importance,
            sampled_log_probs=self.old_log_probs.get(examples) if sampled is None else sampled,
            chunk_tokens=self.algorithm.chunk_tokens,
        )
        if self.importance and self.algorithm.num_iterations > 1:
            self.old_log_probs.keep(examples, metrics.log_prob_student)
        values = {
            "kl": metrics.kl_teacher_student,
            "entropy_student": metrics.entropy_student,
            "entropy_teacher": metrics.entropy_teacher,
            "agreement": metrics.agreement,
        }
        if metrics.importance_ratio is not None:
            values["importance_ratio"] = metrics.importance_ratio
        return loss, values

    def after_step(self, policy: Policy) -> None:
        """Let the teacher follow the step, where its kind does, and forget the step's log-probabilities."""
        super().after_step(policy)
        self.old_log_probs.clear()

    def reference_tokens(self, examples: Sequence[DistillationExample]) -> dict[str, int]:
        """Count the tokens that the teacher reads."""
        return {"teacher": sum(len(example.teacher.input_ids) for example in examples)} if examples else {}


def support_of(algorithm: config.DistillationConfig) -> Support:
    """Return the support that a recipe's table names."""
    if algorithm.support == "sampled":
        return SampledToken(
            clip_value=algorithm.clip_value,
            discount=algorithm.discount,
            student_temperature=algorithm.student_temperature,
            teacher_temperature=algorithm.teacher_temperature,
        )
    full = FullVocabulary(
        beta=algorithm.beta,
        student_temperature=algorithm.student_temperature,
        teacher_temperature=algorithm.teacher_temperature,
        clip_mode=algorithm.clip_mode,
        clip_value=algorithm.clip_value,
    )
    if algorithm.top_k is None:
        return full
    return TopK(top_k=algorithm.top_k, of="student" if algorithm.support == "topk-student" else "teacher", **vars(full))
