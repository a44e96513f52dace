"""The same completion seen twice: behind the student's prompt and behind the teacher's.

A view is a prompt's ids ++ the very ids that were sampled, never text encoded again. Views are batched by padding on
the right, where a causal model's real positions cannot see it, so no attention mask is needed, and which positions
count follows from lengths alone: a pad id may be any id, an EOS among them (`FACTS.md`, traps 1 and 2).
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol, TypeVar, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from stepalign import config
from stepalign.chat import Chat
from stepalign.contexts import Context, ContextInput
from stepalign.critics.first_error import first_error_span
from stepalign.errors import StepalignError
from stepalign.prompts.conversation import Turn
from stepalign.records import Critique, Problem, Rollout, TokenIds
from stepalign.trace import token_span

L = TypeVar("L", bound="TrainingExample")


class DoesNotFit(StepalignError):
    """A problem and its completion exceed the teacher's limit even without any context."""


@dataclass(frozen=True, kw_only=True)
class View:
    """A prompt, a completion behind it, and which of the completion's tokens count: `start` … `stop`."""

    prompt_ids: TokenIds
    completion_ids: TokenIds
    start: int
    stop: int

    def __post_init__(self) -> None:
        if not self.prompt_ids or not 0 <= self.start <= self.stop <= len(self.completion_ids):
            raise ValueError(
                f"a view needs a prompt ({len(self.prompt_ids)} ids) and a span within the completion's "
                f"{len(self.completion_ids)} ids (found {self.start} … {self.stop})"
            )

    @property
    def num_loss_tokens(self) -> int:
        """How many tokens count."""
        return self.stop - self.start

    @property
    def input_ids(self) -> TokenIds:
        """What a model must read to predict every token that counts, and nothing after it."""
        return (*self.prompt_ids, *self.completion_ids[: max(self.stop - 1, 0)])


@dataclass(frozen=True, kw_only=True)
class DistillationExample:
    """One rollout's two views. They differ in the prompt alone."""

    rollout_id: str
    student: View
    teacher: View
    message: str = ""
    """What the teacher was shown, as text."""
    cut: bool = False
    """Whether the teacher's context had to be shortened."""

    def __post_init__(self) -> None:
        if (self.student.completion_ids, self.student.start, self.student.stop) != (
            self.teacher.completion_ids,
            self.teacher.start,
            self.teacher.stop,
        ):
            raise ValueError(f"rollout {self.rollout_id}: student and teacher see different completions")

    @property
    def max_input_len(self) -> int:
        """How many tokens the longer of the passes over it reads."""
        return max(len(self.student.input_ids), len(self.teacher.input_ids))


@runtime_checkable
class TrainingExample(Protocol):
    """What can be learnt from: a `DistillationExample`, or a rollout with its reward."""

    @property
    def rollout_id(self) -> str:
        """Whose it is."""
        ...

    @property
    def student(self) -> View:
        """What the student learns on."""
        ...

    @property
    def max_input_len(self) -> int:
        """How many tokens the longest of the passes over it reads."""
        ...


@dataclass(frozen=True)
class Batch:
    """Views padded into one tensor, and where the hidden states that predict counted tokens lie."""

    input_ids: Int[Tensor, "rows columns"]
    rows: Int[Tensor, " tokens"]
    columns: Int[Tensor, " tokens"]
    targets: Int[Tensor, " tokens"]
    """The counted tokens themselves, row by row."""

    def to(self, device: torch.device) -> "Batch":
        """The same batch on another device."""
        return Batch(*(tensor.to(device) for tensor in (self.input_ids, self.rows, self.columns, self.targets)))


def collate(views: Sequence[View]) -> Batch:
    """Pad views on the right. The order of tokens is: by row, then by position."""
    longest = max(len(view.input_ids) for view in views)
    input_ids = torch.zeros(len(views), longest, dtype=torch.long)
    rows, columns, targets = [], [], []
    for row, view in enumerate(views):
        ids = torch.tensor(view.input_ids)
        input_ids[row, : len(ids)] = ids
        # The hidden state at a position predicts the token after it.
        first = len(view.prompt_ids) - 1
        columns.append(torch.arange(first + view.start, first + view.stop))
        rows.append(torch.full((view.num_loss_tokens,), row))
        targets.append(torch.tensor(view.completion_ids[view.start : view.stop], dtype=torch.long))
    return Batch(input_ids, torch.cat(rows), torch.cat(columns), torch.cat(targets))


def weights(
    views: Sequence[View], *, normalize: Literal["seq-mean-token-mean", "token-mean"], sequences: int, tokens: int
) -> Float[Tensor, " tokens"]:
    """What each counted token's loss is multiplied by, so that sums over micro-batches and ranks are the mean.

    Args:
        views: one micro-batch's.
        normalize: `sequence` is the mean over each sequence's tokens, then over sequences; `token` the mean over
            all tokens.
        sequences: how many views with counted tokens the whole optimizer step has, over all ranks.
        tokens: how many counted tokens it has.
    """
    if normalize == "token-mean":
        return torch.full((sum(view.num_loss_tokens for view in views),), 1 / tokens)
    return torch.cat(
        [torch.full((view.num_loss_tokens,), 1 / (max(view.num_loss_tokens, 1) * sequences)) for view in views]
    )


