"""Teacher prompt: a context rendered within the teacher's length limit.

Only the shown texts are cut, each to the same share, found by bisection. Problem and assistant header stay whole.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from stepalign import config, models
from stepalign.chat import Chat
from stepalign.contexts import Context, ContextInput
from stepalign.errors import StepalignError
from stepalign.prompts.conversation import Turn
from stepalign.records import TokenIds
from stepalign.teachers.model import check_tokenizer

_BISECTIONS = 10


class DoesNotFit(StepalignError):
    """Error: a problem and its completion exceed the teacher's limit even without any context."""


@dataclass(frozen=True, kw_only=True)
class TeacherPrompt:
    """The teacher's message and prompt ids."""

    message: str
    ids: TokenIds
    cut: bool
    """True where the shown texts were shortened to fit."""


def build_teacher_prompt(
    chat: Chat,
    before: Sequence[Turn],
    context: Context,
    source: ContextInput,
    teacher: config.TeacherConfig,
    *,
    completion_tokens: int,
) -> TeacherPrompt:
    """Render a context and encode it, so that prompt and completion fit `teacher.max_length`.

    Args:
        chat: encodes the prompt.
        before: turns before the problem, which the solver was shown as well.
        context: the design.
        source: the rollout, and what the context may show beside it.
        teacher: length limit and thinking boundary.
        completion_tokens: tokens that follow the prompt.

    Raises:
        DoesNotFit: problem and completion alone exceed the limit.
    """

    def prompt(keep: float) -> tuple[str, TokenIds]:
        message = context.render(source, keep=keep)
        turns = [*before, Turn("user", message)]
        return message, chat.prompt_ids(turns, thinking=teacher.enable_thinking, close_think=teacher.close_think)

    room = teacher.max_length - completion_tokens
    message, ids = prompt(1.0)
    if len(ids) <= room:
        return TeacherPrompt(message=message, ids=ids, cut=False)
    message, ids = prompt(0.0)
    if len(ids) > room:
        raise DoesNotFit(
            f"teacher.max_length = {teacher.max_length}: problem {source.problem.id} ({len(ids)} prompt tokens "
            f"without any context) and its completion of {completion_tokens} tokens do not fit"
        )
    low, high = 0.0, 1.0
    for _ in range(_BISECTIONS):
        keep = (low + high) / 2
        longer_message, longer_ids = prompt(keep)
        if len(longer_ids) <= room:
            message, ids, low = longer_message, longer_ids, keep
        else:
            high = keep
    return TeacherPrompt(message=message, ids=ids, cut=True)


def limit_to_context(teacher: config.TeacherConfig, context_limit: int | None) -> config.TeacherConfig:
    """Lower `max_length` to the model's own context length, where it has one."""
    if context_limit is None:
        return teacher
    return teacher.model_copy(update={"max_length": min(teacher.max_length, context_limit)})


def limited_teacher(recipe: config.Recipe, chat: Chat, context_limit: int | None) -> config.TeacherConfig:
    """Return a recipe's `[teacher]`, whose `max_length` is at most its model's own context length.

    Args:
        recipe: the run's.
        chat: the student's.
        context_limit: the student's own context length, which is the teacher's too unless it is another model.

    Raises:
        StepalignError: the teacher is another model with another tokenizer.
    """
    if (model := recipe.teacher.model_of(recipe.model)) is not recipe.model:
        check_tokenizer(model, chat)
        context_limit = models.context_limit(model)
    return limit_to_context(recipe.teacher, context_limit)
