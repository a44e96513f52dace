"""A model card written from a run: what taught the model, its figures with intervals, data, licences, recipe."""

import re
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCardData
from huggingface_hub.repocard import metadata_load
from jinja2 import Environment, FileSystemLoader, StrictUndefined, Template

import stepalign
from stepalign import config
from stepalign.config.registry import FAMILIES
from stepalign.errors import StepalignError
from stepalign.exporting.merge import MAX_DIFFERENCE, MAX_KL, Agreement
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


def model_card(
    run: RunFiles, step: int, *, serve: str, base: str | None = None, agreement: Agreement | None = None
) -> str:
    """Write the card of a run's checkpoint as Markdown.

    Args:
        run: the run.
        step: the checkpoint's optimizer step. Later steps and evaluations are left out.
        serve: vLLM's command.
        base: the base's name where others load it from; None is the recipe's.
        agreement: of merged weights with their adapter; None where nothing was merged.
    """
    until = replace(
        run,
        steps=[line for line in run.steps if line["step"] <= step],
        evaluations=[evaluation for evaluation in run.evaluations if evaluation.step <= step],
    )
    summary = Summary(until)
    sources, licence = sources_of(run), licence_of_base(run)
    base = base or str(summary.setting("model.name_or_path"))
    adapter = agreement is None and summary.setting("training.use_peft") is not False
    data = ModelCardData(
        base_model=base if re.fullmatch(r"[\w.-]+/[\w.-]+", base) and not Path(base).is_dir() else None,
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
            found[use] = DataSource(name=hub or table["source"], hub=hub, licence=kind.licence)
    return found


def licence_of_base(run: RunFiles) -> str | None:
    """Return the licence that the base's own card states, where the base is a local folder; else None."""
    try:
        stated = metadata_load(Path(config.ModelConfig.model_validate(run.recipe["model"]).location) / "README.md")
    except (OSError, KeyError, ValueError, StepalignError):  # no folder, no card, no front matter
        return None
    return str(stated["license"]) if stated and stated.get("license") else None


def _solver_prompt(run: RunFiles) -> str:
    """Return the turns that the solver is asked with, by the template that the run kept."""
    table = dict(run.recipe.get("prompts", {}))
    path = run.folder / "prompts" / f"{table.get('solver', 'solver')}.txt"
    if path.exists():
        table["solver"] = str(path)
    asked = Problem(id="asked", statement="{the problem}", answer="unknown")
    turns = SolverPrompt(config.PromptsConfig.model_validate(table)).turns(asked)
    return "\n\n".join(f"[{turn.role}]\n{turn.content}" for turn in turns)


@cache
def _template() -> Template:
    loader = FileSystemLoader(Path(__file__).parent)
    environment = Environment(loader=loader, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    return environment.get_template("card.md.jinja")
