"""Teacher that is another model, usually a larger one, in the same process.

It reads the student's own ids. So both tokenizers must give each of the student's tokens the same id, and both models
must end a response with the same tokens: a student that learns an end which its sampler does not know never stops.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from accelerate import Accelerator
from accelerate.state import PartialState
from jaxtyping import Float
from torch import Tensor
from transformers import PreTrainedModel

from stepalign import config, models
from stepalign.chat import Chat, load_tokenizer
from stepalign.collate import Batch
from stepalign.errors import StepalignError
from stepalign.policy import Policy
from stepalign.teachers.stateless import PolicyTeacher


class ModelTeacher(PolicyTeacher):
    """A causal language model with weights and an output head of its own."""

    moves = False

    def __init__(self, settings: config.ModelTeacherConfig, *, policy: Policy) -> None:
        """Load the model.

        Raises:
            StepalignError: it cannot be loaded, or is spread over devices in several processes.
        """
        super().__init__(policy)
        if settings.device_map is not None and PartialState().num_processes > 1:
            raise StepalignError(
                f"teacher.device_map = {settings.device_map!r} spreads the teacher over this machine's devices, which "
                "several processes cannot share: leave it out, or train in one process"
            )
        device = Accelerator().device
        with _of_teacher():
            self._model = Policy(models.load_base(settings.model, device, device_map=settings.device_map)).eval()
        head = self._model.head
        if head.is_meta:
            raise StepalignError(f"teacher.device_map = {settings.device_map!r}: the output head is on no device")
        if len(head) < len(policy.head):
            raise StepalignError(
                f"teacher.model.name_or_path = {settings.model.name_or_path!r}: {len(head)} rows of logits, the "
                f"student has {len(policy.head)}: the student can sample ids that the teacher cannot read"
            )
        # Rows beyond the student's are padding: its tokens have no such ids.
        self._head = head[: len(policy.head)].to(device)

    @property
    def model(self) -> PreTrainedModel:
        """The model itself, to sample from."""
        return self._model.base

    @property
    def head(self) -> Float[Tensor, "vocab hidden"]:
        """The model's own output projection, over the student's vocabulary."""
        return self._head

    @property
    def shares_prefixes(self) -> bool:
        """The teacher's model's."""
        return self._model.shares_prefixes

    @property
    def parameters_read(self) -> int:
        """The model's own."""
        return self._model.parameters_read

    @torch.no_grad()
    def forward(self, batch: Batch) -> Float[Tensor, "tokens hidden"]:
        """Return the model's hidden states."""
        hidden: Tensor = self._model(batch)
        return hidden.to(self._head.device)


def check_tokenizer(teacher: config.ModelConfig, student: Chat) -> None:
    """Check that a teacher's model has the student's tokens and ends a response as the student does.

    Raises:
        StepalignError: naming tokens that differ.
    """
    with _of_teacher():
        tokenizer, eos_ids = load_tokenizer(teacher)
    theirs, ours = tokenizer.get_vocab(), student.tokenizer.get_vocab()
    if differing := [token for token, id in sorted(ours.items()) if theirs.get(token) != id]:
        first = ", ".join(f"{token!r} ({ours[token]}, {theirs.get(token)})" for token in differing[:3])
        raise StepalignError(
            f"teacher.model.name_or_path = {teacher.name_or_path!r}: the teacher reads the student's own ids, but "
            f"{len(differing)} of {len(ours)} tokens have another id there: {first} …"
        )
    if not (student.tokenizer.eos_token_id in eos_ids and eos_ids <= student.eos_ids):
        raise StepalignError(
            f"teacher.model.name_or_path = {teacher.name_or_path!r}: it ends a response with "
            f"{_tokens(student, eos_ids)}, the student with {_tokens(student, student.eos_ids)}: a student that "
            "learns an end which its sampler does not know never stops"
        )


@contextmanager
def _of_teacher() -> Iterator[None]:
    """Say in an error on `model.…` that it is the teacher's."""
    try:
        yield
    except StepalignError as error:
        raise StepalignError(f"teacher.{error}") from None


def _tokens(chat: Chat, ids: frozenset[int]) -> str:
    return ", ".join(map(str, chat.tokenizer.convert_ids_to_tokens(sorted(ids)))) or "nothing"
