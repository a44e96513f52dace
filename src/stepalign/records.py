"""Records that flow between stages: frozen, checked when made, one line of JSON each.

Problem ─▶ Rollout (graded) ─▶ Critique ─▶ Credit … every arrow of the pipeline can be written to a file with
`io.write_jsonl` and read back with `io.read_jsonl`, so each stage also runs alone. Left out: anything that can be
derived again from a record (a rollout's steps come from `trace.parse`, its views from `views`).
"""

from os.path import commonprefix
from typing import Annotated, Literal

from pydantic import ConfigDict, Field, JsonValue, StringConstraints
from pydantic.dataclasses import dataclass
from pydantic_core import from_json, to_json

from stepalign.unit_tests import UnitTestResult, UnitTests

_STRICT = ConfigDict(extra="forbid")

Text = Annotated[str, StringConstraints(min_length=1)]
TokenIds = tuple[int, ...]
Case = Literal["A", "B", "C", "D"]
FinishReason = Literal["stop", "length"]
RolloutSource = Literal["policy", "reference", "teacher"]
"""Author of a completion; `reference` is the problem's reference solution in the solver's format."""
SHORTFALLS = {
    "fallback": "fell back",
    "mended by program": "were corrected by the program after the mender failed",
    "dropped": "dropped out",
    "cut": "had a shortened teacher prompt",
    "without credit": "got no credit",
    "sandbox restarted": "were graded by a sandbox that had to be restarted",
}
"""Outcomes of a rollout that are less than the recipe asks for, as verbs. A step's line and the report name them."""
PROGRAM = "program"
"""`Critique.mended_by` of a correction that no model wrote."""
Nats = Annotated[float, Field(allow_inf_nan=False)]
"""A log-probability."""
TopTokens = tuple[tuple[int, Nats], ...]
"""Token ids with their log-probabilities, the likeliest first."""


@dataclass(frozen=True, kw_only=True, config=_STRICT)
class Problem:
    """A problem with its reference answer and solution, or with unit tests."""

    id: Text
    statement: Text
    answer: str = ""
    solution: str = ""
    """The reference solution, of a problem with unit tests a program; empty where the source has none."""
    source: str = ""
    trace_format: Text = "steps"
    """The format in which solutions are written and read (`trace.formats`): `steps`, `paragraphs` or `code`."""
    meta: dict[str, JsonValue] = Field(default_factory=dict)
    tests: UnitTests | None = None

    def __post_init__(self) -> None:
        if not self.answer and self.tests is None:
            raise ValueError("a problem without an answer and without unit tests")
        # NaN, half of a surrogate pair and nesting of 200 levels are written to a file, but not read back.
        values = {"meta": self.meta}
        if self.meta and from_json(to_json(values, inf_nan_mode="constants"), allow_inf_nan=False) != values:
            raise ValueError("meta holds text that JSON cannot hold")


@dataclass(frozen=True, kw_only=True, config=_STRICT)
class Grade:
    """Result of comparing a rollout's final answer with the reference, or of its unit tests."""

    correct: bool
    outcome: Literal["correct", "wrong", "missing", "ambiguous", "timeout", "error"]
    final_answer: str = ""
    """The extracted answer in a canonical form, so that equal answers are equal strings (Maj@n counts them)."""
    feedback: str = ""
    """The grader's words on the response, for a teacher, without the reference answer."""
    score: Annotated[float, Field(ge=0, le=1)] | None = None
    sandbox_restarts: Annotated[int, Field(ge=0)] = 0
    """Sandboxes that died at the tests, or were killed because no result came in time."""
    tests: tuple[UnitTestResult, ...] = ()


@dataclass(frozen=True, kw_only=True, config=_STRICT)
class Rollout:
    """A sampled response. `completion_ids` are the very ids that were sampled, a final EOS included."""

    id: Text
    problem_id: Text
    sample: Annotated[int, Field(ge=0)] = 0
    """The index among the problem's samples."""
    prompt_ids: TokenIds = ()
    completion_ids: TokenIds
    text: str
    """The completion decoded, special tokens as text, without the EOS that ended it."""
    token_starts: tuple[int, ...]
    """For each completion id the first character of its text in `text` (a final EOS begins at the end)."""
    finish: FinishReason
    response_start: Annotated[int, Field(ge=0)] | None = None
    """The character of `text` after the solver's thought, its length where the thought never ends.

    With None, as in files from elsewhere, it is found by the marks of known families.
    """
    policy_step: Annotated[int, Field(ge=0)] = 0
    """The optimizer step of the policy that sampled it."""
    seed: int = 0
    grade: Grade | None = None
    sampler_logprobs: tuple[Nats, ...] | None = None
    """The log-probability of each completion id that a sampler with weights of its own gave it, at temperature 1."""
    source: RolloutSource = "policy"
    """The author of the completion."""
    turn: Literal[1, 2] = 1
    """2 where the prompt shows a hint, or feedback on a first attempt."""
    trace_format: Text = "steps"

    def __post_init__(self) -> None:
        count = len(self.completion_ids)
        for name, values in (("token starts", self.token_starts), ("log-probabilities", self.sampler_logprobs)):
            if values is not None and len(values) != count:
                raise ValueError(f"rollout {self.id}: {count} completion ids but {len(values)} {name}")

    @property
    def on_policy(self) -> bool:
        """True where the policy sampled it from the solver's own prompt."""
        return self.source == "policy" and self.turn == 1

    @property
    def correct(self) -> bool:
        """True where it was graded as correct."""
        return self.grade is not None and self.grade.correct

    @property
    def reward(self) -> float:
        """The grade's score; without one 1 for a correct answer, else 0."""
        return self.grade.score if self.grade and self.grade.score is not None else float(self.correct)


