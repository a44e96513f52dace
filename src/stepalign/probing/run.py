"""Credit of rollouts, sampled or given, under several contexts: a folder of records, measures, figures and a page.

    stepalign probe probe/gsm8k --rollouts planted --context refsol --context stepalign

Credit is appended to the folder as it is computed, so that a stopped probe continues. Its inputs (rollouts, critiques,
marks) are complete, and in the folder, before.
"""

import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Unpack

from accelerate import Accelerator
from pydantic import NonNegativeInt, PositiveInt

from stepalign import config, models, prompts
from stepalign.algorithms.teacher_prompt import limited_teacher
from stepalign.append_log import AppendLog
from stepalign.arguments import checked
from stepalign.chat import load_chat
from stepalign.config import machine
from stepalign.console import Console
from stepalign.contexts import load
from stepalign.contexts.wrong import check_has_wrong
from stepalign.data import prepare
from stepalign.errors import StepalignError
from stepalign.io import claim, kept_date
from stepalign.manifest import manifest
from stepalign.objects import AnyContext, AnyRecipe, Objects, with_objects
from stepalign.policy import ADAPTER, Policy
from stepalign.probing import figures, folder, inputs, page
from stepalign.probing.credit import CreditScorer
from stepalign.probing.folder import Probe
from stepalign.probing.measures import measure
from stepalign.prompts.conversation import SolverPrompt
from stepalign.records import Credit
from stepalign.rollouts.generate import solver_on
from stepalign.teachers import Teacher, build_teacher
from stepalign.trainer.checkpoints import adapter_folder, load_algorithm_state


