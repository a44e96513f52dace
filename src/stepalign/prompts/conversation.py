"""Turns of a prompt: system message, worked examples and the problem."""

from dataclasses import dataclass
from typing import Literal

from stepalign import config, prompts
from stepalign.records import Problem


@dataclass(frozen=True)
class Turn:
    """One message of a chat."""

    role: Literal["system", "user", "assistant"]
    content: str


class SolverPrompt:
    """The solver's prompt, the same in training and evaluation (paper, Figure 8)."""

    def __init__(self, settings: config.PromptsConfig) -> None:
        self._template, _ = prompts.load(settings.solver, frozenset({"problem"}))
        self._message("Compute 47 + 38.")  # a template that cannot be rendered is an error now
        before = [Turn("system", settings.system)] if settings.system else []
        for example in settings.examples:
            before += [Turn("user", self._message(example.problem)), Turn("assistant", example.solution)]
        self.before = tuple(before)
        """System message and worked examples. The teacher is shown them too: its view differs in the context alone."""

    def turns(self, problem: Problem) -> tuple[Turn, ...]:
        """Return the whole conversation up to the solver's answer."""
        return (*self.before, Turn("user", self._message(problem.statement)))

    def _message(self, statement: str) -> str:
        return prompts.render(self._template, {"problem": statement})