@dataclass(frozen=True, kw_only=True, config=_STRICT)
class Verdict:
    """A critique's line `Step k: Correct.` or `Step k: Incorrect -- reason`."""

    step: Annotated[int, Field(ge=1)]
    """Counted from 1 in the order of the trace, the final-answer section as one more step."""
    correct: bool
    reason: str = ""
    place: str = ""
    """The place of a step without a heading: of a program's step its lines, as `lines 4–6`."""

    @property
    def label(self) -> str:
        """The number and the place, as `3 (lines 4–6)`."""
        return f"{self.step} ({self.place})" if self.place else str(self.step)


@dataclass(frozen=True, kw_only=True, config=_STRICT)
class Check:
    """Result of one check of a critique (`critics/checks.py`)."""

    name: Text
    measure: float
    """The measured value; each check defines its own."""
    passed: bool
    detail: str = ""
    """The fault in a few words; empty where it passed."""


@dataclass(frozen=True, kw_only=True, config=_STRICT)
class Critique:
    """A critic's checked output on one rollout (paper, Appendix B)."""

    kind: Literal["critique"] = "critique"
    rollout_id: Text
    critic: Text
    case: Case
    """A fully correct, B correct answer with an unjustified step, C ran out of tokens, D incorrect answer."""
    verdicts: tuple[Verdict, ...]
    correct_part: str
    """The student's own text up to (and without) the first wrong step, verbatim; in case A all of it."""
    corrected_step: str = ""
    continuation: str = ""
    text: Text
    """The whole critique in the paper's schema, as a teacher reads it."""
    fidelity: Annotated[float, Field(ge=0, le=1)] = 1.0  # the share copied verbatim, of what should be
    checks: tuple[Check, ...] = ()
    """Results for the critique as its critic wrote it; empty without checks."""
    repaired: tuple[str, ...] = ()
    """The checks that failed then, and pass since the solver's own text was put in."""
    retried: tuple[str, ...] = ()
    """The faults of earlier replies, one name a reply, in order."""
    mended_by: str = ""  # the author of the correction, where the critic has several
    prompt_tokens: int = 0  # of all replies, the earlier ones included
    completion_tokens: int = 0
    seconds: float = 0.0

    @property
    def mender_failed(self) -> bool:
        """True where the program corrected because no sample of a mender passed."""
        return self.mended_by == PROGRAM and bool(self.retried)

    @property
    def first_error(self) -> int | None:
        """The first incorrect step, counted from 1; None where every step is correct."""
        return next((v.step for v in self.verdicts if not v.correct), None)

    @property
    def first_error_label(self) -> str:
        """The first incorrect step's number and place; empty where every step is correct."""
        return next((v.label for v in self.verdicts if not v.correct), "")


@dataclass(frozen=True, kw_only=True, config=_STRICT)
class CritiqueFailure:
    """A rollout without a trustworthy critique, and the reason. The recipe's fallback decides what follows."""

    kind: Literal["failure"] = "failure"
    rollout_id: Text
    critic: Text
    reason: Text
    """A short name that is counted in the report: a check's (`exact_copy`, `final_answer` …), or `parse`, `truncated`,
    `timeout`, `server` …"""
    detail: str = ""
    fallback: Literal["refsol", "drop"] | None = None
    """The replacement for the critique; None leaves it to `critic.on_failure`."""
    checks: tuple[Check, ...] = ()
    """Results for the last reply that could be read."""
    retried: tuple[str, ...] = ()
    """The faults of earlier replies, one name a reply, in order."""
    prompt_tokens: int = 0
    completion_tokens: int = 0
    seconds: float = 0.0


SlipKind = Literal["arithmetic", "sign", "copied number", "dropped term"]


