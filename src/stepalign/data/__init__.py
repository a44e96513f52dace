"""Sources of problems, the paper's filter by the solver's own attempts, and the hold-out.

Every source gives id, statement, final answer and (most) a reference solution. Rows that are left out are counted
by reason and named. A new source is a table in `config/sources.py` and a function that yields candidates.
"""

import logging
from collections.abc import Mapping, Sequence

from stepalign import config
from stepalign.config import registry
from stepalign.data import files
from stepalign.data.normalize import LOST_BACKSLASH, UNFINISHED_THOUGHT, Loaded, collect, statement_digest
from stepalign.errors import StepalignError
from stepalign.records import Problem
from stepalign.seeding import derive_seed

__all__ = ["Loaded", "load", "pin", "prepare", "split"]

log = logging.getLogger("stepalign")


def prepare(settings: config.ProblemsConfig) -> tuple[list[Problem], list[Problem], dict[str, int]]:
    """Load training problems, evaluation problems, and the number of rows left out by reason.

    A training problem whose statement is also an evaluation problem's is left out of training.
    """
    loaded = load(settings.train)
    dropped = dict(loaded.dropped)
    if settings.evaluation is None:
        return *split(loaded.problems, settings.holdout, settings.seed), dropped
    evaluation = list(load(settings.evaluation).problems)
    held_out = {statement_digest(problem.statement) for problem in evaluation}
    train = [problem for problem in loaded.problems if statement_digest(problem.statement) not in held_out]
    if not train:
        raise StepalignError("problems.train: every problem is also one of problems.evaluation")
    if len(train) < len(loaded.problems):
        dropped["also an evaluation problem"] = len(loaded.problems) - len(train)
    return train, evaluation, dropped


def pin(settings: config.ProblemsConfig, kept: Mapping[str, str]) -> tuple[config.ProblemsConfig, dict[str, str]]:
    """Replace the revisions of hub data sets by commits, so that a resumed run reads what it began with.

    Args:
        settings: the recipe's.
        kept: the commits with which the run began, by `train` and `evaluation`.

    Returns:
        The settings and their commits. Local sources have none.
    """
    commits = {}
    for name in ("train", "evaluation"):
        source = getattr(settings, name)
        if isinstance(source, config.HubSourceConfig) and (found := kept.get(name) or files.commit(source)):
            commits[name] = found
            settings = settings.model_copy(update={name: source.model_copy(update={"revision": found})})
    return settings, commits


def load(source: config.SourceConfig) -> Loaded:
    """Load a recipe's source of problems, at most `source.limit` of them.

    Raises:
        StepalignError: the source cannot be read (naming file, line and column, or the data set), or gives no
            problem at all (with the counts of what was left out).
    """
    name = str(getattr(source, "path", None) or getattr(source, "dataset", None) or source.source)
    loaded = collect(name, registry.build(source), source.limit)
    for reason in (LOST_BACKSLASH, UNFINISHED_THOUGHT):
        if count := loaded.dropped.get(reason):
            log.warning("%s: %d rows left out, the first at %s: %s", name, count, loaded.places[reason][0], reason)
    return loaded


def split(problems: Sequence[Problem], holdout: int, seed: int) -> tuple[list[Problem], list[Problem]]:
    """Split problems into those to train on and `holdout` held out (paper: 30 of 312), each in the order given.

    Each problem has a rank that depends on the seed and its id alone, and the lowest ranks are held out: the
    order of the problems does not matter, and adding some moves few others across.
    """
    if holdout >= len(problems):
        raise StepalignError(
            f"holdout = {holdout}, but there are {len(problems)} problems: one must be left to train on"
        )
    ranked = sorted(problems, key=lambda problem: (derive_seed(seed, "holdout", problem.id), problem.id))
    held_out = {problem.id for problem in ranked[:holdout]}
    train = [problem for problem in problems if problem.id not in held_out]
    return train, [problem for problem in problems if problem.id in held_out]
