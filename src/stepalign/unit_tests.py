"""Records of unit tests: those of a problem, and their results on a program."""

from typing import Annotated, Literal

from pydantic import ConfigDict, StringConstraints
from pydantic.dataclasses import dataclass

_STRICT = ConfigDict(extra="forbid")

Code = Annotated[str, StringConstraints(min_length=1)]


@dataclass(frozen=True, kw_only=True, config=_STRICT)
class UnitTests:
    """Tests of a program: snippets of Python, each passed if it raises nothing."""

    shown: tuple[Code, ...] = ()
    """The tests that solver, critic and teacher may read."""
    hidden: tuple[Code, ...] = ()
    """The tests that only the grader reads."""
    entry_point: str = ""
    """The function that a program has to define; empty where no name is prescribed."""
    preamble: str = ""
    """Code that runs before the program, such as imports and helper functions of the prompt."""
    setup: str = ""
    """Code that runs after the program and before each test."""

    def __post_init__(self) -> None:
        if not self.shown and not self.hidden:
            raise ValueError("unit tests without a test")


@dataclass(frozen=True, kw_only=True, config=_STRICT)
class UnitTestResult:
    """Result of one unit test. Of a hidden one only the outcome, a builtin exception's type and the lines are kept."""

    outcome: Literal["passed", "failed", "error", "timeout", "killed", "not run"]
    """`failed`: an assertion is false. `error`: another exception, in all tests where the program cannot be loaded.
    `killed`: the program's process died. `not run`: the process had died, or time was up."""
    hidden: bool = False
    source: str = ""
    """The test, or its assertion that failed."""
    expected: str = ""
    """The representation of the right-hand side of a failed `==`."""
    actual: str = ""
    """The representation of its left-hand side."""
    exception: str = ""
    """The type's name."""
    message: str = ""
    lines: tuple[int, ...] = ()
    """Lines of the program in the traceback, the innermost last, counted from 1."""
    traceback: str = ""
    """The traceback, without the frames outside the program."""
    output: str = ""
    """The beginning of what the program prints; the first test's includes what it prints when it is loaded."""
