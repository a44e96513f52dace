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

__all__ = ["Loaded", "load", "load_evaluation", "pin", "prepare", "split"]

log = logging.getLogger("stepalign")


def prepare(settings: config.ProblemsConfig) -> tuple[list[Problem], list[Problem], dict[str, int]]:
    """Load training problems, evaluation problems, and the number of rows left out by reason.

    A training problem whose statement is also an evaluation problem's is left out of training.

    Raises:
        StepalignError: a source cannot be used (`load`), or a training and an evaluation problem have one id.
    """
    loaded = load(settings.train)
    dropped = dict(loaded.dropped)
    if settings.evaluation is None:
        return *split(loaded.problems, settings.holdout, settings.seed), dropped
    evaluation = load_evaluation(settings.evaluation)
    held_out = {statement_digest(problem.statement) for problem in evaluation}
    train = [problem for problem in loaded.problems if statement_digest(problem.statement) not in held_out]
    if not train:
        raise StepalignError("problems.train: every problem is also one of problems.evaluation")
    ids = {problem.id for problem in evaluation}
    if both := [problem.id for problem in train if problem.id in ids]:
        raise StepalignError(
            f"problems.train and problems.evaluation: {len(both)} ids are those of two different problems (the first: "
            f"{both[0]!r}); name a column of distinct ids (columns.id), or rename one of the files"
        )
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


def load_evaluation(source: config.SourceConfig) -> list[Problem]:
    """Load evaluation problems. Rows from Python without an id are `evaluation-1` …, since `problem-1` is of training.

    Raises:
        StepalignError: as `load`.
    """
    named = {"name": "evaluation"} if isinstance(source, config.PythonSourceConfig) else {}
    return list(load(source, **named).problems)


def load(source: config.SourceConfig, **options: str) -> Loaded:
    """Load a recipe's source of problems, at most `source.limit` of them, with options of its implementation.

    Raises:
        StepalignError: the source cannot be read (naming file, line and column, or the data set), or gives no
            problem at all (with the counts of what was left out).
    """
    name = str(getattr(source, "path", None) or getattr(source, "dataset", None) or source.source)
    loaded = collect(name, registry.build(source, **options), source.limit)
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