def micro_batches(lessons: Sequence[L], size: int, tokens: int | None = None) -> Iterator[list[L]]:
    """Lessons in groups of similar length, the longest first (running out of memory shows at once).

    Args:
        lessons: one step's.
        size: lessons in a group, at most.
        tokens: padded tokens of a group's student views, at most, since it is their activations that a backward
            pass keeps. A lesson beyond it makes a group of its own.
    """
    group: list[L] = []
    longest = 0
    for lesson in sorted(lessons, key=lambda lesson: (-lesson.max_input_len, lesson.rollout_id)):
        longest = max(longest, len(lesson.student.input_ids))
        over = tokens is not None and longest * (len(group) + 1) > tokens
        if group and (len(group) == size or over):
            yield group
            group, longest = [], len(lesson.student.input_ids)
        group.append(lesson)
    if group:
        yield group


def lesson(
    chat: Chat,
    before: Sequence[Turn],
    context: Context,
    problem: Problem,
    rollout: Rollout,
    critique: Critique | None,
    teacher: config.TeacherConfig,
    objective: config.DistillationConfig,
    *,
    shown: Critique | None = None,
) -> DistillationExample:
    """Both views of a rollout under a context.

    Args:
        chat: encodes the teacher's prompt; the student's ids are those of the rollout.
        before: the turns before the problem, which the solver was shown as well.
        context: what the teacher is shown.
        problem: the rollout's.
        rollout: the attempt.
        critique: of the rollout, where context or horizon need one.
        teacher: limits and thinking boundary.
        objective: `skip_first` and `horizon` are used.
        shown: another critique for the context to show, while the horizon stays the rollout's own.

    Raises:
        DoesNotFit: problem and completion alone, without any context, exceed `teacher.max_length`.
    """
    start, stop = _span(rollout, critique, objective)
    message, prompt_ids, cut = _teacher_prompt(chat, before, context, problem, rollout, shown or critique, teacher)
    student = View(prompt_ids=rollout.prompt_ids, completion_ids=rollout.completion_ids, start=start, stop=stop)
    taught = View(prompt_ids=prompt_ids, completion_ids=rollout.completion_ids, start=start, stop=stop)
    return DistillationExample(rollout_id=rollout.id, student=student, teacher=taught, message=message, cut=cut)


def _span(rollout: Rollout, critique: Critique | None, objective: config.DistillationConfig) -> tuple[int, int]:
    """The completion's tokens that count: from `skip_first` on, up to the horizon."""
    stop = len(rollout.completion_ids)
    if objective.loss_span == "until_first_error":
        if critique is None:
            raise StepalignError(
                f"algorithm.loss_span = 'first_error': rollout {rollout.id} has no critique that knows its first error"
            )
        error = first_error_span(rollout.text, critique)
        if error is not None:
            # The first wrong token itself counts: it is where the teacher differs.
            stop = token_span(rollout, error.start, error.end if error.departure is None else error.departure + 1)[1]
    return min(objective.num_loss_tokens_to_skip, stop), stop


def _teacher_prompt(
    chat: Chat,
    before: Sequence[Turn],
    context: Context,
    problem: Problem,
    rollout: Rollout,
    critique: Critique | None,
    teacher: config.TeacherConfig,
) -> tuple[str, TokenIds, bool]:
    """The teacher's message and prompt within its length limit, and whether what it shows was cut for that.

    Only the shown texts are cut, each to the same share, found by bisection; problem and header stay whole.
    """

    def prompt(keep: float) -> tuple[str, TokenIds]:
        message = context.render(ContextInput(problem=problem, rollout=rollout, critique=critique), keep=keep)
        turns = [*before, Turn("user", message)]
        return message, chat.prompt_ids(turns, thinking=teacher.enable_thinking, close_think=teacher.close_think)

    room = teacher.max_length - len(rollout.completion_ids)
    message, whole = prompt(1.0)
    if len(whole) <= room:
        return message, whole, False
    message, best = prompt(0.0)
    if len(best) > room:
        raise DoesNotFit(
            f"teacher.max_length = {teacher.max_length}: problem {problem.id} ({len(best)} prompt tokens without any "
            f"context) and its completion of {len(rollout.completion_ids)} tokens do not fit"
        )
    low, high = 0.0, 1.0
    for _ in range(10):
        middle = (low + high) / 2
        shown, tried = prompt(middle)
        if len(tried) <= room:
            message, best, low = shown, tried, middle
        else:
            high = middle
    return message, best, True
