"""Sources of problems, the paper's filter by the solver's own attempts, and the hold-out.

Every source gives id, statement, final answer and (most) a reference solution. Rows that are left out are counted
by reason and named. A new source is a table in `config/recipe.py` and a function that yields candidates.
"""

from stepalign import config
from stepalign.config import registry
from stepalign.data.normalize import Loaded, collect, statement_digest
from stepalign.data.split import split
from stepalign.errors import StepalignError
from stepalign.records import Problem

__all__ = ["Loaded", "load", "prepare", "split"]


def prepare(settings: config.ProblemsConfig) -> tuple[list[Problem], list[Problem], dict[str, int]]:
    """Load training problems, evaluation problems, and the number of rows left out by reason.

    A training problem whose statement is also an evaluation problem's is left out of training.

    Raises:
        StepalignError: as `load` and `split` do, or evaluation leaves nothing to train on.
    """
    loaded = load(settings.train)
    dropped = dict(loaded.dropped)
    if settings.evaluation is None:
        train, evaluation = split(loaded.problems, settings.holdout, settings.seed)
        return train, evaluation, dropped
    evaluation = list(load(settings.evaluation).problems)
    held_out = {statement_digest(problem.statement) for problem in evaluation}
    train = [problem for problem in loaded.problems if statement_digest(problem.statement) not in held_out]
    if len(train) < len(loaded.problems):
        dropped["also an evaluation problem"] = len(loaded.problems) - len(train)
    if not train:
        raise StepalignError("problems.train: every problem is also one of problems.evaluation")
    return train, evaluation, dropped


def load(source: config.SourceConfig) -> Loaded:
    """Load a recipe's source of problems, at most `source.limit` of them.

    Raises:
        StepalignError: the source cannot be read (naming file, line and column, or the data set), or gives no
            problem at all (with the counts of what was left out).
    """
    name = str(getattr(source, "path", None) or source.source)
    return collect(name, registry.build(source), source.limit)