@dataclass(frozen=True, kw_only=True, config=_STRICT)
class PlantedSlip:
    """A correct trace with one planted error and its consequences. The first wrong character is known exactly."""

    rollout_id: Text
    """The rollout with the error."""
    problem_id: Text
    kind: SlipKind
    step: Annotated[int, Field(ge=1)]
    """Counted from 1 as critiques count."""
    start: Annotated[int, Field(ge=0)]
    end: int
    """`text[start:end]` is the first wrong number or sign, whole."""
    text: Text
    correct_text: Text

    def __post_init__(self) -> None:
        if not self.start <= self.departure < self.end <= len(self.text):
            where = f"at character {self.departure}, not in [{self.start}, {self.end})"
            raise ValueError(f"slip {self.rollout_id}: its texts part {where}")

    @property
    def departure(self) -> int:
        """The first character that differs. Its token is the first wrong one."""
        return len(commonprefix([self.text, self.correct_text]))


CriticResult = Annotated[Critique | CritiqueFailure, Field(discriminator="kind")]
"""A critic's result for one rollout."""


@dataclass(frozen=True, kw_only=True, config=_STRICT)
class Mark:
    """The first error of a rollout: exact where it was planted, else a critique's."""

    rollout_id: Text
    step: Annotated[int, Field(ge=1)]
    """Counted from 1, as critiques count."""
    start: Annotated[int, Field(ge=0)]
    end: int
    """The characters `[start, end)` of the rollout's text: the first wrong number, or all of the wrong step."""
    departure: int | None = None
    """The first wrong character, where that is known: 136 departs from 126 at its second digit."""
    source: Literal["planted", "critique", "human"]

    def __post_init__(self) -> None:
        if self.end <= self.start or not (self.departure is None or self.start <= self.departure < self.end):
            span = f"the characters [{self.start}, {self.end}) that begins at {self.departure}"
            raise ValueError(f"rollout {self.rollout_id}: an error in {span}")


@dataclass(frozen=True, kw_only=True, config=_STRICT)
class StepValues:
    """Math-Shepherd's value of each step: the share of continuations from it that reach the answer."""

    rollout_id: Text
    num_rollouts: Annotated[int, Field(ge=1)]
    """The continuations of each step."""
    reached: tuple[Annotated[int, Field(ge=0)], ...]
    """The continuations of each step that reach the answer; of the last step all or none, as the rollout is graded."""
    prompt_tokens: int = 0
    """Tokens read: the prompt and the steps before each continuation."""
    completion_tokens: int = 0

    @property
    def soft(self) -> tuple[float, ...]:
        """The soft estimate: the share that reach the answer."""
        return tuple(count / self.num_rollouts for count in self.reached)

    @property
    def hard(self) -> tuple[float, ...]:
        """The hard estimate: 1 where any reaches it."""
        return tuple(float(count > 0) for count in self.reached)


@dataclass(frozen=True, kw_only=True, config=_STRICT)
class Credit:
    """Credit of each token of a rollout, from a teacher under one context (Eq. 4)."""

    rollout_id: Text
    context: Text
    """The context design's name."""
    prompt: str
    """The message to the teacher."""
    student: tuple[Nats, ...]
    """log p(ŷ_t | x, y_<t) for each completion id, at temperature 1."""
    teacher: tuple[Nats, ...]
    """log p(ŷ_t | x, c, y_<t), likewise."""
    student_top: tuple[TopTokens, ...] = ()
    """For each completion id the likeliest tokens in its place; empty unless requested."""
    teacher_top: tuple[TopTokens, ...] = ()
    wrong: tuple[Nats, ...] = ()
    """log mean_k p(ŷ_t | x, wrong context k, y_<t), likewise; empty unless contrasted."""
    cut: bool = False
    """True where the context was shortened to fit into the teacher's prompt."""

    def __post_init__(self) -> None:
        if self.wrong and len(self.wrong) != len(self.teacher):
            raise ValueError(f"rollout {self.rollout_id}: {len(self.wrong)} contrasted of {len(self.teacher)} tokens")
        if len(self.student) != len(self.teacher):
            counts = f"{len(self.student)} tokens seen by the student, {len(self.teacher)} by the teacher"
            raise ValueError(f"rollout {self.rollout_id}: {counts}")
        if any(top and len(top) != len(self.student) for top in (self.student_top, self.teacher_top)):
            raise ValueError(f"rollout {self.rollout_id}: likeliest tokens for some of its tokens only")

    @property
    def values(self) -> tuple[float, ...]:
        """A_t = teacher − student: positive where the context makes the sampled token likelier."""
        return tuple(teacher - student for student, teacher in zip(self.student, self.teacher, strict=True))

    @property
    def contrast(self) -> tuple[float, ...]:
        """Teacher under the context minus teacher under wrong ones (RLCSD); empty unless contrasted."""
        return tuple(teacher - wrong for wrong, teacher in zip(self.wrong, self.teacher, strict=bool(self.wrong)))
