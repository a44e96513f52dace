"""Distillation's loss on a micro-batch: the teacher looks first, then student and teacher are compared (Eq. 3)."""

from collections.abc import Mapping, Sequence

from jaxtyping import Float
from torch import Tensor

from stepalign import config
from stepalign.losses.divergence import divergence
from stepalign.policy import Policy
from stepalign.views import Batch, DistillationExample, collate


class DistillationLoss:
    """The divergence between the initial policy, shown the context, and the policy as it is."""

    frozen = "teacher"

    def __init__(self, settings: config.DistillationConfig) -> None:
        self._settings = settings

    def look(self, model: Policy, micro: Sequence[DistillationExample], batch: Batch) -> Float[Tensor, "tokens hidden"]:
        """The teacher's hidden states behind its own prompts."""
        return model.forward_base(collate([lesson.teacher for lesson in micro]).to(batch.input_ids.device))

    def loss(
        self,
        hidden: Float[Tensor, "tokens hidden"],
        seen: Float[Tensor, "tokens hidden"] | None,
        head: Float[Tensor, "vocab hidden"],
        micro: Sequence[DistillationExample],
        batch: Batch,
        token_weights: Float[Tensor, " tokens"],
    ) -> tuple[Float[Tensor, ""], Mapping[str, Float[Tensor, " tokens"]]]:
        """Σ_t weight_t · D_t over the micro-batch's tokens."""
        assert seen is not None
        loss, metrics = divergence(hidden, seen, head, token_weights, self._settings)
        return loss, {
            "kl": metrics.kl_teacher_student,
            "entropy_student": metrics.entropy_student,
            "entropy_teacher": metrics.entropy_teacher,
            "agreement": metrics.agreement,
        }

    def counts(self, lessons: Sequence[DistillationExample]) -> Mapping[str, int]:
        """The tokens that the teacher read."""
        return {"teacher_tokens": sum(len(lesson.teacher.input_ids) for lesson in lessons)}
