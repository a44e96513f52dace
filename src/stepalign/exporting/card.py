"""A model card written from a run: what taught the model, its figures with intervals, data, licences, recipe."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any, Self

from huggingface_hub import ModelCardData
from huggingface_hub.repocard import metadata_load
from jinja2 import Environment, FileSystemLoader, StrictUndefined, Template

import stepalign
from stepalign import config
from stepalign.config.model import is_local
from stepalign.config.registry import FAMILIES
from stepalign.errors import StepalignError
from stepalign.exporting.merge import MAX_DIFFERENCE, MAX_KL, Agreement
from stepalign.prompts import kept_path
from stepalign.prompts.conversation import SolverPrompt
from stepalign.records import Problem
from stepalign.report import display
from stepalign.report.run import RunFiles
from stepalign.report.summary import Summary


@dataclass(frozen=True)
class DataSource:
    """A source of problems as cards name it."""

    name: str
    hub: str
    """The data set's name on the hub; empty where it has none."""
    licence: str
    """Empty where it is not known."""


@dataclass(frozen=True)
class Base:
    """A run's base as cards name it, without a path of the machine that trained on it."""

    name: str
    on_hub: bool
    """Others load it by this name."""

    @classmethod
    def of(cls, model: config.ModelConfig, name: str | None = None) -> Self:
        """Return the base of a recipe's model. `name` is where others load it from, if the user says so."""
        name = name or model.name_or_path
        local = name == "lab" or is_local(name) or Path(name).is_dir()
        return cls(Path(name).name if local else name, not local)


def model_card(run: RunFiles, step: int, *, serve: str, base: Base, agreement: Agreement | None = None) -> str:
    """Write the card of a run's checkpoint as Markdown.

    Args:
        run: the run.
        step: the checkpoint's optimizer step. Later steps and evaluations are left out.
        serve: vLLM's command.
        base: the base's name.
        agreement: of merged weights with their adapter; None where nothing was merged.
    """
    until = replace(
        run,
        steps=[line for line in run.steps if line["step"] <= step],
        evaluations=[evaluation for evaluation in run.evaluations if evaluation.step <= step],
    )
    summary = Summary(until)
    sources, licence = sources_of(run), licence_of_base(run)
    adapter = agreement is None and summary.setting("training.use_peft") is not False
    data = ModelCardData(
        base_model=base.name if base.on_hub and "/" in base.name else None,
        library_name="peft" if adapter else "transformers",
        pipeline_tag="text-generation",
        license=licence,
        datasets=sorted({source.hub for source in sources.values() if source.hub}) or None,
        tags=["stepalign", "self-distillation", *(["lora"] if adapter else [])],
    )
    return _template().render(
        front=data.to_yaml(),
        run=until,
        step=step,
        summary=summary,
        base=base,
        adapter=adapter,
        teacher=_teacher(summary),
        feedback=_feedback(run, summary),
        grader=_named(run, summary.setting("grader.function")) or f"`{summary.setting('grader.kind') or 'math'}`",
        from_script=[key for key, name in _functions(run) if name.startswith("__main__:") or "<" in name],
        serve=serve,
        sources=sources,
        licence=licence,
        agreement=agreement,
        max_difference=MAX_DIFFERENCE,
        max_kl=MAX_KL,
        solver_prompt=_solver_prompt(run),
        version=stepalign.__version__,
        count=display.count,
    )


def sources_of(run: RunFiles) -> dict[str, DataSource]:
    """Return a run's sources of problems: for training and, where there is one, for evaluation."""
    found, commits = {}, run.manifest.get("dataset_commits", {})
    for use in ("train", "evaluation"):
        table = run.recipe.get("problems", {}).get(use, {})
        kind: Any = FAMILIES["source"].tables.get(table.get("source"))
        if kind is not None:
            hub = kind.hub or (table.get("dataset", "") if use in commits else "")  # a folder has no commit
            name = hub or _named(run, table.get("function")) or table["source"]
            found[use] = DataSource(name=name, hub=hub, licence=kind.licence)
    return found


def licence_of_base(run: RunFiles) -> str | None:
    """Return the licence that the base's own card states, where the base is a local folder; else None."""
    try:
        stated = metadata_load(Path(config.ModelConfig.model_validate(run.recipe["model"]).location) / "README.md")
    except (OSError, KeyError, ValueError, StepalignError):  # no folder, no card, no front matter
        return None
    return str(stated["license"]) if stated and stated.get("license") else None


def _functions(run: RunFiles) -> Iterator[tuple[str, str]]:
    """Yield the keywords of `stepalign.train` that were given from Python, with the names of their values."""
    tables = {key: run.recipe.get(key) or {} for key in ("grader", "critic", "context")}
    problems = run.recipe.get("problems", {})
    tables |= {"problems": problems.get("train") or {}, "evaluation_problems": problems.get("evaluation") or {}}
    yield from ((key, table["function"]) for key, table in tables.items() if "function" in table)


def _named(run: RunFiles, function: str | None) -> str:
    """Describe a function, an object or rows of Python by the name in the recipe; empty for None."""
    if function is None:
        return ""
    module, _, name = function.partition(":")
    if not name:  # `<25 rows of a list, digest …>`
        return f"{function.strip('<>').partition(',')[0]}, given from Python"
    kept = f"prompts/{module}.{name}.py"
    source = f"source in `{kept}`" if (run.folder / kept).exists() else "not in this repository"
    script = "the script that trained it" if module == "__main__" else f"the module `{module}`"
    return f"`{name.rpartition('.')[2].strip('<>')}`, a Python function of {script} ({source})"


def _teacher(summary: Summary) -> str:
    """Return the kind of the model that taught; empty where none did."""
    algorithm = summary.algorithm
    taught = algorithm is None or algorithm.reference == "teacher" or isinstance(algorithm, config.SeqKDConfig)
    return summary.setting("teacher.kind") or "base" if taught else ""


def _feedback(run: RunFiles, summary: Summary) -> str:
    """Return the run's condition, with what was made in Python in words."""
    feedback = summary.condition
    if function := summary.setting("context.function"):
        feedback = feedback.replace(function, _named(run, function))
    if function := summary.setting("critic.function"):
        feedback = feedback.replace("critic python", f"critic {_named(run, function)}")
    return feedback


def _solver_prompt(run: RunFiles) -> str:
    """Return the turns that the solver is asked with, by the template that the run kept."""
    table = dict(run.recipe.get("prompts", {}))
    name = table.get("solver", "solver")
    kept = [path for path in (kept_path(run.folder, f"{name}.txt"), kept_path(run.folder, name)) if path.is_file()]
    if kept:
        table["solver"] = str(kept[0])
    asked = Problem(id="asked", statement="{the problem}", answer="unknown")
    turns = SolverPrompt(config.PromptsConfig.model_validate(table)).turns(asked)
    return "\n\n".join(f"[{turn.role}]\n{turn.content}" for turn in turns)


@cache
def _template() -> Template:
    loader = FileSystemLoader(Path(__file__).parent)
    environment = Environment(loader=loader, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    return environment.get_template("card.md.jinja")
