"""The one teacher of an algorithm: built once, moved after updates, saved with each checkpoint."""

from collections.abc import Mapping

from torch import Tensor

from stepalign import config
from stepalign.policy import Policy
from stepalign.teachers import Teacher, build_teacher


class WithTeacher:
    """Base of the algorithms that have a teacher. One that is never built has no state."""

    def __init__(self, teacher: config.TeacherConfig | None) -> None:
        """Take the recipe's `[teacher]`; None is the base."""
        self.teacher = teacher or config.BaseTeacherConfig()
        self._teacher: Teacher | None = None

    def teacher_of(self, policy: Policy) -> Teacher:
        """Return the one teacher of the run's policy."""
        self._teacher = self._teacher or build_teacher(self.teacher, policy)
        return self._teacher

    def begin(self, policy: Policy) -> None:
        """Build the teacher on a policy that has not been trained yet."""
        self.teacher_of(policy)

    def after_update(self, policy: Policy) -> None:
        """Let the teacher follow an optimizer update, where its kind does."""
        if self._teacher:
            self._teacher.after_update(policy)

    def after_step(self, policy: Policy) -> None:
        """Let the teacher follow the step, where its kind does."""
        if self._teacher:
            self._teacher.after_step(policy)

    def teacher_parameters(self, policy: Policy) -> int:
        """Return the parameters that each token of the teacher's views is multiplied with."""
        return (self._teacher or policy).parameters_read

    def metrics(self) -> dict[str, float]:
        """Return the teacher's own measures."""
        return dict(self._teacher.metrics()) if self._teacher else {}

    def state_dict(self, policy: Policy) -> dict[str, Tensor]:
        """Return the teacher's state."""
        return self._teacher.state_dict() if self._teacher else {}

    def load_state_dict(self, policy: Policy, state: Mapping[str, Tensor]) -> None:
        """Restore the teacher's state."""
        if self._teacher:
            self._teacher.load_state_dict(state)