@checked
def probe(
    recipe: AnyRecipe,
    out: Path | str,
    *,
    rollouts: Path | str | None = None,
    contexts: AnyContext | Sequence[AnyContext] = (),
    adapter: Path | str | None = None,
    top: NonNegativeInt = 0,
    limit: PositiveInt | None = None,
    contrast: NonNegativeInt = 0,
    **objects: Unpack[Objects],
) -> Probe:
    """Probe contexts, and write the folder `out`; or continue what was begun there.

    Args:
        recipe: model, prompts, teacher and critic; problems and sampling where rollouts are sampled.
        out: the probe's folder.
        rollouts: a file, or a folder that `inputs.read` reads. None samples one rollout of each training problem,
            or `training.num_generations` where a context shows siblings.
        contexts: one or several, by name or file, or as functions; by default the recipe's own.
        adapter: the student's: a folder of its own, a checkpoint's, or a run's, whose last checkpoint is taken. None
            probes the base itself. The teacher is the recipe's.
        top: the number of likeliest tokens kept beside each sampled one.
        limit: the number of rollouts, from the first.
        contrast: the most wrong contexts that each context is contrasted with; 0 is no contrast.
        objects: problems, grader and critic in place of the recipe's (`objects.Objects`).

    Raises:
        StepalignError: the input is bad, which is raised before long work where possible; or `out` holds another probe.
    """
    settings, out = with_objects(recipe, **objects), Path(out)
    rollouts = Path(rollouts) if rollouts else None
    adapter = adapter_folder(adapter)
    machine.check(settings, "model", "teacher", *(() if rollouts else ("problems", "grader")))
    designs = [contexts] if isinstance(contexts, str | config.PythonObject) or callable(contexts) else contexts
    templates, words = [], {}
    for design in dict.fromkeys(designs or [settings.context.design]):
        with prompts.recorded() as texts:
            templates.append(load(design))
        words[templates[-1].name] = prompts.digests(texts)
    with prompts.recorded() as texts:
        prompt = SolverPrompt(settings.prompts)
    date = kept_date(out / "settings.json")
    shared = {"model", "prompts", "teacher", "sampling", "seed"}
    asked: dict[str, Any] = settings.model_dump(mode="json", include=shared)
    asked |= {
        "adapter": adapter and str(adapter),
        "rollouts": str(rollouts) if rollouts else settings.problems.model_dump(mode="json"),
        "contexts": words,
        "words": prompts.digests(texts),
        "date": str(date),
        "top": top,
        "limit": limit,
        **({"contrast": contrast} if contrast else {}),
    }
    if contrast:
        for context in templates:
            check_has_wrong(context, "--contrast")
    if (out / "manifest.json").exists() and not (out / "settings.json").exists():
        raise StepalignError(
            f"{out} holds something else than a probe, or one of another version: choose another --out"
        )
    started = (out / "rollouts.jsonl").exists()
    claim(
        out / "settings.json",
        asked,
        started=started,
        optional=["contexts"],
        refusal="it holds another probe (choose another folder with --out, or delete that one)",
    )
    group_size = 1 if rollouts else inputs.group_size(templates, settings, contrast=contrast > 0)
    if rollouts:
        given = inputs.read(rollouts, lambda: [p for part in prepare(settings.problems)[:2] for p in part], limit=limit)
    else:
        given = Probe(problems=tuple(prepare(settings.problems)[0][: limit and -(-limit // group_size)]), rollouts=())
    chat = load_chat(settings.model, prompt.before, date)
    limited = limited_teacher(settings, chat, models.context_limit(settings.model))
    policy = Policy(models.load_model(settings.model, adapter, Accelerator().device)).eval()
    scorer = CreditScorer(
        policy,
        chat,
        prompt.before,
        templates,
        _teacher(settings, policy, adapter),
        limited,
        top=top,
        num_wrong=contrast,
    )
    with Console() as console:
        with solver_on(settings, chat, policy.model) as solver:
            given = inputs.read(out) if started else given
            own = ADAPTER if adapter else None
            given = inputs.prepare(given, settings, solver, console, out, adapter=own, num_samples=group_size)
        credits = _score(scorer, given, out, console)
    cost = {"tokens": scorer.tokens, "seconds": round(console.seconds["credit"], 1)}
    tokens = {token for rollout in given.rollouts for token in rollout.completion_ids}
    tokens |= {token for credit in credits for top in (*credit.student_top, *credit.teacher_top) for token, _ in top}
    probed = replace(
        given,
        credits=credits,
        tokens={token: chat.token_text(token) for token in sorted(tokens)},
        measures=measure(given.rollouts, given.marks, credits, seed=settings.seed),
        manifest={
            **manifest(),
            "asked": asked,
            "skipped": dict(+scorer.skipped),
            "cost": cost,
            "command": " ".join(sys.argv),
        },
    )
    folder.write(probed, out)
    drawings = figures.write(probed, out / "figures")
    page.write(probed, out / "probe.html", drawings)
    return probed


def _teacher(settings: config.Recipe, policy: Policy, adapter: Path | None) -> Teacher:
    """Build the recipe's teacher of a policy that was trained, with its state where it has one."""
    teacher = build_teacher(settings.teacher, policy)
    if adapter is not None and teacher.state_dict():
        state = load_algorithm_state(adapter)
        if not state:
            raise StepalignError(
                f"teacher.kind = {settings.teacher.kind!r}: its state is in a run's checkpoint, and {adapter} has "
                "none. Give a checkpoint's folder, or another teacher (teacher.kind=base)"
            )
        teacher.load_state_dict(state)
    return teacher


def _score(scorer: CreditScorer, given: Probe, out: Path, console: Console) -> tuple[Credit, ...]:
    """Compute the credit that the folder lacks, and return all of it by context."""
    log = AppendLog(out / "credits.jsonl", Credit)
    cached = {(credit.rollout_id, credit.context): credit for credit in log.read()}
    folder.check_credits(cached.values(), given.rollouts, log.path)
    log.truncate()
    views, reported = len(given.rollouts) * len(scorer.contexts), 0
    with console.stage("credit", views, "views") as advance:
        advance(len(cached))
        for batch in scorer.run(given, dict(cached)):
            log.append(*batch)
            cached |= {(credit.rollout_id, credit.context): credit for credit in batch}
            advance(len(batch))
            if not console.rich.is_terminal and 10 * len(cached) // views > reported:
                reported = 10 * len(cached) // views
                console.say(f"{out}: {len(cached)} of {views} views")
    keys = [(rollout.id, context.name) for context in scorer.contexts for rollout in given.rollouts]
    credits = tuple(cached[key] for key in keys if key in cached)
    speed = scorer.tokens / max(console.seconds["credit"], 1e-9)
    console.say(f"{out}: {len(credits)} of {views} views, {speed:,.0f} tokens/s {dict(scorer.skipped) or ''}")
    return credits
